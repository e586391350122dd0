//! A signal on the nodes of a graph: energies, Fourier modes and their entropies.
//!
//! The signal is `X [n, d]`, one row per token; `L = UΛUᵀ` a Laplacian with
//! eigenvalues ascending.
//!
//! The decision that shapes this file: the Dirichlet energy is taken from the
//! Gram matrix, `Tr(XᵀLX) = ⟨L, XXᵀ⟩`. The Gram matrix is built once per layer
//! and every head's graph then costs one pass over its weights, whatever the
//! width of the residual stream.
//!
//! A quantity that has no value for its input, such as a ratio to the energy of
//! a zero signal, is [`Null`] with the reason, never a number made up by an ε.

mod gram;

use std::borrow::Cow;

use candle_core::{DType, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::adjacency::Adjacency;
use crate::attention::RecomputedGraph;
use crate::eigh::{Eigen, Real};
use crate::graph::LANES;
use crate::householder::Side;
use crate::laplacian::{Laplacian, LaplacianOperator};
use crate::math::vectorised;
use crate::panels::Panels;
use crate::product::{Output, multiply};
use crate::tensor::Values;
use crate::{Error, Result};

/// Why a quantity has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Null {
    /// Fewer than two nodes: there is no second-smallest eigenvalue, and `ln n` is 0.
    /// Fewer than three: there are no two spacings.
    TooFewNodes,
    /// Every eigenvalue is 0: the graph has no edges but self-loops.
    ZeroSpectrum,
    /// The signal is 0 on every node.
    ZeroSignal,
    /// No two neighbouring spacings of eigenvalues have one that is above 0.
    ZeroSpacings,
}

impl Null {
    /// The name written into tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooFewNodes => "too few nodes",
            Self::ZeroSpectrum => "zero spectrum",
            Self::ZeroSignal => "zero signal",
            Self::ZeroSpacings => "zero spacings",
        }
    }
}

