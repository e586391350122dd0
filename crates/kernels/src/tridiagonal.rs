//! Extremal eigenvectors of a symmetric tridiagonal matrix.
//!
//! Laguerre's iteration from outside the spectrum gives the eigenvalue, inverse
//! iteration from just outside it the vector: there the shifted matrix is
//! definite, so elimination needs no pivoting, and its pivots, all of one sign,
//! prove on which side a number lies.

/// Which end of the spectrum.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum End {
    Smallest,
    Largest,
}

/// The unit eigenvector at one end of the spectrum.
///
/// `off` couples row `k` with row `k + 1` and is one shorter than `diagonal`,
/// which must not be empty.
pub(crate) fn extremal(diagonal: &[f64], off: &[f64], end: End) -> Vec<f64> {
    extremal_within(diagonal, off, end, f64::EPSILON)
}

/// As [`extremal`], from an eigenvalue within some `accuracy · ‖T‖`.
pub(crate) fn extremal_within(diagonal: &[f64], off: &[f64], end: End, accuracy: f64) -> Vec<f64> {
    let n = diagonal.len();
    let (low, high) = bounds(diagonal, off);
    let norm = low.abs().max(high.abs());
    // Outside the spectrum by a few roundings, so that pivots keep one sign.
    let margin = (4.0 * f64::EPSILON * norm).max(f64::MIN_POSITIVE);
    let squares: Vec<f64> = off.iter().map(|b| b * b).collect();
    let shift = match end {
        End::Smallest => {
            below_smallest(diagonal.iter().copied(), &squares, low - margin, high, accuracy * norm)
                - margin
        }
        // The largest eigenvalue is the smallest of `−T`, whose couplings may have any sign.
        End::Largest => {
            let diagonal = diagonal.iter().map(|d| -d);
            margin - below_smallest(diagonal, &squares, -high - margin, -low, accuracy * norm)
        }
    };
    let mut pivots = vec![0.0; n];
    // `T − shift = L diag(pivots) Lᵀ`; below the ones on its diagonal L has these.
    let mut factors = vec![0.0; off.len()];
    for k in 0..n {
        let coupling = if k == 0 { 0.0 } else { factors[k - 1] * off[k - 1] };
        let pivot = diagonal[k] - shift - coupling;
        // A pivot that rounded to nothing is replaced by the margin: the vector
        // is checked by its residual afterwards.
        pivots[k] = if pivot.abs() < margin { margin } else { pivot };
        if let Some(factor) = factors.get_mut(k) {
            *factor = off[k] / pivots[k];
        }
    }
    // The signs of the wanted vector, by Perron and Frobenius: the two are not orthogonal.
    let mut vector = vec![1.0; n];
    for k in 1..n {
        let same = (off[k - 1] > 0.0) == (end == End::Largest);
        vector[k] = if same { vector[k - 1] } else { -vector[k - 1] };
    }
    for _ in 0..3 {
        for k in 1..n {
            vector[k] -= factors[k - 1] * vector[k - 1];
        }
        for (v, pivot) in vector.iter_mut().zip(&pivots) {
            *v /= pivot;
        }
        for k in (1..n).rev() {
            vector[k - 1] -= factors[k - 1] * vector[k];
        }
        let largest = vector.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        for v in &mut vector {
            *v /= largest;
        }
        let norm = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
        for v in &mut vector {
            *v /= norm;
        }
    }
    vector
}

/// Bounds of the spectrum by Gershgorin's discs.
fn bounds(diagonal: &[f64], off: &[f64]) -> (f64, f64) {
    let mut low = f64::INFINITY;
    let mut high = f64::NEG_INFINITY;
    for (k, d) in diagonal.iter().enumerate() {
        let before = if k == 0 { 0.0 } else { off[k - 1].abs() };
        let after = off.get(k).map_or(0.0, |b| b.abs());
        low = low.min(d - before - after);
        high = high.max(d + before + after);
    }
    (low, high)
}

