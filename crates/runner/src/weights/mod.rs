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
mod placed;
mod safetensors;

use candle_core::{DType, Tensor};

pub(crate) use bytes::Bytes;
pub(crate) use checkpoint::Checkpoint;
pub(crate) use convert::{Format, convert_into};
pub(crate) use gguf::{ExpertNames, GgufLayout, GgufWeights, RotaryRows};
pub(crate) use matrix::Matrix;
pub(crate) use placed::PlacedWeights;

use crate::Result;

/// Rows of a matrix that come from one tensor of the files.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// The tensor's name in a Hugging Face checkpoint, without `.weight`.
    pub(crate) module: String,
    /// Its number of rows.
    pub(crate) rows: usize,
    /// How a Hugging Face checkpoint stores them.
    pub(crate) order: RowOrder,
    /// What products with them are computed in.
    pub(crate) precision: Precision,
}

/// What products with a matrix are computed in, on devices that have a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Precision {
    /// The model's dtype.
    #[default]
    Model,
    /// `f32`: routers, whose small differences choose experts.
    Single,
}

impl Precision {
    /// The dtype, in a model of that dtype.
    fn dtype(self, model: DType) -> DType {
        match self {
            Self::Model => model,
            Self::Single => DType::F32,
        }
    }
}

/// How files store the rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// One after another.
    Plain,
    /// As columns: the tensor is the transpose.
    Transposed,
    /// Queries, keys and values of the first head, then those of the second:
    /// `[head, 3, d_head]` for what the model reads as `[3, head, d_head]`.
    HeadByHead { d_head: usize },
    /// The two rows of a rotary pair beside each other.
    Pairs { d_head: usize },
}

impl RowOrder {
    /// The stored row that becomes row `row` of `rows`.
    fn stored_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain | Self::Transposed => row,
            Self::HeadByHead { d_head } => {
                let n_heads = rows / (3 * d_head);
                let (part, head, i) =
                    (row / (n_heads * d_head), row / d_head % n_heads, row % d_head);
                (head * 3 + part) * d_head + i
            }
            Self::Pairs { d_head } => {
                let (head, i, half) = (row / d_head, row % d_head, d_head / 2);
                head * d_head + 2 * (i % half) + i / half
            }
        }
    }
}

impl Part {
    pub(crate) fn new(module: String, rows: usize) -> Self {
        Self { module, rows, order: RowOrder::Plain, precision: Precision::Model }
    }

    /// The same, for products in `f32` whatever the model computes in.
    pub(crate) fn in_single(self) -> Self {
        Self { precision: Precision::Single, ..self }
    }

    /// A vector beside the rows in their order, from its stored order.
    pub(crate) fn arrange(&self, vector: Tensor) -> Result<Tensor> {
        if self.order == RowOrder::Plain || self.order == RowOrder::Transposed {
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

    /// Every tensor of the files with the bytes that it takes of a device, in a model of this dtype.
    fn sizes(&self, dtype: DType) -> Vec<(String, u64)>;

    /// What stands in the files for a norm's weight `1 + w`.
    fn unit_norms(&self) -> UnitNorms;

    /// Divisors of the rotary frequencies, one each, where the files store any.
    fn frequency_divisors(&self, n_frequencies: usize) -> Result<Option<Tensor>>;
}
