//! Rotary position embedding, `kernels/rotary.cu`.

use candle_core::{DType, Tensor};

use super::{
    Argument, Call, Machine, PACK_BYTES, Plan, Rows, WARP, blocks, contiguous_rows, expect, one,
    suffix,
};
use crate::{Error, Result};

const OP: &str = "rotary";
const MAX_THREADS: usize = 256;

/// [`crate::rotary::rotary`] on a GPU, with the tables of
/// [`RotaryTables::tensors`](crate::rotary::RotaryTables::tensors) and the offsets `[batch]` (`u32`)
/// in device memory, so that a captured graph can be run at any position.
///
/// # Numerics
///
/// `f32` products and sums in the order of the formula. A position beyond the tables gives NaN:
/// here nobody reads it to refuse it.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn rotary(
    machine: Machine,
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    offsets: &Tensor,
) -> Result<Tensor> {
    one(machine, &plan(x, cos, sin, offsets)?)
}

/// The launch for `x [batch, pos, head, d]`, any of the stored dtypes, `cos` and `sin [n_pos, half]`,
/// `offsets [batch]`.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`], [`Error::Range`] for a dtype that
/// kernels do not store, too many tokens or too large ones.
pub fn plan<'a>(
    x: &'a Tensor,
    cos: &'a Tensor,
    sin: &'a Tensor,
    offsets: &'a Tensor,
) -> Result<Plan<'a>> {
    let &[b, t, h, d] = x.dims() else {
        return Err(Error::shape(OP, "x", "[batch, pos, head, d]", x.dims()));
    };
    contiguous_rows(OP, "x", x)?;
    let &[n_pos, half] = cos.dims() else {
        return Err(Error::shape(OP, "cos", "[n_pos, half]", cos.dims()));
    };
    if half > d / 2 {
        let expected = format!("[batch, pos, head, at least {}]", half.saturating_mul(2));
        return Err(Error::shape(OP, "x", expected, x.dims()));
    }
    expect(OP, "cos", cos, DType::F32, &[n_pos, half])?;
    expect(OP, "sin", sin, DType::F32, &[n_pos, half])?;
    expect(OP, "offsets", offsets, DType::U32, &[b])?;
    let most = u32::MAX as usize;
    if h.saturating_mul(d) > most {
        return Err(Error::range(
            OP,
            "the size of a token",
            format!("at most {most}"),
            h.saturating_mul(d),
        ));
    }
    let entry = format!("rotary_{}", suffix(OP, x.dtype())?);
    let packs = h.saturating_mul(half) * x.dtype().size_in_bytes() / PACK_BYTES;
    let threads = packs.clamp(1, MAX_THREADS).next_multiple_of(WARP) as u32;
    let grid = [blocks(OP, b.saturating_mul(t))?, 1, 1];
    let strides = x.stride();
    let strides = Rows {
        counts: [b as u64, t as u64, h as u64],
        strides: [strides[0] as u64, strides[1] as u64, strides[2] as u64],
    };
    let call = (x.elem_count() > 0).then(|| Call {
        module: "rotary",
        entry,
        grid,
        block: [threads, 1, 1],
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Input(1),
            Argument::Input(2),
            Argument::Input(3),
            Argument::Output(0),
            Argument::Rows(strides),
            Argument::Size(t),
            Argument::Size(h),
            Argument::Size(d),
            Argument::Size(half),
            Argument::Size(n_pos),
        ],
    });
    let outputs = vec![(x.dtype(), x.dims().to_vec())];
    Ok(Plan { op: OP, inputs: vec![x, cos, sin, offsets], outputs, call })
}
