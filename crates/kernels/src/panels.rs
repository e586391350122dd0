//! Right operands of products, stored in the order in which tiles read them.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::math::vectorised;
use crate::memory::prefer_large_pages;

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

/// Where a matrix holds what is not a finite number, and what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NonFinite {
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) value: f32,
}

/// Columns of a matrix that are read at a time: whole blocks of every quantized format.
const SPAN: usize = 256;
/// One row of them; longer, so that 32 rows do not meet in few sets of the cache.
type Span = [f32; SPAN + 16];

/// Panels in `f32`: `[panel][k][32]`, the last panel filled up with zeros.
pub(crate) struct Panels {
    lanes: Vec<Lanes>,
    n: usize,
    k: usize,
}

impl Panels {
    /// Packs the transpose of a matrix whose row `j`, of `k` elements, `row(j)` returns.
    pub(crate) fn pack<'a>(n: usize, k: usize, row: impl Fn(usize) -> &'a [f32] + Sync) -> Self {
        Self::build(n, k, &|j, columns, out| out.copy_from_slice(&row(j)[columns])).0
    }

    /// Packs a matrix of `k` rows as it is: `write(i, columns, out)` writes these columns of row `i`.
    #[inline(always)]
    pub(crate) fn of_rows(
        n: usize,
        k: usize,
        write: impl Fn(usize, Range<usize>, &mut [f32]),
    ) -> Self {
        let mut lanes = vec![Lanes::splat(0.0); n.div_ceil(WIDTH) * k];
        for i in 0..k {
            for (panel, lanes) in lanes[i..].iter_mut().step_by(k).enumerate() {
                let columns = panel * WIDTH..n.min((panel + 1) * WIDTH);
                write(i, columns.clone(), &mut lanes.0[..columns.len()]);
            }
        }
        Self { lanes, n, k }
    }

    /// As [`pack`](Self::pack), of rows that `read(row, columns, out)` reads in parts, which
    /// begin at multiples of 256; with the place of the first number that is not finite, in
    /// row-major order.
    pub(crate) fn read(
        n: usize,
        k: usize,
        read: &(impl Fn(usize, Range<usize>, &mut [f32]) + Sync),
    ) -> Result<Self, NonFinite> {
        let (panels, finite) = Self::build(n, k, read);
        let first = |row: usize| {
            let mut numbers = panels.column(row).enumerate();
            let bad = numbers.find(|(_, value)| !value.is_finite());
            bad.map(|(column, value)| NonFinite { row, column, value })
        };
        if finite {
            return Ok(panels);
        }
        (0..n).find_map(first).map_or(Ok(()), Err)?;
        Ok(panels)
    }

    /// The panels, and whether all numbers are finite.
    fn build(
        n: usize,
        k: usize,
        read: &(impl Fn(usize, Range<usize>, &mut [f32]) + Sync),
    ) -> (Self, bool) {
        let len = n.div_ceil(WIDTH) * k;
        // Not cleared first: that would be one more pass over the memory.
        let mut lanes: Vec<Lanes> = Vec::with_capacity(len);
        prefer_large_pages(&mut lanes.spare_capacity_mut()[..len]);
        let scratch = || Box::new([[0.0; SPAN + 16]; WIDTH]);
        let finite = lanes.spare_capacity_mut()[..len]
            .par_chunks_exact_mut(k.max(1))
            .enumerate()
            .map_init(scratch, |scratch, (panel, lanes)| {
                let rows = panel * WIDTH..n.min((panel + 1) * WIDTH);
                scratch[rows.len()..].iter_mut().for_each(|row| row.fill(0.0));
                let mut finite = true;
                for (part, lanes) in lanes.chunks_mut(SPAN).enumerate() {
                    let columns = part * SPAN..part * SPAN + lanes.len();
                    for (j, out) in rows.clone().zip(scratch.iter_mut()) {
                        read(j, columns.clone(), &mut out[..columns.len()]);
                    }
                    finite &= vectorised(|| transpose(lanes, scratch));
                }
                finite
            })
            .reduce(|| true, |a, b| a && b);
        // SAFETY: the capacity is there, and every panel was written.
        unsafe { lanes.set_len(len) };
        (Self { lanes, n, k }, finite)
    }

    /// Column `j`.
    pub(crate) fn column(&self, j: usize) -> impl Iterator<Item = f32> {
        self.panel(j / WIDTH).iter().map(move |lanes| lanes.0[j % WIDTH])
    }

    /// Length of a column.
    pub(crate) fn depth(&self) -> usize {
        self.k
    }

    /// All lanes of all panels, one panel after another.
    pub(crate) fn lanes_mut(&mut self) -> &mut [Lanes] {
        &mut self.lanes
    }

    /// Writes the columns one after another: what [`pack`](Self::pack) has read.
    pub(crate) fn unpack(&self, to: &mut [f32]) {
        const ROWS: usize = 16;
        let k = self.k.max(1);
        for (columns, lanes) in to.chunks_mut(WIDTH * k).zip(self.lanes.chunks_exact(k)) {
            // Some rows at a time, so that whole cache lines are written.
            vectorised(|| {
                for (part, lanes) in lanes.chunks(ROWS).enumerate() {
                    for (j, column) in columns.chunks_exact_mut(k).enumerate() {
                        let to = &mut column[part * ROWS..];
                        to.iter_mut().zip(lanes).for_each(|(to, lanes)| *to = lanes.0[j]);
                    }
                }
            });
        }
    }

    /// All lanes of a panel.
    pub(crate) fn panel(&self, panel: usize) -> &[Lanes] {
        &self.lanes[panel * self.k..][..self.k]
    }
}

/// `lanes[i][lane] = rows[lane][i]`; returns whether all numbers are finite.
#[inline(always)]
fn transpose(lanes: &mut [MaybeUninit<Lanes>], rows: &[Span; WIDTH]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut bad = false;
    for (i, lanes) in lanes.iter_mut().enumerate() {
        let mut values = [0.0; WIDTH];
        for (value, row) in values.iter_mut().zip(rows) {
            *value = row[i];
        }
        for value in values {
            bad |= value.to_bits() & EXPONENT == EXPONENT;
        }
        lanes.write(Lanes(values));
    }
    !bad
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
