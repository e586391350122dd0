//! Spectra while the model runs.

use std::sync::Arc;

use candle_core::Tensor;
use hooks::{
    Activation, ActivationSink, Batch, HookPoint, LayerInfo, ModelInfo, Plan, Selection, Site,
    Wanted,
};
use kernels::attention::{AttentionFactors, AttentionOptions};
use kernels::hidden_score::hidden_score;
use kernels::signal::Signal;

use super::attention::{AttentionRow, LayerAttentionRow, StatisticsOptions, attention_statistics};
use super::diagnose::{
    LayerGraph, build_graphs, finish, finish_prefixes, read_signal, recomputed_graphs,
};
use super::measured::Measured;
use super::{Keep, PrefixRow, Preset, Source, SpectralOptions, SpectralRow, Storage};
use crate::{Error, Result};

/// What a [`SpectralSink`] has found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SpectralRows {
    /// One row per prompt, layer, preset and graph.
    pub spectral: Vec<SpectralRow>,
    /// One row per prompt, layer, prefix, preset and graph.
    pub prefixes: Vec<PrefixRow>,
    /// One row per prompt, layer and head.
    pub attention: Vec<AttentionRow>,
    /// One row per prompt and layer.
    pub layers: Vec<LayerAttentionRow>,
}

/// Reduces each layer's pattern to graphs as it arrives, and those to rows when
/// the layer's residual stream is there too.
///
/// Between the two it holds half of one layer's patterns per preset, since a
/// graph is a triangle. A prompt must come in one batch row, from its first token on.
///
/// ```
/// use analysis::spectral::{SpectralOptions, SpectralSink};
/// use hooks::{ActivationSink, HookPoint, ModelInfo, Site};
///
/// let mut sink = SpectralSink::new(SpectralOptions::default());
/// let plan = sink.plan(&ModelInfo::example())?;
/// assert!(plan.wants(HookPoint::layer(Site::Pattern, 1)).is_some());
/// // After the forward passes: sink.take().spectral
/// # Ok::<(), hooks::Error>(())
/// ```
pub struct SpectralSink {
    options: SpectralOptions,
    plan: Plan,
    /// For each layer, the heads that have rows of their own.
    heads: Vec<Vec<usize>>,
    /// How each layer forms its scores.
    scores: Vec<AttentionOptions>,
    /// Above so many tokens a prompt does not begin as a shorter one.
    frequency_switch: Option<usize>,
    batch: Option<Batch>,
    /// What has arrived of the current layer, for each row of the batch.
    pending: Vec<Pending>,
    /// The last layer, while a preset that reads the final norm waits for it.
    waiting: Option<usize>,
    rows: SpectralRows,
}

#[derive(Default)]
struct Pending {
    graphs: Option<Vec<LayerGraph>>,
    queries: Option<Tensor>,
    keys: Option<Tensor>,
    factors: Option<Arc<AttentionFactors>>,
    /// The signals of the presets, by where they are read.
    signals: Vec<(HookPoint, Signal)>,
    attention: Option<(Vec<AttentionRow>, LayerAttentionRow)>,
}

impl SpectralSink {
    /// A sink with these options.
    pub fn new(options: SpectralOptions) -> Self {
        Self {
            options,
            plan: Plan::default(),
            heads: Vec::new(),
            scores: Vec::new(),
            frequency_switch: None,
            batch: None,
            pending: Vec::new(),
            waiting: None,
            rows: SpectralRows::default(),
        }
    }

    /// What it was made to compute.
    pub fn options(&self) -> &SpectralOptions {
        &self.options
    }

    /// The rows found since the last call: layer by layer, prompt by prompt.
    pub fn take(&mut self) -> SpectralRows {
        std::mem::take(&mut self.rows)
    }

