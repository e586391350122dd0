//! What is asked of attention graphs.

use std::collections::BTreeSet;

use analysis::spectral::{Exactness, Preset, Run, SpectralSink};
use hooks::Selection;
use serde_json::{Value, json};

/// What is measured of attention graphs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpectralOptions {
    /// What is done to graph and signal; each preset has its rows, once.
    pub presets: BTreeSet<Preset>,
    /// Dense spectra for every graph, not under the preset `paper` alone.
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
            "exact": self.exact,
            "layers": self.layers.to_string(),
            "heads": self.heads.to_string(),
        })
    }

    /// The sink that measures it.
    pub(crate) fn sink(&self) -> SpectralSink {
        let run = |preset: &Preset| {
            let run = Run::from(*preset);
            if self.exact { Run { exactness: Exactness::Dense, ..run } } else { run }
        };
        SpectralSink::new(analysis::spectral::SpectralOptions {
            runs: self.presets.iter().map(run).collect(),
            layers: self.layers.clone(),
            heads: self.heads.clone(),
            ..Default::default()
        })
    }
}
