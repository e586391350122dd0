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

mod parts;

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

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

#[derive(Clone, Copy, PartialEq)]
enum Reads {
    /// `W_ij = ½A_ij` below the diagonal, which holds where `A` is causal.
    LowerTriangle,
    Both,
}

/// Fills one block of rows, and says whether the patterns are causal there.
struct Fill<'a> {
    patterns: &'a [PatternView<'a>],
    block: usize,
    tiles: &'a mut [Tile],
    reads: Reads,
}

impl pulp::NullaryFnOnce for Fill<'_> {
    type Output = Result<bool>;

    #[inline(always)]
    fn call(self) -> Result<bool> {
        let Self { patterns, block, tiles, reads } = self;
        let n = patterns[0].n_tokens;
        let mut causal = true;
        for (half, tiles) in tiles.chunks_exact_mut(block + 1).enumerate() {
            let start = block * LANES + half * ROWS;
            let rows = start.min(n)..n.min(start + ROWS);
            let Bits { highest, behind } = match (patterns, reads) {
                ([pattern], Reads::LowerTriangle) => copy_rows(*pattern, rows.clone(), tiles),
                _ => sum_rows(patterns, reads, rows.clone(), tiles),
            };
            let zeros = behind << 1 == 0;
            causal &= zeros;
            if highest <= f32::MAX.to_bits() && zeros {
                continue;
            }
            for i in rows {
                for (head, pattern) in patterns.iter().enumerate() {
                    let row = pattern.row(i);
                    // `&` keeps the loop free of branches.
                    if !row.iter().fold(true, |ok, a| ok & (*a >= 0.0) & (*a <= f32::MAX)) {
                        return Err(first_invalid(head, i, row));
                    }
                }
            }
        }
        // The other triangle of the block on the diagonal.
        let mut diagonal = [[0.0; LANES]; LANES];
        for (r, row) in diagonal.iter_mut().enumerate() {
            *row = tiles[r / ROWS * (block + 1) + block].0[r % ROWS];
        }
        for r in 0..LANES {
            for c in r + 1..LANES {
                diagonal[r][c] = diagonal[c][r];
            }
            tiles[r / ROWS * (block + 1) + block].0[r % ROWS] = diagonal[r];
        }
        Ok(causal)
    }
}

/// Bits of the numbers in some rows: the largest of those up to the diagonal, which
/// tells a negative, infinite or undefined one, and of all behind it, which tells
/// whether they are zeros.
struct Bits {
    highest: u32,
    behind: u32,
}

/// The rows of one causal pattern in one half of a block: `½a`, and `a` on the diagonal.
#[inline(always)]
fn copy_rows(pattern: PatternView<'_>, rows: Range<usize>, tiles: &mut [Tile]) -> Bits {
    let Some((diagonal, below)) = tiles.split_last_mut() else {
        return Bits { highest: 0, behind: 0 };
    };
    let mut bits = Bits { highest: 0, behind: 0 };
    let from = below.len() * LANES;
    for (r, i) in rows.clone().enumerate() {
        let (own, behind) = pattern.row(i).split_at(i + 1);
        let own = &own[from..];
        bits.highest = bits.highest.max(largest_bits(own));
        bits.behind |= all_bits(behind);
        let weights = &mut diagonal.0[r];
        for (w, a) in weights.iter_mut().zip(own) {
            *w = 0.5 * a;
        }
        weights[i - from] = own[i - from];
    }
    if rows.len() < ROWS {
        for (r, i) in rows.enumerate() {
            let row = &pattern.row(i)[..from];
            bits.highest = bits.highest.max(largest_bits(row));
            for (tile, chunk) in below.iter_mut().zip(row.as_chunks::<LANES>().0) {
                tile.0[r] = chunk.map(|a| 0.5 * a);
            }
        }
        return bits;
    }
    // Four rows at a time, so that every tile is written once and as a whole.
    let rows: [&[[f32; LANES]]; ROWS] =
        std::array::from_fn(|r| pattern.row(rows.start + r)[..from].as_chunks().0);
    let mut highest = [[0; LANES]; ROWS];
    for (column, tile) in below.iter_mut().enumerate() {
        for r in 0..ROWS {
            let chunk = &rows[r][column];
            for c in 0..LANES {
                tile.0[r][c] = 0.5 * chunk[c];
                highest[r][c] = highest[r][c].max(chunk[c].to_bits());
            }
        }
    }
    bits.highest = highest.as_flattened().iter().fold(bits.highest, |h, bits| h.max(*bits));
    bits
}

