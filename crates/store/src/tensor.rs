//! Element types of stored tensors, and conversion between the floating ones.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The type of a tensor's elements, little-endian in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum ElementType {
    /// 64-bit floating point.
    F64,
    /// 32-bit floating point.
    F32,
    /// IEEE 16-bit floating point: 11 significant bits, up to 65 504.
    F16,
    /// The upper half of an `F32`: 8 significant bits, the same range.
    BF16,
    /// Signed 64-bit integers.
    I64,
    /// Signed 32-bit integers.
    I32,
    /// Signed 16-bit integers.
    I16,
    /// Unsigned 32-bit integers.
    U32,
    /// Unsigned 8-bit integers.
    U8,
}

impl ElementType {
    /// Every element type.
    pub const ALL: [ElementType; 9] = [
        ElementType::F64,
        ElementType::F32,
        ElementType::F16,
        ElementType::BF16,
        ElementType::I64,
        ElementType::I32,
        ElementType::I16,
        ElementType::U32,
        ElementType::U8,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            ElementType::F64 | ElementType::I64 => 8,
            ElementType::F32 | ElementType::I32 | ElementType::U32 => 4,
            ElementType::F16 | ElementType::BF16 | ElementType::I16 => 2,
            ElementType::U8 => 1,
        }
    }

    /// Its name in the safetensors format.
    pub const fn name(self) -> &'static str {
        match self {
            ElementType::F64 => "F64",
            ElementType::F32 => "F32",
            ElementType::F16 => "F16",
            ElementType::BF16 => "BF16",
            ElementType::I64 => "I64",
            ElementType::I32 => "I32",
            ElementType::I16 => "I16",
            ElementType::U32 => "U32",
            ElementType::U8 => "U8",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<ElementType> {
        ElementType::ALL.into_iter().find(|e| e.name() == name)
    }

    const fn is_float(self) -> bool {
        matches!(self, ElementType::F64 | ElementType::F32 | ElementType::F16 | ElementType::BF16)
    }
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The type in which floating tensors are stored; integers always stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StoredType {
    /// As it is given.
    #[default]
    AsIs,
    /// 32-bit floating point.
    F32,
    /// IEEE 16-bit floating point.
    F16,
    /// The upper half of an `F32`.
    BF16,
}

impl StoredType {
    /// The element type in which a tensor of type `given` is stored.
    pub const fn of(self, given: ElementType) -> ElementType {
        match self {
            _ if !given.is_float() => given,
            StoredType::AsIs => given,
            StoredType::F32 => ElementType::F32,
            StoredType::F16 => ElementType::F16,
            StoredType::BF16 => ElementType::BF16,
        }
    }
}

/// A tensor to be stored: row-major, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The type of its elements.
    pub element: ElementType,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its elements.
    pub bytes: &'a [u8],
}

/// A tensor that was read: row-major, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorData {
    /// The type of its elements.
    pub element: ElementType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub bytes: Vec<u8>,
}

/// What is known of a stored tensor without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its key, `{prompt}/{name}`.
    pub key: String,
    /// The type of its elements.
    pub element: ElementType,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Bytes of a tensor; `None` if they cannot be counted.
pub(crate) fn byte_count(element: ElementType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(element.size(), |n, &axis| n.checked_mul(axis))
}

