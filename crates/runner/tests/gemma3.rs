//! Gemma-3-270M, a real model under terms of its own, which is therefore fetched by
//! request only: `scripts/fetch-test-models --gemma`, then
//! `cargo test --release -p runner --test gemma3 -- --ignored`.

#![allow(clippy::print_stdout)] // measured values are shown under --nocapture
#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use common::real::{self, TEXT, file};
use common::{single, some};
use hooks::{HookPoint, Positions, Wanted};
use runner::{LoadOptions, Model, Source, Special, Tokenizer, WeightDtype};

const MODEL: &str = "gemma3-270m.Q4_K_M.gguf";

fn source() -> Source {
    Source::resolve(file(MODEL).to_str().unwrap()).unwrap()
}

#[test]
#[ignore = "needs scripts/fetch-test-models --gemma"]
fn its_layers_are_those_of_the_release() {
    let info = runner::read_config(&source()).unwrap().info();
    assert_eq!((info.n_layers(), info.d_model, info.d_vocab), (18, 640, 262_144));
    let windows: Vec<_> = info.layers.iter().map(|layer| layer.window.unwrap_or(0)).collect();
    let expected: Vec<_> = (1..=18).map(|layer| if layer % 6 == 0 { 0 } else { 512 }).collect();
    assert_eq!(windows, expected);
    let layer = &info.layers[0];
    assert_eq!((layer.n_heads, layer.n_kv_heads, layer.d_head), (4, 1, 256));
}

#[test]
#[ignore = "needs scripts/fetch-test-models --gemma"]
fn the_capital_of_france_is_paris() {
    let tokenizer = Tokenizer::load(&source()).unwrap();
    let prompt = tokenizer.encode("The capital of France is", Special::Add).unwrap();
    assert_eq!(prompt.tokens[0], "<bos>");
    let model = Model::load(&source(), &LoadOptions::default()).unwrap();
    let mut sink = some(&model, &["logits"], &Wanted::positions(Positions::last()));
    model.run(&single(0, &prompt.ids), &mut sink).unwrap();
    let logits = common::values(&sink.get(0, HookPoint::LOGITS).unwrap());
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    println!("{:?}", tokenizer.decode(&[best as u32]));
}

#[test]
#[ignore = "needs scripts/fetch-test-models --gemma"]
fn perplexity_is_that_of_the_reference() {
    let text = std::fs::read_to_string(file(TEXT)).unwrap();
    let tokenizer = Tokenizer::load(&source()).unwrap();
    for special in [Special::Add, Special::Omit] {
        let mut ids = tokenizer.encode(&text, special).unwrap().ids;
        ids.truncate(1024);
        for dtype in [WeightDtype::F32, WeightDtype::AsStored] {
            let options = LoadOptions { dtype, ..Default::default() };
            let model = Model::load(&source(), &options).unwrap();
            let perplexity = real::perplexity(&model, &ids);
            println!("{special:?} {dtype:?}: perplexity {perplexity:.4}");
        }
    }
}
