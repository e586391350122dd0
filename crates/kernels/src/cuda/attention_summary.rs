//! The statistics of patterns without patterns, `kernels/attention_summary.cu`.
//!
//! Two launches: one forms every product and leaves sums over keys and sums over queries, each in
//! a few parts; the other makes statistics of them.

use candle_core::{DType, Tensor};
use hooks::{Statistic, SummaryOptions};

use super::attention_pattern::{QueriesAndKeys, Shape};
use super::{
    Argument, Call, Machine, PACK_BYTES, Plan, Scores, blocks, expect, one, several, suffix,
};
use crate::attention::AttentionOptions;
use crate::tensor::size;
use crate::{Error, Result};

const OP: &str = "attention_summary";
/// Keys of a tile.
const KEYS: usize = 64;
/// Most blocks among which the queries of a head are dealt.
const MAX_PARTS: usize = 32;
/// Keys of a block where the queries are one tile, and most blocks among which they are dealt.
const SPLIT: usize = 1024;
const MAX_SPLITS: usize = 64;
/// Numbers that the first launch leaves for a row, and for its first and its own key.
const OF_ROW: usize = 5;
const POINTS: usize = 2;
const JOIN_THREADS: usize = 256;
const MAX_KEYS: usize = 1 << 30;

/// How products of queries and keys are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// On tensor cores, from 16-bit numbers at most 256 wide.
    TensorCores,
    /// As chains of fused multiply–adds in `f32`.
    Plain,
}

impl Products {
    /// What is fastest for vectors of this kind.
    pub fn of(dtype: DType, d: usize) -> Self {
        match dtype {
            DType::BF16 | DType::F16 if d <= MAX_WIDTH => Self::TensorCores,
            _ => Self::Plain,
        }
    }

    /// Queries of a block's tile, of vectors `d` wide.
    fn queries(self, d: usize) -> usize {
        match self {
            Self::TensorCores if d <= 128 => 128,
            Self::TensorCores | Self::Plain => 64,
        }
    }
}

/// Widths that tensor cores are programmed for, and to how many numbers a key's row is rounded up
/// in shared memory.
const WIDTHS: [(usize, usize); 4] = [(64, 64), (96, 128), (128, 128), (MAX_WIDTH, 256)];
const MAX_WIDTH: usize = 256;

/// Each row's boundary as [`attention_summary`] takes it: a row's own, or the options', or 0 where
/// there is none: no key lies before it.
pub fn boundaries(
    options: SummaryOptions,
    own: &[Option<usize>],
    batch: usize,
) -> impl Iterator<Item = usize> {
    (0..batch).map(move |row| own.get(row).copied().flatten().or(options.boundary).unwrap_or(0))
}

/// The summary of [`crate::attention::attention()`] on a GPU, from the log-sum-exp `lse
/// [batch, head, pos]` of the forward pass and the [`boundaries`] `[batch]` (`u32`).
///
/// # Shapes
///
/// `[batch, head, pos, statistic]`, `f32`, in the order of [`Statistic::ALL`].
///
/// # Numerics
///
/// Scores are `f32` sums of exact products; on tensor cores in an order of theirs. `f32` sums over
/// the keys of a tile, compensated sums over tiles; sums over the queries of a tile in `f32`, over
/// parts in `f64`. Deterministic. The rounding of the log-sum-exp is a relative error of its row.
/// With sink logits the log-sum-exp has them, and the statistics are those of rows that sum to less.
///
/// Memory: `O(pos)` for a head, some 190 bytes for each of its queries where these are many.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn attention_summary(
    machine: Machine,
    input: QueriesAndKeys,
    options: &AttentionOptions,
    lse: &Tensor,
    window: usize,
    boundaries: &Tensor,
) -> Result<Tensor> {
    let products = Products::of(input.q.dtype(), input.q.dims().last().copied().unwrap_or(0));
    let sums = several(machine, &plan(input, options, lse, window, boundaries, products)?)?;
    one(machine, &join(input, options, &sums)?)
}