    fn make_plan(&mut self, info: &ModelInfo) -> Result<Plan> {
        self.options.keep.check(&self.options.runs)?;
        let mut plan = Plan::default();
        self.heads = Vec::with_capacity(info.n_layers());
        let layers = self.options.layers.resolve("layer", info.n_layers())?;
        for layer in &info.layers {
            // A head that some layer lacks is an error there, not a silent gap.
            self.heads.push(self.options.heads.resolve("head", layer.n_heads)?);
        }
        let needs_mean = self.options.runs.iter().any(|run| run.graphs.has_mean());
        let heads = if needs_mean { Selection::All } else { self.options.heads.clone() };
        for layer in layers {
            plan.add(HookPoint::layer(Site::Summary, layer), &Wanted::all(), info)?;
            if self.options.hidden_score {
                plan.add(HookPoint::layer(Site::ResidPost, layer), &Wanted::all(), info)?;
            }
            if !self.options.runs.is_empty() {
                match self.options.storage {
                    Storage::Stored => {
                        let pattern = HookPoint::layer(Site::Pattern, layer);
                        plan.add(pattern, &Wanted::heads(heads.clone()), info)?;
                    }
                    Storage::Recomputed => {
                        for site in factor_sites(&info.layers[layer]) {
                            plan.add(HookPoint::layer(site, layer), &Wanted::all(), info)?;
                        }
                    }
                }
                for run in &self.options.runs {
                    plan.add(run.preset.signal(layer, info.n_layers()), &Wanted::all(), info)?;
                }
            }
        }
        let scores = info.layers.iter().map(|layer| AttentionOptions {
            scale: layer.scale,
            window: layer.window,
            soft_cap: layer.soft_cap,
        });
        self.scores = scores.collect();
        self.frequency_switch = info.frequency_switch;
        self.plan = plan.clone();
        Ok(plan)
    }

    fn record_row(
        &mut self,
        point: HookPoint,
        layer: usize,
        row: usize,
        request: u64,
        tensor: &Tensor,
    ) -> Result<()> {
        let source = Source { request, layer };
        let Some(pending) = self.pending.get_mut(row) else {
            return Err(Error::Missing { point, request });
        };
        match point.site() {
            Site::Pattern => {
                let held = self.plan.wants(point).and_then(|request| request.heads.as_deref());
                let graphs = build_graphs(
                    source,
                    tensor,
                    held.unwrap_or(&[]),
                    &self.heads[layer],
                    &self.options.runs,
                )?;
                pending.graphs = Some(graphs);
            }
            // Whichever the plan wants: they enter the scores.
            Site::Q | Site::RotQ => pending.queries = Some(own(point, request, tensor)?),
            Site::K | Site::RotK => pending.keys = Some(own(point, request, tensor)?),
            Site::Lse => {
                let missing =
                    |site| Error::Missing { point: HookPoint::layer(site, layer), request };
                let queries = pending.queries.take().ok_or_else(|| missing(Site::Q))?;
                let keys = pending.keys.take().ok_or_else(|| missing(Site::K))?;
                let factors = AttentionFactors::new(&queries, &keys, tensor, &self.scores[layer]);
                let factors = factors.map_err(|source| Error::Kernel { layer, request, source })?;
                pending.factors = Some(Arc::new(factors));
            }
            Site::ResidPost | Site::LnFinalNormalized => {
                pending.signals.push((point, read_signal(point, source, tensor)?));
            }
            Site::Summary => {
                let options = StatisticsOptions {
                    top_k: self.options.top_k,
                    window: self.scores[layer].window,
                    boundary: self.batch.as_ref().and_then(|batch| batch.boundaries()[row]),
                };
                let (mut rows, whole) = attention_statistics(source, tensor, &options)?;
                rows.retain(|row| self.heads[layer].contains(&row.head));
                pending.attention = Some((rows, whole));
            }
            _ => {}
        }
        Ok(())
    }

