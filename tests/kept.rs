//! What a run folder keeps of spectra, and what is asked of it afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{derivations, files, run};

fn spectral(prompts: &Path, out: &Path, words: &[&str]) -> crate::support::Ran {
    let fixed = ["spectral", "--quiet", "--model", "tiny-mixtral"].map(PathBuf::from);
    let paths = ["--prompts".into(), prompts.to_owned(), "--out".into(), out.to_owned()];
    run(fixed.into_iter().chain(paths).chain(words.iter().map(PathBuf::from)))
}

fn show(out: &Path, words: &[&str]) -> crate::support::Ran {
    run(["show", out.to_str().unwrap()].iter().chain(words))
}

/// Prompt, preset, layer and head.
type Key = (String, String, u64, Option<u64>);

fn key(prompt: &Value, preset: &Value, layer: &Value, head: &Value) -> Key {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(prompt), text(preset), layer.as_u64().unwrap(), head.as_u64())
}

/// The kept eigenvalues of every graph.
fn eigenvalues(out: &Path) -> BTreeMap<Key, Vec<f64>> {
    let shown = show(out, &["eigenvalues", "--rows", "100000", "--json"]).code(0).json();
    let names: Vec<&str> =
        shown["columns"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let at = |name| names.iter().position(|n| *n == name).unwrap();
    let row = |row: &Value| {
        let values = row[at("eigenvalues")].as_array().unwrap();
        (
            key(&row[at("prompt")], &row[at("preset")], &row[at("layer")], &row[at("head")]),
            values.iter().map(|value| value.as_f64().unwrap()).collect(),
        )
    };
    shown["rows"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn functionals_of_kept_probes_are_those_of_kept_eigenvalues() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 4);
    let out = folder.path().join("run");
    let keep =
        ["--exact=f64", "--quadrature=heads", "--probe-steps", "48", "--keep", "eigenvalues"];
    spectral(&prompts, &out, &[&keep[..], &["--preset", "controlled,paper"]].concat()).code(0);
    let spectra = eigenvalues(&out);
    // Four heads and their mean under `controlled`, the mean alone under `paper`.
    assert_eq!(spectra.len(), 4 * 4 * 5 + 4 * 4);
    let n = |values: &[f64]| values.len() as f64;
    let z = |values: &[f64], beta: f64| values.iter().map(|v| (-beta * v).exp()).sum::<f64>();
    type Expected<'a> = &'a dyn Fn(&[f64]) -> f64;
    let functionals: [(&[&str], Expected<'_>); 6] = [
        (&["density", "--width", "0.2", "--grid", "1:1:1"], &|values| {
            let normal = |v: &f64| (-0.5 * ((1.0 - v) / 0.2_f64).powi(2)).exp();
            let height = 0.2 * std::f64::consts::TAU.sqrt() * n(values);
            values.iter().map(normal).sum::<f64>() / height
        }),
        (&["eigenvalue-entropy"], &|values| {
            let sum: f64 = values.iter().sum();
            let shares = values.iter().map(|v| v / sum).filter(|q| *q > 0.0);
            shares.map(|q| -q * q.ln()).sum()
        }),
        (&["partition-function", "--beta", "3"], &|values| z(values, 3.0)),
        (&["free-energy", "--beta", "3"], &|values| -(z(values, 3.0) / n(values)).ln() / 3.0),
        (&["heat-capacity", "--beta", "3"], &|values| {
            let weights: Vec<f64> = values.iter().map(|v| (-3.0 * v).exp()).collect();
            let mean = |f: &dyn Fn(f64) -> f64| {
                let terms = weights.iter().zip(values).map(|(w, v)| w * f(*v));
                terms.sum::<f64>() / z(values, 3.0)
            };
            let centre = mean(&|v| v);
            9.0 * mean(&|v| (v - centre) * (v - centre))
        }),
        (&["form-factor", "--tau", "2"], &|values| {
            let sum = |f: fn(f64) -> f64| values.iter().map(|v| f(2.0 * v)).sum::<f64>();
            (sum(f64::cos).powi(2) + sum(f64::sin).powi(2)) / n(values).powi(2)
        }),
    ];
    for (words, expected) in functionals {
        let words = [&["--json", "--functional"], words].concat();
        let shown = show(&out, &words).code(0).json();
        let graphs = shown["graphs"].as_array().unwrap();
        assert_eq!(graphs.len(), spectra.len(), "{words:?}");
        let (mut means, mut outside): (BTreeMap<_, Vec<f64>>, _) = (BTreeMap::new(), 0);
        for graph in graphs {
            let name = key(&graph["prompt"], &graph["preset"], &graph["layer"], &graph["head"]);
            let number = |what: &str| graph["values"][0][what].as_f64().unwrap();
            let (value, error) = (number("value"), number("error"));
            let expected = expected(&spectra[&name]);
            let difference = (value - expected).abs();
            let tolerance = number("truncation") + 1e-9 * expected.abs();
            assert!(
                difference <= 7.0 * error + tolerance,
                "{words:?}, {name:?}: {value} {expected}"
            );
            outside += u32::from(difference > 2.131 * error + tolerance);
            means.entry((name.1, name.2, name.3)).or_default().push(value);
        }
        // One in twenty lies outside, and the graphs of a prompt share its probes.
        assert!(outside <= graphs.len() as u32 / 6, "{words:?}: {outside} of {}", graphs.len());
        assert_eq!(shown["means"].as_array().unwrap().len(), means.len());
        for mean in shown["means"].as_array().unwrap() {
            let (_, preset, layer, head) =
                key(&"".into(), &mean["preset"], &mean["layer"], &mean["head"]);
            let values = &means[&(preset, layer, head)];
            let expected = values.iter().sum::<f64>() / values.len() as f64;
            let got = mean["values"][0]["value"].as_f64().unwrap();
            assert!((got - expected).abs() < 1e-12 * expected.abs(), "{mean}");
            assert_eq!(mean["prompts"], values.len());
        }
        // A prompt, and heads, alone.
        let prompt = spectra.keys().next().unwrap().0.clone();
        let some = [&words[..], &["--prompt", &prompt, "--heads", "1,3"]].concat();
        let shown = show(&out, &some).code(0).json();
        assert_eq!(shown["graphs"].as_array().unwrap().len(), 2 * 4);
    }
    let text = show(&out, &["--functional", "heat-capacity", "--beta", "3"]).code(0).stdout;
    assert!(text.contains("beta 3") && text.contains("means over 4 prompts"), "{text}");
    assert!(!text.contains("head  ") && !text.contains("Beware"), "{text}");
    let text = show(&out, &["--functional", "density", "--heads", "2"]).code(0).stdout;
    assert!(text.contains("at 0.2500") && text.contains(" ± "), "{text}");
}

#[test]
fn keeping_changes_nothing_else_and_no_thread_changes_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 3);
    let keep = ["--quadrature=heads", "--probes", "8", "--probe-steps", "20", "--keep"];
    let mut runs = Vec::new();
    for (number, words) in [
        vec![],
        [&keep[..], &["fiedler-vectors", "--threads", "1"]].concat(),
        [&keep[..], &["fiedler-vectors", "--threads", "3"]].concat(),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(number.to_string());
        spectral(&prompts, &out, &words).code(0);
        runs.push(files(&out.join("tables")));
    }
    assert!(runs[1] == runs[2]);
    for name in ["quadrature.parquet", "fiedler_vectors.parquet"] {
        assert!(!runs[0].contains_key(name) && runs[1].contains_key(name));
    }
    assert!(!runs[1].contains_key("eigenvalues.parquet"));
    for (name, bytes) in &runs[0] {
        assert!(runs[1][name] == *bytes, "{name}");
    }
    // What is kept is part of the job.
    let refused = spectral(&prompts, &folder.path().join("0"), &["--quadrature"]).code(2);
    assert!(refused.stderr.contains("quadrature"), "{}", refused.stderr);
    // The same words go on, and find nothing to do.
    spectral(&prompts, &folder.path().join("1"), &[&keep[..], &["fiedler-vectors"]].concat())
        .code(0);
}