/// The rows of the mean of several patterns, or of one that is not causal, in one half
/// of a block.
#[inline(always)]
fn sum_rows(
    patterns: &[PatternView<'_>],
    reads: Reads,
    rows: Range<usize>,
    tiles: &mut [Tile],
) -> Bits {
    let n_heads = patterns.len() as f64;
    let mut bits = Bits { highest: 0, behind: 0 };
    let mut sums = vec![0.0_f64; tiles.len() * LANES];
    for (r, i) in rows.enumerate() {
        sums.fill(0.0);
        for pattern in patterns {
            let (own, behind) = pattern.row(i).split_at(i + 1);
            bits.highest = bits.highest.max(largest_bits(own));
            bits.behind |= all_bits(behind);
            for (sum, &a) in sums.iter_mut().zip(own) {
                *sum += f64::from(a);
            }
            match reads {
                Reads::LowerTriangle => sums[i] += f64::from(own[i]),
                Reads::Both => {
                    for (j, sum) in sums[..=i].iter_mut().enumerate() {
                        *sum += f64::from(pattern.row(j)[i]);
                    }
                }
            }
        }
        for (tile, sums) in tiles.iter_mut().zip(sums.as_chunks::<LANES>().0) {
            tile.0[r] = sums.map(|sum| (0.5 * sum / n_heads) as f32);
        }
    }
    bits
}

/// The means over graphs of the tiles from `start` on.
struct Mean<'a> {
    graphs: &'a [&'a SymmetricGraph],
    start: usize,
    tiles: &'a mut [Tile],
}

impl pulp::NullaryFnOnce for Mean<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let n_graphs = self.graphs.len() as f64;
        for (at, tile) in self.tiles.iter_mut().enumerate() {
            let mut sums = [[0.0; LANES]; ROWS];
            for graph in self.graphs {
                let weights = widen(&graph.tiles[self.start + at]);
                for r in 0..ROWS {
                    for c in 0..LANES {
                        sums[r][c] += weights[r][c];
                    }
                }
            }
            tile.0 = sums.map(|row| row.map(|sum| (sum / n_graphs) as f32));
        }
    }
}

#[inline(always)]
fn largest_bits(row: &[f32]) -> u32 {
    row.iter().fold(0, |highest, a| highest.max(a.to_bits()))
}

#[inline(always)]
fn all_bits(row: &[f32]) -> u32 {
    row.iter().fold(0, |bits, a| bits | a.to_bits())
}

fn first_invalid(head: usize, row: usize, values: &[f32]) -> Error {
    let (key, value) = values
        .iter()
        .enumerate()
        .find(|(_, a)| !(**a >= 0.0 && **a <= f32::MAX))
        .map_or((0, f32::NAN), |(key, value)| (key, *value));
    Error::Weight { head, query: row, key, value }
}

struct Product<'a> {
    graph: &'a SymmetricGraph,
    x: &'a [f64],
    y: &'a mut [f64],
}

impl pulp::WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<D: pulp::Simd>(self, simd: D) {
        match D::F64_LANES {
            8 => self.run::<D, 1>(simd),
            4 => self.run::<D, 2>(simd),
            2 => self.run::<D, 4>(simd),
            _ => self.run::<D, 8>(simd),
        }
    }
}

