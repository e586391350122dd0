//! Where a model runs, in the words of the command line.

use std::fmt;
use std::str::FromStr;

use kernels::cuda::gpu;
use runner::Placement;
use serde_json::{Value, json};

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

    /// Opens what was chosen, with every kernel loaded, and says why it is that.
    ///
    /// # Errors
    ///
    /// [`Error::Gpu`] where a GPU that was named is not to be had, or the best one is of another
    /// capability than the build is for.
    pub fn open(&self) -> Result<Opened> {
        match self {
            Self::Cpu => Ok(Placement::Cpu.into()),
            Self::Cuda(ordinals) => {
                let devices: kernels::Result<_> = ordinals.iter().map(|&n| gpu::open(n)).collect();
                Ok(Placement::Devices(devices?).into())
            }
            Self::Best => best(gpu::gpus(), gpu::is_there()),
        }
    }
}

/// Where a model runs, and why there.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Where.
    pub placement: Placement,
    /// Why.
    pub reason: Reason,
}

/// Why a device was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was named.
    Named,
    /// Of the GPUs it has the most free memory.
    MostFree,
    /// The CPU, since the build has no CUDA.
    NoCuda {
        /// Whether the machine has a GPU all the same.
        gpu: bool,
    },
    /// The CPU, since no GPU is to be had: what the driver says.
    NoGpu(String),
}

impl From<Placement> for Opened {
    fn from(placement: Placement) -> Self {
        Self { placement, reason: Reason::Named }
    }
}

impl Opened {
    /// What the user should know who left the choice to the engine and gets the CPU, though a GPU
    /// could be expected.
    pub fn note(&self) -> Option<String> {
        match &self.reason {
            Reason::Named | Reason::MostFree | Reason::NoCuda { gpu: false } => None,
            Reason::NoCuda { gpu: true } => Some(
                "running on the cpu: there is a gpu, but this build has no CUDA (see `eigenlens \
                 doctor`); --device cpu runs there without this line"
                    .to_owned(),
            ),
            Reason::NoGpu(why) => Some(format!(
                "running on the cpu: {why}; --device cuda ends with this error instead, --device \
                 cpu runs there without this line"
            )),
        }
    }

    /// For the reader of a run folder: the devices, the names of their GPUs, and the reason.
    pub(crate) fn describe(&self) -> Value {
        let why = match &self.reason {
            Reason::Named => "named".to_owned(),
            Reason::MostFree => "auto: the gpu with the most free memory".to_owned(),
            Reason::NoCuda { .. } => "auto: this build has no CUDA".to_owned(),
            Reason::NoGpu(why) => format!("auto: {why}"),
        };
        let devices = match &self.placement {
            Placement::Cpu => &[][..],
            Placement::Devices(devices) => devices,
        };
        json!({
            "used": self.placement.to_string(),
            "gpus": devices.iter().filter_map(gpu::name).collect::<Vec<_>>(),
            "why": why,
        })
    }

    /// What results depend on: not which of several GPUs computes, or how many of them.
    pub(crate) fn kind(&self) -> String {
        match &self.placement {
            Placement::Devices(devices) if devices.iter().all(|device| device.is_cuda()) => {
                "cuda".to_owned()
            }
            placement => placement.to_string(),
        }
    }
}

/// The best of what there is: a GPU that the build has no code for is refused, since whoever has
/// one wants to know.
fn best(gpus: kernels::Result<Vec<gpu::Gpu>>, is_there: bool) -> Result<Opened> {
    use kernels::Error as E;
    let reason = match gpus {
        Ok(gpus) => match gpus.iter().max_by_key(|gpu| (gpu.fits(), gpu.free)) {
            Some(gpu) => {
                let placement = Placement::Devices(vec![gpu::open(gpu.ordinal)?]);
                return Ok(Opened { placement, reason: Reason::MostFree });
            }
            None => Reason::NoGpu("the driver shows no gpu".to_owned()),
        },
        Err(E::NoCuda) => Reason::NoCuda { gpu: is_there },
        Err(error @ (E::NoDriver { .. } | E::NoGpu { .. })) => Reason::NoGpu(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    Ok(Opened { placement: Placement::Cpu, reason })
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
        for (gpus, is_there, said) in [
            (Err(E::NoCuda), false, None),
            (Err(E::NoCuda), true, Some("this build has no CUDA")),
            (absent(100), true, Some("CUDA_ERROR_NO_DEVICE")),
            (absent(34), false, Some("CUDA_ERROR_STUB_LIBRARY")),
            (Ok(Vec::new()), true, Some("shows no gpu")),
        ] {
            let opened = best(gpus, is_there).unwrap();
            assert!(matches!(opened.placement, Placement::Cpu));
            assert_eq!(opened.kind(), "cpu");
            let described = opened.describe();
            assert_eq!(described["used"], "cpu");
            let why = described["why"].as_str().unwrap();
            assert!(why.starts_with("auto: "), "{why}");
            let note = opened.note();
            assert_eq!(note.is_some(), said.is_some());
            if let (Some(note), Some(said)) = (note, said) {
                assert!(note.contains(said) && note.contains("--device cpu"), "{note}");
                assert!(!note.contains('\n') && why.contains(said), "{why}");
            }
        }
        let lost = best(absent(719), true).unwrap_err();
        assert_eq!(lost.fault(), crate::Fault::Device);
    }

    #[test]
    fn what_was_named_needs_no_words() {
        let opened = DeviceChoice::Cpu.open().unwrap();
        assert_eq!((opened.note(), opened.kind().as_str()), (None, "cpu"));
        assert_eq!(opened.describe(), json!({ "used": "cpu", "gpus": [], "why": "named" }));
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
