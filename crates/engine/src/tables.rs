//! The tables of a run: their columns, and how results become rows.
//!
//! One file per analysis; each declares its [`TableSchema`]s and converts that
//! analysis's rows.

pub mod eigen;
pub mod labels;
pub mod prefixes;
pub mod prompts;
pub mod quadrature;
pub mod routing;
pub mod spectral;
pub mod verdicts;

use store::Column;

/// A column of `f64` values, one from each row.
pub(crate) fn f64s<R>(rows: &[R], value: impl Fn(&R) -> f64) -> Column {
    Column::from(rows.iter().map(value).collect::<Vec<f64>>())
}

/// A column of `f64` values that some rows lack.
pub(crate) fn optional_f64s<R>(rows: &[R], value: impl Fn(&R) -> Option<f64>) -> Column {
    Column::from(rows.iter().map(value).collect::<Vec<Option<f64>>>())
}

/// A column of counts or indices. They are sizes of things in memory or parts of
/// a model, far below 2³².
pub(crate) fn u32s<R>(rows: &[R], value: impl Fn(&R) -> usize) -> Column {
    let value = |row| u32::try_from(value(row)).unwrap_or(u32::MAX);
    Column::from(rows.iter().map(value).collect::<Vec<u32>>())
}

/// A column of counts or indices that some rows lack.
pub(crate) fn optional_u32s<R>(rows: &[R], value: impl Fn(&R) -> Option<usize>) -> Column {
    let value = |row| value(row).map(|v| u32::try_from(v).unwrap_or(u32::MAX));
    Column::from(rows.iter().map(value).collect::<Vec<Option<u32>>>())
}
