//! Whole spectra, in `f64` and `f32`, and what is made of them.

#![allow(clippy::unwrap_used)]

use kernels::eigh::{Real, eigenvalues, eigh};
use kernels::heat::heat_energy;
use kernels::laplacian::{Laplacian, LaplacianOperator};
use kernels::signal::{self, Null, Signal};
use kernels::{Error, reference};

use super::graphs::{Random, attention_like, graph_of, head_mean};
use super::spectral::{KINDS, TIMES, close, edges, found, patterns};

#[test]
fn eigenvalues_and_certificates_against_jacobi() {
    for (name, n, heads) in patterns() {
        for kind in KINDS {
            for graph in [graph_of(&heads[0], n), head_mean(&heads, n)] {
                let operator = LaplacianOperator::new(&graph, kind);
                let dense = operator.dense().unwrap();
                let (expected, vectors) = reference::eigh(&dense, n);
                let scale = expected[n - 1].max(1.0);
                let eigen = eigh(&dense, n).unwrap();
                let values = eigenvalues(&dense, n).unwrap();
                for k in 0..n {
                    close(&name, values[k], expected[k], 1e-13 * scale * n as f64);
                    close(&name, eigen.values()[k], expected[k], 1e-13 * scale * n as f64);
                    let vector = eigen.vector(k);
                    let product = operator.apply(&vector).unwrap();
                    for (p, v) in product.iter().zip(&vector) {
                        close(&name, *p, eigen.values()[k] * v, 1e-13 * scale * n as f64);
                    }
                }
                let moments = operator.spectrum_moments().unwrap();
                let (mean, variance) = reference::moments(&expected);
                close(&name, moments.mean, mean, 1e-13 * scale * n as f64);
                close(&name, moments.variance, variance, 1e-13 * scale * scale * n as f64);

                let found = found(&graph, kind);
                let largest = found.lambda_max.unwrap();
                assert!(largest.residual <= 1e-8 * scale);
                // An eigenvalue cannot be further away than the residual, and the
                // Rayleigh quotient's error is of its square.
                close(&name, largest.value, expected[n - 1], 1e-11 * scale);
                if n >= 2 {
                    let fiedler = found.fiedler.unwrap();
                    assert!(fiedler.residual <= 1e-8 * scale);
                    close(&name, fiedler.value, expected[1], 1e-11 * scale);
                    assert!(fiedler.value >= expected[1] - 1e-13 * scale * n as f64);
                    assert!(found.seeds_agree, "{name}: {found:?}");
                }

                let d = 5;
                let mut random = Random::new(11);
                let x: Vec<f64> = (0..n * d).map(|_| random.uniform() - 0.3).collect();
                let signal = Signal::new(x.clone(), n, d).unwrap();
                let energy = signal.energy();
                let dirichlet =
                    signal::dirichlet_energy(&operator, &signal.gram().unwrap()).unwrap();
                let expected_dirichlet = reference::dirichlet_energy(&dense, &x, n, d);
                close(&name, dirichlet, expected_dirichlet, 1e-13 * scale * energy);
                let energies = signal::mode_energies(&eigen, &signal).unwrap();
                let by_modes: f64 =
                    energies.iter().zip(eigen.values()).map(|(e, value)| e * value).sum();
                close(&name, by_modes, dirichlet, 1e-12 * scale * energy);
                // Modes of one eigenvalue may mix: their cumulative energy at gaps cannot.
                let expected_energies = reference::mode_energies(&vectors, &x, n, d);
                let (mut sum, mut expected_sum) = (0.0, 0.0);
                for k in 0..n {
                    sum += energies[k];
                    expected_sum += expected_energies[k];
                    if k + 1 == n || expected[k + 1] - expected[k] > 1e-6 * scale {
                        close(&name, sum, expected_sum, 1e-6 * energy);
                    }
                }
                close(&name, sum, energy, 1e-12 * energy);
                close(
                    &name,
                    signal::spectral_entropy(&energies).unwrap(),
                    reference::entropy(&energies),
                    1e-12,
                );
            }
        }
    }
}

/// `‖Au − λu‖` over `‖A‖`, and the departure from orthonormality.
fn departures<T: Real>(matrix: &[f64], n: usize) -> (f64, f64) {
    let rounded: Vec<T> = matrix.iter().map(|v| T::of(*v)).collect();
    let eigen = eigh(&rounded, n).unwrap();
    let values = eigen.values();
    assert!(values.windows(2).all(|pair| pair[0] <= pair[1]));
    let norm = values.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let vectors: Vec<Vec<f64>> = (0..n).map(|k| eigen.vector(k)).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (mut residual, mut apart) = (0.0_f64, 0.0_f64);
    for (k, u) in vectors.iter().enumerate() {
        let row = |i: usize| {
            let row = rounded[i * n..][..n].iter().zip(u);
            row.map(|(a, u)| (*a).into() * u).sum::<f64>() - values[k] * u[i]
        };
        let square: f64 = (0..n).map(|i| (row(i) / norm.max(f64::MIN_POSITIVE)).powi(2)).sum();
        // Not max, which passes over NaN.
        residual = if square.sqrt() <= residual { residual } else { square.sqrt() };
        for (j, other) in vectors[..=k].iter().enumerate() {
            let wrong = (dot(u, other) - if j == k { 1.0 } else { 0.0 }).abs();
            apart = if wrong <= apart { apart } else { wrong };
        }
    }
    (residual, apart)
}

