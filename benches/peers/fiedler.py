#!/usr/bin/env python3
"""Times the Fiedler value of one attention graph with scipy and numpy.

The file holds a pattern A or a graph W, f32 or f64: `.npy`, or `.safetensors` with --key. A matrix
[T, T] is taken as it is, [head, T, T] by its mean over the heads. Then W = (A + Aᵀ) / 2 and
L = I - D^(-1/2) W D^(-1/2), both in f64. Making W and L is not timed. λ₂ is taken as `1 - μ₂`,
with μ₂ the second largest eigenvalue of D^(-1/2) W D^(-1/2), by `eigsh(k=2, which="LA")`, which is
much faster than asking it for the smallest eigenvalues of L. Prints one JSON object; times are
wall seconds.

    python3 fiedler.py graph.npy --threads 1
    python3 fiedler.py --random 1024        # a causal pattern made up here
"""

import argparse
import json
import os
import statistics
import time


def random_pattern(n):
    """The head mean of nine causal patterns of random scores: a stand-in where no file is given."""
    import numpy as np

    rng = np.random.default_rng(0)
    mean = np.zeros((n, n))
    for _ in range(9):
        scores = rng.normal(0.0, 1.5, (n, n)) - 0.01 * (np.arange(n)[:, None] - np.arange(n)[None])
        scores[np.triu_indices(n, 1)] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        mean += weights / weights.sum(1, keepdims=True) / 9
    return mean


def timed(repeats, work):
    value = work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
    return value, {"median_seconds": statistics.median(seconds), "min_seconds": min(seconds), "max_seconds": max(seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--key", help="tensor of a safetensors file")
    parser.add_argument("--random", type=int, metavar="T")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)

    import numpy as np
    import scipy
    from scipy.sparse.linalg import eigsh

    if options.random:
        a = random_pattern(options.random)
    elif options.file is None:
        parser.error("a file or --random T")
    elif options.file.endswith(".npy"):
        a = np.load(options.file)
    else:
        from safetensors.numpy import load_file

        tensors = load_file(options.file)
        if options.key is None and len(tensors) > 1:
            parser.error(f"--key: one of {', '.join(sorted(tensors))}")
        a = tensors[options.key or next(iter(tensors))]
    a = a.astype(np.float64)
    if a.ndim == 3:
        a = a.mean(0)
    n = a.shape[0]
    w = (a + a.T) / 2
    scale = 1 / np.sqrt(w.sum(1))
    normalized = w * scale[:, None] * scale[None]
    normalized = (normalized + normalized.T) / 2
    laplacian = np.eye(n) - normalized
    start = np.random.default_rng(1).normal(size=n)

    def lanczos():
        return 1 - np.sort(eigsh(normalized, k=2, which="LA", v0=start, return_eigenvectors=False))[0]

    def lanczos_with_vector():
        values, vectors = eigsh(normalized, k=2, which="LA", v0=start)
        order = np.argsort(values)
        return 1 - values[order[0]], vectors[:, order[0]]

    eigsh_value, eigsh_time = timed(options.repeats, lanczos)
    (value, vector), vector_time = timed(options.repeats, lanczos_with_vector)
    spectrum, dense_time = timed(max(3, options.repeats // 3), lambda: np.linalg.eigvalsh(laplacian))
    print(json.dumps({
        "numpy": np.__version__, "scipy": scipy.__version__, "threads": options.threads, "n": n, "dtype": "f64",
        "repeats": options.repeats,
        "scipy_eigsh": {"fiedler": eigsh_value, **eigsh_time},
        "scipy_eigsh_with_vector": {"fiedler": value, **vector_time,
                                    "residual": float(np.linalg.norm(laplacian @ vector - value * vector))},
        "numpy_eigvalsh": {"fiedler": spectrum[1], "largest": spectrum[-1], **dense_time},
    }))


if __name__ == "__main__":
    main()
