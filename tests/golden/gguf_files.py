#!/usr/bin/env python3
"""Writes golden models as GGUF files: `gguf/{name}.gguf` holds the weights of `models/{name}`.

Keys, tensor names, orders of rows and what is left out are those of files that llama.cpp's
converter writes: rotary halves interleaved for the architecture `llama`, one added to Gemma's
norm weights, no key for what the architecture implies (Gemma's rotary bases and score scale,
which layers have the window). The tokenizers are made up.
The container is written here, after the GGUF specification (version 3, little-endian).

    pip install torch transformers safetensors numpy
    python3 gguf_files.py            # all files
    python3 gguf_files.py llama-a    # one
"""

import struct
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
OUT = HERE / "gguf"
ALIGNMENT = 32
# Tensor types and, by the type of the matrices, general.file_type.
TENSOR_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}

# name: (architecture, how experts are stored, parts of a split set beside the one file)
FILES = {
    "llama-a": ("llama", None, None), "llama-b": ("llama", None, None), "llama-c": ("llama", None, None),
    "llama-e": ("llama", None, 3), "llama-bf16": ("llama", None, None), "mistral-b": ("llama", None, None),
    "mixtral-b": ("llama", "merged", None), "mixtral-c": ("llama", "apart", None), "qwen2-b": ("qwen2", None, None),
    "qwen2-d": ("qwen2", None, None), "qwen3-c": ("qwen3", None, None), "qwen3-f16": ("qwen3", None, None),
    "gemma-c": ("gemma", None, None), "gemma-d": ("gemma", None, None), "gemma2-d": ("gemma2", None, None),
    "gemma3-d": ("gemma3", None, None), "phi3-a": ("phi3", None, None), "phi3-c": ("phi3", None, None),
    "gpt2-b": ("gpt2", None, None),
}

LLAMA_BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "mlp.gate": "ffn_gate_inp",
}
GEMMA2_BLOCK = LLAMA_BLOCK | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GPT2_BLOCK = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
BLOCKS = {"gemma2": GEMMA2_BLOCK, "gemma3": GEMMA2_BLOCK, "gpt2": GPT2_BLOCK}
OUTER = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
}


# Values of keys, by their GGUF type.
def u16(x):
    return 2, struct.pack("<H", x)


def u32(x):
    return 4, struct.pack("<I", x)


def i32(x):
    return 5, struct.pack("<i", x)


def f32(x):
    return 6, struct.pack("<f", x)


def boolean(x):
    return 7, struct.pack("<?", x)


def text(x):
    data = x.encode()
    return 8, struct.pack("<Q", len(data)) + data


def array(kind, items):
    values = [kind(x) for x in items]
    return 9, struct.pack("<IQ", values[0][0], len(values)) + b"".join(data for _, data in values)


def padded(data):
    return data + bytes(-len(data) % ALIGNMENT)


def write(path, keys, tensors):
    """`keys`: name to typed value; `tensors`: name to tensor, whose axes GGUF lists last first."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    for name, (kind, value) in keys.items():
        head += text(name)[1] + struct.pack("<I", kind) + value
    data = b""
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        head += text(name)[1] + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TENSOR_TYPES[tensor.dtype],
                                            len(data))
        data += padded(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    path.write_bytes(padded(head) + data)
    path.chmod(0o644)


def spm_tokenizer(n, last=None):
    """A made-up tokenizer of SentencePiece's kind: three special tokens, a byte, a space and printable ASCII."""
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", *map(chr, range(ord("!"), ord("~") + 1))][:n]
    types = [2, 3, 3, 6, *[1] * (len(tokens) - 4), *[5] * (n - len(tokens))]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), n)]
    if last:
        tokens[-1], types[-1] = last, 3
    return {
        "tokenizer.ggml.model": text("llama"), "tokenizer.ggml.pre": text("default"),
        "tokenizer.ggml.tokens": array(text, tokens),
        "tokenizer.ggml.scores": array(f32, [-float(i) for i in range(n)]),
        "tokenizer.ggml.token_type": array(i32, types), "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2), "tokenizer.ggml.unknown_token_id": u32(0),
        "tokenizer.ggml.add_bos_token": boolean(True), "tokenizer.ggml.add_eos_token": boolean(False),
    }


