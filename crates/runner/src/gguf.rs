//! GGUF files: metadata and tensors of llama.cpp's model format.
//!
//! The file is little-endian: `GGUF`, version, counts, metadata entries, tensor
//! descriptions, then the data at the next multiple of the alignment. Everything
//! is read by one cursor over the mapped file that knows what it is reading, so
//! that a damaged file is refused with the place; memory is only taken for what
//! the file has bytes for. Arrays stay in the file until somebody asks for them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::config::fields::is_positive;
use crate::error::GgufFault as Fault;
use crate::weights::{Bytes, Format, convert_into};
use crate::{Error, Result};

const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Longest accepted key or tensor name, in bytes.
const MAX_NAME: usize = 1024;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// `count` elements of a type, at these bytes of the file.
    Array {
        element: u32,
        count: usize,
        range: Range<usize>,
    },
}

impl Value {
    fn describe(&self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(value) => format!("`{}`", value.chars().take(80).collect::<String>()),
            Self::Array { count, .. } => format!("an array of {count}"),
        }
    }
}

mod value_type {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// Fewest bytes that an element of an array takes.
fn min_bytes(element: u32) -> Option<usize> {
    use value_type::*;
    match element {
        U8 | I8 | BOOL => Some(1),
        U16 | I16 => Some(2),
        U32 | I32 | F32 => Some(4),
        U64 | I64 | F64 | STRING => Some(8),
        _ => None,
    }
}

/// One tensor of the file.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    pub(crate) format: Format,
    /// Slowest axis first.
    pub(crate) shape: Vec<usize>,
    /// The file that it is in, of a model in several.
    file: usize,
    /// Where its bytes lie in that file.
    range: Range<usize>,
}

/// An opened and checked GGUF file, or several that hold one model.
#[derive(Debug)]
pub(crate) struct Gguf {
    path: PathBuf,
    /// The first file, whose metadata are the model's, and those that go on with it.
    files: Vec<Opened>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// One opened and checked file.
#[derive(Debug)]
struct Opened {
    bytes: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Bytes before the tensors' data.
    header: Range<usize>,
}

/// Keys of a model in several files: this file's number, their number, and the
/// tensors of all together.
mod split {
    pub(super) const NO: &str = "split.no";
    pub(super) const COUNT: &str = "split.count";
    pub(super) const TENSORS: &str = "split.tensors.count";
    /// Most files of one model.
    pub(super) const MAX: usize = 1024;
}

impl Gguf {
    /// Opens a file and checks its header; of a model in several files, the first one
    /// names the others.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let first = Opened::open(path, 0)?;
        let mut gguf =
            Self { path: path.to_owned(), tensors: first.tensors.clone(), files: vec![first] };
        if gguf.has(split::COUNT) {
            gguf.open_others()?;
        }
        Ok(gguf)
    }

