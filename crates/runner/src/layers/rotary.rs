//! Rotary tables, as long as the sequences met so far.

use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{Device, Tensor};
use kernels::rotary::{RotaryTables, rotary};

use super::Pass;
use crate::Result;
use crate::config::Frequencies;

/// Shortest table, in positions.
const FIRST: usize = 256;

/// Rotary position embedding of queries and keys.
#[derive(Debug)]
pub(crate) struct Rotary {
    usual: Grown,
    /// For sequences longer than so many tokens, other frequencies.
    long: Option<(usize, Grown)>,
}

impl Rotary {
    pub(crate) fn new(frequencies: Frequencies) -> Self {
        let Frequencies { usual, long, attention_factor } = frequencies;
        let grown = |frequencies| Grown::new(frequencies, attention_factor);
        Self { usual: grown(usual), long: long.map(|(above, long)| (above, grown(long))) }
    }

    /// Rotates `[batch, pos, head, d_head]` by the positions of the batch.
    pub(crate) fn rotate(&self, layer: usize, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        if let Some(step) = pass.step {
            return step.rotate(layer, x);
        }
        let whole = |grown: &Grown| {
            let tables = grown.tables(pass.end())?;
            Ok(rotary(x, &tables, &pass.offsets)?)
        };
        let Some((above, long)) = &self.long else {
            return whole(&self.usual);
        };
        // Each row's own length decides, so that it gets the same alone and in a batch.
        let ends = pass.lengths.iter().zip(&pass.offsets).map(|(length, offset)| length + offset);
        let is_long: Vec<bool> = ends.map(|end| end > *above).collect();
        if is_long.iter().all(|long| *long) {
            return whole(long);
        }
        if !is_long.contains(&true) {
            return whole(&self.usual);
        }
        let tables = [self.usual.tables(pass.end())?, long.tables(pass.end())?];
        let rows = is_long.iter().enumerate().map(|(row, &is_long)| {
            let offset = &pass.offsets[row..row + 1];
            Ok(rotary(&x.narrow(0, row, 1)?, &tables[usize::from(is_long)], offset)?)
        });
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Whether sequences of these lengths have the frequencies of long ones; `None` if some have and
    /// some have not.
    pub(crate) fn is_long(&self, ends: &[usize]) -> Option<bool> {
        let Some((above, _)) = &self.long else { return Some(false) };
        let first = ends.first().is_some_and(|end| end > above);
        ends.iter().all(|end| (end > above) == first).then_some(first)
    }

    /// Cosines and sines of at least so many positions on a device, of long sequences or of usual
    /// ones.
    pub(crate) fn tensors(&self, long: bool, n_pos: usize, device: &Device) -> Result<[Tensor; 2]> {
        let grown = match &self.long {
            Some((_, grown)) if long => grown,
            _ => &self.usual,
        };
        Ok(grown.tables(n_pos)?.tensors(device)?)
    }
}

/// Frequencies, and the tables made from them.
///
/// A table for the whole context of a long-context model would take more memory
/// than its weights, so tables grow with the positions that occur.
#[derive(Debug)]
struct Grown {
    /// Radians per position.
    frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by.
    attention_factor: f64,
    tables: RwLock<Option<Arc<RotaryTables>>>,
}

impl Grown {
    fn new(frequencies: Vec<f64>, attention_factor: f64) -> Self {
        Self { frequencies, attention_factor, tables: RwLock::new(None) }
    }

    /// Tables for at least `n_pos` positions.
    fn tables(&self, n_pos: usize) -> Result<Arc<RotaryTables>> {
        let held = self.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(tables) = held.filter(|tables| tables.n_pos() >= n_pos) {
            return Ok(tables);
        }
        let n_pos = n_pos.max(FIRST).next_power_of_two();
        let tables = RotaryTables::new(&self.frequencies, self.attention_factor, n_pos)?;
        let tables = Arc::new(tables);
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Some(tables.clone());
        Ok(tables)
    }
}
