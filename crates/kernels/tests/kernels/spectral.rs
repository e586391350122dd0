//! Attention graph, Laplacians, eigensolvers and graph signals.

#![allow(clippy::unwrap_used)]

use kernels::eigh::{eigenvalues, eigh};
use kernels::graph::{PatternView, Patterns, SymmetricGraph};
use kernels::heat::{Estimate, Probes, TRUNCATION, heat_energy, heat_estimates};
use kernels::hidden_score::{RIDGE, hidden_score};
use kernels::lanczos::{Certified, Ends, Extremes, LanczosOptions, extremes};
use kernels::laplacian::{Laplacian, LaplacianOperator};
use kernels::quadrature::{Quadrature, QuadratureOptions};
use kernels::signal::{self, Null, Signal};
use kernels::{Error, reference};

use super::graphs::{Random, attention_like, graph_of, head_mean};

pub(super) const KINDS: [Laplacian; 2] = [Laplacian::Combinatorial, Laplacian::SymmetricNormalized];

pub(super) fn close(what: &str, got: f64, expected: f64, tolerance: f64) {
    let difference = (got - expected).abs();
    assert!(difference <= tolerance, "{what}: {got:e}, expected {expected:e} within {tolerance:e}");
}

/// A pattern whose graph has the given edges, each of weight 1, and no self-loops.
pub(super) fn edges(n: usize, edges: impl IntoIterator<Item = (usize, usize)>) -> Vec<f32> {
    let mut a = vec![0.0; n * n];
    for (i, j) in edges {
        a[i.max(j) * n + i.min(j)] = 2.0;
    }
    a
}

pub(super) fn found(graph: &SymmetricGraph, kind: Laplacian) -> Extremes {
    extremes(&LaplacianOperator::new(graph, kind), &LanczosOptions::default()).unwrap()
}

/// The Fiedler value alone is the one that is found beside the largest eigenvalue.
fn check_fiedler_alone(what: &str, graph: &SymmetricGraph, kind: Laplacian, both: &Extremes) {
    let options = LanczosOptions { ends: Ends::Fiedler, ..LanczosOptions::default() };
    let alone = extremes(&LaplacianOperator::new(graph, kind), &options).unwrap();
    assert_eq!(alone.lambda_max, None);
    assert!(alone.seeds_agree && alone.steps <= both.steps, "{what}: {alone:?}");
    let (alone, beside) = (alone.fiedler.unwrap(), both.fiedler.unwrap());
    let rounding = 1e-14 * both.lambda_max.unwrap().value;
    let bound = alone.residual + beside.residual + rounding;
    close(&format!("{what}, {kind}: fiedler alone"), alone.value, beside.value, bound);
}

fn check_extremes(what: &str, graph: &SymmetricGraph, kind: Laplacian, fiedler: f64, largest: f64) {
    let found = found(graph, kind);
    let (low, high) = (found.fiedler.unwrap(), found.lambda_max.unwrap());
    let scale = largest.max(1e-300);
    close(&format!("{what}, {kind}: fiedler"), low.value, fiedler, 1e-12 * scale);
    close(&format!("{what}, {kind}: largest"), high.value, largest, 1e-12 * scale);
    assert!(low.residual <= 1e-8 * scale.max(1.0), "{what}: {low:?}");
    assert!(high.residual <= 1e-8 * scale.max(1.0), "{what}: {high:?}");
    assert!(found.seeds_agree, "{what}: {found:?}");
    check_fiedler_alone(what, graph, kind, &found);
}

#[test]
fn known_spectra() {
    use std::f64::consts::PI;
    for n in [2usize, 3, 4, 5, 8, 31, 32, 33] {
        let m = n as f64;
        let path = graph_of(&edges(n, (1..n).map(|i| (i - 1, i))), n);
        check_extremes(
            &format!("path of {n}"),
            &path,
            Laplacian::Combinatorial,
            2.0 - 2.0 * (PI / m).cos(),
            2.0 - 2.0 * (PI * (m - 1.0) / m).cos(),
        );
        check_extremes(
            &format!("path of {n}"),
            &path,
            Laplacian::SymmetricNormalized,
            1.0 - (PI / (m - 1.0)).cos(),
            2.0,
        );
        let star = graph_of(&edges(n, (1..n).map(|i| (0, i))), n);
        let (low, normalized) = if n == 2 { (2.0, 2.0) } else { (1.0, 1.0) };
        check_extremes(&format!("star of {n}"), &star, Laplacian::Combinatorial, low, m);
        check_extremes(
            &format!("star of {n}"),
            &star,
            Laplacian::SymmetricNormalized,
            normalized,
            2.0,
        );
        let complete = graph_of(&edges(n, (0..n).flat_map(|i| (0..i).map(move |j| (i, j)))), n);
        check_extremes(&format!("complete {n}"), &complete, Laplacian::Combinatorial, m, m);
        check_extremes(
            &format!("complete {n}"),
            &complete,
            Laplacian::SymmetricNormalized,
            m / (m - 1.0),
            m / (m - 1.0),
        );
        if n >= 3 {
            let cycle = graph_of(&edges(n, (0..n).map(|i| (i, (i + 1) % n))), n);
            let top = 2.0 - 2.0 * (2.0 * PI * (n / 2) as f64 / m).cos();
            let low = 2.0 - 2.0 * (2.0 * PI / m).cos();
            check_extremes(&format!("cycle of {n}"), &cycle, Laplacian::Combinatorial, low, top);
            check_extremes(
                &format!("cycle of {n}"),
                &cycle,
                Laplacian::SymmetricNormalized,
                low / 2.0,
                top / 2.0,
            );
        }
    }
}

