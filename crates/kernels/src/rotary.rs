//! Rotary position embedding in the half-split form.
//!
//! The angles are computed in `f64` and only then rounded: an `f32` angle of a
//! late position has lost the digits that its sine needs.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};

use crate::cuda;
use crate::tensor::{self, MakeRow, Rows, Values};
use crate::{Error, Result};

const OP: &str = "rotary";

/// Cosines and sines of every position.
pub struct RotaryTables {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    n_pos: usize,
    /// Copies in the memory of devices, made when they are first asked for.
    placed: Mutex<Vec<[Tensor; 2]>>,
}

impl fmt::Debug for RotaryTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RotaryTables {{ n_pos: {}, d_rot: {} }}", self.n_pos, self.d_rot())
    }
}

impl RotaryTables {
    /// `cos[p, i] = s cos(p ω_i)`, `sin[p, i] = s sin(p ω_i)` for positions `p` below
    /// `n_pos`, with frequencies `ω = inv_freq` in radians per token and
    /// `s = attention_scale`.
    ///
    /// # Numerics
    ///
    /// Computed in `f64`, rounded to `f32` at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the tables would not fit in memory.
    pub fn new(inv_freq: &[f64], attention_scale: f64, n_pos: usize) -> Result<Self> {
        let half = inv_freq.len();
        let size = tensor::size(OP, "tables", &[n_pos, half])?;
        let (mut cos, mut sin) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for pos in 0..n_pos {
            for frequency in inv_freq {
                let (s, c) = (pos as f64 * frequency).sin_cos();
                cos.push((c * attention_scale) as f32);
                sin.push((s * attention_scale) as f32);
            }
        }
        Ok(Self { cos, sin, half, n_pos, placed: Mutex::default() })
    }

    /// Cosines and sines `[n_pos, d_rot / 2]` on a device, copied there once.
    ///
    /// # Errors
    ///
    /// [`Error::Candle`] if they cannot be put there.
    pub fn tensors(&self, device: &Device) -> Result<[Tensor; 2]> {
        // What was placed before a panic is whole.
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let here = |[cos, _]: &&[Tensor; 2]| cos.device().same_device(device);
        if let Some(tensors) = placed.iter().find(here) {
            return Ok(tensors.clone());
        }
        let copy = |table: &[f32]| {
            let copy = Tensor::from_slice(table, (self.n_pos, self.half), device);
            copy.map_err(Error::making(OP, device, size_of_val(table)))
        };
        let tensors = [copy(&self.cos)?, copy(&self.sin)?];
        placed.push(tensors.clone());
        Ok(tensors)
    }

    /// Width that is rotated: twice the number of frequencies.
    pub fn d_rot(&self) -> usize {
        2 * self.half
    }

    /// Number of positions.
    pub fn n_pos(&self) -> usize {
        self.n_pos
    }
}

/// Rotates pairs `(x_i, x_{i + r/2})` of the first `r = d_rot` elements by the angle of
/// their position: `y_i = x_i cos − x_{i+r/2} sin`, `y_{i+r/2} = x_{i+r/2} cos + x_i sin`.
/// The other elements stay.
///
/// # Shapes
///
/// `x [batch, pos, head, d]` with `d ≥ d_rot`; `offsets[row]` is the absolute position
/// of a row's first token.
///
/// # Numerics
///
/// `f32` products and sums in the order of the formula.
///
/// # Errors
///
/// [`Error::Shape`]; [`Error::Range`] if a position is not below `n_pos`;
/// [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
///
/// # References
///
/// Su et al., "RoFormer", [arXiv:2104.09864](https://arxiv.org/abs/2104.09864), eq. 34.
pub fn rotary(x: &Tensor, tables: &RotaryTables, offsets: &[usize]) -> Result<Tensor> {
    let &[b, t, h, d] = x.dims() else {
        return Err(Error::shape(OP, "x", "[batch, pos, head, d]", x.dims()));
    };
    let half = tables.half;
    if d < 2 * half {
        let expected = format!("[batch, pos, head, at least {}]", 2 * half);
        return Err(Error::shape(OP, "x", expected, x.dims()));
    }
    if offsets.len() != b {
        return Err(Error::shape(OP, "offsets", format!("[{b}]"), &[offsets.len()]));
    }
    for &offset in offsets {
        if t > tables.n_pos.saturating_sub(offset) {
            let last = offset.saturating_add(t - 1);
            return Err(Error::range(OP, "position", format!("below {}", tables.n_pos), last));
        }
    }
    if let Some(machine) = cuda::machine(x) {
        let [cos, sin] = tables.tensors(x.device())?;
        let offsets = cuda::upload(OP, "offsets", offsets, x.device())?;
        return cuda::rotary::rotary(machine, x, &cos, &sin, &offsets);
    }
    let x = Values::new(OP, "x", x)?;
    let rows = x.rows();
    tensor::by_rows(OP, &[b, t, h, d], h * d, &Rotate { x: &rows, tables, offsets, t, h, d })
}

/// All heads of a token.
struct Rotate<'a> {
    x: &'a Rows<'a>,
    tables: &'a RotaryTables,
    offsets: &'a [usize],
    t: usize,
    h: usize,
    d: usize,
}

impl MakeRow for Rotate<'_> {
    #[inline(always)]
    fn make(&self, token: usize, y: &mut [f32]) {
        let half = self.tables.half;
        let pos = self.offsets[token / self.t] + token % self.t;
        let cos = &self.tables.cos[pos * half..][..half];
        let sin = &self.tables.sin[pos * half..][..half];
        for (head, y) in y.chunks_exact_mut(self.d).enumerate() {
            let x = self.x.row(token * self.h + head);
            let (low, rest) = x.split_at(half);
            let (high, tail) = rest.split_at(half);
            let (y_low, y_rest) = y.split_at_mut(half);
            let (y_high, y_tail) = y_rest.split_at_mut(half);
            for i in 0..half {
                y_low[i] = low[i] * cos[i] - high[i] * sin[i];
                y_high[i] = high[i] * cos[i] + low[i] * sin[i];
            }
            y_tail.copy_from_slice(tail);
        }
    }
}