/// A number below the smallest eigenvalue, by about `accuracy` or by a few roundings.
/// That eigenvalue must lie between `low` and `high`.
fn below_smallest(
    diagonal: impl Iterator<Item = f64> + Clone,
    squares: &[f64],
    mut low: f64,
    mut high: f64,
    accuracy: f64,
) -> f64 {
    let mut at = low;
    // How far back from a number that is not below the eigenvalue.
    let mut back = accuracy.max(f64::MIN_POSITIVE);
    loop {
        let next = match laguerre_step(diagonal.clone(), squares, at) {
            Some(step) => {
                low = at;
                // Steps from below never pass the eigenvalue and shrink to a third power.
                if step <= 0.25 * accuracy {
                    return low;
                }
                low + step
            }
            // But for rounding, which takes one step a little too far.
            None => {
                high = at;
                back *= 4.0;
                high - back
            }
        };
        let middle = low + 0.5 * (high - low);
        if high - low <= accuracy || middle <= low || middle >= high {
            return low;
        }
        at = if next > low && next < high { next } else { middle };
    }
}

/// Laguerre's step from `x` towards the smallest eigenvalue; `None` unless all
/// eigenvalues are above `x`.
///
/// With the pivots `d_k` of `T − x`, whose product is the determinant, it takes
/// `S₁ = Σ 1/(λ − x) = −Σ d′/d` and `S₂ = Σ 1/(λ − x)² = Σ ((d′/d)² − d″/d)`.
fn laguerre_step(diagonal: impl Iterator<Item = f64>, squares: &[f64], x: f64) -> Option<f64> {
    let n = squares.len() as f64 + 1.0;
    let (mut s1, mut s2) = (0.0, 0.0);
    // Of the last pivot: its inverse, and its two derivatives over itself.
    let (mut inverse, mut first, mut second) = (0.0, 0.0, 0.0);
    for (d, square) in diagonal.zip(std::iter::once(&0.0).chain(squares)) {
        let ratio = square * inverse;
        let pivot = d - x - ratio;
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        inverse = pivot.recip();
        (first, second) =
            ((ratio * first - 1.0) * inverse, ratio * (second - 2.0 * first * first) * inverse);
        s1 -= first;
        s2 += first * first - second;
    }
    // Never negative but for rounding, by Cauchy and Schwarz.
    let root = ((n - 1.0) * (n * s2 - s1 * s1)).max(0.0).sqrt();
    let step = n / (s1 + root);
    step.is_finite().then_some(step)
}

#[cfg(test)]
mod tests {
    use super::{End, extremal_within};
    use crate::eigh::eigenvalues;
    use crate::random::SplitMix64;

    #[test]
    fn vectors_at_both_ends_have_the_eigenvalues_there() {
        let mut random = SplitMix64::new(7);
        for n in [1, 2, 3, 10, 60] {
            // Couplings of every size, some of them nothing; diagonals of equal entries too.
            for spread in [0.0, 1e-9, 1.0, 1e6] {
                let diagonal: Vec<f64> = (0..n).map(|_| 2.0 + random.next_symmetric()).collect();
                let diagonal = if spread == 1e-9 { vec![2.0; n] } else { diagonal };
                let coupling = |k| if k % 7 == 3 { 0.0 } else { spread * random.next_symmetric() };
                let off: Vec<f64> = (1..n).map(coupling).collect();
                let mut matrix = vec![0.0; n * n];
                for k in 0..n {
                    matrix[k * n + k] = diagonal[k];
                    if k + 1 < n {
                        matrix[(k + 1) * n + k] = off[k];
                        matrix[k * n + k + 1] = off[k];
                    }
                }
                let values = eigenvalues(&matrix, n).unwrap();
                let norm = values[0].abs().max(values[n - 1].abs());
                for (end, value) in [(End::Smallest, values[0]), (End::Largest, values[n - 1])] {
                    for accuracy in [f64::EPSILON, f64::from(f32::EPSILON)] {
                        let v = extremal_within(&diagonal, &off, end, accuracy);
                        let square: f64 = v.iter().map(|v| v * v).sum();
                        assert!((square - 1.0).abs() < 1e-12);
                        let product =
                            |i: usize| -> f64 { (0..n).map(|j| matrix[i * n + j] * v[j]).sum() };
                        let theta: f64 = (0..n).map(|i| v[i] * product(i)).sum();
                        let apart = (theta - value).abs();
                        // Eigenvalues closer than the accuracy need not be told apart.
                        let bound = accuracy.max(1e-13) * norm;
                        assert!(apart <= bound, "{n}, {spread}: {theta} for {value}");
                    }
                }
            }
        }
    }
}
