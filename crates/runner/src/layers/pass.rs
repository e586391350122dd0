//! One forward pass, as the layers see it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use hooks::{Activation, ActivationSink, Batch, Edits, HookPoint, LayerInfo, Plan, Request, Site};
use kernels::cuda::{Outbox, Parcel};

use crate::Result;
use crate::placement::Home;
use crate::step::Step;

/// The model and the batch of a forward pass, who observes it and what is changed in it.
pub(crate) struct Pass<'a> {
    pub(crate) layers: &'a [LayerInfo],
    pub(crate) plan: &'a Plan,
    pub(crate) edits: &'a Edits,
    pub(crate) batch: &'a Batch,
    pub(crate) sink: &'a mut dyn ActivationSink,
    /// Where the layers are, and what brings activations from there; `None`: on the CPU.
    pub(crate) away: Option<Away<'a>>,
    /// Valid tokens of each row.
    pub(crate) lengths: Vec<usize>,
    /// Absolute position of each row's first token.
    pub(crate) offsets: Vec<usize>,
    /// The step that this is, in which lengths and offsets above stand for those on the device.
    pub(crate) step: Option<&'a Step>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        layers: &'a [LayerInfo],
        plan: &'a Plan,
        edits: &'a Edits,
        batch: &'a Batch,
        sink: &'a mut dyn ActivationSink,
        away: Option<Away<'a>>,
    ) -> Self {
        let (lengths, offsets) = (batch.lengths(), batch.offsets());
        Self { layers, plan, edits, batch, sink, away, lengths, offsets, step: None }
    }

    /// What enters a layer, where the layer is; behind the last one, where the final norm is.
    pub(crate) fn bring(&self, layer: usize, resid: Tensor) -> Result<Tensor> {
        match &self.away {
            Some(away) => away.home.bring(layer, resid),
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

    /// Hands an activation to the sink, in main memory, floats in `f32`: at once from the CPU, from
    /// a device when it has come and those before it are handed over.
    pub(crate) fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> Result<()> {
        let Some(away) = &mut self.away else {
            return Ok(self.sink.record(point, activation)?);
        };
        let under_way = &mut *away.under_way;
        let owned = Owned::of(point, activation, self.plan)?;
        while !under_way.outbox.has_room(&owned.tensor) {
            under_way.hand_over(self.sink)?;
        }
        let parcel = under_way.outbox.send(&owned.tensor)?;
        let Owned { heads, positions, .. } = owned;
        under_way.queue.push_back(Event::Record { point, parcel, heads, positions });
        Ok(())
    }

    /// Tells the sink that a layer is complete.
    pub(crate) fn end_layer(&mut self, layer: usize) -> Result<()> {
        match &mut self.away {
            Some(away) => {
                away.under_way.queue.push_back(Event::EndLayer(layer));
                Ok(())
            }
            None => Ok(self.sink.end_layer(layer)?),
        }
    }
}

/// A pass on devices: the computation goes on while activations come to main memory. When so many
/// are under way that the outbox is full, it waits for the sink.
pub(crate) struct Away<'a> {
    pub(crate) home: &'a Home,
    pub(crate) under_way: &'a mut UnderWay,
}

/// Activations on their way to main memory, and all else that the sink will be told, in this order.
#[derive(Debug)]
pub(crate) struct UnderWay {
    outbox: Outbox,
    queue: VecDeque<Event>,
    /// The batch that the sink was told of last.
    batch: Option<Arc<Batch>>,
    /// Batches whose end the sink was not told of yet.
    batches: usize,
}

#[derive(Debug)]
enum Event {
    Begin(Arc<Batch>),
    Record {
        point: HookPoint,
        parcel: Parcel,
        heads: Option<Vec<usize>>,
        positions: Option<Vec<Vec<usize>>>,
    },
    EndLayer(usize),
    EndBatch,
}

impl UnderWay {
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self { outbox, queue: VecDeque::new(), batch: None, batches: 0 }
    }

    /// A batch's pass begins.
    pub(crate) fn begin(&mut self, batch: &Batch) {
        self.queue.push_back(Event::Begin(Arc::new(batch.clone())));
        self.batches += 1;
    }

    /// A batch's pass is over.
    pub(crate) fn end(&mut self) {
        self.queue.push_back(Event::EndBatch);
    }

    /// Lets go of what is left of a batch whose pass failed.
    pub(crate) fn give_up(&mut self) {
        let ended = self.queue.iter().rposition(|event| matches!(event, Event::EndBatch));
        self.queue.truncate(ended.map_or(0, |ended| ended + 1));
        self.batches -= 1;
    }

    /// Batches whose end the sink was not told of yet.
    pub(crate) fn batches(&self) -> usize {
        self.batches
    }

    /// The outbox, where all has been received; all is let go.
    pub(crate) fn into_outbox(self) -> Option<Outbox> {
        self.queue.is_empty().then_some(self.outbox)
    }

    /// Tells the sink the next event, which must have come for that.
    pub(crate) fn hand_over(&mut self, sink: &mut dyn ActivationSink) -> Result<()> {
        match (self.queue.pop_front(), &self.batch) {
            (Some(Event::Begin(batch)), _) => {
                let begun = sink.begin(&batch);
                self.batch = Some(batch);
                begun?;
            }
            (Some(Event::Record { point, parcel, heads, positions }), Some(batch)) => {
                let tensor = self.outbox.receive(parcel)?;
                let (heads, positions) = (heads.as_deref(), positions.as_deref());
                sink.record(point, &Activation { tensor: &tensor, heads, positions, batch })?;
            }
            (Some(Event::EndLayer(layer)), _) => sink.end_layer(layer)?,
            (Some(Event::EndBatch), _) => {
                self.batches -= 1;
                sink.end_batch()?;
            }
            (None | Some(Event::Record { .. }), _) => {}
        }
        Ok(())
    }
}

/// An activation that is kept until it can be handed over.
struct Owned {
    tensor: Tensor,
    heads: Option<Vec<usize>>,
    positions: Option<Vec<Vec<usize>>>,
}

impl Owned {
    /// An activation at the positions from the first wanted one to the last.
    fn of(point: HookPoint, activation: &Activation<'_>, plan: &Plan) -> Result<Self> {
        let (batch, heads) = (activation.batch, activation.heads.map(<[_]>::to_vec));
        let mut positions = activation.positions.map(<[_]>::to_vec);
        let mut tensor = activation.tensor.clone();
        if let (None, Some(axis), Some(request)) =
            (&positions, point.site().position_axis(), plan.wants(point))
        {
            let span = span(request, &batch.lengths(), &batch.offsets());
            if !span.is_empty() && span.len() < tensor.dim(axis + 1)? {
                tensor = tensor.narrow(axis + 1, span.start, span.len())?;
                positions = Some(vec![span.collect(); batch.rows().len()]);
            }
        }
        Ok(Self { tensor, heads, positions })
    }
}

/// The shortest run of positions within the rows that holds all wanted ones.
pub(crate) fn span(request: &Request, lengths: &[usize], offsets: &[usize]) -> Range<usize> {
    let wanted = lengths.iter().zip(offsets).flat_map(|(&length, &offset)| {
        let positions = request.positions.resolve(offset, length);
        positions.first().copied().zip(positions.last().map(|last| last + 1))
    });
    wanted
        .fold(None, |held: Option<Range<usize>>, (first, end)| match held {
            None => Some(first..end),
            Some(held) => Some(held.start.min(first)..held.end.max(end)),
        })
        .unwrap_or(0..0)
}
