//! What a run found, from its tables: means over prompts, layer by layer.
//!
//! Summaries are made from the run folder and not from memory, so that a run that
//! was stopped and gone on with is summed up like any other.

mod prefixes;

use std::collections::BTreeMap;
use std::path::Path;

use analysis::spectral::Preset;
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use serde::Serialize;
use store::{Reader, TableSchema};

pub use prefixes::PrefixSummary;

use crate::run::Outcome;
use crate::tables::prefixes::PREFIXES;
use crate::tables::{routing, spectral};
use crate::{Error, Result};

/// What a run did and found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What it did.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Head-mean graphs, by preset and layer; empty if none were measured.
    pub spectral: Vec<SpectralSummary>,
    /// The same for prefixes of the prompts; empty if none were measured.
    pub prefixes: Vec<PrefixSummary>,
    /// Routing, by layer over all prompts; empty if none was measured.
    pub routing: Vec<RoutingSummary>,
}

/// Means over prompts of the head-mean graph of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpectralSummary {
    /// The preset.
    pub preset: String,
    /// The Laplacian.
    pub laplacian: String,
    /// What a reader of the preset's numbers must know.
    pub caveat: Option<&'static str>,
    /// The layer.
    pub layer: u32,
    /// Prompts with a graph.
    pub prompts: u64,
    /// Graphs, of heads and of the mean, whose iterative solver did not converge:
    /// some eigenvalue lies within the residual of the value found, perhaps another one.
    pub unconverged: u64,
    /// Graphs for which two random starts disagreed on the Fiedler value.
    pub disagreeing: u64,
    /// Mean of each metric over the prompts that have it.
    pub means: BTreeMap<&'static str, Option<f64>>,
}

/// Routing of one layer over all prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutingSummary {
    /// The layer.
    pub layer: usize,
    /// Tokens routed.
    pub n_tokens: u64,
    /// The statistics of all prompts' tokens together, as in the table `routing`.
    pub measures: BTreeMap<&'static str, Option<f64>>,
    /// Share of slots of each expert.
    pub load: Vec<f64>,
}

impl Report {
    /// Sums up a finished run.
    ///
    /// # Errors
    ///
    /// A run folder that cannot be read.
    pub fn of(outcome: Outcome) -> Result<Self> {
        let tables = Tables::open(&outcome.run)?;
        let has = |table: &TableSchema| outcome.tables.contains_key(table.name);
        let spectral = if has(&spectral::SPECTRAL) { summarise_spectral(&tables)? } else { vec![] };
        let routing = if has(&routing::ROUTING) { summarise_routing(&tables)? } else { vec![] };
        let prefixes = if has(&PREFIXES) { prefixes::summarise(&tables)? } else { vec![] };
        Ok(Self { outcome, spectral, prefixes, routing })
    }
}

/// The tables of a run, with typed access to their columns.
pub(crate) struct Tables<'a> {
    path: &'a Path,
    reader: Reader,
}

impl<'a> Tables<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        Ok(Self { path, reader: Reader::open(path)? })
    }

    /// The run folder.
    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// What the run folder holds.
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Calls `f` with every batch of rows.
    pub(crate) fn each(
        &self,
        table: &TableSchema,
        mut f: impl FnMut(&Columns<'_>) -> Result<()>,
    ) -> Result<()> {
        for batch in self.reader.read_table(table.name)? {
            f(&Columns { path: self.path, table: table.name, batch: &batch? })?;
        }
        Ok(())
    }
}

/// The columns of some rows.
pub(crate) struct Columns<'a> {
    path: &'a Path,
    table: &'static str,
    batch: &'a RecordBatch,
}

