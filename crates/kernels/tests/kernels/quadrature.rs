//! Quadratures kept and taken up again, and their functionals at extreme arguments.

use kernels::adjacency::Adjacency;
use kernels::eigh::{eigenvalues, eigh};
use kernels::graph::{LANES, SymmetricGraph};
use kernels::heat::Estimate;
use kernels::lanczos::{LanczosOptions, extremes, extremes_and_vector};
use kernels::laplacian::{Laplacian, LaplacianOperator};
use kernels::quadrature::{Coefficients, MAX_EXPONENT, Quadrature, QuadratureOptions, Recurrence};
use kernels::{Error, reference};

use super::graphs::{Random, attention_like, graph_of};

fn close(what: &str, got: f64, expected: f64, tolerance: f64) {
    let difference = (got - expected).abs();
    assert!(difference <= tolerance, "{what}: {got:e}, expected {expected:e} within {tolerance:e}");
}

/// A tridiagonal matrix whose rows dominate by their diagonals: eigenvalues above 0.
fn dominant(random: &mut Random, steps: usize) -> Recurrence {
    let beta: Vec<f64> = (1..steps).map(|_| 0.01 + random.uniform()).collect();
    let around = |k: usize| {
        let before = if k == 0 { 0.0 } else { beta[k - 1] };
        before + beta.get(k).copied().unwrap_or(0.0)
    };
    let alpha = (0..steps).map(|k| around(k) + 0.5 * random.uniform()).collect();
    Recurrence { alpha, beta }
}

#[test]
fn rules_are_those_of_the_dense_solver() {
    let mut random = Random::new(71);
    for steps in [1usize, 2, 3, 17, 64, 200] {
        let recurrences: Vec<_> = (0..8).map(|_| dominant(&mut random, steps)).collect();
        let mut expected = [0.0; 3];
        for Recurrence { alpha, beta } in &recurrences {
            let mut matrix = vec![0.0; steps * steps];
            for k in 0..steps {
                matrix[k * steps + k] = alpha[k];
                if k > 0 {
                    matrix[(k - 1) * steps + k] = beta[k - 1];
                }
            }
            let eigen = eigh(&matrix, steps).unwrap();
            for (k, value) in eigen.values().iter().enumerate() {
                let weight = eigen.vectors()[(0, k)].powi(2) * 300.0 / 8.0;
                for (sum, f) in expected.iter_mut().zip([1.0, *value, (-3.0 * value).exp()]) {
                    *sum += weight * f;
                }
            }
        }
        let quadrature = Quadrature::from_coefficients(Coefficients {
            n_nodes: 300,
            dimension: 300,
            trace: 600.0,
            steps: 200,
            recurrences,
        })
        .unwrap();
        let traces = [
            quadrature.trace_of(|_| 1.0),
            quadrature.trace_of(|value| value),
            quadrature.trace_of(|value| (-3.0 * value).exp()),
        ];
        for (got, expected) in traces.into_iter().zip(expected) {
            close(&format!("{steps} steps"), got.unwrap().value, expected, 1e-12 * 300.0);
        }
    }
}

/// `n` nodes, each pair joined by a weight of `1/n`: the eigenvalue 0, and `n − 1` times 1.
fn complete(n: usize) -> Vec<f32> {
    let weight = 2.0 / n as f32;
    (0..n * n).map(|k| if k % n < k / n { weight } else { 0.0 }).collect()
}

