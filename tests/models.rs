//! `eigenlens models`: what is there is explained, what cannot be loaded too.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{files, golden, root, run, write_gguf_llama};

fn gguf(name: &str) -> PathBuf {
    root().join("tests/golden/gguf").join(name)
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

/// What is explained of a model that can be loaded.
#[track_caller]
fn explained(model: &Path) -> Value {
    run([Path::new("models"), model, Path::new("--json")]).code(0).json()
}

/// Standard output and error of explaining what cannot be loaded.
#[track_caller]
fn refused(folder: &Path) -> (String, String) {
    let json = run([Path::new("models"), folder, Path::new("--json")]).code(3).json();
    assert!(json["refusal"].is_string(), "{json}");
    let ran = run([Path::new("models"), folder]).code(3);
    assert!(ran.stdout.contains("not loadable"), "{ran:?}");
    (ran.stdout, ran.stderr)
}

#[test]
fn what_can_be_loaded_is_listed() {
    let known = run(["models", "--json"]).code(0).json();
    let has = |key: &str, value: &str| {
        assert!(known[key].as_array().unwrap().contains(&value.into()), "{known}");
    };
    has("families", "gpt_neox");
    has("gguf_architectures", "llama");
    has("gguf_types", "Q4_1");
    has("safetensors_types", "BF16");
    has("built_in", "tiny-mixtral");
    let text = run(["models"]).code(0).stdout;
    assert!(text.contains("GGUF architectures") && text.contains("Q8_0"), "{text}");
}

#[test]
fn lines_fit_a_terminal() {
    let mut models = vec![PathBuf::from("tiny-mixtral"), gguf("gemma3-d.gguf")];
    models.extend(["gemma3-mm", "smollm3-b", "phi3-c", "gpt2-a"].map(golden));
    for model in models {
        let text = run([Path::new("models"), &model]).code(0).stdout;
        let path = model.display().to_string();
        for line in text.lines().filter(|line| !line.contains(&path)) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

#[test]
fn sizes_are_those_of_the_configuration() {
    let gemma = explained(&golden("gemma3-a"));
    let config: Value =
        serde_json::from_slice(&std::fs::read(golden("gemma3-a").join("config.json")).unwrap())
            .unwrap();
    assert_eq!(gemma["d_model"], config["hidden_size"]);
    assert_eq!(gemma["d_vocab"], config["vocab_size"]);
    assert_eq!(gemma["refusal"], Value::Null);
    assert_eq!(gemma["claims"]["model_type"], config["model_type"]);
    let layers: u64 =
        gemma["windows"].as_array().unwrap().iter().map(|w| w["layers"].as_u64().unwrap()).sum();
    assert_eq!(layers, gemma["n_layers"].as_u64().unwrap());
    assert!(gemma["positions"].as_str().unwrap().contains("in layers with a window"), "{gemma}");

    let gemma2 = explained(&golden("gemma2-a"));
    assert!(gemma2["attention_soft_cap"].is_f64() && gemma2["logit_soft_cap"].is_f64());
    let gpt2 = explained(&golden("gpt2-a"));
    assert_eq!(gpt2["positions"], "learned embeddings");
    let smollm3 = explained(&golden("smollm3-a"));
    assert!(smollm3["layers_without_rotary"].as_u64().unwrap() > 0, "{smollm3}");
    let mixtral = explained(&golden("mixtral-a"));
    assert!(mixtral["d_expert"].is_u64() && mixtral["d_mlp"].is_null(), "{mixtral}");
}

#[test]
fn the_tokenizer_is_looked_at() {
    let tiny = explained(Path::new("tiny-mixtral"));
    let special = tiny["special_tokens"].as_array().unwrap();
    let tokens = run(["models", "tiny-mixtral"]).code(0).stdout;
    assert_eq!(tiny["tokenizer"], 512);
    assert_eq!(tiny["chat_template"], "absent");
    for token in special {
        assert!(tokens.contains(token.as_str().unwrap()), "{tokens}");
    }
    let config = std::fs::read_to_string(golden("llama-a").join("config.json")).unwrap();
    let folder = folder(&[("config.json", &config), ("chat_template.jinja", "{{ messages }}")]);
    let weights = "model.safetensors";
    std::fs::copy(golden("llama-a").join(weights), folder.path().join(weights)).unwrap();
    assert_eq!(explained(folder.path())["chat_template"], "present");
    std::fs::write(folder.path().join("chat_template.jinja"), "{% if").unwrap();
    assert_eq!(explained(folder.path())["chat_template"], "unusable");
}

#[test]
fn memory_follows_the_formula() {
    let llama = explained(&golden("llama-a"));
    let n = |key: &str| llama[key].as_u64().unwrap();
    let memory = &llama["memory"];
    let t = memory["context"].as_u64().unwrap();
    assert_eq!(t, n("n_ctx").min(2048));
    let (a, c) = (n("n_heads") * n("d_head"), n("n_kv_heads") * n("d_head"));
    let d = n("d_model");
    let widest = (3 * d + 3 * a + 5 * c).max(5 * d + 3 * n("d_mlp"));
    for (place, device, bytes) in [(0, "cpu", 4), (1, "gpu", 4), (2, "gpu", 2)] {
        let found = &memory["uses"][place];
        assert_eq!(found["device"], device);
        assert_eq!(found["weights"], n("n_parameters") * bytes);
        assert_eq!(found["kv_cache"], 2 * bytes * t * n("n_layers") * c);
        assert_eq!(found["activations"], bytes * (t * widest + n("d_vocab")));
        let parts = ["weights", "kv_cache", "activations"];
        let sum: u64 = parts.iter().map(|part| found[part].as_u64().unwrap()).sum();
        assert_eq!(found["total"], sum);
    }
    assert_eq!(memory["all_logits"], 4 * t * n("d_vocab"));
    let path = golden("llama-a");
    let model = path.to_str().unwrap();
    let short = run(["models", model, "--json", "--context", "7"]).code(0).json();
    assert_eq!(short["memory"]["context"], 7);
    for context in ["0", "999999999"] {
        let error = run(["models", model, "--context", context]).code(2).stderr;
        assert!(error.contains("--context"), "{error}");
    }
}

#[test]
fn a_gguf_file_of_something_else_is_refused() {
    let folder = folder(&[]);
    let path = folder.path().join("adapter.gguf");
    write_gguf_llama(&path, false);
    let mut bytes = std::fs::read(&path).unwrap();
    // One more pair before the first.
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    assert_eq!(&bytes[at + key.len() + 12..][..5], b"llama");
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let kind = [text("general.type"), vec![8, 0, 0, 0], text("adapter")].concat();
    bytes.splice(at - 8..at - 8, kind.iter().copied());
    let pairs = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 1;
    bytes[16..24].copy_from_slice(&pairs.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let (stdout, stderr) = refused(&path);
    assert!(stdout.contains("adapter") && stderr.contains("general.type"), "{stdout} {stderr}");
}

#[test]
fn tensors_that_no_language_model_has_are_not_counted() {
    let found = explained(&golden("gemma3-mm"));
    let text_only = explained(&golden("gemma3-a"));
    assert!(found["unread_tensors"].as_u64().unwrap() > 0, "{found}");
    assert_eq!(text_only["unread_tensors"], 0);
}

#[test]
fn quantized_weights_are_counted_as_they_are_held() {
    let folder = folder(&[]);
    let model = folder.path().join("small.gguf");
    write_gguf_llama(&model, true);
    let found = explained(&model);
    assert_eq!(found["stored_as"], serde_json::json!({"F32": 3, "Q8_0": 9}));
    let uses = found["memory"]["uses"].as_array().unwrap();
    assert_eq!((&uses[0]["device"], &uses[0]["weights_as"]), (&"cpu".into(), &"as stored".into()));
    // 7 matrices of 32 × 32 and 2 of 40 × 32, 3 norms of 32. A block of 32 weights takes
    // 34 bytes in the file, and 36 in a layer, where its scale is in f32.
    assert_eq!(uses[0]["weights"], (7 * 32 + 2 * 40) * 36 + 3 * 32 * 4);
    let gpu = uses.iter().find(|use_| use_["device"] == "gpu" && use_["weights_as"] == "as stored");
    assert_eq!(gpu.unwrap()["weights"], (7 * 32 + 2 * 40) * 34 + 3 * 32 * 2);
    assert_eq!(uses[1]["weights"], ((7 * 32 + 2 * 40) * 32 + 3 * 32) * 4);
    assert_eq!(found["claims"]["general.architecture"], "llama");
}

#[test]
fn what_cannot_be_loaded_is_explained_all_the_same() {
    let json = std::fs::read(golden("llama-a").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&json).unwrap();
    config["quantization_config"] = serde_json::json!({"quant_method": "awq"});
    let awq = folder(&[("config.json", &config.to_string())]);
    std::fs::copy(
        golden("llama-a").join("model.safetensors"),
        awq.path().join("model.safetensors"),
    )
    .unwrap();
    let (stdout, stderr) = refused(awq.path());
    for word in ["AWQ", "quant_method", "model_type", "llama", "parameters"] {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    assert!(stderr.contains("AWQ"), "{stderr}");

    for (files, word) in [
        (vec![("adapter_config.json", r#"{"peft_type": "LORA"}"#)], "merge_and_unload"),
        (vec![("pytorch_model.bin", "")], "pytorch_model.bin"),
        (vec![("model_index.json", "{}")], "diffusers"),
        (vec![("modules.json", "[]")], "sentence-transformers"),
        (vec![("one.gguf", "")], "one.gguf"),
        (vec![("part/config.json", "{}")], "part"),
        (vec![("tokenizer.json", "{}")], "tokenizer"),
        (vec![("config.json", r#"{"model_type": "t5"}"#)], "encoder and a decoder"),
        (vec![("config.json", "not JSON")], "config.json"),
        (vec![], "empty"),
    ] {
        let (stdout, stderr) = refused(folder(&files).path());
        let one_line = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(one_line.contains(word) && stderr.contains(word), "{word}: {stdout} {stderr}");
    }
    // The same words wherever the model is named.
    let adapter = folder(&[("adapter_config.json", "{}")]);
    let (model, out) = (adapter.path().to_str().unwrap(), adapter.path().join("run"));
    let words = ["routing", "--quiet", "--model", model, "--prompt", "x", "--out"];
    let error = run(words.map(PathBuf::from).into_iter().chain([out])).code(3).stderr;
    assert!(error.contains("merge_and_unload"), "{error}");
    run(["models", model, "--check"]).code(3);
}

#[test]
fn files_that_nothing_reads_are_named() {
    let copy = folder(&[("training_args.bin", ""), ("README.md", "")]);
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama-a").join(name), copy.path().join(name)).unwrap();
    }
    let found = explained(copy.path());
    assert_eq!(found["unread_files"], serde_json::json!(["README.md", "training_args.bin"]));
    let file = copy.path().join("README.md");
    let (stdout, _) = refused(&file);
    assert!(stdout.contains("model file type"), "{stdout}");
}

#[test]
fn a_model_as_stored_is_itself_in_f32() {
    let folder = folder(&[("ids.json", "[[1, 2, 3, 4, 5, 6, 7, 8], [3, 1]]")]);
    let [ids, quantized, original] =
        ["ids.json", "q8.gguf", "f32.gguf"].map(|name| folder.path().join(name));
    write_gguf_llama(&quantized, true);
    write_gguf_llama(&original, false);
    let check = |model: &Path, more: &[&Path]| {
        let words = [Path::new("models"), model, "--check".as_ref(), "--quiet".as_ref()];
        let ids = [Path::new("--token-ids"), &ids];
        run(words.iter().chain(&ids).chain(more).copied())
    };
    let json = Path::new("--json");
    let found = check(&quantized, &[json]).code(0).json();
    assert_eq!(found["against"], "unpacked");
    for direction in ["kl_reference_model", "kl_model_reference"] {
        assert_eq!(
            (&found[direction]["mean"], &found[direction]["max"]),
            (&0.0.into(), &0.0.into())
        );
    }
    assert_eq!((&found["top_agreement"], &found["tokens"]), (&1.0.into(), &10.into()));
    assert_eq!((&found["texts"], &found["predicted"]), (&2.into(), &8.into()));
    assert_eq!(found["perplexity"], found["reference_perplexity"]);
    assert!(found["verdict"].as_str().unwrap().contains("bit for bit"), "{found}");
    let text = check(&quantized, &[]).code(0).stdout;
    assert!(text.contains("KL(reference‖model)") && text.contains("perplexity"), "{text}");

    // Quantizing lost something, and the original shows it.
    let words = [Path::new("--reference"), &original, json];
    let found = check(&quantized, &words).code(0).json();
    assert_eq!(found["against"], "reference");
    let mean = found["kl_reference_model"]["mean"].as_f64().unwrap();
    let max = found["kl_reference_model"]["max"].as_f64().unwrap();
    assert!(mean > 0.0 && max >= mean && max < 1.0, "{found}");
    assert!(found["kl_reference_model"]["max_position"].as_u64().unwrap() < 8, "{found}");
    // The other way round the directions change places.
    let words = [Path::new("--reference"), &quantized, json];
    let back = check(&original, &words).code(0).json();
    assert_eq!(back["kl_reference_model"], found["kl_model_reference"]);
    assert_eq!(back["perplexity"], found["reference_perplexity"]);
    assert_eq!(check(&original, &[json]).code(0).json()["against"], "itself");
}

/// Perplexity from the logits that a capture wrote.
#[test]
fn perplexity_is_that_of_the_captured_logits() {
    let folder = folder(&[("ids.json", "[[5, 9, 200, 33, 7, 481, 12]]")]);
    let (ids, out) = (folder.path().join("ids.json"), folder.path().join("run"));
    let words =
        ["capture", "--quiet", "--model", "tiny-mixtral", "--hook", "logits", "--token-ids"];
    let rest = [ids.clone(), "--out".into(), out.clone()];
    run(words.map(PathBuf::from).into_iter().chain(rest)).code(0);
    let shards = files(&out.join("tensors"));
    let (_, bytes) = shards.iter().next().unwrap();
    let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let logits: Vec<f64> = tensors
        .tensor("0/logits")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
        .collect();
    let next = [9, 200, 33, 7, 481, 12];
    let surprisal = |(row, token): (&[f64], &usize)| {
        row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*token]
    };
    let nats: f64 = logits.chunks(512).zip(&next).map(surprisal).sum();
    let expected = (nats / next.len() as f64).exp();
    let words = ["models", "tiny-mixtral", "--check", "--json", "--quiet", "--token-ids"];
    let found = run(words.map(PathBuf::from).into_iter().chain([ids])).code(0).json();
    let perplexity = found["perplexity"].as_f64().unwrap();
    assert!((perplexity - expected).abs() <= 1e-9 * expected, "{perplexity} {expected}");
}

#[test]
fn a_check_reads_the_built_in_text_or_ones_own() {
    let found = run(["models", "tiny-mixtral", "--check", "--json", "--quiet"]).code(0).json();
    assert!(found["tokens"].as_u64().unwrap() > 100, "{found}");
    assert!(found["perplexity"].as_f64().unwrap() > 1.0, "{found}");
    let words = ["models", "tiny-mixtral", "--check", "--json", "--quiet", "--prompt"];
    let own = run(words.iter().chain(&["1 + 2 = 3", "--max-tokens", "4"])).code(0).json();
    assert_eq!((&own["tokens"], &own["predicted"]), (&4.into(), &3.into()));
}

#[test]
fn checks_that_cannot_be_made() {
    let llama = golden("llama-a");
    let llama = llama.to_str().unwrap();
    let no_tokenizer = run(["models", llama, "--check"]).code(3).stderr;
    assert!(no_tokenizer.contains("--token-ids"), "{no_tokenizer}");
    let other = run(["models", "tiny-mixtral", "--check", "--reference", llama]).code(2).stderr;
    assert!(other.contains("vocabulary"), "{other}");
    let ids = folder(&[("ids.json", "[[1], [2]]")]);
    let ids = ids.path().join("ids.json");
    let words = ["models", llama, "--check", "--token-ids", ids.to_str().unwrap()];
    let short = run(words).code(2).stderr;
    assert!(short.contains("longer text"), "{short}");
    run(["models", "tiny-mixtral", "--prompt", "x"]).code(2);
    run(["models", "--check"]).code(2);
    run(["models", "tiny-mixtral", "--check", "--prompt", "x", "--token-ids", "y"]).code(2);
    run(["models", "no/such", "--check"]).code(3);
}
