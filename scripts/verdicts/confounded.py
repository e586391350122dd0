#!/usr/bin/env python3
"""Writes `assets/confounded.jsonl`: derivations whose length gives their label away.

Of each pair in `assets/derivations.jsonl`, a valid derivation and the same one with a wrong step,
long pairs give their valid text and short ones their invalid text. Where the border lies is moved
from pair to pair, so that both labels have texts of like lengths. Nothing about validity can be
learnt from it that length does not give away first: a metric that follows length will seem to
tell valid from invalid. Standard library only.

    python3 scripts/verdicts/confounded.py
"""

import json
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets"
BORDER, WIDTH = 113, 60


def main():
    texts = map(json.loads, (ASSETS / "derivations.jsonl").read_text().splitlines())
    with open(ASSETS / "confounded.jsonl", "w") as out:
        for text in texts:
            shift = text["pair"] * 37 % WIDTH - WIDTH // 2
            wanted = "valid" if text["n_tokens"] > BORDER + shift else "invalid"
            if text["label"] == wanted:
                kept = {key: text[key] for key in ("id", "text", "label", "n_tokens")}
                out.write(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
