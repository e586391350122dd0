use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::linear::Linear;
use kernels::quantized::Encoding;
use kernels::reference;
use serde_json::Value;
use testkit::{Data, Tolerance, assert_bits, assert_close, assert_tensor_bits, guarded};

use crate::on_threads;

const TOLERANCE: Tolerance = Tolerance::of_max(
    4e-6,
    "a chain of up to 1536 f32 additions: its rounding grows as √k half-ulps of the sum so far",
);

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn dense_is_the_reference() {
    for (seed, case) in testkit::cases::LINEAR.iter().enumerate() {
        let mut data = Data::new(seed as u64);
        let x = data.tensor(&[case.m, case.d_in]);
        let weight = data.tensor(&[case.d_out, case.d_in]);
        let bias = case.bias.then(|| data.tensor(&[case.d_out]));
        let layer = Linear::dense(&guarded(&weight), bias.as_ref().map(guarded).as_ref()).unwrap();
        assert_eq!((layer.d_in(), layer.d_out()), (case.d_in, case.d_out));
        let y = layer.forward(&guarded(&x)).unwrap();
        assert_eq!(y.dims(), [case.m, case.d_out], "{case:?}");
        // Of the large cases the first and last row suffice.
        let rows = if case.m > 100 { vec![0, case.m - 1] } else { (0..case.m).collect() };
        for row in rows {
            let expected = reference::linear(
                &flat(&x.get(row).unwrap()),
                &flat(&weight),
                bias.as_ref().map(flat).as_deref(),
                1,
                case.d_out,
                case.d_in,
            );
            assert_close(&format!("{case:?}"), &flat(&y.get(row).unwrap()), &expected, TOLERANCE);
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours_or_threads() {
    for (d_in, d_out) in [(576, 192), (641, 97), (33, 1000)] {
        let mut data = Data::new(7);
        let x = data.tensor(&[300, d_in]);
        let layer =
            Linear::dense(&data.tensor(&[d_out, d_in]), Some(&data.tensor(&[d_out]))).unwrap();
        let whole = on_threads(1, || layer.forward(&x).unwrap());
        for threads in [1, 2, 5] {
            on_threads(threads, || {
                for m in (1..70).chain([300]) {
                    let start = (300 - m) / 3;
                    let y = layer.forward(&x.narrow(0, start, m).unwrap()).unwrap();
                    let expected = whole.narrow(0, start, m).unwrap();
                    assert_tensor_bits(&format!("m = {m}, {threads} threads"), &y, &expected);
                }
            });
        }
    }
}

#[test]
fn weights_come_back() {
    let mut data = Data::new(3);
    for (d_out, d_in) in [(65, 641), (32, 16), (5, 0), (0, 5)] {
        let weight = data.tensor(&[d_out, d_in]);
        let layer = Linear::dense(&weight, None).unwrap();
        assert_tensor_bits("weight", &layer.weight().unwrap(), &weight);
        if d_out > 0 {
            let ids = [d_out as u32 - 1, 0, 0];
            let rows = weight.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap();
            assert_tensor_bits("rows", &layer.rows(&ids).unwrap(), &rows);
        }
        assert!(matches!(layer.rows(&[d_out as u32]), Err(Error::Range { .. })));
    }
}

const FLOATS: [GgmlDType; 3] = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];

/// Every format of weights, and the number of weights in its blocks.
fn formats() -> impl Iterator<Item = (GgmlDType, usize)> {
    let quantized = Encoding::ALL.iter().map(|encoding| (encoding.format, encoding.len));
    FLOATS.into_iter().map(|format| (format, 1)).chain(quantized)
}

fn quantized(data: &mut Data, d_out: usize, d_in: usize, format: GgmlDType) -> Arc<QTensor> {
    Arc::new(QTensor::quantize(&data.tensor(&[d_out, d_in]), format).unwrap())
}

#[test]
fn quantized_has_the_bits_of_its_dequantised_weights() {
    for (format, block) in formats() {
        for (d_out, d_in) in [(48, 256), (33, 96), (192, 576), (65, 768), (0, 256), (7, 0)] {
            if d_in % block > 0 {
                continue;
            }
            let mut data = Data::new(5);
            let weight = quantized(&mut data, d_out, d_in, format);
            let (x, bias) = (data.tensor(&[70, d_in]), data.tensor(&[d_out]));
            let layer = Linear::quantized(weight.clone(), Some(&bias)).unwrap();
            let exact = weight.dequantize(&Device::Cpu).unwrap();
            let dense = Linear::dense(&exact, Some(&bias)).unwrap();
            for m in [1, 3, 14, 15, 70] {
                let x = x.narrow(0, 0, m).unwrap();
                let (y, expected) = (layer.forward(&x).unwrap(), dense.forward(&x).unwrap());
                assert_tensor_bits(&format!("{format:?} {m}"), &y, &expected);
            }
            assert_tensor_bits("weight", &layer.weight().unwrap(), &exact);
            if d_out > 0 {
                let ids = Tensor::new(&[3u32, 0], &Device::Cpu).unwrap();
                let rows = exact.index_select(&ids, 0).unwrap();
                assert_tensor_bits("rows", &layer.rows(&[3, 0]).unwrap(), &rows);
            }
        }
    }
}

#[test]
fn formats_that_are_not_built_are_refused() {
    let mut data = Data::new(7);
    let other = quantized(&mut data, 4, 256, GgmlDType::Q8K);
    let error = Linear::quantized(other, None).unwrap_err();
    assert!(matches!(error, Error::Quantization { format: GgmlDType::Q8K, .. }));
    assert!(error.to_string().contains("Q4_1, Q5_0"), "{error}");
}

#[test]
fn golden_blocks() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/quants.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rows = |name: &str, what: &str| -> Vec<Vec<u8>> {
        let hex = |row: &Value| {
            let pairs = row.as_str().unwrap().as_bytes().as_chunks::<2>().0;
            let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
            pairs.iter().map(|pair| byte(pair).unwrap()).collect()
        };
        golden[name][what].as_array().unwrap().iter().map(hex).collect()
    };
    assert_eq!(golden.as_object().unwrap().len(), Encoding::ALL.len());
    for encoding in Encoding::ALL {
        let (blocks, values) = (rows(encoding.name, "bytes"), rows(encoding.name, "values"));
        let values: Vec<Vec<f32>> = values
            .iter()
            .map(|row| row.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            .collect();
        let mut out = vec![f32::NAN; 256];
        for (blocks, values) in blocks.iter().zip(&values) {
            encoding.dequantize(blocks, &mut out);
            assert_bits(encoding.name, &out, values);
        }
        // The rows again and again, until they fill a panel and begin another.
        let size = [6 * blocks.len() + 1, 256];
        let row = |j: usize| blocks[j % blocks.len()].as_slice();
        let layer = Linear::quantized_from(encoding, size, None, row).unwrap();
        let weight: Vec<Vec<f32>> = layer.weight().unwrap().to_vec2().unwrap();
        for (j, row) in weight.iter().enumerate() {
            assert_bits(&format!("{}, row {j}", encoding.name), row, &values[j % values.len()]);
        }
    }
}

#[test]
fn blocks_that_are_no_weights_are_typed_errors() {
    for encoding in Encoding::ALL {
        let (blocks, size) = (512 / encoding.len, [40, 512]);
        let from = |bytes: &[u8], size| {
            let row = bytes.len() / 40;
            Linear::quantized_from(encoding, size, None, |j| &bytes[j * row..][..row]).map(|_| ())
        };
        let sound = vec![0u8; 40 * blocks * encoding.bytes];
        from(&sound, size).unwrap();
        let short = from(&sound[40..], size);
        assert!(matches!(short, Err(Error::Shape { what: "a row of blocks", .. })));
        let odd = from(&sound, [40, encoding.len + 16]);
        assert!(matches!(odd, Err(Error::Shape { what: "weight", .. })));
        // Each byte pair that makes some number of a block infinite, in two rows at once.
        let mut found = 0;
        for at in 0..encoding.bytes - 1 {
            let mut bytes = sound.clone();
            for row in [37, 3] {
                let place = (row * blocks + blocks - 1) * encoding.bytes + at;
                bytes[place..place + 2].copy_from_slice(&[0x00, 0xfc]);
            }
            if let Err(error) = from(&bytes, size) {
                let column = 512 - encoding.len;
                let Error::NonFinite { index, value, .. } = error else { panic!("{error}") };
                assert_eq!((index, value), (vec![3, column], f64::NEG_INFINITY));
                found += 1;
            }
        }
        let offsets = matches!(encoding.name, "Q4_1" | "Q5_1" | "Q2_K" | "Q4_K" | "Q5_K");
        assert_eq!(found, 1 + usize::from(offsets), "{}", encoding.name);
    }
}

#[test]
fn weights_are_read_from_elsewhere() {
    let mut data = Data::new(10);
    for [d_out, d_in] in [[1, 1], [33, 255], [64, 256], [31, 257], [100, 700], [0, 5], [5, 0]] {
        let (weight, x) = (data.tensor(&[d_out, d_in]), data.tensor(&[3, d_in]));
        let (values, bias) = (flat(&weight), data.tensor(&[d_out]));
        let read = |row: usize, columns: std::ops::Range<usize>, out: &mut [f32]| {
            assert!(columns.start.is_multiple_of(256));
            out.copy_from_slice(&values[row * d_in..][columns]);
        };
        let layer = Linear::dense_from([d_out, d_in], Some(&bias), read).unwrap();
        assert_tensor_bits("weight", &layer.weight().unwrap(), &weight);
        let expected = Linear::dense(&weight, Some(&bias)).unwrap().forward(&x).unwrap();
        assert_tensor_bits("y", &layer.forward(&x).unwrap(), &expected);
        // The first bad number in row-major order, whichever thread comes first.
        for bad in [f32::NAN, f32::INFINITY] {
            let read = |row: usize, columns: std::ops::Range<usize>, out: &mut [f32]| {
                out.fill(0.0);
                for (row_index, column) in [(d_out / 2, d_in - 1), (d_out - 1, 0)] {
                    if row == row_index && columns.contains(&column) {
                        out[column - columns.start] = bad;
                    }
                }
            };
            match Linear::dense_from([d_out, d_in], None, read) {
                Err(Error::NonFinite { index, .. }) => {
                    let first = if d_out / 2 == d_out - 1 { 0 } else { d_in - 1 };
                    assert_eq!(index, [d_out / 2, first]);
                }
                other => assert!(d_out * d_in == 0 && other.is_ok()),
            }
        }
    }
    let huge = Linear::dense_from([usize::MAX, 2], None, |_, _, _| ());
    assert!(matches!(huge, Err(Error::Shape { what: "weight", .. })));
}

#[test]
fn leading_axes_are_kept() {
    let mut data = Data::new(8);
    let layer = Linear::dense(&data.tensor(&[5, 6]), None).unwrap();
    let x = data.tensor(&[2, 3, 4, 6]);
    // Heads and positions swapped: strides that cannot be flattened.
    let view = x.transpose(1, 2).unwrap();
    let y = layer.forward(&view).unwrap();
    assert_eq!(y.dims(), [2, 4, 3, 5]);
    assert_tensor_bits("view", &y, &layer.forward(&view.contiguous().unwrap()).unwrap());
    assert_eq!(layer.forward(&data.tensor(&[6])).unwrap().dims(), [5]);
}

#[test]
fn bad_arguments_are_typed_errors() {
    let mut data = Data::new(9);
    let weight = data.tensor(&[4, 6]);
    let layer = Linear::dense(&weight, None).unwrap();
    let x = data.tensor(&[2, 5]);
    assert!(matches!(layer.forward(&x), Err(Error::Shape { what: "x", .. })));
    let x = data.tensor(&[6, 2]).t().unwrap();
    assert!(matches!(layer.forward(&x), Err(Error::NonContiguous { what: "x", got: 2, .. })));
    let x = data.tensor(&[2, 6]).to_dtype(DType::F64).unwrap();
    assert!(matches!(layer.forward(&x), Err(Error::DType { got: DType::F64, .. })));
    let x = Tensor::new(1f32, &Device::Cpu).unwrap();
    assert!(matches!(layer.forward(&x), Err(Error::Shape { .. })));
    let bias = data.tensor(&[6]);
    assert!(matches!(Linear::dense(&weight, Some(&bias)), Err(Error::Shape { what: "bias", .. })));
    let weight = data.tensor(&[2, 4, 6]);
    assert!(matches!(Linear::dense(&weight, None), Err(Error::Shape { what: "weight", .. })));
}
