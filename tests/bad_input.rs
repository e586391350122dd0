//! What is wrong is said, with exit code 2 or 3, and nothing is left half-written.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::support::{Ran, eigenlens, golden, root, run};

/// A copy of a golden model that a test may damage.
fn copy_of(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_owned();
        if !file.to_string_lossy().starts_with("expected") {
            std::fs::copy(&path, model.join(file)).unwrap();
        }
    }
    (folder, model)
}

fn edit_config(model: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(config.as_object_mut().unwrap());
    std::fs::write(path, config.to_string()).unwrap();
}

/// Rewrites `model.safetensors` with one tensor changed.
fn edit_weights(
    model: &Path,
    tensor: &str,
    edit: impl Fn(&mut Dtype, &mut Vec<usize>, &mut Vec<u8>),
) {
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
        })
        .collect();
    let found =
        tensors.iter_mut().find(|(name, ..)| name == tensor).expect("a tensor of this name");
    edit(&mut found.1, &mut found.2, &mut found.3);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn ids_file(folder: &Path, json: &str) -> PathBuf {
    let path = folder.join("ids.json");
    std::fs::write(&path, json).unwrap();
    path
}

/// Captures logits of some token ids; the run folder must not appear on failure.
#[track_caller]
fn capture(folder: &Path, model: &Path, ids: &str, more: &[&str]) -> Ran {
    let (ids, out) = (ids_file(folder, ids), folder.join("run"));
    let words = ["capture", "--quiet", "--hook", "logits", "--model"].map(PathBuf::from);
    let rest = [model.to_owned(), "--token-ids".into(), ids, "--out".into(), out.clone()];
    let ran = run(words.into_iter().chain(rest).chain(more.iter().map(PathBuf::from)));
    assert!(
        ran.code == Some(0) || !out.exists(),
        "a failed start left {}: {ran:#?}",
        out.display()
    );
    ran
}

/// A damaged model is refused with code 3 and a message with these words.
#[track_caller]
fn refused(folder: &Path, model: &Path, words: &[&str]) {
    let ran = capture(folder, model, "[1, 2, 3]", &[]).code(3);
    for word in words {
        assert!(ran.stderr.contains(word), "`{word}` is not in {}", ran.stderr);
    }
    assert!(ran.stderr.starts_with("error: ") && ran.stdout.is_empty(), "{ran:#?}");
}

#[test]
fn the_undamaged_copy_runs() {
    let (folder, model) = copy_of("llama-a");
    capture(folder.path(), &model, "[1, 2, 3]", &[]).code(0);
}

#[test]
fn weights_that_cannot_be_read() {
    let (folder, model) = copy_of("llama-a");
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();

    std::fs::remove_file(&weights).unwrap();
    refused(folder.path(), &model, &["model.safetensors"]);

    std::fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    refused(folder.path(), &model, &["model.safetensors", "truncated"]);

    std::fs::write(&weights, &bytes[..5]).unwrap();
    refused(folder.path(), &model, &["5 bytes"]);

    let mut beyond = bytes.clone();
    beyond[..8].copy_from_slice(&(bytes.len() as u64 + 1000).to_le_bytes());
    std::fs::write(&weights, &beyond).unwrap();
    refused(folder.path(), &model, &["header", "truncated"]);

    beyond[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&weights, &beyond).unwrap();
    refused(folder.path(), &model, &["header"]);

    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let mut overlapping = (header.len() as u64).to_le_bytes().to_vec();
    overlapping.extend_from_slice(header.as_bytes());
    overlapping.extend_from_slice(&[0; 12]);
    std::fs::write(&weights, &overlapping).unwrap();
    refused(folder.path(), &model, &["`a`", "`b`", "overlap"]);
}

