//! Runs the CUDA kernels of `kernels/` on the CPU, for tests.
//!
//! The kernels are compiled by g++ with a header of CUDA's language (`native/emulation.h`); every
//! CUDA thread is a fiber, which runs until it waits for others. A launch is a process of its own:
//! a kernel that reads where nothing is, waits for ever or diverges ends that process, and the
//! caller gets an [`Error`] that tells what was seen.
//!
//! What a launch shows depends on the order in which threads get their turn, so kernels are run in
//! every [`Order`]: a missing barrier hides in some of them. The [`Build::Sanitized`] build finds
//! accesses outside of buffers and of shared memory, and undefined behaviour.
//!
//! The tensor-core product, the loads of its fragments and the copies beside the work (`cp.async`)
//! are modelled lane by lane, so kernels that use them run as they are.
//!
//! What it cannot show: the text of inline PTX, the device's weak memory order, races between two
//! points of waiting that no order brings out, bank conflicts, speed.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a launch has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The emulation was not compiled.
    #[error("the emulation was not built: {reason}; install g++ or name a compiler in CXX")]
    NotBuilt {
        /// What the compiler said.
        reason: &'static str,
    },
    /// The launch does not fit the kernel or the device.
    #[error("launch refused: {reason}")]
    Refused {
        /// What does not fit.
        reason: String,
    },
    /// The kernel did what no kernel may: a divergent barrier, a collective with lanes that are
    /// not there, more time than it was given.
    #[error("kernel fault: {reason}")]
    Fault {
        /// What was seen, with block, threads and places.
        reason: String,
    },
    /// A sanitizer ended the launch.
    #[error("sanitizer: {report}")]
    Sanitizer {
        /// Its report.
        report: String,
    },
    /// The process ended otherwise, as by an access to memory that is not there.
    #[error("the launch ended with {status}: {output}")]
    Died {
        /// The process's status.
        status: String,
        /// What it had said.
        output: String,
    },
    /// The process could not be started or spoken with.
    #[error("cannot run the emulation: {0}")]
    Io(#[from] std::io::Error),
}

/// Which build of the kernels runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// As they are.
    Plain,
    /// Under the address and undefined-behaviour sanitizers, several times slower.
    Sanitized,
}

impl Build {
    fn program(self) -> Result<&'static str> {
        let (path, missing) = match self {
            Self::Plain => include!(concat!(env!("OUT_DIR"), "/plain.rs")),
            Self::Sanitized => include!(concat!(env!("OUT_DIR"), "/sanitized.rs")),
        };
        if missing.is_empty() { Ok(path) } else { Err(Error::NotBuilt { reason: missing }) }
    }
}

/// In which order threads get their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Blocks, warps and lanes ascending; a warp goes as far as it can before the next.
    Forward,
    /// All descending.
    Reverse,
    /// Threads of all warps take turns, 37 apart.
    Strided,
}

impl Order {
    /// Every order.
    pub const ALL: [Self; 3] = [Self::Forward, Self::Reverse, Self::Strided];
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument<'a> {
    /// A pointer into a buffer.
    Buffer {
        /// Which of the launch's buffers.
        index: usize,
        /// Bytes from its begin.
        offset: usize,
    },
    /// The bytes of a value, as the kernel's parameter has them.
    Value(&'a [u8]),
}

/// One launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the entry point.
    pub kernel: &'a str,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z: at most 1,024 in all.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory, which begins as NaN.
    pub shared_bytes: usize,
    /// In the order of the kernel's parameters.
    pub arguments: &'a [Argument<'a>],
    /// Which build runs.
    pub build: Build,
    /// The order of the threads.
    pub order: Order,
    /// Seconds after which the launch has run away.
    pub seconds: u32,
}

impl Launch<'_> {
    /// Runs the kernel over the buffers, each of which is an allocation of its own, aligned to
    /// 256 bytes as on the device.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; the buffers are then as before.
    pub fn run(&self, buffers: &mut [Vec<u8>]) -> Result<()> {
        let mut child = Command::new(self.build.program()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let request = self.request(buffers);
        // A process that ends before it has read all says why on its standard error.
        let sent = match child.stdin.take() {
            Some(mut stdin) => stdin.write_all(&request),
            None => Ok(()),
        };
        let done = child.wait_with_output()?;
        if done.status.success() {
            sent?;
            let mut answer = &done.stdout[..];
            let mut results: Vec<Vec<u8>> = buffers.iter().map(|b| vec![0; b.len()]).collect();
            for result in &mut results {
                answer.read_exact(result)?;
            }
            buffers.iter_mut().zip(results).for_each(|(buffer, result)| *buffer = result);
            return Ok(());
        }
        let output = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        Err(match done.status.code() {
            Some(3) => Error::Fault { reason: output },
            Some(4) => Error::Refused { reason: output },
            _ if output.contains("Sanitizer") || output.contains("runtime error") => {
                Error::Sanitizer { report: output }
            }
            _ => Error::Died { status: done.status.to_string(), output },
        })
    }

    /// The launch as `native/emulation.cpp` reads it.
    fn request(&self, buffers: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let word = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_ne_bytes());
        let size = |bytes: &mut Vec<u8>, value: usize| bytes.extend((value as u64).to_ne_bytes());
        size(&mut bytes, self.kernel.len());
        bytes.extend(self.kernel.as_bytes());
        self.grid.iter().chain(&self.block).for_each(|&count| word(&mut bytes, count));
        word(&mut bytes, self.order as u32);
        word(&mut bytes, self.seconds);
        size(&mut bytes, self.shared_bytes);
        word(&mut bytes, buffers.len() as u32);
        for buffer in buffers {
            size(&mut bytes, buffer.len());
            bytes.extend(buffer);
        }
        word(&mut bytes, self.arguments.len() as u32);
        for argument in self.arguments {
            match *argument {
                Argument::Buffer { index, offset } => {
                    word(&mut bytes, 0);
                    word(&mut bytes, index as u32);
                    size(&mut bytes, offset);
                }
                Argument::Value(value) => {
                    word(&mut bytes, 1);
                    size(&mut bytes, value.len());
                    bytes.extend(value);
                }
            }
        }
        bytes
    }
}
