//! Prompts from Parquet files.
//!
//! A Parquet file of a few hundred bytes can claim pages of gigabytes, and the
//! library takes memory for a page before it unpacks it. So the headers of all
//! pages that will be read are looked at first, by a reader of their own.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;

use super::{Content, Field, MAX_FILE_BYTES, MAX_PROMPTS, Prompt, WithFields};
use crate::{Error, Result};

/// Rows that are read at once.
const BATCH: usize = 1024;
/// Bytes of text that are read at once, unless a page has more.
const BATCH_BYTES: u64 = 64 << 20;
/// Most bytes of a page, unpacked.
const MAX_PAGE: u64 = 256 << 20;
/// A page may unpack to so many bytes, whatever its size, ...
const SMALL_PAGE: u64 = 1 << 20;
/// ... and a larger one to so many for each of its bytes.
const MAX_RATIO: u64 = 1024;
/// Longest header of a page, in bytes.
const MAX_HEADER: u64 = 1 << 20;
/// Deepest nesting of a file's schema, and of a page's header.
const MAX_DEPTH: usize = 32;
/// Most bytes that describe a file.
const MAX_FOOTER: u64 = 64 << 20;

/// Reads the columns `text`, `response` and `id`, and those that are named.
pub(super) fn read(file: File, path: &Path, names: &[&str]) -> Result<Vec<WithFields>> {
    // The library asserts some of what damaged files break.
    catch_unwind(AssertUnwindSafe(|| read_columns(file, path, names))).unwrap_or_else(|panic| {
        let reason = panic.downcast_ref::<String>().map(String::as_str);
        let reason = reason.or_else(|| panic.downcast_ref::<&str>().copied());
        let source = ParquetError::General(reason.unwrap_or("it is damaged").to_owned());
        Err(Error::PromptParquet { path: path.to_owned(), source })
    })
}

fn read_columns(mut file: File, path: &Path, wanted: &[&str]) -> Result<Vec<WithFields>> {
    let broken = |source| Error::PromptParquet { path: path.to_owned(), source };
    check_footer(&mut file).map_err(broken)?;
    // What Arrow adds to the schema only says which of the types of texts was written.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let pages = file.try_clone().map_err(|source| broken(source.into()))?;
    let builder =
        ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(broken)?;
    let fields = builder.schema().fields();
    let found: Vec<String> =
        fields.iter().map(|f| format!("{} ({})", f.name(), f.data_type())).collect();
    let column_missing = || Error::PromptColumn { path: path.to_owned(), found: found.clone() };
    let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    let place = |name: &str| names.iter().position(|other| other == name);
    let text = place("text").ok_or_else(column_missing)?;
    let known = ["id", "response"].into_iter().chain(wanted.iter().copied());
    let roots: Vec<usize> = std::iter::once(text).chain(known.filter_map(place)).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots.iter().copied());

    let mut largest = 1;
    let mut pages = Pages { file: pages };
    for group in builder.metadata().row_groups() {
        for (leaf, column) in group.columns().iter().enumerate() {
            if roots.contains(&builder.parquet_schema().get_column_root_idx(leaf)) {
                largest = largest.max(pages.check(column).map_err(broken)?);
            }
        }
    }
    // A value is at most a page, and a short page may repeat a long value many times.
    let batch = (BATCH_BYTES / largest).clamp(1, BATCH as u64) as usize;
    let reader = builder.with_projection(mask).with_batch_size(batch).build().map_err(broken)?;

    let (mut prompts, mut bytes) = (Vec::new(), 0);
    for batch in reader {
        let batch = batch.map_err(|source| broken(source.into()))?;
        let text = batch.column_by_name("text").ok_or_else(column_missing)?;
        let text = strings(text, false).ok_or_else(column_missing)?;
        let ids = batch.column_by_name("id").map(|ids| strings(ids, true));
        let fields: Vec<Column> =
            wanted.iter().map(|name| Column::new(batch.column_by_name(name))).collect();
        let responses = batch
            .column_by_name("response")
            .map(|responses| strings(responses, false).ok_or_else(column_missing));
        let responses = responses.transpose()?;
        for row in 0..batch.num_rows() {
            let id = match &ids {
                Some(ids) => {
                    ids.as_ref().and_then(|ids| at(ids, row)).ok_or_else(column_missing)?
                }
                None => prompts.len().to_string(),
            };
            let text = at(&text, row).ok_or_else(column_missing)?;
            let fields: Vec<Field> = fields.iter().map(|column| column.at(row)).collect();
            bytes += fields.iter().map(|field| field.len() as u64).sum::<u64>();
            let response = responses.as_ref().and_then(|responses| at(responses, row));
            bytes += (id.len() + text.len() + response.as_ref().map_or(0, String::len)) as u64;
            if bytes > MAX_FILE_BYTES {
                let (path, limit) = (path.to_owned(), MAX_FILE_BYTES);
                return Err(Error::PromptFileSize { path, bytes, limit });
            }
            prompts.push((Prompt { id, content: Content::Text(text), response }, fields));
            if prompts.len() > MAX_PROMPTS {
                return Err(Error::TooManyPrompts { limit: MAX_PROMPTS });
            }
        }
    }
    Ok(prompts)
}

