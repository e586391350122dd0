use super::{activation, linear};
use crate::activation::ActivationFunction;

/// One token through its experts: `Σ_r w_r · down(f(gate(x)) · up(x))` for experts with
/// weights `gate [m, d]`, `up [m, d]`, `down [d, m]`, given with their `w_r`.
pub fn moe_token(x: &[f32], experts: &[(f32, [&[f32]; 3])], f: ActivationFunction) -> Vec<f64> {
    let d = x.len();
    let mut y = vec![0.0; d];
    for &(weight, [gate, up, down]) in experts {
        let m = gate.len() / d;
        let (gate, up) = (linear(x, gate, None, 1, m, d), linear(x, up, None, 1, m, d));
        for (i, y) in y.iter_mut().enumerate() {
            for j in 0..m {
                let hidden = activation(f, gate[j]) * up[j];
                *y += f64::from(weight) * hidden * f64::from(down[i * m + j]);
            }
        }
    }
    y
}
