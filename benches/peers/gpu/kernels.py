#!/usr/bin/env python3
"""Times PyTorch on the cases of crates/kernels/benches/gpu.rs, in the same way.

Reads a case per line, as `--list` of that bench describes it, and prints its times in microseconds
as a line of JSON. A kernel has its line in PEERS. Needs torch and a GPU; `--check` needs no GPU:
it runs each peer once on small inputs of the same kinds.
"""

import json
import os
import statistics
import sys

# Answers alone go to standard output; what libraries print goes to standard error.
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
sys.stdin.reconfigure(encoding="utf-8")

import torch
import torch.nn.functional as F

WARM_UP, RUNS, CACHE_BYTES = 10, 100, 256 << 20
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "u32": torch.int64}


def rotary(x, cos, sin, offsets, numbers):
    # transformers' formula: halves exchanged.
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def router(logits, numbers):
    probs = F.softmax(logits, dim=-1)
    weights, indices = torch.topk(probs, numbers[0], dim=-1)
    return probs, indices, weights / weights.sum(-1, keepdim=True)


def cache_append(k, v, lengths, offsets, keys, values, numbers):
    end = numbers[1] + k.shape[1]
    keys[:, numbers[1]:end], values[:, numbers[1]:end] = k, v
    return keys[:, :end], values[:, :end]


def attention(q, k, v, lengths, offsets, numbers):
    # Batch, head, position; every query sees what is before it, and a single one all there is.
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)


def weights_of(q, k):
    """The pattern [batch, head, query_pos, key_pos] as eager attention makes it."""
    q, k = q.transpose(1, 2), k.transpose(1, 2).repeat_interleave(q.shape[2] // k.shape[2], 1)
    scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    later = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    return F.softmax(scores.masked_fill_(later, -torch.inf), dim=-1, dtype=torch.float32)


def attention_pattern(q, k, lengths, offsets, lse, heads, numbers):
    return weights_of(q[:, :, :1], k[:, :, :1])


def attention_summary(q, k, lengths, offsets, lse, boundaries, numbers):
    # Some of the statistics, from the whole pattern, which is what there is without a kernel for them.
    p = weights_of(q, k)
    entropy = torch.special.entr(p).sum(-1)
    return entropy, p.amax(-1), p[..., 0], p.sum(-2), p.diagonal(dim1=-2, dim2=-1)


def moe(x, logits, gate_up, down, numbers):
    # As transformers' eager experts: one after the other, each on its tokens.
    _, indices, weights = router(logits, numbers)
    result = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        token, rank = torch.where(indices == expert)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, -1)
        y = (F.silu(gate) * up) @ down[expert].T
        result.index_add_(0, token, y * weights[token, rank, None].to(x.dtype))
    return result


def weights_as(x, *weights):
    return (x, *(w.to(x.dtype) for w in weights))


def whole_tables(x, cos, sin, offsets):
    return (x, *(torch.cat((table, table), -1)[None, :, None, :].to(x.dtype) for table in (cos, sin)), offsets)


# What a model does once and not in every layer, before the clock counts: weights of norms in the
# dtype of x, rotary tables over the whole width.
PREPARED = {"rms_norm": weights_as, "layer_norm": weights_as, "rotary": whole_tables}
PEERS = {
    "rms_norm": lambda x, w, numbers: F.rms_norm(x, w.shape, w, 1e-5),
    "layer_norm": lambda x, w, b, numbers: F.layer_norm(x, w.shape, w, b, 1e-5),
    "rotary": rotary,
    "gated_silu": lambda gate, up, numbers: F.silu(gate) * up,
    "softmax": lambda x, numbers: F.softmax(x, dim=-1),
    "router": router,
    "cache_append": cache_append,
    "attention": attention,
    "attention_pattern": attention_pattern,
    "attention_summary": attention_summary,
    "moe": moe,
}


def inputs_of(case, device):
    numbers = iter(case["numbers"])

    def tensor(dtype, dims):
        if dtype == "u32":
            return torch.full(dims, next(numbers), device=device)
        return torch.randn(dims, device=device).to(DTYPES[dtype])
    inputs = [tensor(dtype, dims) for dtype, dims in case["inputs"]]
    return PREPARED.get(case["kernel"], lambda *same: same)(*inputs)


def time(case):
    peer = PEERS.get(case["kernel"])
    if peer is None:
        return {"case": case["case"], "error": "no peer"}
    inputs = inputs_of(case, "cuda")
    cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    events = []
    for i in range(WARM_UP + RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        begin.record()
        peer(*inputs, case["numbers"])
        end.record()
        if i >= WARM_UP:
            events.append((begin, end))
    torch.cuda.synchronize()
    times = [begin.elapsed_time(end) * 1e3 for begin, end in events]
    return {"case": case["case"], "median_us": statistics.median(times), "min_us": min(times), "max_us": max(times),
            "runs": RUNS, "peer": f"torch {torch.__version__}"}


def check(case):
    """All lengths but the shortest are cut alike, so that those that belong together still do."""
    small = [[dtype, [n // 16 if n >= 64 else n for n in dims]] for dtype, dims in case["inputs"]]
    small = dict(case, inputs=small)
    peer = PEERS.get(case["kernel"])
    if peer is not None:
        result = peer(*inputs_of(small, "cpu"), case["numbers"])
        results = result if isinstance(result, tuple) else (result,)
        assert all(torch.isfinite(r.float()).all() for r in results), case["case"]
    return {"case": case["case"], "checked": peer is not None}


def main():
    work = check if "--check" in sys.argv[1:] else time
    for line in sys.stdin:
        case = json.loads(line)
        try:
            answer = work(case)
        except Exception as error:  # the next case may do
            answer = {"case": case["case"], "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
