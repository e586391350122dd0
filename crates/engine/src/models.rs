//! What can be loaded, and what a folder or file is.

use hooks::{MlpInfo, Site};
use runner::{BuiltIn, Config, HubEvent, HubOptions, Inventory, Resolved, Source, Tokenizer};
use serde::Serialize;

use crate::{Progress, Result};

/// What this build can load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Families {
    /// `model_type`s of families.
    pub families: Vec<&'static str>,
    /// Models that are part of the program.
    pub built_in: Vec<&'static str>,
}

/// What this build can load.
pub fn families() -> Families {
    Families {
        families: Config::KNOWN.to_vec(),
        built_in: BuiltIn::ALL.iter().map(|model| model.name()).collect(),
    }
}

/// What a model is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explained {
    /// As it was named.
    pub model: String,
    /// Its family.
    pub family: String,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Vocabulary entries.
    pub d_vocab: usize,
    /// Longest sequence, in tokens.
    pub n_ctx: usize,
    /// Query heads of the first layer.
    pub n_heads: usize,
    /// Key-value heads of the first layer.
    pub n_kv_heads: usize,
    /// Width of one head in the first layer.
    pub d_head: usize,
    /// Sliding window of the first layer, in tokens.
    pub window: Option<usize>,
    /// Width of dense MLPs.
    pub d_mlp: Option<usize>,
    /// Experts of mixture layers.
    pub n_experts: Option<usize>,
    /// Experts that each token uses.
    pub k: Option<usize>,
    /// Parameters.
    pub n_parameters: u64,
    /// Bytes of weights in the file.
    pub file_bytes: u64,
    /// Bytes of weights in memory when all are `f32`.
    pub f32_bytes: u64,
    /// Stored types of the weights, with the number of tensors of each.
    pub stored_as: std::collections::BTreeMap<String, usize>,
    /// Entries of the tokenizer, if there is one.
    pub tokenizer: Option<usize>,
    /// Hook points, with `{l}` for the layer.
    pub hook_points: Vec<HookShape>,
}

/// A hook point and its shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HookShape {
    /// Its name, with `{l}` for the layer.
    pub name: &'static str,
    /// Its axes.
    pub axes: String,
    /// In how many layers it is; 1 for points of the whole model.
    pub layers: usize,
}

/// Finds a model, and fetches it from the hub if need be.
pub(crate) fn resolve(spec: &str, progress: &mut dyn Progress) -> Result<Resolved> {
    let mut tell = |event: HubEvent<'_>| match event {
        HubEvent::Bytes { file, done, total } => progress.download(file, done, total),
        HubEvent::Waiting { file } => {
            progress.note(&format!("another process downloads {file}; waiting for it"));
        }
        HubEvent::Retry { reason, wait } => {
            progress.note(&format!("{reason}; trying again in {:.0} s", wait.as_secs_f64().ceil()));
        }
        HubEvent::Cached { reason, commit } => {
            progress.note(&format!("{reason}; going on with commit {commit} of the cache"));
        }
        _ => {}
    };
    let found = Source::resolve_with(spec, &HubOptions::from_env(), &mut tell);
    progress.end();
    Ok(found?)
}

/// Explains a model from its configuration and the headers of its weights.
///
/// # Errors
///
/// As loading it, for configuration, headers and tokenizer.
pub fn explain(spec: &str, progress: &mut dyn Progress) -> Result<Explained> {
    let source = resolve(spec, progress)?.source;
    let info = runner::read_config(&source)?.info();
    let weights = Inventory::of(&source)?;
    let tokenizer = match Tokenizer::load(&source) {
        Ok(tokenizer) => Some(tokenizer.vocabulary_size()),
        Err(runner::Error::FileMissing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let first = info.layers.first();
    let dense = |mlp: &MlpInfo| match *mlp {
        MlpInfo::Dense { d_mlp } => Some(d_mlp),
        MlpInfo::Mixture { .. } => None,
    };
    let mixture = |mlp: &MlpInfo| match *mlp {
        MlpInfo::Mixture { n_experts, k } => Some((n_experts, k)),
        MlpInfo::Dense { .. } => None,
    };
    let mixture = info.layers.iter().find_map(|layer| mixture(&layer.mlp));
    let points = info.points();
    let hook_points = Site::ALL
        .iter()
        .map(|&site| HookShape {
            name: site.template(),
            axes: site.shape_text(),
            layers: points.iter().filter(|point| point.site() == site).count(),
        })
        .filter(|shape| shape.layers > 0)
        .collect();
    Ok(Explained {
        model: spec.to_owned(),
        n_layers: info.n_layers(),
        d_model: info.d_model,
        d_vocab: info.d_vocab,
        n_ctx: info.n_ctx,
        n_heads: first.map_or(0, |layer| layer.n_heads),
        n_kv_heads: first.map_or(0, |layer| layer.n_kv_heads),
        d_head: first.map_or(0, |layer| layer.d_head),
        window: first.and_then(|layer| layer.window),
        d_mlp: info.layers.iter().find_map(|layer| dense(&layer.mlp)),
        n_experts: mixture.map(|(n_experts, _)| n_experts),
        k: mixture.map(|(_, k)| k),
        n_parameters: weights.parameters,
        file_bytes: weights.bytes,
        f32_bytes: weights.parameters.saturating_mul(4),
        stored_as: weights.stored_as,
        tokenizer,
        hook_points,
        family: info.family,
    })
}
