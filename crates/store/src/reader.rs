//! Reading a run folder, finished or not, while another process may be writing to it.
//!
//! A reader takes no lock and changes nothing.  It sees the folder as it was when
//! it was opened; a file that a running writer has packed away since is reported
//! as missing, and opening the folder again finds it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::MAX_LINE_BYTES;
use crate::checksum;
use crate::disk::{self, Disk};
use crate::error::{Error, Result};
use crate::layout::{self, Layout};
use crate::ledger;
use crate::manifest::Manifest;
use crate::records::{self, Commit, FinishedRecord, Segment, ShardRecord};
use crate::schema::TableInfo;
use crate::shard::{self, Folder};
use crate::stream::{Codec, Messages};
use crate::tensor::{TensorData, TensorInfo};
use crate::tensors::{self, Header};

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Some prompts are left, or the tables are not written yet.
    Unfinished {
        /// Prompts that are finished.
        finished: u64,
        /// Prompts of the run.
        prompts: u64,
    },
    /// The run is finished.
    Complete {
        /// Prompts of the run.
        prompts: u64,
    },
}

/// A table of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Table {
    /// Its name and its columns after `prompt`.
    pub info: TableInfo,
    /// The rows of finished prompts.
    pub rows: u64,
}

/// A run folder open for reading.
pub struct Reader {
    folder: Folder,
    closed: BTreeMap<u64, ShardRecord>,
    open: BTreeMap<u64, BTreeMap<u64, Commit>>,
    complete: Option<FinishedRecord>,
    ids: BTreeMap<String, u64>,
}

impl Reader {
    /// Opens a run folder.
    ///
    /// # Errors
    /// [`Error::NotARun`] where there is no manifest, [`Error::SchemaVersion`] for another
    /// layout, or damage in the manifest or in `shards.jsonl`.
    pub fn open(path: impl AsRef<Path>) -> Result<Reader> {
        let layout = Layout::new(path.as_ref());
        let manifest = match Manifest::read(&layout.manifest()) {
            Ok(manifest) => manifest,
            Err(Error::Missing { .. }) => {
                return Err(Error::NotARun { path: layout.root().to_owned() });
            }
            Err(error) => return Err(error),
        };
        let history = records::History::read(&layout, &manifest)?;
        let mut reader = Reader {
            folder: Folder::new(Disk::default(), layout, manifest)?,
            closed: history.shards,
            open: BTreeMap::new(),
            complete: history.finished,
            ids: BTreeMap::new(),
        };
        if reader.complete.is_none() {
            reader.read_open_shards()?;
        }
        for (first, shard) in &reader.closed {
            let indices = *first..;
            reader.ids.extend(shard.prompts.iter().cloned().zip(indices));
        }
        for commit in reader.open.values().flat_map(BTreeMap::values) {
            reader.ids.insert(commit.prompt.clone(), commit.index);
        }
        Ok(reader)
    }

    fn read_open_shards(&mut self) -> Result<()> {
        let Folder { layout, manifest, .. } = &self.folder;
        for (name, _) in disk::list(&layout.open())? {
            let Some(first) = layout::parse_number(&name) else {
                continue;
            };
            if !first.is_multiple_of(manifest.shard_prompts) || self.closed.contains_key(&first) {
                continue;
            }
            let ledger = ledger::read::<Commit>(&layout.commits(first), MAX_LINE_BYTES)?;
            let sound = ledger
                .records
                .into_iter()
                .flatten()
                .filter(|commit| commit.is_sound(manifest, first));
            self.open.insert(first, sound.map(|commit| (commit.index, commit)).collect());
        }
        Ok(())
    }

    /// What the folder is the result of.
    pub fn manifest(&self) -> &Manifest {
        &self.folder.manifest
    }

    /// How far the run has come.
    pub fn progress(&self) -> Progress {
        let prompts = self.folder.manifest.prompts.count;
        match self.complete {
            Some(_) => Progress::Complete { prompts },
            None => Progress::Unfinished { finished: self.ids.len() as u64, prompts },
        }
    }