#[test]
fn decompositions_keep_their_promises() {
    let mut random = Random::new(43);
    for n in [0usize, 1, 2, 3, 5, 8, 15, 16, 17, 21, 31, 32, 33, 63, 64, 65, 96, 129] {
        let mut fill = |value: &mut dyn FnMut(&mut Random, usize, usize) -> f64| {
            let mut matrix = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..=i {
                    matrix[i * n + j] = value(&mut random, i, j);
                    matrix[j * n + i] = matrix[i * n + j];
                }
            }
            matrix
        };
        let equal = |i: usize, j: usize, value: f64| if i == j { value } else { 0.0 };
        let next = |i: usize, j: usize| if i == j + 1 { 1.0 } else { 0.0 };
        let middle = n as f64 / 2.0;
        let plain = fill(&mut |random, _, _| random.uniform() - 0.5);
        let twice = |i: usize, j: usize| match i / (n / 2).max(1) == j / (n / 2).max(1) {
            true => plain[i % (n / 2).max(1) * n + j % (n / 2).max(1)],
            false => 0.0,
        };
        let matrices = [
            ("random", plain.clone()),
            ("zero", fill(&mut |_, _, _| 0.0)),
            ("one", fill(&mut |_, i, j| equal(i, j, 1.0))),
            ("complete", fill(&mut |_, i, j| equal(i, j, n as f64) - 1.0)),
            ("equal twice", fill(&mut |_, i, j| twice(i, j))),
            (
                "wilkinson",
                fill(&mut |_, i, j| equal(i, j, (i as f64 + 0.5 - middle).abs()) + next(i, j)),
            ),
            (
                "cycle",
                fill(&mut |_, i, j| next(i, j) + if i == n - 1 && j == 0 { 1.0 } else { 0.0 }),
            ),
            (
                "graded",
                fill(&mut |random, i, j| 10.0_f64.powf(-0.1 * (i + j) as f64) * random.uniform()),
            ),
            ("large", fill(&mut |random, _, _| 1e30 * random.uniform())),
            ("small", fill(&mut |random, _, _| 1e-30 * random.uniform())),
        ];
        for (name, matrix) in matrices {
            let root = (n as f64).sqrt();
            let (residual, apart) = departures::<f64>(&matrix, n);
            close(name, residual, 0.0, 1e-14 * root);
            close(name, apart, 0.0, 1.1e-11);
            let (residual, apart) = departures::<f32>(&matrix, n);
            let bound = 8.0 * root * f64::from(f32::EPSILON);
            close(name, residual, 0.0, bound);
            close(name, apart, 0.0, bound);
        }
        for scale in [1e-300, 1e300] {
            let scaled: Vec<f64> = plain.iter().map(|v| v * scale).collect();
            let (found, expected) = (eigh(&scaled, n).unwrap(), eigh(&plain, n).unwrap());
            for (found, expected) in found.values().iter().zip(expected.values()) {
                close("scaled", found / scale, *expected, 1e-14 * (n as f64));
            }
        }
    }
}

fn spacings(operator: &LaplacianOperator<'_>) -> signal::SpacingRatio {
    let eigen = eigh(&operator.dense().unwrap(), operator.n_nodes()).unwrap();
    signal::spacing_ratio(eigen.values(), eigen.rounding())
}

