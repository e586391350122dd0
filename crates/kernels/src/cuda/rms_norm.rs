//! Root-mean-square normalisation, `kernels/rms_norm.cu`.

use candle_core::{DType, Tensor};

use super::{Argument, Call, Plan, Rows, by_rows, expect, suffix};
use crate::{Error, Result};

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
/// Those of [`plan`] and of [`launch`](super::launch).
#[cfg(feature = "cuda")]
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    super::device::one(&plan(x, weight, eps)?)
}

/// The launch for `x [.., d]`, any of the stored dtypes.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`], [`Error::Range`] for a dtype that
/// kernels do not store or too many rows.
pub fn plan<'a>(x: &'a Tensor, weight: &'a Tensor, eps: f64) -> Result<Plan<'a>> {
    let rows = Rows::of(OP, "x", x)?;
    let Some(&d) = x.dims().last() else {
        return Err(Error::shape(OP, "x", "[.., d]", x.dims()));
    };
    expect(OP, "weight", weight, DType::F32, &[d])?;
    let entry = format!("rms_norm_{}", suffix(OP, x.dtype())?);
    let n = rows.count();
    let (grid, block) = by_rows(OP, x.dtype(), n, d)?;
    let call = (n * d > 0).then(|| Call {
        module: "rms_norm",
        entry,
        grid,
        block,
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Input(1),
            Argument::Output(0),
            Argument::Rows(rows),
            Argument::Size(n),
            Argument::Size(d),
            Argument::Float(eps as f32),
        ],
    });
    Ok(Plan {
        op: OP,
        inputs: vec![x, weight],
        outputs: vec![(x.dtype(), x.dims().to_vec())],
        call,
    })
}
