//! Gemma-3-270M, a real model under terms of its own, which is therefore fetched by
//! request only: `scripts/fetch-test-models --gemma`, then
//! `cargo test --release -p runner --test gemma3 -- --ignored`.

#![allow(clippy::print_stdout)] // measured values are shown under --nocapture
#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use common::real::{self, TEXT, file};
use runner::{LoadOptions, Model, Source, Special, Tokenizer, WeightDtype};

const MODEL: &str = "gemma3-270m.Q4_K_M.gguf";

fn source() -> Source {
    Source::resolve(file(MODEL).to_str().unwrap()).unwrap()
}

#[test]
#[ignore = "a model under terms of its own: scripts/fetch-test-models --gemma, then cargo test --release -p runner --test gemma3 -- --ignored"]
fn its_layers_are_those_of_the_release() {
    let info = runner::read_config(&source()).unwrap().info();
    assert_eq!((info.n_layers(), info.d_model, info.d_vocab), (18, 640, 262_144));
    let windows: Vec<_> = info.layers.iter().map(|layer| layer.window.unwrap_or(0)).collect();
    let expected: Vec<_> = (1..=18).map(|layer| if layer % 6 == 0 { 0 } else { 512 }).collect();
    assert_eq!(windows, expected);
    let layer = &info.layers[0];
    assert_eq!((layer.n_heads, layer.n_kv_heads, layer.d_head), (4, 1, 256));
}

/// The first 1,024 tokens of the Lee corpus, BOS included.
#[test]
#[ignore = "a model under terms of its own: scripts/fetch-test-models --gemma, then cargo test --release -p runner --test gemma3 -- --ignored"]
fn perplexity_is_that_of_the_reference() {
    let text = std::fs::read_to_string(file(TEXT)).unwrap();
    let tokenizer = Tokenizer::load(&source()).unwrap();
    let mut ids = tokenizer.encode(&text, Special::Add).unwrap().ids;
    assert_eq!(tokenizer.token(ids[0]).unwrap(), "<bos>");
    ids.truncate(1024);
    let [stored, f32] = [WeightDtype::AsStored, WeightDtype::F32].map(|dtype| {
        let options = LoadOptions { dtype, ..Default::default() };
        let perplexity = real::perplexity(&Model::load(&source(), &options).unwrap(), &ids);
        println!("{dtype:?}: perplexity {perplexity:.4}");
        perplexity
    });
    assert!((stored - 18.78).abs() <= 0.02, "{stored:.4}");
    assert_eq!(stored.to_bits(), f32.to_bits());
}
