use candle_core::{DType, Device, Tensor};
use hooks::SummaryOptions;
use kernels::Error;
use kernels::attention::AttentionOptions;
use kernels::cuda::Plan;
use kernels::cuda::attention::{Input, Output, attention, plan, plan_combine, plan_parts};
use kernels::reference::{self, AttentionCase, AttentionValues};
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

    /// Numbers that may be none: which NaN an operation gives is the compiler's choice.
    fn attend_as_numbers(&self, way: Way) -> (Vec<f32>, Vec<f32>) {
        let of = |effort| {
            let Output { z, lse } = self.run(way, effort);
            (numbers(&z), numbers(&lse))
        };
        let plain = |numbers: &[f32]| -> Vec<u32> {
            numbers.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
        };
        let first = of(EFFORTS[0]);
        for again in EFFORTS.into_iter().skip(1).map(of) {
            assert_eq!(plain(&again.0), plain(&first.0));
            assert_eq!(plain(&again.1), plain(&first.1));
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

/// Every case in `dtype`, long ones in one dtype each.
fn cases_in(dtype: usize) {
    for (number, case) in cases().enumerate() {
        let [plain, guarded] = batches(&case, DTYPES[dtype], (number + dtype) % 2 == 0);
        let own = number % DTYPES.len() == dtype;
        let (t, s) = (plain.q.dim(1).unwrap(), plain.k.dim(1).unwrap());
        if s > 400 && t > 40 && !own {
            continue;
        }
        plain.check(&format!("{case:?}"), &WAYS[..1 + usize::from(t <= 46)]);
        if own {
            let ways = if t <= 9 { &WAYS[1..] } else { &WAYS[..1] };
            guarded.check(&format!("between NaNs, {case:?}"), ways);
        }
    }
}

#[test]
fn attention_is_the_reference_in_f32() {
    cases_in(0);
}

#[test]
fn attention_is_the_reference_in_bf16() {
    cases_in(1);
}

#[test]
fn attention_is_the_reference_in_f16() {
    cases_in(2);
}

/// A batch of numbers, the same for every dtype.
fn small(dtype: DType, lengths: &'static [usize], offsets: &'static [usize]) -> Batch {
    let case = Attention { heads: 6, kv_heads: 2, lengths, offsets, ..ATTENTION[0] };
    let [batch, _] = batches(&case, dtype, false);
    batch
}

fn assert_same(what: &str, got: &Output, expected: &Output) {
    assert_tensor_bits(&format!("z, {what}"), &got.z, &expected.z);
    assert_tensor_bits(&format!("lse, {what}"), &got.lse, &expected.lse);
}

#[test]
fn few_queries_are_answered_in_parts() {
    fn machine(plan: &Plan) -> kernels::Result<Vec<Tensor>> {
        Ok(run(plan, EFFORTS[0]).unwrap())
    }
    for (lengths, way) in [(&[7usize][..], Way::Parts), (&[8], Way::Whole)] {
        let batch = small(DType::BF16, lengths, &[150]);
        let got = attention(machine, &batch.input(), &batch.options).unwrap();
        assert_same("of the operation", &got, &batch.attend(way));
    }
}

#[test]
fn parts_give_what_the_whole_does() {
    for dtype in DTYPES {
        for window in [None, Some(70)] {
            let mut batch = small(dtype, &[5, 2], &[120, 391]);
            batch.options.window = window;
            let (whole, parts) = (batch.attend(Way::Whole), batch.attend(Way::Parts));
            let (of_z, of_lse) = batch.tolerances(&batch.reference());
            let expected = |tensor: &Tensor| -> Vec<f64> {
                numbers(tensor).into_iter().map(f64::from).collect()
            };
            let twice = Tolerance { absolute: 2.0 * of_z.absolute, ..of_z };
            assert_tensor_close("z", &parts.z, whole.z.dims(), &expected(&whole.z), twice);
            assert_tensor_close("lse", &parts.lse, whole.lse.dims(), &expected(&whole.lse), of_lse);
        }
    }
}

/// Rows of a batch, and positions of its queries.
fn part(batch: &Batch, row: usize, queries: std::ops::Range<usize>) -> Batch {
    let number = |tensor: &Tensor| tensor.to_vec1::<u32>().unwrap()[row] as usize;
    let (length, offset) = (number(&batch.lengths), number(&batch.offsets));
    assert!(queries.end <= length);
    let of_row = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap();
    Batch {
        q: of_row(&batch.q).narrow(1, queries.start, queries.len()).unwrap(),
        k: of_row(&batch.k),
        v: of_row(&batch.v),
        lengths: words(&[queries.len()]),
        offsets: words(&[offset + queries.start]),
        ..batch.clone()
    }
}

#[test]
fn a_query_depends_on_its_keys_alone() {
    for dtype in DTYPES {
        for window in [None, Some(9)] {
            let mut batch = small(dtype, &[75, 20], &[0, 93]);
            batch.options.window = window;
            let whole = batch.run(Way::Whole, EFFORTS[0]);
            for (row, queries) in [(0, 0..75), (0, 30..52), (0, 74..75), (1, 0..20), (1, 7..8)] {
                let got = part(&batch, row, queries.clone()).run(Way::Whole, EFFORTS[0]);
                let of = |tensor: &Tensor, axis: usize| {
                    let row = tensor.narrow(0, row, 1).unwrap();
                    row.narrow(axis, queries.start, queries.len()).unwrap()
                };
                let expected = Output { z: of(&whole.z, 1), lse: of(&whole.lse, 2) };
                assert_same(&format!("{row} {queries:?}"), &got, &expected);
            }
        }
    }
}

#[test]
fn tensors_at_other_strides() {
    for dtype in DTYPES {
        for way in WAYS {
            let mut data = Data::new(5);
            // Heads in front of positions; positions in front of rows; a cache [batch, kv_head, pos, d]
            // larger and wider than what is asked for.
            let dims = (2, 7, 4, 16);
            let heads = data.tensor(&[2, 4, 7, 16]).transpose(1, 2).unwrap();
            let rows = data.tensor(&[7, 2, 4, 16]).transpose(0, 1).unwrap();
            let queries = [heads, rows].map(|q| q.to_dtype(dtype).unwrap());
            let mut cache = || data.tensor(&[3, 2, 130, 24]).to_dtype(dtype).unwrap();
            let (k, v) = (cache(), cache());
            let view = |cache: &Tensor| {
                let rows = cache.narrow(0, 1, 2).unwrap().narrow(3, 8, 16).unwrap();
                rows.narrow(2, 3, 100).unwrap().transpose(1, 2).unwrap()
            };
            for q in queries {
                let views = Batch {
                    q,
                    k: view(&k),
                    v: view(&v),
                    lengths: words(&[7, 4]),
                    offsets: words(&[0, 96]),
                    sinks: None,
                    options: AttentionOptions { scale: 0.25, window: None, soft_cap: None },
                };
                assert_eq!(views.q.dims4().unwrap(), dims);
                let copies = Batch {
                    q: views.q.contiguous().unwrap(),
                    k: views.k.contiguous().unwrap(),
                    v: views.v.contiguous().unwrap(),
                    ..views.clone()
                };
                assert_same("strides", &views.attend(way), &copies.attend(way));
                copies.check("strides", &[way]);
            }
        }
    }
}

#[test]
fn a_launch_serves_any_lengths_and_offsets() {
    let counts: [(&[u32], &[u32]); 6] = [
        (&[9, 9], &[0, 0]),
        (&[0, 0], &[5, 70]),
        (&[1, 8], &[69, 62]),
        // More than there are, which counts as what there is room for.
        (&[u32::MAX, 10], &[0, 70]),
        (&[4, 0], &[u32::MAX, u32::MAX]),
        (&[u32::MAX, 11], &[u32::MAX, 60]),
    ];
    for (dtype, window) in DTYPES.into_iter().zip([None, Some(3), None]) {
        let mut data = Data::new(8);
        let mut tensor = |pos, heads| data.tensor(&[2, pos, heads, 16]).to_dtype(dtype).unwrap();
        let mut batch = Batch {
            q: tensor(9, 4),
            k: tensor(70, 2),
            v: tensor(70, 2),
            lengths: words(&[1, 1]),
            offsets: words(&[0, 0]),
            sinks: None,
            options: AttentionOptions { scale: 0.25, window, soft_cap: None },
        };
        let launch = |batch: &Batch| {
            let input = batch.input();
            let whole = plan(&input, &batch.options).unwrap().call;
            [whole, plan_parts(&input, &batch.options).unwrap().call]
        };
        let first = launch(&batch);
        for (lengths, offsets) in counts {
            batch.lengths = Tensor::new(lengths, &Device::Cpu).unwrap();
            batch.offsets = Tensor::new(offsets, &Device::Cpu).unwrap();
            assert_eq!(launch(&batch), first);
            let got = WAYS.map(|way| batch.run(way, EFFORTS[EFFORTS.len() - 1]));
            let fitting = lengths.iter().zip(offsets).map(|(&length, &offset)| {
                let length = (length as usize).min(9);
                (length, (offset as usize).min(70 - length))
            });
            let (lengths, offsets): (Vec<usize>, Vec<usize>) = fitting.unzip();
            (batch.lengths, batch.offsets) = (words(&lengths), words(&offsets));
            let what = format!("{lengths:?} {offsets:?}");
            for (way, got) in WAYS.into_iter().zip(got) {
                assert_same(&what, &got, &batch.run(way, EFFORTS[0]));
            }
            batch.check(&what, &WAYS);
        }
    }
}

#[test]
fn more_queries_than_keys_are_cut() {
    for way in WAYS {
        let mut batch = small(DType::F32, &[40], &[0]);
        (batch.k, batch.v) = (batch.k.narrow(1, 0, 10).unwrap(), batch.v.narrow(1, 0, 10).unwrap());
        let got = batch.attend(way);
        batch.lengths = words(&[10]);
        assert_same("cut", &got, &batch.run(way, EFFORTS[0]));
        batch.check("cut", &[way]);
        (batch.k, batch.v) = (batch.k.narrow(1, 0, 0).unwrap(), batch.v.narrow(1, 0, 0).unwrap());
        let nothing = batch.attend(way);
        assert!(numbers(&nothing.z).iter().chain(&numbers(&nothing.lse)).all(|&x| x == 0.0));
    }
}

#[test]
fn what_no_query_sees_may_hold_anything() {
    for dtype in DTYPES {
        for way in WAYS {
            // The queries at 100 .. 103 see the keys from 91 on.
            let mut batch = small(dtype, &[3], &[100]);
            batch.options.window = Some(10);
            let got = batch.attend(way);
            let cut = |tensor: &Tensor| {
                let (b, s, h, d) = tensor.dims4().unwrap();
                let nan = Tensor::full(f32::NAN, (b, 91, h, d), &Device::Cpu).unwrap();
                let seen = tensor.narrow(1, 91, s - 91).unwrap();
                Tensor::cat(&[&nan.to_dtype(dtype).unwrap(), &seen], 1).unwrap()
            };
            (batch.k, batch.v) = (cut(&batch.k), cut(&batch.v));
            assert_same("beside NaNs", &batch.attend(way), &got);
        }
    }
}

#[test]
fn large_scores() {
    for dtype in DTYPES {
        for scale in [1e3, -40.0, 0.0, 1e-30] {
            // Scores up to about 1e4, and products turned round or all the same.
            let mut batch = small(dtype, &[20, 3], &[0, 140]);
            batch.options.scale = scale;
            batch.sinks = (scale > 0.0).then(|| {
                Tensor::new(&[1e4f32, -1e4, 0.0, f32::NEG_INFINITY, 1e38, -1e38], &Device::Cpu)
                    .unwrap()
            });
            batch.check(&format!("scale {scale}"), &WAYS);
        }
    }
}

#[test]
fn masks_among_the_keys() {
    // Keys whose scores are lower than any other, or minus infinity: a bias of another kind.
    for dtype in DTYPES {
        for low in [-3e4f32, f32::NEG_INFINITY] {
            let (b, t, s, d) = (1, 12, 80, 8);
            let mut data = Data::new(3);
            let (mut q, mut k) = (data.normal(b * t * d), data.normal(b * s * d));
            // The first column of the queries is 1, that of hidden keys is low.
            q.iter_mut().step_by(d).for_each(|x| *x = 1.0);
            for (key, vector) in k.chunks_exact_mut(d).enumerate() {
                vector[0] = if key % 3 == 1 || (8..70).contains(&key) { low } else { 0.0 };
            }
            let tensor = |values: Vec<f32>, pos: usize| {
                let tensor = Tensor::from_vec(values, (b, pos, 1, d), &Device::Cpu).unwrap();
                tensor.to_dtype(dtype).unwrap()
            };
            let batch = Batch {
                q: tensor(q, t),
                k: tensor(k, s),
                v: tensor(data.normal(b * s * d), s),
                lengths: words(&[t]),
                offsets: words(&[60]),
                sinks: None,
                options: AttentionOptions { scale: 1.0, window: None, soft_cap: None },
            };
            batch.check(&format!("low {low}"), &WAYS);
        }
    }
}

#[test]
fn no_finite_score_is_no_number_but_with_a_sink() {
    for dtype in DTYPES {
        for way in WAYS {
            let mut batch = small(dtype, &[2], &[70]);
            batch.q = (batch.q.ones_like().unwrap() * 1.0).unwrap();
            let low = Tensor::full(f32::NEG_INFINITY, batch.k.dims(), &Device::Cpu).unwrap();
            batch.k = low.to_dtype(dtype).unwrap();
            let got = batch.attend_as_numbers(way);
            let (valid, beyond) = got.0.split_at(2 * 6 * 16);
            assert!(valid.iter().all(|z| z.is_nan()) && beyond.iter().all(|&z| z == 0.0));
            for lse in got.1.chunks(3) {
                assert_eq!(lse, [f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]);
            }
            batch.sinks = Some(Tensor::full(-200f32, 6, &Device::Cpu).unwrap());
            let got = batch.attend_as_numbers(way);
            assert!(got.0.iter().all(|&z| z == 0.0));
            for lse in got.1.chunks(3) {
                assert!((lse[0] + 200.0).abs() <= 1e-4 && lse[1] == lse[0] && lse[2] == 0.0);
            }
        }
    }
}

#[test]
fn sinks_share_the_weights() {
    // One query, one key, equal scores: half of the value.
    let one = Tensor::ones((1, 1, 1, 2), DType::F32, &Device::Cpu).unwrap();
    let batch = Batch {
        q: one.clone(),
        k: one.clone(),
        v: (one * 4.0).unwrap(),
        lengths: words(&[1]),
        offsets: words(&[0]),
        sinks: Some(Tensor::new(&[2f32], &Device::Cpu).unwrap()),
        options: AttentionOptions { scale: 1.0, window: None, soft_cap: None },
    };
    for way in WAYS {
        let got = batch.attend(way);
        assert_eq!(numbers(&got.z), [2.0, 2.0]);
        assert!((numbers(&got.lse)[0] - (2.0 + 2f32.ln())).abs() <= 1e-6);
        let never = Tensor::new(&[f32::NEG_INFINITY], &Device::Cpu).unwrap();
        let without = Batch { sinks: None, ..batch.clone() };
        let got = Batch { sinks: Some(never), ..batch.clone() }.attend(way);
        assert_same("a sink of nothing", &got, &without.attend(way));
    }
}

#[test]
fn nothing_is_no_launch() {
    for (b, t, h) in [(0, 3, 4), (2, 0, 4), (2, 3, 0)] {
        let q = Tensor::zeros((b, t, h, 16), DType::F32, &Device::Cpu).unwrap();
        let k = Tensor::zeros((b, 5, h / 2, 16), DType::F32, &Device::Cpu).unwrap();
        let batch = Batch {
            v: k.clone(),
            q,
            k,
            lengths: words(&vec![0; b]),
            offsets: words(&vec![0; b]),
            sinks: None,
            options: AttentionOptions { scale: 1.0, window: None, soft_cap: None },
        };
        let input = batch.input();
        assert!(plan(&input, &batch.options).unwrap().call.is_none());
        assert!(plan_parts(&input, &batch.options).unwrap().call.is_none());
        for way in WAYS {
            assert_eq!(batch.attend(way).z.dims(), [b, t, h, 16]);
        }
    }
}

#[test]
fn attention_refuses() {
    let batch = small(DType::F32, &[3, 2], &[0, 4]);
    let refused = |change: &dyn Fn(&mut Batch)| {
        let mut batch = batch.clone();
        change(&mut batch);
        let whole = plan(&batch.input(), &batch.options).unwrap_err();
        let parts = plan_parts(&batch.input(), &batch.options).unwrap_err();
        assert_eq!(whole.to_string(), parts.to_string());
        whole
    };
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    // q [2, 4, 6, 16], k and v [2, 8, 2, 16].
    let shapes: [(&str, &dyn Fn(&mut Batch)); 11] = [
        ("q", &|batch| batch.q = batch.q.flatten(1, 2).unwrap()),
        ("k", &|batch| batch.k = batch.k.narrow(0, 0, 1).unwrap()),
        ("k", &|batch| batch.k = batch.k.narrow(3, 0, 8).unwrap()),
        ("k", &|batch| batch.k = batch.k.flatten(1, 2).unwrap()),
        ("v", &|batch| batch.v = batch.v.narrow(1, 0, 7).unwrap()),
        ("v", &|batch| batch.v = batch.v.narrow(2, 0, 1).unwrap()),
        ("k", &|batch| batch.q = batch.q.narrow(2, 0, 5).unwrap()),
        ("lengths", &|batch| batch.lengths = words(&[1])),
        ("lengths", &|batch| batch.lengths = batch.lengths.reshape((2, 1)).unwrap()),
        ("offsets", &|batch| batch.offsets = words(&[1, 1, 1])),
        ("sinks", &|batch| batch.sinks = Some(zeros(&[2], DType::F32))),
    ];
    for (what, change) in shapes {
        let error = refused(change);
        assert!(matches!(error, Error::Shape { what: got, .. } if got == what), "{error}");
    }
    let dtypes: [(&str, &dyn Fn(&mut Batch)); 5] = [
        ("k", &|batch| batch.k = batch.k.to_dtype(DType::BF16).unwrap()),
        ("v", &|batch| batch.v = batch.v.to_dtype(DType::F16).unwrap()),
        ("lengths", &|batch| batch.lengths = batch.lengths.to_dtype(DType::I64).unwrap()),
        ("offsets", &|batch| batch.offsets = batch.offsets.to_dtype(DType::F32).unwrap()),
        ("sinks", &|batch| batch.sinks = Some(zeros(&[6], DType::BF16))),
    ];
    for (what, change) in dtypes {
        let error = refused(change);
        assert!(matches!(error, Error::DType { what: got, .. } if got == what), "{error}");
    }
    let ranges: [(&str, &dyn Fn(&mut Batch)); 5] = [
        ("dtype", &|batch| batch.q = batch.q.to_dtype(DType::F64).unwrap()),
        ("the width of a head", &|batch| {
            batch.q = zeros(&[2, 4, 6, 257], DType::F32);
            batch.k = zeros(&[2, 8, 2, 257], DType::F32);
        }),
        ("the width of a head", &|batch| batch.v = zeros(&[2, 8, 2, 258], DType::F32)),
        ("window", &|batch| batch.options.window = Some(0)),
        ("soft cap", &|batch| batch.options.soft_cap = Some(-1.0)),
    ];
    for (what, change) in ranges {
        let error = refused(change);
        assert!(matches!(error, Error::Range { what: got, .. } if got == what), "{error}");
    }
    let many: [(&str, &dyn Fn(&mut Batch)); 2] = [
        ("the number of keys", &|batch| {
            batch.k = zeros(&[2, 1, 2, 16], DType::F32).broadcast_as((2, 1 << 31, 2, 16)).unwrap();
            batch.v = batch.k.clone();
        }),
        ("the number of queries and heads of a row", &|batch| {
            batch.q = zeros(&[2, 1, 6, 16], DType::F32).broadcast_as((2, 1 << 29, 6, 16)).unwrap();
        }),
    ];
    for (what, change) in many {
        let error = refused(change);
        assert!(matches!(error, Error::Range { what: got, .. } if got == what), "{error}");
    }
    let across: [(&str, &dyn Fn(&mut Batch)); 3] = [
        ("q", &|batch| batch.q = zeros(&[2, 4, 16, 6], DType::F32).transpose(2, 3).unwrap()),
        ("v", &|batch| batch.v = zeros(&[2, 8, 16, 2], DType::F32).transpose(2, 3).unwrap()),
        ("lengths", &|batch| batch.lengths = words(&[1]).broadcast_as(2).unwrap()),
    ];
    for (what, change) in across {
        let error = refused(change);
        assert!(matches!(error, Error::NonContiguous { what: got, .. } if got == what), "{error}");
    }
    // Parts of another batch.
    let input = batch.input();
    let parts = plan_parts(&input, &batch.options).unwrap();
    let [sums, bases] = [0, 1].map(|i| zeros(&parts.outputs[i].1, DType::F32));
    assert!(plan_combine(&input, &sums, &bases).is_ok());
    let refused = plan_combine(&input, &bases, &bases);
    assert!(matches!(refused, Err(Error::Shape { what: "sums", .. })));
    let refused = plan_combine(&input, &sums, &sums);
    assert!(matches!(refused, Err(Error::Shape { what: "bases", .. })));
}
