//! Heat-kernel energy of a graph signal: how much of it outlasts diffusion.
//!
//! ```text
//! h(t) = Tr(Xᵀ e^{−tL} X)/‖X‖² = Σ_k e^{−tλ_k} e_k / Σ_k e_k
//! ```
//!
//! with `e_k` the energy in mode `k`. No index of a mode enters, so that texts of
//! different lengths are compared by the same function of the eigenvalues: unlike
//! the ratio above the median mode, it has no cut to move through a bulk of
//! near-equal eigenvalues. `h(0) = 1`; slow decay is a smooth signal.
//!
//! The decision that shapes this file: without a spectrum, only the curvature of
//! `e^{−tλ}` is estimated. The tangent at the Rayleigh quotient `R` has an exact
//! trace, and by it `h(t) ≥ e^{−tR}`; what lies above is small, since most energy
//! lies near `R`, and comes from a few random combinations of the columns of `X`
//! with the standard error of their mean. The price is one block of vectors per
//! graph, whatever the width of the residual stream.

use crate::adjacency::Adjacency;
use crate::graph::LANES;
use crate::laplacian::LaplacianOperator;
use crate::math::vectorised;
use crate::random::SplitMix64;
use crate::signal::{Null, Signal, Value};
use crate::{Error, Result};

const OP: &str = "heat energy";

/// Number of random combinations of a signal's columns.
pub const N_PROBES: usize = LANES;

/// What the series of Chebyshev polynomials leaves out, at most, of a probe's
/// energy: `2 Σ_{k > K} e^{−x} I_k(x)`, `x = ½ t λ_bound`. About what rounding costs.
pub const TRUNCATION: f64 = 1e-6;

/// Largest `½ t λ_bound`: some 7 000 products with the graph.
const MAX_ARGUMENT: f64 = 1e6;

/// An unbiased estimate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean over the probes.
    pub value: f64,
    /// Its standard error, from the scatter of the probes. The truth lies within
    /// 2.36 of them, the quantile of Student's distribution with 7 degrees of
    /// freedom, in 90 to 95 of 100 cases under the normalized Laplacian, and in 86
    /// or more where a few nodes of large degree hold the curvature.
    pub error: f64,
}

/// Combinations `y = Xz` of a signal's columns, `z` independent random signs:
/// the mean of `yᵀMy` is `Tr(XᵀMX)` for every symmetric `M`.
#[derive(Debug, Clone, PartialEq)]
pub struct Probes {
    n_nodes: usize,
    /// A row per node, padded with rows of zeros.
    rows: Vec<[f64; N_PROBES]>,
}

impl Probes {
    /// The combinations of a seed: they serve every graph of a layer.
    pub fn new(signal: &Signal, seed: u64) -> Self {
        let mut random = SplitMix64::new(seed);
        let signs: Vec<[f64; N_PROBES]> = (0..signal.d())
            .map(|_| {
                let bits = random.next_u64();
                std::array::from_fn(|p| if bits >> p & 1 == 0 { 1.0 } else { -1.0 })
            })
            .collect();
        let (n_nodes, d) = (signal.n_nodes(), signal.d());
        let mut rows = vec![[0.0; N_PROBES]; n_nodes.next_multiple_of(LANES)];
        let mut values = signal.values().chunks_exact(d.max(1));
        let (groups, rest) = rows[..n_nodes].as_chunks_mut::<4>();
        for group in groups {
            // Several nodes at a time hide the latency of an addition.
            let values: [&[f64]; 4] = std::array::from_fn(|_| values.next().unwrap_or(&[]));
            combine(values, &signs, group);
        }
        for (row, values) in rest.iter_mut().zip(values) {
            combine([values], &signs, std::array::from_mut(row));
        }
        Self { n_nodes, rows }
    }
}

