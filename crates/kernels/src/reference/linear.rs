/// `y = x Wᵀ + b` for `x [m, k]`, `weight [n, k]`, `bias [n]`; returns `[m, n]`.
pub fn linear(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    m: usize,
    n: usize,
    k: usize,
) -> Vec<f64> {
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let mut sum = bias.map_or(0.0, |bias| f64::from(bias[j]));
            for c in 0..k {
                sum += f64::from(x[i * k + c]) * f64::from(weight[j * k + c]);
            }
            y[i * n + j] = sum;
        }
    }
    y
}