impl Product<'_> {
    /// `V` vectors of the processor make one row of a tile.
    #[inline(always)]
    fn run<D: pulp::Simd, const V: usize>(self, simd: D) {
        let Self { graph, x, y } = self;
        let columns = D::as_simd_f64s(x).0.as_chunks::<V>().0;
        y.fill(0.0);
        for (block, x_rows) in x.as_chunks::<LANES>().0.iter().enumerate() {
            for (half, tiles) in graph.halves(block).into_iter().enumerate() {
                let Some((diagonal, below)) = tiles.split_last() else { continue };
                let y_columns = D::as_mut_simd_f64s(y).0.as_chunks_mut::<V>().0;
                let x_row: [D::f64s; ROWS] =
                    std::array::from_fn(|r| simd.splat_f64s(x_rows[half * ROWS + r]));
                // Partial sums of each row, one per column of a tile.
                let mut acc = [[simd.splat_f64s(0.0); V]; ROWS];
                for ((tile, x), y) in below.iter().zip(columns).zip(y_columns) {
                    let tile = widen(tile);
                    let mut sums = *y;
                    for r in 0..ROWS {
                        let weights = D::as_simd_f64s(&tile[r]).0;
                        for v in 0..V {
                            acc[r][v] = simd.mul_add_e_f64s(weights[v], x[v], acc[r][v]);
                            sums[v] = simd.mul_add_e_f64s(weights[v], x_row[r], sums[v]);
                        }
                    }
                    *y = sums;
                }
                let tile = widen(diagonal);
                for r in 0..ROWS {
                    let weights = D::as_simd_f64s(&tile[r]).0;
                    let mut sum = simd.splat_f64s(0.0);
                    for v in 0..V {
                        acc[r][v] = simd.mul_add_e_f64s(weights[v], columns[block][v], acc[r][v]);
                        sum = simd.add_f64s(sum, acc[r][v]);
                    }
                    y[block * LANES + half * ROWS + r] += simd.reduce_sum_f64s(sum);
                }
            }
        }
    }
}

/// Every weight is read once and used for both triangles and all columns.
struct BlockProduct<'a> {
    graph: &'a SymmetricGraph,
    x: &'a [[f64; LANES]],
    y: &'a mut [[f64; LANES]],
}

impl pulp::WithSimd for BlockProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<D: pulp::Simd>(self, simd: D) {
        match D::F64_LANES {
            8 => self.run::<D, 1>(simd),
            4 => self.run::<D, 2>(simd),
            2 => self.run::<D, 4>(simd),
            _ => self.run::<D, 8>(simd),
        }
    }
}

impl BlockProduct<'_> {
    /// `V` vectors of the processor make the entries of one node.
    #[inline(always)]
    fn run<D: pulp::Simd, const V: usize>(self, simd: D) {
        let Self { graph, x, y } = self;
        y.fill([0.0; LANES]);
        let x = D::as_simd_f64s(x.as_flattened()).0.as_chunks::<V>().0;
        let y = D::as_mut_simd_f64s(y.as_flattened_mut()).0.as_chunks_mut::<V>().0;
        for (block, x_rows) in x.as_chunks::<LANES>().0.iter().enumerate() {
            for (half, tiles) in graph.halves(block).into_iter().enumerate() {
                let Some((diagonal, below)) = tiles.split_last() else { continue };
                let x_row: [[D::f64s; V]; ROWS] = std::array::from_fn(|r| x_rows[half * ROWS + r]);
                let mut acc = [[simd.splat_f64s(0.0); V]; ROWS];
                let columns = x.as_chunks::<LANES>().0;
                let sums = y.as_chunks_mut::<LANES>().0;
                for ((tile, x), y) in below.iter().zip(columns).zip(sums) {
                    let tile = widen(tile);
                    for c in 0..LANES {
                        for r in 0..ROWS {
                            let weight = simd.splat_f64s(tile[r][c]);
                            for v in 0..V {
                                acc[r][v] = simd.mul_add_e_f64s(weight, x[c][v], acc[r][v]);
                                y[c][v] = simd.mul_add_e_f64s(weight, x_row[r][v], y[c][v]);
                            }
                        }
                    }
                }
                let tile = widen(diagonal);
                for r in 0..ROWS {
                    let sums = &mut y[block * LANES + half * ROWS + r];
                    for v in 0..V {
                        for c in 0..LANES {
                            let weight = simd.splat_f64s(tile[r][c]);
                            acc[r][v] = simd.mul_add_e_f64s(weight, x_rows[c][v], acc[r][v]);
                        }
                        sums[v] = simd.add_f64s(sums[v], acc[r][v]);
                    }
                }
            }
        }
    }
}

