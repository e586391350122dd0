use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::linear::Linear;
use kernels::reference;
use testkit::{Data, Tolerance, assert_close, assert_tensor_bits, guarded};

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

#[test]
fn stacked_layers_give_the_same_bits() {
    let mut data = Data::new(4);
    for widths in [[32, 64, 40], [33, 5, 64]] {
        let x = data.tensor(&[9, 700]);
        let layers: Vec<Linear> = widths
            .iter()
            .enumerate()
            .map(|(i, &d_out)| {
                let bias = (i != 1).then(|| data.tensor(&[d_out]));
                Linear::dense(&data.tensor(&[d_out, 700]), bias.as_ref()).unwrap()
            })
            .collect();
        let apart: Vec<Tensor> = layers.iter().map(|layer| layer.forward(&x).unwrap()).collect();
        let stacked = Linear::stack(&layers).unwrap();
        assert_eq!(stacked.d_out(), widths.iter().sum::<usize>());
        let together = stacked.forward(&x).unwrap();
        assert_tensor_bits("stack", &together, &Tensor::cat(&apart, 1).unwrap());
    }
    let other = Linear::dense(&data.tensor(&[4, 8]), None).unwrap();
    let wider = Linear::dense(&data.tensor(&[4, 9]), None).unwrap();
    assert!(Linear::stack(&[other, wider]).is_none());
    assert!(Linear::stack(&[]).is_none());
}

const FORMATS: [GgmlDType; 6] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q8_0,
];

fn quantized(data: &mut Data, d_out: usize, d_in: usize, format: GgmlDType) -> Arc<QTensor> {
    Arc::new(QTensor::quantize(&data.tensor(&[d_out, d_in]), format).unwrap())
}

#[test]
fn quantized_has_the_bits_of_its_dequantised_weights() {
    for format in FORMATS {
        for (d_out, d_in) in [(48, 256), (33, 96), (192, 576)] {
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
            assert_tensor_bits(
                "rows",
                &layer.rows(&[3, 0]).unwrap(),
                &exact.index_select(&Tensor::new(&[3u32, 0], &Device::Cpu).unwrap(), 0).unwrap(),
            );
        }
    }
}

#[test]
fn quantized_layers_stack() {
    for format in FORMATS {
        let mut data = Data::new(6);
        let weights: Vec<Arc<QTensor>> =
            [64, 32, 5].iter().map(|&d_out| quantized(&mut data, d_out, 96, format)).collect();
        let layers: Vec<Linear> =
            weights.iter().map(|weight| Linear::quantized(weight.clone(), None).unwrap()).collect();
        let x = data.tensor(&[3, 96]);
        let apart: Vec<Tensor> = layers.iter().map(|layer| layer.forward(&x).unwrap()).collect();
        let together = Linear::stack(&layers).unwrap().forward(&x).unwrap();
        assert_tensor_bits("stack", &together, &Tensor::cat(&apart, 1).unwrap());
    }
    let mut data = Data::new(7);
    let mut layer = |format| Linear::quantized(quantized(&mut data, 32, 64, format), None).unwrap();
    let mixed = [layer(GgmlDType::Q4_0), layer(GgmlDType::Q8_0), layer(GgmlDType::F16)];
    assert!(Linear::stack(&mixed[..2]).is_none());
    assert!(Linear::stack(&mixed[1..]).is_none());
    let odd = Linear::quantized(quantized(&mut data, 5, 64, GgmlDType::Q4_0), None).unwrap();
    assert!(Linear::stack(&[odd.clone(), odd]).is_none());
    let other = quantized(&mut data, 4, 256, GgmlDType::Q5K);
    let result = Linear::quantized(other, None);
    assert!(matches!(result, Err(Error::Quantization { format: GgmlDType::Q5K, .. })));
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
