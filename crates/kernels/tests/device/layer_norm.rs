use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::cuda::layer_norm::plan;
use kernels::reference;
use testkit::cases::{NORM_ROWS, NORM_WIDTHS};
use testkit::{Data, Tolerance};

use super::{DTYPES, check, layouts, numbers, rounded};

const EXACT: Tolerance = Tolerance {
    absolute: 1e-6,
    relative: 0.0,
    of_max: 3e-6,
    reason: "f32 sums over threads; differences from the mean and against the bias may cancel",
};

#[test]
fn layer_norm_is_the_reference() {
    for dtype in DTYPES {
        for d in NORM_WIDTHS {
            for n in NORM_ROWS {
                // Far from 0 the spread is a millionth of the values; f16 ends at 65,504.
                for offset in [0f32, -3e3, 1e6] {
                    if dtype == DType::F16 && offset == 1e6 {
                        continue;
                    }
                    let mut data = Data::new(d as u64);
                    let mut x = data.skewed(n * d);
                    x.iter_mut().for_each(|x| *x += offset);
                    let x = Tensor::from_vec(x, (n, d), &Device::Cpu).unwrap();
                    let (weight, bias) = (data.tensor(&[d]), data.tensor(&[d]));
                    let (w, b) = (numbers(&weight), numbers(&bias));
                    let xs = layouts(&x, dtype);
                    for biased in [false, true] {
                        let expected: Vec<f64> = numbers(&xs[0])
                            .chunks(d)
                            .flat_map(|row| {
                                reference::layer_norm(row, &w, biased.then_some(&b), 1e-5)
                            })
                            .collect();
                        let inputs = xs.clone().map(|x| vec![x, weight.clone(), bias.clone()]);
                        let what = format!("{n} × {d} at {offset}, bias: {biased}");
                        let tolerance = rounded(dtype, EXACT);
                        check(
                            &what,
                            |inputs| plan_of(inputs, biased),
                            inputs,
                            &expected,
                            tolerance,
                        );
                    }
                }
            }
        }
    }
}

fn plan_of(inputs: &[Tensor], biased: bool) -> kernels::cuda::Plan<'_> {
    plan(&inputs[0], &inputs[1], biased.then_some(&inputs[2]), 1e-5).unwrap()
}

#[test]
fn equal_numbers_leave_the_bias() {
    for dtype in DTYPES {
        let mut data = Data::new(1);
        let (weight, bias) = (data.tensor(&[300]), data.tensor(&[300]));
        let x = Tensor::full(3e4f32, (2, 300), &Device::Cpu).unwrap();
        let expected: Vec<f64> = numbers(&bias).repeat(2).into_iter().map(f64::from).collect();
        let inputs = layouts(&x, dtype).map(|x| vec![x, weight.clone(), bias.clone()]);
        let exact = Tolerance::absolute(0.0, "nothing but the bias");
        check("equal", |inputs| plan_of(inputs, true), inputs, &expected, rounded(dtype, exact));
    }
}

#[test]
fn layer_norm_refuses() {
    let mut data = Data::new(1);
    let (x, weight, short) = (data.tensor(&[2, 3]), data.tensor(&[3]), data.tensor(&[2]));
    assert!(matches!(plan(&x, &short, None, 1e-5), Err(Error::Shape { what: "weight", .. })));
    let refused = plan(&x, &weight, Some(&short), 1e-5);
    assert!(matches!(refused, Err(Error::Shape { what: "bias", .. })));
}