#[test]
fn weights_that_do_not_fit() {
    const NORM: &str = "model.layers.0.input_layernorm.weight";
    let (folder, model) = copy_of("llama-a");
    let original = std::fs::read(model.join("model.safetensors")).unwrap();

    edit_weights(&model, NORM, |_, shape, data| {
        shape[0] -= 1;
        data.truncate(data.len() - 4);
    });
    refused(folder.path(), &model, &[NORM, "[35]", "[36]"]);

    std::fs::write(model.join("model.safetensors"), &original).unwrap();
    edit_weights(&model, NORM, |dtype, _, _| *dtype = Dtype::I32);
    refused(folder.path(), &model, &[NORM, "I32"]);

    for value in [f32::NAN, f32::INFINITY] {
        std::fs::write(model.join("model.safetensors"), &original).unwrap();
        edit_weights(&model, NORM, |_, _, data| data[8..12].copy_from_slice(&value.to_le_bytes()));
        refused(folder.path(), &model, &[NORM, "element 2"]);
    }

    std::fs::write(model.join("model.safetensors"), &original).unwrap();
    edit_config(&model, |config| {
        let layers = config["num_hidden_layers"].as_u64().unwrap();
        config.insert("num_hidden_layers".into(), (layers + 1).into());
    });
    refused(folder.path(), &model, &["no tensor `model.layers."]);
}

#[test]
fn configurations_that_cannot_be_meant() {
    for (family, field, value, words) in [
        (
            "llama-a",
            "model_type",
            Value::from("no-such-family"),
            vec!["no-such-family", "llama", "mixtral"],
        ),
        ("llama-a", "num_hidden_layers", Value::from(0), vec!["num_hidden_layers"]),
        ("llama-a", "hidden_size", Value::from(-8), vec!["hidden_size", "-8"]),
        ("llama-a", "vocab_size", Value::from(u64::MAX), vec!["vocab_size"]),
        ("llama-a", "num_key_value_heads", Value::from(2), vec!["num_key_value_heads"]),
        ("llama-a", "rms_norm_eps", Value::from("small"), vec!["rms_norm_eps"]),
        ("mixtral-a", "num_experts_per_tok", Value::from(6), vec!["num_experts_per_tok"]),
        ("mixtral-a", "num_experts_per_tok", Value::from(0), vec!["num_experts_per_tok"]),
        ("mixtral-a", "num_local_experts", Value::from(0), vec!["num_local_experts"]),
    ] {
        let (folder, model) = copy_of(family);
        edit_config(&model, |config| drop(config.insert(field.into(), value)));
        refused(folder.path(), &model, &words);
    }
    let (folder, model) = copy_of("llama-a");
    for text in ["", "{", "[]", "{\"model_type\": 3}", "{}"] {
        std::fs::write(model.join("config.json"), text).unwrap();
        refused(folder.path(), &model, &["config.json"]);
    }
    std::fs::remove_file(model.join("config.json")).unwrap();
    refused(folder.path(), &model, &["config.json"]);
}

#[test]
fn models_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), Path::new("no/such/model"), &["no/such/model", "tiny-mixtral"]);
    let text = folder.path().join("model.bin");
    std::fs::write(&text, "x").unwrap();
    refused(folder.path(), &text, &["model.bin", ".gguf"]);
    let gguf = folder.path().join("model.gguf");
    for bytes in [
        &b"GGUF"[..],
        b"GGML\x03\0\0\0",
        b"",
        b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        std::fs::write(&gguf, bytes).unwrap();
        refused(folder.path(), &gguf, &["model.gguf"]);
    }
}

#[test]
fn token_ids_that_cannot_be_run() {
    let (folder, model) = copy_of("llama-a");
    for (ids, word) in [
        ("[1, 99]", "99"),
        ("[]", "empty"),
        ("[[1], []]", "empty"),
        ("[[1], 2]", "list"),
        ("[1.5]", "list"),
        ("[-1]", "list"),
        ("{}", "list"),
        ("[1", "list"),
    ] {
        let ran = capture(folder.path(), &model, ids, &[]).code(2);
        assert!(ran.stderr.contains(word), "{ids}: {}", ran.stderr);
    }
}

