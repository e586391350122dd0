//! safetensors files: one for each prompt while a shard is open, packed when it closes.
//!
//! The header of every file carries the SHA-256 of each tensor under the
//! tensor's key in `__metadata__`, so that one tensor can be checked without
//! reading the others, and the checksum of the header stands for the whole file.
//!
//! A tensor goes to the disk when it is given, so that memory holds one at a
//! time.  The header comes first in the format and is known last; room is left
//! for it, filled up with the spaces that the format allows.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::checksum::{self, CHUNK, Checksum};
use crate::disk::{self, Disk, Output};
use crate::error::{Error, HeaderFault, NameOf, Result};
use crate::names;
use crate::tensor::{self, ElementType, StoredType, TensorView};
use crate::{MAX_HEADER_BYTES, MAX_RANK, MAX_TENSORS_PER_PROMPT};

/// Bytes of the header's length at the start of a file.
const PREFIX: u64 = 8;
/// Room left for the header of a run's first prompt, in bytes.
pub(crate) const FIRST_ROOM: u64 = 16 << 10;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
    /// First byte, from the end of the header.
    pub(crate) begin: u64,
    /// Byte behind the last, from the end of the header.
    pub(crate) end: u64,
    pub(crate) sha256: String,
}

/// The header of a file, its entries in the order of their bytes.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) entries: Vec<Entry>,
    /// Where the data start in the file.
    pub(crate) data: u64,
    /// Checksum of the length and the header.
    pub(crate) sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
struct HeaderText {
    #[serde(rename = "__metadata__", default)]
    checksums: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Described>,
}

/// The length and the header of a file with these entries, at least `room` bytes together.
pub(crate) fn encode_header(path: &Path, entries: &[Entry], room: u64) -> Result<Vec<u8>> {
    struct Ordered<'a>(&'a [Entry]);
    impl Serialize for Ordered<'_> {
        fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
            let checksums: BTreeMap<&str, &str> =
                self.0.iter().map(|e| (e.key.as_str(), e.sha256.as_str())).collect();
            let described = self.0.iter().map(|e| {
                let text = Described {
                    dtype: e.element.name().to_owned(),
                    shape: e.shape.clone(),
                    data_offsets: (e.begin, e.end),
                };
                (e.key.as_str(), text)
            });
            use serde::ser::SerializeMap;
            let mut map = to.serialize_map(None)?;
            map.serialize_entry("__metadata__", &checksums)?;
            for (key, text) in described {
                map.serialize_entry(key, &text)?;
            }
            map.end()
        }
    }
    let mut text = serde_json::to_vec(&Ordered(entries))
        .map_err(|source| Error::Encode { path: path.to_owned(), source })?;
    // The data start at a multiple of eight, so that a mapped file is aligned.
    let least = (text.len() as u64 + PREFIX).max(room).next_multiple_of(8) - PREFIX;
    if least > MAX_HEADER_BYTES {
        return Err(Error::Header { path: path.to_owned(), source: HeaderFault::TooLong(least) });
    }
    text.resize(least as usize, b' ');
    let mut bytes = least.to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