#[test]
fn the_shortest_prompts_have_rows_and_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    let out = folder.path().join("run");
    let keep = ["--quadrature", "--keep", "eigenvalues,fiedler-vectors", "--exact=f64"];
    let words = |ids: &Path, out: &Path| {
        let fixed = ["spectral", "--quiet", "--model", "tiny-mixtral", "--token-ids"];
        let paths = [ids.to_owned(), "--out".into(), out.to_owned()];
        let words = fixed.map(PathBuf::from).into_iter().chain(paths);
        run(words.chain(keep.map(PathBuf::from)))
    };
    std::fs::write(&ids, "[[5], [5, 6], [5, 6, 7]]").unwrap();
    words(&ids, &out).code(0);
    let shown = show(&out, &["--functional", "free-energy", "--json"]).code(0).json();
    let graphs = shown["graphs"].as_array().unwrap();
    let of = |prompt: &str| {
        let mut some = graphs.iter().filter(|graph| graph["prompt"] == prompt);
        some.next().unwrap().clone()
    };
    assert!(of("0")["null"].as_str().unwrap().contains("nodes"), "{}", of("0"));
    // One node: the eigenvalue 0 alone.
    assert_eq!(of("1")["values"][0]["value"], 0.0);
    // Two: 0, and the trace, exactly.
    assert!(of("2")["values"][0]["error"].as_f64().unwrap() < 1e-12);
    assert_eq!(shown["means"][0]["nulls"], 1);
    let lengths: Vec<usize> = eigenvalues(&out)
        .into_iter()
        .filter(|((_, _, layer, head), _)| (*layer, *head) == (0, None))
        .map(|(_, values)| values.len())
        .collect();
    assert_eq!(lengths, [0, 1, 2]);
    let vectors = show(&out, &["fiedler_vectors", "--json"]).code(0).json();
    assert_eq!(vectors["matching"], 4 * 5, "only two nodes have a Fiedler vector");

    std::fs::write(&ids, "[[5]]").unwrap();
    let out = folder.path().join("one");
    words(&ids, &out).code(0);
    let refused = show(&out, &["--functional", "density"]).code(2);
    assert!(refused.stderr.contains("no graph has a value of density"), "{}", refused.stderr);
}

