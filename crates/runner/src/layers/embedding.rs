//! Token and position embeddings.

use candle_core::Tensor;
use kernels::elementwise::scale;

use super::Projections;
use crate::Result;

/// Where a token's embedding comes from.
#[derive(Clone, Debug)]
pub(crate) enum Table {
    /// The rows of a matrix of its own.
    Own(Projections),
    /// The rows of the unembedding.
    Tied,
}

/// What enters the first layer.
#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    pub(crate) table: Table,
    /// What token embeddings are multiplied by.
    pub(crate) multiplier: Option<f64>,
    /// Learned positions, one row each.
    pub(crate) positions: Option<Projections>,
}

impl Embedding {
    /// Embeddings of padded rows of tokens: `[batch, pos, d_model]`.
    pub(crate) fn tokens(
        &self,
        ids: Vec<u32>,
        batch: usize,
        unembedding: &Projections,
    ) -> Result<Tensor> {
        let len = ids.len() / batch;
        let table = match &self.table {
            Table::Own(table) => table,
            Table::Tied => unembedding,
        };
        let rows = table.single().rows(&ids)?;
        let rows = match self.multiplier {
            Some(multiplier) => scale(&rows, multiplier)?,
            None => rows,
        };
        let width = rows.dim(1)?;
        Ok(rows.reshape((batch, len, width))?)
    }

    /// Embeddings of rows' positions, `[batch, pos, d_model]`; `None` without
    /// learned positions.
    ///
    /// Rows begin at `offsets`, all of them `len` long; padding beyond the last
    /// position gets that of the last.
    pub(crate) fn positions(&self, offsets: &[usize], len: usize) -> Result<Option<Tensor>> {
        let Some(table) = &self.positions else {
            return Ok(None);
        };
        let table = table.single();
        let last = table.d_out().saturating_sub(1);
        let row = |&offset: &usize| (offset..offset + len).map(|at| at.min(last) as u32);
        let ids: Vec<u32> = offsets.iter().flat_map(row).collect();
        let rows = table.rows(&ids)?;
        let width = rows.dim(1)?;
        Ok(Some(rows.reshape((offsets.len(), len, width))?))
    }
}
