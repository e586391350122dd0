//! Graph Laplacians of an attention graph, always named.
//!
//! | name | matrix | null vector |
//! |---|---|---|
//! | `Combinatorial` | `D − W` | `1` |
//! | `SymmetricNormalized` | `I − D^-½ W D^-½` | `D^½ 1` |
//! | `RandomWalk` | `I − D⁻¹W` | `1` |
//!
//! `I − D⁻¹W` is not symmetric, but it is in the inner product `⟨x, y⟩ = xᵀDy`, which
//! is its own: with `D^½x` for coordinates it is the symmetric-normalized matrix. So
//! its operator is that matrix, with the same eigenvalues, and what differs is the
//! signal: `D^½X` for its modes, `Tr(Xᵀ(D − W)X)` for its Dirichlet energy and
//! `Tr(XᵀDX)` for its norm. No symmetric solver ever meets `I − D⁻¹W`.
//!
//! The decision that shapes this file: all are applied as `S(D − W)S`, with
//! `S = I` or `S = D^-½`, and never as `I − …`. A graph of self-loops alone then
//! has a Laplacian of exact zeros, so that "no edges" needs no threshold. A node
//! of degree 0 has a zero row and column in `D^-½`, hence `L_ii = 1` under the
//! normalized Laplacians and 0 under the combinatorial one; such nodes are counted.
//! In the inner product of `RandomWalk` it has no weight, and its signal no energy.

use std::cell::Cell;

use crate::adjacency::Adjacency;
use crate::eigh::Real;
use crate::graph::{LANES, SymmetricGraph};
use crate::{Error, Result};

/// The largest graph of which a dense matrix is built, in nodes: 2 GiB in `f64`.
pub const MAX_DENSE_NODES: usize = 16_384;

/// Which Laplacian of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Laplacian {
    /// `D − W`.
    Combinatorial,
    /// `I − D^-½ W D^-½`.
    SymmetricNormalized,
    /// `I − D⁻¹W`, in the inner product `xᵀDy`.
    RandomWalk,
}

impl Laplacian {
    /// The name written into tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Combinatorial => "combinatorial",
            Self::SymmetricNormalized => "symmetric-normalized",
            Self::RandomWalk => "random-walk",
        }
    }

    fn is_normalized(self) -> bool {
        self != Self::Combinatorial
    }
}

impl std::fmt::Display for Laplacian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A Laplacian as a symmetric linear map on vectors over the nodes; for
/// `RandomWalk` the vectors are `D^½x`.
#[derive(Debug, Clone)]
pub struct LaplacianOperator<'g, G = SymmetricGraph> {
    graph: &'g G,
    kind: Laplacian,
    /// `S`, padded with zeros.
    scale: Vec<f64>,
    /// Nodes of degree 0.
    isolated: Vec<usize>,
    /// The exact null vector, of unit length, padded with zeros.
    null: Option<Vec<f64>>,
}

impl<'g, G: Adjacency> LaplacianOperator<'g, G> {
    /// The chosen Laplacian of a graph.
    pub fn new(graph: &'g G, kind: Laplacian) -> Self {
        let n = graph.n_nodes();
        let mut scale = vec![0.0; graph.n_padded()];
        let mut null = vec![0.0; graph.n_padded()];
        let mut isolated = Vec::new();
        for (i, &degree) in graph.degrees().iter().enumerate() {
            if degree == 0.0 {
                isolated.push(i);
            }
            (scale[i], null[i]) = match kind {
                Laplacian::Combinatorial => (1.0, 1.0),
                Laplacian::SymmetricNormalized | Laplacian::RandomWalk if degree == 0.0 => {
                    (0.0, 0.0)
                }
                Laplacian::SymmetricNormalized | Laplacian::RandomWalk => {
                    (degree.sqrt().recip(), degree.sqrt())
                }
            };
        }
        let norm = null[..n].iter().map(|v| v * v).sum::<f64>().sqrt();
        let null = (norm > 0.0).then(|| {
            for v in &mut null {
                *v /= norm;
            }
            null
        });
        Self { graph, kind, scale, isolated, null }
    }

    /// Which Laplacian this is.
    pub fn kind(&self) -> Laplacian {
        self.kind
    }

    /// Number of nodes.
    pub fn n_nodes(&self) -> usize {
        self.graph.n_nodes()
    }