    fn open_others(&mut self) -> Result<()> {
        let count = self.count(split::COUNT, 1..=split::MAX)?;
        let number = if self.has(split::NO) { self.count(split::NO, 0..=split::MAX)? } else { 0 };
        let fault = |path: &Path, fault| Error::Gguf { path: path.to_owned(), fault };
        if number != 0 {
            return Err(fault(&self.path, Fault::SplitNotFirst { number: number + 1, count }));
        }
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ending = |number: usize| format!("-{:05}-of-{count:05}.gguf", number + 1);
        let stem = match name.strip_suffix(&ending(0)) {
            Some(stem) => stem.to_owned(),
            None if count == 1 => return Ok(()),
            None => {
                let expected = format!("NAME{}", ending(0));
                return Err(fault(&self.path, Fault::SplitName { count, expected }));
            }
        };
        for number in 1..count {
            let path = self.path.with_file_name(format!("{stem}{}", ending(number)));
            let opened = Opened::open(&path, number)?;
            let says = |key| match opened.metadata.get(key) {
                Some(Value::Integer(value)) => usize::try_from(*value).ok(),
                _ => None,
            };
            if says(split::NO) != Some(number) || says(split::COUNT) != Some(count) {
                return Err(fault(&path, Fault::SplitOther { number: number + 1, count }));
            }
            for (name, tensor) in &opened.tensors {
                if self.tensors.insert(name.clone(), tensor.clone()).is_some() {
                    return Err(fault(&path, Fault::Duplicate { name: name.clone() }));
                }
            }
            self.files.push(opened);
        }
        if self.has(split::TENSORS) {
            let expected = self.count(split::TENSORS, 0..=usize::MAX)?;
            if expected != self.tensors.len() {
                let found = self.tensors.len();
                return Err(fault(&self.path, Fault::SplitTensors { expected, found }));
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Every tensor by name.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    pub(crate) fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.files[tensor.file].bytes[tensor.range.clone()]
    }

    /// Everything before the tensors' data, of each file.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|file| &file.bytes[file.header.clone()])
    }

    fn metadata(&self, key: &str) -> Option<&Value> {
        self.files.first()?.metadata.get(key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.metadata(key).is_some()
    }

    /// Whether the key's value is an array.
    pub(crate) fn has_array(&self, key: &str) -> bool {
        matches!(self.metadata(key), Some(Value::Array { .. }))
    }

    fn fail<T>(&self, fault: Fault) -> Result<T> {
        Err(Error::Gguf { path: self.path.clone(), fault })
    }

    fn wrong<T>(&self, key: &str, value: &Value, expected: impl Into<String>) -> Result<T> {
        self.fail(Fault::Key {
            key: key.to_owned(),
            found: value.describe(),
            expected: expected.into(),
        })
    }

    fn value(&self, key: &str) -> Result<&Value> {
        match self.metadata(key) {
            Some(value) => Ok(value),
            None => self.fail(Fault::KeyMissing { key: key.to_owned() }),
        }
    }

    /// A required text.
    pub(crate) fn text(&self, key: &str) -> Result<&str> {
        match self.value(key)? {
            Value::Text(text) => Ok(text),
            other => self.wrong(key, other, "text"),
        }
    }

    /// A required whole number within bounds.
    pub(crate) fn count(
        &self,
        key: &str,
        bounds: std::ops::RangeInclusive<usize>,
    ) -> Result<usize> {
        let value = self.value(key)?;
        let number = match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        match number.filter(|number| bounds.contains(number)) {
            Some(number) => Ok(number),
            None => {
                let expected = format!("a number from {} to {}", bounds.start(), bounds.end());
                self.wrong(key, value, expected)
            }
        }
    }

    /// A required number above 0 in the range in which layers compute.
    pub(crate) fn positive(&self, key: &str) -> Result<f64> {
        let value = self.value(key)?;
        let number = match value {
            Value::Float(number) => *number,
            // Exact for every count that a configuration holds.
            Value::Integer(number) => *number as f64,
            _ => f64::NAN,
        };
        if is_positive(number) {
            Ok(number)
        } else {
            self.wrong(key, value, "a positive number in the range of f32")
        }
    }

    /// A vector of so many divisors, which are finite numbers above 0.
    pub(crate) fn divisors(&self, name: &str, tensor: &TensorInfo, n: usize) -> Result<Vec<f64>> {
        if tensor.shape != [n] {
            return Err(Error::TensorShape {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: vec![n],
                found: tensor.shape.clone(),
            });
        }
        let mut values = vec![0f32; n];
        let bad = |index, value| Error::NotFinite {
            path: self.path.clone(),
            tensor: name.to_owned(),
            index,
            value,
        };
        convert_into(tensor.format, self.data(tensor), &mut values)
            .map_err(|found| bad(found.index, found.value))?;
        match values.iter().position(|value| *value <= 0.0) {
            Some(index) => Err(bad(index, values[index])),
            None => Ok(values.into_iter().map(f64::from).collect()),
        }
    }

    /// A flag, with a value for when it is not there.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.metadata(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => self.wrong(key, other, "true or false"),
        }
    }

    /// A required array of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let value = self.value(key)?;
        let Value::Array { element: value_type::STRING, count, range } = value else {
            return self.wrong(key, value, "an array of texts");
        };
        let mut cursor = Cursor { bytes: &self.files[0].bytes[..range.end], at: range.start };
        (0..*count)
            .map(|_| cursor.string(key))
            .collect::<Result<_, _>>()
            .or_else(|fault| self.fail(fault))
    }

    /// A required array of floating-point numbers, or of 32-bit whole numbers.
    pub(crate) fn floats(&self, key: &str) -> Result<Vec<f32>> {
        use value_type::*;
        let value = self.value(key)?;
        let Value::Array { element: element @ (F32 | I32), count, range } = value else {
            return self.wrong(key, value, "an array of numbers");
        };
        let mut cursor = Cursor { bytes: &self.files[0].bytes[..range.end], at: range.start };
        let mut numbers = Vec::with_capacity(*count);
        for _ in 0..*count {
            match cursor.scalar(*element, key) {
                // As it was in the file.
                Ok(Value::Float(number)) => numbers.push(number as f32),
                Ok(Value::Integer(number)) => numbers.push(number as f32),
                Ok(other) => return self.wrong(key, &other, "a number"),
                Err(fault) => return self.fail(fault),
            }
        }
        Ok(numbers)
    }

    /// A required array of whole numbers.
    pub(crate) fn integers(&self, key: &str) -> Result<Vec<i64>> {
        use value_type::*;
        let value = self.value(key)?;
        let Value::Array { element, count, range } = value else {
            return self.wrong(key, value, "an array of whole numbers");
        };
        if !matches!(*element, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64) {
            return self.wrong(key, value, "an array of whole numbers");
        }
        let mut cursor = Cursor { bytes: &self.files[0].bytes[..range.end], at: range.start };
        let mut numbers = Vec::with_capacity(*count);
        for _ in 0..*count {
            match cursor.scalar(*element, key) {
                Ok(Value::Integer(number)) => {
                    numbers.push(i64::try_from(number).unwrap_or(i64::MAX))
                }
                Ok(other) => return self.wrong(key, &other, "a whole number"),
                Err(fault) => return self.fail(fault),
            }
        }
        Ok(numbers)
    }
}

