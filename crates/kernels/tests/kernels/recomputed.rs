//! The graph made anew from queries and keys against the stored one, and against
//! plain loops in `f64`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::Tensor;
use kernels::Error;
use kernels::adjacency::Adjacency;
use kernels::attention::{
    AttentionFactors, AttentionInput, AttentionOptions, AttentionWants, RecomputedGraph, attention,
    attention_pattern,
};
use kernels::graph::{LANES, Patterns, SymmetricGraph};
use kernels::heat::{Probes, heat_estimates};
use kernels::lanczos::{LanczosOptions, extremes};
use kernels::laplacian::{Laplacian, LaplacianOperator};
use kernels::signal::{self, Signal};
use testkit::Data;

use super::on_threads;

#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    d_head: usize,
    n: usize,
    window: Option<usize>,
    soft_cap: Option<f64>,
    sharpness: f64,
}

const PLAIN: Case =
    Case { heads: 2, kv_heads: 2, d_head: 16, n: 5, window: None, soft_cap: None, sharpness: 1.0 };

const GROUPED: Case = Case { heads: 6, kv_heads: 2, d_head: 33, ..PLAIN };

const CASES: &[Case] = &[
    Case { n: 1, ..PLAIN },
    Case { n: 2, d_head: 1, ..PLAIN },
    Case { n: 3, ..GROUPED },
    Case { n: 31, ..PLAIN },
    Case { n: 33, ..GROUPED },
    Case { n: 84, heads: 1, kv_heads: 1, ..PLAIN },
    Case { n: 85, ..GROUPED },
    Case { n: 169, sharpness: 8.0, ..PLAIN },
    Case { n: 301, d_head: 64, heads: 3, kv_heads: 1, sharpness: 30.0, ..PLAIN },
    Case { n: 50, window: Some(1), ..PLAIN },
    Case { n: 90, window: Some(7), ..GROUPED },
    Case { n: 400, window: Some(64), ..GROUPED },
    Case { n: 170, soft_cap: Some(0.5), ..GROUPED },
    Case { n: 300, soft_cap: Some(50.0), sharpness: 20.0, window: Some(130), ..PLAIN },
];

impl Case {
    fn options(&self) -> AttentionOptions {
        let scale = self.sharpness / (self.d_head as f64).sqrt();
        AttentionOptions { scale, window: self.window, soft_cap: self.soft_cap }
    }

    /// `[pos, head, d_head]`; the first key draws attention, as in real models.
    fn queries_and_keys(&self) -> (Tensor, Tensor) {
        let mut data = Data::new(7);
        let q = data.tensor(&[self.n, self.heads, self.d_head]);
        (q, data.tensor(&[self.n, self.kv_heads, self.d_head]))
    }

    /// Patterns `[head, query_pos, key_pos]` and log-sum-exp `[head, pos]`.
    fn patterns_and_lse(&self, q: &Tensor, k: &Tensor) -> (Tensor, Tensor) {
        let (q, k) = (q.unsqueeze(0).unwrap(), k.unsqueeze(0).unwrap());
        let input = AttentionInput { q: &q, k: &k, v: &k, lengths: &[self.n], offsets: &[0] };
        let heads: Vec<usize> = (0..self.heads).collect();
        let pattern = attention_pattern(&input, &self.options(), &heads).unwrap();
        let wants = AttentionWants { lse: true, ..AttentionWants::default() };
        let lse = attention(&input, &self.options(), &wants).unwrap().lse.unwrap();
        (pattern.get(0).unwrap(), lse.get(0).unwrap())
    }

    fn factors(&self) -> (Arc<AttentionFactors>, Tensor) {
        let (q, k) = self.queries_and_keys();
        let (pattern, lse) = self.patterns_and_lse(&q, &k);
        let factors = AttentionFactors::new(&q, &k, &lse, &self.options()).unwrap();
        (Arc::new(factors), pattern)
    }

