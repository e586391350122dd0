//! Gemma 2: Gemma with norms also behind attention and MLP, soft caps on scores
//! and logits, and a sliding window in every other layer.

use hooks::{LayerInfo, ModelInfo, Site};
use kernels::activation::ActivationFunction;

use super::trunk::{AttentionForm, Defaults, NormWeights, Scales, module};
use super::{Details, Family, LLAMA_LAYOUT, Sight, Trunk, causal_only, dense, gemma, windows};
use crate::Result;
use crate::config::GgufFields;
use crate::config::fields::{Fields, bound};
use crate::layers::{Block, Branch, Decoder, Logits, Residual};
use crate::weights::{GgufLayout, Weights};

/// The configuration of a Gemma 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Scores are divided by its square root.
    pub query_pre_attn_scalar: f64,
    /// For each layer, the keys that a query sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// `c` of the scores' cap `c tanh(s / c)`.
    pub attn_logit_softcapping: Option<f64>,
    /// `c` of the logits' cap.
    pub final_logit_softcapping: Option<f64>,
}

/// Those of the configuration class, which Gemma 3 shares for the most part.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    activation: ("hidden_activation", ActivationFunction::GeluTanh),
    ..Defaults::LLAMA
};

/// Default width of the MLPs.
pub(super) const INTERMEDIATE_SIZE: usize = 9216;
/// Default sliding window, in tokens.
pub(super) const WINDOW: usize = 4096;

/// Names of the layers' modules in GGUF files, also those of Gemma 3.
pub(super) const GGUF_LAYOUT: GgufLayout = GgufLayout {
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
    ..LLAMA_LAYOUT
};

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "model.embed_tokens"),
    (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
    (Site::Q, "model.layers.{l}.self_attn.q_proj"),
    (Site::K, "model.layers.{l}.self_attn.k_proj"),
    (Site::V, "model.layers.{l}.self_attn.v_proj"),
    (Site::AttnOut, "model.layers.{l}.post_attention_layernorm"),
    (Site::Ln2Normalized, "model.layers.{l}.pre_feedforward_layernorm"),
    (Site::MlpPre, "model.layers.{l}.mlp.gate_proj"),
    (Site::MlpOut, "model.layers.{l}.post_feedforward_layernorm"),
    (Site::ResidPost, "model.layers.{l}"),
    (Site::LnFinalNormalized, "model.norm"),
];

impl Family for Config {
    const GGUF: Option<&str> = Some("gemma2");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        causal_only(fields)?;
        let trunk = Trunk::read(fields, &DEFAULTS)?;
        let cap = |key, default| match fields.positive(key)? {
            None if fields.is_null(key) => Ok(None),
            given => Ok::<_, crate::Error>(given.or(Some(default))),
        };
        let window = match fields.size("sliding_window", bound::CONTEXT)? {
            None if fields.is_null("sliding_window") => None,
            given => Some(given.unwrap_or(WINDOW)),
        };
        let alternating = |layer| if layer % 2 == 0 { Sight::Window } else { Sight::Full };
        Ok(Self {
            intermediate_size: fields
                .size("intermediate_size", bound::WIDTH)?
                .unwrap_or(INTERMEDIATE_SIZE),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            query_pre_attn_scalar: fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
            windows: windows(fields, trunk.num_hidden_layers, window, alternating)?,
            attn_logit_softcapping: cap("attn_logit_softcapping", 50.0)?,
            final_logit_softcapping: cap("final_logit_softcapping", 30.0)?,
            trunk,
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        let trunk = Trunk::from_gguf(file, &DEFAULTS)?;
        let window = file.window()?.or(Some(WINDOW));
        // The files do not say it. Of the released models only the largest, known by its
        // layers, has another scale than that of its heads.
        let scalar = match trunk.num_hidden_layers {
            46 => trunk.hidden_size / trunk.num_attention_heads,
            _ => trunk.head_dim,
        };
        Ok(Some(Self {
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            attention_bias: file.has_tensor("blk.0.attn_q.bias"),
            query_pre_attn_scalar: scalar as f64,
            windows: (0..trunk.num_hidden_layers).map(|l| window.filter(|_| l % 2 == 0)).collect(),
            attn_logit_softcapping: Some(file.positive_or("attn_logit_softcapping", 50.0)?),
            final_logit_softcapping: Some(file.positive_or("final_logit_softcapping", 30.0)?),
            trunk,
        }))
    }

    fn gguf_layout(&self) -> &'static GgufLayout {
        &GGUF_LAYOUT
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("gemma2", MODULES, |layer| LayerInfo {
            window: self.windows[layer],
            scale: 1.0 / self.query_pre_attn_scalar.sqrt(),
            soft_cap: self.attn_logit_softcapping,
            ..self.trunk.layer(dense(self.intermediate_size))
        })
    }

    fn details(&self) -> Details {
        Details {
            attention_soft_cap: self.attn_logit_softcapping,
            logit_soft_cap: self.final_logit_softcapping,
            ..self.trunk.details()
        }
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let trunk = &self.trunk;
        let rotary = trunk.rotary(weights)?;
        let logits = Logits { soft_cap: self.final_logit_softcapping, ..Logits::default() };
        let scales = Scales { logits, ..gemma::scales(trunk) };
        trunk.decoder(weights, &scales, |layer| {
            let form = AttentionForm {
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                ..AttentionForm::plain(&rotary)
            };
            let (first, second) = branches(trunk, weights, layer)?;
            Ok(Block {
                first,
                attention: trunk.attention(weights, layer, form)?,
                second,
                feed_forward: trunk.mlp(weights, layer, self.intermediate_size, false)?,
                residual: Residual::Serial,
            })
        })
    }
}

/// A norm before and one behind each half of a layer.
pub(super) fn branches(
    trunk: &Trunk,
    weights: &dyn Weights,
    layer: usize,
) -> Result<(Branch, Branch)> {
    let norm = |name| trunk.norm(weights, &module(layer, name), NormWeights::BesideOne);
    let between = |before, after| {
        Ok::<_, crate::Error>(Branch {
            after: Some(norm(after)?),
            ..Branch::pre_norm(norm(before)?)
        })
    };
    Ok((
        between("input_layernorm", "post_attention_layernorm")?,
        between("pre_feedforward_layernorm", "post_feedforward_layernorm")?,
    ))
}
