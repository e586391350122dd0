//! Qwen 3: norms over each head of queries and keys; later layers may have a
//! sliding window.

use hooks::{LayerInfo, ModelInfo, Site};

use super::trunk::{AttentionForm, Defaults, NormWeights, Scales, module};
use super::{Details, Family, Trunk, dense, qwen2};
use crate::Result;
use crate::config::GgufFields;
use crate::config::fields::{Fields, bound};
use crate::layers::{Decoder, QueryKeyNorm};
use crate::weights::Weights;

/// The configuration of a Qwen 3.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// For each layer, the keys that a query sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
}

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "model.embed_tokens"),
    (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
    (Site::Q, "model.layers.{l}.self_attn.q_norm"),
    (Site::K, "model.layers.{l}.self_attn.k_norm"),
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

impl Family for Config {
    const GGUF: Option<&str> = Some("qwen3");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        let trunk = Trunk::read(fields, &DEFAULTS)?;
        Ok(Self {
            intermediate_size: fields
                .size("intermediate_size", bound::WIDTH)?
                .unwrap_or(qwen2::INTERMEDIATE_SIZE),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            windows: qwen2::read_windows(fields, trunk.num_hidden_layers)?,
            trunk,
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        let trunk = Trunk::from_gguf(file, &DEFAULTS)?;
        Ok(Some(Self {
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            attention_bias: file.has_tensor("blk.0.attn_q.bias"),
            windows: vec![None; trunk.num_hidden_layers],
            trunk,
        }))
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("qwen3", MODULES, |layer| LayerInfo {
            window: self.windows[layer],
            ..self.trunk.layer(dense(self.intermediate_size))
        })
    }

    fn details(&self) -> Details {
        self.trunk.details()
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let trunk = &self.trunk;
        let rotary = trunk.rotary(weights)?;
        trunk.decoder(weights, &Scales::default(), |layer| {
            let norm = |name: &str| {
                let name = module(layer, &format!("self_attn.{name}_norm"));
                trunk.norm_over(weights, &name, trunk.head_dim, NormWeights::Whole)
            };
            let form = AttentionForm {
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                norm: QueryKeyNorm::Heads { q: norm("q")?, k: norm("k")? },
                ..AttentionForm::plain(&rotary)
            };
            let attention = trunk.attention(weights, layer, form)?;
            let mlp = trunk.mlp(weights, layer, self.intermediate_size, false)?;
            trunk.pre_norm_block(weights, layer, attention, mlp)
        })
    }
}
