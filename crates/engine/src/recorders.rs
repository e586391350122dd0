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
    fn tables(&self) -> Vec<TableSchema>;

    /// The prompt is through: adds its results.
    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()>;
}

impl Recorder for SpectralSink {
    fn tables(&self) -> Vec<TableSchema> {
        use tables::prefixes::PREFIXES;
        use tables::spectral::{ATTENTION, ATTENTION_LAYERS, SPECTRAL};
        let options = self.options();
        let mut all = vec![SPECTRAL, ATTENTION, ATTENTION_LAYERS];
        all.extend((options.prefixes != Prefixes::None).then_some(PREFIXES));
        all.extend(options.keep.quadrature.map(|_| tables::quadrature::QUADRATURE));
        all.extend(options.keep.parts.iter().map(|part| tables::eigen::table(*part)));
        all
    }

    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()> {
        let rows = self.take();
        tables::spectral::write(&rows, writer)?;
        tables::prefixes::write(&rows.prefixes, writer)?;
        tables::eigen::write(&rows.spectral, writer)?;
        if self.options().keep.quadrature.is_some() {
            tables::quadrature::write(&rows.spectral, writer)?;
        }
        Ok(())
    }
}

impl Recorder for RoutingSink {
    fn tables(&self) -> Vec<TableSchema> {
        vec![tables::routing::ROUTING, tables::routing::EXPERTS]
    }

    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()> {
        tables::routing::write(&self.take(), writer)
    }
}
