//! The attention graph of a layer without its pattern: `W = ½(A + Aᵀ)` made anew
//! from queries, keys and the log-sum-exp wherever it is multiplied with.
//!
//! `A` is the mean over heads of `a_uj = exp(s_uj − lse_u)`, over the keys `j` that
//! query `u` sees. The decision that shapes this file: a product costs the scores
//! of all heads once more, in time, and nothing that grows with the square of the
//! length, in memory. A tile of 84 queries by 32 keys is summed over its heads,
//! multiplied with the vectors on both sides of the diagonal, and forgotten.
//!
//! A log-sum-exp in `f32` is off by up to half a unit in its last place, and all
//! weights of its query by as much, relatively. So the rows are added up once, and
//! their sums divided by: rows sum to 1 as those of a pattern do. It also shows
//! queries, keys and log-sum-exp that do not belong together.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{AttentionOptions, SoftCap};
use crate::adjacency::Adjacency;
use crate::graph::{LANES, SymmetricGraph};
use crate::laplacian::MAX_DENSE_NODES;
use crate::math::exp;
use crate::panels::{Lanes, Panels, WIDTH};
use crate::product::{Left, best_tile_rows, pack_rows, packed_len, tile, tile_rows};
use crate::tensor::Values;
use crate::{Error, Result};

const OP: &str = "recomputed graph";

/// Queries of a tile: a multiple of every tile height, and of [`GROUP`].
const QUERIES: usize = 84;
/// Queries whose sums a product keeps in registers.
const GROUP: usize = 4;
/// Most pieces that threads take: each has sums of its own, added in order.
const PIECES: usize = 32;
/// Keys of a step of [`RecomputedGraph::cross_energy`].
const DEPTH: usize = 512;

/// By how much a query's attention may miss 1 before it is divided by its sum, beside
/// what the rounding of its log-sum-exp explains.
const TOLERANCE: f64 = 1e-3;

/// Queries, keys and log-sum-exp of one layer of one prompt, as tiles read them.
#[derive(Clone)]
pub struct AttentionFactors {
    n_tokens: usize,
    n_heads: usize,
    group: usize,
    d: usize,
    /// `[head, block of height, packed block]`.
    queries: Vec<f32>,
    /// Rows of a product's tile.
    height: usize,
    /// Of each key–value head.
    keys: Arc<Vec<Panels>>,
    /// `[head, pos]`.
    rows: Vec<Row>,
    scale: f32,
    soft_cap: Option<SoftCap>,
    window: usize,
}

/// What turns a query's scores into attention: `share · exp(s − lse)`.
#[derive(Clone, Copy)]
struct Row {
    lse: f32,
    share: f32,
}

impl std::fmt::Debug for AttentionFactors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n_tokens, n_heads, d, .. } = self;
        write!(f, "AttentionFactors of {n_heads} heads, {n_tokens} tokens, {d} wide")
    }
}

