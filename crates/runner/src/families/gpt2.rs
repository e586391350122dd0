//! GPT-2: learned positions, layer norms, plain MLPs, biases everywhere, and
//! matrices stored as their transposes.

use hooks::{LayerInfo, ModelInfo, Site};
use kernels::activation::ActivationFunction;

use super::trunk::embedding;
use super::{Details, Family, activation, dense, divides};
use crate::Result;
use crate::config::GgufFields;
use crate::config::fields::{Fields, bound};
use crate::layers::{
    Attention, Block, Branch, Decoder, Embedding, FeedForward, Logits, Mlp, MlpForm, Norm,
    Projections, QueryKeyNorm, Residual,
};
use crate::weights::{GgufLayout, Part, RotaryRows, RowOrder, Weights};

/// The configuration of a GPT-2.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Vocabulary entries.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Layers.
    pub n_layer: usize,
    /// Heads.
    pub n_head: usize,
    /// Width of the MLPs.
    pub n_inner: usize,
    /// Activation function of the MLPs.
    pub activation_function: ActivationFunction,
    /// ε of the norms.
    pub layer_norm_epsilon: f64,
    /// Whether scores are divided by `√d_head`.
    pub scale_attn_weights: bool,
    /// Whether the scores of layer `l` are divided by `l + 1`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the unembedding is the embedding.
    pub tie_word_embeddings: bool,
}

const GGUF_LAYOUT: GgufLayout = GgufLayout {
    model: &[
        ("transformer.wte", "token_embd"),
        ("transformer.wpe", "position_embd"),
        ("transformer.ln_f", "output_norm"),
        ("lm_head", "output"),
    ],
    layers: "transformer.h.",
    layer: &[
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
    ],
    experts: &[],
    rotary_rows: RotaryRows::Halves,
};

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "transformer.wte"),
    (Site::PosEmbed, "transformer.wpe"),
    (Site::Ln1Normalized, "transformer.h.{l}.ln_1"),
    (Site::AttnOut, "transformer.h.{l}.attn.c_proj"),
    (Site::AttnOut, "transformer.h.{l}.attn"),
    (Site::Ln2Normalized, "transformer.h.{l}.ln_2"),
    (Site::MlpPre, "transformer.h.{l}.mlp.c_fc"),
    (Site::MlpOut, "transformer.h.{l}.mlp.c_proj"),
    (Site::MlpOut, "transformer.h.{l}.mlp"),
    (Site::ResidPost, "transformer.h.{l}"),
    (Site::LnFinalNormalized, "transformer.ln_f"),
    (Site::Logits, "lm_head"),
];

