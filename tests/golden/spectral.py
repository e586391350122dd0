"""Golden values of the attention graph's spectrum, in float64 with numpy.

Written from the definitions (graph and diagnostics: arXiv 2601.00791; LapEigvals:
arXiv 2502.17598; log-determinant, hidden score: LLM-Check, NeurIPS 2024; lookback
ratio: arXiv 2407.07071), not from another package. Run: python tests/golden/spectral.py

Every input is a float32 number, so that the program under test reads the same.
"""

import json
import math
import pathlib

import numpy as np

FIRST_K = 5
HEAT_TIMES = [1, 2, 5]
PRESETS = ["controlled", "paper", "library-0.3"]
LAPLACIANS = ["combinatorial", "symmetric-normalized", "random-walk"]
LIBRARY_ENDS = 25
RIDGE = 0.001


def softmax_rows(scores):
    scores = np.where(np.tril(np.ones(scores.shape[-2:])) > 0, scores, -np.inf)
    scores = scores - scores.max(axis=-1, keepdims=True)
    p = np.exp(scores)
    return p / p.sum(axis=-1, keepdims=True)


def as_f32(x):
    return np.asarray(x, dtype=np.float32).astype(np.float64)


def laplacian(weights, kind):
    degree = weights.sum(axis=1)
    if kind == "combinatorial":
        return np.diag(degree) - weights
    inverse = np.array([0.0 if d == 0.0 else 1.0 / math.sqrt(d) for d in degree])
    return np.eye(len(degree)) - inverse[:, None] * weights * inverse[None, :]


def entropy(weights):
    p = weights / weights.sum()
    p = p[p > 0.0]
    return float(-(p * np.log(p)).sum())


def ratio(top, bottom):
    return None if bottom == 0.0 else float(top / bottom)


def spacing_ratio(values):
    """Levels closer than 1e-13 of the largest coincide; pairs of zeros are counted."""
    largest = np.abs(values).max() if len(values) else 0.0
    spacings = np.diff(values)
    spacings[spacings <= 1e-13 * largest] = 0.0
    low, high = np.minimum(spacings[:-1], spacings[1:]), np.maximum(spacings[:-1], spacings[1:])
    ratios = low[high > 0.0] / high[high > 0.0]
    return {
        "spacing_ratio": float(ratios.mean()) if len(ratios) else None,
        "spacing_zero_pairs": int((high == 0.0).sum()),
    }


