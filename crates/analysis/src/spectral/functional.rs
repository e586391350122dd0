//! Functionals of a whole spectrum, from the coefficients that were kept of it.

use kernels::heat::Estimate;
use kernels::quadrature::{Coefficients, Quadrature};
use kernels::signal::Null;

use crate::{Error, Result};

/// A functional of a Laplacian's eigenvalues `λ_k`, `n` of them.
///
/// # References
/// arXiv 2606.19404.
#[derive(Debug, Clone, PartialEq)]
pub enum Functional {
    /// Density of states `(1/n) Σ_k φ(x − λ_k)` at the points `x` of a grid, per unit
    /// of eigenvalue, `φ` the normal density of a standard deviation.
    Density {
        /// The standard deviation.
        width: f64,
        /// The points.
        grid: Vec<f64>,
    },
    /// `−Σ q ln q` in nats, `q = λ/Σλ`.
    EigenvalueEntropy,
    /// `Z(β) = Σ_k e^{−βλ_k}`.
    PartitionFunction {
        /// The inverse temperature.
        beta: f64,
    },
    /// `−ln(Z/n)/β`: without the `n` it would measure length.
    FreeEnergy {
        /// The inverse temperature.
        beta: f64,
    },
    /// `β² Var_β(λ)`, the variance under weights `e^{−βλ}`.
    HeatCapacity {
        /// The inverse temperature.
        beta: f64,
    },
    /// `|Σ_k e^{iλ_k τ}|²/n²`.
    FormFactor {
        /// The time.
        tau: f64,
    },
}

/// A functional's value at one point, and its two errors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FunctionalValue {
    /// The estimate.
    pub value: f64,
    /// Its standard error, from the scatter of the probes.
    pub error: f64,
    /// What fewer steps change, as [`Quadrature::shortened`] tells: in practice more
    /// than what the steps leave out.
    pub truncation: f64,
}

/// Why a functional has no value for a graph.
#[derive(Debug, thiserror::Error)]
pub enum NoValue {
    /// It does not exist.
    #[error("{}", .0.name())]
    Undefined(Null),
    /// Its argument is beyond what the kept coefficients tell.
    #[error(transparent)]
    Range(kernels::Error),
}

impl Functional {
    /// The functional of a graph: one value, or one for each point of the grid.
    ///
    /// ```
    /// use analysis::spectral::{Coefficients, Functional, Recurrence};
    /// // Three nodes, joined by equal weights: beside 0 the eigenvalue 1.5, twice.
    /// let probe = Recurrence { alpha: vec![1.5], beta: vec![] };
    /// let recurrences = vec![probe; 8];
    /// let kept = Coefficients { n_nodes: 3, dimension: 2, trace: 3.0, steps: 64, recurrences };
    /// let entropy = Functional::EigenvalueEntropy.of(kept)??;
    /// assert!((entropy[0].value - 2f64.ln()).abs() < 1e-12);
    /// assert_eq!((entropy[0].error, entropy[0].truncation), (0.0, 0.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Coefficients`] for numbers that no Laplacian has.
    pub fn of(
        &self,
        coefficients: Coefficients,
    ) -> Result<std::result::Result<Vec<FunctionalValue>, NoValue>> {
        let failed = |source| Error::Coefficients { source };
        if coefficients.n_nodes == 0 {
            return Ok(Err(NoValue::Undefined(Null::TooFewNodes)));
        }
        let quadrature = Quadrature::from_coefficients(coefficients).map_err(failed)?;
        let shortened = quadrature.shortened().map_err(failed)?;
        let estimates = |quadrature| match self.estimates(quadrature) {
            Ok(estimates) => Ok(estimates.map_err(NoValue::Undefined)),
            Err(error @ kernels::Error::Range { .. }) => Ok(Err(NoValue::Range(error))),
            Err(error) => Err(failed(error)),
        };
        let values = match estimates(&quadrature)? {
            Ok(values) => values,
            Err(none) => return Ok(Err(none)),
        };
        let fewer = match shortened.as_ref().map(estimates).transpose()? {
            None => None,
            Some(Ok(values)) => Some(values),
            Some(Err(none)) => return Ok(Err(none)),
        };
        let value = |(k, Estimate { value, error }): (usize, &Estimate)| {
            let fewer = fewer.as_ref().and_then(|values| values.get(k));
            let truncation = fewer.map_or(0.0, |fewer| (value - fewer.value).abs());
            FunctionalValue { value: *value, error: *error, truncation }
        };
        Ok(Ok(values.iter().enumerate().map(value).collect()))
    }

    fn estimates(
        &self,
        quadrature: &Quadrature,
    ) -> kernels::Result<std::result::Result<Vec<Estimate>, Null>> {
        let one = |estimate| Ok(vec![estimate]);
        match self {
            Self::Density { width, grid } => quadrature.density(grid, *width).map(Ok),
            Self::EigenvalueEntropy => {
                Ok(quadrature.eigenvalue_entropy()?.map(|estimate| vec![estimate]))
            }
            Self::PartitionFunction { beta } => quadrature.partition(*beta).map(one),
            Self::FreeEnergy { beta } => quadrature.free_energy(*beta).map(one),
            Self::HeatCapacity { beta } => quadrature.heat_capacity(*beta).map(one),
            Self::FormFactor { tau } => quadrature.form_factor(*tau).map(one),
        }
    }
}