impl std::fmt::Display for Null {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A quantity, or the reason why it has none.
pub type Value = std::result::Result<f64, Null>;

/// Rounding errors of a forward pass, in units of the precision of its numbers,
/// up to which a row counts as equal to the mean of all rows. In exact arithmetic
/// every position of a text of one repeated token has the same residual stream.
pub const ROUNDING: f64 = 64.0;

/// `‖row‖`, scaled by the largest entry where squares might overflow or vanish.
fn norm(row: &[f64]) -> f64 {
    let squares = sum_of_squares(row);
    if (1e-200..1e200).contains(&squares) {
        return squares.sqrt();
    }
    let largest = row.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * row.iter().map(|v| (v / largest) * (v / largest)).sum::<f64>().sqrt()
}

fn sum_of_squares(row: &[f64]) -> f64 {
    vectorised(|| {
        let mut sums = [0.0; 4 * LANES];
        let (chunks, rest) = row.as_chunks::<{ 4 * LANES }>();
        for chunk in chunks {
            for (sum, v) in sums.iter_mut().zip(chunk) {
                *sum += v * v;
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|v| v * v).sum::<f64>()
    })
}

/// A signal `X [n, d]` in `f64`, one row per node.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    n_nodes: usize,
    d: usize,
    values: Vec<f64>,
}

impl Signal {
    /// Takes row-major values.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are `n_nodes · d` of them,
    /// [`Error::NonFinite`] where one is infinite or not a number.
    pub fn new(values: Vec<f64>, n_nodes: usize, d: usize) -> Result<Self> {
        if n_nodes.checked_mul(d) != Some(values.len()) {
            return Err(Error::shape(
                "graph signal",
                "signal",
                format_args!("[{n_nodes}, {d}]"),
                &[values.len()],
            ));
        }
        let finite = vectorised(|| values.iter().fold(true, |finite, v| finite & v.is_finite()));
        if !finite && let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NonFinite {
                op: "graph signal",
                what: "signal",
                index: vec![index / d, index % d],
                value: values[index],
            });
        }
        Ok(Self { n_nodes, d, values })
    }

    /// Copies a tensor `[pos, d_model]` of any float dtype.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are two axes, [`Error::NonFinite`],
    /// [`Error::Candle`].
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        const OP: &str = "graph signal";
        let &[n_nodes, d] = tensor.dims() else {
            return Err(Error::shape(OP, "signal", "[pos, d_model]", tensor.dims()));
        };
        if tensor.dtype() == DType::F32
            && let Ok(values) = Values::new(OP, "signal", tensor)
        {
            let rows = values.rows();
            let mut values = Vec::with_capacity(n_nodes * d);
            for row in 0..n_nodes {
                values.extend(rows.row(row).iter().map(|v| f64::from(*v)));
            }
            return Self::new(values, n_nodes, d);
        }
        let values = tensor
            .flatten_all()
            .and_then(|t| t.to_dtype(DType::F64))
            .and_then(|t| t.to_vec1::<f64>())
            .map_err(Error::candle(OP))?;
        Self::new(values, n_nodes, d)
    }

    /// Number of nodes.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    /// Width.
    pub fn d(&self) -> usize {
        self.d
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The signal on all nodes but the first.
    #[must_use]
    pub fn without_first(mut self) -> Self {
        self.values.drain(..self.d.min(self.values.len()));
        self.n_nodes = self.n_nodes.saturating_sub(1);
        self
    }

    /// The signal on the first `n` nodes, or on all if there are fewer.
    #[must_use]
    pub fn leading(mut self, n: usize) -> Self {
        self.n_nodes = self.n_nodes.min(n);
        self.values.truncate(self.n_nodes * self.d);
        self
    }

    /// The signal less its mean over the nodes.
    ///
    /// # Numerics
    /// `precision` is the relative precision to which the values are known, 0 if
    /// they are exact. A row whose distance from the mean is at most
    /// [`ROUNDING`]` · precision` times its own norm is the mean as far as can be
    /// known, and becomes 0: what is left of it is rounding, with no direction.
    #[must_use]
    pub fn centred(mut self, precision: f64) -> Self {
        if self.values.is_empty() || self.d == 0 {
            return self;
        }
        let mut mean = vec![0.0; self.d];
        vectorised(|| {
            for row in self.values.chunks_exact(self.d) {
                for (m, v) in mean.iter_mut().zip(row) {
                    *m += v;
                }
            }
        });
        for m in &mut mean {
            *m /= self.n_nodes as f64;
        }
        for row in self.values.chunks_exact_mut(self.d) {
            let known = ROUNDING * precision * norm(row);
            vectorised(|| row.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m));
            if norm(row) <= known {
                row.fill(0.0);
            }
        }
        self
    }

    /// The signal with every row scaled to unit norm, and the number of rows
    /// that are 0 and therefore stay 0: they carry no energy.
    #[must_use]
    pub fn unit_rows(mut self) -> (Self, usize) {
        if self.d == 0 {
            let zero_rows = self.n_nodes;
            return (self, zero_rows);
        }
        let mut zero_rows = 0;
        for row in self.values.chunks_exact_mut(self.d) {
            let norm = norm(row);
            if norm == 0.0 {
                zero_rows += 1;
                continue;
            }
            vectorised(|| row.iter_mut().for_each(|v| *v /= norm));
        }
        (self, zero_rows)
    }

    /// Number of rows that are 0.
    pub fn n_zero_rows(&self) -> usize {
        if self.d == 0 {
            return self.n_nodes;
        }
        let rows = self.values.chunks_exact(self.d);
        rows.filter(|row| row.iter().all(|v| *v == 0.0)).count()
    }

    /// `‖X‖² = Tr(XᵀX)`.
    pub fn energy(&self) -> f64 {
        self.values.chunks(self.d.max(1)).map(|row| row.iter().map(|v| v * v).sum::<f64>()).sum()
    }

    /// The signal in the coordinates in which a Laplacian is symmetric: `D^½X` for
    /// `RandomWalk`, else `X` itself. Its transform is that of the Laplacian's own
    /// inner product, `X̂ = UᵀD^½X`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the signal has one row per node.
    pub fn in_coordinates_of<G: Adjacency>(
        &self,
        laplacian: &LaplacianOperator<'_, G>,
    ) -> Result<Cow<'_, Self>> {
        if self.n_nodes != laplacian.n_nodes() {
            return Err(rows_per_node("graph signal", laplacian, self.n_nodes));
        }
        let Some(scale) = laplacian.coordinate_scale() else {
            return Ok(Cow::Borrowed(self));
        };
        let mut signal = self.clone();
        for (row, scale) in signal.values.chunks_exact_mut(self.d.max(1)).zip(scale) {
            for value in row {
                *value *= scale;
            }
        }
        Ok(Cow::Owned(signal))
    }

    /// `XXᵀ`, for [`dirichlet_energy`].
    ///
    /// # Numerics
    /// `f64`; each number is one chain of fused multiply–adds along a row, so that the bits do not
    /// depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Range`] above [`crate::laplacian::MAX_DENSE_NODES`].
    pub fn gram(&self) -> Result<Gram> {
        if self.n_nodes > crate::laplacian::MAX_DENSE_NODES {
            return Err(Error::range(
                "gram matrix",
                "number of nodes",
                format_args!("at most {}", crate::laplacian::MAX_DENSE_NODES),
                self.n_nodes,
            ));
        }
        let stride = self.n_nodes.next_multiple_of(LANES);
        let lower = match self.d {
            0 => vec![0.0; stride * stride],
            d => gram::lower_triangle(&self.values, self.n_nodes, d, stride),
        };
        Ok(Gram { n_nodes: self.n_nodes, stride, lower })
    }
}

