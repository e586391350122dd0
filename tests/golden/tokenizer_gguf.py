#!/usr/bin/env python3
"""Writes `tokenizer_kinds.json` and `tokenizer_pieces.json`: small vocabularies, hard strings, their ids.

`tokenizer_kinds.json` holds one byte-level vocabulary whose merges reach over spaces, digits and
punctuation, so that every difference in how a text is cut shows in its tokens. For each rule that a
GGUF file can name, the ids are those of Hugging Face tokenizers (whose regular expressions are run by
Oniguruma), put together as the rule's models publish it. llama.cpp reads the same vocabulary as a
GGUF and must agree, but for what it is known to leave out; what differs is printed.

`tokenizer_pieces.json` holds SentencePiece models trained here with various options. The ids are
SentencePiece's own; llama.cpp and transformers' conversion are second opinions, and what differs is
printed.

    pip install transformers sentencepiece protobuf gguf torch xllamacpp
    python3 tokenizer_gguf.py
"""

import json
import random
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy
import sentencepiece
import xllamacpp
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizer import STRINGS

HERE = Path(__file__).resolve().parent
PORT = 18432

STRINGS = STRINGS + [
    # White space in every place.
    "    ", "\t\t", " \t ", "\n \n", "\n  x", "x\n", "x \n", "x  \n\n  y", "\r\n\r\n", "a\r\nb", "\r\n x", "a  b   c    d",
    "   a", "a   ", "\u00a0a\u00a0", "\u3000\u3000a", "a\u2003\u2003b", "\u00a0\u00a0 x", " \u00a0", "\u0085x", "\x1c\x1d\x1e\x1fx", "\u180ex",
    "\u2028\u2029", "x\u200b y", "\t x", " \tx", "\t\tx", "  \n", "\n\n\n\nx", "x\n\n\n", " \n \n \n ", "end. \n\nStart",
    # Digits.
    "1", "12", "123", "1234", "12345", "1 2 3", "12 345 6789", "x1", "1x", "1.5e-10", "٣٤٥٦٧", "१२३४५", "²³¹", "①②③④", "½⅓¼", "Ⅷ Ⅸ", "１２３４５",
    "12,34", "-5", "+5", "1/2", "1:2", "$100", "100%", "  123", "x=12345678", "ⅷⅷⅷⅷ", "0.0.0.0", "1st 22nd 333rd",
    # Contractions.
    "it's", "IT'S", "It'S", "we'LL", "they'Re", "I'M", "'tis", "x's y't", "a'b", "''s", "' s", "'ſ", "o'clock", "y'all'd've", "'S'T'RE", "can't.", "dog's\n",
    "'d'm", "'ll ve", "re've", "’s", "don’t", "l'été", "'é",
    # Cases.
    "camelCase", "PascalCase", "HTTPServer", "iPhone", "McDONALD's", "ÀÉÎ", "ÀéÎ", "ǅ ǆ Ǆ", "ΑΒΓαβγ", "ЖжЖ", "aA", "Aa", "AaA", "aAa", "ABCdef", "x²y", "ªº",
    "ⓐⒶ", "ʰʲ", "中A文b", "日Aa本", "ａＡ", "ﬁX", "İi ıI", "ẞß", "MıxED",
    # Marks.
    "e\u0301", "a\u0300\u0301\u0302", "\u0301", " \u0301", "n\u0303o", "o\u0302\u0323", "ộ", "\u1100\u1161\u11a8", "각", "가\u11a8", "क\u093f", "नि", "ก\u0e33", "เก้า",
    "ب\u064e\u0651", "שָׁלוֹם", "\u212b \u00c5 A\u030a", "\u2126 \u03a9", "\u1e9b\u0323", "x\u20e3", "1\ufe0f\u20e3", "a\u200d\u0301", "\u0958", "\ufb4f", "\uac00\u0301",
    # Scripts.
    "こんにちは世界", "カタカナ・ひらがな", "漢字かな交じり文", "一龥丁", "ㄱㄴㄷ ㅏㅑ", "안녕 하세요", "繁體中文，測試。", "「引用」『二重』", "ไทยภาษา", "ພາສາລາວ", "မြန်မာ", "ខ្មែរ", "বাংলা", "தமிழ்", "తెలుగు",
    "ગુજરાતી", "ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "ᐃᓄᒃᑎᑐᑦ", "العربية، نص؟", "اردو۔", "עברית", "Русский текст", "Ελληνικά", "🇩🇪🇫🇷", "𓀀𓀁", "𐍈𐍉",
    # Punctuation and symbols.
    ".", "...", "?!", "a.b.c", "a, b; c: d", "(x)", "[x]", "{x}", "<x>", "\"x\"", "`x`", "x!", "!x", "!!x", " !x", " !!", "$x", "#tag", "@user", "a&b", "a|b", "a\\b", "~", "^", "_x_", "__init__",
    "x_y", "->", "=>", "!=", "//", "/*x*/", "/path/to", "a/b", "./x", "!\n", "!\n\n", "! \n", "?/\n", "x/\n", "€5", "£", "x→y", "∑x", "×÷", "©®™", "¿Qué?", "¡Sí!", "«x»", "…x", "x…y", "、x", "。", "，x", "।", "۔", "،x", "(a|b)", "|", "((", "•x", "‘’“”",
    # Code and addresses.
    "fn main() {\n    println!(\"{}\", x);\n}\n", "if (a&&b||!c) {}", "x += 1;  // add", "#include <a.h>\n", "a[0][1]", "lambda x: x**2", "import os, sys", "SELECT a,b FROM t;", "{\"a\":1}", "<a href='x'>y</a>", "\\frac{a}{b}", "http://a.b/c?d=e&f=%20#g",
    "me@example.org", "192.168.0.1:8080", "C:\\x\\y", "~/.config/x", "2024-01-01T00:00:00Z", "0xDEADBEEF", "v1.0.0-rc.1", "--flag=value", "\tif x:\n\t\treturn\n",
    # Emoji.
    "😀", " 😀", "😀😀", "a😀b", "👨‍👩‍👧", "👍🏿", "🏴\U000e0067\U000e0062\U000e007f", "☺️", "☺", "⌚x", "🤷🏽‍♀️.",
    # Rubble: control characters, the edges of the planes, characters that spell bytes.
    "\x7f", "a\x00", "\x00\x00", "\x1b[0m", "\ufffd", "\ufffd\ufffd", "\ufeff", "\ufdd0", "\uffff", "\ue000", "\ud7ff", "\ufffe", "\U0001ffff", "\U000f0000", "\U0010fffd", "Ġ", "Ġx", "Ċ", "ĠĠ", "Ãł", "ā", "Ń", "Â", "¡¢£", "\u00ad", "▁", "▁▁", "▁x", "x▁", " ▁", "▁ ", "x▁y z",
    "<0x0A>", "<0x41>", "<0x", "<unk>", "<s>", "</s>", "<pad>", "[INST]", "<user>", "a<user>b", "<user> x", " <user>", "<user><user>", "x <s> y", "<s>x", "x</s>", "<s", "s>", "<s><s>", "<s> </s>", "a <unk> b", "<S>", "<s >",
    # Long ones.
    "abc" * 60, "a b " * 40, "Lorem ipsum dolor sit amet " * 6, "é" * 80, "'s" * 40, ".,;" * 40, "\t" * 37, " " * 65, "aaab" * 33, "ba" * 31 + "b", "the the the  the", "xyzzy" * 9 + " 12345 " * 5,
]
assert len(set(STRINGS)) == len(STRINGS), [s for s in STRINGS if STRINGS.count(s) > 1]

