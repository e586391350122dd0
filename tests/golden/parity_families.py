"""How each family of transformers names its modules, and which of them give which hook point.

An entry of `FAMILIES` holds paths and short formulas only; `parity.py` does the work.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers.pytorch_utils import Conv1D

# In `Family.weights`: a norm's parameters, around the value that leaves its input as it is.
NORM = "norm"


def affine(module, x):
    """x W + b of a linear layer or a `Conv1D`, whose weight lies the other way, in x's dtype."""
    weight = module.weight.detach().to(x.dtype)
    y = x @ (weight if isinstance(module, Conv1D) else weight.T)
    return y if module.bias is None else y + module.bias.detach().to(x.dtype)


def three_projections(attn, x, d_head):
    """[pos, head, d_head] each, before any norm."""
    return tuple(affine(getattr(attn, f"{part}_proj"), x).unflatten(-1, (-1, d_head)) for part in "qkv")


def joined(path):
    """One projection holds all queries, then all keys, then all values; as many keys as values."""
    def split(attn, x, d_head):
        y = affine(getattr(attn, path), x).unflatten(-1, (-1, d_head))
        n_kv = attn.config.num_key_value_heads if hasattr(attn.config, "num_key_value_heads") else y.shape[1] // 3
        return y.split([y.shape[1] - 2 * n_kv, n_kv, n_kv], dim=1)
    return split


def joined_by_head(attn, x, d_head):
    """One projection holds query, key and value of head 0, then those of head 1, and so on."""
    return affine(attn.query_key_value, x).unflatten(-1, (-1, 3 * d_head)).split(d_head, dim=-1)


def gated(mlp, x, act):
    return act(affine(mlp.gate_proj, x)) * affine(mlp.up_proj, x)


def gated_joined(mlp, x, act):
    gate, up = affine(mlp.gate_up_proj, x).chunk(2, dim=-1)
    return act(gate) * up


def plain(path):
    return lambda mlp, x, act: act(affine(getattr(mlp, path), x))


@dataclass(frozen=True)
class Family:
    """Paths within the model (`core`), within it (`embed`, `pos_embed`, `layers`, `norm`) and within a block."""
    # Block parts, in the order of their random weights: a standard deviation, or NORM.
    weights: tuple
    core: str = "model"
    embed: str = "embed_tokens"
    pos_embed: str | None = None
    layers: str = "layers"
    norm: str = "norm"
    embed_std: float = 0.8
    # What the norms add to their weights.
    norm_offset: float = 0.0
    ln1: str | None = "input_layernorm"
    ln2: str | None = "post_attention_layernorm"
    attn: str = "self_attn"
    # Within the attention.
    o_proj: str = "o_proj"
    # The norm after the attention and the one after the MLP, before the residual sums.
    post_norms: tuple = (None, None)
    # Norms of queries and keys within the attention: "head" for each head alone, "row" for all heads at once.
    qk_norm: str | None = None
    # The first projection (its gate part where gate and up are one) and the down projection; none with experts.
    pre: str | None = "mlp.gate_proj"
    down: str | None = "mlp.down_proj"
    # The second way to queries, keys, values and to the down projection's input.
    qkv: Callable = three_projections
    inner: Callable = gated
    act: str = "hidden_act"
    # Of the configuration: what embeddings, scores, residual summands are multiplied and logits divided by.
    embed_scale: Callable = lambda config: 1.0
    score_scale: Callable = lambda config, d_head, layer: d_head**-0.5
    residual_scale: Callable = lambda config: 1.0
    logit_divisor: Callable = lambda config: 1.0
    score_cap: Callable = lambda config: None
    logit_cap: Callable = lambda config: None
    # Per layer: the window (None: none), whether queries and keys are rotated, whether attention and MLP are parallel.
    window: Callable = lambda config, layer: None
    rotary: Callable = lambda config, layer: True
    parallel: Callable = lambda config: False

    def __post_init__(self):
        assert self.ln2 or not self.ln1


def window_everywhere(config, layer):
    return config.sliding_window


def window_by_type(config, layer):
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None


ATTENTION = (("self_attn.q_proj", 0.25), ("self_attn.k_proj", 0.25), ("self_attn.v_proj", 0.2),
             ("self_attn.o_proj", 0.2))
