//! What llama-like decoders have in common: sizes, rotary grouped-query attention,
//! gated MLPs, a final norm and an unembedding, under the same names.
//!
//! A family reads the sizes with its own defaults, and puts its layers together
//! from the parts that are made here; what is particular to it stays in its file.

use std::sync::Arc;

use hooks::{LayerInfo, MlpInfo, ModelInfo, Site};
use kernels::activation::ActivationFunction;
use serde_json::Value;

use super::{Details, activation, divides};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::config::{GgufFields, Rope, RopeDefaults, RopeSizes};
use crate::layers::{
    Attention, Block, Branch, Decoder, Embedding, FeedForward, Logits, Mlp, MlpForm, Norm,
    Projections, QueryKeyNorm, Residual, Rotary, Table,
};
use crate::weights::{Part, UnitNorms, Weights};

/// What a configuration class has where a file is silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// `None`: as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// `None`: the width of the residual stream over the query heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) tie_word_embeddings: bool,
    /// The key of the activation function, and what it names.
    pub(super) activation: (&'static str, ActivationFunction),
    pub(super) rope: RopeDefaults,
}

impl Defaults {
    /// Those of Llama, from which others differ.
    pub(super) const LLAMA: Self = Self {
        vocab_size: 32_000,
        hidden_size: 4096,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        activation: ("hidden_act", ActivationFunction::Silu),
        rope: RopeDefaults::USUAL,
    };
}

/// The sizes of a llama-like decoder, in Hugging Face's spelling.
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
    /// Rotary position embedding; of models with several, that of layers without a window.
    pub rope: Rope,
    /// Whether the unembedding is the embedding.
    pub tie_word_embeddings: bool,
    /// Activation function of the MLPs or experts.
    pub hidden_act: ActivationFunction,
}

impl Trunk {
    pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Self> {
        let inner = |sizes| Rope::read(fields, &defaults.rope, sizes);
        Self::read_with(fields, defaults, inner)
    }