CORPUS = [
    "the quick brown fox jumps over the lazy dog. it's what they'll do, isn't it? IT'S WE'LL I'M don't can't you're we've",
    "def f(x):\n    return x * 2\n\nfor (int i = 0; i < 10; ++i) {\n\ta[i] += 1;\n}\n", "1 22 333 4444 55555 666666 12345678 2024-01-01 3.14159",
    "Größe straße été naïve ÀÉÎ café cafe\u0301 a\u0300 o\u0302", "Привет мир и мир", "中文字符测试。日本語のテキスト かな カタカナ 한국어 문장 안녕", "हिन्दी में पाठ ภาษาไทย العربية، نص",
    "camelCase PascalCase HTTPServer iPhone AaAaAa aAaA ABCdef", "   \n\n  \n\t\t  \r\n \r\n x  y   z    w", "!!! ??? ... ,,, --- === ((( ))) [[ ]] {{ }} // \\\\ ## $$ !\n !\n\n ?/\n",
    "😀😀 👍🏿 e\u0301e\u0301", "aaaa aaab abab baba the the the and and and of of of ing ed ly tion", "x=1;y=2;z=3 a.b.c a,b,c a/b/c",
] * 3

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def at(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = at(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST)
QWEN2 = at(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST)
QWEN35 = at(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def words(end):
    return rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{end}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{end}"


BLOOM = at(r" ?[^(\s|[.,!?…。，、।۔،])]+")

# The rule's first name, whether a text is composed first, the cuts, whether whole words are kept.
KINDS = [
    ("gpt-2", False, [GPT2], False),
    ("olmo", True, [GPT2], False),
    ("smollm", False, [DIGITS, GPT2], False),
    ("command-r", True, [DIGITS, GPT2], False),
    ("falcon", False, [pre_tokenizers.Punctuation("contiguous"), GPT2, pre_tokenizers.Digits(individual_digits=False), at("[0-9][0-9][0-9]")], False),
    ("llama-bpe", False, [CL100K, BYTES], True),
    ("dbrx", False, [CL100K, BYTES], False),
    ("qwen2", True, [QWEN2, BYTES], False),
    ("qwen35", True, [QWEN35, BYTES], False),
    ("stablelm2", False, [QWEN2, BYTES], False),
    ("gpt-4o", False, [at(words(CONTRACTIONS + "?") + r"|\p{N}{1,3}" + SLASHED), BYTES], False),
    ("tekken", False, [at(words("") + r"|\p{N}" + SLASHED), BYTES], True),
    ("deepseek-coder", False, [at(r"[\r\n]"), at(r"\s?\p{L}+"), at(r"\s?\p{P}+"), at(r"[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES], False),
    ("deepseek-v3", False, [at(r"\p{N}{1,3}"), at(r"[一-龥぀-ゟ゠-ヿ]+"), at(
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""), BYTES], False),
    ("bloom", False, [BLOOM, BYTES], False),
    ("viking", False, [BLOOM, DIGITS, BYTES], False),
    ("seed-coder", False, [at(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"), BYTES], False),
    ("bailingmoe", False, [at(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"), BYTES], False),
]


class LlamaCpp:
    """llama.cpp's tokenizer behind its HTTP server on loopback, for a vocabulary in a model of one tiny layer."""

    def __init__(self, folder, name, add):
        path = folder / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(32)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        n = add(writer)
        sizes = {"token_embd": (n, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
        sizes |= {f"blk.0.{x}": (32, 32) for x in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]}
        for name, size in sizes.items():
            writer.add_tensor(f"{name}.weight", numpy.zeros(size, numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.port = 64, 1, False, PORT
        params.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(params)

    def encode(self, text, special):
        body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
        request = urllib.request.Request(f"{self.server.listening_address}/tokenize", data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]


def distinct(row, key, lists):
    """Puts equal lists of ids into a row once, and for each kind the index of its own."""
    kept = []
    for ids in lists:
        if ids not in kept:
            kept.append(ids)
    row[key] = kept
    row["kinds"] = [kept.index(ids) for ids in lists]


def kinds(folder):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([at(r".{1,12}|\n+"), BYTES])
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    special, plain = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"], ["<user>", "  \n"]
    types = [1] * len(tokens) + [3] * len(special) + [4] * len(plain)
    tokens += special + plain
    merges = [" ".join(merge) for merge in model["merges"]]

    def build(composed, cuts, keep):
        tokenizer = Tokenizer(models.BPE(model["vocab"], [tuple(m) for m in model["merges"]], ignore_merges=keep))
        tokenizer.normalizer = normalizers.NFC() if composed else None
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in special])
        tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
        return tokenizer

    built = [build(*rule) for _, *rule in KINDS]
    rows = []
    for text in STRINGS:
        row = {"text": text}
        distinct(row, "ids", [tokenizer.encode(text, add_special_tokens=False).ids for tokenizer in built])
        rows.append(row)
    for index, (name, *_) in enumerate(KINDS):
        def add(writer, name=name):
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(name)
            writer.add_token_list(tokens)
            writer.add_token_types(types)
            writer.add_token_merges(merges)
            writer.add_bos_token_id(tokens.index("<s>"))
            writer.add_eos_token_id(tokens.index("</s>"))
            return len(tokens)
        peer = LlamaCpp(folder, name, add)
        differ = [row["text"] for row in rows if peer.encode(row["text"], True) != row["ids"][row["kinds"][index]]]
        print(f"{name}: llama.cpp differs on {len(differ)}: {[text[:20] for text in differ[:30]]}")
        del peer
    write("tokenizer_kinds.json", {"kinds": [name for name, *_ in KINDS], "tokens": tokens, "types": types, "merges": merges}, rows)


# Name, whether a text begins with a space, whether extra ones go, and what the trainer is told beside.
PIECES = [
    ("plain", True, False, dict(vocab_size=420, byte_fallback=True)),
    ("no-prefix", False, False, dict(vocab_size=420, byte_fallback=True, user_defined_symbols=["\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "\t", "<tag>"])),
    ("squeeze", True, True, dict(vocab_size=440, byte_fallback=True)),
    ("unknown", True, False, dict(vocab_size=330, character_coverage=0.98)),
    ("squeeze-bare", False, True, dict(vocab_size=330, character_coverage=0.98)),
    ("digits", False, False, dict(vocab_size=420, byte_fallback=True, split_digits=True, split_by_whitespace=False, max_sentencepiece_length=24, split_by_number=False, split_by_unicode_script=False)),
]


def pieces(folder):
    groups = []
    for name, prefix, squeeze, options in PIECES:
        corpus = folder / "corpus.txt"
        generator = random.Random(name)
        text = [" ".join(generator.choices(" ".join(CORPUS).split(), k=12)) for _ in range(300)]
        corpus.write_text("\n".join(text + [line.replace("\n", " ") for line in CORPUS]))
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(folder / name), model_type="bpe", normalization_rule_name="identity", add_dummy_prefix=prefix,
            remove_extra_whitespaces=squeeze, hard_vocab_limit=False, minloglevel=2, num_threads=1, **options)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
        proto = sentencepiece_model_pb2.ModelProto.FromString((folder / f"{name}.model").read_bytes())
        types = [piece.type for piece in proto.pieces]
        # As llama.cpp's conversion writes them: user-defined pieces have their spaces back.
        texts = [piece.piece.replace("▁", " ") if piece.type == 4 else piece.piece for piece in proto.pieces]
        scores = [piece.score for piece in proto.pieces]
        rows = [{"text": text, "ids": processor.encode(text)} for text in STRINGS]

        def add(writer):
            writer.add_tokenizer_model("llama")
            writer.add_token_list(texts)
            writer.add_token_scores(scores)
            writer.add_token_types(types)
            writer.add_add_space_prefix(prefix)
            return len(texts)
        peer = LlamaCpp(folder, name, add)

        def safe(text):
            try:
                return peer.encode(text, False)
            except urllib.error.HTTPError as error:
                return error.code
        differ = [row["text"] for row in rows if safe(row["text"]) != row["ids"]]
        print(f"{name}: {len(texts)} pieces, llama.cpp differs on {len(differ)}: {[text[:20] for text in differ[:40]]}")
        del peer
        groups.append({"name": name, "prefix": prefix, "squeeze": squeeze, "tokens": texts, "scores": scores, "types": types,
                       "ids": [row["ids"] for row in rows]})
    write("tokenizer_pieces.json", {"vocabularies": groups}, [{"text": text} for text in STRINGS])


def write(name, head, rows):
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (HERE / name).write_text(json.dumps(head, separators=(",", ":"))[:-1] + ',"strings":[\n' + lines + "\n]}\n")
    print(f"{name}: {len(rows)} strings, {(HERE / name).stat().st_size} bytes")


def main():
    with tempfile.TemporaryDirectory() as folder:
        kinds(Path(folder))
        pieces(Path(folder))


if __name__ == "__main__":
    main()