impl Columns<'_> {
    pub(crate) fn texts(&self, column: &'static str) -> Result<Vec<String>> {
        let array = self.batch.column_by_name(column).and_then(|c| c.as_string_opt::<i32>());
        let array = array.ok_or_else(|| self.missing(column))?;
        Ok(array.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
    }

    fn numbers<T: ArrowPrimitiveType>(
        &self,
        column: &'static str,
    ) -> Result<Vec<Option<T::Native>>> {
        let array = self.batch.column_by_name(column).and_then(|c| c.as_primitive_opt::<T>());
        Ok(array.ok_or_else(|| self.missing(column))?.iter().collect())
    }

    pub(crate) fn f64s(&self, column: &'static str) -> Result<Vec<Option<f64>>> {
        self.numbers::<Float64Type>(column)
    }

    pub(crate) fn u32s(&self, column: &'static str) -> Result<Vec<Option<u32>>> {
        self.numbers::<UInt32Type>(column)
    }

    fn bools(&self, column: &'static str) -> Result<Vec<Option<bool>>> {
        let array = self.batch.column_by_name(column).and_then(|c| c.as_boolean_opt());
        Ok(array.ok_or_else(|| self.missing(column))?.iter().collect())
    }

    /// Numbers of a column that has one in every row.
    fn required<T: ArrowPrimitiveType>(&self, column: &'static str) -> Result<Vec<T::Native>> {
        let numbers: Option<Vec<T::Native>> = self.numbers::<T>(column)?.into_iter().collect();
        numbers.ok_or_else(|| self.missing(column))
    }

    pub(crate) fn required_f64s(&self, column: &'static str) -> Result<Vec<f64>> {
        self.required::<Float64Type>(column)
    }

    pub(crate) fn u64s(&self, column: &'static str) -> Result<Vec<u64>> {
        self.required::<UInt64Type>(column)
    }

    pub(crate) fn usizes(&self, column: &'static str) -> Result<Vec<usize>> {
        Ok(self.required::<UInt32Type>(column)?.into_iter().map(|n| n as usize).collect())
    }

    /// Lists of a column that has one in every row.
    pub(crate) fn lists(&self, column: &'static str) -> Result<Vec<Vec<f64>>> {
        let array = self.batch.column_by_name(column).and_then(|c| c.as_list_opt::<i32>());
        let array = array.ok_or_else(|| self.missing(column))?;
        let list = |list: Option<ArrayRef>| {
            let list = list?;
            let values = list.as_primitive_opt::<Float64Type>()?;
            (values.null_count() == 0).then(|| values.values().to_vec())
        };
        array.iter().map(|l| list(l).ok_or_else(|| self.missing(column))).collect()
    }

    /// Several columns read in the same way.
    pub(crate) fn all<T, const N: usize>(
        &self,
        names: [&'static str; N],
        read: impl Fn(&Self, &'static str) -> Result<Vec<T>>,
    ) -> Result<[Vec<T>; N]> {
        let mut columns = names.map(|_| Vec::new());
        for (column, name) in columns.iter_mut().zip(names) {
            *column = read(self, name)?;
        }
        Ok(columns)
    }

    fn missing(&self, column: &'static str) -> Error {
        Error::TableColumn { run: self.path.to_owned(), table: self.table, column }
    }
}

/// A sum and the number of its terms.
#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    n: u64,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.n += 1;
        }
    }

    fn get(self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }
}

/// What the rows of one preset and layer add up to.
#[derive(Default)]
struct SpectralSums {
    prompts: u64,
    unconverged: u64,
    disagreeing: u64,
    means: BTreeMap<&'static str, Mean>,
}

fn summarise_spectral(tables: &Tables<'_>) -> Result<Vec<SpectralSummary>> {
    type Key = (String, String, u32);
    let mut found: BTreeMap<Key, SpectralSums> = BTreeMap::new();
    tables.each(&spectral::SPECTRAL, |columns| {
        let (presets, laplacians) = (columns.texts("preset")?, columns.texts("laplacian")?);
        let (layers, heads) = (columns.u32s("layer")?, columns.u32s("head")?);
        let (converged, agree) =
            (columns.bools("converged")?, columns.bools("fiedler_seeds_agree")?);
        for (row, layer) in layers.iter().enumerate() {
            let key = (presets[row].clone(), laplacians[row].clone(), layer.unwrap_or(0));
            let sums = found.entry(key).or_default();
            sums.unconverged += u64::from(converged[row] == Some(false));
            sums.disagreeing += u64::from(agree[row] == Some(false));
            sums.prompts += u64::from(heads[row].is_none());
        }
        for metric in spectral::METRICS {
            let values = columns.f64s(metric)?;
            for (row, value) in values.into_iter().enumerate() {
                // Rows without a head are those of the mean over heads.
                if heads[row].is_some() {
                    continue;
                }
                let key = (presets[row].clone(), laplacians[row].clone(), layers[row].unwrap_or(0));
                found.entry(key).or_default().means.entry(metric).or_default().add(value);
            }
        }
        Ok(())
    })?;
    Ok(found
        .into_iter()
        .map(|((preset, laplacian, layer), sums)| SpectralSummary {
            caveat: Preset::ALL
                .into_iter()
                .find(|known| known.name() == preset)
                .and_then(Preset::caveat),
            preset,
            laplacian,
            layer,
            prompts: sums.prompts,
            unconverged: sums.unconverged,
            disagreeing: sums.disagreeing,
            means: sums.means.into_iter().map(|(metric, mean)| (metric, mean.get())).collect(),
        })
        .collect())
}

fn summarise_routing(tables: &Tables<'_>) -> Result<Vec<RoutingSummary>> {
    let rows = routing::read(tables)?;
    let layers = analysis::routing::summary(&rows.routing, &rows.experts)?;
    Ok(layers
        .into_iter()
        .map(|summary| RoutingSummary {
            layer: summary.layer,
            n_tokens: summary.statistics.n_tokens,
            measures: summary.statistics.measures().into_iter().collect(),
            load: summary.experts.iter().map(|expert| expert.share).collect(),
        })
        .collect())
}
