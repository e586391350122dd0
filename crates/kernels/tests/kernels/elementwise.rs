use candle_core::{Device, Tensor};
use kernels::Error;
use kernels::activation::{ActivationFunction, activate, gated};
use kernels::elementwise::{add, scale, soft_cap};
use kernels::norm::{layer_norm, rms_norm};
use kernels::reference;
use kernels::rotary::{RotaryTables, rotary};
use testkit::cases::{NORM_ROWS, NORM_WIDTHS, ROTARY};
use testkit::{Data, Tolerance, assert_close, assert_tensor_bits, assert_tensor_close, guarded};

use crate::on_threads;

const FUNCTIONS: [ActivationFunction; 4] = [
    ActivationFunction::Silu,
    ActivationFunction::Gelu,
    ActivationFunction::GeluTanh,
    ActivationFunction::Relu,
];

#[test]
fn activations_are_the_reference() {
    for f in FUNCTIONS {
        for n in testkit::cases::SIZES {
            let mut data = Data::new(n as u64);
            let x = data.skewed(n);
            let expected: Vec<f64> =
                x.iter().map(|&x| reference::activation(f, f64::from(x))).collect();
            let x = Tensor::from_vec(x, n, &Device::Cpu).unwrap();
            let y: Vec<f32> = activate(f, &guarded(&x)).unwrap().to_vec1().unwrap();
            let scale: Vec<f32> = x.to_vec1().unwrap();
            for ((y, expected), x) in y.iter().zip(&expected).zip(scale) {
                let tolerance = Tolerance::absolute(
                    8.0 * f64::from(f32::EPSILON) * f64::from(x.abs()),
                    "8 ulps of |x|: one exponential, one division, a polynomial",
                );
                assert_close(&format!("{f:?} at {x}"), &[*y], &[*expected], tolerance);
            }
        }
    }
}

#[test]
fn activations_at_the_edges() {
    let x = Tensor::new(&[f32::NAN, 0.0, -200.0, 200.0, f32::INFINITY], &Device::Cpu).unwrap();
    for f in FUNCTIONS {
        let y: Vec<f32> = activate(f, &x).unwrap().to_vec1().unwrap();
        assert!(y[0].is_nan(), "{f:?}");
        assert_eq!(y[1..4], [0.0, 0.0, 200.0], "{f:?}");
        assert_eq!(y[4], f32::INFINITY, "{f:?}");
    }
}

#[test]
fn gated_halves_of_one_tensor() {
    for f in FUNCTIONS {
        for (n, d) in testkit::cases::GATED {
            let mut data = Data::new(d as u64);
            let fused = guarded(&data.tensor(&[n, 2 * d]));
            let (gate, up) = (fused.narrow(1, 0, d).unwrap(), fused.narrow(1, d, d).unwrap());
            let y = gated(f, &gate, &up).unwrap();
            let (gates, ups) = (gate.contiguous().unwrap(), up.contiguous().unwrap());
            let expected = (activate(f, &gates).unwrap() * &ups).unwrap();
            assert_tensor_bits(&format!("{f:?} {n} × {d}"), &y, &expected);
            let again = on_threads(1, || gated(f, &gate, &up).unwrap());
            assert_tensor_bits("threads", &again, &y);
        }
    }
    let mut data = Data::new(1);
    let (gate, up) = (data.tensor(&[2, 3]), data.tensor(&[2, 4]));
    let result = gated(ActivationFunction::Silu, &gate, &up);
    assert!(matches!(result, Err(Error::Shape { what: "up", .. })));
}

