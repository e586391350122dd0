//! What a Laplacian needs of a graph: its weights as something that multiplies.
//!
//! The decision that shapes this file: operators and solvers ask for products and
//! for sums over all weights, never for one weight. So a graph may be stored, as
//! [`SymmetricGraph`] is, or made anew from queries and keys at every product.
//! Both are compiled on their own: there is no call through a table in a loop.

use crate::graph::{LANES, SymmetricGraph};

/// The weights `W = Wᵀ ≥ 0` of an undirected graph.
///
/// Vectors are padded with zeros to whole blocks of [`LANES`] nodes. Every result
/// has the same bits for any number of threads.
pub trait Adjacency: Sync {
    /// Whether a product with [`LANES`] vectors costs little more than one with a single
    /// vector, so that what can goes forward together.
    const TOGETHER: bool = false;

    /// Number of nodes.
    fn n_nodes(&self) -> usize;

    /// `Σ_j W_ij` for every node `i`, with zeros up to [`Self::n_padded`].
    fn padded_degrees(&self) -> &[f64];

    /// `W_ii` for every node `i`.
    fn self_loops(&self) -> Vec<f64>;

    /// `y = W x`, both of length [`Self::n_padded`].
    fn product(&self, x: &[f64], y: &mut [f64]);

    /// `Y = W X` of [`LANES`] columns, both of [`Self::n_padded`] rows.
    fn block_product(&self, x: &[[f64; LANES]], y: &mut [[f64; LANES]]);

    /// `Y = W X` with `f32` rounding, of any number of columns, each of
    /// [`Self::n_padded`] entries, one after another.
    fn narrow_product(&self, x: &[f32], y: &mut [f32]) {
        let n = self.n_padded();
        if n == 0 {
            return;
        }
        let mut block = vec![[0.0; LANES]; n];
        let mut product = block.clone();
        for (x, y) in x.chunks(LANES * n).zip(y.chunks_mut(LANES * n)) {
            for (i, row) in block.iter_mut().enumerate() {
                *row = std::array::from_fn(|c| x.get(c * n + i).map_or(0.0, |x| f64::from(*x)));
            }
            self.block_product(&block, &mut product);
            for (c, y) in y.chunks_exact_mut(n).enumerate() {
                for (y, row) in y.iter_mut().zip(&product) {
                    *y = row[c] as f32;
                }
            }
        }
    }

    /// `Σ term(i, block, weights)` over the weights strictly below the diagonal:
    /// `weights[c] = W_ij` with `j = LANES · block + c`. A weight of 0, which also
    /// stands for whatever is not below the diagonal, must give 0.
    fn sum_below_diagonal<F>(&self, term: F) -> f64
    where
        F: Fn(usize, usize, [f64; LANES]) -> [f64; LANES] + Sync;

    /// Number of nodes, rounded up to whole blocks: the length of vectors.
    fn n_padded(&self) -> usize {
        self.n_nodes().next_multiple_of(LANES)
    }

    /// `Σ_j W_ij` for every node `i`.
    fn degrees(&self) -> &[f64] {
        &self.padded_degrees()[..self.n_nodes()]
    }
}

impl Adjacency for SymmetricGraph {
    fn n_nodes(&self) -> usize {
        self.n_nodes()
    }

    fn padded_degrees(&self) -> &[f64] {
        self.padded_degrees()
    }

    fn self_loops(&self) -> Vec<f64> {
        (0..self.n_nodes()).map(|i| f64::from(self.weight(i, i))).collect()
    }

    fn product(&self, x: &[f64], y: &mut [f64]) {
        self.product(x, y);
    }

    fn block_product(&self, x: &[[f64; LANES]], y: &mut [[f64; LANES]]) {
        self.block_product(x, y);
    }

    fn narrow_product(&self, x: &[f32], y: &mut [f32]) {
        self.narrow_product(x, y);
    }

    fn sum_below_diagonal<F>(&self, term: F) -> f64
    where
        F: Fn(usize, usize, [f64; LANES]) -> [f64; LANES] + Sync,
    {
        self.sum_below_diagonal(term)
    }
}
