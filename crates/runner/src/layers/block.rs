//! One layer: attention and its second half, each behind a norm and added to the
//! residual stream.

use candle_core::Tensor;
use hooks::Site;

use super::{Attention, Mixture, Mlp, Norm, Pass};
use crate::Result;
use crate::cache::KvCache;

/// The second half of a layer.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Mixture(Mixture),
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) ln1: Norm,
    pub(crate) attention: Attention,
    pub(crate) ln2: Norm,
    pub(crate) feed_forward: FeedForward,
}

impl Block {
    /// The residual stream after the layer, from that before it: `[batch, pos, d_model]`.
    pub(crate) fn forward(
        &self,
        layer: usize,
        resid: Tensor,
        cache: &mut KvCache,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let resid = pass.site(Site::ResidPre, layer, resid)?;
        let x = pass.site(Site::Ln1Normalized, layer, self.ln1.forward(&resid)?)?;
        let attn = self.attention.forward(layer, &x, cache, pass)?;
        let attn = pass.site(Site::AttnOut, layer, attn)?;
        let resid = pass.site(Site::ResidMid, layer, (resid + attn)?)?;
        let x = pass.site(Site::Ln2Normalized, layer, self.ln2.forward(&resid)?)?;
        let mlp = match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.forward(layer, &x, pass)?,
            FeedForward::Mixture(mixture) => mixture.forward(layer, &x, pass)?,
        };
        let mlp = pass.site(Site::MlpOut, layer, mlp)?;
        let resid = pass.site(Site::ResidPost, layer, (resid + mlp)?)?;
        pass.sink.end_layer(layer)?;
        Ok(resid)
    }
}
