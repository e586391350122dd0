//! Reduction of a symmetric matrix to a tridiagonal one by Householder's reflections,
//! and products with the orthogonal matrix that they make up.
//!
//! The decision that shapes this file: the product of the matrix with a vector, half of
//! the work, is bounded by how fast the matrix comes out of the cache, so it reads the
//! lower triangle once and writes nothing. What reflections change is collected for
//! some columns, as `A − P P̃ᵀ`, and is then subtracted at once.
//!
//! # References
//! Dongarra, Sorensen, Hammarling, J. Comput. Appl. Math. 27, 215 (1989).

mod transform;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};

use crate::eigh::Real;
use crate::math::vectorised;

pub(crate) use transform::Side;

/// Rows and columns of a tile: a diagonal tile is held whole. A cache line of `f32`.
const TILE: usize = 16;
/// Columns whose reflections are collected; a multiple of [`TILE`].
const TOGETHER: usize = 32;
/// Columns of a product that share what is read and written beside them.
const COLUMNS: usize = 8;
/// What is left out beside numbers of which the largest is about 1.
const NOTHING: f64 = 1e-150;

/// Arithmetic on the processor's vectors of a type.
pub trait Vectors: Sized {
    /// A vector.
    type Of<S: Simd>: Copy;

    /// A sum of squares that may have lost some below the normal numbers, relative to
    /// what is left, is smaller.
    const SMALL: f64;

    /// All lanes the same.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Of<S>;
    /// `a b + c`.
    fn mul_add<S: Simd>(simd: S, a: Self::Of<S>, b: Self::Of<S>, c: Self::Of<S>) -> Self::Of<S>;
    /// The sum of all lanes.
    fn sum<S: Simd>(simd: S, a: Self::Of<S>) -> Self;
    /// A slice whose length is a multiple of the lanes.
    fn vectors<S: Simd>(slice: &[Self]) -> &[Self::Of<S>];
    /// The same to write to.
    fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [Self::Of<S>];
    /// Multiplies columns by `Q` from the left.
    fn take_back(reduced: &Reduced<Self>, z: &mut [Self]);
}

macro_rules! vectors {
    ($type:ty, $of:ident, $splat:ident, $mul_add:ident, $sum:ident, $vectors:ident, $vectors_mut:ident, $take_back:ident) => {
        impl Vectors for $type {
            type Of<S: Simd> = S::$of;
            const SMALL: f64 =
                <$type>::MIN_POSITIVE as f64 / (<$type>::EPSILON as f64 * <$type>::EPSILON as f64);

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$of {
                simd.$splat(value)
            }

            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$of, b: S::$of, c: S::$of) -> S::$of {
                simd.$mul_add(a, b, c)
            }

            #[inline(always)]
            fn sum<S: Simd>(simd: S, a: S::$of) -> Self {
                simd.$sum(a)
            }

            #[inline(always)]
            fn vectors<S: Simd>(slice: &[Self]) -> &[S::$of] {
                S::$vectors(slice).0
            }

            #[inline(always)]
            fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [S::$of] {
                S::$vectors_mut(slice).0
            }

            fn take_back(reduced: &Reduced<Self>, z: &mut [Self]) {
                reduced.$take_back(z);
            }
        }
    };
}

vectors!(
    f32,
    f32s,
    splat_f32s,
    mul_add_f32s,
    reduce_sum_f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    take_back_narrow
);
vectors!(
    f64,
    f64s,
    splat_f64s,
    mul_add_f64s,
    reduce_sum_f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    take_back_wide
);

/// Columns of equal length, one `stride` after another, on cache lines.
#[derive(Clone, Debug)]
struct Columns<T> {
    memory: Vec<T>,
    start: usize,
    stride: usize,
}

impl<T: Real> Columns<T> {
    fn zeros(rows: usize, columns: usize) -> Self {
        // An odd number of tiles, so that a row's entries do not meet in few sets of the cache.
        let stride = (rows.div_ceil(TILE) | 1) * TILE;
        let memory = vec![T::default(); stride * columns + TILE];
        let start = memory.as_ptr().align_offset(64).min(TILE);
        Self { memory, start, stride }
    }

    fn all(&self) -> &[T] {
        &self.memory[self.start..]
    }

    fn column(&self, column: usize) -> &[T] {
        &self.all()[column * self.stride..][..self.stride]
    }

    fn column_mut(&mut self, column: usize) -> &mut [T] {
        &mut self.memory[self.start + column * self.stride..][..self.stride]
    }

