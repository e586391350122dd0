//! The statistics of attention rows and columns, carried along with the online softmax.

use hooks::{Statistic, SummaryOptions};
use pulp::Simd;

use super::block::{Queries, Softmax, Tile};
use super::{Heads, Span};
use crate::math::exp;
use crate::panels::{Lanes, WIDTH};

/// Sums over the keys of 32 queries. Those over exponentials refer to the softmax's
/// base and are rescaled with it.
pub(super) struct Sums {
    window: i32,
    boundary: usize,
    /// `Σ_j p_j (s_j − base)`.
    entropy: [f64; WIDTH],
    /// `Σ_j p_j |u − j|`.
    distance: [f64; WIDTH],
    /// `Σ p_j` over the window.
    near: [f64; WIDTH],
    /// `Σ p_j` before the boundary.
    context: [f64; WIDTH],
    /// The scores of the first key and of the query's own.
    first: [f32; WIDTH],
    own: [f32; WIDTH],
}

impl Sums {
    pub(super) fn new(options: SummaryOptions) -> Self {
        Self {
            window: options.window.min(i32::MAX as usize) as i32,
            boundary: options.boundary.unwrap_or(0),
            entropy: [0.0; WIDTH],
            distance: [0.0; WIDTH],
            near: [0.0; WIDTH],
            context: [0.0; WIDTH],
            first: [f32::NEG_INFINITY; WIDTH],
            own: [f32::NEG_INFINITY; WIDTH],
        }
    }

    /// Moves from the base `old` with `Σ p = sum` to the base `new`; `factor = exp(old − new)`.
    #[inline(always)]
    pub(super) fn rescale(&mut self, sum: &[f64; WIDTH], old: &Lanes, new: &Lanes, factor: &Lanes) {
        for (lane, sum) in sum.iter().enumerate() {
            let factor = f64::from(factor.0[lane]);
            let moved = sum * (f64::from(old.0[lane]) - f64::from(new.0[lane]));
            self.entropy[lane] = (self.entropy[lane] + moved) * factor;
            self.distance[lane] *= factor;
            self.near[lane] *= factor;
            self.context[lane] *= factor;
        }
    }

    /// Turns a tile of scores into exponentials and adds it up; returns `Σ p`.
    #[inline(always)]
    pub(super) fn add(&mut self, queries: &Queries, tile: &mut Tile, base: &Lanes) -> Lanes {
        let (first, len) = (tile.first, tile.p.len());
        if first == 0 {
            self.first = tile.p[0].0;
        }
        if first + len > queries.lowest {
            for (lane, own) in self.own.iter_mut().enumerate() {
                let key = queries.pos[lane] as usize;
                if (first..first + len).contains(&key) {
                    *own = tile.p[key - first].0[lane];
                }
            }
        }
        let (pos, base) = (queries.pos, base.0);
        let (mut sum, mut entropy, mut distance) = ([0.0; WIDTH], [0.0; WIDTH], [0.0; WIDTH]);
        for (key, p) in (first as i32..).zip(tile.p.iter_mut()) {
            for lane in 0..WIDTH {
                let x = p.0[lane] - base[lane];
                let e = exp(x);
                p.0[lane] = e;
                sum[lane] += e;
                // A hidden key has x = −∞ and e = 0.
                let x = if x > f32::MIN { x } else { f32::MIN };
                entropy[lane] = e.mul_add(x, entropy[lane]);
                distance[lane] = e.mul_add((pos[lane] - key) as f32, distance[lane]);
            }
        }
        let near = self.near(queries, tile, &sum);
        let context = if self.boundary >= first + len {
            sum
        } else {
            let mut context = [0.0; WIDTH];
            for p in &tile.p[..self.boundary.saturating_sub(first)] {
                context.iter_mut().zip(p.0).for_each(|(context, p)| *context += p);
            }
            context
        };
        for lane in 0..WIDTH {
            self.entropy[lane] += f64::from(entropy[lane]);
            self.distance[lane] += f64::from(distance[lane]);
            self.near[lane] += f64::from(near[lane]);
            self.context[lane] += f64::from(context[lane]);
        }
        Lanes(sum)
    }

    /// `Σ p` over the tile's keys within the window.
    #[inline(always)]
    fn near(&self, queries: &Queries, tile: &Tile, sum: &[f32; WIDTH]) -> [f32; WIDTH] {
        let (pos, window) = (queries.pos, self.window);
        let last = tile.first + tile.p.len() - 1;
        if queries.highest < tile.first + window as usize {
            return *sum;
        }
        let mut near = [0.0; WIDTH];
        if queries.lowest >= last + window as usize {
            return near;
        }
        for (key, p) in (tile.first as i32..).zip(tile.p.iter()) {
            for lane in 0..WIDTH {
                near[lane] += if pos[lane] - key < window { p.0[lane] } else { 0.0 };
            }
        }
        near
    }

