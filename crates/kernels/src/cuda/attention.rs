//! Causal attention over a cache of keys and values, `kernels/attention.cu`.
//!
//! The one decision that shapes this module: lengths and offsets stay in device memory, so a
//! launch depends on shapes alone, and a captured one serves every step of a generation. Few
//! queries are answered in parts: the keys are divided among blocks, and a second launch joins
//! what these found. How many parts there are depends on the shapes, which keys each has on the
//! lengths and offsets.

use candle_core::{DType, Tensor};

use super::{
    Argument, Call, Heads, Machine, Plan, Scores, WARP, blocks, contiguous_rows, expect, several,
    suffix,
};
use crate::attention::AttentionOptions;
use crate::tensor::size;
use crate::{Error, Result};

const OP: &str = "attention";
/// Of keys and of values.
const MAX_WIDTH: usize = 256;
/// Up to so many queries of each row of the batch are answered in parts.
const MAX_POS_IN_PARTS: usize = 8;
/// Blocks that a device is filled with, about eight on each of its processors.
const BLOCKS_IN_PARTS: usize = 1024;
/// A part has at least so many keys, where all of them are there.
const MIN_KEYS_OF_A_PART: usize = 64;
/// Parts whose weights fit into shared memory.
const MAX_PARTS: usize = 256;

/// Queries, keys and values of a batch, in one of the stored dtypes. The axes of rows, heads and
/// positions may have any strides.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// `[batch, pos, head, d_head]`.
    pub q: &'a Tensor,
    /// `[batch, key_pos, kv_head, d_head]`; head `h` reads key–value head
    /// `h / (n_heads / n_kv_heads)`.
    pub k: &'a Tensor,
    /// `[batch, key_pos, kv_head, d_value]`.
    pub v: &'a Tensor,
    /// Valid queries of each row, `u32 [batch]`; more than there are queries or keys count as the
    /// smaller of the two.
    pub lengths: &'a Tensor,
    /// Absolute position of each row's first query, `u32 [batch]`: so many keys precede its own. One
    /// that leaves no room for the queries' own keys counts as the largest that does.
    pub offsets: &'a Tensor,
    /// A score of each head that joins every query's normaliser as that of a key without value would,
    /// after scaling and soft cap: `f32 [head]`.
    pub sinks: Option<&'a Tensor>,
}

/// The attention output. Beyond a row's valid length all are 0.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[batch, pos, head, d_value]`, in the dtype of the queries.
    pub z: Tensor,
    /// `ln Σ exp(s)` over the scores of the keys that a query sees and the sink's, in nats:
    /// `f32 [batch, head, pos]`. So `exp(s − lse)` is a key's weight with a sink as without.
    pub lse: Tensor,
}

/// [`crate::attention::attention`] on a GPU, without its summary, with sinks.
///
/// # Numerics
///
/// Scores, softmax and sums in `f32`; the weights are rounded to the dtype of the values for the
/// product with them, by at most 2⁻⁹ (`bf16`) or 2⁻¹² (`f16`) of each, as is the output. `f32` is
/// `f32` throughout. Deterministic. With more than 8 queries a row, a query's bits depend on
/// nothing but its own keys; up to 8 they depend on how many parts the keys are divided into,
/// which follows from the shapes, and on the row's range of keys.
///
/// A NaN or an infinity among the values reaches also those queries of its tile that do not see
/// its key. Keys and values that no query of a tile sees may hold anything.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
///
/// # References
///
/// Dao, "FlashAttention-2", [arXiv:2307.08691](https://arxiv.org/abs/2307.08691), alg. 1. Sinks:
/// OpenAI, "gpt-oss-120b & gpt-oss-20b model card",
/// [arXiv:2508.10925](https://arxiv.org/abs/2508.10925), section 2.
pub fn attention(machine: Machine, input: &Input, options: &AttentionOptions) -> Result<Output> {
    let pos = input.q.dims().get(1).copied().unwrap_or(0);
    let [z, lse] = if pos > MAX_POS_IN_PARTS {
        several(machine, &plan(input, options)?)?
    } else {
        let [sums, bases] = several(machine, &plan_parts(input, options)?)?;
        several(machine, &plan_combine(input, &sums, &bases)?)?
    };
    Ok(Output { z, lse })
}

