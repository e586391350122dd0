//! What is kept of spectra, against plain solvers of the golden cases' graphs.

use std::collections::BTreeSet;

use analysis::spectral::{
    Exactness, Graphs, Keep, Kept, Part, Preset, Probing, Run, SpectralOptions, SpectralRow,
    SpectralSink,
};
use candle_core::{Device, Tensor};
use hooks::{ActivationSink, LayerInfo, ModelInfo, Site, Statistic};
use kernels::laplacian::Laplacian;
use kernels::quadrature::{Quadrature, QuadratureOptions};
use kernels::reference;
use serde_json::Value;

use super::{batch, close, golden, numbers, play};

/// The rows of a golden case whose tokens are all 0.
fn rows(case: &Value, runs: Vec<Run>, keep: Keep) -> Vec<SpectralRow> {
    let size = |name: &str| usize::try_from(case[name].as_u64().unwrap()).unwrap();
    let floats = |name: &str| numbers(&case[name]).iter().map(|v| *v as f32).collect::<Vec<_>>();
    let (heads, n, d) = (size("n_heads"), size("n_tokens"), size("d"));
    let example = ModelInfo::example();
    let layer = LayerInfo { n_heads: heads, n_kv_heads: heads, ..example.layers[0].clone() };
    let info = ModelInfo { d_model: d, layers: vec![layer], ..example };
    let mut sink = SpectralSink::new(SpectralOptions { runs, keep, ..Default::default() });
    let plan = sink.plan(&info).unwrap();
    let cpu = &Device::Cpu;
    let tensors = [
        (Site::Pattern, Tensor::from_vec(floats("patterns"), (1, heads, n, n), cpu).unwrap()),
        (Site::ResidPost, Tensor::from_vec(floats("signal"), (1, n, d), cpu).unwrap()),
        (
            Site::Summary,
            Tensor::zeros((1, heads, n, Statistic::COUNT), candle_core::DType::F32, cpu).unwrap(),
        ),
    ];
    play(&mut sink, &plan, &batch(&[(7, n)]), 0, &tensors).unwrap();
    sink.take().spectral
}

fn runs(exactness: Exactness) -> Vec<Run> {
    let graphs = Graphs::HeadsAndMean;
    [Preset::Controlled, Preset::Paper]
        .into_iter()
        .flat_map(|preset| {
            [preset.laplacian(), Laplacian::RandomWalk].map(|laplacian| Run {
                laplacian,
                graphs,
                exactness,
                ..preset.into()
            })
        })
        .collect()
}

/// Weights of the graph of a row, and the first token that is a node.
fn weights(case: &Value, row: &SpectralRow) -> Vec<f64> {
    let first = row.n_tokens - row.n_nodes;
    let all: Vec<f64> = numbers(&case["patterns"]).iter().map(|v| f64::from(*v as f32)).collect();
    let n = row.n_tokens;
    let nodes = |pattern: &[f64]| -> Vec<f64> {
        (first..n).flat_map(|i| pattern[i * n + first..(i + 1) * n].to_vec()).collect()
    };
    let heads: Vec<Vec<f64>> = match row.head {
        Some(head) => vec![nodes(&all[head * n * n..(head + 1) * n * n])],
        None => all.chunks(n * n).map(nodes).collect(),
    };
    reference::symmetric_weights(&heads, row.n_nodes)
}