#[test]
fn neither_small_nor_large_beta_loses_digits() {
    let n = 32;
    let graph = graph_of(&complete(n), n);
    let operator = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
    let quadrature = Quadrature::run(&operator, &QuadratureOptions::default()).unwrap();
    for beta in [1e-9, 1e-3, 1.0, 30.0, 300.0, 1e4, 0.99 * MAX_EXPONENT] {
        // Of the levels 0 and 1, the upper one 31 times.
        let upper = 31.0 * (-beta).exp();
        let less_one = 31.0 / 32.0 * (-beta).exp_m1();
        let free_energy = quadrature.free_energy(beta).unwrap();
        let expected = -less_one.ln_1p() / beta;
        close(&format!("free energy at {beta}"), free_energy.value, expected, 1e-12 * expected);
        let heat_capacity = quadrature.heat_capacity(beta).unwrap();
        let expected = beta * beta * upper / (1.0 + upper).powi(2);
        let tolerance = 1e-11 * expected + f64::MIN_POSITIVE;
        close(&format!("heat capacity at {beta}"), heat_capacity.value, expected, tolerance);
    }
    // Isolated nodes: every eigenvalue 1, no null vector, and a partition function
    // below the smallest number.
    let graph = graph_of(&vec![0.0; n * n], n);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let quadrature = Quadrature::run(&operator, &QuadratureOptions::default()).unwrap();
    for beta in [1e-9, 1.0, 1e4, 1e8] {
        let free_energy = quadrature.free_energy(beta).unwrap();
        close(&format!("free energy of 1s at {beta}"), free_energy.value, 1.0, 1e-12);
        assert_eq!(quadrature.heat_capacity(beta).unwrap().value, 0.0, "at {beta}");
    }
    assert_eq!(quadrature.partition(1e4).unwrap().value, 0.0);
    for beta in [1.01 * MAX_EXPONENT, f64::MAX] {
        assert!(matches!(quadrature.partition(beta), Err(Error::Range { what: "β", .. })));
        assert!(quadrature.free_energy(beta).is_err() && quadrature.heat_capacity(beta).is_err());
    }
}

#[test]
fn large_beta_sees_the_lowest_levels() {
    // With as many steps as dimensions the rules are exact, and only probes scatter.
    let n = 40;
    let graph = graph_of(&attention_like(&mut Random::new(43), n, 6.0, 0.0), n);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let values = eigenvalues(&operator.dense().unwrap(), n).unwrap();
    for beta in [8.0, 32.0, 128.0] {
        let (free_energy, heat_capacity) = reference::free_energy_and_heat_capacity(&values, beta);
        let (mut free, mut heat) = (0, 0);
        for seed in 0..100 {
            let options = QuadratureOptions { n_probes: 32, steps: 64, seed };
            let quadrature = Quadrature::run(&operator, &options).unwrap();
            // 95 % of Student's distribution with 31 degrees of freedom, and rounding.
            let covers = |got: Estimate, expected: f64| {
                (got.value - expected).abs() <= 2.04 * got.error + 1e-12 * expected
            };
            free += u32::from(covers(quadrature.free_energy(beta).unwrap(), free_energy));
            heat += u32::from(covers(quadrature.heat_capacity(beta).unwrap(), heat_capacity));
        }
        assert!(free >= 80 && heat >= 80, "β = {beta}: {free} and {heat} of 100 within two errors");
    }
}

#[test]
fn what_fewer_steps_change_is_more_than_what_steps_leave_out() {
    let n = 300;
    for (sharpness, kind) in
        [(0.5, Laplacian::SymmetricNormalized), (3.0, Laplacian::Combinatorial)]
    {
        let graph = graph_of(&attention_like(&mut Random::new(47), n, sharpness, 1.0), n);
        let operator = LaplacianOperator::new(&graph, kind);
        let run = |steps| {
            let options = QuadratureOptions { n_probes: 8, steps, seed: 5 };
            Quadrature::run(&operator, &options).unwrap()
        };
        let functionals = |quadrature: &Quadrature| {
            [
                quadrature.partition(4.0).unwrap().value,
                quadrature.free_energy(4.0).unwrap().value,
                quadrature.heat_capacity(4.0).unwrap().value,
                quadrature.eigenvalue_entropy().unwrap().unwrap().value,
            ]
        };
        let whole = functionals(&run(200));
        for steps in [6, 8, 12] {
            let few = run(steps);
            let shorter = few.shortened().unwrap().unwrap();
            assert_eq!(shorter.coefficients(), run(3 * steps / 4).coefficients());
            let values = functionals(&few).into_iter().zip(functionals(&shorter));
            for (k, ((few, shorter), whole)) in values.zip(whole).enumerate() {
                let (left_out, change) = ((few - whole).abs(), (few - shorter).abs());
                let rounding = 1e-10 * whole.abs();
                assert!(left_out <= change + rounding, "{kind}, {steps}, {k}: {left_out} {change}");
            }
        }
    }
    // Three nodes take no more than two steps.
    let graph = graph_of(&complete(3), 3);
    let operator = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
    for steps in [2, 64] {
        let options = QuadratureOptions { n_probes: 8, steps, seed: 1 };
        assert_eq!(Quadrature::run(&operator, &options).unwrap().shortened().unwrap(), None);
    }
}

