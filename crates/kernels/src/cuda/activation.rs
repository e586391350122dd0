//! Activation functions and their gated forms, `kernels/activation.cu`.

use candle_core::Tensor;

use super::{Argument, Call, Machine, PACK_BYTES, Plan, Rows, blocks, one, suffix};
use crate::activation::ActivationFunction;
use crate::{Error, Result};

const OP: &str = "activation";
const THREADS: usize = 128;

/// [`crate::activation::activate`] on a GPU.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn activate(machine: Machine, f: ActivationFunction, x: &Tensor) -> Result<Tensor> {
    one(machine, &plan(f, x, None)?)
}

/// [`crate::activation::gated`] on a GPU: `gate` and `up` may be views of one tensor.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn gated(
    machine: Machine,
    f: ActivationFunction,
    gate: &Tensor,
    up: &Tensor,
) -> Result<Tensor> {
    one(machine, &plan(f, gate, Some(up))?)
}

/// The launch for `f(x)`, or `f(x) · up`, `x` and `up [.., d]` of one stored dtype.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`], [`Error::Range`] for a dtype that
/// kernels do not store or too many elements.
pub fn plan<'a>(f: ActivationFunction, x: &'a Tensor, up: Option<&'a Tensor>) -> Result<Plan<'a>> {
    let rows = Rows::of(OP, "x", x)?;
    let Some(&d) = x.dims().last() else {
        return Err(Error::shape(OP, "x", "[.., d]", x.dims()));
    };
    let mut inputs = vec![x];
    let mut all_rows = vec![Argument::Rows(rows)];
    let mut pointers = vec![Argument::Input(0)];
    if let Some(up) = up {
        if up.dtype() != x.dtype() {
            return Err(Error::DType { op: OP, what: "up", expected: x.dtype(), got: up.dtype() });
        }
        if up.dims() != x.dims() {
            return Err(Error::shape(OP, "up", format!("{:?}", x.dims()), up.dims()));
        }
        inputs.push(up);
        all_rows.push(Argument::Rows(Rows::of(OP, "up", up)?));
        pointers.push(Argument::Input(1));
    }
    let name = match f {
        ActivationFunction::Silu => "silu",
        ActivationFunction::Gelu => "gelu",
        ActivationFunction::GeluTanh => "gelu_tanh",
        ActivationFunction::Relu => "relu",
    };
    let form = if up.is_some() { "gated_" } else { "" };
    let entry = format!("activation_{form}{name}_{}", suffix(OP, x.dtype())?);
    let n = rows.count();
    let piece = THREADS * (PACK_BYTES / x.dtype().size_in_bytes());
    let grid = [blocks(OP, n.saturating_mul(d.div_ceil(piece)))?, 1, 1];
    pointers.push(Argument::Output(0));
    pointers.append(&mut all_rows);
    pointers.push(Argument::Size(d));
    let call = (n * d > 0).then_some(Call {
        module: "activation",
        entry,
        grid,
        block: [THREADS as u32, 1, 1],
        shared_bytes: 0,
        arguments: pointers,
    });
    Ok(Plan { op: OP, inputs, outputs: vec![(x.dtype(), x.dims().to_vec())], call })
}