def bpe_tokenizer(pre):
    def tokenizer(n):
        """A made-up tokenizer of GPT-2's kind: printable ASCII, space, newline, two merges and the end of text."""
        tokens = [*map(chr, range(ord("!"), ord("~") + 1)), "\u0120", "\u010a", "th", "he", "<|endoftext|>"]
        assert len(tokens) == n
        return {
            "tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.pre": text(pre),
            "tokenizer.ggml.tokens": array(text, tokens),
            "tokenizer.ggml.token_type": array(i32, [1] * (n - 1) + [3]),
            "tokenizer.ggml.merges": array(text, ["t h", "h e"]), "tokenizer.ggml.bos_token_id": u32(n - 1),
            "tokenizer.ggml.eos_token_id": u32(n - 1), "tokenizer.ggml.add_bos_token": boolean(False),
        }
    return tokenizer


TOKENIZERS = {
    "qwen2": bpe_tokenizer("qwen2"), "qwen3": bpe_tokenizer("qwen2"), "gpt2": bpe_tokenizer("gpt-2"),
    # llama.cpp looks for this token in every file of the name phi3.
    "phi3": lambda n: spm_tokenizer(n, last="<|endoftext|>"),
}


def rotary_keys(config):
    """The base, and the scaling where the key `rope.scaling.type` has a name for it."""
    rope = config.rope_parameters
    keys = {"rope.freq_base": f32(rope["rope_theta"])}
    if rope["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": text(rope["rope_type"]), "rope.scaling.factor": f32(rope["factor"])}
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = u32(rope["original_max_position_embeddings"])
    return keys


def head_widths(config):
    return {"attention.key_length": u32(config.head_dim), "attention.value_length": u32(config.head_dim)}


def usual_keys(config):
    return {
        "block_count": u32(config.num_hidden_layers), "context_length": u32(config.max_position_embeddings),
        "embedding_length": u32(config.hidden_size), "feed_forward_length": u32(config.intermediate_size),
        "attention.head_count": u32(config.num_attention_heads),
        "attention.head_count_kv": u32(config.num_key_value_heads),
        "attention.layer_norm_rms_epsilon": f32(config.rms_norm_eps),
    }


def llama_keys(config):
    keys = usual_keys(config) | rotary_keys(config)
    if config.head_dim is not None and config.head_dim != config.hidden_size // config.num_attention_heads:
        keys |= head_widths(config)
    if hasattr(config, "num_local_experts"):
        keys |= {"expert_count": u32(config.num_local_experts), "expert_used_count": u32(config.num_experts_per_tok)}
    width = config.head_dim or config.hidden_size // config.num_attention_heads
    return keys | {"vocab_size": u32(config.vocab_size), "rope.dimension_count": u32(width)}


def gemma_keys(config):
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0} and not config.attention_bias
    return usual_keys(config) | head_widths(config)


def gemma2_keys(config):
    assert config.query_pre_attn_scalar == config.head_dim
    assert config.layer_types == [
        ("sliding_attention", "full_attention")[l % 2] for l in range(len(config.layer_types))]
    return gemma_keys(config) | {
        "attn_logit_softcapping": f32(config.attn_logit_softcapping),
        "final_logit_softcapping": f32(config.final_logit_softcapping),
        "attention.sliding_window": u32(config.sliding_window),
    }


def gemma3_keys(config):
    local, whole = (config.rope_parameters[kind] for kind in ("sliding_attention", "full_attention"))
    assert config.query_pre_attn_scalar == config.head_dim and not config.attention_bias
    assert [kind == "full_attention" for kind in config.layer_types] == [
        l % 6 == 5 for l in range(len(config.layer_types))]
    assert local == {"rope_type": "default", "rope_theta": 10000.0} and config.final_logit_softcapping is None
    return usual_keys(config) | head_widths(config) | {
        "rope.freq_base": f32(whole["rope_theta"]), "rope.scaling.type": text(whole["rope_type"]),
        "rope.scaling.factor": f32(whole["factor"]), "attention.sliding_window": u32(config.sliding_window),
    }


def phi3_keys(config):
    rope = config.rope_parameters
    width = int(rope["partial_rotary_factor"] * config.hidden_size) // config.num_attention_heads
    keys = usual_keys(config) | {
        "rope.scaling.original_context_length": u32(config.original_max_position_embeddings),
        "rope.dimension_count": u32(width), "rope.freq_base": f32(rope["rope_theta"]),
        # Zero says that there is none.
        "attention.sliding_window": u32(config.sliding_window or 0),
    }
    if "long_factor" in rope:
        stretch = config.max_position_embeddings / config.original_max_position_embeddings
        original = torch.tensor(float(config.original_max_position_embeddings))
        keys["rope.scaling.attn_factor"] = f32((1 + torch.tensor(stretch).log() / original.log()).sqrt().item())
    return keys


