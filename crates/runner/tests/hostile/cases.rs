//! Files made for one purpose each: sizes, counts and nesting at which readers that
//! do not look first take minutes or gigabytes.

use std::time::Duration;

use runner::{Config, LoadOptions, Model, Source, Special, Tokenizer};
use serde_json::json;
use testkit::hostile::{Limits, alone, check, scratch};

use super::common::gguf::{File, Stored, Value};
use super::gguf::{seed, with_tokenizer};
use super::write;

/// Large files may take longer than small ones.
fn limits() -> Limits {
    Limits { time: Duration::from_secs(10), ..Limits::default() }
}

/// One reader's answer to one file, within limits.
fn answer(
    bytes: &[u8],
    limits: Limits,
    read: impl Fn() -> Result<(), String>,
) -> Result<(), String> {
    let mut answer = Ok(());
    check(bytes, limits, &mut |_| {
        answer = read();
        answer.clone()
    })
    .unwrap_or_else(|problem| panic!("{problem}"));
    answer
}

fn config(bytes: &[u8]) -> Result<(), String> {
    answer(bytes, limits(), || {
        Config::from_json("config.json".as_ref(), bytes).map(drop).map_err(|e| e.to_string())
    })
}

fn folder_with(
    file: &str,
    bytes: &[u8],
    limits: Limits,
    read: fn(&Source) -> Result<(), String>,
) -> Result<(), String> {
    let folder = scratch();
    let llama = super::common::Folder::llama();
    write(&folder.path().join("config.json"), llama.config.to_string().as_bytes());
    write(&folder.path().join(file), bytes);
    let source = match file {
        "model.gguf" => Source::Gguf(folder.path().join(file)),
        _ => Source::Folder(folder.path().to_owned()),
    };
    answer(bytes, limits, || read(&source))
}

fn load(source: &Source) -> Result<(), String> {
    Model::load(source, &LoadOptions::default()).map(drop).map_err(|error| error.to_string())
}