#[test]
fn a_leading_block_has_the_bits_of_its_own_pattern() {
    let mut random = Random::new(13);
    let n = 70;
    let patterns: Vec<Vec<f32>> =
        (0..3).map(|_| attention_like(&mut random, n, 2.0, 1.0)).collect();
    let whole = head_mean(&patterns, n);
    for t in [0, 1, 2, 7, 8, 9, 12, 16, 31, 63, 69, 70] {
        let cut = |a: &Vec<f32>| (0..t * t).map(|ij| a[ij / t * n + ij % t]).collect::<Vec<_>>();
        let cut: Vec<Vec<f32>> = patterns.iter().map(cut).collect();
        let (leading, own) = (whole.leading(t).unwrap(), head_mean(&cut, t));
        assert_eq!(leading.n_nodes(), t);
        assert_eq!(leading.degrees(), own.degrees(), "{t}");
        let x: Vec<f64> = (0..t).map(|i| (i as f64).sin()).collect();
        assert_eq!(leading.apply(&x).unwrap(), own.apply(&x).unwrap(), "{t}");
        for (i, j) in (0..t).flat_map(|i| (0..t).map(move |j| (i, j))) {
            assert_eq!(leading.weight(i, j), own.weight(i, j), "{t}: {i} {j}");
        }
    }
    assert!(matches!(whole.leading(n + 1), Err(Error::Range { .. })));
}

#[test]
fn graphs_without_edges() {
    for n in [2usize, 3, 7] {
        let mut identity = vec![0.0; n * n];
        for i in 0..n {
            identity[i * n + i] = 0.3;
        }
        for kind in KINDS {
            let graph = graph_of(&identity, n);
            let found = found(&graph, kind);
            let zero = Some(Certified { value: 0.0, residual: 0.0 });
            assert_eq!((found.fiedler, found.lambda_max), (zero, zero), "{n} {kind}");
            let operator = LaplacianOperator::new(&graph, kind);
            assert_eq!(eigenvalues(&operator.dense().unwrap(), n).unwrap(), vec![0.0; n]);
            assert_eq!(signal::connectivity_ratio(0.0, 0.0), Err(Null::ZeroSpectrum));
        }
        let empty = graph_of(&vec![0.0; n * n], n);
        let operator = LaplacianOperator::new(&empty, Laplacian::SymmetricNormalized);
        assert_eq!(operator.n_isolated(), n);
        assert!(operator.null_vector().is_none());
        check_extremes("no weights", &empty, Laplacian::SymmetricNormalized, 1.0, 1.0);
        let found = found(&empty, Laplacian::Combinatorial);
        assert_eq!(found.lambda_max.unwrap().value, 0.0);
    }
}

#[test]
fn the_smallest_graphs() {
    for kind in KINDS {
        let none = SymmetricGraph::from_pattern(PatternView::new(&[], 0, 0).unwrap()).unwrap();
        let found_none = found(&none, kind);
        assert_eq!((found_none.fiedler, found_none.lambda_max), (None, None));
        assert!(LaplacianOperator::new(&none, kind).spectrum_moments().is_none());
        assert!(eigenvalues(&[], 0).unwrap().is_empty());

        let one = found(&graph_of(&[1.0], 1), kind);
        assert_eq!((one.fiedler, one.lambda_max.unwrap().value), (None, 0.0));
    }
    let isolated = found(&graph_of(&[0.0], 1), Laplacian::SymmetricNormalized);
    assert_eq!((isolated.fiedler, isolated.lambda_max.unwrap().value), (None, 1.0));
}

#[test]
fn isolated_nodes_have_eigenvalue_one_when_normalized() {
    // Nodes 0 and 3 joined, 1 and 2 alone.
    let graph = graph_of(&edges(4, [(0, 3)]), 4);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    assert_eq!(operator.n_isolated(), 2);
    let values = eigenvalues(&operator.dense().unwrap(), 4).unwrap();
    for (value, expected) in values.into_iter().zip([0.0, 1.0, 1.0, 2.0]) {
        close("eigenvalue", value, expected, 1e-14);
    }
    check_extremes("isolated", &graph, Laplacian::SymmetricNormalized, 1.0, 2.0);
    check_extremes("isolated", &graph, Laplacian::Combinatorial, 0.0, 2.0);
}

#[test]
fn a_graph_in_parts_has_a_fiedler_value_of_zero() {
    for n in [4usize, 10, 64] {
        let half = n / 2;
        let pairs = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
        let parts = graph_of(&edges(n, pairs.filter(|(i, j)| (*i < half) == (*j < half))), n);
        for kind in KINDS {
            let found = found(&parts, kind);
            let fiedler = found.fiedler.unwrap();
            assert!(fiedler.value.abs() <= 1e-12 * n as f64, "{n} {kind}: {fiedler:?}");
            assert!(found.seeds_agree);
        }
    }
}

/// Patterns like those of a language model, of sizes around the tiles of the implementation.
pub(super) fn patterns() -> Vec<(String, usize, Vec<Vec<f32>>)> {
    let mut random = Random::new(7);
    let mut cases = Vec::new();
    for n in [1usize, 2, 3, 4, 5, 7, 31, 32, 33, 65] {
        for (name, sharpness, sink) in [("flat", 0.5, 0.0), ("sink", 1.0, 5.0), ("sharp", 6.0, 2.0)]
        {
            let heads = (0..3).map(|_| attention_like(&mut random, n, sharpness, sink)).collect();
            cases.push((format!("{name}, {n} tokens"), n, heads));
        }
    }
    cases
}

fn wide(pattern: &[f32]) -> Vec<f64> {
    pattern.iter().map(|&a| f64::from(a)).collect()
}

#[test]
fn graph_and_laplacian_are_the_reference() {
    for (name, n, heads) in patterns() {
        let weights =
            reference::symmetric_weights(&heads.iter().map(|a| wide(a)).collect::<Vec<_>>(), n);
        let graph = head_mean(&heads, n);
        for i in 0..n {
            for j in 0..n {
                // One rounding to f32 of weights of at most 1.
                let got = f64::from(graph.weight(i, j));
                close(&name, got, weights[i * n + j], 6e-8 * weights[i * n + j].abs());
            }
        }
        for kind in KINDS {
            let operator = LaplacianOperator::new(&graph, kind);
            let dense = operator.dense().unwrap();
            let stored: Vec<f64> =
                (0..n * n).map(|k| f64::from(graph.weight(k / n, k % n))).collect();
            let expected = reference::laplacian(&stored, n, kind);
            let scale = expected.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
            for (got, expected) in dense.iter().zip(&expected) {
                close(&name, *got, *expected, 1e-14 * scale);
            }
            let mut random = Random::new(3);
            let x: Vec<f64> = (0..n).map(|_| random.uniform() - 0.5).collect();
            let y = operator.apply(&x).unwrap();
            for i in 0..n {
                let row: f64 = (0..n).map(|j| expected[i * n + j] * x[j]).sum();
                close(&name, y[i], row, 1e-14 * scale * n as f64);
            }
            if let Some(null) = operator.null_vector() {
                for value in operator.apply(null).unwrap() {
                    close(&format!("{name}: L times its null vector"), value, 0.0, 1e-14 * scale);
                }
            }
        }
    }
}

