//! All eigenvalues and eigenvectors of a symmetric tridiagonal matrix, many at a time
//! as lanes of the processor's vectors.
//!
//! The matrix is split where a coupling is negligible. Within a block, the leading
//! minors `p_k(x) = det(T − x)_k` count by their changes of sign the eigenvalues below
//! `x`, and with their derivatives give Laguerre's step to the next one. An eigenvector
//! is read off two eliminations of `T − λ`, from the top and from the bottom, that meet
//! in the row `r` where the pivot `γ` between them is smallest: the solution of
//! `(T − λ) z = γ e_r` with `z_r = 1`. All of that is a few operations per row and lane.
//!
//! The decision that shapes this file: nothing is hoped for. Eigenvalues are certified by
//! counts on either side. Unit vectors with residuals `ρ` and `σ` have a product of at most
//! `(ρ + σ)/|λ − μ|`, however they were found: those of eigenvalues that are far enough
//! apart are certified by their residuals alone, the others are made orthogonal first. Where
//! that leaves nothing of a vector, or a residual is too large, there is no result, and
//! the caller has another way.
//!
//! # References
//! Fernando, SIAM J. Matrix Anal. Appl. 18, 1013 (1997), for the twisted factorisation;
//! Dhillon, Parlett, Linear Algebra Appl. 387, 1 (2004), for products and residuals;
//! Wilkinson, *The Algebraic Eigenvalue Problem* (1965), for the rounding of minors.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::math::vectorised;

/// Vectors of the processor that are worked on together: one hides the other's latency.
const VECTORS: usize = 2;
/// Most lanes that these have.
const MAX_LANES: usize = 16;
/// Rows after which minors are scaled: so many factors stay within the exponents.
const SCALED: usize = 16;
/// Passes after which a block's eigenvalues are given up. Bisection takes some 53.
const MAX_PASSES: usize = 150;
/// Stands for a pivot that is nothing.
const TINY: f64 = 1e-40;
/// A component below it is nothing. Beside a pivot of [`TINY`] there is one of its size, and
/// the next one over is of any size again.
const NOTHING: f64 = 1e-120;
/// Bounds the spectrum of a scaled block.
const EDGE: f64 = 1.0 + 1e-6;
/// Width of an interval, in a scaled block, that holds one eigenvalue as well as it can be known.
const NARROW: f64 = 2.0 * f64::EPSILON;
/// How far on either side of an eigenvalue counts certify it, in a scaled block.
const MARGIN: f64 = 8.0 * f64::EPSILON;

/// What is left out, and what is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Accuracy {
    /// Couplings up to this times `‖T‖` are taken for 0.
    pub(crate) negligible: f64,
    /// Largest residual `‖Tz − λz‖`, over `‖T‖`.
    pub(crate) residual: f64,
    /// Largest product of two vectors.
    pub(crate) product: f64,
}

/// Eigenvalues, ascending, and unit eigenvectors, one after another in the same order.
pub(crate) struct Spectrum {
    pub(crate) values: Vec<f64>,
    pub(crate) vectors: Vec<f64>,
}

/// The whole spectrum, or `None` where it cannot be certified.
///
/// `off` couples row `k` with row `k + 1` and is one shorter than `diagonal`.
pub(crate) fn spectrum(diagonal: &[f64], off: &[f64], accuracy: Accuracy) -> Option<Spectrum> {
    let n = diagonal.len();
    let norm = norm(diagonal, off);
    let blocks = blocks(diagonal, off, accuracy.negligible * norm)?;
    if let [block] = blocks.as_slice() {
        let vectors = block.vectors(accuracy, norm)?;
        return Some(Spectrum { values: block.values().collect(), vectors });
    }
    let order = ordered(&blocks);
    let mut columns: Vec<Vec<usize>> =
        blocks.iter().map(|block| vec![0; block.scaled.len()]).collect();
    for (column, (_, block, k)) in order.iter().enumerate() {
        columns[*block][*k] = column;
    }
    let mut vectors = vec![0.0; n * n];
    for (block, columns) in blocks.iter().zip(&columns) {
        let found = block.vectors(accuracy, norm)?;
        for (vector, column) in found.chunks_exact(columns.len()).zip(columns) {
            vectors[column * n..][block.rows.clone()].copy_from_slice(vector);
        }
    }
    Some(Spectrum { values: order.into_iter().map(|(value, ..)| value).collect(), vectors })
}

