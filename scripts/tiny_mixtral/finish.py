#!/usr/bin/env python3
"""Writes the folder of the built-in model from a checkpoint of `train.py`, and measures it.

The folder is loaded back with transformers' Auto classes before anything is measured; its card,
README.md, holds what was found.

    python3 finish.py --work DIR
"""

import argparse
import json
import math
import platform
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import generate
import heldout
import train

ASSETS = Path(__file__).resolve().parents[2] / "assets"
OUT = ASSETS / "tiny-mixtral"

CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---
# tiny-mixtral

A mixture-of-experts language model of {parameters:,} parameters, small enough to be part of a source
tree. It exists so that routing, attention and spectra can be tried and tested without a download.
It was trained from scratch for this project by `scripts/tiny_mixtral/`, and knows nothing but the
derivations described below. It is no use as a language model.

| | |
|---|---|
| architecture | `MixtralForCausalLM`: width 128, 4 layers, 4 heads and 2 key-value heads of width 32, 8 experts of width 128, 2 a token |
| vocabulary | {vocabulary} tokens: byte-level BPE, every digit a token of its own, `<bos>` put before a text |
| context | {context} positions; trained on blocks of {block} |
| weights | f32, {megabytes:.1f} MB; expert tensors: {layout} |

## Trained on

Step-by-step derivations written by `generate.py`: arithmetic chains, stories of things gained and
lost, parity, substitution, linear equations, syllogisms, truth values, orderings, sums in columns,
division with remainder, sorting, clocks and sequences. {documents:,} valid derivations ({distinct:,}
of them distinct but for layout), no invalid one, packed as `<bos> text <eos>`; {tokens:,} tokens seen
of {stream_tokens:,}, each at most once.

AdamW, peak rate 3e-3 with 200 steps of warm-up and a cosine to 2 %, weight decay 0.1 on matrices,
gradient norm at most 1, batch {batch} × {block} tokens, {steps:,} steps{short}, load-balancing loss
of each layer by itself with coefficient 0.05 (transformers' pools the layers, and left experts of
single layers idle), seed {seed}. {minutes:.0f} minutes of wall time with {threads} torch
{thread_word} on a shared two-core machine. The generator is deterministic; the training is so only with the same
versions and the same number of threads on like hardware.

## Result

Losses are nats a token.

| | |
|---|---|
| training loss at the end (running mean) | {training_loss:.3f} |
| held-out loss ({heldout_tokens:,} tokens, {heldout_documents:,} derivations of another seed, none among the training ones) | {heldout_loss:.3f} |
| unigram baseline on the same held-out tokens | {unigram:.3f} |
| normalised load entropy, layers 0 to 3, same tokens | {entropies} |
| `assets/derivations.jsonl`: loss on valid, on invalid texts | {valid_loss:.3f}, {invalid_loss:.3f} |
| pairs in which the invalid text is the less likely | {less_likely} of {pairs} |

Load entropy is H / ln 8 of the shares of the eight experts in all top-2 choices of a layer: 1 is even
use. The texts of a pair in `derivations.jsonl` have the same number of tokens and differ in one wrong
step and what follows from it; none of them is among the training texts.

