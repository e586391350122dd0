//! The Fiedler value and the largest eigenvalue of a Laplacian, with certificates.
//!
//! The Fiedler value is the second-smallest eigenvalue, which the field writes
//! `λ₂`. Lanczos runs in the complement of the exact null vector (`1`, or
//! `D^½1`), where it is the smallest. For a unit vector `v` there
//!
//! ```text
//! λ₂ ≤ θ = vᵀLv,   and some eigenvalue lies within ρ = ‖Lv − θv‖ of θ,
//! ```
//!
//! and both numbers are returned, computed afresh from the vector rather than
//! taken from the recurrence.
//!
//! The decision that shapes this file: `ρ` proves that θ is *an* eigenvalue, not
//! that it is the second-smallest. A start without a component along the
//! Fiedler vector would miss it with ρ ≈ 0. So two random starts run, the
//! smaller θ is kept, and whether they agree is part of the answer. On attention
//! the second start is the shorter one: the Fiedler value stands apart from the
//! rest of the spectrum, while the largest eigenvalue, which the first start
//! goes on to find, sits at the edge of a dense bulk.
//!
//! On a stored graph most steps are taken in `f32`, see `narrow.rs`: the `f64` steps
//! start from what they found. The second start is followed until its θ equals the
//! first to the tolerance, or ρ is within it.

mod narrow;
mod together;

use rayon::prelude::*;

use crate::adjacency::Adjacency;
use crate::laplacian::LaplacianOperator;
use crate::random::SplitMix64;
use crate::tridiagonal::{End, extremal};
use crate::{Error, Result};

/// Which eigenvalues are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ends {
    /// The Fiedler value and the largest eigenvalue.
    #[default]
    Both,
    /// The Fiedler value alone, which takes about half of the time: the largest
    /// eigenvalue is as a rule the slower one.
    Fiedler,
}

/// What to look for, how far and how exactly to iterate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LanczosOptions {
    /// Which eigenvalues are looked for.
    pub ends: Ends,
    /// The residual to reach, as a multiple of
    /// [`LaplacianOperator::typical_scale`]: absolute for the normalized
    /// Laplacian, in mean degrees for the combinatorial one.
    pub tolerance: f64,
    /// Most steps from either start; at most half of them in `f32`. Memory is at most
    /// `steps · n · 8` bytes.
    pub max_steps: usize,
    /// Seeds of the two starting vectors.
    pub seeds: [u64; 2],
}

impl Default for LanczosOptions {
    /// Both ends, tolerance 1e-8, 600 steps.
    fn default() -> Self {
        Self { ends: Ends::default(), tolerance: 1e-8, max_steps: 600, seeds: [1, 2] }
    }
}

/// An approximate eigenvalue and its proof.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Certified {
    /// `θ = vᵀLv`.
    pub value: f64,
    /// `ρ = ‖Lv − θv‖` of the unit vector: some eigenvalue is this close to θ.
    pub residual: f64,
}

/// Both ends of a Laplacian's spectrum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extremes {
    /// The second-smallest eigenvalue; `None` below two nodes.
    pub fiedler: Option<Certified>,
    /// The largest eigenvalue, from the first start; `None` without nodes, and where it
    /// was not looked for.
    pub lambda_max: Option<Certified>,
    /// Whether both starts found the same Fiedler value:
    /// `|θ₁ − θ₂| ≤ ρ₁ + ρ₂ + n ε λ_max`, ε the rounding unit of `f64`, and
    /// [`LaplacianOperator::upper_bound`] for a `λ_max` that was not looked for. Where ρ₂
    /// is above the tolerance, `|θ₁ − θ₂|` is within it.
    pub seeds_agree: bool,
    /// Steps of the start that took longer.
    pub steps: usize,
}

