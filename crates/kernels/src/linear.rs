//! Linear layers, `y = x Wᵀ + b`.
//!
//! The one decision that shapes this module: weights are packed into panels once,
//! when the layer is made, and kept in that form only (see [`weight`](Linear::weight)
//! and [`rows`](Linear::rows) for getting them back). The product then streams them
//! in the order in which it needs them, for one row as for a thousand, and each
//! output is the same chain of fused multiply–adds in ascending input index: a
//! row's bits do not depend on the number of rows, of threads, or on the width of
//! the machine's registers.
//!
//! Quantized weights stay quantized in memory and are unpacked, a panel at a time,
//! to exactly the `f32` values that their format stands for (see [`crate::quantized`]). Inputs are not
//! quantized: the bits are those of the dequantised layer.

#![allow(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::cuda;
use crate::cuda::quantized::{Blocks, unpack};
use crate::panels::{NonFinite, Panels, Right, WIDTH};
use crate::product::{Output, fill, multiply};
use crate::quantized::{Encoding, Weights};
use crate::tensor::{self, Values};
use crate::{Error, Result};

const OP: &str = "linear";

/// A linear layer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Linear {
    /// Weights packed for the CPU's products.
    Packed(Packed),
    /// Weights on the device that computes the products.
    Placed(Placed),
}

/// A layer whose weights are packed for the CPU's products.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Packed {
    /// Weights in `f32`.
    Dense(Dense),
    /// Weights in a quantized block format.
    Quantized(Quantized),
}

/// A layer whose weights `[out, in]` are on the device that computes the products.
#[derive(Clone, Debug)]
pub struct Placed {
    weight: OnDevice,
    /// `[out]`, of the layer's dtype.
    bias: Option<Tensor>,
    d_in: usize,
    d_out: usize,
}

/// Weights on a device.
#[derive(Clone, Debug)]
pub(crate) enum OnDevice {
    /// In any dtype that the device multiplies.
    Dense(Tensor),
    /// In a quantized block format, for products in this dtype.
    Quantized(Blocks, DType),
}

impl OnDevice {
    pub(crate) fn device(&self) -> &Device {
        match self {
            Self::Dense(weight) => weight.device(),
            Self::Quantized(blocks, _) => blocks.device(),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::Dense(weight) => weight.dtype(),
            Self::Quantized(_, dtype) => *dtype,
        }
    }

    /// The weights, unpacked where they are quantized.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight.clone()),
            Self::Quantized(blocks, dtype) => unpack(blocks.machine()?, blocks, None, *dtype),
        }
    }
}

impl Placed {
    fn new(weight: OnDevice, [d_out, d_in]: [usize; 2], bias: Option<&Tensor>) -> Result<Self> {
        let there = |bias: &Tensor| -> Result<Tensor> {
            if bias.dims() != [d_out] {
                return Err(Error::shape(OP, "bias", format!("[{d_out}]"), bias.dims()));
            }
            let made = cuda::bytes(weight.dtype(), bias.dims());
            let moved = cuda::bring(OP, bias, weight.device())?.to_dtype(weight.dtype());
            moved.map_err(Error::making(OP, weight.device(), made))
        };
        let bias = bias.map(there).transpose()?;
        Ok(Self { weight, bias, d_in, d_out })
    }

    /// The blocks of quantized weights, and the dtype of products with them.
    pub(crate) fn blocks(&self) -> Option<(Blocks, DType)> {
        match &self.weight {
            OnDevice::Dense(_) => None,
            OnDevice::Quantized(blocks, dtype) => Some((blocks.clone(), *dtype)),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == self.d_in => *last = self.d_out,
            _ => {
                return Err(Error::shape(OP, "x", format!("[.., {}]", self.d_in), x.dims()));
            }
        }
        // From another device, as where an embedding is also the unembedding behind the last layer.
        let (device, dtype) = (self.weight.device(), self.weight.dtype());
        let x = cuda::bring(OP, x, device)?;
        let rows = x.to_dtype(dtype).and_then(|x| x.reshape(((), self.d_in)));
        let rows = rows.map_err(Error::making(OP, device, cuda::bytes(dtype, x.dims())))?;
        let made = cuda::bytes(dtype, &dims);
        let product = match &self.weight {
            OnDevice::Dense(weight) => {
                let product = weight.t().and_then(|weight| rows.matmul(&weight));
                product.map_err(Error::making(OP, device, made))?
            }
            OnDevice::Quantized(blocks, _) => {
                cuda::quantized::linear(blocks.machine()?, &rows, blocks)?
            }
        };
        let biased = match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        };
        biased.and_then(|y| y.reshape(dims)).map_err(Error::making(OP, device, made))
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (device, made) = (self.weight.device(), [ids.len(), self.d_in]);
        let ids = Tensor::new(ids, device).map_err(Error::making(OP, device, size_of_val(ids)))?;
        match &self.weight {
            OnDevice::Dense(weight) => weight.index_select(&ids, 0).map_err(Error::making(
                OP,
                device,
                cuda::bytes(weight.dtype(), &made),
            )),
            OnDevice::Quantized(blocks, dtype) => {
                unpack(blocks.machine()?, blocks, Some(&ids), *dtype)
            }
        }
    }
}

