//! Mixtures of experts, `kernels/moe.cu`, `kernels/moe_sort.cu` and `kernels/moe_few.cu`.
//!
//! The one decision that shapes this module: nothing is read back. The host knows the number of
//! routed entries but not how they spread over the experts, so each launch has as many blocks as
//! the worst spread wants, and blocks without work leave. An operation of several launches is a
//! function over the [`Machine`] that runs them: later plans take what earlier ones gave.

use candle_core::{DType, Tensor};

use super::{Argument, Call, Machine, PACK_BYTES, Plan, blocks, contiguous_rows, expect, suffix};
use super::{one, several};
use crate::activation::ActivationFunction;
use crate::router::Routing;
use crate::{Error, Result};

const OP: &str = "moe";
const MAX_EXPERTS: usize = 512;
const MAX_CHOSEN: usize = 16;
/// Routed entries, which kernels count in 32 bits.
const MAX_SLOTS: usize = (1 << 31) - 1;
/// Up to this many tokens each chosen expert's weights are read row by row, by `moe_few.cu`.
const FEW_TOKENS: usize = 8;
/// Threads of a block where nothing else is said.
const THREADS: usize = 256;
/// Slots that a block sorts.
const PIECE: usize = 2048;

/// What multiplies a group of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiles {
    /// 128 slots at once.
    Tall,
    /// 32 slots at once, for experts with few.
    Flat,
}

impl Tiles {
    /// For `slots` routed entries and `e` experts: tall ones once half of one is an expert's share.
    fn of(slots: usize, e: usize) -> Self {
        if slots >= 64 * e { Self::Tall } else { Self::Flat }
    }

    /// Slots of a tile.
    pub fn rows(self) -> usize {
        match self {
            Self::Tall => 128,
            Self::Flat => 32,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tall => "tall",
            Self::Flat => "flat",
        }
    }

    fn threads(self, dtype: DType) -> u32 {
        match (self, dtype) {
            (Self::Tall, DType::F32) => 256,
            _ => 128,
        }
    }

    /// Steps of 128 bytes for each slot and each of 128 rows of weights.
    fn shared_bytes(self) -> u32 {
        let steps = match self {
            Self::Tall => 3,
            Self::Flat => 4,
        };
        steps * (self.rows() as u32 + 128) * 128
    }

    /// How many tiles there can be: each expert that has slots has one that may not be full.
    fn most(self, slots: usize, e: usize) -> usize {
        (slots + (self.rows() - 1) * e.min(slots)) / self.rows()
    }
}

/// Routed entries by expert, of `e` experts.
#[derive(Clone, Debug)]
pub struct Groups {
    /// `[n k]`: slots (token · k + rank) of each expert, ascending, then those that are no expert's.
    pub slots: Tensor,
    /// `[e + 1]`: where each expert's begin; the last: where those that are no expert's do.
    pub starts: Tensor,
    /// `[e + 1]`: how many tiles there are before each expert's; the last: how many in all.
    pub tiles: Tensor,
}

/// [`crate::moe::moe`] of experts whose weights lie in one tensor each, without waiting for it.
///
/// # Shapes
///
/// `x [n, d]` at any stride between rows, routing `indices` and `weights [n, k]` of the same
/// tokens, `gate_up [e, 2m, d]` with the gate's rows first, `down [e, d, m]`; gives `[n, d]`.
/// `x`, `gate_up`, `down` and the result have one dtype.
///
/// # Numerics
///
/// Products are accumulated in `f32`. The hidden layer `[n k, m]` is rounded to the dtype; what
/// `down` gives stays `f32` (`4 n k d` bytes for the time of the operation) until it is summed in
/// ascending rank and rounded once. A token's result has the same bits whichever tokens come with
/// it, as long as they are at most 8 or more than 8: few tokens are summed in another order. No
/// sum depends on the order in which threads run.
///
/// An index that is no expert makes its token's result NaN: here nobody reads it to refuse it.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`]; [`Error::Range`] for more than 512
/// experts, `k` that is not 1 to 16, 2³¹ routed entries and more, a dtype that kernels do not
/// store; those of the machine.
pub fn moe(
    machine: Machine,
    x: &Tensor,
    routing: &Routing,
    gate_up: &Tensor,
    down: &Tensor,
    f: ActivationFunction,
) -> Result<Tensor> {
    let sizes = Sizes::of(x, routing, gate_up, down)?;
    let indices = &routing.indices;
    if sizes.n == 0 {
        return one(machine, &sizes.sum(None, routing)?);
    }
    let y = if sizes.n <= FEW_TOKENS {
        let hidden = one(machine, &sizes.few_gate_up(x, indices, gate_up, f)?)?;
        one(machine, &sizes.few_down(&hidden, indices, down)?)?
    } else {
        let tiles = Tiles::of(sizes.slots(), sizes.e);
        let groups = group(machine, indices, sizes.e, tiles)?;
        let hidden = one(machine, &sizes.gate_up(x, &groups, gate_up, f, tiles)?)?;
        one(machine, &sizes.down(&hidden, &groups, down, tiles)?)?
    };
    one(machine, &sizes.sum(Some(&y), routing)?)
}