impl Family for Config {
    const GGUF: Option<&str> = Some("gpt2");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        // The class knows these sizes by two names each.
        let size = |key, other, max, default: usize| -> Result<usize> {
            Ok(fields.size(key, max)?.or(fields.size(other, max)?).unwrap_or(default))
        };
        let n_embd = size("n_embd", "hidden_size", bound::WIDTH, 768)?;
        let n_head = size("n_head", "num_attention_heads", bound::COUNT, 12)?;
        divides(fields, "n_head", n_head, n_embd)?;
        let flag = |key, default| Ok::<_, crate::Error>(fields.flag(key)?.unwrap_or(default));
        Ok(Self {
            vocab_size: fields.size("vocab_size", bound::VOCABULARY)?.unwrap_or(50_257),
            n_positions: size("n_positions", "max_position_embeddings", bound::CONTEXT, 1024)?,
            n_embd,
            n_layer: size("n_layer", "num_hidden_layers", bound::COUNT, 12)?,
            n_head,
            n_inner: fields.size("n_inner", bound::WIDTH)?.unwrap_or(4 * n_embd),
            activation_function: activation(
                fields,
                "activation_function",
                ActivationFunction::GeluTanh,
            )?,
            layer_norm_epsilon: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
            scale_attn_weights: flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: flag("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: flag("tie_word_embeddings", true)?,
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        let n_embd = file.size("embedding_length", bound::WIDTH)?;
        let n_head = file.layer_size("attention.head_count", bound::COUNT)?;
        if !n_embd.is_multiple_of(n_head) {
            let expected = format!("a multiple of attention.head_count, {n_head}");
            return Err(file.wrong("embedding_length", n_embd, expected));
        }
        Ok(Some(Self {
            vocab_size: file.vocabulary()?,
            n_positions: file.size("context_length", bound::CONTEXT)?,
            n_embd,
            n_layer: file.size("block_count", bound::COUNT)?,
            n_head,
            n_inner: file.layer_size("feed_forward_length", bound::WIDTH)?,
            activation_function: ActivationFunction::GeluTanh,
            layer_norm_epsilon: file.positive("attention.layer_norm_epsilon")?,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: !file.has_tensor("output.weight"),
        }))
    }

    fn gguf_layout(&self) -> &'static GgufLayout {
        &GGUF_LAYOUT
    }

    fn info(&self) -> ModelInfo {
        let d_head = self.n_embd / self.n_head;
        let scale = |layer: usize| {
            let scale = if self.scale_attn_weights { 1.0 / (d_head as f64).sqrt() } else { 1.0 };
            if self.scale_attn_by_inverse_layer_idx { scale / (layer + 1) as f64 } else { scale }
        };
        let layer = |layer| LayerInfo {
            n_heads: self.n_head,
            n_kv_heads: self.n_head,
            d_head,
            window: None,
            scale: scale(layer),
            soft_cap: None,
            mlp: dense(self.n_inner),
            parallel_residual: false,
            pre_norms: true,
            rotary: false,
        };
        ModelInfo {
            family: "gpt2".to_owned(),
            d_model: self.n_embd,
            d_vocab: self.vocab_size,
            n_ctx: self.n_positions,
            has_pos_embed: true,
            frequency_switch: None,
            layers: (0..self.n_layer).map(layer).collect(),
            modules: MODULES,
        }
    }

    fn details(&self) -> Details {
        Details { tied_embeddings: self.tie_word_embeddings, ..Details::default() }
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let d_model = self.n_embd;
        let module = |name: &str| format!("transformer.{name}");
        let norm = |name: &str| {
            let vector = |kind| weights.vector(&[(format!("{}.{kind}", module(name)), d_model)]);
            let eps = self.layer_norm_epsilon;
            Ok::<_, crate::Error>(Norm::Layer {
                weight: vector("weight")?,
                bias: vector("bias")?,
                eps,
            })
        };
        let projections = |name: &str, widths: Vec<usize>, d_in| {
            let part = Part::new(module(name), widths.iter().sum());
            let part = Part { order: RowOrder::Transposed, ..part };
            Projections::load_fused(weights, &part, widths, d_in, true)
        };
        let block = |layer: usize| {
            let name = |name: &str| format!("h.{layer}.{name}");
            let d_head = d_model / self.n_head;
            Ok(Block {
                first: Branch::pre_norm(norm(&name("ln_1"))?),
                attention: Attention {
                    inputs: projections(&name("attn.c_attn"), vec![d_model; 3], d_model)?,
                    output: projections(&name("attn.c_proj"), vec![d_model], d_model)?,
                    d_head,
                    norm: QueryKeyNorm::None,
                    rotary: None,
                },
                second: Branch::pre_norm(norm(&name("ln_2"))?),
                feed_forward: FeedForward::Dense(Mlp {
                    inputs: projections(&name("mlp.c_fc"), vec![self.n_inner], d_model)?,
                    output: projections(&name("mlp.c_proj"), vec![d_model], self.n_inner)?,
                    activation: self.activation_function,
                    form: MlpForm::Plain,
                }),
                residual: Residual::Serial,
            })
        };
        let tokens = Part::new(module("wte"), self.vocab_size);
        let positions = Part::new(module("wpe"), self.n_positions);
        let (table, unembedding) =
            embedding(weights, tokens, "lm_head", d_model, self.tie_word_embeddings)?;
        let positions = Projections::load(weights, &[positions], d_model, false)?;
        Ok(Decoder {
            embedding: Embedding { table, multiplier: None, positions: Some(positions) },
            blocks: (0..self.n_layer).map(block).collect::<Result<_>>()?,
            ln_final: norm("ln_f")?,
            unembedding,
            logits: Logits::default(),
        })
    }
}
