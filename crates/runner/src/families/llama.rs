//! Llama: dense gated MLPs.

use hooks::{MlpInfo, ModelInfo};
use kernels::activation::ActivationFunction;

use super::{Defaults, Trunk};
use crate::config::fields::{Fields, bound};
use crate::config::{Rope, RopeScaling};
use crate::gguf::Gguf;
use crate::layers::{Decoder, FeedForward, Mlp, Projections};
use crate::weights::{Part, Weights};
use crate::{Error, Result};

/// The configuration of a Llama.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Whether the MLPs' projections have biases.
    pub mlp_bias: bool,
}

impl Config {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self> {
        let defaults = Defaults {
            n_kv_heads: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
        };
        let mut trunk = Trunk::read(fields, &defaults)?;
        trunk.attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let intermediate_size = fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(11_008);
        Ok(Self { trunk, intermediate_size, mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false) })
    }

    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        if gguf.has("llama.expert_count") && gguf.count("llama.expert_count", 0..=bound::COUNT)? > 0
        {
            return Err(Error::Unsupported {
                path: gguf.path().to_owned(),
                what: "architecture in GGUF",
                found: "llama with experts".to_owned(),
                supported: "llama without experts; load a mixture of experts from safetensors",
            });
        }
        let size = |key: &str, max| gguf.count(&format!("llama.{key}"), 1..=max);
        let or = |key: &str, max, default: usize| {
            if gguf.has(&format!("llama.{key}")) { size(key, max) } else { Ok(default) }
        };
        let hidden_size = size("embedding_length", bound::WIDTH)?;
        let num_attention_heads = size("attention.head_count", bound::COUNT)?;
        let head_dim = or("attention.key_length", bound::WIDTH, hidden_size / num_attention_heads)?;
        let num_key_value_heads = or("attention.head_count_kv", bound::COUNT, num_attention_heads)?;
        let max_position_embeddings = size("context_length", bound::CONTEXT)?;
        let tensor_bias = |name: &str| gguf.tensor(name).is_some();
        let config = Self {
            trunk: Trunk {
                vocab_size: vocabulary(gguf)?,
                hidden_size,
                num_hidden_layers: size("block_count", bound::COUNT)?,
                num_attention_heads,
                num_key_value_heads,
                head_dim,
                max_position_embeddings,
                rms_norm_eps: gguf.positive("llama.attention.layer_norm_rms_epsilon")?,
                rope: rope(gguf)?,
                tie_word_embeddings: gguf.tensor("output.weight").is_none(),
                attention_bias: tensor_bias("blk.0.attn_q.bias"),
                sliding_window: None,
                hidden_act: ActivationFunction::Silu,
            },
            intermediate_size: size("feed_forward_length", bound::WIDTH)?,
            mlp_bias: tensor_bias("blk.0.ffn_gate.bias"),
        };
        config.check_gguf(gguf)?;
        Ok(config)
    }

    /// Relations between sizes that a GGUF file states separately.
    fn check_gguf(&self, gguf: &Gguf) -> Result<()> {
        let wrong = |key: &str, found: usize, expected: String| {
            Err(Error::Gguf {
                path: gguf.path().to_owned(),
                fault: crate::error::GgufFault::Key {
                    key: key.to_owned(),
                    found: found.to_string(),
                    expected,
                },
            })
        };
        let trunk = &self.trunk;
        if !trunk.num_attention_heads.is_multiple_of(trunk.num_key_value_heads) {
            let expected =
                format!("a divisor of llama.attention.head_count, {}", trunk.num_attention_heads);
            return wrong("llama.attention.head_count_kv", trunk.num_key_value_heads, expected);
        }
        if trunk.head_dim < 2 || !trunk.head_dim.is_multiple_of(2) {
            let expected = "an even number of at least 2, for rotary pairs".to_owned();
            return wrong("llama.attention.key_length", trunk.head_dim, expected);
        }
        for (key, expected) in [
            ("llama.attention.value_length", trunk.head_dim),
            ("llama.rope.dimension_count", trunk.head_dim),
        ] {
            if gguf.has(key) {
                let found = gguf.count(key, 1..=bound::WIDTH)?;
                if found != expected {
                    return wrong(key, found, format!("the width of a head, {expected}"));
                }
            }
        }
        Ok(())
    }

    /// Sizes and layers, as observers know them.
    pub fn info(&self) -> ModelInfo {
        self.trunk.info("llama", MlpInfo::Dense { d_mlp: self.intermediate_size })
    }

    pub(crate) fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        self.trunk.decoder(weights, |layer| {
            let part =
                |name: &str, rows| Part::new(format!("model.layers.{layer}.mlp.{name}_proj"), rows);
            let (d_model, d_mlp) = (self.trunk.hidden_size, self.intermediate_size);
            let inputs = [part("gate", d_mlp), part("up", d_mlp)];
            let output = [part("down", d_model)];
            Ok(FeedForward::Dense(Mlp {
                inputs: Projections::load(weights, &inputs, d_model, self.mlp_bias)?,
                output: Projections::load(weights, &output, d_mlp, self.mlp_bias)?,
                activation: self.trunk.hidden_act,
            }))
        })
    }
}

/// The vocabulary's size: the key, else the rows of the embedding.
fn vocabulary(gguf: &Gguf) -> Result<usize> {
    if gguf.has("llama.vocab_size") {
        return gguf.count("llama.vocab_size", 1..=bound::VOCABULARY);
    }
    match gguf.tensor("token_embd.weight").map(|tensor| tensor.shape.as_slice()) {
        Some(&[rows, _]) if rows <= bound::VOCABULARY => Ok(rows),
        _ => gguf.count("llama.vocab_size", 1..=bound::VOCABULARY),
    }
}

fn rope(gguf: &Gguf) -> Result<Rope> {
    let theta = if gguf.has("llama.rope.freq_base") {
        gguf.positive("llama.rope.freq_base")?
    } else {
        10_000.0
    };
    if !gguf.has("llama.rope.scaling.type") {
        return Ok(Rope { theta, scaling: RopeScaling::None });
    }
    let scaling = match gguf.text("llama.rope.scaling.type")? {
        "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: gguf.positive("llama.rope.scaling.factor")? },
        other => {
            return Err(Error::Unsupported {
                path: gguf.path().to_owned(),
                what: "llama.rope.scaling.type",
                found: other.chars().take(80).collect(),
                supported: "none and linear, and stored frequency factors",
            });
        }
    };
    Ok(Rope { theta, scaling })
}