/// Two rows of a tile beside one another.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Pair([f32; 2 * LANES]);

impl Pair {
    const ZERO: Self = Self([0.0; 2 * LANES]);
}

/// As [`BlockProduct`], in `f32`, for columns in groups of `C`.
///
/// Two rows of a tile fill one vector. So the columns are read twice beside
/// themselves, and what the two rows add to `y` is kept apart until the end.
struct NarrowProduct<'a, const C: usize> {
    graph: &'a SymmetricGraph,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<const C: usize> pulp::WithSimd for NarrowProduct<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<D: pulp::Simd>(self, simd: D) {
        match D::F32_LANES {
            16 => self.run::<D, 1>(simd),
            8 => self.run::<D, 2>(simd),
            4 => self.run::<D, 4>(simd),
            _ => self.run::<D, 16>(simd),
        }
    }
}

impl<const C: usize> NarrowProduct<'_, C> {
    /// `V` vectors of the processor make a pair of rows.
    #[inline(always)]
    fn run<D: pulp::Simd, const V: usize>(self, simd: D) {
        const PAIRS: usize = LANES / 2;
        let Self { graph, x, y } = self;
        let n = graph.n_padded();
        let blocks = n / LANES;
        y.fill(0.0);
        let groups = x.len() / (C * n);
        // Indexed by group, block and column.
        let mut doubled = vec![[Pair::ZERO; C]; groups * blocks];
        for (at, columns) in doubled.iter_mut().enumerate() {
            for (c, both) in columns.iter_mut().enumerate() {
                let x = &x[(at / blocks * C + c) * n + at % blocks * LANES..][..LANES];
                both.0[..LANES].copy_from_slice(x);
                both.0[LANES..].copy_from_slice(x);
            }
        }
        let mut sums = vec![[Pair::ZERO; C]; groups * blocks];
        for block in 0..blocks {
            let [upper, lower] = graph.halves(block);
            let Some((upper_diagonal, upper)) = upper.split_last() else { continue };
            let Some((lower_diagonal, lower)) = lower.split_last() else { continue };
            for group in 0..groups {
                let columns = &doubled[group * blocks..][..blocks];
                let own = &columns[block];
                let mut multipliers = [[[simd.splat_f32s(0.0); V]; PAIRS]; C];
                for (multipliers, own) in multipliers.iter_mut().zip(own) {
                    for (p, multipliers) in multipliers.iter_mut().enumerate() {
                        let mut pair = Pair::ZERO;
                        pair.0[..LANES].fill(own.0[2 * p]);
                        pair.0[LANES..].fill(own.0[2 * p + 1]);
                        *multipliers = vectors::<D, V>(&pair.0);
                    }
                }
                // Partial sums of each row, one per column of a tile.
                let mut acc = [[[simd.splat_f32s(0.0); V]; PAIRS]; C];
                let sums = &mut sums[group * blocks..][..blocks];
                for (((upper, lower), x), y) in upper.iter().zip(lower).zip(columns).zip(sums) {
                    let weights = pairs(upper, lower).map(vectors::<D, V>);
                    for c in 0..C {
                        let x = vectors::<D, V>(&x[c].0);
                        let mut sum = vectors::<D, V>(&y[c].0);
                        for p in 0..PAIRS {
                            for v in 0..V {
                                let weight = weights[p][v];
                                acc[c][p][v] = simd.mul_add_e_f32s(weight, x[v], acc[c][p][v]);
                                sum[v] = simd.mul_add_e_f32s(weight, multipliers[c][p][v], sum[v]);
                            }
                        }
                        D::as_mut_simd_f32s(&mut y[c].0).0.copy_from_slice(&sum);
                    }
                }
                let diagonal = pairs(upper_diagonal, lower_diagonal).map(vectors::<D, V>);
                for c in 0..C {
                    let x = vectors::<D, V>(&own[c].0);
                    let rows = &mut y[(group * C + c) * n + block * LANES..][..LANES];
                    let mut partial = [Pair::ZERO; PAIRS];
                    for p in 0..PAIRS {
                        let to = D::as_mut_simd_f32s(&mut partial[p].0).0;
                        for v in 0..V {
                            to[v] = simd.mul_add_e_f32s(diagonal[p][v], x[v], acc[c][p][v]);
                        }
                    }
                    rows.copy_from_slice(&row_sums(&partial));
                }
            }
        }
        for (at, columns) in sums.iter().enumerate() {
            for (c, both) in columns.iter().enumerate() {
                let y = &mut y[(at / blocks * C + c) * n + at % blocks * LANES..][..LANES];
                for (i, y) in y.iter_mut().enumerate() {
                    *y += both.0[i] + both.0[i + LANES];
                }
            }
        }
    }
}

