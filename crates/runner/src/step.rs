//! Steps of decoding that a GPU gets as one launch.
//!
//! A step computes one token of every row, with hundreds of launches that each take the host some
//! microseconds. In a model of few parameters the host is then slower than the GPU. So the launches
//! of a step are captured and given to the GPU as one, wherever that is possible and without being
//! asked: it costs nothing but the capture.
//!
//! The one decision that shapes this module: a captured step is computed by the same layers as any
//! pass, from a value that holds all that its launches use ([`Step`]) and nothing else of the step.
//! What differs between steps, residual stream and positions, is brought into buffers of that value
//! before it is run. So no number of one step can be in a launch of the next.
//!
//! A captured step is believed when its first run has given the bits of its launches one by one,
//! with results and new keys spoiled in between. What cannot be captured, or gives other bits, is
//! run one by one from then on, and [`KvCache::launches`] says why.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hooks::{Batch, Edits, HookPoint, LayerInfo, NoSink, Plan, Row};
use kernels::attention::AttentionOptions;
use kernels::cuda::cache_append::{self, cache_append};
use kernels::cuda::graph::Graph;
use kernels::cuda::{self, Machine};

use crate::cache::{KvCache, LayerCache};
use crate::layers::{Decoder, Pass};
use crate::model::Model;
use crate::{Error, Result};

/// How a cache's last pass was given to its device.
#[derive(Debug)]
#[non_exhaustive]
pub enum Launches {
    /// Launch by launch.
    OneByOne(OneByOne),
    /// All layers and what is behind them as one, captured before.
    AtOnce,
}

/// Why a pass was given to its device launch by launch.
#[derive(Debug)]
#[non_exhaustive]
pub enum OneByOne {
    /// [`KvCache::one_by_one`] asked for it.
    Asked,
    /// The layers are on the CPU, or on several devices.
    Placement,
    /// Not one token for each row of a cache in which all layers have keys.
    Tokens,
    /// Not all of the model's layers.
    Layers,
    /// Something is wanted or edited inside of the layers, not every row's result behind them is
    /// wanted, or none.
    Points,
    /// Rows on both sides of the length at which the model changes the frequencies of its rotary
    /// embedding.
    Frequencies,
    /// The first step of its kind, or one for which the cache had to grow: the next one is captured.
    First,
    /// Capturing the launches, or running what was captured, failed.
    Failed(Error),
    /// The captured launches gave other bits than the same ones by themselves.
    Differed,
}

impl fmt::Display for Launches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneByOne(reason) => write!(f, "one by one: {reason}"),
            Self::AtOnce => f.write_str("at once"),
        }
    }
}

impl fmt::Display for OneByOne {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("asked for"),
            Self::Placement => f.write_str("the layers are not on one gpu"),
            Self::Tokens => f.write_str("not one token for each row of a filled cache"),
            Self::Layers => f.write_str("not all of the layers"),
            Self::Points => f.write_str("layers are observed or edited, or nothing behind them is"),
            Self::Frequencies => f.write_str("rows have different rotary frequencies"),
            Self::First => f.write_str("the first of its kind, or the cache grew"),
            Self::Failed(error) => write!(f, "at once failed: {error}"),
            Self::Differed => f.write_str("at once gave other bits"),
        }
    }
}

/// What the points behind the layers hold: `[batch, 1, width]` each.
pub(crate) type Results = Vec<(HookPoint, Tensor)>;

/// What is known of the passes that a cache has seen, and its captured step.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    pub(crate) one_by_one: bool,
    last: Option<Launches>,
    /// The kind of the last pass, if it was a step that can be captured.
    seen: Option<Kind>,
    graph: Option<Graph<Step, Error>>,
}

/// What steps that share their launches have in common, beside the cache.
#[derive(Clone, Debug)]
struct Kind {
    /// Holds the weights for as long as launches use them.
    decoder: Arc<Decoder>,
    rows: usize,
    points: Vec<HookPoint>,
    /// Of each layer: whether it rotates by its frequencies for long texts.
    long: Vec<bool>,
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        let of = |kind: &Self| (kind.rows, kind.points.clone(), kind.long.clone());
        Arc::ptr_eq(&self.decoder, &other.decoder) && of(self) == of(other)
    }
}

