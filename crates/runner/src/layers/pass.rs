//! One forward pass, as the layers see it.

use std::collections::VecDeque;
use std::ops::Range;

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
        let owned = Owned::of(point, activation, self.plan)?;
        while !away.outbox.has_room(&owned.tensor) {
            away.hand_over(self.batch, self.sink)?;
        }
        let parcel = away.outbox.send(&owned.tensor)?;
        let Owned { heads, positions, .. } = owned;
        away.queue.push_back(Event::Record { point, parcel, heads, positions });
        Ok(())
    }

    /// Tells the sink that a layer is complete.
    pub(crate) fn end_layer(&mut self, layer: usize) -> Result<()> {
        match &mut self.away {
            Some(away) => {
                away.queue.push_back(Event::EndLayer(layer));
                Ok(())
            }
            None => Ok(self.sink.end_layer(layer)?),
        }
    }

    /// Hands over all that is under way.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Some(away) = &mut self.away {
            while !away.queue.is_empty() {
                away.hand_over(self.batch, self.sink)?;
            }
        }
        Ok(())
    }
}

/// A pass on devices: the computation goes on while activations come to main memory. When so many
/// are under way that the outbox is full, it waits for the sink.
pub(crate) struct Away<'a> {
    home: &'a Home,
    outbox: &'a mut Outbox,
    /// What the sink will be told, in this order.
    queue: VecDeque<Event>,
}

enum Event {
    Record {
        point: HookPoint,
        parcel: Parcel,
        heads: Option<Vec<usize>>,
        positions: Option<Vec<Vec<usize>>>,
    },
    EndLayer(usize),
}

impl<'a> Away<'a> {
    pub(crate) fn new(home: &'a Home, outbox: &'a mut Outbox) -> Self {
        Self { home, outbox, queue: VecDeque::new() }
    }

    /// Tells the sink the next event, which must have come for that.
    fn hand_over(&mut self, batch: &Batch, sink: &mut dyn ActivationSink) -> Result<()> {
        match self.queue.pop_front() {
            None => Ok(()),
            Some(Event::EndLayer(layer)) => Ok(sink.end_layer(layer)?),
            Some(Event::Record { point, parcel, heads, positions }) => {
                let tensor = self.outbox.receive(parcel)?;
                let (heads, positions) = (heads.as_deref(), positions.as_deref());
                let activation = Activation { tensor: &tensor, heads, positions, batch };
                Ok(sink.record(point, &activation)?)
            }
        }
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
