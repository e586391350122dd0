//! From router logits to the chosen experts and their weights, `kernels/router.cu`.

use candle_core::{DType, Tensor};

use super::{Argument, Call, Machine, Plan, Rows, WARP, blocks, several};
use crate::router::{Routing, Selection};
use crate::{Error, Result};

const OP: &str = "route";
/// A lane holds every 32nd expert of a row in registers.
const MAX_EXPERTS: usize = 512;
const MAX_CHOSEN: usize = 16;
const ROWS_OF_A_BLOCK: usize = 4;

/// [`crate::router::route`] on a GPU, without waiting for it.
///
/// # Numerics
///
/// In `f32`; sums over lanes as a tree. Experts are chosen by their logits, hence exactly as on a
/// CPU. Weights that are not renormalised are the probabilities, bit for bit.
///
/// # Errors
///
/// Those of [`plan`] and of the machine.
pub fn route(machine: Machine, logits: &Tensor, k: usize, rule: Selection) -> Result<Routing> {
    let [probs, indices, weights] = several(machine, &plan(logits, k, rule)?)?;
    Ok(Routing { probs, indices, weights })
}

/// The launch for `logits [n, expert]`, `f32`; its results are probabilities `[n, expert]`, indices
/// `[n, k]` (`u32`) and weights `[n, k]`.
///
/// # Errors
///
/// [`Error::Range`] unless `1 ≤ k ≤` the number of experts, and for more than 16 chosen of them,
/// more than 512 experts or too many rows; [`Error::Shape`], [`Error::DType`],
/// [`Error::NonContiguous`].
pub fn plan(logits: &Tensor, k: usize, rule: Selection) -> Result<Plan<'_>> {
    if logits.dtype() != DType::F32 {
        let got = logits.dtype();
        return Err(Error::DType { op: OP, what: "logits", expected: DType::F32, got });
    }
    let &[n, e] = logits.dims() else {
        return Err(Error::shape(OP, "logits", "[n, expert]", logits.dims()));
    };
    let rows = Rows::of(OP, "logits", logits)?;
    if e > MAX_EXPERTS {
        let expected = format!("at most {MAX_EXPERTS} on a gpu");
        return Err(Error::range(OP, "the number of experts", expected, e));
    }
    if k == 0 || k > e {
        let expected = format!("at least 1 and at most {e}, the number of experts");
        return Err(Error::range(OP, "k", expected, k));
    }
    if k > MAX_CHOSEN {
        return Err(Error::range(OP, "k", format!("at most {MAX_CHOSEN} on a gpu"), k));
    }
    let entry = match rule {
        Selection::SoftmaxTopK { renormalise: false } => "router_softmax_f32",
        Selection::SoftmaxTopK { renormalise: true } => "router_softmax_renormalised_f32",
    };
    let grid = [blocks(OP, n.div_ceil(ROWS_OF_A_BLOCK))?, 1, 1];
    let call = (n > 0).then(|| Call {
        module: "router",
        entry: entry.to_owned(),
        grid,
        block: [WARP as u32, ROWS_OF_A_BLOCK as u32, 1],
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Output(0),
            Argument::Output(1),
            Argument::Output(2),
            Argument::Rows(rows),
            Argument::Size(n),
            Argument::Size(e),
            Argument::Size(k),
        ],
    });
    let outputs =
        vec![(DType::F32, vec![n, e]), (DType::U32, vec![n, k]), (DType::F32, vec![n, k])];
    Ok(Plan { op: OP, inputs: vec![logits], outputs, call })
}