/// The launch that answers every query at once: its results are `z` and the log-sum-exp.
///
/// # Errors
///
/// [`Error::Shape`] if axes disagree; [`Error::DType`] if dtypes do; [`Error::Range`] for a dtype
/// that kernels do not store, for keys or values wider than 256, for 2³¹ keys, queries of a row
/// times heads, or blocks, and more, for a window of 0 and for a soft cap that is not a positive,
/// finite number; [`Error::NonContiguous`].
pub fn plan<'a>(input: &Input<'a>, options: &AttentionOptions) -> Result<Plan<'a>> {
    let shape = Shape::of(input)?;
    let tile = shape.tile(Tile::WHOLE, Tile::WHOLE_F32)?;
    let arguments = shape.arguments(input, options)?;
    let entry = format!("attention_{}_{}", tile.width, shape.suffix);
    let call = shape.call(entry, tile, 1, arguments)?;
    Ok(Plan { op: OP, inputs: inputs(input), outputs: shape.outputs()?, call })
}

/// The launch that answers every query in parts: its results are each part's sums of values
/// `[batch, kv_head, pos, head of the group, part, width]`, where it has keys, and what its
/// exponentials refer to, in base 2, with their sum `[batch, kv_head, pos, head of the group, part,
/// 2]`, all `f32`.
///
/// # Errors
///
/// Those of [`plan`].
pub fn plan_parts<'a>(input: &Input<'a>, options: &AttentionOptions) -> Result<Plan<'a>> {
    let shape = Shape::of(input)?;
    let tile = shape.tile(Tile::PART, Tile::PART_F32)?;
    let mut arguments = shape.arguments(input, options)?;
    let n_parts = shape.parts(tile);
    arguments.push(Argument::Size(n_parts));
    let entry = format!("attention_decode_{}_{}", tile.width, shape.suffix);
    let call = shape.call(entry, tile, n_parts, arguments)?;
    let outputs = [tile.width, 2].map(|last| (DType::F32, shape.of_parts(n_parts, last).to_vec()));
    for (_, dims) in &outputs {
        size(OP, "the parts' results", dims)?;
    }
    Ok(Plan { op: OP, inputs: inputs(input), outputs: outputs.to_vec(), call })
}

/// The launch that joins the parts of [`plan_parts`] in their order: its results are `z` and the
/// log-sum-exp.
///
/// # Errors
///
/// Those of [`plan`]; [`Error::Shape`] for results of other parts.
pub fn plan_combine<'a>(
    input: &Input<'a>,
    sums: &'a Tensor,
    bases: &'a Tensor,
) -> Result<Plan<'a>> {
    const THREADS: u32 = 128;
    let shape = Shape::of(input)?;
    let tile = shape.tile(Tile::PART, Tile::PART_F32)?;
    let n_parts = shape.parts(tile);
    expect(OP, "sums", sums, DType::F32, &shape.of_parts(n_parts, tile.width))?;
    expect(OP, "bases", bases, DType::F32, &shape.of_parts(n_parts, 2))?;
    let mut inputs = vec![sums, bases, input.lengths];
    inputs.extend(input.sinks);
    let sinks = input.sinks.map_or(Argument::Null, |_| Argument::Input(3));
    let Shape { b, t, s, h, dv, .. } = shape;
    let mut arguments: Vec<Argument> = (0..3).map(Argument::Input).collect();
    arguments.extend([sinks, Argument::Output(0), Argument::Output(1)]);
    arguments.extend([n_parts, tile.width, t, s, h, shape.group(), dv].map(Argument::Size));
    let grid = [blocks(OP, size(OP, "lse", &[b, t, h])?)?, 1, 1];
    let call = (b * t * h > 0).then(|| Call {
        module: "attention",
        entry: format!("attention_combine_{}", shape.suffix),
        grid,
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        arguments,
    });
    Ok(Plan { op: OP, inputs, outputs: shape.outputs()?, call })
}

