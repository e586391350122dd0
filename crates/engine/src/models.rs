//! What can be loaded, and what a folder or file is.
//!
//! An explanation goes as far as the files allow: what cannot be loaded is still
//! looked at, and the reason stands beside what was found.

use std::collections::BTreeMap;

use hooks::{LayerInfo, MlpInfo, ModelInfo, Site};
use runner::{
    BuiltIn, Chat, Claims, Config, Details, HubEvent, HubOptions, Inventory, Resolved, Rope,
    RopeScaling, Source, Special, Tokenizer,
};
use serde::{Serialize, Serializer};

use crate::{Error, Progress, Result};

/// Positions for which memory is estimated where nobody says otherwise.
const CONTEXT: usize = 2048;

/// What this build can load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Families {
    /// `model_type`s of families.
    pub families: Vec<&'static str>,
    /// Architectures of GGUF files.
    pub gguf_architectures: Vec<&'static str>,
    /// Types of tensors in GGUF files.
    pub gguf_types: Vec<&'static str>,
    /// Types of tensors in safetensors files.
    pub safetensors_types: Vec<&'static str>,
    /// Models that are part of the program.
    pub built_in: Vec<&'static str>,
}

/// What this build can load.
pub fn families() -> Families {
    Families {
        families: Config::KNOWN.to_vec(),
        gguf_architectures: Config::known_gguf(),
        gguf_types: Inventory::gguf_formats(),
        safetensors_types: vec!["F32", "F16", "BF16"],
        built_in: BuiltIn::ALL.iter().map(|model| model.name()).collect(),
    }
}

/// What a model is.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// As it was named.
    pub model: String,
    /// Why it cannot be loaded; `None` if it can.
    #[serde(serialize_with = "as_text")]
    pub refusal: Option<Error>,
    /// What its configuration or metadata says of it.
    pub claims: BTreeMap<String, String>,
    /// What its configuration means, if it could be read.
    #[serde(flatten)]
    pub sizes: Option<Sizes>,
    /// Its weights, if their headers could be read.
    #[serde(flatten)]
    pub weights: Option<StoredWeights>,
    /// Memory to run it.
    pub memory: Option<Memory>,
    /// Entries of the tokenizer, if there is one.
    pub tokenizer: Option<usize>,
    /// Why there is a tokenizer and it cannot be used: only token ids can be run then.
    pub tokenizer_problem: Option<String>,
    /// Tokens that the tokenizer puts around a text: a BOS, an EOS, both or none.
    pub special_tokens: Vec<String>,
    /// Whether it has a template for conversations.
    pub chat_template: ChatTemplate,
    /// Hook points, with `{l}` for the layer.
    pub hook_points: Vec<HookShape>,
    /// Files of its folder that are not read.
    pub unread_files: Vec<String>,
}

fn as_text<S: Serializer>(
    error: &Option<Error>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    error.as_ref().map(ToString::to_string).serialize(serializer)
}

/// Whether a model has a template for conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatTemplate {
    /// There is one.
    Present,
    /// There is none.
    Absent,
    /// There is one that cannot be used.
    Unusable,
}

impl ChatTemplate {
    fn of(source: &Source) -> Self {
        match Chat::load(source) {
            Ok(_) => Self::Present,
            Err(runner::Error::ChatTemplateMissing { .. }) => Self::Absent,
            Err(_) => Self::Unusable,
        }
    }
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sizes {
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
    /// Sliding windows, and how many layers have each.
    pub windows: Vec<Windows>,
    /// Width of dense MLPs.
    pub d_mlp: Option<usize>,
    /// Experts of mixture layers.
    pub n_experts: Option<usize>,
    /// Experts that each token uses.
    pub k: Option<usize>,
    /// Width of an expert's MLP.
    pub d_expert: Option<usize>,
    /// How positions enter.
    pub positions: String,
    /// Layers without rotary positions, in models with them.
    pub layers_without_rotary: usize,
    /// Layers whose MLP reads the residual stream that attention reads.
    pub parallel_layers: usize,
    /// Bound of the attention scores.
    pub attention_soft_cap: Option<f64>,
    /// Bound of the logits.
    pub logit_soft_cap: Option<f64>,
    /// Whether the unembedding is the embedding.
    pub tied_embeddings: bool,
}

/// Layers with one sliding window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Windows {
    /// The window in tokens; `None`: everything before a token is seen.
    pub window: Option<usize>,
    /// Layers with it.
    pub layers: usize,
}

/// Weights as the files have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoredWeights {
    /// Parameters.
    pub n_parameters: u64,
    /// Bytes of weights in the files.
    pub file_bytes: u64,
    /// Stored types of the weights, with the number of tensors of each.
    pub stored_as: BTreeMap<String, usize>,
    /// Tensors of the files that are not read: those of images, and constants.
    pub unread_tensors: usize,
}

