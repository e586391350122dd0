"""Golden values of the quantized block formats of GGUF files.

The blocks are random bytes with chosen scales; the values are those of the
`gguf` package's own dequantisation. Run: python tests/golden/quants.py

Each format has rows of 256 weights: `bytes` are the stored blocks, `values` the
`float32` numbers that they stand for (little-endian), both in hexadecimal.
"""

import json
import pathlib

import numpy as np
from gguf import GGMLQuantizationType, quants

WIDTH = 256
# Where a block holds its 16-bit floats: scales, then offsets.
FLOATS = {
    "Q4_0": (32, 18, [0]),
    "Q4_1": (32, 20, [0, 2]),
    "Q5_0": (32, 22, [0]),
    "Q5_1": (32, 24, [0, 2]),
    "Q8_0": (32, 34, [0]),
    "Q2_K": (256, 84, [80, 82]),
    "Q3_K": (256, 110, [108]),
    "Q4_K": (256, 144, [0, 2]),
    "Q5_K": (256, 176, [0, 2]),
    "Q6_K": (256, 210, [208]),
}
# Usual, negative, zero of either sign, subnormal, the smallest, the largest.
SCALES = [0.0123, -0.0071, 0.0, -0.0, 3.1e-6, -6e-8, 65504.0, 0.31]
# All bits of the quants set, none set, else random.
FILLS = [None, 0xFF, None, 0x00, None, 0xFF]


def row(rng, fill, first, len_, size, floats):
    blocks = rng.integers(0, 256, (WIDTH // len_, size), dtype=np.uint8)
    if fill is not None:
        blocks[:] = fill
    for i, block in enumerate(blocks):
        for j, at in enumerate(floats):
            scale = SCALES[(first + i + 3 * j) % len(SCALES)]
            block[at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    return blocks.reshape(-1)


def main():
    rng = np.random.default_rng(20260301)
    golden = {}
    for name, (len_, size, floats) in FLOATS.items():
        rows = [row(rng, fill, i, len_, size, floats) for i, fill in enumerate(FILLS)]
        values = [quants.dequantize(r, GGMLQuantizationType[name]) for r in rows]
        assert all(v.dtype == np.float32 and v.shape == (WIDTH,) for v in values)
        assert all(np.isfinite(v).all() for v in values)
        golden[name] = {
            "bytes": [r.tobytes().hex() for r in rows],
            "values": [v.astype("<f4").tobytes().hex() for v in values],
        }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