#[test]
fn spacing_ratios() {
    use std::f64::consts::{LN_2, PI};
    let ladder: Vec<f64> = (0..50).map(|k| 0.25 * f64::from(k)).collect();
    assert_eq!(signal::spacing_ratio(&ladder, 0.0).mean, Ok(1.0));
    assert_eq!(signal::spacing_ratio(&[0.0, 1.0], 0.0).mean, Err(Null::TooFewNodes));
    assert_eq!(signal::spacing_ratio(&[], 0.0).mean, Err(Null::TooFewNodes));
    let same = signal::spacing_ratio(&[0.0; 5], 0.0);
    assert_eq!((same.mean, same.n_zero_pairs), (Err(Null::ZeroSpacings), 3));

    // A cycle's levels come in pairs: every spacing of 0 stands between two others.
    let n = 9;
    let cycle = graph_of(&edges(n, (0..n).map(|i| (i, (i + 1) % n))), n);
    let operator = LaplacianOperator::new(&cycle, Laplacian::SymmetricNormalized);
    let found = spacings(&operator);
    assert_eq!((found.mean, found.n_zero_pairs), (Ok(0.0), 0));
    // A complete graph has one level besides 0.
    let complete = graph_of(&edges(n, (0..n).flat_map(|i| (0..i).map(move |j| (i, j)))), n);
    let operator = LaplacianOperator::new(&complete, Laplacian::Combinatorial);
    let found = spacings(&operator);
    assert_eq!((found.mean, found.n_zero_pairs), (Ok(0.0), n - 3));
    // A path's levels are 2 − 2 cos(πk/n).
    let path = graph_of(&edges(n, (1..n).map(|i| (i - 1, i))), n);
    let operator = LaplacianOperator::new(&path, Laplacian::Combinatorial);
    let level = |k: usize| 2.0 - 2.0 * (PI * k as f64 / n as f64).cos();
    let spacing = |k: usize| level(k + 1) - level(k);
    let ratio = |k: usize| (spacing(k) / spacing(k + 1)).min(spacing(k + 1) / spacing(k));
    let expected = (0..n - 2).map(ratio).sum::<f64>() / (n - 2) as f64;
    let found = spacings(&operator);
    close("path", found.mean.unwrap(), expected, 1e-13);

    // Independent levels: 2 ln 2 − 1, within four standard errors.
    let mut random = Random::new(23);
    let mut levels: Vec<f64> = (0..20_000).map(|_| random.uniform()).collect();
    levels.sort_by(f64::total_cmp);
    close("independent", signal::spacing_ratio(&levels, 0.0).mean.unwrap(), 2.0 * LN_2 - 1.0, 0.01);

    for (name, n, heads) in patterns() {
        let graph = head_mean(&heads, n);
        for kind in KINDS {
            let operator = LaplacianOperator::new(&graph, kind);
            let values = eigenvalues(&operator.dense().unwrap(), n).unwrap();
            let rounding = n as f64 * f64::EPSILON * values[n - 1].max(0.0);
            let found = signal::spacing_ratio(&values, rounding);
            let (mean, zero_pairs) = reference::spacing_ratio(&values, rounding);
            assert_eq!(found.n_zero_pairs, zero_pairs, "{name}");
            match found.mean {
                Ok(got) => close(&name, got, mean, 1e-14),
                Err(_) => assert!(mean.is_nan(), "{name}"),
            }
        }
    }
}

#[test]
fn spectra_in_f32_against_f64() {
    let mut random = Random::new(37);
    let d = 5;
    for (name, n, heads) in patterns() {
        for kind in [KINDS[0], KINDS[1], Laplacian::RandomWalk] {
            let graph = head_mean(&heads, n);
            let operator = LaplacianOperator::new(&graph, kind);
            let what = format!("{name}, {kind}");
            let double = eigh(&operator.dense().unwrap(), n).unwrap();
            let single = eigh(&operator.dense_in::<f32>().unwrap(), n).unwrap();
            let apart = single.rounding();
            for (got, expected) in single.values().iter().zip(double.values()) {
                close(&what, *got, *expected, apart);
            }
            let x: Vec<f64> = (0..n * d).map(|_| random.uniform() - 0.3).collect();
            let signal = Signal::new(x, n, d).unwrap();
            let signal = signal.in_coordinates_of(&operator).unwrap();
            let energy = signal.energy();
            let modes = signal::mode_energies(&double, &signal).unwrap();
            let modes_f32 = signal::mode_energies_f32(&single, &signal).unwrap();
            let (mut sum, mut expected) = (0.0, 0.0);
            for k in 0..n {
                sum += modes_f32[k];
                expected += modes[k];
                let gap =
                    double.values().get(k + 1).map_or(f64::INFINITY, |v| v - double.values()[k]);
                // Spaces turn by no more than what moved the matrix over the gap (Davis, Kahan).
                if gap > 10.0 * apart {
                    close(&what, sum, expected, (2.0 * apart / gap + 1e-5) * energy);
                }
            }
            close(&what, sum, energy, 1e-5 * energy);
            for time in TIMES {
                let expected = heat_energy(double.values(), &modes, time).unwrap();
                let got = heat_energy(single.values(), &modes_f32, time).unwrap();
                close(&what, got, expected, time * apart + 1e-5);
            }
            let entropy = |values: &[f64], rounding: f64| {
                signal::eigenvalue_entropy(values, rounding).unwrap()
            };
            match entropy(double.values(), double.rounding()) {
                Ok(expected) => {
                    close(&what, entropy(single.values(), apart).unwrap(), expected, 2e-5);
                }
                null => assert_eq!(entropy(single.values(), apart), null, "{what}"),
            }
        }
    }
}

