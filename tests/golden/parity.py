#!/usr/bin/env python3
"""Writes tiny random models and what transformers (eager) computes in them.

Each folder of `models/` holds a model as a checkpoint folder has it (config.json and
safetensors) and the reference: `expected.safetensors` with keys `{prompt}/{hook point}`, no batch
axis, every prompt run alone in f32, and `expected.json` with the prompts, the seed and the
versions. A model whose weights are stored in half precision has `expected-own-dtype.safetensors`
beside it: the same points with transformers computing in that precision.
The model is read back from the written files by `from_pretrained` before anything is recorded.

Queries, keys, values, rotated ones and patterns are those that transformers' own attention gets
and gives. Every recorded value is checked against another way to it: computed in f64 from the
values recorded before it and the parameters, with this script's own norms, rotary frequencies,
masks and activations.

`parity_families.py` says how families name their modules; `parity_models.py` is the list of models.

    pip install torch transformers safetensors numpy
    python3 parity.py            # all models
    python3 parity.py llama-a    # one
"""

import contextlib
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers
from parity_families import FAMILIES, NORM, affine
from parity_models import MODELS
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent / "models"
ROUTER_MARGIN = 2e-3
# How far a value may be from the second way to it, as a share of the largest one.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def random_weights(family, config, seed):
    """Weights by transformers' names for them: normal, norms around what leaves their input as it is, none zero."""
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).state_dict().items()}
    weights = {}

    def normal(name, std, around=0.0):
        if name in shapes:
            weights[name] = around + torch.from_numpy(rng.normal(0.0, std, tuple(shapes[name])).astype(np.float32))

    def part(path, kind):
        weight = f"{path}.weight" if f"{path}.weight" in shapes else path
        if kind is NORM:
            normal(weight, 0.25, 1.0 - family.norm_offset)
        else:
            normal(weight, kind)
        normal(f"{path}.bias", 0.3)

    text = config.get_text_config()
    part(f"{family.core}.{family.embed}", family.embed_std)
    if family.pos_embed:
        part(f"{family.core}.{family.pos_embed}", family.embed_std)
    for layer in range(text.num_hidden_layers):
        for path, kind in family.weights:
            part(f"{family.core}.{family.layers}.{layer}.{path}", kind)
    part(f"{family.core}.{family.norm}", NORM)
    if not config.tie_word_embeddings:
        part("lm_head", 0.3)
    # What a text model beside other parts leaves to them.
    for name in shapes:
        if name not in weights and name != "lm_head.weight":
            assert not name.startswith(f"{family.core}."), name
            normal(name, 0.2)
    return weights