/// The eigenvalues of [`spectrum`].
pub(crate) fn values(diagonal: &[f64], off: &[f64], negligible: f64) -> Option<Vec<f64>> {
    let blocks = blocks(diagonal, off, negligible * norm(diagonal, off))?;
    Some(ordered(&blocks).into_iter().map(|(value, ..)| value).collect())
}

/// The largest sum of a row's magnitudes.
fn norm(diagonal: &[f64], off: &[f64]) -> f64 {
    let (low, high) = discs(diagonal, off);
    low.abs().max(high.abs())
}

/// Bounds of the spectrum by Gershgorin's discs.
fn discs(diagonal: &[f64], off: &[f64]) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for (k, d) in diagonal.iter().enumerate() {
        let before = if k == 0 { 0.0 } else { off[k - 1].abs() };
        let radius = before + off.get(k).map_or(0.0, |e| e.abs());
        low = low.min(d - radius);
        high = high.max(d + radius);
    }
    (low, high)
}

/// The blocks between couplings above `negligible`, with their eigenvalues.
fn blocks(diagonal: &[f64], off: &[f64], negligible: f64) -> Option<Vec<Block>> {
    let n = diagonal.len();
    if n > 0 && !negligible.is_finite() {
        return None;
    }
    let mut blocks = Vec::new();
    let mut start = 0;
    for end in 1..=n {
        if end == n || off[end - 1].abs() <= negligible {
            blocks.push(Block::new(start..end, diagonal, off)?);
            start = end;
        }
    }
    Some(blocks)
}

