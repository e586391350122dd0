//! Dense symmetric eigendecomposition, in `f64`, through faer.
//!
//! The decision that shapes this file: one decomposition runs on one thread, so
//! that its bits do not depend on how many there are. Callers have many graphs
//! and spread those over the threads.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par, Spec};

use crate::laplacian::MAX_DENSE_NODES;
use crate::{Error, Result};

const OP: &str = "symmetric eigendecomposition";

/// Eigenvalues, ascending, and orthonormal eigenvectors.
#[derive(Debug, Clone)]
pub struct Eigen {
    values: Vec<f64>,
    vectors: Mat<f64>,
}

impl Eigen {
    /// `λ_0 ≤ λ_1 ≤ …`.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The eigenvectors as columns, in the order of the values. Signs are arbitrary.
    pub fn vectors(&self) -> MatRef<'_, f64> {
        self.vectors.as_ref()
    }

    /// Eigenvector `k`; it must be below the number of values.
    pub fn vector(&self, k: usize) -> Vec<f64> {
        self.vectors.col(k).iter().copied().collect()
    }
}

/// Eigenvalues, ascending, of the symmetric `n × n` matrix whose lower triangle
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
    let matrix = checked(matrix, n)?;
    let mut values = Diag::<f64>::zeros(n);
    let scratch =
        self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::No, Par::Seq, Spec::default());
    self_adjoint_evd(
        matrix,
        values.as_mut(),
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Spec::default(),
    )
    .map_err(|_| Error::Eigen { n })?;
    Ok(values.column_vector().iter().copied().collect())
}

/// Eigenvalues, ascending, and eigenvectors of the symmetric `n × n` matrix
/// whose lower triangle (row-major) is in `matrix`.
///
/// # Numerics
/// `‖Lu − λu‖` and the departure from orthonormality are modest multiples of
/// `n ε ‖matrix‖` and `n ε`.
///
/// # Errors
/// As [`eigenvalues`].
pub fn eigh(matrix: &[f64], n: usize) -> Result<Eigen> {
    let matrix = checked(matrix, n)?;
    let mut values = Diag::<f64>::zeros(n);
    let mut vectors = Mat::<f64>::zeros(n, n);
    let scratch =
        self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Spec::default());
    self_adjoint_evd(
        matrix,
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Spec::default(),
    )
    .map_err(|_| Error::Eigen { n })?;
    Ok(Eigen { values: values.column_vector().iter().copied().collect(), vectors })
}

fn checked(matrix: &[f64], n: usize) -> Result<MatRef<'_, f64>> {
    if n > MAX_DENSE_NODES {
        return Err(Error::range(OP, "matrix size", format_args!("at most {MAX_DENSE_NODES}"), n));
    }
    if matrix.len() != n * n {
        return Err(Error::shape(OP, "matrix", format_args!("[{n}, {n}]"), &[matrix.len()]));
    }
    if let Some(index) = matrix.iter().position(|v| !v.is_finite()) {
        return Err(Error::NonFinite {
            op: OP,
            what: "matrix",
            index: vec![index / n, index % n],
            value: matrix[index],
        });
    }
    Ok(MatRef::from_row_major_slice(matrix, n, n))
}
