//! Looking into a run folder.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use serde::Serialize;
use serde_json::Value;
use store::{ElementType, Progress, Reader, TableInfo};

use crate::verdicts::{self, Verdicts};
use crate::{Error, Result};

/// What is to be shown of a run folder.
#[derive(Clone, Debug, Default)]
pub struct Item {
    /// A table or a tensor; `None` lists the folder.
    pub name: Option<String>,
    /// Rows of this prompt only.
    pub prompt: Option<String>,
    /// Most rows.
    pub limit: usize,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// What the folder holds.
    Contents(Contents),
    /// Rows of a table.
    Rows(Rows),
    /// A tensor.
    Tensor(TensorValues),
    /// The verdicts of a run with labels.
    Verdicts(Box<Verdicts>),
}

/// What a run folder holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contents {
    /// Prompts of the run.
    pub prompts: u64,
    /// Prompts that are finished.
    pub finished_prompts: u64,
    /// Whether the run is finished.
    pub complete: bool,
    /// Version of the engine that wrote it.
    pub engine_version: String,
    /// The command line that began it.
    pub command: Vec<String>,
    /// What was asked for.
    pub job: Value,
    /// The tables.
    pub tables: Vec<TableSummary>,
    /// Keys of the first tensors.
    pub tensors: Vec<String>,
    /// Number of tensors.
    pub n_tensors: usize,
    /// Whether the run was judged.
    pub verdicts: bool,
}

/// A table and its columns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableSummary {
    /// Its name and columns.
    #[serde(flatten)]
    pub info: TableInfo,
    /// Its rows.
    pub rows: u64,
}

/// Rows of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rows {
    /// The table.
    pub table: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows, a value for each column.
    pub rows: Vec<Vec<Value>>,
    /// Rows that match, of which `rows` are the first.
    pub matching: u64,
}

/// A tensor: its shape, its range and its first values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorValues {
    /// Its key.
    pub key: String,
    /// Stored element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Least finite value.
    pub min: Option<f64>,
    /// Greatest finite value.
    pub max: Option<f64>,
    /// Mean of the finite values.
    pub mean: Option<f64>,
    /// Values that are not finite (masked scores are −∞).
    pub n_not_finite: usize,
    /// The first values, row-major; null where not finite.
    pub values: Vec<f64>,
}

/// Most keys of tensors, and values of a tensor per asked row, that are listed.
const LISTED_TENSORS: usize = 64;
const VALUES_PER_ROW: usize = 8;

