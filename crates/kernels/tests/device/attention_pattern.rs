use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::attention::AttentionOptions;
use kernels::cuda::attention_pattern::{QueriesAndKeys, plan};
use testkit::cases::Attention;
use testkit::{Data, assert_close, assert_tensor_bits};

use super::queries::{Batch, Inputs, SUMMARY, cases, of, words};
use super::{DTYPES, check, numbers};
use crate::machine::{EFFORTS, run};

/// The matrices of the chosen heads, of `values [batch, head, pos, key_pos]`.
fn chosen(batch: &Batch, values: &[f64], heads: &[usize]) -> Vec<f64> {
    let (size, h) = (batch.t * batch.s, batch.case.heads);
    let rows = values.chunks_exact(h * size);
    rows.flat_map(|row| heads.iter().flat_map(|&head| &row[head * size..][..size]))
        .copied()
        .collect()
}

fn with_heads(mut inputs: Inputs, heads: &[usize]) -> Inputs {
    inputs.push(words(heads));
    inputs
}

/// Heads of a case: out of order, and one of them twice.
fn heads(case: &Attention) -> Vec<usize> {
    match case.heads {
        1 => vec![0],
        h => vec![h - 1, 0, h / 2, h - 1],
    }
}

#[test]
fn matrices_are_the_reference() {
    for case in cases() {
        for dtype in DTYPES {
            let batch = Batch::new(case, dtype, SUMMARY);
            let asked = heads(&case);
            if case.lengths.len() * asked.len() * batch.t * batch.s > EFFORTS[0].elements() {
                continue;
            }
            let inputs = batch.inputs.clone().map(|inputs| with_heads(inputs, &asked));
            let tolerance = batch.tolerance();
            for (what, values) in
                [("scores", &batch.expected.scores), ("pattern", &batch.expected.pattern)]
            {
                let expected = chosen(&batch, values, &asked);
                check(
                    &format!("{what} of {case:?}"),
                    |inputs| {
                        let lse = (what == "pattern").then_some(&inputs[4]);
                        plan(of(inputs), &batch.options, &inputs[5], lse).unwrap()
                    },
                    inputs.clone(),
                    &expected,
                    tolerance,
                );
            }
        }
    }
}

