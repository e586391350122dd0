//! Launches on a GPU.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Layout, Shape, Storage, Tensor, WithDType,
};
use cudarc::driver::result::device::get_mem_pool;
use cudarc::driver::result::{mem_pool, memcpy_dtoh_async};
use cudarc::driver::sys::{
    CU_MEMHOSTALLOC_PORTABLE, CUfunction_attribute, CUgraphInstantiate_flags, CUmemPool_attribute,
    CUresult, CUstreamCaptureMode,
};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr,
    DevicePtrMut, DriverError, LaunchConfig, PinnedHostSlice, PushKernelArg, SyncOnDrop,
};
use cudarc::nvrtc::Ptx;
use half::{bf16, f16};
use rayon::prelude::*;

use super::capability::{self, Capability};
use super::gpu::Gpu;
use super::{Argument, Call, Plan, bytes};
use crate::{Error, Result};

/// The machine code of every `.cu` file, by its stem.
const FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Dynamic shared memory that a launch can have without asking for more first.
const FREE_SHARED_BYTES: u32 = 48 * 1024;

/// What is loaded on one device.
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<String, CudaFunction>,
}

/// By the device's ordinal: contexts of one device are the same, its primary one.
static LOADED: Mutex<Option<HashMap<usize, Loaded>>> = Mutex::new(None);

/// See [`super::gpu::gpus`].
pub(super) fn gpus() -> Result<Vec<Gpu>> {
    const OP: &str = "listing gpus";
    let count = CudaContext::device_count().map_err(Error::driver(OP))?;
    let all = (0..count.unsigned_abs() as usize)
        .map(|ordinal| {
            let context = CudaContext::new(ordinal).map_err(Error::driver(OP))?;
            let (free, total) = context.mem_get_info().map_err(Error::driver(OP))?;
            Ok(Gpu {
                ordinal,
                name: context.name().map_err(Error::driver(OP))?,
                capability: of_device(OP, &context)?,
                free: free as u64,
                total: total as u64,
            })
        })
        .collect();
    super::gpu::answering(all)
}

/// See [`super::gpu::open`].
pub(super) fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda(ordinal).map_err(Error::candle("opening the gpu"))?;
    prepare(&device)?;
    Ok(device)
}

fn of_device(op: &'static str, context: &CudaContext) -> Result<Capability> {
    let (major, minor) = context.compute_capability().map_err(Error::driver(op))?;
    Ok(Capability { major: major.unsigned_abs(), minor: minor.unsigned_abs() })
}

/// Refuses a GPU that this build has no code for, and loads every kernel on it, so that no later
/// launch loads anything. Launches do it by themselves.
///
/// # Errors
///
/// [`Error::Capability`]; [`Error::Device`] for a device that is no GPU; [`Error::Driver`].
pub fn prepare(device: &Device) -> Result<()> {
    const OP: &str = "preparing the gpu";
    let Device::Cuda(device) = device else {
        let got = format!("{:?}", device.location());
        return Err(Error::Device { op: OP, what: "the device", got });
    };
    with_loaded(OP, device, |_| Ok(()))
}

/// Runs a plan whose inputs are all on one GPU, on this thread's stream there, without waiting for
/// the end. For what another thread is still making, [`wait`](super::wait) first.
///
/// # Errors
///
/// [`Error::Device`] for an input elsewhere, [`Error::Capability`], [`Error::OutOfMemory`] if
/// there is no memory for the results, [`Error::Lost`], [`Error::Driver`].
pub fn launch(plan: &Plan) -> Result<Vec<Tensor>> {
    let op = plan.op;
    let place = plan.inputs.first().map(|input| input.device());
    let Some(place @ Device::Cuda(device)) = place else {
        let got = plan.inputs.first().map(|input| format!("{:?}", input.device().location()));
        return Err(Error::Device { op, what: "an input", got: got.unwrap_or_default() });
    };
    let mut outputs = Vec::with_capacity(plan.outputs.len());
    for (dtype, dims) in &plan.outputs {
        // SAFETY: an output is contiguous and the entry point writes all of it that anyone reads, as
        // every plan's does; the emulated tests find an element that it leaves.
        let output = unsafe { device.alloc_uninit(&Shape::from(dims.as_slice()), *dtype) };
        outputs.push(output.map_err(Error::making(op, place, bytes(*dtype, dims)))?);
    }
    if let Some(call) = &plan.call {
        let function = with_loaded(op, device, |loaded| function(op, loaded, call))?;
        start(plan, call, device, &function, &mut outputs)?;
    }
    let shapes = plan.outputs.iter().map(|(_, dims)| Shape::from(dims.as_slice()));
    Ok(outputs
        .into_iter()
        .zip(shapes)
        .map(|(y, shape)| Tensor::from_storage(Storage::Cuda(y), shape, BackpropOp::none(), false))
        .collect())
}

