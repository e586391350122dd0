//! Where the layers of a model run.

use std::fmt;
use std::sync::{Mutex, PoisonError};

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
        Ok(Self { layers, first, last, dtype, outboxes: Mutex::default() })
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
        let resid =
            if resid.device().same_device(device) { resid } else { resid.to_device(device)? };
        Ok(resid.to_dtype(self.dtype)?)
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
}