/// Eigenvalues of all blocks, ascending, each with its block and its number in it.
fn ordered(blocks: &[Block]) -> Vec<(f64, usize, usize)> {
    let mut order: Vec<(f64, usize, usize)> = Vec::new();
    for (b, block) in blocks.iter().enumerate() {
        order.extend(block.values().enumerate().map(|(k, value)| (value, b, k)));
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    order
}

/// Rows that are coupled, shifted and then divided so that their spectrum lies between
/// −1 and 1 and rounding is relative to its own width.
struct Block {
    rows: Range<usize>,
    shift: f64,
    scale: f64,
    diagonal: Vec<f64>,
    off: Vec<f64>,
    /// In row `k`, that of the coupling with the row before.
    squares: Vec<f64>,
    /// Eigenvalues of the scaled block, ascending.
    scaled: Vec<f64>,
}

impl Block {
    fn new(rows: Range<usize>, diagonal: &[f64], off: &[f64]) -> Option<Self> {
        let diagonal = &diagonal[rows.clone()];
        let off = &off[rows.start..rows.end - 1];
        let (low, high) = discs(diagonal, off);
        let radius = 0.5 * high - 0.5 * low;
        let shift = low + radius;
        // A power of two, and not beyond the normal numbers.
        let scale = 2.0_f64.powi(radius.max(f64::MIN_POSITIVE).log2().ceil() as i32);
        if !(shift.is_finite() && scale.is_finite()) {
            return None;
        }
        let off: Vec<f64> = off.iter().map(|e| e / scale).collect();
        let mut block = Self {
            diagonal: diagonal.iter().map(|d| (d - shift) / scale).collect(),
            squares: std::iter::once(0.0).chain(off.iter().map(|e| e * e)).collect(),
            scaled: vec![0.0; rows.len()],
            off,
            rows,
            shift,
            scale,
        };
        if block.rows.len() > 1 {
            block.solve()?;
        }
        Some(block)
    }

    /// The eigenvalues.
    fn values(&self) -> impl Iterator<Item = f64> {
        self.scaled.iter().map(|value| self.shift + self.scale * value)
    }

    /// Finds the eigenvalues: counts at even distances, then Laguerre's steps and bisection.
    fn solve(&mut self) -> Option<()> {
        let m = self.diagonal.len();
        let cells = 2 * m;
        let point = |k: usize| EDGE * (2.0 * k as f64 / cells as f64 - 1.0);
        let mut probes = Probes::default();
        probes.look(self, (1..cells).map(point));
        let counts = probes.counts.iter().copied().chain([m]);
        let mut searches: Vec<Search> = Vec::with_capacity(m);
        for (cell, count) in counts.enumerate() {
            for index in searches.len()..count {
                searches.push(Search::new(index, point(cell), point(cell + 1)));
            }
        }
        let mut certified = false;
        for _ in 0..MAX_PASSES {
            if searches.is_empty() {
                if certified {
                    for k in 1..m {
                        self.scaled[k] = self.scaled[k].max(self.scaled[k - 1]);
                    }
                    return Some(());
                }
                searches = self.strayed();
                certified = true;
                continue;
            }
            probes.look(self, searches.iter().map(|search| search.x));
            let mut seen = probes.seen();
            searches.retain_mut(|search| {
                let found = seen.next().and_then(|seen| search.step(seen));
                if let Some(value) = found {
                    self.scaled[search.index] = value;
                }
                found.is_none()
            });
        }
        None
    }

    /// Searches, by bisection alone, for the eigenvalues that are not where they were found.
    fn strayed(&self) -> Vec<Search> {
        let [mut lower, mut upper] = [Probes::default(), Probes::default()];
        lower.look(self, self.scaled.iter().map(|value| value - MARGIN));
        upper.look(self, self.scaled.iter().map(|value| value + MARGIN));
        let counts = lower.counts.iter().zip(&upper.counts);
        let placed = self.scaled.iter().zip(counts).enumerate();
        let stray = |(index, (value, (lower, upper))): (usize, (&f64, (&usize, &usize)))| {
            let (low, high) = match (*lower <= index, index < *upper) {
                (true, true) => return None,
                (true, false) => (value + MARGIN, EDGE),
                (false, _) => (-EDGE, value - MARGIN),
            };
            Some(Search { bisects: true, ..Search::new(index, low, high) })
        };
        placed.filter_map(stray).collect()
    }

    /// Orthonormal eigenvectors, one after another.
    fn vectors(&self, accuracy: Accuracy, norm: f64) -> Option<Vec<f64>> {
        let m = self.diagonal.len();
        if m == 1 {
            return Some(vec![1.0]);
        }
        let mut vectors = vec![0.0; m * m];
        Arch::new().dispatch(Vectors { block: self, vectors: &mut vectors });
        let allowed = accuracy.residual * (norm / self.scale);
        let largest = vectors.chunks_exact(m).zip(&self.scaled).try_fold(
            0.0_f64,
            |largest, (z, value)| {
                let residual = self.residual(z, *value);
                (residual <= allowed).then_some(largest.max(residual))
            },
        )?;
        // Twice as much, for what making vectors orthogonal adds.
        let largest = 2.0 * largest;
        let window = 2.0 * largest / accuracy.product;
        let mut first = 0;
        for k in 1..m {
            let value = self.scaled[k];
            while value - self.scaled[first] > window {
                first += 1;
            }
            if first == k {
                continue;
            }
            let (before, from) = vectors.split_at_mut(k * m);
            let (before, vector) = (&before[first * m..], &mut from[..m]);
            let product = Arch::new().dispatch(MakeOrthogonal { before, vector });
            // Of a vector that lies mostly among those before, rounding would be what is left.
            let certified = product <= 0.1 && self.residual(vector, value) <= largest;
            if !certified {
                return None;
            }
        }
        Some(vectors)
    }

    /// `‖Tz − λz‖` of the scaled block.
    fn residual(&self, z: &[f64], value: f64) -> f64 {
        const LANES: usize = 8;
        let (diagonal, off, m) = (&self.diagonal, &self.off, z.len());
        let row = |k: usize| {
            let before = if k == 0 { 0.0 } else { off[k - 1] * z[k - 1] };
            let after = if k + 1 == m { 0.0 } else { off[k] * z[k + 1] };
            ((diagonal[k] - value) * z[k] + (before + after)).powi(2)
        };
        let inner = vectorised(|| {
            let mut sums = [0.0; LANES];
            let own =
                diagonal[1..].as_chunks::<LANES>().0.iter().zip(z[1..].as_chunks::<LANES>().0);
            let before = off.as_chunks::<LANES>().0.iter().zip(z.as_chunks::<LANES>().0);
            let after = off[1..].as_chunks::<LANES>().0.iter().zip(z[2..].as_chunks::<LANES>().0);
            for (((d, z), (e, above)), (f, below)) in own.zip(before).zip(after) {
                for l in 0..LANES {
                    let r = (d[l] - value) * z[l] + (e[l] * above[l] + f[l] * below[l]);
                    sums[l] += r * r;
                }
            }
            sums.iter().sum::<f64>()
        });
        let done = 1 + (m - 2) / LANES * LANES;
        (row(0) + inner + (done..m).map(row).sum::<f64>()).sqrt()
    }
}

/// The search for one eigenvalue.
struct Search {
    index: usize,
    low: f64,
    high: f64,
    x: f64,
    /// Size of the last step by Laguerre.
    last: f64,
    bisects: bool,
}

impl Search {
    fn new(index: usize, low: f64, high: f64) -> Self {
        let x = low + 0.5 * (high - low);
        Self { index, low, high, x, last: f64::INFINITY, bisects: false }
    }

    /// Moves on from what is seen at `x`, or returns the eigenvalue.
    fn step(&mut self, Seen { count, left, right }: Seen) -> Option<f64> {
        let step = match count.cmp(&self.index) {
            _ if self.bisects => f64::NAN,
            std::cmp::Ordering::Equal => right,
            _ if count == self.index + 1 => -left,
            _ => f64::NAN,
        };
        match count <= self.index {
            true => self.low = self.x,
            false => self.high = self.x,
        }
        let middle = self.low + 0.5 * (self.high - self.low);
        if self.high - self.low <= NARROW {
            return Some(middle);
        }
        let (next, size) = (self.x + step, step.abs());
        if next >= self.low && next <= self.high && size < 0.5 * self.last {
            // Steps shrink to a third power: after this one, by its square would be small enough.
            let shrunk = if self.last.is_finite() { size / self.last } else { 1.0 };
            if size <= NARROW || (shrunk < 0.1 && size * shrunk * shrunk <= 0.1 * NARROW) {
                return Some(next);
            }
            (self.x, self.last) = (next, size);
        } else {
            (self.x, self.last) = (middle, f64::INFINITY);
        }
        None
    }
}

/// What a number looks like from the spectrum.
struct Seen {
    /// Eigenvalues below it.
    count: usize,
    /// Laguerre's step down to the next eigenvalue.
    left: f64,
    /// And up.
    right: f64,
}

/// Numbers and what is seen there.
#[derive(Default)]
struct Probes {
    x: Vec<f64>,
    counts: Vec<usize>,
    left: Vec<f64>,
    right: Vec<f64>,
}

impl Probes {
    fn look(&mut self, block: &Block, x: impl Iterator<Item = f64>) {
        self.x.clear();
        self.x.extend(x);
        self.counts.clear();
        self.left.clear();
        self.right.clear();
        Arch::new().dispatch(Look { block, probes: self });
    }

    fn seen(&self) -> impl Iterator<Item = Seen> {
        let steps = self.left.iter().zip(&self.right);
        let seen = self.counts.iter().zip(steps);
        seen.map(|(count, (left, right))| Seen { count: *count, left: *left, right: *right })
    }
}

struct Look<'a> {
    block: &'a Block,
    probes: &'a mut Probes,
}

