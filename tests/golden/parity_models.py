"""The models that `parity.py` writes: configurations, seeds and lengths of the prompts."""

from collections.abc import Callable
from dataclasses import dataclass


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


# Rotary wavelengths below 8 stay, those from 8 to 32 are blended, longer ones are stretched: all three occur.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}

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
    }, [9, 1, 2, 13], "left out: key-value heads (8), eps (1e-6), window (4096), rope_theta (1e4), activation, tie, dtype"),
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
    }, [7, 1, 2, 15], "a window of 4 in every layer (max_window_layers 0); attention bias; tied embeddings; rope_theta"),
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
    }, [7, 1, 2, 12], "left out: key-value heads (as many as heads), attention_multiplier (1, not 1 / sqrt(d_head)) and "
                      "two other multipliers, eps (1e-6), rope_theta (1e4), activation, tie, dtype"),
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
}
