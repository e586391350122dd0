//! The Parquet tables of a finished run.
//!
//! Row groups are cut by the rows themselves, not by when or in which pieces
//! they were written, every writer option that reaches the file is fixed, and
//! no date is written: equal rows make equal bytes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::checksum::Checksum;
use crate::disk::{self, Output};
use crate::error::{Error, Result};
use crate::layout;
use crate::records::{ShardRecord, TableFileRecord};
use crate::schema::{ColumnKind, ELEMENT, TableInfo};
use crate::shard::Folder;
use crate::stream::Messages;

/// Most rows of a row group.
const GROUP_ROWS: usize = 65_536;
/// A row group gets no further prompt beyond this many bytes of Arrow messages.
const GROUP_BYTES: usize = 64 << 20;
/// What the files say wrote them; the number is that of the folder's layout.
const CREATED_BY: &str = "eigenlens version 1.0.0 (build store)";
/// Level of the zstd compression.
const ZSTD_LEVEL: i32 = 3;

/// A file that is hashed as it is written, and keeps the store's own error for the library's.
struct Hashed<'a> {
    output: &'a mut Output,
    sum: &'a mut Checksum,
    failure: &'a mut Option<Error>,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.output.append(bytes) {
            Ok(()) => {
                self.sum.update(bytes);
                Ok(bytes.len())
            }
            Err(error) => {
                let told = io::Error::other(error.to_string());
                *self.failure = Some(error);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn properties(path: &Path, table: &TableInfo) -> Result<WriterProperties> {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|source| parquet_error(path, source))?;
    let mut properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(GROUP_ROWS));
    for column in &table.columns {
        // Measured numbers rarely repeat, so a dictionary of them only costs.
        let parts = match column.kind {
            ColumnKind::F32 | ColumnKind::F64 => vec![column.name.clone()],
            ColumnKind::ListF32 | ColumnKind::ListF64 => {
                vec![column.name.clone(), "list".to_owned(), ELEMENT.to_owned()]
            }
            _ => continue,
        };
        properties = properties.set_column_dictionary_enabled(ColumnPath::new(parts), false);
    }
    Ok(properties.build())
}

pub(crate) fn parquet_error(path: &Path, source: ParquetError) -> Error {
    Error::Parquet { path: path.to_owned(), source }
}

/// Gathers batches into row groups.
struct Groups<W: Write + Send> {
    writer: ArrowWriter<W>,
    table: String,
    path: PathBuf,
    pending: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl<W: Write + Send> Groups<W> {
    /// Adds one prompt's batch, which took `bytes` as an Arrow message.
    fn add(&mut self, batch: &RecordBatch, bytes: usize) -> Result<()> {
        if self.bytes + bytes > GROUP_BYTES {
            self.flush()?;
        }
        self.bytes += bytes;
        let mut from = 0;
        while from < batch.num_rows() {
            let take = (GROUP_ROWS - self.rows).min(batch.num_rows() - from);
            self.pending.push(batch.slice(from, take));
            self.rows += take;
            from += take;
            if self.rows == GROUP_ROWS {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what is pending as one row group.
    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        self.rows = 0;
        let Some(schema) = self.pending.first().map(RecordBatch::schema) else {
            return Ok(());
        };
        let batch = arrow_select::concat::concat_batches(&schema, &self.pending)
            .map_err(|source| Error::Arrow { table: self.table.clone(), source })?;
        self.pending.clear();
        self.writer
            .write(&batch)
            .and_then(|()| self.writer.flush())
            .map_err(|source| parquet_error(&self.path, source))
    }
}

/// Writes the table of a run all of whose shards are closed, in its place.
///
/// Memory holds one row group at a time.
pub(crate) fn write<'a>(
    folder: &Folder,
    table: &TableInfo,
    shards: impl Iterator<Item = &'a ShardRecord>,
) -> Result<TableFileRecord> {
    let name = layout::table(&table.name);
    let path = folder.layout.file(&name);
    let beside = disk::partial(&path);
    let mut output = folder.disk.create(&beside)?;
    let mut sum = Checksum::default();
    let mut failure = None;
    let to = Hashed { output: &mut output, sum: &mut sum, failure: &mut failure };
    let written = write_rows(folder, table, shards, &beside, to);
    let rows = match (written, failure) {
        (_, Some(error)) | (Err(error), None) => return Err(error),
        (Ok(rows), None) => rows,
    };
    output.sync()?;
    folder.disk.rename(&beside, &path)?;
    Ok(TableFileRecord { file: name, rows, bytes: output.offset(), sha256: sum.hex() })
}

fn write_rows<'a>(
    folder: &Folder,
    table: &TableInfo,
    shards: impl Iterator<Item = &'a ShardRecord>,
    path: &Path,
    to: Hashed<'_>,
) -> Result<u64> {
    let codec = folder.codec(&table.name)?;
    let properties = properties(path, table)?;
    let writer = ArrowWriter::try_new(to, codec.schema().clone(), Some(properties))
        .map_err(|source| parquet_error(path, source))?;
    let mut groups = Groups {
        writer,
        table: table.name.clone(),
        path: path.to_owned(),
        pending: Vec::new(),
        rows: 0,
        bytes: 0,
    };
    let mut rows = 0;
    for record in shards.filter_map(|shard| shard.tables.get(&table.name)) {
        record.check(&folder.layout)?;
        let source = folder.layout.file(&record.file);
        let mut messages = Messages::open(&source, codec)?;
        while let Some((offset, message)) = messages.next()? {
            let batch = codec.decode(&source, offset, &message)?;
            rows += batch.num_rows() as u64;
            groups.add(&batch, message.len())?;
        }
    }
    groups.flush()?;
    groups.writer.close().map_err(|source| parquet_error(path, source))?;
    Ok(rows)
}