impl WithSimd for Look<'_> {
    type Output = ();

    /// With `p′/p = Σ 1/(x − λ) = g` and `Σ 1/(x − λ)² = h` the steps are
    /// `m/(√((m − 1)(m h − g²)) ± g)`.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { block, probes } = self;
        let lanes = VECTORS * S::F64_LANES;
        let m = block.diagonal.len() as f64;
        for chunk in probes.x.chunks(lanes) {
            let mut x = [0.0; MAX_LANES];
            x[..chunk.len()].copy_from_slice(chunk);
            let [p, first, second, signs] = minors(simd, block, &x);
            for l in 0..chunk.len() {
                let g = first[l] / p[l];
                let h = g * g - 2.0 * (second[l] / p[l]);
                let root = ((m - 1.0) * (m * h - g * g)).max(0.0).sqrt();
                probes.counts.push((0.5 * (m - signs[l])) as usize);
                probes.left.push(m / (root + g));
                probes.right.push(m / (root - g));
            }
        }
    }
}

/// The last minor, its derivative and half its second one, to one scale, and how many minors
/// have the sign of the one before less how many have not.
#[inline(always)]
fn minors<S: Simd>(simd: S, block: &Block, x: &[f64; MAX_LANES]) -> [[f64; MAX_LANES]; 4] {
    let (zero, one) = ([simd.splat_f64s(0.0); VECTORS], simd.splat_f64s(1.0));
    let sign = simd.splat_f64s(-0.0);
    let x: [S::f64s; VECTORS] = std::array::from_fn(|v| S::as_simd_f64s(x).0[v]);
    let (mut before, mut now) = ([zero; 3], [[one; VECTORS], zero, zero]);
    let mut signs = zero;
    let parts = block.diagonal.chunks(SCALED).zip(block.squares.chunks(SCALED));
    for (diagonal, squares) in parts {
        for (d, square) in diagonal.iter().zip(squares) {
            let (d, square) = (simd.splat_f64s(*d), simd.splat_f64s(*square));
            for v in 0..VECTORS {
                let a = simd.sub_f64s(d, x[v]);
                // p_k = a p_{k−1} − e² p_{k−2}, and its derivatives, a′ being −1.
                let p = simd.mul_f64s(square, before[0][v]);
                let q = simd.mul_add_f64s(square, before[1][v], now[0][v]);
                let r = simd.mul_add_f64s(square, before[2][v], now[1][v]);
                let p = simd.mul_add_f64s(a, now[0][v], simd.neg_f64s(p));
                let q = simd.mul_add_f64s(a, now[1][v], simd.neg_f64s(q));
                let r = simd.mul_add_f64s(a, now[2][v], simd.neg_f64s(r));
                let changed = simd.and_f64s(simd.xor_f64s(p, now[0][v]), sign);
                signs[v] = simd.add_f64s(signs[v], simd.or_f64s(changed, one));
                for (i, next) in [p, q, r].into_iter().enumerate() {
                    before[i][v] = now[i][v];
                    now[i][v] = next;
                }
            }
        }
        for v in 0..VECTORS {
            // One over the power of two in the larger minor.
            let larger = simd.max_f64s(simd.abs_f64s(before[0][v]), simd.abs_f64s(now[0][v]));
            let exponent = simd.splat_u64s(0x7ff << 52);
            let exponent = simd.and_u64s(simd.transmute_u64s_f64s(larger), exponent);
            let factor = simd.sub_u64s(simd.splat_u64s(0x7fe << 52), exponent);
            let factor = simd.transmute_f64s_u64s(factor);
            for i in 0..3 {
                before[i][v] = simd.mul_f64s(before[i][v], factor);
                now[i][v] = simd.mul_f64s(now[i][v], factor);
            }
        }
    }
    let [p, first, second] = now;
    [p, first, second, signs].map(|vectors| lanes_of(simd, vectors))
}