pub(super) const TIMES: [f64; 4] = [0.0, 0.5, 2.0, 5.0];

#[test]
fn heat_energies_against_the_power_series() {
    let mut random = Random::new(17);
    for (name, n, heads) in patterns() {
        for kind in KINDS {
            let graph = head_mean(&heads, n);
            let operator = LaplacianOperator::new(&graph, kind);
            let dense = operator.dense().unwrap();
            let eigen = eigh(&dense, n).unwrap();
            let rounding = 1e-12 * operator.upper_bound();
            assert!(eigen.values().iter().all(|v| *v <= operator.upper_bound() + rounding));
            // Of one column every probe is that column or its negative: no scatter.
            for d in [1, 5] {
                let x: Vec<f64> = (0..n * d).map(|_| random.uniform() - 0.3).collect();
                let signal = Signal::new(x.clone(), n, d).unwrap();
                let energy = signal.energy();
                let energies = signal::mode_energies(&eigen, &signal).unwrap();
                let dirichlet =
                    signal::dirichlet_energy(&operator, &signal.gram().unwrap()).unwrap();
                let probes = Probes::new(&signal, 1);
                let estimates =
                    heat_estimates(&operator, &probes, energy, dirichlet, TIMES).unwrap();
                for (time, estimate) in TIMES.into_iter().zip(estimates) {
                    let what = format!("{name}, {kind}, {d} columns, time {time}");
                    let expected = reference::heat_trace(&dense, &x, n, d, time) / energy;
                    let exact = heat_energy(eigen.values(), &energies, time).unwrap();
                    close(&what, exact, expected, 1e-12 * n as f64);
                    assert!(exact >= (-time * dirichlet / energy).exp() - 1e-13, "{what}");
                    if d == 1 || time == 0.0 {
                        close(&what, estimate.value, expected, 3.0 * TRUNCATION + 1e-13 * n as f64);
                        close(&what, estimate.error, 0.0, 3.0 * TRUNCATION + 1e-13 * n as f64);
                    }
                }
                let values = eigen.values();
                let rounding = n as f64 * f64::EPSILON * values[n - 1].max(0.0);
                for cut in [0.0, 0.5, 1.0] {
                    let expected = reference::energy_share_from(values, &energies, cut, rounding);
                    let got = signal::energy_share_from(values, &energies, cut, rounding).unwrap();
                    close(&name, got, expected, 1e-14);
                    assert!(cut > 0.0 || got == 1.0, "{name}: {got}");
                }
            }
        }
    }
}

#[test]
fn estimated_heat_energies_are_unbiased_and_their_errors_are_right() {
    let mut random = Random::new(19);
    let (n, d) = (64, 24);
    for sharpness in [0.5, 4.0] {
        let graph = graph_of(&attention_like(&mut random, n, sharpness, 3.0), n);
        for kind in KINDS {
            let operator = LaplacianOperator::new(&graph, kind);
            let eigen = eigh(&operator.dense().unwrap(), n).unwrap();
            // Neighbouring tokens are alike, as in a residual stream.
            let mut x: Vec<f64> = (0..n * d).map(|_| random.normal()).collect();
            for i in d..n * d {
                x[i] += 0.7 * x[i - d];
            }
            let (signal, _) = Signal::new(x, n, d).unwrap().centred(0.0).unit_rows();
            let energies = signal::mode_energies(&eigen, &signal).unwrap();
            let energy = signal.energy();
            let dirichlet = signal::dirichlet_energy(&operator, &signal.gram().unwrap()).unwrap();
            let seeds = 1000;
            let mut covered = [0; TIMES.len()];
            let mut sums = [[0.0; 2]; TIMES.len()];
            for seed in 0..seeds {
                let probes = Probes::new(&signal, seed);
                let estimates =
                    heat_estimates(&operator, &probes, energy, dirichlet, TIMES).unwrap();
                for (k, estimate) in estimates.into_iter().enumerate() {
                    let exact = heat_energy(eigen.values(), &energies, TIMES[k]).unwrap();
                    let away = estimate.value - exact;
                    covered[k] += usize::from(away.abs() <= 2.365 * estimate.error + 1e-9);
                    sums[k][0] += away;
                    sums[k][1] += away * away;
                }
            }
            for (k, [sum, squares]) in sums.into_iter().enumerate() {
                let what = format!("{kind}, sharpness {sharpness}, time {}", TIMES[k]);
                let m = seeds as f64;
                // Four standard errors of a mean over all seeds.
                close(&what, sum / m, 0.0, 4.0 * (squares / m / m).sqrt() + 1e-9);
                // The energies of probes are skewed, which costs a little of the nominal
                // 95 %. At time 0 both are exact.
                let rate = covered[k] as f64 / m;
                assert!(rate >= 0.85 && (k == 0 || rate <= 0.98), "{what}: {rate}");
            }
        }
    }
}

