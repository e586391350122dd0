use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::cuda::rotary::plan;
use kernels::reference;
use kernels::rotary::RotaryTables;
use testkit::cases::ROTARY;
use testkit::{Data, Tolerance};

use super::{DTYPES, check, layouts, numbers, rounded};
use crate::machine::{EFFORTS, run};

#[test]
fn rotary_is_the_reference() {
    for dtype in DTYPES {
        for (b, t, h, d, d_rot) in ROTARY {
            let xs = layouts(&Data::new(d as u64).tensor(&[b, t, h, d]), dtype);
            let inv_freq: Vec<f64> =
                (0..d_rot / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / d_rot as f64)).collect();
            let tables = RotaryTables::new(&inv_freq, 1.25, 3000).unwrap();
            let [cos, sin] = tables.tensors(&Device::Cpu).unwrap();
            let offsets: Vec<u32> = (0..b as u32).map(|row| row * 1000).collect();
            let x = numbers(&xs[0]);
            let expected: Vec<f64> = (0..b * t * h)
                .flat_map(|vector| {
                    let (row, token) = (vector / h / t, vector / h % t);
                    let pos = offsets[row] as usize + token;
                    reference::rotary(&x[vector * d..][..d], &inv_freq, 1.25, pos)
                })
                .collect();
            let offsets = Tensor::from_vec(offsets, b, &Device::Cpu).unwrap();
            let inputs = xs.map(|x| vec![x, cos.clone(), sin.clone(), offsets.clone()]);
            let exact = Tolerance::of_max(3e-7, "rounded tables, two products, one sum");
            check(
                &format!("{b} {t} {h} {d}"),
                |of| plan(&of[0], &of[1], &of[2], &of[3]).unwrap(),
                inputs,
                &expected,
                rounded(dtype, exact),
            );
        }
    }
}

#[test]
fn positions_beyond_the_tables_are_nan() {
    let [cos, sin] =
        RotaryTables::new(&[1.0, 0.1], 1.0, 10).unwrap().tensors(&Device::Cpu).unwrap();
    let x = Data::new(1).tensor(&[1, 4, 2, 5]);
    for (offset, good) in [(6u32, 4), (7, 3), (u32::MAX, 0)] {
        let offsets = Tensor::new(&[offset], &Device::Cpu).unwrap();
        let plan = plan(&x, &cos, &sin, &offsets).unwrap();
        for effort in EFFORTS {
            let y = numbers(&run(&plan, effort).unwrap()[0]);
            for (token, y) in y.chunks(10).enumerate() {
                assert!(y.iter().all(|y| y.is_nan() != (token < good)), "{offset} {token}: {y:?}");
            }
        }
    }
}

#[test]
fn rotary_refuses() {
    let mut data = Data::new(1);
    let [cos, sin] =
        RotaryTables::new(&[1.0, 0.1], 1.0, 10).unwrap().tensors(&Device::Cpu).unwrap();
    let offsets = Tensor::new(&[0u32], &Device::Cpu).unwrap();
    let (x, narrow) = (data.tensor(&[1, 4, 1, 4]), data.tensor(&[1, 4, 1, 3]));
    assert!(plan(&x, &cos, &sin, &offsets).is_ok());
    let refused = plan(&narrow, &cos, &sin, &offsets);
    assert!(matches!(refused, Err(Error::Shape { what: "x", .. })));
    let signed = offsets.to_dtype(DType::I64).unwrap();
    let refused = plan(&x, &cos, &sin, &signed);
    assert!(matches!(refused, Err(Error::DType { what: "offsets", .. })));
    let two = Tensor::new(&[0u32, 0], &Device::Cpu).unwrap();
    let refused = plan(&x, &cos, &sin, &two);
    assert!(matches!(refused, Err(Error::Shape { what: "offsets", .. })));
}
