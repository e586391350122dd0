use candle_core::{DType, Device, Tensor};
use kernels::cuda::router::plan;
use kernels::router::Selection::{self, SoftmaxTopK};
use kernels::router::route;
use kernels::{Error, reference};
use testkit::cases::ROUTER;
use testkit::{Data, Tolerance, assert_bits, assert_close};

use super::{layouts, numbers};
use crate::machine::{EFFORTS, run};

const RULES: [Selection; 2] =
    [SoftmaxTopK { renormalise: false }, SoftmaxTopK { renormalise: true }];

const EXACT: Tolerance = Tolerance {
    absolute: 1e-38,
    relative: 1e-5,
    of_max: 0.0,
    reason: "an f32 exponential of a rounded difference up to 100; f32 sums; subnormal results",
};

/// [`numbers`], every NaN the same: which one an operation gives is the compiler's choice.
fn plain(tensor: &Tensor) -> Vec<f32> {
    numbers(tensor).into_iter().map(|x| if x.is_nan() { f32::NAN } else { x }).collect()
}

/// Probabilities, indices and weights of `plan`'s launch, for every effort the same bits.
#[track_caller]
fn routed(logits: &Tensor, k: usize, rule: Selection) -> (Vec<f32>, Vec<u32>, Vec<f32>) {
    let plan = plan(logits, k, rule).unwrap();
    let (n, e) = logits.dims2().unwrap();
    let mut first: Option<(Vec<f32>, Vec<u32>, Vec<f32>)> = None;
    for effort in EFFORTS.into_iter().filter(|effort| n * e <= effort.elements()) {
        let results = run(&plan, effort).unwrap();
        let [probs, indices, weights] = &results[..] else { panic!("{} results", results.len()) };
        assert_eq!((probs.dims(), probs.dtype()), (&[n, e][..], DType::F32));
        assert_eq!((indices.dims(), indices.dtype()), (&[n, k][..], DType::U32));
        assert_eq!((weights.dims(), weights.dtype()), (&[n, k][..], DType::F32));
        let indices: Vec<u32> = indices.flatten_all().unwrap().to_vec1().unwrap();
        let (probs, weights) = (plain(probs), plain(weights));
        match &first {
            Some(first) => {
                assert_bits("probabilities", &probs, &first.0);
                assert_eq!(indices, first.1, "{effort:?}");
                assert_bits("weights", &weights, &first.2);
            }
            None => first = Some((probs, indices, weights)),
        }
    }
    first.unwrap()
}

/// Whether a launch for `logits [n, e]`, contiguous and between NaNs, gives what the reference does.
#[track_caller]
fn check(what: &str, logits: &Tensor, k: usize) {
    let e = logits.dim(1).unwrap();
    for rule in RULES {
        let SoftmaxTopK { renormalise } = rule else { unreachable!() };
        let (mut probs, mut indices, mut weights) = (vec![], vec![], vec![]);
        for row in numbers(logits).chunks(e) {
            let (p, chosen, w) = reference::route_softmax_top_k(row, k, renormalise);
            probs.extend(p);
            indices.extend(chosen);
            weights.extend(w);
        }
        for logits in layouts(logits, DType::F32) {
            let what = format!("{what} {:?}, {k} chosen, {rule:?}", logits.layout());
            let got = routed(&logits, k, rule);
            assert_close(&format!("probabilities of {what}"), &got.0, &probs, EXACT);
            assert_eq!(got.1, indices, "{what}");
            assert_close(&format!("weights of {what}"), &got.2, &weights, EXACT);
            if !renormalise {
                let rows = got.0.chunks(e).zip(got.1.chunks(k));
                let of_chosen: Vec<f32> = rows
                    .flat_map(|(p, chosen)| chosen.iter().map(|&index| p[index as usize]))
                    .collect();
                assert_bits(&format!("weights of {what}"), &got.2, &of_chosen);
            }
        }
    }
}

#[test]
fn router_is_the_reference() {
    for (n, e, k) in ROUTER {
        check("normal", &Data::new(e as u64).tensor(&[n, e]), k);
    }
}

#[test]
fn every_number_of_chosen_experts() {
    for e in [16, 512] {
        let logits = Data::new(e as u64).tensor(&[3, e]);
        (1..=16).for_each(|k| check("every k", &logits, k));
    }
    for e in 1..16 {
        check("all of them", &Data::new(e as u64).tensor(&[5, e]), e);
    }
}

#[test]
fn large_ranges() {
    for (n, e, k) in [(9, 8, 8), (5, 33, 16), (5, 512, 16)] {
        for scale in [30f32, 1e4, 1e37] {
            let mut logits = Data::new(e as u64).normal(n * e);
            logits.iter_mut().for_each(|x| *x *= scale);
            logits[1] = f32::MAX;
            logits[e - 1] = f32::MIN;
            let logits = Tensor::from_vec(logits, (n, e), &Device::Cpu).unwrap();
            check(&format!("× {scale:e}"), &logits, k);
        }
    }
}

#[test]
fn ties_go_to_the_lower_index() {
    for (n, e, k) in [(9, 8, 8), (9, 33, 16), (9, 64, 5), (5, 512, 16)] {
        let mut data = Data::new(e as u64);
        for levels in [1, 2, 3, 40] {
            let logits = (0..n * e).map(|_| data.below(levels) as f32 - 1.0).collect();
            let logits = Tensor::from_vec(logits, (n, e), &Device::Cpu).unwrap();
            check(&format!("{levels} levels"), &logits, k);
        }
    }
    let zeros = Tensor::new(&[[-0f32, 0.0, -0.0, 0.0]], &Device::Cpu).unwrap();
    assert_eq!(routed(&zeros, 4, RULES[0]).1, [0, 1, 2, 3]);
}