#[test]
fn sums_multiples_and_caps_are_the_reference() {
    for n in testkit::cases::SIZES {
        let mut data = Data::new(n as u64);
        let fused = guarded(&data.tensor(&[3, 2 * n]));
        let (x, y) = (fused.narrow(1, 0, n).unwrap(), fused.narrow(1, n, n).unwrap());
        let numbers = |x: &Tensor| -> Vec<f64> {
            let numbers: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
            numbers.into_iter().map(f64::from).collect()
        };
        let (xs, ys) = (numbers(&x), numbers(&y));
        let sums: Vec<f64> = xs.iter().zip(&ys).map(|(x, y)| x + y).collect();
        let once = Tolerance::relative(6e-8, "one rounding");
        assert_tensor_close("add", &add(&x, &y).unwrap(), &[3, n], &sums, once);
        let multiples: Vec<f64> = xs.iter().map(|x| -12.3 * x).collect();
        let twice = Tolerance::relative(1.2e-7, "the factor's rounding and the product's");
        assert_tensor_close("scale", &scale(&x, -12.3).unwrap(), &[3, n], &multiples, twice);
        for cap in [0.1, 30.0] {
            let capped: Vec<f64> = xs.iter().map(|&x| reference::soft_cap(x, cap)).collect();
            let tolerance = Tolerance::relative(5e-7, "3 ulps of tanh, four roundings");
            let result = soft_cap(&x, cap).unwrap();
            assert_tensor_close(&format!("cap {cap}"), &result, &[3, n], &capped, tolerance);
        }
        let again = on_threads(1, || add(&x, &y).unwrap());
        assert_tensor_bits("threads", &again, &add(&x, &y).unwrap());
    }
    let x = Tensor::new(&[f32::NAN, f32::INFINITY, 1e30], &Device::Cpu).unwrap();
    let capped: Vec<f32> = soft_cap(&x, 50.0).unwrap().to_vec1().unwrap();
    assert!(capped[0].is_nan());
    assert_eq!(capped[1..], [50.0, 50.0]);
    for cap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(soft_cap(&x, cap), Err(Error::Range { what: "cap", .. })), "{cap}");
    }
    let narrow = x.narrow(0, 0, 2).unwrap();
    assert!(matches!(add(&x, &narrow), Err(Error::Shape { what: "y", .. })));
}

#[test]
fn layer_norm_is_the_reference() {
    for d in NORM_WIDTHS {
        for n in NORM_ROWS {
            // Far from 0 the spread is a millionth of the values.
            for offset in [0f32, -3e3, 1e6] {
                let mut data = Data::new(d as u64);
                let mut x = data.skewed(n * d);
                x.iter_mut().for_each(|x| *x += offset);
                let x = Tensor::from_vec(x, (n, d), &Device::Cpu).unwrap();
                let (weight, bias) = (data.tensor(&[d]), data.tensor(&[d]));
                let (w, b): (Vec<f32>, Vec<f32>) =
                    (weight.to_vec1().unwrap(), bias.to_vec1().unwrap());
                for biased in [false, true] {
                    let expected: Vec<f64> = (0..n)
                        .flat_map(|i| {
                            let row: Vec<f32> = x.get(i).unwrap().to_vec1().unwrap();
                            reference::layer_norm(&row, &w, biased.then_some(&b), 1e-5)
                        })
                        .collect();
                    let bias = biased.then(|| guarded(&bias));
                    let y = layer_norm(&guarded(&x), &guarded(&weight), bias.as_ref(), 1e-5);
                    let y = y.unwrap();
                    let tolerance = Tolerance {
                        absolute: if biased { 1e-6 } else { 1e-12 },
                        relative: 3e-7,
                        of_max: 0.0,
                        reason: "three f32 roundings; against the bias the product may cancel",
                    };
                    let what = format!("{n} × {d} at {offset}, bias: {biased}");
                    assert_tensor_close(&what, &y, &[n, d], &expected, tolerance);
                    for i in 0..n {
                        let row = x.narrow(0, i, 1).unwrap();
                        let alone = layer_norm(&row, &weight, bias.as_ref(), 1e-5).unwrap();
                        assert_tensor_bits("alone", &alone, &y.narrow(0, i, 1).unwrap());
                    }
                }
            }
        }
    }
}

#[test]
fn layer_norm_at_the_edges() {
    let mut data = Data::new(1);
    let (x, short) = (data.tensor(&[2, 3]), data.tensor(&[2]));
    let (weight, bias) = (data.tensor(&[3]), data.tensor(&[3]));
    let result = layer_norm(&x, &short, Some(&bias), 1e-5);
    assert!(matches!(result, Err(Error::Shape { what: "weight", .. })));
    let result = layer_norm(&x, &weight, Some(&short), 1e-5);
    assert!(matches!(result, Err(Error::Shape { what: "bias", .. })));
    let scalar = Tensor::new(1f32, &Device::Cpu).unwrap();
    assert!(matches!(layer_norm(&scalar, &weight, None, 1e-5), Err(Error::Shape { .. })));
    // Equal numbers have no spread: what remains is the bias.
    let equal = Tensor::full(3e4f32, (2, 3), &Device::Cpu).unwrap();
    let y = layer_norm(&equal, &weight, Some(&bias), 1e-5).unwrap();
    assert_tensor_bits("equal", &y, &bias.broadcast_as((2, 3)).unwrap().contiguous().unwrap());
}

