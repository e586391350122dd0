//! Weights for layers that are on devices.

use candle_core::{DType, Tensor};

use super::{Matrix, Part, UnitNorms, Weights};
use crate::Result;
use crate::placement::Home;

/// The same weights: matrices make layers on the devices of a home, in its dtype, and vectors come
/// in their memory.
pub(crate) struct PlacedWeights<'a> {
    weights: &'a dyn Weights,
    home: &'a Home,
}

impl<'a> PlacedWeights<'a> {
    pub(crate) fn new(weights: &'a dyn Weights, home: &'a Home) -> Self {
        Self { weights, home }
    }
}

impl Weights for PlacedWeights<'_> {
    fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }

    fn vector(&self, parts: &[(String, usize)]) -> Result<Tensor> {
        let vector = self.weights.vector(parts)?;
        Ok(match parts.first() {
            Some((name, _)) => {
                kernels::cuda::bring("loading weights", &vector, self.home.of(name))?
            }
            None => vector,
        })
    }

    fn matrices(&self, parts: &[Part], columns: usize) -> Result<Vec<Matrix<'_>>> {
        let mut matrices = self.weights.matrices(parts, columns)?;
        for (matrix, part) in matrices.iter_mut().zip(parts) {
            matrix.place(self.home.of(&part.module), part.precision.dtype(self.home.dtype()));
        }
        Ok(matrices)
    }

    fn slices(&self, name: &str, n: usize, rows: usize, columns: usize) -> Result<Vec<Matrix<'_>>> {
        let mut matrices = self.weights.slices(name, n, rows, columns)?;
        for matrix in &mut matrices {
            matrix.place(self.home.of(name), self.home.dtype());
        }
        Ok(matrices)
    }

    fn sizes(&self, dtype: DType) -> Vec<(String, u64)> {
        self.weights.sizes(dtype)
    }

    fn unit_norms(&self) -> UnitNorms {
        self.weights.unit_norms()
    }

    fn frequency_divisors(&self, n_frequencies: usize) -> Result<Option<Tensor>> {
        self.weights.frequency_divisors(n_frequencies)
    }
}