const SMALL: Attention = Attention {
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

#[test]
fn hidden_is_exactly_zero() {
    let batch = Batch::new(SMALL, DType::F32, SUMMARY);
    let (inputs, list) = (&batch.inputs[0], words(&[0, 1, 2, 3]));
    let plan = plan(of(inputs), &batch.options, &list, Some(&inputs[4])).unwrap();
    let pattern = numbers(&run(&plan, EFFORTS[0]).unwrap()[0]);
    let mut hidden = 0;
    for (p, score) in pattern.iter().zip(&batch.expected.scores) {
        assert!(*score != f64::NEG_INFINITY || p.to_bits() == 0);
        hidden += usize::from(p.to_bits() == 0);
    }
    assert!(hidden > pattern.len() / 4 && hidden < pattern.len());
}

#[test]
fn a_log_sum_exp_with_a_sink_has_all_that_a_sink_needs() {
    let batch = Batch::new(SMALL, DType::BF16, SUMMARY);
    // A sink that takes a half of every row.
    let half = |inputs: Inputs| {
        let mut inputs = with_heads(inputs, &[3, 1]);
        inputs[4] = (&inputs[4] + std::f64::consts::LN_2).unwrap();
        inputs
    };
    let expected: Vec<f64> = chosen(&batch, &batch.expected.pattern, &[3, 1]);
    let expected: Vec<f64> = expected.iter().map(|a| a / 2.0).collect();
    check(
        "half a pattern",
        |inputs| plan(of(inputs), &batch.options, &inputs[5], Some(&inputs[4])).unwrap(),
        batch.inputs.clone().map(half),
        &expected,
        batch.tolerance(),
    );
}

#[test]
fn lengths_and_offsets_that_do_not_fit_are_nan() {
    let batch = Batch::new(SMALL, DType::F32, SUMMARY);
    let (t, s, list) = (batch.t, batch.s, words(&[2, 0]));
    let expected = chosen(&batch, &batch.expected.pattern, &[2, 0]);
    for inputs in &batch.inputs {
        for (length, offset) in
            [(t + 1, 0), (5, s - 4), (0, s + 1), (u32::MAX as usize, 0), (1, u32::MAX as usize)]
        {
            let mut inputs = inputs.clone();
            (inputs[2], inputs[3]) = (words(&[66, length]), words(&[0, offset]));
            let plan = plan(of(&inputs), &batch.options, &list, Some(&inputs[4])).unwrap();
            for effort in EFFORTS {
                let pattern = numbers(&run(&plan, effort).unwrap()[0]);
                let (good, bad) = pattern.split_at(pattern.len() / 2);
                assert_close("the other row", good, &expected[..good.len()], batch.tolerance());
                assert!(bad.iter().all(|a| a.is_nan()), "{length} {offset}");
            }
        }
    }
}

#[test]
fn heads_that_are_not_there_are_nan() {
    let batch = Batch::new(SMALL, DType::F16, SUMMARY);
    let (inputs, size) = (&batch.inputs[1], batch.t * batch.s);
    let list = words(&[4, 1, u32::MAX as usize]);
    let expected = chosen(&batch, &batch.expected.scores, &[1]);
    let plan = plan(of(inputs), &batch.options, &list, None).unwrap();
    for effort in EFFORTS {
        let scores = numbers(&run(&plan, effort).unwrap()[0]);
        for (slots, expected) in scores.chunks(3 * size).zip(expected.chunks(size)) {
            assert_close("head 1", &slots[size..2 * size], expected, batch.tolerance());
            assert!(slots[..size].iter().chain(&slots[2 * size..]).all(|score| score.is_nan()));
        }
    }
}

#[test]
fn keys_of_a_cache_are_read_where_they_are() {
    let batch = Batch::new(SMALL, DType::F32, SUMMARY);
    let list = words(&[0, 1, 2, 3]);
    let inputs = &batch.inputs[0];
    // Heads outside of positions, as caches have them, and queries behind one another backwards.
    let turned =
        |x: &Tensor| x.transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    let mut other = inputs.clone();
    (other[0], other[1]) = (turned(&inputs[0]), turned(&inputs[1]));
    assert_ne!(other[1].stride(), inputs[1].stride());
    let results = [inputs, &other].map(|inputs| {
        let plan = plan(of(inputs), &batch.options, &list, Some(&inputs[4])).unwrap();
        run(&plan, EFFORTS[0]).unwrap().remove(0)
    });
    assert_tensor_bits("pattern", &results[0], &results[1]);
}

#[test]
fn nothing_chosen_is_no_launch() {
    let batch = Batch::new(SMALL, DType::F32, SUMMARY);
    let (inputs, list) = (&batch.inputs[0], words(&[]));
    let plan = plan(of(inputs), &batch.options, &list, Some(&inputs[4])).unwrap();
    assert!(plan.call.is_none());
    assert_eq!(plan.outputs, [(DType::F32, vec![2, 0, batch.t, batch.s])]);
}

#[test]
fn attention_pattern_refuses() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    let (q, k) = (zeros(&[2, 3, 4, 8], DType::F32), zeros(&[2, 5, 2, 8], DType::F32));
    let (of_rows, list) = (words(&[3, 3]), words(&[1]));
    let lse = zeros(&[2, 4, 3], DType::F32);
    let good = QueriesAndKeys { q: &q, k: &k, lengths: &of_rows, offsets: &of_rows };
    let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
    fn refused(input: QueriesAndKeys, lse: Option<&Tensor>) -> Error {
        let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
        plan(input, &options, &words(&[1]), lse).unwrap_err()
    }
    assert!(plan(good, &options, &list, Some(&lse)).is_ok());

    let flat = zeros(&[2, 3, 32], DType::F32);
    let error = refused(QueriesAndKeys { q: &flat, ..good }, None);
    assert!(matches!(error, Error::Shape { what: "q", .. }));
    for dims in [&[1, 5, 2, 8][..], &[2, 5, 2, 9], &[2, 5, 3, 8], &[2, 5, 0, 8], &[2, 5, 16]] {
        let k = zeros(dims, DType::F32);
        let error = refused(QueriesAndKeys { k: &k, ..good }, None);
        assert!(matches!(error, Error::Shape { what: "k", .. }), "{dims:?}");
    }
    let half = k.to_dtype(DType::F16).unwrap();
    let error = refused(QueriesAndKeys { k: &half, ..good }, None);
    assert!(matches!(error, Error::DType { what: "k", expected: DType::F32, .. }));
    let (wide_q, wide_k) = (q.to_dtype(DType::F64).unwrap(), k.to_dtype(DType::F64).unwrap());
    let error = refused(QueriesAndKeys { q: &wide_q, k: &wide_k, ..good }, None);
    assert!(matches!(error, Error::Range { what: "dtype", .. }));
    let turned = Data::new(1).tensor(&[2, 3, 8, 4]).transpose(2, 3).unwrap();
    let error = refused(QueriesAndKeys { q: &turned, ..good }, None);
    assert!(matches!(error, Error::NonContiguous { what: "q", .. }));
    let many = words(&[1, 1, 1]);
    let error = refused(QueriesAndKeys { lengths: &many, ..good }, None);
    assert!(matches!(error, Error::Shape { what: "lengths", .. }));
    let floats = zeros(&[2], DType::F32);
    let error = refused(QueriesAndKeys { offsets: &floats, ..good }, None);
    assert!(matches!(error, Error::DType { what: "offsets", .. }));
    let error = refused(good, Some(&flat));
    assert!(matches!(error, Error::Shape { what: "lse", .. }));
    let error = plan(good, &options, &lse, None).unwrap_err();
    assert!(matches!(error, Error::Shape { what: "heads", .. }));
    let error = plan(good, &options, &floats, None).unwrap_err();
    assert!(matches!(error, Error::DType { what: "heads", .. }));

    for (window, soft_cap) in [(Some(0), None), (None, Some(0.0)), (None, Some(f64::NAN))] {
        let options = AttentionOptions { scale: 1.0, window, soft_cap };
        assert!(matches!(plan(good, &options, &list, None), Err(Error::Range { .. })));
    }
    let long = zeros(&[1, 1, 1, 8], DType::F32);
    let long = long.broadcast_as((1, 1 << 22, 1, 8)).unwrap();
    let one = words(&[1]);
    let error = refused(QueriesAndKeys { q: &long, k: &long, lengths: &one, offsets: &one }, None);
    assert!(matches!(error, Error::Range { what: "the number of blocks", .. }));
}
