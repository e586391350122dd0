//! New keys and values, into a cache of them, `kernels/cache_append.cu`.

use candle_core::{DType, Tensor};

use super::{
    Argument, Call, Heads, Machine, PACK_BYTES, Plan, WARP, blocks, contiguous_rows, expect,
    several, suffix,
};
use crate::{Error, Result};

const OP: &str = "cache_append";
const MAX_THREADS: usize = 256;

/// Keys and values of a batch's new tokens, and the cache that they go to, in one of the stored
/// dtypes. The axes of rows, positions and heads of the new ones may have any strides.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// `[batch, pos, kv_head, d_head]`.
    pub k: &'a Tensor,
    /// `[batch, pos, kv_head, d_value]`.
    pub v: &'a Tensor,
    /// New tokens of each row, `u32 [batch]`; there are never more than positions.
    pub lengths: &'a Tensor,
    /// Absolute position of each row's first new token, `u32 [batch]`.
    pub offsets: &'a Tensor,
    /// `[batch, capacity, kv_head, d_head]`, written in place.
    pub keys: &'a Tensor,
    /// `[batch, capacity, kv_head, d_value]`, written in place.
    pub values: &'a Tensor,
}

/// `keys[b, offsets[b] + i] = k[b, i]` for `i < lengths[b]`, and values alike, bit for bit; the rest
/// of the cache stays. Lengths and offsets are in device memory, so that a captured graph can be
/// run at any position.
///
/// What would lie beyond the capacity is left out: here nobody reads it to refuse it.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn cache_append(machine: Machine, input: &Input) -> Result<()> {
    let [] = several(machine, &plan(input)?)?;
    Ok(())
}

/// The launch of [`cache_append`].
///
/// # Errors
///
/// [`Error::Shape`] if axes disagree, [`Error::DType`] if dtypes do; [`Error::NonContiguous`];
/// [`Error::Range`] for a dtype that kernels do not store, for 2³² numbers of a token or 2³¹ tokens
/// and more.
pub fn plan<'a>(input: &Input<'a>) -> Result<Plan<'a>> {
    let Input { k, v, lengths, offsets, keys, values } = *input;
    let &[b, t, h, d] = k.dims() else {
        return Err(Error::shape(OP, "k", "[batch, pos, kv_head, d_head]", k.dims()));
    };
    let dv = match v.dims() {
        &[v_b, v_t, v_h, dv] if (v_b, v_t, v_h) == (b, t, h) => dv,
        dims => return Err(Error::shape(OP, "v", format!("[{b}, {t}, {h}, d_value]"), dims)),
    };
    let s = match keys.dims() {
        &[_, s, ..] => s,
        dims => return Err(Error::shape(OP, "keys", format!("[{b}, capacity, {h}, {d}]"), dims)),
    };
    let suffix = suffix(OP, k.dtype())?;
    for (what, tensor) in [("k", k), ("v", v)] {
        contiguous_rows(OP, what, tensor)?;
        if tensor.dtype() != k.dtype() {
            let (expected, got) = (k.dtype(), tensor.dtype());
            return Err(Error::DType { op: OP, what, expected, got });
        }
    }
    expect(OP, "lengths", lengths, DType::U32, &[b])?;
    expect(OP, "offsets", offsets, DType::U32, &[b])?;
    expect(OP, "keys", keys, k.dtype(), &[b, s, h, d])?;
    expect(OP, "values", values, k.dtype(), &[b, s, h, dv])?;
    let widest = h.saturating_mul(d.max(dv));
    if widest > u32::MAX as usize {
        let expected = format!("at most {}", u32::MAX);
        return Err(Error::range(OP, "the size of a token", expected, widest));
    }
    let packs = widest * k.dtype().size_in_bytes() / PACK_BYTES;
    let threads = packs.clamp(1, MAX_THREADS).next_multiple_of(WARP) as u32;
    let grid = [blocks(OP, b.saturating_mul(t))?, 2, 1];
    let mut arguments: Vec<Argument> = (0..4).map(Argument::Input).collect();
    arguments.extend([Argument::InPlace(4), Argument::InPlace(5)]);
    arguments.extend([Heads::of(OP, "k", k)?, Heads::of(OP, "v", v)?].map(Argument::Heads));
    arguments.extend([t, s, h, d, dv].map(Argument::Size));
    let call = (b * t * s * widest > 0).then(|| Call {
        module: "cache_append",
        entry: format!("cache_append_{suffix}"),
        grid,
        block: [threads, 1, 1],
        shared_bytes: 0,
        arguments,
    });
    Ok(Plan { op: OP, inputs: vec![k, v, lengths, offsets, keys, values], outputs: vec![], call })
}