    /// Writes each query's statistics to `out(lane)`; the column sum, which other
    /// queries add to, begins as its own share.
    pub(super) fn write<'o>(
        &self,
        softmax: &Softmax,
        queries: &Queries,
        out: impl Fn(usize) -> &'o mut [f32],
    ) {
        for lane in 0..queries.count {
            let (sum, base) = (softmax.sum[lane], softmax.base.0[lane]);
            let share = |score: f32| f64::from(exp(score - base)) / sum;
            let own = share(self.own[lane]);
            let out = out(lane);
            for statistic in Statistic::ALL {
                let value = match statistic {
                    // The base is the largest score: both terms are at least 0.
                    Statistic::Entropy => sum.ln() - self.entropy[lane] / sum,
                    Statistic::Max => 1.0 / sum,
                    Statistic::FirstToken => share(self.first[lane]),
                    Statistic::Distance => self.distance[lane] / sum,
                    Statistic::WindowMass => self.near[lane] / sum,
                    Statistic::Lookback => self.context[lane] / sum,
                    Statistic::Diagonal | Statistic::ColumnSum => own,
                    Statistic::LogDiagonal => f64::from(self.own[lane]) - softmax.lse(lane),
                };
                out[statistic.index()] = value as f32;
            }
        }
    }
}

/// Blocks whose columns are added in `f32` before they join the `f64` sums.
const GROUP: usize = 8;
/// Partial sums of a column.
const PARTS: usize = WIDTH / 2;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Parts([f32; PARTS]);

/// Column sums of a span of queries, over the keys from the row's first query on.
pub(super) struct Columns {
    group: Vec<Parts>,
    blocks: usize,
    sums: Vec<f64>,
}

impl Columns {
    pub(super) fn new(n_keys: usize) -> Self {
        Self { group: vec![Parts([0.0; PARTS]); n_keys], blocks: 0, sums: vec![0.0; n_keys] }
    }

    /// Adds a block of queries whose exponentials, from key `first` on, are `p`.
    #[inline(always)]
    pub(super) fn add<S: Simd>(
        &mut self,
        simd: S,
        p: &[Lanes],
        first: usize,
        offset: usize,
        softmax: &Softmax,
        queries: &Queries,
    ) {
        let n_keys = queries.highest + 1 - first;
        for (tile, top) in softmax.tops.iter().enumerate() {
            let mut share = Lanes::splat(0.0);
            for (lane, share) in share.0.iter_mut().enumerate().take(queries.count) {
                let factor = exp(top.0[lane] - softmax.base.0[lane]);
                *share = (f64::from(factor) / softmax.sum[lane]) as f32;
            }
            let (low, high) = share.0.split_at(PARTS);
            let (low, high) = (S::as_simd_f32s(low).0, S::as_simd_f32s(high).0);
            let start = tile * super::keys::TILE;
            let end = n_keys.min(start + super::keys::TILE);
            // Keys before the row's first query have no place in the summary.
            let start = start.max(offset.saturating_sub(first)).min(end);
            let group = &mut self.group[(first + start).saturating_sub(offset)..];
            for (sums, p) in group.iter_mut().zip(&p[start..end]) {
                let sums = S::as_mut_simd_f32s(&mut sums.0).0;
                let (p_low, p_high) = p.0.split_at(PARTS);
                let (p_low, p_high) = (S::as_simd_f32s(p_low).0, S::as_simd_f32s(p_high).0);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add_f32s(p_high[i], high[i], *sum);
                    *sum = simd.mul_add_f32s(p_low[i], low[i], *sum);
                }
            }
        }
        self.blocks += 1;
        if self.blocks.is_multiple_of(GROUP) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for (sum, parts) in self.sums.iter_mut().zip(&mut self.group) {
            *sum += parts.0.iter().map(|&part| f64::from(part)).sum::<f64>();
            *parts = Parts([0.0; PARTS]);
        }
    }

    pub(super) fn finish(mut self) -> Vec<f64> {
        self.flush();
        self.sums
    }
}

/// Adds up the spans' column sums, in ascending order of queries, into `summary
/// [batch, head, pos, statistic]`.
pub(super) fn add_columns(
    heads: &Heads,
    spans: &[Span],
    columns: &[Vec<f64>],
    summary: &mut [f32],
) {
    let mut totals = vec![Vec::new(); heads.b * heads.h];
    for (span, columns) in spans.iter().zip(columns).rev() {
        // A single query's own share, already written, is all that its column gets.
        if heads.lengths[span.row] > 1 {
            let total = &mut totals[span.row * heads.h + span.head];
            total.resize(heads.lengths[span.row], 0.0);
            total.iter_mut().zip(columns).for_each(|(total, column)| *total += column);
        }
    }
    let stride = heads.t * Statistic::COUNT;
    for (summary, totals) in summary.chunks_exact_mut(stride.max(1)).zip(&totals) {
        for (statistics, total) in summary.chunks_exact_mut(Statistic::COUNT).zip(totals) {
            statistics[Statistic::ColumnSum.index()] = *total as f32;
        }
    }
}
