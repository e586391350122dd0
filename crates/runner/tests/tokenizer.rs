//! Tokenizers from GGUF metadata against their references, on hard strings.
//!
//! `tests/golden/tokenizer_gguf.py` wrote the vocabularies and the ids.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use std::time::Instant;

use common::gguf::{File, Value};
use common::workspace;
use runner::{Error, Result, Source, Special, Tokenizer, Written};
use serde_json::Value as Json;

fn golden(name: &str) -> Json {
    let json = std::fs::read(workspace("tests/golden").join(name)).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn texts(json: &Json) -> Vec<String> {
    json.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn types(json: &Json) -> Value {
    Value::I32s(ids(json).into_iter().map(|kind| kind as i32).collect())
}

fn load(file: &File) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Tokenizer::load(&Source::Gguf(path))
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// The byte-level vocabulary under one of its rules.
fn byte_level(golden: &Json, kind: &str) -> File {
    let tokens = texts(&golden["tokens"]);
    let bos = tokens.iter().position(|token| token == "<s>").unwrap();
    let mut file = File::default();
    file.set("tokenizer.ggml.model", text("gpt2"))
        .set("tokenizer.ggml.pre", text(kind))
        .set("tokenizer.ggml.tokens", Value::Texts(tokens))
        .set("tokenizer.ggml.token_type", types(&golden["types"]))
        .set("tokenizer.ggml.merges", Value::Texts(texts(&golden["merges"])))
        .set("tokenizer.ggml.bos_token_id", Value::U32(bos as u32));
    file
}

/// One of the SentencePiece vocabularies.
fn pieces(vocabulary: &Json) -> File {
    let scores = vocabulary["scores"].as_array().unwrap();
    let scores = scores.iter().map(|score| score.as_f64().unwrap() as f32).collect();
    let mut file = File::default();
    file.set("tokenizer.ggml.model", text("llama"))
        .set("tokenizer.ggml.tokens", Value::Texts(texts(&vocabulary["tokens"])))
        .set("tokenizer.ggml.token_type", types(&vocabulary["types"]))
        .set("tokenizer.ggml.scores", Value::F32s(scores))
        .set(
            "tokenizer.ggml.add_space_prefix",
            Value::Bool(vocabulary["prefix"].as_bool().unwrap()),
        )
        .set(
            "tokenizer.ggml.remove_extra_whitespaces",
            Value::Bool(vocabulary["squeeze"].as_bool().unwrap()),
        );
    file
}

/// Spans walk through the text and lie in it; without gaps where nothing of the
/// text is dropped.
fn check_spans(text: &str, spans: &[(usize, usize)], whole: bool) {
    let n = text.chars().count();
    let mut reached = 0;
    for &(start, end) in spans {
        assert!(start <= end && end <= n, "{text:?} {spans:?}");
        assert!(!whole || start <= reached, "{text:?} {spans:?}");
        reached = reached.max(end);
    }
    assert!(!whole || reached == n, "{text:?} {spans:?}");
}

#[test]
fn every_rule_cuts_as_the_reference() {
    let golden = golden("tokenizer_kinds.json");
    let strings = golden["strings"].as_array().unwrap();
    assert!(strings.len() > 400);
    for (index, kind) in texts(&golden["kinds"]).iter().enumerate() {
        let tokenizer = load(&byte_level(&golden, kind)).unwrap();
        let composed = ["olmo", "command-r", "qwen2", "qwen35"].contains(&kind.as_str());
        for string in strings {
            let text = string["text"].as_str().unwrap();
            let own = string["kinds"][index].as_u64().unwrap() as usize;
            let encoding = tokenizer.encode(text, Special::Omit).unwrap();
            assert_eq!(encoding.ids, ids(&string["ids"][own]), "{kind} {text:?}");
            check_spans(text, &encoding.offsets, !composed);
            if !composed {
                assert_eq!(tokenizer.decode(&encoding.ids).unwrap(), text, "{kind}");
            }
        }
    }
}

#[test]
fn rules_that_share_a_line_are_one() {
    let golden = golden("tokenizer_kinds.json");
    let strings = golden["strings"].as_array().unwrap();
    let pairs = [
        ("default", "gpt-2"),
        ("phi-2", "gpt-2"),
        ("mpt", "olmo"),
        ("starcoder", "smollm"),
        ("refact", "smollm"),
        ("llama3", "llama-bpe"),
        ("smaug-bpe", "dbrx"),
        ("chatglm-bpe", "dbrx"),
        ("deepseek-r1-qwen", "qwen2"),
        ("llama4", "gpt-4o"),
        ("gpt3-finnish", "bloom"),
    ];
    for (one, other) in pairs {
        let [one, other] = [one, other].map(|kind| load(&byte_level(&golden, kind)).unwrap());
        for string in strings {
            let text = string["text"].as_str().unwrap();
            let encode = |t: &Tokenizer| t.encode(text, Special::Add).unwrap();
            assert_eq!(encode(&one), encode(&other), "{text:?}");
        }
    }
}

#[test]
fn pieces_merge_as_the_reference() {
    let golden = golden("tokenizer_pieces.json");
    let strings = texts_of(&golden);
    let vocabularies = golden["vocabularies"].as_array().unwrap();
    assert_eq!(vocabularies.len(), 6);
    for vocabulary in vocabularies {
        let name = vocabulary["name"].as_str().unwrap();
        let mut tokenizer = load(&pieces(vocabulary)).unwrap();
        // What the reference does not read as control tokens, it reads as text.
        tokenizer.set_written(Written::Plain);
        let spells = vocabulary["types"].as_array().unwrap().iter().any(|kind| kind == 6);
        let squeezes = vocabulary["squeeze"].as_bool().unwrap();
        for (text, expected) in strings.iter().zip(vocabulary["ids"].as_array().unwrap()) {
            let encoding = tokenizer.encode(text, Special::Omit).unwrap();
            assert_eq!(encoding.ids, ids(expected), "{name} {text:?}");
            check_spans(text, &encoding.offsets, !squeezes);
            if spells && !squeezes && !text.contains('▁') {
                assert_eq!(&tokenizer.decode(&encoding.ids).unwrap(), text, "{name}");
            }
        }
    }
}

fn texts_of(golden: &Json) -> Vec<String> {
    let strings = golden["strings"].as_array().unwrap();
    strings.iter().map(|string| string["text"].as_str().unwrap().to_owned()).collect()
}

/// The vocabulary of `name` in `tokenizer_pieces.json`.
fn named(name: &str) -> Json {
    let golden = golden("tokenizer_pieces.json");
    let vocabularies = golden["vocabularies"].as_array().unwrap();
    vocabularies.iter().find(|vocabulary| vocabulary["name"] == name).unwrap().clone()
}

#[test]
fn special_tokens_in_a_text_are_parsed_or_plain() {
    let golden = golden("tokenizer_kinds.json");
    let mut tokenizer = load(&byte_level(&golden, "gpt-2")).unwrap();
    let text = "a<|im_end|>b<user>";
    let tokens = |tokenizer: &Tokenizer| tokenizer.encode(text, Special::Omit).unwrap().tokens;
    assert_eq!(tokens(&tokenizer), ["a", "<|im_end|>", "b", "<user>"]);
    tokenizer.set_written(Written::Plain);
    let plain = tokens(&tokenizer);
    assert!(!plain.iter().any(|token| token == "<|im_end|>"), "{plain:?}");
    // A token that is not special is no mark: it stays one.
    assert_eq!(plain.last().unwrap(), "<user>");
    assert_eq!(plain.concat(), text);
    tokenizer.set_written(Written::Parse);
    assert_eq!(tokens(&tokenizer), ["a", "<|im_end|>", "b", "<user>"]);

    let mut tokenizer = load(&pieces(&named("plain"))).unwrap();
    let tokens = |t: &Tokenizer| t.encode("the</s>the", Special::Omit).unwrap().tokens;
    assert_eq!(tokens(&tokenizer), ["▁the", "</s>", "▁the"]);
    tokenizer.set_written(Written::Plain);
    assert!(!tokens(&tokenizer).iter().any(|token| token == "</s>"));
}

#[test]
fn bos_and_eos_follow_the_file_or_the_kind() {
    let golden = golden("tokenizer_kinds.json");
    let bos = |file: &File| {
        let tokens = load(file).unwrap().encode("x", Special::Add).unwrap().tokens;
        tokens.len() == 2 && tokens[0] == "<s>"
    };
    for (kind, expected) in [("llama-bpe", true), ("tekken", true), ("qwen2", false)] {
        let mut file = byte_level(&golden, kind);
        assert_eq!(bos(&file), expected, "{kind}");
        file.set("tokenizer.ggml.add_bos_token", Value::Bool(!expected));
        assert_eq!(bos(&file), !expected, "{kind}");
    }
    // SentencePiece's ids are 1 and 2 where the file does not say.
    let mut file = pieces(&named("plain"));
    let tokens = |file: &File| load(file).unwrap().encode("the", Special::Add).unwrap().tokens;
    assert_eq!(tokens(&file), ["<s>", "▁the"]);
    file.set("tokenizer.ggml.add_eos_token", Value::Bool(true));
    assert_eq!(tokens(&file), ["<s>", "▁the", "</s>"]);
    file.set("tokenizer.ggml.bos_token_id", Value::U32(2));
    assert_eq!(tokens(&file), ["</s>", "▁the", "</s>"]);
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    assert_eq!(tokens(&file), ["▁the", "</s>"]);
}

#[test]
fn phi3_marks_take_the_space_behind_them() {
    let mut file = pieces(&named("plain"));
    let tokens = |file: &File| load(file).unwrap().encode("</s>  the", Special::Omit).unwrap();
    assert_eq!(tokens(&file).tokens[0], "</s>");
    assert_ne!(tokens(&file).tokens, ["</s>", "▁the"]);
    file.set("general.architecture", text("phi3"));
    assert_eq!(tokens(&file).tokens, ["</s>", "▁the"]);
}

#[test]
fn piece_vocabularies_that_cannot_be_used() {
    let sound = pieces(&named("plain"));
    let n = named("plain")["tokens"].as_array().unwrap().len();
    let refuse = |key: &str, value: Option<Value>| {
        let mut file = sound.clone();
        match value {
            Some(value) => file.set(key, value),
            None => file.remove(key),
        };
        let error = load(&file).unwrap_err();
        assert!(matches!(error, Error::Gguf { .. } | Error::Unsupported { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("tokenizer.ggml.") && message.len() < 2000, "{message}");
    };
    for key in ["tokens", "scores", "token_type"] {
        refuse(&format!("tokenizer.ggml.{key}"), None);
    }
    for score in [f32::NAN, f32::INFINITY] {
        refuse("tokenizer.ggml.scores", Some(Value::F32s(vec![score; n])));
    }
    refuse("tokenizer.ggml.scores", Some(Value::F32s(vec![0.0; n - 1])));
    refuse("tokenizer.ggml.scores", Some(text("0")));
    refuse("tokenizer.ggml.token_type", Some(Value::I32s(vec![7; n])));
    refuse("tokenizer.ggml.unknown_token_id", Some(Value::U32(n as u32)));
    refuse("tokenizer.ggml.bos_token_id", Some(Value::U32(u32::MAX)));
    refuse("tokenizer.ggml.add_sep_token", Some(Value::Bool(true)));
    refuse("tokenizer.ggml.precompiled_charsmap", Some(Value::I32s(vec![1])));
    let mut types: Vec<i32> =
        ids(&named("plain")["types"]).into_iter().map(|kind| kind as i32).collect();
    let mut tokens = texts(&named("plain")["tokens"]);
    let byte = types.iter().position(|&kind| kind == 6).unwrap();
    tokens[byte] = "<0xZZ>".to_owned();
    refuse("tokenizer.ggml.tokens", Some(Value::Texts(tokens)));
    types.truncate(3);
    refuse("tokenizer.ggml.token_type", Some(Value::I32s(types)));
}

#[test]
fn kinds_that_are_not_built_are_named() {
    for kind in ["bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "gemma4", ""] {
        let mut file = pieces(&named("plain"));
        file.set("tokenizer.ggml.model", text(kind));
        match load(&file).unwrap_err() {
            Error::Unsupported { what: "tokenizer.ggml.model", found, .. } => {
                assert_eq!(found, kind)
            }
            other => panic!("{other}"),
        }
    }
    let golden = golden("tokenizer_kinds.json");
    let message = load(&byte_level(&golden, "kimi-k2")).unwrap_err().to_string();
    assert!(message.contains("`kimi-k2`") && message.contains("qwen2, qwen35"), "{message}");
}

/// What makes regular expressions run away and merges pile up. Time grows with
/// the length, and nothing is given up on: the tokens grow with it too.
#[test]
fn long_stretches_of_one_thing_are_no_trap() {
    const UNITS: [&str; 9] = [" ", "a", "7", "😀", "a\u{301}", "'", "\n", " \n", "\u{a0}"];
    let kinds = golden("tokenizer_kinds.json");
    let mut tokenizers: Vec<_> = texts(&kinds["kinds"])
        .into_iter()
        .map(|kind| (kind.clone(), load(&byte_level(&kinds, &kind)).unwrap()))
        .collect();
    for name in ["plain", "squeeze"] {
        tokenizers.push((name.to_owned(), load(&pieces(&named(name))).unwrap()));
    }
    for (kind, tokenizer) in &tokenizers {
        for unit in UNITS {
            let encode = |bytes: usize| {
                // The last character is where a careless expression turns back.
                let text = unit.repeat(bytes / unit.len()) + "x";
                let begun = Instant::now();
                let encoding = tokenizer.encode(&text, Special::Omit).unwrap();
                let end = encoding.offsets.last().unwrap().1;
                assert_eq!(end, text.chars().count(), "{kind} {unit:?}");
                (encoding.ids.len(), begun.elapsed().as_secs_f64())
            };
            let (few, short) = encode(1 << 12);
            let (many, long) = encode(1 << 16);
            // Longest tokens and the ends aside, there are sixteen times as many.
            if kind != "squeeze" {
                assert!(
                    many <= 17 * few && 15 * few <= many + 16 * 64,
                    "{kind} {unit:?} {few} {many}"
                );
            }
            let bound = 16.0 * 12.0 * short.max(1e-3);
            assert!(long <= bound, "{kind} {unit:?}: {short} s, then {long} s");
        }
    }
}