/// The Gram matrix `XXᵀ` of a signal.
#[derive(Debug, Clone)]
pub struct Gram {
    n_nodes: usize,
    /// A whole number of blocks.
    stride: usize,
    /// Row-major; on and below the diagonal, zero in the padding.
    lower: Vec<f64>,
}

impl Gram {
    /// Number of nodes.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }
}

fn rows_per_node<G: Adjacency>(
    op: &'static str,
    laplacian: &LaplacianOperator<'_, G>,
    got: usize,
) -> Error {
    let expected = format_args!("{} rows, one per node", laplacian.n_nodes());
    Error::shape(op, "signal", expected, &[got])
}

/// `‖X‖²` in the inner product of a Laplacian: `Tr(XᵀDX)` for `RandomWalk`, else
/// `Tr(XᵀX)`. The sum of its mode energies.
///
/// # Errors
/// [`Error::Shape`] unless the Gram matrix has one row per node.
pub fn energy<G: Adjacency>(laplacian: &LaplacianOperator<'_, G>, gram: &Gram) -> Result<f64> {
    if gram.n_nodes != laplacian.n_nodes() {
        return Err(rows_per_node("signal energy", laplacian, gram.n_nodes));
    }
    let own = (0..gram.n_nodes).map(|i| gram.lower[i * gram.stride + i]);
    Ok(match laplacian.kind() {
        Laplacian::Combinatorial | Laplacian::SymmetricNormalized => own.sum(),
        Laplacian::RandomWalk => {
            own.zip(laplacian.graph().degrees()).map(|(own, degree)| degree * own).sum()
        }
    })
}

/// `Tr(XᵀLX) = Σ_k λ_k e_k`, without an eigendecomposition; for `RandomWalk`, in its
/// inner product, `Tr(XᵀDLX) = Tr(Xᵀ(D − W)X)`.
///
/// ```
/// use kernels::graph::{PatternView, SymmetricGraph};
/// use kernels::laplacian::{Laplacian, LaplacianOperator};
/// use kernels::signal::{Signal, dirichlet_energy};
/// // One edge of weight ½ between values 1 and 3: ½ · (1 − 3)² = 2.
/// let a = [1.0, 0.0, 1.0, 0.0];
/// let graph = SymmetricGraph::from_pattern(PatternView::new(&a, 2, 2)?)?;
/// let laplacian = LaplacianOperator::new(&graph, Laplacian::Combinatorial);
/// let signal = Signal::new(vec![1.0, 3.0], 2, 1)?;
/// assert_eq!(dirichlet_energy(&laplacian, &signal.gram()?)?, 2.0);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Numerics
/// `Σ_i L_ii G_ii + 2 Σ_{i>j} L_ij G_ij` in `f64`: absolute error of a few
/// `ε ‖L‖ ‖X‖²`.
///
/// # Errors
/// [`Error::Shape`] unless the Gram matrix has one row per node.
pub fn dirichlet_energy<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    gram: &Gram,
) -> Result<f64> {
    if gram.n_nodes != laplacian.n_nodes() {
        return Err(rows_per_node("dirichlet energy", laplacian, gram.n_nodes));
    }
    if laplacian.kind() == Laplacian::RandomWalk {
        let combinatorial = LaplacianOperator::new(laplacian.graph(), Laplacian::Combinatorial);
        return dirichlet_energy(&combinatorial, gram);
    }
    let scale = laplacian.padded_scale();
    let blocks = scale.as_chunks::<LANES>().0;
    let products = gram.lower.as_chunks::<LANES>().0;
    let cross = laplacian.graph().sum_below_diagonal(|i, block, mut weights| {
        let (scale, blocks) = (scale[i], &blocks[block]);
        let products = &products[i * (gram.stride / LANES) + block];
        for c in 0..LANES {
            weights[c] *= scale * (blocks[c] * products[c]);
        }
        weights
    });
    let own: f64 = laplacian
        .diagonal()
        .iter()
        .enumerate()
        .map(|(i, value)| value * gram.lower[i * gram.stride + i])
        .sum();
    Ok(own - 2.0 * cross)
}