/// Converts floating elements, of which `bytes` holds a whole number, and appends them to `out`.
///
/// # Numerics
/// Rounds once, to nearest, ties to even; NaN stays NaN and infinities stay infinite.
///
/// # Errors
/// [`Error::Overflow`] where a finite value would become infinite; `first` is the index of
/// the first element in its tensor.
pub(crate) fn convert(
    tensor: &str,
    first: usize,
    from: ElementType,
    to: ElementType,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<()> {
    if from == to {
        out.extend_from_slice(bytes);
        return Ok(());
    }
    for (i, element) in bytes.chunks_exact(from.size()).enumerate() {
        let value = widen(from, element);
        let kept = narrow(to, value, out);
        if value.is_finite() && !kept.is_finite() {
            return Err(Error::Overflow {
                tensor: tensor.to_owned(),
                index: first + i,
                value,
                stored: to,
            });
        }
    }
    Ok(())
}

/// The value of one floating element; every floating type fits `f64` exactly.
fn widen(from: ElementType, bytes: &[u8]) -> f64 {
    match (from, bytes) {
        (ElementType::F64, &[a, b, c, d, e, f, g, h]) => {
            f64::from_le_bytes([a, b, c, d, e, f, g, h])
        }
        (ElementType::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        (ElementType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
        (ElementType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f64(),
        _ => f64::NAN,
    }
}

/// The neighbouring `f32` that tells a later rounding to nearest all it needs.
///
/// A value between two `f32` becomes the one whose last bit is set.  That bit then
/// stands for everything cut off, so rounding the result to a type with at least
/// two bits less is the same as rounding the value itself, once.
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if nearest.is_nan() || f64::from(nearest) == value {
        return nearest;
    }
    let beyond = f64::from(nearest).abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(beyond)) | 1)
}

/// Appends a value in a floating type and returns it as rounded.
fn narrow(to: ElementType, value: f64, out: &mut Vec<u8>) -> f64 {
    match to {
        ElementType::F32 => {
            let v = value as f32;
            out.extend_from_slice(&v.to_le_bytes());
            f64::from(v)
        }
        ElementType::F16 => {
            let v = f16::from_f32(round_to_odd(value));
            out.extend_from_slice(&v.to_le_bytes());
            v.to_f64()
        }
        ElementType::BF16 => {
            let v = bf16::from_f32(round_to_odd(value));
            out.extend_from_slice(&v.to_le_bytes());
            v.to_f64()
        }
        _ => {
            out.extend_from_slice(&value.to_le_bytes());
            value
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn converted(to: ElementType, values: &[f32]) -> Result<Vec<f64>> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut out = Vec::new();
        convert("t", 0, ElementType::F32, to, &bytes, &mut out)?;
        Ok(out.chunks_exact(to.size()).map(|c| widen(to, c)).collect())
    }

    /// Every midpoint between neighbours, and the values just beside it.
    #[test]
    fn rounds_once_to_nearest_even() {
        for to in [ElementType::F16, ElementType::BF16] {
            let value = |bits: u16| widen(to, &bits.to_le_bytes());
            let mut tried = 0;
            for bits in 0..0x7FFF_u16 {
                let (low, high) = (value(bits), value(bits + 1));
                if !high.is_finite() {
                    break;
                }
                let middle = f64::midpoint(low, high);
                let even = if bits % 2 == 0 { low } else { high };
                let cases = [
                    (middle, even),
                    (middle.next_down(), low),
                    (middle.next_up(), high),
                    (low, low),
                ];
                for (given, expected) in cases {
                    for sign in [1.0, -1.0] {
                        let mut out = Vec::new();
                        let bytes = (sign * given).to_le_bytes();
                        convert("t", 0, ElementType::F64, to, &bytes, &mut out).unwrap();
                        assert_eq!(widen(to, &out), sign * expected, "{to} {given:e}");
                    }
                }
                tried += 1;
            }
            assert!(tried > 31_000);
        }
    }

    #[test]
    fn overflow_is_an_error_and_infinity_is_not() {
        assert!(matches!(
            converted(ElementType::F16, &[1.0, 70_000.0]),
            Err(Error::Overflow { index: 1, stored: ElementType::F16, .. })
        ));
        assert!(converted(ElementType::BF16, &[f32::MAX]).is_err());
        let kept = converted(ElementType::F16, &[f32::NEG_INFINITY, f32::NAN]).unwrap();
        assert_eq!(kept[0], f64::NEG_INFINITY);
        assert!(kept[1].is_nan());
    }

    #[test]
    fn integers_stay_and_names_round_trip() {
        for element in ElementType::ALL {
            assert_eq!(ElementType::parse(element.name()), Some(element));
            assert_eq!(
                StoredType::F16.of(element) == element,
                !element.is_float() || element == ElementType::F16
            );
        }
    }

    #[test]
    fn bytes_are_counted_with_care() {
        assert_eq!(byte_count(ElementType::F32, &[2, 3]), Some(24));
        assert_eq!(byte_count(ElementType::F32, &[]), Some(4));
        assert_eq!(byte_count(ElementType::F32, &[0, usize::MAX]), Some(0));
        assert_eq!(byte_count(ElementType::F32, &[usize::MAX, 2]), None);
    }
}
