//! One forward pass, as the layers see it.

use candle_core::{DType, Device, Tensor};
use hooks::{Activation, ActivationSink, Batch, Edits, HookPoint, LayerInfo, Plan, Request, Site};

use crate::Result;
use crate::placement::Home;

/// The model and the batch of a forward pass, who observes it and what is changed in it.
pub(crate) struct Pass<'a> {
    pub(crate) layers: &'a [LayerInfo],
    pub(crate) plan: &'a Plan,
    pub(crate) edits: &'a Edits,
    pub(crate) batch: &'a Batch,
    pub(crate) sink: &'a mut dyn ActivationSink,
    /// Where the layers are, if not on the CPU.
    pub(crate) home: Option<&'a Home>,
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
        home: Option<&'a Home>,
    ) -> Self {
        let (lengths, offsets) = (batch.lengths(), batch.offsets());
        Self { layers, plan, edits, batch, sink, home, lengths, offsets }
    }

    /// What enters a layer, where the layer is; behind the last one, where the final norm is.
    pub(crate) fn bring(&self, layer: usize, resid: Tensor) -> Result<Tensor> {
        match self.home {
            Some(home) => home.bring(layer, resid),
            None => Ok(resid),
        }
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

    /// Hands an activation to the sink: in main memory, floats in `f32`.
    pub(crate) fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> Result<()> {
        if self.home.is_none() {
            return Ok(self.sink.record(point, activation)?);
        }
        let host = activation.tensor.to_device(&Device::Cpu)?;
        let host = if host.dtype().is_float() { host.to_dtype(DType::F32)? } else { host };
        Ok(self.sink.record(point, &Activation { tensor: &host, ..*activation })?)
    }
}
