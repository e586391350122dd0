//! The commands do what the README says they do.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{derivations, eigenlens, files, golden, run};

fn paths<const N: usize>(words: [&str; N]) -> impl Iterator<Item = PathBuf> {
    words.map(PathBuf::from).into_iter()
}

/// Every tensor of a run folder as `f32`.
fn tensors(out: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut found = BTreeMap::new();
    for (name, bytes) in files(&out.join("tensors")) {
        assert!(name.ends_with(".safetensors"), "{name}");
        read_tensors(&bytes, &mut found);
    }
    found
}

fn read_tensors(bytes: &[u8], found: &mut BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    for (key, view) in safetensors::SafeTensors::deserialize(bytes).unwrap().iter() {
        let values = match view.dtype() {
            safetensors::Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            safetensors::Dtype::U32 => view
                .data()
                .chunks_exact(4)
                .map(|b| u32::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            safetensors::Dtype::I64 => view
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            other => panic!("{key} has type {other:?}"),
        };
        found.insert(key.to_owned(), (view.shape().to_vec(), values));
    }
}

#[test]
fn captured_tensors_are_those_of_transformers() {
    for name in ["llama-b", "mixtral-b"] {
        let folder = tempfile::tempdir().unwrap();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(golden(name).join("expected.json")).unwrap())
                .unwrap();
        let prompts = expected["prompts"].as_object().unwrap();
        let lists: Vec<&Value> = (0..prompts.len()).map(|i| &prompts[&i.to_string()]).collect();
        let ids = folder.path().join("ids.json");
        std::fs::write(&ids, serde_json::to_string(&lists).unwrap()).unwrap();
        let out = folder.path().join("run");
        let words = paths([
            "capture",
            "--quiet",
            "--hook",
            "logits",
            "--hook",
            "blocks.*.attn.hook_pattern",
            "--hook",
            "blocks.*.hook_resid_post",
            "--model",
        ]);
        run(words.chain([golden(name), "--token-ids".into(), ids, "--out".into(), out.clone()]))
            .code(0);

        let mut expected = BTreeMap::new();
        read_tensors(
            &std::fs::read(golden(name).join("expected.safetensors")).unwrap(),
            &mut expected,
        );
        let got = tensors(&out);
        assert!(got.len() >= prompts.len() * 3);
        for (key, (shape, values)) in &got {
            let (expected_shape, expected) = &expected[key];
            assert_eq!(shape, expected_shape, "{name} {key}");
            let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in values.iter().zip(expected) {
                assert!((a - b).abs() <= 1e-4 * scale, "{name} {key}: {a} against {b}");
            }
        }
    }
}

#[test]
fn positions_heads_and_layers_narrow_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let words = paths([
        "capture",
        "--model",
        "tiny-mixtral",
        "--prompt",
        "Step 1: Add 904 and 275.",
        "--quiet",
        "--hook",
        "blocks.*.attn.hook_pattern",
        "--hook",
        "logits",
        "--layers",
        "1,3",
        "--heads",
        "0,2-3",
        "--positions",
        "last,0-1",
        "--store",
        "f16",
        "--out",
    ]);
    run(words.chain([out.clone()])).code(0);
    let shown = run(["show", out.to_str().unwrap(), "--json"]).code(0).json();
    let keys: Vec<&str> =
        shown["tensors"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
    assert_eq!(keys, ["0/blocks.1.attn.hook_pattern", "0/blocks.3.attn.hook_pattern", "0/logits"]);
    let tensor = run(["show", out.to_str().unwrap(), keys[0], "--json"]).code(0).json();
    assert_eq!(tensor["dtype"], "F16");
    let shape: Vec<u64> =
        tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(shape[..2], [3, 3]); // [head, query_pos]
}

#[test]
fn prompts_come_from_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let jsonl = folder.path().join("p.jsonl");
    std::fs::write(&jsonl, "{\"text\": \"one\"}\n{\"text\": \"two\"}\n").unwrap();
    let txt = folder.path().join("p.txt");
    std::fs::write(&txt, "one\n\ntwo\n").unwrap();
    let mut results = Vec::new();
    for (number, source) in [jsonl.to_str().unwrap(), txt.to_str().unwrap(), "-"].iter().enumerate()
    {
        let out = folder.path().join(format!("run-{number}"));
        let mut command = eigenlens();
        command.args([
            "capture",
            "--quiet",
            "--model",
            "tiny-mixtral",
            "--hook",
            "logits",
            "--prompts",
            source,
            "--out",
        ]);
        let mut child = command.arg(&out).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
        assert!(child.wait().unwrap().success());
        results.push(tensors(&out));
    }
    assert_eq!(results[0].len(), 2);
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    // Two sources at once are one too many, and none is one too few.
    run([
        "capture",
        "--model",
        "tiny-mixtral",
        "--hook",
        "logits",
        "--prompt",
        "x",
        "--prompts",
        "y",
        "--out",
        "z",
    ])
    .code(2);
    run(["capture", "--model", "tiny-mixtral", "--hook", "logits", "--out", "z"]).code(2);
}

