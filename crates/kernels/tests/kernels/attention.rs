use candle_core::{DType, Device, Tensor};
use hooks::{Statistic, SummaryOptions};
use kernels::Error;
use kernels::attention::{
    AttentionInput, AttentionOptions, AttentionOutput, AttentionWants, attention,
    attention_pattern, attention_scores,
};
use kernels::reference::{self, AttentionCase};
use testkit::cases::{ATTENTION, Attention};
use testkit::{Data, Tolerance, assert_bits, assert_tensor_bits, assert_tensor_close, guarded};

use crate::on_threads;

const SUMMARY: SummaryOptions = SummaryOptions { window: 10, boundary: Some(4) };
const ALL: AttentionWants<'_> =
    AttentionWants { lse: true, summary: Some(SUMMARY), boundaries: &[] };
const NOTHING: AttentionWants<'_> = AttentionWants { lse: false, summary: None, boundaries: &[] };

/// A case's tensors. One query and two keys more than the longest row needs; what
/// no row may read is NaN.
struct Batch {
    case: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    t: usize,
    s: usize,
}

fn batch(case: Attention) -> Batch {
    let mut data = Data::new(case.d_head as u64);
    let b = case.lengths.len();
    let t = case.lengths.iter().max().unwrap() + 1;
    let ends = case.lengths.iter().zip(case.offsets).map(|(length, offset)| length + offset);
    let s = ends.clone().max().unwrap() + 2;
    let ends: Vec<usize> = ends.collect();
    let mut tensor = |pos: usize, heads: usize, width: usize, valid: &[usize], scale: f32| {
        let mut values = data.normal(b * pos * heads * width);
        for (row, values) in values.chunks_exact_mut(pos * heads * width).enumerate() {
            values.iter_mut().for_each(|value| *value *= scale);
            values[valid[row] * heads * width..].fill(f32::NAN);
        }
        guarded(&Tensor::from_vec(values, (b, pos, heads, width), &Device::Cpu).unwrap())
    };
    let q = tensor(t, case.heads, case.d_head, case.lengths, case.sharpness);
    let k = tensor(s, case.kv_heads, case.d_head, &ends, 1.0);
    let v = tensor(s, case.kv_heads, case.d_value, &ends, 1.0);
    Batch { case, q, k, v, t, s }
}

impl Batch {
    fn input(&self) -> AttentionInput<'_> {
        let Attention { lengths, offsets, .. } = self.case;
        AttentionInput { q: &self.q, k: &self.k, v: &self.v, lengths, offsets }
    }

    fn options(&self) -> AttentionOptions {
        let scale = (self.case.d_head as f64).powf(-0.5);
        AttentionOptions { scale, window: self.case.window, soft_cap: self.case.soft_cap }
    }

    fn attend(&self, wants: &AttentionWants) -> AttentionOutput {
        attention(&self.input(), &self.options(), wants).unwrap()
    }
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The cases that a plain loop finishes in reasonable time.
fn cases() -> impl Iterator<Item = Attention> {
    ATTENTION.iter().copied().filter(|case| case.lengths != [2048])
}

#[test]
fn a_row_may_have_a_boundary_of_its_own() {
    for case in cases() {
        let batch = batch(case);
        let own = |row: usize| (row % 3 != 1).then_some(2 + 3 * row);
        let boundaries: Vec<Option<usize>> = (0..case.lengths.len()).map(own).collect();
        let mixed = batch.attend(&AttentionWants { boundaries: &boundaries, ..ALL }).summary;
        for (row, boundary) in boundaries.into_iter().enumerate() {
            let boundary = boundary.or(SUMMARY.boundary);
            let summary = Some(SummaryOptions { boundary, ..SUMMARY });
            let alone = batch.attend(&AttentionWants { summary, ..ALL }).summary;
            let row_of = |summary: &Option<Tensor>| summary.as_ref().unwrap().get(row).unwrap();
            assert_tensor_bits(&format!("row {row} of {case:?}"), &row_of(&mixed), &row_of(&alone));
        }
    }
}

