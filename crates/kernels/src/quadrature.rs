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
//! functional is evaluated from them afterwards, however many are wanted, and
//! has its standard error from the scatter of the probes by the jackknife, which
//! also serves what is not linear in traces.

use rayon::prelude::*;

use crate::adjacency::Adjacency;
use crate::eigh::eigh;
use crate::heat::Estimate;
use crate::lanczos::recurrence;
use crate::laplacian::LaplacianOperator;
use crate::random::SplitMix64;
use crate::signal::Null;
use crate::{Error, Result};

const OP: &str = "stochastic quadrature";

/// Fewest probes: of fewer, a standard error says little.
pub const MIN_PROBES: usize = 8;

/// Most probes, and most steps of each.
const MOST: usize = 1024;

/// How many probes, and how far each goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuadratureOptions {
    /// Number of probes, [`MIN_PROBES`] to 1024.
    pub n_probes: usize,
    /// Lanczos steps of each, 1 to 1024. Memory is `steps · n · 8` bytes a thread.
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

/// One probe's tridiagonal matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrence {
    /// The diagonal.
    pub alpha: Vec<f64>,
    /// The couplings of neighbours: one fewer.
    pub beta: Vec<f64>,
}

/// The recurrences of a graph's probes, and what is known exactly beside them.
#[derive(Debug, Clone, PartialEq)]
pub struct Quadrature {
    n_nodes: usize,
    /// Dimension of the space that the probes are of: less by one without the null vector.
    dimension: usize,
    trace: f64,
    /// Steps that were asked for: a probe of fewer has an invariant space, and is exact.
    steps: usize,
    recurrences: Vec<Recurrence>,
    /// Of each probe, `θ_j` and `S_0j²`.
    rules: Vec<Vec<(f64, f64)>>,
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
    /// along the null vector, which only a few nodes allow, has a sign turned. Each
    /// probe runs on one thread: the bits depend on the graph and the options alone.
    ///
    /// # Errors
    /// [`Error::Range`] for options out of their ranges, [`Error::Eigen`].
    pub fn run<G: Adjacency>(
        laplacian: &LaplacianOperator<'_, G>,
        options: &QuadratureOptions,
    ) -> Result<Self> {
        let QuadratureOptions { n_probes, steps, seed } = *options;
        if !(MIN_PROBES..=MOST).contains(&n_probes) {
            let expected = format_args!("{MIN_PROBES} to {MOST}");
            return Err(Error::range(OP, "number of probes", expected, n_probes));
        }
        if !(1..=MOST).contains(&steps) {
            return Err(Error::range(OP, "number of steps", format_args!("1 to {MOST}"), steps));
        }
        let n_nodes = laplacian.n_nodes();
        let dimension = n_nodes - usize::from(laplacian.null_vector().is_some());
        let mut seeds = SplitMix64::new(seed);
        let seeds: Vec<u64> = (0..n_probes).map(|_| seeds.next_u64()).collect();
        let recurrences = if dimension == 0 {
            Vec::new()
        } else {
            seeds.into_par_iter().map(|seed| probe(laplacian, seed, steps.min(dimension))).collect()
        };
        let rules = recurrences.iter().map(rule).collect::<Result<_>>()?;
        let trace = laplacian.diagonal().iter().sum();
        Ok(Self { n_nodes, dimension, trace, steps, recurrences, rules })
    }

    /// The recurrence of each probe: none where the null vector is the whole space.
    pub fn recurrences(&self) -> &[Recurrence] {
        &self.recurrences
    }

