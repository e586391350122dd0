//! Matrices in a model's files, read once: when a layer is made of them.
//!
//! A [`Matrix`] says where its rows stand. Conversion to `f32`, the search for NaN
//! and infinities and the packing into the order of products are one parallel pass
//! from the mapped file to the layer: no copy in between.

use std::path::Path;

use candle_core::Tensor;
use kernels::linear::Linear;
use kernels::quantized::Encoding;

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
    pub(crate) order: Order,
}

/// Where a matrix's rows stand among those of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Row by row.
    Plain,
    /// The two rows of a rotary pair beside each other.
    Pairs { d_head: usize },
}

impl Order {
    /// The stored row that is row `row`.
    pub(crate) fn stored_row(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Pairs { d_head } => {
                let (head, i, half) = (row / d_head, row % d_head, d_head / 2);
                head * d_head + 2 * (i % half) + i / half
            }
        }
    }
}

impl Rows<'_> {
    /// The bytes of row `row`, of `columns` elements in whole blocks.
    fn bytes(&self, row: usize, columns: usize) -> &[u8] {
        let size = columns / self.format.block_len() * self.format.block_bytes();
        &self.data[self.order.stored_row(row) * size..][..size]
    }
}

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
        Self { parts, rows, columns, kept }
    }

    /// The linear map `y = x Wᵀ + b`.
    pub(crate) fn linear(&self, bias: Option<&Tensor>) -> Result<Linear> {
        let (size, columns) = ([self.rows, self.columns], self.columns);
        let linear = match self.kept {
            Some(encoding) => Linear::quantized_from(encoding, size, bias, |row| {
                let (part, row) = self.place(row);
                part.bytes(row, columns)
            }),
            None => Linear::dense_from(size, bias, |row, range, out| {
                let (part, row) = self.place(row);
                let start = range.start / part.format.block_len() * part.format.block_bytes();
                part.format.read(&part.bytes(row, columns)[start..], out);
            }),
        };
        linear.map_err(|error| match error {
            kernels::Error::NonFinite { index, value, .. } if index.len() == 2 => {
                let (part, row) = self.place(index[0]);
                Error::NotFinite {
                    path: part.path.to_owned(),
                    tensor: part.tensor.clone(),
                    index: part.first + part.order.stored_row(row) * columns + index[1],
                    value: value as f32,
                }
            }
            error => error.into(),
        })
    }

    /// The part that holds a row, and the row's number in it.
    fn place(&self, row: usize) -> (&Rows<'a>, usize) {
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

    fn rows<'a>(data: &'a [u8], rows: usize, order: Order) -> Rows<'a> {
        let (path, tensor) = (Path::new("file"), "name".to_owned());
        Rows { path, tensor, format: Format::F32, data, first: 100, rows, order }
    }

    #[test]
    fn parts_are_stacked_and_pairs_put_back() {
        let numbers: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let bytes = le(&numbers);
        // Two heads of four rows: halves of pairs 0 and 1 alternate in the file.
        let pairs = rows(&bytes[..64], 8, Order::Pairs { d_head: 4 });
        let plain = rows(&bytes[64..], 4, Order::Plain);
        let matrix = Matrix::new(vec![pairs, plain], 2, None);
        let weight: Vec<Vec<f32>> =
            matrix.linear(None).unwrap().weight().unwrap().to_vec2().unwrap();
        let stored: Vec<usize> = weight.iter().map(|row| row[0] as usize / 2).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7, 8, 9, 10, 11]);
        assert!(weight.iter().all(|row| row[1] == row[0] + 1.0));
    }

    #[test]
    fn a_bad_weight_is_named_by_its_place_in_the_tensor() {
        let mut numbers = vec![0f32; 16];
        numbers[2 * 2 + 1] = f32::NAN;
        let bytes = le(&numbers);
        let parts = [Order::Plain, Order::Pairs { d_head: 4 }]
            .map(|order| Matrix::new(vec![rows(&bytes, 8, order)], 2, None));
        for matrix in parts {
            let error = matrix.linear(None).unwrap_err();
            let Error::NotFinite { index, tensor, .. } = error else { panic!("{error}") };
            assert_eq!((index, tensor.as_str()), (105, "name"));
        }
    }
}
