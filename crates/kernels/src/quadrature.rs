//! Functionals of a Laplacian's whole spectrum by stochastic Lanczos quadrature.
//!
//! For a unit vector `z` and its Lanczos recurrence, a tridiagonal matrix `T` with
//! diagonal `α` and couplings `β`, `T = SΘSᵀ`,
//!
//! ```text
//! zᵀ f(L) z ≈ Σ_j S_0j² f(θ_j),   exact for polynomials up to degree 2·steps − 1,
//! Tr f(L)   ≈ f(0) + (n − 1) · mean over probes of Σ_j S_0j² f(θ_j)
//! ```
//!
//! with independent probes of random signs, less their component along the exact
//! null vector, whose eigenvalue 0 is added back; without a null vector `n` stands
//! for `n − 1` and nothing is added.
//!
//! The decision that shapes this file: the recurrences are the result. Every
//! functional is evaluated from them afterwards, however many are wanted and
//! however much later ([`Quadrature::from_coefficients`]), and has its standard
//! error from the scatter of the probes by the jackknife, which also serves what is
//! not linear in traces. What the steps leave out is another error, and shows in
//! the same probes after fewer of them ([`Quadrature::shortened`]).

use std::ops::RangeInclusive;

use crate::adjacency::Adjacency;
use crate::heat::Estimate;
use crate::lanczos::recurrences;
use crate::laplacian::LaplacianOperator;
use crate::random::SplitMix64;
use crate::signal::Null;
use crate::{Error, Result};

const OP: &str = "stochastic quadrature";

/// Fewest probes: of fewer, a standard error says little.
pub const MIN_PROBES: usize = 8;

/// Most probes.
pub const MAX_PROBES: usize = 1024;

/// Steps of each probe: after a single one there are no fewer to compare with.
pub const STEPS: RangeInclusive<usize> = 2..=1024;

/// Largest `β λ_max`: beyond it `e^{−βλ}` knows the rounding of an eigenvalue.
pub const MAX_EXPONENT: f64 = 1e9;

/// How many probes, and how far each goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuadratureOptions {
    /// Number of probes, [`MIN_PROBES`] to 1024.
    pub n_probes: usize,
    /// Lanczos steps of each, 2 to 1024. Memory is `steps · n · 8` bytes a thread, or
    /// for as many probes as a product serves where the graph is not stored.
    pub steps: usize,
    /// Seed of the probes.
    pub seed: u64,
}

impl Default for QuadratureOptions {
    /// 16 probes of 64 steps.
    fn default() -> Self {
        Self { n_probes: 16, steps: 64, seed: 1 }
    }
}

impl QuadratureOptions {
    /// Whether [`Quadrature::run`] takes them.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn check(&self) -> Result<()> {
        let in_range = |what, range: RangeInclusive<usize>, got| {
            let expected = format_args!("{} to {}", range.start(), range.end());
            if range.contains(&got) { Ok(()) } else { Err(Error::range(OP, what, expected, got)) }
        };
        in_range("number of probes", MIN_PROBES..=MAX_PROBES, self.n_probes)?;
        in_range("number of steps", STEPS, self.steps)
    }
}

/// One probe's tridiagonal matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrence {
    /// The diagonal.
    pub alpha: Vec<f64>,
    /// The couplings of neighbours: one fewer.
    pub beta: Vec<f64>,
}

/// The recurrences of a graph's probes, and what is known exactly beside them: all
/// that a [`Quadrature`] is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Coefficients {
    /// Number of nodes, which is that of eigenvalues.
    pub n_nodes: usize,
    /// Dimension of the space that the probes are of: `n_nodes`, less by one where
    /// the null vector is left out of it.
    pub dimension: usize,
    /// The sum of all eigenvalues, exact.
    pub trace: f64,
    /// Steps that were asked for: a probe of fewer has an invariant space, and is exact.
    pub steps: usize,
    /// Each probe's recurrence; none where the null vector is the whole space.
    pub recurrences: Vec<Recurrence>,
}

/// The spectrum of a graph as its probes see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Quadrature {
    coefficients: Coefficients,
    /// Of each probe, `θ_j` and `S_0j²`.
    rules: Vec<Vec<(f64, f64)>>,
    /// The spectrum's width, as far as the probes see it, over the steps; 0 where
    /// every probe is exact.
    resolution: f64,
}