    fn finish_layer(&mut self, layer: usize) -> Result<()> {
        let wants = |site| self.plan.wants(HookPoint::layer(site, layer)).is_some();
        if !wants(Site::Summary) {
            return Ok(());
        }
        let (options, wants_spectra) = (&self.options, !self.options.runs.is_empty());
        let rows = self.batch.iter().flat_map(|batch| batch.rows());
        for (pending, row) in self.pending.iter_mut().zip(rows) {
            let (request, n_tokens) = (row.request, row.tokens.len());
            let missing =
                |site| move || Error::Missing { point: HookPoint::layer(site, layer), request };
            let Pending { graphs, factors, signals, attention, .. } = std::mem::take(pending);
            let signal_at = |point: HookPoint| {
                let found = signals.iter().find(|(at, _)| *at == point);
                found.map(|(_, signal)| signal).ok_or(Error::Missing { point, request })
            };
            let (heads, mut whole) = attention.ok_or_else(missing(Site::Summary))?;
            if options.hidden_score {
                let signal = signal_at(HookPoint::layer(Site::ResidPost, layer))?;
                whole.hidden_score = hidden_score(signal);
            }
            self.rows.attention.extend(heads);
            self.rows.layers.push(whole);
            if wants_spectra {
                let n_layers = self.heads.len();
                let signal = |preset: Preset| signal_at(preset.signal(layer, n_layers));
                let keep = options.keep.of_prompt(&row.tokens);
                let source = Source { request, layer };
                let measured = Measures { source, n_tokens, options, keep };
                match options.storage {
                    Storage::Stored => {
                        let graphs = graphs.ok_or_else(missing(Site::Pattern))?;
                        measured.add(&graphs, signal, &mut self.rows)?;
                    }
                    Storage::Recomputed => {
                        let factors = factors.ok_or_else(missing(Site::Lse))?;
                        let heads = &self.heads[layer];
                        let graphs =
                            recomputed_graphs(measured.source, &factors, heads, &options.runs)?;
                        measured.add(&graphs, signal, &mut self.rows)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is measured of a prompt at a layer.
struct Measures<'o> {
    source: Source,
    n_tokens: usize,
    options: &'o SpectralOptions,
    keep: Keep,
}

impl Measures<'_> {
    /// Adds the rows of a layer's graphs, of the whole prompt and of its prefixes.
    fn add<'s, G: Measured>(
        &self,
        graphs: &[LayerGraph<G>],
        signal: impl Fn(Preset) -> Result<&'s Signal>,
        rows: &mut SpectralRows,
    ) -> Result<()> {
        let &Self { source, n_tokens, options, ref keep } = self;
        rows.spectral.extend(finish(source, graphs, &signal, &options.lanczos, keep)?);
        let prefixes = options.prefixes.of(n_tokens);
        let found = finish_prefixes(source, graphs, &signal, &prefixes, &options.lanczos)?;
        rows.prefixes.extend(found);
        Ok(())
    }
}

/// The points from which a layer's attention can be made anew.
fn factor_sites(layer: &LayerInfo) -> [Site; 3] {
    match layer.rotary {
        true => [Site::RotQ, Site::RotK, Site::Lse],
        false => [Site::Q, Site::K, Site::Lse],
    }
}

/// A copy that outlives the activation.
fn own(point: HookPoint, request: u64, tensor: &Tensor) -> Result<Tensor> {
    tensor.force_contiguous().map_err(|source| Error::Tensor { point, request, source })
}

impl ActivationSink for SpectralSink {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        Ok(self.make_plan(info)?)
    }

    fn begin(&mut self, batch: &Batch) -> hooks::Result<()> {
        if let Some(row) = batch.rows().iter().find(|row| row.offset > 0) {
            return Err(Error::Continued { request: row.request, offset: row.offset }.into());
        }
        for row in batch.rows() {
            let n_tokens = row.tokens.len();
            let prefix = self.options.prefixes.beyond(n_tokens, self.frequency_switch);
            if let (Some(prefix), Some(switch)) = (prefix, self.frequency_switch) {
                return Err(Error::Prefix { request: row.request, n_tokens, prefix, switch }.into());
            }
        }
        self.pending = batch.rows().iter().map(|_| Pending::default()).collect();
        self.waiting = None;
        self.batch = Some(batch.clone());
        Ok(())
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        let Some(request) = self.plan.wants(point).cloned() else {
            return Ok(());
        };
        // Behind the last layer is the final norm.
        let layer = point.layer_index().unwrap_or(self.heads.len().saturating_sub(1));
        for (row, info) in activation.batch.rows().iter().enumerate() {
            let tensor = activation.select(point, row, &request)?;
            self.record_row(point, layer, row, info.request, &tensor)?;
        }
        Ok(())
    }

    fn end_layer(&mut self, layer: usize) -> hooks::Result<()> {
        let is_last = layer + 1 == self.heads.len();
        if is_last && self.plan.wants(HookPoint::LN_FINAL).is_some() {
            self.waiting = Some(layer);
            return Ok(());
        }
        Ok(self.finish_layer(layer)?)
    }

    fn end_batch(&mut self) -> hooks::Result<()> {
        if let Some(layer) = self.waiting.take() {
            self.finish_layer(layer)?;
        }
        self.batch = None;
        self.pending.clear();
        Ok(())
    }
}