impl AttentionFactors {
    /// Packs what attention is made of.
    ///
    /// # Shapes
    /// `q` is `[pos, head, d_head]` and `k` `[pos, kv_head, d_head]`, as they enter
    /// the scores: rotated, where the layer rotates; head `h` reads key–value head
    /// `h / (n_heads / n_kv_heads)`. `lse` is `[head, pos]`, in nats.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`];
    /// [`Error::Range`] for a window of 0, a soft cap that is not a positive, finite
    /// number, and where the attention of a query does not sum to 1.
    pub fn new(q: &Tensor, k: &Tensor, lse: &Tensor, options: &AttentionOptions) -> Result<Self> {
        let (q, k) = (Values::new(OP, "q", q)?, Values::new(OP, "k", k)?);
        let lse = Values::new(OP, "lse", lse)?;
        let &[n_tokens, n_heads, d] = q.dims() else {
            return Err(Error::shape(OP, "q", "[pos, head, d_head]", q.dims()));
        };
        let n_kv_heads = match k.dims() {
            &[k_tokens, n_kv_heads, k_d] if (k_tokens, k_d) == (n_tokens, d) => n_kv_heads,
            dims => {
                let expected = format!("[{n_tokens}, kv_head, {d}]");
                return Err(Error::shape(OP, "k", expected, dims));
            }
        };
        if n_heads == 0 || n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("[.., a divisor of {n_heads} heads, ..]");
            return Err(Error::shape(OP, "k", expected, k.dims()));
        }
        if lse.dims() != [n_heads, n_tokens] {
            return Err(Error::shape(OP, "lse", format!("[{n_heads}, {n_tokens}]"), lse.dims()));
        }
        options.check(OP)?;
        let soft_cap = options.soft_cap.map(|cap| SoftCap::new(cap, options.scale));
        let vector = |values: &Values<'_>, pos: usize, head: usize| {
            pos * values.strides()[0] + head * values.strides()[1]
        };
        let height = best_tile_rows();
        let block_len = packed_len(height, d);
        let blocks = n_tokens.div_ceil(height);
        let mut queries = vec![0.0; n_heads * blocks * block_len];
        if block_len > 0 {
            let data = q.data();
            queries.par_chunks_exact_mut(block_len).enumerate().for_each(|(index, packed)| {
                let (head, first) = (index / blocks, index % blocks * height);
                let rows = (first..n_tokens.min(first + height))
                    .map(|pos| &data[vector(&q, pos, head)..][..d]);
                pack_rows(packed, height, rows);
            });
        }
        let data = k.data();
        let keys = (0..n_kv_heads)
            .map(|head| Panels::pack(n_tokens, d, |pos| &data[vector(&k, pos, head)..][..d]))
            .collect();
        let data = lse.data();
        let rows = (0..n_heads * n_tokens)
            .map(|at| data[vector(&lse, at / n_tokens, at % n_tokens)])
            .map(|lse| Row { lse, share: 1.0 })
            .collect();
        let mut factors = Self {
            n_tokens,
            n_heads,
            group: n_heads / n_kv_heads,
            d,
            queries,
            height,
            keys: Arc::new(keys),
            rows,
            scale: options.scale as f32,
            soft_cap,
            window: options.window.unwrap_or(usize::MAX),
        };
        factors.normalise()?;
        Ok(factors)
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Number of heads.
    pub fn n_heads(&self) -> usize {
        self.n_heads
    }

    /// First key that the query at `pos` sees.
    fn first_key(&self, pos: usize) -> usize {
        (pos + 1).saturating_sub(self.window)
    }

    /// Queries below `end` in pieces of about equal work: the same for any number of
    /// threads.
    fn pieces(&self, end: usize) -> Vec<Range<usize>> {
        let blocks = end.div_ceil(QUERIES);
        let bound = |piece: usize| {
            let share = piece as f64 / PIECES as f64;
            // Without a window, a query's work grows with its position.
            let share = if self.window < end / 2 { share } else { share.sqrt() };
            end.min((share * blocks as f64).round() as usize * QUERIES)
        };
        let pieces = (0..PIECES).map(|piece| bound(piece)..bound(piece + 1));
        pieces.filter(|piece| !piece.is_empty()).collect()
    }

    /// Divides the attention of every query by its sum.
    fn normalise(&mut self) -> Result<()> {
        let pieces = self.pieces(self.n_tokens);
        let jobs: Vec<(usize, Range<usize>)> = (0..self.n_heads)
            .flat_map(|head| pieces.iter().map(move |piece| (head, piece.clone())))
            .collect();
        let sums: Vec<Vec<f64>> = jobs
            .into_par_iter()
            .with_max_len(1)
            .map(|(head, queries)| Arch::new().dispatch(RowSums { factors: self, head, queries }))
            .collect();
        let found = sums.into_iter().flatten();
        for (at, (row, sum)) in self.rows.iter_mut().zip(found).enumerate() {
            let rounding = f64::from(row.lse).abs() * f64::from(f32::EPSILON);
            // Not a number is not close, either.
            let close = (sum - 1.0).abs() <= TOLERANCE + rounding;
            if !close {
                let (head, query) = (at / self.n_tokens, at % self.n_tokens);
                return Err(Error::range(
                    OP,
                    "the attention of a query in all",
                    "1: queries, keys and log-sum-exp of one layer, its scale, window and soft cap",
                    format_args!("{sum} for query {query} of head {head}"),
                ));
            }
            row.share = (1.0 / sum) as f32;
        }
        Ok(())
    }

    /// The attention of `queries`, [`QUERIES`] at most and from a multiple of it on, on
    /// the keys of a panel, summed over `heads`. Rows beyond the queries are 0.
    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        simd: S,
        heads: Range<usize>,
        queries: Range<usize>,
        panel: usize,
        out: &mut [Lanes; QUERIES],
    ) {
        let height = tile_rows::<S>();
        debug_assert_eq!(height, self.height);
        debug_assert!(queries.start.is_multiple_of(QUERIES) && queries.len() <= QUERIES);
        *out = [Lanes::splat(0.0); QUERIES];
        let block_len = packed_len(height, self.d);
        let blocks = self.n_tokens.div_ceil(height);
        for head in heads {
            let keys = self.keys[head / self.group].panel(panel);
            for (first, out) in queries.clone().step_by(height).zip(out.chunks_mut(height)) {
                let n = height.min(queries.end - first);
                let packed = &self.queries[(head * blocks + first / height) * block_len..];
                assert!(packed.len() >= block_len && keys.len() == self.d);
                let mut products = [Lanes::splat(0.0); 14];
                // SAFETY: `packed` holds a block of `height` queries as wide as `keys`,
                // just checked; `products` has as many rows as any tile.
                unsafe {
                    tile::<S, { Left::CHUNKED }>(
                        simd,
                        n,
                        Left::chunked(packed.as_ptr(), height),
                        keys.len(),
                        keys.as_ptr(),
                        products.as_mut_ptr().cast(),
                        WIDTH,
                        false,
                    );
                }
                let rows = &self.rows[head * self.n_tokens + first..][..n];
                for ((out, products), row) in out.iter_mut().zip(&products).zip(rows) {
                    let Row { lse, share } = *row;
                    match self.soft_cap {
                        None => add(out, products, share, |x| x.mul_add(self.scale, -lse)),
                        Some(cap) => add(out, products, share, |x| cap.score(x) - lse),
                    }
                }
            }
        }
        let keys = panel * WIDTH..(panel + 1) * WIDTH;
        if keys.end <= queries.start + 1 && keys.start >= self.first_key(queries.end - 1) {
            return;
        }
        for (query, out) in queries.zip(out) {
            let (first, last) = (self.first_key(query), query);
            for (key, weight) in keys.clone().zip(&mut out.0) {
                *weight = if (key >= first) & (key <= last) { *weight } else { 0.0 };
            }
        }
    }

    /// The panels of keys that some of the queries see.
    fn panels(&self, queries: &Range<usize>) -> Range<usize> {
        self.first_key(queries.start) / WIDTH..(queries.end - 1) / WIDTH + 1
    }
}

