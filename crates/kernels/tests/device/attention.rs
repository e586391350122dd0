use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use hooks::SummaryOptions;
use kernels::attention::AttentionOptions;
use kernels::cuda::Plan;
use kernels::cuda::attention::{Input, Output, attention, plan, plan_combine, plan_parts};
use kernels::reference::{self, AttentionCase, AttentionValues};
use kernels::{Error, cuda};
use testkit::cases::{ATTENTION, Attention};
use testkit::{Data, Tolerance, assert_tensor_bits, assert_tensor_close, guarded_as};

use super::{DTYPES, numbers, rounded};
use crate::machine::{EFFORTS, Effort, run};

/// Which launches answer the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Whole,
    Parts,
}

const WAYS: [Way; 2] = [Way::Whole, Way::Parts];

/// A batch's tensors.
#[derive(Clone)]
struct Batch {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    sinks: Option<Tensor>,
    options: AttentionOptions,
}

impl Batch {
    fn input(&self) -> Input<'_> {
        let Self { q, k, v, lengths, offsets, sinks, .. } = self;
        Input { q, k, v, lengths, offsets, sinks: sinks.as_ref() }
    }

    fn run(&self, way: Way, effort: Effort) -> Output {
        let input = self.input();
        let results = match way {
            Way::Whole => run(&plan(&input, &self.options).unwrap(), effort).unwrap(),
            Way::Parts => {
                let parts = run(&plan_parts(&input, &self.options).unwrap(), effort).unwrap();
                run(&plan_combine(&input, &parts[0], &parts[1]).unwrap(), effort).unwrap()
            }
        };
        let [z, lse] = results.try_into().unwrap();
        Output { z, lse }
    }

    /// What every effort gives, which is the same bits.
    #[track_caller]
    fn attend(&self, way: Way) -> Output {
        let first = self.run(way, EFFORTS[0]);
        let size = first.z.elem_count();
        for effort in EFFORTS.into_iter().skip(1).filter(|effort| size <= effort.elements()) {
            let again = self.run(way, effort);
            let what = format!("{way:?} {effort:?} {:?}", self.q.layout());
            assert_tensor_bits(&format!("z, {what}"), &again.z, &first.z);
            assert_tensor_bits(&format!("lse, {what}"), &again.lse, &first.lse);
        }
        first
    }

    fn reference(&self) -> AttentionValues {
        let (b, t, h, d) = self.q.dims4().unwrap();
        let (_, s, h_kv, dv) = self.v.dims4().unwrap();
        let counts = |tensor: &Tensor| -> Vec<usize> {
            tensor.to_vec1::<u32>().unwrap().into_iter().map(|count| count as usize).collect()
        };
        let (lengths, offsets) = (counts(&self.lengths), counts(&self.offsets));
        assert_eq!(lengths.len(), b);
        let sinks = self.sinks.as_ref().map(numbers);
        reference::attention(&AttentionCase {
            q: &numbers(&self.q),
            k: &numbers(&self.k),
            v: &numbers(&self.v),
            dims: [t, s, h, h_kv, d, dv],
            lengths: &lengths,
            offsets: &offsets,
            scale: self.options.scale,
            window: self.options.window,
            soft_cap: self.options.soft_cap,
            sinks: sinks.as_deref(),
            summary: SummaryOptions { window: 1, boundary: None },
        })
    }

    /// Whether what `ways` give is the reference's.
    #[track_caller]
    fn check(&self, what: &str, ways: &[Way]) {
        let (b, t, h, _) = self.q.dims4().unwrap();
        let (dv, dtype) = (self.v.dim(3).unwrap(), self.q.dtype());
        let expected = self.reference();
        let (of_z, of_lse) = self.tolerances(&expected);
        for &way in ways {
            let got = self.attend(way);
            let what = format!("{way:?} {dtype:?} {what}");
            assert_eq!((got.z.dtype(), got.lse.dtype()), (dtype, DType::F32));
            assert_tensor_close(&format!("z, {what}"), &got.z, &[b, t, h, dv], &expected.z, of_z);
            let lse = &expected.lse;
            assert_tensor_close(&format!("lse, {what}"), &got.lse, &[b, h, t], lse, of_lse);
        }
    }

    /// Of z and of the log-sum-exp.
    fn tolerances(&self, expected: &AttentionValues) -> (Tolerance, Tolerance) {
        let finite = |values: &[f64]| {
            values.iter().filter(|x| x.is_finite()).fold(0f64, |max, x| max.max(x.abs()))
        };
        let score = finite(&expected.scores);
        let values: Vec<f64> = numbers(&self.v).into_iter().map(f64::from).collect();
        let (value, n_keys) = (finite(&values), self.k.dim(1).unwrap() as f64);
        let size = match self.q.dtype() {
            DType::F32 => 4e-6 + 4e-7 * score,
            _ => 1e-5 + 1e-6 * score,
        };
        let weights = match self.q.dtype() {
            DType::BF16 => 2f64.powi(-9),
            DType::F16 => 2f64.powi(-12) + n_keys * 2f64.powi(-25),
            _ => 0.0,
        };
        let exact = Tolerance {
            absolute: size,
            relative: size,
            of_max: 0.0,
            reason: "a score's rounding, relative to the largest score, is its share's relative error",
        };
        let of_z = Tolerance {
            absolute: (size + weights) * value.max(1.0),
            reason: "beside that, the weights' rounding to storage",
            ..exact
        };
        (rounded(self.q.dtype(), of_z), exact)
    }
}