/// As [`energy`], of the signal itself: nothing is as large as a Gram matrix.
///
/// # Errors
/// [`Error::Shape`] unless the signal has one row per node.
pub fn energy_of<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    signal: &Signal,
) -> Result<f64> {
    Ok(signal.in_coordinates_of(laplacian)?.energy())
}

/// As [`dirichlet_energy`], of the signal itself on a graph that is not stored.
///
/// # Numerics
/// As [`dirichlet_energy`]: `f64`, the same sum in another order.
///
/// # Errors
/// [`Error::Shape`] unless the signal has one row per node.
pub fn dirichlet_energy_of(
    laplacian: &LaplacianOperator<'_, RecomputedGraph>,
    signal: &Signal,
) -> Result<f64> {
    if signal.n_nodes != laplacian.n_nodes() {
        return Err(rows_per_node("dirichlet energy", laplacian, signal.n_nodes));
    }
    if laplacian.kind() == Laplacian::RandomWalk {
        let combinatorial = LaplacianOperator::new(laplacian.graph(), Laplacian::Combinatorial);
        return dirichlet_energy_of(&combinatorial, signal);
    }
    let mut scaled = signal.values.clone();
    let rows = || signal.values.chunks_exact(signal.d.max(1));
    for (row, scale) in scaled.chunks_exact_mut(signal.d.max(1)).zip(laplacian.padded_scale()) {
        row.iter_mut().for_each(|value| *value *= scale);
    }
    let cross = laplacian.graph().cross_energy(&scaled, signal.d)?;
    let own = laplacian.diagonal().into_iter().zip(rows());
    let own: f64 = own.map(|(value, row)| value * row.iter().map(|v| v * v).sum::<f64>()).sum();
    Ok(own - 2.0 * cross)
}

/// Rayleigh quotient `Tr(XᵀLX)/‖X‖²`: high is rough. Null for a zero signal.
pub fn rayleigh_quotient(dirichlet: f64, energy: f64) -> Value {
    if energy == 0.0 {
        return Err(Null::ZeroSignal);
    }
    Ok(dirichlet / energy)
}

/// Smoothness `1 − Tr(XᵀLX)/(λ_max ‖X‖²)`: high is smooth. Null where `λ_max`
/// or the signal is 0.
///
/// # References
/// arXiv 2601.00791.
pub fn smoothness(dirichlet: f64, lambda_max: f64, energy: f64) -> Value {
    let quotient = rayleigh_quotient(dirichlet, energy)?;
    if lambda_max == 0.0 {
        return Err(Null::ZeroSpectrum);
    }
    Ok(1.0 - quotient / lambda_max)
}

/// Connectivity ratio `λ₂/λ_max`. Null where `λ_max` is 0.
pub fn connectivity_ratio(fiedler: f64, lambda_max: f64) -> Value {
    if lambda_max == 0.0 {
        return Err(Null::ZeroSpectrum);
    }
    Ok(fiedler / lambda_max)
}