#[inline(always)]
fn lanes_of<S: Simd>(_: S, vectors: [S::f64s; VECTORS]) -> [f64; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    S::as_mut_simd_f64s(&mut lanes).0[..VECTORS].copy_from_slice(&vectors);
    lanes
}

/// Fills `vectors` with the unit solutions of `(T − λ) z = γ e_r`.
struct Vectors<'a> {
    block: &'a Block,
    vectors: &'a mut [f64],
}

impl WithSimd for Vectors<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const ROWS: usize = 8;
        let Self { block, vectors } = self;
        let lanes = VECTORS * S::F64_LANES;
        let m = block.diagonal.len();
        let (mut upper, mut lower) = (vec![0.0; m * lanes], vec![0.0; m * lanes]);
        for (columns, values) in vectors.chunks_mut(lanes * m).zip(block.scaled.chunks(lanes)) {
            let mut shifts = [0.0; MAX_LANES];
            shifts[..values.len()].copy_from_slice(values);
            let squares = twisted(simd, block, &shifts, &mut upper, &mut lower);
            let scale = squares.map(|square| square.sqrt().recip());
            // Some rows at a time, so that whole cache lines are written.
            for (part, rows) in upper.chunks(ROWS * lanes).enumerate() {
                for (column, (l, scale)) in
                    columns.chunks_exact_mut(m).zip(scale.iter().enumerate())
                {
                    let to = &mut column[part * ROWS..];
                    for (to, row) in to.iter_mut().zip(rows.chunks_exact(lanes)) {
                        *to = scale * row[l];
                    }
                }
            }
        }
    }
}