    fn view(&self, columns: usize) -> MatRef<'_, T> {
        MatRef::from_column_major_slice(&self.all()[..columns * self.stride], self.stride, columns)
    }
}

/// A symmetric matrix `Q T Qᵀ`, `T` tridiagonal.
#[derive(Clone, Debug)]
pub struct Reduced<T> {
    pub(crate) diagonal: Vec<f64>,
    /// Couples row `k` with row `k + 1`.
    pub(crate) off: Vec<f64>,
    /// Column `k` is `v_k`, of which row `k + 1` is the first that is not 0.
    reflections: Columns<T>,
    /// `Q = Π (1 − f_k v_k v_kᵀ)`.
    factors: Vec<T>,
}

impl<T: Real> Reduced<T> {
    /// Of the `n × n` matrix whose lower triangle's columns are one after another.
    pub(crate) fn new(matrix: &[T], n: usize) -> Self {
        let padded = n.next_multiple_of(TILE);
        let mut reflections = Columns::zeros(n, padded);
        let mut largest = 0.0_f64;
        for (k, column) in matrix.chunks(n.max(1)).enumerate() {
            vectorised(|| {
                column[k..].iter().for_each(|v| largest = largest.max((*v).into().abs()))
            });
        }
        // A power of two, so that no square overflows, and none that matters vanishes.
        let exponent = match largest {
            0.0 => 0,
            _ => largest.max(f64::MIN_POSITIVE).log2().floor() as i32,
        };
        let scale = 2.0_f64.powi(-exponent);
        for k in 0..n {
            let to = reflections.column_mut(k)[k..n].iter_mut().zip(&matrix[k * n + k..]);
            vectorised(|| to.for_each(|(to, from)| *to = T::of((*from).into() * scale)));
        }
        for k in 0..n {
            for j in k / TILE * TILE..k {
                reflections.column_mut(k)[j] = reflections.column(j)[k];
            }
        }
        let mut reduced = Self {
            diagonal: vec![0.0; n],
            off: vec![0.0; n.saturating_sub(1)],
            reflections,
            factors: vec![T::default(); n],
        };
        Arch::new().dispatch(Reduce { reduced: &mut reduced, n });
        let scale = 2.0_f64.powi(exponent);
        for value in reduced.diagonal.iter_mut().chain(&mut reduced.off) {
            *value *= scale;
        }
        reduced
    }
}

struct Reduce<'a, T> {
    reduced: &'a mut Reduced<T>,
    n: usize,
}