def spectrum(weights, signal, kind):
    """All diagnostics of one graph with one signal; None where undefined."""
    n = len(weights)
    degree = weights.sum(axis=1)
    walks = kind == "random-walk"
    # Similar to the random walk's, which is symmetric in the inner product of D only.
    matrix = laplacian(weights, "symmetric-normalized" if walks else kind)
    if walks and n:
        inverse = np.array([0.0 if d == 0.0 else 1.0 / d for d in degree])
        own = np.sort(np.linalg.eigvals(np.eye(n) - inverse[:, None] * weights).real)
        assert np.abs(own - np.linalg.eigvalsh(matrix)).max() < 1e-6
    values, vectors = np.linalg.eigh(matrix) if n else (np.zeros(0), np.zeros((0, 0)))
    # A Laplacian of self-loops alone is zero up to rounding of 1 - d/d.
    if n and np.abs(values).max() < 1e-14:
        values = np.zeros(n)
    if walks:
        energy = float((degree[:, None] * signal**2).sum())
        dirichlet = float(np.trace(signal.T @ (np.diag(degree) - weights) @ signal))
        signal = np.sqrt(degree)[:, None] * signal
    else:
        energy = float((signal**2).sum())
        dirichlet = float(np.trace(signal.T @ matrix @ signal))
    modes = ((vectors.T @ signal) ** 2).sum(axis=1)
    largest = float(values[-1]) if n else None
    rayleigh = ratio(dirichlet, energy)
    has_spectrum = bool(n) and largest > 0.0
    positive = np.clip(values, 0.0, None)
    eigenvalue_entropy = entropy(positive) if has_spectrum else None
    spectral_entropy = entropy(modes) if energy > 0.0 else None
    return {
        "n_nodes": n,
        "isolated_nodes": int((weights.sum(axis=1) == 0.0).sum()),
        "eigenvalues": values.tolist(),
        "fiedler": float(values[1]) if n >= 2 else None,
        "lambda_max": largest,
        "connectivity_ratio": float(values[1] / largest) if n >= 2 and has_spectrum else None,
        "dirichlet": dirichlet,
        "energy": energy,
        "rayleigh": rayleigh,
        "smoothness": 1.0 - rayleigh / largest
        if has_spectrum and rayleigh is not None
        else None,
        "spectrum_mean": float(np.trace(matrix) / n) if n else None,
        "spectrum_variance": float(values.var()) if n else None,
        "mode_energies": modes.tolist(),
        "modes_retained": n,
        "hfer": ratio(modes[n // 2 :].sum(), modes.sum()) if n else None,
        "hfer_at_1": ratio(modes[values >= 1.0 - 1e-12].sum(), modes.sum()),
        **{
            f"heat_{time}": ratio(float((np.exp(-time * values) * modes).sum()), energy)
            for time in HEAT_TIMES
        },
        **spacing_ratio(values),
        "spectral_entropy": spectral_entropy,
        "spectral_entropy_normalized": spectral_entropy / math.log(n)
        if spectral_entropy is not None and n >= 2
        else None,
        "eigenvalue_entropy": eigenvalue_entropy,
        "eigenvalue_entropy_deficit": math.log(n) - eigenvalue_entropy
        if eigenvalue_entropy is not None
        else None,
    }


def symmetric(pattern):
    return 0.5 * (pattern + pattern.T)


def controlled(pattern, signal):
    """First token out of graph and signal, mean over tokens out, unit rows."""
    pattern = pattern[1:, 1:]
    width = signal.shape[1]
    signal = signal[1:]
    if len(signal):
        signal = signal - signal.mean(axis=0)
    norms = np.linalg.norm(signal, axis=1)
    zero_rows = int((norms == 0.0).sum())
    signal = np.array([row / norm if norm > 0.0 else row for row, norm in zip(signal, norms)])
    return symmetric(pattern), signal.reshape(len(pattern), width), zero_rows


def truncated(row):
    """What replaces a row's ratios where the middle of its spectrum is thrown away."""
    modes, values = np.array(row["mode_energies"]), row["eigenvalues"]
    n = len(modes)
    if n > 2 * LIBRARY_ENDS:
        # Eigenvalues that coincide across a cut would leave open which are kept.
        for cut in [LIBRARY_ENDS, n - LIBRARY_ENDS]:
            assert values[cut] - values[cut - 1] > 1e-4
        modes = np.concatenate([modes[:LIBRARY_ENDS], modes[n - LIBRARY_ENDS :]])
    m = len(modes)
    spectral_entropy = entropy(modes) if row["energy"] > 0.0 else None
    return {
        "modes_retained": m,
        "hfer": ratio(modes[math.floor(0.9 * m) :].sum(), modes.sum()) if m else None,
        "spectral_entropy": spectral_entropy,
        "spectral_entropy_normalized": spectral_entropy / math.log(m)
        if spectral_entropy is not None and m >= 2
        else None,
    }


def preset_row(preset, kind, pattern, signal):
    if preset == "controlled":
        weights, signal, zero_rows = controlled(pattern, signal)
        return spectrum(weights, signal, kind) | {"zero_rows": zero_rows}
    zero_rows = int((np.linalg.norm(signal, axis=1) == 0.0).sum())
    row = spectrum(symmetric(pattern), signal, kind) | {"zero_rows": zero_rows}
    return row | truncated(row) if preset == "library-0.3" else row


def hidden_score(signal):
    centred = signal - signal.mean(axis=1, keepdims=True)
    return float(np.log(np.linalg.eigvalsh(centred @ centred.T + RIDGE * np.eye(len(signal)))).mean())


def lookback_ratio(pattern, boundary):
    """Mean over generated queries; null without one, and without a context."""
    n = len(pattern)
    if boundary is None or not 0 < boundary < n:
        return None
    ratios = []
    for u in range(boundary, n):
        context, new = pattern[u, :boundary].mean(), pattern[u, boundary : u + 1].mean()
        ratios.append(context / (context + new))
    return float(np.mean(ratios))


def attention_row(pattern, window, boundary):
    n = len(pattern)
    seen = [min(window or n, n - i) for i in range(n)]
    visible = np.array([pattern[i:, i].sum() / seen[i] for i in range(n)])
    received = np.array([pattern[i:, i].sum() / (n - i) for i in range(n)])
    diagonal = np.diag(pattern)
    with np.errstate(divide="ignore"):
        logs = np.log(diagonal)
    distance = np.abs(np.arange(n)[:, None] - np.arange(n)[None, :])
    positive = np.where(pattern > 0.0, pattern, 1.0)
    order = np.argsort(-received, kind="stable")[:FIRST_K]
    return {
        "sink_max": float(received.max()),
        "sink_argmax": int(received.argmax()),
        "sink_entropy": entropy(received),
        "sink_visible_max": float(visible.max()),
        "sink_visible_argmax": int(visible.argmax()),
        "sink_visible_entropy": entropy(visible),
        "lookback_ratio": lookback_ratio(pattern, boundary),
        "sink_top_values": received[order].tolist(),
        "sink_top_indices": order.tolist(),
        "first_token_mass": float(pattern[:, 0].mean()),
        "row_entropy": float(-(pattern * np.log(positive)).sum(axis=1).mean()),
        "distance": float((pattern * distance).sum(axis=1).mean()),
        "max": float(pattern.max(axis=1).mean()),
        "lap_eigenvalues": np.sort(received - diagonal)[::-1][:FIRST_K].tolist(),
        "attention_eigenvalues": np.sort(diagonal)[::-1][:FIRST_K].tolist(),
        "log_determinant": float(logs.mean()),
    }


def attention_like(rng, n_heads, n_tokens, sink, sharpness):
    scores = sharpness * rng.standard_normal((n_heads, n_tokens, n_tokens))
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)[None, :]
    scores -= 0.15 * np.abs(distance)
    scores[:, :, 0] += sink
    return as_f32(softmax_rows(scores))


BOUNDARIES = {"sink": 20, "sharp": 7, "one token": 1, "two tokens": 1, "three tokens": 0, "windowed": 4}
WINDOWS = {"windowed": 5}


def cases():
    rng = np.random.default_rng(20)
    residual = rng.standard_normal((33, 6))
    residual[0] *= 40.0
    yield "sink", attention_like(rng, 3, 33, 4.0, 1.5), as_f32(residual)
    yield "sharp", attention_like(rng, 2, 18, 0.0, 6.0), as_f32(rng.standard_normal((18, 24)))
    yield "one token", np.ones((2, 1, 1)), as_f32(rng.standard_normal((1, 4)))
    yield "two tokens", attention_like(rng, 2, 2, 1.0, 1.0), as_f32(rng.standard_normal((2, 4)))
    yield "three tokens", attention_like(rng, 2, 3, 1.0, 1.0), as_f32(rng.standard_normal((3, 4)))
    yield "self only", np.stack([np.eye(6)] * 2), as_f32(rng.standard_normal((6, 3)))
    first_only = np.zeros((1, 6, 6))
    first_only[:, :, 0] = 1.0
    yield "first only", first_only, as_f32(rng.standard_normal((6, 3)))
    blocks = np.zeros((1, 8, 8))
    blocks[0, :4, :4] = attention_like(rng, 1, 4, 0.0, 1.0)[0]
    blocks[0, 4:, 4:] = attention_like(rng, 1, 4, 0.0, 1.0)[0]
    yield "two parts", blocks, as_f32(rng.standard_normal((8, 3)))
    yield "same rows", attention_like(rng, 1, 9, 1.0, 1.0), as_f32(np.tile(rng.standard_normal((1, 4)), (9, 1)))
    yield "zero signal", attention_like(rng, 1, 9, 1.0, 1.0), np.zeros((9, 4))
    # More modes than a truncated spectrum keeps.
    yield "long", attention_like(rng, 1, 61, 2.0, 2.0), as_f32(rng.standard_normal((61, 5)))
    windowed = attention_like(rng, 2, 20, 2.0, 1.5)
    windowed *= np.tril(np.ones((20, 20))) - np.tril(np.ones((20, 20)), -WINDOWS["windowed"])
    windowed = as_f32(windowed / windowed.sum(axis=2, keepdims=True))
    yield "windowed", windowed, as_f32(rng.standard_normal((20, 3)))
    isolated = attention_like(rng, 1, 7, 0.0, 1.0)
    isolated[0, 3, :] = isolated[0, :, 3] = 0.0
    yield "isolated node", isolated, as_f32(rng.standard_normal((7, 4)))
    even = np.tril(np.ones((1, 9, 9))) / np.arange(1, 10)[None, :, None]
    yield "repeated token", as_f32(even), as_f32(np.tile(rng.standard_normal((1, 4)), (9, 1)))


def main():
    out = []
    for name, patterns, signal in cases():
        n_heads = len(patterns)
        graphs, rows = [], []
        for head in [*range(n_heads), None]:
            pattern = patterns.mean(axis=0) if head is None else patterns[head]
            for kind in ["combinatorial", "symmetric-normalized"]:
                graphs.append(
                    {"head": head, "laplacian": kind} | spectrum(symmetric(pattern), signal, kind)
                )
            for preset, kind in [(p, k) for p in PRESETS for k in LAPLACIANS]:
                row = preset_row(preset, kind, pattern, signal)
                del row["eigenvalues"], row["mode_energies"]
                rows.append({"head": head, "preset": preset, "laplacian": kind} | row)
        out.append(
            {
                "name": name,
                "n_heads": n_heads,
                "n_tokens": patterns.shape[1],
                "d": signal.shape[1],
                "patterns": patterns.reshape(-1).tolist(),
                "signal": signal.reshape(-1).tolist(),
                "graphs": graphs,
                "presets": rows,
                "window": WINDOWS.get(name),
                "boundary": BOUNDARIES.get(name),
                "attention": [
                    attention_row(p, WINDOWS.get(name), BOUNDARIES.get(name)) for p in patterns
                ],
                "hidden_score": hidden_score(signal),
            }
        )
    path = pathlib.Path(__file__).with_suffix(".json")
    text = json.dumps(out, indent=None, separators=(",", ":"))
    # JSON has no infinities: a diagonal entry of 0 has none to log, and is not here.
    path.write_text(text.replace('},{"name"', '},\n{"name"').replace("-Infinity", "null") + "\n")


if __name__ == "__main__":
    main()