#[test]
fn eigenvalues_are_those_of_the_reference() {
    let keep = Keep { parts: BTreeSet::from([Part::Eigenvalues]), quadrature: None };
    let mut compared = 0;
    for case in golden("spectral") {
        for row in rows(&case, runs(Exactness::DenseF64), keep.clone()) {
            let found = row.kept.eigenvalues.as_ref().unwrap();
            assert_eq!(row.kept.fiedler_vector, None);
            // The random walk's eigenvalues are those of the symmetric matrix.
            let kind = match row.laplacian {
                Laplacian::RandomWalk => Laplacian::SymmetricNormalized,
                kind => kind,
            };
            let n = row.n_nodes;
            let matrix = reference::laplacian(&weights(&case, &row), n, kind);
            let (expected, _) = reference::eigh(&matrix, n);
            assert_eq!(found.len(), expected.len());
            let scale = expected.last().copied().unwrap_or(0.0).max(1.0);
            for (k, (found, expected)) in found.iter().zip(expected).enumerate() {
                let what = format!("{}, {row:?}: λ_{k}", case["name"]);
                // The graph's weights are f32.
                close(&what, *found, expected, 1e-6 * scale);
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "{compared}");
}

#[test]
fn fiedler_vectors_are_eigenvectors_of_their_own_laplacian() {
    let keep = Keep { parts: BTreeSet::from([Part::FiedlerVector]), quadrature: None };
    let mut compared = 0;
    for case in golden("spectral") {
        for exactness in Exactness::ALL {
            for row in rows(&case, runs(exactness), keep.clone()) {
                assert_eq!(row.kept.eigenvalues, None);
                let n = row.n_nodes;
                let Some(vector) = &row.kept.fiedler_vector else {
                    assert!(n < 2, "{row:?}");
                    continue;
                };
                let what = format!("{}, {row:?}", case["name"]);
                let (value, weights) = (row.fiedler.unwrap(), weights(&case, &row));
                let degrees: Vec<f64> = weights.chunks(n).map(|w| w.iter().sum()).collect();
                let scale = degrees.iter().copied().fold(1.0, f64::max);
                let matrix = reference::laplacian(&weights, n, row.laplacian);
                let (mut norm, mut residual) = (0.0, 0.0_f64);
                for i in 0..n {
                    let product: f64 = (0..n).map(|j| matrix[i * n + j] * vector[j]).sum();
                    residual = residual.max((product - value * vector[i]).abs());
                    let is_walk = row.laplacian == Laplacian::RandomWalk;
                    norm += if is_walk { degrees[i] } else { 1.0 } * vector[i] * vector[i];
                }
                close(&format!("{what}: residual"), residual, 0.0, 1e-6 * scale);
                // An eigenvector of an isolated node has no norm among the others.
                if row.laplacian != Laplacian::RandomWalk || row.isolated_nodes == 0 {
                    close(&format!("{what}: norm"), norm, 1.0, 1e-6);
                }
                let largest = vector.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
                let at = |v: &&f64| v.abs() >= (1.0 - 1e-6) * largest;
                assert!(*vector.iter().find(at).unwrap() >= 0.0, "{what}");
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn quadratures_are_kept_of_the_wanted_graphs() {
    let case = golden("spectral").into_iter().max_by_key(|c| c["n_tokens"].as_u64()).unwrap();
    let options = QuadratureOptions { n_probes: 24, steps: 32, seed: 5 };
    let of = |graphs| {
        let keep = Keep { quadrature: Some(Probing { graphs, options }), ..Keep::default() };
        rows(&case, runs(Exactness::DenseF64), keep)
    };
    let all = of(Graphs::HeadsAndMean);
    for (row, mean_only) in all.iter().zip(of(Graphs::HeadMean)) {
        let kept = row.kept.quadrature.as_ref().unwrap();
        assert_eq!(kept.coefficients.n_nodes, row.n_nodes);
        let is_kept = mean_only.kept.quadrature.is_some();
        assert_eq!(is_kept, row.head.is_none());
        let quadrature = Quadrature::from_coefficients(kept.coefficients.clone()).unwrap();
        let variance = quadrature.trace_of(|v| v * v).unwrap();
        let n = row.n_nodes as f64;
        let expected = n * (row.spectrum_variance.unwrap() + row.spectrum_mean.unwrap().powi(2));
        // Four errors: one in 500 lies outside under 23 degrees of freedom.
        let tolerance = 4.0 * variance.error + 1e-9 * expected;
        close(&format!("{row:?}"), variance.value, expected, tolerance);
        // The seed is that of the tokens and not of the options.
        assert_ne!(kept.seed, options.seed);
    }
    let nothing = rows(&case, runs(Exactness::DenseF64), Keep::default());
    assert!(nothing.iter().all(|row| row.kept == Kept::default()));
    let keep = Keep { parts: BTreeSet::from([Part::Eigenvalues]), quadrature: None };
    let of = |keep: Keep| {
        let runs = vec![Preset::Controlled.into()];
        let mut sink = SpectralSink::new(SpectralOptions { runs, keep, ..Default::default() });
        sink.plan(&ModelInfo::example()).unwrap_err().to_string()
    };
    assert!(of(keep).contains("solved densely"));
    let options = QuadratureOptions { n_probes: 7, ..options };
    let quadrature = Some(Probing { graphs: Graphs::HeadMean, options });
    assert!(of(Keep { quadrature, ..Keep::default() }).contains("expected 8 to 1024"));
}