/// What is read, in the order of the entry points' parameters.
fn inputs<'a>(input: &Input<'a>) -> Vec<&'a Tensor> {
    let mut inputs = vec![input.q, input.k, input.v, input.lengths, input.offsets];
    inputs.extend(input.sinks);
    inputs
}

/// What a block works on, as the `Tensor` and `Plain` of `kernels/attention.cu` have it.
#[derive(Clone, Copy)]
struct Tile {
    /// Keys and values are at most so wide.
    width: usize,
    /// Rows, queries of the heads of one group, that share the keys.
    rows: usize,
    /// Keys and values that are worked on together.
    keys: usize,
    threads: usize,
    shared_bytes: usize,
}

impl Tile {
    const WHOLE: &[Self] = &[
        Self::on_tensor_cores(64, 4, 2, 64),
        Self::on_tensor_cores(96, 4, 2, 64),
        Self::on_tensor_cores(128, 4, 2, 64),
        Self::on_tensor_cores(192, 4, 1, 32),
        Self::on_tensor_cores(256, 4, 1, 32),
    ];
    const PART: &[Self] = &[
        Self::on_tensor_cores(64, 1, 1, 32),
        Self::on_tensor_cores(128, 1, 1, 32),
        Self::on_tensor_cores(256, 1, 1, 32),
    ];
    const WHOLE_F32: &[Self] =
        &[Self::plain(64, 64, 32), Self::plain(128, 64, 32), Self::plain(256, 32, 16)];
    const PART_F32: &[Self] =
        &[Self::plain(64, 16, 32), Self::plain(128, 16, 32), Self::plain(256, 16, 16)];

    const fn on_tensor_cores(width: usize, warps: usize, tiles: usize, keys: usize) -> Self {
        const SLOTS: usize = 3;
        const BYTES: usize = 2;
        let rows = warps * tiles * 16;
        let shared_bytes = (rows + SLOTS * keys) * width * BYTES;
        Self { width, rows, keys, threads: warps * WARP, shared_bytes }
    }

    const fn plain(width: usize, rows: usize, keys: usize) -> Self {
        const SLOTS: usize = 2;
        const BYTES: usize = 4;
        let shared_bytes = ((rows + SLOTS * keys) * width + rows * (keys + 4)) * BYTES;
        Self { width, rows, keys, threads: rows / 4 * 16, shared_bytes }
    }
}

/// The axes of a batch, checked.
struct Shape {
    b: usize,
    t: usize,
    s: usize,
    h: usize,
    h_kv: usize,
    d: usize,
    dv: usize,
    dtype: DType,
    suffix: &'static str,
}

impl Shape {
    fn of(input: &Input) -> Result<Self> {
        let Input { q, k, v, lengths, offsets, sinks } = *input;
        let &[b, t, h, d] = q.dims() else {
            return Err(Error::shape(OP, "q", "[batch, pos, head, d_head]", q.dims()));
        };
        let (s, h_kv) = match k.dims() {
            &[k_b, s, h_kv, k_d] if (k_b, k_d) == (b, d) => (s, h_kv),
            dims => {
                let expected = format!("[{b}, key_pos, kv_head, {d}]");
                return Err(Error::shape(OP, "k", expected, dims));
            }
        };
        let dv = match v.dims() {
            &[v_b, v_s, v_h, dv] if (v_b, v_s, v_h) == (b, s, h_kv) => dv,
            dims => {
                let expected = format!("[{b}, {s}, {h_kv}, d_value]");
                return Err(Error::shape(OP, "v", expected, dims));
            }
        };
        if h > 0 && (h_kv == 0 || h % h_kv != 0) {
            let expected = format!("[.., a divisor of {h} heads, ..]");
            return Err(Error::shape(OP, "k", expected, k.dims()));
        }
        let suffix = suffix(OP, q.dtype())?;
        for (what, tensor) in [("q", q), ("k", k), ("v", v)] {
            contiguous_rows(OP, what, tensor)?;
            if tensor.dtype() != q.dtype() {
                let (expected, got) = (q.dtype(), tensor.dtype());
                return Err(Error::DType { op: OP, what, expected, got });
            }
        }
        expect(OP, "lengths", lengths, DType::U32, &[b])?;
        expect(OP, "offsets", offsets, DType::U32, &[b])?;
        if let Some(sinks) = sinks {
            expect(OP, "sinks", sinks, DType::F32, &[h])?;
        }
        for (what, count) in [
            ("the number of keys", s),
            ("the number of queries and heads of a row", t.saturating_mul(h)),
        ] {
            if count > i32::MAX as usize {
                return Err(Error::range(OP, what, "below 2³¹", count));
            }
        }
        Ok(Self { b, t, s, h, h_kv, d, dv, dtype: q.dtype(), suffix })
    }

