//! The kernels of `kernels/*.cu`: what to launch, and the launch.
//!
//! The one decision that shapes this module: a launch is a value. Each operation's `plan` checks
//! its tensors and gives a [`Plan`] (entry point, blocks and threads, arguments, results) without
//! touching a device. A GPU runs it with `launch`, which only the feature `cuda` has; the tests
//! run the same plans by emulation, so everything but the device itself is tested on any machine.
//!
//! An operation looks at where its first argument is: `machine` then says what runs the plans, or
//! that the CPU's own code does.
//!
//! Kernels take `bf16`, `f16` and `f32`, compute in `f32`, and round once, at the end. Weights of
//! norms, biases and rotary tables are `f32` whatever the dtype of the activations: they are small,
//! and Gemma's `1 + w` does not fit into bfloat16.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};

use crate::attention::AttentionOptions;
use crate::{Error, Result};

pub mod activation;
pub mod attention;
pub mod attention_pattern;
pub mod attention_summary;
pub mod cache_append;
pub mod capability;
mod failure;
pub mod gpu;
pub mod graph;
pub mod layer_norm;
pub mod libraries;
pub mod moe;
mod outbox;
pub mod quantized;
pub mod rms_norm;
pub mod rotary;
pub mod router;
pub mod softmax;
mod upload;

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
pub use device::launch;
pub use outbox::{Outbox, Parcel};
pub use upload::upload;

/// Bytes of the widest access of a thread.
const PACK_BYTES: usize = 16;
/// Most blocks along x.
const MAX_BLOCKS: usize = 0x7fff_ffff;
const WARP: usize = 32;

/// One launch, checked.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The operation, for errors.
    pub op: &'static str,
    /// What is read, in the order of [`Argument::Input`], and what is there to be written, of which
    /// [`Argument::InPlace`] names the place.
    pub inputs: Vec<&'a Tensor>,
    /// Dtype and shape of what is written, contiguous, in the order of [`Argument::Output`].
    pub outputs: Vec<(DType, Vec<usize>)>,
    /// The launch; `None` where the results have no elements.
    pub call: Option<Call>,
}

/// An entry point and what it is called with.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The `.cu` file's stem.
    pub module: &'static str,
    /// Name of the entry point.
    pub entry: String,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// In the order of the entry point's parameters.
    pub arguments: Vec<Argument>,
}

/// What runs a plan and gives its results.
pub type Machine = fn(&Plan<'_>) -> Result<Vec<Tensor>>;

thread_local! {
    static EMULATION: Cell<Option<Machine>> = const { Cell::new(None) };
}

/// Runs `f`, in which this thread's operations on tensors in main memory are plans run by
/// `machine`, as they are on a GPU: so tests take the GPU's way through a whole model without one.
pub fn emulated<R>(machine: Machine, f: impl FnOnce() -> R) -> R {
    struct Before(Option<Machine>);
    impl Drop for Before {
        fn drop(&mut self) {
            EMULATION.set(self.0);
        }
    }
    let _before = Before(EMULATION.replace(Some(machine)));
    f()
}

/// What runs plans of operations on `x`; `None` where the CPU's own code computes them.
pub fn machine(x: &Tensor) -> Option<Machine> {
    match x.device() {
        Device::Cpu => EMULATION.get(),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => Some(launch),
        _ => None,
    }
}

/// Free memory of a GPU, in bytes; main memory, which only tests ask about, counts as 1.
///
/// # Errors
///
/// [`Error::Lost`], or what the driver says instead.
pub fn free_bytes(device: &Device) -> Result<u64> {
    Ok(memory(device)?.map_or(1, |(free, _)| free))
}

/// Free memory of a GPU and all of it, in bytes; `None` of main memory.
///
/// # Errors
///
/// [`Error::Lost`], or what the driver says instead.
pub fn memory(device: &Device) -> Result<Option<(u64, u64)>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::memory(device).map(Some),
        _ => Ok(None),
    }
}

/// Bytes of a GPU's memory that tensors take, and the most that they took at once since this was asked
/// before; `None` of main memory. What libraries take for themselves is not among it.
///
/// # Errors
///
/// [`Error::Lost`], or what the driver says instead.
pub fn taken(device: &Device) -> Result<Option<(u64, u64)>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::taken(device).map(Some),
        _ => Ok(None),
    }
}

/// What tells apart the streams of GPUs that were opened; `None` of main memory.
///
/// An opened GPU has one stream, on which all of its work is done in the order in which threads tell
/// it to.
pub fn stream(device: &Device) -> Option<usize> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Some(device::stream(device)),
        _ => None,
    }
}

