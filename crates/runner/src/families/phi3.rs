//! Phi 3: queries, keys and values in one matrix, gate and up in another; a part
//! of each head rotated, by other frequencies in long sequences.

use hooks::{LayerInfo, ModelInfo, Site};

use super::trunk::{AttentionForm, Defaults, Scales, module};
use super::{Details, Family, LLAMA_LAYOUT, Trunk, dense};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::config::{GgufFields, Partial, RopeDefaults, RopeNames};
use crate::layers::{Decoder, FeedForward, Mlp, MlpForm, Projections};
use crate::weights::{GgufLayout, Part, Weights};

/// The configuration of a Phi 3.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Keys that a query sees, itself included; `None`: all before it.
    pub sliding_window: Option<usize>,
}

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_064,
    hidden_size: 3072,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    rope: RopeDefaults {
        partial: Partial::Share { key: "partial_rotary_factor", default: 1.0 },
        original_context: Some(4096),
        names: RopeNames::Phi3,
        ..RopeDefaults::USUAL
    },
    ..Defaults::LLAMA
};

const GGUF_LAYOUT: GgufLayout = GgufLayout {
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ],
    ..LLAMA_LAYOUT
};

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "model.embed_tokens"),
    (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
    (Site::AttnOut, "model.layers.{l}.self_attn.o_proj"),
    (Site::AttnOut, "model.layers.{l}.self_attn"),
    (Site::Ln2Normalized, "model.layers.{l}.post_attention_layernorm"),
    (Site::MlpOut, "model.layers.{l}.mlp.down_proj"),
    (Site::MlpOut, "model.layers.{l}.mlp"),
    (Site::ResidPost, "model.layers.{l}"),
    (Site::LnFinalNormalized, "model.norm"),
    (Site::Logits, "lm_head"),
];

impl Family for Config {
    const GGUF: Option<&str> = Some("phi3");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        Ok(Self {
            trunk: Trunk::read(fields, &DEFAULTS)?,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(8192),
            sliding_window: fields.size("sliding_window", bound::CONTEXT)?,
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        Ok(Some(Self {
            trunk: Trunk::from_gguf(file, &DEFAULTS)?,
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            sliding_window: file.window()?,
        }))
    }

    fn gguf_layout(&self) -> &'static GgufLayout {
        &GGUF_LAYOUT
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("phi3", MODULES, |_| LayerInfo {
            window: self.sliding_window,
            ..self.trunk.layer(dense(self.intermediate_size))
        })
    }

    fn details(&self) -> Details {
        self.trunk.details()
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let trunk = &self.trunk;
        let rotary = trunk.rotary(weights)?;
        let fused = |layer, name, widths: Vec<usize>| {
            let part = Part::new(module(layer, name), widths.iter().sum());
            Projections::load_fused(weights, &part, widths, trunk.hidden_size, false)
        };
        let (q, kv) = (
            trunk.num_attention_heads * trunk.head_dim,
            trunk.num_key_value_heads * trunk.head_dim,
        );
        let d_mlp = self.intermediate_size;
        trunk.decoder(weights, &Scales::default(), |layer| {
            let form = AttentionForm::plain(&rotary);
            let inputs = fused(layer, "self_attn.qkv_proj", vec![q, kv, kv])?;
            let attention = trunk.attention_of(weights, layer, inputs, form)?;
            let down = Part::new(module(layer, "mlp.down_proj"), trunk.hidden_size);
            let mlp = Mlp {
                inputs: fused(layer, "mlp.gate_up_proj", vec![d_mlp, d_mlp])?,
                output: Projections::load(weights, &[down], d_mlp, false)?,
                activation: trunk.hidden_act,
                form: MlpForm::Gated,
            };
            trunk.pre_norm_block(weights, layer, attention, FeedForward::Dense(mlp))
        })
    }
}
