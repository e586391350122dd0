//! Granite: a Llama with multipliers on embeddings, scores, residual additions and
//! logits.

use hooks::{LayerInfo, ModelInfo, Site};

use super::trunk::{AttentionForm, Defaults, Scales};
use super::{Details, Family, Trunk, dense};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::layers::{Decoder, Logits};
use crate::weights::Weights;

/// The configuration of a Granite.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Whether the MLPs' projections have biases.
    pub mlp_bias: bool,
    /// What embeddings are multiplied by.
    pub embedding_multiplier: f64,
    /// What `q · k` is multiplied by.
    pub attention_multiplier: f64,
    /// What is added to the residual stream is multiplied by it.
    pub residual_multiplier: f64,
    /// What logits are divided by.
    pub logits_scaling: f64,
}

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
    (Site::Q, "model.layers.{l}.self_attn.q_proj"),
    (Site::K, "model.layers.{l}.self_attn.k_proj"),
    (Site::V, "model.layers.{l}.self_attn.v_proj"),
    (Site::Ln2Normalized, "model.layers.{l}.post_attention_layernorm"),
    (Site::MlpPre, "model.layers.{l}.mlp.gate_proj"),
    (Site::ResidPost, "model.layers.{l}"),
    (Site::LnFinalNormalized, "model.norm"),
];

impl Family for Config {
    fn read(fields: &Fields<'_>) -> Result<Self> {
        let factor = |key| Ok::<_, crate::Error>(fields.positive(key)?.unwrap_or(1.0));
        Ok(Self {
            trunk: Trunk::read(fields, &Defaults::LLAMA)?,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(11_008),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            embedding_multiplier: factor("embedding_multiplier")?,
            attention_multiplier: factor("attention_multiplier")?,
            residual_multiplier: factor("residual_multiplier")?,
            logits_scaling: factor("logits_scaling")?,
        })
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("granite", MODULES, |_| LayerInfo {
            scale: self.attention_multiplier,
            ..self.trunk.layer(dense(self.intermediate_size))
        })
    }

    fn details(&self) -> Details {
        self.trunk.details()
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let trunk = &self.trunk;
        let rotary = trunk.rotary(weights)?;
        let multiplier = Some(1.0 / self.logits_scaling);
        let scales = Scales {
            embedding: Some(self.embedding_multiplier),
            logits: Logits { multiplier, ..Logits::default() },
            ..Scales::default()
        };
        trunk.decoder(weights, &scales, |layer| {
            let form = AttentionForm {
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                ..AttentionForm::plain(&rotary)
            };
            let attention = trunk.attention(weights, layer, form)?;
            let mlp = trunk.mlp(weights, layer, self.intermediate_size, self.mlp_bias)?;
            let mut block = trunk.pre_norm_block(weights, layer, attention, mlp)?;
            for branch in [&mut block.first, &mut block.second] {
                branch.multiplier = Some(self.residual_multiplier);
            }
            Ok(block)
        })
    }
}
