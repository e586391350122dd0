//! Root-mean-square norm.

use candle_core::Tensor;

use crate::Result;

/// `y = x / √(mean x² + ε) · w`.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    pub(crate) fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::norm::rms_norm(x, &self.weight, self.eps)?)
    }
}
