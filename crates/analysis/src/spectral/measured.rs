//! What measuring asks of a graph beside its products, and how it is met by one that
//! is stored and by one that is made anew every time.

use std::borrow::Cow;

use kernels::adjacency::Adjacency;
use kernels::attention::RecomputedGraph;
use kernels::graph::SymmetricGraph;
use kernels::laplacian::{LaplacianOperator, MAX_DENSE_NODES};
use kernels::signal::{self, Gram, Signal};

use super::{Exactness, Run};

/// How the graphs of a layer are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Storage {
    /// From the layer's patterns, as triangles of weights: fast, and memory grows with
    /// the square of the length.
    #[default]
    Stored,
    /// Not at all: every product makes the weights anew from queries, keys and
    /// log-sum-exp. Memory grows with the length alone, and time is what a pass over
    /// the layer's scores takes, at every step of the solver. No pattern is formed.
    Recomputed,
}

/// A graph that is measured.
pub(super) trait Measured: Adjacency + Send + Sized {
    /// What all graphs on a signal share of it.
    type Shared: Send + Sync;

    /// The largest argument, time times half of the eigenvalues' bound, up to which
    /// heat energies are estimated: their products grow with its root.
    const MAX_HEAT: f64;

    /// What is shared of a signal.
    fn share(signal: &Signal) -> kernels::Result<Self::Shared>;

    /// `‖X‖²` and `Tr(XᵀLX)`.
    fn energies(
        laplacian: &LaplacianOperator<'_, Self>,
        signal: &Signal,
        shared: &Self::Shared,
    ) -> kernels::Result<(f64, f64)>;

    /// How its eigenvalues are found.
    fn exactness(&self, run: &Run) -> Exactness;

    /// The graph with its weights stored, of which the whole spectrum is solved.
    fn stored(&self) -> kernels::Result<Cow<'_, SymmetricGraph>>;

    /// The graph among its first nodes.
    fn leading(&self, n: usize) -> kernels::Result<Self>;
}

impl Measured for SymmetricGraph {
    type Shared = Gram;

    const MAX_HEAT: f64 = f64::INFINITY;

    fn share(signal: &Signal) -> kernels::Result<Gram> {
        signal.gram()
    }

    fn energies(
        laplacian: &LaplacianOperator<'_>,
        _: &Signal,
        gram: &Gram,
    ) -> kernels::Result<(f64, f64)> {
        Ok((signal::energy(laplacian, gram)?, signal::dirichlet_energy(laplacian, gram)?))
    }

    fn exactness(&self, run: &Run) -> Exactness {
        run.effective_exactness()
    }

    fn stored(&self) -> kernels::Result<Cow<'_, SymmetricGraph>> {
        Ok(Cow::Borrowed(self))
    }

    fn leading(&self, n: usize) -> kernels::Result<Self> {
        self.leading(n)
    }
}

impl Measured for RecomputedGraph {
    type Shared = ();

    /// Some 65 products.
    const MAX_HEAT: f64 = 400.0;

    fn share(_: &Signal) -> kernels::Result<()> {
        Ok(())
    }

    fn energies(
        laplacian: &LaplacianOperator<'_, Self>,
        signal: &Signal,
        (): &(),
    ) -> kernels::Result<(f64, f64)> {
        let dirichlet = signal::dirichlet_energy_of(laplacian, signal)?;
        Ok((signal::energy_of(laplacian, signal)?, dirichlet))
    }

    /// Of more nodes than a dense matrix may have, both ends of the spectrum only.
    fn exactness(&self, run: &Run) -> Exactness {
        match self.n_nodes() {
            0..=MAX_DENSE_NODES => run.effective_exactness(),
            _ => Exactness::Iterative,
        }
    }

    fn stored(&self) -> kernels::Result<Cow<'_, SymmetricGraph>> {
        self.stored().map(Cow::Owned)
    }

    fn leading(&self, n: usize) -> kernels::Result<Self> {
        self.leading(n)
    }
}
