//! One forward pass, as the layers see it.

use candle_core::Tensor;
use hooks::{Activation, ActivationSink, Batch, Edits, HookPoint, LayerInfo, Plan, Request, Site};

use crate::Result;

/// The model and the batch of a forward pass, who observes it and what is changed in it.
pub(crate) struct Pass<'a> {
    pub(crate) layers: &'a [LayerInfo],
    pub(crate) plan: &'a Plan,
    pub(crate) edits: &'a Edits,
    pub(crate) batch: &'a Batch,
    pub(crate) sink: &'a mut dyn ActivationSink,
    /// Valid tokens of each row.
    pub(crate) lengths: Vec<usize>,
    /// Absolute position of each row's first token.
    pub(crate) offsets: Vec<usize>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        layers: &'a [LayerInfo],
        plan: &'a Plan,
        edits: &'a Edits,
        batch: &'a Batch,
        sink: &'a mut dyn ActivationSink,
    ) -> Self {
        let (lengths, offsets) = (batch.lengths(), batch.offsets());
        Self { layers, plan, edits, batch, sink, lengths, offsets }
    }

    /// What is wanted of a layer's site.
    pub(crate) fn wants(&self, site: Site, layer: usize) -> Option<&'a Request> {
        self.plan.wants(HookPoint::layer(site, layer))
    }

    /// One past the last absolute position of any row.
    pub(crate) fn end(&self) -> usize {
        self.lengths
            .iter()
            .zip(&self.offsets)
            .map(|(length, offset)| length + offset)
            .max()
            .unwrap_or(0)
    }

    /// Makes the edits at a point, records the result if it is wanted, and returns it.
    pub(crate) fn point(&mut self, point: HookPoint, tensor: Tensor) -> Result<Tensor> {
        let tensor = if self.edits.is_empty() {
            tensor
        } else {
            self.edits.apply(point, &tensor, self.batch)?.unwrap_or(tensor)
        };
        if self.plan.wants(point).is_some() {
            self.record(point, &Activation::new(&tensor, self.batch))?;
        }
        Ok(tensor)
    }

    /// The same for a layer's site.
    pub(crate) fn site(&mut self, site: Site, layer: usize, tensor: Tensor) -> Result<Tensor> {
        self.point(HookPoint::layer(site, layer), tensor)
    }

    /// Hands an activation to the sink.
    pub(crate) fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> Result<()> {
        Ok(self.sink.record(point, activation)?)
    }
}