    /// Reads the sizes, and the rotary embedding by a rule of the family's own.
    pub(super) fn read_with(
        fields: &Fields<'_>,
        defaults: &Defaults,
        rope: impl FnOnce(RopeSizes) -> Result<Rope>,
    ) -> Result<Self> {
        let size = |key, max, default: usize| -> Result<usize> {
            Ok(fields.size(key, max)?.unwrap_or(default))
        };
        let hidden_size = size("hidden_size", bound::WIDTH, defaults.hidden_size)?;
        let num_attention_heads =
            size("num_attention_heads", bound::COUNT, defaults.num_attention_heads)?;
        let num_key_value_heads = fields
            .size("num_key_value_heads", bound::COUNT)?
            .or(defaults.num_key_value_heads.filter(|_| !fields.is_null("num_key_value_heads")))
            .unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let found = Value::from(num_key_value_heads);
            let expected = format!("a divisor of num_attention_heads, {num_attention_heads}");
            return Err(fields.wrong("num_key_value_heads", &found, expected));
        }
        let head_dim = match fields.size("head_dim", bound::WIDTH)?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => divides(fields, "num_attention_heads", num_attention_heads, hidden_size)?,
        };
        if !head_dim.is_multiple_of(2) {
            let found = Value::from(head_dim);
            return Err(fields.wrong("head_dim", &found, "an even number, for rotary pairs"));
        }
        let max_position_embeddings =
            size("max_position_embeddings", bound::CONTEXT, defaults.max_position_embeddings)?;
        let (key, default) = defaults.activation;
        Ok(Self {
            vocab_size: size("vocab_size", bound::VOCABULARY, defaults.vocab_size)?,
            hidden_size,
            num_hidden_layers: size("num_hidden_layers", bound::COUNT, defaults.num_hidden_layers)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            rope: rope(RopeSizes { head_dim, n_ctx: max_position_embeddings })?,
            tie_word_embeddings: fields
                .flag("tie_word_embeddings")?
                .unwrap_or(defaults.tie_word_embeddings),
            hidden_act: activation(fields, key, default)?,
        })
    }

    /// Reads the sizes from a GGUF file's metadata.
    pub(super) fn from_gguf(file: &GgufFields<'_>, defaults: &Defaults) -> Result<Self> {
        let hidden_size = file.size("embedding_length", bound::WIDTH)?;
        let num_attention_heads = file.layer_size("attention.head_count", bound::COUNT)?;
        const KV_HEADS: &str = "attention.head_count_kv";
        let num_key_value_heads = match file.has(KV_HEADS) {
            true => file.layer_size(KV_HEADS, bound::COUNT)?,
            false => num_attention_heads,
        };
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of attention.head_count, {num_attention_heads}");
            return Err(file.wrong(KV_HEADS, num_key_value_heads, expected));
        }
        let quotient = hidden_size / num_attention_heads;
        let head_dim = file.size_or("attention.key_length", bound::WIDTH, quotient)?;
        if head_dim < 2 || !head_dim.is_multiple_of(2) {
            let expected = "an even number of at least 2, for rotary pairs".to_owned();
            return Err(file.wrong("attention.key_length", head_dim, expected));
        }
        let width = file.size_or("attention.value_length", bound::WIDTH, head_dim)?;
        if width != head_dim {
            let expected = format!("the width of a head, {head_dim}");
            return Err(file.wrong("attention.value_length", width, expected));
        }
        let max_position_embeddings = file.size("context_length", bound::CONTEXT)?;
        let sizes = RopeSizes { head_dim, n_ctx: max_position_embeddings };
        Ok(Self {
            vocab_size: file.vocabulary()?,
            hidden_size,
            num_hidden_layers: file.size("block_count", bound::COUNT)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: file.positive("attention.layer_norm_rms_epsilon")?,
            rope: Rope::from_gguf(file, &defaults.rope, sizes)?,
            tie_word_embeddings: !file.has_tensor("output.weight"),
            hidden_act: defaults.activation.1,
        })
    }

    /// A layer with dense MLPs of this width, without a window, as observers know it.
    pub(super) fn layer(&self, mlp: MlpInfo) -> LayerInfo {
        LayerInfo {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            d_head: self.head_dim,
            window: None,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            soft_cap: None,
            mlp,
            parallel_residual: false,
            pre_norms: true,
            rotary: true,
        }
    }

    /// Sizes and layers, as observers know them.
    pub(super) fn info(
        &self,
        family: &str,
        modules: &'static [(Site, &'static str)],
        layer: impl Fn(usize) -> LayerInfo,
    ) -> ModelInfo {
        ModelInfo {
            family: family.to_owned(),
            d_model: self.hidden_size,
            d_vocab: self.vocab_size,
            n_ctx: self.max_position_embeddings,
            has_pos_embed: false,
            frequency_switch: self.rope.switch(),
            layers: (0..self.num_hidden_layers).map(layer).collect(),
            modules,
        }
    }

    /// What beside the sizes tells models apart, as far as the trunk knows.
    pub(super) fn details(&self) -> Details {
        Details {
            tied_embeddings: self.tie_word_embeddings,
            rope: Some(self.rope.clone()),
            ..Details::default()
        }
    }

    /// The decoder with these layers.
    pub(super) fn decoder(
        &self,
        weights: &dyn Weights,
        scales: &Scales,
        block: impl Fn(usize) -> Result<Block>,
    ) -> Result<Decoder> {
        let table = Part::new("model.embed_tokens".to_owned(), self.vocab_size);
        let (table, unembedding) =
            embedding(weights, table, "lm_head", self.hidden_size, self.tie_word_embeddings)?;
        Ok(Decoder {
            embedding: Embedding { table, multiplier: scales.embedding, positions: None },
            blocks: (0..self.num_hidden_layers).map(block).collect::<Result<_>>()?,
            ln_final: self.norm(weights, "model.norm", scales.norms)?,
            unembedding,
            logits: scales.logits,
        })
    }

    /// A layer with a norm before attention and one before the MLP.
    pub(super) fn pre_norm_block(
        &self,
        weights: &dyn Weights,
        layer: usize,
        attention: Attention,
        feed_forward: FeedForward,
    ) -> Result<Block> {
        let norm = |name: &str| self.norm(weights, &module(layer, name), NormWeights::Whole);
        Ok(Block {
            first: Branch::pre_norm(norm("input_layernorm")?),
            attention,
            second: Branch::pre_norm(norm("post_attention_layernorm")?),
            feed_forward,
            residual: Residual::Serial,
        })
    }

    /// A norm over the residual stream.
    pub(super) fn norm(
        &self,
        weights: &dyn Weights,
        module: &str,
        kind: NormWeights,
    ) -> Result<Norm> {
        self.norm_over(weights, module, self.hidden_size, kind)
    }

    /// A norm over so many elements.
    pub(super) fn norm_over(
        &self,
        weights: &dyn Weights,
        module: &str,
        width: usize,
        kind: NormWeights,
    ) -> Result<Norm> {
        let mut weight = weights.vector(&[(format!("{module}.weight"), width)])?;
        if kind == NormWeights::BesideOne && weights.unit_norms() == UnitNorms::Bare {
            weight = (weight + 1.0)?;
        }
        Ok(Norm::RootMeanSquare { weight, eps: self.rms_norm_eps })
    }

    /// Rotary embedding: the configuration's frequencies, over the divisors that
    /// the files may store.
    pub(super) fn rotary(&self, weights: &dyn Weights) -> Result<Arc<Rotary>> {
        let mut frequencies = self.rope.frequencies();
        if let Some(divisors) = weights.frequency_divisors(frequencies.usual.len())? {
            let divisors = divisors.to_vec1::<f32>()?;
            for (frequency, divisor) in frequencies.usual.iter_mut().zip(divisors) {
                *frequency /= f64::from(divisor);
            }
        }
        Ok(Arc::new(Rotary::new(frequencies)))
    }

    /// Attention with a projection each for queries, keys and values.
    pub(super) fn attention(
        &self,
        weights: &dyn Weights,
        layer: usize,
        form: AttentionForm,
    ) -> Result<Attention> {
        let (d_head, n_heads) = (self.head_dim, self.num_attention_heads);
        let part = |name: &str, heads: usize| {
            Part::new(module(layer, &format!("self_attn.{name}_proj")), heads * d_head)
        };
        let n_kv_heads = self.num_key_value_heads;
        let inputs = [part("q", n_heads), part("k", n_kv_heads), part("v", n_kv_heads)];
        let inputs = Projections::load(weights, &inputs, self.hidden_size, form.input_bias)?;
        self.attention_of(weights, layer, inputs, form)
    }

    /// Attention with these projections of queries, keys and values.
    pub(super) fn attention_of(
        &self,
        weights: &dyn Weights,
        layer: usize,
        inputs: Projections,
        form: AttentionForm,
    ) -> Result<Attention> {
        let (d_head, width) = (self.head_dim, self.num_attention_heads * self.head_dim);
        let output = [Part::new(module(layer, "self_attn.o_proj"), self.hidden_size)];
        Ok(Attention {
            inputs,
            output: Projections::load(weights, &output, width, form.output_bias)?,
            d_head,
            norm: form.norm,
            rotary: form.rotary,
        })
    }

    /// A gated MLP.
    pub(super) fn mlp(
        &self,
        weights: &dyn Weights,
        layer: usize,
        d_mlp: usize,
        bias: bool,
    ) -> Result<FeedForward> {
        let part = |name: &str, rows| Part::new(module(layer, &format!("mlp.{name}_proj")), rows);
        let d_model = self.hidden_size;
        let inputs = [part("gate", d_mlp), part("up", d_mlp)];
        Ok(FeedForward::Dense(Mlp {
            inputs: Projections::load(weights, &inputs, d_model, bias)?,
            output: Projections::load(weights, &[part("down", d_model)], d_mlp, bias)?,
            activation: self.hidden_act,
            form: MlpForm::Gated,
        }))
    }
}

