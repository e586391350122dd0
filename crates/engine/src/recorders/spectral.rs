//! What is asked of attention graphs.

use std::collections::BTreeSet;

use analysis::spectral::{Exactness, Laplacian, Preset, Run, SpectralSink};
use hooks::Selection;
use serde_json::{Value, json};

/// What is measured of attention graphs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpectralOptions {
    /// What is done to graph and signal; each preset has its rows, once.
    pub presets: BTreeSet<Preset>,
    /// Laplacians, each with its rows under every preset; without any, each preset's own.
    pub laplacians: BTreeSet<Laplacian>,
    /// Dense spectra for every graph, under the preset `controlled`, too.
    pub exact: bool,
    /// Layers.
    pub layers: Selection,
    /// Heads with rows of their own; the mean always runs over all heads.
    pub heads: Selection,
}

impl SpectralOptions {
    pub(crate) fn describe(&self) -> Value {
        json!({
            "presets": self.presets.iter().map(|preset| preset.name()).collect::<Vec<_>>(),
            "laplacians": self.laplacians.iter().map(|kind| kind.name()).collect::<Vec<_>>(),
            "exact": self.exact,
            "layers": self.layers.to_string(),
            "heads": self.heads.to_string(),
        })
    }

    /// The sink that measures it.
    pub(crate) fn sink(&self) -> SpectralSink {
        let runs = self.presets.iter().flat_map(|&preset| {
            let run = Run::from(preset);
            let run = if self.exact { Run { exactness: Exactness::Dense, ..run } } else { run };
            let own = self.laplacians.is_empty().then_some(run);
            let chosen = self.laplacians.iter().map(move |&laplacian| Run { laplacian, ..run });
            chosen.chain(own)
        });
        SpectralSink::new(analysis::spectral::SpectralOptions {
            runs: runs.collect(),
            layers: self.layers.clone(),
            heads: self.heads.clone(),
            ..Default::default()
        })
    }
}
