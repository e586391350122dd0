//! Causal attention and the numbers that describe its pattern.
//!
//! `z_u = Σ_j a_uj v_j`, `a_uj = exp(s_uj − lse_u)`, `s_uj = scale · q_u · k_j`,
//! `lse_u = ln Σ_j exp(s_uj)`, over the keys `j` that query `u` sees: those up to
//! itself, with a window `w` the last `w` of them. With a soft cap `c`,
//! `s_uj = c · tanh(scale · q_u · k_j / c)`.
//!
//! The one decision that shapes this module: it works on the *transposed* score
//! tile, keys down, queries across. 32 queries are the lanes of the vector
//! registers, so maxima, sums and rescaling of the online softmax are plain
//! vertical arithmetic, the tile of exponentials is already the right operand of
//! the product with V, and what happens in one lane never depends on another.
//! Tiles of keys end at fixed positions. Hence a query's output has the same
//! bits from a prefill and from a decode step, alone and in a batch, on any
//! number of threads, and whatever else is asked for. (A NaN or an infinity among
//! the values reaches, as in any product with zeros, also those queries of its
//! tile that do not see its key.)
//!
//! The summary comes from the same tiles: sums over keys are carried along and
//! rescaled like the softmax's own, and a block of queries keeps its exponentials
//! until its normalisers are known, then adds up its columns. A `T × T` matrix
//! exists only where [`attention_scores`] or [`attention_pattern`] is asked for one.

#![allow(unsafe_code)]

mod block;
mod device;
mod graph;
mod keys;
mod pattern;
mod summary;

use candle_core::Tensor;
use hooks::{Statistic, SummaryOptions};
use rayon::prelude::*;

use crate::cuda;
use crate::math::tanh;
use crate::panels::WIDTH;
use crate::product::{Output, fill};
use crate::tensor::{self, Values};
use crate::{Error, Result};

pub use graph::{AttentionFactors, RecomputedGraph};
pub use pattern::{attention_pattern, attention_scores};

const OP: &str = "attention";

/// How scores are formed and masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// What multiplies `q · k`.
    pub scale: f64,
    /// Number of keys that a query sees, itself included; `None`: all up to itself.
    pub window: Option<usize>,
    /// Bound `c` of the scores, which become `c · tanh(scale · q · k / c)` before masking and
    /// softmax; positive and finite in `f32`. `None`: no bound.
    pub soft_cap: Option<f64>,
}

impl AttentionOptions {
    /// Refuses windows and caps that cannot be.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if self.window == Some(0) {
            return Err(Error::range(op, "window", "at least 1", 0));
        }
        match self.soft_cap {
            Some(cap) if !(cap as f32).is_normal() || cap < 0.0 => {
                let expected = "a positive, finite number in the range of f32";
                Err(Error::range(op, "soft cap", expected, cap))
            }
            _ => Ok(()),
        }
    }
}

/// Queries, keys and values of a batch. The axes of heads and positions may have any strides.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInput<'a> {
    /// `[batch, pos, head, d_head]`.
    pub q: &'a Tensor,
    /// `[batch, key_pos, kv_head, d_head]`; head `h` reads key–value head
    /// `h / (n_heads / n_kv_heads)`.
    pub k: &'a Tensor,
    /// `[batch, key_pos, kv_head, d_value]`.
    pub v: &'a Tensor,
    /// Valid queries of each row of the batch.
    pub lengths: &'a [usize],
    /// Absolute position of each row's first query: so many keys precede its own.
    pub offsets: &'a [usize],
}

/// What is returned beside the output.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionWants<'a> {
    /// The log-sum-exp of each query's scores.
    pub lse: bool,
    /// The statistics of the pattern.
    pub summary: Option<SummaryOptions>,
    /// For each row of the batch, a boundary of its own in place of the summary's; rows
    /// for which the list is too short have none.
    pub boundaries: &'a [Option<usize>],
}

