//! Matrix products from register tiles, under [`linear`](crate::linear) and
//! [`attention`](crate::attention).
//!
//! A tile is a few rows of the left operand times one *panel*, 32 columns of the
//! right operand stored `[k][32]`. Its sums stay in registers over a whole block
//! of `k`. Each output element is therefore one chain of fused multiply–adds in
//! ascending `k`, cut at block ends that depend on `k` alone. That chain is the
//! same whichever rows share the tile, however many threads work, and however
//! wide the registers are: the bits of a row never depend on its neighbours, and
//! a product with one row needs no path of its own.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Columns of a panel.
pub(crate) const WIDTH: usize = 32;

/// One row of a panel. Aligned so that no vector load crosses a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [f32; WIDTH]);

impl Lanes {
    pub(crate) const fn splat(value: f32) -> Self {
        Self([value; WIDTH])
    }
}

/// Consecutive `k` that a packed row keeps together.
const CHUNK: usize = 16;
/// Longest block of `k`: its panel (80 KiB) stays in the second-level cache.
const BLOCK_K: usize = 640;
/// Rows of the left operand that are packed at a time, about.
const BLOCK_ROWS: usize = 256;
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
/// `start[k / chunk · chunk_step + k % chunk · k_step + row · ROW_STEP]`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    start: *const f32,
    chunk: usize,
    chunk_step: usize,
    k_step: usize,
}

impl Left {
    /// `ROW_STEP` of [`Left::chunked`].
    pub(crate) const CHUNKED: usize = CHUNK;
    /// `ROW_STEP` of [`Left::interleaved`].
    pub(crate) const INTERLEAVED: usize = 1;

    /// Rows packed by [`pack_rows`] for tiles of `rows` rows.
    pub(crate) fn chunked(start: *const f32, rows: usize) -> Self {
        Self { start, chunk: CHUNK, chunk_step: rows * CHUNK, k_step: 1 }
    }

    /// All rows of one `k` beside one another, `[k][rows]`.
    pub(crate) fn interleaved(start: *const f32, rows: usize) -> Self {
        Self { start, chunk: usize::MAX, chunk_step: 0, k_step: rows }
    }
}

/// `C[i][j] = (add ? C[i][j] : 0) + Σ_k A[i][k] B[k][j]` for `rows` rows and the 32
/// columns of a panel; row `i` of `C` starts at `c + i · stride`.
///
/// # Safety
///
/// `rows` is at most [`tile_rows`]; `left` is readable for `rows` rows of `k`
/// elements with this `ROW_STEP`, `right` for `k` lanes, and `c` is valid for
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
            let mut a = chunk;
            for _ in 0..steps {
                let mut b = [simd.splat_f32s(0.0); VECTORS];
                for (v, b) in b.iter_mut().enumerate() {
                    *b = right.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = simd.splat_f32s(*a.add(i * ROW_STEP));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = simd.mul_add_f32s(a, b, *sum);
                    }
                }
                right = right.wrapping_add(WIDTH);
                a = a.wrapping_add(left.k_step);
            }
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

/// Blocks of `k`: start and length. They depend on `k` alone.
fn blocks(k: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = k.div_ceil(BLOCK_K).max(1);
    let step = k.div_ceil(count).next_multiple_of(CHUNK).max(CHUNK);
    (0..k).step_by(step).map(move |start| (start, step.min(k - start)))
}

/// The right operand, `n` columns of `k` elements, packed once for many products:
/// `[block of k][panel][k within the block][32]`, the last panel filled up with zeros.
pub(crate) struct Panels {
    lanes: Vec<Lanes>,
    n: usize,
    k: usize,
}