/// The Fiedler value and the largest eigenvalue.
///
/// ```
/// use kernels::graph::{PatternView, SymmetricGraph};
/// use kernels::laplacian::{Laplacian, LaplacianOperator};
/// use kernels::lanczos::{LanczosOptions, extremes};
/// // The complete graph on three nodes, every weight ½: eigenvalues 0, 1.5, 1.5.
/// let a = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
/// let graph = SymmetricGraph::from_pattern(PatternView::new(&a, 3, 3)?)?;
/// let laplacian = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
/// let found = extremes(&laplacian, &LanczosOptions::default())?;
/// let fiedler = found.fiedler.ok_or("two nodes at least")?;
/// assert!((fiedler.value - 1.5).abs() < 1e-14 && fiedler.residual < 1e-14);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Numerics
/// Values and residuals in `f64`, every new vector orthogonalised against all earlier
/// ones and the null vector. Steps in `f32` come before those in `f64` on a stored graph
/// of 64 nodes or more, and count as steps; they change what those start from, not what
/// they must reach. The bits depend on the graph and the options alone.
/// A disconnected graph has a Fiedler value of 0 up to rounding, of either sign.
///
/// # Errors
/// [`Error::NotConverged`], which carries what was found, where `max_steps` did
/// not reach the tolerance; [`Error::Range`] for a tolerance that is not
/// positive or for no steps.
pub fn extremes<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    options: &LanczosOptions,
) -> Result<Extremes> {
    extremes_and_vector(laplacian, options, &mut Vec::new())
}

/// As [`extremes`], leaving in `fiedler` the unit vector that the Fiedler value and
/// its residual come from, also where the tolerance was not reached; nothing below
/// two nodes. Its sign is arbitrary, and so is its direction within the eigenspace
/// of an eigenvalue that occurs more than once.
///
/// # Errors
/// As [`extremes`].
pub fn extremes_and_vector<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    options: &LanczosOptions,
    fiedler: &mut Vec<f64>,
) -> Result<Extremes> {
    const OP: &str = "lanczos";
    fiedler.clear();
    if options.tolerance.is_nan() || options.tolerance <= 0.0 {
        return Err(Error::range(OP, "tolerance", "above 0", options.tolerance));
    }
    if options.max_steps == 0 {
        return Err(Error::range(OP, "number of steps", "at least 1", 0));
    }
    let n = laplacian.n_nodes();
    let null = laplacian.padded_null();
    let dimension = n - usize::from(null.is_some());
    if dimension == 0 {
        return Ok(Extremes {
            fiedler: None,
            // The null vector is the whole spectrum of one connected node.
            lambda_max: (n > 0 && options.ends == Ends::Both)
                .then_some(Certified { value: 0.0, residual: 0.0 }),
            seeds_agree: true,
            steps: 0,
        });
    }

    let tolerance = options.tolerance * laplacian.typical_scale();
    let found = match options.ends {
        Ends::Both => {
            let ((steps, [low, (lambda_max, _)]), second) =
                solve(laplacian, options, tolerance, dimension, [End::Smallest, End::Largest]);
            (steps, low, Some(lambda_max), second)
        }
        Ends::Fiedler => {
            let ((steps, [low]), second) =
                solve(laplacian, options, tolerance, dimension, [End::Smallest]);
            (steps, low, None, second)
        }
    };
    let (first, (low, vector), lambda_max, (second, [(other_low, other_vector)])) = found;

    // A second value as good as equal to the first has done its work, however it is certified.
    let settled = other_low.residual <= tolerance || agree(&low, &other_low, tolerance);
    let is_better = other_low.value < low.value && (other_low.residual <= tolerance || !settled);
    if n >= 2 {
        let best = if is_better { other_vector } else { vector };
        fiedler.extend_from_slice(&best[..n]);
    }
    let largest = lambda_max.map_or_else(|| laplacian.upper_bound(), |largest| largest.value);
    let rounding = n as f64 * f64::EPSILON * largest;
    let apart = (low.value - other_low.value).abs();
    let found = Extremes {
        // One isolated node has a largest eigenvalue, 1, and no second-smallest.
        fiedler: (n >= 2).then_some(if is_better { other_low } else { low }),
        lambda_max,
        seeds_agree: apart <= low.residual + other_low.residual + rounding,
        steps: first.max(second),
    };
    if settled && [Some(low), lambda_max].iter().flatten().all(|c| c.residual <= tolerance) {
        Ok(found)
    } else {
        Err(Error::NotConverged { steps: found.steps, tolerance, found: Box::new(found) })
    }
}

/// A number of steps, and the wanted ends with their vectors.
type Found<const E: usize> = (usize, [(Certified, Vec<f64>); E]);

/// The first start for the wanted ends, and the second for the smallest eigenvalue.
fn solve<G: Adjacency, const E: usize>(
    laplacian: &LaplacianOperator<'_, G>,
    options: &LanczosOptions,
    tolerance: f64,
    dimension: usize,
    ends: [End; E],
) -> (Found<E>, Found<1>) {
    let LanczosOptions { seeds, max_steps, .. } = *options;
    if G::TOGETHER {
        together::run(laplacian, seeds, ends, tolerance, max_steps.min(dimension))
    } else {
        one_by_one(laplacian, seeds, ends, tolerance, max_steps, dimension)
    }
}

