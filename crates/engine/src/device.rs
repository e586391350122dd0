//! Where a model runs, in the words of the command line.

use std::fmt;
use std::str::FromStr;

use kernels::cuda::gpu;
use runner::Placement;

use crate::{Error, Result};

/// Where a model is to run: `auto`, `cpu`, `cuda`, `cuda:1`, or several as `cuda:0,cuda:1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best there is: the GPU with the most free memory, or the CPU where the build has no
    /// CUDA or the machine no GPU.
    #[default]
    Best,
    /// The CPU.
    Cpu,
    /// GPUs by their numbers, each once and at least one.
    Cuda(Vec<usize>),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::DeviceName { text: text.to_owned() };
        match text {
            "auto" => return Ok(Self::Best),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(vec![0])),
            _ => {}
        }
        let mut ordinals = Vec::new();
        for part in text.split(',') {
            let digits = part.strip_prefix("cuda:").ok_or_else(wrong)?;
            // `parse` takes a sign, too.
            if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(wrong());
            }
            let ordinal = digits.parse().map_err(|_| wrong())?;
            if ordinals.contains(&ordinal) || ordinal > Self::LAST {
                return Err(wrong());
            }
            ordinals.push(ordinal);
        }
        Ok(Self::Cuda(ordinals))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinals) => {
                let names: Vec<String> = ordinals.iter().map(|n| format!("cuda:{n}")).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl DeviceChoice {
    /// No machine has a GPU of a larger number.
    const LAST: usize = 1023;

    /// Opens what was chosen, with every kernel loaded.
    ///
    /// # Errors
    ///
    /// [`Error::Gpu`] where a GPU that was named is not to be had, or the best one is of another
    /// capability than the build is for.
    pub fn open(&self) -> Result<Placement> {
        match self {
            Self::Cpu => Ok(Placement::Cpu),
            Self::Cuda(ordinals) => {
                let devices: kernels::Result<_> = ordinals.iter().map(|&n| gpu::open(n)).collect();
                Ok(Placement::Devices(devices?))
            }
            Self::Best => best(gpu::gpus()),
        }
    }
}

/// The best of what there is: a GPU that the build has no code for is refused, since whoever has
/// one wants to know.
fn best(gpus: kernels::Result<Vec<gpu::Gpu>>) -> Result<Placement> {
    use kernels::Error as E;
    match gpus {
        Ok(gpus) => match gpus.iter().max_by_key(|gpu| (gpu.fits(), gpu.free)) {
            Some(gpu) => Ok(Placement::Devices(vec![gpu::open(gpu.ordinal)?])),
            None => Ok(Placement::Cpu),
        },
        Err(E::NoCuda | E::NoDriver { .. } | E::NoGpu { .. }) => Ok(Placement::Cpu),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_choices() {
        for (text, choice) in [
            ("auto", DeviceChoice::Best),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(vec![0])),
            ("cuda:7", DeviceChoice::Cuda(vec![7])),
            ("cuda:2,cuda:0", DeviceChoice::Cuda(vec![2, 0])),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(vec![0]));
        for wrong in [
            "",
            "gpu",
            "CPU",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda: 1",
            "cuda:1,",
            "cuda:0,cpu",
            "cuda:0,1",
            "cuda:1,cuda:1",
            "cuda:1024",
            "cuda:99999999999999999999",
        ] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err();
            assert!(matches!(&error, Error::DeviceName { text } if text == wrong), "{wrong}");
            assert_eq!(error.fault(), crate::Fault::Request);
        }
    }

    #[test]
    fn without_a_gpu_the_best_is_the_cpu() {
        use kernels::Error as E;
        let absent = |code| Err(E::of_code("listing gpus", code).unwrap());
        for gpus in [Err(E::NoCuda), absent(100), absent(34), Ok(Vec::new())] {
            assert!(matches!(best(gpus), Ok(Placement::Cpu)));
        }
        let lost = best(absent(719)).unwrap_err();
        assert_eq!(lost.fault(), crate::Fault::Device);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_a_device_at_fault() {
        // No driver, no GPU, no such GPU, or no CUDA in this build.
        let error = DeviceChoice::Cuda(vec![DeviceChoice::LAST]).open().unwrap_err();
        assert_eq!(error.fault(), crate::Fault::Device);
        if gpu::built_for().is_none() {
            assert!(error.to_string().contains("this build has no CUDA"), "{error}");
        }
    }
}
