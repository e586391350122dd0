//! Layer normalisation, `kernels/layer_norm.cu`.

use candle_core::{DType, Tensor};

use super::{Argument, Machine, Plan, expect, of_rows, one, width};
use crate::Result;

const OP: &str = "layer_norm";

/// [`crate::norm::layer_norm`] on a GPU; `weight [d]` and `bias [d]` in `f32`.
///
/// # Numerics
///
/// Mean and variance in `f32`, the variance and the rest of the mean from differences to a first
/// mean: correct also where all `x` lie far from 0. Sums over threads as a tree.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn layer_norm(
    machine: Machine,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    one(machine, &plan(x, weight, bias, eps)?)
}

/// The launch for `x [.., d]`, any of the stored dtypes.
///
/// # Errors
///
/// [`crate::Error::Shape`], [`crate::Error::DType`], [`crate::Error::NonContiguous`],
/// [`crate::Error::Range`] for a dtype that kernels do not store or too many rows.
pub fn plan<'a>(
    x: &'a Tensor,
    weight: &'a Tensor,
    bias: Option<&'a Tensor>,
    eps: f64,
) -> Result<Plan<'a>> {
    let d = width(OP, x)?;
    expect(OP, "weight", weight, DType::F32, &[d])?;
    if let Some(bias) = bias {
        expect(OP, "bias", bias, DType::F32, &[d])?;
    }
    of_rows(OP, "layer_norm", x, &[Some(weight), bias], &[Argument::Float(eps as f32)])
}
