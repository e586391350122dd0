//! A shard being written: a fixed range of prompts, some of them finished.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::MAX_LINE_BYTES;
use crate::checksum::{self, Checksum};
use crate::disk::{self, Disk};
use crate::error::{Error, Result};
use crate::layout::{self, Layout};
use crate::ledger;
use crate::manifest::Manifest;
use crate::pack::{self, Packable};
use crate::prompt::Prepared;
use crate::records::{self, Commit, Segment, ShardRecord, TableFileRecord};
use crate::stream::{self, Codec};
use crate::tensors;

/// A run folder's manifest and places, and the door to its disk.
pub(crate) struct Folder {
    pub(crate) disk: Disk,
    pub(crate) layout: Layout,
    pub(crate) manifest: Manifest,
    codecs: BTreeMap<String, Codec>,
}

impl Folder {
    pub(crate) fn new(disk: Disk, layout: Layout, manifest: Manifest) -> Result<Folder> {
        let mut codecs = BTreeMap::new();
        for table in &manifest.tables {
            let codec = Codec::new(&table.name, table.arrow())?;
            codecs.insert(table.name.clone(), codec);
        }
        Ok(Folder { disk, layout, manifest, codecs })
    }

    pub(crate) fn codec(&self, table: &str) -> Result<&Codec> {
        self.codecs.get(table).ok_or_else(|| Error::UnknownTable {
            table: table.to_owned(),
            known: self.manifest.tables.iter().map(|t| t.name.clone()).collect(),
        })
    }
}

/// A shard that is not closed.
pub(crate) struct Shard {
    first: u64,
    commits: BTreeMap<u64, Commit>,
    /// Where the next rows go in each stream that exists.
    ends: BTreeMap<String, u64>,
    log_end: u64,
}

/// The rows of one prompt as they lie in a stream, compared with their checksum.
pub(crate) fn read_segment(path: &Path, segment: &Segment) -> Result<Vec<u8>> {
    let (mut file, length) = disk::open(path)?;
    let end = segment.offset.saturating_add(segment.length);
    if end > length {
        return Err(Error::Length { path: path.to_owned(), expected: end, got: length });
    }
    let io = disk::read_error(path);
    file.seek(SeekFrom::Start(segment.offset)).map_err(&io)?;
    let mut bytes = vec![0; segment.length as usize];
    file.read_exact(&mut bytes).map_err(&io)?;
    checksum::compare(path, &segment.sha256, checksum::of(&bytes))?;
    Ok(bytes)
}

/// Whether an error tells of damage rather than of a disk that cannot be read.
fn is_damage(error: &Error) -> bool {
    !matches!(error, Error::Io { .. })
}

impl Shard {
    /// Makes the directory of a new shard.
    pub(crate) fn create(folder: &Folder, first: u64) -> Result<Shard> {
        let Folder { disk, layout, .. } = folder;
        disk.create_directory(&layout.open())?;
        disk.create_directory(&layout.open_shard(first))?;
        // Synced with the first prompt; until then nothing is lost with it.
        disk.create(&layout.commits(first))?;
        Ok(Shard { first, commits: BTreeMap::new(), ends: BTreeMap::new(), log_end: 0 })
    }

    /// Finds the finished prompts of a shard and cuts off everything else.
    ///
    /// Returns the shard and the number of prompts that were recorded as finished and are
    /// damaged; those count as unfinished.
    pub(crate) fn recover(folder: &Folder, first: u64, ids: &[String]) -> Result<(Shard, u64)> {
        let Folder { disk, layout, .. } = folder;
        let log = layout.commits(first);
        let ledger = ledger::read::<Commit>(&log, MAX_LINE_BYTES)?;
        let recorded = ledger.records.len();
        let mut shard = Shard {
            first,
            commits: BTreeMap::new(),
            ends: BTreeMap::new(),
            log_end: ledger.length,
        };
        let headers = sound_headers(folder, first)?;
        for commit in ledger.records.into_iter().flatten() {
            if shard.is_intact(folder, ids, &headers, &commit)? {
                shard.commits.insert(commit.index, commit);
            }
        }

        let damaged = recorded - shard.commits.len();
        if damaged > 0 {
            let mut text = Vec::new();
            for commit in shard.commits.values() {
                text.extend(ledger::line(&log, commit)?);
            }
            shard.log_end = text.len() as u64;
            disk.replace(&log, &text)?;
        } else if ledger.torn {
            disk.truncate(&log, ledger.length)?;
        } else if !log.is_file() {
            disk.create(&log)?;
        }

        for commit in shard.commits.values() {
            for (table, segment) in &commit.tables {
                let end = segment.offset + segment.length;
                let known = shard.ends.entry(table.clone()).or_default();
                *known = end.max(*known);
            }
        }
        for (table, end) in &shard.ends {
            let path = layout.stream(first, table);
            if disk::open(&path)?.1 > *end {
                disk.truncate(&path, *end)?;
            }
        }
        shard.remove_leftovers(folder)?;
        Ok((shard, damaged as u64))
    }