#[test]
fn modes_are_those_of_the_vectors_however_wide_the_signal() {
    let mut random = Random::new(43);
    // Of one and of several blocks of reflections, panels and groups of panels.
    for n in [2usize, 43, 150] {
        let graph = graph_of(&attention_like(&mut random, n, 2.0, 3.0), n);
        let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
        let double = eigh(&operator.dense().unwrap(), n).unwrap();
        let single = eigh(&operator.dense_in::<f32>().unwrap(), n).unwrap();
        let one_by_one = [
            (0..n).map(|k| double.vector(k)).collect::<Vec<_>>(),
            (0..n).map(|k| single.vector(k)).collect(),
        ];
        for d in [0, 1, 40, 187, 600] {
            let x: Vec<f64> = (0..n * d).map(|_| random.uniform() - 0.3).collect();
            let signal = Signal::new(x.clone(), n, d).unwrap();
            let modes = [
                signal::mode_energies(&double, &signal).unwrap(),
                signal::mode_energies_f32(&single, &signal).unwrap(),
            ];
            for ((modes, vectors), tolerance) in modes.iter().zip(&one_by_one).zip([1e-13, 2e-6]) {
                for (got, vector) in modes.iter().zip(vectors) {
                    let product =
                        |c: usize| (0..n).map(|i| vector[i] * x[i * d + c]).sum::<f64>().powi(2);
                    let expected: f64 = (0..d).map(product).sum();
                    close(&format!("{n} {d}"), *got, expected, tolerance * signal.energy());
                }
            }
        }
        for (k, [one, other]) in (0..n).map(|k| (k, [&one_by_one[0][k], &one_by_one[1][k]])) {
            for i in 0..n {
                close("f64", double.vectors()[(i, k)], one[i], 1e-14);
                close("f32", single.vectors()[(i, k)].into(), other[i], 2e-6);
            }
        }
    }
}

#[test]
fn levels_that_coincide_do_so_in_f32() {
    for n in [3usize, 9, 64, 300] {
        let complete = edges(n, (0..n).flat_map(|i| (0..i).map(move |j| (i, j))));
        let star = edges(n, (1..n).map(|i| (0, i)));
        let cycle = edges(n, (0..n).map(|i| (i, (i + 1) % n)));
        for (name, pattern) in [("complete", complete), ("star", star), ("cycle", cycle)] {
            let graph = graph_of(&pattern, n);
            for kind in KINDS {
                let operator = LaplacianOperator::new(&graph, kind);
                let eigen = eigh(&operator.dense_in::<f32>().unwrap(), n).unwrap();
                let found = signal::spacing_ratio(eigen.values(), eigen.rounding());
                let expected = spacings(&operator);
                assert_eq!(found.n_zero_pairs, expected.n_zero_pairs, "{name}, {n}, {kind}");
                close(name, found.mean.unwrap(), expected.mean.unwrap(), 1e-3);
            }
        }
    }
}

#[test]
fn components_that_products_could_make_subnormal_are_0_in_f32() {
    let components = vec![1e-29, -1e-31, 1e-40, -1e-300, -0.5];
    assert_eq!(f32::rounded(components.clone()), [1e-29, 0.0, 0.0, 0.0, -0.5]);
    assert_eq!(f64::rounded(components.clone()), components);
}

#[test]
fn modes_in_f32_neither_overflow_nor_vanish() {
    let mut random = Random::new(41);
    let (n, d) = (33, 3);
    let graph = graph_of(&attention_like(&mut random, n, 2.0, 3.0), n);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let eigen = eigh(&operator.dense_in::<f32>().unwrap(), n).unwrap();
    let x: Vec<f64> = (0..n * d).map(|_| random.uniform() - 0.3).collect();
    let energies = |factor: f64| {
        let x = x.iter().map(|v| v * factor).collect();
        signal::mode_energies_f32(&eigen, &Signal::new(x, n, d).unwrap()).unwrap()
    };
    let plain = energies(1.0);
    for exponent in [-400, 400] {
        let factor = 2.0_f64.powi(exponent);
        for (got, plain) in energies(factor).iter().zip(&plain) {
            assert_eq!(*got, plain * factor * factor);
        }
    }
    assert_eq!(energies(0.0), vec![0.0; n]);
    // Of a subnormal signal the squares vanish, but nothing on the way overflows.
    assert_eq!(energies(2.0_f64.powi(-1060)), vec![0.0; n]);
    let other = Signal::new(vec![1.0; 3], 3, 1).unwrap();
    assert!(signal::mode_energies_f32(&eigen, &other).is_err());
    assert!(matches!(eigh(&[1.0, f32::NAN, 0.0, 1.0], 2), Err(Error::NonFinite { .. })));
}
