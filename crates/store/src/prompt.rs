//! What one prompt adds to a run, gathered until it is whole.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arrow_array::RecordBatch;

use crate::MAX_PROMPT_ROW_BYTES;
use crate::column::{self, Column};
use crate::error::{Error, Result};
use crate::shard::Folder;
use crate::tensor::{StoredType, TensorView};
use crate::tensors::PromptTensors;

/// Gathers the rows and tensors of one prompt.
///
/// Rows are kept in memory; tensors go to the disk as they are given.  Nothing
/// of it is in the run until [`Run::commit`](crate::Run::commit) has it, and a
/// writer that is dropped leaves nothing behind.  Several prompts can be
/// gathered at once.
pub struct PromptWriter {
    folder: Arc<Folder>,
    index: u64,
    id: String,
    rows: BTreeMap<String, (Vec<RecordBatch>, u64)>,
    tensors: Option<PromptTensors>,
    /// Where the tensors go until the prompt is committed.
    path: PathBuf,
    next_room: Arc<AtomicU64>,
}

/// A prompt ready to be written.
pub(crate) struct Prepared {
    pub(crate) index: u64,
    pub(crate) id: String,
    /// Table, number of rows, and the rows as an Arrow message.
    pub(crate) segments: Vec<(String, u64, Vec<u8>)>,
    pub(crate) tensors: Option<PromptTensors>,
}

impl PromptWriter {
    pub(crate) fn new(
        folder: Arc<Folder>,
        index: u64,
        id: String,
        path: PathBuf,
        next_room: Arc<AtomicU64>,
    ) -> PromptWriter {
        PromptWriter { folder, index, id, rows: BTreeMap::new(), tensors: None, path, next_room }
    }

    /// The prompt's place in the run, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The prompt's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Adds rows to a table, by name of column in any order; `prompt` is added by the store.
    ///
    /// Rows given in several calls follow each other.
    ///
    /// # Errors
    /// An unknown table; columns that are missing, unknown, of another kind or of unequal
    /// length; no value where one is required; more than [`MAX_PROMPT_ROW_BYTES`].
    pub fn rows(&mut self, table: &str, columns: Vec<(&str, Column)>) -> Result<()> {
        let folder = &self.folder;
        let codec = folder.codec(table)?;
        let Some(info) = folder.manifest.tables.iter().find(|t| t.name == table) else {
            return Ok(());
        };
        let (batch, bytes) = column::batch(info, codec.schema(), &self.id, columns)?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let (batches, total) = self.rows.entry(table.to_owned()).or_default();
        if *total + bytes > MAX_PROMPT_ROW_BYTES {
            return Err(Error::TooManyRows {
                id: self.id.clone(),
                table: table.to_owned(),
                bytes: *total + bytes,
            });
        }
        *total += bytes;
        batches.push(batch);
        Ok(())
    }

    /// Adds a tensor under the key `{prompt}/{name}`; it goes to the disk at once.
    ///
    /// # Numerics
    /// Conversion to `stored` rounds once, to nearest, ties to even.
    ///
    /// # Errors
    /// A name that is empty, too long, given before, or has a slash or a control character;
    /// bytes that do not fill the shape; a finite value too large for `stored`; a failed write.
    pub fn tensor(&mut self, name: &str, view: TensorView<'_>, stored: StoredType) -> Result<()> {
        let file = match &mut self.tensors {
            Some(file) => file,
            none => {
                none.insert(PromptTensors::create(&self.folder.disk, &self.path, &self.next_room)?)
            }
        };
        file.add(&self.id, name, view, stored)
    }

    pub(crate) fn belongs_to(&self, folder: &Arc<Folder>) -> bool {
        Arc::ptr_eq(&self.folder, folder)
    }

    /// Encodes the rows; the disk is not touched.
    pub(crate) fn prepare(self) -> Result<Prepared> {
        if self.tensors.as_ref().is_some_and(|t| !t.is_usable()) {
            return Err(Error::Halted { path: self.folder.layout.root().to_owned() });
        }
        let mut segments = Vec::with_capacity(self.rows.len());
        for (table, (batches, _)) in self.rows {
            let codec = self.folder.codec(&table)?;
            let batch = arrow_select::concat::concat_batches(codec.schema(), &batches)
                .map_err(|source| Error::Arrow { table: table.clone(), source })?;
            let bytes = codec.encode(&batch)?;
            segments.push((table, batch.num_rows() as u64, bytes));
        }
        Ok(Prepared { index: self.index, id: self.id, segments, tensors: self.tensors })
    }
}
