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
mod safetensors;

use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::QTensor;
use kernels::linear::Linear;

pub(crate) use bytes::Bytes;
pub(crate) use checkpoint::Checkpoint;
pub(crate) use convert::Format;
pub(crate) use gguf::GgufWeights;

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

/// A matrix `[rows, columns]` in `f32` or in quantized blocks.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    Dense(Tensor),
    Quantized(Arc<QTensor>),
}

impl Matrix {
    /// The rows with these numbers, as `f32`: `[.., columns]`.
    pub(crate) fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(matrix) => {
                let mut shape = ids.dims().to_vec();
                shape.push(matrix.dim(1)?);
                Ok(matrix.index_select(&ids.flatten_all()?, 0)?.reshape(shape)?)
            }
            Self::Quantized(matrix) => Ok(matrix.embedding(ids)?),
        }
    }

    /// The linear map `y = x Wᵀ + b`.
    pub(crate) fn linear(&self, bias: Option<&Tensor>) -> Result<Linear> {
        Ok(match self {
            Self::Dense(matrix) => Linear::dense(matrix, bias)?,
            Self::Quantized(matrix) => Linear::quantized(matrix.clone(), bias)?,
        })
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
    fn matrices(&self, parts: &[Part], columns: usize) -> Result<Vec<Matrix>>;

    /// A three-dimensional tensor `[n, rows, columns]` as `n` matrices.
    fn slices(&self, name: &str, n: usize, rows: usize, columns: usize) -> Result<Vec<Matrix>>;

    /// Divisors of the rotary frequencies, one each, where the files store any.
    fn frequency_divisors(&self, n_frequencies: usize) -> Result<Option<Tensor>>;
}