/// As [`solve`], each start on its own once `f32` has done its part.
fn one_by_one<G: Adjacency, const E: usize>(
    laplacian: &LaplacianOperator<'_, G>,
    seeds: [u64; 2],
    ends: [End; E],
    tolerance: f64,
    max_steps: usize,
    dimension: usize,
) -> (Found<E>, Found<1>) {
    // Where the whole space can be had, f64 may have it, whatever came before.
    let last = |before: usize| max_steps.min(before + dimension);
    let one = [End::Smallest];
    let starts = narrow::starts(laplacian, seeds, [&ends, &one], tolerance, last(0));
    let [first, second] = match starts {
        Some(starts) => {
            starts.map(|(steps, vector)| (steps, Krylov::from_vector(laplacian, vector, max_steps)))
        }
        None => seeds.map(|seed| (0, Krylov::start(laplacian, seed, last(0)))),
    };
    let most = last(first.0);
    let first = Krylov::run(laplacian, first, ends, tolerance, most);
    if second.0 > 0 {
        let other = second.1.certify_start(laplacian);
        if agree(&first.1[0].0, &other.0, tolerance) {
            return (first, (second.0, [other]));
        }
    }
    let most = last(second.0);
    (first, Krylov::run(laplacian, second, one, tolerance, most))
}

fn agree(one: &Certified, other: &Certified, tolerance: f64) -> bool {
    (one.value - other.value).abs() <= tolerance
}

/// Diagonal and couplings of the tridiagonal matrix of each start vector, in the
/// complement of the null vector: as many steps as asked for, or until its space
/// is invariant.
pub(crate) fn recurrences<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    starts: Vec<Vec<f64>>,
    steps: usize,
) -> Vec<(Vec<f64>, Vec<f64>)> {
    if G::TOGETHER {
        return together::recurrences(laplacian, starts, steps);
    }
    starts.into_par_iter().map(|start| recurrence(laplacian, start, steps)).collect()
}

fn recurrence<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    start: Vec<f64>,
    steps: usize,
) -> (Vec<f64>, Vec<f64>) {
    let mut krylov = Krylov::from_vector(laplacian, start, steps);
    let mut product = vec![0.0; krylov.n];
    let mut scratch = Vec::new();
    while krylov.alpha.len() < steps && !krylov.exhausted {
        laplacian.product(krylov.last(), &mut product, &mut scratch);
        krylov.extend(&mut product);
    }
    krylov.into_recurrence()
}

const FIRST_CHECK: usize = 16;
const CHECK_EVERY: usize = 4;
/// The first check behind steps in `f32`.
const FIRST_CHECK_AFTER: usize = 5;

/// One start's Krylov space.
struct Krylov {
    /// Length of a vector.
    n: usize,
    /// The null vector, where there is one, then the orthonormal basis, row by row.
    basis: Vec<f64>,
    n_fixed: usize,
    alpha: Vec<f64>,
    beta: Vec<f64>,
    /// The largest sum of couplings met so far, a lower bound of `‖L‖`.
    norm: f64,
    /// The space is invariant: it holds a vector of every eigenspace.
    exhausted: bool,
}

impl Krylov {
    /// Iterates until the wanted ends are within the tolerance, or until there is
    /// no going on, and returns the number of steps and the ends. So many steps were
    /// taken before.
    fn run<G: Adjacency, const E: usize>(
        laplacian: &LaplacianOperator<'_, G>,
        (before, mut krylov): (usize, Self),
        ends: [End; E],
        tolerance: f64,
        max_steps: usize,
    ) -> Found<E> {
        let mut product = vec![0.0; krylov.n];
        let mut scratch = Vec::new();
        let mut step = before;
        let mut next_check = if before > 0 { before + FIRST_CHECK_AFTER } else { FIRST_CHECK };
        loop {
            step += 1;
            laplacian.product(krylov.last(), &mut product, &mut scratch);
            krylov.extend(&mut product);
            let stop = krylov.exhausted || step >= max_steps;
            if !stop && step < next_check {
                continue;
            }
            let every = if before > 0 { 1 } else { CHECK_EVERY };
            next_check = step + ((step - before) / 8).max(every);
            if let Some(coefficients) = krylov.converged(ends, 0.5 * tolerance, stop) {
                let found =
                    coefficients.map(|c| krylov.certify(laplacian, &c, &mut product, &mut scratch));
                if stop || found.iter().all(|(end, _)| end.residual <= tolerance) {
                    return (step, found);
                }
            }
        }
    }

