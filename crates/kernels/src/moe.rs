//! Mixtures of experts.
//!
//! Tokens are grouped by expert, and each group goes through its expert as one
//! matrix product. The results are then summed per token in descending order of
//! the router's score, so that a token's sum never depends on the other tokens.

#![allow(unsafe_code)]

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::activation::{ActivationFunction, gated};
use crate::cuda;
use crate::cuda::Machine;
use crate::cuda::quantized::{Blocks, FEW_ROWS, chosen};
use crate::linear::{Linear, OnDevice, Packed};
use crate::product::{Output, fill};
use crate::router::Routing;
use crate::tensor::{self, MakeRow, Rows, Values};
use crate::{Error, Result};

const OP: &str = "moe";

/// The experts of one layer, each a gated feed-forward network.
#[derive(Clone, Debug)]
pub struct Experts {
    weights: Weights,
    n_experts: usize,
    d_model: usize,
    d_expert: usize,
}

#[derive(Clone, Debug)]
enum Weights {
    /// Packed for the CPU's products.
    Packed { gate_up: Vec<Packed>, down: Vec<Packed> },
    /// On the device that computes the products: `[expert, 2m, d]` and `[expert, d, m]`, the rows
    /// of all experts behind one another where they are quantized. A pass of few tokens then
    /// multiplies with the blocks of the experts that it chose, any other unpacks those of all.
    Placed { gate_up: OnDevice, down: OnDevice },
}

/// One matrix of every expert, `[expert, out, in]`. Where all are quantized alike their blocks lie
/// behind one another and stay so.
fn stacked(linears: Vec<Linear>) -> Result<OnDevice> {
    let blocks = |linear: &Linear| match linear {
        Linear::Placed(placed) => placed.blocks(),
        Linear::Packed(_) => None,
    };
    let blocks: Option<Vec<(Blocks, DType)>> = linears.iter().map(blocks).collect();
    match blocks {
        Some(blocks) if !blocks.is_empty() && alike(&blocks) => {
            drop(linears);
            let dtype = blocks[0].1;
            let blocks = blocks.into_iter().map(|(blocks, _)| blocks).collect();
            Ok(OnDevice::Quantized(Blocks::stack(blocks)?, dtype))
        }
        _ => Ok(OnDevice::Dense(stack(linears)?)),
    }
}

fn alike(blocks: &[(Blocks, DType)]) -> bool {
    let kind = |(blocks, dtype): &(Blocks, DType)| (blocks.encoding().name, *dtype);
    blocks.windows(2).all(|pair| kind(&pair[0]) == kind(&pair[1]))
}

impl Experts {
    /// Experts `e` with `gate_up[e]` from `d` to `2m`, the gate's outputs in the first
    /// half, and `down[e]` from `m` to `d`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the numbers or the widths do not agree, or without experts;
    /// [`Error::Candle`] if experts on a device cannot be put behind one another there, for
    /// instance because they are on several.
    pub fn new(gate_up: Vec<Linear>, down: Vec<Linear>) -> Result<Self> {
        let (Some(first), true) = (down.first(), gate_up.len() == down.len()) else {
            let expected = format!("[{} experts], at least 1", gate_up.len());
            return Err(Error::shape(OP, "down", expected, &[down.len()]));
        };
        let (d_model, d_expert) = (first.d_out(), first.d_in());
        for (gate_up, down) in gate_up.iter().zip(&down) {
            if [gate_up.d_out(), gate_up.d_in()] != [2 * d_expert, d_model] {
                let expected = format!("[{}, {d_model}]", 2 * d_expert);
                let got = [gate_up.d_out(), gate_up.d_in()];
                return Err(Error::shape(OP, "gate_up", expected, &got));
            }
            if [down.d_out(), down.d_in()] != [d_model, d_expert] {
                let expected = format!("[{d_model}, {d_expert}]");
                return Err(Error::shape(OP, "down", expected, &[down.d_out(), down.d_in()]));
            }
        }
        let n_experts = down.len();
        let weights = Weights::new(gate_up, down)?;
        Ok(Self { weights, n_experts, d_model, d_expert })
    }

    /// Number of experts.
    pub fn n_experts(&self) -> usize {
        self.n_experts
    }
}

impl Weights {
    fn new(gate_up: Vec<Linear>, down: Vec<Linear>) -> Result<Self> {
        if [&gate_up, &down].into_iter().flatten().any(|linear| matches!(linear, Linear::Placed(_)))
        {
            return Ok(Self::Placed { gate_up: stacked(gate_up)?, down: stacked(down)? });
        }
        let packed = |linears: Vec<Linear>| {
            let packed = |linear| match linear {
                Linear::Packed(packed) => Some(packed),
                Linear::Placed(_) => None,
            };
            linears.into_iter().filter_map(packed).collect()
        };
        Ok(Self::Packed { gate_up: packed(gate_up), down: packed(down) })
    }
}