/// Energy of each mode of the graph Fourier transform: `e_k = ‖(UᵀX)_k‖²`.
///
/// # Numerics
/// `f64`; blocks of fixed size, so that the bits do not depend on the number of
/// threads. Where eigenvalues coincide, the split among their modes is arbitrary.
///
/// # Errors
/// [`Error::Shape`] unless the signal has one row per eigenvector.
pub fn mode_energies(eigen: &Eigen, signal: &Signal) -> Result<Vec<f64>> {
    const BLOCK: usize = 64;
    let n = row_per_vector(eigen, signal)?;
    let (reduced, inner) = eigen.factors();
    // (Q Z)ᵀX = Zᵀ(QᵀX): reflections meet vectors or the signal, whichever are fewer.
    let mut reflected = Cow::Borrowed(&signal.values);
    let vectors = if signal.d < n {
        let x = MatMut::from_row_major_slice_mut(reflected.to_mut(), n, signal.d);
        reduced.multiply(Side::Transposed, x);
        MatRef::from_column_major_slice(inner, n, n)
    } else {
        eigen.vectors()
    };
    let x = MatRef::from_row_major_slice(&reflected, n, signal.d);
    let blocks: Vec<Vec<f64>> = (0..signal.d.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let start = block * BLOCK;
            let width = BLOCK.min(signal.d - start);
            let mut modes = vec![0.0; n * width];
            matmul(
                MatMut::from_row_major_slice_mut(&mut modes, n, width),
                Accum::Replace,
                vectors.transpose(),
                x.subcols(start, width),
                1.0,
                Par::Seq,
            );
            modes.chunks_exact(width).map(|mode| mode.iter().map(|v| v * v).sum()).collect()
        })
        .collect();
    let mut energies = vec![0.0; n];
    for block in blocks {
        for (total, part) in energies.iter_mut().zip(block) {
            *total += part;
        }
    }
    Ok(energies)
}

/// As [`mode_energies`], of eigenvectors in `f32`.
///
/// # Numerics
/// The transform in `f32`, of the signal scaled by a power of two so that it neither
/// overflows nor vanishes; squares are summed in `f64`. Each output is one chain of
/// multiply–adds: no bit depends on the number of threads. The error of an energy is
/// some `ε √n` of the whole signal's energy, and the vectors' own beside it.
///
/// # Errors
/// As [`mode_energies`].
pub fn mode_energies_f32(eigen: &Eigen<f32>, signal: &Signal) -> Result<Vec<f64>> {
    let n = row_per_vector(eigen, signal)?;
    let d = signal.d;
    let largest = vectorised(|| signal.values.iter().fold(0.0_f64, |m, v| m.max(v.abs())));
    if largest == 0.0 || d == 0 {
        return Ok(vec![0.0; n]);
    }
    // Within the normal numbers, so that the scale of a subnormal is one too.
    let scale = 2.0_f64.powi(-(largest.log2().floor() as i32).max(f64::MIN_EXP));
    let mut right = vectorised(|| {
        Panels::of_rows(d, n, |i, columns, to| {
            for (to, value) in to.iter_mut().zip(&signal.values[i * d..][columns]) {
                *to = (value * scale) as f32;
            }
        })
    });
    let (reduced, inner) = eigen.factors();
    let mut modes = vec![0.0_f32; n * d];
    // (Q Z)ᵀX = Zᵀ(QᵀX). Reflections meet the signal where it has not many more columns than
    // there are vectors: those take copies into panels and out of them.
    if 4 * d <= 5 * n {
        reduced.multiply(Side::Transposed, &mut right);
        multiply(n, |k| &inner[k * n..][..n], &right, None, Output::new(&mut modes));
    } else {
        let vectors: Vec<&[f32]> = eigen
            .vectors()
            .col_iter()
            .filter_map(|vector| vector.try_as_col_major())
            .map(|vector| vector.as_slice())
            .collect();
        multiply(n, |k| vectors[k], &right, None, Output::new(&mut modes));
    }
    let energy = |mode: &[f32]| {
        let squares = vectorised(|| {
            let mut sums = [0.0_f64; 2 * LANES];
            let (chunks, rest) = mode.as_chunks::<{ 2 * LANES }>();
            for chunk in chunks {
                for (sum, v) in sums.iter_mut().zip(chunk) {
                    *sum += f64::from(*v) * f64::from(*v);
                }
            }
            sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
        });
        squares / scale / scale
    };
    Ok(modes.chunks_exact(d).map(energy).collect())
}