/// `out += share · exp(score)`.
#[inline(always)]
fn add(out: &mut Lanes, products: &Lanes, share: f32, score: impl Fn(f32) -> f32) {
    for (out, product) in out.0.iter_mut().zip(&products.0) {
        *out = share.mul_add(exp(score(*product)), *out);
    }
}

/// Sums of the rows of one head.
struct RowSums<'a> {
    factors: &'a AttentionFactors,
    head: usize,
    queries: Range<usize>,
}

impl WithSimd for RowSums<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Self { factors, head, queries } = self;
        let mut sums = Vec::with_capacity(queries.len());
        let mut tile = [Lanes::splat(0.0); QUERIES];
        for start in queries.clone().step_by(QUERIES) {
            let block = start..queries.end.min(start + QUERIES);
            let mut lanes = [[0.0_f64; WIDTH]; QUERIES];
            for panel in factors.panels(&block) {
                factors.tile(simd, head..head + 1, block.clone(), panel, &mut tile);
                for (sums, row) in lanes.iter_mut().zip(&tile) {
                    for (sum, weight) in sums.iter_mut().zip(&row.0) {
                        *sum += f64::from(*weight);
                    }
                }
            }
            sums.extend(lanes[..block.len()].iter().map(|lanes| lanes.iter().sum::<f64>()));
        }
        sums
    }
}