/// Makes a device ready for layers, loading every kernel on it; main memory is.
///
/// # Errors
///
/// [`Error::Capability`]; [`Error::Range`] for a GPU whose stream is not its own, as that of one that
/// [`gpu::open`] gives; the driver's.
pub fn ready(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::prepare(device),
        _ => Ok(()),
    }
}

/// A tensor on a device: itself where it is there, else a copy. Neither device is waited for, and
/// the memory of the one can be let go at once: it serves nothing else before it is read.
///
/// # Errors
///
/// [`Error::OutOfMemory`], [`Error::Lost`], [`Error::Candle`], and the driver's own.
pub fn bring(op: &'static str, tensor: &Tensor, device: &Device) -> Result<Tensor> {
    let (from, bytes) = (tensor.device(), bytes(tensor.dtype(), tensor.dims()));
    if from.same_device(device) {
        return Ok(tensor.clone());
    }
    #[cfg(feature = "cuda")]
    device::in_turn(op, device, from)?;
    let copy = tensor.to_device(device).map_err(Error::making(op, device, bytes))?;
    #[cfg(feature = "cuda")]
    device::in_turn(op, from, device)?;
    Ok(copy)
}

/// Bytes of a tensor's elements.
pub(crate) fn bytes(dtype: DType, dims: &[usize]) -> usize {
    dims.iter().fold(dtype.size_in_bytes(), |bytes, dim| bytes.saturating_mul(*dim))
}

/// The results of a plan, of which there are `N`.
fn several<const N: usize>(machine: Machine, plan: &Plan<'_>) -> Result<[Tensor; N]> {
    machine(plan)?
        .try_into()
        .map_err(|results: Vec<_>| Error::range(plan.op, "the number of results", N, results.len()))
}

/// The result of a plan that has one.
fn one(machine: Machine, plan: &Plan<'_>) -> Result<Tensor> {
    let [result] = several(machine, plan)?;
    Ok(result)
}

/// An argument of an entry point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// Pointer to the first element of an input.
    Input(usize),
    /// Pointer to the first element of an output.
    Output(usize),
    /// Pointer to the first element of a contiguous input that is written, too.
    InPlace(usize),
    /// A pointer to nothing.
    Null,
    /// A `size_t`.
    Size(usize),
    /// A `float`.
    Float(f32),
    /// A `Rows` of `kernels/common/rows.cuh`.
    Rows(Rows),
    /// A `Heads` of `kernels/common/attention.cuh`.
    Heads(Heads),
    /// A `Scores` of `kernels/common/attention.cuh`.
    Scores(Scores),
}

impl Argument {
    /// The bytes of a parameter that is no pointer to a tensor; empty for those.
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        match self {
            Self::Input(_) | Self::Output(_) | Self::InPlace(_) => Vec::new(),
            Self::Null => bytes(&[0]),
            Self::Size(value) => bytes(&[*value as u64]),
            Self::Float(value) => value.to_ne_bytes().to_vec(),
            Self::Rows(rows) => bytes(&rows.words()),
            Self::Heads(heads) => bytes(&heads.strides),
            Self::Scores(scores) => bytes(&scores.words()),
        }
    }
}

/// Where the rows of a tensor start: up to three outer axes, the last one fastest, strides in
/// elements; an axis that is not there has count 1 and stride 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Rows along each axis.
    pub counts: [u64; 3],
    /// From one to the next along each axis.
    pub strides: [u64; 3],
}

impl Rows {
    /// The rows of the last axis, which must be contiguous; outer axes that lie behind one
    /// another in memory become one.
    ///
    /// # Errors
    ///
    /// [`Error::NonContiguous`]; [`Error::Shape`] for a tensor without axes, or whose outer axes
    /// remain more than three; [`Error::Range`] for 2³² rows and more.
    pub fn of(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<Self> {
        contiguous_rows(op, what, tensor)?;
        let (dims, strides) = (tensor.dims(), tensor.stride());
        let Some((_, outer)) = dims.split_last() else {
            return Err(Error::shape(op, what, "[.., d]", dims));
        };
        let count = crate::tensor::size(op, what, outer)?;
        if count > u32::MAX as usize {
            return Err(Error::range(op, "the number of rows", "below 2³²", count));
        }
        let mut axes: Vec<(usize, usize)> = Vec::new();
        for (&dim, &stride) in outer.iter().zip(strides).filter(|&(&dim, _)| dim != 1) {
            match axes.last_mut() {
                Some((count, step)) if *step == dim * stride => {
                    *count *= dim;
                    *step = stride;
                }
                _ => axes.push((dim, stride)),
            }
        }
        if axes.len() > 3 {
            return Err(Error::shape(
                op,
                what,
                "at most 3 outer axes at strides of their own",
                dims,
            ));
        }
        let mut rows = Self { counts: [1; 3], strides: [0; 3] };
        for (place, &(count, stride)) in (0..3).rev().zip(axes.iter().rev()) {
            rows.counts[place] = count as u64;
            rows.strides[place] = stride as u64;
        }
        Ok(rows)
    }

    fn words(&self) -> [u64; 6] {
        let ([a, b, c], [d, e, f]) = (self.counts, self.strides);
        [a, b, c, d, e, f]
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.counts.iter().product::<u64>() as usize
    }
}

/// Where the vectors of `[batch, pos, head, d]` start: strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// From one to the next along the axes of rows, positions and heads.
    pub strides: [u64; 3],
}