/// See [`super::memory`].
pub(super) fn memory(device: &CudaDevice) -> Result<(u64, u64)> {
    let stream = device.cuda_stream();
    let (free, total) = stream.context().mem_get_info().map_err(Error::driver("free memory"))?;
    Ok((free as u64, total as u64))
}

/// See [`super::taken`].
pub(super) fn taken(device: &CudaDevice) -> Result<(u64, u64)> {
    const OP: &str = "memory of tensors";
    const NOW: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    const MOST: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().map_err(Error::driver(OP))?;
    // SAFETY: the device is one that was opened; its pool lives as long as it does.
    let pool = unsafe { get_mem_pool(stream.context().cu_device()) };
    let pool = pool.map_err(Error::driver(OP))?;
    let [mut now, mut most, mut anew] = [0u64; 3];
    for (attribute, value) in [(NOW, &mut now), (MOST, &mut most)] {
        // SAFETY: the pool is the device's, and both attributes are numbers of 64 bits.
        unsafe { mem_pool::get_attribute(pool, attribute, (&raw mut *value).cast()) }
            .map_err(Error::driver(OP))?;
    }
    // SAFETY: as above; 0 is the one value that it can be set to, and starts it anew.
    unsafe { mem_pool::set_attribute(pool, MOST, (&raw mut anew).cast()) }
        .map_err(Error::driver(OP))?;
    Ok((now, most))
}

/// See [`super::wait`].
pub(super) fn wait(device: &CudaDevice) -> Result<()> {
    device.cuda_stream().context().synchronize().map_err(Error::driver("waiting for the gpu"))
}

/// Lets what `later` does from now on wait for what `sooner` was told until now, where both are
/// GPUs: a copy between them is ordered with neither's other work, once events track nothing.
pub(super) fn in_turn(op: &'static str, later: &Device, sooner: &Device) -> Result<()> {
    let (Device::Cuda(later), Device::Cuda(sooner)) = (later, sooner) else { return Ok(()) };
    later.cuda_stream().join(&sooner.cuda_stream()).map_err(Error::driver(op))
}

/// Page-locked memory, and streams that copy to it.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    /// By the device's ordinal.
    streams: HashMap<usize, Arc<CudaStream>>,
    spare: Vec<PinnedHostSlice<u8>>,
}

/// A copy that was begun.
#[derive(Debug)]
pub(super) struct PinnedCopy {
    /// The first to be dropped: what it waits for uses the others.
    done: Done,
    buffer: PinnedHostSlice<u8>,
    source: Tensor,
}

/// The end of some work, which is waited for before its memory goes.
#[derive(Debug)]
struct Done(CudaEvent);

impl Drop for Done {
    fn drop(&mut self) {
        // A device that is lost does no more; whoever asks for the results is told.
        let _ = self.0.synchronize();
    }
}