fn tokenize(source: &Source) -> Result<(), String> {
    Tokenizer::load(source).map(drop).map_err(|error| error.to_string())
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn nesting() {
    let _alone = alone();
    const DEPTH: usize = 1 << 20;
    for text in [
        "[".repeat(DEPTH),
        "{\"a\":".repeat(DEPTH),
        format!("{{\"model_type\": {}1{}}}", "[".repeat(DEPTH), "]".repeat(DEPTH)),
    ] {
        config(text.as_bytes()).unwrap_err();
        folder_with("tokenizer.json", text.as_bytes(), limits(), tokenize).unwrap_err();
        folder_with("model.safetensors.index.json", text.as_bytes(), limits(), load).unwrap_err();
        folder_with("model.safetensors", &safetensors(&text, 0), limits(), load).unwrap_err();
    }
    // What nobody reads is passed over without being descended into.
    let metadata = format!(
        "{{\"metadata\": {}{}, \"weight_map\": {{}}}}",
        "[".repeat(DEPTH),
        "]".repeat(DEPTH)
    );
    folder_with("model.safetensors.index.json", metadata.as_bytes(), limits(), load).unwrap_err();
}

#[test]
fn long_lists_and_texts() {
    let _alone = alone();
    const N: usize = 1_000_000;
    let many = |item: &str| format!("{}{item}", format!("{item},").repeat(N));
    let long = "a".repeat(10 * N);
    let limits = Limits { memory_per_byte: 64, ..limits() };
    for (text, accepted) in [
        (format!("{{\"model_type\": \"llama\", \"layer_types\": [{}]}}", many("0")), true),
        (format!("{{\"model_type\": \"gemma2\", \"layer_types\": [{}]}}", many("0")), false),
        (format!("{{\"model_type\": \"{long}\"}}"), false),
        (format!("{{\"model_type\": \"llama\", \"{long}\": 1}}"), true),
        (format!("{{\"model_type\": \"llama\", \"hidden_act\": \"{long}\"}}"), false),
        (format!("{{\"model_type\": \"llama\", \"hidden_size\": \"{long}\"}}"), false),
        (format!("{{\"model_type\": \"llama\", \"hidden_size\": {}}}", "9".repeat(N)), false),
        (format!("{{\"model_type\": \"llama\", \"rope_theta\": 1{}}}", "0".repeat(N)), false),
        (format!("{{{}}}", many("\"model_type\": \"llama\"")), true),
    ] {
        let read = || Config::from_json("config.json".as_ref(), text.as_bytes()).map(drop);
        let answer = answer(text.as_bytes(), limits, || read().map_err(|error| error.to_string()));
        assert_eq!(answer.is_ok(), accepted, "{text:.60}: {answer:?}");
    }
}

#[test]
fn thousands_of_layers() {
    let _alone = alone();
    let text =
        json!({"model_type": "gemma3_text", "num_hidden_layers": 16384, "vocab_size": 1 << 24});
    config(text.to_string().as_bytes()).unwrap();
    // A whole model of them, tiny in every other way.
    let mut file = File::default();
    let numbers = [
        ("block_count", 1 << 14),
        ("embedding_length", 2),
        ("attention.head_count", 1),
        ("context_length", 8),
        ("feed_forward_length", 1),
        ("vocab_size", 3),
    ];
    file.set("general.architecture", Value::Text("llama".to_owned()));
    for (key, number) in numbers {
        file.set(&format!("llama.{key}"), Value::U32(number));
    }
    file.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    let mut add = |name: String, dims: &[u64]| {
        let bytes = vec![0; 4 * dims.iter().product::<u64>() as usize];
        file.tensors.push(Stored { name, dims: dims.to_vec(), kind: 0, bytes, offset: None });
    };
    add("token_embd.weight".to_owned(), &[2, 3]);
    add("output_norm.weight".to_owned(), &[2]);
    for layer in 0..1 << 14 {
        for (name, dims) in [
            ("attn_norm", &[2u64][..]),
            ("ffn_norm", &[2]),
            ("attn_q", &[2, 2]),
            ("attn_k", &[2, 2]),
            ("attn_v", &[2, 2]),
            ("attn_output", &[2, 2]),
            ("ffn_gate", &[2, 1]),
            ("ffn_up", &[2, 1]),
            ("ffn_down", &[1, 2]),
        ] {
            add(format!("blk.{layer}.{name}.weight"), dims);
        }
    }
    folder_with("model.gguf", &file.bytes(), limits(), load).unwrap();
    // Claimed, and not there.
    file.tensors.truncate(20);
    folder_with("model.gguf", &file.bytes(), limits(), load).unwrap_err();
}

#[test]
fn many_tensors() {
    let _alone = alone();
    const N: usize = 100_000;
    let entry = |i: usize, start: usize| {
        format!(
            "\"t{i}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{start},{}]}}",
            start + 4
        )
    };
    let header = |start: fn(usize) -> usize| {
        let entries: Vec<_> = (0..N).map(|i| entry(i, start(i))).collect();
        format!("{{{}}}", entries.join(","))
    };
    let error = |header: &str| {
        folder_with("model.safetensors", &safetensors(header, 4 * N), limits(), load).unwrap_err()
    };
    assert!(error(&header(|i| 4 * i)).contains("has no tensor"));
    assert!(error(&header(|_| 0)).contains("overlap"));
    let twice = format!("{{{},{}}}", entry(0, 0), entry(0, 4));
    assert!(error(&twice).contains("twice"));
    let ones = "1,".repeat(1 << 20);
    let rank =
        format!("{{\"t\":{{\"dtype\":\"F32\",\"shape\":[{ones}1],\"data_offsets\":[0,4]}}}}");
    assert!(error(&rank).contains("dimensions"));
    // Shapes whose product nobody can hold, of a type that nobody knows.
    let unknown = "{\"t\":{\"dtype\":\"X\",\"shape\":[4294967295,4294967295],\"data_offsets\":[0,0]},\
        \"u\":{\"dtype\":\"X\",\"shape\":[4294967295,4294967295],\"data_offsets\":[0,0]}}";
    folder_with("model.safetensors", &safetensors(unknown, 0), limits(), |source| {
        runner::Inventory::of(source).map(drop).map_err(|error| error.to_string())
    })
    .unwrap();

    let mut file = seed(candle_core::quantized::GgmlDType::F32);
    for i in 0..N {
        file.metadata.push((format!("k{i}"), Value::Bool(true)));
        let bytes = vec![0; 4];
        file.tensors.push(Stored {
            name: format!("t{i}"),
            dims: vec![1],
            kind: 0,
            bytes,
            offset: None,
        });
    }
    folder_with("model.gguf", &file.bytes(), limits(), load).unwrap();
    file.tensors.iter_mut().for_each(|tensor| tensor.offset = Some(0));
    assert!(
        folder_with("model.gguf", &file.bytes(), limits(), load).unwrap_err().contains("overlap")
    );
}

#[test]
fn counts_within_the_file() {
    let _alone = alone();
    for n in [1u64 << 16, 1 << 20] {
        let mut file = with_tokenizer();
        file.n_tensors = Some(n / 24);
        file.n_entries = Some(n / 13);
        let mut bytes = file.bytes();
        bytes.resize(n as usize + 100, 0);
        folder_with("model.gguf", &bytes, limits(), load).unwrap_err();
        bytes.resize(n as usize + 100, 0xff);
        folder_with("model.gguf", &bytes, limits(), load).unwrap_err();
    }
    // Names that are megabytes long stay out of messages.
    let long = "a".repeat(1 << 20);
    let mut file = with_tokenizer();
    file.set(&long, Value::Bool(true));
    assert!(
        folder_with("model.gguf", &file.bytes(), limits(), load).unwrap_err().contains("1048576")
    );
    let mut file = with_tokenizer();
    file.tensors[0].name = long.clone();
    assert!(
        folder_with("model.gguf", &file.bytes(), limits(), load).unwrap_err().contains("1048576")
    );
    let mut file = with_tokenizer();
    file.set("tokenizer.ggml.tokens", Value::Texts(vec![long.clone(), long.clone()]));
    folder_with("model.gguf", &file.bytes(), limits(), tokenize).unwrap_err();
    let header =
        format!("{{\"{long}\":{{\"dtype\":\"{long}\",\"shape\":[1],\"data_offsets\":[0,4]}}}}");
    folder_with("model.safetensors", &safetensors(&header, 4), limits(), load).unwrap_err();
    let header = format!("{{\"t\":{{\"dtype\":\"{long}\",\"shape\":[1],\"data_offsets\":[0,9]}}}}");
    folder_with("model.safetensors", &safetensors(&header, 4), limits(), load).unwrap_err();
    let index = format!("{{\"weight_map\":{{\"{long}\":\"{long}\"}}}}");
    folder_with("model.safetensors.index.json", index.as_bytes(), limits(), load).unwrap_err();
}

#[test]
fn heads_too_wide_for_their_angles() {
    let _alone = alone();
    let text = json!({"model_type": "llama", "hidden_size": 2, "num_attention_heads": 1, "head_dim": 1 << 20});
    assert!(config(text.to_string().as_bytes()).unwrap_err().contains("head_dim"));
    let mut file = seed(candle_core::quantized::GgmlDType::F32);
    file.set("llama.attention.key_length", Value::U32(1 << 20))
        .set("llama.attention.value_length", Value::U32(1 << 20))
        .set("llama.rope.dimension_count", Value::U32(1 << 20));
    let error = folder_with("model.gguf", &file.bytes(), limits(), load).unwrap_err();
    assert!(error.contains("dimension_count"), "{error}");
}

/// A tokenizer's definition with some members in place of others.
fn definition(changes: serde_json::Value) -> Vec<u8> {
    let mut json = json!({
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "aa": 2}, "merges": ["a a"]},
    });
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json.to_string().into_bytes()
}

