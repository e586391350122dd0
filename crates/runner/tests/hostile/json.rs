//! Configurations of every family.

use runner::{Config, LoadOptions, Model, Source};
use testkit::hostile::{Limits, Slot, alone, campaign, change_json, scratch, used};

use super::common::workspace;

const WORDS: &[&str] = &[
    "model_type",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "text_config",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_type",
    "type",
    "factor",
    "linear",
    "dynamic",
    "llama3",
    "yarn",
    "longrope",
    "su",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "short_factor",
    "long_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rotary_pct",
    "layer_types",
    "full_attention",
    "sliding_attention",
    "sliding_window",
    "sliding_window_pattern",
    "no_rope_layers",
    "no_rope_layer_interval",
    "num_local_experts",
    "num_experts_per_tok",
    "tie_word_embeddings",
    "hidden_act",
    "hidden_activation",
    "silu",
    "gelu",
    "relu",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "quantization_config",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "truncate",
];

/// The golden models' configurations, with their folders.
fn seeds() -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut folders: Vec<_> = std::fs::read_dir(workspace("tests/golden/models"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").is_file())
        .collect();
    folders.sort();
    let config = |path: &std::path::PathBuf| std::fs::read(path.join("config.json")).unwrap();
    let seeds: Vec<_> = folders.iter().map(|path| (path.clone(), config(path))).collect();
    let families: std::collections::BTreeSet<_> = seeds
        .iter()
        .map(|(path, json)| Config::from_json(path, json).unwrap().model_type())
        .collect();
    let known: std::collections::BTreeSet<_> = Config::KNOWN.iter().copied().collect();
    assert_eq!(families, known, "a family has no golden model");
    seeds
}

#[test]
fn config() {
    let _alone = alone();
    let seeds = seeds();
    campaign(
        "config",
        60_000,
        Limits::default(),
        |random| {
            let mut text = random.of(&seeds).1.clone();
            let other = random.of(&seeds).1.clone();
            change_json(random, &mut text, WORDS, &other);
            text
        },
        |bytes| {
            let config = Config::from_json("config.json".as_ref(), bytes)
                .map_err(|error| error.to_string())?;
            let info = config.info();
            // Points of thousands of layers are many, and as many as were asked for.
            if info.n_layers() <= 64 {
                info.points();
            }
            Ok(())
        },
    );
}

/// Golden weights under a changed configuration: where it is accepted, the model runs.
#[test]
fn config_with_weights() {
    let _alone = alone();
    let (seeds, scratch) = (seeds(), scratch());
    let chosen = std::cell::Cell::new(0);
    let weights: Vec<Vec<_>> = seeds
        .iter()
        .map(|(folder, _)| {
            let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            files
                .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("model"))
                .collect()
        })
        .collect();
    let folder = |i: usize| scratch.path().join(i.to_string());
    let mut slots = Vec::new();
    for (i, files) in weights.iter().enumerate() {
        let folder = folder(i);
        std::fs::create_dir(&folder).unwrap();
        slots.push(Slot::new(folder.join("config.json")));
        for file in files {
            std::os::unix::fs::symlink(
                file.canonicalize().unwrap(),
                folder.join(file.file_name().unwrap()),
            )
            .unwrap();
        }
    }
    let tally = campaign(
        "config_with_weights",
        3000,
        // The weights come on top of the configuration.
        Limits::default(),
        |random| {
            chosen.set(random.below(seeds.len()));
            let mut text = seeds[chosen.get()].1.clone();
            let other = random.of(&seeds).1.clone();
            change_json(random, &mut text, WORDS, &other);
            text
        },
        |bytes| {
            slots[chosen.get()].put(bytes);
            let source = Source::Folder(folder(chosen.get()));
            let model =
                Model::load(&source, &LoadOptions::default()).map_err(|error| error.to_string())?;
            if used() { super::run(&model) } else { Ok(()) }
        },
    );
    assert!(tally.accepted > 0 || tally.refused < 100);
}
