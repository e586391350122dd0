//! Writing a run folder: starting, going on, committing prompts, finishing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::checksum;
use crate::disk::{self, Disk, Monitor};
use crate::error::{Action, Error, NameOf, Result};
use crate::layout::{self, Layout};
use crate::manifest::{self, Job, Manifest};
use crate::names;
use crate::parquet_table;
use crate::prompt::{Prepared, PromptWriter};
use crate::records::{self, FinishedRecord, History, Milestone, ShardRecord};
use crate::schema::{self, TableInfo, TableSchema};
use crate::shard::{Folder, Shard};
use crate::tensors;

/// How a run folder is written.
#[derive(Clone)]
pub struct Options {
    /// Prompts in a shard, at most [`crate::MAX_SHARD_PROMPTS`]; a folder that exists keeps its own.
    pub shard_prompts: u64,
    /// Sees, and may refuse, every change to the disk.
    pub monitor: Option<Arc<dyn Monitor>>,
}

impl Default for Options {
    fn default() -> Options {
        Options { shard_prompts: 64, monitor: None }
    }
}

/// How a run was found when it was opened for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// The folder is new.
    New,
    /// The folder holds the beginning of the run.
    Resumed {
        /// Prompts that are finished.
        finished: u64,
        /// Prompts that had been finished and are damaged; they are to be done again.
        damaged: u64,
    },
    /// The run is finished; nothing is left to do.
    Complete(Summary),
}

/// What a finished run holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Number of prompts.
    pub prompts: u64,
    /// Rows of each table.
    pub tables: BTreeMap<String, u64>,
    /// Number of tensors.
    pub tensors: u64,
    /// Bytes of tables and tensors on the disk.
    pub bytes: u64,
}

impl From<&FinishedRecord> for Summary {
    fn from(record: &FinishedRecord) -> Summary {
        let rows = |(table, r): (&String, &records::TableFileRecord)| (table.clone(), r.rows);
        Summary {
            prompts: record.prompts,
            tables: record.tables.iter().map(rows).collect(),
            tensors: record.tensors,
            bytes: record.bytes,
        }
    }
}

/// A run folder open for writing; no other process can write to it meanwhile.
///
/// After an [`Error::Io`] the run refuses to go on, because what the disk holds
/// is then unknown; opening the folder again cuts off what was not finished.
pub struct Run {
    folder: Arc<Folder>,
    ids: Vec<String>,
    start: Start,
    closed: BTreeMap<u64, ShardRecord>,
    open: BTreeMap<u64, Shard>,
    finished: Vec<bool>,
    summary: Option<Summary>,
    ledger_end: u64,
    halted: bool,
    writers: u64,
    next_room: Arc<AtomicU64>,
    _lock: Lock,
}

impl Run {
    /// Starts a run in a new or empty folder, or goes on with the one that is there.
    ///
    /// `prompts` are the ids of all prompts of the run, in order.
    ///
    /// # Errors
    /// [`Error::DifferentJob`] if the folder holds another job, [`Error::Locked`] if another
    /// process writes to it, [`Error::NotARun`] if it has other things in it; names that
    /// cannot be used; a folder that is damaged where no crash can have damaged it.
    pub fn create_or_resume(
        path: impl AsRef<Path>,
        job: &Job,
        tables: &[TableSchema],
        prompts: &[String],
        options: Options,
    ) -> Result<Run> {
        let tables: Vec<TableInfo> = tables.iter().map(TableInfo::from).collect();
        schema::check(&tables)?;
        for id in prompts {
            names::check_text(NameOf::Prompt, id)?;
        }
        names::check_unique(NameOf::Prompt, prompts.iter().map(String::as_str))?;
        manifest::check_shard_prompts(options.shard_prompts)?;

        let disk = Disk::new(options.monitor);
        let layout = Layout::new(path.as_ref());
        let asked = Manifest::new(job, prompts, options.shard_prompts, tables);
        let text = asked.encode(&layout.manifest())?;
        check_is_run_or_empty(&layout)?;
        disk.create_directory(layout.root())?;
        let lock = take_lock(&layout)?;
        check_is_run_or_empty(&layout)?;

        let mut start = Start::New;
        // Compared as they are read back, so that no rounding in JSON makes a difference.
        let asked = Manifest::decode(&layout.manifest(), &text)?;
        let found = match Manifest::read(&layout.manifest()) {
            Ok(found) => {
                start = Start::Resumed { finished: 0, damaged: 0 };
                found
            }
            Err(Error::Missing { .. }) => {
                disk.replace(&layout.manifest(), &text)?;
                asked.clone()
            }
            Err(error) => return Err(error),
        };
        let differences = found.differences(&asked);
        if !differences.is_empty() {
            return Err(Error::DifferentJob { path: layout.root().to_owned(), differences });
        }

        let mut run = Run {
            folder: Arc::new(Folder::new(disk, layout, found)?),
            ids: prompts.to_vec(),
            start,
            closed: BTreeMap::new(),
            open: BTreeMap::new(),
            finished: vec![false; prompts.len()],
            summary: None,
            ledger_end: 0,
            halted: false,
            writers: 0,
            next_room: Arc::new(AtomicU64::new(tensors::FIRST_ROOM)),
            _lock: lock,
        };
        run.recover()?;
        Ok(run)
    }