#[test]
fn attention_is_the_reference() {
    for case in cases() {
        let batch = batch(case);
        let (t, s, h) = (batch.t, batch.s, case.heads);
        let b = case.lengths.len();
        let (q, k, v) = (flat(&batch.q), flat(&batch.k), flat(&batch.v));
        let expected = reference::attention(&AttentionCase {
            q: &q,
            k: &k,
            v: &v,
            dims: [t, s, h, case.kv_heads, case.d_head, case.d_value],
            lengths: case.lengths,
            offsets: case.offsets,
            scale: f64::from(batch.options().scale as f32),
            window: case.window,
            soft_cap: case.soft_cap,
            sinks: None,
            summary: SUMMARY,
        });
        let largest =
            expected.scores.iter().filter(|s| s.is_finite()).fold(0f64, |a, s| a.max(s.abs()));
        let size = 4e-6 + 4e-7 * largest;
        let shares = Tolerance {
            absolute: size,
            relative: size,
            of_max: 0.0,
            reason: "a score's rounding, relative to the largest score, is its share's relative error",
        };
        let name = |what: &str| format!("{what} of {case:?}");
        let got = batch.attend(&ALL);
        let dims = [b, t, h, case.d_value];
        assert_tensor_close(&name("z"), &got.z, &dims, &expected.z, shares);
        let lse = got.lse.unwrap();
        assert_tensor_close(&name("lse"), &lse, &[b, h, t], &expected.lse, shares);
        let summary = got.summary.unwrap();
        assert_eq!(summary.dims(), [b, h, t, Statistic::COUNT]);
        for statistic in Statistic::ALL {
            let got = summary.narrow(3, statistic.index(), 1).unwrap();
            let expected: Vec<f64> = expected
                .summary
                .iter()
                .skip(statistic.index())
                .step_by(Statistic::COUNT)
                .copied()
                .collect();
            assert_tensor_close(&name(statistic.name()), &got, &[b, h, t, 1], &expected, shares);
        }

        let heads: Vec<usize> = (0..h).collect();
        let dims = [b, h, t, s];
        let scores = attention_scores(&batch.input(), &batch.options(), &heads).unwrap();
        assert_tensor_close(&name("scores"), &scores, &dims, &expected.scores, shares);
        let pattern = attention_pattern(&batch.input(), &batch.options(), &heads).unwrap();
        assert_tensor_close(&name("pattern"), &pattern, &dims, &expected.pattern, shares);
        for ((p, &expected), score) in
            flat(&pattern).iter().zip(&expected.pattern).zip(flat(&scores))
        {
            // Hidden is exactly 0; seen may underflow to 0.
            assert!(score != f32::NEG_INFINITY || (p.to_bits() == 0 && expected == 0.0));
        }
        for (line, lse) in flat(&pattern).chunks_exact(s).zip(flat(&lse)) {
            let sum: f64 = line.iter().map(|&p| f64::from(p)).sum();
            assert!(
                (sum - 1.0).abs() <= 1e-6 || (sum == 0.0 && lse == 0.0),
                "{} {sum}",
                name("row")
            );
        }
    }
}

#[test]
fn the_output_does_not_depend_on_what_else_is_wanted() {
    for case in cases() {
        let batch = batch(case);
        let all = batch.attend(&ALL);
        let lse = batch.attend(&AttentionWants { lse: true, ..NOTHING });
        assert_tensor_bits("z", &batch.attend(&NOTHING).z, &all.z);
        assert_tensor_bits("z", &lse.z, &all.z);
        assert_tensor_bits("lse", &lse.lse.unwrap(), &all.lse.unwrap());
    }
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    for case in cases() {
        let batch = batch(case);
        let one = on_threads(1, || batch.attend(&ALL));
        for threads in [2, 3] {
            let more = on_threads(threads, || batch.attend(&ALL));
            assert_tensor_bits("z", &more.z, &one.z);
            assert_tensor_bits("lse", more.lse.as_ref().unwrap(), one.lse.as_ref().unwrap());
            let (more, one) = (more.summary.unwrap(), one.summary.clone().unwrap());
            assert_tensor_bits("summary", &more, &one);
        }
    }
}

