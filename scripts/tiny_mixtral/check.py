#!/usr/bin/env python3
"""Reads derivations and says which sentences do not follow from those before them.

The reader knows nothing of the generator: it takes the finished text apart and judges every
sentence by what was said before it. A wrong sentence is believed afterwards, so that a sentence
drawn correctly from it is not counted as wrong too.

    python3 check.py ../../assets/derivations.jsonl
"""

import json
import re
import sys

NUMBER = r"(-?\d+)"
RULES = []


def rule(pattern):
    """Registers a judge for sentences of this form."""
    compiled = re.compile(pattern.replace("{n}", NUMBER) + r"\Z")

    def add(judge):
        RULES.append((compiled, judge))
        return judge

    return add


class Said:
    """What the sentences read so far have established."""

    def __init__(self):
        self.number = None  # the running number of a chain, a clock or a sequence
        self.values = {}  # letters: numbers or truth values
        self.meanings = {}  # letters: what they stand for, not yet evaluated
        self.listed = []  # the numbers of a question or a list, still to be dealt with
        self.taken = []
        self.running = None  # parity so far
        self.last = None  # parity of the last number
        self.product = False
        self.rules, self.facts, self.asserted = [], set(), set()
        self.above = set()
        self.owner = None
        self.equation = None
        self.addition = None
        self.division = None
        self.step = 0
        self.largest = False


def number_of(match, *groups):
    return [int(match.group(g)) for g in groups]


def follows(said, result, claimed):
    """The running number becomes the claimed one, right or wrong."""
    said.number = claimed
    return result == claimed


# A chain of operations ---------------------------------------------------------------------

@rule(r"(?:Start with|Begin at|Take the number) {n}")
def start(said, m):
    said.number = int(m.group(1))
    return True


@rule(r"(Add|Subtract) {n} to get {n}")
@rule(r"(Adding|Taking away) {n} gives {n}")
def add_or_take(said, m):
    operand, claimed = number_of(m, 2, 3)
    result = said.number + operand if m.group(1).startswith("Add") else said.number - operand
    return follows(said, result, claimed)


@rule(r"Multiply(?:ing)? by {n} (?:to get|gives) {n}")
def multiply(said, m):
    operand, claimed = number_of(m, 1, 2)
    return follows(said, said.number * operand, claimed)


@rule(r"(Double it to get|Doubling gives|Halve it to get|Halving gives) {n}")
def double_or_halve(said, m):
    claimed = int(m.group(2))
    if m.group(1).startswith("Doubl"):
        return follows(said, said.number * 2, claimed)
    return follows(said, said.number / 2, claimed)


@rule(r"{n} (\+|-|\*|/|plus|minus|times) {n} (?:=|is) {n}")
def calculation(said, m):
    left, right, claimed = number_of(m, 1, 3, 4)
    sign = {"plus": "+", "minus": "-", "times": "*"}.get(m.group(2), m.group(2))
    result = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign]
    if said.division is not None:
        number, divisor, product, _ = said.division
        if sign == "*":
            sound = right == divisor and 0 <= number - result < divisor
            said.division = (number, divisor, claimed, None)
        else:
            sound = left == number and right == product and 0 <= result < divisor
            said.division = (number, divisor, product, claimed)
        return sound and result == claimed
    sound = left == said.number
    return follows(said, result, claimed) and sound


@rule(r"(Twice|Half of) {n} is {n}")
def twice_or_half(said, m):
    operand, claimed = number_of(m, 2, 3)
    sound = operand == said.number
    return follows(said, operand * 2 if m.group(1) == "Twice" else operand / 2, claimed) and sound


@rule(r"(?:The result is|So the answer is|We end with|The last term is) {n}")
def end(said, m):
    return follows(said, said.number, int(m.group(1)))


# Somebody's things -------------------------------------------------------------------------

@rule(r"([A-Z]\w+) has {n} (\w+)")
def owns(said, m):
    said.owner = (m.group(1), m.group(3))
    said.number = int(m.group(2))
    return True


@rule(r"([A-Z]\w+) (finds|buys|gets) {n} more and now has {n}")
@rule(r"([A-Z]\w+) (loses|sells|gives away) {n} and now has {n}")
def changes(said, m):
    operand, claimed = number_of(m, 3, 4)
    gain = m.group(2) in ("finds", "buys", "gets")
    result = said.number + operand if gain else said.number - operand
    return follows(said, result, claimed) and m.group(1) == said.owner[0] and result >= 0


