#!/usr/bin/env python3
"""Writes `smollm2_tokens.json`: hard strings and their ids under SmolLM2's tokenizer.

Two references that share no code must agree on every string: llama.cpp (through xllamacpp), which
reads the GGUF itself, and Hugging Face tokenizers with the vocabulary and merges of the GGUF.
transformers' conversion of this file leaves out a step of the published tokenizer.json, the
splitting of digits (`Digits(individual_digits=true)` before `ByteLevel`); it is put back here.

`ids` are those with special tokens recognised in the text, `plain_ids` (where they differ) those
with special tokens read as ordinary text. No token is added before or after.

    pip install transformers accelerate gguf torch xllamacpp
    python3 tokenizer.py FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import importlib.metadata
import json
import os
import sys
import unicodedata
import urllib.request
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers  # noqa: E402
import transformers  # noqa: E402
import xllamacpp  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence  # noqa: E402

HERE = Path(__file__).resolve().parent
PORT = 18431

STRINGS = [
    # Nothing, and next to nothing.
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\r", "\r\n", " \n", "\n ", "a", " a",
    # Words and spaces.
    "The capital of France is", " The capital of France is ", "Hello,  world!   Three spaces.",
    "trailing spaces   ", "   leading spaces", "tab\tseparated\t\tvalues", "line one\nline two\r\nline three\rline four",
    "mixed \t \n \r\n whitespace", "no-break\u00a0space and thin\u2009space", "zero\u200bwidth\u200cnon\u200djoiner",
    "ideographic\u3000space", "a\u2028b\u2029c", "form\x0cfeed and vertical\x0btab", "\ufeffbyte order mark",
    # Numbers.
    "1234567890", "3.14159", "1,234,567.89", "a1b2c3", "  42", "x = 10 ** 20", "007", "5 6  7   8",
    "½ ² Ⅷ ① ٣ ५ 九", "v1.2.3-rc4+5", "2024-02-29T23:59:59Z", "1's and 2nd", "0x1F\t0b101", "\n1\n 2\n  3",
    # Contractions and quotes.
    "I'm you're he's we've they'll I'd don't", "DON'T I'M", "it’s ‘quoted’ “text”", "'s 't 're 've 'm 'll 'd", "rock'n'roll '90s",
    # Punctuation runs.
    "!!!???...", "-----=====*****", "(a)[b]{c}<d>", "#$%^&*@~`|\\/", "a_b__c___d", "…—–·•", ".\n..\n...",
    # Code.
    "def f(x):\n    return x * 2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += 1;\n}", "<div class=\"a\">&nbsp;</div>",
    "SELECT * FROM t WHERE a='b';--", "\\u0041 \\x41 \\n %20 &#65;", "C:\\Users\\n\\t", "https://example.org/a?b=c&d=e#f",
    "camelCaseAndSCREAMING_SNAKE", "{\"key\": [1, 2.5, null, true]}",
    # Scripts.
    "Ünïcödé naïve façade", "Größe straße ŒUVRE", "Привет, мир!", "Ελληνικά γράμματα", "中文字符测试。", "日本語のテキスト、カタカナ",
    "한국어 문장입니다", "שלום עולם", "مرحبا بالعالم", "हिन्दी में पाठ", "ภาษาไทยไม่มีช่องว่าง", "Tiếng Việt có dấu", "አማርኛ ქართული հայերեն",
    "mixed English и русский 与中文",
    # Combining marks, forms, planes.
    unicodedata.normalize("NFC", "café déjà vu Å"), unicodedata.normalize("NFD", "café déjà vu Å"),
    "Z͑ͫ̓ͪ̂a̴l̵g̶o̷", "ﬁ ﬂ ｆｕｌｌｗｉｄｔｈ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒎𝒂𝒕𝒉", "∑∫√∞≠≤≥ αβγ", "\u202eright to left override\u202c", "\ue000private\uf8ff",
    "replacement \ufffd character", "\U0010ffff", "𐍈𒀀𓀀",
    # Emoji.
    "😀😃😄", "👩‍👩‍👧‍👦 family", "🏳️‍🌈🇫🇷🇯🇵", "👍🏽 thumbs", "❤️ vs ❤", "1️⃣2️⃣",
    # Control characters.
    "\x00", "a\x00b", "\x01\x02\x1b[31mred\x1b[0m\x7f", "\x80\x85\x9f", "bell\x07 backspace\x08",
    # Special tokens in the text.
    "<|im_start|>", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b", " <|im_end|> ",
    "<|im_start|", "<|IM_START|>", "<|im_start|><|im_start|>", "<repo_name>x<file_sep>y", "<s></s><unk>", "< |im_end|>",
    # Long ones.
    "a" * 300, "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "ab" * 100 + " " * 50 + "1" * 40, "\n" * 40 + "x", "!" * 100, "的" * 60, "🙂" * 20,
]


class LlamaCpp:
    """llama.cpp's tokenizer behind its HTTP server on loopback."""

    def __init__(self, gguf):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel, params.warmup, params.port = 256, 1, False, PORT
        params.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(params)

    def encode(self, text, special):
        body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
        request = urllib.request.Request(f"{self.server.listening_address}/tokenize", data=body,
                                         headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]


class HuggingFace:
    """Hugging Face tokenizers with the vocabulary and merges of the GGUF."""

    def __init__(self, gguf):
        loaded = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        self.tokenizer = loaded.backend_tokenizer
        self.tokenizer.pre_tokenizer = Sequence([
            Digits(individual_digits=True), ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])

    def encode(self, text, special):
        self.tokenizer.encode_special_tokens = not special
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def main():
    gguf = Path(sys.argv[1]).resolve()
    references = [LlamaCpp(gguf), HuggingFace(gguf)]
    rows, differ = [], 0
    assert len(set(STRINGS)) == len(STRINGS)
    for text in STRINGS:
        parsed, plain = ([r.encode(text, special) for r in references] for special in (True, False))
        if parsed[0] != parsed[1] or plain[0] != plain[1]:
            differ += 1
            print(f"{text[:60]!r}: llama.cpp {parsed[0][:12]} {plain[0][:12]}, Hugging Face {parsed[1][:12]} {plain[1][:12]}")
        row = {"text": text, "ids": parsed[1]}
        if plain[1] != parsed[1]:
            row["plain_ids"] = plain[1]
        rows.append(row)
    record = {
        "model": gguf.name,
        "versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__,
                     "xllamacpp": importlib.metadata.version("xllamacpp")},
        "notes": "both references agree on every string" if not differ else f"the references differ on {differ} strings; "
                 "the ids are those of Hugging Face tokenizers",
        "strings": rows,
    }
    lines = [json.dumps(row) for row in rows]
    head = json.dumps({k: v for k, v in record.items() if k != "strings"})[:-1]
    (HERE / "smollm2_tokens.json").write_text(head + ', "strings": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{len(rows)} strings, {sum('plain_ids' in row for row in rows)} with plain ids, {differ} differ")


if __name__ == "__main__":
    main()
