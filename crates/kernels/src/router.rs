//! From router logits to the chosen experts and their weights.
//!
//! Four separate things leave a router: its logits, the probabilities over *all*
//! experts, the chosen experts, and the weights that multiply their outputs.
//! This module makes the last three from the first.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::cuda;
use crate::math::{exp, vectorised};
use crate::tensor::{self, Values};
use crate::{Error, Result};

const OP: &str = "route";

/// How experts are chosen and weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// Softmax over all experts, the `k` largest, their probabilities as weights.
    SoftmaxTopK {
        /// Whether the weights are divided by their sum over the `k` (as Mixtral does).
        renormalise: bool,
    },
}

/// What a router decided for each token.
#[derive(Clone, Debug)]
pub struct Routing {
    /// `[n, expert]`: softmax over all experts.
    pub probs: Tensor,
    /// `[n, k]`, `u32`: the chosen experts in descending order of the score that
    /// selects, ties to the lower index.
    pub indices: Tensor,
    /// `[n, k]`: what multiplies the experts' outputs, paired with the indices.
    pub weights: Tensor,
}

/// Chooses `k` experts for each row of `logits [n, expert]`.
///
/// # Numerics
///
/// Exponentials in `f32`, their sums in `f64`. A row with a NaN gives NaN
/// probabilities and weights; its indices are distinct, NaN last.
///
/// # Errors
///
/// [`Error::Range`] unless `1 ≤ k ≤` the number of experts; [`Error::Shape`],
/// [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
///
/// # References
///
/// Jiang et al., "Mixtral of experts", [arXiv:2401.04088](https://arxiv.org/abs/2401.04088), § 2.1.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use kernels::router::{Selection, route};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Probabilities 1/8, 1/2, 1/8, 1/4.
/// let ln2 = std::f32::consts::LN_2;
/// let logits = Tensor::new(&[[0.0, 2.0 * ln2, 0.0, ln2]], &Device::Cpu)?;
/// let routing = route(&logits, 3, Selection::SoftmaxTopK { renormalise: false })?;
/// assert_eq!(routing.indices.to_vec2::<u32>()?, [[1, 3, 0]]); // the tie to the lower index
/// let weights = routing.weights.to_vec2::<f32>()?;
/// assert!((weights[0][0] - 0.5).abs() < 1e-6 && (weights[0][2] - 0.125).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn route(logits: &Tensor, k: usize, rule: Selection) -> Result<Routing> {
    if let Some(machine) = cuda::machine(logits) {
        return cuda::router::route(machine, logits, k, rule);
    }
    let values = Values::new(OP, "logits", logits)?;
    let &[n, e] = values.dims() else {
        return Err(Error::shape(OP, "logits", "[n, expert]", values.dims()));
    };
    if k == 0 || k > e {
        let expected = format!("at least 1 and at most {e}, the number of experts");
        return Err(Error::range(OP, "k", expected, k));
    }
    let Selection::SoftmaxTopK { renormalise } = rule;
    let rows = values.rows();
    let mut probs = vec![0.0; tensor::size(OP, "probs", &[n, e])?];
    let mut weights = vec![0.0; n * k];
    let mut indices = vec![0; n * k];
    probs
        .par_chunks_exact_mut(e)
        .zip(weights.par_chunks_exact_mut(k))
        .zip(indices.par_chunks_exact_mut(k))
        .with_min_len(256)
        .enumerate()
        .for_each(|(row, ((probs, weights), indices))| {
            let logits = rows.row(row);
            softmax(logits, probs);
            largest(logits, indices);
            for (weight, &index) in weights.iter_mut().zip(&*indices) {
                *weight = probs[index as usize];
            }
            if renormalise {
                let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
                for weight in weights {
                    *weight = (f64::from(*weight) / sum) as f32;
                }
            }
        });
    Ok(Routing {
        probs: tensor::tensor(OP, probs, &[n, e])?,
        indices: Tensor::from_vec(indices, (n, k), &Device::Cpu).map_err(Error::candle(OP))?,
        weights: tensor::tensor(OP, weights, &[n, k])?,
    })
}

fn softmax(x: &[f32], y: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    vectorised(|| y.iter_mut().zip(x).for_each(|(y, &x)| *y = exp(x - max)));
    let sum: f64 = y.iter().map(|&y| f64::from(y)).sum();
    y.iter_mut().for_each(|y| *y = (f64::from(*y) / sum) as f32);
}

/// The largest of `x`, as many as `indices` has room for, by insertion.
fn largest(x: &[f32], indices: &mut [u32]) {
    let above = |a: usize, b: usize| x[a] > x[b] || (x[b].is_nan() && !x[a].is_nan());
    let mut found = 0;
    for i in 0..x.len() {
        // Only a strictly larger score overtakes: equal ones stay in order of index.
        let place = indices[..found].partition_point(|&j| !above(i, j as usize));
        if place < indices.len() {
            found = (found + 1).min(indices.len());
            indices[place..found].rotate_right(1);
            indices[place] = i as u32;
        }
    }
}
