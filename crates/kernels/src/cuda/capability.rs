//! Which GPUs a build runs on.
//!
//! The kernels of this crate are built for several capabilities and, as PTX, for all later ones;
//! candle's are partly machine code for one. A build is therefore for that one, and says so before
//! a kernel fails with a code that names neither.

use std::fmt;

use crate::{Error, Result};

/// Compute capability of a GPU, or what a build is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// Generation.
    pub major: u32,
    /// Within the generation.
    pub minor: u32,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Capability {
    /// The capability that this build is for.
    #[cfg(feature = "cuda")]
    pub const BUILT: Self = include!(concat!(env!("OUT_DIR"), "/capability.rs"));

    /// From this generation on, candle's helper takes instructions of one capability alone: 9.0
    /// becomes `sm_90a`.
    const SPECIFIC: u32 = 9;

    /// Whether a GPU of capability `device` runs what was built for this one: machine code runs
    /// on its own generation from its own minor number on.
    pub fn runs_on(self, device: Self) -> bool {
        if self.major >= Self::SPECIFIC {
            device == self
        } else {
            device.major == self.major && device.minor >= self.minor
        }
    }
}

/// Refuses a GPU on which a build for `built` does not run.
///
/// # Errors
///
/// [`Error::Capability`], naming both.
///
/// ```
/// use kernels::cuda::capability::{Capability, check};
///
/// let (ampere, hopper) = (Capability { major: 8, minor: 6 }, Capability { major: 9, minor: 0 });
/// assert!(check(hopper, hopper).is_ok());
/// let error = check(ampere, hopper).unwrap_err().to_string();
/// assert!(error.contains("8.6") && error.contains("9.0"));
/// ```
pub fn check(device: Capability, built: Capability) -> Result<()> {
    if built.runs_on(device) { Ok(()) } else { Err(Error::Capability { device, built }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_runs_within_its_generation() {
        let capability = |major, minor| Capability { major, minor };
        for (device, built, runs) in [
            (capability(8, 0), capability(8, 0), true),
            (capability(8, 9), capability(8, 0), true),
            (capability(8, 0), capability(8, 6), false),
            (capability(7, 5), capability(8, 0), false),
            (capability(9, 0), capability(8, 0), false),
            (capability(9, 0), capability(9, 0), true),
            (capability(10, 0), capability(9, 0), false),
            (capability(10, 3), capability(10, 0), false),
        ] {
            assert_eq!(built.runs_on(device), runs, "built for {built}, on {device}");
            assert_eq!(check(device, built).is_ok(), runs);
        }
    }
}
