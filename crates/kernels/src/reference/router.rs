/// Softmax over all of `logits`, the `k` largest in descending order (ties to
/// the lower index, 0 and −0 among them; a NaN after everything else), and their
/// weights. Returns probabilities, indices, weights.
pub fn route_softmax_top_k(
    logits: &[f32],
    k: usize,
    renormalise: bool,
) -> (Vec<f64>, Vec<u32>, Vec<f64>) {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
    let exp: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    let probs: Vec<f64> = exp.iter().map(|e| e / sum).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let descending = |a: f32, b: f32| {
        let numbers = b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal);
        a.is_nan().cmp(&b.is_nan()).then(numbers)
    };
    order.sort_by(|&a, &b| descending(logits[a], logits[b]).then(a.cmp(&b)));
    order.truncate(k);
    let mut weights: Vec<f64> = order.iter().map(|&i| probs[i]).collect();
    if renormalise {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    (probs, order.into_iter().map(|i| i as u32).collect(), weights)
}
