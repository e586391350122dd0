//! Gemma 3: Gemma 2 with norms over each head of queries and keys, and rotary
//! frequencies of their own in layers with a sliding window.

use std::sync::Arc;

use hooks::{LayerInfo, ModelInfo, Site};

use super::trunk::{AttentionForm, Defaults, NormWeights, Scales, module};
use super::{Details, Family, Sight, Trunk, causal_only, dense, gemma, gemma2, windows};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::config::{GgufFields, Rope, RopeDefaults, RopeScaling, RopeSizes};
use crate::layers::{Block, Decoder, Logits, QueryKeyNorm, Residual, Rotary};
use crate::weights::{GgufLayout, Weights};

/// The configuration of a Gemma 3.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Scores are divided by its square root.
    pub query_pre_attn_scalar: f64,
    /// For each layer, the keys that a query sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// Rotary position embedding of the layers with a window.
    pub local_rope: Rope,
    /// `c` of the logits' cap `c tanh(x / c)`. There is none on scores, whatever a file says.
    pub final_logit_softcapping: Option<f64>,
}

const LOCAL: RopeDefaults =
    RopeDefaults { theta_key: "rope_local_base_freq", ..RopeDefaults::USUAL };

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_208,
    max_position_embeddings: 131_072,
    rope: RopeDefaults { theta: 1_000_000.0, ..RopeDefaults::USUAL },
    ..gemma2::DEFAULTS
};

/// Every so many-th layer sees everything, where the files do not say.
const PATTERN: usize = 6;

/// The rule by which layers have windows.
fn sight(pattern: usize) -> impl Fn(usize) -> Sight {
    move |layer| if (layer + 1).is_multiple_of(pattern) { Sight::Full } else { Sight::Window }
}

/// The parameters of layers with and without a window: in newer files two objects of
/// one, in older ones `rope_scaling` for those without.
fn read_ropes(fields: &Fields<'_>, sizes: RopeSizes) -> Result<(Rope, Rope)> {
    let parameters = fields.object("rope_parameters", "rope_parameters.")?;
    let kind = |key, prefix| match &parameters {
        Some(parameters) => parameters.object(key, prefix),
        None => Ok(None),
    };
    let full = match fields.object("rope_scaling", "rope_scaling.")? {
        Some(scaling) => Some(scaling),
        None => kind("full_attention", "rope_parameters.full_attention.")?,
    };
    let sliding = kind("sliding_attention", "rope_parameters.sliding_attention.")?;
    Ok((
        Rope::read_from(fields, full, &DEFAULTS.rope, sizes)?,
        Rope::read_from(fields, sliding, &LOCAL, sizes)?,
    ))
}

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "model.embed_tokens"),
    (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
    (Site::Q, "model.layers.{l}.self_attn.q_norm"),
    (Site::K, "model.layers.{l}.self_attn.k_norm"),
    (Site::V, "model.layers.{l}.self_attn.v_proj"),
    (Site::AttnOut, "model.layers.{l}.post_attention_layernorm"),
    (Site::Ln2Normalized, "model.layers.{l}.pre_feedforward_layernorm"),
    (Site::MlpPre, "model.layers.{l}.mlp.gate_proj"),
    (Site::MlpOut, "model.layers.{l}.post_feedforward_layernorm"),
    (Site::ResidPost, "model.layers.{l}"),
    (Site::LnFinalNormalized, "model.norm"),
];