    fn is_intact(
        &self,
        folder: &Folder,
        ids: &[String],
        headers: &BTreeSet<String>,
        commit: &Commit,
    ) -> Result<bool> {
        let layout = &folder.layout;
        let expected = usize::try_from(commit.index).ok().and_then(|i| ids.get(i));
        if !commit.is_sound(&folder.manifest, self.first)
            || expected != Some(&commit.prompt)
            || self.commits.contains_key(&commit.index)
            || !commit.tables.keys().all(|table| headers.contains(table))
        {
            return Ok(false);
        }
        let check = || {
            for (table, segment) in &commit.tables {
                read_segment(&layout.stream(self.first, table), segment)?;
            }
            if let Some(record) = &commit.tensors {
                let path = layout.prompt_tensors(self.first, commit.index);
                tensors::check_prompt(&path, record)?;
            }
            Ok(())
        };
        match check() {
            Ok(()) => Ok(true),
            Err(error) if is_damage(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes everything in the shard's directory that no finished prompt needs.
    fn remove_leftovers(&self, folder: &Folder) -> Result<()> {
        let layout = &folder.layout;
        let tables = self.ends.keys().map(|t| layout.stream(self.first, t));
        let with_tensors = self.commits.values().filter(|c| c.tensors.is_some());
        let prompts = with_tensors.map(|c| layout.prompt_tensors(self.first, c.index));
        let needed: BTreeSet<_> =
            tables.chain(prompts).chain([layout.commits(self.first)]).collect();
        for (_, path) in disk::list(&layout.open_shard(self.first))? {
            if disk::is_directory(&path) {
                folder.disk.remove_directory(&path)?;
            } else if !needed.contains(&path) {
                folder.disk.remove_file(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn commits(&self) -> impl Iterator<Item = &Commit> {
        self.commits.values()
    }

    /// Whether every prompt of the shard is finished.
    pub(crate) fn is_full(&self, manifest: &Manifest) -> bool {
        self.commits.len() as u64 == records::end_of(manifest, self.first) - self.first
    }

    /// Makes prompts finished: first their rows and tensors reach the disk, then the lines that say so.
    pub(crate) fn append(&mut self, folder: &Folder, prompts: Vec<Prepared>) -> Result<()> {
        let Folder { disk, layout, .. } = folder;
        let mut commits: Vec<Commit> = Vec::with_capacity(prompts.len());
        let mut by_table: BTreeMap<String, Vec<(usize, u64, Vec<u8>)>> = BTreeMap::new();
        let mut files = Vec::new();
        for (i, prompt) in prompts.into_iter().enumerate() {
            for (table, rows, bytes) in prompt.segments {
                by_table.entry(table).or_default().push((i, rows, bytes));
            }
            files.push(prompt.tensors);
            commits.push(Commit {
                index: prompt.index,
                prompt: prompt.id,
                tables: BTreeMap::new(),
                tensors: None,
            });
        }

        for (table, segments) in by_table {
            let path = layout.stream(self.first, &table);
            let mut output = match self.ends.get(&table) {
                Some(end) => disk.append(&path, *end)?,
                None => {
                    let mut output = disk.create(&path)?;
                    output.append(folder.codec(&table)?.header())?;
                    output
                }
            };
            for (i, rows, bytes) in segments {
                let segment = Segment {
                    offset: output.offset(),
                    length: bytes.len() as u64,
                    rows,
                    sha256: checksum::of(&bytes),
                };
                output.append(&bytes)?;
                commits[i].tables.insert(table.clone(), segment);
            }
            output.sync()?;
            self.ends.insert(table, output.offset());
        }
        for (commit, file) in commits.iter_mut().zip(files) {
            if let Some(file) = file {
                let (beside, record) = file.close()?;
                disk.rename(&beside, &layout.prompt_tensors(self.first, commit.index))?;
                commit.tensors = Some(record);
            }
        }
        disk.sync_directory(&layout.open_shard(self.first))?;

        let log = layout.commits(self.first);
        let mut text = Vec::new();
        for commit in &commits {
            text.extend(ledger::line(&log, commit)?);
        }
        let mut output = disk.append(&log, self.log_end)?;
        output.append(&text)?;
        output.sync()?;
        self.log_end = output.offset();
        self.commits.extend(commits.into_iter().map(|commit| (commit.index, commit)));
        Ok(())
    }

    /// Writes the files of the closed shard in their places; the shard's directory is left alone.
    pub(crate) fn close(&self, folder: &Folder) -> Result<ShardRecord> {
        let Folder { disk, layout, manifest, .. } = folder;
        let mut tables = BTreeMap::new();
        for table in &manifest.tables {
            let segments: Vec<&Segment> =
                self.commits.values().filter_map(|commit| commit.tables.get(&table.name)).collect();
            if !segments.is_empty() {
                disk.create_directory(&layout.shards())?;
                let record = self.close_table(folder, &table.name, &segments)?;
                tables.insert(table.name.clone(), record);
            }
        }
        let packable: Vec<Packable> = self
            .commits
            .values()
            .filter_map(|commit| {
                Some(Packable {
                    index: commit.index,
                    path: layout.prompt_tensors(self.first, commit.index),
                    record: commit.tensors.clone()?,
                })
            })
            .collect();
        if !packable.is_empty() {
            disk.create_directory(&layout.tensors())?;
        }
        let tensors = pack::pack(disk, layout, &packable)?;
        if !tables.is_empty() {
            disk.sync_directory(&layout.shards())?;
        }
        if !tensors.is_empty() {
            disk.sync_directory(&layout.tensors())?;
        }
        Ok(ShardRecord {
            first: self.first,
            prompts: self.commits.values().map(|c| c.prompt.clone()).collect(),
            tables,
            tensors,
        })
    }

    fn close_table(
        &self,
        folder: &Folder,
        table: &str,
        segments: &[&Segment],
    ) -> Result<TableFileRecord> {
        let Folder { disk, layout, .. } = folder;
        let source = layout.stream(self.first, table);
        let name = layout::shard_table(self.first, table);
        let path = layout.file(&name);
        let beside = disk::partial(&path);
        let mut output = disk.create(&beside)?;
        let mut sum = Checksum::default();
        let mut put = |bytes: &[u8]| {
            sum.update(bytes);
            output.append(bytes)
        };
        put(folder.codec(table)?.header())?;
        for segment in segments {
            put(&read_segment(&source, segment)?)?;
        }
        put(&stream::END)?;
        output.sync()?;
        disk.rename(&beside, &path)?;
        Ok(TableFileRecord {
            file: name,
            rows: segments.iter().map(|s| s.rows).sum(),
            bytes: output.offset(),
            sha256: sum.hex(),
        })
    }
}

/// The tables whose stream in this shard starts with the table's own schema message.
fn sound_headers(folder: &Folder, first: u64) -> Result<BTreeSet<String>> {
    let mut sound = BTreeSet::new();
    for table in &folder.manifest.tables {
        let path = folder.layout.stream(first, &table.name);
        let expected = folder.codec(&table.name)?.header();
        let (file, _) = match disk::open(&path) {
            Ok(opened) => opened,
            Err(Error::Missing { .. }) => continue,
            Err(error) => return Err(error),
        };
        let mut header = Vec::new();
        file.take(expected.len() as u64)
            .read_to_end(&mut header)
            .map_err(disk::read_error(&path))?;
        if header == expected {
            sound.insert(table.name.clone());
        }
    }
    Ok(sound)
}
