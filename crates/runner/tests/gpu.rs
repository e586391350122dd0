//! The golden models on the first GPU, which must be there.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;
#[path = "placed/gpu.rs"]
mod machine;
#[path = "placed/models.rs"]
mod models;
#[path = "placed/steps.rs"]
mod steps;
