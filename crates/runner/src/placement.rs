//! Where the layers of a model run.

use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::{DType, Device, DeviceLocation, Tensor};
use kernels::cuda::Outbox;

use crate::{Error, Result};

/// Where a model runs.
#[derive(Clone, Debug, Default)]
pub enum Placement {
    /// On the CPU, in `f32`, weights packed for its products.
    #[default]
    Cpu,
    /// On these devices, layers on the first ones before those on the last, with such a share of the
    /// weights on each as its free memory is of all: GPUs that [`kernels::cuda::gpu::open`] gave.
    /// [`Device::Cpu`] among them is main memory in place of a GPU's, for
    /// [`kernels::cuda::emulated`].
    Devices(Vec<Device>),
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Devices(devices) = self else { return f.write_str("cpu") };
        for (i, device) in devices.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match device.location() {
                DeviceLocation::Cuda { gpu_id } => write!(f, "{comma}cuda:{gpu_id}")?,
                other => write!(f, "{comma}{}", format!("{other:?}").to_lowercase())?,
            }
        }
        Ok(())
    }
}

/// Bytes of activations that are under way from devices to main memory before a pass waits for its
/// sink.
const UNDER_WAY: usize = 256 << 20;

/// The devices of a model's layers, and the dtype that they compute in.
#[derive(Debug)]
pub(crate) struct Home {
    /// The device of each layer.
    layers: Vec<Device>,
    first: Device,
    last: Device,
    dtype: DType,
    /// Of passes that have ended: the memory of one serves the next.
    outboxes: Mutex<Vec<Outbox>>,
    /// Those of the devices, each once.
    streams: Vec<usize>,
}

/// Passes on GPUs: those that use one stream take turns, whichever models they are of, so that what
/// is captured there is of one pass alone.
static PASSES: Turns = Turns { taken: Mutex::new(Vec::new()), ended: Condvar::new() };

#[derive(Debug)]
struct Turns {
    taken: Mutex<Vec<Turn>>,
    ended: Condvar,
}

/// Who uses a stream.
#[derive(Debug)]
struct Turn {
    stream: usize,
    thread: ThreadId,
    /// Its passes under way, one within the other.
    passes: usize,
}

/// The turn of a thread, until it is dropped.
pub(crate) struct Taken<'a> {
    turns: &'a Turns,
    streams: &'a [usize],
}

impl Turns {
    /// Waits until no other thread uses any of the streams.
    fn take<'a>(&'a self, streams: &'a [usize]) -> Taken<'a> {
        let me = thread::current().id();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let anothers = |turn: &Turn| turn.thread != me && streams.contains(&turn.stream);
        while taken.iter().any(anothers) {
            taken = self.ended.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        for &stream in streams {
            match taken.iter_mut().find(|turn| turn.stream == stream) {
                Some(turn) => turn.passes += 1,
                None => taken.push(Turn { stream, thread: me, passes: 1 }),
            }
        }
        Taken { turns: self, streams }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut taken = self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for turn in taken.iter_mut().filter(|turn| self.streams.contains(&turn.stream)) {
            turn.passes -= 1;
        }
        taken.retain(|turn| turn.passes > 0);
        self.turns.ended.notify_all();
    }
}

/// How much of a model's weights is where, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    first: u64,
    layers: Vec<u64>,
    last: u64,
}

impl Sizes {
    /// Those of `n_layers` layers with these tensors, by their names.
    pub(crate) fn new<'a>(
        n_layers: usize,
        tensors: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Self {
        let mut sizes = Self { layers: vec![0; n_layers], ..Self::default() };
        for (name, bytes) in tensors {
            let size = match Place::of(name) {
                Place::First => &mut sizes.first,
                Place::Layer(layer) => sizes.layers.get_mut(layer).unwrap_or(&mut sizes.last),
                Place::Last => &mut sizes.last,
            };
            *size = size.saturating_add(bytes);
        }
        sizes
    }
}

impl Home {
    /// Layers of these sizes on `devices`, by their free memory.
    pub(crate) fn new(devices: &[Device], sizes: &Sizes, dtype: DType) -> Result<Self> {
        let (Some(first), Some(last)) = (devices.first(), devices.last()) else {
            return Err(Error::NoDevice);
        };
        devices.iter().try_for_each(kernels::cuda::ready)?;
        let free = match devices {
            [_] => vec![1],
            _ => devices
                .iter()
                .map(|device| Ok(kernels::cuda::free_bytes(device)?))
                .collect::<Result<Vec<u64>>>()?,
        };
        let layers: Vec<Device> =
            shares(&free, sizes).map(|device| devices[device].clone()).collect();
        let (first, last) = (layers.first().unwrap_or(first), layers.last().unwrap_or(last));
        let (first, last) = (first.clone(), last.clone());
        let mut streams: Vec<usize> = devices.iter().filter_map(kernels::cuda::stream).collect();
        streams.sort_unstable();
        streams.dedup();
        Ok(Self { layers, first, last, dtype, outboxes: Mutex::default(), streams })
    }

