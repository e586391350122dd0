//! The lower triangle of `XXᵀ` in `f64`, from register tiles.
//!
//! A tile is 8 rows by 24 columns of the product. Both are rows of `X`, so that one packed copy of
//! `X`, `[panel][k][24]`, serves as either operand: a row of a panel is read as vectors for the
//! columns, and a third of it number by number for the rows. What lies above the diagonal is
//! computed in the tiles that the diagonal crosses, and nowhere else.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::math::vectorised;

/// Columns of a panel: three vectors, or six.
const WIDTH: usize = 24;
/// Rows of a tile.
const ROWS: usize = 8;
/// Longest block of `k`: its panel (30 KiB) stays in the first-level cache.
const DEPTH: usize = 160;
/// Most numbers of each row that are packed at a time: they bound the copy.
const SPAN: usize = 1024;
/// Rows that a thread takes at a time: whole panels.
const BLOCK: usize = 3 * WIDTH;

/// One row of a panel, on cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Lanes([f64; WIDTH]);

/// Rows `stride` apart, of which only what is left of the diagonal and on it is written; of `x`,
/// `n` rows of `d` numbers, `d ≥ 1`.
///
/// Each number is one chain of fused multiply–adds in ascending `k`, whatever the instruction set
/// and the number of threads.
pub(super) fn lower_triangle(x: &[f64], n: usize, d: usize, stride: usize) -> Vec<f64> {
    let mut lower = vec![0.0; stride * stride];
    let span = d.div_ceil(d.div_ceil(SPAN));
    let mut panels = vec![Lanes([0.0; WIDTH]); n.div_ceil(WIDTH) * span];
    for start in (0..d).step_by(span) {
        let depth = span.min(d - start);
        // Of rows that are not there, what is left from before: nobody wants their products.
        let panels = &mut panels[..n.div_ceil(WIDTH) * depth];
        let packed = panels.par_chunks_exact_mut(depth).zip(x.par_chunks(WIDTH * d));
        packed.for_each(|(panel, rows)| vectorised(|| transpose(panel, rows, d, start)));
        lower.par_chunks_mut(BLOCK * stride.max(1)).enumerate().for_each(|(block, to)| {
            let first = block * BLOCK;
            let rows = BLOCK.min(n.saturating_sub(first));
            Arch::new().dispatch(Fill { panels, d: depth, first, rows, stride, to });
        });
    }
    lower
}

/// `panel[k][j] = rows[j][start + k]`.
#[inline(always)]
fn transpose(panel: &mut [Lanes], rows: &[f64], d: usize, start: usize) {
    // Some numbers of a row at a time, so that whole cache lines are read.
    const PART: usize = 8;
    for (part, lanes) in panel.chunks_mut(PART).enumerate() {
        for (j, row) in rows.chunks_exact(d).enumerate() {
            for (lanes, value) in lanes.iter_mut().zip(&row[start + part * PART..]) {
                lanes.0[j] = *value;
            }
        }
    }
}

/// Adds to some rows the products of what is packed, `d` numbers of each row.
struct Fill<'a> {
    panels: &'a [Lanes],
    d: usize,
    first: usize,
    rows: usize,
    stride: usize,
    to: &'a mut [f64],
}

impl WithSimd for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panels, d, first, rows, stride, to } = self;
        // Of equal depth: a last one of a few steps would cost reading and writing all sums.
        let step = d.div_ceil(d.div_ceil(DEPTH));
        for start in (0..d).step_by(step) {
            let depth = start..d.min(start + step);
            for (number, panel) in panels.chunks_exact(d).enumerate() {
                let left = number * WIDTH;
                if left >= first + rows {
                    break;
                }
                let right = &panel[depth.clone()];
                // The tiles that reach down to the diagonal.
                for top in (first.max(left / ROWS * ROWS)..first + rows).step_by(ROWS) {
                    let own = &panels[top / WIDTH * d..][depth.clone()];
                    let third = top % WIDTH / ROWS;
                    let height = ROWS.min(first + rows - top);
                    let to = &mut to[(top - first) * stride + left..];
                    if height == ROWS && left + WIDTH <= top + 1 {
                        add(simd, own, third, right, to, stride);
                        continue;
                    }
                    // Across the diagonal, or over the end.
                    let mut sums = [0.0; ROWS * WIDTH];
                    for (i, sums) in sums.chunks_exact_mut(WIDTH).enumerate().take(height) {
                        let width = WIDTH.min(top + i + 1 - left);
                        sums[..width].copy_from_slice(&to[i * stride..][..width]);
                    }
                    add(simd, own, third, right, &mut sums, WIDTH);
                    for (i, sums) in sums.chunks_exact(WIDTH).enumerate().take(height) {
                        let width = WIDTH.min(top + i + 1 - left);
                        to[i * stride..][..width].copy_from_slice(&sums[..width]);
                    }
                }
            }
        }
    }
}

