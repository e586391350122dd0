//! Prefixes of prompts: a row per prompt × prefix × preset × layer × head.
//!
//! They are rows of their own table, so that what sums up or compares prompts does
//! not take a prefix for one.

use analysis::spectral::{PrefixRow, SpectralRow};
use store::ColumnKind::U32;
use store::{ColumnSpec, PromptWriter, TableSchema};

use super::spectral::{SPECTRAL, columns};
use super::u32s;
use crate::Result;

/// The columns of [`SPECTRAL`], of each prefix as of a prompt of its own.
pub const PREFIXES: TableSchema = TableSchema::new("prefixes", &COLUMNS);

const COLUMNS: [ColumnSpec; SPECTRAL.columns.len() + 1] = {
    let doc = "tokens of the prompt's beginning that the row is about";
    let mut all = [ColumnSpec::required("prefix", U32, "tokens", doc); SPECTRAL.columns.len() + 1];
    let mut column = 0;
    while column < SPECTRAL.columns.len() {
        all[column + 1] = SPECTRAL.columns[column];
        column += 1;
    }
    all
};

/// Adds a prompt's rows.
pub(crate) fn write(rows: &[PrefixRow], writer: &mut PromptWriter) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let measured: Vec<SpectralRow> = rows.iter().map(|prefix| prefix.row.clone()).collect();
    let mut columns = columns(&measured);
    columns.push(("prefix", u32s(rows, |row| row.prefix)));
    Ok(writer.rows(PREFIXES.name, columns)?)
}