impl Panels {
    /// Packs the transpose of a matrix whose row `j`, of `k` elements, `row(j)` returns.
    pub(crate) fn pack<'a>(n: usize, k: usize, row: impl Fn(usize) -> &'a [f32] + Sync) -> Self {
        let count = n.div_ceil(WIDTH);
        let mut lanes = vec![Lanes::splat(0.0); count * k];
        let mut rest = lanes.as_mut_slice();
        for (start, len) in blocks(k) {
            let (block, tail) = rest.split_at_mut(count * len);
            rest = tail;
            block.par_chunks_exact_mut(len).enumerate().for_each(|(panel, lanes)| {
                for lane in 0..WIDTH.min(n - panel * WIDTH) {
                    let source = &row(panel * WIDTH + lane)[start..start + len];
                    for (lanes, &value) in lanes.iter_mut().zip(source) {
                        lanes.0[lane] = value;
                    }
                }
            });
        }
        Self { lanes, n, k }
    }

    /// Several right operands with equal `k` as one, columns behind one another.
    pub(crate) fn concat(parts: &[&Self]) -> Option<Self> {
        let (last, rest) = parts.split_last()?;
        let (n, k) = (parts.iter().map(|part| part.n).sum(), last.k);
        if parts.iter().any(|part| part.k != k) {
            return None;
        }
        if rest.iter().all(|part| part.n % WIDTH == 0) {
            let mut lanes = Vec::with_capacity(usize::div_ceil(n, WIDTH) * k);
            for (start, len) in blocks(k) {
                for part in parts {
                    let count = part.n.div_ceil(WIDTH);
                    lanes.extend_from_slice(&part.lanes[start * count..][..len * count]);
                }
            }
            return Some(Self { lanes, n, k });
        }
        let rows: Vec<Vec<f32>> =
            parts.iter().flat_map(|part| (0..part.n).map(|j| part.column(j).collect())).collect();
        Some(Self::pack(n, k, |j| &rows[j]))
    }

    /// Number of columns.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Length of a column.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Column `j`, unpacked.
    pub(crate) fn column(&self, j: usize) -> impl Iterator<Item = f32> {
        let (count, panel, lane) = (self.n.div_ceil(WIDTH), j / WIDTH, j % WIDTH);
        blocks(self.k).flat_map(move |(start, len)| {
            let lanes = &self.lanes[start * count + panel * len..][..len];
            lanes.iter().map(move |lanes| lanes.0[lane])
        })
    }

    /// The blocks of one panel: where in `k` each begins, and its lanes.
    pub(crate) fn blocks_of(&self, panel: usize) -> impl Iterator<Item = (usize, &[Lanes])> {
        blocks(self.k).map(move |block| (block.0, self.block(block, panel)))
    }

    fn block(&self, (start, len): (usize, usize), panel: usize) -> &[Lanes] {
        &self.lanes[start * self.n.div_ceil(WIDTH) + panel * len..][..len]
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
    write(Output { start: values.as_mut_ptr(), len, lifetime: PhantomData });
    // SAFETY: the capacity is there, and every element was written.
    unsafe { values.set_len(len) };
    values
}

/// `y = x B + bias`: row `i` of `x` is `x(i)`, row `i` of `y` starts at `i · n`.
///
/// Writes all `m · n` elements of `y` before it reads any.
pub(crate) fn multiply<'x, X>(m: usize, x: X, panels: &Panels, bias: Option<&[f32]>, y: Output)
where
    X: Fn(usize) -> &'x [f32] + Sync,
{
    assert!(m.checked_mul(panels.n).is_some_and(|size| size <= y.len));
    assert!(bias.is_none_or(|bias| bias.len() == panels.n));
    let count = panels.n.div_ceil(WIDTH);
    let threads = rayon::current_num_threads();
    let serial = threads == 1 || m * panels.n * panels.k < SERIAL;
    let (row_step, panel_step) = if serial { (m, count) } else { partition(m, count, threads) };
    if m == 0 || count == 0 {
        return;
    }
    let run = |rows: Range<usize>, panels_: Range<usize>| {
        Arch::new().dispatch(Part { x: &x, panels, bias, y, rows, columns: panels_ });
    };
    if row_step >= m && panel_step >= count {
        return run(0..m, 0..count);
    }
    let across = count.div_ceil(panel_step);
    (0..m.div_ceil(row_step) * across).into_par_iter().with_max_len(1).for_each(|part| {
        let (row, panel) = (part / across * row_step, part % across * panel_step);
        run(row..m.min(row + row_step), panel..count.min(panel + panel_step));
    });
}

