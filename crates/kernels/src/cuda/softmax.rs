//! Softmax over the last axis, `kernels/softmax.cu`.

use candle_core::Tensor;

use super::{Argument, Call, Plan, Rows, by_rows, suffix};
use crate::{Error, Result};

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
/// Those of [`plan`] and of [`launch`](super::launch).
#[cfg(feature = "cuda")]
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    super::device::one(&plan(x)?)
}

/// The launch for `x [.., d]`, any of the stored dtypes.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::NonContiguous`], [`Error::Range`] for a dtype that kernels do not
/// store or too many rows.
pub fn plan(x: &Tensor) -> Result<Plan<'_>> {
    let rows = Rows::of(OP, "x", x)?;
    let Some(&d) = x.dims().last() else {
        return Err(Error::shape(OP, "x", "[.., d]", x.dims()));
    };
    let entry = format!("softmax_{}", suffix(OP, x.dtype())?);
    let n = rows.count();
    let (grid, block) = by_rows(OP, x.dtype(), n, d)?;
    let call = (n * d > 0).then(|| Call {
        module: "softmax",
        entry,
        grid,
        block,
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Output(0),
            Argument::Rows(rows),
            Argument::Size(n),
            Argument::Size(d),
        ],
    });
    Ok(Plan { op: OP, inputs: vec![x], outputs: vec![(x.dtype(), x.dims().to_vec())], call })
}
