//! Products with the stored triangle, and sums over it. Every weight is read once.

use super::{LANES, ROWS, SymmetricGraph, Tile, widen};

pub(super) struct Product<'a> {
    pub(super) graph: &'a SymmetricGraph,
    pub(super) x: &'a [f64],
    pub(super) y: &'a mut [f64],
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
pub(super) struct BlockProduct<'a> {
    pub(super) graph: &'a SymmetricGraph,
    pub(super) x: &'a [[f64; LANES]],
    pub(super) y: &'a mut [[f64; LANES]],
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
pub(super) struct NarrowProduct<'a, const C: usize> {
    pub(super) graph: &'a SymmetricGraph,
    pub(super) x: &'a [f32],
    pub(super) y: &'a mut [f32],
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

pub(super) struct SumBelowDiagonal<'a, F> {
    pub(super) graph: &'a SymmetricGraph,
    pub(super) term: F,
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
