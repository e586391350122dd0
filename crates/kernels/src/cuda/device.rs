//! Launches on a GPU.

#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Layout, Shape, Storage, Tensor, WithDType,
};
use cudarc::driver::result::{device as of_driver, mem_pool, memcpy_dtoh_async};
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

/// Up to this one handles name no stream, but what to take for one: nothing, the stream that waits
/// for all others, that of the calling thread.
const PER_THREAD: usize = 2;

/// What is loaded on one device.
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<String, CudaFunction>,
}

/// By the device's ordinal: contexts of one device are the same, its primary one.
static LOADED: Mutex<Option<HashMap<usize, Loaded>>> = Mutex::new(None);

/// Every device that was opened. They are never let go: the handles of the libraries panic when they
/// are, behind a GPU that was lost. One that nobody else has any more is opened again.
static OPENED: Mutex<Vec<CudaDevice>> = Mutex::new(Vec::new());

/// Below so much free memory a library that cannot start lacks memory, not a driver.
const FOR_LIBRARIES: usize = 512 << 20;

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
///
/// The device has a stream of its own. A handle that means the stream of a thread, or none, is that of
/// the thread's current context: with several GPUs the one that was used last, wherever the memory
/// is that is copied or let go.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    const OP: &str = "opening the gpu";
    // Before a library starts, which says of an older GPU only that it cannot.
    let context = CudaContext::new(ordinal).map_err(Error::driver(OP))?;
    capability::check(of_device(OP, &context)?, Capability::BUILT)?;
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let of_nobody = |device: &&CudaDevice| {
        let handles = Arc::strong_count(&device.cublas_handle());
        device.cuda_stream().context().ordinal() == ordinal && handles == 2
    };
    let device = match opened.iter().find(of_nobody) {
        Some(device) => device.clone(),
        None => {
            let device = CudaDevice::new_with_stream(ordinal).map_err(Error::candle(OP));
            let device = device.map_err(|error| match (&error, context.mem_get_info()) {
                (Error::OutOfMemory { .. }, Ok((free, total)))
                | (Error::NoDriver { .. }, Ok((free @ ..FOR_LIBRARIES, total))) => {
                    let free = Some((free as u64, total as u64));
                    Error::OutOfMemory { op: OP, asked: None, free }
                }
                _ => error,
            })?;
            opened.push(device.clone());
            device
        }
    };
    drop(opened);
    prepare(&device)?;
    Ok(Device::Cuda(device))
}

fn of_device(op: &'static str, context: &CudaContext) -> Result<Capability> {
    let (major, minor) = context.compute_capability().map_err(Error::driver(op))?;
    Ok(Capability { major: major.unsigned_abs(), minor: minor.unsigned_abs() })
}

/// See [`super::ready`]. Launches do it by themselves.
pub(super) fn prepare(device: &CudaDevice) -> Result<()> {
    with_loaded("preparing the gpu", device, |_| Ok(()))
}

/// Runs a plan whose inputs are all on one GPU, on its stream, without waiting for the end.
///
/// # Errors
///
/// [`Error::Device`] for an input elsewhere, [`Error::Range`] for a device without a stream of its
/// own, [`Error::Capability`], [`Error::OutOfMemory`] if there is no memory for the results,
/// [`Error::Lost`], [`Error::Driver`].
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
    let context = stream.context();
    let (free, total) = context.mem_get_info().map_err(Error::driver("free memory"))?;
    let free = free as u64 + spare(context).unwrap_or(0);
    Ok((free.min(total as u64), total as u64))
}

/// See [`super::taken`].
pub(super) fn taken(device: &CudaDevice) -> Result<(u64, u64)> {
    let stream = device.cuda_stream();
    let most = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let found = || {
        let found = (pool(stream.context(), USED)?, pool(stream.context(), most)?);
        // 0 is the one value that it can be set to, and starts it anew.
        set_pool(stream.context(), most, 0)?;
        Ok(found)
    };
    found().map_err(Error::driver("memory of tensors"))
}

const USED: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;

/// A number of 64 bits that the pool of a device's memory has.
fn pool(
    context: &CudaContext,
    attribute: CUmemPool_attribute,
) -> std::result::Result<u64, DriverError> {
    let mut value = 0u64;
    context.bind_to_thread()?;
    // SAFETY: the device is the context's, its pool lives as long as the process, and the values of
    // the attributes that are asked for are of 64 bits.
    unsafe {
        let pool = of_driver::get_mem_pool(context.cu_device())?;
        mem_pool::get_attribute(pool, attribute, (&raw mut value).cast())?;
    }
    Ok(value)
}

