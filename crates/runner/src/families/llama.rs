//! Llama: dense gated MLPs.

use hooks::ModelInfo;

use super::trunk::{AttentionForm, Defaults, Scales};
use super::{Details, Family, LLAMA_LAYOUT, LLAMA_MODULES, Trunk, dense};
use crate::Result;
use crate::config::GgufFields;
use crate::config::fields::{Fields, bound};
use crate::layers::Decoder;
use crate::weights::{GgufLayout, RotaryRows, Weights};

/// The configuration of a Llama.
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
}

const GGUF_LAYOUT: GgufLayout = GgufLayout { rotary_rows: RotaryRows::Pairs, ..LLAMA_LAYOUT };

impl Family for Config {
    const GGUF: Option<&str> = Some("llama");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        Ok(Self {
            trunk: Trunk::read(fields, &Defaults::LLAMA)?,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(11_008),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        if file.experts()?.is_some() {
            return Ok(None);
        }
        Ok(Some(Self {
            trunk: Trunk::from_gguf(file, &Defaults::LLAMA)?,
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            attention_bias: file.has_tensor("blk.0.attn_q.bias"),
            mlp_bias: file.has_tensor("blk.0.ffn_gate.bias"),
        }))
    }

    fn gguf_layout(&self) -> &'static GgufLayout {
        &GGUF_LAYOUT
    }

    fn info(&self) -> ModelInfo {
        self.trunk.info("llama", LLAMA_MODULES, |_| self.trunk.layer(dense(self.intermediate_size)))
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
                ..AttentionForm::plain(&rotary)
            };
            let attention = trunk.attention(weights, layer, form)?;
            let mlp = trunk.mlp(weights, layer, self.intermediate_size, self.mlp_bias)?;
            trunk.pre_norm_block(weights, layer, attention, mlp)
        })
    }
}