impl Pinned {
    /// Begins to copy a tensor when what its device is doing now is done; `None` if the system
    /// locks no more pages.
    pub(super) fn copy(
        &mut self,
        op: &'static str,
        device: &CudaDevice,
        tensor: &Tensor,
    ) -> Result<Option<PinnedCopy>> {
        let size = bytes(tensor.dtype(), tensor.dims());
        let source = tensor.contiguous().map_err(Error::making(op, tensor.device(), size))?;
        let computing = device.cuda_stream();
        let context = computing.context();
        let stream = match self.streams.get(&context.ordinal()) {
            Some(stream) => stream.clone(),
            None => {
                let stream = context.new_stream().map_err(Error::driver(op))?;
                self.streams.insert(context.ordinal(), stream.clone());
                stream
            }
        };
        let smallest = (0..self.spare.len())
            .filter(|&i| self.spare[i].len() >= size)
            .min_by_key(|&i| self.spare[i].len());
        let mut buffer = match smallest {
            Some(i) => self.spare.swap_remove(i),
            // SAFETY: bytes of any value are `u8`s. Portable, so that any device copies to it;
            // not write-combined, which would make reading it slow.
            None => {
                match unsafe { context.alloc_pinned_with_flags(size, CU_MEMHOSTALLOC_PORTABLE) } {
                    Ok(buffer) => buffer,
                    // Main memory, not the GPU's.
                    Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Ok(None),
                    Err(error) => return Err(Error::driver(op)(error)),
                }
            }
        };
        {
            let (storage, layout) = source.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                let got = format!("{:?}", source.device().location());
                return Err(Error::Device { op, what: "the tensor", got });
            };
            let (pointer, _guard) = read(op, storage, layout, &computing)?;
            stream.join(&computing).map_err(Error::driver(op))?;
            let to = buffer.as_mut_slice().map_err(Error::driver(op))?;
            // SAFETY: the source has `size` bytes from `pointer` on and lives, as the buffer does,
            // in the `PinnedCopy` until the event below has passed.
            unsafe { memcpy_dtoh_async(&mut to[..size], pointer, stream.cu_stream()) }
                .map_err(Error::driver(op))?;
        }
        match stream.record_event(None) {
            Ok(done) => Ok(Some(PinnedCopy { done: Done(done), buffer, source })),
            Err(error) => {
                let _ = stream.synchronize();
                Err(Error::driver(op)(error))
            }
        }
    }

    /// Waits for a copy. Of the memory that is spare then, `limit` bytes are kept.
    pub(super) fn receive(
        &mut self,
        op: &'static str,
        copy: PinnedCopy,
        limit: usize,
    ) -> Result<Tensor> {
        let PinnedCopy { done, buffer, source } = copy;
        done.0.synchronize().map_err(Error::driver(op))?;
        let (dims, dtype) = (source.dims().to_vec(), source.dtype());
        let size = source.elem_count() * dtype.size_in_bytes();
        let bytes = &buffer.as_slice().map_err(Error::driver(op))?[..size];
        let tensor = match dtype {
            DType::BF16 => {
                host(bytes, &dims, |pair| bf16::from_bits(u16::from_ne_bytes(pair)).to_f32())
            }
            DType::F16 => {
                host(bytes, &dims, |pair| f16::from_bits(u16::from_ne_bytes(pair)).to_f32())
            }
            DType::F32 => host(bytes, &dims, f32::from_ne_bytes),
            DType::U32 => host(bytes, &dims, u32::from_ne_bytes),
            other => return Err(Error::range(op, "dtype", STORED, other.as_str())),
        };
        self.spare.push(buffer);
        while self.spare.iter().map(|spare| spare.len()).sum::<usize>() > limit {
            self.spare.remove(0);
        }
        tensor.map_err(Error::candle(op))
    }
}

/// Launches that were captured.
pub(super) struct Captured {
    /// The end of the last run, the first to be dropped: then goes the graph, and then what its
    /// launches use.
    done: Done,
    graph: CudaGraph,
    stream: Arc<CudaStream>,
}

// SAFETY: the driver's functions on graphs may be called on any thread, one at a time: the method
// that calls them takes the only reference there is, and dropping takes the value itself.
unsafe impl Send for Captured {}
// SAFETY: behind a shared reference there is no method at all.
unsafe impl Sync for Captured {}

impl Captured {
    /// Launches all of them on the stream of this thread.
    pub(super) fn launch(&mut self) -> Result<()> {
        let launched = self.graph.launch().and_then(|()| self.done.0.record(&self.stream));
        launched.map_err(Error::driver(CAPTURE))
    }
}

const CAPTURE: &str = "capturing launches";

/// See [`super::graph::Graph::capture`].
///
/// What this relies on, of candle 0.11 and cudarc 0.19:
///
/// - A `CudaDevice` has one stream, on which it allocates, frees, copies and launches, its products
///   of matrices, too: the calling thread's own (`CudaContext::per_thread_stream`). So what this
///   thread does between begin and end is captured, and nothing else is, whatever other threads do.
/// - Memory is taken and freed in the order of the stream (`cuMemAllocAsync`, `cuMemFreeAsync`), in a
///   capture as nodes of the graph. Freeing there what was taken before is an error of the driver,
///   as is a graph whose memory is not freed in it at its second launch; a GPU without such
///   allocation has the driver refuse the capture.
/// - What candle copies from the host, as the strides of a strided operation, would be read again
///   at every launch, when it is long gone. Under `enable_cuda_graph_htod_cache` it keeps such
///   numbers on the device and, in a capture, uses what it has kept or ends with an error.
/// - No slice has events to wait for (`with_loaded`), which would tie the capture to what was before.
pub(super) fn capture<E: From<Error>>(
    device: &CudaDevice,
    run: impl Fn() -> std::result::Result<(), E>,
) -> std::result::Result<Captured, E> {
    let _kept_on_the_device = device.enable_cuda_graph_htod_cache();
    run()?;
    let stream = device.cuda_stream();
    let captured = capture_on(&stream, run);
    if captured.is_err() {
        // What a drop has left would be the error of the next operation, which is none of this.
        let _ = stream.context().check_err();
    }
    captured
}

