//! Extremal eigenvectors of a symmetric tridiagonal matrix.
//!
//! Bisection on the number of negative pivots gives the eigenvalue, inverse
//! iteration from just outside the spectrum its vector: there the shifted matrix
//! is definite, so elimination needs no pivoting.

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

/// As [`extremal`], from an eigenvalue within `accuracy · ‖T‖`.
pub(crate) fn extremal_within(diagonal: &[f64], off: &[f64], end: End, accuracy: f64) -> Vec<f64> {
    let (low, high) = extremal_value(diagonal, off, end, accuracy);
    let n = diagonal.len();
    let norm = bounds(diagonal, off).2;
    // Outside the spectrum by a few roundings, so that pivots keep one sign.
    let margin = (4.0 * f64::EPSILON * norm).max(f64::MIN_POSITIVE);
    let shift = match end {
        End::Smallest => low - margin,
        End::Largest => high + margin,
    };
    let mut pivots = vec![0.0; n];
    let mut previous = f64::INFINITY;
    for k in 0..n {
        let coupling = if k == 0 { 0.0 } else { off[k - 1] };
        let pivot = diagonal[k] - shift - coupling * (coupling / previous);
        // A pivot that rounded to nothing is replaced by the margin: the vector
        // is checked by its residual afterwards.
        pivots[k] = if pivot.abs() < margin { margin } else { pivot };
        previous = pivots[k];
    }
    let mut vector = vec![1.0; n];
    for _ in 0..3 {
        for k in 1..n {
            vector[k] -= off[k - 1] / pivots[k - 1] * vector[k - 1];
        }
        for (v, pivot) in vector.iter_mut().zip(&pivots) {
            *v /= pivot;
        }
        for k in (1..n).rev() {
            vector[k - 1] -= off[k - 1] / pivots[k - 1] * vector[k];
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

/// Bounds of the spectrum by Gershgorin's discs, and the larger of their magnitudes.
fn bounds(diagonal: &[f64], off: &[f64]) -> (f64, f64, f64) {
    let mut low = f64::INFINITY;
    let mut high = f64::NEG_INFINITY;
    for (k, d) in diagonal.iter().enumerate() {
        let before = if k == 0 { 0.0 } else { off[k - 1].abs() };
        let after = off.get(k).map_or(0.0, |b| b.abs());
        low = low.min(d - before - after);
        high = high.max(d + before + after);
    }
    (low, high, low.abs().max(high.abs()))
}

/// Two bounds of the eigenvalue.
fn extremal_value(diagonal: &[f64], off: &[f64], end: End, accuracy: f64) -> (f64, f64) {
    let (mut low, mut high, norm) = bounds(diagonal, off);
    let squares: Vec<f64> = off.iter().map(|b| b * b).collect();
    // Keeps the recurrence away from a division by an exact zero.
    let floor = (f64::EPSILON * norm).max(f64::MIN_POSITIVE).powi(2);
    // Whether all eigenvalues lie on the inner side of x: then all pivots have one sign.
    let is_outside = |x: f64| -> bool {
        let inner = |pivot: f64| match end {
            End::Smallest => pivot >= 0.0,
            End::Largest => pivot < 0.0,
        };
        let mut pivot = diagonal[0] - x;
        for (d, square) in diagonal[1..].iter().zip(&squares) {
            if !inner(pivot) {
                return false;
            }
            if pivot.abs() < floor {
                pivot = floor;
            }
            pivot = d - x - square / pivot;
        }
        inner(pivot)
    };
    while high - low > accuracy * norm {
        let middle = low + 0.5 * (high - low);
        if middle <= low || middle >= high {
            break;
        }
        if is_outside(middle) == (end == End::Smallest) {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low, high)
}