/// A layer with weights in `f32`.
#[derive(Clone)]
pub struct Dense {
    panels: Arc<Panels>,
    bias: Option<Arc<[f32]>>,
}

impl fmt::Debug for Dense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (d_in, d_out) = (self.panels.k(), self.panels.n());
        write!(f, "Dense {{ d_in: {d_in}, d_out: {d_out}, bias: {} }}", self.bias.is_some())
    }
}

/// A layer with weights in a quantized block format.
#[derive(Clone)]
pub struct Quantized {
    weights: Arc<Weights>,
    bias: Option<Arc<[f32]>>,
}

impl fmt::Debug for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (format, bias) = (self.weights.encoding().name, self.bias.is_some());
        let (d_in, d_out) = (self.weights.k(), self.weights.n());
        write!(f, "Quantized {{ {format}, d_in: {d_in}, d_out: {d_out}, bias: {bias} }}")
    }
}

impl Linear {
    /// A layer with `weight [out, in]` and `bias [out]`.
    ///
    /// The weights are copied (packed); the tensor can be dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
    pub fn dense(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let values = Values::new(OP, "weight", weight)?;
        let &[d_out, d_in] = values.dims() else {
            return Err(Error::shape(OP, "weight", "[out, in]", values.dims()));
        };
        let bias = read_bias(bias, d_out)?;
        let rows = values.rows();
        let panels = Arc::new(Panels::pack(d_out, d_in, |j| rows.row(j)));
        Ok(Self::Packed(Packed::Dense(Dense { panels, bias })))
    }