impl Opened {
    /// Opens a file and checks its header; `number` is its place among its model's.
    fn open(path: &Path, number: usize) -> Result<Self> {
        let bytes = Bytes::map(path)?;
        Self::read(bytes, number).map_err(|fault| Error::Gguf { path: path.to_owned(), fault })
    }

    fn read(bytes: Bytes, number: usize) -> Result<Self, Fault> {
        let mut cursor = Cursor { bytes: &bytes, at: 0 };
        if !bytes.starts_with(b"GGUF") {
            return Err(Fault::Magic { found: bytes.iter().copied().take(4).collect() });
        }
        cursor.at = 4;
        let version = cursor.u32("the version")?;
        if !matches!(version, 2 | 3) {
            return Err(Fault::Version { found: version });
        }
        // A description takes at least 24 bytes (name length, rank, type, offset), an entry 13.
        let n_tensors = cursor.count("the tensor count", 24)?;
        let n_entries = cursor.count("the metadata count", 13)?;
        let (mut metadata, mut tensors) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..n_entries {
            let key = cursor.name("a metadata key")?.to_owned();
            let value = cursor.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(Fault::Duplicate { name: key });
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Integer(value)) => u64::try_from(*value)
                .ok()
                .filter(|a| a.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(a))
                .ok_or(Fault::Alignment { found: u64::try_from(*value).unwrap_or(0) })?,
            Some(_) => return Err(Fault::Alignment { found: 0 }),
        };
        let mut described = Vec::new();
        for _ in 0..n_tensors {
            described.push(cursor.tensor()?);
        }
        let data = (cursor.at as u64).next_multiple_of(alignment);
        let header = 0..cursor.at;
        for raw in described {
            let name = raw.name.clone();
            let info = raw.place(number, data, alignment, bytes.len())?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(Fault::Duplicate { name });
            }
        }
        let opened = Self { bytes, metadata, tensors, header };
        opened.check_overlaps()?;
        Ok(opened)
    }

    fn check_overlaps(&self) -> Result<(), Fault> {
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| tensor.range.start);
        match order.windows(2).find(|pair| pair[1].1.range.start < pair[0].1.range.end) {
            Some(pair) => {
                Err(Fault::Overlap { first: pair[0].0.clone(), second: pair[1].0.clone() })
            }
            None => Ok(()),
        }
    }
}

/// A tensor's description before its place is checked.
struct Described {
    name: String,
    dims: Vec<u64>,
    format: Format,
    offset: u64,
}

impl Described {
    fn place(
        self,
        number: usize,
        data: u64,
        alignment: u64,
        bytes: usize,
    ) -> Result<TensorInfo, Fault> {
        let Self { name, dims, format, offset } = self;
        let tensor = || name.clone();
        if dims.is_empty() || dims.len() > 4 || dims.contains(&0) {
            return Err(Fault::Dimensions { tensor: tensor(), dims });
        }
        if !offset.is_multiple_of(alignment) {
            return Err(Fault::Unaligned { tensor: tensor(), offset, alignment });
        }
        if !dims[0].is_multiple_of(format.block_len() as u64) {
            return Err(Fault::Blocks {
                tensor: tensor(),
                row: dims[0],
                block: format.block_len(),
                dtype: format.name(),
            });
        }
        let needed = dims
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .and_then(|n| (n / format.block_len() as u64).checked_mul(format.block_bytes() as u64));
        let start = data.saturating_add(offset);
        let end = needed.and_then(|needed| start.checked_add(needed));
        match end.filter(|&end| end <= bytes as u64) {
            Some(end) => Ok(TensorInfo {
                format,
                // Each fits, because their product does.
                shape: dims.iter().rev().map(|&d| d as usize).collect(),
                file: number,
                range: start as usize..end as usize,
            }),
            None => Err(Fault::OutOfBounds {
                tensor: tensor(),
                start,
                needed: needed.unwrap_or(u64::MAX),
                bytes,
            }),
        }
    }
}