/// Sorts `indices [n, k]` of `e` experts, for tiles of this height. Stable, hence deterministic.
///
/// # Errors
///
/// As [`moe`].
pub fn group(machine: Machine, indices: &Tensor, e: usize, tiles: Tiles) -> Result<Groups> {
    let &[n, k] = indices.dims() else {
        return Err(Error::shape(OP, "indices", "[n, k]", indices.dims()));
    };
    expect(OP, "indices", indices, DType::U32, &[n, k])?;
    check_counts(n, k, e)?;
    let slots = n * k;
    if slots == 0 {
        let zeros = |length: usize| Tensor::zeros(length, DType::U32, indices.device());
        let groups =
            || Ok(Groups { slots: zeros(0)?, starts: zeros(e + 1)?, tiles: zeros(e + 1)? });
        return groups().map_err(Error::candle(OP));
    }
    let pieces = slots.div_ceil(PIECE);
    let call = |entry: &str, count: usize, arguments: Vec<Argument>| -> Result<Option<Call>> {
        let grid = [blocks(OP, count)?, 1, 1];
        Ok(Some(call("moe_sort", entry, grid, THREADS as u32, 0, arguments)))
    };
    let size = Argument::Size;

    let arguments = vec![Argument::Input(0), Argument::Output(0), size(slots), size(e)];
    let count = Plan {
        op: OP,
        inputs: vec![indices],
        outputs: vec![(DType::U32, vec![e + 1, pieces])],
        call: call("moe_sort_count_u32", pieces, arguments)?,
    };
    let counts = one(machine, &count)?;

    let arguments =
        vec![Argument::Input(0), Argument::Output(0), Argument::Output(1), size(pieces)];
    let scan = Plan {
        op: OP,
        inputs: vec![&counts],
        outputs: vec![(DType::U32, vec![e + 1, pieces]), (DType::U32, vec![e + 1])],
        call: call("moe_sort_scan_u32", e + 1, arguments)?,
    };
    let [starts, totals] = several(machine, &scan)?;

    let mut arguments: Vec<Argument> = (0..3).map(Argument::Input).collect();
    arguments.extend((0..3).map(Argument::Output));
    arguments.extend([size(slots), size(e), size(tiles.rows())]);
    let scatter = Plan {
        op: OP,
        inputs: vec![indices, &starts, &totals],
        outputs: [slots, e + 1, e + 1].map(|length| (DType::U32, vec![length])).to_vec(),
        call: call("moe_sort_scatter_u32", pieces, arguments)?,
    };
    let [slots, starts, tiles] = several(machine, &scatter)?;
    Ok(Groups { slots, starts, tiles })
}

fn call(
    module: &'static str,
    entry: &str,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    arguments: Vec<Argument>,
) -> Call {
    let block = [threads, 1, 1];
    Call { module, entry: entry.to_owned(), grid, block, shared_bytes, arguments }
}

fn check_counts(n: usize, k: usize, e: usize) -> Result<()> {
    if e == 0 || e > MAX_EXPERTS {
        let expected = format!("1 to {MAX_EXPERTS} on a gpu");
        return Err(Error::range(OP, "the number of experts", expected, e));
    }
    if k == 0 || k > MAX_CHOSEN {
        return Err(Error::range(OP, "k", format!("1 to {MAX_CHOSEN} on a gpu"), k));
    }
    if n > MAX_SLOTS / k {
        let expected = format!("at most {MAX_SLOTS}; give fewer tokens at once");
        let got = n.saturating_mul(k);
        return Err(Error::range(OP, "the number of routed entries", expected, got));
    }
    Ok(())
}