#[test]
fn heat_energies_that_do_not_exist() {
    let graph = graph_of(&[1.0, 0.0, 0.5, 0.5], 2);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let probes = Probes::new(&Signal::new(vec![1.0; 2], 2, 1).unwrap(), 1);
    for (energy, time) in [(0.0, 1.0), (f64::NAN, 1.0), (2.0, -1.0), (2.0, f64::NAN), (2.0, 1e9)] {
        assert!(heat_estimates(&operator, &probes, energy, 0.0, [time]).is_err());
    }
    let three = Probes::new(&Signal::new(vec![1.0; 3], 3, 1).unwrap(), 1);
    assert!(heat_estimates(&operator, &three, 3.0, 0.0, [1.0]).is_err());
    assert_eq!(heat_energy(&[0.0, 1.0], &[0.0, 0.0], 1.0), Err(Null::ZeroSignal));
    assert_eq!(signal::energy_share_from(&[0.0], &[0.0], 1.0, 0.0), Err(Null::ZeroSignal));
    let empty = graph_of(&[0.0; 4], 2);
    let operator = LaplacianOperator::new(&empty, Laplacian::Combinatorial);
    let [still] = heat_estimates(&operator, &probes, 2.0, 0.0, [3.0]).unwrap();
    assert_eq!((still.value, still.error), (1.0, 0.0));
}

#[test]
fn the_random_walk_laplacian_in_its_own_inner_product() {
    let mut random = Random::new(29);
    let mut cases = patterns();
    // Nodes 1 and 2 alone.
    cases.push(("isolated".to_owned(), 4, vec![edges(4, [(0, 3)])]));
    for (name, n, heads) in cases {
        let graph = head_mean(&heads, n);
        let operator = LaplacianOperator::new(&graph, Laplacian::RandomWalk);
        let eigen = eigh(&operator.dense().unwrap(), n).unwrap();
        let weights: Vec<f64> = (0..n * n).map(|k| f64::from(graph.weight(k / n, k % n))).collect();
        let matrix = reference::laplacian(&weights, n, Laplacian::RandomWalk);
        let degrees = graph.degrees();
        assert_eq!(operator.n_isolated(), degrees.iter().filter(|d| **d == 0.0).count());

        // Right eigenvectors D^-½u; a node alone is one by itself.
        for k in 0..n {
            let vector = eigen.vector(k);
            let right: Vec<f64> = vector
                .iter()
                .zip(degrees)
                .map(|(v, d)| if *d > 0.0 { v / d.sqrt() } else { *v })
                .collect();
            let size = right.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            for i in 0..n {
                let row: f64 = (0..n).map(|j| matrix[i * n + j] * right[j]).sum();
                close(&name, row, eigen.values()[k] * right[i], 1e-12 * n as f64 * size);
            }
        }
        let symmetric = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
        assert_eq!(found(&graph, Laplacian::RandomWalk), found(&graph, symmetric.kind()));
        assert_eq!(operator.dense().unwrap(), symmetric.dense().unwrap());

        let d = 3;
        let x: Vec<f64> = (0..n * d).map(|_| random.uniform() - 0.3).collect();
        let signal = Signal::new(x.clone(), n, d).unwrap();
        let gram = signal.gram().unwrap();
        let energy = signal::energy(&operator, &gram).unwrap();
        close(&name, energy, reference::weighted_energy(degrees, &x, d), 1e-13 * energy);
        close(&name, signal::energy(&symmetric, &gram).unwrap(), signal.energy(), 1e-12 * n as f64);
        // ½ Σ W_ij ‖x_i − x_j‖².
        let mut differences = 0.0;
        for k in 0..n * n {
            for c in 0..d {
                differences += 0.5 * weights[k] * (x[k / n * d + c] - x[k % n * d + c]).powi(2);
            }
        }
        let dirichlet = signal::dirichlet_energy(&operator, &gram).unwrap();
        close(&name, dirichlet, differences, 1e-13 * (1.0 + energy) * n as f64);
        let coordinates = signal.in_coordinates_of(&operator).unwrap();
        let energies = signal::mode_energies(&eigen, &coordinates).unwrap();
        close(&name, energies.iter().sum(), energy, 1e-12 * energy);
        let by_modes: f64 = energies.iter().zip(eigen.values()).map(|(e, v)| e * v).sum();
        close(&name, by_modes, dirichlet, 1e-12 * (1.0 + energy) * n as f64);

        // Of one column every probe is that column or its negative.
        let column: Vec<f64> = x.iter().step_by(d).copied().collect();
        let single = Signal::new(column.clone(), n, 1).unwrap();
        let gram = single.gram().unwrap();
        let energy = signal::energy(&operator, &gram).unwrap();
        let dirichlet = signal::dirichlet_energy(&operator, &gram).unwrap();
        let coordinates = single.in_coordinates_of(&operator).unwrap();
        let energies = signal::mode_energies(&eigen, &coordinates).unwrap();
        let probes = Probes::new(&single, 1);
        let estimates = heat_estimates(&operator, &probes, energy, dirichlet, TIMES).unwrap();
        for (time, estimate) in TIMES.into_iter().zip(estimates) {
            let cooled = reference::diffuse(&matrix, &column, n, 1, time);
            let expected: f64 =
                (0..n).map(|i| column[i] * degrees[i] * cooled[i]).sum::<f64>() / energy;
            let exact = heat_energy(eigen.values(), &energies, time).unwrap();
            close(&name, exact, expected, 1e-12 * n as f64);
            close(&name, estimate.value, expected, 3.0 * TRUNCATION + 1e-12 * n as f64);
        }
    }
    let graph = graph_of(&[1.0, 0.0, 0.5, 0.5], 2);
    let operator = LaplacianOperator::new(&graph, Laplacian::RandomWalk);
    let three = Signal::new(vec![1.0; 3], 3, 1).unwrap();
    assert!(signal::energy(&operator, &three.gram().unwrap()).is_err());
    assert!(three.in_coordinates_of(&operator).is_err());
}

const WIDTH: f64 = 0.1;

