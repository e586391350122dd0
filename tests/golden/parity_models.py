"""The models that `parity.py` writes: configurations, seeds and lengths of the prompts."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def as_named(weights, config):
    """As transformers names them."""
    return weights


def per_expert(weights, config):
    """Mixtral's older layout: every expert's projections alone."""
    out = {}
    for name, weight in weights.items():
        block, _, part = name.partition(".mlp.")
        if part == "gate.weight":
            out[f"{block}.block_sparse_moe.gate.weight"] = weight
        elif part == "experts.gate_up_proj":
            down = weights[f"{block}.mlp.experts.down_proj"]
            for e, (gate, up) in enumerate(pair.chunk(2) for pair in weight):
                expert = f"{block}.block_sparse_moe.experts.{e}"
                out[f"{expert}.w1.weight"] = gate.clone()
                out[f"{expert}.w3.weight"] = up.clone()
                out[f"{expert}.w2.weight"] = down[e].clone()
        elif part != "experts.down_proj":
            out[name] = weight
    return out


def text_and_images(weights, config):
    """As save_pretrained writes Gemma 3 with its vision tower."""
    return {name.removeprefix("model.").replace("language_model.", "language_model.model.", 1): weight
            for name, weight in weights.items()}


def gpt2_with_masks(weights, config):
    """Beside the weights the causal mask of each layer."""
    n = config.n_positions
    mask = torch.ones(n, n).tril()[None, None]
    return weights | {f"transformer.h.{layer}.attn.bias": mask.clone() for layer in range(config.n_layer)}


def old_gpt2(weights, config):
    """Masks, and names that do not begin with `transformer.`."""
    return {name.removeprefix("transformer."): weight for name, weight in gpt2_with_masks(weights, config).items()}


def old_gpt_neox(weights, config):
    """Beside the weights the mask, its value and the rotary frequencies of each layer."""
    n, out = config.max_position_embeddings, dict(weights)
    for layer in range(config.num_hidden_layers):
        attention = f"gpt_neox.layers.{layer}.attention"
        out[f"{attention}.bias"] = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
        out[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        out[f"{attention}.rotary_emb.inv_freq"] = 500.0 ** (-torch.arange(0, 4, 2) / 4)
    return out


@dataclass(frozen=True)
class Golden:
    seed: int
    # As config.json has it.
    config: dict
    lengths: list
    # What is particular.
    note: str
    shards: int = 1
    # Weights as transformers names them to weights as the file has them.
    layout: Callable = as_named
    # What transformers gets in the place of keys that it cannot read.
    instead: dict = field(default_factory=dict)


# Rotary wavelengths below 8 stay, those from 8 to 32 are blended, longer ones are stretched: all three occur.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
SU_FACTORS = {"short_factor": [1.0, 1.1, 1.25, 1.5, 2.0], "long_factor": [1.05, 1.5, 2.5, 4.0, 7.0]}

MODELS = {
    "llama-a": Golden(11, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 36, "intermediate_size": 52,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10,
        "vocab_size": 99, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "dtype": "float32",
    }, [7, 1, 2, 21], "head_dim is not hidden_size / heads; one key-value head; rope_parameters"),
    "mixtral-a": Golden(21, {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 40, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 5,
        "num_experts_per_tok": 2, "vocab_size": 99, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 64, "tie_word_embeddings": False, "sliding_window": None,
        "rope_theta": 10000.0, "output_router_logits": False, "router_aux_loss_coef": 0.02, "torch_dtype": "float32",
    }, [9, 1, 2, 19], "experts as separate tensors; rope_theta", layout=per_expert),
    "llama-b": Golden(12, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 60,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True,
        "attention_bias": True, "mlp_bias": True, "rope_theta": 10000.0, "rope_scaling": None,
        "torch_dtype": "float32",
    }, [5, 1, 17, 2], "tied embeddings; biases everywhere; three shards; no head_dim key", shards=3),
    "llama-c": Golden(13, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 44, "intermediate_size": 56,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12,
        "vocab_size": 97, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 128,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "rope_theta": 2000.0,
        "rope_scaling": LLAMA3, "torch_dtype": "float32",
    }, [8, 1, 2, 20], "Llama-3 rotary scaling in rope_scaling; as many key-value heads as heads"),
    "llama-d": Golden(14, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 40, "intermediate_size": 44,
        "num_hidden_layers": 3, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8,
        "vocab_size": 99, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 128,
        "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": False,
        "rope_parameters": {**LLAMA3, "rope_theta": 500.0}, "dtype": "float32",
    }, [3, 1, 13, 2], "Llama-3 rotary scaling in rope_parameters; attention bias alone; three layers"),
    "llama-e": Golden(15, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 42, "intermediate_size": 50,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 14,
        "vocab_size": 99, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 128,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": True, "rope_theta": 1000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0}, "torch_dtype": "float32",
    }, [6, 1, 2, 16], "linear rotary scaling under the key `type`; MLP bias alone"),
    "mixtral-b": Golden(22, {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 36, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
        "num_local_experts": 6, "num_experts_per_tok": 3, "vocab_size": 99, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False, "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}, "dtype": "float32",
    }, [6, 1, 2, 15], "experts fused into 3-D tensors; two shards; head_dim is not hidden_size / heads", shards=2),
    "mixtral-c": Golden(23, {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 40, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "num_local_experts": 4,
        "num_experts_per_tok": 1, "vocab_size": 99, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 64, "tie_word_embeddings": False, "rope_theta": 1000000.0,
        "torch_dtype": "float32",
    }, [4, 1, 2, 18], "one expert a token; keys with defaults left out", layout=per_expert),
    "mixtral-d": Golden(24, {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 40, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4,
        "num_experts_per_tok": 4, "vocab_size": 99, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 64, "tie_word_embeddings": True, "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32",
    }, [11, 1, 2, 14], "every token to every expert; tied embeddings"),
    "mistral-a": Golden(31, {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 36, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "sliding_window": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0}, "dtype": "float32",
    }, [9, 1, 2, 17], "a window of 5 in every layer; head_dim is not hidden_size / heads; rope_parameters"),
    "mistral-b": Golden(32, {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 28, "intermediate_size": 50,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True,
        "sliding_window": None, "rope_theta": 1000000.0, "torch_dtype": "float32",
    }, [7, 1, 2, 19], "sliding_window null; tied embeddings; no head_dim key; rope_theta; two shards", shards=2),
    "mistral-c": Golden(33, {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 40, "intermediate_size": 34,
        "num_hidden_layers": 1, "num_attention_heads": 8, "head_dim": 6, "vocab_size": 99,
    }, [9, 1, 2, 13], "left out: key-value heads (8), eps (1e-6), window (4096), rope_theta (1e4), activation, tie, "
                      "dtype"),
    "qwen2-a": Golden(41, {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 30, "intermediate_size": 34,
        "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True,
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 4000.0}, "dtype": "float32",
    }, [8, 1, 2, 12], "layers 1 and 2 have a window of 5, by max_window_layers; tied embeddings; rope_parameters"),
    "qwen2-b": Golden(42, {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 40, "intermediate_size": 34,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1, "rope_theta": 1000000.0,
        "torch_dtype": "float32",
    }, [6, 1, 2, 14], "sliding_window without use_sliding_window: no window; rope_theta; two shards", shards=2),
    "qwen2-c": Golden(43, {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 30, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": None, "vocab_size": 99,
        "max_position_embeddings": 64, "use_sliding_window": True, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    }, [9, 1, 2, 15], "layer_types alone say which layer has the window of 6; key-value heads null: as many as heads; "
                      "left out: max_window_layers, eps (1e-6), rope_theta (1e4), activation, tie, dtype"),
    "qwen2-d": Golden(44, {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 36, "intermediate_size": 34,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "use_sliding_window": False, "sliding_window": None, "rope_theta": 100.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        "torch_dtype": "float32",
    }, [9, 1, 2, 20], "yarn under the key `type`, all but its factor and original length left out"),
    "qwen3-a": Golden(51, {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 36, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "attention_bias": False, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 2500.0}, "dtype": "float32",
    }, [8, 1, 2, 16], "layer_types against max_window_layers: layer 1 has a window of 5; norms of q and k; "
                      "head_dim is not hidden_size / heads"),
    "qwen3-b": Golden(52, {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 34, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True,
        "attention_bias": True, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0,
        "rope_theta": 1000000.0, "rope_scaling": None, "torch_dtype": "float32",
    }, [7, 1, 2, 15], "a window of 4 in every layer (max_window_layers 0); attention bias; tied embeddings; "
                      "rope_theta"),
    "qwen3-c": Golden(53, {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 18, "intermediate_size": 30,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 99,
    }, [9, 1, 2], "left out: head_dim (128, not hidden_size / heads), eps (1e-6), rope_theta (1e4), all of the window, "
                  "activation, tie, dtype"),
    "granite-a": Golden(61, {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_size": 36, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "attention_bias": True, "mlp_bias": True, "embedding_multiplier": 12.0, "logits_scaling": 2.5,
        "residual_multiplier": 0.22, "attention_multiplier": 0.21875,
        "rope_parameters": {"rope_type": "default", "rope_theta": 2000.0}, "dtype": "float32",
    }, [8, 1, 2, 18], "four multipliers; biases; one key-value head; rope_parameters"),
    "granite-b": Golden(62, {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_size": 40, "intermediate_size": 42,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "embedding_multiplier": 6, "logits_scaling": 0.5,
        "residual_multiplier": 1.4, "attention_multiplier": 0.5, "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32",
    }, [6, 1, 2, 17], "four other multipliers, one an integer; tied embeddings; linear rotary scaling; rope_theta"),
    "granite-c": Golden(63, {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_size": 36, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 99, "residual_multiplier": 0.7,
    }, [7, 1, 2, 12], "left out: key-value heads (as many as heads), attention_multiplier (1, not 1 / sqrt(d_head)) "
                      "and two other multipliers, eps (1e-6), rope_theta (1e4), activation, tie, dtype"),
    "smollm3-a": Golden(71, {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_size": 24, "intermediate_size": 30,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "use_sliding_window": True, "sliding_window": 5,
        "no_rope_layers": [1, 0, 1], "pad_token_id": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "dtype": "float32",
    }, [8, 1, 2, 12], "layer 1 has no rotary and, so, the window of 5; rope_parameters"),
    "smollm3-b": Golden(72, {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_size": 20, "intermediate_size": 26,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 99,
        "max_position_embeddings": 64, "pad_token_id": None, "use_sliding_window": False, "sliding_window": None,
        "rope_scaling": None, "torch_dtype": "float32",
    }, [8, 1, 2, 11], "left out: no_rope_layers and its interval (4: layer 3 has no rotary), rope_theta (2e6), eps "
                      "(1e-6), activation, tie (true)"),
    "smollm3-c": Golden(73, {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_size": 40, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True, "attention_bias": True,
        "mlp_bias": True, "use_sliding_window": True, "sliding_window": 6, "no_rope_layer_interval": 2,
        "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0, "rope_theta": 50000.0,
        "torch_dtype": "float32",
    }, [7, 1, 2, 15], "no_rope_layer_interval 2: layer 1 has no rotary; layer_types give the window of 6 to layer 0, "
                      "which has; biases; key-value heads left out (4); rope_theta"),
    "phi3-a": Golden(81, {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 36, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64,
        "original_max_position_embeddings": 64, "tie_word_embeddings": False, "partial_rotary_factor": 0.5,
        "sliding_window": 6, "rope_theta": 10000.0, "rope_scaling": None, "pad_token_id": 2, "bos_token_id": 1,
        "eos_token_id": 2, "torch_dtype": "float32",
    }, [8, 1, 2, 16], "half of each head is rotated; a window of 6; rope_theta; two shards", shards=2),
    "phi3-b": Golden(82, {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 40, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64,
        "original_max_position_embeddings": 9, "tie_word_embeddings": False, "sliding_window": 40,
        "rope_theta": 10000.0, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
        "rope_scaling": {"type": "su"} | SU_FACTORS, "torch_dtype": "float32",
    }, [5, 1, 9, 12], "longrope under its older name su; the third prompt is as long as the original length, the "
                       "fourth longer: it has the long factors at every position; transformers itself refuses this "
                       "configuration (it looks for the original length within rope_scaling): recorded with the "
                       "type longrope",
       instead={"rope_scaling": {"type": "longrope"} | SU_FACTORS}),
    "phi3-c": Golden(83, {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 36, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 128,
        "original_max_position_embeddings": 10, "tie_word_embeddings": True, "sliding_window": None,
        "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.5,
                            "original_max_position_embeddings": 10, "short_factor": [1.0, 1.3, 1.7],
                            "long_factor": [1.2, 3.0, 9.0]},
        "dtype": "float32",
    }, [6, 1, 10, 12], "longrope on half of each head; rope_parameters; tied embeddings"),
    "phi3-d": Golden(84, {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 36, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 99, "pad_token_id": 0,
        "max_position_embeddings": 96, "original_max_position_embeddings": 11,
        "rope_scaling": {"type": "longrope", "attention_factor": 1.3, "short_factor": [1, 1.5, 2],
                         "long_factor": [2, 3.5, 6]},
    }, [6, 1, 2, 12], "longrope with its attention factor given; left out: key-value heads (as many as heads), eps "
                      "(1e-5), rope_theta (1e4), activation, window, tie, dtype"),
    "gemma-a": Golden(91, {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 34, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 64,
        "attention_bias": False, "rope_parameters": {"rope_type": "default", "rope_theta": 2000.0}, "dtype": "float32",
    }, [8, 1, 2, 17], "head_dim is not hidden_size / heads; tie left out (true); rope_parameters"),
    "gemma-b": Golden(92, {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 36, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "gelu", "hidden_activation": None, "max_position_embeddings": 64,
        "attention_bias": True, "tie_word_embeddings": False, "rope_theta": 10000.0, "rope_scaling": None,
        "torch_dtype": "float32",
    }, [7, 1, 2, 16], "hidden_act gelu means the tanh approximation; attention bias; a head of its own; rope_theta"),
    "gemma-c": Golden(93, {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 18, "intermediate_size": 26,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 99,
    }, [9, 1, 2], "left out: head_dim (256), eps (1e-6), rope_theta (1e4), activation, tie (true), dtype"),
    "gemma2-a": Golden(101, {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 36, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 64,
        "attention_bias": False, "tie_word_embeddings": True, "query_pre_attn_scalar": 7, "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"], "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 8.0, "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0},
        "dtype": "float32",
    }, [8, 1, 2, 16], "soft caps 3 and 8; layer_types put the window of 5 into layer 1; query_pre_attn_scalar is not "
                      "head_dim; rope_parameters"),
    "gemma2-b": Golden(102, {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 28, "intermediate_size": 30,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 64, "attention_bias": True, "tie_word_embeddings": False,
        "query_pre_attn_scalar": 10, "sliding_window": 4, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "cache_implementation": "hybrid", "rope_theta": 10000.0,
        "torch_dtype": "float32",
    }, [7, 1, 2, 11], "no soft caps (null); windows of 4 in layers 0 and 2, without layer_types; attention bias; "
                      "a head of its own; rope_theta"),
    "gemma2-c": Golden(103, {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 30, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 12, "vocab_size": 99,
    }, [8, 1, 2, 12], "left out: soft caps (50 and 30), query_pre_attn_scalar (256), window (4096), eps (1e-6), "
                      "rope_theta (1e4), activation, tie (true), dtype"),
    "gemma3-a": Golden(111, {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 36,
        "intermediate_size": 38, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
        "head_dim": 10, "vocab_size": 99, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 64, "attention_bias": False, "tie_word_embeddings": True,
        "query_pre_attn_scalar": 7, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"],
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "use_bidirectional_attention": False,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}},
        "dtype": "float32",
    }, [8, 1, 2, 16], "rope_parameters by type of layer, linear scaling for the full one; query_pre_attn_scalar is not "
                      "head_dim"),
    "gemma3-b": Golden(112, {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 28,
        "intermediate_size": 30, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 6, "vocab_size": 99, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 64, "attention_bias": True, "tie_word_embeddings": False,
        "query_pre_attn_scalar": 6, "sliding_window": 4, "sliding_window_pattern": 2, "attn_logit_softcapping": None,
        "final_logit_softcapping": 6.0, "cache_implementation": "hybrid", "rope_theta": 20000.0,
        "rope_local_base_freq": 200.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "torch_dtype": "float32",
    }, [7, 1, 2, 11], "sliding_window_pattern 2: layer 1 is the global one; rope_theta, rope_local_base_freq and "
                      "rope_scaling; attention bias; a soft cap of 6 on the logits; a head of its own"),
    "gemma3-c": Golden(113, {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 18,
        "intermediate_size": 22, "num_hidden_layers": 6, "num_attention_heads": 3, "num_key_value_heads": 1,
        "head_dim": 8, "vocab_size": 99, "sliding_window": 3,
    }, [9, 1, 2], "left out: sliding_window_pattern (6: layer 5 is the global one), both rotary bases (1e6 and 1e4), "
                  "query_pre_attn_scalar (256), eps (1e-6), activation, tie (true), dtype"),
    "gemma3-mm": Golden(114, {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 1,
        "boi_token_index": 96, "eoi_token_index": 97, "image_token_index": 98, "initializer_range": 0.02,
        "eos_token_id": [1, 95],
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 28, "intermediate_size": 34, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 98,
            "query_pre_attn_scalar": 12, "sliding_window": 5, "sliding_window_pattern": 2,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "vision_use_head": False},
        "torch_dtype": "float32",
    }, [8, 1, 2, 16], "text_config within a model for text and images, whose other parts are in the file; tensors "
                      "under language_model.model, as save_pretrained writes them", layout=text_and_images),
    "gemma3-mm-b": Golden(115, {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 1,
        "boi_token_index": 96, "eoi_token_index": 97, "image_token_index": 98,
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 27, "intermediate_size": 30, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6, "vocab_size": 99,
            "query_pre_attn_scalar": 6, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "vision_use_head": False},
        "dtype": "float32",
    }, [8, 1, 2, 14], "as gemma3-mm with tensors under model.language_model, as the modules are named; rope_parameters "
                      "in the text_config"),
    "olmo2-a": Golden(121, {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_size": 36, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "attention_bias": False, "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0},
        "dtype": "float32",
    }, [7, 1, 2, 15], "three key-value heads; norms over all heads of q and k at once; rope_parameters"),
    "olmo2-b": Golden(122, {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_size": 34, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 14, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True,
        "attention_bias": True, "rope_theta": 500000.0, "rope_scaling": None, "torch_dtype": "float32",
    }, [6, 1, 2, 16], "a head_dim key that is not hidden_size / heads; attention bias; tied embeddings; rope_theta"),
    "olmo2-c": Golden(123, {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_size": 36, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 99,
    }, [7, 1, 2, 14], "left out: key-value heads (as many as heads), eps (1e-5), rope_theta (1e4), activation, tie, "
                      "dtype"),
    "gpt2-a": Golden(131, {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 99, "n_positions": 25, "n_embd": 36,
        "n_layer": 2, "n_head": 3, "n_inner": 50, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": False, "dtype": "float32",
    }, [9, 1, 2, 17], "n_inner is not 4 n_embd; scores of layer l divided by l + 1; names under transformer."),
    "gpt2-b": Golden(132, {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 99, "n_ctx": 23, "n_positions": 23,
        "n_embd": 27, "n_layer": 2, "n_head": 3, "initializer_range": 0.02, "bos_token_id": 98, "eos_token_id": 98,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }, [8, 1, 2, 13], "names without transformer. and masks in the file (attn.bias), as old files; left out: "
                      "n_inner (4 n_embd), activation, epsilon (1e-5), tie (true), dtype", layout=old_gpt2),
    "gpt2-c": Golden(133, {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 99, "n_positions": 25, "n_embd": 26,
        "n_layer": 2, "n_head": 2, "n_inner": None, "activation_function": "gelu", "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False, "scale_attn_weights": False, "torch_dtype": "float32",
    }, [5, 1, 2, 12], "a head of its own; the error-function GELU; scores not divided by sqrt(d_head); masks in the "
                      "file (attn.bias) under transformer.; two shards", shards=2, layout=gpt2_with_masks),
    "gpt_neox-a": Golden(141, {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 36, "intermediate_size": 42,
        "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 99, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": False, "attention_bias": True,
        "use_parallel_residual": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 2000.0, "partial_rotary_factor": 0.25},
        "dtype": "float32",
    }, [8, 1, 2, 17], "parallel residual; a quarter of 12 is 3: the frequencies are base^(-2i/3), and four dimensions "
                      "turn; rope_parameters"),
    "gpt_neox-b": Golden(142, {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 42, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 99, "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-6, "max_position_embeddings": 23, "tie_word_embeddings": False, "attention_bias": False,
        "use_parallel_residual": False, "rotary_pct": 0.3, "rotary_emb_base": 500, "torch_dtype": "float32",
    }, [6, 1, 2, 12], "serial residual; no attention bias; 0.3 of 14 rounds down to 4; the tanh GELU; rotary_pct and "
                      "rotary_emb_base; masks and frequencies in the file, as old files", layout=old_gpt_neox),
    "gpt_neox-c": Golden(143, {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99,
    }, [7, 1, 2, 14], "left out: use_parallel_residual (true), rotary_pct (0.25), rotary_emb_base (1e4), "
                      "attention_bias (true), activation (gelu), epsilon (1e-5), tie (false), dtype"),
    "gpt_neox-d": Golden(144, {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 36, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 99, "hidden_act": "gelu_fast",
        "layer_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": True, "rotary_pct": 1.0,
        "rotary_emb_base": 10000, "rope_scaling": {"type": "linear", "factor": 2.0}, "use_parallel_residual": False,
        "torch_dtype": "float32",
    }, [6, 1, 2, 13], "whole heads turn, with linear scaling; serial residual; gelu_fast; tied embeddings"),
    "llama-f": Golden(16, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 36, "intermediate_size": 34,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 256, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "attention_factor": 1.2,
                            "beta_fast": 2.0, "beta_slow": 0.25, "original_max_position_embeddings": 64},
        "dtype": "float32",
    }, [7, 1, 2, 16], "yarn with its attention factor and both betas given, in rope_parameters"),
    "llama-g": Golden(17, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 36, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 99, "max_position_embeddings": 128,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.707,
                         "mscale_all_dim": 1.0, "truncate": False},
    }, [6, 1, 2, 15], "yarn with mscale, mscale_all_dim and without truncation, in rope_scaling; left out: betas, "
                      "rope_theta (1e4), key-value heads (as many as heads), eps (1e-6), activation, biases, tie, "
                      "dtype"),
    "llama-h": Golden(18, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 40, "intermediate_size": 30,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 20, "tie_word_embeddings": True,
        "rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "torch_dtype": "float32",
    }, [6, 1, 2, 20], "dynamic rotary scaling, all prompts within max_position_embeddings: nothing is scaled"),
    "llama-bf16": Golden(151, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 36, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 99,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
        "rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "bfloat16",
    }, [7, 1, 2, 12], "weights in bfloat16"),
    "qwen3-f16": Golden(152, {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 34, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": True,
        "use_sliding_window": False, "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "dtype": "float16",
    }, [7, 1, 2, 12], "weights in float16"),
    "gemma2-bf16": Golden(153, {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 30, "intermediate_size": 34,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 64,
        "query_pre_attn_scalar": 12, "sliding_window": 5, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    }, [7, 1, 2, 11], "weights in bfloat16; in bfloat16 the embeddings are multiplied by sqrt(30) rounded to 5.46875"),
    "gpt2-f16": Golden(154, {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 99, "n_positions": 25, "n_embd": 30,
        "n_layer": 2, "n_head": 3, "n_inner": 38, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "torch_dtype": "float16",
    }, [7, 1, 2, 12], "weights in float16; in float16 the softmax too is computed in float16"),
    "gemma-d": Golden(94, {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 34, "intermediate_size": 38,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 64,
        "tie_word_embeddings": True, "rope_theta": 10000.0, "torch_dtype": "float32",
    }, [6, 1, 2, 13], "what a GGUF file of Gemma can say: tied, no bias, base 1e4"),
    "gemma2-d": Golden(104, {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 28, "intermediate_size": 34,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 99,
        "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 64,
        "tie_word_embeddings": True, "query_pre_attn_scalar": 6, "sliding_window": 5, "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 7.0, "rope_theta": 10000.0, "torch_dtype": "float32",
    }, [7, 1, 2, 11], "what a GGUF file of Gemma 2 can say: query_pre_attn_scalar is head_dim, windows of 5 in layers "
                      "0 and 2, tied, no bias, base 1e4"),
    "gemma3-d": Golden(116, {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 18,
        "intermediate_size": 22, "num_hidden_layers": 7, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8, "vocab_size": 99, "query_pre_attn_scalar": 8, "sliding_window": 4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "torch_dtype": "float32",
    }, [5, 1, 2, 8], "what a GGUF file of Gemma 3 can say: query_pre_attn_scalar is head_dim, layer 5 is the global "
                     "one, bases 1e6 and 1e4, linear scaling of the global one"),
}
