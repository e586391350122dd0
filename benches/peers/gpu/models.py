#!/usr/bin/env python3
"""Times transformers on the work of benches/models.rs, in the same way.

    models.py FOLDER DEVICE DTYPE [ATTENTION]      cuda:0, bf16, sdpa or eager

Reads a piece of work per line (`prefill BATCH TOKENS CAPTURE`, `decode STEPS`) and prints wall
seconds as a line of JSON. Of captures it has `none`, and `attentions` under eager: every pattern.
"""

import json
import os
import sys
import time

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
    model(batch, use_cache=False, logits_to_keep=1, output_attentions=capture == "attentions").logits.float().cpu()
    return time.perf_counter() - begun


def decode(model, steps):
    cache = model(ids(model, 1, PROMPT), use_cache=True, logits_to_keep=1).past_key_values
    token = ids(model, 1, 1)
    for i in range(WARM_UP + steps):
        if i == WARM_UP:
            begun = time.perf_counter()
        out = model(token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        out.logits.float().cpu()
    return (time.perf_counter() - begun) / steps


def answer(model, line):
    words = line.split()
    if words[0] == "prefill":
        return {"work": line, "seconds": prefill(model, int(words[1]), int(words[2]), words[3])}
    if words[0] == "decode":
        return {"work": line, "seconds": decode(model, int(words[1]))}
    return {"work": line, "error": "no such work"}


def main():
    folder, device, dtype, *rest = sys.argv[1:]
    attention = rest[0] if rest else "sdpa"
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation=attention).to(device).eval()
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        sys.exit(4)
    print(json.dumps({"work": "load", "peer": f"transformers {transformers.__version__} on torch {torch.__version__}, "
                      f"{attention}"}), flush=True)
    for line in sys.stdin:
        try:
            found = answer(model, line.strip())
        except Exception as error:  # too little memory for this piece is no reason to stop
            torch.cuda.empty_cache()
            found = {"work": line.strip(), "error": f"{type(error).__name__}: {error}".split("\n")[0]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
