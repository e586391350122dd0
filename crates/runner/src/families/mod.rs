//! Families: how configurations and weight names map onto the shared layers.
//!
//! One file per family. What llama-like decoders have in common (token
//! embeddings, pre-norm layers with rotary grouped-query attention, a final
//! norm and an unembedding) is [`Trunk`]; a family adds the second half of its
//! layers and its defaults.

pub mod llama;
pub mod mixtral;

use std::sync::Arc;

use hooks::{LayerInfo, MlpInfo, ModelInfo};
use kernels::activation::ActivationFunction;
use kernels::attention::AttentionOptions;
use serde_json::Value;

use crate::config::Rope;
use crate::config::fields::{Fields, bound};
use crate::layers::{Attention, Block, Decoder, Embedding, FeedForward, Norm, Projections, Rotary};
use crate::weights::{Part, Weights};
use crate::{Error, Result};

/// Defaults that differ between families.
struct Defaults {
    n_kv_heads: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
}

/// What llama-like decoders have in common, in Hugging Face's spelling.
#[derive(Clone, Debug, PartialEq)]
pub struct Trunk {
    /// Vocabulary entries.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the unembedding is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Keys that a query sees, itself included; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Activation function of the MLPs or experts.
    pub hidden_act: ActivationFunction,
}

impl Trunk {
    fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Self> {
        let size = |key, max, default: usize| -> Result<usize> {
            Ok(fields.size(key, max)?.unwrap_or(default))
        };
        let hidden_size = size("hidden_size", bound::WIDTH, 4096)?;
        let num_attention_heads = size("num_attention_heads", bound::COUNT, 32)?;
        let num_key_value_heads = fields
            .size("num_key_value_heads", bound::COUNT)?
            .or(defaults.n_kv_heads.filter(|_| !fields.is_null("num_key_value_heads")))
            .unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let found = Value::from(num_key_value_heads);
            let expected = format!("a divisor of num_attention_heads, {num_attention_heads}");
            return Err(fields.wrong("num_key_value_heads", &found, expected));
        }
        let head_dim = match fields.size("head_dim", bound::WIDTH)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => {
                hidden_size / num_attention_heads
            }
            None => {
                let found = Value::from(hidden_size);
                let expected = format!("a multiple of num_attention_heads, {num_attention_heads}");
                return Err(fields.wrong("hidden_size", &found, expected));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let found = Value::from(head_dim);
            return Err(fields.wrong("head_dim", &found, "an even number, for rotary pairs"));
        }
        let max_position_embeddings =
            size("max_position_embeddings", bound::CONTEXT, defaults.max_position_embeddings)?;
        Ok(Self {
            vocab_size: size("vocab_size", bound::VOCABULARY, 32_000)?,
            hidden_size,
            num_hidden_layers: size("num_hidden_layers", bound::COUNT, 32)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            rope: Rope::read(fields, defaults.rope_theta, max_position_embeddings)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: false,
            sliding_window: None,
            hidden_act: activation(fields)?,
        })
    }

    /// Sizes and layers, as observers know them.
    fn info(&self, family: &str, mlp: MlpInfo) -> ModelInfo {
        let layer = LayerInfo {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            d_head: self.head_dim,
            window: self.sliding_window,
            mlp,
            parallel_residual: false,
        };
        ModelInfo {
            family: family.to_owned(),
            d_model: self.hidden_size,
            d_vocab: self.vocab_size,
            n_ctx: self.max_position_embeddings,
            has_pos_embed: false,
            layers: vec![layer; self.num_hidden_layers],
        }
    }

    /// The decoder, with `feed_forward` for the second half of each layer.
    fn decoder(
        &self,
        weights: &dyn Weights,
        feed_forward: impl Fn(usize) -> Result<FeedForward>,
    ) -> Result<Decoder> {
        let rotary = Arc::new(self.rotary(weights)?);
        let d_model = self.hidden_size;
        let norm = |module: String| {
            let weight = weights.vector(&[(format!("{module}.weight"), d_model)])?;
            Ok::<_, Error>(Norm::new(weight, self.rms_norm_eps))
        };
        let table = Part::new("model.embed_tokens".to_owned(), self.vocab_size);
        let (embedding, unembedding) = if self.tie_word_embeddings {
            let unembedding = Projections::load(weights, &[table], d_model, false)?;
            (Embedding::Tied, unembedding)
        } else {
            let table = Projections::load(weights, &[table], d_model, false)?;
            let head = Part::new("lm_head".to_owned(), self.vocab_size);
            let unembedding = Projections::load(weights, &[head], d_model, false)?;
            (Embedding::Table(table), unembedding)
        };
        let mut blocks = Vec::with_capacity(self.num_hidden_layers);
        for layer in 0..self.num_hidden_layers {
            let module = |name: &str| format!("model.layers.{layer}.{name}");
            blocks.push(Block {
                ln1: norm(module("input_layernorm"))?,
                attention: self.attention(weights, layer, rotary.clone())?,
                ln2: norm(module("post_attention_layernorm"))?,
                feed_forward: feed_forward(layer)?,
            });
        }
        Ok(Decoder { embedding, blocks, ln_final: norm("model.norm".to_owned())?, unembedding })
    }

    /// Rotary embedding: the configuration's frequencies, over the divisors that
    /// the files may store.
    fn rotary(&self, weights: &dyn Weights) -> Result<Rotary> {
        let mut frequencies = self.rope.frequencies(self.head_dim);
        if let Some(divisors) = weights.frequency_divisors(frequencies.len())? {
            for (frequency, divisor) in frequencies.iter_mut().zip(divisors.to_vec1::<f32>()?) {
                *frequency /= f64::from(divisor);
            }
        }
        Ok(Rotary::new(frequencies))
    }

    fn attention(
        &self,
        weights: &dyn Weights,
        layer: usize,
        rotary: Arc<Rotary>,
    ) -> Result<Attention> {
        let (d_head, n_heads) = (self.head_dim, self.num_attention_heads);
        let part = |name: &str, heads: usize| {
            Part::new(format!("model.layers.{layer}.self_attn.{name}_proj"), heads * d_head)
        };
        let n_kv_heads = self.num_key_value_heads;
        let inputs = [part("q", n_heads), part("k", n_kv_heads), part("v", n_kv_heads)];
        let output = Part::new(format!("model.layers.{layer}.self_attn.o_proj"), self.hidden_size);
        let bias = self.attention_bias;
        Ok(Attention {
            inputs: Projections::load(weights, &inputs, self.hidden_size, bias)?,
            output: Projections::load(weights, &[output], n_heads * d_head, bias)?,
            d_head,
            rotary,
            options: AttentionOptions {
                scale: 1.0 / (d_head as f64).sqrt(),
                window: self.sliding_window,
                soft_cap: None,
            },
        })
    }
}

fn activation(fields: &Fields<'_>) -> Result<ActivationFunction> {
    match fields.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(ActivationFunction::Silu),
        "gelu" => Ok(ActivationFunction::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(ActivationFunction::GeluTanh),
        "relu" => Ok(ActivationFunction::Relu),
        other => Err(Error::Unsupported {
            path: fields.path().to_owned(),
            what: "hidden_act",
            found: other.chars().take(80).collect(),
            supported: "silu, gelu, gelu_new, gelu_pytorch_tanh and relu",
        }),
    }
}
