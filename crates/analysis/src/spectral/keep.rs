//! What is kept of a graph's spectrum beside its diagnostics.
//!
//! The decision that shapes this file: of a quadrature the probes' recurrences are
//! kept and no functional, so that what is asked of the spectrum later needs no new
//! run. Each prompt has probes of its own, drawn from its tokens: the estimates of
//! different prompts are independent, so that their errors shrink in a mean, and a
//! prompt's do not depend on its place among others or on the machine.

use std::collections::BTreeSet;

use kernels::adjacency::Adjacency;
use kernels::laplacian::{Laplacian, LaplacianOperator};
use kernels::quadrature::{Coefficients, Quadrature, QuadratureOptions};
use kernels::random::SplitMix64;

use super::{Graphs, Run};
use crate::{Error, Result};

/// What is to be kept of every graph; by default nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keep {
    /// Parts of its eigendecomposition.
    pub parts: BTreeSet<Part>,
    /// Lanczos recurrences of random probes.
    pub quadrature: Option<Probing>,
}

/// A part of an eigendecomposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Every eigenvalue: of graphs that are solved densely.
    Eigenvalues,
    /// The vector of the Fiedler value.
    FiedlerVector,
}

impl Part {
    /// The name used on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eigenvalues => "eigenvalues",
            Self::FiedlerVector => "fiedler-vectors",
        }
    }
}

/// Random probes, and the graphs that they are sent through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probing {
    /// Which of the graphs that are diagnosed.
    pub graphs: Graphs,
    /// How many probes, and how far each goes.
    pub options: QuadratureOptions,
}

/// What was kept of one graph; `None` for what was not asked for or does not exist.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Kept {
    /// The eigenvalues, ascending.
    pub eigenvalues: Option<Vec<f64>>,
    /// The vector of the Fiedler value, an entry per node: an eigenvector of `L` of
    /// unit norm, for `RandomWalk` the right eigenvector `D^-½u` of `I − D⁻¹W`, of
    /// unit norm in the inner product `xᵀDy`, 0 at nodes of degree 0.
    ///
    /// The largest of its entries by magnitude, the first of several, is positive. An
    /// eigenvalue that occurs more than once leaves its direction open.
    pub fiedler_vector: Option<Vec<f64>>,
    /// The recurrences of its probes.
    pub quadrature: Option<KeptQuadrature>,
}

/// The recurrences of a graph's probes.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptQuadrature {
    /// The seed of the probes.
    pub seed: u64,
    /// What [`Quadrature::from_coefficients`] takes.
    pub coefficients: Coefficients,
}

impl Keep {
    /// Refuses what cannot be kept of these runs.
    pub(super) fn check(&self, runs: &[Run]) -> Result<()> {
        let is_dense = |run: &Run| run.effective_exactness().is_dense();
        if self.parts.contains(&Part::Eigenvalues) && !runs.iter().any(is_dense) {
            return Err(Error::NoEigenvalues);
        }
        if let Some(Probing { options, .. }) = &self.quadrature {
            options.check().map_err(|source| Error::Probing { source })?;
        }
        Ok(())
    }

    /// The same with the probes of a prompt of these tokens.
    pub(super) fn of_prompt(&self, tokens: &[u32]) -> Self {
        let mut keep = self.clone();
        if let Some(Probing { options, .. }) = &mut keep.quadrature {
            options.seed = tokens.iter().fold(options.seed, |seed, token| {
                SplitMix64::new(seed ^ u64::from(*token)).next_u64()
            });
        }
        keep
    }

    /// Keeps what is wanted of a graph, that of one head or of the mean over heads,
    /// given what was solved of it.
    pub(super) fn take<G: Adjacency>(
        &self,
        head: Option<usize>,
        operator: &LaplacianOperator<'_, G>,
        eigenvalues: Option<&[f64]>,
        fiedler_vector: &[f64],
    ) -> kernels::Result<Kept> {
        let mut kept = Kept::default();
        if self.parts.contains(&Part::Eigenvalues) {
            kept.eigenvalues = eigenvalues.map(<[f64]>::to_vec);
        }
        if self.parts.contains(&Part::FiedlerVector) && !fiedler_vector.is_empty() {
            kept.fiedler_vector = Some(oriented(on_nodes(operator, fiedler_vector)));
        }
        if let Some(Probing { graphs, options }) = &self.quadrature
            && if head.is_some() { graphs.has_heads() } else { graphs.has_mean() }
        {
            let coefficients = Quadrature::run(operator, options)?.coefficients().clone();
            kept.quadrature = Some(KeptQuadrature { seed: options.seed, coefficients });
        }
        Ok(kept)
    }
}

/// A vector in the coordinates of the operator as one on the nodes.
fn on_nodes<G: Adjacency>(operator: &LaplacianOperator<'_, G>, vector: &[f64]) -> Vec<f64> {
    let entry = |(value, degree): (&f64, &f64)| match operator.kind() {
        Laplacian::Combinatorial | Laplacian::SymmetricNormalized => *value,
        Laplacian::RandomWalk if *degree > 0.0 => value / degree.sqrt(),
        Laplacian::RandomWalk => 0.0,
    };
    vector.iter().zip(operator.graph().degrees()).map(entry).collect()
}

/// How much smaller an entry may be and still count as the largest: symmetric graphs
/// have vectors with entries of opposite sign that differ by rounding alone.
const TIE: f64 = 1e-6;

/// Of a vector and its opposite the one whose largest entry is positive.
fn oriented(mut vector: Vec<f64>) -> Vec<f64> {
    let largest = vector.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
    let first = vector.iter().find(|v| v.abs() >= (1.0 - TIE) * largest);
    if first.is_some_and(|v| *v < 0.0) {
        for v in &mut vector {
            *v = -*v;
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_entries_is_positive() {
        assert_eq!(oriented(vec![0.1, -0.9, 0.5]), [-0.1, 0.9, -0.5]);
        let close = 0.7 * (1.0 - 1e-9);
        assert_eq!(oriented(vec![-close, 0.0, 0.7]), [close, 0.0, -0.7]);
        assert_eq!(oriented(vec![0.7, 0.0, -0.7]), [0.7, 0.0, -0.7]);
        assert!(oriented(vec![]).is_empty());
    }

    #[test]
    fn probes_follow_from_the_tokens() {
        let options = QuadratureOptions::default();
        let quadrature = Some(Probing { graphs: Graphs::HeadMean, options });
        let keep = Keep { quadrature, ..Keep::default() };
        let seed = |tokens: &[u32]| keep.of_prompt(tokens).quadrature.unwrap().options.seed;
        assert_eq!(seed(&[3, 5]), seed(&[3, 5]));
        let seeds = [seed(&[]), seed(&[3]), seed(&[3, 5]), seed(&[5, 3]), seed(&[0, 3, 5])];
        for (k, seed) in seeds.iter().enumerate() {
            assert!(seeds[..k].iter().all(|other| other != seed));
        }
        assert_eq!(Keep::default().of_prompt(&[3]), Keep::default());
    }
}