#[test]
fn logits_that_are_no_numbers_are_as_on_a_cpu() {
    const VALUES: [f32; 9] = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -f32::NAN,
        0.0,
        -0.0,
        1.0,
        f32::MIN_POSITIVE / 2.0,
        -f32::MIN_POSITIVE / 2.0,
    ];
    let everything = VALUES.len();
    for (e, k) in [(1, 1), (5, 5), (8, 2), (40, 16), (130, 16), (512, 16)] {
        let mut data = Data::new(e as u64);
        // Of one kind, of the first few kinds, and of those that have a softmax.
        let kinds = (0..everything).map(|kind| (kind, 1)).chain([
            (0, 2),
            (0, 3),
            (1, 2),
            (0, everything),
            (2, 1),
            (4, 5),
        ]);
        let mut rows: Vec<f32> = Vec::new();
        for (first, count) in kinds {
            rows.extend((0..e).map(|_| VALUES[first + data.below(count)]));
        }
        // One bad number among good ones, and minus infinity among them.
        for bad in VALUES {
            let start = rows.len();
            rows.extend(data.normal(e));
            rows[start + data.below(e)] = bad;
        }
        let n = rows.len() / e;
        let logits = Tensor::from_vec(rows, (n, e), &Device::Cpu).unwrap();
        for rule in RULES {
            let expected = route(&logits, k, rule).unwrap();
            let (probs, indices, weights) = (
                numbers(&expected.probs),
                expected.indices.flatten_all().unwrap().to_vec1::<u32>().unwrap(),
                numbers(&expected.weights),
            );
            for logits in layouts(&logits, DType::F32) {
                let got = routed(&logits, k, rule);
                assert_eq!(got.1, indices, "{e} {k}");
                for (what, got, expected) in
                    [("probabilities", got.0, &probs), ("weights", got.2, &weights)]
                {
                    for (i, (got, &expected)) in got.into_iter().zip(expected).enumerate() {
                        let what = format!("{what} at {i}, {e} {k}");
                        assert_eq!(got.is_nan(), expected.is_nan(), "{what}");
                        if !got.is_nan() {
                            assert_close(&what, &[got], &[f64::from(expected)], EXACT);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rows_at_other_strides() {
    let mut data = Data::new(3);
    // One row for all tokens, and a part of a wider product.
    let one = data.tensor(&[1, 40]).broadcast_as((6, 40)).unwrap();
    let part = data.tensor(&[7, 100]).narrow(1, 13, 40).unwrap();
    // Every third token, and one expert whose axis has any stride.
    let third = data.tensor(&[5, 3, 8]).narrow(1, 1, 1).unwrap().squeeze(1).unwrap();
    let single = data.tensor(&[1, 9]).t().unwrap();
    for (logits, k) in [(one, 5), (part, 5), (third, 2), (single, 1)] {
        let contiguous = logits.contiguous().unwrap();
        for rule in RULES {
            let (got, expected) = (routed(&logits, k, rule), routed(&contiguous, k, rule));
            assert_bits("probabilities", &got.0, &expected.0);
            assert_eq!(got.1, expected.1);
            assert_bits("weights", &got.2, &expected.2);
        }
        check("strided", &contiguous, k);
    }
}

#[test]
fn no_tokens_are_no_launch() {
    let logits = Tensor::zeros((0, 8), DType::F32, &Device::Cpu).unwrap();
    assert!(plan(&logits, 2, RULES[0]).unwrap().call.is_none());
}

#[test]
fn router_refuses() {
    let mut data = Data::new(1);
    let logits = data.tensor(&[2, 20]);
    for k in [0, 17, 20, 21, usize::MAX] {
        assert!(matches!(plan(&logits, k, RULES[1]), Err(Error::Range { what: "k", .. })), "{k}");
    }
    assert!(plan(&logits, 16, RULES[1]).is_ok());
    let none = data.tensor(&[2, 0]);
    assert!(matches!(plan(&none, 1, RULES[0]), Err(Error::Range { what: "k", .. })));
    let many = data.tensor(&[1, 513]);
    let refused = plan(&many, 1, RULES[0]);
    assert!(matches!(refused, Err(Error::Range { what: "the number of experts", .. })));
    for dtype in [DType::BF16, DType::F16, DType::F64, DType::U32] {
        let other = logits.to_dtype(dtype).unwrap();
        let refused = plan(&other, 1, RULES[0]);
        assert!(matches!(refused, Err(Error::DType { what: "logits", .. })), "{dtype:?}");
    }
    for dims in [&[40][..], &[2, 4, 5], &[]] {
        let other = logits.flatten_all().unwrap();
        let other = other.narrow(0, 0, dims.iter().product()).unwrap().reshape(dims).unwrap();
        let refused = plan(&other, 1, RULES[0]);
        assert!(matches!(refused, Err(Error::Shape { what: "logits", .. })), "{dims:?}");
    }
    let across = data.tensor(&[20, 2]).t().unwrap();
    let refused = plan(&across, 1, RULES[0]);
    assert!(matches!(refused, Err(Error::NonContiguous { what: "logits", .. })));
    let tokens = data.tensor(&[1, 8]).broadcast_as((1 << 32, 8)).unwrap();
    assert!(matches!(plan(&tokens, 1, RULES[0]), Err(Error::Range { .. })));
}