/// Solves `(T − λ) z = γ e_r`, `z_r = 1`, where `|γ|` is smallest; returns `‖z‖²`.
///
/// `upper` and `lower` are room for a row of lanes per row; the solution is in `upper`.
#[inline(always)]
fn twisted<S: Simd>(
    simd: S,
    block: &Block,
    shifts: &[f64; MAX_LANES],
    upper: &mut [f64],
    lower: &mut [f64],
) -> [f64; MAX_LANES] {
    let m = block.diagonal.len();
    let (diagonal, off) = (&block.diagonal[..m], &block.off[..m - 1]);
    let upper = &mut S::as_mut_simd_f64s(upper).0.as_chunks_mut::<VECTORS>().0[..m];
    let lower = &mut S::as_mut_simd_f64s(lower).0.as_chunks_mut::<VECTORS>().0[..m];
    let shifts: [S::f64s; VECTORS] = std::array::from_fn(|v| S::as_simd_f64s(shifts).0[v]);
    let (zero, one) = (simd.splat_f64s(0.0), simd.splat_f64s(1.0));
    let (tiny, nothing) = (simd.splat_f64s(TINY), simd.splat_f64s(NOTHING));
    let or = |value: S::f64s, least: S::f64s, otherwise: S::f64s| {
        let less = simd.less_than_f64s(simd.abs_f64s(value), least);
        simd.select_f64s(less, otherwise, value)
    };
    let shifted = |k: usize, v: usize| simd.sub_f64s(simd.splat_f64s(diagonal[k]), shifts[v]);

    // Row k of `upper` times row k + 1 of the solution is to vanish with row k of it.
    let mut pivot: [S::f64s; VECTORS] = std::array::from_fn(|v| shifted(0, v));
    for k in 0..m - 1 {
        let e = simd.splat_f64s(off[k]);
        for v in 0..VECTORS {
            upper[k][v] = simd.div_f64s(e, or(pivot[v], tiny, tiny));
            pivot[v] = simd.negate_mul_add_f64s(e, upper[k][v], shifted(k + 1, v));
        }
    }
    let mut least = pivot.map(|gamma| simd.abs_f64s(gamma));
    let mut twist = [simd.splat_f64s((m - 1) as f64); VECTORS];
    // And row k of `lower` times row k − 1.
    let mut pivot: [S::f64s; VECTORS] = std::array::from_fn(|v| shifted(m - 1, v));
    for k in (0..m - 1).rev() {
        let (e, row) = (simd.splat_f64s(off[k]), simd.splat_f64s(k as f64));
        for v in 0..VECTORS {
            lower[k + 1][v] = simd.div_f64s(e, or(pivot[v], tiny, tiny));
            pivot[v] = simd.negate_mul_add_f64s(e, lower[k + 1][v], shifted(k, v));
            let gamma = match k {
                0 => pivot[v],
                _ => {
                    simd.negate_mul_add_f64s(simd.splat_f64s(off[k - 1]), upper[k - 1][v], pivot[v])
                }
            };
            let gamma = simd.abs_f64s(gamma);
            let less = simd.less_than_f64s(gamma, least[v]);
            least[v] = simd.select_f64s(less, gamma, least[v]);
            twist[v] = simd.select_f64s(less, row, twist[v]);
        }
    }
    let (mut z, mut squares) = ([zero; VECTORS], [zero; VECTORS]);
    for k in (0..m).rev() {
        let row = simd.splat_f64s(k as f64);
        for v in 0..VECTORS {
            let next = or(simd.neg_f64s(simd.mul_f64s(upper[k][v], z[v])), nothing, zero);
            z[v] = simd.select_f64s(simd.equal_f64s(row, twist[v]), one, next);
            squares[v] = simd.mul_add_f64s(z[v], z[v], squares[v]);
            upper[k][v] = z[v];
        }
    }
    let mut z = [zero; VECTORS];
    for k in 0..m {
        let row = simd.splat_f64s(k as f64);
        for v in 0..VECTORS {
            let next = or(simd.neg_f64s(simd.mul_f64s(lower[k][v], z[v])), nothing, zero);
            let here = simd.equal_f64s(row, twist[v]);
            z[v] = simd.select_f64s(here, one, next);
            let below = simd.select_f64s(here, zero, next);
            squares[v] = simd.mul_add_f64s(below, below, squares[v]);
            upper[k][v] = simd.add_f64s(upper[k][v], below);
        }
    }
    lanes_of(simd, squares)
}

/// Takes the components along the unit vectors `before`, which are orthogonal, out of
/// `vector` and scales it to 1; returns the sum of their squares.
struct MakeOrthogonal<'a> {
    before: &'a [f64],
    vector: &'a mut [f64],
}