/// Full name of a module of a layer.
pub(super) fn module(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

/// The embedding and the unembedding, which may be the same matrix.
pub(super) fn embedding(
    weights: &dyn Weights,
    table: Part,
    head: &str,
    d_model: usize,
    tied: bool,
) -> Result<(Table, Projections)> {
    if tied {
        let unembedding = Projections::load(weights, &[table], d_model, false)?;
        return Ok((Table::Tied, unembedding));
    }
    let head = Part::new(head.to_owned(), table.rows);
    let unembedding = Projections::load(weights, &[head], d_model, false)?;
    let table = Projections::load(weights, &[table], d_model, false)?;
    Ok((Table::Own(table), unembedding))
}

/// What a norm's stored weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum NormWeights {
    /// What the normalised values are multiplied by.
    #[default]
    Whole,
    /// `w`, where they are multiplied by `1 + w`.
    BesideOne,
}

/// Factors and caps of a decoder outside of its layers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scales {
    /// What token embeddings are multiplied by.
    pub(super) embedding: Option<f64>,
    pub(super) logits: Logits,
    pub(super) norms: NormWeights,
}

/// What families vary in attention, beside what [`LayerInfo`] says of it.
#[derive(Debug)]
pub(super) struct AttentionForm {
    /// Whether queries, keys and values have biases.
    pub(super) input_bias: bool,
    /// Whether the output has one.
    pub(super) output_bias: bool,
    pub(super) norm: QueryKeyNorm,
    pub(super) rotary: Option<Arc<Rotary>>,
}

impl AttentionForm {
    /// Rotary positions, and nothing else beside the projections.
    pub(super) fn plain(rotary: &Arc<Rotary>) -> Self {
        Self {
            input_bias: false,
            output_bias: false,
            norm: QueryKeyNorm::None,
            rotary: Some(rotary.clone()),
        }
    }
}
