//! Normalisation over the last axis.
//!
//! The mean of squares is summed in `f64`, whatever the width: models hold
//! residuals whose few largest entries exceed the others a thousandfold.

use candle_core::Tensor;

use crate::tensor::{self, MakeRow, Rows, Values};
use crate::{Error, Result};

/// Root-mean-square normalisation, `y_i = w_i · (x_i / √(mean_j x_j² + ε))`.
///
/// # Shapes
///
/// `x [.., d]`, `weight [d]`; gives `[.., d]`.
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
    let (x, weight) = (Values::new(OP, "x", x)?, Values::new(OP, "weight", weight)?);
    let rows = x.rows();
    let width = rows.width();
    if x.dims().is_empty() {
        return Err(Error::shape(OP, "x", "[.., d]", x.dims()));
    }
    if weight.dims() != [width] {
        return Err(Error::shape(OP, "weight", format!("[{width}]"), weight.dims()));
    }
    let make = RmsNorm { x: &rows, weight: weight.rows().row(0), eps };
    tensor::by_rows(OP, x.dims(), width, &make)
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
        let mean = sum_of_squares(x) / x.len() as f64;
        let scale = (1.0 / (mean + self.eps).sqrt()) as f32;
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(self.weight) {
            *y = weight * (x * scale);
        }
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f64 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(x) * f64::from(x);
    }
    sums.iter().sum()
}
