#!/usr/bin/env python3
"""Writes step-by-step derivations: the language that the built-in model is trained on.

Ten kinds of derivation, each a list of sentences in which every step follows from the
sentences before it. `derive(seed, kind)` is a pure function of its arguments. An invalid
derivation is the same function with one claim altered: later steps are then drawn, correctly,
from the altered claim, so exactly one step is wrong and the text does not betray it twice.

Standard library only. `check.py` reads the finished text, without knowing how it was made,
and says which sentences do not follow.

    python3 generate.py --split train --count 5          # print five derivations
    python3 generate.py --split heldout --count 3 --wrong # and wrong twins beside them
"""

import argparse
import random


class Reject(Exception):
    """The altered claim cannot be carried on to the end; another one is tried."""


class Text:
    """The sentences of one derivation, and the claims in them that may be altered."""

    def __init__(self, wrong=None):
        self.sentences = []
        self.claims = 0
        self.wrong = wrong  # (number of the claim, which of its wrong values)
        self.altered = None  # number of the sentence that holds the altered claim

    def claim(self, truth, others):
        """The value to write in the sentence that `say` adds next."""
        number, self.claims = self.claims, self.claims + 1
        if self.wrong is None or self.wrong[0] != number:
            return truth
        others = [other for other in others if other != truth]
        if not others:
            raise Reject
        self.altered = len(self.sentences)
        return others[self.wrong[1] % len(others)]

    def say(self, sentence):
        self.sentences.append(sentence)


def swaps(number):
    """Every number that differs from `number` in one digit and has as many digits."""
    digits = str(number)
    found = []
    for place, old in enumerate(digits):
        for new in "0123456789":
            if new != old and not (place == 0 and new == "0" and len(digits) > 1):
                found.append(int(digits[:place] + new + digits[place + 1 :]))
    return found


def natural(number, limit=999):
    if not 0 <= number <= limit:
        raise Reject
    return number


NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lia",
         "Max", "Nora", "Otto", "Pia"]
THINGS = ["apples", "books", "coins", "stamps", "shells", "cards", "pens", "nuts", "stones",
          "keys", "cups", "seeds"]
NOUNS = ["wug", "fep", "dax", "lop", "zim", "bok", "rill", "tove", "gorp", "snee", "plim", "vark",
         "mub", "quop", "jeth", "nald"]
LETTERS = "abcdefghkmnpqrstuvwxyz"


def apply(op, value, operand):
    if op == "add":
        return natural(value + operand)
    if op == "subtract":
        return natural(value - operand)
    if op == "multiply":
        return natural(value * operand)
    if op == "double":
        return natural(value * 2)
    if value % 2:
        raise Reject
    return value // 2


def plan_operations(rng, value, count):
    plan = []
    for _ in range(count):
        kinds = ["add", "add", "subtract"]
        if value < 100:
            kinds += ["double", "multiply"]
        if value % 2 == 0 and value > 3:
            kinds.append("halve")
        op = rng.choice(kinds)
        if op == "add":
            operand = rng.randint(1, 30)
        elif op == "subtract":
            operand = rng.randint(1, max(1, min(30, value)))
            if operand > value:
                op = "add"
        else:
            operand = rng.randint(2, 5) if op == "multiply" else 2
        plan.append((op, operand))
        value = apply(op, value, operand)
    return plan


CHAIN_FORMS = {
    "imperative": {
        "add": "Add {k} to get {r}.", "subtract": "Subtract {k} to get {r}.",
        "multiply": "Multiply by {k} to get {r}.", "double": "Double it to get {r}.",
        "halve": "Halve it to get {r}.",
    },
    "gerund": {
        "add": "Adding {k} gives {r}.", "subtract": "Taking away {k} gives {r}.",
        "multiply": "Multiplying by {k} gives {r}.", "double": "Doubling gives {r}.",
        "halve": "Halving gives {r}.",
    },
    "words": {
        "add": "{v} plus {k} is {r}.", "subtract": "{v} minus {k} is {r}.",
        "multiply": "{v} times {k} is {r}.", "double": "Twice {v} is {r}.",
        "halve": "Half of {v} is {r}.",
    },
    "signs": {
        "add": "{v} + {k} = {r}.", "subtract": "{v} - {k} = {r}.",
        "multiply": "{v} * {k} = {r}.", "double": "{v} * 2 = {r}.", "halve": "{v} / 2 = {r}.",
    },
}