impl Heads {
    /// Those of `tensor [batch, pos, head, d]`, whose last axis must be contiguous.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::NonContiguous`].
    pub fn of(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<Self> {
        contiguous_rows(op, what, tensor)?;
        match tensor.stride() {
            &[batch, pos, head, _] => Ok(Self { strides: [batch as u64, pos as u64, head as u64] }),
            _ => Err(Error::shape(op, what, "[batch, pos, head, d]", tensor.dims())),
        }
    }
}

/// How scores are formed and masked, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// What multiplies products: the scale, over the soft cap if there is one.
    factor: f32,
    /// 0: none.
    soft_cap: f32,
    /// 0: none.
    window: u64,
}

impl Scores {
    /// The options as kernels take them.
    ///
    /// # Errors
    ///
    /// [`Error::Range`] for a window of 0 and for a soft cap that is not a positive, finite number
    /// in `f32`.
    pub fn of(op: &'static str, options: &AttentionOptions) -> Result<Self> {
        options.check(op)?;
        Ok(Self {
            factor: (options.scale / options.soft_cap.unwrap_or(1.0)) as f32,
            soft_cap: options.soft_cap.map_or(0.0, |cap| cap as f32),
            window: options.window.map_or(0, |window| window as u64),
        })
    }

    fn words(&self) -> [u64; 2] {
        let [a, b, c, d] = self.factor.to_ne_bytes();
        let [e, f, g, h] = self.soft_cap.to_ne_bytes();
        [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), self.window]
    }
}

/// Whether the elements of the last axis lie behind one another.
fn contiguous_rows(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<()> {
    match (tensor.stride().last(), tensor.dims().last()) {
        (Some(&stride), Some(&dim)) if stride != 1 && dim > 1 && tensor.elem_count() > 0 => {
            Err(Error::NonContiguous { op, what, got: stride })
        }
        _ => Ok(()),
    }
}

/// Whether `tensor` is a contiguous one of this dtype and shape.
fn expect(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor,
    dtype: DType,
    dims: &[usize],
) -> Result<()> {
    if tensor.dtype() != dtype {
        return Err(Error::DType { op, what, expected: dtype, got: tensor.dtype() });
    }
    if tensor.dims() != dims {
        return Err(Error::shape(op, what, format!("{dims:?}"), tensor.dims()));
    }
    if !tensor.is_contiguous() {
        let got = tensor.stride().last().copied().unwrap_or(1);
        return Err(Error::NonContiguous { op, what, got });
    }
    Ok(())
}

/// The last part of an entry point's name, for the dtypes that kernels store.
fn suffix(op: &'static str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        DType::F32 => Ok("f32"),
        other => Err(Error::range(op, "dtype", "bf16, f16 or f32", other.as_str())),
    }
}

/// Blocks of a launch along x, of which there may be 2³¹ − 1.
fn blocks(op: &'static str, count: usize) -> Result<u32> {
    if count > MAX_BLOCKS {
        return Err(Error::range(op, "the number of blocks", "at most 2147483647", count));
    }
    Ok(count as u32)
}

