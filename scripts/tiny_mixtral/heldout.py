#!/usr/bin/env python3
"""Writes `assets/derivations.jsonl`: held-out derivations in pairs, valid and with one wrong step.

The two texts of a pair have the same plan, wording and layout and the same number of tokens. No
text of the file, whatever its layout, is among the derivations that the model was trained on, and
`check.py` finds no fault in the valid ones and exactly the altered sentence in the others.

The tokenizer is read from `assets/tiny-mixtral/tokenizer.json`. For a model made from scratch, copy
the `tokenizer.json` of `train.py`'s folder there first, run this, and then `finish.py`.

    python3 heldout.py
"""

import json
import random
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

import check
import generate

ASSETS = Path(__file__).resolve().parents[2] / "assets"
PAIRS = 120
SHORTEST, LONGEST = 30, 200
TRAINING_DOCUMENTS = 190_000


def content(sentences):
    """What two derivations share when they differ in layout alone."""
    return "\n".join(sentences)


def main():
    tokenizer = Tokenizer.from_file(str(ASSETS / "tiny-mixtral" / "tokenizer.json"))

    def length(text):
        return len(tokenizer.encode(text).ids)

    trained = {content(d.sentences) for d in generate.documents("train", TRAINING_DOCUMENTS)}
    kinds = sorted(generate.KINDS)
    rows, seen, counts, index = [], set(), Counter(), 0
    while len(rows) < 2 * PAIRS:
        kind, seed = kinds[len(rows) // 2 % len(kinds)], f"eigenlens/heldout/{index}"
        index += 1
        valid = generate.derive(seed, kind)
        n_tokens = length(valid.text)
        # Lengths are spread evenly: each pair has a length to be at least.
        floor = random.Random(f"{seed}/floor").randint(SHORTEST, 120)
        said = content(valid.sentences)
        if not floor <= n_tokens <= LONGEST or said in trained or said in seen:
            continue

        def accept(twin):
            return (length(twin.text) == n_tokens and content(twin.sentences) not in trained
                    and check.wrong_sentences(twin.text) == [twin.altered])

        twin = generate.wrong_twin(seed, kind, accept)
        if twin is None:
            continue
        assert check.wrong_sentences(valid.text) == [], valid.text
        seen |= {said, content(twin.sentences)}
        pair = len(rows) // 2
        counts[kind] += 1
        for label, derivation in [("valid", valid), ("invalid", twin)]:
            row = {"id": f"{pair:03}-{label}", "text": derivation.text, "label": label, "kind": kind,
                   "pair": pair, "n_tokens": n_tokens}
            if label == "invalid":
                row["wrong_sentence"] = derivation.altered
            rows.append(row)
    with open(ASSETS / "derivations.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    lengths = sorted(row["n_tokens"] for row in rows)
    print(f"{PAIRS} pairs, {dict(counts)}, tokens {lengths[0]}..{lengths[-1]}, median {lengths[PAIRS]}, "
          f"sum {sum(lengths)}")


if __name__ == "__main__":
    main()