/// The number of an activation function in `kernels/common/activations.cuh`.
fn number(f: ActivationFunction) -> Argument {
    Argument::Size(match f {
        ActivationFunction::Silu => 0,
        ActivationFunction::Gelu => 1,
        ActivationFunction::GeluTanh => 2,
        ActivationFunction::Relu => 3,
    })
}

/// The sizes of an operation whose tensors were checked.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n: usize,
    k: usize,
    e: usize,
    d: usize,
    m: usize,
    x_stride: usize,
    dtype: DType,
    suffix: &'static str,
}

impl Sizes {
    fn of(x: &Tensor, routing: &Routing, gate_up: &Tensor, down: &Tensor) -> Result<Self> {
        let dtype = x.dtype();
        let suffix = suffix(OP, dtype)?;
        let &[e, d, m] = down.dims() else {
            return Err(Error::shape(OP, "down", "[e, d, m]", down.dims()));
        };
        if d == 0 || m == 0 {
            return Err(Error::shape(OP, "down", "[e, d, m], d and m at least 1", down.dims()));
        }
        let n = match x.dims() {
            &[n, width] if width == d => n,
            dims => return Err(Error::shape(OP, "x", format!("[n, {d}]"), dims)),
        };
        contiguous_rows(OP, "x", x)?;
        let k = match routing.indices.dims() {
            &[rows, k] if rows == n => k,
            dims => return Err(Error::shape(OP, "indices", format!("[{n}, k]"), dims)),
        };
        check_counts(n, k, e)?;
        let width = crate::tensor::size(OP, "gate_up", &[2, m])?;
        expect(OP, "indices", &routing.indices, DType::U32, &[n, k])?;
        expect(OP, "weights", &routing.weights, DType::F32, &[n, k])?;
        expect(OP, "gate_up", gate_up, dtype, &[e, width, d])?;
        expect(OP, "down", down, dtype, &[e, d, m])?;
        for width in [m, d] {
            crate::tensor::size(OP, "hidden", &[n, k, width])?;
        }
        let x_stride = x.stride()[0];
        Ok(Self { n, k, e, d, m, x_stride, dtype, suffix })
    }

    fn slots(&self) -> usize {
        self.n * self.k
    }