    /// How the run was found.
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// The number of prompts.
    pub fn prompts(&self) -> u64 {
        self.ids.len() as u64
    }

    /// The number of prompts that are finished.
    pub fn finished(&self) -> u64 {
        self.finished.iter().filter(|done| **done).count() as u64
    }

    /// Whether the prompt at `index` is finished; false where there is no such prompt.
    pub fn is_finished(&self, index: u64) -> bool {
        let done = usize::try_from(index).ok().and_then(|i| self.finished.get(i));
        done.copied().unwrap_or(false)
    }

    /// The indices of the prompts that are left to do, in order.
    pub fn unfinished(&self) -> Vec<u64> {
        (0..self.prompts()).filter(|index| !self.is_finished(*index)).collect()
    }

    /// Begins a prompt; several can be begun at once and committed in any order.
    ///
    /// # Errors
    /// [`Error::NoSuchPrompt`], [`Error::AlreadyFinished`], [`Error::Halted`], or a failed write.
    pub fn prompt(&mut self, index: u64) -> Result<PromptWriter> {
        let id = self.check_unfinished(index)?.to_owned();
        let first = records::first_of(&self.folder.manifest, index);
        self.guarded(|run| {
            if !run.open.contains_key(&first) {
                let shard = Shard::create(&run.folder, first)?;
                run.open.insert(first, shard);
            }
            Ok(())
        })?;
        self.writers += 1;
        let file = self.folder.layout.prompt_tensors(first, index);
        let file = file.with_extension(format!("{}.partial", self.writers));
        Ok(PromptWriter::new(self.folder.clone(), index, id, file, self.next_room.clone()))
    }

    /// Makes one prompt finished: when this returns, it survives a loss of power.
    ///
    /// # Errors
    /// As [`Run::commit_all`].
    pub fn commit(&mut self, writer: PromptWriter) -> Result<()> {
        self.commit_all(vec![writer])
    }

    /// Makes several prompts finished together, waiting for the disk once for all of them.
    ///
    /// # Errors
    /// [`Error::AlreadyFinished`] if one is finished or comes twice, [`Error::Halted`], or a
    /// failed write, after which none, some or all of them are finished when the folder is
    /// opened again.
    pub fn commit_all(&mut self, writers: Vec<PromptWriter>) -> Result<()> {
        let mut indices = BTreeSet::new();
        for writer in &writers {
            let id = self.check_unfinished(writer.index())?;
            if !indices.insert(writer.index()) {
                return Err(Error::AlreadyFinished { id: id.to_owned() });
            }
            if !writer.belongs_to(&self.folder) {
                return Err(Error::NoSuchPrompt { index: writer.index(), prompts: self.prompts() });
            }
        }
        let mut by_shard: BTreeMap<u64, Vec<Prepared>> = BTreeMap::new();
        for writer in writers {
            let first = records::first_of(&self.folder.manifest, writer.index());
            by_shard.entry(first).or_default().push(writer.prepare()?);
        }
        self.guarded(|run| {
            for (first, mut prompts) in by_shard {
                prompts.sort_by_key(|prompt| prompt.index);
                let indices: Vec<u64> = prompts.iter().map(|prompt| prompt.index).collect();
                let Some(shard) = run.open.get_mut(&first) else {
                    continue;
                };
                shard.append(&run.folder, prompts)?;
                for index in indices {
                    run.mark_finished(index);
                }
                run.close_if_full(first)?;
            }
            Ok(())
        })
    }

