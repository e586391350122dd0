use candle_core::{DType, Device, Tensor};
use hooks::{Statistic, SummaryOptions};
use kernels::Error;
use kernels::attention::AttentionOptions;
use kernels::cuda::attention_pattern::QueriesAndKeys;
use kernels::cuda::attention_summary::{Products, boundaries, join, plan};
use testkit::cases::Attention;
use testkit::{Data, Tolerance, assert_bits, assert_close};

use super::queries::{Batch, Inputs, SUMMARY, cases, greedy, of, words};
use super::{DTYPES, numbers};
use crate::machine::{EFFORTS, Effort, run};

/// The ways to the products of a dtype.
fn ways(dtype: DType, d: usize) -> Vec<Products> {
    match Products::of(dtype, d) {
        Products::TensorCores => vec![Products::TensorCores, Products::Plain],
        Products::Plain => vec![Products::Plain],
    }
}

/// The summary `[batch, head, pos, statistic]` of both launches.
fn summary(
    inputs: &Inputs,
    options: &AttentionOptions,
    window: usize,
    boundaries: &Tensor,
    products: Products,
    effort: Effort,
) -> Tensor {
    let (input, lse) = (of(inputs), &inputs[4]);
    let sums = run(&plan(input, options, lse, window, boundaries, products).unwrap(), effort);
    let sums: [Tensor; 3] = sums.unwrap().try_into().unwrap();
    run(&join(input, options, &sums).unwrap(), effort).unwrap().remove(0)
}

/// One statistic of `values [.., statistic]`.
fn of_statistic<T: Copy>(values: &[T], statistic: Statistic) -> Vec<T> {
    values.iter().skip(statistic.index()).step_by(Statistic::COUNT).copied().collect()
}

/// Efforts for which a batch takes little time; its products are what takes it.
fn affordable(batch: &Batch) -> Vec<Effort> {
    let size = batch.case.lengths.len() * batch.case.heads * batch.t * batch.s;
    EFFORTS.into_iter().filter(|effort| size / 4 <= effort.elements()).collect()
}

/// Whether a batch's summary is the reference, for all efforts the same bits.
#[track_caller]
fn check(
    what: &str,
    batch: &Batch,
    summary_options: SummaryOptions,
    products: Products,
    efforts: &[Effort],
) {
    assert!(!efforts.is_empty());
    let tolerance = batch.tolerance();
    let rows = batch.case.lengths.len();
    let of_rows: Vec<usize> = boundaries(summary_options, &[], rows).collect();
    let of_rows = words(&of_rows);
    for inputs in &batch.inputs {
        let mut first: Option<Vec<f32>> = None;
        for &effort in efforts {
            let (options, window) = (&batch.options, summary_options.window);
            let got = summary(inputs, options, window, &of_rows, products, effort);
            assert_eq!(got.dims(), [rows, batch.case.heads, batch.t, Statistic::COUNT]);
            let got = numbers(&got);
            match &first {
                Some(first) => assert_bits(&format!("{what} {effort:?}"), &got, first),
                None => {
                    for statistic in Statistic::ALL {
                        let name = format!("{} of {what}, {products:?}", statistic.name());
                        let expected = of_statistic(&batch.expected.summary, statistic);
                        assert_close(&name, &of_statistic(&got, statistic), &expected, tolerance);
                    }
                    first = Some(got);
                }
            }
        }
    }
}

#[test]
fn every_statistic_is_the_reference() {
    for case in cases() {
        for dtype in DTYPES {
            let batch = Batch::new(case, dtype, SUMMARY);
            let efforts = affordable(&batch);
            if efforts.is_empty() {
                continue;
            }
            for products in ways(dtype, case.d_head) {
                // The other dtypes differ in no step between threads.
                let both = [(DType::F32, Products::Plain), (DType::BF16, Products::TensorCores)];
                let n = if both.contains(&(dtype, products)) { efforts.len() } else { 1 };
                check(&format!("{case:?} {dtype:?}"), &batch, SUMMARY, products, &efforts[..n]);
            }
        }
    }
}