impl Family for Config {
    const GGUF: Option<&str> = Some("gemma3");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        causal_only(fields)?;
        let mut local = None;
        let trunk = Trunk::read_with(fields, &DEFAULTS, |sizes| {
            let (global_rope, local_rope) = read_ropes(fields, sizes)?;
            local = Some(local_rope);
            Ok(global_rope)
        })?;
        let pattern = fields.size("sliding_window_pattern", bound::COUNT)?.unwrap_or(PATTERN);
        let window = match fields.size("sliding_window", bound::CONTEXT)? {
            None if fields.is_null("sliding_window") => None,
            given => Some(given.unwrap_or(gemma2::WINDOW)),
        };
        Ok(Self {
            intermediate_size: fields
                .size("intermediate_size", bound::WIDTH)?
                .unwrap_or(gemma2::INTERMEDIATE_SIZE),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            query_pre_attn_scalar: fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
            windows: windows(fields, trunk.num_hidden_layers, window, sight(pattern))?,
            local_rope: local.unwrap_or_else(|| trunk.rope.clone()),
            final_logit_softcapping: fields.positive("final_logit_softcapping")?,
            trunk,
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        let trunk = Trunk::from_gguf(file, &DEFAULTS)?;
        let pattern = file.size_or("attention.sliding_window_pattern", bound::COUNT, PATTERN)?;
        let window = file.window()?.or(Some(gemma2::WINDOW));
        let is_local = |layer| sight(pattern)(layer) == Sight::Window;
        // The files do not say it. Of the released models only the largest, known by its
        // layers, has another scale than that of its heads.
        let scalar = match trunk.num_hidden_layers {
            62 => trunk.hidden_size / trunk.num_attention_heads,
            _ => trunk.head_dim,
        };
        const CAP: &str = "final_logit_softcapping";
        let cap = if file.has(CAP) { Some(file.positive(CAP)?) } else { None };
        Ok(Some(Self {
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            attention_bias: file.has_tensor("blk.0.attn_q.bias"),
            query_pre_attn_scalar: scalar as f64,
            windows: (0..trunk.num_hidden_layers).map(|l| window.filter(|_| is_local(l))).collect(),
            // The scaling of the file is that of layers without a window.
            local_rope: Rope {
                theta: file.positive_or("rope.freq_base_swa", LOCAL.theta)?,
                scaling: RopeScaling::None,
                ..trunk.rope.clone()
            },
            final_logit_softcapping: cap,
            trunk,
        }))
    }

    fn gguf_layout(&self) -> &'static GgufLayout {
        &gemma2::GGUF_LAYOUT
    }

    fn info(&self) -> ModelInfo {
        let info = self.trunk.info("gemma3_text", MODULES, |layer| LayerInfo {
            window: self.windows[layer],
            scale: 1.0 / self.query_pre_attn_scalar.sqrt(),
            ..self.trunk.layer(dense(self.intermediate_size))
        });
        let frequency_switch = info.frequency_switch.or(self.local_rope.switch());
        ModelInfo { frequency_switch, ..info }
    }

    fn details(&self) -> Details {
        Details {
            local_rope: Some(self.local_rope.clone()),
            logit_soft_cap: self.final_logit_softcapping,
            ..self.trunk.details()
        }
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let trunk = &self.trunk;
        let rotary = trunk.rotary(weights)?;
        let local = Arc::new(Rotary::new(self.local_rope.frequencies()));
        let logits = Logits { soft_cap: self.final_logit_softcapping, ..Logits::default() };
        let scales = Scales { logits, ..gemma::scales(trunk) };
        trunk.decoder(weights, &scales, |layer| {
            let norm = |name: &str| {
                let name = module(layer, &format!("self_attn.{name}_norm"));
                trunk.norm_over(weights, &name, trunk.head_dim, NormWeights::BesideOne)
            };
            let rotary = if self.windows[layer].is_some() { &local } else { &rotary };
            let form = AttentionForm {
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                norm: QueryKeyNorm::Heads { q: norm("q")?, k: norm("k")? },
                ..AttentionForm::plain(rotary)
            };
            let (first, second) = gemma2::branches(trunk, weights, layer)?;
            Ok(Block {
                first,
                attention: trunk.attention(weights, layer, form)?,
                second,
                feed_forward: trunk.mlp(weights, layer, self.intermediate_size, false)?,
                residual: Residual::Serial,
            })
        })
    }
}