impl Quadrature {
    /// Runs the probes; for `RandomWalk` in the coordinates in which it is symmetric.
    ///
    /// ```
    /// use kernels::graph::{PatternView, SymmetricGraph};
    /// use kernels::laplacian::{Laplacian, LaplacianOperator};
    /// use kernels::quadrature::{Quadrature, QuadratureOptions};
    /// // The complete graph on three nodes, every weight ½: eigenvalues 0, 1.5, 1.5.
    /// let a = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
    /// let graph = SymmetricGraph::from_pattern(PatternView::new(&a, 3, 3)?)?;
    /// let laplacian = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
    /// let quadrature = Quadrature::run(&laplacian, &QuadratureOptions::default())?;
    /// let z = quadrature.partition(2.0)?;
    /// assert!((z.value - (1.0 + 2.0 * (-3.0f64).exp())).abs() < 1e-12 && z.error < 1e-12);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Numerics
    /// `f64`, every new vector orthogonalised against all earlier ones. A probe
    /// along the null vector, which only a few nodes allow, has a sign turned. The
    /// bits depend on the graph and the options alone.
    /// A probe's length without its component along the null vector varies, and it
    /// is scaled to 1, which biases traces by some `2/n²` of them: far below the
    /// standard error but for a handful of nodes.
    ///
    /// # Errors
    /// [`Error::Range`] for options out of their ranges, [`Error::Eigen`].
    pub fn run<G: Adjacency>(
        laplacian: &LaplacianOperator<'_, G>,
        options: &QuadratureOptions,
    ) -> Result<Self> {
        options.check()?;
        let QuadratureOptions { n_probes, steps, seed } = *options;
        let n_nodes = laplacian.n_nodes();
        let dimension = n_nodes - usize::from(laplacian.null_vector().is_some());
        let mut seeds = SplitMix64::new(seed);
        let seeds: Vec<u64> = (0..n_probes).map(|_| seeds.next_u64()).collect();
        let recurrences = if dimension == 0 {
            Vec::new()
        } else {
            let probes = seeds.into_iter().map(|seed| probe(laplacian, seed)).collect();
            let found = recurrences(laplacian, probes, steps.min(dimension)).into_iter();
            found.map(|(alpha, beta)| Recurrence { alpha, beta }).collect()
        };
        let trace = laplacian.diagonal().iter().sum();
        Self::new(Coefficients { n_nodes, dimension, trace, steps, recurrences })
    }

    /// A quadrature from the coefficients of an earlier one, wherever they were kept
    /// meanwhile.
    ///
    /// ```
    /// use kernels::graph::{PatternView, SymmetricGraph};
    /// use kernels::laplacian::{Laplacian, LaplacianOperator};
    /// use kernels::quadrature::{Quadrature, QuadratureOptions};
    /// let a = [1.0, 0.0, 0.25, 0.75];
    /// let graph = SymmetricGraph::from_pattern(PatternView::new(&a, 2, 2)?)?;
    /// let laplacian = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
    /// let quadrature = Quadrature::run(&laplacian, &QuadratureOptions::default())?;
    /// let kept = quadrature.coefficients().clone();
    /// assert_eq!(Quadrature::from_coefficients(kept)?, quadrature);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Range`], [`Error::NonFinite`] for numbers that no
    /// Laplacian has: another number of probes than [`Self::run`] makes, more steps
    /// than asked for or than there are dimensions, couplings that are not positive,
    /// eigenvalues below 0 or above the trace.
    pub fn from_coefficients(coefficients: Coefficients) -> Result<Self> {
        coefficients.check()?;
        let quadrature = Self::new(coefficients)?;
        let trace = quadrature.coefficients.trace;
        for (value, weight) in quadrature.rules.iter().flatten() {
            // Eigenvalues are exact up to rounding of the matrix's norm.
            let slack = 1e-9 * trace.max(value.abs());
            if !(-slack..=trace + slack).contains(value) || !weight.is_finite() {
                let expected = format_args!("from 0 to the trace {trace:e}");
                return Err(Error::range(OP, "eigenvalue of the coefficients", expected, value));
            }
        }
        Ok(quadrature)
    }

    /// What it is made of, to be kept.
    pub fn coefficients(&self) -> &Coefficients {
        &self.coefficients
    }

    fn new(coefficients: Coefficients) -> Result<Self> {
        let rules: Vec<_> = coefficients.recurrences.iter().map(rule).collect::<Result<_>>()?;
        let mut quadrature = Self { coefficients, rules, resolution: 0.0 };
        if !quadrature.is_exact() {
            let (low, high) = quadrature.ends();
            quadrature.resolution = (high - low) / quadrature.coefficients.steps as f64;
        }
        Ok(quadrature)
    }

