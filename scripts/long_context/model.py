"""Makes a one-layer llama of SmolLM2's shape with random weights and a context of
32,768 tokens, and a prompt of random tokens: `model.py FOLDER TOKENS`.

Needs numpy and safetensors. Queries and keys are large enough for attention to be
far from even.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

D, HEADS, KV_HEADS, D_HEAD, D_MLP, VOCABULARY, CONTEXT = 576, 9, 3, 64, 1536, 1024, 32_768


def main(folder: Path, tokens: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)

    def normal(*shape: int, std: float) -> np.ndarray:
        return (std * rng.standard_normal(shape)).astype(np.float32)

    layer = "model.layers.0"
    weights = {
        "model.embed_tokens.weight": normal(VOCABULARY, D, std=1.0),
        f"{layer}.input_layernorm.weight": np.ones(D, np.float32),
        f"{layer}.self_attn.q_proj.weight": normal(HEADS * D_HEAD, D, std=1.4 / D**0.5),
        f"{layer}.self_attn.k_proj.weight": normal(KV_HEADS * D_HEAD, D, std=1.4 / D**0.5),
        f"{layer}.self_attn.v_proj.weight": normal(KV_HEADS * D_HEAD, D, std=1 / D**0.5),
        f"{layer}.self_attn.o_proj.weight": normal(D, HEADS * D_HEAD, std=1 / D**0.5),
        f"{layer}.post_attention_layernorm.weight": np.ones(D, np.float32),
        f"{layer}.mlp.gate_proj.weight": normal(D_MLP, D, std=1 / D**0.5),
        f"{layer}.mlp.up_proj.weight": normal(D_MLP, D, std=1 / D**0.5),
        f"{layer}.mlp.down_proj.weight": normal(D, D_MLP, std=1 / D_MLP**0.5),
        "model.norm.weight": np.ones(D, np.float32),
    }
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": D,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": D_MLP,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = np.random.default_rng(2).integers(0, VOCABULARY, tokens).tolist()
    (folder / f"ids-{tokens}.json").write_text(json.dumps(ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
