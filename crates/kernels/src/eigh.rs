//! Dense symmetric eigendecomposition, in `f64` or `f32`.
//!
//! The matrix is reduced to a tridiagonal one by Householder's reflections; that one's
//! eigenvalues and eigenvectors are found in `f64` whatever the type, by
//! `twisted.rs`, and certified; the reflections take the vectors back, if they are asked for:
//! the transform of a signal of fewer columns than nodes is had for less from the reflected
//! signal.
//! Where there is no certificate, as there may be none where eigenvalues of a matrix
//! that does not fall apart coincide, faer divides and conquers the tridiagonal matrix.
//!
//! The decision that shapes this file: one decomposition runs on one thread, so
//! that its bits do not depend on how many there are. Callers have many graphs
//! and spread those over the threads.

use std::sync::OnceLock;

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{
    ComputeEigenvectors, SelfAdjointEvdParams, self_adjoint_evd_scratch,
    tridiagonal_self_adjoint_evd,
};
use faer::traits::RealField;
use faer::{Auto, MatMut, MatRef, Par, Spec};

use crate::householder::{Reduced, Vectors};
use crate::laplacian::MAX_DENSE_NODES;
use crate::math::vectorised;
use crate::twisted;
use crate::{Error, Result};

const OP: &str = "symmetric eigendecomposition";

/// A type in which a spectrum can be solved: `f64` or `f32`.
pub trait Real:
    sealed::Sealed + Vectors + RealField + Copy + Default + Into<f64> + Send + Sync
{
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

    /// Components of unit vectors rounded to the type. In `f32` those below 1e-30 are 0: they, or
    /// products with them, may be subnormal, which slows processors down.
    fn rounded(components: Vec<f64>) -> Vec<Self>;
}

mod sealed {
    use crate::twisted::Accuracy;

    pub trait Sealed {
        /// What the spectrum of an `n × n` tridiagonal matrix of this type is found to.
        fn accuracy(n: usize) -> Accuracy;
    }

    impl Sealed for f64 {
        /// Reflections leave rounding errors of some `√n ε` where there should be zeros.
        fn accuracy(n: usize) -> Accuracy {
            let negligible = 0.5 * (n as f64).sqrt() * f64::EPSILON;
            Accuracy { negligible, residual: 1e-13, product: 1e-11 }
        }
    }

    impl Sealed for f32 {
        /// Nothing to speak of beside the rounding of the vectors to `f32`.
        fn accuracy(_: usize) -> Accuracy {
            Accuracy { negligible: 0.5 * f64::from(f32::EPSILON), residual: 1e-9, product: 1e-8 }
        }
    }
}

impl Real for f64 {
    const DIVIDED: usize = 64;

    fn rounding(n: usize, largest: f64) -> f64 {
        n as f64 * f64::EPSILON * largest
    }

    fn of(value: f64) -> Self {
        value
    }

    fn rounded(components: Vec<f64>) -> Vec<Self> {
        components
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

    fn rounded(components: Vec<f64>) -> Vec<Self> {
        // Those of a tridiagonal matrix fall off exponentially, through all magnitudes.
        const NOTHING: f64 = 1e-30;
        let rounded = |value: &f64| if value.abs() < NOTHING { 0.0 } else { *value as f32 };
        vectorised(|| components.iter().map(rounded).collect())
    }
}

/// Eigenvalues, ascending, and orthonormal eigenvectors, solved in `T`.
#[derive(Debug, Clone)]
pub struct Eigen<T = f64> {
    values: Vec<f64>,
    /// `Q T Qᵀ`.
    reduced: Reduced<T>,
    /// Eigenvectors of `T`, one after another.
    inner: Vec<T>,
    /// `Q` times these, once somebody asks.
    vectors: OnceLock<Vec<T>>,
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
    ///
    /// The first call computes them, of all that a spectrum takes about a third of the time.
    pub fn vectors(&self) -> MatRef<'_, T> {
        let n = self.values.len();
        let vectors = self.vectors.get_or_init(|| {
            let mut vectors = self.inner.clone();
            T::take_back(&self.reduced, &mut vectors);
            vectors
        });
        MatRef::from_column_major_slice(vectors, n, n)
    }