impl WithSimd for MakeOrthogonal<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        const TOGETHER: usize = 4;
        let Self { before, vector } = self;
        let m = vector.len();
        let mut removed = 0.0;
        let groups = before.chunks_exact(TOGETHER * m);
        for other in groups.remainder().chunks_exact(m) {
            removed += remove(simd, [other], vector);
        }
        for group in groups {
            let others: [&[f64]; TOGETHER] = std::array::from_fn(|c| &group[c * m..][..m]);
            removed += remove(simd, others, vector);
        }
        let square: f64 = products(simd, [vector], vector)[0];
        let scale = simd.splat_f64s(square.sqrt().recip());
        let (body, rest) = S::as_mut_simd_f64s(vector);
        body.iter_mut().for_each(|v| *v = simd.mul_f64s(*v, scale));
        rest.iter_mut().for_each(|v| *v *= square.sqrt().recip());
        removed
    }
}

#[inline(always)]
fn remove<S: Simd, const C: usize>(simd: S, others: [&[f64]; C], vector: &mut [f64]) -> f64 {
    let found = products(simd, others, vector);
    let factors = found.map(|product| simd.splat_f64s(product));
    let (body, rest) = S::as_mut_simd_f64s(vector);
    for (k, v) in body.iter_mut().enumerate() {
        for c in 0..C {
            *v = simd.negate_mul_add_f64s(factors[c], S::as_simd_f64s(others[c]).0[k], *v);
        }
    }
    for (k, v) in rest.iter_mut().enumerate() {
        for c in 0..C {
            *v -= found[c] * S::as_simd_f64s(others[c]).1[k];
        }
    }
    found.iter().map(|product| product * product).sum()
}

