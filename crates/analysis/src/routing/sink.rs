//! Routing while the model runs.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use hooks::{
    Activation, ActivationSink, HookPoint, MlpInfo, ModelInfo, Plan, Selection, Site, Wanted,
};

use super::{Accumulator, ExpertRow, RoutingRow};
use crate::{Error, Result};

/// What a [`RoutingSink`] has found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoutingRows {
    /// One row per prompt and mixture layer.
    pub routing: Vec<RoutingRow>,
    /// One row per prompt, mixture layer and expert.
    pub experts: Vec<ExpertRow>,
}

/// Adds up the routing of every mixture layer, prompt by prompt. A prompt may
/// come in pieces: its decode steps count like its prefill.
///
/// ```
/// use analysis::routing::{RoutingSink, summary};
/// use hooks::{ActivationSink, HookPoint, ModelInfo, Selection, Site};
///
/// let mut sink = RoutingSink::new(Selection::All);
/// let plan = sink.plan(&ModelInfo::example())?;
/// assert!(plan.wants(HookPoint::layer(Site::RouterProbs, 1)).is_some());
/// assert!(plan.wants(HookPoint::layer(Site::RouterProbs, 0)).is_none()); // a dense layer
/// // After the forward passes:
/// let rows = sink.take();
/// let layers = summary(&rows.routing, &rows.experts).unwrap();
/// assert!(layers.is_empty());
/// # Ok::<(), hooks::Error>(())
/// ```
pub struct RoutingSink {
    layers: Selection,
    plan: Plan,
    sums: BTreeMap<(u64, usize), Accumulator>,
    /// What has arrived of the current layer, by row of the batch.
    pending: BTreeMap<usize, Pending>,
}

#[derive(Default)]
struct Pending {
    request: u64,
    logits: Option<Vec<Vec<f32>>>,
    probabilities: Option<Vec<Vec<f32>>>,
    indices: Option<Vec<Vec<u32>>>,
    weights: Option<Vec<Vec<f32>>>,
}

impl RoutingSink {
    /// A sink for the mixture layers among these.
    pub fn new(layers: Selection) -> Self {
        Self { layers, plan: Plan::default(), sums: BTreeMap::new(), pending: BTreeMap::new() }
    }

    /// The rows of every prompt seen since the last call, by prompt and layer.
    pub fn take(&mut self) -> RoutingRows {
        let mut rows = RoutingRows::default();
        for ((request, layer), sums) in std::mem::take(&mut self.sums) {
            if let Some(statistics) = sums.statistics() {
                rows.routing.push(RoutingRow { request, layer, statistics });
                let loads = sums.loads().into_iter();
                rows.experts.extend(loads.map(|load| ExpertRow { request, layer, load }));
            }
        }
        rows
    }

    fn make_plan(&mut self, info: &ModelInfo) -> Result<Plan> {
        let mut plan = Plan::default();
        for layer in self.layers.resolve("layer", info.n_layers())? {
            if matches!(info.layers[layer].mlp, MlpInfo::Mixture { .. }) {
                for &site in super::ANALYSIS.needs {
                    plan.add(HookPoint::layer(site, layer), &Wanted::all(), info)?;
                }
            }
        }
        if plan.is_empty() {
            return Err(Error::NoMixture { family: info.family.clone() });
        }
        self.plan = plan.clone();
        Ok(plan)
    }

    fn record_row(
        &mut self,
        point: HookPoint,
        row: usize,
        request: u64,
        tensor: &Tensor,
    ) -> Result<()> {
        let pending = self.pending.entry(row).or_default();
        pending.request = request;
        match point.site() {
            Site::RouterLogits => pending.logits = Some(numbers(point, request, tensor)?),
            Site::RouterProbs => pending.probabilities = Some(numbers(point, request, tensor)?),
            Site::ExpertWeights => pending.weights = Some(numbers(point, request, tensor)?),
            Site::ExpertIndices => {
                let read = tensor.to_dtype(DType::U32).and_then(|t| t.to_vec2());
                pending.indices =
                    Some(read.map_err(|source| Error::Tensor { point, request, source })?);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish_layer(&mut self, layer: usize) -> Result<()> {
        for pending in std::mem::take(&mut self.pending).into_values() {
            let request = pending.request;
            let missing =
                |site| move || Error::Missing { point: HookPoint::layer(site, layer), request };
            let logits = pending.logits.ok_or_else(missing(Site::RouterLogits))?;
            let probabilities = pending.probabilities.ok_or_else(missing(Site::RouterProbs))?;
            let indices = pending.indices.ok_or_else(missing(Site::ExpertIndices))?;
            let weights = pending.weights.ok_or_else(missing(Site::ExpertWeights))?;
            let n_experts = logits.first().map_or(0, Vec::len);
            let k = indices.first().map_or(0, Vec::len);
            let shape = |site, n: usize, width: usize, got: [usize; 2]| {
                if got == [n, width] {
                    return Ok(());
                }
                Err(Error::Shape {
                    point: HookPoint::layer(site, layer),
                    request,
                    expected: format!("[{n}, {width}]"),
                    got: got.to_vec(),
                })
            };
            let dims = |rows: &[Vec<f32>]| [rows.len(), rows.first().map_or(0, Vec::len)];
            shape(Site::RouterProbs, logits.len(), n_experts, dims(&probabilities))?;
            shape(Site::ExpertWeights, logits.len(), k, dims(&weights))?;
            shape(
                Site::ExpertIndices,
                logits.len(),
                k.clamp(1, n_experts.max(1)),
                [indices.len(), k],
            )?;
            for (token, chosen) in indices.iter().enumerate() {
                if let Some(rank) = chosen.iter().position(|&e| e as usize >= n_experts) {
                    return Err(Error::Captured {
                        point: HookPoint::layer(Site::ExpertIndices, layer),
                        request,
                        index: vec![token, rank],
                        value: f64::from(chosen[rank]),
                        expected: "the number of an expert",
                    });
                }
            }
            let sums =
                self.sums.entry((request, layer)).or_insert_with(|| Accumulator::new(n_experts, k));
            for token in 0..logits.len() {
                sums.add(&logits[token], &probabilities[token], &indices[token], &weights[token]);
            }
        }
        Ok(())
    }
}

/// Reads a matrix and refuses what is not finite.
fn numbers(point: HookPoint, request: u64, tensor: &Tensor) -> Result<Vec<Vec<f32>>> {
    let read = tensor.to_dtype(DType::F32).and_then(|t| t.to_vec2::<f32>());
    let rows = read.map_err(|source| Error::Tensor { point, request, source })?;
    for (token, row) in rows.iter().enumerate() {
        if let Some(at) = row.iter().position(|v| !v.is_finite()) {
            return Err(Error::Captured {
                point,
                request,
                index: vec![token, at],
                value: f64::from(row[at]),
                expected: "a finite number",
            });
        }
    }
    Ok(rows)
}

impl ActivationSink for RoutingSink {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        Ok(self.make_plan(info)?)
    }

    fn begin(&mut self, _: &hooks::Batch) -> hooks::Result<()> {
        self.pending.clear();
        Ok(())
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        let Some(request) = self.plan.wants(point).cloned() else {
            return Ok(());
        };
        for (row, info) in activation.batch.rows().iter().enumerate() {
            let tensor = activation.select(point, row, &request)?;
            self.record_row(point, row, info.request, &tensor)?;
        }
        Ok(())
    }

    fn end_layer(&mut self, layer: usize) -> hooks::Result<()> {
        Ok(self.finish_layer(layer)?)
    }
}