QK_NORMS = (("self_attn.q_norm", NORM), ("self_attn.k_norm", NORM))
GATED_MLP = (("mlp.gate_proj", 0.2), ("mlp.up_proj", 0.2), ("mlp.down_proj", 0.2))
TWO_NORMS = (("input_layernorm", NORM), ("post_attention_layernorm", NORM))
FOUR_NORMS = TWO_NORMS + (("pre_feedforward_layernorm", NORM), ("post_feedforward_layernorm", NORM))

LLAMA = Family(TWO_NORMS + ATTENTION + GATED_MLP)
GEMMA = replace(LLAMA, embed_std=0.4, norm_offset=1.0, embed_scale=lambda config: config.hidden_size**0.5)
# Larger queries and keys, so that soft caps far above the usual score still show.
GEMMA2 = replace(
    GEMMA, weights=FOUR_NORMS + (("self_attn.q_proj", 0.5), ("self_attn.k_proj", 0.5)) + ATTENTION[2:] + GATED_MLP,
    ln2="pre_feedforward_layernorm",
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"), act="hidden_activation",
    score_scale=lambda config, d_head, layer: config.query_pre_attn_scalar**-0.5,
    score_cap=lambda config: config.attn_logit_softcapping,
    logit_cap=lambda config: config.final_logit_softcapping, window=window_by_type)
# attn_logit_softcapping is in the configuration of Gemma 3, but its attention never reads it.
GEMMA3 = replace(GEMMA2, weights=GEMMA2.weights + QK_NORMS, qk_norm="head", score_cap=lambda config: None)

FAMILIES = {
    "llama": LLAMA,
    "mixtral": replace(
        LLAMA, weights=TWO_NORMS + ATTENTION + (
            ("mlp.gate", 0.2), ("mlp.experts.gate_up_proj", 0.2), ("mlp.experts.down_proj", 0.2)),
        pre=None, down=None, window=window_everywhere),
    "mistral": replace(LLAMA, window=window_everywhere),
    "qwen2": replace(LLAMA, window=window_by_type),
    "qwen3": replace(LLAMA, weights=LLAMA.weights + QK_NORMS, qk_norm="head", window=window_by_type),
    "granite": replace(
        LLAMA, embed_std=0.15, embed_scale=lambda config: config.embedding_multiplier,
        score_scale=lambda config, d_head, layer: config.attention_multiplier,
        residual_scale=lambda config: config.residual_multiplier,
        logit_divisor=lambda config: config.logits_scaling),
    "smollm3": replace(LLAMA, window=window_by_type, rotary=lambda config, layer: bool(config.no_rope_layers[layer])),
    "phi3": replace(
        LLAMA, weights=TWO_NORMS + (("self_attn.qkv_proj", 0.25), ("self_attn.o_proj", 0.2),
                                    ("mlp.gate_up_proj", 0.2), ("mlp.down_proj", 0.2)),
        pre="mlp.gate_up_proj", qkv=joined("qkv_proj"), inner=gated_joined, window=window_everywhere),
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gemma3": replace(GEMMA3, core="model.language_model"),
    "olmo2": replace(
        LLAMA, weights=(("post_attention_layernorm", NORM), ("post_feedforward_layernorm", NORM))
        + ATTENTION + QK_NORMS + GATED_MLP,
        ln1=None, ln2=None, qk_norm="row", post_norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    "gpt2": Family(
        (("ln_1", NORM), ("ln_2", NORM), ("attn.c_attn", 0.25), ("attn.c_proj", 0.2), ("mlp.c_fc", 0.2),
         ("mlp.c_proj", 0.2)),
        core="transformer", embed="wte", pos_embed="wpe", layers="h", norm="ln_f", ln1="ln_1", ln2="ln_2",
        attn="attn", o_proj="c_proj", pre="mlp.c_fc", down="mlp.c_proj", qkv=joined("c_attn"), inner=plain("c_fc"),
        act="activation_function", rotary=lambda config, layer: False,
        score_scale=lambda config, d_head, layer: (d_head**-0.5 if config.scale_attn_weights else 1.0)
        / (layer + 1 if config.scale_attn_by_inverse_layer_idx else 1)),
    "gpt_neox": Family(
        TWO_NORMS + (("attention.query_key_value", 0.25), ("attention.dense", 0.2), ("mlp.dense_h_to_4h", 0.2),
                     ("mlp.dense_4h_to_h", 0.2)),
        core="gpt_neox", embed="embed_in", norm="final_layer_norm", attn="attention", o_proj="dense",
        pre="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", qkv=joined_by_head, inner=plain("dense_h_to_4h"),
        parallel=lambda config: config.use_parallel_residual),
}