    /// The same probes after three quarters of their steps. The difference that this
    /// makes to a functional is, in practice, more than what all the steps leave out
    /// of it, which more than halves over the last quarter. `None` where nothing is
    /// left out, every probe having run until its space was invariant.
    ///
    /// Its ranges of widths and τ are those of the whole quadrature.
    ///
    /// # Errors
    /// [`Error::Eigen`].
    pub fn shortened(&self) -> Result<Option<Self>> {
        if self.is_exact() {
            return Ok(None);
        }
        let mut coefficients = self.coefficients.clone();
        coefficients.steps = 3 * coefficients.steps / 4;
        for Recurrence { alpha, beta } in &mut coefficients.recurrences {
            alpha.truncate(coefficients.steps);
            beta.truncate(alpha.len() - 1);
        }
        Ok(Some(Self { resolution: self.resolution, ..Self::new(coefficients)? }))
    }

    /// Whether every probe's space is invariant, so that only the probes' number
    /// keeps functionals from being exact.
    fn is_exact(&self) -> bool {
        let most = self.coefficients.steps.min(self.coefficients.dimension);
        let is_whole =
            |rule: &Vec<_>| rule.len() < most || rule.len() == self.coefficients.dimension;
        self.rules.iter().all(is_whole)
    }

    /// The recurrence of each probe: none where the null vector is the whole space.
    pub fn recurrences(&self) -> &[Recurrence] {
        &self.coefficients.recurrences
    }

    /// Number of nodes.
    pub fn n_nodes(&self) -> usize {
        self.coefficients.n_nodes
    }

    /// `Tr f(L)`.
    ///
    /// # Numerics
    /// The error is that of the probes: beside it the quadrature's own must be
    /// small, which holds for a function that varies little over the spectrum's
    /// width divided by the steps.
    ///
    /// # Errors
    /// [`Error::Range`] where `f` is not finite on the spectrum.
    pub fn trace_of(&self, f: impl Fn(f64) -> f64) -> Result<Estimate> {
        self.estimate(|value| [f(value)], |[trace]| trace)
    }

    /// Density of states `(1/n) Σ_k φ(x − λ_k)` at every `x` of a grid, per unit of
    /// eigenvalue, `φ` the normal density of the standard deviation `width`.
    ///
    /// # Errors
    /// [`Error::Range`] for a width below the spectrum's width over the steps, which
    /// the quadrature cannot resolve, or for a point that is not a number.
    pub fn density(&self, grid: &[f64], width: f64) -> Result<Vec<Estimate>> {
        let least = self.resolution;
        if width.is_nan() || width < least || width <= 0.0 || width.is_infinite() {
            let expected = format_args!("at least {least:.3e}; more steps resolve more");
            return Err(Error::range(OP, "width", expected, format_args!("{width:e}")));
        }
        let height = 1.0 / (width * std::f64::consts::TAU.sqrt() * self.n_nodes().max(1) as f64);
        grid.iter()
            .map(|x| self.trace_of(|value| height * (-0.5 * ((x - value) / width).powi(2)).exp()))
            .collect()
    }

    /// Eigenvalue entropy `−Σ q ln q` in nats, `q = λ/Σλ`: `Σλ` is exact, and
    /// `ln Σλ − Tr(L ln L)/Σλ` the entropy. Null where every eigenvalue is 0.
    ///
    /// # Errors
    /// As [`Self::trace_of`].
    pub fn eigenvalue_entropy(&self) -> Result<std::result::Result<Estimate, Null>> {
        let trace = self.coefficients.trace;
        if trace <= 0.0 {
            return Ok(Err(Null::ZeroSpectrum));
        }
        // A Laplacian has no eigenvalue below 0 but by rounding.
        let weight = |value: f64| if value > 0.0 { value * value.ln() } else { 0.0 };
        let entropy = |[sum]: [f64; 1]| trace.ln() - sum / trace;
        self.estimate(|value| [weight(value)], entropy).map(Ok)
    }

    /// `Z(β) = Tr e^{−βL}`.
    ///
    /// # Errors
    /// [`Error::Range`] for a β below 0 or above [`MAX_EXPONENT`]` / λ_max`.
    pub fn partition(&self, beta: f64) -> Result<Estimate> {
        let most = self.largest_beta();
        if !(0.0..=most).contains(&beta) || beta.is_infinite() {
            let expected = format_args!("from 0 to {most:.3e}");
            return Err(Error::range(OP, "β", expected, format_args!("{beta:e}")));
        }
        self.trace_of(|value| (-beta * value).exp())
    }

