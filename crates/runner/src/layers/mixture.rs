//! Mixture of experts.

use candle_core::Tensor;
use hooks::Site;
use kernels::activation::ActivationFunction;
use kernels::moe::{Experts, moe};
use kernels::router::{Selection, route};

use super::{Pass, Projections};
use crate::Result;

/// A router and its experts.
#[derive(Debug)]
pub(crate) struct Mixture {
    pub(crate) router: Projections,
    pub(crate) experts: Experts,
    /// Experts that each token uses.
    pub(crate) k: usize,
    pub(crate) rule: Selection,
    pub(crate) activation: ActivationFunction,
}

impl Mixture {
    pub(crate) fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let (batch, pos, d_model) = x.dims3()?;
        let tokens = batch * pos;
        let by_row = |tensor: &Tensor| tensor.reshape((batch, pos, ()));
        let logits = pass.site(Site::RouterLogits, layer, self.router.forward(x)?)?;
        let mut routing = route(&logits.reshape((tokens, ()))?, self.k, self.rule)?;
        pass.site(Site::RouterProbs, layer, by_row(&routing.probs)?)?;
        pass.site(Site::ExpertIndices, layer, by_row(&routing.indices)?)?;
        let weights = pass.site(Site::ExpertWeights, layer, by_row(&routing.weights)?)?;
        routing.weights = weights.reshape((tokens, self.k))?;
        let x = x.reshape((tokens, d_model))?;
        let y = moe(&x, &routing, &self.experts, self.activation)?;
        Ok(y.reshape((batch, pos, d_model))?)
    }
}
