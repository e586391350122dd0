//! Spectra of the small golden models: prefixes against runs on the cut prompt, and
//! recomputed graphs against stored ones.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use engine::{
    Content, Error, Exactness, GraphChoice, Item, Job, Keep, Laplacian, ModelChoice, Placement,
    Prefixes, Preset, Prompt, PromptSource, Selection, Shown, Silent, SpectralOptions,
    Tokenization, WeightDtype,
};
use serde_json::Value;

/// One or two of every family: windows on all layers, on some and on none, soft caps,
/// layers without rotary positions, other scales, grouped heads. None has frequencies
/// that change with the length.
const MODELS: [&str; 19] = [
    "gemma-a",
    "gemma2-a",
    "gemma2-b",
    "gemma3-a",
    "gemma3-b",
    "gpt2-a",
    "gpt2-b",
    "gpt_neox-a",
    "granite-a",
    "llama-a",
    "llama-c",
    "mistral-a",
    "mixtral-b",
    "olmo2-a",
    "phi3-a",
    "qwen2-a",
    "qwen3-a",
    "smollm3-a",
    "smollm3-c",
];

/// Tokens of the prompt: every context takes them.
const TOKENS: usize = 19;

fn golden(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../tests/golden/models").join(name).to_str().unwrap().to_owned()
}

fn options(presets: &[Preset]) -> SpectralOptions {
    SpectralOptions {
        presets: presets.iter().copied().collect(),
        laplacians: Default::default(),
        exactness: Exactness::Iterative,
        hidden_score: false,
        layers: Selection::All,
        heads: Selection::All,
        graph: GraphChoice::Stored,
        prefixes: Prefixes::None,
        keep: Keep::default(),
    }
}

/// Runs a prompt of so many tokens, cut to `max_tokens`, and reads a table back.
fn rows(
    model: &str,
    n_tokens: usize,
    max_tokens: Option<usize>,
    spectral: SpectralOptions,
    table: &str,
    out: &Path,
) -> Result<Vec<Vec<(String, Value)>>, Error> {
    let tokens = (0..n_tokens as u32).map(|i| (i * i + 3 * i + 1) % 97).collect();
    let job = Job {
        model: ModelChoice {
            model: golden(model),
            device: Placement::Cpu.into(),
            dtype: WeightDtype::AsStored,
        },
        prompts: PromptSource::Given(vec![Prompt::new("one", Content::Tokens(tokens))]),
        tokenization: Tokenization { max_tokens, ..Tokenization::default() },
        capture: None,
        spectral: Some(spectral),
        routing: None,
        labels: None,
        out: out.to_owned(),
        command: Vec::new(),
    };
    engine::run(&job, &mut Silent)?;
    let item = Item { name: Some(table.to_owned()), prompt: None, limit: usize::MAX };
    let Shown::Rows(shown) = engine::show(out, &item)? else { panic!("no table {table}") };
    let named = |row: Vec<Value>| shown.columns.iter().cloned().zip(row).collect();
    Ok(shown.rows.into_iter().map(named).collect())
}

fn of<'v>(row: &'v [(String, Value)], column: &str) -> &'v Value {
    &row.iter().find(|(name, _)| name == column).unwrap().1
}

#[test]
fn a_prefix_is_measured_as_the_cut_prompt() {
    let lengths = [1, 2, 3, 8, 9, 14, TOKENS];
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let mut spectral = options(&Preset::ALL);
        if matches!(model, "mistral-a" | "gemma2-a") {
            use Laplacian::{Combinatorial, RandomWalk, SymmetricNormalized};
            spectral.laplacians = [Combinatorial, RandomWalk, SymmetricNormalized].into();
        }
        let with =
            SpectralOptions { prefixes: Prefixes::Lengths(lengths.to_vec()), ..spectral.clone() };
        let found =
            rows(model, TOKENS, None, with, "prefixes", &folder.path().join("all")).unwrap();
        for t in lengths {
            let out = folder.path().join(t.to_string());
            let cut = rows(model, TOKENS, Some(t), spectral.clone(), "spectral", &out).unwrap();
            let prefix = found.iter().filter(|row| of(row, "prefix") == t);
            let prefix: Vec<Vec<(String, Value)>> = prefix
                .map(|row| row.iter().filter(|(name, _)| name != "prefix").cloned().collect())
                .collect();
            assert!(!cut.is_empty());
            // Bit for bit: neither pattern nor residual stream depends on later tokens.
            assert_eq!(prefix, cut, "{model}: {t} of {TOKENS} tokens");
        }
    }
}

#[test]
fn recomputed_graphs_are_the_stored_ones() {
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let with = |graph| SpectralOptions {
            graph,
            heads: "0".parse().unwrap(),
            prefixes: Prefixes::Every(7),
            ..options(&Preset::ALL)
        };
        for table in ["spectral", "prefixes"] {
            let of_graph = |graph, name: &str| {
                let out = folder.path().join(format!("{table}-{name}"));
                rows(model, TOKENS, None, with(graph), table, &out).unwrap()
            };
            let stored = of_graph(GraphChoice::Stored, "stored");
            let recomputed = of_graph(GraphChoice::Recomputed, "recomputed");
            assert_eq!(stored.len(), recomputed.len(), "{model}");
            for (stored, recomputed) in stored.iter().zip(&recomputed) {
                for ((name, expected), (_, got)) in stored.iter().zip(recomputed) {
                    let what = format!("{model}, {table}, {name}: {got}, {expected} if stored");
                    // Which eigenvalues coincide is a matter of rounding.
                    let rounding = ["residual", "spacing", "steps", "seeds", "hfer", "entropy"];
                    if rounding.iter().any(|part| name.contains(part)) {
                        continue;
                    }
                    match (got.as_f64(), expected.as_f64()) {
                        (Some(got), Some(expected)) => {
                            let within = 2e-6 * (1.0 + expected.abs());
                            assert!((got - expected).abs() <= within, "{what}");
                        }
                        _ => assert_eq!(got, expected, "{what}"),
                    }
                }
            }
        }
    }
}

#[test]
fn prefixes_across_a_switch_of_frequencies_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let with = |prefixes| SpectralOptions { prefixes, ..options(&[Preset::Controlled]) };
    let try_it = |name: &str, n_tokens, prefixes: Vec<usize>| {
        let out = folder.path().join(name);
        rows("phi3-b", n_tokens, None, with(Prefixes::Lengths(prefixes)), "prefixes", &out)
    };
    let refused = try_it("refused", 40, vec![8, 40]).unwrap_err();
    let Error::PrefixSwitch { tokens: 40, prefix: 8, switch, .. } = refused else {
        panic!("{refused}")
    };
    assert!(!folder.path().join("refused").exists());
    // On one side of it they are prefixes like any other.
    assert!(!try_it("within", switch, vec![8]).unwrap().is_empty());
    assert!(!try_it("beyond", 40, vec![switch + 1]).unwrap().is_empty());
}
