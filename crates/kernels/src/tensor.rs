//! Checked access to the numbers of a tensor.
//!
//! Every operation opens its arguments through [`Values`]: device, dtype and
//! the contiguous last axis are checked once, and what follows works on plain
//! slices and strides.

#![allow(unsafe_code)]

use candle_core::{CpuStorage, DType, Device, Layout, Storage, StorageRef, Tensor};

use rayon::prelude::*;

use crate::math::vectorised;
use crate::product::{Output, fill};
use crate::{Error, Result};

/// Elements that one thread takes at a time.
const PIECE: usize = 1 << 14;

/// The elements of an `f32` tensor in main memory, from its first one on, with its layout.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Values<'a> {
    pub(crate) fn new(op: &'static str, what: &'static str, tensor: &'a Tensor) -> Result<Self> {
        if !matches!(tensor.device(), Device::Cpu) {
            return Err(Error::Device {
                op,
                what,
                got: format!("{:?}", tensor.device().location()),
            });
        }
        if tensor.dtype() != DType::F32 {
            return Err(Error::DType { op, what, expected: DType::F32, got: tensor.dtype() });
        }
        let (storage, layout) = tensor.storage_and_layout();
        if let (Some(&stride), Some(&dim)) = (layout.stride().last(), layout.dims().last())
            && stride != 1
            && dim > 1
            && tensor.elem_count() > 0
        {
            return Err(Error::NonContiguous { op, what, got: stride });
        }
        Ok(Self { storage, layout })
    }

    /// All elements from the tensor's first one to the end of its buffer.
    pub(crate) fn data(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => {
                values.get(self.layout.start_offset()..).unwrap_or(&[])
            }
            _ => &[],
        }
    }

    pub(crate) fn dims(&self) -> &[usize] {
        self.layout.dims()
    }

    pub(crate) fn strides(&self) -> &[usize] {
        self.layout.stride()
    }

    /// The tensor as rows of its last axis, without a copy.
    pub(crate) fn rows(&self) -> Rows<'_> {
        let (dims, strides) = (self.dims(), self.strides());
        let (width, outer) = match dims.split_last() {
            Some((&width, outer)) => (width, outer),
            None => (1, dims),
        };
        // Outer axes that lie behind one another in memory are one axis.
        let mut axes: Vec<(usize, usize)> = Vec::with_capacity(outer.len());
        for (&dim, &stride) in outer.iter().zip(strides) {
            if dim == 1 {
                continue;
            }
            match axes.last_mut() {
                Some((count, step)) if *step == dim * stride => {
                    *count *= dim;
                    *step = stride;
                }
                _ => axes.push((dim, stride)),
            }
        }
        Rows { data: self.data(), count: outer.iter().product(), width, axes }
    }
}

/// Rows of equal width at regular or nested strides.
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    count: usize,
    width: usize,
    axes: Vec<(usize, usize)>,
}

impl<'a> Rows<'a> {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        let mut rest = index;
        let mut start = 0;
        for &(count, stride) in self.axes.iter().rev() {
            start += (rest % count) * stride;
            rest /= count;
        }
        &self.data[start..start + self.width]
    }
}

/// A new tensor in main memory.
pub(crate) fn tensor(op: &'static str, values: Vec<f32>, dims: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, dims, &Device::Cpu).map_err(Error::candle(op))
}

/// `a · b · …`, or an error where that exceeds what memory can hold.
pub(crate) fn size(op: &'static str, what: &'static str, dims: &[usize]) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |size, &dim| size.checked_mul(dim))
        .filter(|&size| size <= isize::MAX as usize / size_of::<f32>())
        .ok_or_else(|| Error::shape(op, what, "a size that fits in memory", dims))
}

/// A tensor whose rows of `width` elements `write(row, out)` writes, on all threads;
/// `write` is compiled for the best instruction set.
///
/// # Safety
///
/// `write` writes all of `out` before it reads any of it.
pub(crate) unsafe fn by_rows(
    op: &'static str,
    dims: &[usize],
    width: usize,
    write: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Tensor> {
    let len = size(op, "the result", dims)?;
    let all = |y: Output| {
        if width == 0 {
            return;
        }
        let (count, step) = (len / width, PIECE.div_ceil(width));
        let piece = |piece: usize| {
            vectorised(|| {
                for row in piece * step..count.min((piece + 1) * step) {
                    // SAFETY: pieces are disjoint, and so are rows.
                    write(row, unsafe { y.slice(row * width, width) });
                }
            });
        };
        match count.div_ceil(step) {
            pieces @ 0..=2 => (0..pieces).for_each(piece),
            pieces => (0..pieces).into_par_iter().for_each(piece),
        }
    };
    // SAFETY: every row is written, by the caller's promise wholly.
    let values = unsafe { fill(len, all) };
    tensor(op, values, dims)
}