/// A column that was asked for by name.
enum Column {
    Missing,
    /// Strings, numbers or truth values, as strings.
    Scalars(StringArray),
    /// Anything else.
    Compound,
}

impl Column {
    fn new(column: Option<&ArrayRef>) -> Self {
        let Some(column) = column else {
            return Self::Missing;
        };
        let scalar = match column.data_type() {
            DataType::Boolean => arrow_cast::cast(column, &DataType::Utf8)
                .ok()
                .and_then(|column| column.as_string_opt::<i32>().cloned()),
            _ => strings(column, true),
        };
        scalar.map_or(Self::Compound, Self::Scalars)
    }

    fn at(&self, row: usize) -> Field {
        match self {
            Self::Missing => Field::Missing,
            Self::Scalars(strings) => at(strings, row).map_or(Field::Missing, Field::Value),
            Self::Compound => Field::Compound,
        }
    }
}

/// A column of strings of any kind, or of integers where they may be ids, as
/// strings; `None` for other columns.
fn strings(column: &ArrayRef, or_integers: bool) -> Option<StringArray> {
    let kind = column.data_type();
    let text = matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if !(text || or_integers && kind.is_integer()) {
        return None;
    }
    arrow_cast::cast(column, &DataType::Utf8).ok()?.as_string_opt::<i32>().cloned()
}

fn at(strings: &StringArray, row: usize) -> Option<String> {
    strings.is_valid(row).then(|| strings.value(row).to_owned())
}

fn refuse<T>(problem: String) -> Result<T, ParquetError> {
    Err(ParquetError::General(problem))
}

/// Checks that the description at the file's end is whole and its schema not deep:
/// the library descends into it.
fn check_footer(file: &mut File) -> Result<(), ParquetError> {
    const MAGIC: &[u8; 4] = b"PAR1";
    let bytes = file.metadata()?.len();
    let mut tail = [0; 8];
    if bytes < 12 {
        return refuse(format!("it has {bytes} bytes, fewer than the 12 of an empty file"));
    }
    file.seek(SeekFrom::Start(bytes - 8))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    if magic != *MAGIC {
        return refuse("it does not end with PAR1".to_owned());
    }
    if length > (bytes - 12).min(MAX_FOOTER) {
        return refuse(format!("its description claims {length} of the file's {bytes} bytes"));
    }
    file.seek(SeekFrom::Start(bytes - 8 - length))?;
    let mut footer = vec![0; length as usize];
    file.read_exact(&mut footer)?;
    file.rewind()?;
    match schema_depth(&footer) {
        Some(depth) if depth <= MAX_DEPTH => Ok(()),
        Some(depth) => refuse(format!("its schema is nested {depth} deep, at most {MAX_DEPTH}")),
        None => refuse("its description is damaged".to_owned()),
    }
}

/// How deep the schema of a file is nested; `None` if the description is damaged.
fn schema_depth(footer: &[u8]) -> Option<usize> {
    const SCHEMA: i16 = 2;
    const CHILDREN: i16 = 5;
    let mut compact = Compact { bytes: footer, at: 0 };
    let mut deepest = 0;
    compact.members(|field, kind, compact| {
        if field != SCHEMA || kind != kind::LIST {
            return compact.skip(kind, MAX_DEPTH);
        }
        let (element, count) = compact.list()?;
        // Children still to come at each level.
        let mut open: Vec<u64> = Vec::new();
        for _ in 0..count {
            let mut children = 0;
            if element != kind::STRUCT {
                return None;
            }
            compact.members(|field, kind, compact| {
                if field == CHILDREN && kind == kind::I32 {
                    children = u64::try_from(compact.zigzag()?).ok()?;
                    return Some(());
                }
                compact.skip(kind, MAX_DEPTH)
            })?;
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
                deepest = deepest.max(open.len());
                if open.len() > MAX_DEPTH {
                    return Some(());
                }
            }
        }
        Some(())
    })?;
    Some(deepest)
}