/// One row of a batch by itself, with nothing around it.
fn alone(batch: &Batch, row: usize, queries: std::ops::Range<usize>) -> AttentionOutput {
    let (offset, len) = (batch.case.offsets[row] + queries.start, queries.len());
    let part = |x: &Tensor, start, len| {
        x.narrow(0, row, 1).unwrap().narrow(1, start, len).unwrap().contiguous().unwrap()
    };
    let q = part(&batch.q, queries.start, len);
    let (k, v) = (part(&batch.k, 0, offset + len), part(&batch.v, 0, offset + len));
    let input = AttentionInput { q: &q, k: &k, v: &v, lengths: &[len], offsets: &[offset] };
    attention(&input, &batch.options(), &ALL).unwrap()
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for case in cases().filter(|case| case.lengths.len() > 1) {
        let batch = batch(case);
        let whole = batch.attend(&ALL);
        for (row, &length) in case.lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let single = alone(&batch, row, 0..length);
            let of_row = |x: &Tensor, axis: usize| {
                x.narrow(0, row, 1).unwrap().narrow(axis, 0, length).unwrap()
            };
            assert_tensor_bits("z", &single.z, &of_row(&whole.z, 1));
            let (got, lse) = (single.lse.unwrap(), whole.lse.as_ref().unwrap());
            assert_tensor_bits("lse", &got, &of_row(lse, 2));
            let (got, summary) = (single.summary.unwrap(), whole.summary.as_ref().unwrap());
            assert_tensor_bits("summary", &got, &of_row(summary, 2));
        }
    }
}

#[test]
fn decoding_gives_the_bits_of_the_prefill() {
    for case in cases().filter(|case| case.lengths != [512]) {
        let batch = batch(case);
        let whole = batch.attend(&ALL);
        for (row, &length) in case.lengths.iter().enumerate() {
            // Every query by itself, and a second prefill that starts in the middle.
            let singles = (0..length).map(|query| query..query + 1);
            for queries in singles
                .chain(std::iter::once(length / 3..length))
                .filter(|queries| !queries.is_empty())
            {
                let part = alone(&batch, row, queries.clone());
                let of_row = |x: &Tensor, axis: usize| {
                    x.narrow(0, row, 1).unwrap().narrow(axis, queries.start, queries.len()).unwrap()
                };
                assert_tensor_bits("z", &part.z, &of_row(&whole.z, 1));
                let lse = of_row(whole.lse.as_ref().unwrap(), 2);
                assert_tensor_bits("lse", &part.lse.unwrap(), &lse);
                // All statistics but the column sum, which counts these queries only.
                let rows = |x: &Tensor| x.narrow(3, 0, Statistic::COUNT - 1).unwrap();
                let summary = of_row(whole.summary.as_ref().unwrap(), 2);
                assert_tensor_bits("summary", &rows(&part.summary.unwrap()), &rows(&summary));
            }
        }
    }
}

#[test]
fn columns_share_out_all_rows() {
    let batch = batch(Attention { lengths: &[700], ..ATTENTION[0] });
    let summary = batch.attend(&ALL).summary.unwrap();
    for head in 0..2 {
        let columns = summary.narrow(3, Statistic::ColumnSum.index(), 1).unwrap();
        let total: f64 =
            flat(&columns.narrow(1, head, 1).unwrap()).iter().map(|&x| f64::from(x)).sum();
        assert!((total - 700.0).abs() <= 1e-3, "{total}");
    }
}

#[test]
fn chosen_heads_in_the_order_asked_for() {
    let batch = batch(Attention {
        heads: 6,
        kv_heads: 2,
        lengths: &[40, 9],
        offsets: &[0, 3],
        ..ATTENTION[0]
    });
    for of in [attention_scores, attention_pattern] {
        let all = of(&batch.input(), &batch.options(), &[0, 1, 2, 3, 4, 5]).unwrap();
        let some = of(&batch.input(), &batch.options(), &[5, 0, 3]).unwrap();
        for (slot, head) in [5, 0, 3].into_iter().enumerate() {
            assert_tensor_bits(
                "head",
                &some.get_on_dim(1, slot).unwrap(),
                &all.get_on_dim(1, head).unwrap(),
            );
        }
        let none = of(&batch.input(), &batch.options(), &[]).unwrap();
        assert_eq!(none.dims(), [2, 0, batch.t, batch.s]);
        let wrong = of(&batch.input(), &batch.options(), &[6]);
        assert!(matches!(wrong, Err(Error::Range { what: "head", .. })));
    }
}

