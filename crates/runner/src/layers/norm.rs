//! Norms over the last axis.

use candle_core::Tensor;

use crate::Result;

/// A norm over the last axis.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    /// `y = x / √(mean x² + ε) · w`.
    RootMeanSquare { weight: Tensor, eps: f64 },
    /// `y = (x − mean x) / √(var x + ε) · w + b`.
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
}

impl Norm {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::RootMeanSquare { weight, eps } => kernels::norm::rms_norm(x, weight, *eps)?,
            Self::Layer { weight, bias, eps } => {
                kernels::norm::layer_norm(x, weight, Some(bias), *eps)?
            }
        })
    }
}