/// Rows and panels of one part: by rows if there are enough of them for every
/// thread, else by panels too. About three parts to a thread even out their speeds.
fn partition(m: usize, panels: usize, threads: usize) -> (usize, usize) {
    let wanted = 3 * threads;
    let row_step = m.div_ceil(wanted).max(64).next_multiple_of(14);
    let across = wanted.div_ceil(m.div_ceil(row_step));
    let panel_step = if m.div_ceil(row_step) >= threads { panels } else { panels.div_ceil(across) };
    (row_step, panel_step.max(1))
}

thread_local! {
    /// Packed rows; kept, because fresh pages cost more than filling them.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// One thread's part of a product.
struct Part<'a, X> {
    x: &'a X,
    panels: &'a Panels,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<'x, X: Fn(usize) -> &'x [f32]> WithSimd for Part<'_, X> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Not inside `with_borrow_mut`: its closure would be compiled without `S`.
        let mut packed = PACKED.take();
        self.run(simd, &mut packed);
        PACKED.set(packed);
    }
}

impl<'x, X: Fn(usize) -> &'x [f32]> Part<'_, X> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S, packed: &mut Vec<f32>) {
        let Self { x, panels, bias, y, rows, columns } = self;
        let (n, height) = (panels.n, tile_rows::<S>());
        let step = BLOCK_ROWS / height * height;
        let tile_len = packed_len(height, BLOCK_K.min(panels.k));
        let tiles = rows.len().min(step).div_ceil(height);
        if packed.len() < tiles * tile_len {
            packed.resize(tiles * tile_len, 0.0);
        }
        for top in rows.clone().step_by(step) {
            let bottom = rows.end.min(top + step);
            for block in blocks(panels.k) {
                let (start, len) = block;
                for (packed, first) in
                    packed.chunks_exact_mut(tile_len).zip((top..bottom).step_by(height))
                {
                    let tile = first..bottom.min(first + height);
                    pack_rows(packed, height, tile.map(|i| &x(i)[start..start + len]));
                }
                for panel in columns.clone() {
                    let right = panels.block(block, panel);
                    let width = WIDTH.min(n - panel * WIDTH);
                    for (packed, first) in
                        packed.chunks_exact(tile_len).zip((top..bottom).step_by(height))
                    {
                        let rows = height.min(bottom - first);
                        let left = Left::chunked(packed.as_ptr(), height);
                        let (c, add) = (y.at(first * n + panel * WIDTH), start > 0);
                        if width == WIDTH {
                            // SAFETY: `packed` holds these rows, `right` has `len` lanes, and the
                            // tile lies within `y`, where this part alone writes.
                            unsafe {
                                tile::<S, { Left::CHUNKED }>(
                                    simd,
                                    rows,
                                    left,
                                    len,
                                    right.as_ptr(),
                                    c,
                                    n,
                                    add,
                                );
                            }
                            continue;
                        }
                        let mut edge = [Lanes::splat(0.0); 14];
                        for (i, edge) in edge.iter_mut().enumerate().take(rows) {
                            if add {
                                // SAFETY: this part's own elements, written by the block before.
                                let row =
                                    unsafe { y.slice((first + i) * n + panel * WIDTH, width) };
                                edge.0[..width].copy_from_slice(row);
                            }
                        }
                        // SAFETY: as above, with `edge` for the output.
                        unsafe {
                            let c = edge.as_mut_ptr().cast();
                            tile::<S, { Left::CHUNKED }>(
                                simd,
                                rows,
                                left,
                                len,
                                right.as_ptr(),
                                c,
                                WIDTH,
                                add,
                            );
                        }
                        for (i, edge) in edge.iter().enumerate().take(rows) {
                            // SAFETY: this part's own elements.
                            let row = unsafe { y.slice((first + i) * n + panel * WIDTH, width) };
                            row.copy_from_slice(&edge.0[..width]);
                        }
                    }
                }
            }
            let own = columns.start * WIDTH..n.min(columns.end * WIDTH);
            for i in top..bottom {
                if panels.k > 0 && bias.is_none() {
                    break;
                }
                // SAFETY: this part's own elements, written above unless `k` is 0.
                let row = unsafe { y.slice(i * n + own.start, own.len()) };
                if panels.k == 0 {
                    row.fill(0.0);
                }
                if let Some(bias) = bias {
                    row.iter_mut().zip(&bias[own.clone()]).for_each(|(y, bias)| *y += bias);
                }
            }
        }
    }
}
