//! The first GPU, which must be there.

use candle_core::Device;

pub fn device() -> Device {
    Device::new_cuda(0).unwrap()
}

/// Runs `f`.
pub fn with<R>(f: impl FnOnce() -> R) -> R {
    f()
}
