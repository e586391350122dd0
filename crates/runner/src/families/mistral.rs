//! Mistral: a Llama with a sliding window in every layer.

use hooks::{LayerInfo, ModelInfo};

use super::trunk::{AttentionForm, Defaults, Scales};
use super::{Details, Family, LLAMA_MODULES, Trunk, dense};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::layers::Decoder;
use crate::weights::Weights;

/// The configuration of a Mistral.
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
    num_key_value_heads: Some(8),
    max_position_embeddings: 4096 * 32,
    ..Defaults::LLAMA
};

impl Family for Config {
    fn read(fields: &Fields<'_>) -> Result<Self> {
        let default = if fields.is_null("sliding_window") { None } else { Some(4096) };
        Ok(Self {
            trunk: Trunk::read(fields, &DEFAULTS)?,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(14_336),
            sliding_window: fields.size("sliding_window", bound::CONTEXT)?.or(default),
        })
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("mistral", LLAMA_MODULES, |_| LayerInfo {
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
        trunk.decoder(weights, &Scales::default(), |layer| {
            let form = AttentionForm::plain(&rotary);
            let attention = trunk.attention(weights, layer, form)?;
            let mlp = trunk.mlp(weights, layer, self.intermediate_size, false)?;
            trunk.pre_norm_block(weights, layer, attention, mlp)
        })
    }
}
