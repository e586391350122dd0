#!/usr/bin/env python3
"""Times the forward pass of transformers (SDPA, logits of the last position alone) on a GGUF.

The weights are dequantised to f32. Prints one JSON object; times are wall seconds.

    python3 forward.py SmolLM2-135M-Instruct.Q4_1.gguf --tokens 512 --threads 2
    python3 forward.py SmolLM2-135M-Instruct.Q4_1.gguf --perplexity lee_background.cor
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--output-attentions", action="store_true", help="keep every pattern; needs --attention eager")
    parser.add_argument("--perplexity", type=Path, help="text: perplexity of its first 1,024 tokens instead of a time")
    options = parser.parse_args()
    # Before torch is loaded: its thread pools read these once.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)

    import torch
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    torch.set_num_threads(options.threads)
    where = {"gguf_file": options.gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(options.gguf.parent), dtype=torch.float32, attn_implementation=options.attention, **where).eval()
    result = {"torch": torch.__version__, "transformers": transformers.__version__, "model": options.gguf.name,
              "dtype": "f32", "attention": options.attention, "threads": torch.get_num_threads()}

    if options.perplexity:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(options.gguf.parent), **where).backend_tokenizer
        # transformers' conversion of a GGUF leaves out the splitting of digits.
        tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        ids = tokenizer.encode(options.perplexity.read_text(encoding="utf-8"), add_special_tokens=False).ids[:1024]
        ids = torch.tensor([ids])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, :-1].double()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
        result.update(tokens=ids.shape[1], loss_nats=loss, perplexity=torch.tensor(loss).exp().item(),
                      first_ids=ids[0, :8].tolist())
        print(json.dumps(result))
        return

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, options.tokens), generator=generator)
    seconds, cpu = [], []
    with torch.no_grad():
        for run in range(options.warmup + options.repeats):
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            model(ids, use_cache=False, logits_to_keep=1, output_attentions=options.output_attentions)
            if run >= options.warmup:
                seconds.append(time.perf_counter() - wall_start)
                cpu.append(time.process_time() - cpu_start)
    result.update(tokens=options.tokens, repeats=options.repeats, output_attentions=options.output_attentions,
                  median_seconds=statistics.median(seconds), min_seconds=min(seconds), max_seconds=max(seconds),
                  median_cpu_seconds=statistics.median(cpu))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
