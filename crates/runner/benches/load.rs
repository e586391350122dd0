//! Loading a checkpoint of SmolLM2-135M's size against reading its file.
//!
//! The file, 538 MB of `f32` weights, is made in `target/` when it is not there. The
//! measure is `std::fs::read`: the file from the page cache into fresh memory. Loading
//! may take 1.2 times as long.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use runner::{LoadOptions, Model, Source};

const LAYERS: usize = 30;
const D_MODEL: usize = 576;
const D_MLP: usize = 1536;
const D_KV: usize = 192;
const D_VOCAB: usize = 49_152;

const CONFIG: &str = r#"{
  "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
  "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
  "max_position_embeddings": 8192, "rope_theta": 100000, "tie_word_embeddings": true
}"#;

/// Names and shapes of all tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![D_VOCAB, D_MODEL]),
        ("model.norm.weight".to_owned(), vec![D_MODEL]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[D_MODEL]);
        add("post_attention_layernorm", &[D_MODEL]);
        for (name, rows) in [("q", D_MODEL), ("k", D_KV), ("v", D_KV), ("o", D_MODEL)] {
            add(&format!("self_attn.{name}_proj"), &[rows, D_MODEL]);
        }
        add("mlp.gate_proj", &[D_MLP, D_MODEL]);
        add("mlp.up_proj", &[D_MLP, D_MODEL]);
        add("mlp.down_proj", &[D_MODEL, D_MLP]);
    }
    tensors
}

/// The folder of a model with random weights.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("load");
    let path = folder.join("model.safetensors");
    if path.is_file() {
        return folder;
    }
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors() {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let whole = folder.join("unfinished");
    let mut file = BufWriter::new(File::create(&whole).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let mut state = 1u32;
    for _ in 0..end / 4 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / 8_388_608.0 - 1.0;
        file.write_all(&value.to_le_bytes()).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    std::fs::rename(whole, path).unwrap();
    folder
}

fn load(c: &mut Criterion) {
    let folder = folder();
    let (path, source) = (folder.join("model.safetensors"), Source::Folder(folder));
    let options = LoadOptions::default();
    let read = || std::fs::read(&path).unwrap();
    let load = || Model::load(&source, &options).unwrap();
    // Freeing the memory is no part of either.
    let timed = |f: &dyn Fn() -> Box<dyn std::any::Any>| {
        let start = Instant::now();
        let made = black_box(f());
        let time = start.elapsed();
        drop(made);
        time
    };
    // By turns, so that both see the same machine.
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..10 {
        times[0].push(timed(&|| Box::new(read())));
        times[1].push(timed(&|| Box::new(load())));
    }
    let [read_median, load_median] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    });
    let ratio = load_median.as_secs_f64() / read_median.as_secs_f64();
    eprintln!("medians: read {read_median:.3?}, load {load_median:.3?}, ratio {ratio:.2}");

    let mut group = c.benchmark_group("load");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("read the file", |b| b.iter_with_large_drop(read));
    group.bench_function("load the model", |b| b.iter_with_large_drop(load));
    group.finish();
}

criterion_group!(benches, load);
criterion_main!(benches);