fn capture_on<E: From<Error>>(
    stream: &Arc<CudaStream>,
    run: impl Fn() -> std::result::Result<(), E>,
) -> std::result::Result<Captured, E> {
    // An operation that could disturb a capture is refused to this thread, not to others.
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).map_err(Error::driver(CAPTURE))?;
    let mut open = Open { stream, open: true };
    run()?;
    let graph = open.end().map_err(Error::driver(CAPTURE))?;
    let graph =
        graph.ok_or_else(|| Error::range(CAPTURE, "the number of launches", "at least 1", 0))?;
    graph.upload().map_err(Error::driver(CAPTURE))?;
    let done = Done(stream.record_event(None).map_err(Error::driver(CAPTURE))?);
    Ok(Captured { done, graph, stream: stream.clone() })
}

/// A capture under way, which ends in any case: until then the stream does no work.
struct Open<'a> {
    stream: &'a Arc<CudaStream>,
    open: bool,
}

impl Open<'_> {
    fn end(&mut self) -> std::result::Result<Option<CudaGraph>, DriverError> {
        self.open = false;
        let end = || self.stream.end_capture(CUgraphInstantiate_flags(0));
        // cudarc gives an error that a drop has left before it does what it is asked for: then the
        // second call ends the capture, else it has nothing to end.
        end().inspect_err(|_| drop(end()))
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if self.open {
            // The capture has failed already, and what this gives with it.
            let _ = self.end();
        }
    }
}

/// A tensor in main memory of numbers of `N` bytes each.
fn host<const N: usize, T: WithDType>(
    bytes: &[u8],
    dims: &[usize],
    read: impl Fn([u8; N]) -> T + Sync,
) -> candle_core::Result<Tensor> {
    let numbers: Vec<T> = bytes.as_chunks::<N>().0.par_iter().map(|number| read(*number)).collect();
    Tensor::from_vec(numbers, dims, &Device::Cpu)
}

fn loaded() -> MutexGuard<'static, Option<HashMap<usize, Loaded>>> {
    // What was loaded before a panic is whole.
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_loaded<R>(
    op: &'static str,
    device: &CudaDevice,
    f: impl FnOnce(&mut Loaded) -> Result<R>,
) -> Result<R> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let mut all = loaded();
    let all = all.get_or_insert_with(HashMap::new);
    // A GPU that was opened twice has two of cudarc's contexts.
    if context.is_event_tracking() {
        // SAFETY: one stream of a thread computes on a device, and another thread waits for it
        // before it computes there (`wait`). Another stream copies to main memory, waits for the
        // first by an event of its own, and what it reads lives until it is done (`PinnedCopy`);
        // copies from device to device wait for both (`in_turn`). So the two events of every
        // allocation, which cost as much as a small launch, order nothing.
        unsafe { context.disable_event_tracking() };
    }
    if let Some(loaded) = all.get_mut(&context.ordinal()) {
        return f(loaded);
    }
    capability::check(of_device(op, context)?, Capability::BUILT)?;
    let mut modules = HashMap::new();
    for (stem, fatbin) in FATBINS {
        let module = context.load_module(Ptx::from_binary(fatbin.to_vec()));
        modules.insert(*stem, module.map_err(Error::driver(op))?);
    }
    f(all.entry(context.ordinal()).or_insert(Loaded { modules, functions: HashMap::new() }))
}

fn function(op: &'static str, loaded: &mut Loaded, call: &Call) -> Result<CudaFunction> {
    if let Some(function) = loaded.functions.get(&call.entry) {
        return Ok(function.clone());
    }
    let Some(module) = loaded.modules.get(call.module) else {
        let known = FATBINS.iter().map(|(stem, _)| *stem).collect::<Vec<_>>().join(", ");
        return Err(Error::range(op, "the module", known, call.module));
    };
    let function = module.load_function(&call.entry).map_err(Error::driver(op))?;
    loaded.functions.insert(call.entry.clone(), function.clone());
    Ok(function)
}

/// A pointer in device memory, and what keeps it valid for the launch.
type Pointer<'a> = (u64, SyncOnDrop<'a>);

