use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use kernels::activation::ActivationFunction;
use kernels::cuda::quantized::{
    Blocks, FEW_ROWS, linear, plan_chosen, plan_product, plan_unpack, unpack,
};
use kernels::cuda::{Plan, emulated};
use kernels::linear::Linear;
use kernels::moe::{Experts, moe};
use kernels::quantized::Encoding;
use kernels::router::Routing;
use kernels::{Error, reference};
use testkit::{
    Data, Tolerance, assert_bits, assert_close, assert_tensor_bits, assert_tensor_close,
};

use super::{DTYPES, numbers, rounded};
use crate::machine::{EFFORTS, run};

/// Bytes of `rows` rows of `d_in` weights whose scales and offsets are what `float` gives.
fn file(
    encoding: &Encoding,
    [rows, d_in]: [usize; 2],
    data: &mut Data,
    mut float: impl FnMut(&mut Data) -> f16,
) -> Vec<u8> {
    let floats = floats(encoding);
    let mut bytes = Vec::new();
    for _ in 0..rows * (d_in / encoding.len) {
        let start = bytes.len();
        bytes.extend((0..encoding.bytes).map(|_| data.below(256) as u8));
        for at in &floats {
            bytes[start + at..start + at + 2].copy_from_slice(&float(data).to_le_bytes());
        }
    }
    bytes
}

/// Where blocks hold 16-bit floats: where an infinity is found.
fn floats(encoding: &Encoding) -> Vec<usize> {
    let infinite = |at: &usize| {
        let mut block = vec![0; encoding.bytes];
        block[*at..at + 2].copy_from_slice(&f16::NEG_INFINITY.to_le_bytes());
        encoding.not_finite(&block) == Some(f32::NEG_INFINITY)
    };
    (0..encoding.bytes - 1).filter(infinite).collect()
}

/// As in a model.
fn usual(data: &mut Data) -> f16 {
    f16::from_f32(data.normal(1)[0] * 0.01)
}

/// Any finite number.
fn any(data: &mut Data) -> f16 {
    loop {
        let number = f16::from_bits(data.below(1 << 16) as u16);
        if number.is_finite() {
            return number;
        }
    }
}

/// The largest, the smallest, and nothing.
fn extreme(data: &mut Data) -> f16 {
    let all = [f16::MAX, f16::MIN, f16::from_bits(1), f16::from_bits(0x8001), f16::ZERO];
    all[data.below(all.len())]
}

fn blocks(encoding: &'static Encoding, size: [usize; 2], bytes: &[u8]) -> Blocks {
    let row = bytes.len() / size[0].max(1);
    Blocks::new(encoding, size, |j| &bytes[j * row..][..row], &Device::Cpu).unwrap()
}

/// What the CPU unpacks.
fn exact(encoding: &Encoding, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; bytes.len() / encoding.bytes * encoding.len];
    encoding.dequantize(bytes, &mut values);
    values
}

