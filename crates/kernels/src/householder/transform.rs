//! Products with the orthogonal matrix `Q` that the reflections make up.
//!
//! Reflections are joined in blocks, `Π (1 − f_k v_k v_kᵀ) = 1 − U Vᵀ`, so that a block is two
//! products of matrices.
//!
//! The decision that shapes this file: in `f32` a few columns go through all blocks before the
//! next ones do. They stay in the second-level cache, in the panels in which products
//! read them; what comes from afar are the reflections, once for each group of columns.

#![allow(unsafe_code)]

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Columns, Reduced, TILE, combine, products};
use crate::eigh::Real;
use crate::math::vectorised;
use crate::panels::{Lanes, Panels, WIDTH};
use crate::product::{Left, best_tile_rows, pack_rows, packed_len, tile, tile_rows};

/// Reflections in a block: whole tiles of rows, whatever the instruction set.
const BLOCK: usize = 42;
/// Bytes of columns that go through all blocks together.
const GROUP: usize = 256 << 10;

/// What columns are multiplied by from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `Q`.
    Plain,
    /// `Qᵀ`.
    Transposed,
}

impl<T: Real> Reduced<T> {
    /// The blocks in the order in which columns meet them.
    fn blocks(&self, side: Side) -> Vec<Range<usize>> {
        let end = self.diagonal.len().saturating_sub(1);
        let mut blocks: Vec<_> =
            (0..end).step_by(BLOCK).map(|start| start..end.min(start + BLOCK)).collect();
        if side == Side::Plain {
            blocks.reverse();
        }
        blocks
    }

    /// `V` and `−U` of a block as what comes first in a product, transposed, and what comes last.
    fn factors<'a>(&'a self, side: Side, block: &Range<usize>, u: &'a [T]) -> [&'a [T]; 2] {
        let v = &self.reflections.all()[block.start * self.reflections.stride..];
        match side {
            Side::Plain => [v, u],
            Side::Transposed => [u, v],
        }
    }

    /// `Q z`.
    pub(crate) fn take_one_back(&self, z: &[T]) -> Vec<T> {
        let mut column = Columns::zeros(z.len(), 1);
        column.column_mut(0)[..z.len()].copy_from_slice(z);
        Arch::new().dispatch(One { reduced: self, column: &mut column });
        column.column(0)[..z.len()].to_vec()
    }
}

/// Multiplies one column by `Q`.
struct One<'a, T> {
    reduced: &'a Reduced<T>,
    column: &'a mut Columns<T>,
}

impl<T: Real> WithSimd for One<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { reduced, column } = self;
        let n = reduced.diagonal.len();
        let stride = reduced.reflections.stride;
        for k in (0..n.saturating_sub(1)).rev() {
            let rows = (k + 1) / TILE * TILE..n.next_multiple_of(TILE);
            let v = reduced.reflections.column(k);
            let y = &mut column.column_mut(0)[rows.clone()];
            let mut along = [T::default()];
            products(simd, v, stride, y, rows.start, &mut along);
            let along = T::of(0.0) - reduced.factors[k] * along[0];
            combine(simd, v, stride, &[along], rows.start, y);
        }
    }
}

/// Fills `u` with `−U` of a block.
struct Joined<'a, T> {
    reduced: &'a Reduced<T>,
    block: Range<usize>,
    u: &'a mut [T],
}

impl<T: Real> WithSimd for Joined<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { reduced, block, u } = self;
        let stride = reduced.reflections.stride;
        let rows = block.start / TILE * TILE..reduced.diagonal.len().next_multiple_of(TILE);
        let mut found = [T::default(); BLOCK];
        let v = &reduced.reflections.all()[block.start * stride..];
        for (i, k) in block.enumerate() {
            let own = &reduced.reflections.column(k)[rows.clone()];
            products(simd, v, stride, own, rows.start, &mut found[..i]);
            let (before, to) = u.split_at_mut(i * stride);
            let to = &mut to[rows.clone()];
            to.copy_from_slice(own);
            combine(simd, before, stride, &found[..i], rows.start, to);
            let factor = T::of(0.0) - reduced.factors[k];
            to.iter_mut().for_each(|u| *u *= factor);
        }
    }
}

impl Reduced<f64> {
    /// Multiplies the columns of `z` by `Q` or its transpose.
    pub(crate) fn multiply(&self, side: Side, mut z: MatMut<'_, f64>) {
        let n = self.diagonal.len();
        let mut u = Columns::zeros(n, BLOCK);
        let stride = u.stride;
        for block in self.blocks(side) {
            let to = &mut u.memory[u.start..];
            Arch::new().dispatch(Joined { reduced: self, block: block.clone(), u: to });
            let [left, right] = self.factors(side, &block, u.all()).map(|columns| {
                let columns: MatRef<'_, f64> =
                    MatRef::from_column_major_slice_with_stride(columns, n, block.len(), stride);
                columns.subrows(block.start + 1, n - block.start - 1)
            });
            let z = z.rb_mut().subrows_mut(block.start + 1, n - block.start - 1);
            let mut products = Mat::zeros(block.len(), z.ncols());
            let below = z.rb();
            matmul(products.as_mut(), Accum::Replace, left.transpose(), below, 1.0, Par::Seq);
            matmul(z, Accum::Add, right, products.as_ref(), 1.0, Par::Seq);
        }
    }

