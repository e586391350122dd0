use candle_core::{Device, Tensor};
use kernels::cuda::softmax::plan;
use kernels::reference;
use testkit::cases::{NORM_ROWS, NORM_WIDTHS};
use testkit::{Data, Tolerance};

use super::{DTYPES, check, layouts, numbers, rounded};

const EXACT: Tolerance = Tolerance {
    absolute: 1e-38,
    relative: 1e-5,
    of_max: 0.0,
    reason: "an f32 exponential of a rounded difference up to 100; an f32 sum; subnormal results",
};

#[test]
fn softmax_is_the_reference() {
    for dtype in DTYPES {
        for d in NORM_WIDTHS {
            for n in NORM_ROWS {
                let mut x = Data::new(d as u64).normal(n * d);
                x.iter_mut().skip(1).step_by(5).for_each(|x| *x *= 5.0);
                x.iter_mut().skip(3).step_by(7).for_each(|x| *x = f32::NEG_INFINITY);
                let x = Tensor::from_vec(x, (n, d), &Device::Cpu).unwrap();
                let xs = layouts(&x, dtype);
                let expected: Vec<f64> =
                    numbers(&xs[0]).chunks(d).flat_map(reference::softmax).collect();
                // A row of minus infinities alone has no softmax.
                if expected.iter().any(|p| p.is_nan()) {
                    continue;
                }
                let inputs = xs.map(|x| vec![x]);
                check(
                    &format!("{n} × {d}"),
                    |inputs| plan(&inputs[0]).unwrap(),
                    inputs,
                    &expected,
                    rounded(dtype, EXACT),
                );
            }
        }
    }
}

#[test]
fn rows_without_a_softmax_are_nan() {
    let rows = [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]];
    for dtype in DTYPES {
        let x = Tensor::new(&rows, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let y = crate::machine::run(&plan(&x).unwrap(), crate::machine::EFFORTS[0]).unwrap();
        let y = numbers(&y[0]);
        assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
    }
}