    /// `½(A + Aᵀ)` of the mean over heads among the tokens from `skip` on, in `f64`.
    fn plain(&self, skip: usize) -> Vec<f64> {
        let (q, k) = self.queries_and_keys();
        let read = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (q, k, d) = (read(&q), read(&k), self.d_head);
        let mut mean = vec![0.0; self.n * self.n];
        for head in 0..self.heads {
            let kv_head = head * self.kv_heads / self.heads;
            for u in 0..self.n {
                let first = self.window.map_or(0, |w| (u + 1).saturating_sub(w));
                let scores: Vec<f64> = (first..=u)
                    .map(|j| {
                        let (a, b) =
                            ((u * self.heads + head) * d, (j * self.kv_heads + kv_head) * d);
                        let pairs = q[a..a + d].iter().zip(&k[b..b + d]);
                        let product: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        let score = product * self.options().scale;
                        self.soft_cap.map_or(score, |c| c * (score / c).tanh())
                    })
                    .collect();
                let top = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for (j, score) in (first..=u).zip(scores) {
                    mean[u * self.n + j] += (score - top).exp() / total / self.heads as f64;
                }
            }
        }
        let m = self.n - skip;
        let at = |i: usize, j: usize| mean[(i + skip) * self.n + j + skip];
        (0..m * m).map(|ij| 0.5 * (at(ij / m, ij % m) + at(ij % m, ij / m))).collect()
    }
}

fn stored(pattern: &Tensor, heads: std::ops::Range<usize>, skip: usize) -> SymmetricGraph {
    let patterns = Patterns::new(pattern).unwrap();
    let all = patterns.heads().unwrap();
    let views = all[heads].iter();
    let views = views.map(|view| if skip == 1 { view.without_first() } else { *view });
    SymmetricGraph::mean(&views.collect::<Vec<_>>()).unwrap()
}

fn padded(n: usize, values: &[f64]) -> Vec<f64> {
    let mut padded = values.to_vec();
    padded.resize(n.next_multiple_of(LANES), 0.0);
    padded
}

fn apply(graph: &impl Adjacency, x: &[f64]) -> Vec<f64> {
    let x = padded(graph.n_nodes(), x);
    let mut y = vec![0.0; x.len()];
    graph.product(&x, &mut y);
    y.truncate(graph.n_nodes());
    y
}

fn close(what: &str, got: f64, expected: f64, tolerance: f64) {
    let difference = (got - expected).abs();
    assert!(difference <= tolerance, "{what}: {got:e}, expected {expected:e} within {tolerance:e}");
}

/// Largest difference over the largest entry.
fn apart(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    got.iter().zip(expected).fold(0.0, |m, (g, e)| {
        let difference = (g - e).abs();
        assert!(difference.is_finite());
        f64::max(m, difference)
    }) / largest
}

/// Scores are rounded to `f32`, and a rounded score `s` moves its weight by
/// `|s| 2^-24`, relatively: 1e-6 for the sharpest case here, whose scores reach 150.
fn tolerance(case: &Case) -> f64 {
    2e-7 * (1.0 + case.sharpness)
}

#[test]
fn products_are_those_of_the_stored_graph_and_of_plain_loops() {
    let mut worst = (0.0_f64, 0.0_f64);
    for case in CASES {
        let (factors, pattern) = case.factors();
        for skip in [0, 1] {
            let n = case.n - skip;
            let graph = RecomputedGraph::new(factors.clone(), 0..case.heads, skip..case.n).unwrap();
            let stored = stored(&pattern, 0..case.heads, skip);
            let plain = case.plain(skip);
            let what = format!("{case:?}, {skip} skipped");
            assert_eq!(graph.n_nodes(), n);
            let mut data = Data::new(11);
            let x: Vec<f64> = data.normal(n).into_iter().map(f64::from).collect();
            let expected: Vec<f64> =
                (0..n).map(|i| (0..n).map(|j| plain[i * n + j] * x[j]).sum()).collect();
            let product = apply(&graph, &x);
            let (from_stored, from_plain) =
                (apart(&product, &apply(&stored, &x)), apart(&product, &expected));
            worst = (worst.0.max(from_stored), worst.1.max(from_plain));
            assert!(from_stored <= tolerance(case), "{what}: {from_stored:e} from stored");
            assert!(from_plain <= tolerance(case), "{what}: {from_plain:e} from plain");
            let degrees: Vec<f64> =
                (0..n).map(|i| plain[i * n..(i + 1) * n].iter().sum()).collect();
            assert!(apart(graph.degrees(), &degrees) <= tolerance(case), "{what}: degrees");
            let loops: Vec<f64> = (0..n).map(|i| plain[i * n + i]).collect();
            assert!(apart(&graph.self_loops(), &loops) <= tolerance(case), "{what}: self-loops");
            // Every column of a block is the product of that vector alone.
            let block: Vec<[f64; LANES]> = padded(n, &x)
                .iter()
                .map(|x| std::array::from_fn(|c| x * (c as f64 - 3.0)))
                .collect();
            let mut y = vec![[0.0; LANES]; block.len()];
            graph.block_product(&block, &mut y);
            for c in [0, 4, 7] {
                let own: Vec<f64> = block[..n].iter().map(|row| row[c]).collect();
                let got: Vec<f64> = y[..n].iter().map(|row| row[c]).collect();
                assert_eq!(got, apply(&graph, &own), "{what}: column {c}");
            }
            assert!(y[n..].iter().flatten().all(|v| *v == 0.0), "{what}: padding");
        }
    }
    println!("largest differences: {:e} from stored, {:e} from plain loops", worst.0, worst.1);
}