    /// Heads that share a key–value head.
    fn group(&self) -> usize {
        self.h / self.h_kv.max(1)
    }

    /// The narrowest tile that keys and values fit into.
    fn tile(&self, halves: &[Tile], singles: &[Tile]) -> Result<Tile> {
        let tiles = if self.dtype == DType::F32 { singles } else { halves };
        let width = self.d.max(self.dv);
        tiles.iter().copied().find(|tile| width <= tile.width).ok_or_else(|| {
            let expected = format!("at most {MAX_WIDTH} on a gpu");
            Error::range(OP, "the width of a head", expected, width)
        })
    }

    /// Blocks that share nothing.
    fn tiles(&self, tile: Tile) -> usize {
        let rows = self.t * self.group();
        rows.div_ceil(tile.rows).saturating_mul(self.b).saturating_mul(self.h_kv)
    }

    /// How many parts the keys are divided into.
    fn parts(&self, tile: Tile) -> usize {
        let most = self.s.div_ceil(MIN_KEYS_OF_A_PART.max(tile.keys)).clamp(1, MAX_PARTS);
        (BLOCKS_IN_PARTS / self.tiles(tile).max(1)).clamp(1, most)
    }

    fn of_parts(&self, n_parts: usize, last: usize) -> [usize; 6] {
        [self.b, self.h_kv, self.t, self.group(), n_parts, last]
    }

    /// `z` and the log-sum-exp.
    fn outputs(&self) -> Result<Vec<(DType, Vec<usize>)>> {
        let Self { b, t, h, dv, .. } = *self;
        size(OP, "z", &[b, t, h, dv])?;
        Ok(vec![(self.dtype, vec![b, t, h, dv]), (DType::F32, vec![b, h, t])])
    }

    /// Those that the entry points of [`plan`] and [`plan_parts`] share.
    fn arguments(&self, input: &Input, options: &AttentionOptions) -> Result<Vec<Argument>> {
        let mut arguments: Vec<Argument> = (0..5).map(Argument::Input).collect();
        arguments.push(input.sinks.map_or(Argument::Null, |_| Argument::Input(5)));
        arguments.extend([Argument::Output(0), Argument::Output(1)]);
        for (what, tensor) in [("q", input.q), ("k", input.k), ("v", input.v)] {
            arguments.push(Argument::Heads(Heads::of(OP, what, tensor)?));
        }
        arguments.push(Argument::Scores(Scores::of(OP, options)?));
        let sizes = [self.t, self.s, self.h, self.group(), self.d, self.dv];
        arguments.extend(sizes.map(Argument::Size));
        Ok(arguments)
    }

    fn call(
        &self,
        entry: String,
        tile: Tile,
        n_parts: usize,
        arguments: Vec<Argument>,
    ) -> Result<Option<Call>> {
        let count = self.tiles(tile).saturating_mul(n_parts);
        let grid = [blocks(OP, count)?, 1, 1];
        Ok((count > 0).then(|| Call {
            module: "attention",
            entry,
            grid,
            block: [tile.threads as u32, 1, 1],
            shared_bytes: tile.shared_bytes as u32,
            arguments,
        }))
    }
}