#[test]
fn one_and_two_tokens_run() {
    for name in ["llama-a", "mixtral-a"] {
        let (folder, model) = copy_of(name);
        let ids = ids_file(folder.path(), "[[1], [1, 2]]");
        let out = folder.path().join("run");
        let words = ["spectral", "--quiet", "--exact", "--preset", "controlled,paper", "--model"];
        let words = words.map(PathBuf::from).into_iter();
        run(words.chain([model, "--token-ids".into(), ids, "--out".into(), out.clone()])).code(0);
        let shown = run(["show", out.to_str().unwrap(), "spectral", "--prompt", "0", "--json"]);
        let rows = shown.code(0).json();
        let columns = rows["columns"].as_array().unwrap();
        let fiedler = columns.iter().position(|c| c == "fiedler").unwrap();
        assert!(rows["rows"].as_array().unwrap().iter().all(|row| row[fiedler].is_null()));
    }
}

#[test]
fn prompts_longer_than_the_context() {
    let (folder, model) = copy_of("llama-a");
    edit_config(&model, |config| drop(config.insert("max_position_embeddings".into(), 4.into())));
    let ran = capture(folder.path(), &model, "[1, 2, 3, 4, 5]", &[]).code(2);
    assert!(
        ran.stderr.contains("5 tokens") && ran.stderr.contains("--max-tokens 4"),
        "{}",
        ran.stderr
    );
    let ids = ids_file(folder.path(), "[1, 2, 3, 4, 5]");
    let out = folder.path().join("cut");
    let words = ["capture", "--hook", "logits", "--max-tokens", "4", "--model"].map(PathBuf::from);
    let rest = [model, "--token-ids".into(), ids, "--out".into(), out];
    let ran = run(words.into_iter().chain(rest)).code(0);
    assert!(ran.stderr.contains("cut"), "cutting is said aloud: {}", ran.stderr);
    let (folder, model) = copy_of("llama-a");
    capture(folder.path(), &model, "[1]", &["--max-tokens", "0"]).code(2);
}

#[test]
fn prompts_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, words) in [
        ("a.txt", &b"ab\xff"[..], vec!["a.txt", "UTF-8", "byte 2"]),
        ("a.jsonl", b"{\"text\": \"x\"}\n{\"txt\": 1}", vec!["line 2", "text"]),
        ("b.jsonl", b"{\"text\":\"x\",\"id\":\"1\"}\n{\"text\":\"y\",\"id\":1}", vec!["`1`"]),
        ("c.jsonl", b"{\"text\":\"\"}", vec!["empty"]),
        ("d.jsonl", b"{\"text\":\"x\",\"id\":\"a/b\"}", vec!["a/b"]),
        ("a.parquet", b"PAR1", vec!["Parquet"]),
        ("a.csv", b"x", vec![".jsonl"]),
        ("empty.txt", b"", vec!["no prompts"]),
    ] {
        let (file, out) = (folder.path().join(name), folder.path().join("run"));
        std::fs::write(&file, bytes).unwrap();
        let words_in =
            ["capture", "--quiet", "--hook", "logits", "--model", "tiny-mixtral", "--prompts"];
        let ran =
            run(words_in.map(PathBuf::from).into_iter().chain([file, "--out".into(), out.clone()]));
        let ran = ran.code(2);
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{name}: {}", ran.stderr);
        assert!(!out.exists(), "{name}");
    }
    let out = folder.path().join("run");
    let missing = [
        "capture",
        "--hook",
        "logits",
        "--model",
        "tiny-mixtral",
        "--prompts",
        "no-such.txt",
        "--out",
    ];
    run(missing.map(PathBuf::from).into_iter().chain([out])).code(3);
}

