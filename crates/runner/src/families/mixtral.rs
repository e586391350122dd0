//! Mixtral: a Llama whose MLPs are mixtures of experts.
//!
//! Router: softmax over all experts, the `k` largest, renormalised over the `k`.
//! Both layouts of the experts are read: a tensor for each projection of each
//! expert (`w1` gate, `w3` up, `w2` down), and the fused `gate_up_proj`
//! `[expert, 2·d_mlp, d_model]` with the gate's rows first, and `down_proj`
//! `[expert, d_model, d_mlp]`.

use hooks::{LayerInfo, MlpInfo, ModelInfo, Site};
use kernels::moe::Experts;
use kernels::router::Selection;
use serde_json::Value;

use super::trunk::{AttentionForm, Defaults, Scales};
use super::{Details, Family, LLAMA_LAYER, LLAMA_LAYOUT, Trunk};
use crate::Result;
use crate::config::fields::{Fields, bound};
use crate::config::{GgufFields, RopeDefaults};
use crate::layers::{Decoder, FeedForward, Mixture, Projections};
use crate::weights::{ExpertNames, GgufLayout, Matrix, Part, RotaryRows, Weights};

/// The configuration of a Mixtral.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with its relatives.
    pub trunk: Trunk,
    /// Width of one expert.
    pub intermediate_size: usize,
    /// Experts in a layer.
    pub num_local_experts: usize,
    /// Experts that each token uses.
    pub num_experts_per_tok: usize,
    /// Keys that a query sees, itself included; `None`: all before it.
    pub sliding_window: Option<usize>,
}

const DEFAULTS: Defaults = Defaults {
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-5,
    rope: RopeDefaults { theta: 1_000_000.0, ..RopeDefaults::USUAL },
    ..Defaults::LLAMA
};

const GGUF_LAYOUT: GgufLayout = GgufLayout {
    layer: &[
        LLAMA_LAYER[0],
        LLAMA_LAYER[1],
        LLAMA_LAYER[2],
        LLAMA_LAYER[3],
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
    ],
    experts: &[
        expert(".w1", "ffn_gate_exps", "ffn_gate"),
        expert(".w2", "ffn_down_exps", "ffn_down"),
        expert(".w3", "ffn_up_exps", "ffn_up"),
    ],
    rotary_rows: RotaryRows::Pairs,
    ..LLAMA_LAYOUT
};

const fn expert(behind: &'static str, merged: &'static str, separate: &'static str) -> ExpertNames {
    ExpertNames { before: "block_sparse_moe.experts.", behind, merged, separate }
}

