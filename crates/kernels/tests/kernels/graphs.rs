//! Attention-like graphs, for the tests and the benches.

#![allow(clippy::unwrap_used)]

use kernels::graph::{PatternView, SymmetricGraph};
use kernels::random::SplitMix64;

pub struct Random(SplitMix64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        0.5 * (self.0.next_symmetric() + 1.0)
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// A causal softmax whose scores are products of random queries and keys of
/// width 16 scaled by `sharpness`, less a decay with distance, plus `sink` for
/// the first key.
pub fn attention_like(random: &mut Random, n: usize, sharpness: f64, sink: f64) -> Vec<f32> {
    const D: usize = 16;
    let mut vectors = || -> Vec<f64> { (0..n * D).map(|_| random.normal()).collect() };
    let (queries, keys) = (vectors(), vectors());
    let mut pattern = vec![0.0f32; n * n];
    for i in 0..n {
        let scores: Vec<f64> = (0..=i)
            .map(|j| {
                let product: f64 = queries[i * D..(i + 1) * D]
                    .iter()
                    .zip(&keys[j * D..(j + 1) * D])
                    .map(|(q, k)| q * k)
                    .sum();
                let bias = if j == 0 { sink } else { 0.0 };
                sharpness * product / (D as f64).sqrt() - 0.02 * (i - j) as f64 + bias
            })
            .collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
        let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        for (j, score) in scores.into_iter().enumerate() {
            pattern[i * n + j] = ((score - largest).exp() / total) as f32;
        }
    }
    pattern
}

pub fn graph_of(pattern: &[f32], n: usize) -> SymmetricGraph {
    SymmetricGraph::from_pattern(PatternView::new(pattern, n, n).unwrap()).unwrap()
}

pub fn head_mean(patterns: &[Vec<f32>], n: usize) -> SymmetricGraph {
    let views: Vec<_> = patterns.iter().map(|a| PatternView::new(a, n, n).unwrap()).collect();
    SymmetricGraph::mean(&views).unwrap()
}
