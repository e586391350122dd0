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
    (226, "CUDA_ERROR_CONTAINED", Kind::Lost),
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
    // What drivers say of a GPU that fell off its bus.
    (999, "CUDA_ERROR_UNKNOWN", Kind::Lost),
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
            use cublas::sys::cublasStatus_t as Status;
            let lost = |name| Some(Error::Lost { op, code: error.0 as u32, name });
            match error.0 {
                // What a library says that the driver is too old for.
                Status::CUBLAS_STATUS_NOT_INITIALIZED => {
                    Some(Error::NoDriver { code: 1, name: "CUBLAS_STATUS_NOT_INITIALIZED" })
                }
                Status::CUBLAS_STATUS_ALLOC_FAILED => Some(memory),
                Status::CUBLAS_STATUS_MAPPING_ERROR => lost("CUBLAS_STATUS_MAPPING_ERROR"),
                Status::CUBLAS_STATUS_EXECUTION_FAILED => lost("CUBLAS_STATUS_EXECUTION_FAILED"),
                Status::CUBLAS_STATUS_INTERNAL_ERROR => lost("CUBLAS_STATUS_INTERNAL_ERROR"),
                _ => None,
            }
        }
        CudaError::Curand(error) => {
            use curand::sys::curandStatus as Status;
            match error.0 {
                Status::CURAND_STATUS_ALLOCATION_FAILED => Some(memory),
                Status::CURAND_STATUS_INITIALIZATION_FAILED => {
                    Some(Error::NoDriver { code: 203, name: "CURAND_STATUS_INITIALIZATION_FAILED" })
                }
                _ => None,
            }
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
        let free = text(None, Some((5, 80)));
        assert_eq!(free, "attention: the gpu's memory is full: 5 of 80 bytes are free");
    }

    #[test]
    fn what_is_known_of_a_full_memory_stays() {
        use candle_core::Device;

        let full = |asked, free| Error::OutOfMemory { op: "op", asked, free };
        for (error, bytes, expected) in [
            (full(None, None), Some(7), (Some(7), None)),
            (full(Some(3), Some((1, 2))), Some(7), (Some(3), Some((1, 2)))),
            (full(None, Some((1, 2))), None, (None, Some((1, 2)))),
        ] {
            match error.asking(bytes, &Device::Cpu) {
                Error::OutOfMemory { asked, free, .. } => assert_eq!((asked, free), expected),
                other => panic!("{other}"),
            }
        }
        let lost = Error::of_code("op", 719).unwrap().asking(Some(7), &Device::Cpu);
        assert!(matches!(lost, Error::Lost { code: 719, .. }));
        // candle's error for something else keeps its own words.
        let other = Error::making("op", &Device::Cpu, 7)(Candle::Msg("other".to_owned()));
        assert!(matches!(other, Error::Candle { op: "op", .. }));
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
            (226, CUresult::CUDA_ERROR_CONTAINED),
            (700, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            (702, CUresult::CUDA_ERROR_LAUNCH_TIMEOUT),
            (719, CUresult::CUDA_ERROR_LAUNCH_FAILED),
            (803, CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH),
            (999, CUresult::CUDA_ERROR_UNKNOWN),
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
        let full = Candle::from(CudaError::Cuda(full)).with_path("model.safetensors");
        let full = Error::making("op", &candle_core::Device::Cpu, 7)(full.bt());
        assert!(matches!(full, Error::OutOfMemory { op: "op", asked: Some(7), free: None }));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_librarys_failure_is_the_gpus() {
        use candle_core::cuda_backend::CudaError;
        use cudarc::cublas::result::CublasError;
        use cudarc::cublas::sys::cublasStatus_t as Status;

        let of = |status| {
            let error = Candle::from(CudaError::Cublas(CublasError(status)));
            Error::making("op", &candle_core::Device::Cpu, 7)(error)
        };
        let full = of(Status::CUBLAS_STATUS_ALLOC_FAILED);
        assert!(matches!(full, Error::OutOfMemory { asked: Some(7), .. }));
        let failed = of(Status::CUBLAS_STATUS_EXECUTION_FAILED);
        assert!(matches!(failed, Error::Lost { code: 13, .. }));
        let old = of(Status::CUBLAS_STATUS_NOT_INITIALIZED);
        assert!(matches!(old, Error::NoDriver { code: 1, .. }) && old.is_of_device());
        let asked_wrong = of(Status::CUBLAS_STATUS_INVALID_VALUE);
        assert!(matches!(asked_wrong, Error::Candle { .. }));
    }
}