/// The pages of a file's columns.
struct Pages {
    file: File,
}

/// What a page's header says.
#[derive(Default)]
struct Page {
    unpacked: i64,
    packed: i64,
    encoding: i64,
}

impl Pages {
    /// Checks the header of every page of a column; the most bytes that one unpacks to.
    fn check(&mut self, column: &ColumnChunkMetaData) -> Result<u64, ParquetError> {
        let name = column.column_path().string();
        let name: String = name.chars().take(80).collect();
        let file = self.file.metadata()?.len();
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let place = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
        let Some((mut at, end)) =
            place.and_then(|(at, len)| Some((at, at.checked_add(len).filter(|end| *end <= file)?)))
        else {
            return refuse(format!("column `{name}` lies outside the file"));
        };
        let mut largest = 0;
        while at < end {
            let Some((header, page)) = self.header(at, end)? else {
                return refuse(format!("column `{name}`: the page at byte {at} is damaged"));
            };
            let sizes = u64::try_from(page.packed).ok().zip(u64::try_from(page.unpacked).ok());
            let Some((packed, unpacked)) = sizes.filter(|(packed, _)| *packed <= end - at - header)
            else {
                return refuse(format!("column `{name}`: the page at byte {at} is cut off"));
            };
            if unpacked > MAX_PAGE || unpacked > SMALL_PAGE.max(packed.saturating_mul(MAX_RATIO)) {
                return refuse(format!(
                    "column `{name}`: the page at byte {at} claims that its {packed} bytes hold {unpacked}"
                ));
            }
            if matches!(page.encoding, encoding::DELTA_LENGTHS | encoding::DELTA_STRINGS) {
                return refuse(format!(
                    "column `{name}` has the encoding {}; write it plain or with a dictionary",
                    if page.encoding == encoding::DELTA_LENGTHS {
                        "DELTA_LENGTH_BYTE_ARRAY"
                    } else {
                        "DELTA_BYTE_ARRAY"
                    }
                ));
            }
            largest = largest.max(unpacked);
            at += header + packed;
        }
        Ok(largest)
    }

    /// A page's header and its length in bytes; `None` if it is damaged.
    fn header(&mut self, at: u64, end: u64) -> Result<Option<(u64, Page)>, ParquetError> {
        let mut length = 256;
        loop {
            let mut bytes = Vec::new();
            self.file.seek(SeekFrom::Start(at))?;
            (&mut self.file).take(length.min(end - at)).read_to_end(&mut bytes)?;
            let mut compact = Compact { bytes: &bytes, at: 0 };
            if let Some(page) = compact.page() {
                return Ok(Some((compact.at as u64, page)));
            }
            if length >= MAX_HEADER.min(end - at) {
                return Ok(None);
            }
            length *= 16;
        }
    }
}

/// Numbers of encodings whose lengths are only known when they are decoded.
mod encoding {
    pub(super) const DELTA_LENGTHS: i64 = 6;
    pub(super) const DELTA_STRINGS: i64 = 7;
}

/// Numbers of types in Thrift's compact protocol.
mod kind {
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I32: u8 = 5;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const MAP: u8 = 11;
    pub(super) const STRUCT: u8 = 12;
}

