//! The libraries that a build with CUDA needs before it can start.
//!
//! Such a build names them to the system's loader, which ends the program before its first line
//! if one is missing. So it is another build that has to look for them: this one, whichever it is,
//! asks the loader for each, as the loader would find it for a program without paths of its own.

#![allow(unsafe_code)]

use std::error::Error;
use std::ffi::c_int;

use libloading::Library;

/// What a build with CUDA 13 needs at load: `readelf -d` of such a build names all but
/// `libcublasLt`, which `libcublas` needs.
pub const NEEDED: [Needed; 5] = [
    Needed { file: "libcuda.so.1", from: Origin::Driver },
    Needed { file: "libcudart.so.13", from: Origin::Toolkit },
    Needed { file: "libcublas.so.13", from: Origin::Toolkit },
    Needed { file: "libcublasLt.so.13", from: Origin::Toolkit },
    Needed { file: "libcurand.so.10", from: Origin::Toolkit },
];

/// A library by the name that the loader looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Its file's name.
    pub file: &'static str,
    /// What brings it.
    pub from: Origin,
}

/// What brings a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The driver of the GPU.
    Driver,
    /// The CUDA toolkit, or packages of its libraries.
    Toolkit,
}

impl Origin {
    /// What to do where a library is missing.
    pub fn cure(self) -> &'static str {
        match self {
            Self::Driver => {
                "install NVIDIA's driver, 580 or newer; in a container, pass the GPU in"
            }
            Self::Toolkit => {
                "install the libraries of CUDA 13, and name their folder in LD_LIBRARY_PATH"
            }
        }
    }
}

impl Needed {
    /// Whether the loader finds it; what it says if not.
    ///
    /// # Errors
    ///
    /// The loader's message.
    pub fn find(&self) -> Result<(), String> {
        open(self.file).map(drop)
    }
}

/// The newest CUDA, major and minor, that the driver knows; `None` without a driver.
pub fn driver() -> Option<(u32, u32)> {
    let library = open("libcuda.so.1").ok()?;
    let mut version: c_int = 0;
    // SAFETY: `cuDriverGetVersion` has this type in every version of cuda.h, writes one integer,
    // and needs no initialisation; the library outlives the call.
    let code = unsafe {
        let ask = library
            .get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion\0")
            .ok()?;
        ask(&mut version)
    };
    let version = version.unsigned_abs();
    (code == 0 && version > 0).then_some((version / 1000, version % 1000 / 10))
}

fn open(file: &str) -> Result<Library, String> {
    // SAFETY: loading runs the library's initialisers; these are the maker's libraries, which a
    // build with CUDA loads at its start, by the same names and from the same places.
    unsafe { Library::new(file) }
        .map_err(|error| error.source().map_or_else(|| error.to_string(), ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let absent = Needed { file: "libno-such-library.so.1", from: Origin::Toolkit };
        let said = absent.find().unwrap_err();
        assert!(said.contains(absent.file), "{said}");
        let driver_is_there = NEEDED[0].find().is_ok();
        assert!(driver_is_there || driver().is_none());
    }
}
