//! Every numeric operation of the engine, on candle tensors and plain slices.
//!
//! Each file reads top to bottom: the formula, the public function, its checks,
//! the implementation. Beside each fast implementation stands a plain one in
//! [`mod@reference`]: loops, `f64`, no cleverness. It is the specification, and the
//! tests hold the fast one against it.
//!
//! The one decision that shapes this crate: a result never depends on the
//! number of threads, on the other rows of a batch, or on what else was asked
//! for. Every output element is one fixed sequence of operations, so a prompt
//! gives the same bits alone and in a batch, and a token the same bits from a
//! prefill and from a decode step. See [`linear`] and
//! [`mod@attention`] for how.
//!
//! Operations on tensors take `f32` tensors in main memory whose last axis is
//! contiguous; the other axes may have any strides, so views cost no copies.

pub mod activation;
pub mod attention;
pub mod cuda;
pub mod divergence;
pub mod elementwise;
pub mod error;
pub mod linear;
pub mod moe;
pub mod norm;
pub mod quantized;
pub mod random;
pub mod reference;
pub mod rotary;
pub mod router;

pub mod adjacency;
pub mod eigh;
pub mod graph;
pub mod heat;
pub mod hidden_score;
pub mod lanczos;
pub mod laplacian;
pub mod quadrature;
pub mod signal;

mod householder;
mod math;
mod memory;
mod panels;
mod product;
mod tensor;
mod tridiagonal;
mod twisted;

pub use error::{Error, Result};
pub use memory::keep_freed_memory;
