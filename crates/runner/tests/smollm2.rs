//! SmolLM2-135M-Instruct, a real model: what it says, its perplexity, its tokenizer.
//!
//! `scripts/fetch-test-models` brings the file and the text.

#![allow(clippy::print_stdout)] // measured values are shown under --nocapture
#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use std::sync::OnceLock;

use common::real::{self, TEXT, file};
use common::{single, some, workspace};
use hooks::{HookPoint, Positions, Wanted};
use runner::{LoadOptions, Model, Source, Special, Tokenizer, WeightDtype};

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn source() -> Source {
    Source::resolve(file(MODEL).to_str().unwrap()).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&source()).unwrap()
}

/// Both ways of holding the weights, loaded once.
fn model(dtype: WeightDtype) -> &'static Model {
    static STORED: OnceLock<Model> = OnceLock::new();
    static F32: OnceLock<Model> = OnceLock::new();
    let held = match dtype {
        WeightDtype::AsStored => &STORED,
        _ => &F32,
    };
    let options = LoadOptions { dtype, ..Default::default() };
    held.get_or_init(|| Model::load(&source(), &options).unwrap())
}

#[test]
fn sizes_are_those_of_the_file() {
    let info = runner::read_config(&source()).unwrap().info();
    assert_eq!((info.n_layers(), info.d_model, info.d_vocab, info.n_ctx), (30, 576, 49_152, 8192));
    let layer = &info.layers[0];
    assert_eq!((layer.n_heads, layer.n_kv_heads, layer.d_head), (9, 3, 64));
}

#[test]
fn tokens_are_those_of_the_references() {
    let json = std::fs::read(workspace("tests/golden/smollm2_tokens.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let strings = json["strings"].as_array().unwrap();
    assert!(strings.len() > 50);
    let tokenizer = tokenizer();
    for string in strings {
        let text = string["text"].as_str().unwrap();
        let expected: Vec<u64> =
            string["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let encoding = tokenizer.encode(text, Special::Add).unwrap();
        let ids: Vec<u64> = encoding.ids.iter().map(|&id| id.into()).collect();
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&encoding.ids).unwrap(), text);
        // Offsets walk through the text without gaps.
        let n = text.chars().count();
        let mut reached = 0;
        for &(start, end) in &encoding.offsets {
            assert!(
                start <= reached && reached <= end && end <= n,
                "{text:?} {:?}",
                encoding.offsets
            );
            reached = end;
        }
        assert_eq!(reached, n, "{text:?}");
    }
}

#[test]
fn the_capital_of_france_is_paris() {
    let tokenizer = tokenizer();
    let prompt = tokenizer.encode("The capital of France is", Special::Add).unwrap();
    assert_eq!(prompt.tokens, ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]);
    for dtype in [WeightDtype::AsStored, WeightDtype::F32] {
        let model = model(dtype);
        let mut sink = some(model, &["logits"], &Wanted::positions(Positions::last()));
        model.run(&single(0, &prompt.ids), &mut sink).unwrap();
        let logits = common::values(&sink.get(0, HookPoint::LOGITS).unwrap());
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(tokenizer.decode(&[best as u32]).unwrap(), " Paris", "{dtype:?}");
    }
}

/// Perplexity of the first `n` tokens of the Lee corpus: the file as it is, no
/// BOS, `n − 1` predictions.
fn perplexity(dtype: WeightDtype, n: usize) -> f64 {
    let text = std::fs::read_to_string(file(TEXT)).unwrap();
    let mut ids = tokenizer().encode(&text, Special::Omit).unwrap().ids;
    ids.truncate(n);
    let perplexity = real::perplexity(model(dtype), &ids);
    println!("{dtype:?}, {n} tokens: perplexity {perplexity:.4}");
    perplexity
}

#[test]
fn perplexity_is_that_of_the_reference() {
    let perplexity = perplexity(WeightDtype::F32, 1024);
    assert!((perplexity - 27.97).abs() <= 0.05, "{perplexity:.4}");
}

#[test]
fn weights_that_stay_quantized_change_nothing() {
    let [stored, f32] = [WeightDtype::AsStored, WeightDtype::F32].map(|d| perplexity(d, 128));
    assert_eq!(stored.to_bits(), f32.to_bits());
}
