//! Gemma: norms that multiply by `1 + w`, and embeddings scaled by `√d_model`.

use hooks::ModelInfo;
use kernels::activation::ActivationFunction;

use super::trunk::{AttentionForm, Defaults, NormWeights, Scales, module};
use super::{Details, Family, LLAMA_MODULES, Trunk, causal_only, dense};
use crate::Result;
use crate::config::GgufFields;
use crate::config::fields::{Fields, bound};
use crate::layers::{Block, Branch, Decoder, Residual};
use crate::weights::Weights;

/// The configuration of a Gemma.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
}

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 3072,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    activation: ("hidden_act", ActivationFunction::GeluTanh),
    ..Defaults::LLAMA
};

impl Family for Config {
    const GGUF: Option<&str> = Some("gemma");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        causal_only(fields)?;
        let mut trunk = Trunk::read(fields, &DEFAULTS)?;
        // The first releases say `gelu` where the model was trained with its approximation.
        if trunk.hidden_act == ActivationFunction::Gelu {
            trunk.hidden_act = ActivationFunction::GeluTanh;
        }
        Ok(Self {
            trunk,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(24_576),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        Ok(Some(Self {
            trunk: Trunk::from_gguf(file, &DEFAULTS)?,
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            attention_bias: file.has_tensor("blk.0.attn_q.bias"),
        }))
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("gemma", LLAMA_MODULES, |_| self.trunk.layer(dense(self.intermediate_size)))
    }

    fn details(&self) -> Details {
        self.trunk.details()
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let trunk = &self.trunk;
        let rotary = trunk.rotary(weights)?;
        trunk.decoder(weights, &scales(trunk), |layer| {
            let norm = |name| trunk.norm(weights, &module(layer, name), NormWeights::BesideOne);
            let form = AttentionForm {
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                ..AttentionForm::plain(&rotary)
            };
            Ok(Block {
                first: Branch::pre_norm(norm("input_layernorm")?),
                attention: trunk.attention(weights, layer, form)?,
                second: Branch::pre_norm(norm("post_attention_layernorm")?),
                feed_forward: trunk.mlp(weights, layer, self.intermediate_size, false)?,
                residual: Residual::Serial,
            })
        })
    }
}

/// What every Gemma does outside of its layers.
pub(super) fn scales(trunk: &Trunk) -> Scales {
    Scales {
        embedding: Some((trunk.hidden_size as f64).sqrt()),
        norms: NormWeights::BesideOne,
        ..Scales::default()
    }
}