/// The attention output, and what was wanted beside it. Beyond a row's valid length all are 0.
#[derive(Clone, Debug)]
pub struct AttentionOutput {
    /// `[batch, pos, head, d_value]`.
    pub z: Tensor,
    /// `[batch, head, pos]`, in nats.
    pub lse: Option<Tensor>,
    /// `[batch, head, pos, statistic]`, in the order of [`Statistic::ALL`].
    pub summary: Option<Tensor>,
}

/// The attention output of every head, and what `wants` names.
///
/// # Shapes
///
/// See [`AttentionInput`] and [`AttentionOutput`].
///
/// # Numerics
///
/// Scores are chains of fused multiply–adds in `f32`; the hyperbolic tangent of a soft cap
/// is within 3 units in the last place. Normalisers, and sums over more than one tile of
/// 168 keys, are kept in `f64`. Deterministic; `z` does not
/// depend on `wants`. The log of the diagonal is score − log-sum-exp, exact where
/// the diagonal itself underflows.
///
/// # Errors
///
/// [`Error::Shape`] if axes disagree or a row's keys are not all there;
/// [`Error::Range`] for a window of 0 and for a soft cap that is not a positive, finite
/// number; [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
///
/// # References
///
/// Milakov and Gimelshein, "Online normalizer calculation for softmax",
/// [arXiv:1805.02867](https://arxiv.org/abs/1805.02867), alg. 3. Soft caps: Gemma team,
/// "Gemma 2", [arXiv:2408.00118](https://arxiv.org/abs/2408.00118), section 2.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use hooks::{Statistic, SummaryOptions};
/// use kernels::attention::{AttentionInput, AttentionOptions, AttentionWants, attention};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Equal scores: each of three queries attends evenly to what it sees.
/// let (q, k) = (Tensor::zeros((1, 3, 1, 1), DType::F32, &Device::Cpu)?, Tensor::ones((1, 3, 1, 1), DType::F32, &Device::Cpu)?);
/// let v = Tensor::new(&[[[[0f32]], [[2.0]], [[4.0]]]], &Device::Cpu)?;
/// let input = AttentionInput { q: &q, k: &k, v: &v, lengths: &[3], offsets: &[0] };
/// let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
/// let summary = Some(SummaryOptions { window: 1, boundary: None });
/// let wants = AttentionWants { lse: true, summary, boundaries: &[] };
/// let output = attention(&input, &options, &wants)?;
///
/// assert_eq!(output.z.flatten_all()?.to_vec1::<f32>()?, [0.0, 1.0, 2.0]);
/// let summary = output.summary.ok_or("wanted")?.get(0)?.get(0)?.to_vec2::<f32>()?;
/// let received = summary.iter().map(|row| row[Statistic::ColumnSum.index()]);
/// let expected = [1.0 + 1.0 / 2.0 + 1.0 / 3.0, 1.0 / 2.0 + 1.0 / 3.0, 1.0 / 3.0];
/// assert!(received.zip(expected).all(|(got, expected)| (got - expected as f32).abs() < 1e-6));
/// # Ok(())
/// # }
/// ```
pub fn attention(
    input: &AttentionInput,
    options: &AttentionOptions,
    wants: &AttentionWants,
) -> Result<AttentionOutput> {
    if let Some(machine) = cuda::machine(input.q) {
        return device::attention(machine, input, options, wants);
    }
    let heads = Heads::new(input, options)?;
    let Heads { b, t, h, dv, .. } = heads;
    let size = tensor::size(OP, "z", &[b, t, h, dv])?;
    let n_rows = tensor::size(OP, "lse", &[b, h, t])?;
    let mut lse = vec![0.0; if wants.lse { n_rows } else { 0 }];
    let n_statistics = if wants.summary.is_some() { n_rows * Statistic::COUNT } else { 0 };
    let mut summary = vec![0.0; n_statistics];

    let keys = keys::Keys::pack(&heads);
    let spans = heads.spans();
    let beside = block::Beside {
        lse: wants.lse.then(|| Output::new(&mut lse)),
        summary: wants.summary.map(|options| (options, Output::new(&mut summary))),
        boundaries: wants.boundaries,
    };
    let mut columns = Vec::new();
    let write = |z: Output| {
        for (row, &length) in heads.lengths.iter().enumerate() {
            // SAFETY: no span writes beyond its row's valid length.
            unsafe { z.slice((row * t + length) * h * dv, (t - length) * h * dv) }.fill(0.0);
        }
        spans
            .par_iter()
            .with_max_len(1)
            .map(|span| block::attend(&heads, &keys, span, z, beside))
            .collect_into_vec(&mut columns);
    };
    // SAFETY: the spans write every head of every valid query, the loop the rest.
    let z = unsafe { fill(size, write) };
    if wants.summary.is_some() {
        summary::add_columns(&heads, &spans, &columns, &mut summary);
    }
    Ok(AttentionOutput {
        z: tensor::tensor(OP, z, &[b, t, h, dv])?,
        lse: match wants.lse {
            true => Some(tensor::tensor(OP, lse, &[b, h, t])?),
            false => None,
        },
        summary: match wants.summary {
            Some(_) => Some(tensor::tensor(OP, summary, &[b, h, t, Statistic::COUNT])?),
            None => None,
        },
    })
}