/// The attention graph on some tokens of a prompt, of one head or of the mean over
/// several: `W = ½(A + Aᵀ)`, made anew at every product.
///
/// # Numerics
/// Scores, exponentials and their mean over heads in `f32`, as in a pattern; sums over
/// nodes in `f64`, in an order that depends on the number of tokens alone. A
/// weight differs from that of [`SymmetricGraph`](crate::graph::SymmetricGraph) by a few
/// units of `f32` rounding.
#[derive(Clone, Debug)]
pub struct RecomputedGraph {
    factors: Arc<AttentionFactors>,
    heads: Range<usize>,
    /// The tokens that are nodes.
    tokens: Range<usize>,
    /// Padded with zeros.
    degrees: Vec<f64>,
    self_loops: Vec<f64>,
}

impl RecomputedGraph {
    /// The graph of the mean over `heads` among `tokens`. Where those begin after the
    /// first, what queries pay to tokens before them is left out, and rows no longer
    /// sum to 1; where they end before the last, it is the graph of the prefix.
    ///
    /// # Errors
    /// [`Error::Range`] for heads or tokens that are not there, and for no heads.
    pub fn new(
        factors: Arc<AttentionFactors>,
        heads: Range<usize>,
        tokens: Range<usize>,
    ) -> Result<Self> {
        if heads.is_empty() || heads.end > factors.n_heads {
            let expected = format_args!("some of the {} heads", factors.n_heads);
            return Err(Error::range(OP, "heads", expected, format_args!("{heads:?}")));
        }
        if tokens.start > tokens.end || tokens.end > factors.n_tokens {
            let expected = format_args!("some of the {} tokens", factors.n_tokens);
            return Err(Error::range(OP, "tokens", expected, format_args!("{tokens:?}")));
        }
        let mut graph =
            Self { factors, heads, tokens, degrees: Vec::new(), self_loops: Vec::new() };
        let mut ones = vec![0.0; graph.n_padded()];
        ones[..graph.n_nodes()].fill(1.0);
        let mut degrees = vec![0.0; graph.n_padded()];
        graph.product(&ones, &mut degrees);
        graph.degrees = degrees;
        graph.self_loops = graph.loops();
        Ok(graph)
    }

    /// The graph among its first `n` nodes, as that of a prefix has them.
    ///
    /// # Errors
    /// [`Error::Range`] for more nodes than there are.
    pub fn leading(&self, n: usize) -> Result<Self> {
        let tokens = self.tokens.start..self.tokens.start.saturating_add(n);
        if tokens.end > self.tokens.end {
            let expected = format_args!("at most {}", self.n_nodes());
            return Err(Error::range(OP, "number of nodes", expected, n));
        }
        Self::new(self.factors.clone(), self.heads.clone(), tokens)
    }

    /// The same weights in memory, for what needs all of them at once.
    ///
    /// # Errors
    /// [`Error::Range`] above [`MAX_DENSE_NODES`].
    pub fn stored(&self) -> Result<SymmetricGraph> {
        let n = self.n_nodes();
        if n > MAX_DENSE_NODES {
            let expected = format_args!("at most {MAX_DENSE_NODES}");
            return Err(Error::range(OP, "number of stored nodes", expected, n));
        }
        let starts = self.starts();
        Ok(SymmetricGraph::from_rows(n, |put| {
            for starts in starts.chunks(4 * rayon::current_num_threads()) {
                let strips: Vec<Strip> = starts
                    .par_iter()
                    .map(|start| Strip::new(self, self.queries(*start), Vec::new()))
                    .collect();
                for strip in strips {
                    for i in strip.nodes(self) {
                        let mut row = vec![0.0; i + 1];
                        for (j, weight) in row.iter_mut().enumerate().skip(strip.first_node(self)) {
                            let both = if j == i { 2.0 } else { 1.0 };
                            *weight = (both * strip.weight(self, i, j)) as f32;
                        }
                        put(i, &row);
                    }
                }
            }
        }))
    }