#[test]
fn coefficients_make_the_same_quadrature() {
    for (n, kind) in [
        (0usize, Laplacian::Combinatorial),
        (1, Laplacian::Combinatorial),
        (2, Laplacian::SymmetricNormalized),
        (33, Laplacian::RandomWalk),
        (90, Laplacian::Combinatorial),
    ] {
        let graph = graph_of(&attention_like(&mut Random::new(53), n, 2.0, 3.0), n);
        let operator = LaplacianOperator::new(&graph, kind);
        let options = QuadratureOptions { n_probes: 9, steps: 40, seed: 3 };
        let quadrature = Quadrature::run(&operator, &options).unwrap();
        let again = Quadrature::from_coefficients(quadrature.coefficients().clone()).unwrap();
        assert_eq!(again, quadrature, "{n} nodes, {kind}");
    }
}

/// A stored graph that claims to multiply many vectors as cheaply as one.
struct Together(SymmetricGraph);

impl Adjacency for Together {
    const TOGETHER: bool = true;

    fn n_nodes(&self) -> usize {
        self.0.n_nodes()
    }

    fn padded_degrees(&self) -> &[f64] {
        Adjacency::padded_degrees(&self.0)
    }

    fn self_loops(&self) -> Vec<f64> {
        Adjacency::self_loops(&self.0)
    }

    fn product(&self, x: &[f64], y: &mut [f64]) {
        Adjacency::product(&self.0, x, y);
    }

    fn block_product(&self, x: &[[f64; LANES]], y: &mut [[f64; LANES]]) {
        Adjacency::block_product(&self.0, x, y);
    }

    fn sum_below_diagonal<F>(&self, term: F) -> f64
    where
        F: Fn(usize, usize, [f64; LANES]) -> [f64; LANES] + Sync,
    {
        Adjacency::sum_below_diagonal(&self.0, term)
    }
}

#[test]
fn probes_that_go_together_are_the_same_probes() {
    for n in [1usize, 2, 5, 40, 131] {
        let graph = || graph_of(&attention_like(&mut Random::new(73), n, 2.0, 2.0), n);
        let (alone, together) = (graph(), Together(graph()));
        for kind in [Laplacian::Combinatorial, Laplacian::RandomWalk] {
            let alone = LaplacianOperator::new(&alone, kind);
            let together = LaplacianOperator::new(&together, kind);
            let options = QuadratureOptions { n_probes: 19, steps: 24, seed: 11 };
            let a = Quadrature::run(&alone, &options).unwrap();
            let b = Quadrature::run(&together, &options).unwrap();
            let lengths = |q: &Quadrature| -> Vec<usize> {
                q.recurrences().iter().map(|r| r.alpha.len()).collect()
            };
            assert_eq!(lengths(&a), lengths(&b), "{n} nodes, {kind}");
            let (a, b) = (a.partition(2.0).unwrap(), b.partition(2.0).unwrap());
            close(&format!("{n} nodes, {kind}"), b.value, a.value, 1e-9 * a.value);
            close(&format!("{n} nodes, {kind}: error"), b.error, a.error, 1e-9 * a.value);
            let (mut first, mut second) = (Vec::new(), Vec::new());
            let lanczos = LanczosOptions::default();
            extremes_and_vector(&alone, &lanczos, &mut first).unwrap();
            let found = extremes_and_vector(&together, &lanczos, &mut second).unwrap();
            assert_eq!(found, extremes(&together, &lanczos).unwrap());
            assert_eq!((first.len(), second.len()), if n < 2 { (0, 0) } else { (n, n) });
            if n >= 2 {
                let overlap: f64 = first.iter().zip(&second).map(|(u, v)| u * v).sum();
                close(&format!("{n} nodes, {kind}: vector"), overlap.abs(), 1.0, 1e-6);
            }
        }
    }
}

