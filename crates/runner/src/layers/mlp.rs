//! Gated MLP.

use candle_core::Tensor;
use hooks::Site;
use kernels::activation::{ActivationFunction, gated};

use super::{Pass, Projections};
use crate::Result;

/// `y = W_down (f(W_gate x) · W_up x)`.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// Gate and up.
    pub(crate) inputs: Projections,
    /// Down.
    pub(crate) output: Projections,
    pub(crate) activation: ActivationFunction,
}

impl Mlp {
    pub(crate) fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let inputs = self.inputs.outputs(x)?;
        let (gate, up) = (inputs.part(0)?, inputs.part(1)?);
        let gate = pass.site(Site::MlpPre, layer, gate)?;
        let post = pass.site(Site::MlpPost, layer, gated(self.activation, &gate, &up)?)?;
        self.output.forward(&post)
    }
}