    /// `hidden [n k, m]` of sorted slots.
    fn gate_up<'a>(
        &self,
        x: &'a Tensor,
        groups: &'a Groups,
        weights: &'a Tensor,
        f: ActivationFunction,
        tiles: Tiles,
    ) -> Result<Plan<'a>> {
        let sizes = [self.x_stride, self.k, self.e, self.d, self.m];
        let inputs = vec![x, weights, &groups.slots, &groups.starts, &groups.tiles];
        let mut arguments = arguments(&inputs, &sizes);
        arguments.push(number(f));
        let outputs = vec![(self.dtype, vec![self.slots(), self.m])];
        let call = self.tiled("gate_up", tiles, self.m.div_ceil(64), arguments)?;
        Ok(Plan { op: OP, inputs, outputs, call: Some(call) })
    }

    /// `y [n k, d]` in `f32`, in the order of slots.
    fn down<'a>(
        &self,
        hidden: &'a Tensor,
        groups: &'a Groups,
        weights: &'a Tensor,
        tiles: Tiles,
    ) -> Result<Plan<'a>> {
        let inputs = vec![hidden, weights, &groups.slots, &groups.starts, &groups.tiles];
        let arguments = arguments(&inputs, &[self.e, self.d, self.m]);
        let outputs = vec![(DType::F32, vec![self.slots(), self.d])];
        let call = self.tiled("down", tiles, self.d.div_ceil(128), arguments)?;
        Ok(Plan { op: OP, inputs, outputs, call: Some(call) })
    }

    fn tiled(
        &self,
        step: &str,
        tiles: Tiles,
        columns: usize,
        arguments: Vec<Argument>,
    ) -> Result<Call> {
        let count = tiles.most(self.slots(), self.e).saturating_mul(columns);
        let entry = format!("moe_{step}_{}_{}", tiles.name(), self.suffix);
        let grid = [blocks(OP, count)?, 1, 1];
        Ok(call("moe", &entry, grid, tiles.threads(self.dtype), tiles.shared_bytes(), arguments))
    }

    /// `hidden [n k, m]` in the order of slots.
    fn few_gate_up<'a>(
        &self,
        x: &'a Tensor,
        indices: &'a Tensor,
        weights: &'a Tensor,
        f: ActivationFunction,
    ) -> Result<Plan<'a>> {
        let inputs = vec![x, indices, weights];
        let sizes = [self.x_stride, self.slots(), self.k, self.e, self.d, self.m];
        let mut arguments = arguments(&inputs, &sizes);
        arguments.push(number(f));
        let outputs = vec![(self.dtype, vec![self.slots(), self.m])];
        let call = self.few("gate_up", self.m.div_ceil(16), arguments)?;
        Ok(Plan { op: OP, inputs, outputs, call: Some(call) })
    }

    fn few_down<'a>(
        &self,
        hidden: &'a Tensor,
        indices: &'a Tensor,
        weights: &'a Tensor,
    ) -> Result<Plan<'a>> {
        let inputs = vec![hidden, indices, weights];
        let arguments = arguments(&inputs, &[self.slots(), self.e, self.d, self.m]);
        let outputs = vec![(DType::F32, vec![self.slots(), self.d])];
        let call = self.few("down", self.d.div_ceil(32), arguments)?;
        Ok(Plan { op: OP, inputs, outputs, call: Some(call) })
    }

    fn few(&self, step: &str, columns: usize, arguments: Vec<Argument>) -> Result<Call> {
        let grid = [blocks(OP, columns)?, self.slots() as u32, 1];
        let entry = format!("moe_few_{step}_{}", self.suffix);
        Ok(call("moe_few", &entry, grid, THREADS as u32, 0, arguments))
    }

    /// The result, of `y` where there are tokens.
    fn sum<'a>(&self, y: Option<&'a Tensor>, routing: &'a Routing) -> Result<Plan<'a>> {
        const SUM_THREADS: usize = 128;
        let outputs = vec![(self.dtype, vec![self.n, self.d])];
        let inputs: Vec<&Tensor> =
            y.into_iter().chain([&routing.indices, &routing.weights]).collect();
        let pieces = self.d.div_ceil(SUM_THREADS * PACK_BYTES / self.dtype.size_in_bytes());
        let grid = [blocks(OP, self.n.saturating_mul(pieces))?, 1, 1];
        let arguments = arguments(&inputs, &[self.k, self.e, self.d]);
        let entry = format!("moe_sum_{}", self.suffix);
        let call = y.map(|_| call("moe", &entry, grid, SUM_THREADS as u32, 0, arguments));
        Ok(Plan { op: OP, inputs, outputs, call })
    }
}

/// Pointers to all inputs and to the one result, then sizes.
fn arguments(inputs: &[&Tensor], sizes: &[usize]) -> Vec<Argument> {
    let inputs = (0..inputs.len()).map(Argument::Input);
    let sizes = sizes.iter().copied().map(Argument::Size);
    inputs.chain([Argument::Output(0)]).chain(sizes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_suffice_for_every_spread() {
        // All slots of one expert, or spread so that every expert's last tile has one slot.
        for tiles in [Tiles::Tall, Tiles::Flat] {
            let rows = tiles.rows();
            for (counts, most) in [
                (vec![0, 0, 5], 3),
                (vec![1, 1, 1], 3),
                (vec![rows, 0, 0], 3),
                (vec![rows + 1, 1, 1], 4),
                (vec![3 * rows + 1, rows + 1, 1], 7),
                (vec![10 * rows, 0, 0], 12),
            ] {
                let slots: usize = counts.iter().sum();
                let needed: usize = counts.iter().map(|count| count.div_ceil(rows)).sum();
                let got = tiles.most(slots, counts.len());
                assert!(needed <= got && got <= most, "{counts:?}: {needed} {got} {most}");
            }
        }
        assert_eq!(Tiles::Flat.most(1, 512), 1);
        assert_eq!(Tiles::Flat.most(0, 512), 0);
    }

    #[test]
    fn tall_tiles_once_they_are_half_full() {
        assert_eq!(Tiles::of(64 * 8, 8), Tiles::Tall);
        assert_eq!(Tiles::of(64 * 8 - 1, 8), Tiles::Flat);
        assert_eq!((Tiles::Tall.shared_bytes(), Tiles::Flat.shared_bytes()), (98_304, 81_920));
    }
}