const MEDIUM: Attention = Attention {
    heads: 2,
    kv_heads: 1,
    d_head: 16,
    d_value: 16,
    lengths: &[290, 140],
    offsets: &[0, 37],
    window: None,
    soft_cap: None,
    sharpness: 1.0,
    bench: false,
};

#[test]
fn windows_and_boundaries_fall_anywhere() {
    const WINDOWS: [usize; 11] = [0, 1, 31, 32, 33, 64, 100, 128, 129, 1000, usize::MAX];
    const BOUNDARIES: [usize; 9] = [0, 1, 31, 32, 33, 63, 64, 65, 400];
    let case = Attention { heads: 1, lengths: &[190], offsets: &[37], ..MEDIUM };
    for (i, window) in WINDOWS.into_iter().enumerate() {
        for boundary in [BOUNDARIES[i % 9], BOUNDARIES[(i + 4) % 9]] {
            let options = SummaryOptions { window, boundary: Some(boundary) };
            let batch = Batch::new(case, DType::BF16, options);
            for products in ways(DType::BF16, 16) {
                check(&format!("{options:?}"), &batch, options, products, &EFFORTS);
            }
        }
    }
    let options = SummaryOptions { window: 16, boundary: None };
    let batch = Batch::new(case, DType::BF16, options);
    check("no boundary", &batch, options, Products::TensorCores, &EFFORTS);
}

#[test]
fn sliding_windows_fall_anywhere() {
    let case = Attention { heads: 1, lengths: &[190], offsets: &[37], ..MEDIUM };
    for window in [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 226, 227, 228, usize::MAX] {
        let batch = Batch::new(Attention { window: Some(window), ..case }, DType::F16, SUMMARY);
        for products in ways(DType::F16, 16) {
            check(&format!("window {window}"), &batch, SUMMARY, products, &EFFORTS);
        }
    }
}

#[test]
fn a_row_may_have_a_boundary_of_its_own() {
    let own = [None, Some(100)];
    let rows: Vec<usize> = boundaries(SUMMARY, &own, 3).collect();
    assert_eq!(rows, [4, 100, 4]);
    let none = SummaryOptions { boundary: None, ..SUMMARY };
    assert_eq!(boundaries(none, &[], 2).collect::<Vec<_>>(), [0, 0]);

    let batch = Batch::new(MEDIUM, DType::BF16, SUMMARY);
    let inputs = &batch.inputs[0];
    let run = |of_rows: &[usize]| {
        let tensor = words(of_rows);
        let products = Products::TensorCores;
        numbers(&summary(inputs, &batch.options, SUMMARY.window, &tensor, products, EFFORTS[0]))
    };
    let (mixed, first, second) = (run(&rows[..2]), run(&[4, 4]), run(&[100, 100]));
    let half = mixed.len() / 2;
    assert_bits("first row", &mixed[..half], &first[..half]);
    assert_bits("second row", &mixed[half..], &second[half..]);
}

#[test]
fn long_rows_are_as_exact_as_short_ones() {
    // Flat, as equal keys make it, and peaked; sums over 8,192 keys and columns over 130 queries
    // behind them, which see them all.
    for (what, sharpness) in [("flat", 0.0), ("smooth", 1.0), ("peaked", 12.0)] {
        let case = Attention {
            heads: 1,
            lengths: &[130],
            offsets: &[8190],
            d_head: 2,
            sharpness,
            ..MEDIUM
        };
        let summary = SummaryOptions { window: 4096, boundary: Some(5000) };
        for dtype in [DType::F32, DType::BF16] {
            let batch = Batch::new(case, dtype, summary);
            for products in ways(dtype, 2) {
                let efforts = &EFFORTS[..1];
                check(&format!("{what} {dtype:?}"), &batch, summary, products, efforts);
            }
        }
    }
}

