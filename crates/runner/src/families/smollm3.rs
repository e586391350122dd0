//! SmolLM 3: a Llama in which some layers have no rotary positions; those may have
//! a sliding window.

use hooks::{LayerInfo, ModelInfo};
use serde_json::Value;

use super::trunk::{AttentionForm, Defaults, Scales};
use super::{Details, Family, LLAMA_MODULES, Sight, Trunk, dense, windows};
use crate::Result;
use crate::config::RopeDefaults;
use crate::config::fields::{Fields, bound};
use crate::layers::Decoder;
use crate::weights::Weights;

/// The configuration of a SmolLM 3.
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
    /// For each layer, whether queries and keys are rotated.
    pub rotary: Vec<bool>,
    /// For each layer, the keys that a query sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
}

const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden_size: 2048,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    tie_word_embeddings: true,
    rope: RopeDefaults { theta: 2_000_000.0, ..RopeDefaults::USUAL },
    ..Defaults::LLAMA
};

/// Which layers are rotated: by the list, else all but every so many-th.
fn read_rotary(fields: &Fields<'_>, n_layers: usize) -> Result<Vec<bool>> {
    const KEY: &str = "no_rope_layers";
    let interval = fields.size("no_rope_layer_interval", bound::COUNT)?.unwrap_or(4);
    let Some(given) = fields.per_layer(KEY, n_layers)? else {
        return Ok((0..n_layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect());
    };
    let rotated = |(layer, entry): (usize, &Value)| match entry.as_u64() {
        Some(flag @ (0 | 1)) => Ok(flag == 1),
        _ => {
            let expected = "1 for a layer with rotary positions, 0 for one without";
            Err(fields.wrong(&format!("{KEY}[{layer}]"), entry, expected))
        }
    };
    given.iter().enumerate().map(rotated).collect()
}

impl Family for Config {
    fn read(fields: &Fields<'_>) -> Result<Self> {
        let trunk = Trunk::read(fields, &DEFAULTS)?;
        let rotary = read_rotary(fields, trunk.num_hidden_layers)?;
        let window = fields.size("sliding_window", bound::CONTEXT)?;
        let by_rule = fields.flag("use_sliding_window")?.unwrap_or(false) && window.is_some();
        let windows = windows(fields, trunk.num_hidden_layers, window, |layer| {
            if by_rule && !rotary[layer] { Sight::Window } else { Sight::Full }
        })?;
        Ok(Self {
            trunk,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(11_008),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            rotary,
            windows,
        })
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("smollm3", LLAMA_MODULES, |layer| LayerInfo {
            window: self.windows[layer],
            rotary: self.rotary[layer],
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
            let form = AttentionForm {
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                rotary: self.rotary[layer].then(|| rotary.clone()),
                ..AttentionForm::plain(&rotary)
            };
            let attention = trunk.attention(weights, layer, form)?;
            let mlp = trunk.mlp(weights, layer, self.intermediate_size, self.mlp_bias)?;
            trunk.pre_norm_block(weights, layer, attention, mlp)
        })
    }
}
