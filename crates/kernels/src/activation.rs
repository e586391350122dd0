//! Activation functions and their gated forms.

use candle_core::Tensor;

use crate::tensor::{self, MakeRow, Rows, Values};
use crate::{Error, Result};
use crate::{cuda, math};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ActivationFunction {
    /// `x σ(x)`, σ the logistic function.
    Silu,
    /// `x Φ(x)`, Φ the normal distribution function.
    Gelu,
    /// `½ x (1 + tanh(√(2/π)(x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// `f(x)`, elementwise.
///
/// # Numerics
///
/// In `f32`, within 8 units in the last place of `|x|` of the exact value.
/// NaN stays NaN.
///
/// # Errors
///
/// [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
pub fn activate(f: ActivationFunction, x: &Tensor) -> Result<Tensor> {
    if let Some(machine) = cuda::machine(x) {
        return cuda::activation::activate(machine, f, x);
    }
    match f {
        ActivationFunction::Silu => each(x, math::silu),
        ActivationFunction::Gelu => each(x, math::gelu),
        ActivationFunction::GeluTanh => each(x, math::gelu_tanh),
        ActivationFunction::Relu => each(x, relu),
    }
}

/// `f(gate) · up`, elementwise.
///
/// `gate` and `up` may be views of one tensor, such as the two halves of a fused
/// projection: nothing is copied.
///
/// # Shapes
///
/// `gate` and `up` equal; so is the result.
///
/// # Numerics
///
/// As [`activate`], times `up`.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
///
/// # References
///
/// Shazeer, "GLU variants improve transformer",
/// [arXiv:2002.05202](https://arxiv.org/abs/2002.05202), eq. 6.
pub fn gated(f: ActivationFunction, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if let Some(machine) = cuda::machine(gate) {
        return cuda::activation::gated(machine, f, gate, up);
    }
    match f {
        ActivationFunction::Silu => each_gated(gate, up, math::silu),
        ActivationFunction::Gelu => each_gated(gate, up, math::gelu),
        ActivationFunction::GeluTanh => each_gated(gate, up, math::gelu_tanh),
        ActivationFunction::Relu => each_gated(gate, up, relu),
    }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

fn each(x: &Tensor, f: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
    let x = Values::new("activate", "x", x)?;
    let rows = x.rows();
    tensor::by_rows("activate", x.dims(), rows.width(), &Each { x: &rows, f })
}

fn each_gated(gate: &Tensor, up: &Tensor, f: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
    const OP: &str = "gated activation";
    let (gate, up) = (Values::new(OP, "gate", gate)?, Values::new(OP, "up", up)?);
    if gate.dims() != up.dims() {
        return Err(Error::shape(OP, "up", format!("{:?}", gate.dims()), up.dims()));
    }
    let (gates, ups) = (gate.rows(), up.rows());
    let make = EachGated { gate: &gates, up: &ups, f };
    tensor::by_rows(OP, gate.dims(), gates.width(), &make)
}

struct Each<'a, F> {
    x: &'a Rows<'a>,
    f: F,
}

impl<F: Fn(f32) -> f32 + Sync> MakeRow for Each<'_, F> {
    #[inline(always)]
    fn make(&self, row: usize, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(self.x.row(row)) {
            *y = (self.f)(x);
        }
    }
}

struct EachGated<'a, F> {
    gate: &'a Rows<'a>,
    up: &'a Rows<'a>,
    f: F,
}

impl<F: Fn(f32) -> f32 + Sync> MakeRow for EachGated<'_, F> {
    #[inline(always)]
    fn make(&self, row: usize, y: &mut [f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(self.gate.row(row)).zip(self.up.row(row)) {
            *y = (self.f)(gate) * up;
        }
    }
}