def write_checkpoint(folder, weights, shards):
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    index, per_shard = {}, -(-len(names) // shards)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * per_shard : (shard + 1) * per_shard]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index.update({name: file for name in part})
    total = sum(w.numel() * w.element_size() for w in weights.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def watched(module, name, see):
    """Calls `see(arguments, result)` after every call of a function of a modelling file, where it has one."""
    own = getattr(module, name, None)
    if own is None:
        yield
        return

    def call(*args, **kwargs):
        result = own(*args, **kwargs)
        see((args, kwargs), result)
        return result

    setattr(module, name, call)
    try:
        yield
    finally:
        setattr(module, name, own)


def record(family, model, ids):
    """All hook points of one prompt, run alone."""
    seen, handles = {}, []

    def keep(path, name, output=True, edit=lambda value: value):
        def hook(_, args, out):
            value = (out[0] if isinstance(out, tuple) else out) if output else args[0]
            seen[name] = edit(value.detach()[0]).clone()
        handles.append(core.get_submodule(path).register_forward_hook(hook))

    core, config = model.get_submodule(family.core), model.config.get_text_config()
    n, n_layers = len(ids), config.num_hidden_layers
    scale = family.residual_scale(config)
    if family.pos_embed:
        keep(family.embed, "hook_embed")
        keep(family.pos_embed, "hook_pos_embed")
    else:
        keep(f"{family.layers}.0", "hook_embed", output=False)
    keep(family.norm, "ln_final.hook_normalized")
    for l in range(n_layers):
        layer, block = f"{family.layers}.{l}", f"blocks.{l}"
        keep(layer, f"{block}.hook_resid_pre", output=False)
        for norm in ("ln1", "ln2"):
            if getattr(family, norm):
                keep(f"{layer}.{getattr(family, norm)}", f"{block}.{norm}.hook_normalized")
        o_proj = f"{layer}.{family.attn}.{family.o_proj}"
        keep(o_proj, f"{block}.attn.hook_z", output=False)
        after_attn, after_mlp = family.post_norms
        keep(f"{layer}.{after_attn}" if after_attn else o_proj, f"{block}.hook_attn_out",
             edit=lambda value: value if scale == 1.0 else value * scale)
        if not family.parallel(config):
            keep(f"{layer}.{family.ln2 or 'mlp'}", f"{block}.hook_resid_mid", output=False)
        keep(f"{layer}.{after_mlp or 'mlp'}", f"{block}.hook_mlp_out",
             edit=lambda value: value if scale == 1.0 else value * scale)
        keep(layer, f"{block}.hook_resid_post")
        if family.pre:
            keep(f"{layer}.{family.down}", f"{block}.mlp.hook_post", output=False)
            keep(f"{layer}.{family.pre}", f"{block}.mlp.hook_pre")
    chosen, rotations = {}, []
    if not family.pre:
        for l, layer in enumerate(core.layers):
            handles.append(layer.mlp.gate.register_forward_hook(
                lambda _, args, out, l=l: chosen.update({l: tuple(t.clone() for t in out)})))

    def see_rotation(arguments, rotated):
        (q, k, *_), _ = arguments
        rotations.append((q[0].clone(), k[0].clone(), rotated[0][0].clone(), rotated[1][0].clone()))

    def see_attention(arguments, result):
        (attn, q, k, v, mask), kwargs = arguments
        block = f"blocks.{attn.layer_idx}.attn"
        q, k, v, pattern = q[0], k[0], v[0], result[1][0]
        by_position = lambda heads: heads.transpose(0, 1).contiguous()
        if rotations:
            (before_q, before_k, after_q, after_k), = rotations
            rotations.clear()
            assert torch.equal(after_q, q) and torch.equal(after_k, k)
            seen[f"{block}.hook_rot_q"], seen[f"{block}.hook_rot_k"] = by_position(q), by_position(k)
            seen[f"{block}.hook_q"], seen[f"{block}.hook_k"] = by_position(before_q), by_position(before_k)
        else:
            seen[f"{block}.hook_q"], seen[f"{block}.hook_k"] = by_position(q), by_position(k)
        seen[f"{block}.hook_v"] = by_position(v)
        hidden = hidden_positions(n, family.window(config, attn.layer_idx))
        assert torch.equal(hidden, torch.zeros_like(hidden) if mask is None else mask[0, 0] != 0)
        scores = q @ k.repeat_interleave(q.shape[0] // k.shape[0], 0).transpose(1, 2) * kwargs["scaling"]
        cap = kwargs.get("softcap")
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        scores = scores.masked_fill(hidden, float("-inf"))
        assert pattern.masked_select(hidden).abs().sum() == 0
        seen[f"{block}.hook_attn_scores"] = scores
        seen[f"{block}.hook_pattern"] = pattern.clone()
        seen[f"{block}.hook_lse"] = scores.float().logsumexp(-1).to(scores.dtype)

    file = sys.modules[type(model).__module__]
    with (torch.no_grad(), watched(file, "apply_rotary_pos_emb", see_rotation),
          watched(file, "eager_attention_forward", see_attention)):
        out = model(torch.tensor([ids]), output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    d_head = seen["blocks.0.attn.hook_q"].shape[-1]
    for l in range(n_layers):
        block = f"blocks.{l}"
        seen[f"{block}.attn.hook_z"] = seen[f"{block}.attn.hook_z"].view(n, -1, d_head)
        assert torch.equal(seen[f"{block}.attn.hook_pattern"], out.attentions[l][0])
        if family.pre:
            # Gate and up may be one projection, gate first.
            d_mlp = seen[f"{block}.mlp.hook_post"].shape[-1]
            seen[f"{block}.mlp.hook_pre"] = seen[f"{block}.mlp.hook_pre"][:, :d_mlp].clone()
    seen["logits"] = out.logits[0].clone()
    margin = min((record_router(core.layers[l], seen, f"blocks.{l}", chosen[l]) for l in chosen), default=float("inf"))
    check(family, model, ids, seen)
    return seen, margin


def record_router(layer, seen, block, chosen):
    """The router's points, and the smallest gap between probabilities that decides something."""
    logits = functional.linear(seen[f"{block}.ln2.hook_normalized"], layer.mlp.gate.weight.detach())
    probs = logits.softmax(-1)
    k_experts = chosen[2].shape[-1]
    # A stable descending sort: ties go to the lower index.
    indices = torch.argsort(probs, dim=-1, descending=True, stable=True)[:, :k_experts]
    weights = probs.gather(1, indices)
    weights = weights / weights.sum(-1, keepdim=True)
    own_logits, own_weights, own_indices = chosen
    close(f"{block} router logits", logits, own_logits.view_as(logits))
    assert torch.equal(indices, own_indices.view_as(indices)), f"{block} expert indices"
    close(f"{block} expert weights", weights, own_weights.view_as(weights))
    ranked = probs.sort(-1, descending=True).values
    gaps = (ranked[:, :-1] - ranked[:, 1:])[:, :k_experts]
    seen[f"{block}.mlp.hook_router_logits"] = logits
    seen[f"{block}.mlp.hook_router_probs"] = probs
    seen[f"{block}.mlp.hook_expert_indices"] = indices.to(torch.uint32)
    seen[f"{block}.mlp.hook_expert_weights"] = weights
    return gaps.min().item()


def close(what, got, expected):
    difference = (got - expected).abs().max().item()
    limit = TOLERANCE[expected.dtype] * max(1.0, expected.abs().max().item())
    assert difference <= limit, f"{what}: {difference} > {limit}"


def hidden_positions(n, window):
    """[query, key]: later keys, and those `window` or more positions back."""
    back = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    return (back < 0) | (back >= (n if window is None else window))


def frequencies(config, rope, d_head, n):
    """Radians per position of each pair of dimensions, and what cosine and sine are multiplied by."""
    dim = int(d_head * rope.get("partial_rotary_factor", 1.0))
    base, factor, kind = float(rope["rope_theta"]), rope.get("factor"), rope["rope_type"]
    longest, original = config.max_position_embeddings, rope.get("original_max_position_embeddings")
    if kind == "dynamic" and n > longest:
        base *= (factor * n / longest - (factor - 1)) ** (dim / (dim - 2))
    plain = [base ** (-2 * i / dim) for i in range((dim + 1) // 2)]
    if kind in ("default", "dynamic"):
        return plain, 1.0
    if kind == "linear":
        return [f / factor for f in plain], 1.0
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = [min(max((original * f / (2 * math.pi) - low) / (high - low), 0.0), 1.0) for f in plain]
        return [f * (k + (1 - k) / factor) for f, k in zip(plain, keep)], 1.0
    if kind == "longrope":
        stretch = rope["long_factor" if n > original else "short_factor"]
        factor = factor or longest / original
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return [f / s for f, s in zip(plain, stretch, strict=True)], rope.get("attention_factor") or usual
    assert kind == "yarn", kind
    turn = lambda rotations: dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))
    low, high = turn(rope.get("beta_fast") or 32), turn(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(len(plain))]
    magnitude = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0
    if rope.get("attention_factor") is not None:
        attention = rope["attention_factor"]
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = magnitude(rope["mscale"]) / magnitude(rope["mscale_all_dim"])
    else:
        attention = magnitude(1)
    return [f * (1 - r + r / factor) for f, r in zip(plain, ramp)], attention


def rotated(x, angles, scale):
    """x: [pos, head, d_head]; dimension i of the first half turns with i of the second; the rest stays."""
    half = angles.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = angles.cos()[:, None] * scale, angles.sin()[:, None] * scale
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "silu": lambda x: x / (1 + torch.exp(-x)), "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh, "gelu_fast": gelu_tanh,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
}


def check(family, model, ids, seen):
    """Every point again, in f64, from the points before it and the parameters."""
    core, config = model.get_submodule(family.core), model.config.get_text_config()
    n, tokens = len(ids), torch.tensor(ids)
    checked = set()

    def value(name):
        return seen[name].double()

    def equal(name, second):
        masked = second == -math.inf
        assert torch.equal(masked, seen[name] == -math.inf), f"{name}: masked elsewhere"
        close(name, second.masked_fill(masked, 0.0), seen[name].masked_fill(masked, 0.0))
        checked.add(name)

    def norm(module, x):
        if isinstance(module, torch.nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
            scaled = x / (x.pow(2).mean(-1, keepdim=True) + module.eps).sqrt()
            return scaled * module.weight.detach().double() + module.bias.detach().double()
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        scaled = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return scaled * (module.weight.detach().double() + family.norm_offset)

    act = ACTIVATIONS[getattr(config, family.act)]
    scale = family.residual_scale(config)
    equal("hook_embed", core.get_submodule(family.embed).weight.detach().double()[tokens] * family.embed_scale(config))
    x = value("hook_embed")
    if family.pos_embed:
        equal("hook_pos_embed", core.get_submodule(family.pos_embed).weight.detach().double()[:n])
        x = x + value("hook_pos_embed")
    for l, layer in enumerate(core.get_submodule(family.layers)):
        block, attn = f"blocks.{l}", layer.get_submodule(family.attn)
        after_attn, after_mlp = (path and layer.get_submodule(path) for path in family.post_norms)
        equal(f"{block}.hook_resid_pre", x)
        x = value(f"{block}.hook_resid_pre")
        into = x
        if family.ln1:
            equal(f"{block}.ln1.hook_normalized", norm(layer.get_submodule(family.ln1), x))
            into = value(f"{block}.ln1.hook_normalized")
        d_head = seen[f"{block}.attn.hook_q"].shape[-1]
        q, k, v = family.qkv(attn, into, d_head)
        if family.qk_norm == "head":
            q, k = norm(attn.q_norm, q), norm(attn.k_norm, k)
        elif family.qk_norm == "row":
            q, k = norm(attn.q_norm, q.flatten(1)).view_as(q), norm(attn.k_norm, k.flatten(1)).view_as(k)
        for part, second in zip("qkv", (q, k, v)):
            equal(f"{block}.attn.hook_{part}", second)
        q, k, v = (value(f"{block}.attn.hook_{part}") for part in "qkv")
        if family.rotary(config, l):
            rope = config.rope_parameters
            rope = rope[config.layer_types[l]] if "rope_type" not in rope else rope
            steps, stretch = frequencies(config, rope, d_head, n)
            angles = torch.arange(n).double()[:, None] * torch.tensor(steps).double()
            equal(f"{block}.attn.hook_rot_q", rotated(q, angles, stretch))
            equal(f"{block}.attn.hook_rot_k", rotated(k, angles, stretch))
            q, k = value(f"{block}.attn.hook_rot_q"), value(f"{block}.attn.hook_rot_k")
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * family.score_scale(config, d_head, l)
        cap = family.score_cap(config)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        equal(f"{block}.attn.hook_attn_scores",
              scores.masked_fill(hidden_positions(n, family.window(config, l)), -math.inf))
        scores = value(f"{block}.attn.hook_attn_scores")
        equal(f"{block}.attn.hook_pattern", scores.softmax(-1))
        equal(f"{block}.attn.hook_lse", scores.logsumexp(-1))
        equal(f"{block}.attn.hook_z", torch.einsum("hqk,khd->qhd", value(f"{block}.attn.hook_pattern"), v))
        out = affine(attn.get_submodule(family.o_proj), value(f"{block}.attn.hook_z").flatten(1))
        equal(f"{block}.hook_attn_out", (norm(after_attn, out) if after_attn else out) * scale)
        mid = x + value(f"{block}.hook_attn_out")
        if not family.parallel(config):
            equal(f"{block}.hook_resid_mid", mid)
            into = mid = value(f"{block}.hook_resid_mid")
        else:
            into = x
        if family.ln2:
            equal(f"{block}.ln2.hook_normalized", norm(layer.get_submodule(family.ln2), into))
            into = value(f"{block}.ln2.hook_normalized")
        if family.pre:
            d_mlp = seen[f"{block}.mlp.hook_post"].shape[-1]
            equal(f"{block}.mlp.hook_pre", affine(layer.get_submodule(family.pre), into)[:, :d_mlp])
            equal(f"{block}.mlp.hook_post", family.inner(layer.mlp, into, act))
            out = affine(layer.get_submodule(family.down), value(f"{block}.mlp.hook_post"))
        else:
            experts = layer.mlp.experts
            indices = seen[f"{block}.mlp.hook_expert_indices"].long()
            gate, up = torch.einsum("td,tefd->tef", into, experts.gate_up_proj.double()[indices]).chunk(2, -1)
            out = torch.einsum("te,tef,tedf->td", value(f"{block}.mlp.hook_expert_weights"), act(gate) * up,
                               experts.down_proj.double()[indices])
            checked.update(name for name in seen if name.startswith(f"{block}.mlp."))
        equal(f"{block}.hook_mlp_out", (norm(after_mlp, out) if after_mlp else out) * scale)
        equal(f"{block}.hook_resid_post", mid + value(f"{block}.hook_mlp_out"))
        x = value(f"{block}.hook_resid_post")
    equal("ln_final.hook_normalized", norm(core.get_submodule(family.norm), x))
    logits = affine(model.lm_head, value("ln_final.hook_normalized")) / family.logit_divisor(config)
    cap = family.logit_cap(config)
    equal("logits", logits if cap is None else cap * torch.tanh(logits / cap))
    assert checked == set(seen), set(seen) ^ checked


def run(family, folder, prompts, dtype):
    """All points of all prompts, and the smallest router margin."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    model.eval()
    expected, margins = {}, []
    for prompt, ids in prompts.items():
        values, margin = record(family, model, ids)
        margins.append(margin)
        expected.update({f"{prompt}/{point}": value.contiguous() for point, value in values.items()})
    for key, value in expected.items():
        assert value.dtype == torch.uint32 or value.dtype == dtype and not value.isnan().any(), key
    return expected, min(margins)


def build(name):
    golden = MODELS[name]
    family = FAMILIES[golden.config["model_type"]]
    folder = HERE / name
    for attempt in range(200):
        part = folder.with_name(f".{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        used = golden.seed * 1000 + attempt
        (part / "config.json").write_text(json.dumps(golden.config | golden.instead, indent=2) + "\n")
        config = AutoConfig.from_pretrained(part)
        weights = random_weights(family, config, used)
        own_dtype = config.get_text_config().dtype or torch.float32
        weights = {key: value.to(own_dtype).contiguous() for key, value in weights.items()}
        write_checkpoint(part, golden.layout(weights, config), golden.shards)
        rng = np.random.default_rng([used, 1])
        vocab = config.get_text_config().vocab_size
        prompts = {str(i): rng.integers(0, vocab, n).tolist() for i, n in enumerate(golden.lengths)}
        expected, margin = run(family, part, prompts, torch.float32)
        # Decisive routers only: a tie could go either way under another order of summation.
        if margin >= ROUTER_MARGIN:
            break
    else:
        raise SystemExit(f"{name}: no seed with a router margin of {ROUTER_MARGIN}")
    save_file(expected, part / "expected.safetensors")
    how = "transformers eager attention and eager experts in f32"
    if own_dtype != torch.float32:
        own, _ = run(family, part, prompts, own_dtype)
        save_file(own, part / "expected-own-dtype.safetensors")
        how = (f"transformers eager attention in f32 on the stored weights, and in {str(own_dtype)[6:]} throughout in "
               "expected-own-dtype.safetensors")
    layers = range(config.get_text_config().num_hidden_layers)
    windowed = " and outside the window" if any(family.window(config.get_text_config(), l) for l in layers) else ""
    record_ = {
        "prompts": prompts, "seed": used,
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
                     "safetensors": safetensors.__version__, "numpy": np.__version__},
        "notes": f"{golden.note}; {how}, each prompt alone, no batch axis; "
                 f"scores are -inf above the diagonal{windowed}; k and v have the key-value heads; "
                 "expert indices are u32",
    }
    if golden.config["model_type"] == "mixtral":
        record_["smallest_router_margin"] = margin
    (part / "config.json").write_text(json.dumps(golden.config, indent=2) + "\n")
    (part / "expected.json").write_text(json.dumps(record_) + "\n")
    for file in part.iterdir():
        file.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    patterns = [v for k, v in expected.items() if k.endswith("hook_pattern") and v.shape[-1] == max(golden.lengths)]
    sharp = torch.cat([p[:, -1].max(-1).values for p in patterns])
    size = sum(f.stat().st_size for f in folder.iterdir())
    digest = hashlib.sha256((folder / "expected.safetensors").read_bytes()).hexdigest()[:12]
    print(f"{name}: seed {used}, {size / 1000:.0f} kB, {len(expected)} tensors, "
          f"largest weight of the last row {sharp.min():.2f}..{sharp.max():.2f}, "
          f"router margin {margin:.4f}, logits up to {expected['0/logits'].abs().max():.1f}, {digest}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or MODELS:
        build(name)
