//! Checked access to the numbers of a tensor.
//!
//! Every operation opens its arguments through [`Values`]: device, dtype and
//! the contiguous last axis are checked once, and what follows works on plain
//! slices and strides.

#![allow(unsafe_code)]

use candle_core::{CpuStorage, DType, Device, Layout, Storage, StorageRef, Tensor};

use rayon::prelude::*;

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

/// What makes one row of a result.
///
/// A trait and not a closure: its method can be inlined always, and must be, so that
/// it is compiled for the instruction set of its caller.
pub(crate) trait MakeRow: Sync {
    /// Writes row `row` of the result to `y`, which holds zeros.
    fn make(&self, row: usize, y: &mut [f32]);
}

/// A tensor whose rows of `width` elements `make` writes, on all threads, with the best
/// instruction set.
pub(crate) fn by_rows(
    op: &'static str,
    dims: &[usize],
    width: usize,
    make: &impl MakeRow,
) -> Result<Tensor> {
    let len = size(op, "the result", dims)?;
    let all = |y: Output| {
        if width == 0 {
            return;
        }
        let (count, step) = (len / width, PIECE.div_ceil(width));
        let piece = |piece: usize| {
            let rows = piece * step..count.min((piece + 1) * step);
            pulp::Arch::new().dispatch(Piece { make, rows, width, y });
        };
        match count.div_ceil(step) {
            pieces @ 0..=2 => (0..pieces).for_each(piece),
            pieces => (0..pieces).into_par_iter().for_each(piece),
        }
    };
    // SAFETY: every row is written.
    let values = unsafe { fill(len, all) };
    tensor(op, values, dims)
}

/// Some rows of a result.
struct Piece<'a, M> {
    make: &'a M,
    rows: std::ops::Range<usize>,
    width: usize,
    y: Output<'a>,
}

impl<M: MakeRow> pulp::WithSimd for Piece<'_, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for row in self.rows {
            // SAFETY: pieces are disjoint, and so are rows; the row is written at once.
            let y = unsafe { self.y.slice(row * self.width, self.width) };
            y.fill(0.0);
            self.make.make(row, y);
        }
    }
}
