//! Normalisation over the last axis.
//!
//! The mean of squares is summed in `f64`, whatever the width: models hold
//! residuals whose few largest entries exceed the others a thousandfold.

#![allow(unsafe_code)]

use candle_core::Tensor;

use crate::tensor::{self, Values};
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
    let weights = weight.rows();
    let w = weights.row(0);
    let write = |row: usize, y: &mut [f32]| {
        let x = rows.row(row);
        let scale = (1.0 / (sum_of_squares(x) / width as f64 + eps).sqrt()) as f32;
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
            *y = w * (x * scale);
        }
    };
    // SAFETY: a row of `y`, `x` and `weight` are equally long, so all of `y` is written.
    unsafe { tensor::by_rows(OP, x.dims(), width, write) }
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