@rule(r"In the end ([A-Z]\w+) has {n} (\w+)")
@rule(r"So ([A-Z]\w+) has {n} (\w+) left")
def owns_in_the_end(said, m):
    return follows(said, said.number, int(m.group(2))) and (m.group(1), m.group(3)) == said.owner


# Even and odd ------------------------------------------------------------------------------

@rule(r"Is (\d+(?: [+*] \d+)+) even or odd")
def parity_question(said, m):
    said.product = "*" in m.group(1)
    said.listed = [int(n) for n in re.findall(r"\d+", m.group(1))]
    return "+" not in m.group(1) or not said.product


def parity_of(said, number, claimed):
    asked = bool(said.listed) and said.listed.pop(0) == number
    said.last = claimed
    if said.running is None:
        said.running = claimed
    return asked and claimed == ("odd" if number % 2 else "even")


@rule(r"{n} is (even|odd)")
def parity_of_number(said, m):
    return parity_of(said, int(m.group(1)), m.group(2))


@rule(r"{n} ends in (\d), so {n} is (even|odd)")
def parity_from_last_digit(said, m):
    number, digit, again = number_of(m, 1, 2, 3)
    return parity_of(said, number, m.group(4)) and digit == number % 10 and again == number


@rule(r"(even|odd) (plus|times) (even|odd) is (even|odd)")
def parity_step(said, m):
    first, verb, second, claimed = m.groups()
    odd = (first, second).count("odd")
    result = "odd" if (odd == 2 if verb == "times" else odd == 1) else "even"
    applies = first == said.running and second == said.last and (verb == "times") == said.product
    said.running = claimed
    return applies and result == claimed


@rule(r"(?:So the|The) (sum|product) (?:is|must be) (even|odd)")
def parity_end(said, m):
    return not said.listed and m.group(2) == said.running and (m.group(1) == "product") == said.product


# Letters for numbers -----------------------------------------------------------------------

@rule(r"Let ([a-z]) = {n}")
def let_number(said, m):
    said.values[m.group(1)] = int(m.group(2))
    return True


@rule(r"(?:Let|Put) ([a-z]) (?:=|for) ([a-z]) ([-+*]) (\w+)")
def let_formula(said, m):
    said.meanings[m.group(1)] = m.group(2, 3, 4)
    return m.group(2) in said.values


def value_of(said, word):
    return int(word) if word.isdigit() else said.values[word]


@rule(r"Then ([a-z]) = {n} ([-+*]) {n} = {n}")
def evaluate(said, m):
    letter, claimed = m.group(1), int(m.group(5))
    left, sign, right = said.meanings.pop(letter)
    stated = (int(m.group(2)), m.group(3), int(m.group(4)))
    said.values[letter] = claimed
    return stated == (value_of(said, left), sign, value_of(said, right)) and calculate(stated) == claimed


@rule(r"([a-z]) = ([a-z]) ([-+*]) (\w+) = {n} ([-+*]) {n} = {n}")
def formula_and_value(said, m):
    said.meanings[m.group(1)] = m.group(2, 3, 4)
    left, sign, right = m.group(2, 3, 4)
    stated, claimed = (int(m.group(5)), m.group(6), int(m.group(7))), int(m.group(8))
    sound = stated == (value_of(said, left), sign, value_of(said, right))
    said.values[m.group(1)] = claimed
    return sound and calculate(stated) == claimed


def calculate(stated):
    left, sign, right = stated
    return left + right if sign == "+" else left - right if sign == "-" else left * right


@rule(r"(?:Therefore|So the value of) ([a-z]) is {n}")
def letter_end(said, m):
    return said.values[m.group(1)] == int(m.group(2))


# Linear equations --------------------------------------------------------------------------

@rule(r"Solve {n}([a-z]) ([-+]) {n} = {n}")
def equation(said, m):
    factor, shift, total = number_of(m, 1, 4, 5)
    said.equation = [m.group(2), factor, shift if m.group(3) == "+" else -shift, total]
    return True


@rule(r"(Subtract|Add) {n}(?: on both sides:|, so) {n}([a-z]) = {n}")
def move_term(said, m):
    letter, factor, shift, total = said.equation
    operand, stated, claimed = number_of(m, 2, 3, 5)
    moved = -operand if m.group(1) == "Subtract" else operand
    sound = moved == -shift and stated == factor and m.group(4) == letter
    said.equation = [letter, factor, 0, claimed]
    return sound and total + moved == claimed


