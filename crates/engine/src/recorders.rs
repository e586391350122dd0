//! Sinks that turn a prompt's activations into rows and tensors of a run.

pub(crate) mod capture;
pub(crate) mod spectral;

use analysis::routing::RoutingSink;
use analysis::spectral::{Prefixes, SpectralSink};
use hooks::ActivationSink;
use store::{PromptWriter, TableSchema};

use crate::tables;

use crate::Result;

/// A sink whose results go to a run folder, prompt by prompt.
pub(crate) trait Recorder: ActivationSink {
    /// The tables that it fills.
    fn tables(&self) -> &'static [TableSchema];

    /// The prompt is through: adds its results.
    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()>;
}

impl Recorder for SpectralSink {
    fn tables(&self) -> &'static [TableSchema] {
        use tables::prefixes::PREFIXES;
        use tables::spectral::{ATTENTION, ATTENTION_LAYERS, SPECTRAL};
        match self.options().prefixes {
            Prefixes::None => &[SPECTRAL, ATTENTION, ATTENTION_LAYERS],
            _ => &[SPECTRAL, ATTENTION, ATTENTION_LAYERS, PREFIXES],
        }
    }

    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()> {
        let rows = self.take();
        tables::spectral::write(&rows, writer)?;
        tables::prefixes::write(&rows.prefixes, writer)
    }
}

impl Recorder for RoutingSink {
    fn tables(&self) -> &'static [TableSchema] {
        &[tables::routing::ROUTING, tables::routing::EXPERTS]
    }

    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()> {
        tables::routing::write(&self.take(), writer)
    }
}