    /// Writes the tables when all prompts are finished; a run that is finished already is left as it is.
    ///
    /// # Errors
    /// [`Error::Unfinished`], damage in a closed shard, or a failed write.
    pub fn finish(&mut self) -> Result<Summary> {
        if let Some(summary) = &self.summary {
            return Ok(summary.clone());
        }
        let (finished, prompts) = (self.finished(), self.prompts());
        if finished < prompts {
            return Err(Error::Unfinished { finished, prompts });
        }
        self.guarded(Run::write_tables)
    }

    fn write_tables(&mut self) -> Result<Summary> {
        let folder = self.folder.clone();
        let Folder { disk, layout, manifest, .. } = &*folder;
        disk.create_directory(&layout.tables())?;
        let mut tables = BTreeMap::new();
        for table in &manifest.tables {
            let record = parquet_table::write(&folder, table, self.closed.values())?;
            tables.insert(table.name.clone(), record);
        }
        disk.sync_directory(&layout.tables())?;
        let packed = self.closed.values().flat_map(|shard| &shard.tensors);
        let tensor_bytes: u64 = self.closed.values().map(ShardRecord::tensor_bytes).sum();
        let record = FinishedRecord {
            prompts: self.prompts(),
            tensors: packed.map(|file| file.tensors).sum(),
            bytes: tensor_bytes + tables.values().map(|t| t.bytes).sum::<u64>(),
            tables,
        };
        let summary = Summary::from(&record);
        self.record(&Milestone::Finished(record))?;
        self.remove_intermediate()?;
        self.summary = Some(summary.clone());
        Ok(summary)
    }

    /// Finds what the folder holds and cuts off the rest.
    fn recover(&mut self) -> Result<()> {
        let folder = self.folder.clone();
        let Folder { disk, layout, manifest, .. } = &*folder;
        for directory in [layout.open(), layout.shards(), layout.tensors(), layout.tables()] {
            disk::refuse_link(&directory)?;
        }
        let history = History::read(layout, manifest)?;
        if history.torn {
            disk.truncate(&layout.ledger(), history.length)?;
        }
        self.ledger_end = history.length;
        for (first, shard) in history.shards {
            let ids = usize::try_from(first)
                .ok()
                .and_then(|from| self.ids.get(from..from + shard.prompts.len()));
            if ids != Some(&shard.prompts) {
                return Err(Error::Record { path: layout.ledger(), line: self.closed.len() + 1 });
            }
            for index in first..first + shard.prompts.len() as u64 {
                self.mark_finished(index);
            }
            self.closed.insert(first, shard);
        }

        if let Some(record) = history.finished {
            for table in record.tables.values() {
                table.check(layout)?;
            }
            for file in self.closed.values().flat_map(|shard| &shard.tensors) {
                checksum::check_length(&layout.file(&file.file), file.bytes)?;
            }
            let summary = Summary::from(&record);
            self.start = Start::Complete(summary.clone());
            self.summary = Some(summary);
            return self.remove_intermediate();
        }

        for shard in self.closed.values() {
            shard.check_files(layout)?;
        }
        let mut all_damaged = 0;
        for (name, path) in disk::list(&layout.open())? {
            let first = layout::parse_number(&name).filter(|first| {
                *first < manifest.prompts.count && first.is_multiple_of(manifest.shard_prompts)
            });
            match first {
                Some(first) if disk::is_directory(&path) && !self.closed.contains_key(&first) => {
                    let (shard, damaged) = Shard::recover(&folder, first, &self.ids)?;
                    let indices: Vec<u64> = shard.commits().map(|c| c.index).collect();
                    for index in indices {
                        self.mark_finished(index);
                    }
                    all_damaged += damaged;
                    self.open.insert(first, shard);
                }
                _ if disk::is_directory(&path) => disk.remove_directory(&path)?,
                _ => disk.remove_file(&path)?,
            }
        }
        self.remove_unlisted()?;
        if let Start::Resumed { finished, damaged } = &mut self.start {
            *finished = self.finished.iter().filter(|done| **done).count() as u64;
            *damaged = all_damaged;
        }
        let open: Vec<u64> = self.open.keys().copied().collect();
        for first in open {
            self.close_if_full(first)?;
        }
        Ok(())
    }