/// Memory to run a model.
///
/// For `P` parameters, `T` positions, and `b` bytes a number:
/// weights `b P`, quantized blocks as they are stored;
/// key-value cache `2 b T Σ_layers n_kv d_head`;
/// activations `b (T w + d_vocab)`, where `w` is the widest moment of a layer: with
/// `d = d_model`, `a = n_heads d_head` and `c = n_kv d_head` the larger of
/// `3 d + 3 a + 5 c` in attention and `5 d + 3 d_mlp` in the MLP, or
/// `5 d + k (d + 3 d_expert)` in a mixture; logits are those of one position.
/// Keys and values are kept where a text is continued. On top come what is
/// captured, the work buffers of products (some MB a thread), the program and its
/// tokenizer (some 30 MB for 50,000 entries).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// `T`, in tokens.
    pub context: usize,
    /// One estimate for each device and type of weights.
    pub uses: Vec<MemoryUse>,
    /// Bytes of the logits of every position in `f32`, where they are wanted.
    pub all_logits: u64,
}

/// An estimate of memory, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// `cpu` or `gpu`.
    pub device: &'static str,
    /// How weights are held: `f32`, `bf16 or f16`, or `as stored`.
    pub weights_as: &'static str,
    /// The weights.
    pub weights: u64,
    /// Keys and values of `T` positions in every layer.
    pub kv_cache: u64,
    /// The most that a forward pass of `T` positions holds beside them.
    pub activations: u64,
    /// All of it.
    pub total: u64,
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

/// Explains a model from its configuration and the headers of its weights, with
/// memory for so many positions.
///
/// # Errors
///
/// If there is nothing by that name, or the model has not so long a context. A
/// model that is there and cannot be loaded is no error but
/// [`Explained::refusal`].
pub fn explain(
    spec: &str,
    context: Option<usize>,
    progress: &mut dyn Progress,
) -> Result<Explained> {
    let mut explained = Explained {
        model: spec.to_owned(),
        refusal: None,
        claims: BTreeMap::new(),
        sizes: None,
        weights: None,
        memory: None,
        tokenizer: None,
        tokenizer_problem: None,
        special_tokens: Vec::new(),
        chat_template: ChatTemplate::Absent,
        hook_points: Vec::new(),
        unread_files: Vec::new(),
    };
    let source = match resolve(spec, progress) {
        Ok(found) => found.source,
        Err(Error::Runner(error)) if matches!(*error, runner::Error::Unsupported { .. }) => {
            explained.refusal = Some(Error::Runner(error));
            return Ok(explained);
        }
        Err(error) => return Err(error),
    };
    let mut refuse = |error: runner::Error| {
        // The first reason is the one that loading meets first.
        explained.refusal.get_or_insert(error.into());
    };
    explained.claims = Claims::of(&source).0.into_iter().collect();
    let config = runner::read_config(&source).map_err(&mut refuse).ok();
    let inventory = Inventory::of(&source).map_err(&mut refuse).ok();
    if inventory.is_some() {
        Inventory::check(&source).unwrap_or_else(&mut refuse);
    }
    match Tokenizer::load(&source) {
        Ok(tokenizer) => {
            explained.tokenizer = Some(tokenizer.vocabulary_size());
            // Around nothing stand the special tokens alone.
            let around = tokenizer.encode("", Special::Add);
            explained.special_tokens = around.map(|around| around.tokens).unwrap_or_default();
        }
        Err(runner::Error::FileMissing { .. }) => {}
        Err(error) => {
            // A file that cannot be read at all is refused once.
            let problem = error.to_string();
            let known = explained.refusal.as_ref().is_some_and(|e| e.to_string() == problem);
            explained.tokenizer_problem = Some(problem).filter(|_| !known);
        }
    }
    if let Some(config) = &config {
        explained.chat_template = ChatTemplate::of(&source);
        let (info, details) = (config.info(), config.details());
        if let Some(inventory) = &inventory {
            explained.memory = Some(memory(&info, &details, inventory, context)?);
        }
        explained.hook_points = hook_points(&info);
        explained.sizes = Some(sizes(info, details));
    }
    explained.weights = inventory.map(|inventory| {
        explained.unread_files = inventory.unread_files;
        StoredWeights {
            n_parameters: inventory.parameters,
            file_bytes: inventory.bytes,
            stored_as: inventory.stored_as,
            unread_tensors: inventory.unread_tensors,
        }
    });
    Ok(explained)
}

fn hook_points(info: &ModelInfo) -> Vec<HookShape> {
    let points = info.points();
    let shape = |&site: &Site| HookShape {
        name: site.template(),
        axes: site.shape_text(),
        layers: points.iter().filter(|point| point.site() == site).count(),
    };
    Site::ALL.iter().map(shape).filter(|shape| shape.layers > 0).collect()
}

