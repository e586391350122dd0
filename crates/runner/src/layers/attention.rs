//! Grouped-query attention.

use std::sync::Arc;

use candle_core::Tensor;
use hooks::{Activation, HookPoint, LayerInfo, Site};
use kernels::attention::{
    AttentionInput, AttentionOptions, AttentionWants, attention, attention_pattern,
    attention_scores,
};

use super::pass::span;
use super::{Norm, Outputs, Pass, Projections, Rotary};
use crate::Result;
use crate::cache::KvCache;

/// Norms of queries and keys, before they are rotated.
#[derive(Debug)]
pub(crate) enum QueryKeyNorm {
    None,
    /// Over the width of each head; the heads share weights.
    Heads {
        q: Norm,
        k: Norm,
    },
    /// Over all heads together.
    Whole {
        q: Norm,
        k: Norm,
    },
}

/// One layer's attention.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Queries, keys and values.
    pub(crate) inputs: Projections,
    pub(crate) output: Projections,
    pub(crate) d_head: usize,
    pub(crate) norm: QueryKeyNorm,
    /// `None`: queries and keys know nothing of their positions here.
    pub(crate) rotary: Option<Arc<Rotary>>,
}

impl Attention {
    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        cache: &mut KvCache,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let inputs = self.inputs.outputs(x)?;
        let (q, k) = self.queries_and_keys(&inputs)?;
        let q = pass.site(Site::Q, layer, q)?;
        let k = pass.site(Site::K, layer, k)?;
        let v = pass.site(Site::V, layer, inputs.heads(2, self.d_head)?)?;
        let (q, k) = match &self.rotary {
            Some(rotary) => (
                pass.site(Site::RotQ, layer, rotary.rotate(layer, &q, pass)?)?,
                pass.site(Site::RotK, layer, rotary.rotate(layer, &k, pass)?)?,
            ),
            None => (q, k),
        };
        let z = match pass.step {
            Some(step) => step.attend(layer, &q, [&k, &v], &options(&pass.layers[layer]))?,
            None => self.attend(layer, &q, [k, v], cache, pass)?,
        };
        let z = pass.site(Site::Z, layer, z)?;
        let (batch, pos, heads, width) = z.dims4()?;
        self.output.forward(&z.reshape((batch, pos, heads * width))?)
    }

    /// What the queries attend to, and what is wanted beside it.
    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        [k, v]: [Tensor; 2],
        cache: &mut KvCache,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let (k, v) = cache.extend(layer, k, v, &pass.lengths, &pass.offsets)?;
        // The output has one path, whatever is wanted beside it.
        let wants = AttentionWants {
            lse: pass.wants(Site::Lse, layer).is_some(),
            summary: pass.wants(Site::Summary, layer).map(|_| pass.plan.summary()),
            boundaries: pass.batch.boundaries(),
        };
        let input =
            AttentionInput { q, k: &k, v: &v, lengths: &pass.lengths, offsets: &pass.offsets };
        let options = options(&pass.layers[layer]);
        let output = attention(&input, &options, &wants)?;
        // Of keys that the cache has room for, those that are there.
        let there = pass.end();
        let (k, v) = (k.narrow(1, 0, there)?, v.narrow(1, 0, there)?);
        self.record_beside(layer, [q, &k, &v], &options, pass)?;
        if let Some(lse) = output.lse {
            pass.site(Site::Lse, layer, lse)?;
        }
        if let Some(summary) = output.summary {
            pass.site(Site::Summary, layer, summary)?;
        }
        Ok(output.z)
    }

    /// `[batch, pos, head, d_head]` each, normalised.
    fn queries_and_keys(&self, inputs: &Outputs<'_>) -> Result<(Tensor, Tensor)> {
        let d = self.d_head;
        Ok(match &self.norm {
            QueryKeyNorm::None => (inputs.heads(0, d)?, inputs.heads(1, d)?),
            QueryKeyNorm::Heads { q, k } => {
                (q.forward(&inputs.heads(0, d)?)?, k.forward(&inputs.heads(1, d)?)?)
            }
            QueryKeyNorm::Whole { q, k } => {
                let split = |x: Tensor| {
                    let (batch, pos, width) = x.dims3()?;
                    x.reshape((batch, pos, width / d, d))
                };
                (split(q.forward(&inputs.part(0)?)?)?, split(k.forward(&inputs.part(1)?)?)?)
            }
        })
    }

    /// Scores and patterns, for the wanted heads and about the wanted positions only.
    fn record_beside(
        &self,
        layer: usize,
        [q, k, v]: [&Tensor; 3],
        options: &AttentionOptions,
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        for site in [Site::AttnScores, Site::Pattern] {
            let Some(request) = pass.wants(site, layer) else {
                continue;
            };
            let heads = request.heads.as_deref().unwrap_or(&[]);
            let span = span(request, &pass.lengths, &pass.offsets);
            let q = q.narrow(1, span.start, span.len())?;
            let lengths: Vec<_> = pass
                .lengths
                .iter()
                .map(|len| len.min(&span.end).saturating_sub(span.start))
                .collect();
            let offsets: Vec<_> = pass.offsets.iter().map(|offset| offset + span.start).collect();
            let input = AttentionInput { q: &q, k, v, lengths: &lengths, offsets: &offsets };
            let tensor = match site {
                Site::AttnScores => attention_scores(&input, options, heads)?,
                _ => attention_pattern(&input, options, heads)?,
            };
            let positions = vec![span.collect::<Vec<_>>(); lengths.len()];
            let activation =
                Activation::new(&tensor, pass.batch).with_heads(heads).with_positions(&positions);
            pass.record(HookPoint::layer(site, layer), &activation)?;
        }
        Ok(())
    }
}

/// How a layer's scores are formed: from what observers are told of it.
fn options(layer: &LayerInfo) -> AttentionOptions {
    AttentionOptions { scale: layer.scale, window: layer.window, soft_cap: layer.soft_cap }
}
