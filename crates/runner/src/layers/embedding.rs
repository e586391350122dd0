//! Token embeddings.

use candle_core::{Device, Tensor};

use super::Projections;
use crate::Result;
use crate::weights::Matrix;

/// Where a token's embedding comes from.
#[derive(Clone, Debug)]
pub(crate) enum Embedding {
    /// A table of its own, in one piece.
    Table(Vec<Matrix>),
    /// The rows of the unembedding.
    Tied,
}

impl Embedding {
    /// Embeddings of padded rows of tokens: `[batch, pos, d_model]`.
    pub(crate) fn lookup(
        &self,
        ids: Vec<u32>,
        batch: usize,
        unembedding: &Projections,
    ) -> Result<Tensor> {
        let len = ids.len() / batch;
        let rows = match self {
            Self::Tied => unembedding.single().rows(&ids)?,
            Self::Table(matrices) => {
                let ids = Tensor::new(ids, &Device::Cpu)?;
                matrices[0].lookup(&ids)?
            }
        };
        let width = rows.dim(1)?;
        Ok(rows.reshape((batch, len, width))?)
    }
}
