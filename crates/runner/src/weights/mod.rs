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
pub(crate) use convert::{Format, convert_into};
pub(crate) use gguf::{ExpertNames, GgufLayout, GgufWeights, RotaryRows};
pub(crate) use matrix::{Matrix, Order};

use crate::Result;

/// Rows of a matrix that come from one tensor of the files.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// The tensor's name in a Hugging Face checkpoint, without `.weight`.
    pub(crate) module: String,
    /// Its number of rows.
    pub(crate) rows: usize,
    /// How a Hugging Face checkpoint stores them.
    pub(crate) order: Order,
}

impl Part {
    pub(crate) fn new(module: String, rows: usize) -> Self {
        Self { module, rows, order: Order::Plain }
    }

    /// A vector beside the rows in their order, from its stored order.
    pub(crate) fn arrange(&self, vector: Tensor) -> Result<Tensor> {
        if matches!(self.order, Order::Plain | Order::Transposed) {
            return Ok(vector);
        }
        let stored = |row| self.order.stored_row(row, self.rows) as u32;
        let rows: Vec<u32> = (0..self.rows).map(stored).collect();
        Ok(vector.index_select(&Tensor::new(rows, vector.device())?, 0)?)
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

/// How files store the weights of norms that multiply by `1 + w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitNorms {
    /// `w`.
    Bare,
    /// `1 + w`.
    Added,
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

    /// What stands in the files for a norm's weight `1 + w`.
    fn unit_norms(&self) -> UnitNorms;

    /// Divisors of the rotary frequencies, one each, where the files store any.
    fn frequency_divisors(&self, n_frequencies: usize) -> Result<Option<Tensor>>;
}
