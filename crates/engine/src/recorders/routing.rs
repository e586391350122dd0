//! Routing of mixture layers.

use analysis::routing::RoutingSink;
use hooks::{Activation, ActivationSink, Batch, HookPoint, ModelInfo, Plan, Selection};
use store::{PromptWriter, TableSchema};

use super::Recorder;
use crate::Result;
use crate::tables::routing;

/// Tallies routers and writes a prompt's rows when it is through.
pub(crate) struct Routing(RoutingSink);

impl Routing {
    pub(crate) fn new(layers: Selection) -> Self {
        Self(RoutingSink::new(layers))
    }
}

impl ActivationSink for Routing {
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

impl Recorder for Routing {
    fn tables(&self) -> &'static [TableSchema] {
        &[routing::ROUTING, routing::EXPERTS]
    }

    fn end_prompt(&mut self, writer: &mut PromptWriter) -> Result<()> {
        routing::write(&self.0.take(), writer)
    }
}