#[test]
fn what_cannot_be_kept_or_asked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 2);
    for (words, expected) in [
        (&["--keep", "eigenvalues"][..], "solved densely"),
        (&["--quadrature", "--probes", "7"], "expected 8 to 1024"),
        (&["--quadrature", "--probe-steps", "1025"], "expected 2 to 1024"),
        (&["--probes", "16"], "--quadrature"),
        (&["--quadrature=all"], "possible values: mean, heads"),
    ] {
        let out = folder.path().join("none");
        let refused = spectral(&prompts, &out, words).code(2);
        assert!(refused.stderr.contains(expected), "{words:?}: {}", refused.stderr);
        assert!(!out.exists(), "{words:?}");
    }

    let (plain, probed) = (folder.path().join("plain"), folder.path().join("probed"));
    spectral(&prompts, &plain, &["--layers", "0"]).code(0);
    let noted = spectral(&prompts, &probed, &["--layers", "0", "--quadrature"]).code(0);
    assert!(noted.stderr.is_empty(), "{}", noted.stderr);
    let refused = show(&plain, &["--functional", "density"]).code(2);
    assert!(refused.stderr.contains("spectral --quadrature"), "{}", refused.stderr);
    let missing = folder.path().join("missing");
    show(&missing, &["--functional", "density"]).code(3);
    for (words, expected) in [
        (&["heat-capacity", "--beta", "0"][..], "above 0"),
        (&["free-energy", "--beta", "-2"], "above 0"),
        (&["partition-function", "--beta", "inf"], "above 0"),
        (&["partition-function", "--beta", "1e30"], "expected from 0 to"),
        (&["form-factor", "--tau", "-1"], "at least 0"),
        (&["form-factor", "--tau", "1e5"], "more steps go further"),
        (&["density", "--width", "1e-4"], "more steps resolve more"),
        (&["density", "--grid", "0:2"], "FROM:TO:POINTS"),
        (&["heat-capacity", "--tau", "2"], "--tau means nothing to heat-capacity"),
        (&["heat-capacity", "--prompt", "none"], "no prompt `none`"),
        (&["heat-capacity", "--heads", "1"], "that of the mean over heads"),
        (&["entropy"], "possible values"),
    ] {
        let refused = show(&probed, &[&["--functional"], words].concat()).code(2);
        assert!(refused.stderr.contains(expected), "{words:?}: {}", refused.stderr);
    }
    show(&probed, &["--beta", "2"]).code(2);
    show(&probed, &["spectral", "--functional", "density"]).code(2);
}

#[test]
fn a_run_says_beforehand_what_it_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[[5, 6, 7, 8, 9, 10]]").unwrap();
    let out = folder.path().join("run");
    let words = ["spectral", "--model", "tiny-mixtral", "--heads", "0-1", "--layers", "1"];
    let keep = ["--quadrature", "--probes", "8", "--keep", "fiedler-vectors", "--token-ids"];
    let paths = [ids, "--out".into(), out];
    let all = words.iter().chain(&keep).map(PathBuf::from).chain(paths);
    let ran = run(all).code(0);
    // Three graphs of six tokens, and one graph's eight probes of two lists of six.
    let bytes = 8 * (3 * 6 + 8 * 2 * 6);
    let expected = format!("keeping fiedler vectors, 8 probes of 64 steps: at most {bytes} B");
    assert!(ran.stderr.contains(&expected), "{}", ran.stderr);
}