/// Whether the rows of `b` prompts, of `t` queries and `s` keys at most, are there.
fn check_rows([b, t, s]: [usize; 3], lengths: &[usize], offsets: &[usize]) -> Result<()> {
    for (what, values) in [("lengths", lengths), ("offsets", offsets)] {
        if values.len() != b {
            return Err(Error::shape(OP, what, format!("[{b}]"), &[values.len()]));
        }
    }
    for (&length, &offset) in lengths.iter().zip(offsets) {
        if length > t {
            return Err(Error::range(OP, "length", format!("at most {t} queries"), length));
        }
        let end = offset.saturating_add(length);
        if end > s.min(i32::MAX as usize) {
            let expected = format!("at most {s}, the number of keys");
            return Err(Error::range(OP, "offset + length", expected, end));
        }
    }
    Ok(())
}

/// The checked arguments of an attention operation.
struct Heads<'a> {
    q: Values<'a>,
    k: Values<'a>,
    v: Values<'a>,
    b: usize,
    t: usize,
    s: usize,
    h: usize,
    h_kv: usize,
    d: usize,
    dv: usize,
    lengths: &'a [usize],
    offsets: &'a [usize],
    scale: f32,
    soft_cap: Option<SoftCap>,
    /// As an option of the model; `i32::MAX` without a window.
    window: i32,
}

/// A bound of the scores.
#[derive(Clone, Copy)]
struct SoftCap {
    cap: f32,
    /// The scores' scale over the bound.
    rate: f32,
}

impl SoftCap {
    fn new(cap: f64, scale: f64) -> Self {
        Self { cap: cap as f32, rate: (scale / cap) as f32 }
    }

    /// `c · tanh(scale · product / c)`.
    #[inline(always)]
    fn score(self, product: f32) -> f32 {
        self.cap * tanh(product * self.rate)
    }
}

/// Consecutive queries of one head, or one query of consecutive heads that share their keys.
struct Span {
    row: usize,
    kv_head: usize,
    /// First head and number of heads; more than one only with a single query.
    head: usize,
    n_heads: usize,
    /// First query and the one after the last.
    queries: std::ops::Range<usize>,
}

/// Queries of a span are a multiple of this.
const SPAN: usize = 128;
/// Most spans of one head.
const SPANS: usize = 8;

