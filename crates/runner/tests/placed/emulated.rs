//! Main memory in place of a GPU's, its kernels run by emulation.

use candle_core::{Device, Tensor};
use kernels::cuda::{Plan, emulated};

#[allow(dead_code)] // the kernels' own tests use all of it
#[path = "../../../kernels/tests/machine/emulated.rs"]
mod emulation;

/// Steps of decoding that a test makes.
pub const STEPS: usize = 4;

pub fn device() -> Device {
    Device::Cpu
}

/// Runs `f` with the kernels in place of the CPU's operations.
pub fn with<R>(f: impl FnOnce() -> R) -> R {
    emulated(one_way, f)
}

pub fn one_way(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    Ok(emulation::run(plan, emulation::EFFORTS[0]).unwrap())
}