    /// Multiplies columns that are one after another by `Q`.
    pub(super) fn take_back_wide(&self, z: &mut [f64]) {
        let n = self.diagonal.len();
        if let Some(columns) = z.len().checked_div(n) {
            self.multiply(Side::Plain, MatMut::from_column_major_slice_mut(z, n, columns));
        }
    }
}

impl Reduced<f32> {
    /// Multiplies the columns in `panels` by `Q` or its transpose. Each number is a chain of
    /// operations of its own: no bit depends on the columns beside it, nor on threads.
    pub(crate) fn multiply(&self, side: Side, panels: &mut Panels) {
        let n = self.diagonal.len();
        assert_eq!(panels.depth(), n);
        if n < 2 {
            return;
        }
        let mut u = Columns::zeros(n, n - 1);
        let (stride, height) = (u.stride, best_tile_rows());
        let blocks = self.blocks(side);
        for block in &blocks {
            let to = &mut u.memory[u.start + block.start * stride..];
            Arch::new().dispatch(Joined { reduced: self, block: block.clone(), u: to });
        }
        let blocks: Vec<Block<'_>> = blocks
            .into_iter()
            .map(|block| {
                let own = &u.all()[block.start * stride..];
                let [left, right] = self.factors(side, &block, own);
                let (first, count) = (block.start + 1, block.len());
                let tile_len = packed_len(height, n - first);
                let mut packed = vec![0.0; count.div_ceil(height) * tile_len];
                for (tile, top) in packed.chunks_exact_mut(tile_len).zip((0..).step_by(height)) {
                    let rows = top..count.min(top + height);
                    let row = |k: usize| &left[k * stride + first..][..n - first];
                    vectorised(|| pack_rows(tile, height, rows.map(row)));
                }
                Block { first, count, left: packed, right, stride }
            })
            .collect();
        let group = (GROUP / (n * size_of::<Lanes>())).max(1) * n;
        panels.lanes_mut().par_chunks_mut(group).for_each(|lanes| {
            Arch::new().dispatch(Through { n, blocks: &blocks, lanes });
        });
    }

    /// Multiplies columns that are one after another by `Q`.
    pub(super) fn take_back_narrow(&self, z: &mut [f32]) {
        let n = self.diagonal.len();
        if n < 2 {
            return;
        }
        let mut panels = Panels::pack(z.len() / n, n, |k| &z[k * n..][..n]);
        self.multiply(Side::Plain, &mut panels);
        panels.unpack(z);
    }
}

/// Reflections that are joined, for products in `f32`.
struct Block<'a> {
    /// The first row that they change.
    first: usize,
    count: usize,
    /// For the product with the columns: rows from `first` on, as tiles of rows.
    left: Vec<f32>,
    /// For the sum: columns, `stride` apart.
    right: &'a [f32],
    stride: usize,
}

/// Takes columns, panels of `n` rows, through all blocks.
struct Through<'a> {
    n: usize,
    blocks: &'a [Block<'a>],
    lanes: &'a mut [Lanes],
}

impl WithSimd for Through<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { n, blocks, lanes } = self;
        let height = tile_rows::<S>();
        let mut products = vec![Lanes::splat(0.0); lanes.len() / n * BLOCK];
        for Block { first, count, left, right, stride } in blocks {
            let (first, count, stride) = (*first, *count, *stride);
            let depth = n - first;
            let tile_len = packed_len(height, depth);
            assert!(count <= BLOCK && left.len() >= count.div_ceil(height) * tile_len);
            assert!(right.len() >= (count - 1) * stride + n);
            for (packed, top) in left.chunks_exact(tile_len).zip((0..count).step_by(height)) {
                let left = Left::chunked(packed.as_ptr(), height);
                let rows = height.min(count - top);
                let panels = lanes.chunks_exact(n).zip(products.chunks_exact_mut(BLOCK));
                for (panel, products) in panels {
                    let (panel, to) =
                        (panel[first..].as_ptr(), products[top..][..rows].as_mut_ptr());
                    // SAFETY: `packed` holds a whole tile of `depth` elements, the panel has as
                    // many lanes from `first` on, and `to` points to `rows` of them.
                    unsafe {
                        tile::<S, { Left::CHUNKED }>(
                            simd,
                            rows,
                            left,
                            depth,
                            panel,
                            to.cast(),
                            WIDTH,
                            false,
                        )
                    };
                }
            }
            for top in (first..n).step_by(height) {
                let left = Left::columns(right[top..].as_ptr(), stride);
                let rows = height.min(n - top);
                let panels = lanes.chunks_exact_mut(n).zip(products.chunks_exact(BLOCK));
                for (panel, products) in panels {
                    let to = panel[top..][..rows].as_mut_ptr();
                    // SAFETY: `right` holds rows up to `n` of `count` columns, `products` as many
                    // lanes, and `to` points to `rows` of them.
                    unsafe {
                        tile::<S, { Left::COLUMNS }>(
                            simd,
                            rows,
                            left,
                            count,
                            products.as_ptr(),
                            to.cast(),
                            WIDTH,
                            true,
                        )
                    };
                }
            }
        }
    }
}
