use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::activation::ActivationFunction;
use kernels::cuda::activation::plan;
use kernels::reference;
use testkit::cases::{GATED, SIZES};
use testkit::{Data, Tolerance, assert_close};

use super::{DTYPES, check, layouts, numbers, rounded};
use crate::machine::{EFFORTS, run};

const FUNCTIONS: [ActivationFunction; 4] = [
    ActivationFunction::Silu,
    ActivationFunction::Gelu,
    ActivationFunction::GeluTanh,
    ActivationFunction::Relu,
];

/// Of `f(x)`, as a share of `|x|`.
const OF_X: f64 = 8.0 * f32::EPSILON as f64;
const REASON: &str = "8 ulps of |x|: one exponential, one division, a polynomial";

#[test]
fn activations_are_the_reference() {
    for dtype in DTYPES {
        for f in FUNCTIONS {
            for n in SIZES {
                let x = Tensor::from_vec(Data::new(n as u64).skewed(n), n, &Device::Cpu).unwrap();
                for x in layouts(&x, dtype) {
                    let y = run(&plan(f, &x, None).unwrap(), EFFORTS[n % EFFORTS.len()]).unwrap();
                    for (x, y) in numbers(&x).into_iter().zip(numbers(&y[0])) {
                        let expected = reference::activation(f, f64::from(x));
                        let exact = Tolerance::absolute(OF_X * f64::from(x.abs()), REASON);
                        let what = format!("{f:?} at {x}, {dtype:?}");
                        assert_close(&what, &[y], &[expected], rounded(dtype, exact));
                    }
                }
            }
        }
    }
}

#[test]
fn activations_at_the_edges() {
    for dtype in DTYPES {
        let x = Tensor::new(&[f32::NAN, 0.0, -200.0, 200.0, f32::INFINITY], &Device::Cpu).unwrap();
        let x = x.to_dtype(dtype).unwrap();
        for f in FUNCTIONS {
            let y = numbers(&run(&plan(f, &x, None).unwrap(), EFFORTS[0]).unwrap()[0]);
            assert!(y[0].is_nan(), "{f:?}");
            assert_eq!(y[1..4], [0.0, 0.0, 200.0], "{f:?}");
            assert_eq!(y[4], f32::INFINITY, "{f:?}");
        }
    }
}

#[test]
fn gated_halves_of_one_tensor() {
    for dtype in DTYPES {
        for f in FUNCTIONS {
            for (n, d) in GATED {
                let mut data = Data::new(d as u64);
                let fused = layouts(&data.tensor(&[n, 2 * d]), dtype);
                let halves = fused.map(|fused| {
                    vec![fused.narrow(1, 0, d).unwrap(), fused.narrow(1, d, d).unwrap()]
                });
                let (gates, ups) = (numbers(&halves[0][0]), numbers(&halves[0][1]));
                let expected: Vec<f64> = gates
                    .iter()
                    .zip(&ups)
                    .map(|(&gate, &up)| reference::activation(f, f64::from(gate)) * f64::from(up))
                    .collect();
                let exact = Tolerance::of_max(OF_X, REASON);
                check(
                    &format!("{f:?} {n} × {d}"),
                    |inputs| plan(f, &inputs[0], Some(&inputs[1])).unwrap(),
                    halves,
                    &expected,
                    rounded(dtype, exact),
                );
            }
        }
    }
}

#[test]
fn gated_refuses() {
    let mut data = Data::new(1);
    let (gate, up) = (data.tensor(&[2, 3]), data.tensor(&[2, 4]));
    let refused = plan(ActivationFunction::Silu, &gate, Some(&up));
    assert!(matches!(refused, Err(Error::Shape { what: "up", .. })));
    let half = gate.to_dtype(DType::F16).unwrap();
    let refused = plan(ActivationFunction::Silu, &gate, Some(&half));
    assert!(matches!(refused, Err(Error::DType { what: "up", .. })));
}