/// Every functional of a quadrature, and the same of the eigenvalues.
fn functionals(quadrature: &Quadrature, values: &[f64]) -> Vec<(String, Estimate, f64)> {
    let mut all = Vec::new();
    for beta in [0.5, 2.0, 8.0] {
        let (free_energy, heat_capacity) = reference::free_energy_and_heat_capacity(values, beta);
        let partition = values.iter().map(|value| (-beta * value).exp()).sum();
        all.push((format!("Z({beta})"), quadrature.partition(beta).unwrap(), partition));
        let name = format!("free energy at {beta}");
        all.push((name, quadrature.free_energy(beta).unwrap(), free_energy));
        let name = format!("heat capacity at {beta}");
        all.push((name, quadrature.heat_capacity(beta).unwrap(), heat_capacity));
    }
    let grid = [0.3, 0.8, 1.0];
    for (x, got) in grid.into_iter().zip(quadrature.density(&grid, WIDTH).unwrap()) {
        let expected = reference::density_of_states(values, x, WIDTH);
        all.push((format!("density at {x}"), got, expected));
    }
    for tau in [1.0, 4.0] {
        let got = quadrature.form_factor(tau).unwrap();
        all.push((format!("form factor at {tau}"), got, reference::form_factor(values, tau)));
    }
    let positive: Vec<f64> = values.iter().map(|value| value.max(0.0)).collect();
    let entropy = quadrature.eigenvalue_entropy().unwrap().unwrap();
    all.push(("eigenvalue entropy".to_owned(), entropy, reference::entropy(&positive)));
    all
}

#[test]
fn quadrature_is_exact_where_probes_agree() {
    // One eigenvalue besides that of the null vector, or none: no scatter.
    for n in [2usize, 3, 8, 33] {
        let complete = edges(n, (0..n).flat_map(|i| (0..i).map(move |j| (i, j))));
        for (pattern, kind) in [
            (complete.clone(), Laplacian::SymmetricNormalized),
            (complete.iter().map(|a| a / n as f32).collect(), Laplacian::Combinatorial),
            (vec![0.0; n * n], Laplacian::RandomWalk),
        ] {
            let graph = graph_of(&pattern, n);
            let operator = LaplacianOperator::new(&graph, kind);
            let values = eigenvalues(&operator.dense().unwrap(), n).unwrap();
            let quadrature = Quadrature::run(&operator, &QuadratureOptions::default()).unwrap();
            assert_eq!(quadrature.recurrences().len(), 16);
            for (name, got, expected) in functionals(&quadrature, &values) {
                let tolerance = 1e-6 * expected.abs().max(1.0);
                close(&format!("{n} nodes, {kind}, {name}"), got.value, expected, tolerance);
                close(&format!("{n} nodes, {kind}, error of {name}"), got.error, 0.0, tolerance);
            }
        }
    }
}

#[test]
fn quadrature_errors_cover_the_truth() {
    let mut random = Random::new(31);
    let n = 96;
    for sharpness in [0.5, 4.0] {
        for (kind, sink) in [(Laplacian::SymmetricNormalized, 3.0), (Laplacian::Combinatorial, 0.0)]
        {
            let heads: Vec<_> =
                (0..2).map(|_| attention_like(&mut random, n, sharpness, sink)).collect();
            let graph = head_mean(&heads, n);
            let operator = LaplacianOperator::new(&graph, kind);
            let values = eigenvalues(&operator.dense().unwrap(), n).unwrap();
            let seeds = 200;
            let mut covered: Vec<(String, usize)> = Vec::new();
            for seed in 0..seeds {
                let options = QuadratureOptions { n_probes: 16, steps: 48, seed };
                let quadrature = Quadrature::run(&operator, &options).unwrap();
                let found = functionals(&quadrature, &values);
                covered.resize(found.len(), (String::new(), 0));
                for (count, (name, got, expected)) in covered.iter_mut().zip(found) {
                    // 95 % of Student's distribution with 15 degrees of freedom.
                    let hit = (got.value - expected).abs() <= 2.131 * got.error;
                    *count = (name, count.1 + usize::from(hit));
                }
            }
            for (name, hits) in covered {
                let rate = hits as f64 / seeds as f64;
                assert!((0.85..1.0).contains(&rate), "{kind}, {sharpness}, {name}: {rate}");
            }
        }
    }
}

#[test]
fn quadrature_has_the_same_bits_on_any_number_of_threads() {
    let graph = graph_of(&attention_like(&mut Random::new(37), 70, 2.0, 3.0), 70);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Quadrature::run(&operator, &QuadratureOptions::default()).unwrap())
    };
    let quadrature = run(1);
    assert_eq!(quadrature, run(3));
    assert!(quadrature.recurrences().iter().all(|r| r.alpha.len() == r.beta.len() + 1));
    assert_eq!(quadrature.n_nodes(), 70);
    let all = quadrature.trace_of(|_| 1.0).unwrap();
    close("number of nodes", all.value, 70.0, 1e-10);
}

#[test]
fn quadratures_that_do_not_exist() {
    let graph = graph_of(&attention_like(&mut Random::new(41), 40, 2.0, 3.0), 40);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let options = QuadratureOptions::default();
    for bad in [
        QuadratureOptions { n_probes: 7, ..options },
        QuadratureOptions { n_probes: 1025, ..options },
        QuadratureOptions { steps: 1, ..options },
        QuadratureOptions { steps: 1025, ..options },
    ] {
        assert!(Quadrature::run(&operator, &bad).is_err());
    }
    let coarse = QuadratureOptions { steps: 4, ..options };
    let quadrature = Quadrature::run(&operator, &coarse).unwrap();
    for width in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-3] {
        assert!(quadrature.density(&[1.0], width).is_err(), "{width}");
    }
    assert!(quadrature.density(&[f64::NAN], 1.0).is_err());
    for tau in [-1.0, f64::NAN, 1e3] {
        assert!(quadrature.form_factor(tau).is_err(), "{tau}");
    }
    for beta in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(quadrature.partition(beta).is_err() && quadrature.free_energy(beta).is_err());
    }
    assert!(quadrature.free_energy(0.0).is_err() && quadrature.heat_capacity(0.0).is_err());
    assert!(quadrature.trace_of(f64::ln).is_err());

    // No nodes, and one: the null vector is the whole space.
    for n in [0usize, 1] {
        let graph = graph_of(&vec![1.0; n * n], n);
        let operator = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
        let quadrature = Quadrature::run(&operator, &options).unwrap();
        assert!(quadrature.recurrences().is_empty());
        let exact = Estimate { value: n as f64, error: 0.0 };
        assert_eq!(quadrature.partition(1.0).unwrap(), exact);
        assert_eq!(quadrature.eigenvalue_entropy().unwrap(), Err(Null::ZeroSpectrum));
        assert_eq!(quadrature.free_energy(1.0).is_ok(), n == 1);
    }
}

