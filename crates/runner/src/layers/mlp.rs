//! Dense MLPs.

use candle_core::Tensor;
use hooks::Site;
use kernels::activation::{ActivationFunction, activate, gated};

use super::{Pass, Projections};
use crate::Result;

/// What stands between the projections of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MlpForm {
    /// `y = W_down (f(W_gate x) · W_up x)`; the inputs are gate and up.
    Gated,
    /// `y = W_out f(W_in x)`.
    Plain,
}

/// A dense MLP.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) inputs: Projections,
    pub(crate) output: Projections,
    pub(crate) activation: ActivationFunction,
    pub(crate) form: MlpForm,
}

impl Mlp {
    pub(crate) fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let inputs = self.inputs.outputs(x)?;
        let pre = pass.site(Site::MlpPre, layer, inputs.part(0)?)?;
        let post = match self.form {
            MlpForm::Gated => gated(self.activation, &pre, &inputs.part(1)?)?,
            MlpForm::Plain => activate(self.activation, &pre)?,
        };
        let post = pass.site(Site::MlpPost, layer, post)?;
        self.output.forward(&post)
    }
}
