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
    /// On these devices, layers on the first ones before those on the last, so many on each as its
    /// free memory is of all: GPUs. [`Device::Cpu`] among them is main memory in place of a GPU's,
    /// for [`kernels::cuda::emulated`].
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
    turn: Mutex<Turn>,
    turn_ended: Condvar,
}

/// Whose passes run.
#[derive(Debug)]
struct Turn {
    /// The last thread that told the devices something.
    last: ThreadId,
    /// Its passes under way, one within the other.
    passes: usize,
}

/// The turn of a thread, until it is dropped.
pub(crate) struct Taken<'a>(&'a Home);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        turn.passes -= 1;
        if turn.passes == 0 {
            self.0.turn_ended.notify_one();
        }
    }
}

impl Home {
    /// `n_layers` layers on `devices`, by their free memory.
    pub(crate) fn new(devices: &[Device], n_layers: usize, dtype: DType) -> Result<Self> {
        let (Some(first), Some(last)) = (devices.first(), devices.last()) else {
            return Err(Error::NoDevice);
        };
        let free = match devices {
            [_] => vec![1],
            _ => devices
                .iter()
                .map(|device| Ok(kernels::cuda::free_bytes(device)?))
                .collect::<Result<Vec<u64>>>()?,
        };
        let layers: Vec<Device> =
            shares(&free, n_layers).map(|device| devices[device].clone()).collect();
        let (first, last) = (layers.first().unwrap_or(first), layers.last().unwrap_or(last));
        let (first, last) = (first.clone(), last.clone());
        let turn = Mutex::new(Turn { last: thread::current().id(), passes: 0 });
        let (outboxes, turn_ended) = (Mutex::default(), Condvar::new());
        Ok(Self { layers, first, last, dtype, outboxes, turn, turn_ended })
    }

    /// Waits until no other thread's pass runs on the devices, and for what such passes, or loading,
    /// told them: each thread has streams of its own, and what one leaves there the next would read
    /// too soon.
    pub(crate) fn turn(&self) -> Result<Taken<'_>> {
        let me = thread::current().id();
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while turn.passes > 0 && turn.last != me {
            turn = self.turn_ended.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        if turn.last != me {
            let mut devices: Vec<&Device> = self.layers.iter().chain([&self.first]).collect();
            devices.dedup_by(|a, b| a.same_device(b));
            devices.into_iter().try_for_each(kernels::cuda::wait)?;
            turn.last = me;
        }
        turn.passes += 1;
        Ok(Taken(self))
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
    /// That of a tensor or module of a Hugging Face name.
    fn of(name: &str) -> Self {
        const EMBEDDINGS: [&str; 4] = ["embed_tokens", "embed_in", "wte", "wpe"];
        // The first number in a name is that of the layer: experts come behind it.
        let layer = name.split('.').find_map(|part| part.parse().ok());
        match layer {
            Some(layer) => Self::Layer(layer),
            None if name.split('.').any(|part| EMBEDDINGS.contains(&part)) => Self::First,
            None => Self::Last,
        }
    }
}

/// The device of each of `n` layers, so that device `i` has a share of `free[i]`, as far as that
/// goes in whole layers.
fn shares(free: &[u64], n: usize) -> impl Iterator<Item = usize> {
    let total: u128 = free.iter().map(|free| u128::from(*free)).sum();
    let ends: Vec<u128> = free
        .iter()
        .scan(0, |sum, free| {
            *sum += u128::from(*free);
            Some(*sum)
        })
        .collect();
    // The middle of a layer decides, in units of half a layer.
    (0..n as u128).map(move |layer| {
        let inside = |end: &u128| (2 * layer + 1) * total < 2 * n as u128 * end;
        ends.iter().position(inside).unwrap_or(ends.len() - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shared_by_free_memory() {
        let of = |free: &[u64], n| shares(free, n).collect::<Vec<_>>();
        assert_eq!(of(&[1], 3), [0, 0, 0]);
        assert_eq!(of(&[5, 5], 4), [0, 0, 1, 1]);
        assert_eq!(of(&[3, 1], 4), [0, 0, 0, 1]);
        assert_eq!(of(&[80 << 30, 40 << 30, 0], 6), [0, 0, 0, 0, 1, 1]);
        assert_eq!(of(&[0, 0], 2), [1, 1]);
        assert!(of(&[1, 2], 0).is_empty());
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
        let home = Home::new(&[Device::Cpu, Device::Cpu], 2, DType::BF16).unwrap();
        let resid = Tensor::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
        assert_eq!(home.bring(0, resid).unwrap().dtype(), DType::BF16);
        assert!(matches!(Home::new(&[], 2, DType::F32), Err(Error::NoDevice)));
    }

    #[test]
    fn threads_take_turns() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        let home = Home::new(&[Device::Cpu, Device::Cpu], 2, DType::F32).unwrap();
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _turn = home.turn().unwrap();
                        most.fetch_max(
                            running.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                        // A pass within a pass is the same thread's.
                        let _within = home.turn().unwrap();
                        thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert_eq!(home.turn.lock().unwrap().passes, 0);
    }

    #[test]
    fn a_device_is_asked_about_nothing_but_its_memory() {
        let home = Home::new(&[Device::Cpu], 2, DType::F32).unwrap();
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