    /// The ids of the finished prompts, in the order of the run.
    pub fn prompts(&self) -> Vec<&str> {
        let mut ids: Vec<(u64, &str)> = self.ids.iter().map(|(id, i)| (*i, id.as_str())).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// The tables.
    pub fn tables(&self) -> Vec<Table> {
        let rows = |name: &String| match &self.complete {
            Some(record) => record.tables.get(name).map_or(0, |t| t.rows),
            None => {
                let closed = self.closed.values().filter_map(|s| s.tables.get(name));
                let open = self.open.values().flat_map(BTreeMap::values);
                let open = open.filter_map(|c| c.tables.get(name));
                closed.map(|t| t.rows).sum::<u64>() + open.map(|s| s.rows).sum::<u64>()
            }
        };
        let tables = self.folder.manifest.tables.iter();
        tables.map(|info| Table { info: info.clone(), rows: rows(&info.name) }).collect()
    }

    /// The rows of a table, in the order of the prompts, in batches.
    ///
    /// Files are compared with their checksums before they are read.
    ///
    /// # Errors
    /// [`Error::UnknownTable`], a file that is missing or damaged; the batches, too, are results.
    pub fn read_table(&self, name: &str) -> Result<TableRows> {
        let codec = self.folder.codec(name)?.clone();
        let layout = &self.folder.layout;
        if let Some(record) = self.complete.as_ref().and_then(|c| c.tables.get(name)) {
            record.check(layout)?;
            let path = layout.file(&record.file);
            let (file, _) = disk::open(&path)?;
            let reader = ParquetRecordBatchReaderBuilder::try_new(file)
                .and_then(ParquetRecordBatchReaderBuilder::build)
                .map_err(|source| Error::Parquet { path: path.clone(), source })?;
            return Ok(TableRows {
                table: name.to_owned(),
                source: Source::Parquet(Box::new(reader)),
            });
        }

        let mut parts: Vec<(u64, Part)> = Vec::new();
        for (first, shard) in &self.closed {
            if let Some(record) = shard.tables.get(name) {
                record.check(layout)?;
                parts.push((*first, Part::Closed(layout.file(&record.file))));
            }
        }
        for (first, commits) in &self.open {
            let path = layout.stream(*first, name);
            for commit in commits.values() {
                if let Some(segment) = commit.tables.get(name) {
                    parts.push((commit.index, Part::Open(path.clone(), segment.clone())));
                }
            }
        }
        parts.sort_by_key(|(index, _)| *index);
        Ok(TableRows {
            table: name.to_owned(),
            source: Source::Parts {
                codec: Box::new(codec),
                parts: parts.into_iter().map(|(_, part)| part).collect(),
                current: None,
            },
        })
    }

    /// The tensors of one finished prompt, in the order in which they lie in their file.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if no such prompt is finished, or a damaged file.
    pub fn tensors(&self, prompt: &str) -> Result<Vec<TensorInfo>> {
        let index = self
            .ids
            .get(prompt)
            .ok_or_else(|| Error::UnknownTensor { key: format!("{prompt}/") })?;
        let Some((_, _, header)) = self.tensor_file(*index)? else {
            return Ok(Vec::new());
        };
        let of_prompt = |key: &str| key.split_once('/').is_some_and(|(id, _)| id == prompt);
        Ok(infos(header).filter(|info| of_prompt(&info.key)).collect())
    }

    /// The keys of all tensors of finished prompts, by prompt.
    ///
    /// # Errors
    /// A damaged file.
    pub fn tensor_names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut add = |header: Header| names.extend(infos(header).map(|info| info.key));
        for shard in self.closed.values() {
            for record in &shard.tensors {
                let path = self.folder.layout.file(&record.file);
                let (mut file, length) = disk::open(&path)?;
                add(tensors::read_header(&path, &mut file, length)?);
            }
        }
        for (first, commits) in &self.open {
            for commit in commits.values() {
                if let Some(record) = &commit.tensors {
                    let path = self.folder.layout.prompt_tensors(*first, commit.index);
                    add(tensors::open_prompt(&path, record)?.1);
                }
            }
        }
        let prompt = |key: &String| key.split_once('/').and_then(|(id, _)| self.ids.get(id));
        names.sort_by(|a, b| prompt(a).cmp(&prompt(b)).then_with(|| a.cmp(b)));
        Ok(names)
    }

