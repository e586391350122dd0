//! Matrices in a model's files, read once: when a layer is made of them.
//!
//! A [`Matrix`] says where its rows stand. Conversion to `f32`, the search for NaN
//! and infinities and the packing into the order of products are one parallel pass
//! from the mapped file to the layer: no copy in between.

use std::ops::Range;
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

/// Where a matrix's rows stand in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Row by row.
    Plain,
    /// The two rows of a rotary pair beside each other.
    Pairs { d_head: usize },
    /// Queries, keys and values of the first head, then those of the second:
    /// `[head, 3, d_head]` for what the model reads as `[3, head, d_head]`.
    HeadByHead { d_head: usize },
    /// As columns: the tensor is the transpose.
    Transposed,
}

impl Order {
    /// The stored row, or column, that is row `row` of `rows`.
    pub(crate) fn stored_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain | Self::Transposed => row,
            Self::Pairs { d_head } => {
                let (head, i, half) = (row / d_head, row % d_head, d_head / 2);
                head * d_head + 2 * (i % half) + i / half
            }
            Self::HeadByHead { d_head } => {
                let n_heads = rows / (3 * d_head);
                let (part, head) = (row / (n_heads * d_head), row / d_head % n_heads);
                (head * 3 + part) * d_head + row % d_head
            }
        }
    }
}

impl Rows<'_> {
    /// The bytes of row `row`, of `columns` elements in whole blocks, where rows are stored.
    fn bytes(&self, row: usize, columns: usize) -> &[u8] {
        let size = self.format.bytes(columns);
        &self.data[self.order.stored_row(row, self.rows) * size..][..size]
    }

    /// Reads elements of a row, which begin and end with a block.
    fn read(&self, row: usize, columns: usize, range: Range<usize>, out: &mut [f32]) {
        if self.order != Order::Transposed {
            let start = self.format.bytes(range.start);
            return self.format.read(&self.bytes(row, columns)[start..], out);
        }
        let size = self.format.bytes(1);
        for (column, out) in range.zip(out.chunks_mut(1)) {
            self.format.read(&self.data[(column * self.rows + row) * size..][..size], out);
        }
    }

    /// The place of an element among those of the tensor.
    fn index(&self, row: usize, column: usize, columns: usize) -> usize {
        let stored = self.order.stored_row(row, self.rows);
        self.first
            + match self.order {
                Order::Transposed => column * self.rows + stored,
                _ => stored * columns + column,
            }
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
                part.read(row, columns, range, out);
            }),
        };
        linear.map_err(|error| match error {
            kernels::Error::NonFinite { index, value, .. } if index.len() == 2 => {
                let (part, row) = self.place(index[0]);
                Error::NotFinite {
                    path: part.path.to_owned(),
                    tensor: part.tensor.clone(),
                    index: part.index(row, index[1], columns),
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
