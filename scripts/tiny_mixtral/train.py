#!/usr/bin/env python3
"""Trains the built-in model: a small Mixtral on the derivations of `generate.py`.

Makes the tokenizer (byte-level BPE, digits one by one), packs the derivations into blocks of
256 tokens and trains a `MixtralForCausalLM`. A checkpoint is written on the way; a run that is
started again goes on from it. `finish.py` then writes the model folder and its card.

    pip install torch transformers tokenizers numpy
    python3 train.py --work DIR
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import generate

SEED = 20
BLOCK = 256
BATCH = 16
CONTEXT = 512
SPECIAL = ["<unk>", "<bos>", "<eos>"]


def make_tokenizer(texts, vocabulary):
    """Byte-level BPE over `texts`; every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))])
    return tokenizer


def tokens_of(tokenizer, split, count, part=4000):
    """The derivations of a split as one stream: <bos> text <eos> <bos> text <eos> …"""
    eos = tokenizer.token_to_id("<eos>")
    stream = []
    for start in range(0, count, part):
        texts = [d.text for d in generate.documents(split, min(part, count - start), start)]
        for encoding in tokenizer.encode_batch(texts):
            stream.append(np.array([*encoding.ids, eos], dtype=np.uint16))
    return np.concatenate(stream)


def make_model(vocabulary, experts):
    config = MixtralConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=False,
        router_aux_loss_coef=0.05, output_router_logits=True, sliding_window=None,
        bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )
    torch.manual_seed(SEED)
    model = MixtralForCausalLM(config)
    model.set_experts_implementation(experts)
    return model


def rate(step, steps, peak, warmup=200):
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def balance_loss(model, router_logits):
    """The auxiliary loss of each layer by itself, averaged; 2 is even use of the experts.

    transformers' own pools the tokens of all layers first, and is content when what one layer
    leaves idle another overloads.
    """
    config = model.config
    losses = [load_balancing_loss_func((layer,), config.num_local_experts, config.num_experts_per_tok)
              for layer in router_logits]
    return torch.stack(losses).mean()


def loss_on(model, stream, blocks):
    """Mean next-token loss in nats over the first `blocks` blocks, without the auxiliary term."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, blocks, BATCH):
            rows = [stream[i * BLOCK : (i + 1) * BLOCK] for i in range(start, min(blocks, start + BATCH))]
            ids = torch.from_numpy(np.stack(rows).astype(np.int64))
            logits = model(ids, use_cache=False, output_router_logits=False).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            total += losses.view(len(rows), -1).mean(1).sum().item()
    model.train()
    return total / blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="token stream, checkpoints and log")
    parser.add_argument("--documents", type=int, default=190_000)
    parser.add_argument("--tokens", type=int, default=16_000_000)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--peak-rate", type=float, default=3e-3)
    parser.add_argument("--experts", default="grouped_mm", help="experts implementation of transformers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stop-after", type=int, help="steps to do now; the schedule stays whole")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)

    tokenizer_file = options.work / "tokenizer.json"
    if not tokenizer_file.exists():
        sample = [d.text for d in generate.documents("train", 20_000)]
        make_tokenizer(sample, options.vocabulary).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))

    streams = {}
    for split, count in [("train", options.documents), ("validation", 2_000)]:
        file = options.work / f"{split}.npy"
        if not file.exists():
            np.save(file, tokens_of(tokenizer, split, count))
        streams[split] = np.load(file)
        print(f"{split}: {count} derivations, {len(streams[split])} tokens", flush=True)

    model = make_model(tokenizer.get_vocab_size(), options.experts)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters} parameters", flush=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=options.peak_rate, betas=(0.9, 0.95), fused=True)

    steps = options.tokens // (BATCH * BLOCK)
    stream = streams["train"]
    blocks = len(stream) // BLOCK
    order = np.random.default_rng(SEED).permutation(blocks)
    first, spent, checkpoint = 0, 0.0, options.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]
        print(f"going on from step {first}", flush=True)

    began, smooth = time.time(), None
    last = min(steps, first + options.stop_after) if options.stop_after else steps
    for step in range(first, last):
        rows = [order[(step * BATCH + i) % blocks] for i in range(BATCH)]
        ids = torch.from_numpy(np.stack([stream[r * BLOCK : (r + 1) * BLOCK] for r in rows]).astype(np.int64))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, options.peak_rate)
        out = model(ids, use_cache=False)
        loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        balance = balance_loss(model, out.router_logits)
        optimizer.zero_grad(set_to_none=True)
        (loss + model.config.router_aux_loss_coef * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        done = step + 1
        if done % 100 == 0 or done == last:
            seconds = spent + time.time() - began
            print(f"step {done}/{steps} tokens {done * BATCH * BLOCK} loss {smooth:.4f} "
                  f"balance {balance.item():.4f} {seconds:.0f} s "
                  f"{(done - first) * BATCH * BLOCK / (time.time() - began):.0f} tokens/s", flush=True)
        if done % 250 == 0 or done == last:
            part = checkpoint.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done,
                        "seconds": spent + time.time() - began}, part)
            os.replace(part, checkpoint)
        if done % 1000 == 0 or done == last:
            print(f"step {done} validation loss {loss_on(model, streams['validation'], 64):.4f}", flush=True)

    record = {"parameters": n_parameters, "steps": last, "planned_steps": steps,
              "tokens": last * BATCH * BLOCK, "training_loss": smooth,
              "seconds": spent + time.time() - began, "threads": options.threads, "seed": SEED,
              "documents": options.documents, "stream_tokens": len(stream)}
    (options.work / "record.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