fn start(
    plan: &Plan,
    call: &Call,
    device: &CudaDevice,
    function: &CudaFunction,
    outputs: &mut [CudaStorage],
) -> Result<()> {
    let op = plan.op;
    let stream = device.cuda_stream();
    let opened: Vec<_> = plan.inputs.iter().map(|input| input.storage_and_layout()).collect();
    let mut inputs: Vec<Pointer> = Vec::with_capacity(opened.len());
    for (storage, layout) in &opened {
        match &**storage {
            Storage::Cuda(storage) if storage.device().same_device(device) => {
                inputs.push(read(op, storage, layout, &stream)?);
            }
            other => {
                let got = format!("{:?}", other.device().location());
                return Err(Error::Device { op, what: "an input", got });
            }
        }
    }
    let mut results: Vec<Pointer> = Vec::with_capacity(outputs.len());
    for output in outputs {
        results.push(write(op, output, &stream)?);
    }
    let values: Vec<Value> = call
        .arguments
        .iter()
        .map(|argument| match *argument {
            Argument::Input(index) | Argument::InPlace(index) => {
                Value::Word(inputs.get(index).map_or(0, |input| input.0))
            }
            Argument::Output(index) => Value::Word(results.get(index).map_or(0, |y| y.0)),
            Argument::Null => Value::Word(0),
            Argument::Size(value) => Value::Word(value as u64),
            Argument::Float(value) => Value::Float(value),
            Argument::Rows(rows) => Value::Rows(rows.words()),
            Argument::Heads(heads) => Value::Heads(heads.strides),
            Argument::Scores(scores) => Value::Scores(scores.words()),
        })
        .collect();
    let mut builder = stream.launch_builder(function);
    for value in &values {
        match value {
            Value::Word(word) => builder.arg(word),
            Value::Float(float) => builder.arg(float),
            Value::Rows(rows) => builder.arg(rows),
            Value::Heads(heads) => builder.arg(heads),
            Value::Scores(scores) => builder.arg(scores),
        };
    }
    if call.shared_bytes > FREE_SHARED_BYTES {
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = call.shared_bytes.cast_signed();
        function.set_attribute(most, bytes).map_err(Error::driver(op))?;
    }
    let [grid_x, grid_y, grid_z] = call.grid;
    let [block_x, block_y, block_z] = call.block;
    let config = LaunchConfig {
        grid_dim: (grid_x, grid_y, grid_z),
        block_dim: (block_x, block_y, block_z),
        shared_mem_bytes: call.shared_bytes,
    };
    // SAFETY: the plan's arguments are those of the entry point, in kind and order, which the
    // emulation checks against the entry point's own parameters; pointers are valid, with the
    // layouts that the plan checked, until the guards beside them are dropped below. What is written
    // in place is memory that only the device's own stream reads and writes, in the order of
    // launches, as under candle's `slice_set`.
    unsafe { builder.launch(config) }.map_err(Error::driver(op))?;
    Ok(())
}

/// The bytes of an argument, kept where the driver can read them.
enum Value {
    Word(u64),
    Float(f32),
    Rows([u64; 6]),
    Heads([u64; 3]),
    Scores([u64; 2]),
}

/// Pointer to the first element of a view.
fn read<'a>(
    op: &'static str,
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<Pointer<'a>> {
    let dtype = storage.dtype();
    let (pointer, guard) = match dtype {
        DType::BF16 => slice::<bf16>(op, storage)?.device_ptr(stream),
        DType::F16 => slice::<f16>(op, storage)?.device_ptr(stream),
        DType::F32 => slice::<f32>(op, storage)?.device_ptr(stream),
        DType::U32 => slice::<u32>(op, storage)?.device_ptr(stream),
        other => return Err(Error::range(op, "dtype", STORED, other.as_str())),
    };
    Ok((pointer + (layout.start_offset() * dtype.size_in_bytes()) as u64, guard))
}

/// Pointer to the first element of a result.
fn write<'a>(
    op: &'static str,
    storage: &'a mut CudaStorage,
    stream: &'a CudaStream,
) -> Result<Pointer<'a>> {
    Ok(match storage.dtype() {
        DType::BF16 => slice_mut::<bf16>(op, storage)?.device_ptr_mut(stream),
        DType::F16 => slice_mut::<f16>(op, storage)?.device_ptr_mut(stream),
        DType::F32 => slice_mut::<f32>(op, storage)?.device_ptr_mut(stream),
        DType::U32 => slice_mut::<u32>(op, storage)?.device_ptr_mut(stream),
        other => return Err(Error::range(op, "dtype", STORED, other.as_str())),
    })
}

const STORED: &str = "bf16, f16, f32 or u32";

fn slice<'a, T: CudaDType>(op: &'static str, storage: &'a CudaStorage) -> Result<&'a CudaSlice<T>> {
    storage.as_cuda_slice().map_err(Error::candle(op))
}

fn slice_mut<'a, T: CudaDType>(
    op: &'static str,
    storage: &'a mut CudaStorage,
) -> Result<&'a mut CudaSlice<T>> {
    storage.as_cuda_slice_mut().map_err(Error::candle(op))
}