    /// A layer whose weights `[out, in]` are read from elsewhere, once, straight into the
    /// order that products need.
    ///
    /// `read(row, columns, out)` writes `weight[row, columns]` to `out`. It is called on many
    /// threads; `columns` begins at a multiple of 256, and ends at one or with the row.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] with `[row, column]` of the first weight that is NaN or infinite;
    /// [`Error::Shape`] if the weights would not fit in memory; those of
    /// [`dense`](Self::dense) for the bias.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use kernels::linear::Linear;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let transposed = [[1f32, 0.0, 1.0], [2.0, 1.0, 1.0]];
    /// let layer = Linear::dense_from([3, 2], None, |row, columns, out| {
    ///     out.iter_mut().zip(&transposed[columns]).for_each(|(out, column)| *out = column[row]);
    /// })?;
    /// let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
    /// assert_eq!(layer.forward(&x)?.to_vec2::<f32>()?, [[11.0, 4.0, 7.0]]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn dense_from(
        [d_out, d_in]: [usize; 2],
        bias: Option<&Tensor>,
        read: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) -> Result<Self> {
        tensor::size(OP, "weight", &[d_out.div_ceil(WIDTH).saturating_mul(WIDTH), d_in])?;
        let bias = read_bias(bias, d_out)?;
        let panels = Arc::new(Panels::read(d_out, d_in, &read).map_err(not_finite)?);
        Ok(Self::Packed(Packed::Dense(Dense { panels, bias })))
    }

    /// A layer whose products are computed where its weights `[out, in]` are, a GPU for instance,
    /// in their dtype; inputs are brought there.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]; [`Error::Candle`] if the bias cannot be brought there.
    pub fn placed(weight: Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let &[d_out, d_in] = weight.dims() else {
            return Err(Error::shape(OP, "weight", "[out, in]", weight.dims()));
        };
        Ok(Self::Placed(Placed::new(OnDevice::Dense(weight), [d_out, d_in], bias)?))
    }

    /// A layer whose products are computed on a device, a GPU for instance, in `dtype`, with weights
    /// `[out, in]` that stay blocks of a quantized format there: row `j` is `row(j)`.
    ///
    /// # Errors
    ///
    /// Those of [`quantized_from`](Self::quantized_from); [`Error::Range`] for a dtype that kernels
    /// do not store; [`Error::Candle`] if weights and bias cannot be brought there.
    pub fn quantized_placed<'a>(
        encoding: &'static Encoding,
        [d_out, d_in]: [usize; 2],
        bias: Option<&Tensor>,
        row: impl Fn(usize) -> &'a [u8] + Sync,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let (DType::F32 | DType::BF16 | DType::F16) = dtype else {
            return Err(Error::range(OP, "dtype", "bf16, f16 or f32", dtype.as_str()));
        };
        let weight = OnDevice::Quantized(Blocks::new(encoding, [d_out, d_in], row, device)?, dtype);
        Ok(Self::Placed(Placed::new(weight, [d_out, d_in], bias)?))
    }

    /// A layer whose weights `[out, in]` are blocks of a quantized format: row `j` is `row(j)`.
    ///
    /// The weights are copied (packed), once.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if rows do not consist of whole blocks, or have not the bytes that
    /// `in` weights take; [`Error::NonFinite`] with `[row, column]` of the first weight of the
    /// first block whose scale or offset is NaN or infinite; those of [`dense`](Self::dense)
    /// for the bias.
    pub fn quantized_from<'a>(
        encoding: &'static Encoding,
        [d_out, d_in]: [usize; 2],
        bias: Option<&Tensor>,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self> {
        tensor::size(OP, "weight", &[d_out.div_ceil(WIDTH).saturating_mul(WIDTH), d_in])?;
        if !d_in.is_multiple_of(encoding.len) {
            let expected = format!("rows of whole {} blocks of {}", encoding.name, encoding.len);
            return Err(Error::shape(OP, "weight", expected, &[d_out, d_in]));
        }
        let row_bytes = d_in / encoding.len * encoding.bytes;
        if let Some(j) = (0..d_out).find(|&j| row(j).len() != row_bytes) {
            let expected = format!("[{row_bytes}], the bytes of {d_in} weights");
            return Err(Error::shape(OP, "a row of blocks", expected, &[row(j).len()]));
        }
        let bias = read_bias(bias, d_out)?;
        let weights = Weights::pack(encoding, d_out, d_in, &row).map_err(not_finite)?;
        Ok(Self::Packed(Packed::Quantized(Quantized { weights: Arc::new(weights), bias })))
    }

    /// A layer with weights `[out, in]` in a format of GGUF files.
    ///
    /// The formats of [`Encoding::ALL`] stay quantized; `F32`, `F16` and `BF16` become a dense
    /// layer.
    ///
    /// # Errors
    ///
    /// [`Error::Quantization`] for another format; [`Error::Candle`]; those of
    /// [`quantized_from`](Self::quantized_from).
    pub fn quantized(weight: Arc<QTensor>, bias: Option<&Tensor>) -> Result<Self> {
        let &[d_out, d_in] = weight.shape().dims() else {
            return Err(Error::shape(OP, "weight", "[out, in]", weight.shape().dims()));
        };
        let format = weight.dtype();
        if let GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 = format {
            let weight = weight.dequantize(&Device::Cpu).map_err(Error::candle(OP))?;
            return Self::dense(&weight, bias);
        }
        let encoding = Encoding::of(format).ok_or(Error::Quantization { op: OP, format })?;
        let bytes = weight.data().map_err(Error::candle(OP))?;
        let row_bytes = bytes.len() / d_out.max(1);
        Self::quantized_from(encoding, [d_out, d_in], bias, |j| {
            &bytes[j * row_bytes..][..row_bytes]
        })
    }

    /// Input width.
    pub fn d_in(&self) -> usize {
        match self {
            Self::Packed(layer) => layer.d_in(),
            Self::Placed(layer) => layer.d_in,
        }
    }

    /// Output width.
    pub fn d_out(&self) -> usize {
        match self {
            Self::Packed(layer) => layer.d_out(),
            Self::Placed(layer) => layer.d_out,
        }
    }

    /// The weights `[out, in]`: in `f32`, a copy, or the tensor on the device, unpacked where they
    /// are quantized.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the copy would not fit in memory; the device's own.
    pub fn weight(&self) -> Result<Tensor> {
        match self {
            Self::Packed(layer) => layer.copy(layer.d_out(), 0..layer.d_out()),
            Self::Placed(layer) => layer.weight.tensor(),
        }
    }

    /// Rows of the weights, `[ids, in]`, in `f32` or as they are on the device: the lookup of an
    /// embedding that is tied to this layer.
    ///
    /// # Errors
    ///
    /// [`Error::Range`] if an id is not below the output width.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let d_out = self.d_out();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= d_out) {
            return Err(Error::range(OP, "row", format!("below {d_out}"), id));
        }
        match self {
            Self::Packed(layer) => layer.copy(ids.len(), ids.iter().map(|&id| id as usize)),
            Self::Placed(layer) => layer.rows(ids),
        }
    }

    /// `y = x Wᵀ + b`.
    ///
    /// # Shapes
    ///
    /// `x [.., in]` gives `[.., out]`.
    ///
    /// # Numerics
    ///
    /// Packed: one chain of `f32` fused multiply–adds in ascending input index; the bias is
    /// added last. Bit-identical for any number of rows and threads. Placed: in the weights'
    /// dtype, to which `x` is converted, with sums in `f32`; of quantized weights in the layer's
    /// dtype, as [`cuda::quantized::linear`] says.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use kernels::linear::Linear;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let weight = Tensor::new(&[[1f32, 2.0], [0.0, 1.0], [1.0, 1.0]], &Device::Cpu)?;
    /// let bias = Tensor::new(&[0f32, 0.0, 5.0], &Device::Cpu)?;
    /// let layer = Linear::dense(&weight, Some(&bias))?;
    ///
    /// let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
    /// assert_eq!(layer.forward(&x)?.to_vec2::<f32>()?, [[11.0, 4.0, 12.0]]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(layer) => layer.forward(x),
            Self::Placed(layer) => layer.forward(x),
        }
    }
}

