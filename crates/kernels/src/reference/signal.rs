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

/// `Tr(XᵀDX)`, `D` the diagonal matrix of `weights`.
pub fn weighted_energy(weights: &[f64], signal: &[f64], d: usize) -> f64 {
    let mut energy = 0.0;
    for (i, weight) in weights.iter().enumerate() {
        for c in 0..d {
            energy += weight * signal[i * d + c] * signal[i * d + c];
        }
    }
    energy
}

/// `e^{−tL} X` of an `n × n` Laplacian and an `n × d` signal, row-major:
/// the exponential's power series, over steps of time so short that it converges fast.
pub fn diffuse(laplacian: &[f64], signal: &[f64], n: usize, d: usize, time: f64) -> Vec<f64> {
    let largest_row = (0..n)
        .map(|i| laplacian[i * n..(i + 1) * n].iter().map(|v| v.abs()).sum::<f64>())
        .fold(0.0, f64::max);
    let steps = (2.0 * time * largest_row).ceil().max(1.0);
    let mut y = signal.to_vec();
    for _step in 0..steps as usize {
        let mut term = y.clone();
        for order in 1..24 {
            let mut next = vec![0.0; n * d];
            for i in 0..n {
                for j in 0..n {
                    for c in 0..d {
                        next[i * d + c] -= time / steps / f64::from(order)
                            * laplacian[i * n + j]
                            * term[j * d + c];
                    }
                }
            }
            term = next;
            for (y, t) in y.iter_mut().zip(&term) {
                *y += t;
            }
        }
    }
    y
}

/// `Tr(Xᵀ e^{−tL} X)` of an `n × n` Laplacian and an `n × d` signal, row-major.
pub fn heat_trace(laplacian: &[f64], signal: &[f64], n: usize, d: usize, time: f64) -> f64 {
    diffuse(laplacian, signal, n, d, time).iter().zip(signal).map(|(y, x)| y * x).sum()
}

/// `Σ_{λ_k ≥ cut} e_k / Σ e_k`, eigenvalues within `tolerance` below the cut included.
pub fn energy_share_from(values: &[f64], energies: &[f64], cut: f64, tolerance: f64) -> f64 {
    let (mut above, mut total) = (0.0, 0.0);
    for (value, energy) in values.iter().zip(energies) {
        total += energy;
        if *value >= cut - tolerance {
            above += energy;
        }
    }
    above / total
}

/// Mean of `min/max` over neighbouring spacings of eigenvalues, those within
/// `tolerance` taken for 0, and the number of pairs of zeros, which are left out.
/// Not a number without another pair.
pub fn spacing_ratio(values: &[f64], tolerance: f64) -> (f64, usize) {
    let (mut sum, mut pairs, mut zero_pairs) = (0.0, 0.0, 0);
    for k in 2..values.len() {
        let mut spacings = [values[k - 1] - values[k - 2], values[k] - values[k - 1]];
        for spacing in &mut spacings {
            if *spacing <= tolerance {
                *spacing = 0.0;
            }
        }
        if spacings == [0.0, 0.0] {
            zero_pairs += 1;
        } else {
            sum += f64::min(spacings[0], spacings[1]) / f64::max(spacings[0], spacings[1]);
            pairs += 1.0;
        }
    }
    (sum / pairs, zero_pairs)
}

/// `(1/n) Σ_k` of normal densities of standard deviation `width` around the eigenvalues.
pub fn density_of_states(values: &[f64], x: f64, width: f64) -> f64 {
    let mut sum = 0.0;
    for value in values {
        let z = (x - value) / width;
        sum += (-0.5 * z * z).exp() / (width * (2.0 * std::f64::consts::PI).sqrt());
    }
    sum / values.len() as f64
}

/// `−ln(Z/n)/β` and `β² Var_β(λ)`, `Z = Σ e^{−βλ}`.
pub fn free_energy_and_heat_capacity(values: &[f64], beta: f64) -> (f64, f64) {
    let weights: Vec<f64> = values.iter().map(|value| (-beta * value).exp()).collect();
    let z: f64 = weights.iter().sum();
    let mean = weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / z;
    let squares = weights.iter().zip(values).map(|(w, v)| w * (v - mean) * (v - mean));
    (-(z / values.len() as f64).ln() / beta, beta * beta * squares.sum::<f64>() / z)
}

/// `|Σ_k e^{iλ_k τ}|²/n²`.
pub fn form_factor(values: &[f64], tau: f64) -> f64 {
    let re: f64 = values.iter().map(|value| (tau * value).cos()).sum();
    let im: f64 = values.iter().map(|value| (tau * value).sin()).sum();
    (re * re + im * im) / (values.len() * values.len()) as f64
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

/// The mean of `ln eig(ZZᵀ + ridge)`, `Z` an `n × d` signal, row-major, less the mean of
/// each row.
pub fn hidden_score(signal: &[f64], n: usize, d: usize, ridge: f64) -> f64 {
    let mut centred = signal.to_vec();
    for row in centred.chunks_exact_mut(d) {
        let mean = row.iter().sum::<f64>() / d as f64;
        for value in row {
            *value -= mean;
        }
    }
    let mut matrix = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            for c in 0..d {
                matrix[i * n + j] += centred[i * d + c] * centred[j * d + c];
            }
        }
        matrix[i * n + i] += ridge;
    }
    let (values, _) = super::eigh(&matrix, n);
    values.iter().map(|value| value.ln()).sum::<f64>() / n as f64
}