#[test]
fn a_finished_run_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 3);
    let out = folder.path().join("run");
    let again = || {
        let words = paths(["routing", "--model", "tiny-mixtral", "--json", "--prompts"]);
        run(words.chain([prompts.clone(), "--out".into(), out.clone()])).code(0)
    };
    let first = again();
    let before = files(&out);
    let second = again();
    assert_eq!(files(&out), before);
    assert_eq!(second.json()["resumed_prompts"], 3);
    assert_eq!(first.json()["routing"], second.json()["routing"]);
    assert!(second.stderr.contains("finished already"), "{}", second.stderr);
}

#[test]
fn threads_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 4);
    let run_with = |threads: &str| {
        let out = folder.path().join(threads);
        let words = paths([
            "spectral",
            "--quiet",
            "--exact",
            "--model",
            "tiny-mixtral",
            "--threads",
            threads,
            "--prompts",
        ]);
        run(words.chain([prompts.clone(), "--out".into(), out.clone()])).code(0);
        files(&out.join("tables"))
    };
    assert_eq!(run_with("1"), run_with("2"));
}

#[test]
fn the_demo_says_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let shown =
        run(paths(["demo", "--quiet", "--json", "--out"]).chain([out.clone()])).code(0).json();
    assert_eq!(shown["spectral"].as_array().unwrap().len(), 2 * 4); // presets × layers
    assert_eq!(shown["routing"].as_array().unwrap().len(), 4);
    for layer in shown["routing"].as_array().unwrap() {
        assert!(layer["measures"]["load_entropy"].as_f64().unwrap() >= 0.8, "{layer}");
    }
    // Pairs are of equal length, so length alone tells nothing.
    assert_eq!(shown["length_auroc"], 0.5);
    assert!(!shown["contrasts"].as_array().unwrap().is_empty());
    let text = run(paths(["demo", "--quiet", "--out"]).chain([out])).code(0).stdout;
    for word in [
        "Valid against invalid",
        "AUROC of the number of tokens alone",
        "Routing",
        "Load of each expert",
    ] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn models_are_explained() {
    let known = run(["models", "--json"]).code(0).json();
    assert!(known["families"].as_array().unwrap().contains(&"mixtral".into()));
    let tiny = run(["models", "tiny-mixtral", "--json"]).code(0).json();
    assert_eq!(
        (&tiny["n_layers"], &tiny["n_experts"], &tiny["k"]),
        (&4.into(), &8.into(), &2.into())
    );
    assert!(tiny["n_parameters"].as_u64().unwrap() > 1_000_000);
    let text = run(["models", "tiny-mixtral"]).code(0).stdout;
    assert!(text.contains("blocks.{l}.mlp.hook_router_logits"), "{text}");
    run(["models", "no/such"]).code(3);
}

#[test]
fn the_doctor_answers() {
    let text = run(["doctor"]).code(0).stdout;
    assert!(text.contains("threads") && text.contains("mixtral"), "{text}");
    let one = run(["doctor", "--threads", "1", "--json"]).code(0).json();
    assert_eq!(one["threads"], 1);
    // Each library is there, or what to do about it is.
    for library in one["cuda"]["libraries"].as_array().unwrap() {
        assert_eq!(library["missing"].is_null(), library["cure"].is_null(), "{library}");
        assert!(text.contains(library["file"].as_str().unwrap()), "{text}");
    }
}

