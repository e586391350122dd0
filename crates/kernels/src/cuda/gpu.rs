//! The GPUs of a machine: what there is, and opening one.
//!
//! Both builds have these functions, so that who calls them needs to know nothing of features; a
//! build without CUDA answers with [`Error::NoCuda`](crate::Error::NoCuda).

use candle_core::Device;

use super::capability::Capability;
use crate::Result;

/// The capability that this build is for; `None` if it has no CUDA.
pub fn built_for() -> Option<Capability> {
    #[cfg(feature = "cuda")]
    return Some(Capability::BUILT);
    #[cfg(not(feature = "cuda"))]
    None
}

/// A GPU that the driver shows to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number: `N` of `--device cuda:N`.
    pub ordinal: usize,
    /// Its maker's name for it.
    pub name: String,
    /// Its compute capability.
    pub capability: Capability,
    /// Free memory in bytes.
    pub free: u64,
    /// All of its memory in bytes.
    pub total: u64,
}

impl Gpu {
    /// Whether this build has code for it.
    pub fn fits(&self) -> bool {
        built_for().is_some_and(|built| built.runs_on(self.capability))
    }
}

/// Every GPU that the driver shows, in its order.
///
/// # Errors
///
/// [`Error::NoCuda`](crate::Error::NoCuda), [`Error::NoDriver`](crate::Error::NoDriver),
/// [`Error::NoGpu`](crate::Error::NoGpu) if there is none, [`Error::Driver`](crate::Error).
pub fn gpus() -> Result<Vec<Gpu>> {
    #[cfg(feature = "cuda")]
    return super::device::gpus();
    #[cfg(not(feature = "cuda"))]
    Err(crate::Error::NoCuda)
}

/// The GPU of that number, every kernel loaded on it.
///
/// # Errors
///
/// As [`gpus`]; [`Error::Capability`](crate::Error::Capability) for a GPU that this build has no
/// code for.
pub fn open(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return super::device::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = ordinal;
        Err(crate::Error::NoCuda)
    }
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(matches!(gpus(), Err(Error::NoCuda)));
        assert!(matches!(open(0), Err(Error::NoCuda)));
        assert_eq!(built_for(), None);
    }
}
