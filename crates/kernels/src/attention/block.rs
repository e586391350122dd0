//! Blocks of 32 queries against tiles of keys: the online softmax.

#![allow(unsafe_code)]

use hooks::SummaryOptions;
use pulp::{Arch, Simd, WithSimd};

use super::keys::{Keys, TILE};
use super::summary::{Columns, Sums};
use super::{Heads, Span};
use crate::math::exp;
use crate::panels::{Lanes, WIDTH};
use crate::product::{Left, Output, prefetch_all, tile, tile_rows};

/// Where to write what is wanted beside the output.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    /// `[batch, head, pos]`.
    pub(super) lse: Option<Output<'a>>,
    /// `[batch, head, pos, statistic]`.
    pub(super) summary: Option<(SummaryOptions, Output<'a>)>,
    /// Rows' own boundaries.
    pub(super) boundaries: &'a [Option<usize>],
}

impl Beside<'_> {
    /// How a row is summarised.
    fn options(&self, row: usize) -> Option<SummaryOptions> {
        let own = self.boundaries.get(row).copied().flatten();
        let with_own = |&(options, _): &(SummaryOptions, Output)| SummaryOptions {
            boundary: own.or(options.boundary),
            ..options
        };
        self.summary.as_ref().map(with_own)
    }
}

/// Attends all queries of a span; returns its part of the column sums, one for each
/// key from the row's first query on, if a summary is wanted.
pub(super) fn attend(
    heads: &Heads,
    keys: &Keys,
    span: &Span,
    z: Output,
    beside: Beside,
) -> Vec<f64> {
    Arch::new().dispatch(Attend { heads, keys, span, z, beside })
}

struct Attend<'a> {
    heads: &'a Heads<'a>,
    keys: &'a Keys,
    span: &'a Span,
    z: Output<'a>,
    beside: Beside<'a>,
}

/// The queries of a block: one to a lane.
pub(super) struct Queries {
    /// How many lanes count; the others repeat the last of them.
    pub(super) count: usize,
    /// Absolute position of each lane's query.
    pub(super) pos: [i32; WIDTH],
    pub(super) lowest: usize,
    pub(super) highest: usize,
}

/// A tile of keys: where it begins and its exponentials.
pub(super) struct Tile<'a> {
    pub(super) first: usize,
    pub(super) p: &'a mut [Lanes],
}

impl WithSimd for Attend<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Self { heads, keys, span, z, beside } = self;
        let offset = heads.offsets[span.row];
        let wanted = beside.summary.is_some();
        // With a summary the exponentials of all tiles stay, else of one.
        let n_keys = offset + span.queries.end;
        let room = if wanted { n_keys.next_multiple_of(TILE) } else { TILE };
        let mut p = vec![Lanes::splat(0.0); room];
        let mut q = vec![Lanes::splat(0.0); heads.d];
        let mut o = vec![Lanes::splat(0.0); heads.dv];
        let mut columns = Columns::new(if wanted { span.queries.end } else { 0 });

        for start in span.queries.clone().step_by(WIDTH) {
            let (count, along_heads) = match span.n_heads {
                1 => (WIDTH.min(span.queries.end - start), false),
                n_heads => (n_heads, true),
            };
            // Lane to query and head.
            let place = |lane: usize| {
                let lane = lane.min(count - 1);
                if along_heads { (start, span.head + lane) } else { (start + lane, span.head) }
            };
            let queries = Queries {
                count,
                pos: std::array::from_fn(|lane| (offset + place(lane).0) as i32),
                lowest: offset + place(0).0,
                highest: offset + place(count - 1).0,
            };
            for lane in 0..WIDTH {
                let (query, head) = place(lane);
                // The same lane of the next block.
                if query + WIDTH < span.queries.end {
                    prefetch_all(heads.query(span.row, query + WIDTH, head));
                }
                for (q, &value) in q.iter_mut().zip(heads.query(span.row, query, head)) {
                    q.0[lane] = value;
                }
            }
            let first = heads.first_key(queries.lowest) / TILE * TILE;
            let mut softmax = Softmax::new();
            let mut sums = beside.options(span.row).map(Sums::new);
            for tile_start in (first..=queries.highest).step_by(TILE) {
                let len = TILE.min(queries.highest + 1 - tile_start);
                let kept = if wanted { tile_start - first } else { 0 };
                let mut tile = Tile { first: tile_start, p: &mut p[kept..kept + len] };
                scores(simd, heads, keys, span, &q, &mut tile);
                softmax.step(heads, &queries, &mut tile, sums.as_mut(), &mut o);
                values(simd, heads, keys, span, &tile, &mut o, tile_start > first);
            }
            for lane in 0..count {
                let (query, head) = place(lane);
                let index = ((span.row * heads.t + query) * heads.h + head) * heads.dv;
                // SAFETY: this span alone writes these heads of these queries, and reads none.
                let z = unsafe { z.slice(index, heads.dv) };
                let sum = softmax.sum[lane] as f32;
                for (z, o) in z.iter_mut().zip(&o) {
                    *z = o.0[lane] / sum;
                }
                if let Some(lse) = beside.lse {
                    let index = (span.row * heads.h + head) * heads.t + query;
                    // SAFETY: as above.
                    unsafe { lse.slice(index, 1) }.fill(softmax.lse(lane) as f32);
                }
            }
            if let (Some(sums), Some((_, out))) = (sums, beside.summary) {
                sums.write(&softmax, &queries, |lane| {
                    let (query, head) = place(lane);
                    let index = (span.row * heads.h + head) * heads.t + query;
                    let n = hooks::Statistic::COUNT;
                    // SAFETY: as above.
                    unsafe { out.slice(index * n, n) }
                });
                if !along_heads {
                    columns.add(simd, &p, first, offset, &softmax, &queries);
                }
            }
        }
        columns.finish()
    }
}

