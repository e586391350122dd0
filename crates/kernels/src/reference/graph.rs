//! Attention graph and Laplacians, entry by entry.

use crate::laplacian::Laplacian;

/// `½(Ā + Āᵀ)`, `Ā` the mean of `n × n` patterns, row-major.
pub fn symmetric_weights(patterns: &[Vec<f64>], n: usize) -> Vec<f64> {
    let mut weights = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            let mut sum = 0.0;
            for a in patterns {
                sum += 0.5 * (a[i * n + j] + a[j * n + i]);
            }
            weights[i * n + j] = sum / patterns.len() as f64;
        }
    }
    weights
}

/// The Laplacian of `n × n` symmetric weights, row-major; `RandomWalk` is not symmetric.
pub fn laplacian(weights: &[f64], n: usize, kind: Laplacian) -> Vec<f64> {
    let degrees: Vec<f64> = weights.chunks(n.max(1)).map(|row| row.iter().sum()).collect();
    let mut matrix = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            let identity = if i == j { 1.0 } else { 0.0 };
            let w = weights[i * n + j];
            matrix[i * n + j] = match kind {
                Laplacian::Combinatorial => degrees[i] * identity - w,
                Laplacian::SymmetricNormalized if degrees[i] == 0.0 || degrees[j] == 0.0 => {
                    identity
                }
                Laplacian::RandomWalk if degrees[i] == 0.0 => identity,
                Laplacian::RandomWalk => identity - w / degrees[i],
                Laplacian::SymmetricNormalized => identity - w / (degrees[i] * degrees[j]).sqrt(),
            };
        }
    }
    matrix
}