/// Loads a definition and tokenizes `n` letters and a last one.
fn encode(json: &[u8], n: usize, limits: Limits) -> Result<usize, String> {
    let folder = scratch();
    write(&folder.path().join("tokenizer.json"), json);
    let source = Source::Folder(folder.path().to_owned());
    let text = "a".repeat(n) + "b";
    let tokens = std::cell::Cell::new(0);
    answer(json, limits, || {
        let tokenizer = Tokenizer::load(&source).map_err(|error| error.to_string())?;
        let encoding = tokenizer.encode(&text, Special::Add).map_err(|error| error.to_string())?;
        tokens.set(encoding.ids.len());
        Ok(())
    })
    .map(|()| tokens.get())
}

#[test]
fn texts_that_would_grow() {
    let _alone = alone();
    let limits = Limits { memory: 128 << 20, ..limits() };
    let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let sequence =
        |parts: Vec<serde_json::Value>| json!({"type": "Sequence", "normalizers": parts});
    encode(&definition(json!({"normalizer": replace("a", "aa")})), 1000, limits).unwrap();
    for normalizer in [
        sequence(vec![replace("a", "aaaaaaaaaa"); 12]),
        sequence(vec![replace("", &"a".repeat(8000)); 3]),
        sequence(vec![
            json!({"type": "Prepend", "prepend": "a".repeat(8000)}),
            replace("a", &"a".repeat(8000)),
        ]),
        replace("a", &"a".repeat(1 << 20)),
        json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        json!({"type": "Precompiled", "precompiled_charsmap": "padding"}),
    ] {
        encode(&definition(json!({"normalizer": normalizer})), 1000, limits).unwrap_err();
    }
    // Bytes above ASCII become two each time that they are spelled as characters.
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let cuts = |n| json!({"type": "Sequence", "pretokenizers": vec![bytes.clone(); n]});
    encode(&definition(json!({"pre_tokenizer": cuts(2)})), 1000, limits).unwrap();
    encode(&definition(json!({"pre_tokenizer": cuts(500)})), 1000, limits).unwrap_err();
    // Added tokens are normalized when they are read, tokens decoded one by one.
    let ten = replace("a", "aaaaaaaaaa");
    let added = json!([{"id": 3, "content": "aaa", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false}]);
    let changes = |n| json!({"normalizer": sequence(vec![ten.clone(); n]), "added_tokens": added});
    encode(&definition(changes(1)), 10, limits).unwrap();
    encode(&definition(changes(12)), 0, limits).unwrap_err();
    let decoder = json!({"type": "Sequence", "decoders": vec![ten.clone(); 12]});
    encode(&definition(json!({"decoder": decoder})), 10, limits).unwrap_err();
    // Each template of a sequence copies what the one before it made.
    let template = |times: usize| {
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let single = vec![text.clone(); times];
        json!({"type": "TemplateProcessing", "single": single, "pair": [text], "special_tokens": {}})
    };
    let processors = |times| json!({"type": "Sequence", "processors": vec![template(times); 30]});
    encode(&definition(json!({"post_processor": processors(2)})), 10, limits).unwrap_err();
    let once = processors(1);
    encode(&definition(json!({"post_processor": once})), 10, limits).unwrap();
}