/// The first launch; `window` keys count as the window of [`Statistic::WindowMass`]. Its results are
/// sums `[split, batch, head, pos, 5]`, points `[batch, head, pos, 2]` and columns
/// `[batch, head, part, pos]`, defined within each row's length.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`]; [`Error::Range`] for a dtype that
/// kernels do not store, products that it cannot have, a window of 0, a soft cap that is not a
/// positive, finite number, more than 2³⁰ keys, and for more blocks than a launch has.
pub fn plan<'a>(
    input: QueriesAndKeys<'a>,
    options: &AttentionOptions,
    lse: &'a Tensor,
    window: usize,
    boundaries: &'a Tensor,
    products: Products,
) -> Result<Plan<'a>> {
    let Shape { b, t, s, h, h_kv, d, q, k } = input.check(OP)?;
    expect(OP, "lse", lse, DType::F32, &[b, h, t])?;
    expect(OP, "boundaries", boundaries, DType::U32, &[b])?;
    if s > MAX_KEYS {
        return Err(Error::range(OP, "the number of keys", "at most 2³⁰", s));
    }
    let scores = Scores::of(OP, options)?;
    let dtype = suffix(OP, input.q.dtype())?;
    let (entry, threads, shared_bytes) = match products {
        Products::Plain => (format!("attention_summary_plain_{dtype}"), 256, 0),
        Products::TensorCores => {
            if input.q.dtype() == DType::F32 {
                return Err(Error::range(OP, "dtype", "bf16 or f16 on tensor cores", "f32"));
            }
            let width = WIDTHS.into_iter().find(|&(width, _)| d <= width);
            let Some((width, rounded)) = width else {
                let expected = format!("at most {MAX_WIDTH} on tensor cores");
                return Err(Error::range(OP, "the width of a head", expected, d));
            };
            let bytes = 2 * KEYS * rounded / 8 * PACK_BYTES;
            (format!("attention_summary_{width}_{dtype}"), 128, bytes as u32)
        }
    };
    let tiles = t.div_ceil(products.queries(d));
    let parts = tiles.clamp(1, MAX_PARTS);
    let splits = if tiles == 1 { s.div_ceil(SPLIT).clamp(1, MAX_SPLITS) } else { 1 };
    let outputs = [vec![splits, b, h, t, OF_ROW], vec![b, h, t, POINTS], vec![b, h, parts, t]];
    for dims in &outputs {
        size(OP, "sums", dims)?;
    }
    let call = match b * h * t {
        0 => None,
        // No more than there are columns and sums, hence no overflow.
        _ => Some(Call {
            module: "attention_summary",
            entry,
            grid: [blocks(OP, b * h * parts * splits)?, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
            arguments: vec![
                Argument::Input(0),
                Argument::Input(1),
                Argument::Input(2),
                Argument::Input(3),
                Argument::Input(4),
                Argument::Input(5),
                Argument::Output(0),
                Argument::Output(1),
                Argument::Output(2),
                Argument::Heads(q),
                Argument::Heads(k),
                Argument::Scores(scores),
                Argument::Size(b),
                Argument::Size(t),
                Argument::Size(s),
                Argument::Size(h),
                Argument::Size(h_kv),
                Argument::Size(d),
                Argument::Size(window),
                Argument::Size(parts),
                Argument::Size(splits),
            ],
        }),
    };
    Ok(Plan {
        op: OP,
        inputs: vec![input.q, input.k, input.lengths, input.offsets, lse, boundaries],
        outputs: outputs.map(|dims| (DType::F32, dims)).into(),
        call,
    })
}

/// The second launch, from the results of the first one.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`]; [`Error::Range`] for more blocks
/// than a launch has.
pub fn join<'a>(
    input: QueriesAndKeys<'a>,
    options: &AttentionOptions,
    [sums, points, columns]: &'a [Tensor; 3],
) -> Result<Plan<'a>> {
    let Shape { b, t, s, h, .. } = input.check(OP)?;
    let splits = sums.dims().first().copied().unwrap_or(0);
    let parts = columns.dims().get(2).copied().unwrap_or(0);
    expect(OP, "sums", sums, DType::F32, &[splits, b, h, t, OF_ROW])?;
    expect(OP, "points", points, DType::F32, &[b, h, t, POINTS])?;
    expect(OP, "columns", columns, DType::F32, &[b, h, parts, t])?;
    let scores = Scores::of(OP, options)?;
    let dims = vec![b, h, t, Statistic::COUNT];
    size(OP, "the summary", &dims)?;
    let n_blocks = blocks(OP, (b * h * t).div_ceil(JOIN_THREADS))?;
    let call = (n_blocks > 0).then(|| Call {
        module: "attention_summary",
        entry: "attention_summary_join_f32".to_owned(),
        grid: [n_blocks, 1, 1],
        block: [JOIN_THREADS as u32, 1, 1],
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Input(1),
            Argument::Input(2),
            Argument::Input(3),
            Argument::Input(4),
            Argument::Output(0),
            Argument::Scores(scores),
            Argument::Size(b),
            Argument::Size(t),
            Argument::Size(s),
            Argument::Size(h),
            Argument::Size(parts),
            Argument::Size(splits),
        ],
    });
    let inputs = vec![sums, points, columns, input.lengths, input.offsets];
    Ok(Plan { op: OP, inputs, outputs: vec![(DType::F32, dims)], call })
}
