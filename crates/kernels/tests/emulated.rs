//! The CUDA kernels against the plain implementations, by emulation.

#![allow(clippy::unwrap_used)]

mod device;
#[path = "machine/emulated.rs"]
mod machine;
