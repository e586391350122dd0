//! Matrices in a model's files, read once: when a layer is made of them.
//!
//! A [`Matrix`] says where its rows stand. Conversion to `f32`, the search for NaN
//! and infinities and the packing into the order of products are one parallel pass
//! from the mapped file to the layer: no copy in between.

use std::path::Path;

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use kernels::linear::Linear;
use kernels::quantized::Encoding;
use rayon::prelude::*;

use super::RowOrder;
use super::convert::Format;
use crate::{Error, Result};

/// A matrix `[rows, columns]` of a model's files.
#[derive(Clone, Debug)]
pub(crate) struct Matrix<'a> {
    parts: Vec<Rows<'a>>,
    rows: usize,
    columns: usize,
    /// The format of the quantized blocks that a layer keeps.
    kept: Option<&'static Encoding>,
    /// The device of the layer and the dtype of its products there; `None`: packed for the CPU.
    place: Option<(Device, DType)>,
}

/// Rows that stand in one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Rows<'a> {
    /// File and name of the tensor, for messages.
    pub(crate) path: &'a Path,
    pub(crate) tensor: String,
    pub(crate) format: Format,
    /// The rows' bytes, and the elements of the tensor before them.
    pub(crate) data: &'a [u8],
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) order: RowOrder,
}

impl Rows<'_> {
    /// The bytes of row `row`, of `columns` elements in whole blocks, of rows that are not
    /// stored as columns.
    fn bytes(&self, row: usize, columns: usize) -> &[u8] {
        let size = columns / self.format.block_len() * self.format.block_bytes();
        &self.data[self.order.stored_row(row, self.rows) * size..][..size]
    }

    /// The elements of row `row` from column `start` on.
    fn read(&self, row: usize, columns: usize, start: usize, out: &mut [f32]) {
        let (len, size) = (self.format.block_len(), self.format.block_bytes());
        if self.order != RowOrder::Transposed {
            let bytes = &self.bytes(row, columns)[start / len * size..];
            return self.format.read(bytes, out);
        }
        // A tensor of floats: rows that are read one after another share cache lines.
        let mut gathered = [0; 64 * size_of::<f32>()];
        for (part, out) in out.chunks_mut(64).enumerate() {
            let stored = (start + 64 * part..).map(|column| (column * self.rows + row) * size);
            let bytes = &mut gathered[..out.len() * size];
            for (to, from) in bytes.chunks_exact_mut(size).zip(stored) {
                to.copy_from_slice(&self.data[from..from + size]);
            }
            self.format.read(bytes, out);
        }
    }

    /// Where the tensor holds the element of a row and a column.
    fn index(&self, row: usize, column: usize, columns: usize) -> usize {
        let from = self.order.stored_row(row, self.rows);
        let place = match self.order {
            RowOrder::Transposed => column * self.rows + from,
            _ => from * columns + column,
        };
        self.first + place
    }
}

/// What a device holds weights in.
trait Element: WithDType + Default {
    /// Rounded to the nearest.
    fn of(value: f32) -> Self;

    fn is_finite(&self) -> bool;
}

macro_rules! element {
    ($type:ty, $of:expr) => {
        impl Element for $type {
            fn of(value: f32) -> Self {
                $of(value)
            }

            fn is_finite(&self) -> bool {
                <$type>::is_finite(*self)
            }
        }
    };
}
element!(f32, |value| value);
element!(bf16, bf16::from_f32);
element!(f16, f16::from_f32);

impl<'a> Matrix<'a> {
    /// The parts' rows, of `columns` elements, behind one another. A layer keeps the blocks
    /// of `kept`, in which all parts are then stored, or `f32`.
    ///
    /// Every part's data are its rows: the caller has checked the tensor's shape.
    pub(crate) fn new(
        parts: Vec<Rows<'a>>,
        columns: usize,
        kept: Option<&'static Encoding>,
    ) -> Self {
        let rows = parts.iter().map(|part| part.rows).sum();
        Self { parts, rows, columns, kept, place: None }
    }

    /// Lets the layer be on a device and compute in this dtype, in which its weights are there
    /// unless they stay quantized.
    pub(crate) fn place(&mut self, device: &Device, dtype: DType) {
        self.place = Some((device.clone(), dtype));
    }

    /// The linear map `y = x Wᵀ + b`.
    pub(crate) fn linear(&self, bias: Option<&Tensor>) -> Result<Linear> {
        let (size, columns) = ([self.rows, self.columns], self.columns);
        let blocks = |row| {
            let (part, row) = self.part(row);
            part.bytes(row, columns)
        };
        let linear = match (&self.place, self.kept) {
            (Some((device, dtype)), Some(encoding)) => {
                Linear::quantized_placed(encoding, size, bias, blocks, device, *dtype)
            }
            (Some((device, dtype)), None) => {
                let weight = match dtype {
                    DType::BF16 => self.tensor::<bf16>(device)?,
                    DType::F16 => self.tensor::<f16>(device)?,
                    _ => self.tensor::<f32>(device)?,
                };
                Linear::placed(weight, bias)
            }
            (None, Some(encoding)) => Linear::quantized_from(encoding, size, bias, blocks),
            (None, None) => Linear::dense_from(size, bias, |row, range, out| {
                let (part, row) = self.part(row);
                part.read(row, columns, range.start, out);
            }),
        };
        linear.map_err(|error| match error {
            kernels::Error::NonFinite { index, value, .. } if index.len() == 2 => {
                self.not_finite(index[0], index[1], value as f32)
            }
            error => error.into(),
        })
    }