def gpt2_keys(config):
    assert not config.scale_attn_by_inverse_layer_idx and config.scale_attn_weights
    return {
        "block_count": u32(config.n_layer), "context_length": u32(config.n_positions),
        "embedding_length": u32(config.n_embd), "feed_forward_length": u32(config.n_inner or 4 * config.n_embd),
        "attention.head_count": u32(config.n_head), "attention.layer_norm_epsilon": f32(config.layer_norm_epsilon),
    }


KEYS = {
    "llama": llama_keys, "qwen2": lambda config: usual_keys(config) | rotary_keys(config),
    "qwen3": lambda config: usual_keys(config) | rotary_keys(config) | head_widths(config), "gemma": gemma_keys,
    "gemma2": gemma2_keys, "gemma3": gemma3_keys, "phi3": phi3_keys, "gpt2": gpt2_keys,
}


def interleaved(weight, heads):
    """Rows of each head in the order 0, h/2, 1, h/2 + 1, ...: llama.cpp turns neighbours where transformers turns
    halves."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def tensors_of(model, architecture, experts):
    config, out = model.config, {}
    matrices = model.dtype
    if architecture == "llama" and config.rope_parameters["rope_type"] == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(config)
    for kind in ("long", "short"):
        if architecture == "phi3" and f"{kind}_factor" in config.rope_parameters:
            out[f"rope_factors_{kind}.weight"] = torch.tensor(config.rope_parameters[f"{kind}_factor"]).float()
    for name, weight in model.state_dict().items():
        path, _, end = name.rpartition(".")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if path in OUTER:
            new = {f"{OUTER[path]}.{end}": weight}
        else:
            _, _, layer, part = path.split(".", 3)
            block = f"blk.{layer}"
            if part == "mlp.experts":
                new = expert_tensors(block, end, weight, experts)
            else:
                new = {f"{block}.{BLOCKS.get(architecture, LLAMA_BLOCK)[part]}.{end}": weight}
            if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                new = {key: interleaved(value, heads) for key, value in new.items()}
            if architecture == "gpt2" and end == "weight" and ".c_" in f".{part}":
                new = {key: value.T for key, value in new.items()}
        if architecture.startswith("gemma") and "norm" in path:
            new = {key: value.float() + 1 for key, value in new.items()}
        for key, value in new.items():
            out[key] = value.to(torch.float32 if value.dim() == 1 else matrices)
    return out


def expert_tensors(block, end, weight, experts):
    parts = dict(zip(("gate", "up"), weight.chunk(2, 1))) if end == "gate_up_proj" else {"down": weight}
    if experts == "merged":
        return {f"{block}.ffn_{part}_exps.weight": value for part, value in parts.items()}
    return {f"{block}.ffn_{part}.{e}.weight": value[e] for part, value in parts.items() for e in range(len(value))}


def llama3_divisors(config):
    """What Llama-3 scaling divides each frequency by."""
    rope = config.rope_parameters
    width = config.head_dim
    turns = rope["original_max_position_embeddings"] / (
        2 * torch.pi * rope["rope_theta"] ** (torch.arange(0, width, 2).double() / width))
    keep = ((turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])).clamp(0, 1)
    return (1 / (keep + (1 - keep) / rope["factor"])).float()


def build(name):
    architecture, experts, parts = FILES[name]
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype="auto")
    keys = {
        "general.architecture": text(architecture), "general.type": text("model"), "general.name": text(name),
        "general.file_type": u32(FILE_TYPES[model.dtype]), "general.quantization_version": u32(2),
    }
    keys |= {f"{architecture}.{key}": value for key, value in KEYS[architecture](model.config).items()}
    keys |= TOKENIZERS.get(architecture, spm_tokenizer)(model.config.vocab_size)
    if architecture.startswith("gemma"):
        keys["tokenizer.ggml.add_space_prefix"] = boolean(False)
    tensors = tensors_of(model, architecture, experts)
    OUT.mkdir(exist_ok=True)
    write(OUT / f"{name}.gguf", keys, tensors)
    print(f"{name}: {architecture}, {len(keys)} keys, {len(tensors)} tensors, "
          f"{(OUT / f'{name}.gguf').stat().st_size / 1000:.0f} kB", flush=True)
    if not parts:
        return
    names, per_part = list(tensors), -(-len(tensors) // parts)
    for part in range(parts):
        # All keys are in the first part.
        split = {"split.no": u16(part), "split.count": u16(parts), "split.tensors.count": i32(len(tensors))}
        held = names[part * per_part : (part + 1) * per_part]
        write(OUT / f"{name}-{part + 1:05}-of-{parts:05}.gguf", (keys if part == 0 else {}) | split,
              {key: tensors[key] for key in held})


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or FILES:
        build(name)
