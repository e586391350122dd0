//! Safetensors headers, read and checked before any tensor is touched.
//!
//! A file is `n: u64`, `n` bytes of JSON, then the data. The header is read here
//! rather than by the `safetensors` crate because that crate merges repeated
//! names and names neither the tensor nor the sizes when a header lies.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Bytes;
use crate::error::SafetensorsFault as Fault;

/// Longest accepted header in bytes; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// Longest accepted name of a tensor, in bytes.
const MAX_NAME: usize = 1024;
/// Most accepted dimensions of a tensor.
const MAX_RANK: usize = 8;
/// Longest part of a type's name that is kept, in characters.
const DTYPE_SHOWN: usize = 32;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Element type, as the header spells it.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub(crate) range: Range<usize>,
}

/// An opened file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) bytes: Bytes,
    pub(crate) entries: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's members in their order, so that repeated names are seen.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl File {
    /// Reads and checks a file's header.
    pub(crate) fn open(bytes: Bytes) -> Result<Self, Fault> {
        let (length, rest) =
            bytes.split_first_chunk::<8>().ok_or(Fault::TooShort { bytes: bytes.len() })?;
        let claimed = u64::from_le_bytes(*length);
        if claimed > MAX_HEADER {
            return Err(Fault::HeaderTooLong { claimed, limit: MAX_HEADER });
        }
        let header = usize::try_from(claimed)
            .ok()
            .and_then(|end| rest.get(..end))
            .ok_or(Fault::HeaderBeyondFile { claimed, available: rest.len() })?;
        let RawHeader(raw) = serde_json::from_slice(header)
            .map_err(|error| Fault::Header { reason: error.to_string() })?;
        let data = 8 + header.len();
        let available = bytes.len() - data;
        let mut entries = BTreeMap::new();
        for (name, raw) in raw {
            let entry = check(&name, raw, data, available)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(Fault::Duplicate { tensor: name });
            }
        }
        check_overlaps(&entries)?;
        Ok(Self { bytes, entries })
    }

    /// A tensor's bytes.
    pub(crate) fn data(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.range.clone()]
    }
}

/// Turns a claim about a tensor into a range that is known to be in the file.
fn check(name: &str, mut raw: RawEntry, data: usize, available: usize) -> Result<Entry, Fault> {
    if name.len() > MAX_NAME {
        return Err(Fault::LongName { bytes: name.len(), limit: MAX_NAME });
    }
    if raw.shape.len() > MAX_RANK {
        let (found, limit) = (raw.shape.len(), MAX_RANK);
        return Err(Fault::Rank { tensor: name.to_owned(), found, limit });
    }
    raw.dtype = raw.dtype.chars().take(DTYPE_SHOWN).collect();
    let (start, end) = raw.data_offsets;
    let range = usize::try_from(start)
        .ok()
        .zip(usize::try_from(end).ok())
        .filter(|&(start, end)| start <= end && end <= available)
        .map(|(start, end)| data + start..data + end)
        .ok_or_else(|| Fault::OutOfBounds { tensor: name.to_owned(), start, end, available })?;
    let elements = raw.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let bits = element_bits(&raw.dtype);
    let sized = match (elements, bits) {
        (Some(elements), Some(bits)) => {
            elements.checked_mul(bits).map(|bits| bits.div_ceil(8)) == Some(end - start)
        }
        // An unknown type has an unknown size; it is refused by name when it is loaded.
        (Some(_), None) => true,
        (None, _) => false,
    };
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    match shape {
        Some(shape) if sized => Ok(Entry { dtype: raw.dtype, shape, range }),
        _ => Err(Fault::Size {
            tensor: name.to_owned(),
            dtype: raw.dtype,
            shape: raw.shape,
            bytes: end - start,
        }),
    }
}

fn element_bits(dtype: &str) -> Option<u64> {
    match dtype {
        "F64" | "I64" | "U64" | "C64" => Some(64),
        "F32" | "I32" | "U32" => Some(32),
        "F16" | "BF16" | "I16" | "U16" => Some(16),
        "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "I8" | "U8" | "BOOL" => Some(8),
        "F4" => Some(4),
        _ => None,
    }
}

fn check_overlaps(entries: &BTreeMap<String, Entry>) -> Result<(), Fault> {
    let mut order: Vec<_> = entries.iter().filter(|(_, entry)| !entry.range.is_empty()).collect();
    order.sort_by_key(|(_, entry)| entry.range.start);
    match order.windows(2).find(|pair| pair[1].1.range.start < pair[0].1.range.end) {
        Some(pair) => Err(Fault::Overlap { first: pair[0].0.clone(), second: pair[1].0.clone() }),
        None => Ok(()),
    }
}
