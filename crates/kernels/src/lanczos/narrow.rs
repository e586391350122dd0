//! Starting vectors that hold the wanted ends already, by Lanczos in `f32`.
//!
//! Products in `f32` cost a quarter of those in `f64`, and their rounding leaves a
//! residual of some 1e-7. So most steps are taken here, for both starts at once, and
//! the few that are left, and every certificate, in `f64`: an error made here costs
//! steps there, never digits.

use super::End;
use crate::adjacency::Adjacency;
use crate::laplacian::LaplacianOperator;
use crate::random::SplitMix64;
use crate::tridiagonal::extremal_within;

/// The residual below which steps in `f32` gain nothing, in the scale of tolerances.
const TOLERANCE: f64 = 3e-7;
/// Fewer nodes are not worth two solvers.
const MIN_NODES: usize = 64;
/// Fewer steps are left to `f64`.
const MIN_STEPS: usize = 64;
const FIRST_CHECK: usize = 16;
const CHECK_EVERY: usize = 4;
/// Lengths are multiples of it: a vector of every processor.
const LANES: usize = 16;

/// For each start, the number of steps taken, at most half of `max_steps`, and the
/// sum of the vectors at its ends. `None` where `f64` alone is as good, or where
/// numbers left the range of `f32`.
pub(super) fn starts<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    seeds: [u64; 2],
    ends: [&[End]; 2],
    tolerance: f64,
    max_steps: usize,
) -> Option<[(usize, Vec<f64>); 2]> {
    if laplacian.n_nodes() < MIN_NODES || max_steps < MIN_STEPS {
        return None;
    }
    let tolerance = tolerance.max(TOLERANCE * laplacian.typical_scale());
    let n = laplacian.n_padded();
    let mut operator = laplacian.narrow();
    let mut spaces = seeds.map(|seed| Space::start(laplacian, seed));
    let mut products = vec![0.0; 2 * n];
    loop {
        let active: Vec<&[f32]> =
            spaces.iter().filter(|space| !space.done).map(|space| &space.last()[..n]).collect();
        if active.is_empty() {
            break;
        }
        let products = &mut products[..active.len() * n];
        operator.product(&active, products);
        let mut products = products.chunks_exact(n);
        for (space, ends) in spaces.iter_mut().zip(ends) {
            if space.done {
                continue;
            }
            space.extend(products.next()?);
            space.check(ends, tolerance, max_steps / 2);
        }
    }
    let [first, second] = &spaces;
    let [first_ends, second_ends] = ends;
    Some([first.finish(first_ends, n)?, second.finish(second_ends, n)?])
}

/// One start's Krylov space.
struct Space {
    /// Length of a vector.
    stride: usize,
    /// The null vector, where there is one, then the orthonormal basis, row by row.
    basis: Vec<f32>,
    n_fixed: usize,
    alpha: Vec<f64>,
    beta: Vec<f64>,
    next_check: usize,
    done: bool,
}

impl Space {
    fn start<G: Adjacency>(laplacian: &LaplacianOperator<'_, G>, seed: u64) -> Self {
        let stride = laplacian.n_padded().next_multiple_of(LANES);
        let mut basis = Vec::with_capacity(64 * stride);
        if let Some(null) = laplacian.padded_null() {
            basis.extend(null.iter().map(|v| *v as f32));
            basis.resize(stride, 0.0);
        }
        let n_fixed = basis.len() / stride;
        let mut vector = vec![0.0; stride];
        let mut random = SplitMix64::new(seed);
        for v in &mut vector[..laplacian.n_nodes()] {
            *v = random.next_symmetric() as f32;
        }
        let norm = orthogonalise(&basis, 0, &mut vector);
        basis.extend(vector.iter().map(|v| v / norm));
        let (alpha, beta) = (Vec::new(), Vec::new());
        Self { stride, basis, n_fixed, alpha, beta, next_check: FIRST_CHECK, done: false }
    }

    fn last(&self) -> &[f32] {
        &self.basis[self.basis.len() - self.stride..]
    }

    /// One step, given `product = L v` of the last vector.
    fn extend(&mut self, product: &[f32]) {
        let mut vector = vec![0.0; self.stride];
        vector[..product.len()].copy_from_slice(product);
        let alpha = f64::from(dot(self.last(), &vector));
        let beta = orthogonalise(&self.basis, 2, &mut vector);
        self.alpha.push(alpha);
        self.beta.push(f64::from(beta));
        // Whatever is below is rounding: the space is invariant.
        let rounding = f64::from(f32::EPSILON) * (alpha.abs() + f64::from(beta));
        if beta.is_nan() || f64::from(beta) <= rounding {
            self.done = true;
            return;
        }
        let scale = 1.0 / beta;
        self.basis.extend(vector.iter().map(|v| v * scale));
    }

