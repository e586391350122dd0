//! Copies of tensors to main memory, beside the computation.
//!
//! A copy goes through page-locked memory on a stream of its own, so that neither the device nor
//! the thread that feeds it waits for it. What is under way is bounded: who sends more than that
//! has to receive first, and of a tensor that is larger the rest is copied while it is received. Where
//! the system locks no pages, copies wait.

use candle_core::{DType, Device, Tensor};

use super::bytes;
use crate::{Error, Result};

#[cfg(feature = "cuda")]
use super::device::{Pinned, PinnedCopy};

const OP: &str = "copying to main memory";

/// A tensor under way to main memory.
#[derive(Debug)]
pub struct Parcel {
    bytes: usize,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    /// Was there from the beginning, or was waited for.
    Here(Tensor),
    #[cfg(feature = "cuda")]
    Coming(PinnedCopy),
}

/// What sends tensors to main memory, and the page-locked memory for it.
#[derive(Debug)]
pub struct Outbox {
    limit: usize,
    under_way: usize,
    #[cfg(feature = "cuda")]
    pinned: Pinned,
}

impl Outbox {
    /// For copies of `limit` bytes at a time.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            under_way: 0,
            #[cfg(feature = "cuda")]
            pinned: Pinned::default(),
        }
    }

    /// Whether a tensor can be sent before another one is received: always, where none is under way.
    pub fn has_room(&self, tensor: &Tensor) -> bool {
        self.under_way == 0 || self.under_way + bytes(tensor.dtype(), tensor.dims()) <= self.limit
    }

    /// Begins to copy a tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`], [`Error::Candle`], and the driver's own.
    pub fn send(&mut self, tensor: &Tensor) -> Result<Parcel> {
        let contents = match tensor.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) if tensor.elem_count() > 0 => {
                match self.pinned.copy(OP, device, tensor, self.limit)? {
                    Some(copy) => Contents::Coming(copy),
                    None => Contents::Here(at_once(tensor)?),
                }
            }
            _ => Contents::Here(at_once(tensor)?),
        };
        let bytes = bytes(tensor.dtype(), tensor.dims());
        self.under_way += bytes;
        Ok(Parcel { bytes, contents })
    }

    /// Waits for a tensor: in main memory, floats in `f32`.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`], [`Error::Candle`], and the driver's own.
    pub fn receive(&mut self, parcel: Parcel) -> Result<Tensor> {
        self.under_way = self.under_way.saturating_sub(parcel.bytes);
        match parcel.contents {
            Contents::Here(tensor) if tensor.dtype().is_float() => {
                tensor.to_dtype(DType::F32).map_err(Error::candle(OP))
            }
            Contents::Here(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Contents::Coming(copy) => self.pinned.receive(OP, copy, self.limit),
        }
    }
}

fn at_once(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&Device::Cpu).map_err(Error::candle(OP))
}
