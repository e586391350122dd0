//! Matrix products from register tiles, under [`linear`](crate::linear) and
//! [`attention`](crate::attention).
//!
//! A tile is a few rows of the left operand times one *panel*, 32 columns of the
//! right operand stored `[k][32]`. Its sums stay in registers over a whole block
//! of `k`. Each output element is one chain of fused multiply–adds in ascending
//! `k`: the same whichever rows share the tile, however `k` is cut into blocks,
//! however many threads work, and however wide the registers are. The bits of a
//! row never depend on its neighbours, and a product with one row needs no path
//! of its own.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::memory::prefer_large_pages;
use crate::panels::{Lanes, Right, WIDTH};

/// Consecutive `k` that a packed row keeps together.
const CHUNK: usize = 16;
/// Longest block of `k`: its panel (80 KiB) stays in the second-level cache.
const BLOCK_K: usize = 640;
/// The same where a panel is unpacked for a single tile of rows (16 KiB, first-level).
const BLOCK_K_ONCE: usize = 128;
/// Most rows of the left operand that are packed at a time, about; with their `k` they
/// stay in the second-level cache (1.6 MiB), and panels come once for all of them.
const BLOCK_ROWS: usize = 640;
/// The same where panels are unpacked for every such block.
const BLOCK_ROWS_UNPACKED: usize = 1024;
/// Panel rows that are fetched ahead.
const AHEAD: usize = 8;
/// Multiply–adds below which handing work to other threads costs more than it saves.
const SERIAL: usize = 1 << 18;

/// Most rows that a tile can have.
#[inline(always)]
pub(crate) const fn tile_rows<S: Simd>() -> usize {
    if S::F32_LANES == 16 { 14 } else { 6 }
}

/// [`tile_rows`] of the instruction set in use.
pub(crate) fn best_tile_rows() -> usize {
    struct Op;
    impl WithSimd for Op {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            tile_rows::<S>()
        }
    }
    Arch::new().dispatch(Op)
}

/// Where a tile finds its left operand: element `(row, k)` is
/// `start[k / chunk · chunk_step + k % chunk · k_step + row · row_step]`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    start: *const f32,
    chunk: usize,
    chunk_step: usize,
    k_step: usize,
    row_step: usize,
}

impl Left {
    /// `ROW_STEP` of [`Left::chunked`].
    pub(crate) const CHUNKED: usize = CHUNK;
    /// `ROW_STEP` of [`Left::columns`].
    pub(crate) const COLUMNS: usize = 1;
    /// `ROW_STEP` of [`Left::rows`].
    pub(crate) const ROWS: usize = 0;

    /// Rows packed by [`pack_rows`] for tiles of `rows` rows.
    pub(crate) fn chunked(start: *const f32, rows: usize) -> Self {
        Self { start, chunk: CHUNK, chunk_step: rows * CHUNK, k_step: 1, row_step: CHUNK }
    }

    /// All rows of one `k` beside one another, the next `k` `k_step` after it.
    pub(crate) fn columns(start: *const f32, k_step: usize) -> Self {
        Self { start, chunk: usize::MAX, chunk_step: 0, k_step, row_step: 1 }
    }

    /// All `k` of one row beside one another, the next row `row_step` after it.
    pub(crate) fn rows(start: *const f32, row_step: usize) -> Self {
        Self { start, chunk: usize::MAX, chunk_step: 0, k_step: 1, row_step }
    }
}

/// `C[i][j] = (add ? C[i][j] : 0) + Σ_k A[i][k] B[k][j]` for `rows` rows and the 32
/// columns of a panel; row `i` of `C` starts at `c + i · stride`.
///
/// # Safety
///
/// `rows` is at most [`tile_rows`]; `left` has this `ROW_STEP` and is readable for
/// `rows` rows of `k` elements, `right` for `k` lanes, and `c` is valid for
/// reads (if `add`) and writes of 32 elements in each of `rows` rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn tile<S: Simd, const ROW_STEP: usize>(
    simd: S,
    rows: usize,
    left: Left,
    k: usize,
    right: *const Lanes,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    macro_rules! of {
        ($vectors:literal: $($rows:literal)*) => {
            match rows {
                $($rows => {
                    for column in (0..WIDTH).step_by($vectors * S::F32_LANES) {
                        // SAFETY: `column` and the vectors after it lie within the panel;
                        // the rest is the caller's promise.
                        unsafe {
                            let (right, c) = (right.cast::<f32>().add(column), c.add(column));
                            registers::<S, $rows, $vectors, ROW_STEP>(simd, left, k, right, c, stride, add);
                        }
                    }
                })*
                _ => {}
            }
        };
    }
    // Sums, one row of the panel and one broadcast fill the register file.
    if S::F32_LANES == 16 {
        of!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    } else if S::F32_LANES == 4 {
        of!(4: 1 2 3 4 5 6);
    } else {
        of!(2: 1 2 3 4 5 6);
    }
}