    /// Waits until no other thread runs a pass, or loads, on the devices, whatever the model.
    pub(crate) fn turn(&self) -> Taken<'_> {
        PASSES.take(&self.streams)
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether all of the model is on one device.
    pub(crate) fn on_one_device(&self) -> bool {
        let mut devices = self.layers.iter().chain([&self.first]);
        devices.all(|device| device.same_device(&self.last))
    }

    /// Where the tensor of this Hugging Face name belongs: that of a layer to the layer's device,
    /// embeddings to the first one, also where they are the unembedding, all else to the last one.
    pub(crate) fn of(&self, name: &str) -> &Device {
        match Place::of(name) {
            Place::First => &self.first,
            Place::Layer(layer) => self.layers.get(layer).unwrap_or(&self.last),
            Place::Last => &self.last,
        }
    }

    /// What brings activations to main memory, for one pass.
    pub(crate) fn outbox(&self) -> Outbox {
        let mut outboxes = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        outboxes.pop().unwrap_or_else(|| Outbox::new(UNDER_WAY))
    }

    /// Keeps an outbox, from which all was received, for another pass.
    pub(crate) fn put_back(&self, outbox: Outbox) {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner).push(outbox);
    }

    /// What enters a layer, where the layer is and in the model's dtype.
    pub(crate) fn bring(&self, layer: usize, resid: Tensor) -> Result<Tensor> {
        let device = self.layers.get(layer).unwrap_or(&self.last);
        let resid = kernels::cuda::bring("bringing activations to a layer", &resid, device)?;
        Ok(resid.to_dtype(self.dtype)?)
    }

    /// An error with what a device says beside it: a full memory with how much of it is free, of
    /// several devices that of the fullest.
    pub(crate) fn explained(&self, error: Error) -> Error {
        let error = match error {
            Error::Kernel(error) => error,
            Error::Hooks(hooks::Error::Tensor(error)) => {
                match kernels::Error::of_device("editing activations", error) {
                    Ok(error) => error,
                    Err(error) => return Error::Hooks(hooks::Error::Tensor(error)),
                }
            }
            error => return error,
        };
        let free = |device: &&Device| kernels::cuda::free_bytes(device).unwrap_or(u64::MAX);
        if let kernels::Error::OutOfMemory { free: None, .. } = error
            && let Some(fullest) = self.layers.iter().chain([&self.first]).min_by_key(free)
        {
            return Error::Kernel(error.asking(None, fullest));
        }
        Error::Kernel(error)
    }
}

/// Which part of a model a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Layer(usize),
    Last,
}

impl Place {
    /// That of a tensor or module of a Hugging Face name, or of that in a GGUF file.
    fn of(name: &str) -> Self {
        const EMBEDDINGS: [&str; 6] =
            ["embed_tokens", "embed_in", "wte", "wpe", "token_embd", "position_embd"];
        // The first number in a name is that of the layer: experts come behind it.
        let layer = name.split('.').find_map(|part| part.parse().ok());
        match layer {
            Some(layer) => Self::Layer(layer),
            None if name.split('.').any(|part| EMBEDDINGS.contains(&part)) => Self::First,
            None => Self::Last,
        }
    }
}

