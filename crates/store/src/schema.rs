//! What the tables of a run are.
//!
//! A program declares its tables as constants; the manifest keeps their owned
//! counterparts ([`TableInfo`]), so that a reader needs to know none of them.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::error::{Error, NameOf, Result};
use crate::names;
use crate::{MAX_COLUMNS, MAX_TABLES, PROMPT_COLUMN};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ColumnKind {
    /// Unsigned 32-bit integers.
    U32,
    /// Unsigned 64-bit integers.
    U64,
    /// Signed 64-bit integers.
    I64,
    /// Single-precision numbers.
    F32,
    /// Double-precision numbers.
    F64,
    /// True or false.
    Bool,
    /// UTF-8 text.
    Text,
    /// A list of unsigned 32-bit integers in each row.
    ListU32,
    /// A list of single-precision numbers in each row.
    ListF32,
    /// A list of double-precision numbers in each row.
    ListF64,
}

/// The name of the values inside a list column, as Parquet's own rules want it.
pub(crate) const ELEMENT: &str = "element";

impl ColumnKind {
    pub(crate) fn data_type(self) -> DataType {
        let list = |of| DataType::List(Arc::new(Field::new(ELEMENT, of, false)));
        match self {
            ColumnKind::U32 => DataType::UInt32,
            ColumnKind::U64 => DataType::UInt64,
            ColumnKind::I64 => DataType::Int64,
            ColumnKind::F32 => DataType::Float32,
            ColumnKind::F64 => DataType::Float64,
            ColumnKind::Bool => DataType::Boolean,
            ColumnKind::Text => DataType::Utf8,
            ColumnKind::ListU32 => list(DataType::UInt32),
            ColumnKind::ListF32 => list(DataType::Float32),
            ColumnKind::ListF64 => list(DataType::Float64),
        }
    }
}

/// One column of a table, as a program declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// Its name: `a-z`, `0-9` and `_`, and not `prompt`.
    pub name: &'static str,
    /// What it holds.
    pub kind: ColumnKind,
    /// Whether a row may have no value in it.
    pub nullable: bool,
    /// The unit of its values, such as `nats`; empty for counts, indices and text.
    pub unit: &'static str,
    /// What it means, in a sentence.
    pub doc: &'static str,
}

impl ColumnSpec {
    /// A column with a value in every row.
    pub const fn required(
        name: &'static str,
        kind: ColumnKind,
        unit: &'static str,
        doc: &'static str,
    ) -> ColumnSpec {
        ColumnSpec { name, kind, nullable: false, unit, doc }
    }

    /// A column that may have no value in some rows.
    pub const fn optional(
        name: &'static str,
        kind: ColumnKind,
        unit: &'static str,
        doc: &'static str,
    ) -> ColumnSpec {
        ColumnSpec { name, kind, nullable: true, unit, doc }
    }
}

/// A table, as a program declares it.
///
/// The store puts a text column `prompt` with the prompt's id before the others.
///
/// ```
/// use store::{ColumnKind, ColumnSpec, TableSchema};
///
/// const SPECTRAL: TableSchema = TableSchema::new(
///     "spectral",
///     &[
///         ColumnSpec::required("layer", ColumnKind::U32, "", "layer, from 0"),
///         ColumnSpec::optional("fiedler_value", ColumnKind::F64, "", "λ₂ of the Laplacian"),
///     ],
/// );
/// assert_eq!(SPECTRAL.columns.len(), 2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// Its name, which is that of its file: `a-z`, `0-9` and `_`.
    pub name: &'static str,
    /// Its columns after `prompt`.
    pub columns: &'static [ColumnSpec],
}

impl TableSchema {
    /// A table of this name and these columns.
    pub const fn new(name: &'static str, columns: &'static [ColumnSpec]) -> TableSchema {
        TableSchema { name, columns }
    }
}

/// One column of a table, as the manifest tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnInfo {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
    /// Whether a row may have no value in it.
    pub nullable: bool,
    /// The unit of its values; empty for counts, indices and text.
    pub unit: String,
    /// What it means.
    pub doc: String,
}

/// A table, as the manifest tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// Its columns after `prompt`.
    pub columns: Vec<ColumnInfo>,
}

impl From<&TableSchema> for TableInfo {
    fn from(table: &TableSchema) -> TableInfo {
        let column = |c: &ColumnSpec| ColumnInfo {
            name: c.name.to_owned(),
            kind: c.kind,
            nullable: c.nullable,
            unit: c.unit.to_owned(),
            doc: c.doc.to_owned(),
        };
        TableInfo {
            name: table.name.to_owned(),
            columns: table.columns.iter().map(column).collect(),
        }
    }
}

impl TableInfo {
    /// The Arrow schema: `prompt` first, meaning and unit in each field's metadata.
    pub(crate) fn arrow(&self) -> SchemaRef {
        let prompt = field(PROMPT_COLUMN, ColumnKind::Text, false, "", "id of the prompt");
        let fields: Vec<Field> = std::iter::once(prompt).chain(self.fields()).collect();
        Arc::new(Schema::new(fields))
    }

    /// The columns without `prompt`.
    pub(crate) fn fields(&self) -> impl Iterator<Item = Field> {
        self.columns.iter().map(|c| field(&c.name, c.kind, c.nullable, &c.unit, &c.doc))
    }
}

fn field(name: &str, kind: ColumnKind, nullable: bool, unit: &str, doc: &str) -> Field {
    let metadata: std::collections::BTreeMap<String, String> = [("doc", doc), ("unit", unit)]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| (key.to_owned(), text.to_owned()))
        .collect();
    Field::new(name, kind.data_type(), nullable).with_metadata(metadata)
}

/// Checks names and numbers of a run's tables.
pub(crate) fn check(tables: &[TableInfo]) -> Result<()> {
    let bound = |what, least: usize, most: usize, got: usize| {
        if (least..=most).contains(&got) {
            Ok(())
        } else {
            Err(Error::Range { what, least: least as u64, most: most as u64, got: got as u64 })
        }
    };
    bound("the number of tables", 0, MAX_TABLES, tables.len())?;
    names::check_unique(NameOf::Table, tables.iter().map(|t| t.name.as_str()))?;
    for table in tables {
        names::check_plain(NameOf::Table, &table.name)?;
        bound("the number of columns", 1, MAX_COLUMNS, table.columns.len())?;
        names::check_unique(NameOf::Column, table.columns.iter().map(|c| c.name.as_str()))?;
        for column in &table.columns {
            names::check_plain(NameOf::Column, &column.name)?;
        }
    }
    Ok(())
}
