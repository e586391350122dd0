#!/usr/bin/env python3
"""Runs random models of every family through transformers and through eigenlens, and compares.

Beside the golden models, which are few and chosen, this draws configurations at random: sizes, biases,
windows, rotary scalings, caps, tied embeddings, activation functions. transformers saves each model with
random weights, `eigenlens capture` reads the folder, and logits, patterns and residual streams of three
prompts must agree to 1e-4 of the largest value. Where they do not, both are compared with the same model
in float64: a badly conditioned model is one on which both are equally far from it.

    pip install torch transformers safetensors
    cargo build --release
    python3 tests/golden/sweep.py SEED COUNT [FAMILY,FAMILY...]
"""

import copy
import json
import logging
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target/release/eigenlens"
FAMILIES = ["gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2",
            "phi3", "qwen2", "qwen3", "smollm3"]
TOLERANCE = 1e-4
# How much farther than transformers in f32 eigenlens may be from float64.
WORSE = 10

logging.disable(logging.WARNING)
transformers.logging.set_verbosity(50)
transformers.utils.logging.disable_progress_bar()


def rope(draw):
    kind = draw.choice(["default", "default", "linear", "llama3", "yarn", "dynamic"])
    parameters = {"rope_type": kind, "rope_theta": draw.choice([500.0, 10000.0, 1e6])}
    if kind == "linear":
        parameters["factor"] = draw.choice([2.0, 4.5])
    elif kind == "dynamic":
        parameters["factor"] = 2.0
    elif kind == "llama3":
        parameters |= {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 32}
    elif kind == "yarn":
        parameters |= {"factor": 4.0, "original_max_position_embeddings": draw.choice([16, 32])}
        for extra in ({"attention_factor": 1.3}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False}):
            if draw.random() < 0.3:
                parameters |= extra
    return parameters


def configuration(draw, family):
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 3])
    layers, window = draw.randint(1, 4), draw.choice([2, 3, 5, 9])
    divisible = heads * 2 * draw.randint(2, 8)

    def often(share):
        return draw.random() < share

    def kinds():
        return [draw.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]

    if family == "gpt2":
        return dict(vocab_size=99, n_embd=heads * draw.randint(2, 12), n_head=heads, n_layer=layers, n_positions=80,
                    n_inner=draw.choice([None, draw.randint(5, 60)]), bos_token_id=1, eos_token_id=2,
                    activation_function=draw.choice(["gelu_new", "gelu", "relu"]),
                    layer_norm_epsilon=draw.choice([1e-5, 1e-2]), scale_attn_weights=often(0.7),
                    scale_attn_by_inverse_layer_idx=often(0.4), tie_word_embeddings=often(0.6))
    if family == "gpt_neox":
        share = draw.choice([0.25, 0.4, 0.5, 1.0])
        return dict(vocab_size=99, hidden_size=heads * 2 * draw.randint(3, 10), num_attention_heads=heads,
                    num_hidden_layers=layers, intermediate_size=draw.randint(5, 60), max_position_embeddings=128,
                    hidden_act=draw.choice(["gelu", "gelu_new", "gelu_fast", "relu"]),
                    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share},
                    use_parallel_residual=often(0.6), attention_bias=often(0.6), tie_word_embeddings=often(0.4),
                    layer_norm_eps=draw.choice([1e-5, 1e-2]))

    config = dict(vocab_size=draw.choice([64, 99, 131]), hidden_size=draw.randint(9, 50), num_hidden_layers=layers,
                  intermediate_size=draw.randint(5, 70), num_attention_heads=heads, num_key_value_heads=kv_heads,
                  head_dim=2 * draw.randint(2, 9), max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
                  eos_token_id=2, rms_norm_eps=draw.choice([1e-6, 1e-5, 1e-2]), tie_word_embeddings=often(0.5))
    activation = "hidden_activation" if family in ("gemma2", "gemma3_text") else "hidden_act"
    config[activation] = draw.choice(["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu"])
    if family not in ("phi3", "gemma3_text"):
        config["rope_parameters"] = rope(draw)
    if family in ("gemma", "gemma2", "gemma3_text", "granite", "llama", "olmo2", "qwen3", "smollm3"):
        config["attention_bias"] = often(0.4)
    if family in ("granite", "llama", "smollm3"):
        config["mlp_bias"] = often(0.4)
    if family in ("gemma2", "gemma3_text", "granite", "llama", "phi3"):
        config["hidden_size"] = divisible
    if family in ("granite", "phi3") or (family == "olmo2" and often(0.5)):
        config["hidden_size"] = divisible
        del config["head_dim"]
    if family in ("mistral", "mixtral", "phi3"):
        config["sliding_window"] = draw.choice([None, window])
    if family == "mixtral":
        config["num_local_experts"] = draw.choice([2, 3, 5, 8])
        config["num_experts_per_tok"] = draw.randint(1, config["num_local_experts"])
    if family in ("qwen2", "qwen3") and often(0.5):
        config |= dict(use_sliding_window=True, sliding_window=window, max_window_layers=draw.randint(0, layers))
        if often(0.4):
            config["layer_types"] = kinds()
    if family == "phi3":
        width = divisible // heads
        rotated = draw.choice([share for share in (0.5, 0.75, 1.0) if int(width * share) % 2 == 0])
        parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotated}
        if often(0.6):
            factors = [[round(draw.uniform(1, top), 2) for _ in range(int(width * rotated) // 2)] for top in (3, 9)]
            parameters |= {"rope_type": "longrope", "short_factor": factors[0], "long_factor": factors[1]}
            config["original_max_position_embeddings"] = draw.choice([8, 16, 64])
        config["rope_parameters"] = parameters
    if family in ("gemma2", "gemma3_text"):
        config |= dict(query_pre_attn_scalar=draw.choice([7, 12, 256]), sliding_window=window,
                       final_logit_softcapping=draw.choice([None, 5.0]), layer_types=kinds())
    if family == "gemma2":
        config["attn_logit_softcapping"] = draw.choice([None, 3.0, 50.0])
    if family == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": draw.choice([100.0, 10000.0])}
        full = rope(draw)
        # transformers looks for it beside the kinds of layers, where it never is.
        full.pop("truncate", None)
        config["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
    if family == "smollm3":
        config["no_rope_layers"] = [draw.choice([0, 1]) for _ in range(layers)]
        if often(0.5):
            config |= dict(use_sliding_window=True, sliding_window=window)
    if family == "granite":
        config |= dict(embedding_multiplier=draw.uniform(0.5, 9), logits_scaling=draw.uniform(0.5, 9),
                       residual_multiplier=draw.uniform(0.2, 2), attention_multiplier=draw.uniform(0.05, 0.6))
    return config


def random_model(draw, family, config):
    torch.manual_seed(draw.randint(0, 1 << 30))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config), attn_implementation="eager",
                                             experts_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_norm = weight.dim() == 1 and name.endswith("weight") and ("norm" in name or ".ln_" in name)
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.2) + float(is_norm))
    model.tie_weights()
    return model


def captured(folder, prompts):
    """What eigenlens captures of the prompts."""
    (folder / "ids.json").write_text(json.dumps(prompts))
    hooks = ["logits", "blocks.*.attn.hook_pattern", "blocks.*.hook_resid_post"]
    command = [PROGRAM, "capture", "--quiet", "--model", folder / "model", "--token-ids", folder / "ids.json",
               "--out", folder / "run", *(word for hook in hooks for word in ("--hook", hook))]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"eigenlens: {run.stderr}")
    tensors = {}
    for file in (folder / "run/tensors").glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def expected(model, prompt, ids):
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True, use_cache=False)
    values = {f"{prompt}/logits": out.logits[0]}
    values |= {f"{prompt}/blocks.{l}.attn.hook_pattern": x[0] for l, x in enumerate(out.attentions)}
    # The last of the hidden states has gone through the final norm.
    values |= {f"{prompt}/blocks.{l}.hook_resid_post": x[0] for l, x in enumerate(out.hidden_states[1:-1])}
    return values


