use candle_core::{Device, Tensor};
use kernels::divergence::{divergence, surprisal};
use kernels::{Error, reference};
use testkit::{Data, guarded};

use crate::on_threads;

fn tensor(rows: &[&[f32]]) -> Tensor {
    let values: Vec<f32> = rows.concat();
    Tensor::from_vec(values, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

#[test]
fn divergence_is_the_reference() {
    for (n, width) in [(1, 1), (1, 2), (3, 31), (2, 32), (5, 33), (2, 65_537)] {
        let mut data = Data::new(width as u64);
        let (p, q) = (data.tensor(&[n, width]), data.tensor(&[n, width]));
        let (x, y) = (p.to_vec2::<f32>().unwrap(), q.to_vec2::<f32>().unwrap());
        let found = divergence(&guarded(&p), &guarded(&q)).unwrap();
        assert_eq!(found.len(), n);
        for (row, found) in found.iter().enumerate() {
            let forward = reference::kl_divergence(&x[row], &y[row]);
            let reverse = reference::kl_divergence(&y[row], &x[row]);
            // Logs of ratios of rounded probabilities: some ulp of terms of order 1.
            assert!((found.forward - forward).abs() <= 1e-13, "{found:?} {forward}");
            assert!((found.reverse - reverse).abs() <= 1e-13, "{found:?} {reverse}");
            let differences = x[row].iter().zip(&y[row]);
            let largest = differences.map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs());
            assert_eq!(found.largest_difference, largest.fold(0.0, f64::max));
        }
        let tokens: Vec<u32> = (0..n).map(|row| (row * 7 % width) as u32).collect();
        for (row, found) in surprisal(&guarded(&p), &tokens).unwrap().into_iter().enumerate() {
            let expected = reference::surprisal(&x[row], tokens[row] as usize);
            assert!((found - expected).abs() <= 1e-13 * expected.max(1.0), "{found} {expected}");
        }
    }
}

#[test]
fn equal_logits_and_shifted_ones() {
    let p = Data::new(3).tensor(&[4, 100]);
    for found in divergence(&p, &p).unwrap() {
        assert_eq!((found.forward, found.reverse), (0.0, 0.0));
        assert_eq!((found.same_top, found.largest_difference), (true, 0.0));
    }
    // Whole numbers: the sum is exact, and the distribution is the same.
    let p = tensor(&[&[0.0, 1.0, 2.0, 3.0]]);
    let found = divergence(&p, &(&p + 64.0).unwrap()).unwrap()[0];
    assert!(found.forward.abs() < 1e-14 && found.reverse.abs() < 1e-14, "{found:?}");
    assert_eq!((found.same_top, found.largest_difference), (true, 64.0));
}

#[test]
fn probabilities_below_the_smallest_number() {
    // q gives the token that p is sure of the probability e^-2000, nearly.
    let p = tensor(&[&[0.0, -2000.0]]);
    let q = tensor(&[&[-2000.0, 0.0]]);
    let found = divergence(&p, &q).unwrap()[0];
    assert_eq!((found.forward, found.reverse), (2000.0, 2000.0));
    assert!(!found.same_top);
    assert_eq!(surprisal(&p, &[1]).unwrap(), [2000.0]);
}

#[test]
fn the_top_of_equal_logits_is_the_first() {
    let found = divergence(&tensor(&[&[1.0, 2.0, 2.0]]), &tensor(&[&[0.0, 5.0, 4.0]])).unwrap();
    assert!(found[0].same_top);
    let found = divergence(&tensor(&[&[1.0, 2.0, 2.0]]), &tensor(&[&[0.0, 4.0, 5.0]])).unwrap();
    assert!(!found[0].same_top);
}

#[test]
fn threads_change_no_bit() {
    let mut data = Data::new(9);
    let (p, q) = (data.tensor(&[40, 700]), data.tensor(&[40, 700]));
    let one = on_threads(1, || divergence(&p, &q).unwrap());
    assert_eq!(one, on_threads(3, || divergence(&p, &q).unwrap()));
}

#[test]
fn wrong_arguments_are_refused() {
    let p = tensor(&[&[0.0, 1.0]]);
    for q in [tensor(&[&[0.0, 1.0, 2.0]]), tensor(&[&[0.0, 1.0], &[0.0, 1.0]])] {
        assert!(matches!(divergence(&p, &q), Err(Error::Shape { what: "q", .. })));
    }
    let flat = Tensor::new(&[0f32, 1.0], &Device::Cpu).unwrap();
    assert!(matches!(divergence(&flat, &p), Err(Error::Shape { what: "p", .. })));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let bad = tensor(&[&[0.0, bad]]);
        let error = divergence(&p, &bad).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { what: "q", index, .. } if *index == [0, 1]));
        assert!(matches!(surprisal(&bad, &[0]), Err(Error::NonFinite { .. })));
    }
    assert!(matches!(surprisal(&p, &[2]), Err(Error::Range { .. })));
    assert!(matches!(surprisal(&p, &[]), Err(Error::Range { .. })));
    let none = Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(divergence(&none, &none).unwrap(), []);
}