/// `p[key][lane] = q · k`, the bare products.
#[inline(always)]
fn scores<S: Simd>(simd: S, heads: &Heads, keys: &Keys, span: &Span, q: &[Lanes], to: &mut Tile) {
    let height = tile_rows::<S>();
    debug_assert_eq!(height, keys.height);
    for (block, p) in to.p.chunks_mut(height).enumerate() {
        let (first, n, c) = (to.first + block * height, p.len(), p.as_mut_ptr().cast());
        let (k, q) = (q.len(), q.as_ptr());
        if heads.lengths[span.row] > 1 {
            let start = keys.k(span.row, span.kv_head, first).as_ptr();
            let left = Left::chunked(start, height);
            // SAFETY: a packed block holds `height` keys as wide as `q`; `p` is the rows to write.
            unsafe { tile::<S, { Left::CHUNKED }>(simd, n, left, k, q, c, WIDTH, false) };
        } else {
            let (start, step) = heads.keys(span.row, first..first + n, span.kv_head);
            let left = Left::rows(start, step);
            // SAFETY: `n` keys as wide as `q` are there; `p` is the rows to write.
            unsafe { tile::<S, { Left::ROWS }>(simd, n, left, k, q, c, WIDTH, false) };
        }
    }
}

/// `o[column][lane] (+)= Σ_key v[key][column] p[key][lane]`.
#[inline(always)]
fn values<S: Simd>(
    simd: S,
    heads: &Heads,
    keys: &Keys,
    span: &Span,
    from: &Tile,
    o: &mut [Lanes],
    add: bool,
) {
    let height = tile_rows::<S>();
    for (block, o) in o.chunks_mut(height).enumerate() {
        let (n, column, c) = (o.len(), block * height, o.as_mut_ptr().cast());
        let (k, p) = (from.p.len(), from.p.as_ptr());
        let left = if heads.lengths[span.row] > 1 {
            let start = keys.v(span.row, span.kv_head, from.first, column).as_ptr();
            Left::columns(start, height)
        } else {
            let range = from.first..from.first + k;
            let (start, step) = heads.values(span.row, range, span.kv_head);
            Left::columns(start.wrapping_add(column), step)
        };
        // SAFETY: `k` keys with `n` columns from `column` on are there, packed (`height`
        // columns of a whole tile) or not; `o` is the rows to write.
        unsafe { tile::<S, { Left::COLUMNS }>(simd, n, left, k, p, c, WIDTH, add) };
    }
}