impl Kind {
    fn of(
        model: &Model,
        plan: &Plan,
        layers: &Range<usize>,
        held: &[Option<LayerCache>],
        pass: &Pass<'_>,
    ) -> Result<Self, OneByOne> {
        let n_layers = model.info().n_layers();
        if !model.home().is_some_and(|home| home.on_one_device()) {
            return Err(OneByOne::Placement);
        }
        let cached = held.len() == n_layers && held.iter().all(Option::is_some);
        if !cached || pass.batch.padded_len() != 1 {
            return Err(OneByOne::Tokens);
        }
        if *layers != (0..n_layers) {
            return Err(OneByOne::Layers);
        }
        // What enters the layers is computed, and edited, before the step.
        let before = [HookPoint::EMBED, HookPoint::POS_EMBED];
        let behind = [HookPoint::LN_FINAL, HookPoint::LOGITS];
        let edited = pass.edits.rules().iter().any(|rule| !before.contains(&rule.point));
        let mut points = Vec::new();
        for (point, request) in plan.iter().filter(|(point, _)| !before.contains(point)) {
            let of_every_row =
                pass.offsets.iter().all(|&offset| request.positions.resolve(offset, 1).len() == 1);
            if !behind.contains(&point) || !of_every_row {
                return Err(OneByOne::Points);
            }
            points.push(point);
        }
        if edited || points.is_empty() {
            return Err(OneByOne::Points);
        }
        let ends: Vec<usize> = pass.offsets.iter().map(|offset| offset + 1).collect();
        let rotary = |layer: usize| model.decoder.blocks[layer].attention.rotary.as_ref();
        let long = |layer| rotary(layer).map_or(Some(false), |rotary| rotary.is_long(&ends));
        let long: Option<Vec<bool>> = (0..n_layers).map(long).collect();
        let long = long.ok_or(OneByOne::Frequencies)?;
        Ok(Self { decoder: model.decoder.clone(), rows: ends.len(), points, long })
    }
}

impl Steps {
    /// How the last pass was given to its device.
    pub(crate) fn last(&self) -> Option<&Launches> {
        self.last.as_ref()
    }

    /// Lets go of what the device's memory has of them.
    pub(crate) fn clear(&mut self) {
        *self = Self { one_by_one: self.one_by_one, ..Self::default() };
    }