#[test]
fn scores_are_those_inside() {
    // One query sees one key: lse is the score itself.
    let batch = batch(Attention { window: Some(1), lengths: &[50], d_head: 33, ..ATTENTION[0] });
    let lse = flat(&batch.attend(&ALL).lse.unwrap());
    let scores = flat(&attention_scores(&batch.input(), &batch.options(), &[0, 1]).unwrap());
    for (row, lse) in lse.iter().enumerate().filter(|(row, _)| row % batch.t < 50) {
        let diagonal = scores[row * batch.s + row % batch.t];
        assert_bits("score", &[*lse], &[diagonal]);
    }
}

#[test]
fn a_wide_cap_changes_little_and_a_narrow_one_levels() {
    let capped = |soft_cap| batch(Attention { lengths: &[60], soft_cap, ..ATTENTION[0] });
    let scores = |soft_cap| {
        let batch = capped(soft_cap);
        flat(&attention_scores(&batch.input(), &batch.options(), &[0, 1]).unwrap())
    };
    let free = scores(None);
    for (wide, free) in scores(Some(1e6)).iter().zip(&free) {
        assert!(wide == free || (wide - free).abs() <= 1e-6 * free.abs(), "{wide} {free}");
    }
    // c tanh(s/c) keeps the sign and stays within the cap and the score.
    for (narrow, free) in scores(Some(0.25)).iter().zip(&free).filter(|(_, s)| s.is_finite()) {
        assert!(narrow * free >= 0.0 && narrow.abs() <= 0.25f32.min(free.abs() * 1.000_001));
    }
    // So narrow that all visible keys weigh the same.
    let batch = capped(Some(1e-7));
    let pattern = attention_pattern(&batch.input(), &batch.options(), &[0]).unwrap();
    for (query, row) in flat(&pattern).chunks_exact(batch.s).enumerate().take(60) {
        let share = 1.0 / (query + 1) as f32;
        assert!(row[..=query].iter().all(|a| (a - share).abs() <= 1e-6));
    }
}

#[test]
fn underflow_keeps_its_logarithm() {
    let q = Tensor::new(&[[[[1f32]], [[1.0]]]], &Device::Cpu).unwrap();
    let k = Tensor::new(&[[[[500f32]], [[0.0]]]], &Device::Cpu).unwrap();
    let input = AttentionInput { q: &q, k: &k, v: &k, lengths: &[2], offsets: &[0] };
    let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
    let summary = flat(&attention(&input, &options, &ALL).unwrap().summary.unwrap());
    let second = &summary[Statistic::COUNT..];
    assert_eq!(second[Statistic::Diagonal.index()], 0.0);
    assert_eq!(second[Statistic::LogDiagonal.index()], -500.0);
    assert_eq!(second[Statistic::Entropy.index()], 0.0);
    assert_eq!(second[Statistic::FirstToken.index()], 1.0);
}

#[test]
fn nan_does_not_panic_and_stays_in_its_row() {
    let mut data = Data::new(1);
    let (q, k, v) =
        (data.tensor(&[2, 40, 2, 8]), data.tensor(&[2, 40, 2, 8]), data.tensor(&[2, 40, 2, 8]));
    let mut values: Vec<f32> = flat(&q);
    values[5] = f32::NAN;
    values[33] = f32::INFINITY;
    let bad = Tensor::from_vec(values, q.dims(), &Device::Cpu).unwrap();
    let options = AttentionOptions { scale: 0.3, window: None, soft_cap: None };
    let run = |q: &Tensor, k: &Tensor| {
        let input = AttentionInput { q, k, v: &v, lengths: &[40, 40], offsets: &[0, 0] };
        attention_pattern(&input, &options, &[0, 1]).unwrap();
        attention(&input, &options, &ALL).unwrap()
    };
    let (clean, dirty) = (run(&q, &k), run(&bad, &k));
    assert_tensor_bits("other row", &dirty.z.get(1).unwrap(), &clean.z.get(1).unwrap());
    assert!(flat(&dirty.z)[..8].iter().all(|z| z.is_nan()));
    run(&q, &bad);
}