/// The tile itself: `ROWS × VECTORS` registers of sums.
///
/// # Safety
///
/// As [`tile`], for `VECTORS` vectors of columns.
#[inline(always)]
unsafe fn registers<S: Simd, const ROWS: usize, const VECTORS: usize, const ROW_STEP: usize>(
    simd: S,
    left: Left,
    k: usize,
    right: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let chunked = ROW_STEP == Left::CHUNKED;
    let row_step = if ROW_STEP == Left::ROWS { left.row_step } else { ROW_STEP };
    let k_step = if chunked { 1 } else { left.k_step };
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    // SAFETY: every address below is one that the caller vouches for; vectors are
    // plain numbers, read and written unaligned.
    unsafe {
        if add {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = c.add(i * stride + v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                }
            }
        }
        let (mut chunk, mut right, mut rest) = (left.start, right, k);
        while rest > 0 {
            let steps = left.chunk.min(rest);
            macro_rules! steps {
                ($($step:expr),*) => {$({
                    let (a, right) = (chunk.add($step * k_step), right.wrapping_add($step * WIDTH));
                    // The panel is the one operand that comes from afar.
                    for v in (0..VECTORS * S::F32_LANES).step_by(16) {
                        prefetch(right.wrapping_add(AHEAD * WIDTH + v));
                    }
                    let mut b = [simd.splat_f32s(0.0); VECTORS];
                    for (v, b) in b.iter_mut().enumerate() {
                        *b = right.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = simd.splat_f32s(*a.add(i * row_step));
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = simd.mul_add_f32s(a, b, *sum);
                        }
                    }
                })*};
            }
            // The tallest tiles take nearly all the time: a chunk without branches is worth its code.
            if chunked && ROWS + 2 >= tile_rows::<S>() && steps == CHUNK {
                steps!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            } else {
                for step in 0..steps {
                    steps!(step);
                }
            }
            right = right.wrapping_add(steps * WIDTH);
            chunk = chunk.wrapping_add(left.chunk_step);
            rest -= steps;
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                c.add(i * stride + v * S::F32_LANES).cast::<S::f32s>().write_unaligned(sum);
            }
        }
    }
}

/// Asks for the cache line at `address`, which need not be valid.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for all cache lines of a slice.
#[inline(always)]
pub(crate) fn prefetch_all(values: &[f32]) {
    for line in values.chunks(16) {
        prefetch(line.as_ptr());
    }
}

/// Floats that [`pack_rows`] needs for one tile of `rows` rows of `k` elements.
pub(crate) fn packed_len(rows: usize, k: usize) -> usize {
    rows * k.next_multiple_of(CHUNK)
}

