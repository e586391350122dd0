//! Root-mean-square normalisation, `kernels/rms_norm.cu`.

use candle_core::{DType, Tensor};

use super::{Argument, Machine, Plan, expect, of_rows, one, width};
use crate::Result;

const OP: &str = "rms_norm";

/// [`crate::norm::rms_norm`] on a GPU; `weight [d]` in `f32`.
///
/// # Numerics
///
/// Sum of squares in `f32`, over threads as a tree: the same bits for a row whatever else is in
/// the batch.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn rms_norm(machine: Machine, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    one(machine, &plan(x, weight, eps)?)
}

/// The launch for `x [.., d]`, any of the stored dtypes.
///
/// # Errors
///
/// [`crate::Error::Shape`], [`crate::Error::DType`], [`crate::Error::NonContiguous`],
/// [`crate::Error::Range`] for a dtype that kernels do not store or too many rows.
pub fn plan<'a>(x: &'a Tensor, weight: &'a Tensor, eps: f64) -> Result<Plan<'a>> {
    expect(OP, "weight", weight, DType::F32, &[width(OP, x)?])?;
    of_rows(OP, "rms_norm", x, &[Some(weight)], &[Argument::Float(eps as f32)])
}
