//! Layer normalisation, `kernels/layer_norm.cu`.

use candle_core::{DType, Tensor};

use super::{Argument, Call, Plan, Rows, by_rows, expect, suffix};
use crate::{Error, Result};

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
/// Those of [`plan`] and of [`launch`](super::launch).
#[cfg(feature = "cuda")]
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    super::device::one(&plan(x, weight, bias, eps)?)
}

/// The launch for `x [.., d]`, any of the stored dtypes.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`], [`Error::Range`] for a dtype that
/// kernels do not store or too many rows.
pub fn plan<'a>(
    x: &'a Tensor,
    weight: &'a Tensor,
    bias: Option<&'a Tensor>,
    eps: f64,
) -> Result<Plan<'a>> {
    let rows = Rows::of(OP, "x", x)?;
    let Some(&d) = x.dims().last() else {
        return Err(Error::shape(OP, "x", "[.., d]", x.dims()));
    };
    expect(OP, "weight", weight, DType::F32, &[d])?;
    let mut inputs = vec![x, weight];
    if let Some(bias) = bias {
        expect(OP, "bias", bias, DType::F32, &[d])?;
        inputs.push(bias);
    }
    let entry = format!("layer_norm_{}", suffix(OP, x.dtype())?);
    let n = rows.count();
    let (grid, block) = by_rows(OP, x.dtype(), n, d)?;
    let call = (n * d > 0).then(|| Call {
        module: "layer_norm",
        entry,
        grid,
        block,
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Input(1),
            if bias.is_some() { Argument::Input(2) } else { Argument::Null },
            Argument::Output(0),
            Argument::Rows(rows),
            Argument::Size(n),
            Argument::Size(d),
            Argument::Float(eps as f32),
        ],
    });
    Ok(Plan { op: OP, inputs, outputs: vec![(x.dtype(), x.dims().to_vec())], call })
}
