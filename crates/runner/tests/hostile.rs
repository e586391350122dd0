//! Hostile model files: whatever is changed in them, each is read or refused within
//! bounds of time and memory, and what is read can be run.
//!
//! `HOSTILE_INPUTS` sets the number of inputs of each campaign; a failure says how
//! to replay it.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

#[path = "hostile/cases.rs"]
mod cases;
mod common;
#[path = "hostile/gguf.rs"]
mod gguf;
#[path = "hostile/json.rs"]
mod json;
#[path = "hostile/safetensors.rs"]
mod safetensors;
#[path = "hostile/tokenizer.rs"]
mod tokenizer;

use std::path::Path;

use peak_alloc::PeakAlloc;
use runner::{Fingerprint, Inventory, LoadOptions, Model, Source};
use testkit::hostile::used;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The files of one folder of the corpus, in the order of their names.
fn corpus(folder: &str) -> Vec<Vec<u8>> {
    let folder = common::workspace("tests/corpus").join(folder);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Loads a model and, if it is accepted, runs three tokens through it.
fn load_and_run(source: &Source) -> Result<(), String> {
    let model = Model::load(source, &LoadOptions::default()).map_err(|error| error.to_string())?;
    if used() {
        Inventory::of(source).unwrap();
        Fingerprint::of(source).unwrap();
        return run(&model);
    }
    Ok(())
}

/// Every number may overflow on the way, and any refusal will do: nothing may panic.
fn run(model: &Model) -> Result<(), String> {
    let mut everything = common::everything(model);
    model.run(&common::single(0, &[1, 2, 0]), &mut everything).map_err(|error| error.to_string())
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}