#[test]
fn devices_are_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let on = |device: &str| {
        let words = ["routing", "--quiet", "--model", "tiny-mixtral", "--prompt", "1 + 2 = 3"];
        run(paths(words).chain(paths(["--device", device, "--out"])).chain([out.clone()]))
    };
    on("gpu").code(2);
    // A build without CUDA, or a machine without so many GPUs.
    let absent = on("cuda:1023").code(4).stderr;
    assert!(!out.exists(), "a run without its device began");
    let cuda = run(["doctor", "--json"]).code(0).json()["cuda"].take();
    if cuda["built_for"].is_null() {
        assert!(absent.contains("this build has no CUDA"), "{absent}");
        assert!(absent.contains("--device cpu"), "{absent}");
    } else {
        let named = absent.contains("no gpu to run on") || absent.contains("no CUDA driver");
        assert!(named && !absent.contains("panicked"), "{absent}");
    }
    let check = ["models", "tiny-mixtral", "--check", "--quiet", "--device", "cuda:1023"];
    assert_eq!(run(check).code(4).stderr, absent);
    run(["models", "tiny-mixtral", "--device", "cpu"]).code(2);
    assert_eq!(on("cpu").code(0).stderr, "");

    // The choice is the engine's: one line where a build with CUDA finds no GPU, none where there is
    // nothing to expect.
    if cuda["gpus"].as_array().unwrap().is_empty() {
        let stderr = on("auto").code(0).stderr;
        assert_eq!(stderr.is_empty(), cuda["built_for"].is_null(), "{stderr}");
        assert!(stderr.lines().count() <= 1, "{stderr}");
        if let Some(line) = stderr.lines().next() {
            assert!(line.starts_with("running on the cpu: "), "{line}");
            assert!(line.contains("--device cpu") && line.contains("--device cuda"), "{line}");
        }
        let manifest = std::fs::read_to_string(out.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["device"]["used"], "cpu", "{manifest}");
    }
}

#[test]
fn help_has_examples_and_wrong_words_end_with_two() {
    for command in ["demo", "capture", "spectral", "routing", "show", "models", "doctor"] {
        let text = run([command, "--help"]).code(0).stdout;
        assert!(text.contains("Example"), "{command}: {text}");
    }
    run(["--version"]).code(0);
    run(["no-such-command"]).code(2);
    run(["capture"]).code(2);
    run(["doctor", "--threads", "0"]).code(2);
    run(["show", "no/such/run"]).code(3);
}

#[test]
fn show_names_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let words = paths([
        "capture",
        "--quiet",
        "--model",
        "tiny-mixtral",
        "--prompt",
        "1 + 2 = 3",
        "--hook",
        "logits",
        "--out",
    ]);
    run(words.chain([out.clone()])).code(0);
    let folder = out.to_str().unwrap();
    let tokens = run(["show", folder, "tokens", "--json"]).code(0).json();
    let columns: Vec<&str> =
        tokens["columns"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert_eq!(columns, ["prompt", "position", "token_id", "token", "start", "end"]);
    let wrong = run(["show", folder, "no-such-table"]).code(2).stderr;
    assert!(wrong.contains("tokens") && wrong.contains("prompts"), "{wrong}");
    let wrong = run(["show", folder, "0/no-such-hook"]).code(2).stderr;
    assert!(wrong.contains("0/logits"), "{wrong}");
    run(["show", folder, "tokens", "--prompt", "7"]).code(2);
    let text = run(["show", folder, "0/logits"]).code(0).stdout;
    assert!(text.contains("F32") && text.contains("mean"), "{text}");
}

#[test]
fn standard_input_may_be_json_lines() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut command = eigenlens();
    command.args([
        "capture",
        "--quiet",
        "--model",
        "tiny-mixtral",
        "--hook",
        "logits",
        "--prompts",
        "-",
        "--out",
    ]);
    let mut child = command.arg(&out).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{\"id\": \"x\", \"text\": \"one\\ntwo\"}\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(tensors(&out).into_keys().collect::<Vec<_>>(), ["x/logits"]);
}

#[test]
fn a_prompt_may_begin_with_a_minus_sign() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let words = paths([
        "capture",
        "--quiet",
        "--model",
        "tiny-mixtral",
        "--prompt",
        "-5 + 3",
        "--hook",
        "logits",
        "--out",
    ]);
    run(words.chain([out.clone()])).code(0);
    let prompts = run(["show", out.to_str().unwrap(), "prompts", "--json"]).code(0).json();
    assert_eq!(prompts["rows"][0][1], "-5 + 3");
}

#[test]
fn a_preset_given_twice_has_its_rows_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let words = paths([
        "spectral",
        "--quiet",
        "--json",
        "--model",
        "tiny-mixtral",
        "--prompt",
        "1 + 1 = 2",
        "--preset",
        "controlled,controlled",
        "--out",
    ]);
    let shown = run(words.chain([out])).code(0).json();
    assert_eq!(shown["tables"]["spectral"], 4 * (4 + 1)); // layers × (heads + mean)
    assert_eq!(shown["spectral"][0]["prompts"], 1);
}