def chain(plan, words, text):
    """A number carried through a chain of operations."""
    start = plan.randint(2, 60)
    operations = plan_operations(plan, start, plan.randint(3, 10))
    form = CHAIN_FORMS[words.choice(sorted(CHAIN_FORMS))]
    text.say(words.choice(["Start with {}.", "Begin at {}.", "Take the number {}."]).format(start))
    value = start
    for op, operand in operations:
        result = apply(op, value, operand)
        result = text.claim(result, swaps(result))
        text.say(form[op].format(v=value, k=operand, r=result))
        value = result
    value = text.claim(value, swaps(value))
    text.say(words.choice(["The result is {}.", "So the answer is {}.", "We end with {}."]).format(value))


def story(plan, words, text):
    """The same, told of somebody's things."""
    start = plan.randint(3, 50)
    value, operations = start, []
    for _ in range(plan.randint(3, 8)):
        op = plan.choice(["add", "subtract"]) if value > 1 else "add"
        operand = plan.randint(1, 25) if op == "add" else plan.randint(1, value)
        operations.append((op, operand))
        value = apply(op, value, operand)
    name, thing = words.choice(NAMES), words.choice(THINGS)
    text.say(f"{name} has {start} {thing}.")
    value = start
    for op, operand in operations:
        verb = words.choice(["finds", "buys", "gets"] if op == "add" else ["loses", "sells", "gives away"])
        more = " more" if op == "add" else ""
        result = apply(op, value, operand)
        result = text.claim(result, swaps(result))
        text.say(f"{name} {verb} {operand}{more} and now has {result}.")
        value = result
    value = text.claim(value, swaps(value))
    text.say(words.choice([f"In the end {name} has {value} {thing}.", f"So {name} has {value} {thing} left."]))


def parity(plan, words, text):
    """Even or odd, for a sum or a product, number by number."""
    numbers = [plan.randint(2, 199) for _ in range(plan.randint(2, 6))]
    product = plan.random() < 0.4
    flip = {"even": "odd", "odd": "even"}
    sign, noun, verb = (" * ", "product", "times") if product else (" + ", "sum", "plus")
    reason = words.random() < 0.5
    text.say(f"Is {sign.join(map(str, numbers))} even or odd?")
    running = None
    for number in numbers:
        one = "odd" if number % 2 else "even"
        one = text.claim(one, [flip[one]])
        text.say(f"{number} ends in {number % 10}, so {number} is {one}." if reason else f"{number} is {one}.")
        if running is None:
            running = one
            continue
        odd = (running, one).count("odd")
        both = "odd" if (odd == 2 if product else odd == 1) else "even"
        both = text.claim(both, [flip[both]])
        text.say(f"{running} {verb} {one} is {both}.")
        running = both
    running = text.claim(running, [flip[running]])
    text.say(words.choice([f"So the {noun} is {running}.", f"The {noun} must be {running}."]))


def substitution(plan, words, text):
    """Letters defined one from another, and their values put in."""
    letters = plan.sample(LETTERS, plan.randint(3, 7))
    values = {letters[0]: plan.randint(2, 20)}
    steps = []
    for letter in letters[1:]:
        known = sorted(values)
        left = plan.choice(known)
        op = plan.choice("++-*")
        right = plan.choice(known) if plan.random() < 0.35 else plan.randint(2, 9)
        other = values[right] if isinstance(right, str) else right
        if op == "-" and other > values[left] or op == "*" and values[left] * other > 400:
            op = "+"
        if op == "+" and values[left] + other > 999:
            left, right, other = letters[0], 2, 2
        values[letter] = sign_apply(op, values[left], other)
        steps.append((letter, left, op, right))
    form = words.choice(["put", "direct", "let"])
    values = {letters[0]: values[letters[0]]}
    text.say(f"Let {letters[0]} = {values[letters[0]]}.")
    for letter, left, op, right in steps:
        other = values[right] if isinstance(right, str) else right
        result = sign_apply(op, values[left], other)
        if form == "direct":
            result = text.claim(result, swaps(result))
            text.say(f"{letter} = {left} {op} {right} = {values[left]} {op} {other} = {result}.")
        else:
            text.say(f"Let {letter} = {left} {op} {right}." if form == "let" else f"Put {letter} for {left} {op} {right}.")
            result = text.claim(result, swaps(result))
            text.say(f"Then {letter} = {values[left]} {op} {other} = {result}.")
        values[letter] = result
    last = letters[-1]
    value = text.claim(values[last], swaps(values[last]))
    text.say(words.choice([f"Therefore {last} is {value}.", f"So the value of {last} is {value}."]))