    /// Deletes files of shards whose closing was not recorded.
    fn remove_unlisted(&self) -> Result<()> {
        let Folder { disk, layout, .. } = &*self.folder;
        let files = self.closed.values().flat_map(|shard| {
            let rows = shard.tables.values().map(|t| &t.file);
            rows.chain(shard.tensors.iter().map(|t| &t.file))
        });
        let listed: BTreeSet<_> = files.map(|file| layout.file(file)).collect();
        for (_, path) in disk::list(&layout.shards())? {
            if !listed.contains(&path) {
                disk.remove_file(&path)?;
            }
        }
        for (name, path) in disk::list(&layout.tensors())? {
            if layout::is_tensor_file(&name) && !listed.contains(&path) {
                disk.remove_file(&path)?;
            }
        }
        for table in &self.folder.manifest.tables {
            let beside = disk::partial(&layout.file(&layout::table(&table.name)));
            if beside.is_file() {
                disk.remove_file(&beside)?;
            }
        }
        Ok(())
    }

    /// Deletes what a finished run does not need.
    fn remove_intermediate(&mut self) -> Result<()> {
        self.open.clear();
        let Folder { disk, layout, .. } = &*self.folder;
        for directory in [layout.open(), layout.shards()] {
            if directory.is_dir() {
                disk.remove_directory(&directory)?;
            }
        }
        Ok(())
    }

    fn close_if_full(&mut self, first: u64) -> Result<()> {
        let full = |shard: &Shard| shard.is_full(&self.folder.manifest);
        let Some(shard) = self.open.get(&first).filter(|shard| full(shard)) else {
            return Ok(());
        };
        let record = shard.close(&self.folder)?;
        self.record(&Milestone::Shard(record.clone()))?;
        self.closed.insert(first, record);
        self.open.remove(&first);
        let directory = self.folder.layout.open_shard(first);
        self.folder.disk.remove_directory(&directory)
    }

    /// Appends a line to `shards.jsonl` and waits until it is on the disk.
    fn record(&mut self, milestone: &Milestone) -> Result<()> {
        let Folder { disk, layout, .. } = &*self.folder;
        let path = layout.ledger();
        let line = records::milestone_line(&path, milestone)?;
        let new = !path.is_file();
        let mut output =
            if new { disk.create(&path)? } else { disk.append(&path, self.ledger_end)? };
        output.append(&line)?;
        output.sync()?;
        if new {
            disk.sync_directory(layout.root())?;
        }
        self.ledger_end = output.offset();
        Ok(())
    }

    fn mark_finished(&mut self, index: u64) {
        let done = usize::try_from(index).ok().and_then(|i| self.finished.get_mut(i));
        if let Some(done) = done {
            *done = true;
        }
    }

    fn check_unfinished(&self, index: u64) -> Result<&str> {
        if self.halted {
            return Err(Error::Halted { path: self.folder.layout.root().to_owned() });
        }
        let id = usize::try_from(index).ok().and_then(|i| self.ids.get(i));
        match id {
            None => Err(Error::NoSuchPrompt { index, prompts: self.prompts() }),
            Some(id) if self.is_finished(index) => Err(Error::AlreadyFinished { id: id.clone() }),
            Some(id) => Ok(id),
        }
    }

    /// Changes the folder; after a failure the run goes no further.
    fn guarded<T>(&mut self, change: impl FnOnce(&mut Run) -> Result<T>) -> Result<T> {
        if self.halted {
            return Err(Error::Halted { path: self.folder.layout.root().to_owned() });
        }
        let outcome = change(self);
        self.halted = outcome.is_err();
        outcome
    }
}

/// A folder without a manifest must hold nothing but what a start that was cut short leaves.
fn check_is_run_or_empty(layout: &Layout) -> Result<()> {
    if layout.manifest().is_file() {
        return Ok(());
    }
    let own = [layout.lock(), disk::partial(&layout.manifest())];
    let foreign = disk::list(layout.root())?.into_iter().any(|(_, path)| !own.contains(&path));
    if foreign {
        return Err(Error::NotARun { path: layout.root().to_owned() });
    }
    Ok(())
}

/// The folder's lock, given back when it is dropped.
///
/// Closing the file would do, were it not for a child process that is being started at
/// this moment and still shares it.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

fn take_lock(layout: &Layout) -> Result<Lock> {
    let path = layout.lock();
    let error = |source| Error::Io { action: Action::Lock, path: path.clone(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: layout.root().to_owned() }),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}