/// A position in the file's header.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Fault> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        self.at = self.at.saturating_add(n);
        taken.ok_or_else(|| Fault::Truncated { what: what.to_owned(), bytes: self.bytes.len() })
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take at least `each` bytes, checked against what is left.
    fn count(&mut self, what: &str, each: usize) -> Result<usize, Fault> {
        let claimed = self.u64(what)?;
        let left = self.bytes.len().saturating_sub(self.at);
        usize::try_from(claimed).ok().filter(|&n| n <= left / each).ok_or_else(|| Fault::Count {
            what: what.to_owned(),
            claimed,
            bytes: self.bytes.len(),
        })
    }

    fn string(&mut self, what: &str) -> Result<&'a str, Fault> {
        let length = self.count(what, 1)?;
        std::str::from_utf8(self.take(length, what)?)
            .map_err(|_| Fault::Utf8 { what: what.to_owned() })
    }

    /// A string that messages may repeat.
    fn name(&mut self, what: &str) -> Result<&'a str, Fault> {
        let name = self.string(what)?;
        if name.len() > MAX_NAME {
            let (what, bytes) = (what.to_owned(), name.len());
            return Err(Fault::LongName { what, bytes, limit: MAX_NAME });
        }
        Ok(name)
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<Value, Fault> {
        use value_type::*;
        Ok(match kind {
            U8 => Value::Integer(self.array(key).map(u8::from_le_bytes)?.into()),
            I8 => Value::Integer(self.array(key).map(i8::from_le_bytes)?.into()),
            U16 => Value::Integer(self.array(key).map(u16::from_le_bytes)?.into()),
            I16 => Value::Integer(self.array(key).map(i16::from_le_bytes)?.into()),
            U32 => Value::Integer(self.u32(key)?.into()),
            I32 => Value::Integer(self.array(key).map(i32::from_le_bytes)?.into()),
            U64 => Value::Integer(self.u64(key)?.into()),
            I64 => Value::Integer(self.array(key).map(i64::from_le_bytes)?.into()),
            F32 => Value::Float(self.array(key).map(f32::from_le_bytes)?.into()),
            F64 => Value::Float(self.array(key).map(f64::from_le_bytes)?),
            BOOL => match self.array::<1>(key)? {
                [flag @ (0 | 1)] => Value::Bool(flag == 1),
                [other] => {
                    return Err(Fault::Key {
                        key: key.to_owned(),
                        found: other.to_string(),
                        expected: "0 or 1 for a flag".to_owned(),
                    });
                }
            },
            STRING => Value::Text(self.string(key)?.to_owned()),
            found => return Err(Fault::ValueType { key: key.to_owned(), found }),
        })
    }

    fn value(&mut self, key: &str) -> Result<Value, Fault> {
        let kind = self.u32(key)?;
        if kind != value_type::ARRAY {
            return self.scalar(kind, key);
        }
        let element = self.u32(key)?;
        let each = min_bytes(element)
            .ok_or_else(|| Fault::ValueType { key: key.to_owned(), found: element })?;
        let count = self.count(key, each)?;
        let start = self.at;
        if element == value_type::STRING {
            for _ in 0..count {
                self.string(key)?;
            }
        } else {
            self.take(count * each, key)?;
        }
        Ok(Value::Array { element, count, range: start..self.at })
    }

    fn tensor(&mut self) -> Result<Described, Fault> {
        let name = self.name("a tensor's name")?.to_owned();
        let rank = self.u32(&name)?;
        if rank > 4 {
            return Err(Fault::Dimensions { tensor: name, dims: vec![] });
        }
        let dims = (0..rank).map(|_| self.u64(&name)).collect::<Result<_, _>>()?;
        let kind = self.u32(&name)?;
        let offset = self.u64(&name)?;
        match format_of(kind) {
            Ok(format) => Ok(Described { name, dims, format, offset }),
            Err(found) => Err(Fault::Quantization { tensor: name, found }),
        }
    }
}

/// The format with this number, or the name of one that is not built.
fn format_of(kind: u32) -> Result<Format, String> {
    Err(match kind {
        0 => return Ok(Format::F32),
        1 => return Ok(Format::F16),
        2 => return Ok(Format::Q4_0),
        3 => return Ok(Format::Q4_1),
        6 => return Ok(Format::Q5_0),
        7 => return Ok(Format::Q5_1),
        8 => return Ok(Format::Q8_0),
        10 => return Ok(Format::Q2K),
        11 => return Ok(Format::Q3K),
        12 => return Ok(Format::Q4K),
        13 => return Ok(Format::Q5K),
        14 => return Ok(Format::Q6K),
        30 => return Ok(Format::Bf16),
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return Err(format!("type number {other}")),
    }
    .to_owned())
}
