//! GPT-NeoX: layer norms, plain MLPs, a part of each head rotated, and attention
//! and MLP reading the same residual stream, unless told otherwise.

use std::sync::Arc;

use hooks::{LayerInfo, ModelInfo, Site};
use kernels::activation::ActivationFunction;

use super::trunk::embedding;
use super::{Details, Family, activation, dense, divides};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::config::{Partial, Rope, RopeDefaults, RopeSizes};
use crate::layers::{
    Attention, Block, Branch, Decoder, Embedding, FeedForward, Logits, Mlp, MlpForm, Norm,
    Projections, QueryKeyNorm, Residual, Rotary,
};
use crate::weights::{Part, RowOrder, Weights};

/// The configuration of a GPT-NeoX.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Vocabulary entries.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Activation function of the MLPs.
    pub hidden_act: ActivationFunction,
    /// ε of the norms.
    pub layer_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether attention and MLP read the same residual stream.
    pub use_parallel_residual: bool,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Whether the unembedding is the embedding.
    pub tie_word_embeddings: bool,
}

const ROPE: RopeDefaults = RopeDefaults {
    theta_key: "rotary_emb_base",
    partial: Partial::Share { key: "rotary_pct", default: 0.25 },
    ..RopeDefaults::USUAL
};

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "gpt_neox.embed_in"),
    (Site::Ln1Normalized, "gpt_neox.layers.{l}.input_layernorm"),
    (Site::AttnOut, "gpt_neox.layers.{l}.attention.dense"),
    (Site::AttnOut, "gpt_neox.layers.{l}.attention"),
    (Site::Ln2Normalized, "gpt_neox.layers.{l}.post_attention_layernorm"),
    (Site::MlpPre, "gpt_neox.layers.{l}.mlp.dense_h_to_4h"),
    (Site::MlpOut, "gpt_neox.layers.{l}.mlp.dense_4h_to_h"),
    (Site::MlpOut, "gpt_neox.layers.{l}.mlp"),
    (Site::ResidPost, "gpt_neox.layers.{l}"),
    (Site::LnFinalNormalized, "gpt_neox.final_layer_norm"),
    (Site::Logits, "embed_out"),
    (Site::Logits, "lm_head"),
];

impl Family for Config {
    fn read(fields: &Fields<'_>) -> Result<Self> {
        let size = |key, max, default: usize| -> Result<usize> {
            Ok(fields.size(key, max)?.unwrap_or(default))
        };
        let hidden_size = size("hidden_size", bound::WIDTH, 6144)?;
        let num_attention_heads = size("num_attention_heads", bound::COUNT, 64)?;
        let head_dim = divides(fields, "num_attention_heads", num_attention_heads, hidden_size)?;
        let n_ctx = size("max_position_embeddings", bound::CONTEXT, 2048)?;
        let flag = |key, default| Ok::<_, crate::Error>(fields.flag(key)?.unwrap_or(default));
        Ok(Self {
            vocab_size: size("vocab_size", bound::VOCABULARY, 50_432)?,
            hidden_size,
            num_hidden_layers: size("num_hidden_layers", bound::COUNT, 44)?,
            num_attention_heads,
            intermediate_size: size("intermediate_size", bound::WIDTH, 24_576)?,
            max_position_embeddings: n_ctx,
            hidden_act: activation(fields, "hidden_act", ActivationFunction::Gelu)?,
            layer_norm_eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-5),
            rope: Rope::read(fields, &ROPE, RopeSizes { head_dim, n_ctx })?,
            use_parallel_residual: flag("use_parallel_residual", true)?,
            attention_bias: flag("attention_bias", true)?,
            tie_word_embeddings: flag("tie_word_embeddings", false)?,
        })
    }

    fn info(&self) -> ModelInfo {
        let d_head = self.hidden_size / self.num_attention_heads;
        let layer = LayerInfo {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_attention_heads,
            d_head,
            window: None,
            scale: 1.0 / (d_head as f64).sqrt(),
            soft_cap: None,
            mlp: dense(self.intermediate_size),
            parallel_residual: self.use_parallel_residual,
            pre_norms: true,
            rotary: true,
        };
        ModelInfo {
            family: "gpt_neox".to_owned(),
            d_model: self.hidden_size,
            d_vocab: self.vocab_size,
            n_ctx: self.max_position_embeddings,
            has_pos_embed: false,
            frequency_switch: self.rope.switch(),
            layers: vec![layer; self.num_hidden_layers],
            modules: MODULES,
        }
    }

    fn details(&self) -> Details {
        Details {
            tied_embeddings: self.tie_word_embeddings,
            rope: Some(self.rope.clone()),
            ..Details::default()
        }
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let (d_model, d_mlp) = (self.hidden_size, self.intermediate_size);
        let d_head = d_model / self.num_attention_heads;
        let rotary = Arc::new(Rotary::new(self.rope.frequencies()));
        let norm = |module: String| {
            let vector = |kind| weights.vector(&[(format!("{module}.{kind}"), d_model)]);
            let eps = self.layer_norm_eps;
            Ok::<_, crate::Error>(Norm::Layer {
                weight: vector("weight")?,
                bias: vector("bias")?,
                eps,
            })
        };
        let block = |layer: usize| {
            let module = |name: &str| format!("gpt_neox.layers.{layer}.{name}");
            let projection = |name: &str, rows, columns, bias| {
                Projections::load(weights, &[Part::new(module(name), rows)], columns, bias)
            };
            let qkv = Part::new(module("attention.query_key_value"), 3 * d_model);
            let qkv = Part { order: RowOrder::HeadByHead { d_head }, ..qkv };
            let bias = self.attention_bias;
            Ok(Block {
                first: Branch::pre_norm(norm(module("input_layernorm"))?),
                attention: Attention {
                    inputs: Projections::load_fused(
                        weights,
                        &qkv,
                        vec![d_model; 3],
                        d_model,
                        bias,
                    )?,
                    output: projection("attention.dense", d_model, d_model, bias)?,
                    d_head,
                    norm: QueryKeyNorm::None,
                    rotary: Some(rotary.clone()),
                },
                second: Branch::pre_norm(norm(module("post_attention_layernorm"))?),
                feed_forward: FeedForward::Dense(Mlp {
                    inputs: projection("mlp.dense_h_to_4h", d_mlp, d_model, true)?,
                    output: projection("mlp.dense_4h_to_h", d_model, d_mlp, true)?,
                    activation: self.hidden_act,
                    form: MlpForm::Plain,
                }),
                residual: match self.use_parallel_residual {
                    true => Residual::Parallel,
                    false => Residual::Serial,
                },
            })
        };
        let tokens = Part::new("gpt_neox.embed_in".to_owned(), self.vocab_size);
        let head = if weights.has("lm_head.weight") { "lm_head" } else { "embed_out" };
        let (table, unembedding) =
            embedding(weights, tokens, head, d_model, self.tie_word_embeddings)?;
        Ok(Decoder {
            embedding: Embedding { table, multiplier: None, positions: None },
            blocks: (0..self.num_hidden_layers).map(block).collect::<Result<_>>()?,
            ln_final: norm("gpt_neox.final_layer_norm".to_owned())?,
            unembedding,
            logits: Logits::default(),
        })
    }
}
