//! Softmax over the last axis, `kernels/softmax.cu`.

use candle_core::Tensor;

use super::{Machine, Plan, of_rows, one};
use crate::Result;

const OP: &str = "softmax";

/// `y_i = e^{x_i − m} / Σ_j e^{x_j − m}`, `m = max_j x_j`, on a GPU.
///
/// # Shapes
///
/// `x [.., d]`; so is the result.
///
/// # Numerics
///
/// In `f32`, rounded at the end; sums over threads as a tree. −∞ gives 0; a row with a NaN, with
/// +∞, or of −∞ alone gives NaN.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn softmax(machine: Machine, x: &Tensor) -> Result<Tensor> {
    one(machine, &plan(x)?)
}

/// The launch for `x [.., d]`, any of the stored dtypes.
///
/// # Errors
///
/// [`crate::Error::Shape`], [`crate::Error::NonContiguous`], [`crate::Error::Range`] for a dtype
/// that kernels do not store or too many rows.
pub fn plan(x: &Tensor) -> Result<Plan<'_>> {
    of_rows(OP, "softmax", x, &[], &[])
}
