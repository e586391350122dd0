//! Linear layers, `y = x Wᵀ + b`.
//!
//! The one decision that shapes this module: dense weights are packed into
//! panels once, when the layer is made, and kept in that form only (see
//! [`weight`](Linear::weight) and [`rows`](Linear::rows) for getting them back).
//! The product then streams them in the order in which it needs them, for one
//! row as for a thousand, and each output is the same chain of fused
//! multiply–adds in ascending input index: a row's bits do not depend on the
//! number of rows, of threads, or on the width of the machine's registers.

#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};

use crate::product::{Output, Panels, fill, multiply};
use crate::tensor::{self, Values};
use crate::{Error, Result};

const OP: &str = "linear";

/// A linear layer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Linear {
    /// Weights in `f32`.
    Dense(Dense),
    /// Weights in a quantized block format.
    Quantized(Quantized),
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
#[derive(Clone, Debug)]
pub struct Quantized {
    weight: Arc<QTensor>,
    product: QMatMul,
    bias: Option<Tensor>,
    d_in: usize,
    d_out: usize,
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
        let bias = match bias {
            Some(bias) => Some(read_bias(bias, d_out)?.into()),
            None => None,
        };
        let rows = values.rows();
        let panels = Arc::new(Panels::pack(d_out, d_in, |j| rows.row(j)));
        Ok(Self::Dense(Dense { panels, bias }))
    }

    /// A layer with weights `[out, in]` in a quantized file format.
    ///
    /// The block formats stay as they are; their products also quantize `x`, row by
    /// row, so that a row's result is independent of the others here too. `F32`,
    /// `F16` and `BF16` are no quantization: they become a dense layer.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::Candle`].
    pub fn quantized(weight: Arc<QTensor>, bias: Option<&Tensor>) -> Result<Self> {
        let &[d_out, d_in] = weight.shape().dims() else {
            return Err(Error::shape(OP, "weight", "[out, in]", weight.shape().dims()));
        };
        if let GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 = weight.dtype() {
            let weight = weight.dequantize(&Device::Cpu).map_err(Error::candle(OP))?;
            return Self::dense(&weight, bias);
        }
        let bias = match bias {
            Some(bias) => Some(tensor::tensor(OP, read_bias(bias, d_out)?, &[d_out])?),
            None => None,
        };
        let product = QMatMul::from_arc(weight.clone()).map_err(Error::candle(OP))?;
        Ok(Self::Quantized(Quantized { weight, product, bias, d_in, d_out }))
    }

    /// Several layers over the same input as one, their outputs behind one another;
    /// `None` if one of them is quantized, if the input widths differ, or without layers.
    pub fn stack(layers: &[Linear]) -> Option<Linear> {
        let dense: Vec<&Dense> = layers
            .iter()
            .map(|layer| match layer {
                Self::Dense(layer) => Some(layer),
                Self::Quantized(_) => None,
            })
            .collect::<Option<_>>()?;
        let parts: Vec<&Panels> = dense.iter().map(|layer| &*layer.panels).collect();
        let panels = Arc::new(Panels::concat(&parts)?);
        let bias = dense.iter().any(|layer| layer.bias.is_some()).then(|| {
            let mut bias = Vec::with_capacity(panels.n());
            for layer in &dense {
                match &layer.bias {
                    Some(values) => bias.extend_from_slice(values),
                    None => bias.resize(bias.len() + layer.panels.n(), 0.0),
                }
            }
            bias.into()
        });
        Some(Self::Dense(Dense { panels, bias }))
    }

    /// Input width.
    pub fn d_in(&self) -> usize {
        match self {
            Self::Dense(layer) => layer.panels.k(),
            Self::Quantized(layer) => layer.d_in,
        }
    }

    /// Output width.
    pub fn d_out(&self) -> usize {
        match self {
            Self::Dense(layer) => layer.panels.n(),
            Self::Quantized(layer) => layer.d_out,
        }
    }

    /// The weights `[out, in]` in `f32`, a copy.
    ///
    /// # Errors
    ///
    /// [`Error::Candle`].
    pub fn weight(&self) -> Result<Tensor> {
        match self {
            Self::Dense(layer) => {
                let (n, k) = (layer.panels.n(), layer.panels.k());
                let values = (0..n).flat_map(|j| layer.panels.column(j)).collect();
                tensor::tensor(OP, values, &[n, k])
            }
            Self::Quantized(layer) => {
                layer.weight.dequantize(&Device::Cpu).map_err(Error::candle(OP))
            }
        }
    }

    /// Rows of the weights, `[ids, in]` in `f32`: the lookup of an embedding that is
    /// tied to this layer.
    ///
    /// # Errors
    ///
    /// [`Error::Range`] if an id is not below the output width.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (d_in, d_out) = (self.d_in(), self.d_out());
        if let Some(id) = ids.iter().find(|&&id| id as usize >= d_out) {
            return Err(Error::range(OP, "row", format!("below {d_out}"), id));
        }
        match self {
            Self::Dense(layer) => {
                let mut values = Vec::with_capacity(tensor::size(OP, "rows", &[ids.len(), d_in])?);
                for &id in ids {
                    values.extend(layer.panels.column(id as usize));
                }
                tensor::tensor(OP, values, &[ids.len(), d_in])
            }
            Self::Quantized(layer) => Tensor::new(ids, &Device::Cpu)
                .and_then(|ids| layer.weight.embedding(&ids))
                .map_err(Error::candle(OP)),
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
    /// Dense: `f32` sums of fused multiply–adds in ascending input index, cut into
    /// equal blocks of at most 640; the bias is added last. Bit-identical for any
    /// number of rows and threads.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::NonContiguous`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
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
        match self {
            Self::Dense(layer) => {
                let write = |y: Output| layer.apply(rows.count(), |i| rows.row(i), y);
                // SAFETY: the product writes every element.
                let y = unsafe { fill(size, write) };
                tensor::tensor(OP, y, &dims)
            }
            Self::Quantized(layer) => layer.forward(x, &rows, &dims).map_err(Error::candle(OP)),
        }
    }
}

impl Dense {
    /// Rows `x(0..m)` through the layer into `y [m, out]`, every element of which is written.
    pub(crate) fn apply<'x>(&self, m: usize, x: impl Fn(usize) -> &'x [f32] + Sync, y: Output) {
        multiply(m, x, &self.panels, self.bias.as_deref(), y);
    }
}

impl Quantized {
    fn forward(
        &self,
        x: &Tensor,
        rows: &tensor::Rows,
        dims: &[usize],
    ) -> candle_core::Result<Tensor> {
        if rows.count() == 0 || self.d_out == 0 || self.d_in == 0 {
            let y = Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu)?;
            return match &self.bias {
                Some(bias) => y.broadcast_add(bias),
                None => Ok(y),
            };
        }
        let y = self.product.forward(&x.contiguous()?.reshape((rows.count(), self.d_in))?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        y.reshape(dims)
    }
}

fn read_bias(bias: &Tensor, d_out: usize) -> Result<Vec<f32>> {
    let values = Values::new(OP, "bias", bias)?;
    if values.dims() != [d_out] {
        return Err(Error::shape(OP, "bias", format!("[{d_out}]"), values.dims()));
    }
    Ok(values.rows().row(0).to_vec())
}