/// `to[i · stride + j] += Σ_k left[k][8 · third + i] right[k][j]`.
#[inline(always)]
fn add<S: Simd>(
    simd: S,
    left: &[Lanes],
    third: usize,
    right: &[Lanes],
    to: &mut [f64],
    stride: usize,
) {
    macro_rules! of {
        ($rows:literal) => {
            for part in 0..ROWS / $rows {
                let own = third * (ROWS / $rows) + part;
                for column in (0..WIDTH).step_by(3 * S::F64_LANES) {
                    let to = &mut to[part * $rows * stride + column..];
                    registers::<S, $rows>(simd, left, own, right, column, to, stride);
                }
            }
        };
    }
    // Sums, one row of the panel and one broadcast fill the register file.
    if S::F64_LANES == 8 {
        of!(8);
    } else {
        of!(4);
    }
}

/// The tile itself: `R` rows, the panel's group `own` of so many, by three vectors from `column` on.
#[inline(always)]
fn registers<S: Simd, const R: usize>(
    simd: S,
    left: &[Lanes],
    own: usize,
    right: &[Lanes],
    column: usize,
    to: &mut [f64],
    stride: usize,
) {
    let width = 3 * S::F64_LANES;
    let mut sums = [[simd.splat_f64s(0.0); 3]; R];
    for (i, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&S::as_simd_f64s(&to[i * stride..][..width]).0[..3]);
    }
    for (a, b) in left.iter().zip(right) {
        let a = &a.0.as_chunks::<R>().0[own];
        let b = S::as_simd_f64s(&b.0[column..][..width]).0;
        let b: [S::f64s; 3] = [b[0], b[1], b[2]];
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f64s(*a);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_f64s(a, b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        S::as_mut_simd_f64s(&mut to[i * stride..][..width]).0[..3].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product on a given instruction set.
    fn on<S: Simd>(simd: S, panels: &[Lanes], n: usize, d: usize, stride: usize) -> Vec<f64> {
        let mut to = vec![0.0; stride * stride];
        simd.vectorize(Fill { panels, d, first: 0, rows: n, stride, to: &mut to });
        to
    }

    #[test]
    fn every_number_is_one_chain_on_every_instruction_set() {
        for (n, d) in
            [(1_usize, 1_usize), (8, 3), (23, 7), (25, 40), (97, 321), (150, 700), (30, 2100)]
        {
            let x: Vec<f64> = (0..n * d).map(|i| ((i * 37 % 101) as f64).sin()).collect();
            let stride = n.next_multiple_of(8);
            let expected = |i: usize, j: usize| match i < n && j <= i {
                true => (0..d).fold(0.0_f64, |sum, k| x[i * d + k].mul_add(x[j * d + k], sum)),
                false => 0.0,
            };
            let check = |found: Vec<f64>| {
                for (index, value) in found.iter().enumerate() {
                    let (i, j) = (index / stride, index % stride);
                    assert_eq!(value.to_bits(), expected(i, j).to_bits(), "{n} {d}: {i} {j}");
                }
            };
            check(lower_triangle(&x, n, d, stride));
            let mut panels = vec![Lanes([0.0; WIDTH]); n.div_ceil(WIDTH) * d];
            for (panel, rows) in panels.chunks_exact_mut(d).zip(x.chunks(WIDTH * d)) {
                transpose(panel, rows, d, 0);
            }
            check(on(pulp::Scalar::new(), &panels, n, d, stride));
            #[cfg(target_arch = "x86_64")]
            {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    check(on(simd, &panels, n, d, stride));
                }
                if let Some(simd) = pulp::x86::V4::try_new() {
                    check(on(simd, &panels, n, d, stride));
                }
            }
        }
    }
}
