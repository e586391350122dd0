//! Token embeddings.

use candle_core::Tensor;

use super::Projections;
use crate::Result;

/// Where a token's embedding comes from.
#[derive(Clone, Debug)]
pub(crate) enum Embedding {
    /// The rows of a matrix of its own.
    Table(Projections),
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
        let table = match self {
            Self::Tied => unembedding,
            Self::Table(table) => table,
        };
        let rows = table.single().rows(&ids)?;
        let width = rows.dim(1)?;
        Ok(rows.reshape((batch, len, width))?)
    }
}