/// The number of eigenvectors, if the signal has a row for each.
fn row_per_vector<T: Real>(eigen: &Eigen<T>, signal: &Signal) -> Result<usize> {
    let n = eigen.values().len();
    if signal.n_nodes != n {
        return Err(Error::shape(
            "graph fourier transform",
            "signal",
            format_args!("{n} rows, one per node"),
            &[signal.n_nodes, signal.d],
        ));
    }
    Ok(n)
}

/// High-frequency energy ratio `Σ_{k ≥ ⌊n/2⌋} e_k / Σ e_k`: the cut is the
/// median index. Null for a zero signal.
///
/// ```
/// assert_eq!(kernels::signal::high_frequency_energy_ratio(&[1.0, 2.0, 1.0]), Ok(0.75));
/// ```
///
/// # References
/// arXiv 2601.00791.
pub fn high_frequency_energy_ratio(energies: &[f64]) -> Value {
    energy_share_of_modes(energies, energies.len() / 2)
}

/// Share of the energy in the modes from number `first` on, `Σ_{k ≥ first} e_k / Σ e_k`;
/// 0 where there are no such modes. Null for a zero signal.
///
/// ```
/// assert_eq!(kernels::signal::energy_share_of_modes(&[1.0, 2.0, 1.0], 2), Ok(0.25));
/// ```
pub fn energy_share_of_modes(energies: &[f64], first: usize) -> Value {
    let total: f64 = energies.iter().sum();
    if total == 0.0 {
        return Err(Null::ZeroSignal);
    }
    Ok(energies.iter().skip(first).sum::<f64>() / total)
}

/// The energies that a truncated spectrum keeps: those of the `ends` lowest and the
/// `ends` highest modes, of all where there are no more than that.
///
/// ```
/// use kernels::signal::outer_modes;
/// assert_eq!(outer_modes(&[1.0, 2.0, 3.0, 4.0, 5.0], 2), [1.0, 2.0, 4.0, 5.0]);
/// assert_eq!(outer_modes(&[1.0, 2.0, 3.0], 2), [1.0, 2.0, 3.0]);
/// ```
///
/// # Numerics
/// Where eigenvalues coincide across a cut, which modes are kept is arbitrary.
pub fn outer_modes(energies: &[f64], ends: usize) -> Vec<f64> {
    let low = ends.min(energies.len());
    let high = energies.len().saturating_sub(ends).max(low);
    [&energies[..low], &energies[high..]].concat()
}

/// High-frequency energy ratio at a fixed eigenvalue, `Σ_{λ_k ≥ cut} e_k / Σ e_k`:
/// its cut does not move with the number of nodes. Null for a zero signal.
///
/// ```
/// use kernels::signal::energy_share_from;
/// assert_eq!(energy_share_from(&[0.0, 0.5, 1.0], &[1.0, 2.0, 1.0], 1.0, 0.0), Ok(0.25));
/// ```
///
/// # Numerics
/// Discontinuous where an eigenvalue crosses the cut. One within `rounding`, by which
/// the values may be wrong, below it counts as at the cut, as a solver may return it on
/// either side.
pub fn energy_share_from(values: &[f64], energies: &[f64], cut: f64, rounding: f64) -> Value {
    let total: f64 = energies.iter().sum();
    if total == 0.0 {
        return Err(Null::ZeroSignal);
    }
    let from = cut - rounding;
    let above = values.iter().zip(energies).filter(|(value, _)| **value >= from);
    Ok(above.map(|(_, energy)| energy).sum::<f64>() / total)
}

/// Spectral entropy `−Σ p_k ln p_k` in nats, `p_k = e_k/Σe`. Null for a zero signal.
///
/// ```
/// use kernels::signal::{Null, spectral_entropy};
/// assert_eq!(spectral_entropy(&[1.0, 1.0]), Ok(2.0_f64.ln()));
/// assert_eq!(spectral_entropy(&[0.0, 0.0]), Err(Null::ZeroSignal));
/// ```
pub fn spectral_entropy(energies: &[f64]) -> Value {
    entropy_of_shares(energies).ok_or(Null::ZeroSignal)
}

