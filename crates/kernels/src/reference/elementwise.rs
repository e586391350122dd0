use crate::activation::ActivationFunction;

/// `w_i x_i / √(mean x² + ε)`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(w) * (f64::from(x) * scale)).collect()
}

/// `(x_i − μ) / √(σ² + ε) · w_i + b_i`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + eps).sqrt();
    let y = |i: usize| f64::from(weight[i]) * ((f64::from(x[i]) - mean) * scale);
    (0..x.len()).map(|i| y(i) + bias.map_or(0.0, |bias| f64::from(bias[i]))).collect()
}

/// `e^{x_i − m} / Σ_j e^{x_j − m}`, `m` the largest of `x`.
pub fn softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
    let powers: Vec<f64> = x.iter().map(|&x| (f64::from(x) - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// `c tanh(x / c)`.
pub fn soft_cap(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

/// The activation function at `x`.
pub fn activation(f: ActivationFunction, x: f64) -> f64 {
    match f {
        ActivationFunction::Silu => x / (1.0 + (-x).exp()),
        ActivationFunction::Gelu => {
            0.5 * x * candle_core::cpu::erf::erfc_f64(-x / std::f64::consts::SQRT_2)
        }
        ActivationFunction::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        ActivationFunction::Relu => x.max(0.0),
    }
}

/// Rotates the first `2 · inv_freq.len()` elements of `x`, the vector of one head at `pos`.
pub fn rotary(x: &[f32], inv_freq: &[f64], attention_scale: f64, pos: usize) -> Vec<f64> {
    let mut y: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let half = inv_freq.len();
    for (i, frequency) in inv_freq.iter().enumerate() {
        let (low, high) = (f64::from(x[i]), f64::from(x[half + i]));
        let (sin, cos) = (pos as f64 * frequency).sin_cos();
        y[i] = attention_scale * (low * cos - high * sin);
        y[half + i] = attention_scale * (high * cos + low * sin);
    }
    y
}

/// Puts the first `lengths[b]` of each row's `t` tokens into a cache of `s` positions, from
/// `offsets[b]` on; `width` numbers a token.
pub fn cache_append(
    cache: &mut [f64],
    new: &[f64],
    [t, s, width]: [usize; 3],
    lengths: &[usize],
    offsets: &[usize],
) {
    for (b, (&length, &offset)) in lengths.iter().zip(offsets).enumerate() {
        for token in (0..length).take_while(|token| offset + token < s) {
            for i in 0..width {
                cache[(b * s + offset + token) * width + i] = new[(b * t + token) * width + i];
            }
        }
    }
}