#[test]
fn measures_are_those_of_the_stored_graph() {
    let options = LanczosOptions::default();
    for case in CASES {
        let (factors, pattern) = case.factors();
        for (heads, skip) in
            [(0..case.heads, 1), (0..case.heads, 0), (case.heads - 1..case.heads, 1)]
        {
            let graph = RecomputedGraph::new(factors.clone(), heads.clone(), skip..case.n).unwrap();
            let stored = stored(&pattern, heads.clone(), skip);
            let n = graph.n_nodes();
            let signal = Data::new(5).normal(n * 7).into_iter().map(f64::from).collect();
            let signal = Signal::new(signal, n, 7).unwrap();
            let probes = Probes::new(&signal, 3);
            let gram = signal.gram().unwrap();
            for kind in
                [Laplacian::Combinatorial, Laplacian::SymmetricNormalized, Laplacian::RandomWalk]
            {
                let what = format!("{case:?}, heads {heads:?}, {skip} skipped, {kind}");
                let (ours, theirs) =
                    (LaplacianOperator::new(&graph, kind), LaplacianOperator::new(&stored, kind));
                let scale = theirs.upper_bound().max(1e-3);
                let within = 4.0 * tolerance(case) * scale;
                let (got, expected) =
                    (extremes(&ours, &options).unwrap(), extremes(&theirs, &options).unwrap());
                for (got, expected) in
                    [(got.fiedler, expected.fiedler), (got.lambda_max, expected.lambda_max)]
                {
                    assert_eq!(got.is_some(), expected.is_some(), "{what}");
                    if let (Some(got), Some(expected)) = (got, expected) {
                        close(&what, got.value, expected.value, within);
                        assert!(got.residual <= 1e-8 * ours.typical_scale().max(1e-3), "{what}");
                    }
                }
                assert!(got.seeds_agree, "{what}: {got:?}");
                if let (Some(got), Some(expected)) =
                    (ours.spectrum_moments(), theirs.spectrum_moments())
                {
                    close(&what, got.mean, expected.mean, within);
                    close(&what, got.variance, expected.variance, within * scale);
                }
                let energy = signal::energy_of(&ours, &signal).unwrap();
                let expected = signal::energy(&theirs, &gram).unwrap();
                close(&what, energy, expected, tolerance(case) * expected);
                let dirichlet = signal::dirichlet_energy_of(&ours, &signal).unwrap();
                let expected = signal::dirichlet_energy(&theirs, &gram).unwrap();
                close(&what, dirichlet, expected, within * signal.energy().max(1.0));
                if n > 0 && energy > 0.0 {
                    let times = [1.0, 5.0];
                    let got = heat_estimates(&ours, &probes, energy, dirichlet, times).unwrap();
                    let expected =
                        heat_estimates(&theirs, &probes, energy, dirichlet, times).unwrap();
                    for (got, expected) in got.iter().zip(expected) {
                        close(&what, got.value, expected.value, 20.0 * within);
                    }
                }
            }
        }
    }
}