    /// Eigenvector `k`, which must be below the number of values, on its own: up to rounding
    /// that of [`vectors`](Self::vectors), and none other is computed.
    pub fn vector(&self, k: usize) -> Vec<f64> {
        let n = self.values.len();
        let vector = self.reduced.take_one_back(&self.inner[k * n..][..n]);
        vector.into_iter().map(Into::into).collect()
    }

    /// `Q` of the tridiagonal form `Q T Qᵀ`, and the eigenvectors of `T`, one after another.
    pub(crate) fn factors(&self) -> (&Reduced<T>, &[T]) {
        (&self.reduced, &self.inner)
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
/// [`Error::NonFinite`], [`Error::Eigen`] where no way leads to them.
pub fn eigenvalues(matrix: &[f64], n: usize) -> Result<Vec<f64>> {
    let reduced = Reduced::new(checked(matrix, n)?, n);
    let Reduced { diagonal, off, .. } = &reduced;
    let accuracy = <f64 as sealed::Sealed>::accuracy(n);
    match twisted::values(diagonal, off, accuracy.negligible) {
        Some(values) => Ok(values),
        None => divide_and_conquer(&reduced, None),
    }
}

/// Eigenvalues, ascending, and eigenvectors of the symmetric `n × n` matrix
/// whose upper triangle (row-major) is in `matrix`, in its own arithmetic.
///
/// # Numerics
/// `‖Lu − λu‖` is a modest multiple of `√n ε ‖matrix‖`. In `f32` the departure from
/// orthonormality is one of `√n ε`. In `f64` two eigenvectors of the tridiagonal matrix
/// are orthogonal to 1e-11, most pairs to much less: what their eigenvalues' distance
/// makes of their residuals, see `twisted.rs`.
///
/// # Errors
/// As [`eigenvalues`].
pub fn eigh<T: Real>(matrix: &[T], n: usize) -> Result<Eigen<T>> {
    let reduced = Reduced::new(checked(matrix, n)?, n);
    let found = twisted::spectrum(&reduced.diagonal, &reduced.off, T::accuracy(n));
    let (values, inner) = match found {
        Some(found) => (found.values, T::rounded(found.vectors)),
        None => {
            let mut vectors = vec![T::default(); n * n];
            let to = MatMut::from_column_major_slice_mut(&mut vectors, n, n);
            (divide_and_conquer(&reduced, Some(to))?, vectors)
        }
    };
    Ok(Eigen { values, reduced, inner, vectors: OnceLock::new() })
}

/// The spectrum of `T`, whatever it is.
fn divide_and_conquer<T: Real>(
    reduced: &Reduced<T>,
    vectors: Option<MatMut<'_, T>>,
) -> Result<Vec<f64>> {
    let n = reduced.diagonal.len();
    let compute = match vectors {
        Some(_) => ComputeEigenvectors::Yes,
        None => ComputeEigenvectors::No,
    };
    let spec = || {
        let mut params: SelfAdjointEvdParams = Auto::<T>::auto();
        params.recursion_threshold = T::DIVIDED;
        Spec::new(params)
    };
    let [mut diagonal, mut off, mut values] = std::array::from_fn(|_| Diag::<T>::zeros(n));
    for (to, from) in [(&mut diagonal, &reduced.diagonal), (&mut off, &reduced.off)] {
        let to = to.column_vector_mut().iter_mut();
        to.zip(from).for_each(|(to, from)| *to = T::of(*from));
    }
    let scratch = self_adjoint_evd_scratch::<T>(n, compute, Par::Seq, spec());
    tridiagonal_self_adjoint_evd(
        diagonal.as_ref(),
        off.as_ref(),
        values.as_mut(),
        vectors,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        spec(),
    )
    .map_err(|_| Error::Eigen { n })?;
    Ok(values.column_vector().iter().map(|value| (*value).into()).collect())
}

fn checked<T: Real>(matrix: &[T], n: usize) -> Result<&[T]> {
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
    Ok(matrix)
}