    /// Reads the tensor with the key `{prompt}/{name}` and compares it with its checksum.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], or a damaged file.
    pub fn tensor(&self, key: &str) -> Result<TensorData> {
        let unknown = || Error::UnknownTensor { key: key.to_owned() };
        let (prompt, _) = key.split_once('/').ok_or_else(unknown)?;
        let index = self.ids.get(prompt).ok_or_else(unknown)?;
        let (path, mut file, header) = self.tensor_file(*index)?.ok_or_else(unknown)?;
        let entry = header.entries.iter().find(|entry| entry.key == key);
        let entry = entry.ok_or_else(unknown)?;
        let mut bytes = Vec::new();
        tensors::read_entry(&path, &mut file, header.data, entry, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(TensorData { element: entry.element, shape: entry.shape.clone(), bytes })
    }

    /// The file with a prompt's tensors, its header read.
    fn tensor_file(&self, index: u64) -> Result<Option<(PathBuf, std::fs::File, Header)>> {
        let Folder { layout, manifest, .. } = &self.folder;
        let first = records::first_of(manifest, index);
        if let Some(shard) = self.closed.get(&first) {
            let record = shard.tensors.iter().rev().find(|t| t.first <= index);
            let Some(record) = record else {
                return Ok(None);
            };
            let path = layout.file(&record.file);
            checksum::check_length(&path, record.bytes)?;
            let (mut file, length) = disk::open(&path)?;
            let header = tensors::read_header(&path, &mut file, length)?;
            return Ok(Some((path, file, header)));
        }
        let commit = self.open.get(&first).and_then(|shard| shard.get(&index));
        let Some(record) = commit.and_then(|c| c.tensors.as_ref()) else {
            return Ok(None);
        };
        let path = layout.prompt_tensors(first, index);
        let (file, header) = tensors::open_prompt(&path, record)?;
        Ok(Some((path, file, header)))
    }

    /// Reads every file of the run and compares it with its checksum.
    ///
    /// # Errors
    /// The first file that is missing or damaged.
    pub fn verify(&self) -> Result<()> {
        let layout = &self.folder.layout;
        let rows = |shard: &ShardRecord| {
            let mut tables = shard.tables.values();
            tables.try_for_each(|record| record.check(layout))
        };
        match &self.complete {
            Some(record) => {
                let mut tables = record.tables.values();
                tables.try_for_each(|table| table.check(layout))?;
            }
            None => self.closed.values().try_for_each(rows)?,
        }
        for file in self.closed.values().flat_map(|shard| &shard.tensors) {
            checksum::check_file(&layout.file(&file.file), file.bytes, &file.sha256)?;
        }
        for (first, commits) in &self.open {
            for commit in commits.values() {
                for (table, segment) in &commit.tables {
                    shard::read_segment(&layout.stream(*first, table), segment)?;
                }
                if let Some(record) = &commit.tensors {
                    tensors::check_prompt(&layout.prompt_tensors(*first, commit.index), record)?;
                }
            }
        }
        Ok(())
    }
}

fn infos(header: Header) -> impl Iterator<Item = TensorInfo> {
    header.entries.into_iter().map(|entry| TensorInfo {
        key: entry.key,
        element: entry.element,
        shape: entry.shape,
    })
}

/// The rows of a table, batch after batch, from [`Reader::read_table`].
pub struct TableRows {
    table: String,
    source: Source,
}

enum Source {
    Parquet(Box<ParquetRecordBatchReader>),
    Parts { codec: Box<Codec>, parts: VecDeque<Part>, current: Option<(PathBuf, Messages)> },
}

enum Part {
    /// The rows of a closed shard.
    Closed(PathBuf),
    /// The rows of one prompt of an open shard.
    Open(PathBuf, Segment),
}

impl TableRows {
    fn advance(&mut self) -> Result<Option<RecordBatch>> {
        match &mut self.source {
            Source::Parquet(reader) => reader
                .next()
                .transpose()
                .map_err(|source| Error::Arrow { table: self.table.clone(), source }),
            Source::Parts { codec, parts, current } => loop {
                if let Some((path, messages)) = current {
                    if let Some((offset, message)) = messages.next()? {
                        return codec.decode(path, offset, &message).map(Some);
                    }
                    *current = None;
                }
                match parts.pop_front() {
                    None => return Ok(None),
                    Some(Part::Closed(path)) => {
                        let messages = Messages::open(&path, codec)?;
                        *current = Some((path, messages));
                    }
                    Some(Part::Open(path, segment)) => {
                        let message = shard::read_segment(&path, &segment)?;
                        return codec.decode(&path, segment.offset, &message).map(Some);
                    }
                }
            },
        }
    }
}

impl Iterator for TableRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.advance().transpose();
        if matches!(item, Some(Err(_))) {
            // After a failure nothing that follows can be relied on.
            if let Source::Parts { parts, current, .. } = &mut self.source {
                parts.clear();
                *current = None;
            }
        }
        item
    }
}
