//! The cases of attention as kernels take them, with what the reference makes of them.

use candle_core::{DType, Device, Tensor};
use hooks::SummaryOptions;
use kernels::attention::AttentionOptions;
use kernels::cuda::attention_pattern::QueriesAndKeys;
use kernels::reference::{self, AttentionCase, AttentionValues};
use testkit::cases::{ATTENTION, Attention};
use testkit::{Data, Tolerance};

use super::{layouts, numbers};

pub const SUMMARY: SummaryOptions = SummaryOptions { window: 10, boundary: Some(4) };

/// Queries, keys, lengths, offsets, log-sum-exp.
pub type Inputs = Vec<Tensor>;

/// A case's tensors in one dtype. One query and two keys more than the longest row needs; what no
/// row may read is NaN.
pub struct Batch {
    pub case: Attention,
    pub t: usize,
    pub s: usize,
    pub options: AttentionOptions,
    /// Contiguous, and as views between NaNs.
    pub inputs: [Inputs; 2],
    pub expected: AttentionValues,
}

pub fn of<'a>(inputs: &'a [Tensor]) -> QueriesAndKeys<'a> {
    QueriesAndKeys { q: &inputs[0], k: &inputs[1], lengths: &inputs[2], offsets: &inputs[3] }
}

pub fn words(values: &[usize]) -> Tensor {
    let words: Vec<u32> = values.iter().map(|&value| value as u32).collect();
    Tensor::from_vec(words, values.len(), &Device::Cpu).unwrap()
}

/// Two rows that take all queries and keys there are, where the lengths and offsets given beside
/// the batch ask for more.
pub fn greedy(dtype: DType) -> (Batch, [Tensor; 2]) {
    let case = Attention { lengths: &[70, 70], offsets: &[20, 20], ..SMALL };
    let mut data = Data::new(3);
    let (q, k) = (data.tensor(&[2, 70, 4, 8]), data.tensor(&[2, 90, 2, 8]));
    let batch = Batch::of(case, [q, k], dtype, SUMMARY, None);
    let most = u32::MAX as usize;
    (batch, [words(&[71, most]), words(&[21, most])])
}

pub const SMALL: Attention = Attention {
    heads: 4,
    kv_heads: 2,
    d_head: 8,
    d_value: 8,
    lengths: &[66, 9],
    offsets: &[0, 60],
    window: Some(40),
    soft_cap: None,
    sharpness: 1.0,
    bench: false,
};

/// The cases whose matrices a plain loop fills in reasonable time.
pub fn cases() -> impl Iterator<Item = Attention> {
    ATTENTION.iter().copied().filter(|case| case.lengths.iter().all(|&length| length < 2048))
}

impl Batch {
    pub fn new(case: Attention, dtype: DType, summary: SummaryOptions) -> Self {
        Self::with_sinks(case, dtype, summary, None)
    }

    pub fn with_sinks(
        case: Attention,
        dtype: DType,
        summary: SummaryOptions,
        sinks: Option<&[f32]>,
    ) -> Self {
        let mut data = Data::new(case.d_head as u64);
        let (b, d) = (case.lengths.len(), case.d_head);
        let ends: Vec<usize> =
            case.lengths.iter().zip(case.offsets).map(|(length, offset)| length + offset).collect();
        let (t, s) = (case.lengths.iter().max().unwrap() + 1, ends.iter().max().unwrap() + 2);
        let mut tensor = |pos: usize, heads: usize, valid: &[usize], scale: f32| {
            let mut values = data.normal(b * pos * heads * d);
            for (row, values) in values.chunks_exact_mut(pos * heads * d).enumerate() {
                values.iter_mut().for_each(|value| *value *= scale);
                values[valid[row] * heads * d..].fill(f32::NAN);
            }
            Tensor::from_vec(values, (b, pos, heads, d), &Device::Cpu).unwrap()
        };
        let q = tensor(t, case.heads, case.lengths, case.sharpness);
        let k = tensor(s, case.kv_heads, &ends, 1.0);
        Self::of(case, [q, k], dtype, summary, sinks)
    }

    /// For queries and keys that are given, `[batch, pos, head, d]` each.
    pub fn of(
        case: Attention,
        [q, k]: [Tensor; 2],
        dtype: DType,
        summary: SummaryOptions,
        sinks: Option<&[f32]>,
    ) -> Self {
        let (b, t, h, d) = q.dims4().unwrap();
        let s = k.dim(1).unwrap();
        let options = AttentionOptions {
            scale: f64::from((d as f64).powf(-0.5) as f32),
            window: case.window,
            soft_cap: case.soft_cap,
        };
        let (qs, ks) = (layouts(&q, dtype), layouts(&k, dtype));
        let expected = reference::attention(&AttentionCase {
            q: &numbers(&qs[0]),
            k: &numbers(&ks[0]),
            v: &[],
            dims: [t, s, h, case.kv_heads, d, 0],
            lengths: case.lengths,
            offsets: case.offsets,
            scale: options.scale,
            window: case.window,
            soft_cap: case.soft_cap,
            sinks,
            summary,
        });
        let lse: Vec<f32> = expected.lse.iter().map(|&lse| lse as f32).collect();
        let lse = Tensor::from_vec(lse, (b, h, t), &Device::Cpu).unwrap();
        let [q, guarded_q] = qs;
        let [k, guarded_k] = ks;
        let rest = [words(case.lengths), words(case.offsets), lse];
        let inputs = |q, k| [q, k].into_iter().chain(rest.iter().cloned()).collect();
        let inputs = [inputs(q, k), inputs(guarded_q, guarded_k)];
        Self { case, t, s, options, inputs, expected }
    }

    /// That of attention on a CPU, which has the same sources of error.
    pub fn tolerance(&self) -> Tolerance {
        let scores = self.expected.scores.iter().filter(|score| score.is_finite());
        let largest = scores.fold(0f64, |largest, score| largest.max(score.abs()));
        let size = 4e-6 + 4e-7 * largest;
        Tolerance {
            absolute: size,
            relative: size,
            of_max: 0.0,
            reason: "a score's rounding, relative to the largest score, is its share's relative error",
        }
    }
}
