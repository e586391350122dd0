//! The CUDA kernels against the plain implementations, on the first GPU, which must be there.

#![allow(clippy::unwrap_used)]

mod device;
#[path = "machine/graph.rs"]
mod graph;
#[path = "machine/gpu.rs"]
mod machine;