/// An entropy in nats over its largest possible value, `ln n`. Null below two nodes.
pub fn over_log_n(entropy: f64, n: usize) -> Value {
    if n < 2 {
        return Err(Null::TooFewNodes);
    }
    Ok(entropy / (n as f64).ln())
}

/// Eigenvalue entropy `−Σ q ln q` in nats, `q = λ/Σλ`. Null where every
/// eigenvalue is 0.
///
/// # Numerics
/// A Laplacian has no negative eigenvalues: those that a solver returns within
/// `rounding`, by which they may be wrong, below 0 are zeros that were rounded, and
/// count as 0.
///
/// # Errors
/// [`Error::Range`] for an eigenvalue further below 0.
pub fn eigenvalue_entropy(values: &[f64], rounding: f64) -> Result<Value> {
    let mut rounded = values.to_vec();
    for value in &mut rounded {
        let plausible = *value >= -rounding;
        if !plausible {
            return Err(Error::range("eigenvalue entropy", "eigenvalue", "at least 0", *value));
        }
        if *value < 0.0 {
            *value = 0.0;
        }
    }
    Ok(entropy_of_shares(&rounded).ok_or(Null::ZeroSpectrum))
}

/// How evenly the levels of a spectrum are spaced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpacingRatio {
    /// `⟨min(s_k, s_{k+1})/max(s_k, s_{k+1})⟩`, `s_k = λ_{k+1} − λ_k`: 1 for a
    /// ladder, `2 ln 2 − 1 ≈ 0.386` for independent levels, about 0.531 for the
    /// levels of a random symmetric matrix. Null below three levels, and where
    /// every pair is one of zeros.
    pub mean: Value,
    /// Pairs of neighbouring spacings that are both 0, which are left out.
    pub n_zero_pairs: usize,
}

/// The mean ratio of neighbouring spacings of eigenvalues, ascending.
///
/// ```
/// use kernels::signal::spacing_ratio;
/// // Spacings 1, 2, 0, 0: ratios ½ and 0, and a pair of zeros.
/// let found = spacing_ratio(&[0.0, 1.0, 3.0, 3.0, 3.0], 0.0);
/// assert_eq!((found.mean, found.n_zero_pairs), (Ok(0.25), 1));
/// ```
///
/// # Numerics
/// Eigenvalues closer than `rounding`, by which they may be wrong, coincide as far as
/// their solver can tell: their spacing is 0.
///
/// # References
/// Oganesyan, Huse, Phys. Rev. B 75, 155111 (2007); Atas et al., Phys. Rev. Lett.
/// 110, 084101 (2013).
pub fn spacing_ratio(values: &[f64], rounding: f64) -> SpacingRatio {
    let mut spacings = values.windows(2).map(|pair| {
        let spacing = pair[1] - pair[0];
        if spacing <= rounding { 0.0 } else { spacing }
    });
    let Some(mut before) = spacings.next() else {
        return SpacingRatio { mean: Err(Null::TooFewNodes), n_zero_pairs: 0 };
    };
    let (mut sum, mut n_pairs, mut n_zero_pairs) = (0.0, 0usize, 0usize);
    for spacing in spacings {
        let larger = before.max(spacing);
        if larger == 0.0 {
            n_zero_pairs += 1;
        } else {
            sum += before.min(spacing) / larger;
            n_pairs += 1;
        }
        before = spacing;
    }
    let mean = match (n_pairs, n_zero_pairs) {
        (0, 0) => Err(Null::TooFewNodes),
        (0, _) => Err(Null::ZeroSpacings),
        _ => Ok(sum / n_pairs as f64),
    };
    SpacingRatio { mean, n_zero_pairs }
}

/// `−Σ p ln p` of the shares of non-negative weights; `None` where all are 0.
fn entropy_of_shares(weights: &[f64]) -> Option<f64> {
    let total: f64 = weights.iter().sum();
    if total == 0.0 {
        return None;
    }
    let sum: f64 =
        weights.iter().filter(|w| **w > 0.0).map(|w| (w / total) * (w / total).ln()).sum();
    // A single weight holds all: 0, not −0.
    Some(0.0 - sum)
}
