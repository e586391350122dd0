//! One layer: attention and its second half, each added to the residual stream.

use candle_core::Tensor;
use hooks::Site;
use kernels::elementwise::{add, scale};

use super::{Attention, Mixture, Mlp, Norm, Pass};
use crate::Result;
use crate::cache::KvCache;

/// The second half of a layer.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Mixture(Mixture),
}

/// What the second half of a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residual {
    /// The residual stream with the attention's output added.
    Serial,
    /// The residual stream that attention reads, too.
    Parallel,
}

/// One half of a layer, beside what it computes.
#[derive(Debug)]
pub(crate) struct Branch {
    /// The norm before it; without, it reads the residual stream as it is.
    pub(crate) before: Option<Norm>,
    /// The norm behind it, before its output is added.
    pub(crate) after: Option<Norm>,
    /// What its output is multiplied by before it is added.
    pub(crate) multiplier: Option<f64>,
}

impl Branch {
    /// A norm before the branch and nothing behind it.
    pub(crate) fn pre_norm(norm: Norm) -> Self {
        Self { before: Some(norm), after: None, multiplier: None }
    }

    /// What the branch reads of the residual stream.
    fn input(
        &self,
        site: Site,
        layer: usize,
        resid: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        match &self.before {
            Some(norm) => pass.site(site, layer, norm.forward(resid)?),
            None => Ok(resid.clone()),
        }
    }

    /// What the branch adds to the residual stream.
    fn output(
        &self,
        site: Site,
        layer: usize,
        output: Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let output = match &self.after {
            Some(norm) => norm.forward(&output)?,
            None => output,
        };
        let output = match self.multiplier {
            Some(multiplier) => scale(&output, multiplier)?,
            None => output,
        };
        pass.site(site, layer, output)
    }
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) first: Branch,
    pub(crate) attention: Attention,
    pub(crate) second: Branch,
    pub(crate) feed_forward: FeedForward,
    pub(crate) residual: Residual,
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
        let pre = pass.site(Site::ResidPre, layer, resid)?;
        let x = self.first.input(Site::Ln1Normalized, layer, &pre, pass)?;
        let attn = self.attention.forward(layer, &x, cache, pass)?;
        let attn = self.first.output(Site::AttnOut, layer, attn, pass)?;
        let mid = add(&pre, &attn)?;
        let (mid, read) = match self.residual {
            Residual::Serial => {
                let mid = pass.site(Site::ResidMid, layer, mid)?;
                (mid.clone(), mid)
            }
            Residual::Parallel => (mid, pre),
        };
        let x = self.second.input(Site::Ln2Normalized, layer, &read, pass)?;
        let mlp = match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.forward(layer, &x, pass)?,
            FeedForward::Mixture(mixture) => mixture.forward(layer, &x, pass)?,
        };
        let mlp = self.second.output(Site::MlpOut, layer, mlp, pass)?;
        let resid = pass.site(Site::ResidPost, layer, add(&mid, &mlp)?)?;
        pass.end_layer(layer)?;
        Ok(resid)
    }
}