#[test]
fn laplacians_and_presets_are_chosen_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 4);
    let words = |name: &str, more: &[&str]| {
        let mut words: Vec<String> = ["spectral", "--quiet", "--json", "--model", "tiny-mixtral"]
            .map(str::to_owned)
            .to_vec();
        words.extend(["--prompts", prompts.to_str().unwrap()].map(str::to_owned));
        words.extend(["--out", folder.path().join(name).to_str().unwrap()].map(str::to_owned));
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    };
    let more = ["--preset", "paper,library-0.3", "--laplacian", "random-walk,combinatorial"];
    let shown = run(words("run", &more)).code(0).json();
    let groups = shown["spectral"].as_array().unwrap();
    let names: Vec<(&str, &str, bool)> = groups
        .iter()
        .filter(|group| group["layer"] == 3)
        .map(|group| {
            let text = |name: &str| group[name].as_str().unwrap();
            (text("preset"), text("laplacian"), group["caveat"].is_string())
        })
        .collect();
    assert_eq!(
        names,
        [
            ("library-0.3", "combinatorial", true),
            ("library-0.3", "random-walk", true),
            ("paper", "combinatorial", false),
            ("paper", "random-walk", false),
        ]
    );
    // After the final norm the last layer's signal is another one; before, the same.
    let energy = |preset: &str, layer: u64| {
        let same = |g: &&Value| {
            g["preset"] == preset && g["laplacian"] == "combinatorial" && g["layer"] == layer
        };
        groups.iter().find(same).unwrap()["means"]["rayleigh"].as_f64().unwrap()
    };
    assert_eq!(energy("paper", 2), energy("library-0.3", 2));
    assert_ne!(energy("paper", 3), energy("library-0.3", 3));

    let out = folder.path().join("run");
    let rows =
        run(["show", out.to_str().unwrap(), "spectral", "--rows", "64", "--json"]).code(0).json();
    let column =
        |name: &str| rows["columns"].as_array().unwrap().iter().position(|c| c == name).unwrap();
    for row in rows["rows"].as_array().unwrap() {
        let n = row[column("n_nodes")].as_u64().unwrap();
        let kept = if row[column("preset")] == "paper" { n } else { n.min(50) };
        assert_eq!(row[column("modes_retained")], kept, "{row}");
    }
    let text = run(words("run", &more).into_iter().filter(|word| word != "--json")).code(0).stdout;
    assert!(text.contains("25 lowest") && text.contains("random-walk Laplacian"), "{text}");
    let wrong = run(words("other", &["--laplacian", "normalized"])).code(2).stderr;
    assert!(wrong.contains("symmetric-normalized"), "{wrong}");
}

