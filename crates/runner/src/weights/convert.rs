//! From stored numbers to `f32`, checked on the way.
//!
//! Conversion, copy and the search for NaN and infinities are one parallel pass
//! over the data, so that the check costs no second reading of the weights.

use half::{bf16, f16};
use rayon::prelude::*;

/// Blocks that one task converts.
const CHUNK: usize = 1 << 14;

/// How the elements of a tensor are stored.
///
/// Quantized formats hold 32 elements a block: `Q4_0` a scale `d` and 4-bit `q`,
/// `x = d (q − 8)`; `Q4_1` a scale and a minimum, `x = d q + m`; `Q8_0` a scale
/// and 8-bit `q`, `x = d q`. In 4-bit blocks byte `j` holds elements `j` (low
/// half) and `j + 16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q8_0,
}

impl Format {
    /// Elements in a block.
    pub(crate) const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// The name that files use.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
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

/// Writes stored little-endian elements into `out`.
///
/// `bytes` must hold exactly the blocks of `out.len()` elements.
pub(crate) fn convert_into(format: Format, bytes: &[u8], out: &mut [f32]) -> Result<(), NotFinite> {
    debug_assert_eq!(bytes.len() * format.block_len(), out.len() * format.block_bytes());
    match format {
        Format::F32 => each::<4, 1>(bytes, out, |b, x| x[0] = f32::from_le_bytes(*b)),
        Format::F16 => each::<2, 1>(bytes, out, |b, x| x[0] = f16::from_le_bytes(*b).to_f32()),
        Format::Bf16 => each::<2, 1>(bytes, out, |b, x| x[0] = bf16::from_le_bytes(*b).to_f32()),
        Format::Q4_0 => each::<18, 32>(bytes, out, |b, x| {
            let d = half_at(b, 0);
            nibbles(&b[2..], x, |q| d * (f32::from(q) - 8.0));
        }),
        Format::Q4_1 => each::<20, 32>(bytes, out, |b, x| {
            let (d, m) = (half_at(b, 0), half_at(b, 2));
            nibbles(&b[4..], x, |q| d * f32::from(q) + m);
        }),
        Format::Q8_0 => each::<34, 32>(bytes, out, |b, x| {
            let d = half_at(b, 0);
            for (x, q) in x.iter_mut().zip(&b[2..]) {
                *x = d * f32::from(q.cast_signed());
            }
        }),
    }
}

/// Finds a block whose scale or minimum is NaN or infinite, without converting.
pub(crate) fn check_scales(format: Format, bytes: &[u8]) -> Result<(), NotFinite> {
    let halves = match format {
        Format::Q4_1 => 2,
        Format::Q4_0 | Format::Q8_0 => 1,
        Format::F32 | Format::F16 | Format::Bf16 => 0,
    };
    let bad =
        |block: &[u8]| (0..halves).map(|i| half_at(block, 2 * i)).find(|value| !value.is_finite());
    let found = bytes
        .par_chunks_exact(format.block_bytes())
        .with_min_len(CHUNK)
        .enumerate()
        .find_map_first(|(i, block)| bad(block).map(|value| (i * format.block_len(), value)));
    found.map_or(Ok(()), |(index, value)| Err(NotFinite { index, value }))
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn nibbles(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(byte & 0x0f);
        *high = value(byte >> 4);
    }
}

/// Converts block by block, `N` bytes to `M` elements.
fn each<const N: usize, const M: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; N], &mut [f32; M]) + Sync,
) -> Result<(), NotFinite> {
    const EXPONENT: u32 = 0x7f80_0000;
    let (blocks, _) = bytes.as_chunks::<N>();
    let finite = out
        .par_chunks_mut(CHUNK * M)
        .zip(blocks.par_chunks(CHUNK))
        .map(|(out, blocks)| {
            // Integer logic without a branch, so that the loop becomes vector code.
            let mut bad = false;
            for (out, block) in out.as_chunks_mut::<M>().0.iter_mut().zip(blocks) {
                read(block, out);
                for x in out {
                    bad |= x.to_bits() & EXPONENT == EXPONENT;
                }
            }
            !bad
        })
        .reduce(|| true, |a, b| a && b);
    match out.iter().position(|x| !finite && !x.is_finite()) {
        Some(index) => Err(NotFinite { index, value: out[index] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

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

    #[test]
    fn blocks_are_read_as_candle_reads_them() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let tensor = Tensor::from_slice(&values, (3, 32), &Device::Cpu).unwrap();
        for (format, dtype) in [
            (Format::Q4_0, GgmlDType::Q4_0),
            (Format::Q4_1, GgmlDType::Q4_1),
            (Format::Q8_0, GgmlDType::Q8_0),
        ] {
            let quantized = QTensor::quantize(&tensor, dtype).unwrap();
            let expected = quantized.dequantize(&Device::Cpu).unwrap();
            let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let bytes = quantized.data().unwrap();
            assert_eq!(bytes.len(), 3 * format.block_bytes());
            let mut out = vec![0f32; 96];
            convert_into(format, &bytes, &mut out).unwrap();
            assert_eq!(out, expected, "{format:?}");
            check_scales(format, &bytes).unwrap();
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
    fn bad_scales_are_found_in_both_ways() {
        for (format, at) in [(Format::Q4_0, 0), (Format::Q4_1, 2), (Format::Q8_0, 0)] {
            let mut bytes = vec![0u8; 4 * format.block_bytes()];
            let place = 2 * format.block_bytes() + at;
            bytes[place..place + 2].copy_from_slice(&f16::NAN.to_le_bytes());
            let scales = check_scales(format, &bytes).unwrap_err();
            let elements = convert_into(format, &bytes, &mut [0f32; 128]).unwrap_err();
            assert_eq!((scales.index, elements.index), (64, 64));
        }
    }
}