    /// The matrix in the memory of a device; what it takes of main memory meanwhile is its size.
    fn tensor<T: Element>(&self, device: &Device) -> Result<Tensor> {
        let (rows, columns) = (self.rows, self.columns);
        let mut elements = vec![T::default(); rows * columns];
        let bad = elements
            .par_chunks_mut(columns.max(1))
            .enumerate()
            .map_init(
                || vec![0f32; columns],
                |values, (row, out)| {
                    let (part, place) = self.part(row);
                    part.read(place, columns, 0, values);
                    for (out, value) in out.iter_mut().zip(&*values) {
                        *out = T::of(*value);
                    }
                    let bad = out.iter().position(|element| !element.is_finite())?;
                    Some((row, bad, values[bad]))
                },
            )
            .find_map_first(|bad| bad);
        match bad {
            Some((row, column, value)) => Err(self.not_finite(row, column, value)),
            None => {
                let bytes = size_of_val(elements.as_slice());
                let making = kernels::Error::making("loading weights", device, bytes);
                Ok(Tensor::from_vec(elements, (rows, columns), device).map_err(making)?)
            }
        }
    }

    fn not_finite(&self, row: usize, column: usize, value: f32) -> Error {
        let (part, row) = self.part(row);
        Error::NotFinite {
            path: part.path.to_owned(),
            tensor: part.tensor.clone(),
            index: part.index(row, column, self.columns),
            value,
        }
    }

    /// The part that holds a row, and the row's number in it.
    fn part(&self, row: usize) -> (&Rows<'a>, usize) {
        let (mut rest, mut last) = (row, 0);
        while last + 1 < self.parts.len() && rest >= self.parts[last].rows {
            rest -= self.parts[last].rows;
            last += 1;
        }
        (&self.parts[last], rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn le(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn rows<'a>(data: &'a [u8], rows: usize, order: RowOrder) -> Rows<'a> {
        let (path, tensor) = (Path::new("file"), "name".to_owned());
        Rows { path, tensor, format: Format::F32, data, first: 100, rows, order }
    }

    #[test]
    fn parts_are_stacked_and_pairs_put_back() {
        let numbers: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let bytes = le(&numbers);
        // Two heads of four rows: halves of pairs 0 and 1 alternate in the file.
        let pairs = rows(&bytes[..64], 8, RowOrder::Pairs { d_head: 4 });
        let plain = rows(&bytes[64..], 4, RowOrder::Plain);
        let matrix = Matrix::new(vec![pairs, plain], 2, None);
        let weight: Vec<Vec<f32>> =
            matrix.linear(None).unwrap().weight().unwrap().to_vec2().unwrap();
        let stored: Vec<usize> = weight.iter().map(|row| row[0] as usize / 2).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7, 8, 9, 10, 11]);
        assert!(weight.iter().all(|row| row[1] == row[0] + 1.0));
    }

    #[test]
    fn columns_are_turned_into_rows() {
        // More columns than are gathered at a time, in every format of floats.
        let (n_rows, n_columns) = (5, 150);
        let numbers: Vec<f32> = (0..n_rows * n_columns).map(|i| (i % 251) as f32).collect();
        let halves = numbers.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        for (format, bytes) in [(Format::F32, le(&numbers)), (Format::F16, halves)] {
            let rows = Rows { format, ..rows(&bytes, n_rows, RowOrder::Transposed) };
            let linear = Matrix::new(vec![rows], n_columns, None).linear(None).unwrap();
            let weight: Vec<Vec<f32>> = linear.weight().unwrap().to_vec2().unwrap();
            for (row, weight) in weight.iter().enumerate() {
                let expected: Vec<f32> =
                    numbers.iter().skip(row).step_by(n_rows).copied().collect();
                assert_eq!(*weight, expected);
            }
        }
    }

    #[test]
    fn a_bad_weight_is_named_by_its_place_in_the_tensor() {
        let mut numbers = vec![0f32; 16];
        numbers[2 * 2 + 1] = f32::NAN;
        let bytes = le(&numbers);
        let orders = [
            RowOrder::Plain,
            RowOrder::Pairs { d_head: 4 },
            RowOrder::Transposed,
            RowOrder::HeadByHead { d_head: 1 },
        ];
        let parts = orders.map(|order| {
            let n_rows = if matches!(order, RowOrder::HeadByHead { .. }) { 6 } else { 8 };
            Matrix::new(vec![rows(&bytes[..n_rows * 8], n_rows, order)], 2, None)
        });
        for matrix in parts {
            let error = matrix.linear(None).unwrap_err();
            let Error::NotFinite { index, tensor, .. } = error else { panic!("{error}") };
            assert_eq!((index, tensor.as_str()), (105, "name"));
        }
    }
}
