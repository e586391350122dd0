//! What this machine and this build can do.

use kernels::cuda::{gpu, libraries};
use serde::Serialize;

use crate::{Error, Result};

/// The state of the machine as far as a run depends on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Doctor {
    /// Version of the engine.
    pub version: &'static str,
    /// Operating system and processor architecture.
    pub platform: String,
    /// Threads that runs use.
    pub threads: usize,
    /// Logical cores that this process may use.
    pub cores: Option<usize>,
    /// Vector instructions that the numeric operations use.
    pub simd: Vec<&'static str>,
    /// Memory of the machine in bytes: in all, and available.
    pub memory: Option<(u64, u64)>,
    /// Devices that runs can be told to use.
    pub devices: Vec<String>,
    /// GPUs, and what stands between them and this machine.
    pub cuda: Cuda,
    /// `model_type`s that can be loaded.
    pub families: Vec<&'static str>,
    /// Analyses, with what they measure.
    pub analyses: Vec<(&'static str, &'static str)>,
    /// Whether the built-in model can be read.
    pub built_in_model: bool,
}

/// What a run on a GPU needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cuda {
    /// Compute capability of the GPUs that this build is for; `None` if it has no CUDA.
    pub built_for: Option<String>,
    /// The newest CUDA that the driver knows; `None` without a driver.
    pub driver: Option<String>,
    /// What a build with CUDA needs before it can start.
    pub libraries: Vec<LibraryState>,
    /// The GPUs that the driver shows to this build and that it can use.
    pub gpus: Vec<GpuState>,
    /// Why there are none.
    pub refusal: Option<String>,
}

/// A library that a build with CUDA needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LibraryState {
    /// The name that the loader looks for.
    pub file: &'static str,
    /// Why the loader cannot have it; `None` if it can.
    pub missing: Option<String>,
    /// What to do about it.
    pub cure: Option<&'static str>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuState {
    /// What `--device` calls it.
    pub device: String,
    /// Its maker's name for it.
    pub name: String,
    /// Its compute capability.
    pub capability: String,
    /// Whether this build has code for it.
    pub fits: bool,
    /// Free memory in bytes.
    pub free: u64,
    /// All of its memory in bytes.
    pub total: u64,
}

/// Looks at the machine.
pub fn doctor() -> Doctor {
    let cuda = cuda();
    let usable = cuda.gpus.iter().filter(|gpu| gpu.fits).map(|gpu| gpu.device.clone());
    Doctor {
        version: env!("CARGO_PKG_VERSION"),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: rayon::current_num_threads(),
        cores: std::thread::available_parallelism().ok().map(usize::from),
        simd: simd(),
        memory: memory(),
        devices: std::iter::once("cpu".to_owned()).chain(usable).collect(),
        cuda,
        families: crate::families().families,
        analyses: analysis::ANALYSES.iter().map(|a| (a.name, a.about)).collect(),
        built_in_model: crate::explain("tiny-mixtral", None, &mut crate::Silent)
            .is_ok_and(|explained| explained.refusal.is_none()),
    }
}

fn cuda() -> Cuda {
    let library = |needed: &libraries::Needed| {
        let missing = needed.find().err();
        let cure = missing.as_ref().map(|_| needed.from.cure());
        LibraryState { file: needed.file, missing, cure }
    };
    let (gpus, refusal) = match gpu::gpus() {
        Ok(gpus) => (gpus, None),
        Err(kernels::Error::NoCuda) => (Vec::new(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let state = |gpu: gpu::Gpu| GpuState {
        device: format!("cuda:{}", gpu.ordinal),
        capability: gpu.capability.to_string(),
        fits: gpu.fits(),
        free: gpu.free,
        total: gpu.total,
        name: gpu.name,
    };
    Cuda {
        built_for: gpu::built_for().map(|capability| capability.to_string()),
        driver: libraries::driver().map(|(major, minor)| format!("{major}.{minor}")),
        libraries: libraries::NEEDED.iter().map(library).collect(),
        gpus: gpus.into_iter().map(state).collect(),
        refusal,
    }
}

fn simd() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
        ];
        known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Total and available memory, where the system tells.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':').trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    Some((kib("MemTotal")? * 1024, kib("MemAvailable")? * 1024))
}

/// Most threads that can be asked for.
const MAX_THREADS: usize = 1024;

/// Sets the number of threads that operations share, the calling one among them: it then
/// works where another thread would wait for its commands, which are many and short. 0 takes
/// as many as there are cores, or as `RAYON_NUM_THREADS` says. Works once, before any operation
/// has run.
///
/// Call it on the thread that measures. Where it is the only one of the pool, operations that are
/// called on other threads wait until it runs some itself.
///
/// # Errors
///
/// [`Error::Threads`] if there are too many, or the pool exists already.
pub fn set_threads(threads: usize) -> Result<()> {
    if threads > MAX_THREADS {
        let reason = format!("at most {MAX_THREADS} are supported");
        return Err(Error::Threads { threads, reason });
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .build_global()
        .map_err(|error| Error::Threads { threads, reason: error.to_string() })
}