fn sizes(info: ModelInfo, details: Details) -> Sizes {
    let first = info.layers.first();
    let count = |is: &dyn Fn(&LayerInfo) -> bool| info.layers.iter().filter(|l| is(l)).count();
    let mixture = info.layers.iter().find_map(|layer| match layer.mlp {
        MlpInfo::Mixture { n_experts, k } => Some((n_experts, k)),
        MlpInfo::Dense { .. } => None,
    });
    let mut windows: BTreeMap<Option<usize>, usize> = BTreeMap::new();
    info.layers.iter().for_each(|layer| *windows.entry(layer.window).or_default() += 1);
    let windowed = windows.keys().any(Option::is_some);
    Sizes {
        n_layers: info.n_layers(),
        d_model: info.d_model,
        d_vocab: info.d_vocab,
        n_ctx: info.n_ctx,
        n_heads: first.map_or(0, |layer| layer.n_heads),
        n_kv_heads: first.map_or(0, |layer| layer.n_kv_heads),
        d_head: first.map_or(0, |layer| layer.d_head),
        windows: windows
            .into_iter()
            .filter(|_| windowed)
            .map(|(window, layers)| Windows { window, layers })
            .collect(),
        d_mlp: info.layers.iter().find_map(|layer| match layer.mlp {
            MlpInfo::Dense { d_mlp } => Some(d_mlp),
            MlpInfo::Mixture { .. } => None,
        }),
        n_experts: mixture.map(|(n_experts, _)| n_experts),
        k: mixture.map(|(_, k)| k),
        d_expert: details.d_expert,
        positions: positions(&details),
        layers_without_rotary: match details.rope {
            Some(_) => count(&|layer| !layer.rotary),
            None => 0,
        },
        parallel_layers: count(&|layer| layer.parallel_residual),
        attention_soft_cap: details.attention_soft_cap,
        logit_soft_cap: details.logit_soft_cap,
        tied_embeddings: details.tied_embeddings,
        family: info.family,
    }
}

fn positions(details: &Details) -> String {
    let Some(rope) = &details.rope else {
        return "learned embeddings".to_owned();
    };
    let base = |rope: &Rope| format!("base {}", rope.theta);
    let scaling = match &rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", linear scaling by {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!(", Llama 3 scaling by {factor}"),
        RopeScaling::Yarn { factor, .. } => format!(", YaRN scaling by {factor}"),
        RopeScaling::Long { original_context, .. } => {
            format!(", frequencies of their own beyond {original_context} tokens")
        }
    };
    let local = details
        .local_rope
        .as_ref()
        .map_or_else(String::new, |local| format!("; {} in layers with a window", base(local)));
    format!("rotary, {}, {} of each head{scaling}{local}", base(rope), rope.dims)
}

fn memory(
    info: &ModelInfo,
    details: &Details,
    inventory: &Inventory,
    context: Option<usize>,
) -> Result<Memory> {
    let context = context.unwrap_or(CONTEXT.min(info.n_ctx));
    if context == 0 || context > info.n_ctx {
        return Err(Error::Context { context, n_ctx: info.n_ctx });
    }
    // Sizes are a file's, so that their products are bounded and not trusted to fit.
    let product = |factors: &[usize]| {
        factors.iter().fold(1u64, |product, &factor| product.saturating_mul(factor as u64))
    };
    let d = info.d_model as u64;
    let width = |layer: &LayerInfo| {
        let (a, c) =
            (product(&[layer.n_heads, layer.d_head]), product(&[layer.n_kv_heads, layer.d_head]));
        let mlp = match layer.mlp {
            MlpInfo::Dense { d_mlp } => 3 * d_mlp as u64,
            MlpInfo::Mixture { k, .. } => {
                (k as u64).saturating_mul(d + 3 * details.d_expert.unwrap_or(0) as u64)
            }
        };
        let attention = 3 * d + 3 * a + 5 * c;
        attention.max((5 * d).saturating_add(mlp))
    };
    let widest = info.layers.iter().map(width).max().unwrap_or(0);
    let activations = widest.saturating_mul(context as u64).saturating_add(info.d_vocab as u64);
    let cached = info
        .layers
        .iter()
        .map(|layer| product(&[2, context, layer.n_kv_heads, layer.d_head]))
        .fold(0, u64::saturating_add);
    let plain = inventory.parameters - inventory.quantized_parameters;
    let estimate = |device, weights_as, weights: u64, b: u64| {
        let (kv_cache, activations) = (cached.saturating_mul(b), activations.saturating_mul(b));
        let total = weights.saturating_add(kv_cache).saturating_add(activations);
        MemoryUse { device, weights_as, weights, kv_cache, activations, total }
    };
    let stored = |blocks: u64, b: u64| blocks.saturating_add(plain.saturating_mul(b));
    let all = |b: u64| inventory.parameters.saturating_mul(b);
    let mut uses = vec![
        estimate("cpu", "f32", all(4), 4),
        estimate("gpu", "f32", all(4), 4),
        estimate("gpu", "bf16 or f16", all(2), 2),
    ];
    if inventory.quantized_parameters > 0 {
        uses.insert(0, estimate("cpu", "as stored", stored(inventory.packed_bytes, 4), 4));
        uses.push(estimate("gpu", "as stored", stored(inventory.quantized_bytes, 2), 2));
    }
    let all_logits = product(&[context, info.d_vocab, 4]);
    Ok(Memory { context, uses, all_logits })
}
