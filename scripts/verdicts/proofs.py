#!/usr/bin/env python3
"""Writes proofs of set.mm in pairs, valid and with one wrong step of equal token length.

set.mm, the Metamath database of formal mathematics, is in the Debian package metamath-databases
(`apt-get download metamath-databases; dpkg -x metamath-databases_*.deb DIR`, then
DIR/usr/share/metamath/databases/set.mm) and at github.com/metamath/set.mm, public domain.

A proof is written as its logical steps, each with what it claims and what it follows from:

    3. |- ( ps -> ph ) from 1, 2 by ax-mp

In the corrupted twin one variable in one claim is another variable of the same kind. Both
are among those in KINDS, each of which is one token behind a space for common tokenizers: `eigenlens
show RUN verdicts` tells whether lengths are equal indeed. A twin is kept only if a step of it
follows by no substitution of its theorem at all. Distinct-variable conditions are not looked at.
Standard library only.

    python3 scripts/verdicts/proofs.py set.mm --pairs 120 > proofs.jsonl
"""

import argparse
import json
import random
import sys

KINDS = [["ph", "ps", "ch", "th"], ["x", "y", "z"], ["A", "B", "C", "D"]]


class Database:
    """Statements of a Metamath file with the hypotheses that are in force where they stand."""

    def __init__(self, text):
        self.frames = {}  # label: (kind, [hypotheses' labels], expression)
        self.proofs = []  # (label, compressed or plain proof)
        variables, scope, stack = set(), [], []
        tokens = iter(self.without_comments(text))
        label = None
        for token in tokens:
            if token in ("$c", "$d"):
                self.rest(tokens)
            elif token == "$v":
                variables.update(self.rest(tokens))
            elif token == "${":
                stack.append(len(scope))
            elif token == "$}":
                del scope[stack.pop():]
            elif token in ("$f", "$e"):
                self.frames[label] = (token, [], self.rest(tokens))
                scope.append(label)
            elif token in ("$a", "$p"):
                body = self.rest(tokens)
                proof = None
                if "$=" in body:
                    cut = body.index("$=")
                    body, proof = body[:cut], body[cut + 1:]
                essential = [h for h in scope if self.frames[h][0] == "$e"]
                used = set(body)
                for h in essential:
                    used.update(self.frames[h][2])
                mandatory = [h for h in scope if self.frames[h][0] == "$e"
                             or self.frames[h][2][1] in used & variables]
                self.frames[label] = (token, mandatory, body)
                if proof:
                    self.proofs.append((label, proof))
            else:
                label = token
        self.variables = variables

    @staticmethod
    def without_comments(text):
        inside = False
        for token in text.split():
            if token == "$(":
                inside = True
            elif token == "$)":
                inside = False
            elif not inside:
                yield token

    @staticmethod
    def rest(tokens):
        found = []
        for token in tokens:
            if token == "$.":
                return found
            found.append(token)
        raise ValueError("a statement does not end")

    def steps(self, label, proof):
        """The logical steps of a proof: (claim, numbers of the steps it follows from, label)."""
        mandatory = self.frames[label][1]
        stack, saved, steps, known = [], [], [], {}

        def push(name):
            kind, hypotheses, body = self.frames[name]
            if kind in ("$f", "$e"):
                stack.append((body, note(body, [], name) if kind == "$e" else None))
                return
            start = len(stack) - len(hypotheses)
            given = stack[start:]
            del stack[start:]
            values = {self.frames[h][2][1]: got[0][1:] for h, got in zip(hypotheses, given)
                      if self.frames[h][0] == "$f"}
            claim = [part for token in body for part in values.get(token, [token])]
            refs = [got[1] for h, got in zip(hypotheses, given) if self.frames[h][0] == "$e"]
            stack.append((claim, note(claim, refs, name) if body[0] == "|-" else None))

        def note(claim, refs, name):
            key = tuple(claim)
            if key not in known:
                steps.append((claim, refs, name))
                known[key] = len(steps) - 1
            return known[key]

        if proof[0] != "(":
            for name in proof:
                push(name)
            return steps
        end = proof.index(")")
        labels = mandatory + proof[1:end]
        number = 0
        for char in "".join(proof[end + 1:]):
            if "A" <= char <= "T":
                number = number * 20 + ord(char) - ord("A")
                if number < len(labels):
                    push(labels[number])
                else:
                    stack.append(saved[number - len(labels)])
                number = 0
            elif "U" <= char <= "Y":
                number = number * 5 + ord(char) - ord("U") + 1
            elif char == "Z":
                saved.append(stack[-1])
            else:
                raise ValueError("an unfinished proof")
        return steps

    def follows(self, steps, step):
        """Whether any substitution of strings for variables makes this step one of its theorem."""
        claim, refs, name = steps[step]
        kind, hypotheses, body = self.frames[name]
        if kind == "$e":
            return claim == body
        patterns = [self.frames[h][2] for h in hypotheses if self.frames[h][0] == "$e"] + [body]
        texts = [steps[ref][0] for ref in refs] + [claim]
        return self.match([p for ps in patterns for p in [*ps, "$."]],
                          [t for ts in texts for t in [*ts, "$."]], {})

    def match(self, pattern, text, values):
        if not pattern:
            return not text
        head = pattern[0]
        if head not in self.variables:
            return bool(text) and text[0] == head and self.match(pattern[1:], text[1:], values)
        if head in values:
            value = values[head]
            return text[:len(value)] == value and self.match(pattern[1:], text[len(value):], values)
        depth = 0
        for length in range(1, len(text) + 1):
            token = text[length - 1]
            depth += (token == "(") - (token == ")")
            if token == "$." or depth < 0:
                return False
            if depth == 0 and self.match(pattern[1:], text[length:], {**values, head: text[:length]}):
                return True
        return False