/// The device of each layer, so that device `i` has a share of `free[i]` of the weights, as far as
/// that goes in whole layers.
fn shares(free: &[u64], sizes: &Sizes) -> impl Iterator<Item = usize> {
    let total: u128 = free.iter().map(|free| u128::from(*free)).sum();
    let sums = |numbers: &[u64]| -> Vec<u128> {
        let sum = |sum: &mut u128, number: &u64| {
            *sum += u128::from(*number);
            Some(*sum)
        };
        numbers.iter().scan(0, sum).collect()
    };
    let ends = sums(free);
    // A layer counts as a byte at least, so that there are shares of models without weights.
    let layers: Vec<u64> = sizes.layers.iter().map(|size| (*size).max(1)).collect();
    let (first, last) = (u128::from(sizes.first), u128::from(sizes.last));
    let all = first + sums(&layers).last().copied().unwrap_or(0) + last;
    let after = sums(&layers);
    layers.into_iter().zip(after).map(move |(size, after)| {
        // Twice where the middle of the layer lies, which decides.
        let middle = 2 * (first + after) - u128::from(size);
        let inside = |end: &u128| middle.saturating_mul(total) < (2 * all).saturating_mul(*end);
        ends.iter().position(inside).unwrap_or(ends.len() - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shared_by_free_memory() {
        let sized = |free: &[u64], sizes: Sizes| shares(free, &sizes).collect::<Vec<_>>();
        let of = |free: &[u64], n| {
            let like = Sizes { layers: vec![7; n], ..Sizes::default() };
            let none = Sizes { layers: vec![0; n], ..Sizes::default() };
            let shares = sized(free, like);
            assert_eq!(shares, sized(free, none));
            shares
        };
        assert_eq!(of(&[1], 3), [0, 0, 0]);
        assert_eq!(of(&[5, 5], 4), [0, 0, 1, 1]);
        assert_eq!(of(&[3, 1], 4), [0, 0, 0, 1]);
        assert_eq!(of(&[80 << 30, 40 << 30, 0], 6), [0, 0, 0, 0, 1, 1]);
        assert_eq!(of(&[0, 0], 2), [1, 1]);
        assert!(of(&[1, 2], 0).is_empty());
        // Embeddings before the layers and an unembedding behind them take memory, too.
        let layers = vec![10; 4];
        assert_eq!(
            sized(&[5, 5], Sizes { first: 20, layers: layers.clone(), last: 0 }),
            [0, 1, 1, 1]
        );
        assert_eq!(
            sized(&[5, 5], Sizes { first: 0, layers: layers.clone(), last: 20 }),
            [0, 0, 0, 1]
        );
        assert_eq!(sized(&[5, 5], Sizes { first: 20, layers, last: 20 }), [0, 0, 1, 1]);
        let uneven = Sizes { layers: vec![30, 10, 10, 10], ..Sizes::default() };
        assert_eq!(sized(&[5, 5], uneven), [0, 1, 1, 1]);
    }

    #[test]
    fn tensors_are_counted_where_they_go() {
        let tensors = [
            ("model.embed_tokens.weight", 1),
            ("token_embd.weight", 2),
            ("model.layers.0.mlp.experts.7.w1.weight", 4),
            ("blk.1.attn_q.weight", 8),
            ("model.layers.9.mlp.up_proj.weight", 16),
            ("output_norm.weight", 32),
            ("lm_head.weight", 64),
        ];
        let expected = Sizes { first: 3, layers: vec![4, 8], last: 112 };
        assert_eq!(Sizes::new(2, tensors), expected);
    }

    #[test]
    fn names_say_where_tensors_belong() {
        for (name, place) in [
            ("model.embed_tokens", Place::First),
            ("model.embed_tokens.weight", Place::First),
            ("gpt_neox.embed_in", Place::First),
            ("transformer.wte", Place::First),
            ("wpe.weight", Place::First),
            ("model.layers.1.mlp.experts.7.w1", Place::Layer(1)),
            ("transformer.h.11.attn.c_attn.bias", Place::Layer(11)),
            ("gpt_neox.layers.0.input_layernorm.weight", Place::Layer(0)),
            ("model.norm.weight", Place::Last),
            ("gpt_neox.final_layer_norm.bias", Place::Last),
            ("transformer.ln_f.weight", Place::Last),
            ("lm_head", Place::Last),
            ("embed_out", Place::Last),
        ] {
            assert_eq!(Place::of(name), place, "{name}");
        }
    }

    #[test]
    fn what_enters_a_layer_has_the_models_dtype() {
        let sizes = Sizes::new(2, []);
        let home = Home::new(&[Device::Cpu, Device::Cpu], &sizes, DType::BF16).unwrap();
        let resid = Tensor::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
        assert_eq!(home.bring(0, resid).unwrap().dtype(), DType::BF16);
        assert!(matches!(Home::new(&[], &sizes, DType::F32), Err(Error::NoDevice)));
    }

    #[test]
    fn threads_take_turns() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        let turns = Turns { taken: Mutex::default(), ended: Condvar::new() };
        // Of two GPUs some passes use one or the other, some both.
        let uses: [&[usize]; 4] = [&[7], &[8], &[7, 8], &[8, 7]];
        let running = [const { AtomicUsize::new(0) }; 2];
        let together = AtomicUsize::new(0);
        thread::scope(|scope| {
            for streams in uses {
                let (turns, running, together) = (&turns, &running, &together);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let _turn = turns.take(streams);
                        let count = |stream: &usize| &running[stream - 7];
                        for stream in streams {
                            let others = count(stream).fetch_add(1, Ordering::SeqCst);
                            together.fetch_max(others + 1, Ordering::SeqCst);
                        }
                        // A pass within a pass is the same thread's.
                        let _within = turns.take(streams);
                        thread::yield_now();
                        for stream in streams {
                            count(stream).fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(together.into_inner(), 1);
        assert!(turns.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn a_device_is_asked_about_nothing_but_its_memory() {
        let home = Home::new(&[Device::Cpu], &Sizes::new(2, []), DType::F32).unwrap();
        let full = kernels::Error::OutOfMemory { op: "matmul", asked: Some(9), free: None };
        let error = home.explained(full.into());
        // Main memory has no number of its own.
        assert!(
            matches!(error, Error::Kernel(kernels::Error::OutOfMemory { asked: Some(9), .. })),
            "{error}"
        );
        // What an edit met is the device's, too.
        let plain = candle_core::Error::NotCompiledWithCudaSupport;
        let error = home.explained(hooks::Error::Tensor(plain).into());
        assert!(matches!(error, Error::Kernel(kernels::Error::NoCuda)), "{error}");
        let other = hooks::Error::Tensor(candle_core::Error::Msg("other".to_owned()));
        assert!(matches!(home.explained(other.into()), Error::Hooks(hooks::Error::Tensor(_))));
        assert!(matches!(home.explained(Error::NoDevice), Error::NoDevice));
    }
}
