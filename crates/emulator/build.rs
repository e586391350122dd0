//! Compiles every kernel of the workspace, and the planted faults of this crate's tests, for the
//! CPU: once as they are, once under the address and undefined-behaviour sanitizers.
//!
//! A machine without a C++ compiler builds all the same; what is run then says what was missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-g1",
    // No fused products but those that a kernel asks for.
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Werror",
    "-pipe",
];
const PLAIN: [&str; 1] = ["-O2"];
const SANITIZED: [&str; 4] =
    ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let (native, planted) = (here.join("native"), here.join("tests/planted"));
    let kernels = here.ancestors().nth(2).unwrap_or(&here).join("kernels");
    for watched in [&native, &planted, &kernels] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    println!("cargo::rerun-if-env-changed=CXX");
    let mut sources = vec![native.join("emulation.cpp")];
    for folder in [&kernels, &planted] {
        sources.extend(kernels_in(folder));
    }
    let include = [&native, &kernels];
    let on_x86_64 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    for (name, flags) in [("plain", &PLAIN[..]), ("sanitized", &SANITIZED[..])] {
        let program = out.join(name);
        let made = if on_x86_64 {
            compile(&sources, &include, flags, &program)
        } else {
            Err("the fibers of the emulation are written for x86-64".to_owned())
        };
        let missing = made.err().unwrap_or_default();
        if !missing.is_empty() {
            println!(
                "cargo::warning=no {name} emulation: {}",
                missing.lines().next().unwrap_or("")
            );
        }
        let text = format!("({:?}, {missing:?})", program.display().to_string());
        if let Err(error) = fs::write(out.join(format!("{name}.rs")), text) {
            println!("cargo::error=cannot write into {}: {error}", out.display());
        }
    }
}

/// The `.cu` files of a folder, in order of their names.
fn kernels_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    found.sort();
    found
}

/// Compiles the sources, two at a time, and links them to a program.
fn compile(
    sources: &[PathBuf],
    include: &[&PathBuf],
    flags: &[&str],
    program: &Path,
) -> Result<(), String> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let objects: Vec<PathBuf> =
        (0..sources.len()).map(|i| program.with_extension(format!("{i}.o"))).collect();
    let jobs: Vec<_> = sources.iter().zip(&objects).collect();
    for pair in jobs.chunks(2) {
        let children: Vec<_> = pair
            .iter()
            .map(|(source, object)| {
                let mut command = Command::new(&compiler);
                command.args(FLAGS).args(flags);
                command.args(include.iter().map(|folder| format!("-I{}", folder.display())));
                command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(object);
                command.stderr(std::process::Stdio::piped()).spawn()
            })
            .collect();
        for child in children {
            finish(&compiler, child.and_then(|child| child.wait_with_output()))?;
        }
    }
    let mut link = Command::new(&compiler);
    link.args(flags).args(&objects).arg("-o").arg(program);
    finish(&compiler, link.output())
}

fn finish(compiler: &str, done: std::io::Result<std::process::Output>) -> Result<(), String> {
    match done {
        Err(error) => Err(format!("cannot run {compiler}: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
