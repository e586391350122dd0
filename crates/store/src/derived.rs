//! What is derived from a finished run, and lies beside it: summaries that can be
//! made again at any time from what the run measured.
//!
//! A derived file is no part of the run: the manifest does not name it, `shards.jsonl`
//! keeps no checksum of it, and making it again replaces it whole.

use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema};
use parquet::arrow::ArrowWriter;

use crate::column::Column;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::layout::{self, Layout};
use crate::parquet_table::{parquet_error, properties};
use crate::schema::{TableInfo, TableSchema};

/// Puts a file into a run folder, in place of one of the same name.
///
/// # Errors
/// A folder that is not one of a run, a failed write.
pub fn replace_file(run: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let layout = Layout::new(run);
    if !layout.manifest().is_file() {
        return Err(Error::NotARun { path: run.to_owned() });
    }
    Disk::default().replace(&layout.file(name), bytes)
}

/// Puts a Parquet table into the `tables` of a run folder, in place of one of the same
/// name. Unlike a run's own tables it has the declared columns and no others.
///
/// Equal rows make equal bytes.
///
/// # Errors
/// Columns that are not those of the table in its order, of another kind or of unequal
/// length; no value where one is required; a failed write.
pub fn replace_table(run: &Path, table: &TableSchema, columns: Vec<(&str, Column)>) -> Result<()> {
    let info = TableInfo::from(table);
    let bytes = encode(run, &info, columns)?;
    replace_file(run, &layout::table(table.name), &bytes)
}

fn encode(run: &Path, info: &TableInfo, columns: Vec<(&str, Column)>) -> Result<Vec<u8>> {
    let table = || info.name.clone();
    let named = |c: &(&str, Column)| c.0.to_owned();
    let rows = columns.first().map_or(0, |(_, column)| column.len());
    if !info.columns.iter().map(|c| c.name.as_str()).eq(columns.iter().map(|c| c.0)) {
        let expected = info.columns.iter().map(|c| c.name.clone()).collect();
        let got = columns.iter().map(named).collect();
        return Err(Error::Columns { table: table(), expected, got });
    }
    let mut arrays = Vec::with_capacity(columns.len());
    for (info, (_, column)) in info.columns.iter().zip(columns) {
        let (name, got) = (info.name.clone(), column.kind());
        if got != info.kind {
            return Err(Error::Kind { table: table(), column: name, expected: info.kind, got });
        }
        if column.len() != rows {
            let got = column.len();
            return Err(Error::Rows { table: table(), column: name, expected: rows, got });
        }
        if let (false, Some(row)) = (info.nullable, column.first_null()) {
            return Err(Error::Null { table: table(), column: name, row });
        }
        arrays.push(column.into_array());
    }
    let schema = Arc::new(Schema::new(info.fields().collect::<Vec<Field>>()));
    let arrow = |source| Error::Arrow { table: table(), source };
    let batch = RecordBatch::try_new(schema.clone(), arrays).map_err(arrow)?;
    let path = run.join(layout::table(&info.name));
    let failed = |source| parquet_error(&path, source);
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, schema, Some(properties(&path, info)?)).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.close().map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

    use super::*;
    use crate::{ColumnKind, ColumnSpec, Job, Options, Reader, Run};

    const SCORES: TableSchema = TableSchema::new(
        "scores",
        &[
            ColumnSpec::required("prompt", ColumnKind::Text, "", "the text"),
            ColumnSpec::optional("score", ColumnKind::F64, "nats", "its score"),
        ],
    );

    const LENGTHS: TableSchema = TableSchema::new(
        "lengths",
        &[ColumnSpec::required("tokens", ColumnKind::U32, "", "tokens")],
    );

    fn columns() -> Vec<(&'static str, Column)> {
        vec![
            ("prompt", Column::from(vec!["a", "b"])),
            ("score", Column::from(vec![Some(0.5), None])),
        ]
    }

    #[test]
    fn derived_files_lie_beside_a_run_that_stays_whole() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        assert!(matches!(replace_file(&run, "x.json", b"{}"), Err(Error::NotARun { .. })));
        let job = Job {
            engine_version: "1".to_owned(),
            description: serde_json::json!({}),
            command: vec![],
            device: serde_json::Value::Null,
        };
        let tables = [LENGTHS];
        let prompts = ["a".to_owned()];
        let mut open =
            Run::create_or_resume(&run, &job, &tables, &prompts, Options::default()).unwrap();
        let mut writer = open.prompt(0).unwrap();
        writer.rows("lengths", vec![("tokens", Column::from(vec![7_u32]))]).unwrap();
        open.commit(writer).unwrap();
        open.finish().unwrap();
        drop(open);
        for _ in 0..2 {
            replace_table(&run, &SCORES, columns()).unwrap();
            replace_file(&run, "scores.json", b"{}").unwrap();
        }
        let bytes = std::fs::read(run.join("tables/scores.parquet")).unwrap();
        assert_eq!(bytes, encode(&run, &TableInfo::from(&SCORES), columns()).unwrap());
        let file = std::fs::File::open(run.join("tables/scores.parquet")).unwrap();
        let batch = ParquetRecordBatchReader::try_new(file, 10).unwrap().next().unwrap().unwrap();
        assert_eq!((batch.num_rows(), batch.num_columns()), (2, 2));
        assert_eq!(batch.schema().field(1).metadata()["unit"], "nats");
        let reader = Reader::open(&run).unwrap();
        reader.verify().unwrap();
        assert_eq!(reader.tables().len(), 1);
        // Going on with the run leaves what was derived alone.
        Run::create_or_resume(&run, &job, &tables, &prompts, Options::default()).unwrap();
        assert!(run.join("tables/scores.parquet").is_file());
    }

    #[test]
    fn columns_must_be_those_declared() {
        let info = TableInfo::from(&SCORES);
        let refused = |columns| encode(Path::new("run"), &info, columns).unwrap_err();
        let swapped: Vec<_> = columns().into_iter().rev().collect();
        assert!(matches!(refused(swapped), Error::Columns { .. }));
        let with = |score: Column| vec![columns().remove(0), ("score", score)];
        assert!(matches!(refused(with(Column::from(vec![1u32, 2]))), Error::Kind { .. }));
        assert!(matches!(refused(with(Column::from(vec![1.]))), Error::Rows { .. }));
        let null = vec![("prompt", Column::from(vec![Some("a"), None])), columns().remove(1)];
        assert!(matches!(refused(null), Error::Null { row: 1, .. }));
    }
}