    /// The graph underneath.
    pub fn graph(&self) -> &'g G {
        self.graph
    }

    /// Number of nodes of degree 0.
    pub fn n_isolated(&self) -> usize {
        self.isolated.len()
    }

    /// The exact null vector, of unit length: `1/√n`, or `D^½1` over its norm.
    /// `None` without nodes, and unless `Combinatorial` where every degree is 0.
    pub fn null_vector(&self) -> Option<&[f64]> {
        self.null.as_deref().map(|null| &null[..self.n_nodes()])
    }

    pub(crate) fn padded_null(&self) -> Option<&[f64]> {
        self.null.as_deref()
    }

    pub(crate) fn n_padded(&self) -> usize {
        self.scale.len()
    }

    /// The size of a typical eigenvalue, against which tolerances are measured:
    /// 1, or the mean degree for `Combinatorial`, which is 1 too where the rows
    /// of the pattern sum to one.
    pub fn typical_scale(&self) -> f64 {
        match self.kind {
            Laplacian::SymmetricNormalized | Laplacian::RandomWalk => 1.0,
            Laplacian::Combinatorial => {
                let total: f64 = self.graph.degrees().iter().sum();
                total / self.n_nodes().max(1) as f64
            }
        }
    }

    /// `y = L x`.
    ///
    /// ```
    /// use kernels::graph::{PatternView, SymmetricGraph};
    /// use kernels::laplacian::{Laplacian, LaplacianOperator};
    /// let a = [1.0, 0.0, 0.25, 0.75];
    /// let graph = SymmetricGraph::from_pattern(PatternView::new(&a, 2, 2)?)?;
    /// let laplacian = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
    /// assert_eq!(laplacian.apply(&[1.0, 1.0])?, [0.0, 0.0]);
    /// assert_eq!(laplacian.apply(&[1.0, 0.0])?, [0.125, -0.125]);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has one entry per node.
    pub fn apply(&self, x: &[f64]) -> Result<Vec<f64>> {
        if x.len() != self.n_nodes() {
            return Err(Error::shape(
                "laplacian",
                "vector",
                format_args!("[{}]", self.n_nodes()),
                &[x.len()],
            ));
        }
        let mut padded = x.to_vec();
        padded.resize(self.n_padded(), 0.0);
        let mut y = vec![0.0; self.n_padded()];
        self.product(&padded, &mut y, &mut Vec::new());
        y.truncate(self.n_nodes());
        Ok(y)
    }

    /// `y = L x`, both of length [`Self::n_padded`] and zero in the padding.
    pub(crate) fn product(&self, x: &[f64], y: &mut [f64], scratch: &mut Vec<f64>) {
        scratch.clear();
        scratch.extend(x.iter().zip(&self.scale).map(|(x, s)| x * s));
        self.graph.product(scratch, y);
        let degrees = self.graph.padded_degrees();
        for (((y, z), degree), s) in y.iter_mut().zip(&*scratch).zip(degrees).zip(&self.scale) {
            *y = s * (degree * z - *y);
        }
        if self.kind.is_normalized() {
            for &i in &self.isolated {
                y[i] = x[i];
            }
        }
    }

    /// `Y = L X` of as many columns as a tile has, both of [`Self::n_padded`] rows
    /// and zero in the padding.
    pub(crate) fn block_product(
        &self,
        x: &[[f64; LANES]],
        y: &mut [[f64; LANES]],
        scratch: &mut Vec<[f64; LANES]>,
    ) {
        scratch.clear();
        scratch.extend(x.iter().zip(&self.scale).map(|(x, s)| x.map(|x| x * s)));
        self.graph.block_product(scratch, y);
        let degrees = self.graph.padded_degrees();
        for (((y, z), degree), s) in y.iter_mut().zip(&*scratch).zip(degrees).zip(&self.scale) {
            for (y, z) in y.iter_mut().zip(z) {
                *y = s * (degree * z - *y);
            }
        }
        if self.kind.is_normalized() {
            for &i in &self.isolated {
                y[i] = x[i];
            }
        }
    }

    /// The same map in `f32` arithmetic.
    pub(crate) fn narrow(&self) -> NarrowLaplacian<'g, G> {
        let degrees = self.graph.padded_degrees().iter();
        let mut diagonal: Vec<f32> =
            degrees.zip(&self.scale).map(|(degree, s)| (s * degree * s) as f32).collect();
        if self.kind.is_normalized() {
            for &i in &self.isolated {
                diagonal[i] = 1.0;
            }
        }
        let scale = self.scale.iter().map(|s| *s as f32).collect();
        NarrowLaplacian { graph: self.graph, scale, diagonal, scratch: Vec::new() }
    }

    /// No eigenvalue is above it: 2, or twice the largest degree for `Combinatorial`,
    /// by Gershgorin's discs.
    pub fn upper_bound(&self) -> f64 {
        match self.kind {
            Laplacian::SymmetricNormalized | Laplacian::RandomWalk => 2.0,
            Laplacian::Combinatorial => {
                2.0 * self.graph.degrees().iter().fold(0.0_f64, |m, d| m.max(*d))
            }
        }
    }

    /// `S`, padded with zeros.
    pub(crate) fn padded_scale(&self) -> &[f64] {
        &self.scale
    }

    /// By what a node's signal is multiplied to have its coordinate, padded: `√d` for
    /// `RandomWalk`; `None` where the signal itself serves.
    pub(crate) fn coordinate_scale(&self) -> Option<impl Iterator<Item = f64>> {
        let degrees = self.graph.padded_degrees().iter();
        (self.kind == Laplacian::RandomWalk).then(|| degrees.map(|degree| degree.sqrt()))
    }

    /// The diagonal entries `L_ii`.
    pub fn diagonal(&self) -> Vec<f64> {
        let loops = self.graph.self_loops();
        let degrees = self.graph.degrees().iter().zip(&self.scale).zip(loops);
        degrees
            .map(|((&degree, s), own)| {
                if self.kind.is_normalized() && degree == 0.0 {
                    1.0
                } else {
                    s * (degree - own) * s
                }
            })
            .collect()
    }

    /// Mean and variance of the eigenvalues, from plain sums over the matrix:
    /// `μ = Tr L/n`, `σ² = Tr L²/n − μ²`. `None` without nodes.
    ///
    /// # Numerics
    /// The variance is summed as `(Σ_i (L_ii − μ)² + Σ_{i≠j} L_ij²)/n`, which is
    /// the same number and does not cancel.
    pub fn spectrum_moments(&self) -> Option<SpectrumMoments> {
        let n = self.n_nodes();
        if n == 0 {
            return None;
        }
        let diagonal = self.diagonal();
        let mean = diagonal.iter().sum::<f64>() / n as f64;
        let around = diagonal.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>();
        let scale = self.scale.as_chunks::<LANES>().0;
        let below = self.graph.sum_below_diagonal(|i, block, mut weights| {
            let (s_i, s_j) = (self.scale[i], &scale[block]);
            for c in 0..LANES {
                weights[c] *= s_i * s_j[c];
                weights[c] *= weights[c];
            }
            weights
        });
        Some(SpectrumMoments { mean, variance: (around + 2.0 * below) / n as f64 })
    }
}