    /// Free energy per node `−ln(Z/n)/β`, in units of eigenvalue.
    ///
    /// # Numerics
    /// `Z/n − 1` is what is summed, and the smallest eigenvalue taken out of the
    /// exponents: neither a small nor a large β loses digits.
    ///
    /// # Errors
    /// [`Error::Range`] unless there are nodes and β is above 0 and as for
    /// [`Self::partition`].
    pub fn free_energy(&self, beta: f64) -> Result<Estimate> {
        let n = self.thermal(beta)?;
        let (low, _) = self.ends();
        let less_one = |value: f64| [(-beta * (value - low)).exp_m1() / n];
        self.estimate(less_one, |[sum]| low - sum.ln_1p() / beta)
    }

    /// Heat capacity `β² Var_β(λ)`, the variance under weights `e^{−βλ}`.
    ///
    /// # Numerics
    /// The variance is summed about the mean under the same weights, so that it
    /// keeps its digits where a large β leaves only the smallest eigenvalues.
    ///
    /// # Errors
    /// As [`Self::free_energy`].
    pub fn heat_capacity(&self, beta: f64) -> Result<Estimate> {
        self.thermal(beta)?;
        let (low, _) = self.ends();
        let weight = |value: f64| (-beta * (value - low)).exp();
        let mean = |value: f64| [weight(value), weight(value) * (value - low)];
        let centre = low + self.estimate(mean, |[z, first]| first / z)?.value;
        let moments = |value: f64| {
            let (weight, from) = (weight(value), value - centre);
            [weight, weight * from, weight * from * from]
        };
        let variance = |[z, first, second]: [f64; 3]| second / z - (first / z) * (first / z);
        self.estimate(moments, |sums| beta * beta * variance(sums))
    }

    /// Spectral form factor `|Σ_k e^{iλ_k τ}|²/n²`, without bias: products of
    /// different probes only. It may come out below 0.
    ///
    /// # Errors
    /// [`Error::Range`] for a negative τ, one above the steps over the spectrum's
    /// width, beyond which the quadrature does not follow the phase, or no nodes.
    pub fn form_factor(&self, tau: f64) -> Result<Estimate> {
        let most = self.resolution.recip();
        if !(0.0..=most).contains(&tau) || tau.is_infinite() || self.n_nodes() == 0 {
            let expected = format_args!("from 0 to {most:.3e}; more steps go further");
            return Err(Error::range(OP, "τ", expected, format_args!("{tau:e}")));
        }
        let n = self.n_nodes() as f64;
        let phases = |value: f64| [(tau * value).cos() / n, (tau * value).sin() / n];
        let Some(traces) = self.traces(phases)? else {
            return Ok(Estimate { value: 1.0, error: 0.0 });
        };
        let of = |left_out: Option<usize>| {
            let (mut sum, mut own, mut m) = ([0.0; 2], 0.0, 0.0);
            for (p, [re, im]) in traces.iter().enumerate() {
                if left_out != Some(p) {
                    sum = [sum[0] + re, sum[1] + im];
                    own += re * re + im * im;
                    m += 1.0;
                }
            }
            (sum[0] * sum[0] + sum[1] * sum[1] - own) / (m * (m - 1.0))
        };
        Ok(jackknife(traces.len(), of))
    }

    /// The smallest and the largest eigenvalue, as far as the probes see them; both
    /// 0 without nodes.
    fn ends(&self) -> (f64, f64) {
        let Coefficients { n_nodes, dimension, .. } = self.coefficients;
        let fixed = (dimension < n_nodes || n_nodes == 0).then_some(0.0);
        let values = self.rules.iter().flatten().map(|(value, _)| *value).chain(fixed);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    }

    fn largest_beta(&self) -> f64 {
        let (_, high) = self.ends();
        MAX_EXPONENT / high.max(0.0)
    }

    fn thermal(&self, beta: f64) -> Result<f64> {
        if self.n_nodes() == 0 {
            return Err(Error::range(OP, "number of nodes", "at least 1", 0));
        }
        let most = self.largest_beta();
        if beta.is_nan() || beta <= 0.0 || beta > most || beta.is_infinite() {
            let expected = format_args!("above 0, at most {most:.3e}");
            return Err(Error::range(OP, "β", expected, format_args!("{beta:e}")));
        }
        Ok(self.n_nodes() as f64)
    }