#[test]
fn a_leading_block_is_the_graph_of_the_prefix() {
    for case in [CASES[8], CASES[11], CASES[12]] {
        let (factors, _) = case.factors();
        let whole = RecomputedGraph::new(factors.clone(), 0..case.heads, 1..case.n).unwrap();
        for t in [0, 1, 40, 83, 84, 130, case.n - 1] {
            let leading = whole.leading(t).unwrap();
            // Of queries and keys that end there.
            let (q, k) = case.queries_and_keys();
            let (q, k) = (q.narrow(0, 0, t + 1).unwrap(), k.narrow(0, 0, t + 1).unwrap());
            let (_, lse) = Case { n: t + 1, ..case }.patterns_and_lse(&q, &k);
            let own = AttentionFactors::new(&q, &k, &lse, &case.options()).unwrap();
            let own = RecomputedGraph::new(Arc::new(own), 0..case.heads, 1..t + 1).unwrap();
            assert_eq!(leading.self_loops(), own.self_loops(), "{case:?}: {t}");
            // Threads' pieces, and so the order of sums, depend on the number of tokens alone.
            assert_eq!(leading.degrees(), own.degrees(), "{case:?}: {t}");
        }
        assert!(matches!(whole.leading(case.n), Err(Error::Range { .. })));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let case = Case { n: 700, ..GROUPED };
    let all = |threads| {
        on_threads(threads, || {
            let (factors, _) = case.factors();
            let graph = RecomputedGraph::new(factors, 0..case.heads, 1..case.n).unwrap();
            let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
            let signal = Data::new(5).normal(graph.n_nodes() * 3);
            let signal = signal.into_iter().map(f64::from).collect();
            let signal = Signal::new(signal, graph.n_nodes(), 3).unwrap();
            let found = extremes(&operator, &LanczosOptions::default()).unwrap();
            let dirichlet = signal::dirichlet_energy_of(&operator, &signal).unwrap();
            (graph.degrees().to_vec(), found, dirichlet, operator.spectrum_moments())
        })
    };
    assert_eq!(all(1), all(3));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let case = Case { n: 40, ..GROUPED };
    let (q, k) = case.queries_and_keys();
    let (_, lse) = case.patterns_and_lse(&q, &k);
    let options = case.options();
    let new = |q: &Tensor, k: &Tensor, lse: &Tensor, options| {
        AttentionFactors::new(q, k, lse, &options).unwrap_err()
    };
    let other_scale = AttentionOptions { scale: 2.0 * options.scale, ..options };
    let message = new(&q, &k, &lse, other_scale).to_string();
    assert!(message.contains("for query 0 of head 0"), "{message}");
    let windowed = AttentionOptions { window: Some(3), ..options };
    assert!(matches!(new(&q, &k, &lse, windowed), Error::Range { .. }));
    let not_a_number = (&q * f64::NAN).unwrap();
    assert!(matches!(new(&not_a_number, &k, &lse, options), Error::Range { .. }));
    let short = k.narrow(0, 0, 39).unwrap();
    assert!(matches!(new(&q, &short, &lse, options), Error::Shape { what: "k", .. }));
    let turned = lse.t().unwrap().contiguous().unwrap();
    assert!(matches!(new(&q, &k, &turned, options), Error::Shape { what: "lse", .. }));
    let factors = Arc::new(AttentionFactors::new(&q, &k, &lse, &options).unwrap());
    for (heads, tokens) in [(0..7, 0..40), (3..3, 0..40), (0..6, 0..41)] {
        let refused = RecomputedGraph::new(factors.clone(), heads, tokens);
        assert!(matches!(refused, Err(Error::Range { .. })));
    }
}

#[test]
fn stored_weights_are_those_of_the_pattern() {
    for case in [CASES[2], CASES[8], CASES[10], CASES[11]] {
        let (factors, pattern) = case.factors();
        for skip in [0, 1] {
            let graph = RecomputedGraph::new(factors.clone(), 0..case.heads, skip..case.n).unwrap();
            let (ours, theirs) = (graph.stored().unwrap(), stored(&pattern, 0..case.heads, skip));
            for i in 0..graph.n_nodes() {
                for j in 0..graph.n_nodes() {
                    let (got, expected) = (ours.weight(i, j), theirs.weight(i, j));
                    let within = 4.0 * tolerance(&case) as f32 * expected.max(1e-4);
                    assert!((got - expected).abs() <= within, "{case:?}: {got:e} {expected:e}");
                }
            }
            assert!(apart(ours.degrees(), theirs.degrees()) <= tolerance(&case));
        }
    }
}
