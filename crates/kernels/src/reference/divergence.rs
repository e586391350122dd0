/// `KL(p‖q)` in nats of two rows of logits, by their probabilities.
pub fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (probabilities(p), probabilities(q));
    p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum()
}

/// `−ln p_t` in nats of a row of logits and a token, by its probability.
pub fn surprisal(logits: &[f32], token: usize) -> f64 {
    -probabilities(logits)[token].ln()
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
    let exp: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}
