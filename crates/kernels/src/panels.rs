//! Right operands of products, stored in the order in which tiles read them.

use std::ops::Range;

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

/// The right operand of a product: `n` columns of `k` elements, in panels of 32.
pub(crate) trait Right: Sync {
    /// Whether [`lanes`](Self::lanes) works, and is better not called twice.
    const UNPACKS: bool;

    /// Number of columns.
    fn n(&self) -> usize;

    /// Length of a column.
    fn k(&self) -> usize;

    /// The elements of a panel with these `k`, in lanes; `scratch` has room for them. The
    /// lanes of the last panel beyond the last column are finite.
    fn lanes<'a>(
        &'a self,
        panel: usize,
        depth: Range<usize>,
        scratch: &'a mut [Lanes],
    ) -> &'a [Lanes];
}

/// Panels in `f32`: `[panel][k][32]`, the last panel filled up with zeros.
pub(crate) struct Panels {
    lanes: Vec<Lanes>,
    n: usize,
    k: usize,
}

impl Panels {
    /// Packs the transpose of a matrix whose row `j`, of `k` elements, `row(j)` returns.
    pub(crate) fn pack<'a>(n: usize, k: usize, row: impl Fn(usize) -> &'a [f32] + Sync) -> Self {
        let mut lanes = vec![Lanes::splat(0.0); n.div_ceil(WIDTH) * k];
        lanes.par_chunks_exact_mut(k.max(1)).enumerate().for_each(|(panel, lanes)| {
            let rows: [&[f32]; WIDTH] = std::array::from_fn(|lane| {
                let j = panel * WIDTH + lane;
                if j < n { row(j) } else { &[] }
            });
            transpose(lanes, &rows);
        });
        Self { lanes, n, k }
    }

    /// Several right operands with equal `k` as one, columns behind one another.
    pub(crate) fn concat(parts: &[&Self]) -> Option<Self> {
        let (last, rest) = parts.split_last()?;
        let (n, k) = (parts.iter().map(|part| part.n).sum(), last.k);
        if parts.iter().any(|part| part.k != k) {
            return None;
        }
        if rest.iter().all(|part| part.n.is_multiple_of(WIDTH)) {
            let lanes = parts.iter().flat_map(|part| &part.lanes).copied().collect();
            return Some(Self { lanes, n, k });
        }
        let rows: Vec<Vec<f32>> =
            parts.iter().flat_map(|part| (0..part.n).map(|j| part.column(j).collect())).collect();
        Some(Self::pack(n, k, |j| &rows[j]))
    }

    /// Column `j`.
    pub(crate) fn column(&self, j: usize) -> impl Iterator<Item = f32> {
        self.panel(j / WIDTH).iter().map(move |lanes| lanes.0[j % WIDTH])
    }

    /// All lanes of a panel.
    pub(crate) fn panel(&self, panel: usize) -> &[Lanes] {
        &self.lanes[panel * self.k..][..self.k]
    }
}

/// `lanes[i][lane] = rows[lane][i]` for the rows that are not empty, all equally long.
fn transpose(lanes: &mut [Lanes], rows: &[&[f32]; WIDTH]) {
    // A few cache lines at a time.
    const STEP: usize = 16;
    for (block, lanes) in lanes.chunks_mut(STEP).enumerate() {
        for (lane, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
            for (lanes, &value) in lanes.iter_mut().zip(&row[block * STEP..]) {
                lanes.0[lane] = value;
            }
        }
    }
}

impl Right for Panels {
    const UNPACKS: bool = false;

    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    #[inline(always)]
    fn lanes<'a>(&'a self, panel: usize, depth: Range<usize>, _: &'a mut [Lanes]) -> &'a [Lanes] {
        &self.panel(panel)[depth]
    }
}
