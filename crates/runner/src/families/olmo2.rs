//! OLMo 2: no norm before attention and MLP but one behind each, and norms over
//! all queries and all keys of a token.

use hooks::{LayerInfo, ModelInfo, Site};

use super::trunk::{AttentionForm, Defaults, NormWeights, Scales, module};
use super::{Details, Family, Trunk, dense};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::layers::{Block, Branch, Decoder, QueryKeyNorm, Residual};
use crate::weights::Weights;

/// The configuration of an OLMo 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
}

const DEFAULTS: Defaults = Defaults { vocab_size: 50_304, rms_norm_eps: 1e-5, ..Defaults::LLAMA };

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "model.embed_tokens"),
    (Site::Q, "model.layers.{l}.self_attn.q_norm"),
    (Site::K, "model.layers.{l}.self_attn.k_norm"),
    (Site::V, "model.layers.{l}.self_attn.v_proj"),
    (Site::AttnOut, "model.layers.{l}.post_attention_layernorm"),
    (Site::MlpPre, "model.layers.{l}.mlp.gate_proj"),
    (Site::MlpOut, "model.layers.{l}.post_feedforward_layernorm"),
    (Site::ResidPost, "model.layers.{l}"),
    (Site::LnFinalNormalized, "model.norm"),
    (Site::Logits, "lm_head"),
];

impl Family for Config {
    fn read(fields: &Fields<'_>) -> Result<Self> {
        Ok(Self {
            trunk: Trunk::read(fields, &DEFAULTS)?,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(11_008),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
        })
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("olmo2", MODULES, |_| LayerInfo {
            pre_norms: false,
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
            let norm = |name: &str, width| {
                trunk.norm_over(weights, &module(layer, name), width, NormWeights::Whole)
            };
            let behind = |name| {
                let after = Some(norm(name, trunk.hidden_size)?);
                Ok::<_, crate::Error>(Branch { before: None, after, multiplier: None })
            };
            let form = AttentionForm {
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                norm: QueryKeyNorm::Whole {
                    q: norm("self_attn.q_norm", trunk.num_attention_heads * trunk.head_dim)?,
                    k: norm("self_attn.k_norm", trunk.num_key_value_heads * trunk.head_dim)?,
                },
                ..AttentionForm::plain(&rotary)
            };
            Ok(Block {
                first: behind("post_attention_layernorm")?,
                attention: trunk.attention(weights, layer, form)?,
                second: behind("post_feedforward_layernorm")?,
                feed_forward: trunk.mlp(weights, layer, self.intermediate_size, false)?,
                residual: Residual::Serial,
            })
        })
    }
}