/// A reader of Thrift's compact protocol that keeps nothing; `None`: the bytes end,
/// or mean nothing.
struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn pass(&mut self, bytes: u64) -> Option<()> {
        let end = self.at.checked_add(usize::try_from(bytes).ok()?)?;
        self.at = end;
        (end <= self.bytes.len()).then_some(())
    }

    /// Type and number of a list's elements, which take at least a byte each.
    fn list(&mut self) -> Option<(u8, u64)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        (count <= (self.bytes.len() - self.at) as u64).then_some((head & 15, count))
    }

    /// Calls for each member of a struct, with its number and type, to read or skip it.
    fn members(&mut self, mut member: impl FnMut(i16, u8, &mut Self) -> Option<()>) -> Option<()> {
        let mut field = 0i16;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            field = match head >> 4 {
                0 => i16::try_from(self.zigzag()?).ok()?,
                step => field.checked_add(i16::from(step))?,
            };
            member(field, head & 15, self)?;
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let inner = depth.checked_sub(1)?;
        match kind {
            kind::TRUE | kind::FALSE => Some(()),
            kind::BYTE => self.pass(1),
            kind::I16 | kind::I32 | kind::I64 => self.varint().map(drop),
            kind::DOUBLE => self.pass(8),
            kind::BINARY => {
                let length = self.varint()?;
                self.pass(length)
            }
            kind::LIST | kind::SET => {
                let (element, count) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(element, inner))
            }
            kind::MAP => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, inner)?;
                    self.skip_element(kinds & 15, inner)
                })
            }
            kind::STRUCT => self.members(|_, kind, compact| compact.skip(kind, inner)),
            _ => None,
        }
    }

    /// Within lists a flag takes a byte.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            kind::TRUE | kind::FALSE => self.pass(1),
            kind => self.skip(kind, depth),
        }
    }

    /// A page's header.
    fn page(&mut self) -> Option<Page> {
        let mut page = Page::default();
        self.members(|field, kind, compact| {
            // Field 5 is a data page with its encoding second, 8 one of the second version
            // with it fourth.
            let encoding = match (field, kind) {
                (2, kind::I32) => {
                    page.unpacked = compact.zigzag()?;
                    return Some(());
                }
                (3, kind::I32) => {
                    page.packed = compact.zigzag()?;
                    return Some(());
                }
                (5, kind::STRUCT) => 2,
                (8, kind::STRUCT) => 4,
                _ => return compact.skip(kind, MAX_DEPTH),
            };
            compact.members(|field, kind, compact| {
                if field == encoding && kind == kind::I32 {
                    page.encoding = compact.zigzag()?;
                    return Some(());
                }
                compact.skip(kind, MAX_DEPTH)
            })
        })?;
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A schema of `depth` groups within each other, as a file's description writes it.
    fn nested(depth: usize) -> Vec<u8> {
        // Version 1, then field 2: a list of so many structs.
        let mut bytes = vec![0x15, 0x02, 0x19, 0xf0 | kind::STRUCT];
        let mut count = depth + 1;
        while count >= 0x80 {
            bytes.push(count as u8 | 0x80);
            count >>= 7;
        }
        bytes.push(count as u8);
        for level in 0..=depth {
            // Field 4: the name `a`; field 5: one child, but for the last.
            bytes.extend([0x48, 0x01, b'a']);
            if level < depth {
                bytes.extend([0x15, 0x02]);
            }
            bytes.push(0);
        }
        // Field 3: rows; field 4: no row groups.
        bytes.extend([0x16, 0x00, 0x19, kind::STRUCT, 0x00]);
        bytes
    }

    fn file(footer: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"PAR1").unwrap();
        file.write_all(footer).unwrap();
        file.write_all(&(footer.len() as u32).to_le_bytes()).unwrap();
        file.write_all(b"PAR1").unwrap();
        file
    }

    #[test]
    fn schemas_nested_deep_are_refused_before_they_are_descended_into() {
        assert_eq!(schema_depth(&nested(0)), Some(0));
        assert_eq!(schema_depth(&nested(5)), Some(5));
        for (depth, refused) in [(MAX_DEPTH, false), (MAX_DEPTH + 1, true), (1_000_000, true)] {
            let answer = check_footer(&mut file(&nested(depth)));
            assert_eq!(answer.is_err(), refused, "{depth}");
            let error = read(file(&nested(depth)), Path::new("p.parquet"), &[]).unwrap_err();
            assert_eq!(error.to_string().contains("nested"), refused, "{depth}: {error}");
        }
    }

    #[test]
    fn descriptions_that_end_early_are_refused() {
        let whole = nested(3);
        for length in 0..whole.len() {
            assert!(check_footer(&mut file(&whole[..length])).is_err(), "{length}");
        }
        // More elements than bytes.
        assert_eq!(schema_depth(&[0x29, 0xfc, 0xff, 0xff, 0xff, 0x0f]), None);
        // Nested beyond what is read.
        assert_eq!(schema_depth(&[0x1c; 100]), None);
    }

    #[test]
    fn headers_of_pages_are_read() {
        // A data page of 10 bytes packed into 7, with dictionary indices.
        let header =
            [0x15, 0x00, 0x15, 0x14, 0x15, 0x0e, 0x2c, 0x15, 0x02, 0x15, 0x10, 0x00, 0x00, 9];
        let mut compact = Compact { bytes: &header, at: 0 };
        let page = compact.page().unwrap();
        assert_eq!((page.unpacked, page.packed, page.encoding), (10, 7, 8));
        assert_eq!(compact.at, header.len() - 1);
        assert!(Compact { bytes: &header[..8], at: 0 }.page().is_none());
    }
}
