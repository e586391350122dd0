//! Qwen 2: a Llama with biases on queries, keys and values; later layers may have
//! a sliding window.

use hooks::{LayerInfo, ModelInfo};

use super::trunk::{AttentionForm, Defaults, Scales};
use super::{Details, Family, LLAMA_MODULES, Sight, Trunk, dense, windows};
use crate::Result;
use crate::config::GgufFields;
use crate::config::fields::{Fields, bound};
use crate::layers::Decoder;
use crate::weights::Weights;

/// The configuration of a Qwen 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// For each layer, the keys that a query sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
}

/// Those of the configuration class, which Qwen 3 shares for the most part.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    ..Defaults::LLAMA
};

/// Default width of the MLPs.
pub(super) const INTERMEDIATE_SIZE: usize = 22_016;

/// Windows from `max_window_layers` on, if `use_sliding_window`.
pub(super) fn read_windows(fields: &Fields<'_>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let default = if fields.is_null("sliding_window") { None } else { Some(4096) };
    let window = fields.size("sliding_window", bound::CONTEXT)?.or(default);
    let window = if fields.flag("use_sliding_window")?.unwrap_or(false) { window } else { None };
    let first = fields.whole("max_window_layers", bound::COUNT)?.unwrap_or(28);
    windows(fields, n_layers, window, |layer| {
        if window.is_some() && layer >= first { Sight::Window } else { Sight::Full }
    })
}

impl Family for Config {
    const GGUF: Option<&str> = Some("qwen2");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        let trunk = Trunk::read(fields, &DEFAULTS)?;
        Ok(Self {
            intermediate_size: fields
                .size("intermediate_size", bound::WIDTH)?
                .unwrap_or(INTERMEDIATE_SIZE),
            windows: read_windows(fields, trunk.num_hidden_layers)?,
            trunk,
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        let trunk = Trunk::from_gguf(file, &DEFAULTS)?;
        Ok(Some(Self {
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            windows: vec![None; trunk.num_hidden_layers],
            trunk,
        }))
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("qwen2", LLAMA_MODULES, |layer| LayerInfo {
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
            let form = AttentionForm { input_bias: true, ..AttentionForm::plain(&rotary) };
            let attention = trunk.attention(weights, layer, form)?;
            let mlp = trunk.mlp(weights, layer, self.intermediate_size, false)?;
            trunk.pre_norm_block(weights, layer, attention, mlp)
        })
    }
}