    /// Computes what is wanted behind the layers from the residual stream before them, and adds a
    /// token of each row to what the layers hold; `None` if the pass is to be given to its device
    /// launch by launch.
    pub(crate) fn run(
        &mut self,
        model: &Model,
        plan: &Plan,
        layers: &Range<usize>,
        held: &mut [Option<LayerCache>],
        resid: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Option<Results>> {
        // What has failed is not tried again.
        if let Some(Launches::OneByOne(OneByOne::Failed(_) | OneByOne::Differed)) = self.last {
            return Ok(None);
        }
        let kind = match Kind::of(model, plan, layers, held, pass) {
            Ok(_) if self.one_by_one => return Ok(self.none(OneByOne::Asked)),
            Ok(kind) => kind,
            Err(reason) => return Ok(self.none(reason)),
        };
        let resid = pass.bring(0, resid.clone())?.contiguous()?;
        let Some(machine) = cuda::machine(&resid) else {
            return Ok(self.none(OneByOne::Placement));
        };
        let mut held: Vec<&mut LayerCache> = held.iter_mut().flatten().collect();
        let room = held.iter().all(|held| pass.end() <= held.capacity());
        if self.seen.as_ref() != Some(&kind) || !room {
            self.none(OneByOne::First);
            self.seen = Some(kind);
            return Ok(None);
        }
        let results = match self.graph.take().filter(|graph| graph.kept().is_of(&held)) {
            Some(graph) => self.again(graph, &resid, &pass.offsets)?,
            None => {
                let step = Step::new(machine, model, kind, &held, &resid);
                match step.and_then(|step| step.enter(&resid, &pass.offsets).map(|()| step)) {
                    Ok(step) => self.capture(step)?,
                    Err(error) => return Ok(self.none(OneByOne::Failed(error))),
                }
            }
        };
        for held in &mut held {
            held.lengths.iter_mut().zip(&pass.offsets).for_each(|(held, at)| *held = at + 1);
        }
        Ok(Some(results))
    }

    /// Notes why a pass is given to its device launch by launch.
    fn none(&mut self, reason: OneByOne) -> Option<Results> {
        (self.seen, self.graph) = (None, None);
        self.last = Some(Launches::OneByOne(reason));
        None
    }

    /// Runs a captured step.
    fn again(
        &mut self,
        mut graph: Graph<Step, Error>,
        resid: &Tensor,
        offsets: &[usize],
    ) -> Result<Results> {
        graph.kept().enter(resid, offsets)?;
        match graph.launch() {
            Ok(()) => Ok(self.keep(graph)),
            Err(error) => self.refuse(graph.into_kept(), OneByOne::Failed(error)),
        }
    }

    /// Runs a step launch by launch, captures it, and compares what its launches at once give.
    fn capture(&mut self, step: Step) -> Result<Results> {
        let device = step.resid.device().clone();
        let mut graph = match Graph::capture(&device, step, Step::run) {
            Ok(graph) => graph,
            Err((step, error)) => return self.refuse(step, OneByOne::Failed(error)),
        };
        match repeats(&mut graph) {
            Ok(true) => Ok(self.keep(graph)),
            Ok(false) => self.refuse(graph.into_kept(), OneByOne::Differed),
            Err(error) => self.refuse(graph.into_kept(), OneByOne::Failed(error)),
        }
    }

    /// Keeps a captured step for the next one, which will write over its results: before that they
    /// have gone to main memory, as all that a pass on a device records.
    fn keep(&mut self, graph: Graph<Step, Error>) -> Results {
        let results = graph.kept().results.clone();
        self.graph = Some(graph);
        self.last = Some(Launches::AtOnce);
        results
    }

    /// Runs a step launch by launch, as all that follow it will be.
    fn refuse(&mut self, step: Step, reason: OneByOne) -> Result<Results> {
        self.none(reason);
        step.run()?;
        Ok(step.results)
    }
}

/// Whether captured launches do what they did one by one: the bits of the results, which are spoiled
/// first, as are the new keys and values that they come from.
fn repeats(graph: &mut Graph<Step, Error>) -> Result<bool> {
    let expected = graph.kept().bits()?;
    graph.kept().spoil()?;
    graph.launch()?;
    Ok(graph.kept().bits()? == expected)
}

/// One token of each row through all layers, and all that its launches read and write.
pub(crate) struct Step {
    machine: Machine,
    kind: Kind,
    layers: Vec<LayerInfo>,
    /// Stands for the step's own, whose tokens and positions are not to be known here.
    batch: Batch,
    /// Keys and values of each layer, at the cache's whole capacity.
    held: Vec<[Tensor; 2]>,
    /// Cosines and sines of each layer that rotates, for all positions of the capacity.
    tables: Vec<Option<[Tensor; 2]>>,
    /// New tokens of each row: 1.
    lengths: Tensor,
    /// Their positions.
    offsets: Tensor,
    /// The residual stream before the layers, `[batch, 1, d_model]`.
    resid: Tensor,
    results: Results,
}

impl Step {
    fn new(
        machine: Machine,
        model: &Model,
        kind: Kind,
        held: &[&mut LayerCache],
        resid: &Tensor,
    ) -> Result<Self> {
        let (device, decoder, info) = (resid.device(), &kind.decoder, model.info());
        let positions = held.iter().map(|held| held.capacity()).max().unwrap_or(0).min(info.n_ctx);
        let tables = decoder.blocks.iter().zip(&kind.long).map(|(block, &long)| {
            let rotary = block.attention.rotary.as_ref();
            rotary.map(|rotary| rotary.tensors(long, positions, device)).transpose()
        });
        let result = |&point: &HookPoint| {
            let shape = (kind.rows, 1, decoder.width(point, info.d_model));
            Ok((point, Tensor::zeros(shape, resid.dtype(), device)?))
        };
        let row = |request| Row { request: request as u64, tokens: vec![0], offset: 0 };
        Ok(Self {
            machine,
            layers: info.layers.clone(),
            batch: Batch::new((0..kind.rows).map(row).collect())?,
            held: held.iter().map(|held| [held.k.clone(), held.v.clone()]).collect(),
            tables: tables.collect::<Result<_>>()?,
            lengths: Tensor::ones(kind.rows, DType::U32, device)?,
            offsets: Tensor::zeros(kind.rows, DType::U32, device)?,
            resid: resid.zeros_like()?,
            results: kind.points.iter().map(result).collect::<Result<_>>()?,
            kind,
        })
    }

