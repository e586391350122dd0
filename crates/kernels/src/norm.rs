//! Normalisation over the last axis.
//!
//! Means, variances and mean squares are summed in `f64`, whatever the width: models
//! hold residuals whose few largest entries exceed the others a thousandfold.

use candle_core::Tensor;

use crate::cuda;
use crate::tensor::{self, MakeRow, Rows, Values};
use crate::{Error, Result};

/// Root-mean-square normalisation, `y_i = w_i · (x_i / √(mean_j x_j² + ε))`.
///
/// # Shapes
///
/// `x [.., d]`, `weight [d]`; gives `[.., d]`. With the heads of `x [batch, pos, head, d_head]`
/// as rows this is the norm of queries or keys.
///
/// # Numerics
///
/// Mean of squares in `f64`, in 16 interleaved partial sums; products in `f32`,
/// in the order of the formula.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
///
/// # References
///
/// Zhang and Sennrich, "Root mean square layer normalization",
/// [arXiv:1910.07467](https://arxiv.org/abs/1910.07467), eq. 4.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    if let Some(machine) = cuda::machine(x) {
        return cuda::rms_norm::rms_norm(machine, x, weight, eps);
    }
    let (x, weight) = (Values::new(OP, "x", x)?, Values::new(OP, "weight", weight)?);
    check(OP, &x, [("weight", Some(&weight))])?;
    let rows = x.rows();
    let make = RmsNorm { x: &rows, weight: weight.rows().row(0), eps };
    tensor::by_rows(OP, x.dims(), rows.width(), &make)
}

/// Layer normalisation, `y_i = (x_i − μ) / √(σ² + ε) · w_i + b_i`, `μ = mean_j x_j`,
/// `σ² = mean_j (x_j − μ)²`.
///
/// # Shapes
///
/// `x [.., d]`, `weight [d]`, `bias [d]`, 0 without one; gives `[.., d]`.
///
/// # Numerics
///
/// Mean, then variance (the biased one: over `d`, not `d − 1`), and `(x − μ) / √(σ² + ε)`
/// in `f64`, the sums in 16 interleaved parts: correct also where all `x` lie far from 0.
/// Rounded to `f32`, then times the weight, then plus the bias.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
///
/// # References
///
/// Ba, Kiros and Hinton, "Layer normalization",
/// [arXiv:1607.06450](https://arxiv.org/abs/1607.06450), eq. 3 and 4.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use kernels::norm::layer_norm;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let x = Tensor::new(&[[1f32, 3.0]], &Device::Cpu)?;
/// let (weight, bias) = (Tensor::new(&[1f32, 10.0], &Device::Cpu)?, Tensor::new(&[0f32, 0.5], &Device::Cpu)?);
/// // Mean 2, variance 1.
/// let y = layer_norm(&x, &weight, Some(&bias), 0.0)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[-1.0, 10.5]]);
/// # Ok(())
/// # }
/// ```
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    if let Some(machine) = cuda::machine(x) {
        return cuda::layer_norm::layer_norm(machine, x, weight, bias, eps);
    }
    let (x, weight) = (Values::new(OP, "x", x)?, Values::new(OP, "weight", weight)?);
    let bias = bias.map(|bias| Values::new(OP, "bias", bias)).transpose()?;
    check(OP, &x, [("weight", Some(&weight)), ("bias", bias.as_ref())])?;
    let (rows, bias) = (x.rows(), bias.as_ref().map(Values::rows));
    let make = LayerNorm {
        x: &rows,
        weight: weight.rows().row(0),
        bias: bias.as_ref().map(|bias| bias.row(0)),
        eps,
    };
    tensor::by_rows(OP, x.dims(), rows.width(), &make)
}

/// Whether `x` has a last axis, and the vectors its width.
fn check<const N: usize>(
    op: &'static str,
    x: &Values,
    vectors: [(&'static str, Option<&Values>); N],
) -> Result<()> {
    let Some(&width) = x.dims().last() else {
        return Err(Error::shape(op, "x", "[.., d]", x.dims()));
    };
    for (what, vector) in vectors {
        if let Some(vector) = vector
            && vector.dims() != [width]
        {
            return Err(Error::shape(op, what, format!("[{width}]"), vector.dims()));
        }
    }
    Ok(())
}

struct RmsNorm<'a> {
    x: &'a Rows<'a>,
    weight: &'a [f32],
    eps: f64,
}

impl MakeRow for RmsNorm<'_> {
    #[inline(always)]
    fn make(&self, row: usize, y: &mut [f32]) {
        let x = self.x.row(row);
        let mean = sum(x, |x| x * x) / x.len() as f64;
        let scale = (1.0 / (mean + self.eps).sqrt()) as f32;
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(self.weight) {
            *y = weight * (x * scale);
        }
    }
}

struct LayerNorm<'a> {
    x: &'a Rows<'a>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f64,
}

impl MakeRow for LayerNorm<'_> {
    #[inline(always)]
    fn make(&self, row: usize, y: &mut [f32]) {
        let x = self.x.row(row);
        let mean = sum(x, |x| x) / x.len() as f64;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f64;
        let scale = 1.0 / (variance + self.eps).sqrt();
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(self.weight) {
            *y = weight * ((f64::from(x) - mean) * scale) as f32;
        }
        if let Some(bias) = self.bias {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    }
}

/// `Σ f(x_j)`.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f(f64::from(x));
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f(f64::from(x));
    }
    sums.iter().sum()
}