/// The weights as one tensor; each is let go when it is there.
fn stack(linears: Vec<Linear>) -> Result<Tensor> {
    let n = linears.len();
    let mut all: Option<Tensor> = None;
    for (expert, linear) in linears.into_iter().enumerate() {
        let weight = linear.weight()?;
        let zeros = || {
            let (rows, columns) = weight.dims2()?;
            Tensor::zeros((n, rows, columns), weight.dtype(), weight.device())
        };
        let made = cuda::bytes(weight.dtype(), weight.dims()).saturating_mul(n);
        let stacked = all.take().map_or_else(zeros, Ok);
        let stacked = stacked.and_then(|stacked| {
            stacked.slice_set(&weight.unsqueeze(0)?, 0, expert)?;
            Ok(stacked)
        });
        all = Some(stacked.map_err(Error::making(OP, weight.device(), made))?);
    }
    all.ok_or_else(|| Error::shape(OP, "the experts", "at least 1", &[0]))
}

/// [`moe`] of experts on a device. Quantized ones of many tokens are unpacked for it, all of them,
/// whichever are chosen: that is not known here.
fn placed(
    machine: Machine,
    x: &Tensor,
    routing: &Routing,
    experts: &Experts,
    [gate_up, down]: [&OnDevice; 2],
    f: ActivationFunction,
) -> Result<Tensor> {
    if let (OnDevice::Quantized(gate_up, dtype), OnDevice::Quantized(down, _), &[n, _]) =
        (gate_up, down, x.dims())
        && n <= FEW_ROWS
    {
        let made = cuda::bytes(*dtype, x.dims());
        let x = x.to_dtype(*dtype).map_err(Error::making(OP, x.device(), made))?;
        return few(machine, &x, routing, [gate_up, down], experts.d_expert, f);
    }
    let whole = |weight: &OnDevice, d_in: usize| {
        let shape = (experts.n_experts, (), d_in);
        weight.tensor()?.reshape(shape).map_err(Error::candle(OP))
    };
    let (gate_up, down) = (whole(gate_up, experts.d_model)?, whole(down, experts.d_expert)?);
    cuda::moe::moe(machine, x, routing, &gate_up, &down, f)
}

/// [`moe`] of few tokens with quantized experts: two products with the blocks of the chosen ones.
///
/// Products are accumulated in `f32` and rounded to the dtype of the weights' products, as is the
/// hidden layer; the weighted sum is in `f32`. An index that is no expert makes its token NaN.
fn few(
    machine: Machine,
    x: &Tensor,
    routing: &Routing,
    [gate_up, down]: [&Blocks; 2],
    d_expert: usize,
    f: ActivationFunction,
) -> Result<Tensor> {
    let (n, d) = x.dims2().map_err(Error::candle(OP))?;
    let &[rows, k] = routing.indices.dims() else {
        return Err(Error::shape(OP, "indices", format!("[{n}, k]"), routing.indices.dims()));
    };
    if rows != n {
        return Err(Error::shape(OP, "indices", format!("[{n}, k]"), &[rows, k]));
    }
    if routing.weights.dims() != [n, k] {
        return Err(Error::shape(OP, "weights", format!("[{n}, {k}]"), routing.weights.dims()));
    }
    let indices = routing.indices.flatten_all().map_err(Error::candle(OP))?;
    let fused = chosen(machine, x, gate_up, &indices, 2 * d_expert)?;
    let half = |start| fused.narrow(1, start, d_expert).map_err(Error::candle(OP));
    let hidden = cuda::activation::gated(machine, f, &half(0)?, &half(d_expert)?)?;
    let y = chosen(machine, &hidden, down, &indices, d)?;
    let sum = || {
        let y = y.to_dtype(DType::F32)?.reshape((n, k, d))?;
        let weights = routing.weights.to_dtype(DType::F32)?.unsqueeze(2)?;
        y.broadcast_mul(&weights)?.sum(1)?.to_dtype(x.dtype())
    };
    let made = cuda::bytes(DType::F32, &[n, k, d]);
    sum().map_err(Error::making(OP, x.device(), made))
}