impl LaplacianOperator<'_> {
    /// The matrix itself, `n × n`, both triangles; for `RandomWalk` in the coordinates `D^½x`.
    ///
    /// # Errors
    /// [`Error::Range`] above [`MAX_DENSE_NODES`].
    pub fn dense(&self) -> Result<Vec<f64>> {
        self.dense_in()
    }

    /// As [`dense`](Self::dense), each entry rounded once to `T`.
    ///
    /// # Errors
    /// As [`dense`](Self::dense).
    pub fn dense_in<T: Real>(&self) -> Result<Vec<T>> {
        let n = self.n_nodes();
        if n > MAX_DENSE_NODES {
            return Err(Error::range(
                "dense laplacian",
                "number of nodes",
                format_args!("at most {MAX_DENSE_NODES}; use the iterative solver"),
                n,
            ));
        }
        let mut matrix = vec![T::default(); n * n];
        let cells = Cell::from_mut(matrix.as_mut_slice()).as_slice_of_cells();
        let scale = self.scale.as_chunks::<LANES>().0;
        // A pass over the weights, which needs no sum.
        self.graph.sum_below_diagonal(|i, block, weights| {
            let start = block * LANES;
            if i < n {
                let row = &cells[i * n + start..][..LANES.min(i - start)];
                for ((cell, weight), s) in row.iter().zip(weights).zip(&scale[block]) {
                    cell.set(T::of(-self.scale[i] * weight * s));
                }
            }
            [0.0; LANES]
        });
        for (i, value) in self.diagonal().into_iter().enumerate() {
            matrix[i * n + i] = T::of(value);
        }
        mirror(&mut matrix, n);
        Ok(matrix)
    }
}

/// Copies the lower triangle of an `n × n` matrix to the upper one, in squares that
/// stay in the first-level cache.
fn mirror<T: Copy>(matrix: &mut [T], n: usize) {
    const SIDE: usize = 16;
    for top in (0..n).step_by(SIDE) {
        for left in (0..=top).step_by(SIDE) {
            for j in left..(left + SIDE).min(n) {
                for i in top.max(j)..(top + SIDE).min(n) {
                    matrix[j * n + i] = matrix[i * n + j];
                }
            }
        }
    }
}

/// A Laplacian with `f32` rounding: products cost a quarter.
///
/// It is applied as `diag(SDS) − SWS`, since `SDS` is 1 to the last digit for the
/// normalized Laplacians, where `SD` and `S` would each bring an error of their own.
pub(crate) struct NarrowLaplacian<'g, G> {
    graph: &'g G,
    scale: Vec<f32>,
    diagonal: Vec<f32>,
    scratch: Vec<f32>,
}

impl<G: Adjacency> NarrowLaplacian<'_, G> {
    /// `Y = L X` for the columns `x`; `y` holds as many, one after another.
    pub(crate) fn product(&mut self, x: &[&[f32]], y: &mut [f32]) {
        let Self { graph, scale, diagonal, scratch } = self;
        let n = scale.len();
        scratch.clear();
        for x in x {
            scratch.extend(x.iter().zip(&*scale).map(|(x, s)| x * s));
        }
        graph.narrow_product(scratch, y);
        for (x, y) in x.iter().zip(y.chunks_exact_mut(n)) {
            for (((y, x), d), s) in y.iter_mut().zip(*x).zip(&*diagonal).zip(&*scale) {
                *y = d * x - s * *y;
            }
        }
    }
}

/// Mean and variance of a Laplacian's eigenvalues.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpectrumMoments {
    /// `Tr L/n`.
    pub mean: f64,
    /// `Tr L²/n − (Tr L/n)²`.
    pub variance: f64,
}
