//! From stored numbers to `f32`, checked on the way.
//!
//! Vectors are converted here, matrices by [`Matrix`](super::Matrix) while they are
//! packed; either way the search for NaN and infinities is part of the same pass.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kernels::quantized::Encoding;
use rayon::prelude::*;

/// Elements that one task converts: whole blocks of every format.
const CHUNK: usize = 1 << 13;

/// How the elements of a tensor are stored: as floats or in quantized blocks
/// (see [`Encoding`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    /// The encoding of the blocks; `None` for floats.
    pub(crate) const fn encoding(self) -> Option<&'static Encoding> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Q4_0 => Some(Encoding::Q4_0),
            Self::Q4_1 => Some(Encoding::Q4_1),
            Self::Q5_0 => Some(Encoding::Q5_0),
            Self::Q5_1 => Some(Encoding::Q5_1),
            Self::Q8_0 => Some(Encoding::Q8_0),
            Self::Q2K => Some(Encoding::Q2K),
            Self::Q3K => Some(Encoding::Q3K),
            Self::Q4K => Some(Encoding::Q4K),
            Self::Q5K => Some(Encoding::Q5K),
            Self::Q6K => Some(Encoding::Q6K),
        }
    }

    /// Elements in a block.
    pub(crate) const fn block_len(self) -> usize {
        match self.encoding() {
            Some(encoding) => encoding.len,
            None => 1,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self.encoding() {
            Some(encoding) => encoding.bytes,
            None if matches!(self, Self::F32) => 4,
            None => 2,
        }
    }

    /// The name that files use.
    pub(crate) const fn name(self) -> &'static str {
        match self.encoding() {
            Some(encoding) => encoding.name,
            None => match self {
                Self::F32 => "F32",
                Self::F16 => "F16",
                _ => "BF16",
            },
        }
    }
}

/// A NaN or an infinity, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NotFinite {
    /// Flat index of the element.
    pub(crate) index: usize,
    pub(crate) value: f32,
}

impl Format {
    /// Writes stored little-endian elements into `out`: as many whole blocks as both hold.
    pub(crate) fn read(self, bytes: &[u8], out: &mut [f32]) {
        match (self, self.encoding()) {
            (_, Some(encoding)) => encoding.dequantize(bytes, out),
            (Self::F32, _) => {
                let stored = bytes.as_chunks().0.iter();
                out.iter_mut().zip(stored).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
            }
            (Self::F16, _) => {
                // Many at once: the processor's instruction converts eight.
                let mut halves = [f16::ZERO; 64];
                for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                    let halves = &mut halves[..out.len().min(bytes.len() / 2)];
                    let stored = bytes.as_chunks().0.iter();
                    halves.iter_mut().zip(stored).for_each(|(x, b)| *x = f16::from_le_bytes(*b));
                    halves.convert_to_f32_slice(&mut out[..halves.len()]);
                }
            }
            _ => {
                // The upper half of an f32.
                let stored = bytes.as_chunks().0.iter();
                out.iter_mut().zip(stored).for_each(|(x, b)| {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                });
            }
        }
    }
}

/// Writes stored little-endian elements into `out`, on all threads.
///
/// `bytes` must hold exactly the blocks of `out.len()` elements.
pub(crate) fn convert_into(format: Format, bytes: &[u8], out: &mut [f32]) -> Result<(), NotFinite> {
    const EXPONENT: u32 = 0x7f80_0000;
    let (len, size) = (format.block_len(), format.block_bytes());
    debug_assert_eq!(bytes.len() * len, out.len() * size);
    let bad = out
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK / len * size))
        .map(|(out, bytes)| {
            // Little enough that the check reads what conversion left in the cache.
            format.read(bytes, out);
            // Integer logic without a branch, so that the loop becomes vector code.
            out.iter().fold(false, |bad, x| bad | (x.to_bits() & EXPONENT == EXPONENT))
        })
        .reduce(|| false, |a, b| a | b);
    match out.iter().position(|x| bad && !x.is_finite()) {
        Some(index) => Err(NotFinite { index, value: out[index] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};
    use half::bf16;
    use serde_json::Value;

    use super::*;

    fn le(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn floats_are_read() {
        let values = [0.0f32, -1.5, 3.25, 65504.0, -2f32.powi(-14)];
        let mut out = [9f32; 5];
        convert_into(Format::F32, &le(&values), &mut out).unwrap();
        assert_eq!(out, values);
        let bytes: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        convert_into(Format::F16, &bytes, &mut out).unwrap();
        assert_eq!(out, values);
        let bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        convert_into(Format::Bf16, &bytes, &mut out).unwrap();
        assert_eq!(out[..3], values[..3]);
    }

    const BLOCKS: [Format; 10] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];

    #[test]
    fn blocks_are_read_as_candle_reads_them() {
        let values: Vec<f32> = (0..768).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let tensor = Tensor::from_slice(&values, (3, 256), &Device::Cpu).unwrap();
        for format in BLOCKS {
            let encoding = format.encoding().unwrap();
            let quantized = QTensor::quantize(&tensor, encoding.format).unwrap();
            let expected = quantized.dequantize(&Device::Cpu).unwrap();
            let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let bytes = quantized.data().unwrap();
            assert_eq!(bytes.len(), 768 / format.block_len() * format.block_bytes());
            let mut out = vec![0f32; 768];
            convert_into(format, &bytes, &mut out).unwrap();
            assert_eq!(out, expected, "{format:?}");
        }
    }

    #[test]
    fn golden_blocks() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/quants.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        // All rows of a format behind one another.
        let bytes = |name: &str, what: &str| -> Vec<u8> {
            let rows = golden[name][what].as_array().unwrap().iter();
            let hex: String = rows.map(|row| row.as_str().unwrap()).collect();
            let pairs = hex.as_bytes().as_chunks::<2>().0.iter();
            let digit = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
            pairs.map(|[high, low]| digit(*high) << 4 | digit(*low)).collect()
        };
        for format in BLOCKS {
            let expected = bytes(format.name(), "values");
            let mut out = vec![f32::NAN; expected.len() / 4];
            convert_into(format, &bytes(format.name(), "bytes"), &mut out).unwrap();
            assert_eq!(le(&out), expected, "{format:?}");
        }
    }

    #[test]
    fn the_first_bad_element_is_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, CHUNK, 3 * CHUNK + 17] {
                let mut values = vec![1f32; 3 * CHUNK + 40];
                values[at] = bad;
                let mut out = vec![0f32; values.len()];
                let found = convert_into(Format::F32, &le(&values), &mut out).unwrap_err();
                assert_eq!(found.index, at);
                assert_eq!(found.value.to_bits(), bad.to_bits());
            }
        }
        assert!(convert_into(Format::F32, &[], &mut []).is_ok());
    }

    #[test]
    fn bad_scales_are_found() {
        for (format, at) in [
            (Format::Q4_0, 0),
            (Format::Q4_1, 2),
            (Format::Q8_0, 0),
            (Format::Q2K, 82),
            (Format::Q3K, 108),
            (Format::Q5K, 2),
            (Format::Q6K, 208),
        ] {
            let len = format.block_len();
            let mut bytes = vec![0u8; 4 * format.block_bytes()];
            let place = 2 * format.block_bytes() + at;
            bytes[place..place + 2].copy_from_slice(&f16::NAN.to_le_bytes());
            let elements = convert_into(format, &bytes, &mut vec![0f32; 4 * len]).unwrap_err();
            assert_eq!(elements.index, 2 * len, "{format:?}");
        }
    }
}
