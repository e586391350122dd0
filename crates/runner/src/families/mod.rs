//! Families: how configurations and weight names map onto the shared layers.
//!
//! One file per family. What llama-like decoders have in common is [`Trunk`]; a
//! family adds its defaults and what its layers do otherwise.

pub mod gemma;
pub mod gemma2;
pub mod gemma3;
pub mod gpt2;
pub mod gpt_neox;
pub mod granite;
pub mod llama;
pub mod mistral;
pub mod mixtral;
pub mod olmo2;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod smollm3;
mod trunk;

use hooks::{MlpInfo, ModelInfo, Site};
use kernels::activation::ActivationFunction;
use serde_json::Value;

use crate::config::fields::Fields;
use crate::config::{GgufFields, Rope};
use crate::layers::Decoder;
use crate::weights::{GgufLayout, RotaryRows, Weights};
use crate::{Error, Result};

pub use trunk::Trunk;

/// What beside its sizes tells a model apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Whether the unembedding is the embedding.
    pub tied_embeddings: bool,
    /// Rotary positions; `None` where positions are learned embeddings.
    pub rope: Option<Rope>,
    /// Rotary positions of layers with a window, where they differ.
    pub local_rope: Option<Rope>,
    /// Bound of the attention scores.
    pub attention_soft_cap: Option<f64>,
    /// Bound of the logits.
    pub logit_soft_cap: Option<f64>,
    /// Width of an expert's MLP.
    pub d_expert: Option<usize>,
}

/// What a family does: read its configuration, and make a decoder of it.
pub(crate) trait Family: Sized {
    /// The architecture that the family's GGUF files name; `None`: they are not read.
    const GGUF: Option<&str> = None;

    /// Reads a `config.json`.
    fn read(fields: &Fields<'_>) -> Result<Self>;

    /// Reads the metadata of a GGUF file of the family's architecture; `None` if it is
    /// that of another family of the same architecture.
    fn from_gguf(_: &GgufFields<'_>) -> Result<Option<Self>> {
        Ok(None)
    }

    /// How the family's GGUF files name and order tensors.
    fn gguf_layout(&self) -> &'static GgufLayout {
        &LLAMA_LAYOUT
    }

    /// Sizes and layers, as observers know them.
    fn info(&self) -> ModelInfo;

    /// What beside the sizes tells models apart.
    fn details(&self) -> Details;

    /// The decoder.
    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder>;
}

/// Modules of a llama whose output is a hook point.
const LLAMA_MODULES: &[(Site, &str)] = &[
    (Site::Embed, "model.embed_tokens"),
    (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
    (Site::Q, "model.layers.{l}.self_attn.q_proj"),
    (Site::K, "model.layers.{l}.self_attn.k_proj"),
    (Site::V, "model.layers.{l}.self_attn.v_proj"),
    (Site::AttnOut, "model.layers.{l}.self_attn.o_proj"),
    (Site::AttnOut, "model.layers.{l}.self_attn"),
    (Site::Ln2Normalized, "model.layers.{l}.post_attention_layernorm"),
    (Site::MlpPre, "model.layers.{l}.mlp.gate_proj"),
    (Site::MlpOut, "model.layers.{l}.mlp.down_proj"),
    (Site::MlpOut, "model.layers.{l}.mlp"),
    (Site::ResidPost, "model.layers.{l}"),
    (Site::LnFinalNormalized, "model.norm"),
    (Site::Logits, "lm_head"),
];

/// Names of Hugging Face's llama modules in GGUF files.
const LLAMA_MODEL: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Names of a llama layer's modules in GGUF files.
const LLAMA_LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A llama's names, with the rows of queries and keys as in Hugging Face checkpoints.
const LLAMA_LAYOUT: GgufLayout = GgufLayout {
    model: LLAMA_MODEL,
    layers: "model.layers.",
    layer: LLAMA_LAYER,
    experts: &[],
    rotary_rows: RotaryRows::Halves,
};

/// What a layer's attention sees, as `layer_types` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Full,
    Window,
}

/// The sliding window of each layer: by `layer_types`, or by a family's rule where
/// the file does not list them.
fn windows(
    fields: &Fields<'_>,
    n_layers: usize,
    window: Option<usize>,
    rule: impl Fn(usize) -> Sight,
) -> Result<Vec<Option<usize>>> {
    const KEY: &str = "layer_types";
    let given = fields.per_layer(KEY, n_layers)?;
    (0..n_layers)
        .map(|layer| {
            let sight = match given.map(|types| &types[layer]) {
                None => rule(layer),
                Some(kind) => match kind.as_str() {
                    Some("full_attention") => Sight::Full,
                    Some("sliding_attention") => Sight::Window,
                    _ => {
                        let expected = "full_attention or sliding_attention for each layer";
                        return Err(fields.wrong(&format!("{KEY}[{layer}]"), kind, expected));
                    }
                },
            };
            match (sight, window) {
                (Sight::Full, _) => Ok(None),
                (Sight::Window, Some(window)) => Ok(Some(window)),
                (Sight::Window, None) => Err(no_window(fields, layer, given)),
            }
        })
        .collect()
}

/// The refusal of a layer that should have a window where the file sets none.
fn no_window(fields: &Fields<'_>, layer: usize, given: Option<&[Value]>) -> Error {
    match given {
        None => fields.missing("sliding_window"),
        Some(kinds) => {
            let expected = "full_attention, since no sliding_window is set or used";
            fields.wrong(&format!("layer_types[{layer}]"), &kinds[layer], expected)
        }
    }
}

/// `total / divisor`, which must be whole.
fn divides(fields: &Fields<'_>, key: &str, divisor: usize, total: usize) -> Result<usize> {
    if total.is_multiple_of(divisor) {
        return Ok(total / divisor);
    }
    let expected = format!("a multiple of {key}, {divisor}");
    Err(fields.wrong("hidden_size", &Value::from(total), expected))
}

/// The activation function under a key.
fn activation(
    fields: &Fields<'_>,
    key: &'static str,
    default: ActivationFunction,
) -> Result<ActivationFunction> {
    match fields.text(key)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(ActivationFunction::Silu),
        Some("gelu" | "gelu_python") => Ok(ActivationFunction::Gelu),
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh") => {
            Ok(ActivationFunction::GeluTanh)
        }
        Some("relu") => Ok(ActivationFunction::Relu),
        Some(other) => Err(Error::Unsupported {
            path: fields.path().to_owned(),
            what: key,
            found: other.chars().take(80).collect(),
            supported: "silu, gelu, gelu_new, gelu_pytorch_tanh and relu",
        }),
    }
}

/// Refuses attention that is not causal.
fn causal_only(fields: &Fields<'_>) -> Result<()> {
    const KEY: &str = "use_bidirectional_attention";
    // A flag in most files, and a text (`vision`) in some.
    match fields.get(KEY) {
        None | Some(Value::Bool(false)) => Ok(()),
        Some(other) => Err(Error::Unsupported {
            path: fields.path().to_owned(),
            what: KEY,
            found: other.to_string().chars().take(80).collect(),
            supported: "causal attention only",
        }),
    }
}

/// A dense MLP, as observers know it.
fn dense(d_mlp: usize) -> MlpInfo {
    MlpInfo::Dense { d_mlp }
}