#[test]
fn coefficients_of_no_laplacian_are_refused() {
    let graph = graph_of(&attention_like(&mut Random::new(59), 50, 2.0, 3.0), 50);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let options = QuadratureOptions { n_probes: 8, steps: 20, seed: 3 };
    let good = Quadrature::run(&operator, &options).unwrap().coefficients().clone();
    type Damage = fn(&mut Coefficients);
    let damages: [(&str, Damage); 16] = [
        ("dimension", |c| c.dimension = 51),
        ("dimension", |c| c.dimension = 48),
        ("dimension", |c| (c.n_nodes, c.dimension) = (usize::MAX, 0)),
        ("trace", |c| c.trace = f64::NAN),
        ("trace", |c| c.trace = -1.0),
        ("number of steps", |c| c.steps = 0),
        ("number of steps", |c| c.steps = usize::MAX),
        ("number of probes", |c| c.recurrences.truncate(7)),
        ("number of probes", |c| c.recurrences.clear()),
        ("α of a probe", |c| c.steps = 19),
        ("α of a probe", |c| c.recurrences[3].alpha.clear()),
        ("β of a probe", |c| c.recurrences[3].beta.push(0.5)),
        ("β of a probe", |c| c.recurrences[3].beta[2] = -0.1),
        ("α", |c| c.recurrences[7].alpha[19] = f64::INFINITY),
        ("eigenvalue", |c| c.recurrences[0].alpha[0] = -5.0),
        ("eigenvalue", |c| c.recurrences[0].alpha[0] = 1e300),
    ];
    for (what, damage) in damages {
        let mut coefficients = good.clone();
        damage(&mut coefficients);
        let error = Quadrature::from_coefficients(coefficients).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    // Sound in every number, and yet without a thermal average.
    let mut huge = good;
    (huge.n_nodes, huge.dimension, huge.trace) = (usize::MAX, usize::MAX - 1, 1e308);
    for recurrence in &mut huge.recurrences {
        recurrence.alpha.iter_mut().for_each(|alpha| *alpha = 1e300);
    }
    let huge = Quadrature::from_coefficients(huge).unwrap();
    assert!(huge.trace_of(|value| value * value).is_err());
}

#[test]
fn the_fiedler_vector_has_the_residual_that_is_reported() {
    for (n, kind) in [
        (2usize, Laplacian::Combinatorial),
        (17, Laplacian::SymmetricNormalized),
        (120, Laplacian::RandomWalk),
    ] {
        let graph = graph_of(&attention_like(&mut Random::new(61), n, 2.0, 3.0), n);
        let operator = LaplacianOperator::new(&graph, kind);
        let (options, mut vector) = (LanczosOptions::default(), vec![7.0]);
        let found = extremes_and_vector(&operator, &options, &mut vector).unwrap();
        assert_eq!(found, extremes(&operator, &options).unwrap());
        let fiedler = found.fiedler.unwrap();
        let what = format!("{n} nodes, {kind}");
        assert_eq!(vector.len(), n, "{what}");
        let matrix = operator.dense().unwrap();
        let product: Vec<f64> =
            matrix.chunks(n).map(|row| row.iter().zip(&vector).map(|(l, v)| l * v).sum()).collect();
        let rest = product.iter().zip(&vector).map(|(p, v)| (p - fiedler.value * v).powi(2));
        close(&what, rest.sum::<f64>().sqrt(), fiedler.residual, 1e-13);
        close(&what, vector.iter().map(|v| v * v).sum(), 1.0, 1e-13);
        let along: f64 =
            operator.null_vector().unwrap().iter().zip(&vector).map(|(u, v)| u * v).sum();
        close(&what, along, 0.0, 1e-13);
        let dense = eigh(&matrix, n).unwrap();
        let overlap: f64 = dense.vector(1).iter().zip(&vector).map(|(u, v)| u * v).sum();
        close(&what, overlap.abs(), 1.0, 1e-9);
    }
    // One node, and a search that was cut short.
    let graph = graph_of(&[1.0], 1);
    let operator = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
    let mut vector = vec![7.0];
    extremes_and_vector(&operator, &LanczosOptions::default(), &mut vector).unwrap();
    assert!(vector.is_empty());
    let graph = graph_of(&attention_like(&mut Random::new(67), 200, 2.0, 3.0), 200);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let options = LanczosOptions { max_steps: 3, ..LanczosOptions::default() };
    assert!(extremes_and_vector(&operator, &options, &mut vector).is_err());
    assert_eq!(vector.len(), 200);
}