/// Reads and checks the header of an open file of `length` bytes.
pub(crate) fn read_header(path: &Path, file: &mut File, length: u64) -> Result<Header> {
    let fault = |source| Error::Header { path: path.to_owned(), source };
    let beyond = |header| fault(HeaderFault::Beyond { header, file: length });
    if length < PREFIX {
        return Err(beyond(PREFIX));
    }
    let io = disk::read_error(path);
    file.seek(SeekFrom::Start(0)).map_err(&io)?;
    let mut prefix = [0; PREFIX as usize];
    file.read_exact(&mut prefix).map_err(&io)?;
    let size = u64::from_le_bytes(prefix);
    if size > MAX_HEADER_BYTES {
        return Err(fault(HeaderFault::TooLong(size)));
    }
    let data = PREFIX + size;
    if data > length {
        return Err(beyond(data));
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text).map_err(&io)?;
    let mut sum = Checksum::default();
    sum.update(&prefix);
    sum.update(&text);
    let text: HeaderText =
        serde_json::from_slice(&text).map_err(|e| fault(HeaderFault::Json(e)))?;

    let mut entries = Vec::with_capacity(text.tensors.len());
    for (key, described) in text.tensors {
        let Some(element) = ElementType::parse(&described.dtype) else {
            return Err(fault(HeaderFault::Element { tensor: key, element: described.dtype }));
        };
        let Some(sha256) = text.checksums.get(&key).cloned() else {
            return Err(fault(HeaderFault::NoChecksum(key)));
        };
        let (begin, end) = described.data_offsets;
        entries.push(Entry { key, element, shape: described.shape, begin, end, sha256 });
    }
    entries.sort_by_key(|e| (e.begin, e.end));
    let mut at = 0;
    for entry in &entries {
        let bytes = tensor::byte_count(entry.element, &entry.shape).map(|n| n as u64);
        let fits = entry.begin == at && entry.end.checked_sub(at) == bytes;
        if !fits {
            return Err(fault(HeaderFault::Offsets(entry.key.clone())));
        }
        at = entry.end;
    }
    if data.checked_add(at) != Some(length) {
        return Err(fault(HeaderFault::End { tensors: data.saturating_add(at), file: length }));
    }
    Ok(Header { entries, data, sha256: sum.hex() })
}

/// Passes the bytes of one tensor to `take` in pieces and checks them.
pub(crate) fn read_entry(
    path: &Path,
    file: &mut File,
    data: u64,
    entry: &Entry,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    file.seek(SeekFrom::Start(data + entry.begin)).map_err(disk::read_error(path))?;
    let mut sum = Checksum::default();
    copy(path, file, entry.end - entry.begin, |bytes| {
        sum.update(bytes);
        take(bytes)
    })?;
    checksum::compare(path, &entry.sha256, sum.hex())
}