/// The combinations of a few nodes.
fn combine<const R: usize>(
    values: [&[f64]; R],
    signs: &[[f64; N_PROBES]],
    rows: &mut [[f64; N_PROBES]; R],
) {
    vectorised(|| {
        let mut sums = [[0.0; N_PROBES]; R];
        let values = values.map(|values| &values[..signs.len()]);
        for (k, signs) in signs.iter().enumerate() {
            for r in 0..R {
                for p in 0..N_PROBES {
                    sums[r][p] += values[r][k] * signs[p];
                }
            }
        }
        *rows = sums;
    });
}

/// `h(t)` from the whole spectrum: eigenvalues and the energy in each mode. Null
/// for a zero signal.
///
/// ```
/// use kernels::heat::heat_energy;
/// let h = heat_energy(&[0.0, 1.0], &[1.0, 3.0], 2.0).unwrap();
/// assert!((h - (1.0 + 3.0 * (-2.0f64).exp()) / 4.0).abs() < 1e-15);
/// ```
pub fn heat_energy(values: &[f64], energies: &[f64], time: f64) -> Value {
    let total: f64 = energies.iter().sum();
    if total == 0.0 {
        return Err(Null::ZeroSignal);
    }
    let kept = values.iter().zip(energies).map(|(value, energy)| (-time * value).exp() * energy);
    Ok(kept.sum::<f64>() / total)
}

/// `h(t)` at several times without a spectrum, for a signal that is not zero:
///
/// ```text
/// h(t) = e^{−tR} + mean_p y_pᵀ g(L) y_p / ‖X‖²,   R = Tr(XᵀLX)/‖X‖²,
/// g(λ) = e^{−tλ} − e^{−tR}(1 − t(λ − R)) ≥ 0
/// ```
///
/// `energy` is `‖X‖²` and `dirichlet` `Tr(XᵀLX)`, both exact. One estimate per
/// time, all of the same probes. For `RandomWalk` both are those of its inner
/// product, and the probes still of `X` itself.
///
/// # Numerics
/// `e^{−tL} = Σ_k (2 − δ_k0)(−1)^k e^{−x} I_k(x) T_k(L/a − 1)` with `a = ½ λ_bound`
/// and `x = ta`, cut where less than [`TRUNCATION`] is left; `K` products with `L`
/// give the moments of `T_0 … T_2K`. Products and vectors are `f32`, inner products and
/// what is made of them `f64`: rounding costs some 1e-6, a thousandth of a typical
/// standard error. In a fixed order: the same bits for any number of threads.
///
/// # Errors
/// [`Error::Shape`] unless the probes are of as many nodes; [`Error::Range`] for
/// an energy that is not positive, for a negative time, and for a product of
/// time and `λ_bound` above 2e6.
pub fn heat_estimates<G: Adjacency, const T: usize>(
    laplacian: &LaplacianOperator<'_, G>,
    probes: &Probes,
    energy: f64,
    dirichlet: f64,
    times: [f64; T],
) -> Result<[Estimate; T]> {
    if probes.n_nodes != laplacian.n_nodes() {
        return Err(Error::shape(
            OP,
            "probes",
            format_args!("{} rows, one per node", laplacian.n_nodes()),
            &[probes.n_nodes, N_PROBES],
        ));
    }
    if energy.is_nan() || energy <= 0.0 {
        return Err(Error::range(OP, "energy", "above 0", energy));
    }
    let half = 0.5 * laplacian.upper_bound();
    for time in times {
        if !(0.0..=MAX_ARGUMENT).contains(&(time * half)) || time < 0.0 {
            let most = MAX_ARGUMENT / half;
            return Err(Error::range(OP, "time", format_args!("from 0 to {most:e}"), time));
        }
    }
    if half == 0.0 {
        return Ok([Estimate { value: 1.0, error: 0.0 }; T]);
    }
    let series = times.map(|time| chebyshev_coefficients(time * half));
    let degree = series.iter().map(|c| c.len() - 1).max().unwrap_or(0);
    let moments = moments(laplacian, probes, energy, half, degree.div_ceil(2).max(1));
    let quotient = dirichlet / energy;
    let mut series = series.iter();
    Ok(times.map(|time| {
        let coefficients = series.next().map_or(&[][..], Vec::as_slice);
        let tangent = (-time * quotient).exp();
        let mut excess = [0.0; N_PROBES];
        for (coefficient, moment) in coefficients.iter().zip(&moments) {
            for (sum, m) in excess.iter_mut().zip(moment) {
                *sum += coefficient * m;
            }
        }
        for (p, sum) in excess.iter_mut().enumerate() {
            let (own, product) = (moments[0][p], half * (moments[0][p] + moments[1][p]));
            *sum -= tangent * ((1.0 + time * quotient) * own - time * product);
        }
        let m = N_PROBES as f64;
        let mean = excess.iter().sum::<f64>() / m;
        let squares = excess.iter().map(|e| (e - mean) * (e - mean)).sum::<f64>();
        Estimate { value: tangent + mean, error: (squares / ((m - 1.0) * m)).sqrt() }
    }))
}