#[test]
fn hooks_that_a_model_does_not_have() {
    let (folder, model) = copy_of("llama-a");
    for (hook, words) in [
        ("blocks.0.attn.hook_patern", vec!["nearest", "blocks.0.attn.hook_pattern"]),
        ("blocks.*.attn.hook_patern", vec!["nearest", "blocks.*.attn.hook_pattern"]),
        ("blocks.0.mlp.hook_router_logits", vec!["dense MLP"]),
        ("blocks.99.hook_resid_pre", vec!["layer 99"]),
        ("hook_pos_embed", vec!["positions"]),
    ] {
        let ran = capture(folder.path(), &model, "[1]", &["--hook", hook]).code(2);
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{hook}: {}", ran.stderr);
    }
    for (option, value) in
        [("--layers", "99"), ("--layers", "x"), ("--heads", "7"), ("--positions", "first")]
    {
        capture(folder.path(), &model, "[1]", &["--hook", "blocks.*.attn.hook_q", option, value])
            .code(2);
    }
    let ids = ids_file(folder.path(), "[1]");
    let words = ["routing", "--model"].map(PathBuf::from).into_iter();
    let out = folder.path().join("routing");
    let ran =
        run(words.chain([model, "--token-ids".into(), ids, "--out".into(), out.clone()])).code(2);
    assert!(ran.stderr.contains("mixture") && !out.exists(), "{}", ran.stderr);
}

#[test]
fn text_without_a_tokenizer() {
    let (folder, model) = copy_of("llama-a");
    let out = folder.path().join("run");
    let words = ["capture", "--hook", "logits", "--prompt", "hello", "--model"].map(PathBuf::from);
    let ran = run(words.into_iter().chain([model, "--out".into(), out.clone()])).code(3);
    assert!(ran.stderr.contains("tokenizer.json") && !out.exists(), "{}", ran.stderr);
}

#[test]
fn a_run_folder_of_another_model_or_job() {
    let (folder, model) = copy_of("llama-a");
    capture(folder.path(), &model, "[1, 2, 3]", &[]).code(0);
    let before = crate::support::files(&folder.path().join("run"));
    let other = capture_again(folder.path(), &golden("llama-c"), &["--hook", "logits"]);
    assert!(other.stderr.contains("model.config_sha256"), "{}", other.stderr);
    let other = capture_again(folder.path(), &model, &["--hook", "logits", "--hook", "hook_embed"]);
    assert!(other.stderr.contains("hooks"), "{}", other.stderr);
    assert_eq!(crate::support::files(&folder.path().join("run")), before, "nothing was changed");

    let busy = folder.path().join("busy");
    std::fs::create_dir(&busy).unwrap();
    std::fs::write(busy.join("thesis.tex"), "x").unwrap();
    let words = ["capture", "--quiet", "--hook", "logits", "--model"].map(PathBuf::from);
    let rest =
        [model, "--token-ids".into(), folder.path().join("ids.json"), "--out".into(), busy.clone()];
    run(words.into_iter().chain(rest)).code(2);
    assert_eq!(
        crate::support::files(&busy).len(),
        1,
        "a folder with other things in it is left alone"
    );
}

#[track_caller]
fn capture_again(folder: &Path, model: &Path, hooks: &[&str]) -> Ran {
    let words = ["capture", "--quiet", "--model"].map(PathBuf::from);
    let rest = [
        model.to_owned(),
        "--token-ids".into(),
        folder.join("ids.json"),
        "--out".into(),
        folder.join("run"),
    ];
    run(words.into_iter().chain(rest).chain(hooks.iter().map(PathBuf::from))).code(2)
}