#[test]
fn many_tiles_are_dealt_to_few_blocks() {
    // More than 32 tiles of queries: blocks have several, in both directions.
    let case = Attention {
        heads: 1,
        lengths: &[2200],
        offsets: &[0],
        d_head: 2,
        window: Some(70),
        ..MEDIUM
    };
    let batch = Batch::new(case, DType::F32, SUMMARY);
    check("many tiles", &batch, SUMMARY, Products::Plain, &EFFORTS[..2]);
    let case = Attention { lengths: &[4200], ..case };
    let batch = Batch::new(case, DType::BF16, SUMMARY);
    check("many tiles", &batch, SUMMARY, Products::TensorCores, &EFFORTS[..2]);
    // Where every tile of queries sees every tile of keys before it.
    let case = Attention { lengths: &[2200], window: None, ..case };
    let batch = Batch::new(case, DType::F32, SUMMARY);
    check("many tiles", &batch, SUMMARY, Products::Plain, &EFFORTS[..1]);
}

#[test]
fn columns_share_out_all_rows() {
    let case = Attention { lengths: &[700], offsets: &[0], ..MEDIUM };
    let batch = Batch::new(case, DType::BF16, SUMMARY);
    for products in ways(DType::BF16, 16) {
        let (inputs, none) = (&batch.inputs[0], words(&[0]));
        let got = summary(inputs, &batch.options, 1, &none, products, EFFORTS[0]);
        let columns = of_statistic(&numbers(&got), Statistic::ColumnSum);
        for columns in columns.chunks(batch.t) {
            let total: f64 = columns.iter().map(|&x| f64::from(x)).sum();
            assert!((total - 700.0).abs() <= 1e-3, "{total}");
        }
    }
}

#[test]
fn underflow_keeps_its_logarithm() {
    let q = Tensor::new(&[[[[1f32]], [[1.0]]]], &Device::Cpu).unwrap();
    let k = Tensor::new(&[[[[500f32]], [[0.0]]]], &Device::Cpu).unwrap();
    let case = Attention { heads: 1, lengths: &[2], offsets: &[0], d_head: 1, ..MEDIUM };
    for dtype in DTYPES {
        let batch = Batch::of(case, [q.clone(), k.clone()], dtype, SUMMARY, None);
        for products in ways(dtype, 1) {
            for inputs in &batch.inputs {
                let none = words(&[0]);
                let got = summary(inputs, &batch.options, 10, &none, products, EFFORTS[0]);
                let second = &numbers(&got)[Statistic::COUNT..];
                assert_eq!(second[Statistic::Diagonal.index()], 0.0);
                assert_eq!(second[Statistic::LogDiagonal.index()], -500.0);
                assert_eq!(second[Statistic::Entropy.index()], 0.0);
                assert_eq!(second[Statistic::FirstToken.index()], 1.0);
            }
        }
    }
}

#[test]
fn scores_beyond_numbers_weigh_nothing() {
    // The product of the second query and the second key is minus infinity.
    let q = Tensor::new(&[[[[1e30f32]], [[1e30]], [[1e30]]]], &Device::Cpu).unwrap();
    let k = Tensor::new(&[[[[0f32]], [[-1e30]], [[0.0]]]], &Device::Cpu).unwrap();
    let case =
        Attention { heads: 1, kv_heads: 1, lengths: &[3], offsets: &[0], d_head: 1, ..MEDIUM };
    for dtype in [DType::F32, DType::BF16] {
        let mut batch = Batch::of(case, [q.clone(), k.clone()], dtype, SUMMARY, None);
        let lse = Tensor::new(&[[[0f32, 0.0, std::f32::consts::LN_2]]], &Device::Cpu).unwrap();
        batch.inputs[0][4] = lse;
        for products in ways(dtype, 1) {
            let (inputs, none) = (&batch.inputs[0], words(&[0]));
            let got = numbers(&summary(inputs, &batch.options, 1, &none, products, EFFORTS[0]));
            let of = |statistic| of_statistic(&got, statistic);
            let rounding = Tolerance::absolute(1e-6, "one exponential");
            let ln_2 = std::f64::consts::LN_2;
            assert_close("entropy", &of(Statistic::Entropy), &[0.0, 0.0, ln_2], rounding);
            assert_close("columns", &of(Statistic::ColumnSum), &[2.5, 0.0, 0.5], rounding);
            assert_close("distance", &of(Statistic::Distance), &[0.0, 1.0, 1.0], rounding);
            assert_eq!(of(Statistic::LogDiagonal)[1], f32::NEG_INFINITY);
        }
    }
}