/// `yᵀ T_k(L/a − 1) y/‖X‖²` of every probe for `k = 0 … 2K`, from `T_2k = 2T_k² − 1`
/// and `T_{2k+1} = 2T_k T_{k+1} − T_1`.
fn moments<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    probes: &Probes,
    energy: f64,
    half: f64,
    steps: usize,
) -> Vec<[f64; N_PROBES]> {
    let n = laplacian.n_padded();
    let norm = energy.sqrt();
    let mut weights = vec![1.0; n];
    for (weight, scale) in
        weights.iter_mut().zip(laplacian.coordinate_scale().into_iter().flatten())
    {
        *weight = scale;
    }
    // Column by column.
    let mut previous = Vec::with_capacity(N_PROBES * n);
    for p in 0..N_PROBES {
        let column = probes.rows.iter().zip(&weights);
        previous.extend(column.map(|(row, weight)| (row[p] * weight / norm) as f32));
    }
    let mut laplacian = laplacian.narrow();
    let mut product = vec![0.0; previous.len()];
    let rate = half.recip() as f32;
    let mut multiply = |x: &[f32], y: &mut [f32]| {
        let columns: [&[f32]; N_PROBES] = std::array::from_fn(|p| &x[p * n..(p + 1) * n]);
        laplacian.product(&columns, y);
    };
    multiply(&previous, &mut product);
    let mut current: Vec<f32> = previous.iter().zip(&product).map(|(x, y)| rate * y - x).collect();
    let (zeroth, first) = (inner(&previous, &previous), inner(&previous, &current));
    let twice_less = |inner: [f64; N_PROBES], less: &[f64; N_PROBES]| {
        std::array::from_fn(|p| 2.0 * inner[p] - less[p])
    };
    let mut moments = vec![zeroth, first, twice_less(inner(&current, &current), &zeroth)];
    for _ in 1..steps {
        multiply(&current, &mut product);
        vectorised(|| {
            for ((before, x), y) in previous.iter_mut().zip(&current).zip(&product) {
                *before = 2.0 * (rate * y - x) - *before;
            }
        });
        std::mem::swap(&mut previous, &mut current);
        moments.push(twice_less(inner(&previous, &current), &first));
        moments.push(twice_less(inner(&current, &current), &zeroth));
    }
    moments
}

/// The inner product of each column, in `f64`.
fn inner(x: &[f32], y: &[f32]) -> [f64; N_PROBES] {
    let n = x.len() / N_PROBES;
    std::array::from_fn(|p| {
        let (x, y) = (&x[p * n..(p + 1) * n], &y[p * n..(p + 1) * n]);
        vectorised(|| {
            let mut sums = [0.0; LANES];
            for (x, y) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks::<LANES>().0) {
                for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                    *sum += f64::from(*x) * f64::from(*y);
                }
            }
            sums.iter().sum()
        })
    })
}