    fn check(&mut self, ends: &[End], tolerance: f64, max_steps: usize) {
        let steps = self.alpha.len();
        self.done |= steps >= max_steps;
        if self.done || steps < self.next_check {
            return;
        }
        self.next_check = steps + (steps / 8).max(CHECK_EVERY);
        let off = &self.beta[..steps - 1];
        self.done = ends.iter().rev().all(|end| {
            let vector = extremal_within(&self.alpha, off, *end, f64::from(f32::EPSILON));
            self.beta[steps - 1] * vector[steps - 1].abs() <= tolerance
        });
    }

    /// The number of steps, and the sum of the vectors at the ends.
    fn finish(&self, ends: &[End], n: usize) -> Option<(usize, Vec<f64>)> {
        let steps = self.alpha.len();
        if !self.alpha.iter().chain(&self.beta).all(|v| v.is_finite()) {
            return None;
        }
        let off = &self.beta[..steps - 1];
        let mut coefficients = vec![0.0; steps];
        // In a space of one dimension all ends are the same.
        for end in &ends[..ends.len().min(steps)] {
            let vector = extremal_within(&self.alpha, off, *end, f64::from(f32::EPSILON));
            for (sum, v) in coefficients.iter_mut().zip(vector) {
                *sum += v;
            }
        }
        let mut sum = vec![0.0; n];
        let rows = self.basis.chunks_exact(self.stride).skip(self.n_fixed);
        for (row, c) in rows.zip(coefficients) {
            for (sum, v) in sum.iter_mut().zip(row) {
                *sum += c * f64::from(*v);
            }
        }
        Some((steps, sum))
    }
}

/// As [`super::orthogonalise`].
fn orthogonalise(basis: &[f32], n_recent: usize, vector: &mut [f32]) -> f32 {
    pulp::Arch::new().dispatch(Orthogonalise { basis, n_recent, vector })
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    pulp::Arch::new().dispatch(Dot { x, y })
}

struct Dot<'a> {
    x: &'a [f32],
    y: &'a [f32],
}

impl pulp::WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<D: pulp::Simd>(self, simd: D) -> f32 {
        dots(simd, [self.x], self.y)[0]
    }
}

struct Orthogonalise<'a> {
    basis: &'a [f32],
    n_recent: usize,
    vector: &'a mut [f32],
}

impl pulp::WithSimd for Orthogonalise<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<D: pulp::Simd>(self, simd: D) -> f32 {
        let Self { basis, n_recent, vector } = self;
        let n = vector.len();
        for row in basis.chunks_exact(n).rev().take(n_recent) {
            subtract(simd, [row], vector);
        }
        let mut norm = dots(simd, [vector], vector)[0].sqrt();
        for _ in 0..2 {
            let before = norm;
            let mut groups = basis.chunks_exact(4 * n);
            for group in &mut groups {
                let rows: [&[f32]; 4] = std::array::from_fn(|r| &group[r * n..(r + 1) * n]);
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
fn dots<D: pulp::Simd, const R: usize>(simd: D, rows: [&[f32]; R], vector: &[f32]) -> [f32; R] {
    let rows = rows.map(|row| D::as_simd_f32s(row).0);
    let mut sums = [simd.splat_f32s(0.0); R];
    for (k, v) in D::as_simd_f32s(vector).0.iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(&rows) {
            *sum = simd.mul_add_e_f32s(row[k], *v, *sum);
        }
    }
    let mut found = [0.0; R];
    for (found, sum) in found.iter_mut().zip(sums) {
        *found = simd.reduce_sum_f32s(sum);
    }
    found
}

/// `vector −= Σ_r (row_r · vector) row_r`.
#[inline(always)]
fn subtract<D: pulp::Simd, const R: usize>(simd: D, rows: [&[f32]; R], vector: &mut [f32]) {
    let mut components = [simd.splat_f32s(0.0); R];
    for (component, dot) in components.iter_mut().zip(dots(simd, rows, vector)) {
        *component = simd.splat_f32s(-dot);
    }
    let rows = rows.map(|row| D::as_simd_f32s(row).0);
    for (k, v) in D::as_mut_simd_f32s(vector).0.iter_mut().enumerate() {
        let mut sum = *v;
        for (row, component) in rows.iter().zip(components) {
            sum = simd.mul_add_e_f32s(component, row[k], sum);
        }
        *v = sum;
    }
}