@rule(r"Divide by {n}(?::|, so) ([a-z]) = {n}")
def divide_equation(said, m):
    letter, factor, shift, total = said.equation
    operand, claimed = number_of(m, 1, 3)
    said.equation = [letter, 1, 0, claimed]
    return operand == factor and shift == 0 and m.group(2) == letter and factor * claimed == total


@rule(r"The solution is ([a-z]) = {n}")
def solution(said, m):
    return said.equation == [m.group(1), 1, 0, int(m.group(2))]


# What is what ------------------------------------------------------------------------------

@rule(r"(Every|No) ([a-z]+) is a ([a-z]+)")
def general(said, m):
    said.rules.append(m.groups())
    return True


@rule(r"([A-Z]\w+) is a ([a-z]+)")
def particular(said, m):
    said.facts.add(m.groups())
    return True


def kinds_of(said, name):
    kinds = {noun for who, noun in said.facts if who == name}
    while True:
        more = {b for every, a, b in said.rules if every == "Every" and a in kinds} - kinds
        if not more:
            return kinds
        kinds |= more


@rule(r"(?:So|Hence|Thus) ([A-Z]\w+) is (a|not a) ([a-z]+)")
def concluded(said, m):
    name, how, noun = m.groups()
    kinds = kinds_of(said, name)
    if how == "a":
        return noun in kinds
    return any(no == "No" and a in kinds and b == noun for no, a, b in said.rules)


# True and false ----------------------------------------------------------------------------

@rule(r"(?:Suppose |Let )?([a-z]) (?:is|be) (true|false)")
def given_truth(said, m):
    said.values[m.group(1)] = m.group(2) == "true"
    return True


@rule(r"(?:Let|Write) ([a-z]) (?:mean|for) (.+)")
def names_formula(said, m):
    said.meanings[m.group(1)] = m.group(2)
    return all(letter in said.values for letter in re.findall(r"\b[a-z]\b", m.group(2)))


@rule(r"Since (.+), ([a-z]) is (true|false)")
def truth_step(said, m):
    reasons = dict(re.findall(r"([a-z]) is (true|false)", m.group(1)))
    formula, claimed = said.meanings.pop(m.group(2)), m.group(3) == "true"
    letters = re.findall(r"\b[a-z]\b", formula)
    sound = set(reasons) == set(letters)
    sound &= all(said.values[letter] == (word == "true") for letter, word in reasons.items())
    a = said.values[letters[0]]
    b = said.values[letters[-1]]
    if formula.startswith("not "):
        result = not a
    elif formula.startswith("if "):
        result = b if a else True
    else:
        result = (a and b) if " and " in formula else (a or b)
    said.values[m.group(2)] = claimed
    return sound and result == claimed


@rule(r"So ([a-z]) is (true|false)")
def truth_end(said, m):
    return said.values[m.group(1)] == (m.group(2) == "true")


# Who is above whom -------------------------------------------------------------------------

@rule(r"([A-Z]\w+) is (taller|older|faster) than ([A-Z]\w+)")
def above(said, m):
    said.above.add((m.group(1), m.group(3)))
    return True