impl<T: Real> WithSimd for Reduce<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { reduced, n } = self;
        let Reduced { diagonal, off, reflections: matrix, factors } = reduced;
        let stride = matrix.stride;
        let padded = n.next_multiple_of(TILE);
        // In turns v_k and w_k; and the two of a pair exchanged.
        let mut panel = Columns::<T>::zeros(n, 2 * TOGETHER);
        let mut exchanged = Columns::<T>::zeros(n, 2 * TOGETHER);
        let mut row = [T::default(); 2 * TOGETHER];
        let mut found = [T::default(); 2 * TOGETHER];
        let mut w = Columns::<T>::zeros(n, 1);
        for start in (0..n).step_by(TOGETHER) {
            for k in start..n.min(start + TOGETHER) {
                let held = 2 * (k - start);
                // Whole groups, with nothing of the columns that are left from before.
                let wide = held.next_multiple_of(COLUMNS);
                let top = k / TILE * TILE;
                // What the reflections before have changed in this column.
                row[held..wide].fill(T::of(0.0));
                for (i, f) in row[..held].iter_mut().enumerate() {
                    *f = T::of(0.0) - panel.column(i ^ 1)[k];
                }
                let column = &mut matrix.column_mut(k)[..padded];
                combine(simd, panel.all(), stride, &row[..wide], top, &mut column[top..]);
                diagonal[k] = column[k].into();
                if k + 1 == n {
                    break;
                }
                let first = (k + 1) / TILE * TILE;
                let head = column[k + 1];
                column[..k + 2].fill(T::of(0.0));
                let (head, mut tail) = (head.into(), square(simd, &column[first..]).into());
                // Of what is so small the squares are taken relative to the largest.
                let mut unit = 1.0;
                if tail < T::SMALL {
                    let all = column[first..].iter().map(|v| (*v).into().abs());
                    unit = all.fold(f64::abs(head), f64::max).max(NOTHING);
                    let squares = column[first..].iter().map(|v| ((*v).into() / unit).powi(2));
                    tail = squares.sum();
                }
                let (mut factor, mut coupling) = (T::of(0.0), head);
                if tail > 0.0 && unit > NOTHING {
                    let head = head / unit;
                    let norm = (head * head + tail).sqrt();
                    let end = if head > 0.0 { -norm } else { norm };
                    let over = (head - end).recip();
                    coupling = end * unit;
                    factor = T::of(2.0 / (1.0 + tail * over * over));
                    let over = over / unit;
                    column[first..].iter_mut().for_each(|v| *v = T::of((*v).into() * over));
                } else {
                    column[first..].fill(T::of(0.0));
                }
                column[k + 1] = T::of(1.0);
                off[k] = coupling;
                factors[k] = factor;
                panel.column_mut(held)[..padded].copy_from_slice(column);
                let v = panel.column(held);
                let w = &mut w.column_mut(0)[..padded];
                symmetric_product(simd, matrix.all(), stride, first, &v[..padded], w);
                w[first..k + 1].fill(T::of(0.0));
                products(simd, panel.all(), stride, &v[first..padded], first, &mut found[..wide]);
                for (i, f) in row[..held].iter_mut().enumerate() {
                    *f = T::of(0.0) - found[i ^ 1];
                }
                combine(simd, panel.all(), stride, &row[..wide], first, &mut w[first..]);
                w[first..].iter_mut().for_each(|w| *w *= factor);
                let mut along = [T::default()];
                products(simd, w, stride, &v[first..padded], first, &mut along);
                let along = T::of(-0.5) * factor * along[0];
                combine(simd, v, stride, &[along], first, &mut w[first..]);
                let to = panel.column_mut(held + 1);
                to[..first].fill(T::of(0.0));
                to[first..padded].copy_from_slice(&w[first..]);
            }
            let next = start + TOGETHER;
            if next >= n {
                break;
            }
            for i in 0..2 * TOGETHER {
                exchanged.column_mut(i)[next..padded]
                    .copy_from_slice(&panel.column(i ^ 1)[next..padded]);
            }
            let (p, q) = (panel.view(2 * TOGETHER), exchanged.view(2 * TOGETHER));
            for left in (next..padded).step_by(2 * TOGETHER) {
                let right = padded.min(left + 2 * TOGETHER);
                let to = MatMut::from_column_major_slice_mut(
                    &mut matrix.memory[matrix.start..][..padded * stride],
                    stride,
                    padded,
                );
                matmul(
                    to.get_mut(left..padded, left..right),
                    Accum::Add,
                    p.get(left..padded, ..),
                    q.get(left..right, ..).transpose(),
                    T::of(-1.0),
                    Par::Seq,
                );
            }
        }
    }
}

/// A part of a column, as vectors.
#[inline(always)]
fn part<S: Simd, T: Real>(columns: &[T], start: usize, len: usize) -> &[T::Of<S>] {
    T::vectors::<S>(&columns[start..][..len])
}

/// Parts of [`COLUMNS`] columns from `start` on. A list, and no loop, so that the lengths
/// are known where the parts are read.
#[inline(always)]
fn parts<S: Simd, T: Real>(
    columns: &[T],
    start: usize,
    stride: usize,
    len: usize,
) -> [&[T::Of<S>]; COLUMNS] {
    [
        part::<S, T>(columns, start, len),
        part::<S, T>(columns, start + stride, len),
        part::<S, T>(columns, start + 2 * stride, len),
        part::<S, T>(columns, start + 3 * stride, len),
        part::<S, T>(columns, start + 4 * stride, len),
        part::<S, T>(columns, start + 5 * stride, len),
        part::<S, T>(columns, start + 6 * stride, len),
        part::<S, T>(columns, start + 7 * stride, len),
    ]
}

