//! Rotary tables, as long as the sequences met so far.

use std::sync::{Arc, PoisonError, RwLock};

use kernels::rotary::RotaryTables;

use crate::Result;

/// Shortest table, in positions.
const FIRST: usize = 256;

/// Frequencies, and the tables made from them.
///
/// A table for the whole context of a long-context model would take more memory
/// than its weights, so tables grow with the positions that occur.
#[derive(Debug)]
pub(crate) struct Rotary {
    frequencies: Vec<f64>,
    tables: RwLock<Option<Arc<RotaryTables>>>,
}

impl Rotary {
    /// Rotary embedding with these frequencies, in radians per position.
    pub(crate) fn new(frequencies: Vec<f64>) -> Self {
        Self { frequencies, tables: RwLock::new(None) }
    }

    /// Tables for at least `n_pos` positions.
    pub(crate) fn tables(&self, n_pos: usize) -> Result<Arc<RotaryTables>> {
        let held = self.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(tables) = held.filter(|tables| tables.n_pos() >= n_pos) {
            return Ok(tables);
        }
        let n_pos = n_pos.max(FIRST).next_power_of_two();
        let tables = Arc::new(RotaryTables::new(&self.frequencies, 1.0, n_pos)?);
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Some(tables.clone());
        Ok(tables)
    }
}