def difference(got, value):
    scale = value.double().abs().max().clamp(min=1e-12)
    return ((got.double() - value.double()).abs().max() / scale).item()


def compare(draw, family):
    """The largest difference, and whether it is ours."""
    config = configuration(draw, family)
    model = random_model(draw, family, config)
    lengths = [1, draw.randint(2, 7), draw.randint(8, 40)]
    prompts = [[draw.randrange(config["vocab_size"]) for _ in range(n)] for n in lengths]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        got = captured(Path(folder), prompts)
    values = {}
    for prompt, ids in enumerate(prompts):
        values |= expected(model, prompt, ids)
    worst = max(difference(got[key], value) for key, value in values.items())
    if worst <= TOLERANCE:
        return worst, False
    exact, double = {}, copy.deepcopy(model).double()
    for prompt, ids in enumerate(prompts):
        exact |= expected(double, prompt, ids)
    ours = max(difference(got[key], value) for key, value in exact.items())
    theirs = max(difference(values[key], value) for key, value in exact.items())
    is_ours = not ours <= WORSE * theirs
    print(f"{family}: {worst:.1e}; from float64 eigenlens {ours:.1e}, transformers {theirs:.1e}"
          + (f"\n{json.dumps(config)}" if is_ours else ""), flush=True)
    return worst, is_ours


def main():
    draw = random.Random(int(sys.argv[1]))
    families = sys.argv[3].split(",") if len(sys.argv) > 3 else FAMILIES
    worst, wrong = {}, 0
    for _ in range(int(sys.argv[2])):
        family = draw.choice(families)
        found, is_ours = compare(draw, family)
        worst[family] = max(worst.get(family, 0.0), found)
        wrong += is_ours
    print({family: f"{value:.1e}" for family, value in sorted(worst.items())})
    raise SystemExit(f"{wrong} models disagree" if wrong else 0)


if __name__ == "__main__":
    main()