#[test]
fn a_query_that_is_no_number_stays_in_its_row_of_the_batch() {
    let case = Attention { lengths: &[40, 40], offsets: &[0, 0], kv_heads: 2, ..MEDIUM };
    for dtype in DTYPES {
        let batch = Batch::new(case, dtype, SUMMARY);
        for products in ways(dtype, 16) {
            let of_rows = words(&[4, 4]);
            let run = |inputs: &Inputs| {
                let (options, window) = (&batch.options, SUMMARY.window);
                numbers(&summary(inputs, options, window, &of_rows, products, EFFORTS[0]))
            };
            let clean = run(&batch.inputs[0]);
            let mut bad = batch.inputs[0].clone();
            let mut lse = numbers(&bad[4]);
            lse[5] = f32::NAN;
            bad[4] = Tensor::from_vec(lse, bad[4].dims(), &Device::Cpu).unwrap();
            let dirty = run(&bad);
            let half = clean.len() / 2;
            assert_bits("other row", &dirty[half..], &clean[half..]);
            let of_query = &dirty[5 * Statistic::COUNT..6 * Statistic::COUNT];
            assert!(of_query.iter().all(|value| value.is_nan()), "{of_query:?}");
            assert_bits("the query before", &dirty[..8], &clean[..8]);
        }
    }
}

#[test]
fn a_log_sum_exp_with_a_sink_has_all_that_a_sink_needs() {
    let batch = Batch::with_sinks(MEDIUM, DType::BF16, SUMMARY, Some(&[2.0, -1.0]));
    for products in ways(DType::BF16, 16) {
        check("beside a sink", &batch, SUMMARY, products, &EFFORTS[..1]);
    }
}

#[test]
fn lengths_and_offsets_that_do_not_fit_count_as_those_that_do() {
    for dtype in DTYPES {
        let (mut batch, [lengths, offsets]) = greedy(dtype);
        for inputs in &mut batch.inputs {
            (inputs[2], inputs[3]) = (lengths.clone(), offsets.clone());
        }
        for products in ways(dtype, 8) {
            check("greedy", &batch, SUMMARY, products, &EFFORTS);
        }
    }
}

#[test]
fn nothing_to_summarise_is_no_launch() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
    for (b, t, h) in [(0, 3, 2), (2, 0, 2), (2, 3, 0)] {
        let (q, lse, of_rows) = (zeros(&[b, t, h, 4]), zeros(&[b, h, t]), words(&vec![0; b]));
        let input = QueriesAndKeys { q: &q, k: &q, lengths: &of_rows, offsets: &of_rows };
        let first = plan(input, &options, &lse, 1, &of_rows, Products::Plain).unwrap();
        assert!(first.call.is_none());
        let sums: [Tensor; 3] = run(&first, EFFORTS[0]).unwrap().try_into().unwrap();
        let second = join(input, &options, &sums).unwrap();
        assert!(second.call.is_none());
        assert_eq!(second.outputs, [(DType::F32, vec![b, h, t, Statistic::COUNT])]);
    }
}

