//! Weights from patterns: a block of eight rows at a time.

use std::ops::Range;

use super::{LANES, PatternView, ROWS, SymmetricGraph, Tile, widen};
use crate::{Error, Result};

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Reads {
    /// `W_ij = ½A_ij` below the diagonal, which holds where `A` is causal.
    LowerTriangle,
    Both,
}

/// Fills one block of rows, and says whether the patterns are causal there.
pub(super) struct Fill<'a> {
    pub(super) patterns: &'a [PatternView<'a>],
    pub(super) block: usize,
    pub(super) tiles: &'a mut [Tile],
    pub(super) reads: Reads,
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
pub(super) struct Mean<'a> {
    pub(super) graphs: &'a [&'a SymmetricGraph],
    pub(super) start: usize,
    pub(super) tiles: &'a mut [Tile],
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