#[test]
fn definitions_that_would_be_read_again_and_again() {
    let _alone = alone();
    for (outer, inner) in [
        ("normalizers", "normalizer"),
        ("pretokenizers", "pre_tokenizer"),
        ("processors", "post_processor"),
        ("decoders", "decoder"),
    ] {
        for end in [json!({"type": "NFC"}), json!({"x": 1}), json!(1)] {
            for tagged in [true, false] {
                for depth in [5, 60] {
                    let mut part = end.clone();
                    for _ in 0..depth {
                        part = json!({outer: [part.clone(), part]});
                        if tagged {
                            part["type"] = json!("Sequence");
                        }
                        // Twice at each level only as long as the file stays small.
                        if part.to_string().len() > 4000 {
                            part = part[outer][0].clone();
                            part = json!({outer: [part]});
                        }
                    }
                    let answer = encode(&definition(json!({inner: part})), 3, limits());
                    let deep = answer.is_err_and(|error| error.contains("nested 12 deep"));
                    assert_eq!(deep, depth == 60);
                }
            }
        }
    }
}

#[test]
fn long_words_and_many_tokens() {
    let _alone = alone();
    let limits = Limits { memory: 512 << 20, memory_per_byte: 32, ..limits() };
    let piece = |max: u64| json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "", "max_input_chars_per_word": max, "vocab": {"a": 0, "b": 1}});
    encode(&definition(json!({"model": piece(256)})), 250, limits).unwrap();
    encode(&definition(json!({"model": piece(u64::MAX)})), 50_000, limits).unwrap_err();
    // A piece that is as long as the text.
    let unigram =
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["a".repeat(100_000), -1.0]]});
    encode(&definition(json!({"model": unigram})), 100_000, limits).unwrap_err();
    let token = |i: usize| json!({"id": i, "content": format!("<{i}>"), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let many: Vec<_> = (0..200_000).map(token).collect();
    encode(&definition(json!({"added_tokens": many})), 1000, limits).unwrap();
    // Merges in a long word are a queue, not a scan.
    encode(&definition(json!({})), 1_000_000, limits).unwrap();
}

/// Patterns that try exponentially many ways to match stop after a number of steps, and
/// have not matched then.
#[test]
fn patterns_that_backtrack() {
    let _alone = alone();
    for pattern in ["(a+)+$", "(?=(a+)+$)(a|aa)+$", "(?:(?=a)(a|aa))+c", "((?=a)a*)*b\\1c"] {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let tokens = encode(&definition(json!({"pre_tokenizer": split})), 20_000, limits());
        assert_eq!(tokens, Ok(10_001), "{pattern}");
    }
    encode(
        &definition(json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}})),
        9,
        limits(),
    )
    .unwrap_err();
}