#[test]
fn attention_summary_refuses() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    let (q, k) = (zeros(&[2, 3, 4, 8], DType::F16), zeros(&[2, 5, 2, 8], DType::F16));
    let (of_rows, lse) = (words(&[3, 3]), zeros(&[2, 4, 3], DType::F32));
    let good = QueriesAndKeys { q: &q, k: &k, lengths: &of_rows, offsets: &of_rows };
    let options = AttentionOptions { scale: 1.0, window: None, soft_cap: None };
    let tensor_cores = Products::TensorCores;
    assert!(plan(good, &options, &lse, 9, &of_rows, tensor_cores).is_ok());

    let one = words(&[3]);
    let error = plan(good, &options, &lse, 9, &one, tensor_cores).unwrap_err();
    assert!(matches!(error, Error::Shape { what: "boundaries", .. }));
    let floats = zeros(&[2], DType::F32);
    let error = plan(good, &options, &lse, 9, &floats, tensor_cores).unwrap_err();
    assert!(matches!(error, Error::DType { what: "boundaries", .. }));
    let error = plan(good, &options, &floats, 9, &of_rows, tensor_cores).unwrap_err();
    assert!(matches!(error, Error::Shape { what: "lse", .. }));
    let flat = zeros(&[2, 5, 16], DType::F16);
    let error =
        plan(QueriesAndKeys { k: &flat, ..good }, &options, &lse, 9, &of_rows, tensor_cores);
    assert!(matches!(error, Err(Error::Shape { what: "k", .. })));

    let (single_q, single_k) = (zeros(&[2, 3, 4, 8], DType::F32), zeros(&[2, 5, 2, 8], DType::F32));
    let single = QueriesAndKeys { q: &single_q, k: &single_k, ..good };
    let error = plan(single, &options, &lse, 9, &of_rows, tensor_cores).unwrap_err();
    assert!(matches!(error, Error::Range { what: "dtype", .. }));
    assert!(plan(single, &options, &lse, 9, &of_rows, Products::Plain).is_ok());
    let (wide_q, wide_k) = (zeros(&[2, 3, 4, 257], DType::F16), zeros(&[2, 5, 2, 257], DType::F16));
    let wide = QueriesAndKeys { q: &wide_q, k: &wide_k, ..good };
    let error = plan(wide, &options, &lse, 9, &of_rows, tensor_cores).unwrap_err();
    assert!(matches!(error, Error::Range { what: "the width of a head", .. }));
    assert_eq!(Products::of(DType::F16, 257), Products::Plain);

    for (window, soft_cap) in [(Some(0), None), (None, Some(0.0)), (None, Some(f64::NAN))] {
        let options = AttentionOptions { scale: 1.0, window, soft_cap };
        let error = plan(good, &options, &lse, 9, &of_rows, tensor_cores);
        assert!(matches!(error, Err(Error::Range { .. })));
    }
    let sums = [
        zeros(&[1, 2, 4, 3, 5], DType::F32),
        zeros(&[2, 4, 3, 2], DType::F32),
        zeros(&[2, 4, 1, 3], DType::F32),
    ];
    assert!(join(good, &options, &sums).is_ok());
    for (place, what) in ["sums", "points", "columns"].into_iter().enumerate() {
        let mut sums = sums.clone();
        sums[place] = zeros(&[1, 2, 4, 3, 4], DType::F32);
        let Error::Shape { what: refused, .. } = join(good, &options, &sums).unwrap_err() else {
            panic!("another error than of {what}")
        };
        assert_eq!(refused, what);
    }
    let most = (1 << 30) + 1;
    let long = Data::new(1).tensor(&[1, 1, 1, 8]).broadcast_as((1, most, 1, 8)).unwrap();
    let (q, lse) = (zeros(&[1, 1, 1, 8], DType::F32), zeros(&[1, 1, 1], DType::F32));
    let long = QueriesAndKeys { q: &q, k: &long, lengths: &one, offsets: &one };
    let error = plan(long, &options, &lse, 9, &one, Products::Plain).unwrap_err();
    assert!(matches!(error, Error::Range { what: "the number of keys", .. }));
}
