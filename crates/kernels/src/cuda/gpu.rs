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

/// Every GPU that the driver shows and that this process can use, in the driver's order.
///
/// # Errors
///
/// [`Error::NoCuda`](crate::Error::NoCuda), [`Error::NoDriver`](crate::Error::NoDriver),
/// [`Error::NoGpu`](crate::Error::NoGpu) if there is none, [`Error::Driver`](crate::Error); what the
/// first says where none can be used.
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

/// The maker's name of a GPU that was opened; `None` of main memory, and where the driver does not
/// say.
pub fn name(device: &Device) -> Option<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device.cuda_stream().context().name().ok(),
        _ => None,
    }
}

/// Whether the system shows an NVIDIA GPU to this process, whatever this build can do with it.
pub fn is_there() -> bool {
    std::path::Path::new("/dev/nvidiactl").exists()
}

/// Those that answered, of GPUs that were asked: one that is full, or another process's alone,
/// hides no other.
///
/// # Errors
///
/// What the first says, where none answers.
#[cfg(any(test, feature = "cuda"))]
pub(super) fn answering(all: Vec<Result<Gpu>>) -> Result<Vec<Gpu>> {
    let (mut found, mut silent) = (Vec::new(), None);
    for gpu in all {
        match gpu {
            Ok(gpu) => found.push(gpu),
            Err(error) => silent = silent.or(Some(error)),
        }
    }
    match silent {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_gpu_that_cannot_be_used_hides_no_other() {
        let capability = Capability { major: 9, minor: 0 };
        let name = || "a gpu".to_owned();
        let gpu = |ordinal| Ok(Gpu { ordinal, name: name(), capability, free: 1, total: 2 });
        let silent = |code| Err(Error::of_code("listing gpus", code).unwrap());
        let found = answering(vec![silent(46), gpu(1), silent(2), gpu(3)]).unwrap();
        assert_eq!(found.iter().map(|gpu| gpu.ordinal).collect::<Vec<_>>(), [1, 3]);
        let none = answering(vec![silent(46), silent(2)]);
        assert!(matches!(none, Err(Error::NoGpu { code: 46, .. })));
        assert!(answering(Vec::new()).unwrap().is_empty());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(matches!(gpus(), Err(Error::NoCuda)));
        assert!(matches!(open(0), Err(Error::NoCuda)));
        assert_eq!(built_for(), None);
    }
}