    /// Whether it writes to these: a cache that has grown has others.
    fn is_of(&self, held: &[&mut LayerCache]) -> bool {
        let same = |(ours, held): (&[Tensor; 2], &&mut LayerCache)| {
            ours[0].id() == held.k.id() && ours[1].id() == held.v.id()
        };
        self.held.len() == held.len() && self.held.iter().zip(held).all(same)
    }

    /// Brings in what differs between steps.
    fn enter(&self, resid: &Tensor, offsets: &[usize]) -> Result<()> {
        self.resid.slice_set(resid, 0, 0)?;
        let offsets = cuda::upload("a step", "offset", offsets, self.offsets.device())?;
        Ok(self.offsets.slice_set(&offsets, 0, 0)?)
    }

    /// Computes the results and adds to the cache, whatever has been brought in.
    fn run(&self) -> Result<()> {
        let (plan, edits, mut sink) = (Plan::default(), Edits::default(), NoSink);
        let mut pass = Pass::new(&self.layers, &plan, &edits, &self.batch, &mut sink, None);
        pass.step = Some(self);
        let decoder = &self.kind.decoder;
        let all = 0..decoder.blocks.len();
        let resid = decoder.layers(all, self.resid.clone(), &mut KvCache::off(), &mut pass)?;
        for (point, result) in &self.results {
            let value = decoder.at(*point, &resid)?;
            result.slice_set(&value.to_dtype(result.dtype())?, 0, 0)?;
        }
        Ok(())
    }

    /// Rotates `[batch, 1, head, d_head]` by the positions of the step.
    pub(crate) fn rotate(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.tables[layer] {
            Some([cos, sin]) => cuda::rotary::rotary(self.machine, x, cos, sin, &self.offsets)?,
            None => x.clone(),
        })
    }

    /// Adds keys and values to a layer and gives what the queries attend to there.
    pub(crate) fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        [k, v]: [&Tensor; 2],
        options: &AttentionOptions,
    ) -> Result<Tensor> {
        self.append(layer, [k, v])?;
        let [k, v] = &self.held[layer];
        let (lengths, offsets) = (&self.lengths, &self.offsets);
        let input = cuda::attention::Input { q, k, v, lengths, offsets, sinks: None };
        Ok(cuda::attention::attention(self.machine, &input, options)?.z)
    }

    fn append(&self, layer: usize, [k, v]: [&Tensor; 2]) -> Result<()> {
        let [keys, values] = &self.held[layer];
        let (lengths, offsets) = (&self.lengths, &self.offsets);
        let input = cache_append::Input { k, v, lengths, offsets, keys, values };
        Ok(cache_append(self.machine, &input)?)
    }

    /// Leaves nothing of what a run has written.
    fn spoil(&self) -> Result<()> {
        let nan = |dims: &[usize], like: &Tensor| {
            Tensor::full(f32::NAN, dims, like.device())?.to_dtype(like.dtype())
        };
        for (layer, held) in self.held.iter().enumerate() {
            let new = |held: &Tensor| {
                let (rows, _, heads, width) = held.dims4()?;
                nan(&[rows, 1, heads, width], held)
            };
            self.append(layer, [&new(&held[0])?, &new(&held[1])?])?;
        }
        for (_, result) in &self.results {
            result.slice_set(&nan(result.dims(), result)?, 0, 0)?;
        }
        Ok(())
    }

    /// The bits of the results.
    fn bits(&self) -> Result<Vec<Vec<u32>>> {
        let bits = |(_, result): &(HookPoint, Tensor)| {
            let numbers = result.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?;
            Ok(numbers.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
        };
        self.results.iter().map(bits).collect()
    }
}
