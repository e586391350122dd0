//! Attention graphs.

use analysis::spectral::{Exactness, Preset, Run, SpectralSink};
use hooks::{Activation, ActivationSink, Batch, HookPoint, ModelInfo, Plan, Selection};
use serde_json::{Value, json};
use store::{PromptWriter, TableSchema};

use super::Recorder;
use crate::Result;
use crate::tables::spectral;

/// What is measured of attention graphs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpectralOptions {
    /// What is done to graph and signal; each preset has its rows.
    pub presets: Vec<Preset>,
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

    fn sink(&self) -> SpectralSink {
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

/// Measures attention graphs and writes a prompt's rows when it is through.
pub(crate) struct Spectral(SpectralSink);

impl Spectral {
    pub(crate) fn new(options: &SpectralOptions) -> Self {
        Self(options.sink())
    }
}

impl ActivationSink for Spectral {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        self.0.plan(info)
    }

    fn begin(&mut self, batch: &Batch) -> hooks::Result<()> {
        self.0.begin(batch)
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        self.0.record(point, activation)
    }

    fn end_layer(&mut self, layer: usize) -> hooks::Result<()> {
        self.0.end_layer(layer)
    }

    fn end_batch(&mut self) -> hooks::Result<()> {
        self.0.end_batch()
    }
}

impl Recorder for Spectral {
    fn tables(&self) -> &'static [TableSchema] {
        &[spectral::SPECTRAL, spectral::ATTENTION, spectral::ATTENTION_LAYERS]
    }

    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()> {
        spectral::write(&self.0.take(), writer)
    }
}