/// The plan of an operation on the rows of `x [.., d]`, whose result has its dtype and shape: the
/// entry point `<module>_<dtype>` of `kernels/<module>.cu`. Its parameters are `x`, the other
/// `tensors`, the result, where the rows are, `n`, `d`, and what is in `last`. A tensor that is
/// `None` is a null pointer.
fn of_rows<'a>(
    op: &'static str,
    module: &'static str,
    x: &'a Tensor,
    tensors: &[Option<&'a Tensor>],
    last: &[Argument],
) -> Result<Plan<'a>> {
    let (rows, d) = (Rows::of(op, "x", x)?, width(op, x)?);
    let entry = format!("{module}_{}", suffix(op, x.dtype())?);
    let n = rows.count();
    let (grid, block) = by_rows(op, x.dtype(), n, d)?;
    let mut inputs = vec![x];
    let mut arguments = vec![Argument::Input(0)];
    for tensor in tensors {
        arguments.push(match tensor {
            Some(_) => Argument::Input(inputs.len()),
            None => Argument::Null,
        });
        inputs.extend(tensor);
    }
    arguments.extend([Argument::Output(0), Argument::Rows(rows)]);
    arguments.extend([Argument::Size(n), Argument::Size(d)]);
    arguments.extend(last);
    let call =
        (n * d > 0).then_some(Call { module, entry, grid, block, shared_bytes: 0, arguments });
    Ok(Plan { op, inputs, outputs: vec![(x.dtype(), x.dims().to_vec())], call })
}

/// `d` of `x [.., d]`.
fn width(op: &'static str, x: &Tensor) -> Result<usize> {
    x.dims().last().copied().ok_or_else(|| Error::shape(op, "x", "[.., d]", x.dims()))
}

/// Grid and block for `n` rows of `d` elements, of which a warp or a block each takes one
/// (`kernels/common/rows.cuh`).
fn by_rows(op: &'static str, dtype: DType, n: usize, d: usize) -> Result<([u32; 3], [u32; 3])> {
    /// Up to this many accesses a lane, a row is a warp's.
    const NARROW: usize = 4;
    const ROWS_OF_A_BLOCK: usize = 4;
    const MAX_THREADS: usize = 512;
    let packs = d.div_ceil(PACK_BYTES / dtype.size_in_bytes());
    let block = if packs <= NARROW * WARP {
        [WARP, ROWS_OF_A_BLOCK]
    } else {
        [packs.div_ceil(2).next_multiple_of(WARP).min(MAX_THREADS), 1]
    };
    Ok(([blocks(op, n.div_ceil(block[1]))?, 1, 1], [block[0] as u32, block[1] as u32, 1]))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_join_axes() {
        let tensor = Tensor::zeros((2, 3, 4, 8), DType::F32, &Device::Cpu).unwrap();
        let rows = |tensor: &Tensor| Rows::of("op", "x", tensor).unwrap();
        let joined = Rows { counts: [1, 1, 24], strides: [0, 0, 8] };
        assert_eq!(rows(&tensor), joined);
        let view = tensor.narrow(2, 1, 2).unwrap();
        assert_eq!(rows(&view), Rows { counts: [1, 6, 2], strides: [0, 32, 8] });
        let turned = view.transpose(1, 2).unwrap();
        assert_eq!(rows(&turned), Rows { counts: [2, 2, 3], strides: [96, 8, 32] });
        let across = tensor.transpose(2, 3).unwrap();
        assert!(matches!(Rows::of("op", "x", &across), Err(Error::NonContiguous { got: 8, .. })));
        let many = Tensor::zeros((2, 2, 2, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let many = many.permute((3, 2, 1, 0, 4)).unwrap();
        assert!(matches!(Rows::of("op", "x", &many), Err(Error::Shape { .. })));
        let scalar = Tensor::new(1f32, &Device::Cpu).unwrap();
        assert!(matches!(Rows::of("op", "x", &scalar), Err(Error::Shape { .. })));
        let many = Tensor::zeros((1, 8), DType::F32, &Device::Cpu).unwrap();
        let most = many.broadcast_as(((1 << 32) - 1, 8)).unwrap();
        assert_eq!(rows(&most), Rows { counts: [1, 1, (1 << 32) - 1], strides: [0; 3] });
        let many = many.broadcast_as((1 << 32, 8)).unwrap();
        assert!(matches!(Rows::of("op", "x", &many), Err(Error::Range { .. })));
    }

    #[test]
    fn too_many_blocks_are_refused() {
        assert_eq!(by_rows("op", DType::F32, 9, 128).unwrap(), ([3, 1, 1], [32, 4, 1]));
        assert_eq!(by_rows("op", DType::BF16, 9, 4096).unwrap(), ([9, 1, 1], [256, 1, 1]));
        let many = by_rows("op", DType::F32, 1 << 31, 4096);
        assert!(matches!(many, Err(Error::Range { .. })));
        assert!(matches!(suffix("op", DType::U8), Err(Error::Range { what: "dtype", .. })));
    }
}
