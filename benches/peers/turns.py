#!/usr/bin/env python3
"""Does one piece of work per line of standard input and prints its time: the peer of benches/turns.rs.

    EIGENLENS_IDS=ids.json python3 turns.py 1 SmolLM2-135M-Instruct.Q4_1.gguf

The first argument is the number of threads. With a text as third argument it prints the ids of the text's
first 8,192 tokens and ends. Work:

forward T         transformers, f32, SDPA, logits_to_keep=1, no cache
spectral T        transformers, f32, eager, output_attentions and output_hidden_states; then in numpy, for
                  each head and the mean over heads of every layer: λ₂, λ_max, Dirichlet energy, Rayleigh
                  quotient, smoothness and heat energies, by one eigh in f64 (first token dropped, signal
                  centred, rows of unit norm, symmetric-normalized Laplacian); and the per-head scores of the
                  summary (column sums, diagonal, row entropy, distance)
spectral+paper T  the same, and the combinatorial spectrum of each layer's mean with mode energies and entropies
exact T           as spectral; spectral entropies and energy shares too, from the same eigh
dense N           eigh of one Laplacian, f64, numpy and torch: the faster of the two
dense-f32 N       the same in f32
fiedler N         torch.linalg.eigvalsh of 32 Laplacians, f32, as one batch
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

THREADS = int(sys.argv[1])
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = str(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

torch.set_num_threads(THREADS)
models, kept = {}, {}


def model(attention):
    if attention not in models:
        import transformers

        path = Path(sys.argv[2])
        models[attention] = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation=attention).eval()
    return models[attention]


def ids(n):
    return torch.tensor([json.loads(Path(os.environ["EIGENLENS_IDS"]).read_text())[:n]])


def pattern(n, seed):
    rng = np.random.default_rng(seed)
    back = np.arange(n)[:, None] - np.arange(n)[None]
    scores = rng.normal(0.0, 1.5, (n, n)) - 0.01 * back
    weights = np.where(back >= 0, np.exp(scores), 0.0)
    return weights / weights.sum(1, keepdims=True)


def normalized(a):
    w = (a + a.T) / 2
    scale = 1 / np.sqrt(w.sum(1))
    laplacian = -w * scale[:, None] * scale[None]
    laplacian[np.diag_indices(len(a))] += 1
    return laplacian


def shares(x):
    p = x / x.sum()
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def diagnose(laplacian, x, whole):
    values, vectors = np.linalg.eigh(laplacian)
    modes = ((vectors.T @ x) ** 2).sum(1)
    energy, dirichlet = float((x * x).sum()), float((values * modes).sum())
    row = {"fiedler": values[1], "lambda_max": values[-1], "dirichlet": dirichlet, "energy": energy,
           "rayleigh": dirichlet / energy, "smoothness": 1 - dirichlet / (values[-1] * energy),
           "heat": [float((np.exp(-t * values) * modes).sum()) / energy for t in (1, 2, 5)],
           "mean": values.mean(), "variance": values.var()}
    if whole:
        row |= {"hfer": modes[len(modes) // 2:].sum() / energy, "spectral_entropy": shares(modes),
                "eigenvalue_entropy": shares(np.maximum(values, 0))}
    return row


def spectral(n, paper, whole):
    output = model("eager")(ids(n), use_cache=False, logits_to_keep=1, output_attentions=True, output_hidden_states=True)
    back = np.abs(np.arange(n)[:, None] - np.arange(n)[None])
    rows = []
    for attention, hidden in zip(output.attentions, output.hidden_states[1:]):
        a = attention[0].numpy()
        signal = hidden[0].numpy().astype(np.float64)
        x = signal[1:] - signal[1:].mean(0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        patterns = a[:, 1:, 1:].astype(np.float64)
        for pattern in [*patterns, patterns.mean(0)]:
            rows.append(diagnose(normalized(pattern), x, whole))
        if paper:
            w = a.mean(0).astype(np.float64)
            w = (w + w.T) / 2
            rows.append(diagnose(np.diag(w.sum(1)) - w, signal, True))
        entropy = -(a * np.log(np.where(a > 0, a, 1))).sum(2)
        rows.append({"received": a.sum(1), "diagonal": np.diagonal(a, axis1=1, axis2=2), "entropy": entropy,
                     "distance": (a * back).sum(2)})
    return rows


def timed(work):
    cpu, wall = time.process_time(), time.perf_counter()
    value = work()
    del value
    return time.perf_counter() - wall, time.process_time() - cpu


def prepared(kind, n, make):
    if (kind, n) not in kept:
        kept[kind, n] = make()
    return kept[kind, n]


def tokenize(gguf, text):
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    path = Path(gguf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).backend_tokenizer
    # transformers' conversion of a GGUF leaves out the splitting of digits.
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return tokenizer.encode(Path(text).read_text(encoding="utf-8"), add_special_tokens=False).ids[:8192]


def main():
    if len(sys.argv) > 3:
        print(json.dumps(tokenize(sys.argv[2], sys.argv[3])))
        return
    for line in sys.stdin:
        work, size = line.split()
        size = int(size)
        with torch.no_grad():
            if work == "forward":
                sdpa = model("sdpa")
                wall, cpu = timed(lambda: sdpa(ids(size), use_cache=False, logits_to_keep=1))
            elif work in ("spectral", "spectral+paper", "exact"):
                model("eager")
                wall, cpu = timed(lambda: spectral(size, work == "spectral+paper", work == "exact"))
            elif work in ("dense", "dense-f32"):
                dtype = np.float64 if work == "dense" else np.float32
                laplacian = prepared(work, size, lambda: normalized(pattern(size, 0)).astype(dtype))
                wall, cpu = min(timed(lambda: np.linalg.eigh(laplacian)),
                                timed(lambda: torch.linalg.eigh(torch.from_numpy(laplacian))))
            elif work == "fiedler":
                batch = prepared(work, size, lambda: torch.from_numpy(np.stack(
                    [normalized(pattern(size, seed)) for seed in range(32)]).astype(np.float32)))
                wall, cpu = timed(lambda: torch.linalg.eigvalsh(batch))
            else:
                raise SystemExit(f"no such work: {work}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"wall": wall, "cpu": cpu, "peak_kib": peak}), flush=True)


if __name__ == "__main__":
    main()
