#!/usr/bin/env python3
"""Writes a model folder with random weights: config.json and bf16 safetensors.

    random_model.py llama-8b FOLDER       the shape of Llama-3-8B, 16 GB
    random_model.py llama-135m FOLDER     the shape of SmolLM2-135M, 0.3 GB
    random_model.py mixtral FOLDER        the shape of Mixtral-8x7B with 8 of its 32 layers, 24 GB
    random_model.py tiny-llama FOLDER     the same code on sizes for a test; also tiny-mixtral

Prints what a decode step has to read. The numbers of all tensors are taken from one table of random
ones, at places of their own: that is quick, and as good for timing.
"""

import json
import math
import random
import struct
import sys
from pathlib import Path

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 500000.0}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "rope_theta": 1000000.0,
           "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}
BOTH = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False}


def sizes(hidden, mlp, heads, kv_heads, layers, vocabulary, context):
    return {"hidden_size": hidden, "intermediate_size": mlp, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "num_hidden_layers": layers,
            "vocab_size": vocabulary, "max_position_embeddings": context}


SHAPES = {
    "llama-8b": {**LLAMA, **BOTH, **sizes(4096, 14336, 32, 8, 32, 128256, 8192)},
    "llama-135m": {**LLAMA, **BOTH, **sizes(576, 1536, 9, 3, 30, 49152, 8192)},
    "mixtral": {**MIXTRAL, **BOTH, **sizes(4096, 14336, 32, 8, 8, 32000, 32768)},
    "tiny-llama": {**LLAMA, **BOTH, **sizes(64, 128, 4, 2, 2, 320, 512)},
    "tiny-mixtral": {**MIXTRAL, **BOTH, **sizes(64, 128, 4, 2, 2, 320, 512)},
}


def tensors(c):
    """Name, shape, and the share of it that a decode step reads."""
    d, mlp, wide = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", (c["vocab_size"], d), 0.0
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (d,), 1.0
        for name, rows in (("q", d), ("k", wide), ("v", wide), ("o", d)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, d), 1.0
        yield f"{layer}.post_attention_layernorm.weight", (d,), 1.0
        experts = c.get("num_local_experts", 0)
        if not experts:
            for name, shape in (("gate", (mlp, d)), ("up", (mlp, d)), ("down", (d, mlp))):
                yield f"{layer}.mlp.{name}_proj.weight", shape, 1.0
            continue
        yield f"{layer}.block_sparse_moe.gate.weight", (experts, d), 1.0
        for j in range(experts):
            for name, shape in (("w1", (mlp, d)), ("w2", (d, mlp)), ("w3", (mlp, d))):
                share = c["num_experts_per_tok"] / experts
                yield f"{layer}.block_sparse_moe.experts.{j}.{name}.weight", shape, share
    yield "model.norm.weight", (d,), 1.0
    yield "lm_head.weight", (c["vocab_size"], d), 1.0


def random_bf16(count):
    """Numbers of either sign from 2^-6 to 2^-5: of the size that such models are initialised with."""
    bits = int.from_bytes(random.Random(1).randbytes(2 * count), "little")
    kept = int.from_bytes(b"\x7f\x80" * count, "little")
    fixed = int.from_bytes(b"\x80\x3c" * count, "little")
    return (bits & kept | fixed).to_bytes(2 * count, "little")


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        raise SystemExit(__doc__)
    config, folder = SHAPES[sys.argv[1]], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    # Of an odd number of values, so that rows differ.
    table = random_bf16((1 << 24) + 1)
    header, at, read = {"__metadata__": {"format": "pt"}}, 0, 0.0
    for name, shape, share in tensors(config):
        count = math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * count]}
        at, read = at + 2 * count, read + share * 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        place = 0
        for _, shape, _ in tensors(config):
            left = 2 * math.prod(shape)
            if len(shape) == 1:
                file.write(b"\x80\x3f" * shape[0])
                continue
            while left:
                some = min(left, len(table) - place)
                file.write(memoryview(table)[place:place + some])
                left, place = left - some, (place + some) % len(table)
    # Last, so that a folder without it is unfinished.
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    print(json.dumps({"bytes": at, "decode_bytes": int(read)}))


if __name__ == "__main__":
    main()