/// `(2 − δ_k0)(−1)^k e^{−x} I_k(x)`, until what follows sums to [`TRUNCATION`] at most.
fn chebyshev_coefficients(x: f64) -> Vec<f64> {
    let mut coefficients = exp_bessel(x);
    let mut left = 0.0;
    while let Some(last) = coefficients.pop() {
        left += 2.0 * last;
        if left > TRUNCATION {
            coefficients.push(last);
            break;
        }
    }
    for (k, c) in coefficients.iter_mut().enumerate() {
        let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
        *c *= if k == 0 { 1.0 } else { 2.0 * sign };
    }
    coefficients
}

/// `e^{−x} I_k(x)`, modified Bessel functions, for `k` up to where they are below 1e-30.
///
/// Miller's backward recurrence `I_{k−1} = I_{k+1} + (2k/x) I_k`, which is stable
/// in that direction, and `e^{−x}(I_0 + 2 Σ I_k) = 1` for the scale.
fn exp_bessel(x: f64) -> Vec<f64> {
    const SMALL: f64 = 1e-6;
    if x < SMALL {
        // The next terms of the series are below 1e-18.
        return vec![1.0 - x + 0.75 * x * x, 0.5 * x * (1.0 - x), 0.125 * x * x];
    }
    const TOO_LARGE: f64 = 1e100;
    let n = 64 + (12.0 * x.sqrt()) as usize;
    let mut values = vec![0.0; n + 2];
    values[n] = 1e-200;
    for k in (1..=n).rev() {
        values[k - 1] = values[k + 1] + 2.0 * k as f64 / x * values[k];
        if values[k - 1] > TOO_LARGE {
            for value in &mut values[k - 1..] {
                *value /= TOO_LARGE;
            }
        }
    }
    let total = values[0] + 2.0 * values[1..].iter().rev().sum::<f64>();
    for value in &mut values {
        *value /= total;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::{TRUNCATION, chebyshev_coefficients, exp_bessel};

    /// `(1/π) ∫ e^{x(cos θ − 1)} cos kθ dθ` over half a turn, by the trapezoidal
    /// rule, which converges faster than any power for a periodic function.
    fn by_integral(x: f64, k: usize) -> f64 {
        let n = 4000;
        let at = |i: usize| {
            let angle = std::f64::consts::PI * i as f64 / n as f64;
            (x * (angle.cos() - 1.0)).exp() * (k as f64 * angle).cos()
        };
        let inside: f64 = (1..n).map(at).sum();
        (0.5 * (at(0) + at(n)) + inside) / n as f64
    }

    #[test]
    fn bessel_functions() {
        for x in [0.0, 1e-9, 1e-7, 1e-5, 0.01, 0.5, 1.0, 5.0, 60.0, 3000.0] {
            let values = exp_bessel(x);
            for (k, value) in values.iter().enumerate() {
                let expected = by_integral(x, k);
                assert!((value - expected).abs() <= 1e-14, "{x} {k}: {value:e} {expected:e}");
            }
        }
    }

    #[test]
    fn the_series_is_the_exponential() {
        for x in [0.0, 1e-7, 0.5, 1.0, 5.0, 60.0, 3000.0] {
            let coefficients = chebyshev_coefficients(x);
            for y in [-1.0, -0.99, -0.2, 0.0, 0.3, 1.0f64] {
                let angle = y.acos();
                let terms =
                    coefficients.iter().enumerate().map(|(k, c)| c * (k as f64 * angle).cos());
                let (sum, expected) = (terms.sum::<f64>(), (-x * (1.0 + y)).exp());
                // Rounding of the angle, times the degree, beside what is cut off.
                let tolerance = TRUNCATION + 1e-15 * coefficients.len() as f64;
                assert!((sum - expected).abs() <= tolerance, "{x} {y}: {sum:e} {expected:e}");
            }
        }
        assert!(chebyshev_coefficients(5.0).len() <= 18);
    }
}