/// Packs rows of equal length for [`Left::chunked`]: `[k / 16][rows][16]`.
#[inline(always)]
pub(crate) fn pack_rows<'a>(
    packed: &mut [f32],
    rows: usize,
    sources: impl Iterator<Item = &'a [f32]>,
) {
    for (i, source) in sources.enumerate() {
        let (chunks, rest) = source.as_chunks::<CHUNK>();
        for (chunk, packed) in chunks.iter().zip(packed.chunks_exact_mut(rows * CHUNK)) {
            packed[i * CHUNK..][..CHUNK].copy_from_slice(chunk);
        }
        if !rest.is_empty() {
            packed[chunks.len() * rows * CHUNK + i * CHUNK..][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// A place that several threads fill, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: writing through an `Output` is unsafe, and whoever does it promises
// that no two threads touch the same element.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), lifetime: PhantomData }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    ///
    /// While the slice lives, nobody else touches these elements; and if they were
    /// never written (see [`fill`]), they are only written.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the buffer, just checked; exclusive, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Where element `index` is.
    fn at(&self, index: usize) -> *mut f32 {
        debug_assert!(index < self.len);
        self.start.wrapping_add(index)
    }
}

/// A vector of `len` numbers that `write` writes, without clearing it first.
///
/// # Safety
///
/// `write` writes every element before it reads it.
pub(crate) unsafe fn fill(len: usize, write: impl FnOnce(Output<'_>)) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    prefer_large_pages(&mut values.spare_capacity_mut()[..len]);
    write(Output { start: values.as_mut_ptr(), len, lifetime: PhantomData });
    // SAFETY: the capacity is there, and every element was written.
    unsafe { values.set_len(len) };
    values
}

/// `y = x B + bias`: row `i` of `x` is `x(i)`, row `i` of `y` starts at `i · n`.
///
/// Writes all `m · n` elements of `y` before it reads any.
pub(crate) fn multiply<'x, X, R>(m: usize, x: X, right: &R, bias: Option<&[f32]>, y: Output)
where
    X: Fn(usize) -> &'x [f32] + Sync,
    R: Right,
{
    let (n, k) = (right.n(), right.k());
    assert!(m.checked_mul(n).is_some_and(|size| size <= y.len));
    assert!(bias.is_none_or(|bias| bias.len() == n));
    let panels = n.div_ceil(WIDTH);
    if m == 0 || panels == 0 {
        return;
    }
    let run = |rows: Range<usize>, columns: Range<usize>| {
        Arch::new().dispatch(Part { x: &x, right, bias, y, rows, columns });
    };
    let threads = rayon::current_num_threads();
    if threads == 1 || m.saturating_mul(n).saturating_mul(k) < SERIAL {
        return run(0..m, 0..panels);
    }
    let (row_step, panel_step) = partition(m, panels, threads, R::UNPACKS);
    let across = panels.div_ceil(panel_step);
    (0..m.div_ceil(row_step) * across).into_par_iter().with_max_len(1).for_each(|part| {
        let (row, panel) = (part / across * row_step, part % across * panel_step);
        run(row..m.min(row + row_step), panel..panels.min(panel + panel_step));
    });
}

/// Rows and panels of one part. About three parts to a thread even out their speeds;
/// they are cut between rows, where panels need no unpacking and there are rows
/// enough, else between panels.
fn partition(m: usize, panels: usize, threads: usize, unpacks: bool) -> (usize, usize) {
    let wanted = 3 * threads;
    let rows = match unpacks {
        true => m.min(BLOCK_ROWS_UNPACKED),
        false => m.div_ceil(wanted).max(64).next_multiple_of(14),
    };
    let parts = m.div_ceil(rows);
    let across = if parts >= threads { 1 } else { wanted.div_ceil(parts) };
    (rows, panels.div_ceil(across))
}

thread_local! {
    /// Packed rows and unpacked panels; kept, because fresh pages cost more than filling them.
    static SCRATCH: RefCell<(Vec<f32>, Vec<Lanes>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// One thread's part of a product.
struct Part<'a, X, R> {
    x: &'a X,
    right: &'a R,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    rows: Range<usize>,
    /// Counted in panels.
    columns: Range<usize>,
}

impl<'x, X: Fn(usize) -> &'x [f32], R: Right> WithSimd for Part<'_, X, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Not inside `with_borrow_mut`: its closure would be compiled without `S`.
        let mut scratch = SCRATCH.take();
        self.run(simd, &mut scratch);
        SCRATCH.set(scratch);
    }
}

impl<'x, X: Fn(usize) -> &'x [f32], R: Right> Part<'_, X, R> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S, (packed, unpacked): &mut (Vec<f32>, Vec<Lanes>)) {
        let Self { x, right, bias, y, rows, columns } = self;
        let (n, k, height) = (right.n(), right.k(), tile_rows::<S>());
        let block_rows = if R::UNPACKS { BLOCK_ROWS_UNPACKED } else { BLOCK_ROWS };
        // Of equal height: a last one of a few rows would take all panels for itself.
        let blocks = rows.len().div_ceil(block_rows).max(1);
        let row_step = rows.len().div_ceil(blocks).next_multiple_of(height);
        let k_step = if R::UNPACKS && rows.len() <= height { BLOCK_K_ONCE } else { BLOCK_K };
        let k_step = k_step.min(k).next_multiple_of(CHUNK).max(CHUNK);
        let tile_len = packed_len(height, k_step);
        let tiles = rows.len().min(row_step).div_ceil(height);
        if packed.len() < tiles * tile_len {
            packed.resize(tiles * tile_len, 0.0);
        }
        if R::UNPACKS && unpacked.len() < k_step {
            unpacked.resize(k_step, Lanes::splat(0.0));
        }
        for top in rows.clone().step_by(row_step) {
            let block = top..rows.end.min(top + row_step);
            for start in (0..k).step_by(k_step) {
                let depth = start..k.min(start + k_step);
                for (packed, first) in
                    packed.chunks_exact_mut(tile_len).zip(block.clone().step_by(height))
                {
                    let tile = first..block.end.min(first + height);
                    pack_rows(packed, height, tile.map(|i| &x(i)[depth.clone()]));
                }
                for panel in columns.clone() {
                    let lanes = right.lanes(panel, depth.clone(), unpacked);
                    debug_assert_eq!(lanes.len(), depth.len());
                    for (packed, first) in
                        packed.chunks_exact(tile_len).zip(block.clone().step_by(height))
                    {
                        let tile = Tile {
                            rows: first..block.end.min(first + height),
                            panel,
                            add: start > 0,
                        };
                        tile.run(simd, packed, lanes, n, y);
                    }
                }
            }
            let own = columns.start * WIDTH..n.min(columns.end * WIDTH);
            for i in block {
                if k > 0 && bias.is_none() {
                    break;
                }
                // SAFETY: this part's own elements, written above unless `k` is 0.
                let row = unsafe { y.slice(i * n + own.start, own.len()) };
                if k == 0 {
                    row.fill(0.0);
                }
                if let Some(bias) = bias {
                    row.iter_mut().zip(&bias[own.clone()]).for_each(|(y, bias)| *y += bias);
                }
            }
        }
    }
}

/// The place of a tile in `y`.
struct Tile {
    rows: Range<usize>,
    panel: usize,
    add: bool,
}

impl Tile {
    /// Multiplies packed rows with a panel that may be narrower than its lanes.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S, packed: &[f32], lanes: &[Lanes], n: usize, y: Output) {
        let Self { rows, panel, add } = self;
        let height = tile_rows::<S>();
        assert!(rows.len() <= height && packed.len() >= packed_len(height, lanes.len()));
        let (left, k, right) =
            (Left::chunked(packed.as_ptr(), height), lanes.len(), lanes.as_ptr());
        let width = WIDTH.min(n - panel * WIDTH);
        let start = rows.start * n + panel * WIDTH;
        assert!(start + (rows.len() - 1) * n + width <= y.len);
        if width == WIDTH {
            // SAFETY: `packed` holds these rows and `lanes` as many elements, just checked;
            // the tile lies within `y`, where this part alone writes.
            unsafe {
                tile::<S, { Left::CHUNKED }>(simd, rows.len(), left, k, right, y.at(start), n, add)
            };
            return;
        }
        let mut edge = [Lanes::splat(0.0); 14];
        // SAFETY: this part's own elements.
        let row = |i: usize| unsafe { y.slice(start + i * n, width) };
        if add {
            // Written by the block of `k` before this one.
            edge.iter_mut()
                .enumerate()
                .take(rows.len())
                .for_each(|(i, edge)| edge.0[..width].copy_from_slice(row(i)));
        }
        // SAFETY: as above; `edge` has as many rows as any tile.
        unsafe {
            tile::<S, { Left::CHUNKED }>(
                simd,
                rows.len(),
                left,
                k,
                right,
                edge.as_mut_ptr().cast(),
                WIDTH,
                add,
            )
        };
        edge.iter()
            .enumerate()
            .take(rows.len())
            .for_each(|(i, edge)| row(i).copy_from_slice(&edge.0[..width]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panels::Panels;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// The product on a given instruction set.
    fn on<S: Simd>(simd: S, m: usize, x: &[f32], right: &Panels) -> Vec<f32> {
        let mut y = vec![f32::NAN; m * right.n()];
        let row = |i: usize| &x[i * right.k()..][..right.k()];
        let part = Part {
            x: &row,
            right,
            bias: None,
            y: Output::new(&mut y),
            rows: 0..m,
            columns: 0..right.n().div_ceil(WIDTH),
        };
        simd.vectorize(part);
        y
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for (m, n, k) in [(1, 32, 40), (14, 33, 641), (29, 95, 1300), (7, 64, 16)] {
            let (x, w) = (numbers(m * k, 1), numbers(n * k, 2));
            let right = Panels::pack(n, k, |j| &w[j * k..][..k]);
            let scalar = on(pulp::Scalar::new(), m, &x, &right);
            let chain = |i: usize, j: usize| {
                (0..k).fold(0f32, |sum, c| x[i * k + c].mul_add(w[j * k + c], sum))
            };
            for (index, y) in scalar.iter().enumerate() {
                assert_eq!(y.to_bits(), chain(index / n, index % n).to_bits());
            }
            #[cfg(target_arch = "x86_64")]
            {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    assert_eq!(on(simd, m, &x, &right), scalar);
                }
                if let Some(simd) = pulp::x86::V4::try_new() {
                    assert_eq!(on(simd, m, &x, &right), scalar);
                }
            }
        }
    }

    #[test]
    fn parts_cover_everything_once() {
        for (m, panels, threads) in [(1, 1, 2), (1, 96, 2), (512, 30, 2), (65, 3, 64), (2000, 7, 3)]
        {
            for unpacks in [false, true] {
                let (rows, columns) = partition(m, panels, threads, unpacks);
                assert!(rows >= 1 && columns >= 1 && columns <= panels, "{m} {panels} {threads}");
            }
        }
    }
}
