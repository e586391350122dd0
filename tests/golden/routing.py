"""Golden values of routing statistics, in float64 with numpy.

Written from the definitions: load statistics; balancing loss (Switch Transformer,
arXiv 2101.03961); z-loss (ST-MoE, arXiv 2202.08906). Run: python tests/golden/routing.py
"""

import json
import math
import pathlib

import numpy as np


def statistics(logits, k):
    """Softmax over all experts, top-k, renormalised over the k."""
    n_tokens, n = logits.shape
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    indices = np.argsort(-p, axis=1, kind="stable")[:, :k]
    weights = np.take_along_axis(p, indices, axis=1)
    weights = weights / weights.sum(axis=1, keepdims=True)
    slots = np.bincount(indices.reshape(-1), minlength=n)
    first = np.bincount(indices[:, 0], minlength=n)
    load = slots / slots.sum()
    entropy = -sum(q * math.log(q) for q in load if q > 0)
    ascending = np.sort(load)
    ordered = -np.sort(-p, axis=1)
    mean_p = p.mean(axis=0)
    return {
        "logits": logits.reshape(-1).tolist(),
        "probabilities": p.reshape(-1).tolist(),
        "indices": indices.reshape(-1).tolist(),
        "weights": weights.reshape(-1).tolist(),
        "n_tokens": n_tokens,
        "n_experts": n,
        "k": k,
        "measures": {
            "load_cv": float(load.std() / load.mean()),
            "load_entropy": entropy / math.log(n) if n > 1 else None,
            "effective_experts": math.exp(entropy),
            "load_gini": float(sum((2 * (i + 1) - n - 1) * q for i, q in enumerate(ascending)) / n),
            "max_violation": float(load.max() / load.mean() - 1.0),
            "dead_fraction": float((slots == 0).mean()),
            "token_entropy": float(-(p * np.log(p)).sum(axis=1).mean()),
            "margin": float((ordered[:, k - 1] - ordered[:, k]).mean()) if k < n else None,
            "switch_loss": float(n * (first / n_tokens * mean_p).sum()),
            "switch_loss_top_k": float(n * (load * mean_p).sum()),
            "z_loss": float((np.log(np.exp(logits).sum(axis=1)) ** 2).mean()),
        },
        "slots": slots.tolist(),
        "first_choices": first.tolist(),
        "mean_probability": mean_p.tolist(),
    }


def main():
    rng = np.random.default_rng(3)
    out = []
    for n_tokens, n, k, scale in [(40, 8, 2, 1.0), (7, 4, 1, 3.0), (5, 3, 3, 1.0), (6, 1, 1, 1.0)]:
        logits = scale * rng.standard_normal((n_tokens, n)) + np.linspace(0.0, scale, n)
        out.append(statistics(np.asarray(logits, dtype=np.float32).astype(np.float64), k))
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(out, separators=(",", ":")).replace("},{\"logits", "},\n{\"logits") + "\n")


if __name__ == "__main__":
    main()
