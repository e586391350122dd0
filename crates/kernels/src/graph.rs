//! The attention graph: `W = ½(A + Aᵀ)`, of one head or of the mean over heads.
//!
//! Self-loops are kept. The degrees are the row sums of `W`, in `f64`.
//!
//! The decision that shapes this file: `W` is stored as its lower triangle in
//! `f32`, the precision of the pattern it comes from, while every vector that
//! meets it is `f64`. Each weight is read once per product, in memory order, and
//! used for both triangles; and products carry `f64` rounding only, which is
//! what lets an eigenvalue of the stored graph be certified far below the
//! precision of its weights.

mod fill;
mod parts;
mod product;

use candle_core::Tensor;
use rayon::prelude::*;

use self::fill::{Fill, Mean, Reads};
use self::product::{BlockProduct, NarrowProduct, Product, SumBelowDiagonal};
use crate::tensor::Values;
use crate::{Error, Result};

const OP: &str = "attention graph";

/// Columns of a tile, rows of a block, and columns of a product of many vectors.
pub const LANES: usize = 8;
/// Rows of a tile: what a product keeps in registers.
const ROWS: usize = 4;

/// `ROWS` rows of `LANES` weights. Aligned so that no vector load crosses a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Tile([[f32; LANES]; ROWS]);

impl Tile {
    const ZERO: Self = Self([[0.0; LANES]; ROWS]);
}

/// One head's attention pattern: a square of rows with any row stride.
///
/// Entry `(i, j)` is the attention that query `i` pays to key `j`.
#[derive(Debug, Clone, Copy)]
pub struct PatternView<'a> {
    values: &'a [f32],
    n_tokens: usize,
    row_stride: usize,
}

impl<'a> PatternView<'a> {
    /// Views `n_tokens × n_tokens` values whose rows start `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Range`] where the stride is shorter than a row, [`Error::Shape`]
    /// where `values` ends before the last row does.
    pub fn new(values: &'a [f32], n_tokens: usize, row_stride: usize) -> Result<Self> {
        if row_stride < n_tokens {
            return Err(Error::range(
                OP,
                "row stride",
                format_args!("at least the row length {n_tokens}"),
                row_stride,
            ));
        }
        let needed = match n_tokens.checked_sub(1) {
            None => Some(0),
            Some(last) => {
                last.checked_mul(row_stride).and_then(|start| start.checked_add(n_tokens))
            }
        };
        match needed {
            Some(needed) if needed <= values.len() => Ok(Self { values, n_tokens, row_stride }),
            _ => Err(Error::shape(
                OP,
                "pattern",
                format_args!("{n_tokens} rows of stride {row_stride}"),
                &[values.len()],
            )),
        }
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The pattern among all tokens but the first: its rows no longer sum to one.
    pub fn without_first(self) -> Self {
        let skip = if self.n_tokens < 2 { self.values.len() } else { self.row_stride + 1 };
        Self {
            values: &self.values[skip..],
            n_tokens: self.n_tokens.saturating_sub(1),
            row_stride: self.row_stride,
        }
    }

    /// What query `i` pays to every key.
    fn row(&self, i: usize) -> &'a [f32] {
        let start = i * self.row_stride;
        &self.values[start..start + self.n_tokens]
    }
}

/// Borrowed patterns of one layer, out of a tensor `[head, query_pos, key_pos]`.
///
/// Holds the tensor's storage open; [`Patterns::head`] then borrows from it
/// without copying, whatever the strides of the first two axes.
pub struct Patterns<'a> {
    values: Values<'a>,
    n_heads: usize,
    n_tokens: usize,
}

impl<'a> Patterns<'a> {
    /// Borrows a tensor of patterns.
    ///
    /// # Shapes
    /// `pattern` is `[head, query_pos, key_pos]`, `f32`, in main memory, with as
    /// many keys as queries and its last axis contiguous.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
    pub fn new(pattern: &'a Tensor) -> Result<Self> {
        let &[n_heads, n_tokens, n_keys] = pattern.dims() else {
            return Err(Error::shape(OP, "pattern", "[head, query_pos, key_pos]", pattern.dims()));
        };
        if n_tokens != n_keys {
            return Err(Error::shape(OP, "pattern", "as many keys as queries", pattern.dims()));
        }
        Ok(Self { values: Values::new(OP, "pattern", pattern)?, n_heads, n_tokens })
    }

