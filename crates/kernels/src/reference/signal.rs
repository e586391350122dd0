//! Energies of a graph signal, as sums over pairs and modes.

/// `Tr(XᵀLX)` of an `n × n` Laplacian and an `n × d` signal, row-major.
pub fn dirichlet_energy(laplacian: &[f64], signal: &[f64], n: usize, d: usize) -> f64 {
    let mut energy = 0.0;
    for i in 0..n {
        for j in 0..n {
            for c in 0..d {
                energy += signal[i * d + c] * laplacian[i * n + j] * signal[j * d + c];
            }
        }
    }
    energy
}

/// `e_k = Σ_c (Σ_i u_ki x_ic)²`, row `k` of `vectors` being mode `k`.
pub fn mode_energies(vectors: &[f64], signal: &[f64], n: usize, d: usize) -> Vec<f64> {
    let mut energies = vec![0.0; n];
    for k in 0..n {
        for c in 0..d {
            let mut coefficient = 0.0;
            for i in 0..n {
                coefficient += vectors[k * n + i] * signal[i * d + c];
            }
            energies[k] += coefficient * coefficient;
        }
    }
    energies
}

/// Mean and variance of a list of eigenvalues.
pub fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    (mean, variance)
}

/// `−Σ p ln p`, `p` the shares of the weights, without those that are 0.
pub fn entropy(weights: &[f64]) -> f64 {
    let total: f64 = weights.iter().sum();
    let mut entropy = 0.0;
    for w in weights {
        if *w > 0.0 {
            entropy -= w / total * (w / total).ln();
        }
    }
    entropy
}
