//! What an error code of CUDA means to whoever started a run.
//!
//! The driver has some hundred codes. A user can do something about four kinds of them; the others
//! stay what they are, [`Error::Driver`].

use candle_core::Error as Candle;

use crate::Error;

/// A kind of failure that a user can do something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No driver, or one that does not go with this build or with the GPU.
    Driver,
    /// No GPU, not that one, or none that this process may use.
    Absent,
    /// Memory is full.
    Memory,
    /// The GPU's context is gone, and with it all that was on the GPU.
    Lost,
}

/// Code, name and kind, from `cuda.h`.
const CODES: &[(u32, &str, Kind)] = &[
    (2, "CUDA_ERROR_OUT_OF_MEMORY", Kind::Memory),
    (34, "CUDA_ERROR_STUB_LIBRARY", Kind::Driver),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE", Kind::Absent),
    (100, "CUDA_ERROR_NO_DEVICE", Kind::Absent),
    (101, "CUDA_ERROR_INVALID_DEVICE", Kind::Absent),
    (102, "CUDA_ERROR_DEVICE_NOT_LICENSED", Kind::Absent),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE", Kind::Lost),
    (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", Kind::Lost),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", Kind::Driver),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS", Kind::Lost),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT", Kind::Lost),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", Kind::Lost),
    (710, "CUDA_ERROR_ASSERT", Kind::Lost),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR", Kind::Lost),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", Kind::Lost),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS", Kind::Lost),
    (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", Kind::Lost),
    (718, "CUDA_ERROR_INVALID_PC", Kind::Lost),
    (719, "CUDA_ERROR_LAUNCH_FAILED", Kind::Lost),
    (802, "CUDA_ERROR_SYSTEM_NOT_READY", Kind::Driver),
    (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", Kind::Driver),
    (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", Kind::Driver),
    (807, "CUDA_ERROR_MPS_SERVER_NOT_READY", Kind::Driver),
    (911, "CUDA_ERROR_EXTERNAL_DEVICE", Kind::Lost),
];

impl Error {
    /// The typed error for a code of the CUDA driver, if it is one that a user can do something
    /// about.
    ///
    /// ```
    /// use kernels::Error;
    ///
    /// assert!(matches!(Error::of_code("matmul", 2), Some(Error::OutOfMemory { .. })));
    /// assert!(Error::of_code("matmul", 1).is_none());
    /// ```
    pub fn of_code(op: &'static str, code: u32) -> Option<Self> {
        let &(code, name, kind) = CODES.iter().find(|(known, ..)| *known == code)?;
        Some(match kind {
            Kind::Driver => Self::NoDriver { code, name },
            Kind::Absent => Self::NoGpu { code, name },
            Kind::Memory => Self::OutOfMemory { op, asked: None, free: None },
            Kind::Lost => Self::Lost { op, code, name },
        })
    }

    /// The typed error for one of candle's, if a device is what is wrong; else candle's again.
    ///
    /// # Errors
    ///
    /// The error as it was.
    pub fn of_device(op: &'static str, error: Candle) -> Result<Self, Candle> {
        of_candle(op, &error).ok_or(error)
    }

    /// Whether a device is what is wrong, not what was asked of it: none there, the wrong one,
    /// full, or lost.
    pub fn is_of_device(&self) -> bool {
        matches!(
            self,
            Self::NoCuda
                | Self::NoDriver { .. }
                | Self::NoGpu { .. }
                | Self::Capability { .. }
                | Self::OutOfMemory { .. }
                | Self::Lost { .. }
        )
    }
}

fn of_candle(op: &'static str, error: &Candle) -> Option<Error> {
    #[cfg(not(feature = "cuda"))]
    let _ = op;
    match bare(error) {
        Candle::NotCompiledWithCudaSupport => Some(Error::NoCuda),
        #[cfg(feature = "cuda")]
        Candle::Cuda(error) => of_cuda(op, error.downcast_ref()?),
        _ => None,
    }
}

/// What is under the places and traces that candle wraps around an error.
fn bare(mut error: &Candle) -> &Candle {
    while let Candle::WithBacktrace { inner, .. }
    | Candle::Context { inner, .. }
    | Candle::WithPath { inner, .. } = error
    {
        error = inner;
    }
    error
}

#[cfg(feature = "cuda")]
fn of_cuda(op: &'static str, error: &candle_core::cuda_backend::CudaError) -> Option<Error> {
    use candle_core::cuda_backend::CudaError;
    use candle_core::cuda_backend::cudarc::{cublas, curand};

    let memory = Error::OutOfMemory { op, asked: None, free: None };
    match error {
        CudaError::Cuda(error) | CudaError::Load { cuda: error, .. } => {
            Error::of_code(op, error.0 as u32)
        }
        CudaError::Cublas(error) => {
            (error.0 == cublas::sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED).then_some(memory)
        }
        CudaError::Curand(error) => {
            let full = curand::sys::curandStatus::CURAND_STATUS_ALLOCATION_FAILED;
            (error.0 == full).then_some(memory)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_and_each_has_a_variant() {
        assert!(CODES.is_sorted_by(|a, b| a.0 < b.0));
        for &(code, name, kind) in CODES {
            let error = Error::of_code("op", code).unwrap();
            assert!(error.is_of_device(), "{name}");
            let fits = match (&error, kind) {
                (Error::NoDriver { code: kept, name: known }, Kind::Driver)
                | (Error::NoGpu { code: kept, name: known }, Kind::Absent)
                | (Error::Lost { code: kept, name: known, .. }, Kind::Lost) => {
                    (*kept, *known) == (code, name)
                }
                (Error::OutOfMemory { asked: None, free: None, .. }, Kind::Memory) => true,
                _ => false,
            };
            assert!(fits, "{name}: {error:?}");
        }
        // An invalid value is nobody's device.
        assert!(Error::of_code("op", 1).is_none());
    }

    #[test]
    fn candles_wrappings_are_looked_under() {
        let wrapped = Candle::NotCompiledWithCudaSupport.with_path("model.safetensors");
        assert!(matches!(Error::of_device("op", wrapped.bt()), Ok(Error::NoCuda)));
        let other = Candle::Msg("other".to_owned());
        assert!(matches!(Error::of_device("op", other), Err(Candle::Msg(_))));
    }

    #[test]
    fn memory_errors_name_what_is_known() {
        let text = |asked, free| Error::OutOfMemory { op: "attention", asked, free }.to_string();
        let known = text(Some(1 << 30), Some((5, 80_000_000_000)));
        assert!(known.contains("1073741824") && known.contains("5 of 80000000000"), "{known}");
        assert_eq!(text(None, None), "attention: the gpu's memory is full");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn codes_are_those_of_the_driver() {
        use candle_core::cuda_backend::CudaError;
        use cudarc::driver::DriverError;
        use cudarc::driver::sys::CUresult;

        let named = [
            (2, CUresult::CUDA_ERROR_OUT_OF_MEMORY),
            (34, CUresult::CUDA_ERROR_STUB_LIBRARY),
            (100, CUresult::CUDA_ERROR_NO_DEVICE),
            (214, CUresult::CUDA_ERROR_ECC_UNCORRECTABLE),
            (700, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            (702, CUresult::CUDA_ERROR_LAUNCH_TIMEOUT),
            (719, CUresult::CUDA_ERROR_LAUNCH_FAILED),
            (803, CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH),
        ];
        for (code, result) in named {
            assert_eq!(code, result as u32);
            let known = CODES.iter().find(|(known, ..)| *known == code).unwrap();
            assert_eq!(known.1, format!("{result:?}"));
            let error = Candle::from(CudaError::Cuda(DriverError(result)));
            assert!(Error::of_device("op", error).is_ok_and(|error| error.is_of_device()));
        }
        let full = cudarc::driver::DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert!(matches!(Error::driver("op")(full), Error::OutOfMemory { op: "op", .. }));
        let odd = cudarc::driver::DriverError(CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(matches!(Error::driver("op")(odd), Error::Driver { .. }));
    }
}
