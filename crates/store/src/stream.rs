//! Arrow IPC streams, a record batch for each prompt.
//!
//! A stream is a schema message followed by one message for each prompt, and
//! the bytes of a message depend on nothing before it.  So a prompt's rows are a
//! segment of the file, can be appended, cut off and copied as bytes, and are
//! decoded on their own.  Before the Arrow library sees a message from a file,
//! every length in it is compared with the bytes that are there, because that
//! library takes the lengths on trust.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_ipc::{Buffer, FieldNode, MessageHeader, root_as_message};
use arrow_schema::{DataType, Schema, SchemaRef};

use crate::disk;
use crate::error::{Error, Result};

/// What ends a stream: a continuation marker and no length.
pub(crate) const END: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
const CONTINUATION: [u8; 4] = [0xFF; 4];
/// Bytes of the marker and the length before a message.
const PREFIX: usize = 8;
/// What every buffer's place in a message body is a multiple of, in bytes.
const ALIGNMENT: u64 = 8;

/// The schema of a table, ready to write and read messages.
#[derive(Clone)]
pub(crate) struct Codec {
    table: String,
    schema: SchemaRef,
    header: Vec<u8>,
}

impl Codec {
    pub(crate) fn new(table: &str, schema: SchemaRef) -> Result<Codec> {
        let writer = StreamWriter::try_new(Vec::new(), &schema)
            .map_err(|source| arrow_error(table, source))?;
        let header = writer.get_ref().clone();
        Ok(Codec { table: table.to_owned(), schema, header })
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The schema message with which a stream starts.
    pub(crate) fn header(&self) -> &[u8] {
        &self.header
    }

    /// A record batch as one message.
    pub(crate) fn encode(&self, batch: &RecordBatch) -> Result<Vec<u8>> {
        let run = || {
            let mut writer = StreamWriter::try_new(Vec::new(), &self.schema)?;
            let start = writer.get_ref().len();
            writer.write(batch)?;
            Ok(writer.get_mut().split_off(start))
        };
        run().map_err(|source| arrow_error(&self.table, source))
    }

    /// The record batch of one message, which `path` has at byte `offset`.
    pub(crate) fn decode(&self, path: &Path, offset: u64, message: &[u8]) -> Result<RecordBatch> {
        let damaged = || Error::Message { path: path.to_owned(), offset };
        if !is_sound(&self.schema, message) {
            return Err(damaged());
        }
        let bytes = self.header.as_slice().chain(message);
        let mut reader = StreamReader::try_new(bytes, None)
            .map_err(|source| arrow_error(&self.table, source))?;
        match reader.next() {
            Some(batch) => batch.map_err(|source| arrow_error(&self.table, source)),
            None => Err(damaged()),
        }
    }
}

fn arrow_error(table: &str, source: arrow_schema::ArrowError) -> Error {
    Error::Arrow { table: table.to_owned(), source }
}

/// The length of the flatbuffer after a message's prefix.
fn metadata_length(prefix: &[u8]) -> Option<usize> {
    let length = prefix.strip_prefix(&CONTINUATION)?;
    let length = i32::from_le_bytes(length.try_into().ok()?);
    usize::try_from(length).ok()
}

/// Whether every length in a record batch message lies within the message and fits the schema.
fn is_sound(schema: &Schema, message: &[u8]) -> bool {
    let check = || {
        let length = metadata_length(message.get(..PREFIX)?)?;
        let end = PREFIX.checked_add(length)?;
        let metadata = message.get(PREFIX..end)?;
        let body = u64::try_from(message.len() - end).ok()?;
        let message = root_as_message(metadata).ok()?;
        let batch = message.header_as_record_batch()?;
        if message.header_type() != MessageHeader::RecordBatch
            || u64::try_from(message.bodyLength()) != Ok(body)
            || batch.compression().is_some()
            || batch.variadicBufferCounts().is_some()
        {
            return None;
        }
        let mut parts =
            Parts { nodes: batch.nodes()?.iter(), buffers: batch.buffers()?.iter(), body };
        let rows = u64::try_from(batch.length()).ok()?;
        for field in schema.fields() {
            let sound = parts.take(field.data_type()) == Some(rows);
            sound.then_some(())?;
        }
        let all_taken = parts.nodes.next().is_none() && parts.buffers.next().is_none();
        Some(rows > 0 && all_taken)
    };
    check().unwrap_or(false)
}

/// The nodes and buffers of a record batch, which lie in the order of the columns.
struct Parts<N, B> {
    nodes: N,
    buffers: B,
    body: u64,
}

impl<'a, N, B> Parts<N, B>
where
    N: Iterator<Item = &'a FieldNode>,
    B: Iterator<Item = &'a Buffer>,
{
    /// Takes one column and returns its rows; `None` if it is not sound.
    fn take(&mut self, data_type: &DataType) -> Option<u64> {
        let node = self.nodes.next()?;
        let rows = u64::try_from(node.length()).ok()?;
        let nulls = u64::try_from(node.null_count()).ok()?;
        let validity = self.buffer(1)?;
        // A row takes at least a bit of the body, which bounds what is allocated for rows.
        let sound = rows.div_ceil(8) <= self.body
            && nulls <= rows
            && (nulls == 0 || validity >= rows.div_ceil(8));
        sound.then_some(())?;
        let offsets = |parts: &mut Self| {
            let bytes = parts.buffer(size_of::<i32>() as u64)?;
            (bytes >= rows.checked_add(1)?.checked_mul(4)?).then_some(())
        };
        match data_type {
            DataType::Utf8 => {
                offsets(self)?;
                self.buffer(1)?;
            }
            DataType::List(of) => {
                offsets(self)?;
                self.take(of.data_type())?;
            }
            DataType::Boolean => {
                (self.buffer(1)? >= rows.div_ceil(8)).then_some(())?;
            }
            other => {
                let width = other.primitive_width()? as u64;
                (self.buffer(width)? >= rows.checked_mul(width)?).then_some(())?;
            }
        }
        Some(rows)
    }

    /// Takes one buffer of elements of `width` bytes and returns its length in bytes.
    fn buffer(&mut self, width: u64) -> Option<u64> {
        let buffer = self.buffers.next()?;
        let offset = u64::try_from(buffer.offset()).ok()?;
        let length = u64::try_from(buffer.length()).ok()?;
        let inside = offset.checked_add(length)? <= self.body;
        let whole = offset.is_multiple_of(ALIGNMENT) && length.is_multiple_of(width);
        (inside && whole).then_some(length)
    }
}

/// The messages of a stream file that ends with [`END`], one after the other.
pub(crate) struct Messages {
    path: PathBuf,
    reader: BufReader<File>,
    offset: u64,
    length: u64,
}

impl Messages {
    /// Opens a stream and passes its schema message, which must be that of `codec`.
    pub(crate) fn open(path: &Path, codec: &Codec) -> Result<Messages> {
        let (file, length) = disk::open(path)?;
        let mut messages =
            Messages { path: path.to_owned(), reader: BufReader::new(file), offset: 0, length };
        let mut header = vec![0; codec.header().len()];
        messages.fill(&mut header)?;
        if header != codec.header() {
            return Err(messages.damaged(0));
        }
        Ok(messages)
    }

