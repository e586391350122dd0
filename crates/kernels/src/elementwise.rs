//! Sums, multiples and soft caps of whole tensors.
//!
//! On the CPU they run on the threads of every other operation: candle's own take a pool of
//! theirs, as large as the machine, whatever number of threads was asked for.

use candle_core::Tensor;

use crate::tensor::{self, MakeRow, Rows, Values};
use crate::{Error, Result};
use crate::{cuda, math};

/// `x + y`, elementwise, rounded once.
///
/// # Shapes
///
/// `x` and `y` equal; so is the result.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`];
/// [`Error::Candle`] on a device.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    if x.dims() != y.dims() {
        return Err(Error::shape(OP, "y", format!("{:?}", x.dims()), y.dims()));
    }
    if cuda::machine(x).is_some() {
        return (x + y).map_err(making(OP, x));
    }
    let (x, y) = (Values::new(OP, "x", x)?, Values::new(OP, "y", y)?);
    let (xs, ys) = (x.rows(), y.rows());
    tensor::by_rows(OP, x.dims(), xs.width(), &Sums { x: &xs, y: &ys })
}

/// `factor · x`, elementwise; on the CPU with the factor rounded to `f32`.
///
/// # Errors
///
/// [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`]; [`Error::Candle`] on a device.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    const OP: &str = "scale";
    if cuda::machine(x).is_some() {
        return (x * factor).map_err(making(OP, x));
    }
    let x = Values::new(OP, "x", x)?;
    let rows = x.rows();
    tensor::by_rows(OP, x.dims(), rows.width(), &Scaled { x: &rows, factor: factor as f32 })
}

/// `cap · tanh(x / cap)`, elementwise: values stay between `-cap` and `cap`.
///
/// # Errors
///
/// [`Error::Range`] for a cap that is not a positive, finite number; those of [`scale`].
///
/// # References
///
/// Gemma Team, "Gemma 2: Improving open language models at a practical size",
/// [arXiv:2408.00118](https://arxiv.org/abs/2408.00118), section 2.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    const OP: &str = "soft cap";
    if !(cap.is_finite() && cap > 0.0) {
        return Err(Error::range(OP, "cap", "a positive, finite number", cap));
    }
    if cuda::machine(x).is_some() {
        let capped = (x * (1.0 / cap)).and_then(|x| x.tanh()).and_then(|x| x * cap);
        return capped.map_err(making(OP, x));
    }
    let x = Values::new(OP, "x", x)?;
    let rows = x.rows();
    let make = Capped { x: &rows, inverse: (1.0 / cap) as f32, cap: cap as f32 };
    tensor::by_rows(OP, x.dims(), rows.width(), &make)
}

/// The error of an operation on a device whose result is as large as `x`.
fn making(op: &'static str, x: &Tensor) -> impl FnOnce(candle_core::Error) -> Error {
    Error::making(op, x.device(), cuda::bytes(x.dtype(), x.dims()))
}

struct Sums<'a> {
    x: &'a Rows<'a>,
    y: &'a Rows<'a>,
}

impl MakeRow for Sums<'_> {
    #[inline(always)]
    fn make(&self, row: usize, sums: &mut [f32]) {
        for ((sum, x), y) in sums.iter_mut().zip(self.x.row(row)).zip(self.y.row(row)) {
            *sum = x + y;
        }
    }
}

struct Scaled<'a> {
    x: &'a Rows<'a>,
    factor: f32,
}

impl MakeRow for Scaled<'_> {
    #[inline(always)]
    fn make(&self, row: usize, y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(self.x.row(row)) {
            *y = x * self.factor;
        }
    }
}

struct Capped<'a> {
    x: &'a Rows<'a>,
    inverse: f32,
    cap: f32,
}

impl MakeRow for Capped<'_> {
    #[inline(always)]
    fn make(&self, row: usize, y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(self.x.row(row)) {
            *y = self.cap * math::tanh(x * self.inverse);
        }
    }
}