def closure(pairs):
    pairs = set(pairs)
    while True:
        more = {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs
        if not more:
            return pairs
        pairs |= more


@rule(r"(?:So|Hence|Thus) ([A-Z]\w+) is (taller|older|faster) than ([A-Z]\w+)")
def concluded_above(said, m):
    return (m.group(1), m.group(3)) in closure(said.above)


@rule(r"The (tallest|oldest|fastest|shortest|youngest|slowest) is ([A-Z]\w+)")
def extreme(said, m):
    pairs, who = closure(said.above), m.group(2)
    others = {name for pair in pairs for name in pair} - {who}
    top = m.group(1) in ("tallest", "oldest", "fastest")
    return all(((who, other) if top else (other, who)) in pairs for other in others)


# Sums in columns ---------------------------------------------------------------------------

@rule(r"(?:Add|Find) {n} (?:and|\+) {n}")
def addition(said, m):
    first, second = number_of(m, 1, 2)
    said.addition = {"first": first, "second": second, "place": 0, "carry": 0, "written": ""}
    return True


@rule(r"(Ones|Tens|Hundreds): (\d+(?: \+ \d+)+) = {n}, write {n}(?: carry {n})?")
def column(said, m):
    state = said.addition
    place = ("Ones", "Tens", "Hundreds").index(m.group(1))
    terms = [int(t) for t in m.group(2).split(" + ")]
    expected = [state["first"] // 10**place % 10, state["second"] // 10**place % 10]
    if state["carry"]:
        expected.append(state["carry"])
    total, written = number_of(m, 3, 4)
    last = m.group(5) is None
    sound = place == state["place"] and terms == expected and sum(terms) == total
    sound &= written == total if last else (int(m.group(5)), written) == divmod(total, 10)
    state.update(place=place + 1, carry=0 if last else int(m.group(5)), written=str(written) + state["written"])
    return sound


@rule(r"The sum is {n}")
def addition_end(said, m):
    return int(said.addition["written"]) == int(m.group(1)) and said.addition["carry"] == 0


# Division with remainder -------------------------------------------------------------------

@rule(r"(?:Divide|What is) {n} (?:by|modulo) {n}")
def division(said, m):
    said.division = (*number_of(m, 1, 2), None, None)
    return True


@rule(r"So the remainder is {n}")
def remainder(said, m):
    return said.division[3] == int(m.group(1)) < said.division[1]


# Lists -------------------------------------------------------------------------------------

@rule(r"Sort ((?:\d+ )+)from the (smallest|largest)")
def sort(said, m):
    said.listed = [int(n) for n in m.group(1).split()]
    said.largest = m.group(2) == "largest"
    return True


@rule(r"The (smallest|largest) of ([\d ]+) is {n}")
def best_of(said, m):
    numbers, claimed = [int(n) for n in m.group(2).split()], int(m.group(3))
    sound = numbers == said.listed and (m.group(1) == "largest") == said.largest
    said.listed = [n for n in numbers if n != claimed]
    said.taken.append(claimed)
    return sound and claimed == (max(numbers) if said.largest else min(numbers))


@rule(r"So the order is ([\d ]+)")
def sorted_list(said, m):
    return [int(n) for n in m.group(1).split()] == said.taken + said.listed


# The clock and sequences -------------------------------------------------------------------

@rule(r"(?:It is {n} now|The clock shows {n})")
def clock(said, m):
    said.number = int(m.group(1) or m.group(2))
    return True


@rule(r"{n} hours (later|earlier) it is {n}")
def hours(said, m):
    shift, claimed = number_of(m, 1, 3)
    result = said.number + (shift if m.group(2) == "later" else -shift)
    return follows(said, (result - 1) % 12 + 1, claimed)


@rule(r"So the clock shows {n} at last")
def clock_end(said, m):
    return follows(said, said.number, int(m.group(1)))


@rule(r"A sequence starts at {n} and (grows|falls) by {n}")
def sequence(said, m):
    said.number, said.step = number_of(m, 1, 3)
    if m.group(2) == "falls":
        said.step = -said.step
    return True


@rule(r"After {n} comes {n}")
def next_term(said, m):
    before, claimed = number_of(m, 1, 2)
    sound = before == said.number
    return follows(said, said.number + said.step, claimed) and sound


def sentences_of(text):
    """The sentences without their full stops and without step markers."""
    parts = [part for part in re.split(r"(?<=[.?])\s", text) if part]
    return [re.sub(r"\A(?:Step \d+: |\d+\) )", "", part)[:-1] for part in parts]


def wrong_sentences(text):
    """Numbers of the sentences that do not follow. An unreadable sentence raises ValueError."""
    said, wrong = Said(), []
    for number, sentence in enumerate(sentences_of(text)):
        for pattern, judge in RULES:
            match = pattern.match(sentence)
            if match:
                if not judge(said, match):
                    wrong.append(number)
                break
        else:
            raise ValueError(f"unreadable sentence {number + 1}: {sentence!r}")
    return wrong


def main():
    checked = {"valid": 0, "invalid": 0}
    for line in open(sys.argv[1], encoding="utf-8"):
        row = json.loads(line)
        wrong = wrong_sentences(row["text"])
        expected = [] if row["label"] == "valid" else [row["wrong_sentence"]]
        if wrong != expected:
            sys.exit(f"{row['id']}: sentences {wrong} do not follow, expected {expected}")
        checked[row["label"]] += 1
    print(f"{checked['valid']} valid derivations hold; {checked['invalid']} invalid ones fail at the altered step and nowhere else")


if __name__ == "__main__":
    main()