/// The state of the online softmax of 32 queries: `Σ_j exp(s_j)` is `sum · exp(base)`.
pub(super) struct Softmax {
    /// The largest score so far; 0 while there is none.
    pub(super) base: Lanes,
    /// The same, `−∞` while there is none.
    top: Lanes,
    pub(super) sum: [f64; WIDTH],
    /// What each tile's exponentials refer to: `top` at the time, if they are kept.
    pub(super) tops: Vec<Lanes>,
}

impl Softmax {
    fn new() -> Self {
        Self {
            base: Lanes::splat(0.0),
            top: Lanes::splat(f32::NEG_INFINITY),
            sum: [0.0; WIDTH],
            tops: Vec::new(),
        }
    }

    /// The log-sum-exp of a lane's scores, in nats.
    pub(super) fn lse(&self, lane: usize) -> f64 {
        f64::from(self.base.0[lane]) + self.sum[lane].ln()
    }

    /// Turns a tile of products into exponentials and rescales what came before.
    #[inline(always)]
    fn step(
        &mut self,
        heads: &Heads,
        queries: &Queries,
        tile: &mut Tile,
        sums: Option<&mut Sums>,
        o: &mut [Lanes],
    ) {
        let last = tile.first + tile.p.len() - 1;
        let all_visible = last <= queries.lowest && tile.first >= heads.first_key(queries.highest);
        let mut top = self.top;
        let scale = heads.scale;
        match (heads.soft_cap, all_visible) {
            (None, true) => mask::<false>(heads, queries, tile, |x| x * scale, &mut top),
            (None, false) => mask::<true>(heads, queries, tile, |x| x * scale, &mut top),
            (Some(cap), true) => mask::<false>(heads, queries, tile, |x| cap.score(x), &mut top),
            (Some(cap), false) => mask::<true>(heads, queries, tile, |x| cap.score(x), &mut top),
        }
        let old = self.base;
        let mut factor = Lanes::splat(0.0);
        for lane in 0..WIDTH {
            let base = if top.0[lane] == f32::NEG_INFINITY { 0.0 } else { top.0[lane] };
            factor.0[lane] = exp(self.top.0[lane] - base);
            self.base.0[lane] = base;
        }
        self.top = top;
        let sum = match sums {
            None => exponentials(tile, &self.base),
            Some(sums) => {
                self.tops.push(self.top);
                sums.rescale(&self.sum, &old, &self.base, &factor);
                sums.add(queries, tile, &self.base)
            }
        };
        for lane in 0..WIDTH {
            self.sum[lane] = self.sum[lane] * f64::from(factor.0[lane]) + f64::from(sum.0[lane]);
        }
        // Multiplying by 1 changes nothing.
        if factor.0 != [1.0; WIDTH] {
            for o in o {
                for (o, factor) in o.0.iter_mut().zip(factor.0) {
                    *o *= factor;
                }
            }
        }
    }
}

/// Turns a tile of products into scores, hides the keys that a query does not see, and
/// raises the maxima.
#[inline(always)]
fn mask<const HIDE: bool>(
    heads: &Heads,
    queries: &Queries,
    tile: &mut Tile,
    score: impl Fn(f32) -> f32,
    top: &mut Lanes,
) {
    let (pos, window) = (queries.pos, heads.window);
    let mut highest = top.0;
    for (key, p) in (tile.first as i32..).zip(tile.p.iter_mut()) {
        for lane in 0..WIDTH {
            let mut score = score(p.0[lane]);
            if HIDE {
                let back = pos[lane] - key;
                score = if (back >= 0) & (back < window) { score } else { f32::NEG_INFINITY };
            }
            p.0[lane] = score;
            highest[lane] = if score > highest[lane] { score } else { highest[lane] };
        }
    }
    top.0 = highest;
}

/// `p = exp(s − base)`; returns the sums over the tile's keys.
#[inline(always)]
fn exponentials(tile: &mut Tile, base: &Lanes) -> Lanes {
    let (base, mut sum) = (base.0, [0.0; WIDTH]);
    for p in tile.p.iter_mut() {
        for lane in 0..WIDTH {
            p.0[lane] = exp(p.0[lane] - base[lane]);
            sum[lane] += p.0[lane];
        }
    }
    Lanes(sum)
}