def written(steps):
    lines = []
    for number, (claim, refs, name) in enumerate(steps, 1):
        source = f"from {', '.join(str(ref + 1) for ref in refs)} by {name}" if refs else f"by {name}"
        lines.append(f"{number}. {' '.join(claim)} {source}")
    return "\n".join(lines)


def corrupted(database, steps, rng):
    """The steps with one variable of one claim replaced, and the step; None if none would do."""
    places = []
    for step, (claim, _, name) in enumerate(steps):
        if database.frames[name][0] == "$e":
            continue
        for place, token in enumerate(claim):
            for kind in KINDS:
                if token in kind:
                    present = {t for c, _, _ in steps for t in c}
                    others = [t for t in kind if t != token and t in present]
                    places.extend((step, place, other) for other in others)
    rng.shuffle(places)
    for step, place, other in places[:20]:
        claim, refs, name = steps[step]
        wrong = list(steps)
        wrong[step] = (claim[:place] + [other] + claim[place + 1:], refs, name)
        if any(wrong[step][0] == c for i, (c, _, _) in enumerate(steps) if i != step):
            continue
        if not all(database.follows(wrong, i) for i in range(len(wrong))):
            return wrong, step
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--characters", type=int, nargs=2, default=(200, 700))
    arguments = parser.parse_args()
    with open(arguments.database, encoding="utf-8") as file:
        database = Database(file.read())
    rng = random.Random(arguments.seed)
    order = list(range(len(database.proofs)))
    rng.shuffle(order)
    least, most = arguments.characters
    done = 0
    for index in order:
        label, proof = database.proofs[index]
        if done == arguments.pairs:
            return
        if len(proof) > 60 or "?" in proof:
            continue
        steps = database.steps(label, proof)
        text = written(steps)
        if not (4 <= len(steps) <= 16 and least <= len(text) <= most):
            continue
        if max(len(claim) for claim, _, _ in steps) > 40:
            continue
        assert all(database.follows(steps, i) for i in range(len(steps))), label
        found = corrupted(database, steps, rng)
        if found is None:
            continue
        wrong, step = found
        for name, kept in (("valid", text), ("corrupted", written(wrong))):
            row = {"id": f"{label}-{name}", "text": kept, "label": name, "proof": label}
            if name == "corrupted":
                row["wrong_step"] = step + 1
            print(json.dumps(row))
        done += 1
    sys.exit(f"only {done} pairs were found")


if __name__ == "__main__":
    main()
