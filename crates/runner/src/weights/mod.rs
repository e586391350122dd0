//! Tensors of a model's files, checked against what the configuration implies.
//!
//! Families ask for weights by the names that Hugging Face checkpoints use and
//! the shapes that the configuration implies; where the numbers come from
//! (safetensors, one file or several, or GGUF) is decided here. Matrices that
//! read the same input are asked for together and come as one stacked matrix
//! where their formats agree, so that one product serves them all.

mod bytes;
mod checkpoint;
mod convert;
mod gguf;
mod matrix;
mod safetensors;

use candle_core::Tensor;

pub(crate) use bytes::Bytes;
pub(crate) use checkpoint::Checkpoint;
pub(crate) use convert::Format;
pub(crate) use gguf::GgufWeights;
pub(crate) use matrix::Matrix;

use crate::Result;

/// Rows of a matrix that come from one tensor of the files.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// The tensor's name in a Hugging Face checkpoint, without `.weight`.
    pub(crate) module: String,
    /// Its number of rows.
    pub(crate) rows: usize,
}

impl Part {
    pub(crate) fn new(module: String, rows: usize) -> Self {
        Self { module, rows }
    }

    /// The matrix's tensor.
    pub(crate) fn weight(&self) -> String {
        format!("{}.weight", self.module)
    }

    /// The bias's tensor.
    pub(crate) fn bias(&self) -> String {
        format!("{}.bias", self.module)
    }
}

/// A model's weights, by Hugging Face names. Every method names the tensor in its errors.
pub(crate) trait Weights {
    /// Whether there is such a tensor.
    fn has(&self, name: &str) -> bool;

    /// A vector, or several joined: `[Σ len]`, `f32`.
    fn vector(&self, parts: &[(String, usize)]) -> Result<Tensor>;

    /// The parts' matrices of `columns` columns: stacked into one where their
    /// formats agree, else one each, in the same order.
    fn matrices(&self, parts: &[Part], columns: usize) -> Result<Vec<Matrix<'_>>>;

    /// A three-dimensional tensor `[n, rows, columns]` as `n` matrices.
    fn slices(&self, name: &str, n: usize, rows: usize, columns: usize) -> Result<Vec<Matrix<'_>>>;

    /// Divisors of the rotary frequencies, one each, where the files store any.
    fn frequency_divisors(&self, n_frequencies: usize) -> Result<Option<Tensor>>;
}