    /// Number of nodes.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
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
        let least = self.resolution();
        if width.is_nan() || width < least || width <= 0.0 || width.is_infinite() {
            return Err(Error::range(OP, "width", format_args!("at least {least:e}"), width));
        }
        let height = 1.0 / (width * std::f64::consts::TAU.sqrt() * self.n_nodes.max(1) as f64);
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
        if self.trace <= 0.0 {
            return Ok(Err(Null::ZeroSpectrum));
        }
        // A Laplacian has no eigenvalue below 0 but by rounding.
        let weight = |value: f64| if value > 0.0 { value * value.ln() } else { 0.0 };
        let entropy = |[sum]: [f64; 1]| self.trace.ln() - sum / self.trace;
        self.estimate(|value| [weight(value)], entropy).map(Ok)
    }

    /// `Z(β) = Tr e^{−βL}`.
    ///
    /// # Errors
    /// [`Error::Range`] for a β that is negative or not finite.
    pub fn partition(&self, beta: f64) -> Result<Estimate> {
        if !(0.0..f64::INFINITY).contains(&beta) {
            return Err(Error::range(OP, "β", "at least 0", beta));
        }
        self.trace_of(|value| (-beta * value).exp())
    }

    /// Free energy per node `−ln(Z/n)/β`, in units of eigenvalue.
    ///
    /// # Errors
    /// [`Error::Range`] unless β is above 0 and there are nodes.
    pub fn free_energy(&self, beta: f64) -> Result<Estimate> {
        let n = self.thermal(beta)?;
        self.estimate(|value| [(-beta * value).exp()], |[z]| -(z / n).ln() / beta)
    }

    /// Heat capacity `β² Var_β(λ)`, the variance under weights `e^{−βλ}`.
    ///
    /// # Errors
    /// As [`Self::free_energy`].
    pub fn heat_capacity(&self, beta: f64) -> Result<Estimate> {
        let n = self.thermal(beta)?;
        // About the mean eigenvalue: squares of what is left do not cancel.
        let centre = self.trace / n;
        let moments = |value: f64| {
            let (weight, from) = ((-beta * value).exp(), value - centre);
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
        let most = self.resolution().recip();
        if !(0.0..=most).contains(&tau) || tau.is_infinite() || self.n_nodes == 0 {
            return Err(Error::range(OP, "τ", format_args!("from 0 to {most:e}"), tau));
        }
        let n = self.n_nodes as f64;
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

    /// The spectrum's width, as far as the probes see it, over the steps; 0 where
    /// every probe is exact.
    fn resolution(&self) -> f64 {
        if self.rules.iter().all(|rule| rule.len() < self.steps) {
            return 0.0;
        }
        let deflated = (self.dimension < self.n_nodes).then_some(0.0);
        let values = self.rules.iter().flatten().map(|(value, _)| *value).chain(deflated);
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        (high - low) / self.steps as f64
    }

    fn thermal(&self, beta: f64) -> Result<f64> {
        if self.n_nodes == 0 {
            return Err(Error::range(OP, "number of nodes", "at least 1", 0));
        }
        if beta <= 0.0 || !beta.is_finite() {
            return Err(Error::range(OP, "β", "above 0", beta));
        }
        Ok(self.n_nodes as f64)
    }

    /// Each probe's estimate of `Tr f`; `None` without probes.
    fn traces<const K: usize>(&self, f: impl Fn(f64) -> [f64; K]) -> Result<Option<Vec<[f64; K]>>> {
        let fixed = self.fixed(&f);
        let scale = self.dimension as f64;
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
        if self.dimension < self.n_nodes { f(0.0) } else { [0.0; K] }
    }

    /// A function of traces, with the jackknife's error.
    fn estimate<const K: usize>(
        &self,
        f: impl Fn(f64) -> [f64; K],
        of: impl Fn([f64; K]) -> f64,
    ) -> Result<Estimate> {
        let Some(traces) = self.traces(&f)? else {
            return Ok(Estimate { value: of(self.fixed(f)), error: 0.0 });
        };
        Ok(jackknife(traces.len(), |left_out| {
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

/// A statistic of all probes, and its standard error from leaving out each in turn:
/// `√((m − 1)/m Σ_p (s_p − s̄)²)`. For a mean it is the standard deviation over `√m`.
fn jackknife(m: usize, statistic: impl Fn(Option<usize>) -> f64) -> Estimate {
    let without: Vec<f64> = (0..m).map(|p| statistic(Some(p))).collect();
    let mean = without.iter().sum::<f64>() / m as f64;
    let squares = without.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>();
    Estimate { value: statistic(None), error: (squares * (m as f64 - 1.0) / m as f64).sqrt() }
}

/// The recurrence of one probe of random signs.
fn probe<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    seed: u64,
    steps: usize,
) -> Recurrence {
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
    let (alpha, beta) = recurrence(laplacian, signs, steps);
    Recurrence { alpha, beta }
}

/// Eigenvalues of the tridiagonal matrix and the squares of its eigenvectors' first entries.
fn rule(recurrence: &Recurrence) -> Result<Vec<(f64, f64)>> {
    let steps = recurrence.alpha.len();
    let mut matrix = vec![0.0; steps * steps];
    for (k, alpha) in recurrence.alpha.iter().enumerate() {
        matrix[k * steps + k] = *alpha;
    }
    for (k, beta) in recurrence.beta.iter().enumerate() {
        matrix[(k + 1) * steps + k] = *beta;
    }
    let eigen = eigh(&matrix, steps)?;
    let first = eigen.vectors().row(0).iter().map(|s| s * s);
    Ok(eigen.values().iter().copied().zip(first).collect())
}
