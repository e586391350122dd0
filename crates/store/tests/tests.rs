//! Tests of the run folder, in one program so that the libraries are linked once.
#![allow(clippy::unwrap_used)]

mod common;
mod crash;
mod damage;
mod pyarrow;
mod resume;
mod round_trip;