fn words(values: &[usize]) -> Tensor {
    let values: Vec<u32> = values.iter().map(|&value| value as u32).collect();
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn options(case: &Attention) -> AttentionOptions {
    let scale = (case.d_head as f64).powf(-0.5);
    AttentionOptions { scale, window: case.window, soft_cap: case.soft_cap }
}

/// A case's tensors, contiguous and between NaNs: one query and two keys more than the longest row
/// needs; what no row may read is NaN.
fn batches(case: &Attention, dtype: DType, sinks: bool) -> [Batch; 2] {
    let mut data = Data::new(case.d_head as u64);
    let b = case.lengths.len();
    let t = case.lengths.iter().max().unwrap() + 1;
    let ends = case.lengths.iter().zip(case.offsets).map(|(length, offset)| length + offset);
    let ends: Vec<usize> = ends.collect();
    let s = ends.iter().max().unwrap() + 2;
    let mut tensors = |pos: usize, heads: usize, width: usize, valid: &[usize], scale: f32| {
        let mut values = data.normal(b * pos * heads * width);
        for (row, values) in values.chunks_exact_mut(pos * heads * width).enumerate() {
            values.iter_mut().for_each(|value| *value *= scale);
            values[valid[row] * heads * width..].fill(f32::NAN);
        }
        let tensor = Tensor::from_vec(values, (b, pos, heads, width), &Device::Cpu).unwrap();
        [tensor.to_dtype(dtype).unwrap(), guarded_as(&tensor, dtype)]
    };
    let q = tensors(t, case.heads, case.d_head, case.lengths, case.sharpness);
    let k = tensors(s, case.kv_heads, case.d_head, &ends, 1.0);
    let v = tensors(s, case.kv_heads, case.d_value, &ends, 1.0);
    let of_heads = Tensor::new(data.normal(case.heads), &Device::Cpu).unwrap();
    [0, 1].map(|layout| Batch {
        q: q[layout].clone(),
        k: k[layout].clone(),
        v: v[layout].clone(),
        lengths: words(case.lengths),
        offsets: words(case.offsets),
        sinks: sinks.then(|| of_heads.clone()),
        options: options(case),
    })
}

/// The cases whose heads fit, and that a plain loop finishes in reasonable time.
fn cases() -> impl Iterator<Item = Attention> {
    let fits = |case: &Attention| case.lengths != [2048] && case.d_head.max(case.d_value) <= 256;
    ATTENTION.iter().copied().filter(fits)
}

#[test]
fn attention_is_the_reference() {
    for (number, case) in cases().enumerate() {
        for (shift, dtype) in DTYPES.into_iter().enumerate() {
            let [plain, guarded] = batches(&case, dtype, (number + shift) % 2 == 0);
            let few = plain.q.dim(1).unwrap() <= 46;
            plain.check(&format!("{case:?}"), &WAYS[..1 + usize::from(few)]);
            guarded.check(&format!("between NaNs, {case:?}"), &WAYS[..1]);
        }
    }
}
