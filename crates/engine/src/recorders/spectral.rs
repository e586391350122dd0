//! What is asked of attention graphs.

use std::collections::BTreeSet;

pub use analysis::spectral::Prefixes;
use analysis::spectral::{
    Exactness, Graphs, Keep, Laplacian, Preset, Probing, Run, SpectralSink, Storage,
};
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
    /// How eigenvalues are found; `Iterative` under the preset `controlled` alone, while the
    /// others, dense by definition, are solved in `f32`.
    pub exactness: Exactness,
    /// The hidden score of every layer, too.
    pub hidden_score: bool,
    /// Layers.
    pub layers: Selection,
    /// Heads with rows of their own; the mean always runs over all heads. Where graphs are
    /// recomputed, all heads means the mean's graph alone: heads that are named have theirs.
    pub heads: Selection,
    /// How graphs are held.
    pub graph: GraphChoice,
    /// Prefixes that are measured beside the whole prompt.
    pub prefixes: Prefixes,
    /// What is kept of the spectra themselves.
    pub keep: Keep,
}

/// How the graphs of a run are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GraphChoice {
    /// Stored where one layer's of the longest prompt take up to [`MAX_STORED`].
    #[default]
    Auto,
    /// Stored.
    Stored,
    /// Made anew at every product from queries, keys and log-sum-exp.
    Recomputed,
}

/// Most bytes that one layer's patterns, graphs and Gram matrices take, before graphs
/// are recomputed: 4 GiB.
pub const MAX_STORED: u64 = 4 << 30;

impl SpectralOptions {
    pub(crate) fn describe(&self) -> Value {
        json!({
            "presets": self.presets.iter().map(|preset| preset.name()).collect::<Vec<_>>(),
            "laplacians": self.laplacians.iter().map(|kind| kind.name()).collect::<Vec<_>>(),
            "solver": self.exactness.name(),
            "hidden_score": self.hidden_score,
            "layers": self.layers.to_string(),
            "heads": self.heads.to_string(),
            "graph": match self.graph {
                GraphChoice::Auto => "auto",
                GraphChoice::Stored => "stored",
                GraphChoice::Recomputed => "recomputed",
            },
            "prefixes": match &self.prefixes {
                Prefixes::None => Value::Null,
                Prefixes::Lengths(lengths) => json!({ "lengths": lengths }),
                Prefixes::Every(step) => json!({ "every": step }),
            },
            "keep": self.keep.parts.iter().map(|part| part.name()).collect::<Vec<_>>(),
            "quadrature": self.keep.quadrature.as_ref().map(|Probing { graphs, options }| json!({
                "heads": graphs.has_heads(),
                "probes": options.n_probes,
                "steps": options.steps,
                "seed": options.seed,
            })),
        })
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

    /// How graphs of prompts of up to so many tokens are held.
    pub(crate) fn storage(&self, info: &ModelInfo, longest: usize) -> Storage {
        match self.graph {
            GraphChoice::Stored => Storage::Stored,
            GraphChoice::Recomputed => Storage::Recomputed,
            GraphChoice::Auto if self.stored_bytes(info, longest) > MAX_STORED => {
                Storage::Recomputed
            }
            GraphChoice::Auto => Storage::Stored,
        }
    }

    /// Bytes of one layer's patterns (4 T² for each head), graphs (2 T² each) and Gram
    /// matrices (8 T² for each preset).
    pub(crate) fn stored_bytes(&self, info: &ModelInfo, tokens: usize) -> u64 {
        if self.presets.is_empty() {
            return 0;
        }
        let heads = info.layers.iter().map(|layer| layer.n_heads).max().unwrap_or(0) as u64;
        let graphs: u64 =
            self.runs().map(|run| if run.graphs.has_heads() { heads + 1 } else { 1 }).sum();
        let (tokens, presets) = (tokens as u64, self.presets.len() as u64);
        tokens.saturating_mul(tokens).saturating_mul(4 * heads + 2 * graphs + 8 * presets)
    }

    /// What is measured, if every graph is stored.
    fn runs(&self) -> impl Iterator<Item = Run> {
        self.presets.iter().flat_map(|&preset| {
            let run = Run { exactness: self.exactness, ..preset.into() };
            let run = Run { exactness: run.effective_exactness(), ..run };
            let own = self.laplacians.is_empty().then_some(run);
            let chosen = self.laplacians.iter().map(move |&laplacian| Run { laplacian, ..run });
            chosen.chain(own)
        })
    }

    /// The sink that measures it, on prompts of up to so many tokens.
    pub(crate) fn sink(&self, info: &ModelInfo, longest: usize) -> SpectralSink {
        let storage = self.storage(info, longest);
        let runs = self.runs().map(|run| match (storage, &self.heads) {
            (Storage::Recomputed, Selection::All) => Run { graphs: Graphs::HeadMean, ..run },
            _ => run,
        });
        SpectralSink::new(analysis::spectral::SpectralOptions {
            runs: runs.collect(),
            layers: self.layers.clone(),
            heads: self.heads.clone(),
            hidden_score: self.hidden_score,
            storage,
            prefixes: self.prefixes.clone(),
            keep: self.keep.clone(),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_graphs_are_not_stored() {
        let info = ModelInfo::example();
        let auto = SpectralOptions {
            presets: [Preset::Controlled, Preset::Paper].into(),
            laplacians: BTreeSet::new(),
            exactness: Exactness::Iterative,
            hidden_score: false,
            layers: Selection::All,
            heads: Selection::All,
            graph: GraphChoice::Auto,
            prefixes: Prefixes::None,
            keep: Keep::default(),
        };
        // Four heads; their graphs and twice the mean's; two signals.
        let each = 4 * 4 + 2 * (5 + 1) + 8 * 2;
        assert_eq!(auto.stored_bytes(&info, 1000), 1_000_000 * each);
        let most = (MAX_STORED as f64 / each as f64).sqrt() as usize;
        assert_eq!(auto.storage(&info, most), Storage::Stored);
        assert_eq!(auto.storage(&info, most + 1), Storage::Recomputed);
        let stored = SpectralOptions { graph: GraphChoice::Stored, ..auto.clone() };
        assert_eq!(stored.storage(&info, 1 << 20), Storage::Stored);
        // Whatever the length, the mean alone, unless heads are named.
        let only = SpectralOptions { graph: GraphChoice::Recomputed, ..auto };
        let sink = only.sink(&info, 8);
        assert!(sink.options().runs.iter().all(|run| run.graphs == Graphs::HeadMean));
        let named = SpectralOptions { heads: Selection::Only(vec![(1, 1)]), ..only };
        assert!(named.sink(&info, 8).options().runs.iter().any(|run| run.graphs.has_heads()));
    }
}