/// Passes the next `left` bytes of a file to `take` in pieces.
pub(crate) fn copy(
    path: &Path,
    file: &mut File,
    mut left: u64,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let size = |left: u64| CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
    let mut buffer = vec![0; size(left)];
    while left > 0 {
        let n = size(left);
        file.read_exact(&mut buffer[..n]).map_err(disk::read_error(path))?;
        take(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// The file of one prompt's tensors, being written.
pub(crate) struct PromptTensors {
    output: Output,
    disk: Disk,
    /// Bytes left for length and header.
    room: u64,
    /// The room the next prompt should leave.
    next_room: Arc<AtomicU64>,
    /// Where the last tensor ends.
    end: u64,
    /// Bytes in the file, more than `end` after a tensor was refused half-way.
    reached: u64,
    entries: Vec<Entry>,
    names: HashSet<String>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The file is to be deleted when it is let go.
    Writing,
    /// A write failed, so the file must not be used.
    Failed,
    /// The file is whole and stays.
    Whole,
}

/// What the record of a finished prompt says of its tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromptTensorsRecord {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) header_sha256: String,
}

impl PromptTensors {
    pub(crate) fn create(disk: &Disk, path: &Path, next_room: &Arc<AtomicU64>) -> Result<Self> {
        let room = next_room.load(Ordering::Relaxed);
        let mut output = disk.create(path)?;
        output.seek(room)?;
        Ok(PromptTensors {
            output,
            disk: disk.clone(),
            room,
            next_room: next_room.clone(),
            end: room,
            reached: room,
            entries: Vec::new(),
            names: HashSet::new(),
            state: State::Writing,
        })
    }

    pub(crate) fn add(
        &mut self,
        prompt: &str,
        name: &str,
        view: TensorView<'_>,
        stored: StoredType,
    ) -> Result<()> {
        names::check_text(NameOf::Tensor, name)?;
        at_most(
            "the number of tensors of a prompt",
            MAX_TENSORS_PER_PROMPT,
            self.entries.len() + 1,
        )?;
        at_most("the number of axes of a tensor", MAX_RANK, view.shape.len())?;
        if tensor::byte_count(view.element, view.shape) != Some(view.bytes.len()) {
            return Err(Error::TensorBytes {
                tensor: name.to_owned(),
                shape: view.shape.to_vec(),
                element: view.element,
                got: view.bytes.len(),
            });
        }
        if self.names.contains(name) {
            return Err(names::duplicate(NameOf::Tensor, name));
        }

        let element = stored.of(view.element);
        let mut sum = Checksum::default();
        let mut out = Vec::new();
        self.output.seek(self.end)?;
        for (i, chunk) in view.bytes.chunks(CHUNK).enumerate() {
            out.clear();
            let first = i * (CHUNK / view.element.size());
            tensor::convert(name, first, view.element, element, chunk, &mut out)?;
            sum.update(&out);
            if let Err(error) = self.output.append(&out) {
                self.state = State::Failed;
                return Err(error);
            }
            self.reached = self.reached.max(self.output.offset());
        }
        let begin = std::mem::replace(&mut self.end, self.output.offset());
        self.names.insert(name.to_owned());
        self.entries.push(Entry {
            key: format!("{prompt}/{name}"),
            element,
            shape: view.shape.to_vec(),
            begin: begin - self.room,
            end: self.end - self.room,
            sha256: sum.hex(),
        });
        Ok(())
    }

    /// Whether it can still become whole.
    pub(crate) fn is_usable(&self) -> bool {
        self.state == State::Writing
    }

    /// Writes the header and syncs; the file is whole then, under the name it was created with.
    pub(crate) fn close(mut self) -> Result<(PathBuf, PromptTensorsRecord)> {
        let path = self.output.path().to_owned();
        let header = encode_header(&path, &self.entries, self.room)?;
        let needed = header.len() as u64;
        if needed > self.room {
            self.next_room
                .fetch_max(needed.next_power_of_two().min(MAX_HEADER_BYTES), Ordering::Relaxed);
            self.output = self.moved(&path, &header)?;
        } else {
            self.output.seek(0)?;
            self.output.append(&header)?;
            if self.reached > self.end {
                self.disk.truncate(&path, self.end)?;
            }
        }
        self.output.sync()?;
        self.state = State::Whole;
        let record = PromptTensorsRecord {
            count: self.entries.len() as u64,
            bytes: needed + self.end - self.room,
            header_sha256: checksum::of(&header),
        };
        Ok((path, record))
    }

    /// Copies the data behind a header for which there was too little room.
    fn moved(&self, path: &Path, header: &[u8]) -> Result<Output> {
        let (mut file, _) = disk::open(path)?;
        let beside = disk::partial(path);
        let mut output = self.disk.create(&beside)?;
        output.append(header)?;
        let io = disk::read_error(path);
        file.seek(SeekFrom::Start(self.room)).map_err(&io)?;
        copy(path, &mut file, self.end - self.room, |bytes| output.append(bytes))?;
        self.disk.rename(&beside, path)?;
        Ok(output)
    }
}

impl Drop for PromptTensors {
    fn drop(&mut self) {
        if self.state != State::Whole {
            // If this fails, opening the run again removes the file.
            let _ = self.disk.remove_file(self.output.path());
        }
    }
}

fn at_most(what: &'static str, most: usize, got: usize) -> Result<()> {
    if got <= most {
        return Ok(());
    }
    Err(Error::Range { what, least: 0, most: most as u64, got: got as u64 })
}

/// Reads a prompt's file through and compares it with its record.
pub(crate) fn check_prompt(path: &Path, record: &PromptTensorsRecord) -> Result<()> {
    let (mut file, header) = open_prompt(path, record)?;
    for entry in &header.entries {
        read_entry(path, &mut file, header.data, entry, |_| Ok(()))?;
    }
    Ok(())
}

/// Opens a prompt's file and compares its header with its record.
pub(crate) fn open_prompt(path: &Path, record: &PromptTensorsRecord) -> Result<(File, Header)> {
    checksum::check_length(path, record.bytes)?;
    let (mut file, length) = disk::open(path)?;
    let header = read_header(path, &mut file, length)?;
    checksum::compare(path, &record.header_sha256, header.sha256.clone())?;
    Ok((file, header))
}
