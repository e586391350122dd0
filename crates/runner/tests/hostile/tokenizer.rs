//! Tokenizers, from `tokenizer.json` and from a GGUF file's metadata.

use runner::{Source, Special, Tokenizer};
use testkit::hostile::{Limits, Slot, alone, campaign, change_json, check, scratch, used};

use super::common::gguf::{File, Value};
use super::corpus;
use super::gguf::{change_file, with_pieces, with_tokenizer};

const WORDS: &[&str] = &[
    "type",
    "BPE",
    "WordPiece",
    "WordLevel",
    "Unigram",
    "Sequence",
    "Replace",
    "Prepend",
    "Strip",
    "StripAccents",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Nmt",
    "Precompiled",
    "BertNormalizer",
    "ByteLevel",
    "Metaspace",
    "Split",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
    "UnicodeScripts",
    "FixedLength",
    "CharDelimiterSplit",
    "BertPreTokenizer",
    "TemplateProcessing",
    "RobertaProcessing",
    "BertProcessing",
    "ByteFallback",
    "Fuse",
    "CTC",
    "BPEDecoder",
    "Regex",
    "String",
    "pattern",
    "content",
    "behavior",
    "Isolated",
    "Removed",
    "MergedWithPrevious",
    "Contiguous",
    "invert",
    "normalizers",
    "pretokenizers",
    "processors",
    "decoders",
    "model",
    "vocab",
    "merges",
    "added_tokens",
    "special",
    "single",
    "pair",
    "special_tokens",
    "SpecialToken",
    "A",
    "B",
    "ids",
    "tokens",
    "unk_token",
    "unk_id",
    "byte_fallback",
    "fuse_unk",
    "ignore_merges",
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "max_input_chars_per_word",
    "length",
    "replacement",
    "prepend_scheme",
    "truncation",
    "padding",
    "max_length",
    "stride",
    "LongestFirst",
    "Fixed",
    "BatchLongest",
    "▁",
    "##",
    "Ġ",
    "<0x0A>",
    "\\\\s+",
    "a*",
    "",
];

const PROMPTS: &[&str] =
    &["", "a b ab\n  Hello, Welt ▁ ﷺ e\u{301} 123 <s> [CLS] \u{0} 🙂", "aaaaaaaaaaaaaaaaaaaaaaaa"];

/// The library keeps, for as long as a thread lives, the words that each tokenizer of
/// merges met there.
fn limits() -> Limits {
    Limits { kept: 8192, ..Limits::default() }
}

pub fn exercise(source: &Source) -> Result<(), String> {
    let tokenizer = Tokenizer::load(source).map_err(|error| error.to_string())?;
    let mut refused = Ok(());
    if !used() {
        return refused;
    }
    for prompt in PROMPTS {
        match tokenizer.encode(prompt, Special::Add) {
            Ok(encoding) => {
                assert_eq!(encoding.ids.len(), encoding.tokens.len());
                let ids = &encoding.ids[..encoding.ids.len().min(64)];
                if let Err(error) = tokenizer.decode(ids) {
                    refused = Err(error.to_string());
                }
            }
            Err(error) => refused = Err(error.to_string()),
        }
    }
    tokenizer.token(0);
    tokenizer.id("a");
    refused
}

#[test]
fn tokenizer_json() {
    let _alone = alone();
    let (seeds, scratch) = (corpus("tokenizer"), scratch());
    let path = scratch.path().join("tokenizer.json");
    let (slot, source) = (Slot::new(path), Source::Folder(scratch.path().to_owned()));
    for (number, seed) in seeds.iter().enumerate() {
        slot.put(seed);
        exercise(&source).unwrap_or_else(|error| panic!("seed {number}: {error}"));
    }
    // What once broke the limits.
    for found in corpus("tokenizer_found") {
        slot.put(&found);
        assert_eq!(check(&found, Limits::default(), &mut |_| exercise(&source)), Ok(false));
    }
    campaign(
        "tokenizer_json",
        8000,
        limits(),
        |random| {
            let mut seed = random.of(&seeds);
            // Classes of all of Unicode take longest, by far.
            if seed.windows(3).any(|bytes| bytes == b"\\p{") && !random.once_in(16) {
                seed = random.of(&seeds);
            }
            let (mut text, other) = (seed.clone(), random.of(&seeds).clone());
            change_json(random, &mut text, WORDS, &other);
            text
        },
        |bytes| {
            slot.put(bytes);
            exercise(&source)
        },
    );
}

#[test]
fn tokenizer_gguf() {
    let _alone = alone();
    // The rule of the first one is nearly all that it costs, and is the program's own.
    let mut files = [with_tokenizer(), with_tokenizer(), with_pieces()];
    files[1].set("tokenizer.ggml.pre", Value::Text("gpt-2".to_owned()));
    files.iter_mut().for_each(|file| file.tensors.clear());
    let written = files.each_ref().map(File::bytes);
    let scratch = scratch();
    let path = scratch.path().join("model.gguf");
    let slot = Slot::new(&path);
    slot.put(&written[0]);
    exercise(&Source::Gguf(path.clone())).unwrap();
    campaign(
        "tokenizer_gguf",
        10_000,
        limits(),
        |random| {
            let number = if random.once_in(64) { 0 } else { 1 + random.below(2) };
            if random.once_in(2) {
                let mut file = files[number].clone();
                change_file(random, &mut file);
                return file.bytes();
            }
            let mut bytes = written[number].clone();
            let hot = bytes.len();
            testkit::hostile::change_bytes(random, &mut bytes, hot, &written[2 - number]);
            bytes
        },
        |bytes| {
            slot.put(bytes);
            exercise(&Source::Gguf(path.clone()))
        },
    );
}