/// The rows of a table as objects.
fn rows(out: &Path, table: &str) -> Vec<serde_json::Map<String, Value>> {
    let shown =
        run(["show", out.to_str().unwrap(), table, "--rows", "1000", "--json"]).code(0).json();
    let columns = shown["columns"].as_array().unwrap();
    let row = |row: &Value| {
        let names = columns.iter().map(|name| name.as_str().unwrap().to_owned());
        names.zip(row.as_array().unwrap().iter().cloned()).collect()
    };
    shown["rows"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn responses_are_looked_back_from() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("p.jsonl");
    let lines = concat!(
        "{\"text\": \"Step 1: Add 904 and 275.\", \"response\": \" The sum is 1179.\"}\n",
        "{\"text\": \"Step 1: Add 904 and 275. The sum is 1179.\"}\n",
    );
    std::fs::write(&prompts, lines).unwrap();
    let model = ["--quiet", "--model", "tiny-mixtral", "--prompts", prompts.to_str().unwrap()];
    let runs = [("spectral", &[][..]), ("capture", &["--hook", "blocks.*.attn.hook_pattern"][..])];
    for (command, more) in runs {
        let out = folder.path().join(command);
        run([command, "--out", out.to_str().unwrap()].iter().chain(&model).chain(more)).code(0);
    }
    let spectral = folder.path().join("spectral");
    let texts = rows(&spectral, "prompts");
    assert_eq!(texts[0]["text"], texts[1]["text"]);
    assert_eq!(texts[0]["n_tokens"], texts[1]["n_tokens"]);
    assert!(texts[1]["n_context"].is_null());
    let n_context = texts[0]["n_context"].as_u64().unwrap() as usize;
    // The first token of the response begins where its text does.
    let starts: Vec<Option<u64>> = rows(&spectral, "tokens")
        .iter()
        .filter(|row| row["prompt"] == "0")
        .map(|row| row["start"].as_u64())
        .collect();
    assert_eq!(starts[n_context], Some(24));

    let patterns = tensors(&folder.path().join("capture"));
    let mut answered = 0;
    for row in rows(&spectral, "attention") {
        if row["prompt"] == "1" {
            assert!(row["lookback_ratio"].is_null());
            continue;
        }
        let (layer, head) = (row["layer"].as_u64().unwrap(), row["head"].as_u64().unwrap());
        let (shape, values) = &patterns[&format!("0/blocks.{layer}.attn.hook_pattern")];
        let n = shape[1];
        let ratios = (n_context..n).map(|u| {
            let row = &values[(head as usize * n + u) * n..][..n];
            let mean =
                |keys: &[f32]| keys.iter().map(|a| f64::from(*a)).sum::<f64>() / keys.len() as f64;
            let (context, new) = (mean(&row[..n_context]), mean(&row[n_context..=u]));
            context / (context + new)
        });
        let expected = ratios.sum::<f64>() / (n - n_context) as f64;
        let got = row["lookback_ratio"].as_f64().unwrap();
        assert!((got - expected).abs() <= 1e-5, "{got}, expected {expected}");
        answered += 1;
    }
    assert_eq!(answered, 4 * 4); // layers × heads
}

#[test]
fn layers_with_a_window_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let (ids, out) = (folder.path().join("ids.json"), folder.path().join("run"));
    std::fs::write(&ids, serde_json::to_string(&(1..30).collect::<Vec<u32>>()).unwrap()).unwrap();
    let words = paths(["spectral", "--quiet", "--token-ids"]);
    run(words.chain([ids, "--out".into(), out.clone(), "--model".into(), golden("gemma3-a")]))
        .code(0);
    let windows: Vec<Option<u64>> =
        rows(&out, "attention_layers").iter().map(|row| row["window"].as_u64()).collect();
    assert!(windows.iter().any(Option::is_none) && windows.iter().flatten().all(|w| *w < 29));
    for row in rows(&out, "attention") {
        let number = |name: &str| row[name].as_f64().unwrap();
        let (sink, visible) = (number("sink_max"), number("sink_visible_max"));
        match windows[row["layer"].as_u64().unwrap() as usize] {
            None => assert_eq!(sink, visible),
            Some(_) => assert!(sink <= visible && visible <= 1.0 + 1e-6, "{row:?}"),
        }
        let same = number("sink_entropy") == number("sink_visible_entropy");
        assert_eq!(same, windows[row["layer"].as_u64().unwrap() as usize].is_none(), "{row:?}");
    }
}

#[test]
fn a_text_of_one_repeated_token_has_no_controlled_signal() {
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, serde_json::to_string(&vec![vec![5; 40]]).unwrap()).unwrap();
    let out = folder.path().join("run");
    let words = paths(["spectral", "--quiet", "--exact", "--model", "tiny-mixtral", "--token-ids"]);
    run(words.chain([ids, "--out".into(), out.clone()])).code(0);
    let shown =
        run(["show", out.to_str().unwrap(), "spectral", "--rows", "100", "--json"]).code(0).json();
    let column =
        |name: &str| shown["columns"].as_array().unwrap().iter().position(|c| c == name).unwrap();
    for row in shown["rows"].as_array().unwrap() {
        assert_eq!(row[column("zero_rows")], 39, "{row}");
        assert!(row[column("rayleigh")].is_null() && row[column("hfer")].is_null(), "{row}");
        assert!(row[column("fiedler")].is_f64(), "{row}");
    }
}

#[test]
fn a_pipe_that_closes_early_is_no_error() {
    let mut command = eigenlens();
    let mut child = command
        .args(["models", "tiny-mixtral"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[cfg(unix)]
#[test]
fn a_run_folder_may_have_any_name() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join(std::ffi::OsStr::from_bytes(b"run\xff"));
    let words = ["routing", "--model", "tiny-mixtral", "--prompt", "1 + 1 = 2", "--json", "-q"];
    let output = eigenlens().args(words).arg("--out").arg(&out).output().unwrap();
    let printed = crate::support::Ran::new(&output).code(0).json();
    assert!(printed["run"].as_str().unwrap().ends_with("run\u{fffd}"), "{printed}");
    assert!(out.join("manifest.json").exists());
}
