//! With the feature `cuda`: compiles `kernels/*.cu` and makes the table of what came out.
//!
//! Each file becomes one binary of machine code for capabilities 8.0, 9.0 and that of
//! `CUDA_COMPUTE_CAP`, and of PTX for all later ones. `EIGENLENS_CUDA_ARCHS` adds capabilities:
//! `86,89`. The compiler is `$NVCC`, `$CUDA_HOME/bin/nvcc`, or the `nvcc` of the path.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(reason) = build() {
        println!("cargo::error={reason}");
    }
}

fn build() -> Result<(), String> {
    let variable = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var(name).ok().filter(|value| !value.is_empty())
    };
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(variable("OUT_DIR").unwrap_or_default());
    let kernels = here.ancestors().nth(2).unwrap_or(&here).join("kernels");
    println!("cargo::rerun-if-changed={}", kernels.display());

    let built = variable("CUDA_COMPUTE_CAP")
        .ok_or("set CUDA_COMPUTE_CAP to the capability of the GPU, as 90 for an H100")?;
    let (major, minor) = built.split_at(built.len().saturating_sub(1));
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else {
        return Err(format!("CUDA_COMPUTE_CAP is {built}, expected a capability such as 90"));
    };
    let wider = variable("EIGENLENS_CUDA_ARCHS").unwrap_or_default();
    let mut capabilities: Vec<&str> =
        ["80", "90", &built].into_iter().chain(wider.split(',')).collect();
    capabilities.retain(|capability| !capability.is_empty());
    capabilities.sort_unstable();
    capabilities.dedup();
    let mut flags = vec!["-gencode=arch=compute_80,code=compute_80".to_owned()];
    flags.extend(capabilities.iter().map(|c| format!("-gencode=arch=compute_{c},code=sm_{c}")));

    let nvcc = variable("NVCC")
        .or_else(|| Some(variable("CUDA_HOME")? + "/bin/nvcc"))
        .unwrap_or_else(|| "nvcc".to_owned());
    let entries = fs::read_dir(&kernels).map_err(|e| format!("{}: {e}", kernels.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    // Cargo's own number, which is no reason to compile again.
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let mut table = String::from("&[\n");
    let mut fatbins = Vec::new();
    for file in &files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let fatbin = out.join(format!("{stem}.fatbin"));
        table += &format!("    ({stem:?}, include_bytes!({:?})),\n", fatbin.display().to_string());
        fatbins.push((file, fatbin));
    }
    compile_all(&nvcc, &flags, &fatbins, jobs)?;
    table += "]\n";
    let capability = format!("Capability {{ major: {major}, minor: {minor} }}");
    for (name, text) in [("fatbins.rs", table), ("capability.rs", capability)] {
        fs::write(out.join(name), text).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// Compiles every file, `jobs` of them at a time.
fn compile_all(
    nvcc: &str,
    flags: &[String],
    files: &[(&PathBuf, PathBuf)],
    jobs: usize,
) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((from, to)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(nvcc, flags, from, to)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let ended = |worker: thread::ScopedJoinHandle<'_, Result<(), String>>| {
            worker.join().unwrap_or_else(|_| Err("a thread of the build failed".to_owned()))
        };
        workers.into_iter().try_for_each(ended)
    })
}

fn compile(nvcc: &str, flags: &[String], from: &Path, to: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-Werror=all-warnings"]).args(flags);
    let output = command.arg(from).arg("-o").arg(to).output();
    let output = output
        .map_err(|error| format!("cannot run {nvcc}: {error}; scripts/cuda-toolkit installs it"))?;
    let said = String::from_utf8_lossy(&output.stderr).replace('\n', " | ");
    if output.status.success() { Ok(()) } else { Err(format!("{}: {said}", from.display())) }
}
