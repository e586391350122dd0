//! Spectra while the model runs.

use candle_core::Tensor;
use hooks::{
    Activation, ActivationSink, Batch, HookPoint, ModelInfo, Plan, Selection, Site, Wanted,
};
use kernels::signal::Signal;

use super::attention::{AttentionRow, LayerAttentionRow, attention_statistics};
use super::diagnose::{LayerGraph, build_graphs, finish, read_signal};
use super::{Preset, Source, SpectralOptions, SpectralRow};
use crate::{Error, Result};

/// What a [`SpectralSink`] has found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SpectralRows {
    /// One row per prompt, layer, preset and graph.
    pub spectral: Vec<SpectralRow>,
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
            batch: None,
            pending: Vec::new(),
            waiting: None,
            rows: SpectralRows::default(),
        }
    }

    /// The rows found since the last call: layer by layer, prompt by prompt.
    pub fn take(&mut self) -> SpectralRows {
        std::mem::take(&mut self.rows)
    }

    fn make_plan(&mut self, info: &ModelInfo) -> Result<Plan> {
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
            if !self.options.runs.is_empty() {
                let pattern = HookPoint::layer(Site::Pattern, layer);
                plan.add(pattern, &Wanted::heads(heads.clone()), info)?;
                for run in &self.options.runs {
                    plan.add(run.preset.signal(layer, info.n_layers()), &Wanted::all(), info)?;
                }
            }
        }
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
            Site::ResidPost | Site::LnFinalNormalized => {
                pending.signals.push((point, read_signal(point, source, tensor)?));
            }
            Site::Summary => {
                let (mut rows, whole) = attention_statistics(source, tensor, self.options.top_k)?;
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
        let wants_spectra = wants(Site::Pattern);
        let requests = self.batch.iter().flat_map(|batch| batch.rows()).map(|row| row.request);
        for (pending, request) in self.pending.iter_mut().zip(requests) {
            let missing =
                |site| move || Error::Missing { point: HookPoint::layer(site, layer), request };
            let Pending { graphs, signals, attention } = std::mem::take(pending);
            let (heads, whole) = attention.ok_or_else(missing(Site::Summary))?;
            self.rows.attention.extend(heads);
            self.rows.layers.push(whole);
            if wants_spectra {
                let graphs = graphs.ok_or_else(missing(Site::Pattern))?;
                let n_layers = self.heads.len();
                let signal = |preset: Preset| {
                    let point = preset.signal(layer, n_layers);
                    let found = signals.iter().find(|(at, _)| *at == point);
                    found.map(|(_, signal)| signal).ok_or(Error::Missing { point, request })
                };
                let source = Source { request, layer };
                self.rows.spectral.extend(finish(source, &graphs, signal, &self.options.lanczos)?);
            }
        }
        Ok(())
    }
}

impl ActivationSink for SpectralSink {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        Ok(self.make_plan(info)?)
    }

    fn begin(&mut self, batch: &Batch) -> hooks::Result<()> {
        if let Some(row) = batch.rows().iter().find(|row| row.offset > 0) {
            return Err(Error::Continued { request: row.request, offset: row.offset }.into());
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
