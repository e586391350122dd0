//! What can go wrong in an operation.

use candle_core::{DType, Device};

use crate::cuda::capability::Capability;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused or could not finish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument's shape does not fit.
    #[error("{op}: {what} has shape {got:?}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// What would have fitted.
        expected: String,
        /// The shape it had.
        got: Vec<usize>,
    },
    /// A tensor of another element type.
    #[error("{op}: {what} has dtype {got:?}, expected {expected:?}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The dtype that the operation takes.
        expected: DType,
        /// The dtype it had.
        got: DType,
    },
    /// A tensor on a device that the operation cannot read.
    #[error("{op}: {what} is on {got}, expected the cpu")]
    Device {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Where the tensor is.
        got: String,
    },
    /// A tensor whose last axis is not contiguous.
    #[error(
        "{op}: the last axis of {what} has stride {got}, expected 1; make the tensor contiguous first"
    )]
    NonContiguous {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The stride of its last axis, in elements.
        got: usize,
    },
    /// A number outside the values that the operation is defined for.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Range {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A number that is infinite or not a number.
    #[error("{op}: {what} holds {value} at {index:?}, expected finite numbers")]
    NonFinite {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Where in it, one index per axis.
        index: Vec<usize>,
        /// What is there.
        value: f64,
    },
    /// An attention pattern with an entry that is no attention.
    #[error(
        "attention graph: head {head} gives key {key} the weight {value} for query {query}, expected a finite number of at least 0"
    )]
    Weight {
        /// Which of the patterns given.
        head: usize,
        /// Row of the entry.
        query: usize,
        /// Column of the entry.
        key: usize,
        /// The entry.
        value: f32,
    },
    /// Lanczos ran out of steps.
    #[error(
        "lanczos: residuals above {tolerance:e} after {steps} steps ({found:?}); allow more steps, a larger tolerance, or use the dense solver"
    )]
    NotConverged {
        /// Steps taken.
        steps: usize,
        /// The residual to be reached, absolute.
        tolerance: f64,
        /// What the iteration had found by then, residuals included.
        found: Box<crate::lanczos::Extremes>,
    },
    /// The dense eigensolver did not converge.
    #[error("symmetric eigendecomposition: the {n} × {n} matrix did not converge")]
    Eigen {
        /// Size of the matrix.
        n: usize,
    },
    /// Weights in a block format for which there is no product.
    #[error(
        "{op}: no product with {format:?} weights, expected one of {} or a float; dequantise them first",
        crate::quantized::Encoding::ALL.iter().map(|encoding| encoding.name).collect::<Vec<_>>().join(", ")
    )]
    Quantization {
        /// The operation.
        op: &'static str,
        /// The format that the weights have.
        format: candle_core::quantized::GgmlDType,
    },
    /// A build without CUDA.
    #[error("this build has no CUDA; make one with `--features cuda`, or use `--device cpu`")]
    NoCuda,
    /// No CUDA driver, or one that does not go with this build or the GPU.
    #[error(
        "no CUDA driver that this build can use: {name}, code {code}; `nvidia-smi` shows the driver and the newest CUDA that it knows"
    )]
    NoDriver {
        /// The driver's code.
        code: u32,
        /// Its name.
        name: &'static str,
    },
    /// No GPU, not the one asked for, or none that this process may use.
    #[error(
        "no gpu to run on: {name}, code {code}; `nvidia-smi` lists what there is, CUDA_VISIBLE_DEVICES hides some, and `--device cpu` needs none"
    )]
    NoGpu {
        /// The driver's code.
        code: u32,
        /// Its name.
        name: &'static str,
    },
    /// The memory of a GPU is full.
    #[error("{op}: {}", full(*asked, *free))]
    OutOfMemory {
        /// The operation.
        op: &'static str,
        /// How many bytes were asked for, if it is known.
        asked: Option<u64>,
        /// Free and total memory of the GPU in bytes, if they are known.
        free: Option<(u64, u64)>,
    },
    /// A GPU that failed, and with it everything on it.
    #[error("{op}: the gpu was lost: {name}, code {code}; the system's log says more under `Xid`")]
    Lost {
        /// The operation at which it showed; the cause may be an earlier one.
        op: &'static str,
        /// The driver's code.
        code: u32,
        /// Its name.
        name: &'static str,
    },
    /// A GPU that this build has no code for.
    #[error(
        "the gpu has compute capability {device}, this build is for {built}; build for {device} with CUDA_COMPUTE_CAP={}{}",
        device.major, device.minor
    )]
    Capability {
        /// Of the GPU.
        device: Capability,
        /// What the build is for.
        built: Capability,
    },
    /// The CUDA driver failed.
    #[cfg(feature = "cuda")]
    #[error("{op}: {source}")]
    Driver {
        /// The operation.
        op: &'static str,
        /// The driver's own error, with its code.
        source: cudarc::driver::DriverError,
    },
    /// candle failed.
    #[error("{op}: {source}")]
    Candle {
        /// The operation.
        op: &'static str,
        /// candle's own error.
        source: candle_core::Error,
    },
}

/// What is known about a memory that is full.
fn full(asked: Option<u64>, free: Option<(u64, u64)>) -> String {
    let asked = asked.map_or_else(String::new, |bytes| format!(": {bytes} bytes were asked for"));
    let free = free.map_or_else(String::new, |(free, total)| {
        let (sign, unit) = if asked.is_empty() { (":", " bytes") } else { (",", "") };
        format!("{sign} {free} of {total}{unit} are free")
    });
    format!("the gpu's memory is full{asked}{free}")
}

impl Error {
    pub(crate) fn candle(op: &'static str) -> impl FnOnce(candle_core::Error) -> Self {
        move |error| Self::of_device(op, error).unwrap_or_else(|source| Self::Candle { op, source })
    }

    /// The error for one of candle's, of an operation that makes so many bytes on a device.
    pub fn making(
        op: &'static str,
        device: &Device,
        bytes: usize,
    ) -> impl FnOnce(candle_core::Error) -> Self {
        move |error| Self::candle(op)(error).asking(Some(bytes as u64), device)
    }

    /// A full memory with how much was asked of which device, and how much of that one is free, as
    /// far as neither is known already; any other error as it is.
    ///
    /// ```
    /// use candle_core::Device;
    /// use kernels::Error;
    ///
    /// let full = Error::of_code("matmul", 2).unwrap().asking(Some(4096), &Device::Cpu);
    /// assert!(matches!(full, Error::OutOfMemory { asked: Some(4096), .. }));
    /// ```
    pub fn asking(self, bytes: Option<u64>, device: &Device) -> Self {
        let Self::OutOfMemory { op, asked, free } = self else { return self };
        let free = free.or_else(|| crate::cuda::memory(device).ok().flatten());
        Self::OutOfMemory { op, asked: asked.or(bytes), free }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn driver(op: &'static str) -> impl FnOnce(cudarc::driver::DriverError) -> Self {
        move |source| Self::of_code(op, source.0 as u32).unwrap_or(Self::Driver { op, source })
    }

    pub(crate) fn shape(
        op: &'static str,
        what: &'static str,
        expected: impl std::fmt::Display,
        got: &[usize],
    ) -> Self {
        Self::Shape { op, what, expected: expected.to_string(), got: got.to_vec() }
    }

    pub(crate) fn range(
        op: &'static str,
        what: &'static str,
        expected: impl std::fmt::Display,
        got: impl std::fmt::Display,
    ) -> Self {
        Self::Range { op, what, expected: expected.to_string(), got: got.to_string() }
    }
}
