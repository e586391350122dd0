use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::cuda::cache_append::{Input, plan};
use kernels::reference;
use testkit::Data;
use testkit::cases::CACHE_APPEND;

use super::{DTYPES, layouts, numbers};
use crate::machine::{EFFORTS, run};

fn words(values: &[usize]) -> Tensor {
    let words: Vec<u32> = values.iter().map(|&value| value as u32).collect();
    Tensor::from_vec(words, values.len(), &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    numbers(tensor).into_iter().map(f64::from).collect()
}

#[test]
fn new_tokens_go_to_their_places_and_nothing_else_changes() {
    for dtype in DTYPES {
        for ([t, s, h, d, dv], lengths, offsets) in CACHE_APPEND {
            let (b, mut data) = (lengths.len(), Data::new((t + s + d) as u64));
            let mut tensor = |dims: [usize; 4]| data.tensor(&dims);
            let (k, v) = (tensor([b, t, h, d]), tensor([b, t, h, dv]));
            let held = [tensor([b, s, h, d]), tensor([b, s, h, dv])]
                .map(|held| held.to_dtype(dtype).unwrap());
            let (counts, places) = (words(lengths), words(offsets));
            for (k, v) in layouts(&k, dtype).iter().zip(&layouts(&v, dtype)) {
                let expected = [(k, &held[0], d), (v, &held[1], dv)].map(|(new, held, width)| {
                    let mut cache = wide(held);
                    let sizes = [t, s, h * width];
                    reference::cache_append(&mut cache, &wide(new), sizes, lengths, offsets);
                    cache
                });
                for effort in EFFORTS {
                    let [keys, values] = held.each_ref().map(|held| held.copy().unwrap());
                    let (lengths, offsets) = (&counts, &places);
                    let input = Input { k, v, lengths, offsets, keys: &keys, values: &values };
                    assert!(run(&plan(&input).unwrap(), effort).unwrap().is_empty());
                    let what = format!("{dtype:?} {t} {s} {h} {d} {dv} {effort:?}");
                    assert!(wide(&keys) == expected[0], "{what}: keys");
                    assert!(wide(&values) == expected[1], "{what}: values");
                }
            }
        }
    }
}

#[test]
fn numbers_that_are_none_are_copied_as_they_are() {
    let bits = [0x7fc0_1234u32, 0xffc0_0001, 0xff80_0000, 0x8000_0000];
    let new = Tensor::new(&[[[bits.map(f32::from_bits)]]], &Device::Cpu).unwrap();
    let cache = [(); 2].map(|()| Tensor::zeros((1, 2, 1, 4), DType::F32, &Device::Cpu).unwrap());
    let (lengths, offsets) = (words(&[1]), words(&[1]));
    let (lengths, offsets) = (&lengths, &offsets);
    let input = Input { k: &new, v: &new, lengths, offsets, keys: &cache[0], values: &cache[1] };
    run(&plan(&input).unwrap(), EFFORTS[0]).unwrap();
    for held in &cache {
        let got: Vec<u32> = numbers(held).into_iter().map(f32::to_bits).collect();
        assert_eq!(got, [0, 0, 0, 0, bits[0], bits[1], bits[2], bits[3]]);
    }
}

#[test]
fn cache_append_refuses() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    let new = zeros(&[2, 1, 2, 4], DType::F32);
    let cache = zeros(&[2, 8, 2, 4], DType::F32);
    let rows = words(&[1, 1]);
    let input =
        Input { k: &new, v: &new, lengths: &rows, offsets: &rows, keys: &cache, values: &cache };
    assert!(plan(&input).is_ok());
    let (narrow, half) = (zeros(&[2, 8, 2, 3], DType::F32), zeros(&[2, 8, 2, 4], DType::F16));
    let refused = plan(&Input { keys: &narrow, ..input });
    assert!(matches!(refused, Err(Error::Shape { what: "keys", .. })));
    let refused = plan(&Input { values: &half, ..input });
    assert!(matches!(refused, Err(Error::DType { what: "values", .. })));
    // What is written must be all there is between its first number and its last.
    let view = zeros(&[2, 16, 2, 4], DType::F32).narrow(1, 0, 8).unwrap();
    let refused = plan(&Input { keys: &view, ..input });
    assert!(matches!(refused, Err(Error::NonContiguous { what: "keys", .. })));
    let three = words(&[1, 1, 1]);
    let refused = plan(&Input { offsets: &three, ..input });
    assert!(matches!(refused, Err(Error::Shape { what: "offsets", .. })));
    let flat = zeros(&[2, 1, 8], DType::F32);
    let refused = plan(&Input { v: &flat, ..input });
    assert!(matches!(refused, Err(Error::Shape { what: "v", .. })));
}