    /// Each probe's estimate of `Tr f`; `None` without probes.
    fn traces<const K: usize>(&self, f: impl Fn(f64) -> [f64; K]) -> Result<Option<Vec<[f64; K]>>> {
        let fixed = self.fixed(&f);
        let scale = self.coefficients.dimension as f64;
        let of = |rule: &Vec<(f64, f64)>| {
            let mut sums = fixed;
            for (value, weight) in rule {
                for (sum, f) in sums.iter_mut().zip(f(*value)) {
                    *sum += scale * weight * f;
                }
            }
            match sums.iter().find(|sum| !sum.is_finite()) {
                Some(sum) => Err(Error::range(OP, "trace", "finite", sum)),
                None => Ok(sums),
            }
        };
        let traces: Vec<[f64; K]> = self.rules.iter().map(of).collect::<Result<_>>()?;
        Ok((!traces.is_empty()).then_some(traces))
    }

    /// What the null vector adds to every trace.
    fn fixed<const K: usize>(&self, f: impl Fn(f64) -> [f64; K]) -> [f64; K] {
        if self.coefficients.dimension < self.n_nodes() { f(0.0) } else { [0.0; K] }
    }

    /// A function of traces, with the jackknife's error.
    fn estimate<const K: usize>(
        &self,
        f: impl Fn(f64) -> [f64; K],
        of: impl Fn([f64; K]) -> f64,
    ) -> Result<Estimate> {
        let Some(traces) = self.traces(&f)? else {
            return finite(Estimate { value: of(self.fixed(f)), error: 0.0 });
        };
        finite(jackknife(traces.len(), |left_out| {
            let (mut sums, mut m) = ([0.0; K], 0.0);
            for (p, trace) in traces.iter().enumerate() {
                if left_out != Some(p) {
                    for (sum, value) in sums.iter_mut().zip(trace) {
                        *sum += value;
                    }
                    m += 1.0;
                }
            }
            of(sums.map(|sum| sum / m))
        }))
    }
}

fn finite(estimate: Estimate) -> Result<Estimate> {
    match [estimate.value, estimate.error].into_iter().find(|number| !number.is_finite()) {
        Some(number) => Err(Error::range(OP, "functional", "finite", number)),
        None => Ok(estimate),
    }
}

/// A statistic of all probes, and its standard error from leaving out each in turn:
/// `√((m − 1)/m Σ_p (s_p − s̄)²)`. For a mean it is the standard deviation over `√m`.
fn jackknife(m: usize, statistic: impl Fn(Option<usize>) -> f64) -> Estimate {
    let without: Vec<f64> = (0..m).map(|p| statistic(Some(p))).collect();
    let mean = without.iter().sum::<f64>() / m as f64;
    let squares = without.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>();
    Estimate { value: statistic(None), error: (squares * (m as f64 - 1.0) / m as f64).sqrt() }
}

/// Random signs, not along the null vector.
fn probe<G: Adjacency>(laplacian: &LaplacianOperator<'_, G>, seed: u64) -> Vec<f64> {
    let mut random = SplitMix64::new(seed);
    let n = laplacian.n_nodes();
    let mut signs = vec![0.0; laplacian.n_padded()];
    for sign in &mut signs[..n] {
        *sign = if random.next_u64() >> 63 == 0 { 1.0 } else { -1.0 };
    }
    if let Some(null) = laplacian.null_vector() {
        let along: f64 = null.iter().zip(&signs).map(|(u, z)| u * z).sum();
        if n as f64 - along * along <= 1e-6 * n as f64 {
            signs[0] = -signs[0];
        }
    }
    signs
}