/// `y_t = Σ_r w_tr · down(f(gate(x_t)) · up(x_t))`, expert `indices[t, r]`.
///
/// # Shapes
///
/// `x [n, d]`, routing of the same `n` tokens; gives `[n, d]`.
///
/// # Numerics
///
/// `f32`, summed in ascending rank `r`; each token's result is bit-identical
/// whichever tokens come with it.
///
/// # Errors
///
/// [`Error::Shape`]; [`Error::Range`] for an index that is no expert;
/// [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
pub fn moe(
    x: &Tensor,
    routing: &Routing,
    experts: &Experts,
    f: ActivationFunction,
) -> Result<Tensor> {
    let (gate_up, down) = match (&experts.weights, cuda::machine(x)) {
        (Weights::Packed { gate_up, down }, _) => (gate_up, down),
        (Weights::Placed { gate_up, down }, Some(machine)) => {
            return placed(machine, x, routing, experts, [gate_up, down], f);
        }
        (Weights::Placed { gate_up, .. }, None) => {
            let got = format!("{:?}", gate_up.device().location());
            return Err(Error::Device { op: OP, what: "an expert", got });
        }
    };
    let values = Values::new(OP, "x", x)?;
    let d = experts.d_model;
    let n = match values.dims() {
        &[n, width] if width == d => n,
        dims => return Err(Error::shape(OP, "x", format!("[n, {d}]"), dims)),
    };
    let k = match routing.indices.dims() {
        &[rows, k] if rows == n => k,
        dims => return Err(Error::shape(OP, "indices", format!("[{n}, k]"), dims)),
    };
    let weights = Values::new(OP, "weights", &routing.weights)?;
    if weights.dims() != [n, k] {
        return Err(Error::shape(OP, "weights", format!("[{n}, {k}]"), weights.dims()));
    }
    let indices: Vec<u32> = routing
        .indices
        .flatten_all()
        .and_then(|indices| indices.to_vec1())
        .map_err(Error::candle(OP))?;

    // The slots (token · k + rank) of each expert, ascending.
    let mut groups = vec![Vec::new(); experts.n_experts()];
    for (slot, &index) in indices.iter().enumerate() {
        match groups.get_mut(index as usize) {
            Some(group) => group.push(slot),
            None => {
                let expected = format!("below {}, the number of experts", experts.n_experts());
                return Err(Error::range(OP, "expert index", expected, index));
            }
        }
    }
    // Where each slot's output is: expert and row within its group.
    let mut places = vec![(0, 0); indices.len()];
    for (expert, group) in groups.iter().enumerate() {
        for (row, &slot) in group.iter().enumerate() {
            places[slot] = (expert, row);
        }
    }

    let rows = values.rows();
    let outputs: Vec<Option<Tensor>> = groups
        .par_iter()
        .enumerate()
        .with_max_len(1)
        .map(|(expert, group)| {
            if group.is_empty() {
                return Ok(None);
            }
            let dims = [group.len(), 2 * experts.d_expert];
            let size = tensor::size(OP, "hidden", &dims)?;
            let write = |y: Output| {
                gate_up[expert].apply(group.len(), |i| rows.row(group[i] / k), y);
            };
            // SAFETY: the product writes every element.
            let fused = tensor::tensor(OP, unsafe { fill(size, write) }, &dims)?;
            let half = |start: usize| fused.narrow(1, start, experts.d_expert);
            let gate = half(0).map_err(Error::candle(OP))?;
            let up = half(experts.d_expert).map_err(Error::candle(OP))?;
            down[expert].forward(&gated(f, &gate, &up)?).map(Some)
        })
        .collect::<Result<_>>()?;

    let outputs: Vec<Option<Values>> = outputs
        .iter()
        .map(|output| output.as_ref().map(|y| Values::new(OP, "output", y)).transpose())
        .collect::<Result<_>>()?;
    let make = Combine { outputs: &outputs, places: &places, weights: &weights.rows(), k };
    tensor::by_rows(OP, &[n, d], d, &make)
}

/// The weighted sum of a token's outputs.
struct Combine<'a> {
    outputs: &'a [Option<Values<'a>>],
    places: &'a [(usize, usize)],
    weights: &'a Rows<'a>,
    k: usize,
}

impl MakeRow for Combine<'_> {
    #[inline(always)]
    fn make(&self, token: usize, y: &mut [f32]) {
        let places = &self.places[token * self.k..];
        for (&(expert, row), &weight) in places.iter().zip(self.weights.row(token)) {
            if let Some(output) = &self.outputs[expert] {
                let output = &output.data()[row * y.len()..];
                for (y, &output) in y.iter_mut().zip(output) {
                    *y = weight.mul_add(output, *y);
                }
            }
        }
    }
}