    /// Number of heads.
    pub fn n_heads(&self) -> usize {
        self.n_heads
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The pattern of one head.
    ///
    /// # Errors
    /// [`Error::Range`] for a head that the tensor does not hold, and as
    /// [`PatternView::new`].
    pub fn head(&self, head: usize) -> Result<PatternView<'_>> {
        if head >= self.n_heads {
            return Err(Error::range(OP, "head", format_args!("below {}", self.n_heads), head));
        }
        let strides = self.values.strides();
        let values = self.values.data().get(head * strides[0]..).unwrap_or(&[]);
        // The stride of an axis of one entry may be anything.
        let row_stride = if self.n_tokens > 1 { strides[1] } else { 1 };
        PatternView::new(values, self.n_tokens, row_stride)
    }

    /// The patterns of all heads, in order.
    ///
    /// # Errors
    /// As [`Patterns::head`].
    pub fn heads(&self) -> Result<Vec<PatternView<'_>>> {
        (0..self.n_heads).map(|head| self.head(head)).collect()
    }
}

/// A weighted undirected graph on the tokens: `W = ½(A + Aᵀ)`, self-loops kept.
///
/// # Numerics
/// `½a` is exact in `f32`; the mean over heads is summed in `f64`, in the order
/// given, and rounded once to `f32`; a pattern with entries on both sides of the
/// diagonal is summed in `f64` and rounded once. Degrees are `f64` sums of the
/// stored weights.
#[derive(Debug, Clone)]
pub struct SymmetricGraph {
    n_nodes: usize,
    /// Blocks of eight rows, one after another. Block `I` is its upper four rows,
    /// then its lower four, each as tiles of columns `8J..8J + 8` for `J ≤ I`.
    /// The tiles on the diagonal hold both triangles; padding is zero.
    tiles: Vec<Tile>,
    /// Row sums, padded with zeros to whole blocks.
    degrees: Vec<f64>,
    /// Whether the weights are those of one causal pattern, so that none is rounded.
    exact: bool,
}

impl SymmetricGraph {
    /// The graph of one head.
    ///
    /// ```
    /// use kernels::graph::{PatternView, SymmetricGraph};
    /// // Two tokens; the second attends a quarter to the first.
    /// let a = [1.0, 0.0, 0.25, 0.75];
    /// let graph = SymmetricGraph::from_pattern(PatternView::new(&a, 2, 2)?)?;
    /// assert_eq!(graph.weight(1, 0), 0.125);
    /// assert_eq!(graph.degrees(), [1.125, 0.875]);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Weight`] for an entry that is negative, infinite or not a number.
    pub fn from_pattern(pattern: PatternView<'_>) -> Result<Self> {
        Self::mean(&[pattern])
    }