#[inline(always)]
fn products<S: Simd, const C: usize>(simd: S, others: [&[f64]; C], vector: &[f64]) -> [f64; C] {
    let (body, rest) = S::as_simd_f64s(vector);
    let others = others.map(|other| S::as_simd_f64s(other));
    let mut sums = [simd.splat_f64s(0.0); C];
    for (k, v) in body.iter().enumerate() {
        for c in 0..C {
            sums[c] = simd.mul_add_f64s(others[c].0[k], *v, sums[c]);
        }
    }
    std::array::from_fn(|c| {
        let rest: f64 = others[c].1.iter().zip(rest).map(|(a, b)| a * b).sum();
        simd.reduce_sum_f64s(sums[c]) + rest
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use crate::reference;

    const ACCURACY: Accuracy =
        Accuracy { negligible: f64::EPSILON, residual: 1e-14, product: 1e-11 };

    /// The matrix row by row, and its eigenvalues by rotations.
    fn expected(diagonal: &[f64], off: &[f64]) -> (Vec<f64>, f64) {
        let n = diagonal.len();
        let mut matrix = vec![0.0; n * n];
        for k in 0..n {
            matrix[k * n + k] = diagonal[k];
            if k + 1 < n {
                matrix[k * n + k + 1] = off[k];
                matrix[(k + 1) * n + k] = off[k];
            }
        }
        (reference::eigh(&matrix, n).0, norm(diagonal, off))
    }

    /// Asserts what a result promises, and that it is the spectrum.
    fn check(name: &str, diagonal: &[f64], off: &[f64]) -> bool {
        let n = diagonal.len();
        let (values, norm) = expected(diagonal, off);
        let Some(found) = spectrum(diagonal, off, ACCURACY) else { return false };
        assert_eq!(
            found.values,
            super::values(diagonal, off, ACCURACY.negligible).unwrap(),
            "{name}"
        );
        let close = |got: f64, expected: f64, bound: f64| {
            assert!((got - expected).abs() <= bound, "{name}, {n}: {got} for {expected}");
        };
        for (got, expected) in found.values.iter().zip(&values) {
            // Rotations lose more than what is tested.
            close(*got, *expected, 1e-13 * norm);
        }
        let vector = |k: usize| &found.vectors[k * n..][..n];
        for i in 0..n {
            let (z, value) = (vector(i), found.values[i]);
            let row = |k: usize| {
                let before = if k == 0 { 0.0 } else { off[k - 1] * z[k - 1] };
                let after = if k + 1 == n { 0.0 } else { off[k] * z[k + 1] };
                diagonal[k] * z[k] + before + after - value * z[k]
            };
            let residual = (0..n).map(|k| row(k).powi(2)).sum::<f64>().sqrt();
            close(residual, 0.0, 2e-14 * norm);
            for j in 0..=i {
                let product: f64 = z.iter().zip(vector(j)).map(|(a, b)| a * b).sum();
                let (one, bound) = if i == j { (1.0, 1e-14) } else { (0.0, 1e-11) };
                close(product, one, bound);
            }
        }
        true
    }

    #[test]
    fn known_spectra() {
        let mut random = SplitMix64::new(5);
        for n in [1usize, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 65] {
            let ones = vec![1.0; n - 1];
            let numbers = |random: &mut SplitMix64, n: usize| -> Vec<f64> {
                (0..n).map(|_| random.next_symmetric()).collect()
            };
            // 2 − 2 cos(πk/n), of a path.
            let mut path = vec![2.0; n];
            path[0] -= 1.0;
            path[n - 1] -= 1.0;
            assert!(check("path", &path, &ones));
            let level = |k: usize| 2.0 - 2.0 * (std::f64::consts::PI * k as f64 / n as f64).cos();
            for (k, value) in values(&path, &ones, 0.0).unwrap().into_iter().enumerate() {
                assert!((value - level(k)).abs() <= 1e-14, "{n}, {k}: {value}");
            }
            // Clement's: n − 1, n − 3, …, 1 − n.
            let clement: Vec<f64> = (1..n).map(|k| ((k * (n - k)) as f64).sqrt()).collect();
            assert!(check("clement", &vec![0.0; n], &clement));
            for (k, value) in values(&vec![0.0; n], &clement, 0.0).unwrap().into_iter().enumerate()
            {
                let level = 2.0 * k as f64 - (n as f64 - 1.0);
                assert!((value - level).abs() <= 1e-13 * n as f64, "{n}, {k}: {value}");
            }
            assert!(check("random", &numbers(&mut random, n), &numbers(&mut random, n - 1)));
            assert!(check("nothing", &vec![0.0; n], &vec![0.0; n - 1]));
            assert!(check("one", &vec![1.0; n], &vec![0.0; n - 1]));
            assert!(check("nearly one", &vec![1.0; n], &vec![1e-10; n - 1]));
            let graded: Vec<f64> = (0..n).map(|k| 10.0_f64.powf(-0.3 * k as f64)).collect();
            let between: Vec<f64> = graded.iter().skip(1).map(|v| 0.5 * v).collect();
            assert!(check("graded", &graded, &between));
            let mut apart = numbers(&mut random, n - 1);
            apart.iter_mut().step_by(3).for_each(|e| *e = 0.0);
            assert!(check("apart", &numbers(&mut random, n), &apart));
            for scale in [1e-300, 1e300] {
                let path: Vec<f64> = path.iter().map(|d| d * scale).collect();
                let found = values(&path, &vec![scale; n - 1], 0.0).unwrap();
                let exact = |(k, value): (usize, f64)| (value / scale - level(k)).abs() <= 1e-14;
                assert!(found.into_iter().enumerate().all(exact), "{n}, {scale}");
            }
        }
        assert!(spectrum(&[], &[], ACCURACY).is_some_and(|found| found.values.is_empty()));
    }

    /// Eigenvalues that coincide although nothing falls apart: found or given up, never wrong.
    #[test]
    fn eigenvalues_that_coincide() {
        for half in [5usize, 10, 15, 30] {
            let one: Vec<f64> = (0..=2 * half).map(|k| k.abs_diff(half) as f64).collect();
            check("wilkinson", &one, &vec![1.0; 2 * half]);
            for glue in [1e-14, 1e-10, 1e-6, 1e-3] {
                let glued = one.repeat(3);
                let mut off = vec![1.0; glued.len() - 1];
                off.iter_mut().skip(2 * half).step_by(2 * half + 1).for_each(|e| *e = glue);
                check("glued wilkinson", &glued, &off);
            }
        }
        // Two wells far apart.
        let wells: Vec<f64> =
            (0..60).map(|k: usize| (k.abs_diff(20).min(k.abs_diff(40))) as f64).collect();
        check("wells", &wells, &vec![0.1; 59]);
    }

    #[test]
    fn what_is_not_finite_has_no_spectrum() {
        for wrong in [f64::NAN, f64::INFINITY] {
            assert!(spectrum(&[1.0, wrong], &[1.0], ACCURACY).is_none());
            assert!(spectrum(&[1.0, 2.0], &[wrong], ACCURACY).is_none());
        }
    }
}