#[test]
fn an_overflowing_model_names_the_activation_and_keeps_finished_prompts() {
    // Finite weights, infinite activations: one token's embedding is next to the
    // greatest f32, of either sign, and what attention adds to it is large too.
    let (folder, model) = copy_of("llama-a");
    edit_weights(&model, "model.embed_tokens.weight", |_, shape, data| {
        let row = 5 * shape[1] * 4;
        for (i, value) in data[row..row + shape[1] * 4].chunks_exact_mut(4).enumerate() {
            let sign = if i % 2 == 0 { 1. } else { -1. };
            value.copy_from_slice(&(sign * 3.38e38f32).to_le_bytes());
        }
    });
    edit_weights(&model, "model.layers.0.self_attn.o_proj.weight", |_, _, data| {
        for value in data.chunks_exact_mut(4) {
            let weight = f32::from_le_bytes(value.try_into().unwrap());
            value.copy_from_slice(&(weight * 2e36).to_le_bytes());
        }
    });
    let ids = ids_file(folder.path(), "[[1, 2], [3, 5, 4], [2, 3]]");
    let out = folder.path().join("run");
    let words =
        ["capture", "--quiet", "--hook", "blocks.*.hook_resid_*", "--model"].map(PathBuf::from);
    let rest = [model, "--token-ids".into(), ids, "--out".into(), out.clone()];
    let ran = run(words.into_iter().chain(rest)).code(3);
    assert!(
        ran.stderr.contains("prompt `1`") && ran.stderr.contains("hook_resid"),
        "{}",
        ran.stderr
    );
    let shown = run(["show", out.to_str().unwrap(), "--json"]).code(0).json();
    assert_eq!(shown["finished_prompts"], 1);
}

#[test]
fn a_full_disk_is_said_and_the_run_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let prompts = crate::support::derivations(folder.path(), 6);
    let command = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(root()).stdin(Stdio::null());
        command
    };
    let words = |command: &mut Command| {
        command
            .args([
                "capture",
                "--quiet",
                "--model",
                "tiny-mixtral",
                "--hook",
                "logits",
                "--hook",
                "blocks.*.attn.hook_pattern",
            ])
            .arg("--prompts")
            .arg(&prompts)
            .arg("--out")
            .arg(&out);
    };
    // No file may outgrow 200 kB: some prompt's patterns do.
    let mut limited = command("prlimit");
    limited.arg("--fsize=200000").arg(env!("CARGO_BIN_EXE_eigenlens"));
    words(&mut limited);
    let output = limited.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(stderr.contains("error: ") && stderr.contains("run"), "{stderr}");
    run(["show", out.to_str().unwrap()]).code(0);

    let mut again = eigenlens();
    words(&mut again);
    assert!(again.status().unwrap().success());
    let shown = run(["show", out.to_str().unwrap(), "--json"]).code(0).json();
    assert_eq!((&shown["complete"], &shown["finished_prompts"]), (&true.into(), &6.into()));
}

#[test]
fn folders_that_are_files_and_runs_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let words = [
        "capture",
        "--quiet",
        "--model",
        "tiny-mixtral",
        "--prompt",
        "x",
        "--hook",
        "logits",
        "--out",
    ];
    let ran = run(words.map(PathBuf::from).into_iter().chain([file.clone()])).code(2);
    assert!(ran.stderr.contains("is a file"), "{}", ran.stderr);
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    for path in [file, folder.path().join("none")] {
        let ran = run(["show", path.to_str().unwrap()]).code(3);
        assert!(ran.stderr.contains("no run folder"), "{}", ran.stderr);
    }
}

#[test]
fn positions_that_no_prompt_has() {
    let (folder, model) = copy_of("llama-a");
    let ran = capture(folder.path(), &model, "[[1, 2], [3]]", &["--positions", "900"]).code(2);
    assert!(ran.stderr.contains("900") && ran.stderr.contains("2 tokens"), "{}", ran.stderr);
}

#[test]
fn too_many_threads() {
    let ran = run(["doctor", "--threads", "100000"]).code(2);
    assert!(ran.stderr.contains("1024"), "{}", ran.stderr);
}

/// A name is bytes: one that is no text is no reason to stop.
#[cfg(unix)]
#[test]
fn paths_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join(std::ffi::OsStr::from_bytes(b"run\xff"));
    let mut command = eigenlens();
    command.args(["capture", "--model", "tiny-mixtral", "--prompt", "3 + 4 = 7"]);
    command.args(["--hook", "logits", "--positions", "last", "--out"]).arg(&out);
    Ran::new(&command.output().unwrap()).code(0);
    assert!(out.is_dir());
}