/// Sets what [`pool`] reads.
fn set_pool(
    context: &CudaContext,
    attribute: CUmemPool_attribute,
    mut value: u64,
) -> std::result::Result<(), DriverError> {
    context.bind_to_thread()?;
    // SAFETY: as in `pool`.
    unsafe {
        let pool = of_driver::get_mem_pool(context.cu_device())?;
        mem_pool::set_attribute(pool, attribute, (&raw mut value).cast())
    }
}

/// What the pool of a device's memory holds for allocations to come.
fn spare(context: &CudaContext) -> std::result::Result<u64, DriverError> {
    if !context.has_async_alloc() {
        return Ok(0);
    }
    let reserved = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
    Ok(pool(context, reserved)?.saturating_sub(pool(context, USED)?))
}

/// Lets the pool keep memory that was let go. Else it gives it back to the system whenever the host
/// waits for the device, as it does at the end of every pass, and the next one gets it anew, page by
/// page.
fn keep_memory(context: &CudaContext) -> std::result::Result<(), DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    set_pool(context, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}

/// See [`super::stream`].
pub(super) fn stream(device: &CudaDevice) -> usize {
    device.cuda_stream().cu_stream().addr()
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

/// Bytes that are copied at once. Locking pages takes longer than copying to them, so a tensor of
/// any size goes through memory that the next one can use, too.
const PIECE: usize = 16 << 20;
/// The smallest memory that is locked.
const SMALLEST: usize = 64 << 10;

/// A copy that was begun.
#[derive(Debug)]
pub(super) struct PinnedCopy {
    /// In the order of what they hold; the first to be dropped: until then the source is read.
    pieces: VecDeque<Piece>,
    stream: Arc<CudaStream>,
    source: Tensor,
    /// Bytes whose copies have begun.
    begun: usize,
}

/// A part of a tensor on its way.
#[derive(Debug)]
struct Piece {
    /// The first to be dropped: until then the buffer is written.
    done: Done,
    buffer: PinnedHostSlice<u8>,
    bytes: usize,
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

impl PinnedCopy {
    fn size(&self) -> usize {
        bytes(self.source.dtype(), self.source.dims())
    }

    /// Begins to copy what comes next, as much of it as the buffer takes.
    fn begin(&mut self, op: &'static str, mut buffer: PinnedHostSlice<u8>) -> Result<()> {
        let bytes = (self.size() - self.begun).min(buffer.len());
        {
            let (storage, layout) = self.source.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                let got = format!("{:?}", self.source.device().location());
                return Err(Error::Device { op, what: "the tensor", got });
            };
            let (pointer, _guard) = read(op, storage, layout, &self.stream)?;
            let to = buffer.as_mut_slice().map_err(Error::driver(op))?;
            // The buffer may have been locked for another device.
            self.stream.context().bind_to_thread().map_err(Error::driver(op))?;
            let from = pointer + self.begun as u64;
            // SAFETY: the source has so many bytes from there on and lives, as the buffer does, in
            // the `PinnedCopy` until the event below has passed.
            unsafe { memcpy_dtoh_async(&mut to[..bytes], from, self.stream.cu_stream()) }
                .map_err(Error::driver(op))?;
        }
        match self.stream.record_event(None) {
            Ok(done) => {
                self.pieces.push_back(Piece { done: Done(done), buffer, bytes });
                self.begun += bytes;
                Ok(())
            }
            Err(error) => {
                let _ = self.stream.synchronize();
                Err(Error::driver(op)(error))
            }
        }
    }
}

impl Pinned {
    /// Begins to copy a tensor when what its device is doing now is done: `limit` bytes of it, and the
    /// rest while these are received; `None` if the system locks no pages.
    pub(super) fn copy(
        &mut self,
        op: &'static str,
        device: &CudaDevice,
        tensor: &Tensor,
        limit: usize,
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
        stream.join(&computing).map_err(Error::driver(op))?;
        let mut copy = PinnedCopy { pieces: VecDeque::new(), stream, source, begun: 0 };
        while copy.begun < size.min(limit.max(1)) {
            match self.buffer(op, context, (size - copy.begun).min(PIECE))? {
                Some(buffer) => copy.begin(op, buffer)?,
                None => break,
            }
        }
        Ok((copy.begun > 0).then_some(copy))
    }

    /// Page-locked memory of at least so many bytes; `None` if the system locks no more pages.
    fn buffer(
        &mut self,
        op: &'static str,
        context: &Arc<CudaContext>,
        bytes: usize,
    ) -> Result<Option<PinnedHostSlice<u8>>> {
        let smallest = (0..self.spare.len())
            .filter(|&i| self.spare[i].len() >= bytes)
            .min_by_key(|&i| self.spare[i].len());
        if let Some(i) = smallest {
            return Ok(Some(self.spare.swap_remove(i)));
        }
        // Few sizes, so that tensors of other shapes find what fits.
        let bytes = bytes.next_power_of_two().max(SMALLEST);
        // SAFETY: bytes of any value are `u8`s. Portable, so that any device copies to it; not
        // write-combined, which would make reading it slow.
        match unsafe { context.alloc_pinned_with_flags(bytes, CU_MEMHOSTALLOC_PORTABLE) } {
            Ok(buffer) => Ok(Some(buffer)),
            // Main memory, not the GPU's.
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(Error::driver(op)(error)),
        }
    }

    /// Waits for a copy. Of the memory that is spare then, `limit` bytes are kept.
    pub(super) fn receive(
        &mut self,
        op: &'static str,
        copy: PinnedCopy,
        limit: usize,
    ) -> Result<Tensor> {
        match copy.source.dtype() {
            DType::BF16 => self.numbers(op, copy, limit, |pair| {
                bf16::from_bits(u16::from_ne_bytes(pair)).to_f32()
            }),
            DType::F16 => self
                .numbers(op, copy, limit, |pair| f16::from_bits(u16::from_ne_bytes(pair)).to_f32()),
            DType::F32 => self.numbers(op, copy, limit, f32::from_ne_bytes),
            DType::U32 => self.numbers(op, copy, limit, u32::from_ne_bytes),
            other => Err(Error::range(op, "dtype", STORED, other.as_str())),
        }
    }

    /// A tensor in main memory, of numbers of `N` bytes each on their way.
    fn numbers<const N: usize, T: WithDType>(
        &mut self,
        op: &'static str,
        mut copy: PinnedCopy,
        limit: usize,
        read: impl Fn([u8; N]) -> T + Sync + Send,
    ) -> Result<Tensor> {
        let mut numbers: Vec<T> = Vec::with_capacity(copy.source.elem_count());
        while let Some(Piece { done, buffer, bytes }) = copy.pieces.pop_front() {
            done.0.synchronize().map_err(Error::driver(op))?;
            let come = &buffer.as_slice().map_err(Error::driver(op))?[..bytes];
            numbers.par_extend(come.as_chunks::<N>().0.par_iter().map(|number| read(*number)));
            if copy.begun < copy.size() {
                copy.begin(op, buffer)?;
            } else {
                self.spare.push(buffer);
            }
        }
        while self.spare.iter().map(|spare| spare.len()).sum::<usize>() > limit {
            self.spare.remove(0);
        }
        Tensor::from_vec(numbers, copy.source.dims(), &Device::Cpu).map_err(Error::candle(op))
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
    /// Launches all of them.
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
///   of matrices, too. So what is done with it between begin and end is captured: other threads must
///   leave it alone, as passes of models do that take turns. Other devices, also of the same GPU,
///   they may use.
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
    if stream.cu_stream().addr() <= PER_THREAD {
        let expected = "its own, as `kernels::cuda::gpu::open` gives it";
        return Err(Error::range(op, "the stream of the gpu", expected, "that of each thread"));
    }
    let context = stream.context();
    let mut all = loaded();
    let all = all.get_or_insert_with(HashMap::new);
    // A GPU that was opened twice has two of cudarc's contexts.
    if context.is_event_tracking() {
        // SAFETY: one stream computes on a device, whichever thread tells it to. Another stream
        // copies to main memory, waits for the first by an event of its own, and what it reads lives
        // until it is done (`PinnedCopy`); copies from device to device wait for both (`in_turn`).
        // So the two events of every allocation, which cost as much as a small launch, order nothing.
        unsafe { context.disable_event_tracking() };
    }
    if let Some(loaded) = all.get_mut(&context.ordinal()) {
        return f(loaded);
    }
    capability::check(of_device(op, context)?, Capability::BUILT)?;
    keep_memory(context).map_err(Error::driver(op))?;
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