    /// The graph of the mean pattern over several heads: `W = ½(Ā + Āᵀ)`, `Ā = Σ_h A_h / H`.
    ///
    /// # Errors
    /// [`Error::Range`] without any head, [`Error::Shape`] where heads differ in
    /// size, [`Error::Weight`] for an entry that is negative, infinite or not a number.
    pub fn mean(patterns: &[PatternView<'_>]) -> Result<Self> {
        let Some(first) = patterns.first() else {
            return Err(Error::range(OP, "number of heads", "at least 1", 0));
        };
        let n_nodes = first.n_tokens;
        if let Some(other) = patterns.iter().find(|p| p.n_tokens != n_nodes) {
            return Err(Error::shape(
                OP,
                "pattern",
                format_args!("{n_nodes} tokens, as the first head"),
                &[other.n_tokens, other.n_tokens],
            ));
        }
        let n_blocks = n_nodes.div_ceil(LANES);
        let mut tiles = vec![Tile::ZERO; block_start(n_blocks)];
        let mut blocks = Vec::with_capacity(n_blocks);
        let mut rest = tiles.as_mut_slice();
        for block in 0..n_blocks {
            let (this, after) = rest.split_at_mut(block_start(block + 1) - block_start(block));
            blocks.push((block, this));
            rest = after;
        }
        let mut fill = |reads| -> Result<bool> {
            let blocks = blocks.par_iter_mut().map(|(block, tiles)| {
                pulp::Arch::new().dispatch(Fill { patterns, block: *block, tiles, reads })
            });
            // Collected first, so that of several errors it is always the same one.
            let blocks: Vec<Result<bool>> = blocks.collect();
            blocks.into_iter().try_fold(true, |causal, block| Ok(block? && causal))
        };
        let causal = fill(Reads::LowerTriangle)?;
        if !causal {
            fill(Reads::Both)?;
        }
        Ok(Self::with_degrees(n_nodes, tiles, causal && patterns.len() == 1))
    }

    /// The graph of the mean over heads, from the graphs of the single ones: the same as
    /// [`Self::mean`] of their patterns to the last bit, and it need not read those again.
    /// `None` unless every graph is that of one causal pattern: other weights are
    /// rounded already.
    ///
    /// # Errors
    /// [`Error::Range`] without any graph, [`Error::Shape`] where they differ in size.
    pub fn mean_of(graphs: &[&Self]) -> Result<Option<Self>> {
        const TILES: usize = 256;
        let Some(first) = graphs.first() else {
            return Err(Error::range(OP, "number of graphs", "at least 1", 0));
        };
        let n_nodes = first.n_nodes;
        if let Some(other) = graphs.iter().find(|graph| graph.n_nodes != n_nodes) {
            let expected = format_args!("{n_nodes} nodes, as the first");
            return Err(Error::shape(OP, "graph", expected, &[other.n_nodes]));
        }
        if graphs.iter().any(|graph| !graph.exact) {
            return Ok(None);
        }
        let mut tiles = vec![Tile::ZERO; first.tiles.len()];
        tiles.par_chunks_mut(TILES).enumerate().for_each(|(chunk, tiles)| {
            let start = chunk * TILES;
            pulp::Arch::new().dispatch(Mean { graphs, start, tiles });
        });
        Ok(Some(Self::with_degrees(n_nodes, tiles, graphs.len() == 1)))
    }

    /// Number of nodes.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    /// Number of nodes, rounded up to whole blocks: the length of the vectors of [`Self::product`].
    pub(crate) fn n_padded(&self) -> usize {
        self.n_nodes.next_multiple_of(LANES)
    }

    /// `Σ_j W_ij` for every node `i`.
    pub fn degrees(&self) -> &[f64] {
        &self.degrees[..self.n_nodes]
    }

    /// The degrees, with zeros up to [`Self::n_padded`].
    pub(crate) fn padded_degrees(&self) -> &[f64] {
        &self.degrees
    }

    /// `W_ij`; both must be below [`Self::n_nodes`].
    pub fn weight(&self, i: usize, j: usize) -> f32 {
        let (i, j) = (i.max(j), i.min(j));
        let (block, row) = (i / LANES, i % LANES);
        let half = row / ROWS * (block + 1);
        self.tiles[block_start(block) + half + j / LANES].0[row % ROWS][j % LANES]
    }

    /// The tiles of row block `block`, one list for each half of its rows.
    fn halves(&self, block: usize) -> [&[Tile]; 2] {
        self.tiles[block_start(block)..block_start(block + 1)].split_at(block + 1).into()
    }

    /// `Σ term(i, block, weights)` over the weights strictly below the diagonal:
    /// `weights[c] = W_ij` with `j = 8 block + c`. A weight of 0, which also
    /// stands for whatever is not below the diagonal, must give 0.
    pub(crate) fn sum_below_diagonal(
        &self,
        term: impl Fn(usize, usize, [f64; LANES]) -> [f64; LANES],
    ) -> f64 {
        pulp::Arch::new().dispatch(SumBelowDiagonal { graph: self, term })
    }

    /// `y = W x`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has one entry per node.
    pub fn apply(&self, x: &[f64]) -> Result<Vec<f64>> {
        if x.len() != self.n_nodes {
            return Err(Error::shape(OP, "vector", format_args!("[{}]", self.n_nodes), &[x.len()]));
        }
        let mut padded = x.to_vec();
        padded.resize(self.n_padded(), 0.0);
        let mut y = vec![0.0; self.n_padded()];
        self.product(&padded, &mut y);
        y.truncate(self.n_nodes);
        Ok(y)
    }

    /// `y = W x`, both of length [`Self::n_padded`].
    pub(crate) fn product(&self, x: &[f64], y: &mut [f64]) {
        pulp::Arch::new().dispatch(Product { graph: self, x, y });
    }

    /// `Y = W X` of as many columns as a tile has, both of [`Self::n_padded`] rows.
    pub(crate) fn block_product(&self, x: &[[f64; LANES]], y: &mut [[f64; LANES]]) {
        pulp::Arch::new().dispatch(BlockProduct { graph: self, x, y });
    }

    /// `Y = W X` in `f32` arithmetic: columns of length [`Self::n_padded`], one after
    /// another.
    pub(crate) fn narrow_product(&self, x: &[f32], y: &mut [f32]) {
        let n = self.n_padded();
        if n == 0 {
            return;
        }
        let arch = pulp::Arch::new();
        let (mut done, columns) = (0, x.len() / n);
        while done < columns {
            // Four columns at a time have registers of their own.
            let now = match columns - done {
                1 => 1,
                2 | 3 => 2,
                left => left / 4 * 4,
            };
            let range = done * n..(done + now) * n;
            let (x, y) = (&x[range.clone()], &mut y[range]);
            match now {
                1 => arch.dispatch(NarrowProduct::<1> { graph: self, x, y }),
                2 => arch.dispatch(NarrowProduct::<2> { graph: self, x, y }),
                _ => arch.dispatch(NarrowProduct::<4> { graph: self, x, y }),
            }
            done += now;
        }
    }
}

/// Where a block of rows starts among the tiles.
const fn block_start(block: usize) -> usize {
    block * (block + 1)
}

#[inline(always)]
fn widen(tile: &Tile) -> [[f64; LANES]; ROWS] {
    let mut wide = [[0.0; LANES]; ROWS];
    for (wide, row) in wide.iter_mut().zip(&tile.0) {
        for (wide, weight) in wide.iter_mut().zip(row) {
            *wide = f64::from(*weight);
        }
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::{PatternView, SymmetricGraph};
    use crate::Error;
    use crate::random::SplitMix64;

    /// Causal, unless `behind` is weight behind the diagonal.
    fn random_pattern(random: &mut SplitMix64, n: usize, behind: f32) -> Vec<f32> {
        let mut entry = |at: usize| match at % n <= at / n {
            true => random.next_symmetric().abs() as f32,
            false => behind,
        };
        (0..n * n).map(&mut entry).collect()
    }

    #[test]
    fn the_mean_of_graphs_is_the_graph_of_the_mean() {
        let mut random = SplitMix64::new(2);
        for n in [0, 1, 3, 4, 7, 8, 13, 64, 101] {
            for heads in [1, 2, 9] {
                let of = |behind: f32, random: &mut SplitMix64| -> Vec<Vec<f32>> {
                    (0..heads).map(|_| random_pattern(random, n, behind)).collect()
                };
                for behind in [0.0, 0.25] {
                    let patterns = of(behind, &mut random);
                    let views: Vec<_> =
                        patterns.iter().map(|a| PatternView::new(a, n, n).unwrap()).collect();
                    let graphs: Vec<_> =
                        views.iter().map(|v| SymmetricGraph::from_pattern(*v).unwrap()).collect();
                    let graphs: Vec<&SymmetricGraph> = graphs.iter().collect();
                    let found = SymmetricGraph::mean_of(&graphs).unwrap();
                    if behind > 0.0 && n > 1 {
                        assert!(found.is_none(), "{n} nodes are not causal");
                        continue;
                    }
                    let (found, expected) = (found.unwrap(), SymmetricGraph::mean(&views).unwrap());
                    assert_eq!(found.degrees(), expected.degrees(), "{n} nodes, {heads} heads");
                    for i in 0..n {
                        for j in 0..n {
                            assert_eq!(found.weight(i, j), expected.weight(i, j));
                        }
                    }
                }
            }
        }
        let one = SymmetricGraph::from_pattern(PatternView::new(&[1.0], 1, 1).unwrap()).unwrap();
        let none = SymmetricGraph::from_pattern(PatternView::new(&[], 0, 1).unwrap()).unwrap();
        assert!(matches!(SymmetricGraph::mean_of(&[]), Err(Error::Range { .. })));
        assert!(matches!(SymmetricGraph::mean_of(&[&one, &none]), Err(Error::Shape { .. })));
    }

    #[test]
    fn products_in_f32_are_those_in_f64_rounded() {
        let mut random = SplitMix64::new(1);
        for n in [1, 7, 8, 9, 65, 130] {
            let a = random_pattern(&mut random, n, 0.0);
            let graph = SymmetricGraph::from_pattern(PatternView::new(&a, n, n).unwrap()).unwrap();
            let padded = graph.n_padded();
            for columns in [1, 2, 3, 4, 8, 9] {
                let mut x = vec![0.0f32; columns * padded];
                for column in x.chunks_exact_mut(padded) {
                    column[..n].fill_with(|| random.next_symmetric() as f32);
                }
                let mut y = vec![f32::NAN; x.len()];
                graph.narrow_product(&x, &mut y);
                for (x, y) in x.chunks_exact(padded).zip(y.chunks_exact(padded)) {
                    let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                    let mut expected = vec![0.0; padded];
                    graph.product(&wide, &mut expected);
                    for (y, expected) in y.iter().zip(&expected) {
                        // Sums of n terms of at most a half.
                        let tolerance = 0.5 * f64::from(f32::EPSILON) * n as f64;
                        let apart = (f64::from(*y) - expected).abs();
                        assert!(apart <= tolerance, "{n} nodes, {columns} columns: {apart:e}");
                    }
                }
            }
        }
    }
}
