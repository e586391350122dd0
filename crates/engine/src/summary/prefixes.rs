//! How measures grow with the beginning of a prompt that they are taken of.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Mean, Tables};
use crate::Result;
use crate::tables::{prefixes, spectral};

/// Means over prompts of the head-mean graph of one layer, prefix by prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrefixSummary {
    /// The preset.
    pub preset: String,
    /// The Laplacian.
    pub laplacian: String,
    /// The layer.
    pub layer: u32,
    /// Lengths of the prefixes in tokens, ascending.
    pub prefixes: Vec<u32>,
    /// Prompts that have each of them.
    pub prompts: Vec<u64>,
    /// Mean of each metric at each of them, over the prompts that have it.
    pub means: BTreeMap<&'static str, Vec<Option<f64>>>,
}

/// Prompts and sums of one prefix.
#[derive(Default)]
struct Sums {
    prompts: u64,
    means: BTreeMap<&'static str, Mean>,
}

pub(super) fn summarise(tables: &Tables<'_>) -> Result<Vec<PrefixSummary>> {
    let mut found: BTreeMap<(String, String, u32), BTreeMap<u32, Sums>> = BTreeMap::new();
    tables.each(&prefixes::PREFIXES, |columns| {
        let (presets, laplacians) = (columns.texts("preset")?, columns.texts("laplacian")?);
        let (layers, heads) = (columns.u32s("layer")?, columns.u32s("head")?);
        let lengths = columns.u32s("prefix")?;
        let metrics = spectral::METRICS.iter().map(|metric| Ok((*metric, columns.f64s(metric)?)));
        let metrics: Vec<(&str, Vec<Option<f64>>)> = metrics.collect::<Result<_>>()?;
        for row in (0..layers.len()).filter(|row| heads[*row].is_none()) {
            let key = (presets[row].clone(), laplacians[row].clone(), layers[row].unwrap_or(0));
            let sums = found.entry(key).or_default().entry(lengths[row].unwrap_or(0)).or_default();
            sums.prompts += 1;
            for (metric, values) in &metrics {
                sums.means.entry(metric).or_default().add(values[row]);
            }
        }
        Ok(())
    })?;
    let summary = |((preset, laplacian, layer), sums): (_, BTreeMap<u32, Sums>)| PrefixSummary {
        preset,
        laplacian,
        layer,
        prefixes: sums.keys().copied().collect(),
        prompts: sums.values().map(|sums| sums.prompts).collect(),
        means: spectral::METRICS
            .iter()
            .map(|metric| {
                let of = |sums: &Sums| sums.means.get(metric).and_then(|mean| mean.get());
                (*metric, sums.values().map(of).collect())
            })
            .collect(),
    };
    Ok(found.into_iter().map(summary).collect())
}