    /// `Σ_{i>j} W_ij ⟨y_i, y_j⟩` of vectors `y [n_nodes, d]`, row-major.
    ///
    /// # Numerics
    /// `f64`, in a fixed order.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many rows as nodes.
    pub fn cross_energy(&self, y: &[f64], d: usize) -> Result<f64> {
        let n = self.n_nodes();
        if n.checked_mul(d) != Some(y.len()) {
            return Err(Error::shape(OP, "signal", format_args!("[{n}, {d}]"), &[y.len()]));
        }
        if d == 0 {
            return Ok(0.0);
        }
        Ok(self.sum_strips(|strip| {
            let nodes = strip.nodes(self);
            let y_rows = &y[nodes.start * d..nodes.end * d];
            let mut wide = vec![0.0; nodes.len() * DEPTH];
            let mut mixed = vec![0.0; nodes.len() * d];
            // What nodes see lies before the last of them.
            for start in (strip.first_node(self)..nodes.end).step_by(DEPTH) {
                let keys = start..nodes.end.min(start + DEPTH);
                let wide = &mut wide[..nodes.len() * keys.len()];
                for (i, wide) in nodes.clone().zip(wide.chunks_exact_mut(keys.len())) {
                    for (j, wide) in keys.clone().zip(wide) {
                        *wide = if j < i { strip.weight(self, i, j) } else { 0.0 };
                    }
                }
                matmul(
                    MatMut::from_row_major_slice_mut(&mut mixed, nodes.len(), d),
                    Accum::Add,
                    MatRef::from_row_major_slice(wide, nodes.len(), keys.len()),
                    MatRef::from_row_major_slice(&y[keys.start * d..keys.end * d], keys.len(), d),
                    1.0,
                    Par::Seq,
                );
            }
            mixed.iter().zip(y_rows).map(|(m, y)| m * y).sum()
        }))
    }

    /// What a sum over heads, of both triangles, is multiplied by.
    fn share(&self) -> f64 {
        0.5 / self.heads.len() as f64
    }

    /// Where blocks of queries begin that hold nodes.
    fn starts(&self) -> Vec<usize> {
        let first = self.tokens.start / QUERIES * QUERIES;
        (first..self.tokens.end).step_by(QUERIES).collect()
    }

    /// The queries of a block.
    fn queries(&self, start: usize) -> Range<usize> {
        start..self.tokens.end.min(start + QUERIES)
    }

    /// `a_ii` of every node.
    fn loops(&self) -> Vec<f64> {
        let blocks: Vec<Vec<f64>> = self
            .starts()
            .into_par_iter()
            .map(|start| {
                Arch::new().dispatch(Diagonal { graph: self, queries: self.queries(start) })
            })
            .collect();
        let all = blocks.into_iter().flatten();
        all.skip(self.tokens.start % QUERIES).map(|sum| 2.0 * self.share() * sum).collect()
    }

    /// The sum of a term of every strip, in their order.
    fn sum_strips(&self, term: impl Fn(&Strip) -> f64 + Sync) -> f64 {
        let terms: Vec<f64> = self
            .starts()
            .into_par_iter()
            .with_max_len(1)
            .map_init(Vec::new, |lines, start| {
                let strip = Strip::new(self, self.queries(start), std::mem::take(lines));
                let sum = term(&strip);
                *lines = strip.lines;
                sum
            })
            .collect();
        terms.iter().sum()
    }
}

/// The attention of a block of queries on all keys, summed over heads.
struct Strip {
    queries: Range<usize>,
    /// The first key, the first of a panel.
    base: usize,
    /// Keys of a row.
    len: usize,
    lines: Vec<f32>,
}

impl Strip {
    fn new(graph: &RecomputedGraph, queries: Range<usize>, mut lines: Vec<f32>) -> Self {
        let panels = graph.factors.panels(&queries);
        let len = panels.len() * WIDTH;
        lines.clear();
        lines.resize(QUERIES * len, 0.0);
        let base = panels.start * WIDTH;
        let mut strip = Self { queries, base, len, lines };
        Arch::new().dispatch(FillStrip { graph, strip: &mut strip });
        strip
    }

    /// The nodes among its queries.
    fn nodes(&self, graph: &RecomputedGraph) -> Range<usize> {
        let first = graph.tokens.start;
        self.queries.start.max(first) - first..self.queries.end - first
    }

    /// A node before which its queries see none.
    fn first_node(&self, graph: &RecomputedGraph) -> usize {
        self.base.saturating_sub(graph.tokens.start)
    }

