#!/usr/bin/env python3
"""Times transformers on the work of benches/models.rs, in the same way.

    models.py FOLDER DEVICE DTYPE [ATTENTION]      cuda:0, bf16, sdpa or eager

Reads a piece of work per line (`prefill BATCH TOKENS CAPTURE`, `decode STEPS`) and prints wall
seconds as a line of JSON. Of captures it has `none`, and `attentions` under eager: every pattern.
"""

import contextlib
import inspect
import json
import os
import sys
import time

# Answers alone go to standard output; what libraries print goes to standard error.
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import torch
import transformers

PROMPT, WARM_UP = 128, 16
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def ids(model, rows, tokens):
    numbers = [[(row + i) * 7919 + 13 for i in range(tokens)] for row in range(rows)]
    return torch.tensor(numbers, device=model.device) % model.config.vocab_size


def prefill(model, rows, tokens, capture):
    batch = ids(model, rows, tokens)
    begun = time.perf_counter()
    out = model(batch, use_cache=False, logits_to_keep=1, output_attentions=capture == "attentions")
    out.logits.float().cpu()
    seconds = time.perf_counter() - begun
    if capture == "attentions":
        shapes = [tuple(pattern.shape) for pattern in out.attentions or ()]
        heads = model.config.num_attention_heads
        assert shapes == [(rows, heads, tokens, tokens)] * model.config.num_hidden_layers, shapes[:1]
    return seconds


def has_experts(model):
    return getattr(model.config, "num_local_experts", None) is not None


def decode(model, steps):
    """The quicker of two ways, where there are experts: as a prefill has them, and as `generate` decodes."""
    ways = [contextlib.nullcontext]
    if has_experts(model) and hasattr(model, "_optimize_model_for_decode"):
        ways.append(model._optimize_model_for_decode)
    found = []
    for way in ways:
        with way():
            found.append(decode_one_way(model, steps))
    return min(found)


def decode_one_way(model, steps):
    # The newer of its names, where a version has both.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = model(ids(model, 1, PROMPT), use_cache=True, logits_to_keep=1).past_key_values
    token = ids(model, 1, 1)
    for i in range(WARM_UP + steps):
        if i == WARM_UP:
            begun = time.perf_counter()
        out = model(token, use_cache=True, **{name: cache})
        cache = out.past_key_values
        out.logits.float().cpu()
    assert cache.get_seq_length() == PROMPT + WARM_UP + steps
    return (time.perf_counter() - begun) / steps


def answer(model, line):
    words = line.split()
    if words[0] == "prefill":
        return {"work": line, "seconds": prefill(model, int(words[1]), int(words[2]), words[3])}
    if words[0] == "decode":
        return {"work": line, "seconds": decode(model, int(words[1]))}
    return {"work": line, "error": "no such work"}


def load(folder, device, dtype, attention):
    options = {"dtype": DTYPES[dtype], "attn_implementation": attention}
    with contextlib.suppress(ImportError):
        import accelerate  # noqa: F401, with which weights go to their device without a stay in main memory
        options["device_map"] = device
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).to(device).eval()


def say(answer):
    print(json.dumps(answer), file=ANSWERS, flush=True)


def main():
    folder, device, dtype, *rest = sys.argv[1:]
    attention = rest[0] if rest else "sdpa"
    try:
        model = load(folder, device, dtype, attention)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(4)
    experts = getattr(model.config, "_experts_implementation", None) if has_experts(model) else None
    ways = attention if experts is None else f"{attention}, experts by {experts}"
    say({"work": "load", "peer": f"transformers {transformers.__version__} on torch {torch.__version__}, {ways}"})
    for line in sys.stdin:
        try:
            found = answer(model, line.strip())
        except Exception as error:  # too little memory for this piece is no reason to stop
            torch.cuda.empty_cache()
            found = {"work": line.strip(), "error": f"{type(error).__name__}: {error}".split("\n")[0]}
        say(found)


if __name__ == "__main__":
    with torch.no_grad():
        main()
