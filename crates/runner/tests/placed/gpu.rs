//! The first GPU, which must be there.

use candle_core::Device;
use kernels::cuda::gpu;

thread_local! {
    /// Every test has a thread of its own. Opened once: a device brings its libraries' workspaces.
    static GPU: Device = gpu::open(0).unwrap_or_else(|error| panic!("{error}"));
}

/// Steps of decoding that a test makes.
pub const STEPS: usize = 40;

pub fn device() -> Device {
    GPU.with(Device::clone)
}

/// Runs `f`.
pub fn with<R>(f: impl FnOnce() -> R) -> R {
    f()
}
