//! `spectral --labels` and `--score-only`: verdicts, and what is refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Ran, derivations, files, golden, root, run};

/// Runs `spectral` on the built-in model with rows of one head only.
fn spectral(prompts: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut words = vec!["spectral", "--quiet", "--model", "tiny-mixtral", "--prompts"];
    words.extend([prompts.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    words.extend(more);
    run(words)
}

fn confounded() -> PathBuf {
    root().join("assets/confounded.jsonl")
}

fn write_lines(path: &Path, lines: impl IntoIterator<Item = Value>) {
    let lines: Vec<String> = lines.into_iter().map(|line| line.to_string()).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

/// How far an AUROC lies from chance.
fn far(estimate: &Value) -> f64 {
    (estimate["auroc"].as_f64().unwrap() - 0.5).abs()
}

#[test]
fn length_explains_what_a_confounded_set_seems_to_show() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let judged = ["--labels", "label", "--heads", "0", "--json"];
    let first = spectral(&confounded(), &out, &judged).code(0).json();
    let verdicts = &first["verdicts"];
    assert_eq!(verdicts["finding"], "length_explains", "{}", verdicts["verdict"]);
    let words = verdicts["verdict"].as_str().unwrap();
    assert!(words.starts_with("length explains it:"), "{words}");
    let best = &verdicts["cells"][verdicts["best"].as_u64().unwrap() as usize]["judged"];
    // Without its controls it would look like a discovery.
    assert!(far(best) > 0.3 && best["holm_p"].as_f64().unwrap() < 1e-6, "{best}");
    assert!(far(&verdicts["length"]) > 0.4, "{}", verdicts["length"]);
    assert!(far(&best["length"]["residual"]) < 0.15, "{best}");
    assert!(verdicts["findings"].get("separates").is_none(), "{}", verdicts["findings"]);
    let cells = verdicts["cells"].as_array().unwrap();
    assert_eq!(verdicts["tested"].as_u64().unwrap() as usize, cells.len());
    for cell in cells {
        for control in ["length", "log_probability"] {
            assert!(cell["judged"][control]["residual"]["auroc"].is_f64(), "{cell}");
        }
    }
    assert_eq!(first["tables"]["labels"], 120);

    // A finished run is judged again from its tables, with the same bytes.
    let before = files(&out);
    assert!(before.contains_key("tables/verdicts.parquet") && before.contains_key("verdicts.json"));
    let again = spectral(&confounded(), &out, &judged).code(0).json();
    assert_eq!((&again["resumed_prompts"], &again["verdicts"]), (&json!(120), verdicts));
    assert_eq!(files(&out), before);
    let shown = run(["show", out.to_str().unwrap(), "verdicts", "--json"]).code(0).json();
    assert_eq!(&shown, verdicts);
    let text = run(["show", out.to_str().unwrap(), "verdicts"]).code(0).stdout;
    assert!(text.contains("Verdict: length explains it"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");

    // Another positive label is another view of the same run.
    let words = [&judged[..], &["--positive", "invalid"]].concat();
    let other = spectral(&confounded(), &out, &words).code(0).json();
    let turned = 1. - other["verdicts"]["length"]["auroc"].as_f64().unwrap();
    assert!((turned - verdicts["length"]["auroc"].as_f64().unwrap()).abs() < 1e-12);
    assert_eq!(other["verdicts"]["finding"], "length_explains");

    // The log-probability is that of the model's own check.
    let labels =
        run(["show", out.to_str().unwrap(), "labels", "--rows", "1", "--json"]).code(0).json();
    let place =
        labels["columns"].as_array().unwrap().iter().position(|c| c == "mean_log_probability");
    let mean = labels["rows"][0][place.unwrap()].as_f64().unwrap();
    let all = std::fs::read_to_string(confounded()).unwrap();
    let text: Value = serde_json::from_str(all.lines().next().unwrap()).unwrap();
    let words = ["models", "tiny-mixtral", "--check", "--json", "--prompt"];
    let check = run(words.into_iter().chain([text["text"].as_str().unwrap()])).code(0).json();
    let perplexity = check["perplexity"].as_f64().unwrap();
    assert!(((-mean).exp() / perplexity - 1.).abs() < 1e-9, "{mean} {perplexity}");

    score_new_texts(folder.path(), &out);
}

/// Applies the threshold of a judged run whose positive label is `invalid`.
fn score_new_texts(folder: &Path, judged: &Path) {
    let texts = folder.join("new.jsonl");
    let all = std::fs::read_to_string(confounded()).unwrap();
    let known: Vec<Value> =
        all.lines().take(20).map(|line| serde_json::from_str(line).unwrap()).collect();
    let long = json!({"id": "long", "text": "1) Start with 59.\n".repeat(30)});
    write_lines(&texts, known.iter().cloned().chain([long]));
    let out = folder.join("scores");
    let from = judged.to_str().unwrap();
    let scored = spectral(&texts, &out, &["--score-only", from, "--json"]).code(0).json();
    assert_eq!(scored["threshold"]["finding"], "length_explains");
    let scores = scored["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 21);
    assert_eq!(
        (&scores[20]["prompt"], &scores[20]["usual_length"]),
        (&json!("long"), &json!(false))
    );
    assert_eq!(scored["unusual_lengths"], 1);
    // On texts that it was set on, the threshold does as it did there, or nearly.
    let right = known.iter().zip(scores).filter(|(text, score)| text["label"] == score["called"]);
    assert!(right.count() >= 13, "{scores:?}");
    for score in scores {
        let positive = score["called"] == "invalid";
        assert_eq!(score["margin"].as_f64().unwrap() >= 0., positive, "{score}");
    }
    assert!(out.join("tables/scores.parquet").is_file());
    // The values are those that the judged run has.
    let metric = scored["threshold"]["metric"].as_str().unwrap();
    let rows = run(["show", from, "spectral", "--rows", "100000", "--json"]).code(0).json();
    let place = |name: &str| {
        rows["columns"].as_array().unwrap().iter().position(|column| column == name).unwrap()
    };
    if scored["threshold"]["preset"] != "attention" {
        let row = rows["rows"].as_array().unwrap().iter().find(|row| {
            row[place("prompt")] == known[0]["id"]
                && row[place("head")].is_null()
                && row[place("layer")] == scored["threshold"]["layer"]
        });
        assert_eq!(row.unwrap()[place(metric)], scores[0]["value"]);
    }

    let file = judged.join("verdicts.json");
    let text = spectral(&texts, &out, &["--score-only", file.to_str().unwrap()]).code(0).stdout;
    let one_line = text.split_whitespace().collect::<Vec<&str>>().join(" ");
    assert!(one_line.contains("the verdict there was: length explains it"), "{text}");
    assert!(text.contains("Beware: 1 text"), "{text}");

    let other = golden("mixtral-b");
    let refused = run([
        "spectral",
        "--model",
        other.to_str().unwrap(),
        "--prompt",
        "x",
        "--score-only",
        from,
        "--out",
        folder.join("other").to_str().unwrap(),
    ])
    .code(2);
    assert!(refused.stderr.contains("the model was \"tiny-mixtral\""), "{}", refused.stderr);
    assert!(refused.stderr.contains("weights_sampled_sha256"), "{}", refused.stderr);
    assert!(!folder.join("other").exists());
    let refused =
        spectral(&texts, &folder.join("plain"), &["--score-only", from, "--special", "plain"])
            .code(2);
    assert!(refused.stderr.contains("special_tokens_in_text was"), "{}", refused.stderr);
    spectral(&texts, &out, &["--score-only", from, "--preset", "paper"]).code(2);
}

#[test]
fn wrong_steps_of_derivations_are_not_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 100);
    let out = folder.path().join("run");
    let words = ["--labels", "label", "--groups", "pair", "--heads", "0"];
    let shown = spectral(&prompts, &out, &[&words[..], &["--json"]].concat()).code(0).json();
    let verdicts = &shown["verdicts"];
    assert_eq!(verdicts["finding"], "not_significant", "{}", verdicts["verdict"]);
    assert_eq!(verdicts["labels"]["n_groups"], 50);
    // The texts of a pair are equally long.
    assert_eq!(verdicts["length"]["auroc"], 0.5);
    assert_eq!(verdicts["cells"][0]["judged"]["within"]["length_auroc"], 0.5);
    // A wrong step surprises the model all the same.
    assert!(verdicts["log_probability"]["low"].as_f64().unwrap() > 0.5, "{verdicts}");
    let text = spectral(&prompts, &out, &words).code(0).stdout;
    assert!(text.contains("Verdict: labels are not told apart"), "{text}");
}

#[test]
fn lengths_that_never_meet_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let all = std::fs::read_to_string(root().join("assets/derivations.jsonl")).unwrap();
    let lines = all.lines().step_by(2).take(12).enumerate().flat_map(|(i, line)| {
        let text: Value = serde_json::from_str(line).unwrap();
        let whole = text["text"].as_str().unwrap().to_owned();
        let part = whole.chars().take(12).collect::<String>();
        [json!({"text": whole, "done": true, "n": i}), json!({"text": part, "done": false, "n": i})]
    });
    let prompts = folder.path().join("texts.jsonl");
    write_lines(&prompts, lines);
    let words = ["--labels", "done", "--heads", "0", "--json"];
    let shown = spectral(&prompts, &folder.path().join("run"), &words).code(0).json();
    let verdicts = &shown["verdicts"];
    assert_eq!(verdicts["finding"], "length_explains_no_overlap", "{}", verdicts["verdict"]);
    assert_eq!(verdicts["length"]["auroc"], 1.);
    assert_eq!(verdicts["labels"]["positive"], "true");
}

#[test]
fn labels_that_are_none_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("texts.jsonl");
    let out = folder.path().join("run");
    let text =
        |i: usize| json!({"id": format!("p{i}"), "text": "one two", "label": i % 2, "list": [1]});
    let all = |change: &dyn Fn(usize, &mut Value)| {
        write_lines(
            &prompts,
            (0..24).map(|i| {
                let mut line = text(i);
                change(i, &mut line);
                line
            }),
        );
    };
    let refused = |more: &[&str], expected: &str| {
        let stderr = spectral(&prompts, &out, more).code(2).stderr;
        assert!(stderr.contains(expected), "{stderr}");
        assert!(!out.exists());
    };
    all(&|_, _| {});
    refused(&["--labels", "lable"], "prompt `p0` has no `lable`");
    refused(&["--labels", "list"], "`list` is a list or an object");
    refused(&["--labels", "label", "--positive", "2"], "it is one of `0` and `1`");
    refused(&["--labels", "label", "--groups", "pair"], "prompt `p0` has no `pair`");
    refused(&["--labels", "label", "--groups", "label"], "a verdict needs 10 of each");
    refused(&["--labels", "text"], "every prompt has the text `one two`");
    refused(&["--positive", "1"], "--labels");
    all(&|i, line| {
        if i == 17 {
            line["label"] = json!(2);
        }
    });
    refused(&["--labels", "label"], "prompt `p17` has the label `2`, beside `0` and `1`");
    all(&|i, line| {
        if i == 5 {
            line["label"] = Value::Null;
        }
    });
    refused(&["--labels", "label"], "prompt `p5` has no `label`");
    all(&|i, line| {
        if i == 9 {
            line["text"] = json!("1");
        }
    });
    refused(&["--labels", "label", "--max-tokens", "1"], "has one token");
    write_lines(&prompts, (0..18).map(text));
    refused(&["--labels", "label"], "9 independent texts with one label and 9 with the other");
    let lines = folder.path().join("texts.txt");
    std::fs::write(&lines, "one\ntwo\n").unwrap();
    let stderr = spectral(&lines, &out, &["--labels", "label"]).code(2).stderr;
    assert!(stderr.contains("fields of .jsonl lines"), "{stderr}");

    // Thresholds that are none.
    refused(&["--labels", "label", "--score-only", "x"], "cannot be used with");
    spectral(&lines, &out, &["--score-only", "no/such"]).code(3);
    let broken = folder.path().join("verdicts.json");
    for (json, expected) in [
        ("[]", "holds no verdicts"),
        ("{\"form\": 9}", "has form 9"),
        ("{\"form\": 1, \"finding\": \"separates\"}", "holds no verdicts"),
    ] {
        std::fs::write(&broken, json).unwrap();
        let stderr =
            spectral(&lines, &out, &["--score-only", broken.to_str().unwrap()]).code(2).stderr;
        assert!(stderr.contains(expected), "{stderr}");
    }
    // A run without labels has no verdicts.
    spectral(&lines, &out, &["--heads", "0"]).code(0);
    let stderr = run(["show", out.to_str().unwrap(), "verdicts"]).code(2).stderr;
    assert!(stderr.contains("has no table `verdicts`"), "{stderr}");
    assert!(spectral(&lines, &out, &["--heads", "0", "--labels", "label"]).code == Some(2));
}