/// The sum of each row's eight entries, halving their number at a time: all rows
/// of a block at once fill the processor's vectors.
#[inline(always)]
fn row_sums(pairs: &[Pair; LANES / 2]) -> [f32; LANES] {
    let mut fours = [[0.0; 4]; LANES];
    for (r, four) in fours.iter_mut().enumerate() {
        let row = &pairs[r / 2].0[r % 2 * LANES..][..LANES];
        *four = std::array::from_fn(|l| row[l] + row[l + 4]);
    }
    let twos: [[f32; 2]; LANES] = fours.map(|[a, b, c, d]| [a + c, b + d]);
    twos.map(|[a, b]| a + b)
}

/// The rows of two tiles, two by two.
#[inline(always)]
fn pairs<'a>(upper: &'a Tile, lower: &'a Tile) -> [&'a [f32; 2 * LANES]; LANES / 2] {
    let of = |tile: &'a Tile, pair: usize| -> &'a [f32; 2 * LANES] {
        &tile.0.as_flattened().as_chunks().0[pair]
    };
    [of(upper, 0), of(upper, 1), of(lower, 0), of(lower, 1)]
}

/// A pair of rows in registers.
#[inline(always)]
fn vectors<D: pulp::Simd, const V: usize>(pair: &[f32; 2 * LANES]) -> [D::f32s; V] {
    let vectors = D::as_simd_f32s(pair).0;
    std::array::from_fn(|v| vectors[v])
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

struct SumBelowDiagonal<'a, F> {
    graph: &'a SymmetricGraph,
    term: F,
}

impl<F: Fn(usize, usize, [f64; LANES]) -> [f64; LANES]> pulp::NullaryFnOnce
    for SumBelowDiagonal<'_, F>
{
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let Self { graph, term } = self;
        let mut total = 0.0;
        for row_block in 0..graph.n_padded() / LANES {
            for (half, tiles) in graph.halves(row_block).into_iter().enumerate() {
                let Some((diagonal, below)) = tiles.split_last() else { continue };
                for r in 0..ROWS {
                    let row = half * ROWS + r;
                    let i = row_block * LANES + row;
                    let mut acc = [0.0_f64; LANES];
                    for (block, tile) in below.iter().enumerate() {
                        let terms = term(i, block, tile.0[r].map(f64::from));
                        for c in 0..LANES {
                            acc[c] += terms[c];
                        }
                    }
                    let mut weights = diagonal.0[r].map(f64::from);
                    weights[row..].fill(0.0);
                    for (acc, term) in acc.iter_mut().zip(term(i, row_block, weights)) {
                        *acc += term;
                    }
                    let [a, b, c, d, e, f, g, h] = acc;
                    total += ((a + e) + (b + f)) + ((c + g) + (d + h));
                }
            }
        }
        total
    }
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