def sign_apply(op, left, right):
    return natural(left + right if op == "+" else left - right if op == "-" else left * right)


def solve(plan, words, text):
    """A linear equation in one unknown."""
    rounds = plan.randint(1, 3)
    letters = words.sample("xyzwuv", rounds)
    words_form = words.random() < 0.5
    for letter in letters:
        factor, root, shift = plan.randint(2, 9), plan.randint(1, 12), plan.randint(1, 30)
        plus = plan.random() < 0.6 or factor * root <= shift
        total = factor * root + shift if plus else factor * root - shift
        text.say(f"Solve {factor}{letter} {'+' if plus else '-'} {shift} = {total}.")
        middle = factor * root
        middle = text.claim(middle, [m for m in swaps(middle) if m % factor == 0 and m])
        verb = "Subtract" if plus else "Add"
        text.say(f"{verb} {shift} on both sides: {factor}{letter} = {middle}." if words_form
                 else f"{verb} {shift}, so {factor}{letter} = {middle}.")
        root = text.claim(middle // factor, swaps(middle // factor))
        text.say(f"Divide by {factor}: {letter} = {root}." if words_form else f"Divide by {factor}, so {letter} = {root}.")
        root = text.claim(root, swaps(root))
        text.say(f"The solution is {letter} = {root}.")


def syllogism(plan, words, text):
    """Somebody is a thing, things are things, some are not."""
    nouns = plan.sample(NOUNS, plan.randint(5, 9))
    length = plan.randint(3, len(nouns) - 1)
    path, spare = nouns[:length], nouns[length:]
    name = words.choice(NAMES)
    rules = [f"Every {a} is a {b}." for a, b in zip(path, path[1:])]
    barred = plan.choice(spare) if plan.random() < 0.5 else None
    foreign = [noun for noun in spare if noun != barred]
    if barred:
        rules.append(f"No {path[-1]} is a {barred}.")
    if foreign and plan.random() < 0.5:
        rules.append(f"Every {foreign[0]} is a {plan.choice(path)}.")
    if plan.random() < 0.5:
        plan.shuffle(rules)
    fact = f"{name} is a {path[0]}."
    for premise in [fact, *rules] if words.random() < 0.5 else [*rules, fact]:
        text.say(premise)
    so = words.choice(["So", "Hence", "Thus"])
    for noun in path[1:]:
        text.say(f"{so} {name} is a {text.claim(noun, spare)}.")
    if barred:
        text.say(f"{so} {name} is not a {text.claim(barred, path)}.")


def truth(plan, words, text):
    """Truth values of formulas built one on another."""
    letters = plan.sample(LETTERS, plan.randint(5, 9))
    n_given = plan.randint(2, 3)
    values = {letter: plan.random() < 0.5 for letter in letters[:n_given]}
    spell = {True: "true", False: "false"}
    form = words.choice(["{} is {}.", "Suppose {} is {}.", "Let {} be {}."])
    for letter in letters[:n_given]:
        text.say(form.format(letter, spell[values[letter]]))
    joint = words.choice(["Let {l} mean {f}.", "Write {l} for {f}."])
    for letter in letters[n_given:]:
        kind = plan.choice(["and", "or", "not", "if"])
        a, b = plan.sample(sorted(values), 2)
        formula = {"and": f"{a} and {b}", "or": f"{a} or {b}", "not": f"not {a}", "if": f"if {a} then {b}"}[kind]
        value = {"and": values[a] and values[b], "or": values[a] or values[b], "not": not values[a],
                 "if": not values[a] or values[b]}[kind]
        text.say(joint.format(l=letter, f=formula))
        value = text.claim(value, [not value])
        why = f"Since {a} is {spell[values[a]]}" + ("" if kind == "not" else f" and {b} is {spell[values[b]]}")
        text.say(f"{why}, {letter} is {spell[value]}.")
        values[letter] = value
    last = text.claim(values[letters[-1]], [not values[letters[-1]]])
    text.say(f"So {letters[-1]} is {spell[last]}.")


def order(plan, words, text):
    """Who is taller than whom, from a line of neighbours."""
    people = plan.sample(NAMES, plan.randint(4, 7))
    more, most, least = words.choice([("taller", "tallest", "shortest"), ("older", "oldest", "youngest"),
                                      ("faster", "fastest", "slowest")])
    pairs = list(zip(people, people[1:]))
    if plan.random() < 0.5:
        plan.shuffle(pairs)
    for a, b in pairs:
        text.say(f"{a} is {more} than {b}.")
    so = words.choice(["So", "Hence", "Thus"])
    for _ in range(plan.randint(1, 4)):
        i = plan.randrange(len(people) - 2)
        j = plan.randrange(i + 2, len(people))
        a, b = text.claim((people[i], people[j]), [(people[j], people[i])])
        text.say(f"{so} {a} is {more} than {b}.")
    text.say(f"The {most} is {text.claim(people[0], people)}.")
    if plan.random() < 0.5:
        text.say(f"The {least} is {text.claim(people[-1], people)}.")


def addition(plan, words, text):
    """Addition in columns, with carries."""
    for _ in range(plan.randint(1, 3)):
        n_digits = plan.randint(2, 3)
        low, high = 10 ** (n_digits - 1), 10**n_digits - 1
        first, second = plan.randint(low, high), plan.randint(low, high)
        text.say(words.choice(["Add {} and {}.", "Find {} + {}."]).format(first, second))
        carry, written = 0, ""
        columns = ["ones", "tens", "hundreds"][:n_digits]
        for place, column in enumerate(columns):
            a, b = first // 10**place % 10, second // 10**place % 10
            total = a + b + carry
            total = text.claim(total, [t for t in swaps(total) if t < 20])
            terms = f"{a} + {b} + {carry}" if carry else f"{a} + {b}"
            if place + 1 < n_digits:
                carry, digit = divmod(total, 10)
                text.say(f"{column.capitalize()}: {terms} = {total}, write {digit} carry {carry}.")
                written = str(digit) + written
            else:
                text.say(f"{column.capitalize()}: {terms} = {total}, write {total}.")
                written = str(total) + written
        result = text.claim(int(written), swaps(int(written)))
        text.say(f"The sum is {result}.")


def remainder(plan, words, text):
    """Division with remainder."""
    for _ in range(plan.randint(1, 4)):
        divisor, quotient = plan.randint(3, 12), plan.randint(2, 15)
        number = divisor * quotient + plan.randrange(divisor)
        text.say(words.choice(["Divide {} by {}.", "What is {} modulo {}?"]).format(number, divisor))
        product = divisor * quotient
        product = text.claim(product, [p for p in swaps(product) if 0 <= number - p < divisor])
        text.say(f"{quotient} times {divisor} is {product}.")
        rest = natural(number - product)
        rest = text.claim(rest, [r for r in swaps(rest) if r < divisor])
        text.say(f"{number} - {product} = {rest}.")
        rest = text.claim(rest, [r for r in swaps(rest) if r < divisor])
        text.say(f"So the remainder is {rest}.")


def sorting(plan, words, text):
    """A list sorted by taking out its smallest number again and again."""
    numbers = plan.sample(range(1, 100), plan.randint(3, 7))
    up = plan.random() < 0.5
    word = "smallest" if up else "largest"
    text.say(f"Sort {' '.join(map(str, numbers))} from the {word}.")
    left, taken = list(numbers), []
    while len(left) > 1:
        best = min(left) if up else max(left)
        best = text.claim(best, sorted(left))
        text.say(f"The {word} of {' '.join(map(str, left))} is {best}.")
        left.remove(best)
        taken.append(best)
    taken += left
    text.say(f"So the order is {' '.join(map(str, taken))}.")


def clock(plan, words, text):
    """Hours counted around a clock face."""
    hour = plan.randint(1, 12)
    text.say(words.choice(["It is {} now.", "The clock shows {}."]).format(hour))
    for _ in range(plan.randint(3, 9)):
        shift = plan.randint(2, 11)
        later = plan.random() < 0.6
        result = (hour + shift - 1 if later else hour - shift - 1) % 12 + 1
        result = text.claim(result, [r for r in swaps(result) if 1 <= r <= 12])
        text.say(f"{shift} hours {'later' if later else 'earlier'} it is {result}.")
        hour = result
    hour = text.claim(hour, [h for h in swaps(hour) if 1 <= h <= 12])
    text.say(f"So the clock shows {hour} at last.")


def sequence(plan, words, text):
    """The terms of an arithmetic sequence, one after another."""
    step, value = plan.randint(2, 15), plan.randint(1, 40)
    grows = plan.random() < 0.7
    count = plan.randint(4, 10)
    if not grows:
        value += step * count
    text.say(f"A sequence starts at {value} and {'grows' if grows else 'falls'} by {step}.")
    for _ in range(count):
        result = natural(value + step if grows else value - step)
        result = text.claim(result, swaps(result))
        text.say(f"After {value} comes {result}.")
        value = result
    value = text.claim(value, swaps(value))
    text.say(f"The last term is {value}.")


KINDS = {f.__name__: f for f in (chain, story, parity, substitution, solve, syllogism, truth, order,
                                 addition, remainder, sorting, clock, sequence)}


class Derivation:
    """A finished derivation: its text, its sentences and, if one was altered, which."""

    def __init__(self, kind, text, sentences, claims, altered):
        self.kind, self.text, self.sentences = kind, text, sentences
        self.claims, self.altered = claims, altered


def derive(seed, kind, wrong=None):
    """The derivation of this seed; `wrong` = (claim, choice) alters one claim.

    The plan, the wording and the layout draw from three generators of their own, so that an
    altered twin has the same plan, the same wording and the same layout.
    """
    plan, words, layout = (random.Random(f"{seed}/{kind}/{part}") for part in ("plan", "words", "layout"))
    text = Text(wrong)
    KINDS[kind](plan, words, text)
    marker = layout.choice(["", "", "step", "number"])
    separator = "\n" if marker or layout.random() < 0.3 else " "
    lines = text.sentences
    if marker == "step":
        lines = [f"Step {i + 1}: {s}" for i, s in enumerate(lines)]
    elif marker == "number":
        lines = [f"{i + 1}) {s}" for i, s in enumerate(lines)]
    return Derivation(kind, separator.join(lines), text.sentences, text.claims, text.altered)


def split_kinds(split, start, count):
    """Seeds and kinds of a split: the name of the split is part of every seed."""
    names = sorted(KINDS)
    for i in range(start, start + count):
        seed = f"eigenlens/{split}/{i}"
        yield seed, random.Random(seed).choice(names)


def documents(split, count, start=0):
    """`count` valid derivations of a split."""
    for seed, kind in split_kinds(split, start, count):
        yield derive(seed, kind)


def wrong_twin(seed, kind, accept):
    """An altered twin that `accept(twin)` takes, or None: claims and values in a seeded order."""
    valid = derive(seed, kind)
    rng = random.Random(f"{seed}/{kind}/wrong")
    candidates = [(claim, choice) for claim in range(valid.claims) for choice in range(30)]
    rng.shuffle(candidates)
    for wrong in candidates:
        try:
            twin = derive(seed, kind, wrong)
        except Reject:
            continue
        if accept(twin):
            return twin
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--wrong", action="store_true", help="print a wrong twin after each")
    options = parser.parse_args()
    for seed, kind in split_kinds(options.split, 0, options.count):
        print(f"[{kind}]\n{derive(seed, kind).text}\n")
        if options.wrong:
            twin = wrong_twin(seed, kind, lambda twin: True)
            if twin is not None:
                print(f"[{kind}, sentence {twin.altered + 1} altered]\n{twin.text}\n")


if __name__ == "__main__":
    main()