impl<'a> Heads<'a> {
    fn new(input: &AttentionInput<'a>, options: &AttentionOptions) -> Result<Self> {
        let (q, k, v) = (
            Values::new(OP, "q", input.q)?,
            Values::new(OP, "k", input.k)?,
            Values::new(OP, "v", input.v)?,
        );
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
        let (lengths, offsets) = (input.lengths, input.offsets);
        check_rows([b, t, s], lengths, offsets)?;
        options.check(OP)?;
        let window = options.window.unwrap_or(usize::MAX).min(i32::MAX as usize) as i32;
        let scale = options.scale as f32;
        let soft_cap = options.soft_cap.map(|cap| SoftCap::new(cap, options.scale));
        Ok(Self { q, k, v, b, t, s, h, h_kv, d, dv, lengths, offsets, scale, soft_cap, window })
    }

    /// Heads that share a key–value head.
    fn group(&self) -> usize {
        self.h / self.h_kv.max(1)
    }

    /// Number of keys of a row: those before it and its own.
    fn n_keys(&self, row: usize) -> usize {
        self.offsets[row] + self.lengths[row]
    }

    /// First key that the query at `pos` sees.
    fn first_key(&self, pos: usize) -> usize {
        (pos + 1).saturating_sub(self.window as usize)
    }

    fn query(&self, row: usize, query: usize, head: usize) -> &[f32] {
        vector(&self.q, [row, query, head], self.d)
    }

    fn key(&self, row: usize, pos: usize, kv_head: usize) -> &[f32] {
        vector(&self.k, [row, pos, kv_head], self.d)
    }

    fn value(&self, row: usize, pos: usize, kv_head: usize) -> &[f32] {
        vector(&self.v, [row, pos, kv_head], self.dv)
    }

    /// Where the keys of a range begin, and the step from one to the next.
    fn keys(
        &self,
        row: usize,
        range: std::ops::Range<usize>,
        kv_head: usize,
    ) -> (*const f32, usize) {
        vectors(&self.k, row, range, kv_head, self.d)
    }

    /// Where the values of a range begin, and the step from one to the next.
    fn values(
        &self,
        row: usize,
        range: std::ops::Range<usize>,
        kv_head: usize,
    ) -> (*const f32, usize) {
        vectors(&self.v, row, range, kv_head, self.dv)
    }

    /// The work, in pieces that depend on each row's own length alone.
    fn spans(&self) -> Vec<Span> {
        let (mut spans, group) = (Vec::new(), self.group());
        for (row, &length) in self.lengths.iter().enumerate() {
            if length == 1 {
                for kv_head in 0..self.h_kv {
                    for first in (0..group).step_by(WIDTH) {
                        let n_heads = WIDTH.min(group - first);
                        let head = kv_head * group + first;
                        spans.push(Span { row, kv_head, head, n_heads, queries: 0..1 });
                    }
                }
                continue;
            }
            let step = length.div_ceil(SPANS).next_multiple_of(SPAN).max(SPAN);
            // Later queries see more keys: the longest work first.
            for start in (0..length).step_by(step).rev() {
                for head in 0..self.h {
                    let queries = start..length.min(start + step);
                    spans.push(Span { row, kv_head: head / group, head, n_heads: 1, queries });
                }
            }
        }
        spans
    }
}

/// The vector at `[row, pos, head]`.
fn vector<'v>(values: &'v Values, at: [usize; 3], width: usize) -> &'v [f32] {
    if width == 0 {
        return &[];
    }
    let start: usize = at.iter().zip(values.strides()).map(|(i, stride)| i * stride).sum();
    &values.data()[start..start + width]
}

/// The first of the vectors at `[row, range, head]`, all of which are there, and the step
/// from one to the next.
fn vectors(
    values: &Values,
    row: usize,
    range: std::ops::Range<usize>,
    head: usize,
    width: usize,
) -> (*const f32, usize) {
    vector(values, [row, range.end - 1, head], width);
    (vector(values, [row, range.start, head], width).as_ptr(), values.strides()[1])
}
