//! Dense symmetric eigendecomposition, in `f64` or `f32`, through faer.
//!
//! The decision that shapes this file: one decomposition runs on one thread, so
//! that its bits do not depend on how many there are. Callers have many graphs
//! and spread those over the threads.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{
    ComputeEigenvectors, SelfAdjointEvdParams, self_adjoint_evd, self_adjoint_evd_scratch,
};
use faer::traits::RealField;
use faer::{Auto, Mat, MatRef, Par, Spec};

use crate::laplacian::MAX_DENSE_NODES;
use crate::math::vectorised;
use crate::{Error, Result};

const OP: &str = "symmetric eigendecomposition";

/// A type in which a spectrum can be solved: `f64` or `f32`.
pub trait Real: sealed::Sealed + RealField + Copy + Default + Into<f64> + Send + Sync {
    /// Size from which the tridiagonal problem is divided. It costs little time, but at faer's
    /// own 128 its rotations lose a digit in `f32`.
    const DIVIDED: usize;

    /// By how much `n` eigenvalues, the largest of which is `largest`, may be wrong, so
    /// that closer ones count as equal.
    ///
    /// # Numerics
    /// `n ε λ_max` in `f64`. In `f32` so much would be as wide as the gaps of a spectrum of
    /// some hundred values, and it is `2 (√n + 4) ε λ_max`: rounding errors add up like the
    /// steps of a random walk. It is some times what is seen, and no bound.
    fn rounding(n: usize, largest: f64) -> f64;

    /// Rounded to the type.
    fn of(value: f64) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

impl Real for f64 {
    const DIVIDED: usize = 64;

    fn rounding(n: usize, largest: f64) -> f64 {
        n as f64 * f64::EPSILON * largest
    }

    fn of(value: f64) -> Self {
        value
    }
}

impl Real for f32 {
    const DIVIDED: usize = 16;

    fn rounding(n: usize, largest: f64) -> f64 {
        2.0 * ((n as f64).sqrt() + 4.0) * f64::from(f32::EPSILON) * largest
    }

    fn of(value: f64) -> Self {
        value as f32
    }
}

/// Eigenvalues, ascending, and orthonormal eigenvectors, solved in `T`.
#[derive(Debug, Clone)]
pub struct Eigen<T = f64> {
    values: Vec<f64>,
    vectors: Mat<T>,
}

impl<T: Real> Eigen<T> {
    /// `λ_0 ≤ λ_1 ≤ …`.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// What the values may be wrong by, as far as [`Real::rounding`] knows.
    pub fn rounding(&self) -> f64 {
        let largest = self.values.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        T::rounding(self.values.len(), largest)
    }

    /// The eigenvectors as columns, in the order of the values. Signs are arbitrary.
    pub fn vectors(&self) -> MatRef<'_, T> {
        self.vectors.as_ref()
    }

    /// Eigenvector `k`; it must be below the number of values.
    pub fn vector(&self, k: usize) -> Vec<f64> {
        self.vectors.col(k).iter().map(|v| (*v).into()).collect()
    }
}

/// Eigenvalues, ascending, of the symmetric `n × n` matrix whose upper triangle
/// (row-major) is in `matrix`.
///
/// ```
/// let values = kernels::eigh::eigenvalues(&[2.0, 1.0, 1.0, 2.0], 2)?;
/// assert!((values[0] - 1.0).abs() < 1e-14 && (values[1] - 3.0).abs() < 1e-14);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Numerics
/// Backward stable: each value within a modest multiple of `n ε ‖matrix‖`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Range`] above [`MAX_DENSE_NODES`],
/// [`Error::NonFinite`], [`Error::Eigen`] where faer does not converge.
pub fn eigenvalues(matrix: &[f64], n: usize) -> Result<Vec<f64>> {
    solve(checked(matrix, n)?, None)
}

/// Eigenvalues, ascending, and eigenvectors of the symmetric `n × n` matrix
/// whose upper triangle (row-major) is in `matrix`, in its own arithmetic.
///
/// # Numerics
/// `‖Lu − λu‖` and the departure from orthonormality are modest multiples of
/// `n ε ‖matrix‖` and `n ε`.
///
/// # Errors
/// As [`eigenvalues`].
pub fn eigh<T: Real>(matrix: &[T], n: usize) -> Result<Eigen<T>> {
    let matrix = checked(matrix, n)?;
    let mut vectors = Mat::<T>::zeros(n, n);
    let values = solve(matrix, Some(&mut vectors))?;
    Ok(Eigen { values, vectors })
}

fn solve<T: Real>(matrix: MatRef<'_, T>, vectors: Option<&mut Mat<T>>) -> Result<Vec<f64>> {
    let n = matrix.nrows();
    let compute = match vectors {
        Some(_) => ComputeEigenvectors::Yes,
        None => ComputeEigenvectors::No,
    };
    let spec = || {
        let mut params: SelfAdjointEvdParams = Auto::<T>::auto();
        params.recursion_threshold = T::DIVIDED;
        Spec::new(params)
    };
    let mut values = Diag::<T>::zeros(n);
    let scratch = self_adjoint_evd_scratch::<T>(n, compute, Par::Seq, spec());
    self_adjoint_evd(
        matrix,
        values.as_mut(),
        vectors.map(|vectors| vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        spec(),
    )
    .map_err(|_| Error::Eigen { n })?;
    Ok(values.column_vector().iter().map(|value| (*value).into()).collect())
}

fn checked<T: Real>(matrix: &[T], n: usize) -> Result<MatRef<'_, T>> {
    if n > MAX_DENSE_NODES {
        return Err(Error::range(OP, "matrix size", format_args!("at most {MAX_DENSE_NODES}"), n));
    }
    if matrix.len() != n * n {
        return Err(Error::shape(OP, "matrix", format_args!("[{n}, {n}]"), &[matrix.len()]));
    }
    let is_finite = |value: &T| (*value).into().is_finite();
    let finite = vectorised(|| matrix.iter().fold(true, |finite, v| finite & is_finite(v)));
    if !finite && let Some(index) = matrix.iter().position(|v| !is_finite(v)) {
        return Err(Error::NonFinite {
            op: OP,
            what: "matrix",
            index: vec![index / n, index % n],
            value: matrix[index].into(),
        });
    }
    // The lower triangle of the transpose: what faer reads, in the order in which it does.
    Ok(MatRef::from_column_major_slice(matrix, n, n))
}