/// `w = A v` for rows and columns from `first` on; of `A` the lower triangle is read, and
/// diagonal tiles.
#[inline(always)]
fn symmetric_product<S: Simd, T: Real>(
    simd: S,
    matrix: &[T],
    stride: usize,
    first: usize,
    v: &[T],
    w: &mut [T],
) {
    let zero = T::splat(simd, T::of(0.0));
    w[first..].fill(T::of(0.0));
    for top in (first..v.len()).step_by(TILE) {
        let below = top + TILE;
        for left in (top..below).step_by(COLUMNS) {
            let mut x = [zero; COLUMNS];
            for c in 0..COLUMNS {
                x[c] = T::splat(simd, v[left + c]);
            }
            let tile = parts::<S, T>(matrix, left * stride + top, stride, TILE);
            for (k, w) in T::vectors_mut::<S>(&mut w[top..below]).iter_mut().enumerate() {
                let mut sum = *w;
                for c in 0..COLUMNS {
                    sum = T::mul_add(simd, tile[c][k], x[c], sum);
                }
                *w = sum;
            }
            let len = v.len() - below;
            let own = part::<S, T>(v, below, len);
            let columns = parts::<S, T>(matrix, left * stride + below, stride, len);
            let rest = T::vectors_mut::<S>(&mut w[below..][..len]);
            let mut sums = [zero; COLUMNS];
            for k in 0..own.len() {
                let (mut sum, v) = (rest[k], own[k]);
                for c in 0..COLUMNS {
                    let a = columns[c][k];
                    sum = T::mul_add(simd, a, x[c], sum);
                    sums[c] = T::mul_add(simd, a, v, sums[c]);
                }
                rest[k] = sum;
            }
            for c in 0..COLUMNS {
                w[left + c] += T::sum(simd, sums[c]);
            }
        }
    }
}

/// `found[i] = Σ_k column_i[first + k] y[k]`.
#[inline(always)]
fn products<S: Simd, T: Real>(
    simd: S,
    columns: &[T],
    stride: usize,
    y: &[T],
    first: usize,
    found: &mut [T],
) {
    let (vectors, len) = (T::vectors::<S>(y), y.len());
    let zero = T::splat(simd, T::of(0.0));
    let (groups, rest) = found.as_chunks_mut::<COLUMNS>();
    let done = groups.len() * COLUMNS;
    for (group, found) in groups.iter_mut().enumerate() {
        let columns = parts::<S, T>(columns, group * COLUMNS * stride + first, stride, len);
        let mut sums = [zero; COLUMNS];
        for k in 0..vectors.len() {
            for c in 0..COLUMNS {
                sums[c] = T::mul_add(simd, columns[c][k], vectors[k], sums[c]);
            }
        }
        for c in 0..COLUMNS {
            found[c] = T::sum(simd, sums[c]);
        }
    }
    for (i, found) in rest.iter_mut().enumerate() {
        let column = part::<S, T>(columns, (done + i) * stride + first, len);
        let mut sums = [zero; 4];
        for (k, (a, y)) in column.iter().zip(vectors).enumerate() {
            sums[k % 4] = T::mul_add(simd, *a, *y, sums[k % 4]);
        }
        let [a, b, c, d] = sums;
        let sum = (T::sum(simd, a) + T::sum(simd, b)) + (T::sum(simd, c) + T::sum(simd, d));
        *found = sum;
    }
}

/// `Σ_k x_k²`.
#[inline(always)]
fn square<S: Simd, T: Real>(simd: S, x: &[T]) -> T {
    let mut found = [T::default()];
    products(simd, x, 0, x, 0, &mut found);
    found[0]
}

/// `y[k] += Σ_i factors[i] column_i[first + k]`.
#[inline(always)]
fn combine<S: Simd, T: Real>(
    simd: S,
    columns: &[T],
    stride: usize,
    factors: &[T],
    first: usize,
    y: &mut [T],
) {
    let len = y.len();
    let y = T::vectors_mut::<S>(y);
    let zero = T::splat(simd, T::of(0.0));
    let (groups, rest) = factors.as_chunks::<COLUMNS>();
    let done = groups.len() * COLUMNS;
    for (group, factors) in groups.iter().enumerate() {
        let columns = parts::<S, T>(columns, group * COLUMNS * stride + first, stride, len);
        let mut x = [zero; COLUMNS];
        for c in 0..COLUMNS {
            x[c] = T::splat(simd, factors[c]);
        }
        for k in 0..y.len() {
            let mut sum = y[k];
            for c in 0..COLUMNS {
                sum = T::mul_add(simd, columns[c][k], x[c], sum);
            }
            y[k] = sum;
        }
    }
    for (i, factor) in rest.iter().enumerate() {
        let factor = T::splat(simd, *factor);
        let column = part::<S, T>(columns, (done + i) * stride + first, len);
        for (y, a) in y.iter_mut().zip(column) {
            *y = T::mul_add(simd, *a, factor, *y);
        }
    }
}
