//! What the lines of `commits.jsonl` and `shards.jsonl` say.
//!
//! File names stand in the records for people and other programs; the store
//! compares them with the names it gives itself and never follows them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::MAX_LINE_BYTES;
use crate::checksum;
use crate::error::{Error, Result};
use crate::layout::{self, Layout};
use crate::ledger;
use crate::manifest::Manifest;
use crate::pack::TensorFileRecord;
use crate::tensors::PromptTensorsRecord;

/// The rows of one prompt in an open shard's stream of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) rows: u64,
    pub(crate) sha256: String,
}

/// A prompt of an open shard is finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Commit {
    pub(crate) index: u64,
    pub(crate) prompt: String,
    pub(crate) tables: BTreeMap<String, Segment>,
    pub(crate) tensors: Option<PromptTensorsRecord>,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableFileRecord {
    pub(crate) file: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A shard is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardRecord {
    pub(crate) first: u64,
    pub(crate) prompts: Vec<String>,
    pub(crate) tables: BTreeMap<String, TableFileRecord>,
    pub(crate) tensors: Vec<TensorFileRecord>,
}

/// The run is finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FinishedRecord {
    pub(crate) prompts: u64,
    pub(crate) tensors: u64,
    pub(crate) bytes: u64,
    pub(crate) tables: BTreeMap<String, TableFileRecord>,
}

/// A line of `shards.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Milestone {
    Shard(ShardRecord),
    Finished(FinishedRecord),
}

/// Everything that `shards.jsonl` says.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) shards: BTreeMap<u64, ShardRecord>,
    pub(crate) finished: Option<FinishedRecord>,
    /// Bytes of whole lines.
    pub(crate) length: u64,
    /// Whether a line that was cut short follows.
    pub(crate) torn: bool,
}

/// The first prompt of the shard that has prompt `index`.
pub(crate) fn first_of(manifest: &Manifest, index: u64) -> u64 {
    index - index % manifest.shard_prompts
}

/// The index behind the last prompt of the shard that starts at `first`.
pub(crate) fn end_of(manifest: &Manifest, first: u64) -> u64 {
    first.saturating_add(manifest.shard_prompts).min(manifest.prompts.count)
}

impl History {
    /// Reads `shards.jsonl` and compares it with the manifest.
    pub(crate) fn read(layout: &Layout, manifest: &Manifest) -> Result<History> {
        let path = layout.ledger();
        let ledger = ledger::read::<Milestone>(&path, MAX_LINE_BYTES)?;
        let mut history =
            History { length: ledger.length, torn: ledger.torn, ..History::default() };
        for (i, record) in ledger.records.into_iter().enumerate() {
            let sound = history.finished.is_none()
                && match record {
                    Some(Milestone::Shard(shard)) => {
                        shard.is_sound(manifest)
                            && history.shards.insert(shard.first, shard).is_none()
                    }
                    Some(Milestone::Finished(finished)) => {
                        let sound = finished.is_sound(manifest, &history);
                        history.finished = Some(finished);
                        sound
                    }
                    None => false,
                };
            if !sound {
                return Err(Error::Record { path, line: i + 1 });
            }
        }
        Ok(history)
    }
}

impl ShardRecord {
    fn is_sound(&self, manifest: &Manifest) -> bool {
        let end = end_of(manifest, self.first);
        let named = |(table, record): (&String, &TableFileRecord)| {
            manifest.tables.iter().any(|t| t.name == *table)
                && record.file == layout::shard_table(self.first, table)
        };
        let ascending = self.tensors.windows(2).all(|w| w[0].first < w[1].first);
        self.first < manifest.prompts.count
            && self.first.is_multiple_of(manifest.shard_prompts)
            && self.prompts.len() as u64 == end - self.first
            && self.tables.iter().all(named)
            && ascending
            && self.tensors.iter().all(|t| {
                (self.first..end).contains(&t.first) && t.file == layout::tensor_file(t.first)
            })
    }

    /// Compares the lengths of the files, and the checksums of those with rows.
    pub(crate) fn check_files(&self, layout: &Layout) -> Result<()> {
        for record in self.tables.values() {
            record.check(layout)?;
        }
        for record in &self.tensors {
            checksum::check_length(&layout.file(&record.file), record.bytes)?;
        }
        Ok(())
    }

    /// Bytes of the packed tensors.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }
}

impl TableFileRecord {
    pub(crate) fn check(&self, layout: &Layout) -> Result<()> {
        checksum::check_file(&layout.file(&self.file), self.bytes, &self.sha256)
    }
}

impl FinishedRecord {
    fn is_sound(&self, manifest: &Manifest, history: &History) -> bool {
        let listed: u64 = history.shards.values().map(|s| s.prompts.len() as u64).sum();
        let tables_match = self.tables.len() == manifest.tables.len()
            && manifest.tables.iter().all(|t| {
                self.tables.get(&t.name).is_some_and(|record| record.file == layout::table(&t.name))
            });
        self.prompts == manifest.prompts.count && listed == self.prompts && tables_match
    }
}

impl Commit {
    /// Whether the record can be one of the shard that starts at `first`.
    pub(crate) fn is_sound(&self, manifest: &Manifest, first: u64) -> bool {
        (first..end_of(manifest, first)).contains(&self.index)
            && self.tables.keys().all(|table| manifest.tables.iter().any(|t| t.name == *table))
    }
}

/// The line that records a milestone.
pub(crate) fn milestone_line(path: &Path, milestone: &Milestone) -> Result<Vec<u8>> {
    ledger::line(path, milestone)
}
