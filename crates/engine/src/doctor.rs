//! What this machine and this build can do.

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
    /// Devices that this build runs models on.
    pub devices: Vec<&'static str>,
    /// `model_type`s that can be loaded.
    pub families: Vec<&'static str>,
    /// Analyses, with what they measure.
    pub analyses: Vec<(&'static str, &'static str)>,
    /// Whether the built-in model can be read.
    pub built_in_model: bool,
}

/// Looks at the machine.
pub fn doctor() -> Doctor {
    Doctor {
        version: env!("CARGO_PKG_VERSION"),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: rayon::current_num_threads(),
        cores: std::thread::available_parallelism().ok().map(usize::from),
        simd: simd(),
        memory: memory(),
        devices: vec!["cpu"],
        families: crate::families().families,
        analyses: analysis::ANALYSES.iter().map(|a| (a.name, a.about)).collect(),
        built_in_model: crate::explain("tiny-mixtral", &mut crate::Silent).is_ok(),
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

/// Bounds the thread pool that every operation uses. Works once, before any of
/// them has run.
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
        .build_global()
        .map_err(|error| Error::Threads { threads, reason: error.to_string() })
}
