use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::cuda::rms_norm::plan;
use kernels::reference;
use testkit::cases::{NORM_ROWS, NORM_WIDTHS};
use testkit::{Data, Tolerance};

use super::{DTYPES, check, layouts, numbers, rounded};

const EXACT: Tolerance =
    Tolerance::relative(3e-6, "an f32 sum of squares over threads, four f32 roundings");

#[test]
fn rms_norm_is_the_reference() {
    for dtype in DTYPES {
        for d in NORM_WIDTHS {
            for n in NORM_ROWS {
                let mut data = Data::new(d as u64);
                let x = Tensor::from_vec(data.skewed(n * d), (n, d), &Device::Cpu).unwrap();
                let weight = data.tensor(&[d]);
                let w = numbers(&weight);
                let xs = layouts(&x, dtype);
                let expected: Vec<f64> = numbers(&xs[0])
                    .chunks(d)
                    .flat_map(|row| reference::rms_norm(row, &w, 1e-5))
                    .collect();
                let inputs = xs.map(|x| vec![x, weight.clone()]);
                check(
                    &format!("{n} × {d}"),
                    |inputs| plan(&inputs[0], &inputs[1], 1e-5).unwrap(),
                    inputs,
                    &expected,
                    rounded(dtype, EXACT),
                );
            }
        }
    }
}

#[test]
fn heads_in_a_fused_projection() {
    // Queries, keys and values side by side, and heads before positions.
    for (dtype, d) in [(DType::F32, 33), (DType::BF16, 64)] {
        let mut data = Data::new(2);
        let (fused, weight) = (data.tensor(&[2, 5, 7, d]), data.tensor(&[d]));
        for fused in layouts(&fused, dtype) {
            let view = fused.narrow(2, 1, 4).unwrap();
            let turned = view.transpose(1, 2).unwrap();
            for x in [view, turned] {
                let expected: Vec<f64> = numbers(&x)
                    .chunks(d)
                    .flat_map(|row| reference::rms_norm(row, &numbers(&weight), 1e-6))
                    .collect();
                let inputs = [vec![x.clone(), weight.clone()], vec![x, weight.clone()]];
                check(
                    "heads",
                    |inputs| plan(&inputs[0], &inputs[1], 1e-6).unwrap(),
                    inputs,
                    &expected,
                    rounded(dtype, EXACT),
                );
            }
        }
    }
}

#[test]
fn rms_norm_refuses() {
    let mut data = Data::new(1);
    let (x, weight, short) = (data.tensor(&[2, 3]), data.tensor(&[3]), data.tensor(&[2]));
    assert!(matches!(plan(&x, &short, 1e-5), Err(Error::Shape { what: "weight", .. })));
    let half = weight.to_dtype(DType::F16).unwrap();
    assert!(matches!(plan(&x, &half, 1e-5), Err(Error::DType { what: "weight", .. })));
    let across = data.tensor(&[3, 2]).t().unwrap();
    assert!(matches!(plan(&across, &weight, 1e-5), Err(Error::NonContiguous { .. })));
    let whole = x.to_dtype(DType::U8).unwrap();
    assert!(matches!(plan(&whole, &weight, 1e-5), Err(Error::Range { what: "dtype", .. })));
}