    fn start<G: Adjacency>(
        laplacian: &LaplacianOperator<'_, G>,
        seed: u64,
        max_steps: usize,
    ) -> Self {
        let mut vector = vec![0.0; laplacian.n_padded()];
        let mut random = SplitMix64::new(seed);
        for v in &mut vector[..laplacian.n_nodes()] {
            *v = random.next_symmetric();
        }
        Self::from_vector(laplacian, vector, max_steps)
    }

    /// The space of a vector less its component along the null vector, of which
    /// something must be left; it is padded with zeros.
    fn from_vector<G: Adjacency>(
        laplacian: &LaplacianOperator<'_, G>,
        mut vector: Vec<f64>,
        max_steps: usize,
    ) -> Self {
        let n = laplacian.n_padded();
        let mut basis = Vec::with_capacity((max_steps.min(64) + 2) * n);
        if let Some(null) = laplacian.padded_null() {
            basis.extend_from_slice(null);
        }
        let n_fixed = basis.len() / n;
        let norm = orthogonalise(&basis, 0, &mut vector);
        basis.extend(vector.iter().map(|v| v / norm));
        Self { n, basis, n_fixed, alpha: Vec::new(), beta: Vec::new(), norm: 0.0, exhausted: false }
    }

    fn into_recurrence(mut self) -> (Vec<f64>, Vec<f64>) {
        // What couples the last vector to one that was not asked for.
        self.beta.truncate(self.alpha.len().saturating_sub(1));
        (self.alpha, self.beta)
    }

    fn last(&self) -> &[f64] {
        &self.basis[self.basis.len() - self.n..]
    }

    /// One step, given `product = L v` of the last vector.
    fn extend(&mut self, product: &mut [f64]) {
        let alpha = dot(self.last(), product);
        let before = self.beta.last().copied().unwrap_or(0.0);
        let beta = orthogonalise(&self.basis, 2, product);
        self.alpha.push(alpha);
        self.norm = self.norm.max(alpha.abs() + before + beta);
        if beta <= self.n as f64 * f64::EPSILON * self.norm {
            self.exhausted = true;
            return;
        }
        self.beta.push(beta);
        self.basis.extend(product.iter().map(|v| v / beta));
    }

    /// The coefficients of the wanted ends' vectors, if the recurrence's own
    /// estimates of their residuals are small enough, or in any case if `forced`.
    fn converged<const E: usize>(
        &self,
        ends: [End; E],
        tolerance: f64,
        forced: bool,
    ) -> Option<[Vec<f64>; E]> {
        let steps = self.alpha.len();
        let off = &self.beta[..steps - 1];
        let mut coefficients = std::array::from_fn(|_| Vec::new());
        // The upper end is the slower one as a rule, so it is looked at first.
        for (end, slot) in ends.into_iter().zip(&mut coefficients).rev() {
            let vector = extremal(&self.alpha, off, end);
            let settled = forced || self.beta[steps - 1] * vector[steps - 1].abs() <= tolerance;
            if !settled {
                return None;
            }
            *slot = vector;
        }
        Some(coefficients)
    }

    fn certify<G: Adjacency>(
        &self,
        laplacian: &LaplacianOperator<'_, G>,
        coefficients: &[f64],
        product: &mut [f64],
        scratch: &mut Vec<f64>,
    ) -> (Certified, Vec<f64>) {
        let vector = self.combine(coefficients);
        (certify(laplacian, &vector, product, scratch), vector)
    }

    /// The newest vector and its certificate.
    fn certify_start<G: Adjacency>(
        &self,
        laplacian: &LaplacianOperator<'_, G>,
    ) -> (Certified, Vec<f64>) {
        let vector = self.last().to_vec();
        (certify(laplacian, &vector, &mut vec![0.0; self.n], &mut Vec::new()), vector)
    }

