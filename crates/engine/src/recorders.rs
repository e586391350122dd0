//! Sinks that turn a prompt's activations into rows and tensors of a run.

pub(crate) mod capture;
pub(crate) mod routing;
pub(crate) mod spectral;

use hooks::ActivationSink;
use store::{PromptWriter, TableSchema};

use crate::Result;

/// A sink whose results go to a run folder, prompt by prompt.
pub(crate) trait Recorder: ActivationSink {
    /// The tables that it fills.
    fn tables(&self) -> &'static [TableSchema];

    /// A prompt is about to go through the model. A recorder of tensors takes the
    /// writer, so that they need not wait in memory until the prompt is through.
    fn begin_prompt(&mut self, id: &str) {
        let _ = id;
    }

    /// The prompt is through: adds its results.
    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()>;
}