#[test]
fn permuting_tokens_changes_nothing() {
    let mut random = Random::new(5);
    let (n, d) = (37, 4);
    let a = attention_like(&mut random, n, 2.0, 3.0);
    let x: Vec<f64> = (0..n * d).map(|_| random.uniform()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, (random.uniform() * (i + 1) as f64) as usize);
    }
    let mut permuted = vec![0.0; n * n];
    let mut permuted_x = vec![0.0; n * d];
    for i in 0..n {
        for j in 0..n {
            permuted[i * n + j] = a[order[i] * n + order[j]];
        }
        permuted_x[i * d..(i + 1) * d].copy_from_slice(&x[order[i] * d..(order[i] + 1) * d]);
    }
    for kind in KINDS {
        let quantities = |a: &[f32], x: &[f64]| {
            let graph = graph_of(a, n);
            let operator = LaplacianOperator::new(&graph, kind);
            let signal = Signal::new(x.to_vec(), n, d).unwrap();
            let found = found(&graph, kind);
            let moments = operator.spectrum_moments().unwrap();
            let eigen = eigh(&operator.dense().unwrap(), n).unwrap();
            let energies = signal::mode_energies(&eigen, &signal).unwrap();
            [
                found.fiedler.unwrap().value,
                found.lambda_max.unwrap().value,
                moments.mean,
                moments.variance,
                signal::dirichlet_energy(&operator, &signal.gram().unwrap()).unwrap(),
                signal::high_frequency_energy_ratio(&energies).unwrap(),
                signal::spectral_entropy(&energies).unwrap(),
                signal::eigenvalue_entropy(eigen.values(), eigen.rounding()).unwrap().unwrap(),
            ]
        };
        let (before, after) = (quantities(&a, &x), quantities(&permuted, &permuted_x));
        for (k, (before, after)) in before.into_iter().zip(after).enumerate() {
            close(&format!("{kind}, quantity {k}"), after, before, 1e-9 * before.abs().max(1.0));
        }
    }
}