    /// The unit vector with the given coefficients, clean of the null vector.
    fn combine(&self, coefficients: &[f64]) -> Vec<f64> {
        let mut x = vec![0.0; self.n];
        let rows = self.basis.chunks_exact(self.n).skip(self.n_fixed);
        for (row, &c) in rows.zip(coefficients) {
            for (x, v) in x.iter_mut().zip(row) {
                *x += c * v;
            }
        }
        let norm = orthogonalise(&self.basis[..self.n_fixed * self.n], 0, &mut x);
        for x in &mut x {
            *x /= norm;
        }
        x
    }
}

/// `θ` and `ρ` of a unit vector.
fn certify<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    vector: &[f64],
    product: &mut [f64],
    scratch: &mut Vec<f64>,
) -> Certified {
    laplacian.product(vector, product, scratch);
    let value = dot(vector, product);
    for (p, v) in product.iter_mut().zip(vector) {
        *p -= value * v;
    }
    Certified { value, residual: dot(product, product).sqrt() }
}

/// Removes from `vector` its components along the orthonormal rows of `basis`
/// and returns the norm that is left. The last `n_recent` rows, which carry
/// nearly all of it in a Lanczos step, go first.
fn orthogonalise(basis: &[f64], n_recent: usize, vector: &mut [f64]) -> f64 {
    pulp::Arch::new().dispatch(Orthogonalise { basis, n_recent, vector })
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    pulp::Arch::new().dispatch(Dot { x, y })
}

// The lengths below are whole multiples of every processor's vector, since the
// padding of a graph is.

struct Dot<'a> {
    x: &'a [f64],
    y: &'a [f64],
}

impl pulp::WithSimd for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<D: pulp::Simd>(self, simd: D) -> f64 {
        dots(simd, [self.x], self.y)[0]
    }
}

struct Orthogonalise<'a> {
    basis: &'a [f64],
    n_recent: usize,
    vector: &'a mut [f64],
}

impl pulp::WithSimd for Orthogonalise<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<D: pulp::Simd>(self, simd: D) -> f64 {
        let Self { basis, n_recent, vector } = self;
        let n = vector.len();
        for row in basis.chunks_exact(n).rev().take(n_recent) {
            subtract(simd, [row], vector);
        }
        let mut norm = dots(simd, [vector], vector)[0].sqrt();
        // What is left of a vector that lay almost in the span is mostly
        // rounding of what was removed, and another pass makes it orthogonal.
        // Two passes suffice for anything that is not rounding alone.
        for _ in 0..3 {
            let before = norm;
            let mut groups = basis.chunks_exact(4 * n);
            for group in &mut groups {
                let rows: [&[f64]; 4] = std::array::from_fn(|r| &group[r * n..(r + 1) * n]);
                subtract(simd, rows, vector);
            }
            for row in groups.remainder().chunks_exact(n) {
                subtract(simd, [row], vector);
            }
            norm = dots(simd, [vector], vector)[0].sqrt();
            if norm > 0.7 * before {
                break;
            }
        }
        norm
    }
}

/// Inner products of `R` rows with one vector.
#[inline(always)]
fn dots<D: pulp::Simd, const R: usize>(simd: D, rows: [&[f64]; R], vector: &[f64]) -> [f64; R] {
    // Two sums per row hide the latency of an addition.
    let rows = rows.map(|row| D::as_simd_f64s(row).0.as_chunks::<2>());
    let (pairs, last) = D::as_simd_f64s(vector).0.as_chunks::<2>();
    let mut sums = [[simd.splat_f64s(0.0); 2]; R];
    for (k, pair) in pairs.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            for (half, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add_e_f64s(row.0[k][half], pair[half], *sum);
            }
        }
    }
    std::array::from_fn(|r| {
        let [mut first, second] = sums[r];
        for (a, b) in rows[r].1.iter().zip(last) {
            first = simd.mul_add_e_f64s(*a, *b, first);
        }
        simd.reduce_sum_f64s(simd.add_f64s(first, second))
    })
}

/// `vector −= Σ_r (row_r · vector) row_r`.
#[inline(always)]
fn subtract<D: pulp::Simd, const R: usize>(simd: D, rows: [&[f64]; R], vector: &mut [f64]) {
    let components = dots(simd, rows, vector).map(|c| simd.splat_f64s(-c));
    let rows = rows.map(|row| D::as_simd_f64s(row).0);
    for (k, v) in D::as_mut_simd_f64s(vector).0.iter_mut().enumerate() {
        let mut sum = *v;
        for (row, component) in rows.iter().zip(components) {
            sum = simd.mul_add_e_f64s(component, row[k], sum);
        }
        *v = sum;
    }
}