    /// `W_ij` of a node among its queries and one before it, from its first on.
    #[inline(always)]
    fn weight(&self, graph: &RecomputedGraph, i: usize, j: usize) -> f64 {
        let first = graph.tokens.start;
        let at = (i + first - self.queries.start) * self.len + (j + first - self.base);
        graph.share() * f64::from(self.lines[at])
    }
}

struct FillStrip<'a> {
    graph: &'a RecomputedGraph,
    strip: &'a mut Strip,
}

impl WithSimd for FillStrip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { graph: RecomputedGraph { factors, heads, .. }, strip } = self;
        let mut tile = [Lanes::splat(0.0); QUERIES];
        for (index, panel) in factors.panels(&strip.queries).enumerate() {
            factors.tile(simd, heads.clone(), strip.queries.clone(), panel, &mut tile);
            for (line, row) in strip.lines.chunks_exact_mut(strip.len).zip(&tile) {
                line[index * WIDTH..][..WIDTH].copy_from_slice(&row.0);
            }
        }
    }
}

struct Diagonal<'a> {
    graph: &'a RecomputedGraph,
    queries: Range<usize>,
}

impl WithSimd for Diagonal<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Self { graph: RecomputedGraph { factors, heads, .. }, queries } = self;
        let mut tile = [Lanes::splat(0.0); QUERIES];
        let mut diagonal = vec![0.0; queries.len()];
        for panel in queries.start / WIDTH..=(queries.end - 1) / WIDTH {
            factors.tile(simd, heads.clone(), queries.clone(), panel, &mut tile);
            for (query, value) in queries.clone().zip(&mut diagonal) {
                if query / WIDTH == panel {
                    *value = f64::from(tile[query - queries.start].0[query % WIDTH]);
                }
            }
        }
        diagonal
    }
}

/// `Σ_h A_h X` and its transpose, of the queries of a piece.
struct PieceProduct<'a> {
    graph: &'a RecomputedGraph,
    queries: Range<usize>,
    /// By token, padded to whole panels.
    x: &'a [[f64; LANES]],
}

/// What a piece adds to the tokens from `base` on.
struct Part {
    base: usize,
    sums: Vec<[f64; LANES]>,
}

impl WithSimd for PieceProduct<'_> {
    type Output = Part;

    #[inline(always)]
    fn with_simd<D: Simd>(self, simd: D) -> Part {
        match D::F64_LANES {
            8 => self.run::<D, 1>(simd),
            4 => self.run::<D, 2>(simd),
            2 => self.run::<D, 4>(simd),
            _ => self.run::<D, 8>(simd),
        }
    }
}

impl PieceProduct<'_> {
    /// `V` vectors of the processor make the entries of one token.
    #[inline(always)]
    fn run<D: Simd, const V: usize>(self, simd: D) -> Part {
        let Self { graph, queries, x } = self;
        let RecomputedGraph { factors, heads, tokens, .. } = graph;
        let first = factors.first_key(queries.start).max(tokens.start) / WIDTH;
        let base = first * WIDTH;
        let mut sums = vec![[0.0; LANES]; queries.end.next_multiple_of(WIDTH) - base];
        let x = D::as_simd_f64s(x.as_flattened()).0.as_chunks::<V>().0;
        let y = D::as_mut_simd_f64s(sums.as_flattened_mut()).0.as_chunks_mut::<V>().0;
        let mut tile = [Lanes::splat(0.0); QUERIES];
        let zero = [simd.splat_f64s(0.0); V];
        for start in queries.clone().step_by(QUERIES) {
            let block = start..queries.end.min(start + QUERIES);
            let groups = block.len().div_ceil(GROUP);
            let mut rows = [zero; QUERIES];
            let panels = factors.panels(&block);
            for panel in panels.start.max(first)..panels.end {
                factors.tile(simd, heads.clone(), block.clone(), panel, &mut tile);
                let keys = &x[panel * WIDTH..(panel + 1) * WIDTH];
                let columns = &mut y[panel * WIDTH - base..(panel + 1) * WIDTH - base];
                for group in 0..groups {
                    let at = group * GROUP;
                    let weights = widen(&tile[at..at + GROUP]);
                    let own: [[D::f64s; V]; GROUP] = std::array::from_fn(|r| x[start + at + r]);
                    let mut acc: [[D::f64s; V]; GROUP] = std::array::from_fn(|r| rows[at + r]);
                    for ((c, key), column) in keys.iter().enumerate().zip(columns.iter_mut()) {
                        for r in 0..GROUP {
                            let weight = simd.splat_f64s(weights[r][c]);
                            for v in 0..V {
                                acc[r][v] = simd.mul_add_e_f64s(weight, key[v], acc[r][v]);
                                column[v] = simd.mul_add_e_f64s(weight, own[r][v], column[v]);
                            }
                        }
                    }
                    rows[at..at + GROUP].copy_from_slice(&acc);
                }
            }
            for (query, row) in block.zip(&rows) {
                // Before the first node there is nothing to add to.
                if query >= base {
                    for v in 0..V {
                        y[query - base][v] = simd.add_f64s(y[query - base][v], row[v]);
                    }
                }
            }
        }
        Part { base, sums }
    }
}