Made with torch {torch}, transformers {transformers}, tokenizers {tokenizers}, Python {python}.
"""


def write_folder(work):
    """The checkpoint as a folder that transformers loads, and the record of its training."""
    checkpoint = torch.load(work / "checkpoint.pt")
    vocabulary = tokenizers.Tokenizer.from_file(str(work / "tokenizer.json")).get_vocab_size()
    model = train.make_model(vocabulary, "eager")
    model.load_state_dict(checkpoint["model"])
    model.config.output_router_logits = False
    OUT.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(OUT)
    (OUT / "model.safetensors").chmod(0o644)
    (OUT / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())
    (OUT / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": train.CONTEXT, "bos_token": "<bos>",
        "eos_token": "<eos>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False}, indent=2) + "\n")
    return model


def heldout_stream(tokenizer, documents):
    """Validation derivations that are not, in whatever layout, among the training ones."""
    trained = {heldout.content(d.sentences) for d in generate.documents("train", documents)}
    texts = [d.text for d in generate.documents("validation", 2_000) if heldout.content(d.sentences) not in trained]
    eos = tokenizer.eos_token_id
    stream = np.concatenate([[*ids, eos] for ids in tokenizer(texts)["input_ids"]])
    return stream, len(texts), len(trained)


def loss_and_loads(model, stream):
    """Loss over whole blocks, and how often each layer's router chose each expert."""
    blocks = len(stream) // train.BLOCK
    config = model.config
    loads = torch.zeros(config.num_hidden_layers, config.num_local_experts)
    loss = 0.0
    with torch.no_grad():
        for start in range(0, blocks, train.BATCH):
            end = min(blocks, start + train.BATCH)
            ids = torch.from_numpy(stream[start * train.BLOCK : end * train.BLOCK].astype(np.int64)).view(end - start, -1)
            out = model(ids, use_cache=False, output_router_logits=True)
            loss += torch.nn.functional.cross_entropy(
                out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
            for layer, router in enumerate(out.router_logits):
                # The order of the experts is the same before and after a softmax.
                chosen = router.topk(config.num_experts_per_tok, dim=-1).indices
                loads[layer] += torch.bincount(chosen.flatten(), minlength=config.num_local_experts)
    shares = loads / loads.sum(1, keepdim=True)
    entropies = -(shares * shares.log()).sum(1) / math.log(config.num_local_experts)
    return loss / (blocks * (train.BLOCK - 1)), entropies.tolist(), shares


def unigram_loss(train_stream, heldout_stream, vocabulary):
    """Loss on the held-out tokens of the frequencies in the training tokens, plus one each."""
    counts = np.bincount(train_stream, minlength=vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[heldout_stream].mean())


def pair_losses(model, tokenizer):
    losses = {"valid": [], "invalid": []}
    with torch.no_grad():
        for line in open(ASSETS / "derivations.jsonl", encoding="utf-8"):
            row = json.loads(line)
            ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
            assert ids.shape[1] == row["n_tokens"]
            logits = model(ids, use_cache=False).logits[0, :-1]
            losses[row["label"]].append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item())
    tokens = sum(json.loads(line)["n_tokens"] - 1 for line in open(ASSETS / "derivations.jsonl", encoding="utf-8")) / 2
    return np.array(losses["valid"]), np.array(losses["invalid"]), tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder given to train.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    saved = write_folder(options.work)
    record = json.loads((options.work / "record.json").read_text())
    model, info = AutoModelForCausalLM.from_pretrained(OUT, output_loading_info=True)
    model.eval()
    assert not any(info.values()), info
    for (name, a), b in zip(saved.state_dict().items(), model.state_dict().values()):
        assert torch.equal(a, b), name
    tokenizer = AutoTokenizer.from_pretrained(OUT)
    assert tokenizer("7 + 5 = 12.")["input_ids"][0] == tokenizer.bos_token_id

    stream, heldout_documents, distinct = heldout_stream(tokenizer, record["documents"])
    loss, entropies, shares = loss_and_loads(model, stream)
    valid, invalid, tokens = pair_losses(model, tokenizer)
    file = OUT / "model.safetensors"
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        fused = any("gate_up_proj" in name for name in tensors.keys())
    short = "" if record["steps"] == record["planned_steps"] else f" of {record['planned_steps']:,} planned"
    (OUT / "README.md").write_text(CARD.format(
        **{k: record[k] for k in ("parameters", "documents", "tokens", "stream_tokens", "steps", "seed", "training_loss")},
        vocabulary=model.config.vocab_size, context=train.CONTEXT, block=train.BLOCK, batch=train.BATCH,
        megabytes=file.stat().st_size / 1e6, short=short, minutes=record["seconds"] / 60, threads=record["threads"],
        thread_word="thread" if record["threads"] == 1 else "threads",
        layout="fused 3-D (`mlp.experts.gate_up_proj`)" if fused else "one by one (`block_sparse_moe.experts.N.w1`)",
        heldout_documents=heldout_documents, distinct=distinct,
        heldout_tokens=len(stream) // train.BLOCK * train.BLOCK, heldout_loss=loss,
        unigram=unigram_loss(np.load(options.work / "train.npy"), stream, model.config.vocab_size),
        entropies=", ".join(f"{e:.4f}" for e in entropies),
        valid_loss=valid.sum() / tokens, invalid_loss=invalid.sum() / tokens,
        less_likely=int((invalid > valid).sum()), pairs=len(valid),
        torch=torch.__version__.split("+")[0], transformers=transformers.__version__,
        tokenizers=tokenizers.__version__, python=platform.python_version()))
    print((OUT / "README.md").read_text())
    print(shares)


if __name__ == "__main__":
    main()