    fn damaged(&self, offset: u64) -> Error {
        Error::Message { path: self.path.clone(), offset }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let end = self.offset + bytes.len() as u64;
        if end > self.length {
            return Err(self.damaged(self.offset));
        }
        self.reader.read_exact(bytes).map_err(disk::read_error(&self.path))?;
        self.offset = end;
        Ok(())
    }

    /// The next message with the byte at which it starts; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        let start = self.offset;
        let mut message = vec![0; PREFIX];
        self.fill(&mut message)?;
        if message == END {
            return Ok(None);
        }
        let metadata = metadata_length(&message).ok_or_else(|| self.damaged(start))?;
        self.grow(&mut message, metadata as u64, start)?;
        let body = root_as_message(&message[PREFIX..])
            .ok()
            .and_then(|m| u64::try_from(m.bodyLength()).ok())
            .ok_or_else(|| self.damaged(start))?;
        self.grow(&mut message, body, start)?;
        Ok(Some((start, message)))
    }

    /// Reads `more` bytes behind those that `message` has.
    fn grow(&mut self, message: &mut Vec<u8>, more: u64, start: u64) -> Result<()> {
        let left = self.length - self.offset;
        let more = usize::try_from(more)
            .ok()
            .filter(|_| more <= left)
            .ok_or_else(|| self.damaged(start))?;
        let old = message.len();
        message.resize(old + more, 0);
        self.fill(&mut message[old..])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::{ListBuilder, UInt32Builder};
    use arrow_array::{BooleanArray, Float64Array, StringArray};
    use arrow_schema::Field;

    use super::*;

    /// A batch with a column of every kind.
    fn example() -> (Codec, RecordBatch) {
        let schema = Arc::new(Schema::new(vec![
            Field::new("prompt", DataType::Utf8, false),
            Field::new("x", DataType::Float64, true),
            Field::new("y", DataType::Boolean, true),
            Field::new_list("z", Field::new("element", DataType::UInt32, false), true),
        ]));
        let mut lists = ListBuilder::new(UInt32Builder::new()).with_field(Field::new(
            "element",
            DataType::UInt32,
            false,
        ));
        lists.append_value([Some(1), Some(2)]);
        lists.append_null();
        lists.append_value([Some(3)]);
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(StringArray::from(vec!["a", "a", "a"])),
                Arc::new(Float64Array::from(vec![Some(1.0), None, Some(-0.5)])),
                Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
                Arc::new(lists.finish()),
            ],
        )
        .unwrap();
        (Codec::new("t", schema).unwrap(), batch)
    }

    #[test]
    fn a_message_is_decoded_on_its_own() {
        let (codec, batch) = example();
        let message = codec.encode(&batch).unwrap();
        assert_eq!(codec.encode(&batch).unwrap(), message);
        assert_eq!(codec.decode(Path::new("f"), 0, &message).unwrap(), batch);
    }

    #[test]
    fn no_damaged_message_panics() {
        let (codec, batch) = example();
        let message = codec.encode(&batch).unwrap();
        for cut in 0..message.len() {
            assert!(codec.decode(Path::new("f"), 0, &message[..cut]).is_err());
        }
        // A flipped bit may still be a message, but never a panic.
        for at in 0..message.len() * 8 {
            let mut damaged = message.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let _ = codec.decode(Path::new("f"), 0, &damaged);
        }
        // Lengths and offsets overwritten by large and negative numbers.
        for at in 0..message.len().saturating_sub(8) {
            for value in [i64::MAX, i64::MIN, -1, 1 << 40] {
                let mut damaged = message.clone();
                damaged[at..at + 8].copy_from_slice(&value.to_le_bytes());
                let _ = codec.decode(Path::new("f"), 0, &damaged);
            }
        }
    }
}