impl Coefficients {
    /// Refuses what [`Quadrature::run`] does not leave, before any work on it.
    fn check(&self) -> Result<()> {
        let Self { n_nodes, dimension, trace, steps, recurrences } = self;
        if dimension > n_nodes || dimension + 1 < *n_nodes {
            let expected = format_args!("{n_nodes} or one less");
            return Err(Error::range(OP, "dimension", expected, dimension));
        }
        if !(0.0..f64::INFINITY).contains(trace) {
            return Err(Error::range(OP, "trace", "finite, at least 0", trace));
        }
        if !STEPS.contains(steps) {
            let expected = format_args!("{} to {}", STEPS.start(), STEPS.end());
            return Err(Error::range(OP, "number of steps", expected, steps));
        }
        let probes = if *dimension == 0 { 0..=0 } else { MIN_PROBES..=MAX_PROBES };
        if !probes.contains(&recurrences.len()) {
            let expected = format_args!("{} to {}", probes.start(), probes.end());
            return Err(Error::range(OP, "number of probes", expected, recurrences.len()));
        }
        let most = *steps.min(dimension);
        for (probe, Recurrence { alpha, beta }) in recurrences.iter().enumerate() {
            if !(1..=most).contains(&alpha.len()) {
                let expected = format_args!("[1] to [{most}]");
                return Err(Error::shape(OP, "α of a probe", expected, &[alpha.len()]));
            }
            if beta.len() + 1 != alpha.len() {
                let expected = format_args!("[{}]", alpha.len() - 1);
                return Err(Error::shape(OP, "β of a probe", expected, &[beta.len()]));
            }
            for (what, values) in [("α", alpha), ("β", beta)] {
                if let Some(k) = values.iter().position(|value| !value.is_finite()) {
                    let (index, value) = (vec![probe, k], values[k]);
                    return Err(Error::NonFinite { op: OP, what, index, value });
                }
            }
            if let Some(coupling) = beta.iter().find(|coupling| **coupling <= 0.0) {
                return Err(Error::range(OP, "β of a probe", "above 0", coupling));
            }
        }
        Ok(())
    }
}

/// Iterations for one eigenvalue; two are usual.
const MAX_ITERATIONS: usize = 60;

/// Eigenvalues of the tridiagonal matrix and the squares of its eigenvectors' first
/// entries, by the QL iteration with implicit shifts, which here carries one row of
/// the eigenvectors only: `O(steps²)`.
///
/// # References
/// Golub and Welsch, "Calculation of Gauss quadrature rules" (1969).
fn rule(recurrence: &Recurrence) -> Result<Vec<(f64, f64)>> {
    let mut values = recurrence.alpha.clone();
    let n = values.len();
    // One more than couplings: the last stays 0.
    let mut off = recurrence.beta.clone();
    off.resize(n, 0.0);
    let mut row = vec![0.0; n];
    if let Some(first) = row.first_mut() {
        *first = 1.0;
    }
    let norm = (0..n).map(|k| values[k].abs() + off[k]).fold(0.0, f64::max);
    let negligible = f64::EPSILON * norm;
    for low in 0..n {
        for iteration in 0.. {
            let high = (low..n).find(|k| off[*k].abs() <= negligible).unwrap_or(n - 1);
            if high == low {
                break;
            }
            if iteration == MAX_ITERATIONS {
                return Err(Error::Eigen { n });
            }
            ql_sweep(&mut values[low..=high], &mut off[low..=high], &mut row[low..=high]);
        }
    }
    Ok(values.into_iter().zip(row.into_iter().map(|s| s * s)).collect())
}

/// One sweep over an unreduced block: rotations of neighbours from its end to its
/// start, by the shift that is the eigenvalue of the leading 2 × 2 block nearer to
/// its first entry. `off` has one entry more than couplings.
fn ql_sweep(values: &mut [f64], off: &mut [f64], row: &mut [f64]) {
    let last = values.len() - 1;
    let half = (values[1] - values[0]) / (2.0 * off[0]);
    let shift = values[0] - off[0] / (half + half.hypot(1.0).copysign(half));
    // The bulge that a rotation leaves is chased by the next; `moved` is what
    // rotations have added to the entry above.
    let (mut sine, mut cosine, mut moved) = (1.0, 1.0, 0.0);
    let mut bulge = values[last] - shift;
    for k in (0..last).rev() {
        let (lost, kept) = (sine * off[k], cosine * off[k]);
        let length = lost.hypot(bulge);
        off[k + 1] = length;
        if length == 0.0 {
            // The block falls apart here, and the next search finds it.
            values[k + 1] -= moved;
            off[last] = 0.0;
            return;
        }
        (sine, cosine) = (lost / length, bulge / length);
        let entry = values[k + 1] - moved;
        let turned = (values[k] - entry) * sine + 2.0 * cosine * kept;
        moved = sine * turned;
        values[k + 1] = entry + moved;
        bulge = cosine * turned - kept;
        (row[k], row[k + 1]) =
            (cosine * row[k] - sine * row[k + 1], sine * row[k] + cosine * row[k + 1]);
    }
    values[0] -= moved;
    off[0] = bulge;
    off[last] = 0.0;
}