/// Lists a run folder, or reads one of its tables or tensors.
///
/// # Errors
///
/// [`Error::Store`] if the folder is none or is damaged, [`Error::NotInRun`] if it
/// has no such table, tensor or prompt.
pub fn show(run: &Path, item: &Item) -> Result<Shown> {
    if !run.is_dir() {
        return Err(Error::NoRun { run: run.to_owned() });
    }
    let reader = Reader::open(run)?;
    known_prompt(run, &reader, item.prompt.as_deref())?;
    let Some(name) = &item.name else {
        return Ok(Shown::Contents(contents(run, &reader)?));
    };
    let tables: Vec<String> = reader.tables().into_iter().map(|table| table.info.name).collect();
    if tables.contains(name) {
        return Ok(Shown::Rows(rows(&reader, name, item)?));
    }
    if name == crate::tables::verdicts::VERDICTS.name && run.join(verdicts::FILE).is_file() {
        return Ok(Shown::Verdicts(Box::new(verdicts::read(run)?)));
    }
    if !name.contains('/') {
        return Err(not_in_run(run, "table", name, tables));
    }
    match reader.tensor(name) {
        Ok(data) => Ok(Shown::Tensor(tensor(name, &data, item.limit))),
        Err(store::Error::UnknownTensor { .. }) => {
            let known = reader.tensor_names()?.into_iter().take(8).collect();
            Err(not_in_run(run, "tensor", name, known))
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses a prompt that a run does not have, or has not finished.
pub(crate) fn known_prompt(run: &Path, reader: &Reader, prompt: Option<&str>) -> Result<()> {
    let prompts = reader.prompts();
    match prompt {
        Some(prompt) if !prompts.contains(&prompt) => {
            let known = prompts.iter().take(8).map(|id| id.to_string()).collect();
            Err(not_in_run(run, "prompt", prompt, known))
        }
        _ => Ok(()),
    }
}

fn not_in_run(run: &Path, what: &'static str, name: &str, known: Vec<String>) -> Error {
    Error::NotInRun { run: run.to_owned(), what, name: name.to_owned(), known }
}

fn contents(run: &Path, reader: &Reader) -> Result<Contents> {
    let manifest = reader.manifest();
    let names = reader.tensor_names()?;
    let tables = reader.tables().into_iter();
    Ok(Contents {
        prompts: manifest.prompts.count,
        finished_prompts: reader.prompts().len() as u64,
        complete: matches!(reader.progress(), Progress::Complete { .. }),
        engine_version: manifest.engine_version.clone(),
        command: manifest.command.clone(),
        job: manifest.job.clone(),
        tables: tables.map(|t| TableSummary { info: t.info, rows: t.rows }).collect(),
        verdicts: run.join(verdicts::FILE).is_file(),
        n_tensors: names.len(),
        tensors: names.into_iter().take(LISTED_TENSORS).collect(),
    })
}

fn rows(reader: &Reader, table: &str, item: &Item) -> Result<Rows> {
    let mut shown = Rows { table: table.to_owned(), columns: vec![], rows: vec![], matching: 0 };
    for info in reader.tables().into_iter().filter(|t| t.info.name == table) {
        shown.columns = std::iter::once(store::PROMPT_COLUMN.to_owned())
            .chain(info.info.columns.into_iter().map(|column| column.name))
            .collect();
    }
    for batch in reader.read_table(table)? {
        let batch = batch?;
        let prompts = batch.column(0).as_string_opt::<i32>();
        for row in 0..batch.num_rows() {
            let id = prompts.map(|ids| ids.value(row));
            if item.prompt.as_deref().is_some_and(|wanted| id != Some(wanted)) {
                continue;
            }
            shown.matching += 1;
            if shown.rows.len() < item.limit {
                shown.rows.push(batch.columns().iter().map(|column| cell(column, row)).collect());
            }
        }
    }
    Ok(shown)
}

/// One cell as JSON.
fn cell(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::List(_) => {
            let values = column.as_list::<i32>().value(row);
            (0..values.len()).map(|i| cell(&values, i)).collect()
        }
        other => format!("{other}").into(),
    }
}

fn tensor(key: &str, data: &store::TensorData, limit: usize) -> TensorValues {
    let values = values(data);
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let n_finite = finite().count();
    let fold = |f: fn(f64, f64) -> f64| finite().reduce(f);
    TensorValues {
        key: key.to_owned(),
        dtype: data.element.name().to_owned(),
        shape: data.shape.clone(),
        min: fold(f64::min),
        max: fold(f64::max),
        mean: (n_finite > 0).then(|| finite().sum::<f64>() / n_finite as f64),
        n_not_finite: values.len() - n_finite,
        values: values.iter().copied().take(limit.saturating_mul(VALUES_PER_ROW)).collect(),
    }
}

/// A tensor's elements as `f64`.
fn values(data: &store::TensorData) -> Vec<f64> {
    let size = data.element.size();
    let chunks = data.bytes.chunks_exact(size);
    let half = |chunk: &[u8]| u16::from_le_bytes([chunk[0], chunk[1]]);
    let word = |chunk: &[u8]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    let long = |chunk: &[u8]| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    };
    let value = |chunk: &[u8]| match data.element {
        ElementType::F64 => f64::from_bits(long(chunk)),
        ElementType::F32 => f64::from(f32::from_bits(word(chunk))),
        ElementType::F16 => half::f16::from_bits(half(chunk)).to_f64(),
        ElementType::BF16 => half::bf16::from_bits(half(chunk)).to_f64(),
        ElementType::I64 => long(chunk) as i64 as f64,
        ElementType::I32 => f64::from(word(chunk) as i32),
        ElementType::I16 => f64::from(half(chunk) as i16),
        ElementType::U32 => f64::from(word(chunk)),
        ElementType::U8 => f64::from(chunk[0]),
        _ => f64::NAN,
    };
    chunks.map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_every_type_are_read() {
        let of = |element, bytes: &[u8]| {
            let shape = vec![bytes.len() / ElementType::size(element)];
            values(&store::TensorData { element, shape, bytes: bytes.to_vec() })
        };
        assert_eq!(of(ElementType::F32, &1.5f32.to_le_bytes()), [1.5]);
        assert_eq!(of(ElementType::F64, &(-2.5f64).to_le_bytes()), [-2.5]);
        assert_eq!(of(ElementType::F16, &half::f16::from_f32(0.25).to_le_bytes()), [0.25]);
        assert_eq!(of(ElementType::BF16, &half::bf16::from_f32(8.).to_le_bytes()), [8.]);
        assert_eq!(of(ElementType::I16, &(-3i16).to_le_bytes()), [-3.]);
        assert_eq!(of(ElementType::I64, &(-3i64).to_le_bytes()), [-3.]);
        assert_eq!(of(ElementType::U32, &7u32.to_le_bytes()), [7.]);
        assert_eq!(of(ElementType::U8, &[1, 255]), [1., 255.]);
    }

    #[test]
    fn ranges_leave_out_what_is_not_finite() {
        let bytes: Vec<u8> =
            [1f32, f32::NEG_INFINITY, 3.].iter().flat_map(|v| v.to_le_bytes()).collect();
        let data = store::TensorData { element: ElementType::F32, shape: vec![3], bytes };
        let shown = tensor("0/x", &data, 1);
        assert_eq!((shown.min, shown.max, shown.mean), (Some(1.), Some(3.), Some(2.)));
        assert_eq!(shown.n_not_finite, 1);
    }
}