impl Packed {
    pub(crate) fn d_in(&self) -> usize {
        match self {
            Self::Dense(layer) => layer.panels.k(),
            Self::Quantized(layer) => layer.weights.k(),
        }
    }

    pub(crate) fn d_out(&self) -> usize {
        match self {
            Self::Dense(layer) => layer.panels.n(),
            Self::Quantized(layer) => layer.weights.n(),
        }
    }

    fn copy(&self, count: usize, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
        let mut values = Vec::with_capacity(tensor::size(OP, "rows", &[count, self.d_in()])?);
        for row in rows {
            match self {
                Self::Dense(layer) => values.extend(layer.panels.column(row)),
                Self::Quantized(layer) => layer.weights.column(row, &mut values),
            }
        }
        tensor::tensor(OP, values, &[count, self.d_in()])
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let values = Values::new(OP, "x", x)?;
        let rows = values.rows();
        if values.dims().is_empty() || rows.width() != self.d_in() {
            let expected = format!("[.., {}]", self.d_in());
            return Err(Error::shape(OP, "x", expected, values.dims()));
        }
        let mut dims = values.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.d_out();
        }
        let size = tensor::size(OP, "y", &dims)?;
        // SAFETY: the product writes every element.
        let y = unsafe { fill(size, |y| self.apply(rows.count(), |i| rows.row(i), y)) };
        tensor::tensor(OP, y, &dims)
    }

    /// Rows `x(0..m)` through the layer into `y [m, out]`; writes every element of `y`.
    pub(crate) fn apply<'x>(&self, m: usize, x: impl Fn(usize) -> &'x [f32] + Sync, y: Output) {
        match self {
            Self::Dense(layer) => multiply(m, x, &*layer.panels, layer.bias.as_deref(), y),
            Self::Quantized(layer) => multiply(m, x, &*layer.weights, layer.bias.as_deref(), y),
        }
    }
}

fn not_finite(bad: NonFinite) -> Error {
    Error::NonFinite {
        op: OP,
        what: "weight",
        index: vec![bad.row, bad.column],
        value: bad.value.into(),
    }
}

fn read_bias(bias: Option<&Tensor>, d_out: usize) -> Result<Option<Arc<[f32]>>> {
    let Some(bias) = bias else { return Ok(None) };
    let values = Values::new(OP, "bias", bias)?;
    if values.dims() != [d_out] {
        return Err(Error::shape(OP, "bias", format!("[{d_out}]"), values.dims()));
    }
    Ok(Some(values.rows().row(0).into()))
}