#[test]
fn empty_axes_give_empty_results() {
    for (b, t, h, d, dv) in
        [(0, 3, 2, 4, 4), (2, 0, 2, 4, 4), (2, 3, 0, 4, 4), (2, 3, 2, 4, 0), (2, 3, 2, 0, 4)]
    {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let (q, k, v) = (zeros(&[b, t, h, d]), zeros(&[b, t, h, d]), zeros(&[b, t, h, dv]));
        let (lengths, offsets) = (vec![t; b], vec![0; b]);
        let input = AttentionInput { q: &q, k: &k, v: &v, lengths: &lengths, offsets: &offsets };
        let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
        let output = attention(&input, &options, &ALL).unwrap();
        assert_eq!(output.z.dims(), [b, t, h, dv]);
        assert_eq!(output.summary.unwrap().dims(), [b, h, t, Statistic::COUNT]);
        let heads: Vec<usize> = (0..h).collect();
        let pattern = attention_pattern(&input, &options, &heads).unwrap();
        assert_eq!(pattern.dims(), [b, h, t, t]);
    }
}

#[test]
fn bad_arguments_are_typed_errors() {
    let mut data = Data::new(1);
    let q = data.tensor(&[1, 3, 4, 8]);
    let k = data.tensor(&[1, 5, 2, 8]);
    let odd = data.tensor(&[1, 5, 3, 8]);
    let long = data.tensor(&[1, 6, 2, 8]);
    let wide = data.tensor(&[1, 5, 2, 9]);
    let run = |q: &Tensor, k: &Tensor, v: &Tensor, length: usize, offset: usize, window| {
        let input = AttentionInput { q, k, v, lengths: &[length], offsets: &[offset] };
        let options = AttentionOptions { scale: 1.0, window, soft_cap: None };
        attention(&input, &options, &NOTHING).map(|_| ())
    };
    assert!(run(&q, &k, &wide, 3, 2, None).is_ok());
    assert!(matches!(run(&q, &wide, &k, 3, 2, None), Err(Error::Shape { what: "k", .. })));
    assert!(matches!(run(&q, &odd, &odd, 3, 2, None), Err(Error::Shape { what: "k", .. })));
    assert!(matches!(run(&q, &k, &long, 3, 2, None), Err(Error::Shape { what: "v", .. })));
    assert!(matches!(run(&q, &k, &k, 4, 0, None), Err(Error::Range { what: "length", .. })));
    assert!(matches!(run(&q, &k, &k, 3, 3, None), Err(Error::Range { .. })));
    assert!(matches!(run(&q, &k, &k, 3, usize::MAX, None), Err(Error::Range { .. })));
    assert!(matches!(run(&q, &k, &k, 3, 2, Some(0)), Err(Error::Range { what: "window", .. })));
    let turned = q.transpose(2, 3).unwrap();
    assert!(matches!(
        run(&turned, &k, &k, 3, 2, None),
        Err(Error::NonContiguous { what: "q", .. })
    ));
    let input = AttentionInput { q: &q, k: &k, v: &k, lengths: &[3], offsets: &[2] };
    for cap in [0.0, -50.0, f64::NAN, f64::INFINITY, 1e39, 1e-60] {
        let options = AttentionOptions { scale: 1.0, window: None, soft_cap: Some(cap) };
        let refused = |error| matches!(error, Error::Range { what: "soft cap", .. });
        assert!(refused(attention(&input, &options, &NOTHING).unwrap_err()), "{cap}");
        assert!(refused(attention_scores(&input, &options, &[0]).unwrap_err()), "{cap}");
        assert!(refused(attention_pattern(&input, &options, &[0]).unwrap_err()), "{cap}");
    }
    let input = AttentionInput { q: &q, k: &k, v: &k, lengths: &[3, 3], offsets: &[0] };
    let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
    let result = attention(&input, &options, &NOTHING);
    assert!(matches!(result, Err(Error::Shape { what: "lengths", .. })));
}