#[test]
fn a_pattern_may_be_a_strided_view() {
    let mut random = Random::new(9);
    let n = 21;
    let a = attention_like(&mut random, n, 1.0, 2.0);
    let plain = graph_of(&a, n);
    let mut padded = vec![f32::NAN; n * (n + 6)];
    for i in 0..n {
        padded[i * (n + 6)..i * (n + 6) + n].copy_from_slice(&a[i * n..(i + 1) * n]);
    }
    let view = PatternView::new(&padded, n, n + 6).unwrap();
    let strided = SymmetricGraph::from_pattern(view).unwrap();
    assert_eq!(strided.degrees(), plain.degrees());

    let without = SymmetricGraph::from_pattern(view.without_first()).unwrap();
    assert_eq!(without.n_nodes(), n - 1);
    for i in 1..n {
        for j in 1..n {
            assert_eq!(without.weight(i - 1, j - 1), plain.weight(i, j));
        }
    }
    let one = PatternView::new(&[1.0], 1, 1).unwrap();
    assert_eq!(one.without_first().n_tokens(), 0);

    let device = candle_core::Device::Cpu;
    let both = candle_core::Tensor::from_vec([a.clone(), a.clone()].concat(), (2, n, n), &device);
    let part = both.unwrap().narrow(1, 0, 9).unwrap().narrow(2, 0, 9).unwrap();
    let patterns = Patterns::new(&part).unwrap();
    let graph = SymmetricGraph::mean(&patterns.heads().unwrap()).unwrap();
    for i in 0..9 {
        assert_eq!(graph.weight(i, 0), plain.weight(i, 0));
    }
    assert!(patterns.head(2).is_err());
    assert!(Patterns::new(&part.narrow(1, 0, 3).unwrap()).is_err());
    assert!(Patterns::new(&part.to_dtype(candle_core::DType::F64).unwrap()).is_err());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut random = Random::new(13);
    let (n, d) = (150, 70);
    let heads: Vec<_> = (0..4).map(|_| attention_like(&mut random, n, 2.0, 3.0)).collect();
    let x: Vec<f64> = (0..n * d).map(|_| random.uniform()).collect();
    let all = || {
        let graph = head_mean(&heads, n);
        let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
        let signal = Signal::new(x.clone(), n, d).unwrap();
        let eigen = eigh(&operator.dense().unwrap(), n).unwrap();
        let single = eigh(&operator.dense_in::<f32>().unwrap(), n).unwrap();
        (
            found(&graph, Laplacian::SymmetricNormalized),
            signal::dirichlet_energy(&operator, &signal.gram().unwrap()).unwrap(),
            signal::mode_energies(&eigen, &signal).unwrap(),
            signal::mode_energies_f32(&single, &signal).unwrap(),
        )
    };
    let run = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(all)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn preparing_a_signal() {
    let signal = Signal::new(vec![9.0, 9.0, 1.0, 0.0, 3.0, 0.0, 2.0, 0.0], 4, 2).unwrap();
    let signal = signal.without_first();
    assert_eq!(signal.n_nodes(), 3);
    let centred = signal.centred(0.0);
    assert_eq!(centred.values(), [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    let (unit, zero_rows) = centred.unit_rows();
    assert_eq!((unit.values(), zero_rows), (&[-1.0, 0.0, 1.0, 0.0, 0.0, 0.0][..], 1));
    assert_eq!(unit.energy(), 2.0);
    // Norms that overflow and vanish when squared.
    let (unit, zero_rows) =
        Signal::new(vec![3e200, 4e200, 3e-200, 4e-200], 2, 2).unwrap().unit_rows();
    assert_eq!(zero_rows, 0);
    for (got, expected) in unit.values().iter().zip([0.6, 0.8, 0.6, 0.8]) {
        close("unit row", *got, expected, 1e-15);
    }
    let none = Signal::new(vec![], 0, 2).unwrap().without_first().centred(0.0);
    assert_eq!((none.n_nodes(), none.energy()), (0, 0.0));
}

#[test]
fn values_that_do_not_exist() {
    assert_eq!(signal::rayleigh_quotient(0.0, 0.0), Err(Null::ZeroSignal));
    assert_eq!(signal::smoothness(0.0, 0.0, 1.0), Err(Null::ZeroSpectrum));
    assert_eq!(signal::smoothness(1.0, 2.0, 4.0), Ok(0.875));
    assert_eq!(signal::high_frequency_energy_ratio(&[0.0; 3]), Err(Null::ZeroSignal));
    assert_eq!(signal::over_log_n(0.0, 1), Err(Null::TooFewNodes));
    assert_eq!(signal::eigenvalue_entropy(&[0.0, 0.0], 0.0).unwrap(), Err(Null::ZeroSpectrum));
    assert_eq!(signal::eigenvalue_entropy(&[-1e-17, 1.0], 1e-15).unwrap(), Ok(0.0));
    assert!(signal::eigenvalue_entropy(&[-1e-3, 1.0], 1e-15).is_err());
    assert!(signal::eigenvalue_entropy(&[f64::NAN, 1.0], 1e-15).is_err());
}

#[test]
fn bad_input_is_named() {
    for value in [f32::NAN, f32::INFINITY, -0.25] {
        for at in [4, 7] {
            // On and above the diagonal.
            let mut a = vec![0.5; 16];
            a[at] = value;
            let error = SymmetricGraph::from_pattern(PatternView::new(&a, 4, 4).unwrap());
            match error.unwrap_err() {
                Error::Weight { head: 0, query: 1, key, .. } => assert_eq!(key, at % 4),
                other => panic!("{other}"),
            }
        }
    }
    assert!(PatternView::new(&[0.0; 8], 3, 3).is_err());
    assert!(PatternView::new(&[0.0; 9], 3, 2).is_err());
    assert!(PatternView::new(&[0.0; 9], usize::MAX, usize::MAX).is_err());
    assert!(SymmetricGraph::mean(&[]).is_err());
    let (two, three) = ([0.0; 4], [0.0; 9]);
    let views = [PatternView::new(&two, 2, 2).unwrap(), PatternView::new(&three, 3, 3).unwrap()];
    assert!(SymmetricGraph::mean(&views).is_err());

    let graph = graph_of(&[1.0, 0.0, 0.5, 0.5], 2);
    let operator = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
    assert!(operator.apply(&[1.0]).is_err());
    assert!(graph.apply(&[1.0; 3]).is_err());
    let signal = Signal::new(vec![1.0; 3], 3, 1).unwrap();
    assert!(signal::dirichlet_energy(&operator, &signal.gram().unwrap()).is_err());
    let eigen = eigh(&operator.dense().unwrap(), 2).unwrap();
    assert!(signal::mode_energies(&eigen, &signal).is_err());
    assert!(matches!(
        Signal::new(vec![0.0, 1.0, 2.0, f64::NAN], 2, 2),
        Err(Error::NonFinite { index, .. }) if index == [1, 1]
    ));
    assert!(Signal::new(vec![0.0; 3], 2, 2).is_err());
    assert!(matches!(eigh(&[1.0, 0.0, f64::NAN, 1.0], 2), Err(Error::NonFinite { .. })));
    assert!(eigenvalues(&[1.0], 2).is_err());
    let options =
        |tolerance, max_steps| LanczosOptions { tolerance, max_steps, ..LanczosOptions::default() };
    assert!(extremes(&operator, &options(0.0, 10)).is_err());
    assert!(extremes(&operator, &options(f64::NAN, 10)).is_err());
    assert!(extremes(&operator, &options(1e-8, 0)).is_err());
}

#[test]
fn what_did_not_converge_is_handed_over() {
    let mut random = Random::new(17);
    let n = 200;
    let graph = graph_of(&attention_like(&mut random, n, 4.0, 2.0), n);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let options = LanczosOptions { max_steps: 5, ..LanczosOptions::default() };
    match extremes(&operator, &options) {
        Err(Error::NotConverged { steps: 5, found, .. }) => {
            let (found, exact) = (*found, found_exactly(&operator));
            let fiedler = found.fiedler.unwrap();
            // θ is an upper bound all the same, and some eigenvalue is within ρ.
            assert!(fiedler.value >= exact[1] && fiedler.residual > 1e-8);
            assert!(exact.iter().any(|v| (v - fiedler.value).abs() <= fiedler.residual));
        }
        other => panic!("{other:?}"),
    }
}

fn found_exactly(operator: &LaplacianOperator<'_>) -> Vec<f64> {
    eigenvalues(&operator.dense().unwrap(), operator.n_nodes()).unwrap()
}

/// Of so many nodes that most steps are taken in `f32`.
#[test]
fn steps_in_f32_cost_no_digit() {
    let mut random = Random::new(23);
    let mut cases = Vec::new();
    for (n, sharpness) in [(64, 0.5), (65, 6.0), (200, 0.5), (203, 6.0)] {
        let pattern = attention_like(&mut random, n, sharpness, 3.0);
        // What overflows in f32, or vanishes, is left to f64.
        for factor in [1.0, 1e-22, 1e22] {
            let scaled: Vec<f32> = pattern.iter().map(|a| a * factor).collect();
            cases.push((format!("{n} nodes, sharpness {sharpness}, × {factor:e}"), n, scaled));
        }
    }
    // Two parts, one isolated node, and a complete graph.
    let n = 130;
    let parts = (1..64).map(|i| (i, i - 1)).chain((65..129).map(|i| (i, i - 1)));
    cases.push(("two paths".to_owned(), n, edges(n, parts)));
    let all = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
    cases.push(("complete".to_owned(), n, edges(n, all)));
    for (name, n, pattern) in cases {
        let graph = graph_of(&pattern, n);
        for kind in KINDS {
            let operator = LaplacianOperator::new(&graph, kind);
            let what = format!("{name}, {kind}");
            let found = extremes(&operator, &LanczosOptions::default())
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let exact = found_exactly(&operator);
            let scale = operator.typical_scale();
            let ends = [found.fiedler.unwrap(), found.lambda_max.unwrap()];
            for (end, exact) in ends.into_iter().zip([exact[1], exact[n - 1]]) {
                assert!(end.residual <= 1e-8 * scale, "{what}: {end:?}");
                let rounding = 1e-12 * operator.upper_bound();
                close(&what, end.value, exact, end.residual.min(1e-10 * scale) + rounding);
            }
            assert!(found.seeds_agree, "{what}: {found:?}");
        }
    }
}

#[test]
fn a_tolerance_below_rounding_is_not_reached() {
    let mut random = Random::new(19);
    let n = 64;
    let graph = graph_of(&attention_like(&mut random, n, 1.0, 2.0), n);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let options = LanczosOptions { tolerance: 1e-18, ..LanczosOptions::default() };
    match extremes(&operator, &options) {
        Err(Error::NotConverged { found, .. }) => {
            let exact = found_exactly(&operator);
            close("fiedler", found.fiedler.unwrap().value, exact[1], 1e-13);
            assert!(found.fiedler.unwrap().residual < 1e-13);
        }
        other => panic!("{other:?}"),
    }
}

/// Committed values of a float64 script written from the definitions.
#[test]
fn golden_values() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/spectral.json");
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    for case in cases.as_array().unwrap() {
        let n = usize::try_from(case["n_tokens"].as_u64().unwrap()).unwrap();
        let d = usize::try_from(case["d"].as_u64().unwrap()).unwrap();
        let patterns: Vec<f32> = numbers(&case["patterns"]).iter().map(|v| *v as f32).collect();
        let heads: Vec<Vec<f32>> = patterns.chunks(n * n).map(<[f32]>::to_vec).collect();
        let signal = Signal::new(numbers(&case["signal"]), n, d).unwrap();
        let gram = signal.gram().unwrap();
        let score = case["hidden_score"].as_f64().unwrap();
        close("hidden score", hidden_score(&signal).unwrap(), score, 1e-9);
        for expected in case["graphs"].as_array().unwrap() {
            let graph = match expected["head"].as_u64() {
                Some(head) => graph_of(&heads[usize::try_from(head).unwrap()], n),
                None => head_mean(&heads, n),
            };
            let kind = KINDS.into_iter().find(|kind| expected["laplacian"] == kind.name()).unwrap();
            let operator = LaplacianOperator::new(&graph, kind);
            let what = format!("{}, {kind}, head {}", case["name"], expected["head"]);
            let eigenvalues = numbers(&expected["eigenvalues"]);
            // The mean over heads is rounded to f32 in the graph and not in the script.
            let scale = eigenvalues[n - 1].max(1.0);
            let tolerance =
                if expected["head"].is_null() { 1e-7 } else { 1e-13 * n as f64 } * scale;
            let found_values = found_exactly(&operator);
            for (got, expected) in found_values.iter().zip(&eigenvalues) {
                close(&what, *got, *expected, tolerance);
            }
            let found = found(&graph, kind);
            if let Some(fiedler) = found.fiedler {
                close(&what, fiedler.value, eigenvalues[1], tolerance.max(1e-11 * scale));
            }
            close(
                &what,
                found.lambda_max.unwrap().value,
                eigenvalues[n - 1],
                tolerance.max(1e-11 * scale),
            );
            let energy = expected["energy"].as_f64().unwrap();
            close(&what, signal.energy(), energy, 1e-13 * energy);
            let dirichlet = signal::dirichlet_energy(&operator, &gram).unwrap();
            close(
                &what,
                dirichlet,
                expected["dirichlet"].as_f64().unwrap(),
                tolerance * energy.max(1.0),
            );
            let moments = operator.spectrum_moments().unwrap();
            close(&what, moments.mean, expected["spectrum_mean"].as_f64().unwrap(), tolerance);
            let variance = expected["spectrum_variance"].as_f64().unwrap();
            close(&what, moments.variance, variance, tolerance * scale);
        }
    }
}

#[test]
fn hidden_scores_are_the_reference() {
    for (n, d) in [(1, 1), (1, 7), (2, 2), (5, 31), (31, 5), (33, 32), (32, 33), (48, 48)] {
        let mut random = Random::new(100 * n as u64 + d as u64);
        let x: Vec<f64> = (0..n * d).map(|_| 10.0 * random.normal()).collect();
        let got = hidden_score(&Signal::new(x.clone(), n, d).unwrap()).unwrap();
        let expected = reference::hidden_score(&x, n, d, RIDGE);
        close(&format!("{n} tokens, {d} features"), got, expected, 1e-9);
    }
    assert_eq!(hidden_score(&Signal::new(vec![], 0, 4).unwrap()), None);
    let empty = hidden_score(&Signal::new(vec![], 3, 0).unwrap()).unwrap();
    close("no features", empty, RIDGE.ln(), 1e-15);
}

#[test]
fn hidden_scores_of_large_norms_keep_the_ridge() {
    // Rows along one direction of mean 0, lengths 1e6: one eigenvalue of 1e13, all
    // others the ridge, which a product of the rows would round away.
    for (n, d) in [(10, 40), (40, 10)] {
        let side = 1e6 / (d as f64).sqrt();
        let direction = |k: usize| if k.is_multiple_of(2) { side } else { -side };
        let x = (0..n * d).map(|k| direction(k % d)).collect();
        let got = hidden_score(&Signal::new(x, n, d).unwrap()).unwrap();
        let rest = (n - 1) as f64 * RIDGE.ln();
        let expected = ((n as f64 * 1e12 + RIDGE).ln() + rest) / n as f64;
        close(&format!("{n} tokens, {d} features"), got, expected, 1e-6);
    }
    // Orthogonal rows of lengths from 1e-4 to 1e8.
    let (n, d) = (7, 20);
    let mut x = vec![0.0; n * d];
    let mut expected = 0.0;
    for i in 0..n {
        let length = 10f64.powi(2 * i as i32 - 4);
        (x[i * d + 2 * i], x[i * d + 2 * i + 1]) = (length, -length);
        expected += (2.0 * length * length + RIDGE).ln() / n as f64;
    }
    let got = hidden_score(&Signal::new(x, n, d).unwrap()).unwrap();
    close("orthogonal rows", got, expected, 1e-12);
}