fn round(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// In 16-byte accesses' reach, between NaNs.
fn guarded_rows(x: &Tensor, dtype: DType) -> Tensor {
    let guard = Tensor::full(f32::NAN, 8, &Device::Cpu).unwrap();
    let all = Tensor::cat(&[&guard, &x.flatten_all().unwrap(), &guard], 0).unwrap();
    let all = all.to_dtype(dtype).unwrap();
    all.narrow(0, 8, x.elem_count()).unwrap().reshape(x.dims()).unwrap()
}

#[test]
fn unpacked_weights_are_the_cpus_bits() {
    for (seed, &encoding) in Encoding::ALL.iter().enumerate() {
        let mut data = Data::new(seed as u64);
        for (n_blocks, rows) in [(1, 1), (1, 5), (3, 7), (37, 2)] {
            let size = [rows, n_blocks * encoding.len];
            for float in [usual, any, extreme] {
                let bytes = file(encoding, size, &mut data, float);
                let (blocks, exact) = (blocks(encoding, size, &bytes), exact(encoding, &bytes));
                for dtype in DTYPES {
                    let expected: Vec<f32> = exact.iter().map(|&x| round(x, dtype)).collect();
                    let plan = plan_unpack(&blocks, None, dtype).unwrap();
                    for effort in EFFORTS {
                        let y = run(&plan, effort).unwrap().remove(0);
                        assert_eq!((y.dtype(), y.dims()), (dtype, &size[..]));
                        let what = format!("{} {size:?} {dtype:?} {effort:?}", encoding.name);
                        assert_bits(&what, &numbers(&y), &expected);
                    }
                }
            }
        }
    }
}

#[test]
fn chosen_rows_are_unpacked() {
    for (seed, &encoding) in Encoding::ALL.iter().enumerate() {
        let mut data = Data::new(seed as u64);
        let (rows, d_in) = (5, 3 * encoding.len);
        let bytes = file(encoding, [rows, d_in], &mut data, any);
        let (blocks, exact) = (blocks(encoding, [rows, d_in], &bytes), exact(encoding, &bytes));
        for dtype in DTYPES {
            for ids in [&[3u32, 0, 3, 4, 4, 1, 2][..], &[5, 4, u32::MAX, 1 << 30], &[2], &[]] {
                let tensor = Tensor::new(ids, &Device::Cpu).unwrap();
                let plan = plan_unpack(&blocks, Some(&tensor), dtype).unwrap();
                assert_eq!(plan.call.is_none(), ids.is_empty());
                for effort in EFFORTS {
                    let y = run(&plan, effort).unwrap().remove(0);
                    assert_eq!(y.dims(), [ids.len(), d_in]);
                    for (row, &id) in numbers(&y).chunks(d_in).zip(ids) {
                        let what = format!("{} {dtype:?} row {id}", encoding.name);
                        if id as usize >= rows {
                            assert!(row.iter().all(|x| x.is_nan()), "{what}");
                            continue;
                        }
                        let expected = &exact[id as usize * d_in..][..d_in];
                        let expected: Vec<f32> =
                            expected.iter().map(|&x| round(x, dtype)).collect();
                        assert_bits(&what, row, &expected);
                    }
                }
            }
        }
    }
}

/// Of `Σ |x| max |w|`, the largest weight of each 16.
const OF_TERMS: f64 = 2e-6;
const REASON: &str = "f32 sums of 16 products before their scale, then over parts, lanes and warps";

/// What a product may be off by, for each row of `x` and of the weights.
fn allowed(x: &[f32], weights: &[f32]) -> f64 {
    let largest = |weights: &[f32]| weights.iter().fold(0f32, |most, w| most.max(w.abs()));
    let of_half = |(x, weights): (&[f32], &[f32])| {
        let size: f64 = x.iter().map(|&x| f64::from(x.abs())).sum();
        size * f64::from(largest(weights))
    };
    OF_TERMS * x.chunks(16).zip(weights.chunks(16)).map(of_half).sum::<f64>()
}

#[track_caller]
fn check_product(what: &str, y: &[f32], x: &[f32], exact: &[f32], d_in: usize, dtype: DType) {
    let (m, n) = (x.len() / d_in, exact.len() / d_in);
    let expected = reference::linear(x, exact, None, m, n, d_in);
    for (i, (&y, &expected)) in y.iter().zip(&expected).enumerate() {
        let allowed = allowed(&x[i / n * d_in..][..d_in], &exact[i % n * d_in..][..d_in]);
        let tolerance = rounded(dtype, Tolerance::absolute(allowed, REASON));
        assert_close(&format!("{what}, {i}"), &[y], &[expected], tolerance);
    }
}

#[test]
fn products_are_the_reference() {
    // Parts of 32 weights: one, a warp's, more than a warp's, more than four warps'.
    for (seed, &encoding) in Encoding::ALL.iter().enumerate() {
        let parts = encoding.len / 32;
        let sizes = [(1usize, 1), (32, 2), (33, 5), (70, 3), (143, 1)];
        for dtype in DTYPES {
            for m in 1..=FEW_ROWS {
                let mut data = Data::new((seed + m) as u64);
                for (i, (n_parts, d_out)) in sizes.into_iter().enumerate() {
                    if m > 1 && i != m % sizes.len() && i != (m + 2) % sizes.len() {
                        continue;
                    }
                    let size = [d_out, n_parts.div_ceil(parts) * encoding.len];
                    let bytes = file(encoding, size, &mut data, usual);
                    let (blocks, exact) = (blocks(encoding, size, &bytes), exact(encoding, &bytes));
                    let x = data.tensor(&[m, size[1]]);
                    let x = guarded_rows(&x, dtype);
                    let plan = plan_product(&x, &blocks).unwrap();
                    let mut first: Option<Tensor> = None;
                    for effort in EFFORTS {
                        let y = run(&plan, effort).unwrap().remove(0);
                        let what = format!("{} {m} × {size:?} {dtype:?} {effort:?}", encoding.name);
                        assert_eq!((y.dtype(), y.dims()), (dtype, &[m, d_out][..]), "{what}");
                        match &first {
                            Some(first) => assert_tensor_bits(&what, &y, first),
                            None => {
                                let (y, x) = (numbers(&y), numbers(&x));
                                check_product(&what, &y, &x, &exact, size[1], dtype);
                            }
                        }
                        first = Some(y);
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_extreme_weights() {
    for (seed, &encoding) in Encoding::ALL.iter().enumerate() {
        let mut data = Data::new(seed as u64);
        let size = [9, 2 * encoding.len];
        for (float, exponent) in [(extreme as fn(&mut Data) -> f16, 0), (any, 0), (any, 90)] {
            let bytes = file(encoding, size, &mut data, float);
            let (blocks, exact) = (blocks(encoding, size, &bytes), exact(encoding, &bytes));
            let x = (data.tensor(&[3, size[1]]) * 2f64.powi(exponent)).unwrap();
            let y = run(&plan_product(&x, &blocks).unwrap(), EFFORTS[0]).unwrap().remove(0);
            let what = format!("{} × 2^{exponent}", encoding.name);
            check_product(&what, &numbers(&y), &numbers(&x), &exact, size[1], DType::F32);
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    for (seed, &encoding) in Encoding::ALL.iter().enumerate() {
        let mut data = Data::new(seed as u64);
        let size = [5, 3 * 256];
        let bytes = file(encoding, size, &mut data, usual);
        let blocks = blocks(encoding, size, &bytes);
        for dtype in DTYPES {
            let x = data.tensor(&[FEW_ROWS, size[1]]).to_dtype(dtype).unwrap();
            let product = |from, m| {
                let x = x.narrow(0, from, m).unwrap();
                run(&plan_product(&x, &blocks).unwrap(), EFFORTS[0]).unwrap().remove(0)
            };
            let all = product(0, FEW_ROWS);
            for (from, m) in [(0, 1), (7, 1), (1, 2), (2, 3), (0, 4), (3, 5), (1, 7)] {
                let what = format!("{} {dtype:?} {m} from {from}", encoding.name);
                assert_tensor_bits(&what, &product(from, m), &all.narrow(0, from, m).unwrap());
            }
        }
    }
}

#[test]
fn chosen_matrices_give_the_bits_of_their_own_products() {
    for (seed, &encoding) in Encoding::ALL.iter().enumerate() {
        let mut data = Data::new(seed as u64);
        let (n, d_out, d_in) = (4, 3, 2 * encoding.len);
        let bytes = file(encoding, [n * d_out, d_in], &mut data, usual);
        let all = blocks(encoding, [n * d_out, d_in], &bytes);
        let of_matrix = bytes.len() / n;
        for dtype in DTYPES {
            let x = data.tensor(&[3, d_in]).to_dtype(dtype).unwrap();
            for indices in [&[2u32, 0, 3, 3, 1, 2][..], &[0, 4, u32::MAX]] {
                let share = indices.len() / 3;
                let chosen = Tensor::new(indices, &Device::Cpu).unwrap();
                let plan = plan_chosen(&x, &all, &chosen, d_out).unwrap();
                for effort in EFFORTS {
                    let y = run(&plan, effort).unwrap().remove(0);
                    assert_eq!((y.dtype(), y.dims()), (dtype, &[indices.len(), d_out][..]));
                    for (slot, &index) in indices.iter().enumerate() {
                        let (got, what) =
                            (y.narrow(0, slot, 1).unwrap(), format!("{} {slot}", encoding.name));
                        if index as usize >= n {
                            assert!(numbers(&got).iter().all(|y| y.is_nan()), "{what}");
                            continue;
                        }
                        let own = &bytes[index as usize * of_matrix..][..of_matrix];
                        let own = blocks(encoding, [d_out, d_in], own);
                        let x = x.narrow(0, slot / share, 1).unwrap();
                        let alone = run(&plan_product(&x, &own).unwrap(), effort).unwrap();
                        assert_tensor_bits(&what, &got, &alone[0]);
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_is_no_launch_and_no_columns_give_zeros() {
    let encoding = Encoding::Q4_0;
    let data = |size: [usize; 2]| blocks(encoding, size, &vec![0; size[0] * size[1] / 32 * 18]);
    let x = |m: usize, d_in: usize| Tensor::zeros((m, d_in), DType::BF16, &Device::Cpu).unwrap();
    let (few, none, narrow) = (data([3, 32]), data([0, 32]), data([3, 0]));
    for (x, blocks, dims) in [(x(0, 32), &few, [0, 3]), (x(2, 32), &none, [2, 0])] {
        let plan = plan_product(&x, blocks).unwrap();
        assert!(plan.call.is_none());
        assert_eq!(run(&plan, EFFORTS[0]).unwrap()[0].dims(), dims);
    }
    assert!(plan_unpack(&narrow, None, DType::F32).unwrap().call.is_none());
    let x = x(2, 0);
    let y = run(&plan_product(&x, &narrow).unwrap(), EFFORTS[0]).unwrap().remove(0);
    assert_eq!(numbers(&y), [0.0; 6]);
}

/// A machine for operations of several plans.
fn on_machine(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    Ok(run(plan, EFFORTS[0]).unwrap())
}

#[test]
fn layers_agree_with_their_dequantised_weights() {
    for (seed, &encoding) in Encoding::ALL.iter().enumerate() {
        let mut data = Data::new(seed as u64);
        let (d_out, d_in) = (7, 2 * encoding.len);
        let bytes = file(encoding, [d_out, d_in], &mut data, usual);
        let bias = data.tensor(&[d_out]);
        let row_bytes = bytes.len() / d_out;
        let row = |j: usize| &bytes[j * row_bytes..][..row_bytes];
        let packed = Linear::quantized_from(encoding, [d_out, d_in], Some(&bias), row).unwrap();
        for dtype in DTYPES {
            let (size, device) = ([d_out, d_in], Device::Cpu);
            let layer =
                Linear::quantized_placed(encoding, size, Some(&bias), row, &device, dtype).unwrap();
            assert_eq!((layer.d_out(), layer.d_in()), (d_out, d_in));
            // Weights and sums rounded to the dtype.
            let share = match dtype {
                DType::BF16 => 2e-2,
                DType::F16 => 2e-3,
                _ => 4e-6,
            };
            let tolerance = Tolerance::of_max(share, "weights, biases and results in the dtype");
            for m in [1, FEW_ROWS, FEW_ROWS + 1, 20] {
                let x = data.tensor(&[1, m, d_in]).to_dtype(dtype).unwrap();
                let expected = packed.forward(&x.to_dtype(DType::F32).unwrap()).unwrap();
                let expected: Vec<f64> = numbers(&expected).into_iter().map(f64::from).collect();
                let y = emulated(on_machine, || layer.forward(&x)).unwrap();
                assert_eq!(y.dtype(), dtype);
                let what = format!("{} {m} {dtype:?}", encoding.name);
                assert_tensor_close(&what, &y, &[1, m, d_out], &expected, tolerance);
            }
            // A row that begins inside of 16 bytes.
            let x = data.tensor(&[1, d_in + 1]).to_dtype(dtype).unwrap();
            let odd = x.narrow(1, 1, d_in).unwrap();
            let forward = |x: &Tensor| emulated(on_machine, || layer.forward(x)).unwrap();
            let aligned = odd.force_contiguous().unwrap();
            assert_tensor_bits("odd", &forward(&odd), &forward(&aligned));

            let weight = packed.weight().unwrap().to_dtype(dtype).unwrap();
            let got = emulated(on_machine, || layer.weight()).unwrap();
            assert_tensor_bits("weight", &got, &weight);
            let ids = Tensor::new(&[6u32, 0, 6], &Device::Cpu).unwrap();
            let got = emulated(on_machine, || layer.rows(&[6, 0, 6])).unwrap();
            assert_tensor_bits("rows", &got, &weight.index_select(&ids, 0).unwrap());
            assert!(matches!(layer.rows(&[7]), Err(Error::Range { what: "row", .. })));
        }
    }
}

#[test]
fn few_tokens_go_through_quantized_experts() {
    let (n_experts, d, d_expert, k) = (5, 256, 512, 2);
    for pair in Encoding::ALL.windows(2) {
        let mut data = Data::new(pair[0].bytes as u64);
        let mut layers = |encoding: &'static Encoding, size: [usize; 2]| {
            let of_expert = |_| {
                let bytes = file(encoding, size, &mut data, usual);
                let row_bytes = bytes.len() / size[0];
                let row = |j: usize| &bytes[j * row_bytes..][..row_bytes];
                let placed =
                    Linear::quantized_placed(encoding, size, None, row, &Device::Cpu, DType::F32);
                (Linear::quantized_from(encoding, size, None, row).unwrap(), placed.unwrap())
            };
            (0..n_experts).map(of_expert).unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let (gate_up, placed_gate_up) = layers(pair[0], [2 * d_expert, d]);
        let (down, placed_down) = layers(pair[1], [d, d_expert]);
        let packed = Experts::new(gate_up, down).unwrap();
        let placed = Experts::new(placed_gate_up, placed_down).unwrap();
        for n in [1, 3] {
            let x = data.tensor(&[n, d]);
            let indices = (0..n * k).map(|_| data.below(n_experts) as u32).collect::<Vec<_>>();
            let routing = Routing {
                probs: Tensor::zeros((n, n_experts), DType::F32, &Device::Cpu).unwrap(),
                indices: Tensor::from_vec(indices, (n, k), &Device::Cpu).unwrap(),
                weights: data.tensor(&[n, k]),
            };
            let f = ActivationFunction::Silu;
            let expected = moe(&x, &routing, &packed, f).unwrap();
            let expected: Vec<f64> = numbers(&expected).into_iter().map(f64::from).collect();
            let y = emulated(on_machine, || moe(&x, &routing, &placed, f)).unwrap();
            let tolerance = Tolerance::of_max(4e-6, "two f32 products summed in another order");
            assert_tensor_close(pair[0].name, &y, &[n, d], &expected, tolerance);
        }
    }
}

#[test]
fn many_tokens_have_the_bits_of_unpacked_experts() {
    let (n_experts, d, d_expert, k, n) = (3, 256, 256, 2, FEW_ROWS + 4);
    // Experts all alike, and in two formats.
    for (first, others) in [
        (Encoding::Q4K, Encoding::Q4K),
        (Encoding::Q5_0, Encoding::Q5_0),
        (Encoding::Q6K, Encoding::Q8_0),
    ] {
        let mut data = Data::new(first.bytes as u64);
        let mut layers = |size: [usize; 2]| {
            let of_expert = |expert| {
                let encoding = if expert == 0 { first } else { others };
                let bytes = file(encoding, size, &mut data, usual);
                let row_bytes = bytes.len() / size[0];
                let row = |j: usize| &bytes[j * row_bytes..][..row_bytes];
                let (on, dtype) = (Device::Cpu, DType::BF16);
                let kept = Linear::quantized_placed(encoding, size, None, row, &on, dtype).unwrap();
                let weight = emulated(on_machine, || kept.weight()).unwrap();
                (kept, Linear::placed(weight, None).unwrap())
            };
            (0..n_experts).map(of_expert).unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let (gate_up, unpacked_gate_up) = layers([2 * d_expert, d]);
        let (down, unpacked_down) = layers([d, d_expert]);
        let unpacked = Experts::new(unpacked_gate_up, unpacked_down).unwrap();
        let indices = (0..n * k).map(|_| data.below(n_experts) as u32).collect::<Vec<_>>();
        let routing = Routing {
            probs: Tensor::zeros((n, n_experts), DType::F32, &Device::Cpu).unwrap(),
            indices: Tensor::from_vec(indices, (n, k), &Device::Cpu).unwrap(),
            weights: data.tensor(&[n, k]),
        };
        let x = data.tensor(&[n, d]).to_dtype(DType::BF16).unwrap();
        emulated(on_machine, || {
            let kept = Experts::new(gate_up, down).unwrap();
            let f = ActivationFunction::Silu;
            let y = moe(&x, &routing, &kept, f).unwrap();
            assert_tensor_bits(first.name, &y, &moe(&x, &routing, &unpacked, f).unwrap());
        });
    }
}

#[test]
fn quantized_refuses() {
    let encoding = Encoding::Q6K;
    let sound = vec![0u8; 3 * 2 * encoding.bytes];
    let of = |size: [usize; 2], bytes: &[u8]| {
        let row = bytes.len() / size[0];
        Blocks::new(encoding, size, |j| &bytes[j * row..][..row], &Device::Cpu).map(|_| ())
    };
    assert!(of([3, 512], &sound).is_ok());
    let odd = of([3, 500], &sound);
    assert!(matches!(odd, Err(Error::Shape { what: "weight", .. })));
    let short = of([3, 768], &sound);
    assert!(matches!(short, Err(Error::Shape { what: "a row of blocks", .. })));
    for &encoding in Encoding::ALL {
        for at in floats(encoding) {
            let mut bytes = vec![0u8; 4 * 2 * encoding.bytes];
            for row in [3, 1] {
                let place = (2 * row + 1) * encoding.bytes + at;
                bytes[place..place + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
            }
            let row = |j: usize| &bytes[2 * j * encoding.bytes..][..2 * encoding.bytes];
            let bad = Blocks::new(encoding, [4, 2 * encoding.len], row, &Device::Cpu).unwrap_err();
            let Error::NonFinite { index, value, .. } = bad else { panic!("{bad}") };
            assert_eq!((index, value), (vec![1, encoding.len], f64::INFINITY));
        }
    }

    let blocks = blocks(encoding, [3, 512], &sound);
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    let product = |x: &Tensor| plan_product(x, &blocks).map(|_| ());
    let x = zeros(&[2, 512], DType::F32);
    assert!(product(&x).is_ok());
    for dims in [&[2, 511][..], &[512], &[1, 2, 512]] {
        let refused = product(&zeros(dims, DType::F32));
        assert!(matches!(refused, Err(Error::Shape { what: "x", .. })), "{dims:?}");
    }
    let many = product(&zeros(&[FEW_ROWS + 1, 512], DType::F32));
    assert!(matches!(many, Err(Error::Range { what: "the number of rows", .. })));
    let whole = product(&zeros(&[2, 512], DType::U32));
    assert!(matches!(whole, Err(Error::Range { what: "dtype", .. })));
    let across = product(&zeros(&[512, 2], DType::F32).t().unwrap());
    assert!(matches!(across, Err(Error::NonContiguous { what: "x", .. })));
    let odd = zeros(&[1030], DType::BF16).narrow(0, 4, 1024).unwrap().reshape((2, 512)).unwrap();
    assert!(matches!(product(&odd), Err(Error::Range { what: "the first byte of x", .. })));

    let ids = zeros(&[2], DType::F32);
    let refused = plan_unpack(&blocks, Some(&ids), DType::F32);
    assert!(matches!(refused, Err(Error::DType { what: "ids", .. })));
    let refused = plan_unpack(&blocks, None, DType::F64);
    assert!(matches!(refused, Err(Error::Range { what: "dtype", .. })));

    let chosen = |n: usize, d_out| {
        let indices = zeros(&[n], DType::U32);
        plan_chosen(&x, &blocks, &indices, d_out).map(|_| ())
    };
    assert!(chosen(4, 1).is_ok() && chosen(4, 3).is_ok());
    assert!(matches!(chosen(3, 1), Err(Error::Shape { what: "the choices", .. })));
    assert!(matches!(chosen(4, 2), Err(Error::Shape { what: "the matrices", .. })));
    assert!(matches!(chosen(4, 0), Err(Error::Shape { what: "the matrices", .. })));
    let many = chosen(1 << 16, 1);
    assert!(matches!(many, Err(Error::Range { what: "the number of choices", .. })));

    let wide = Blocks::stack(vec![blocks.clone(), blocks.clone()]).unwrap();
    assert_eq!((wide.rows(), wide.d_in()), (6, 512));
    let narrow = super::quantized::blocks(encoding, [6, 256], &sound);
    let unlike = Blocks::stack(vec![blocks.clone(), narrow]);
    assert!(matches!(unlike, Err(Error::Shape { what: "a matrix", .. })));
    assert!(matches!(Blocks::stack(Vec::new()), Err(Error::Shape { .. })));

    // Where nothing runs plans.
    let row = |_| &sound[..2 * encoding.bytes];
    let on_cpu =
        |dtype| Linear::quantized_placed(encoding, [3, 512], None, row, &Device::Cpu, dtype);
    let nowhere = on_cpu(DType::F32).unwrap().forward(&x);
    assert!(matches!(nowhere, Err(Error::Range { what: "the device of quantized weights", .. })));
    assert!(matches!(on_cpu(DType::F64), Err(Error::Range { what: "dtype", .. })));
}

#[test]
fn stacked_matrices_keep_their_rows() {
    let encoding = Encoding::Q5_0;
    let mut data = Data::new(1);
    let bytes = file(encoding, [5, 96], &mut data, usual);
    let (first, second) = bytes.split_at(bytes.len() / 5 * 2);
    let parts = vec![blocks(encoding, [2, 96], first), blocks(encoding, [3, 96], second)];
    let stacked = Blocks::stack(parts).unwrap();
    let y = unpack(on_machine, &stacked, None, DType::F32).unwrap();
    assert_bits("stacked", &numbers(&y), &exact(encoding, &bytes));
    // More rows than are multiplied with the blocks.
    let x = data.tensor(&[FEW_ROWS + 1, 96]);
    let y = linear(on_machine, &x, &stacked).unwrap();
    let expected = reference::linear(&numbers(&x), &exact(encoding, &bytes), None, 9, 5, 96);
    let tolerance = Tolerance::of_max(4e-6, "an f32 sum of 96 products");
    assert_tensor_close("many rows", &y, &[FEW_ROWS + 1, 5], &expected, tolerance);
}
