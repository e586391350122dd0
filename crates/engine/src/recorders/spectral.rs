//! What is asked of attention graphs.

use std::collections::BTreeSet;

use analysis::spectral::{Exactness, Keep, Laplacian, Preset, Probing, Run, SpectralSink};
use hooks::{ModelInfo, Selection};
use serde_json::{Value, json};

use crate::Result;

/// What is measured of attention graphs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpectralOptions {
    /// What is done to graph and signal; each preset has its rows, once.
    pub presets: BTreeSet<Preset>,
    /// Laplacians, each with its rows under every preset; without any, each preset's own.
    pub laplacians: BTreeSet<Laplacian>,
    /// Dense spectra for every graph, under the preset `controlled`, too.
    pub exact: bool,
    /// The hidden score of every layer, too.
    pub hidden_score: bool,
    /// Layers.
    pub layers: Selection,
    /// Heads with rows of their own; the mean always runs over all heads.
    pub heads: Selection,
    /// What is kept of the spectra themselves.
    pub keep: Keep,
}

impl SpectralOptions {
    pub(crate) fn describe(&self) -> Value {
        let mut description = json!({
            "presets": self.presets.iter().map(|preset| preset.name()).collect::<Vec<_>>(),
            "laplacians": self.laplacians.iter().map(|kind| kind.name()).collect::<Vec<_>>(),
            "exact": self.exact,
            "hidden_score": self.hidden_score,
            "layers": self.layers.to_string(),
            "heads": self.heads.to_string(),
        });
        // A run that keeps nothing is described as before anything could be kept.
        if !self.keep.parts.is_empty() {
            description["keep"] = self.keep.parts.iter().map(|part| part.name()).collect();
        }
        if let Some(Probing { graphs, options }) = &self.keep.quadrature {
            description["quadrature"] = json!({
                "heads": graphs.has_heads(),
                "probes": options.n_probes,
                "steps": options.steps,
                "seed": options.seed,
            });
        }
        description
    }

    /// What is kept of the spectra of prompts of these lengths, in words, and how many
    /// bytes of numbers it is at most; `None` where nothing is.
    pub(crate) fn kept(&self, info: &ModelInfo, lengths: &[u32]) -> Result<Option<(String, u64)>> {
        let Keep { parts, quadrature } = &self.keep;
        let (mut heads, mut means) = (0u64, 0u64);
        for layer in self.layers.resolve("layer", info.n_layers())? {
            let selected = self.heads.resolve("head", info.layers[layer].n_heads)?.len() as u64;
            for run in self.runs() {
                heads += if run.graphs.has_heads() { selected } else { 0 };
                means += u64::from(run.graphs.has_mean());
            }
        }
        let names = parts.iter().map(|part| part.name().replace('-', " "));
        let mut kept: Vec<String> = names.collect();
        let of_length = (heads + means).saturating_mul(parts.len() as u64);
        let (mut probes, mut steps) = (0, 0);
        if let Some(Probing { graphs, options }) = quadrature {
            kept.push(format!("{} probes of {} steps", options.n_probes, options.steps));
            let graphs = if graphs.has_heads() { heads + means } else { means };
            probes = graphs.saturating_mul(options.n_probes as u64);
            steps = options.steps as u64;
        }
        let numbers = lengths.iter().map(|length| u64::from(*length)).map(|length| {
            let of_probes = probes.saturating_mul(2 * steps.min(length));
            of_length.saturating_mul(length).saturating_add(of_probes)
        });
        let bytes = numbers.fold(0, u64::saturating_add).saturating_mul(size_of::<f64>() as u64);
        Ok((!kept.is_empty()).then(|| (kept.join(", "), bytes)))
    }

    fn runs(&self) -> impl Iterator<Item = Run> {
        self.presets.iter().flat_map(|&preset| {
            let run = Run::from(preset);
            let run = if self.exact { Run { exactness: Exactness::Dense, ..run } } else { run };
            let own = self.laplacians.is_empty().then_some(run);
            let chosen = self.laplacians.iter().map(move |&laplacian| Run { laplacian, ..run });
            chosen.chain(own)
        })
    }

    /// The sink that measures it.
    pub(crate) fn sink(&self) -> SpectralSink {
        SpectralSink::new(analysis::spectral::SpectralOptions {
            runs: self.runs().collect(),
            layers: self.layers.clone(),
            heads: self.heads.clone(),
            hidden_score: self.hidden_score,
            keep: self.keep.clone(),
            ..Default::default()
        })
    }
}