#[inline(always)]
fn widen(rows: &[Lanes]) -> [[f64; WIDTH]; GROUP] {
    let mut wide = [[0.0; WIDTH]; GROUP];
    for (wide, row) in wide.iter_mut().zip(rows) {
        for (wide, weight) in wide.iter_mut().zip(&row.0) {
            *wide = f64::from(*weight);
        }
    }
    wide
}

impl Adjacency for RecomputedGraph {
    const TOGETHER: bool = true;

    fn n_nodes(&self) -> usize {
        self.tokens.len()
    }

    fn padded_degrees(&self) -> &[f64] {
        &self.degrees
    }

    fn self_loops(&self) -> Vec<f64> {
        self.self_loops.clone()
    }

    fn product(&self, x: &[f64], y: &mut [f64]) {
        let block: Vec<[f64; LANES]> = x
            .iter()
            .map(|x| {
                let mut row = [0.0; LANES];
                row[0] = *x;
                row
            })
            .collect();
        let mut product = vec![[0.0; LANES]; y.len()];
        self.block_product(&block, &mut product);
        for (y, row) in y.iter_mut().zip(&product) {
            *y = row[0];
        }
    }

    fn block_product(&self, x: &[[f64; LANES]], y: &mut [[f64; LANES]]) {
        let (first, n) = (self.tokens.start, self.n_nodes());
        let mut by_token = vec![[0.0; LANES]; self.tokens.end.next_multiple_of(WIDTH)];
        by_token[first..first + n].copy_from_slice(&x[..n]);
        let pieces = self.factors.pieces(self.tokens.end);
        let pieces: Vec<_> = pieces.into_iter().filter(|piece| piece.end > first).collect();
        let parts: Vec<Part> = pieces
            .into_par_iter()
            .with_max_len(1)
            .map(|queries| {
                Arch::new().dispatch(PieceProduct { graph: self, queries, x: &by_token })
            })
            .collect();
        y.fill([0.0; LANES]);
        for Part { base, sums } in parts {
            let skipped = first.saturating_sub(base);
            let to = y[base.saturating_sub(first)..n].iter_mut();
            for (y, sums) in to.zip(sums.get(skipped..).unwrap_or(&[])) {
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y += sum;
                }
            }
        }
        let share = self.share();
        for row in &mut y[..n] {
            *row = row.map(|sum| share * sum);
        }
    }

    fn sum_below_diagonal<F>(&self, term: F) -> f64
    where
        F: Fn(usize, usize, [f64; LANES]) -> [f64; LANES] + Sync,
    {
        self.sum_strips(|strip| {
            let seen = strip.first_node(self);
            let mut total = 0.0;
            for i in strip.nodes(self) {
                let mut acc = [0.0_f64; LANES];
                for block in seen / LANES..i.div_ceil(LANES) {
                    let weights = std::array::from_fn(|c| {
                        let j = block * LANES + c;
                        if (seen..i).contains(&j) { strip.weight(self, i, j) } else { 0.0 }
                    });
                    for (acc, term) in acc.iter_mut().zip(term(i, block, weights)) {
                        *acc += term;
                    }
                }
                total += acc.iter().sum::<f64>();
            }
            total
        })
    }
}
