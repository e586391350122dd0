//! The tensors of a closed shard, packed into few files.
//!
//! Which prompts share a file depends on their tensors alone, never on when
//! they were written, so a resumed run packs as an uninterrupted one does.

use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::MAX_HEADER_BYTES;
use crate::checksum::Checksum;
use crate::disk::{self, Disk};
use crate::error::Result;
use crate::layout::{self, Layout};
use crate::tensors::{self, Entry, Header, PromptTensorsRecord};

/// A file gets no further prompt beyond this many bytes of data.
const MOST_DATA: u64 = 4 << 30;
/// A file gets no further prompt beyond this many bytes of header, as [`header_share`] counts them.
///
/// Half of what is allowed, because escapes at most double a key.
const MOST_HEADER: u64 = MAX_HEADER_BYTES / 2;

/// A packed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TensorFileRecord {
    pub(crate) file: String,
    /// Index of the first prompt that has tensors in it.
    pub(crate) first: u64,
    pub(crate) tensors: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A prompt whose tensors are to be packed.
pub(crate) struct Packable {
    pub(crate) index: u64,
    pub(crate) path: PathBuf,
    pub(crate) record: PromptTensorsRecord,
}

struct Opened<'a> {
    prompt: &'a Packable,
    header: Header,
}

/// Bytes that an entry takes in a header: its key twice, a checksum, a type, two offsets and the axes.
fn header_share(entry: &Entry) -> u64 {
    2 * entry.key.len() as u64 + 192 + 21 * entry.shape.len() as u64
}

/// Packs the tensors of prompts, which are in the order of their indices.
pub(crate) fn pack(
    disk: &Disk,
    layout: &Layout,
    prompts: &[Packable],
) -> Result<Vec<TensorFileRecord>> {
    let mut records = Vec::new();
    let mut piece: Vec<Opened<'_>> = Vec::new();
    let (mut data, mut share) = (0, 0);
    for prompt in prompts.iter().filter(|p| p.record.count > 0) {
        let (_, header) = tensors::open_prompt(&prompt.path, &prompt.record)?;
        let more_data = header.entries.last().map_or(0, |e| e.end);
        let more_share: u64 = header.entries.iter().map(header_share).sum();
        let full = data + more_data > MOST_DATA || share + more_share > MOST_HEADER;
        if full && !piece.is_empty() {
            records.push(write(disk, layout, &piece)?);
            piece.clear();
            (data, share) = (0, 0);
        }
        data += more_data;
        share += more_share;
        piece.push(Opened { prompt, header });
    }
    if !piece.is_empty() {
        records.push(write(disk, layout, &piece)?);
    }
    Ok(records)
}

fn write(disk: &Disk, layout: &Layout, piece: &[Opened<'_>]) -> Result<TensorFileRecord> {
    // Wide elements first, so that every tensor is aligned to its own elements;
    // then by prompt and key.
    let mut order: Vec<(&Opened<'_>, &Entry)> = piece
        .iter()
        .flat_map(|opened| opened.header.entries.iter().map(move |e| (opened, e)))
        .collect();
    order.sort_by(|(a, x), (b, y)| {
        (y.element.size().cmp(&x.element.size()))
            .then(a.prompt.index.cmp(&b.prompt.index))
            .then_with(|| x.key.cmp(&y.key))
    });
    let mut end = 0;
    let placed: Vec<Entry> = order
        .iter()
        .map(|(_, entry)| {
            let begin = end;
            end += entry.end - entry.begin;
            Entry { begin, end, ..(*entry).clone() }
        })
        .collect();

    let first = piece.first().map_or(0, |opened| opened.prompt.index);
    let name = layout::tensor_file(first);
    let path = layout.file(&name);
    let beside = disk::partial(&path);
    let header = tensors::encode_header(&path, &placed, 0)?;
    let mut sum = Checksum::default();
    let mut output = disk.create(&beside)?;
    sum.update(&header);
    output.append(&header)?;
    let mut source: Option<(u64, File)> = None;
    for (opened, entry) in order {
        let Opened { prompt, header } = opened;
        let mut file = match source.take() {
            Some((index, file)) if index == prompt.index => file,
            _ => disk::open(&prompt.path)?.0,
        };
        tensors::read_entry(&prompt.path, &mut file, header.data, entry, |bytes| {
            sum.update(bytes);
            output.append(bytes)
        })?;
        source = Some((prompt.index, file));
    }
    output.sync()?;
    disk.rename(&beside, &path)?;
    Ok(TensorFileRecord {
        file: name,
        first,
        tensors: placed.len() as u64,
        bytes: header.len() as u64 + end,
        sha256: sum.hex(),
    })
}
