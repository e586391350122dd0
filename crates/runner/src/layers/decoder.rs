//! A whole decoder.

use std::ops::Range;

use candle_core::Tensor;
use hooks::{Activation, HookPoint, Request};
use kernels::elementwise::{scale, soft_cap};

use super::{Block, Embedding, Norm, Pass, Projections};
use crate::Result;
use crate::cache::KvCache;

/// Embedding, layers, final norm and unembedding.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) ln_final: Norm,
    pub(crate) unembedding: Projections,
    /// What is done to the unembedding's output.
    pub(crate) logits: Logits,
}

/// From the unembedding's output `x` to logits: `m x`, then `c tanh(x / c)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Logits {
    /// `m`.
    pub(crate) multiplier: Option<f64>,
    /// `c`.
    pub(crate) soft_cap: Option<f64>,
}

impl Decoder {
    /// Embeddings of the batch's tokens, padded on the right with token 0.
    pub(crate) fn embed(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        let (rows, len) = (pass.batch.rows(), pass.batch.padded_len());
        let mut ids = Vec::with_capacity(rows.len() * len);
        for row in rows {
            ids.extend_from_slice(&row.tokens);
            ids.resize(ids.len() + len - row.tokens.len(), 0);
        }
        self.embedding.tokens(ids, rows.len(), &self.unembedding)
    }

    /// Learned embeddings of the batch's positions, in models that have them.
    pub(crate) fn embed_positions(&self, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        self.embedding.positions(&pass.offsets, pass.batch.padded_len())
    }

    fn unembed(&self, normalized: &Tensor) -> Result<Tensor> {
        let mut logits = self.unembedding.forward(normalized)?;
        if let Some(multiplier) = self.logits.multiplier {
            logits = scale(&logits, multiplier)?;
        }
        if let Some(cap) = self.logits.soft_cap {
            logits = soft_cap(&logits, cap)?;
        }
        Ok(logits)
    }

    /// What a point behind the layers holds, from the residual stream there.
    pub(crate) fn at(&self, point: HookPoint, resid: &Tensor) -> Result<Tensor> {
        let normalized = self.ln_final.forward(resid)?;
        if point == HookPoint::LOGITS { self.unembed(&normalized) } else { Ok(normalized) }
    }

    /// How wide that is.
    pub(crate) fn width(&self, point: HookPoint, d_model: usize) -> usize {
        if point == HookPoint::LOGITS { self.unembedding.single().d_out() } else { d_model }
    }

    /// The residual stream after these layers, on the last one's device.
    pub(crate) fn layers(
        &self,
        layers: Range<usize>,
        resid: Tensor,
        cache: &mut KvCache,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        layers.clone().zip(&self.blocks[layers]).try_fold(resid, |resid, (layer, block)| {
            block.forward(layer, pass.bring(layer, resid)?, cache, pass)
        })
    }

    /// Final norm and logits, at the wanted positions only.
    pub(crate) fn end(&self, resid: &Tensor, pass: &mut Pass<'_>) -> Result<()> {
        let edited =
            [HookPoint::LN_FINAL, HookPoint::LOGITS].iter().any(|p| pass.edits.touches(*p));
        if edited {
            // Edits name positions of the sequence, so they get all of them.
            let normalized = pass.point(HookPoint::LN_FINAL, self.ln_final.forward(resid)?)?;
            if pass.plan.wants(HookPoint::LOGITS).is_some() {
                pass.point(HookPoint::LOGITS, self.unembed(&normalized)?)?;
            }
            return Ok(());
        }
        for point in [HookPoint::LN_FINAL, HookPoint::LOGITS] {
            if let Some(request) = pass.plan.wants(point) {
                let chosen = Chosen::new(resid, request, pass)?;
                let width = self.width(point, resid.dim(2)?);
                let values = chosen.map(|x| self.at(point, x), width)?;
                chosen.record(point, &values, pass)?;
            }
        }
        Ok(())
    }
}

/// The rows of the residual stream at wanted positions.
struct Chosen {
    /// `[batch, chosen, d_model]`; rows with fewer positions are filled with their first token.
    resid: Tensor,
    /// Which positions; `None`: all.
    positions: Option<Vec<Vec<usize>>>,
}

impl Chosen {
    fn new(resid: &Tensor, request: &Request, pass: &Pass<'_>) -> Result<Self> {
        let (_, len, d_model) = resid.dims3()?;
        let rows = pass.lengths.iter().zip(&pass.offsets);
        let positions: Vec<Vec<usize>> =
            rows.map(|(&length, &offset)| request.positions.resolve(offset, length)).collect();
        let most = positions.iter().map(Vec::len).max().unwrap_or(0);
        if most == len {
            return Ok(Self { resid: resid.clone(), positions: None });
        }
        let mut flat = Vec::with_capacity(positions.len() * most);
        for (row, wanted) in positions.iter().enumerate() {
            let filled = wanted.iter().copied().chain(std::iter::repeat(0)).take(most);
            // Each is below the number of tokens in memory.
            flat.extend(filled.map(|position| (row * len + position) as i64));
        }
        let count = flat.len();
        let resid = if count == 0 {
            Tensor::zeros((positions.len(), 0, d_model), resid.dtype(), resid.device())?
        } else {
            let flat = Tensor::from_vec(flat, count, resid.device())?;
            resid.reshape(((), d_model))?.index_select(&flat, 0)?.reshape((
                positions.len(),
                most,
                d_model,
            ))?
        };
        Ok(Self { resid, positions: Some(positions) })
    }

    /// A function of the chosen rows, `width` wide; nothing is computed for no rows.
    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>, width: usize) -> Result<Tensor> {
        let (batch, chosen, _) = self.resid.dims3()?;
        if chosen == 0 {
            return Ok(Tensor::zeros((batch, 0, width), self.resid.dtype(), self.resid.device())?);
        }
        f(&self.resid)
    }

    fn record(&self, point: HookPoint, tensor: &Tensor, pass: &mut Pass<'_>) -> Result<()> {
        let activation = Activation::new(tensor, pass.batch);
        match &self.positions {
            Some(positions) => pass.record(point, &activation.with_positions(positions)),
            None => pass.record(point, &activation),
        }
    }
}
