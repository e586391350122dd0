//! Score and pattern matrices of chosen heads, `kernels/attention_pattern.cu`.

use candle_core::{DType, Tensor};

use super::{Argument, Call, Heads, Machine, Plan, Scores, blocks, expect, one, suffix};
use crate::attention::AttentionOptions;
use crate::tensor::size;
use crate::{Error, Result};

/// Queries and keys of a block.
const TILE: usize = 64;
const THREADS: u32 = 256;

/// The queries and keys of a batch, in device memory.
///
/// The host does not read lengths and offsets: a row whose queries or keys are not all there has
/// results that are NaN.
#[derive(Clone, Copy, Debug)]
pub struct QueriesAndKeys<'a> {
    /// `[batch, pos, head, d]`, any of the stored dtypes, any strides but the last.
    pub q: &'a Tensor,
    /// `[batch, key_pos, kv_head, d]`, the same; head `h` reads key–value head
    /// `h / (n_heads / n_kv_heads)`.
    pub k: &'a Tensor,
    /// Valid queries of each row, `[batch]`, `u32`.
    pub lengths: &'a Tensor,
    /// Absolute position of each row's first query, `[batch]`, `u32`.
    pub offsets: &'a Tensor,
}

/// The checked sizes of [`QueriesAndKeys`], and where vectors are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) b: usize,
    pub(super) t: usize,
    pub(super) s: usize,
    pub(super) h: usize,
    pub(super) h_kv: usize,
    pub(super) d: usize,
    pub(super) q: Heads,
    pub(super) k: Heads,
}

impl QueriesAndKeys<'_> {
    pub(super) fn check(&self, op: &'static str) -> Result<Shape> {
        let Self { q, k, lengths, offsets } = *self;
        let &[b, t, h, d] = q.dims() else {
            return Err(Error::shape(op, "q", "[batch, pos, head, d]", q.dims()));
        };
        let (s, h_kv) = match k.dims() {
            &[k_b, s, h_kv, k_d] if (k_b, k_d) == (b, d) => (s, h_kv),
            dims => {
                return Err(Error::shape(op, "k", format!("[{b}, key_pos, kv_head, {d}]"), dims));
            }
        };
        if h > 0 && (h_kv == 0 || h % h_kv != 0) {
            let expected = format!("[.., a divisor of {h} heads, ..]");
            return Err(Error::shape(op, "k", expected, k.dims()));
        }
        if k.dtype() != q.dtype() {
            return Err(Error::DType { op, what: "k", expected: q.dtype(), got: k.dtype() });
        }
        expect(op, "lengths", lengths, DType::U32, &[b])?;
        expect(op, "offsets", offsets, DType::U32, &[b])?;
        let (q, k) = (Heads::of(op, "q", q)?, Heads::of(op, "k", k)?);
        Ok(Shape { b, t, s, h, h_kv, d, q, k })
    }
}

/// [`crate::attention::attention_scores`] on a GPU, of the heads in `heads` (`u32`).
///
/// # Shapes
///
/// `[batch, heads, query_pos, key_pos]`, `f32`, heads in the order given.
///
/// # Numerics
///
/// Scores are chains of fused multiply–adds in `f32`. A head that does not exist gives NaN: the
/// host does not read `heads`.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn attention_scores(
    machine: Machine,
    input: QueriesAndKeys,
    options: &AttentionOptions,
    heads: &Tensor,
) -> Result<Tensor> {
    one(machine, &plan(input, options, heads, None)?)
}

/// [`crate::attention::attention_pattern`] on a GPU, of the heads in `heads` (`u32`), from the
/// log-sum-exp that the forward pass gives.
///
/// # Shapes
///
/// `lse` `[batch, head, pos]`; the pattern `[batch, heads, query_pos, key_pos]`, `f32`, heads in the
/// order given.
///
/// # Numerics
///
/// As [`attention_scores`], and `f32` exponentials of score − log-sum-exp: the rounding of the
/// log-sum-exp is a relative error of its row, whose sum is 1 within that. With sink logits the
/// log-sum-exp has them, and rows sum to less.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn attention_pattern(
    machine: Machine,
    input: QueriesAndKeys,
    options: &AttentionOptions,
    heads: &Tensor,
    lse: &Tensor,
) -> Result<Tensor> {
    one(machine, &plan(input, options, heads, Some(lse))?)
}

/// The launch for the pattern of `heads [chosen]`, with the log-sum-exp `[batch, head, pos]`, or
/// without for the scores.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`]; [`Error::Range`] for a dtype that
/// kernels do not store, a window of 0, a soft cap that is not a positive, finite number, and for
/// more blocks than a launch has.
pub fn plan<'a>(
    input: QueriesAndKeys<'a>,
    options: &AttentionOptions,
    heads: &'a Tensor,
    lse: Option<&'a Tensor>,
) -> Result<Plan<'a>> {
    let op = if lse.is_some() { "attention_pattern" } else { "attention_scores" };
    let Shape { b, t, s, h, h_kv, d, q, k } = input.check(op)?;
    let &[n_chosen] = heads.dims() else {
        return Err(Error::shape(op, "heads", "[chosen]", heads.dims()));
    };
    expect(op, "heads", heads, DType::U32, &[n_chosen])?;
    if let Some(lse) = lse {
        expect(op, "lse", lse, DType::F32, &[b, h, t])?;
    }
    let entry = format!("attention_pattern_{}", suffix(op, input.q.dtype())?);
    let scores = Scores::of(op, options)?;
    let dims = vec![b, n_chosen, t, s];
    let n = size(op, "the result", &dims)?;
    // No more than there are elements, hence no overflow.
    let n_blocks = b * n_chosen * t.div_ceil(TILE) * s.div_ceil(TILE);
    let mut inputs = vec![input.q, input.k, input.lengths, input.offsets, heads];
    inputs.extend(lse);
    let call = match n {
        0 => None,
        _ => Some(Call {
            module: "attention_pattern",
            entry,
            grid: [blocks(op, n_blocks)?, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            arguments: vec![
                Argument::Input(0),
                Argument::Input(1),
                Argument::Input(2),
                Argument::Input(3),
                if lse.is_some() { Argument::Input(5) } else { Argument::Null },
                Argument::Input(4),
                Argument::Output(0),
                Argument::Heads(q),
                Argument::Heads(k),
                Argument::Scores(scores),
                Argument::Size(t),
                Argument::Size(s),
                Argument::Size(h),
                Argument::Size(h_kv),
                Argument::Size(d),
                Argument::Size(n_chosen),
            ],
        }),
    };
    Ok(Plan { op, inputs, outputs: vec![(DType::F32, dims)], call })
}