#[test]
fn norms_of_heads_in_a_fused_projection() {
    // Queries, keys and values side by side: heads are rows at nested strides.
    let mut data = Data::new(2);
    let fused = guarded(&data.tensor(&[2, 5, 7, 33]));
    let (weight, bias) = (data.tensor(&[33]), data.tensor(&[33]));
    for (first, heads) in [(0, 4), (4, 2), (6, 1)] {
        let view = fused.narrow(2, first, heads).unwrap();
        let copy = view.contiguous().unwrap();
        let rms = |x: &Tensor| rms_norm(x, &weight, 1e-5).unwrap();
        assert_tensor_bits("rms", &rms(&view), &rms(&copy));
        let layer = |x: &Tensor| layer_norm(x, &weight, Some(&bias), 1e-5).unwrap();
        assert_tensor_bits("layer", &layer(&view), &layer(&copy));
        // Heads before positions.
        let turned = view.transpose(1, 2).unwrap();
        let expected = rms(&copy).transpose(1, 2).unwrap();
        assert_tensor_bits("turned", &rms(&turned), &expected);
    }
}

#[test]
fn rms_norm_is_the_reference() {
    for d in NORM_WIDTHS {
        for n in NORM_ROWS {
            let mut data = Data::new(d as u64);
            let x = Tensor::from_vec(data.skewed(n * d), (n, d), &Device::Cpu).unwrap();
            let weight = data.tensor(&[d]);
            let w: Vec<f32> = weight.to_vec1().unwrap();
            let expected: Vec<f64> = (0..n)
                .flat_map(|i| {
                    let row: Vec<f32> = x.get(i).unwrap().to_vec1().unwrap();
                    reference::rms_norm(&row, &w, 1e-5)
                })
                .collect();
            let y = rms_norm(&guarded(&x), &guarded(&weight), 1e-5).unwrap();
            let tolerance = Tolerance::relative(3e-7, "three f32 roundings");
            assert_tensor_close(&format!("{n} × {d}"), &y, &[n, d], &expected, tolerance);
            for i in 0..n {
                let alone = rms_norm(&x.narrow(0, i, 1).unwrap(), &weight, 1e-5).unwrap();
                assert_tensor_bits("alone", &alone, &y.narrow(0, i, 1).unwrap());
            }
        }
    }
    let mut data = Data::new(1);
    let (x, weight) = (data.tensor(&[2, 3]), data.tensor(&[2]));
    assert!(matches!(rms_norm(&x, &weight, 1e-5), Err(Error::Shape { what: "weight", .. })));
    // Zeros stay zeros.
    let zeros = Tensor::zeros((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_tensor_bits("zeros", &rms_norm(&zeros, &weight, 1e-5).unwrap(), &zeros);
}

#[test]
fn rotary_is_the_reference() {
    for (b, t, h, d, d_rot) in ROTARY {
        let mut data = Data::new(d as u64);
        let x = data.tensor(&[b, t, h, d]);
        let inv_freq: Vec<f64> =
            (0..d_rot / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / d_rot as f64)).collect();
        let offsets: Vec<usize> = (0..b).map(|row| row * 1000).collect();
        let tables = RotaryTables::new(&inv_freq, 1.25, 3000).unwrap();
        assert_eq!((tables.d_rot(), tables.n_pos()), (d_rot, 3000));
        let mut expected = Vec::new();
        for row in 0..b {
            for token in 0..t {
                for head in 0..h {
                    let x = x.get(row).unwrap().get(token).unwrap().get(head).unwrap();
                    let x: Vec<f32> = x.to_vec1().unwrap();
                    let pos = offsets[row] + token;
                    expected.extend(reference::rotary(&x, &inv_freq, 1.25, pos));
                }
            }
        }
        // The elements that are not rotated stay, the scale is for the others alone.
        let y = rotary(&guarded(&x), &tables, &offsets).unwrap();
        let tolerance = Tolerance::of_max(3e-7, "rounded tables, two products, one sum");
        assert_tensor_close(&format!("{b} {t} {h} {d}"), &y, &[b, t, h, d], &expected, tolerance);
    }
}

#[test]
fn rotary_refuses() {
    let mut data = Data::new(1);
    let tables = RotaryTables::new(&[1.0, 0.1], 1.0, 10).unwrap();
    let x = data.tensor(&[1, 4, 1, 4]);
    assert!(rotary(&x, &tables, &[6]).is_ok());
    assert!(matches!(rotary(&x, &tables, &[7]), Err(Error::Range { what: "position", .. })));
    assert!(matches!(rotary(&x, &tables, &[usize::MAX]), Err(Error::Range { .. })));
    assert!(matches!(rotary(&x, &tables, &[0, 0]), Err(Error::Shape { what: "offsets", .. })));
    let narrow = data.tensor(&[1, 4, 1, 3]);
    assert!(matches!(rotary(&narrow, &tables, &[0]), Err(Error::Shape { what: "x", .. })));
    assert!(RotaryTables::new(&[1.0; 2], 1.0, usize::MAX).is_err());
}