/// Modules whose output is a hook point.
const MODULES: &[(Site, &str)] = &[
    (Site::Embed, "model.embed_tokens"),
    (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
    (Site::Q, "model.layers.{l}.self_attn.q_proj"),
    (Site::K, "model.layers.{l}.self_attn.k_proj"),
    (Site::V, "model.layers.{l}.self_attn.v_proj"),
    (Site::AttnOut, "model.layers.{l}.self_attn.o_proj"),
    (Site::AttnOut, "model.layers.{l}.self_attn"),
    (Site::Ln2Normalized, "model.layers.{l}.post_attention_layernorm"),
    (Site::RouterLogits, "model.layers.{l}.block_sparse_moe.gate"),
    (Site::RouterLogits, "model.layers.{l}.mlp.gate"),
    (Site::MlpOut, "model.layers.{l}.block_sparse_moe"),
    (Site::MlpOut, "model.layers.{l}.mlp"),
    (Site::ResidPost, "model.layers.{l}"),
    (Site::LnFinalNormalized, "model.norm"),
    (Site::Logits, "lm_head"),
];

impl Family for Config {
    const GGUF: Option<&str> = Some("llama");

    fn read(fields: &Fields<'_>) -> Result<Self> {
        let num_local_experts = match fields.size("num_local_experts", bound::COUNT)? {
            Some(count) => count,
            None => fields.size("num_experts", bound::COUNT)?.unwrap_or(8),
        };
        let num_experts_per_tok = fields.size("num_experts_per_tok", bound::COUNT)?.unwrap_or(2);
        if num_experts_per_tok > num_local_experts {
            let found = Value::from(num_experts_per_tok);
            let expected = format!("at most num_local_experts, {num_local_experts}");
            return Err(fields.wrong("num_experts_per_tok", &found, expected));
        }
        Ok(Self {
            trunk: Trunk::read(fields, &DEFAULTS)?,
            intermediate_size: fields.size("intermediate_size", bound::WIDTH)?.unwrap_or(14_336),
            num_local_experts,
            num_experts_per_tok,
            sliding_window: fields.size("sliding_window", bound::CONTEXT)?,
        })
    }

    fn from_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
        let Some((n_experts, k)) = file.experts()? else {
            return Ok(None);
        };
        Ok(Some(Self {
            trunk: Trunk::from_gguf(file, &DEFAULTS)?,
            intermediate_size: file.layer_size("feed_forward_length", bound::WIDTH)?,
            num_local_experts: n_experts,
            num_experts_per_tok: k,
            sliding_window: None,
        }))
    }

    fn gguf_layout(&self) -> &'static GgufLayout {
        &GGUF_LAYOUT
    }

    fn info(&self) -> ModelInfo {
        let (n_experts, k) = (self.num_local_experts, self.num_experts_per_tok);
        self.trunk.info("mixtral", MODULES, |_| LayerInfo {
            window: self.sliding_window,
            ..self.trunk.layer(MlpInfo::Mixture { n_experts, k })
        })
    }

    fn details(&self) -> Details {
        Details { d_expert: Some(self.intermediate_size), ..self.trunk.details() }
    }

    fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
        let trunk = &self.trunk;
        let rotary = trunk.rotary(weights)?;
        trunk.decoder(weights, &Scales::default(), |layer| {
            let form = AttentionForm::plain(&rotary);
            let attention = trunk.attention(weights, layer, form)?;
            let named = |block: &str| format!("model.layers.{layer}.{block}");
            let older = named("block_sparse_moe");
            let block =
                if weights.has(&format!("{older}.gate.weight")) { older } else { named("mlp") };
            let gate = Part::new(format!("{block}.gate"), self.num_local_experts).in_single();
            let mixture = FeedForward::Mixture(Mixture {
                router: Projections::load(weights, &[gate], trunk.hidden_size, false)?,
                experts: self.experts(weights, &format!("{block}.experts"))?,
                k: self.num_experts_per_tok,
                rule: Selection::SoftmaxTopK { renormalise: true },
                activation: trunk.hidden_act,
            });
            trunk.pre_norm_block(weights, layer, attention, mixture)
        })
    }
}

impl Config {
    fn experts(&self, weights: &dyn Weights, experts: &str) -> Result<Experts> {
        let (n, d_mlp, d_model) =
            (self.num_local_experts, self.intermediate_size, self.trunk.hidden_size);
        let linear = |matrix: &Matrix| matrix.linear(None);
        let fused = format!("{experts}.gate_up_proj");
        let (gate_up, down) = if weights.has(&fused) {
            let down = format!("{experts}.down_proj");
            (
                weights.slices(&fused, n, 2 * d_mlp, d_model)?,
                weights.slices(&down, n, d_model, d_mlp)?,
            )
        } else {
            let (mut gate_up, mut down) = (Vec::with_capacity(n), Vec::with_capacity(n));
            for expert in 0..n {
                let part = |name: &str, rows| Part::new(format!("{experts}.{expert}.{name}"), rows);
                gate_up.extend(weights.matrices(&[part("w1", d_mlp), part("w3", d_mlp)], d_model)?);
                down.extend(weights.matrices(&[part("w2", d_model)], d_mlp)?);
            }
            (gate_up, down)
        };
        let gate_up = gate_up.iter().map(linear).collect::<Result<_>>()?;
        let down = down.iter().map(linear).collect::<Result<_>>()?;
        Ok(Experts::new(gate_up, down)?)
    }
}
