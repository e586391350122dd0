//! Weights in the block formats of GGUF files, kept as they are, `kernels/quantized.cu`.
//!
//! The one decision that shapes this module: blocks are moved, never changed. A layer has the bytes
//! of its file, with the fields of a row's blocks as planes, so that a GPU reads them 16 bytes at a
//! time: blocks of 18, 22, 34, 84, 110 and 210 bytes are aligned to 2 or 4 where they are, and 32
//! weights of `Q4_0` would take nine accesses in place of two. Few rows are multiplied with the
//! blocks; for more the weights are unpacked, for the time of one product.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{
    Argument, Call, Machine, Plan, WARP, blocks as count_blocks, bytes, expect, one, suffix,
};
use crate::quantized::Encoding;
use crate::tensor;
use crate::{Error, Result};

const OP: &str = "quantized";
/// Rows begin at multiples of so many bytes.
const ALIGNMENT: usize = 16;
/// Weights with a scale each, or two.
const PART: usize = 32;
/// Weights that a thread unpacks.
const PIECE: usize = 8;
const UNPACK_THREADS: usize = 128;
/// Rows of weights of a block of threads: for one row of `x`, and for several.
const ROWS_OF_ONE: usize = 4;
const ROWS: usize = 2;
const MAX_WARPS: usize = 4;
/// Up to so many rows of `x` are multiplied with the blocks themselves.
pub const FEW_ROWS: usize = 8;
/// Most blocks of threads along y.
const MAX_SLOTS: usize = 65_535;

/// Matrices `[rows, in]` of one format, in the memory of a device.
#[derive(Clone, Debug)]
pub struct Blocks {
    encoding: &'static Encoding,
    /// `[rows, words of a row]`, `u32`.
    words: Tensor,
    d_in: usize,
}

impl Blocks {
    /// The matrix `[rows, in]` whose row `j` is the blocks `row(j)`, brought to a device. What it
    /// takes of main memory meanwhile is its size.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if rows do not consist of whole blocks, or have not the bytes that `in`
    /// weights take; [`Error::NonFinite`] with `[row, column]` of the first weight of the first
    /// block whose scale or offset is NaN or infinite; [`Error::Candle`] if the device has no room.
    pub fn new<'a>(
        encoding: &'static Encoding,
        [rows, d_in]: [usize; 2],
        row: impl Fn(usize) -> &'a [u8] + Sync,
        device: &Device,
    ) -> Result<Self> {
        if !d_in.is_multiple_of(encoding.len) {
            let expected = format!("rows of whole {} blocks of {}", encoding.name, encoding.len);
            return Err(Error::shape(OP, "weight", expected, &[rows, d_in]));
        }
        let row_bytes = (d_in / encoding.len).saturating_mul(encoding.bytes);
        if let Some(j) = (0..rows).find(|&j| row(j).len() != row_bytes) {
            let expected = format!("[{row_bytes}], the bytes of {d_in} weights");
            return Err(Error::shape(OP, "a row of blocks", expected, &[row(j).len()]));
        }
        let row_words = row_bytes.div_ceil(ALIGNMENT) * (ALIGNMENT / 4);
        let mut words = vec![0u32; tensor::size(OP, "weight", &[rows, row_words])?];
        let bad = words
            .par_chunks_mut(row_words.max(1))
            .enumerate()
            .map_init(
                || vec![0u8; 4 * row_words],
                |bytes, (j, words)| {
                    let row = row(j);
                    let mut to = 0;
                    for &[start, end] in encoding.planes {
                        for block in row.chunks_exact(encoding.bytes) {
                            bytes[to..to + end - start].copy_from_slice(&block[start..end]);
                            to += end - start;
                        }
                    }
                    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                        *word = u32::from_le_bytes(*bytes);
                    }
                    let not_finite = |block| encoding.not_finite(block);
                    let mut blocks = row.chunks_exact(encoding.bytes).map(not_finite).enumerate();
                    let (block, value) = blocks.find_map(|(at, value)| Some((at, value?)))?;
                    Some((vec![j, block * encoding.len], value))
                },
            )
            .find_map_first(|bad| bad);
        if let Some((index, value)) = bad {
            let (what, value) = ("weight", f64::from(value));
            return Err(Error::NonFinite { op: OP, what, index, value });
        }
        let bytes = size_of_val(words.as_slice());
        let words = Tensor::from_vec(words, (rows, row_words), device)
            .map_err(Error::making(OP, device, bytes))?;
        Ok(Self { encoding, words, d_in })
    }

    /// The format.
    pub fn encoding(&self) -> &'static Encoding {
        self.encoding
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.words.dims().first().copied().unwrap_or(0)
    }

    /// Weights in a row.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        self.words.device()
    }

    /// The matrices behind one another, on the device that they are on; each is let go when it is
    /// there.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for none, or if rows differ in format or width; [`Error::Candle`] for
    /// several devices, or if there is no room.
    pub fn stack(matrices: Vec<Self>) -> Result<Self> {
        let Some(Self { encoding, words, d_in }) = matrices.first().cloned() else {
            return Err(Error::shape(OP, "the matrices", "at least 1", &[0]));
        };
        let alike = |one: &Self| one.encoding.name == encoding.name && one.d_in == d_in;
        if let Some(other) = matrices.iter().find(|matrix| !alike(matrix)) {
            let expected = format!("[rows, {d_in}] of {}, as the first", encoding.name);
            return Err(Error::shape(OP, "a matrix", expected, &[other.rows(), other.d_in]));
        }
        let rows = matrices.iter().map(Self::rows).sum::<usize>();
        let row_words = words.dims().last().copied().unwrap_or(0);
        let stacked = || {
            let all = Tensor::zeros((rows, row_words), DType::U32, words.device())?;
            let mut start = 0;
            for matrix in matrices {
                all.slice_set(&matrix.words, 0, start)?;
                start += matrix.rows();
            }
            Ok(all)
        };
        let made = bytes(DType::U32, &[rows, row_words]);
        let stacked = stacked().map_err(Error::making(OP, words.device(), made))?;
        Ok(Self { encoding, words: stacked, d_in })
    }

    /// What runs plans where they are.
    pub(crate) fn machine(&self) -> Result<Machine> {
        super::machine(&self.words).ok_or_else(|| {
            let got = format!("{:?}", self.device().location());
            Error::range(OP, "the device of quantized weights", "a gpu", got)
        })
    }

    fn row_bytes(&self) -> usize {
        self.words.dims().last().map_or(0, |words| 4 * words)
    }

    /// Whole blocks of a row.
    fn of_row(&self) -> usize {
        self.d_in / self.encoding.len
    }

    fn entry(&self, operation: &str, dtype: DType) -> Result<String> {
        let format = self.encoding.name.to_lowercase();
        Ok(format!("quantized_{operation}_{format}_{}", suffix(OP, dtype)?))
    }

    /// Warps that share the parts of a row.
    fn warps(&self) -> u32 {
        (self.d_in / PART).div_ceil(WARP).clamp(1, MAX_WARPS) as u32
    }
}

/// `x Wᵀ` for weights that stay quantized.
///
/// # Shapes
///
/// `x [m, in]` of a stored dtype; gives `[m, out]` in its dtype.
///
/// # Numerics
///
/// At most 8 rows: [`product`], of a copy if `x` begins inside of 16 bytes. More: the weights are unpacked to the dtype of `x`, rounded to it,
/// and multiplied as those of a dense layer, and let go: their size is needed meanwhile.
///
/// # Errors
///
/// Those of [`product`] and [`unpack`]; [`Error::Candle`] from the dense product.
pub fn linear(machine: Machine, x: &Tensor, blocks: &Blocks) -> Result<Tensor> {
    let m = expect_rows(x, blocks)?;
    if m <= FEW_ROWS {
        return match expect_aligned(x) {
            Ok(()) => product(machine, x, blocks),
            Err(_) => {
                let made = bytes(x.dtype(), x.dims());
                let copy = x.force_contiguous().map_err(Error::making(OP, x.device(), made))?;
                product(machine, &copy, blocks)
            }
        };
    }
    let weight = unpack(machine, blocks, None, x.dtype())?;
    let made = bytes(x.dtype(), &[m, blocks.rows()]);
    let product = weight.t().and_then(|weight| x.matmul(&weight));
    product.map_err(Error::making(OP, x.device(), made))
}

/// The weights `[rows, in]` that blocks stand for, or those of the rows `ids [n]` (`u32`, on the
/// device): `[n, in]`.
///
/// # Numerics
///
/// In `f32` exactly those of [`Encoding::dequantize`]; in another dtype these, rounded: in half
/// precision, weights beyond 65,504 become infinite. An id that is no row gives a row of NaN: here
/// nobody reads it to refuse it.
///
/// # Errors
///
/// Those of [`plan_unpack`] and of the machine.
pub fn unpack(
    machine: Machine,
    blocks: &Blocks,
    ids: Option<&Tensor>,
    dtype: DType,
) -> Result<Tensor> {
    one(machine, &plan_unpack(blocks, ids, dtype)?)
}

/// `x Wᵀ` for at most 8 rows of `x`, from the blocks themselves.
///
/// # Shapes
///
/// `x [m, in]` of a stored dtype, contiguous; gives `[m, out]` in its dtype.
///
/// # Numerics
///
/// Neither `x` nor the weights are rounded. Sums in `f32`, of 16 products with one scale first;
/// a row's bits do not depend on `m`. Finite numbers give finite sums while `|x| < 2¹¹⁵`.
///
/// # Errors
///
/// Those of [`plan_product`] and of the machine.
pub fn product(machine: Machine, x: &Tensor, blocks: &Blocks) -> Result<Tensor> {
    one(machine, &plan_product(x, blocks)?)
}

/// Row `i` of `x`, or row `⌊i / share⌋`, times the transpose of matrix `chosen[i]` of several that
/// stand behind one another: `y_i = W_{chosen[i]} x_i`.
///
/// # Shapes
///
/// `chosen [n]` (`u32`), `x [n / share, in]`, `d_out` rows of `blocks` for a matrix; gives
/// `[n, d_out]` in the dtype of `x`.
///
/// # Numerics
///
/// As [`product`]. A choice that is no matrix gives NaN.
///
/// # Errors
///
/// Those of [`plan_chosen`] and of the machine.
pub fn chosen(
    machine: Machine,
    x: &Tensor,
    blocks: &Blocks,
    chosen: &Tensor,
    d_out: usize,
) -> Result<Tensor> {
    one(machine, &plan_chosen(x, blocks, chosen, d_out)?)
}

/// The launch of [`unpack`].
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`] for the ids; [`Error::Range`] for a
/// dtype that kernels do not store or too many weights.
pub fn plan_unpack<'a>(
    blocks: &'a Blocks,
    ids: Option<&'a Tensor>,
    dtype: DType,
) -> Result<Plan<'a>> {
    let n = match ids {
        None => blocks.rows(),
        Some(ids) => {
            let n = ids.elem_count();
            expect(OP, "ids", ids, DType::U32, &[n])?;
            n
        }
    };
    let entry = blocks.entry("unpack", dtype)?;
    let segments = (blocks.d_in / PIECE).div_ceil(UNPACK_THREADS);
    let grid = [count_blocks(OP, n.saturating_mul(segments))?, 1, 1];
    let call = (n * blocks.d_in > 0).then(|| Call {
        module: "quantized",
        entry,
        grid,
        block: [UNPACK_THREADS as u32, 1, 1],
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            ids.map_or(Argument::Null, |_| Argument::Input(1)),
            Argument::Output(0),
            Argument::Size(blocks.rows()),
            Argument::Size(blocks.row_bytes()),
            Argument::Size(blocks.of_row()),
            Argument::Size(segments),
        ],
    });
    let inputs = std::iter::once(&blocks.words).chain(ids).collect();
    Ok(Plan { op: OP, inputs, outputs: vec![(dtype, vec![n, blocks.d_in])], call })
}

/// The launch of [`product`].
///
/// # Errors
///
/// [`Error::Shape`], [`Error::DType`], [`Error::NonContiguous`]; [`Error::Range`] for more than 8
/// rows, a dtype that kernels do not store, a tensor that does not begin at a multiple of 16 bytes,
/// or too many rows of weights.
pub fn plan_product<'a>(x: &'a Tensor, blocks: &'a Blocks) -> Result<Plan<'a>> {
    let m = expect_rows(x, blocks)?;
    expect_aligned(x)?;
    if m > FEW_ROWS {
        return Err(Error::range(OP, "the number of rows", format!("at most {FEW_ROWS}"), m));
    }
    let d_out = blocks.rows();
    let entry = blocks.entry(&format!("product{}", m.max(1).next_power_of_two()), x.dtype())?;
    let rows = if m <= 1 { ROWS_OF_ONE } else { ROWS };
    let grid = [count_blocks(OP, d_out.div_ceil(rows))?, 1, 1];
    let call = (m * d_out > 0).then(|| Call {
        module: "quantized",
        entry,
        grid,
        block: [WARP as u32, blocks.warps(), 1],
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Input(1),
            Argument::Output(0),
            Argument::Size(blocks.row_bytes()),
            Argument::Size(blocks.of_row()),
            Argument::Size(d_out),
            Argument::Size(m),
        ],
    });
    let outputs = vec![(x.dtype(), vec![m, d_out])];
    Ok(Plan { op: OP, inputs: vec![&blocks.words, x], outputs, call })
}

/// The launch of [`chosen`].
///
/// # Errors
///
/// As [`plan_product`]; [`Error::Shape`] also unless `blocks` are whole matrices of `d_out` rows,
/// and as many choices come with each row of `x`; [`Error::Range`] for more than 65,535 choices.
pub fn plan_chosen<'a>(
    x: &'a Tensor,
    blocks: &'a Blocks,
    chosen: &'a Tensor,
    d_out: usize,
) -> Result<Plan<'a>> {
    let m = expect_rows(x, blocks)?;
    expect_aligned(x)?;
    let n = chosen.elem_count();
    expect(OP, "the choices", chosen, DType::U32, &[n])?;
    if n > MAX_SLOTS {
        let expected = format!("at most {MAX_SLOTS}");
        return Err(Error::range(OP, "the number of choices", expected, n));
    }
    if n.checked_rem(m).unwrap_or(n) != 0 {
        let expected = format!("[a multiple of {m}]");
        return Err(Error::shape(OP, "the choices", expected, &[n]));
    }
    if blocks.rows().checked_rem(d_out).unwrap_or(blocks.rows()) != 0 {
        let expected = format!("[a multiple of {d_out}, in]");
        return Err(Error::shape(OP, "the matrices", expected, &[blocks.rows(), blocks.d_in]));
    }
    let entry = blocks.entry("chosen", x.dtype())?;
    let grid = [count_blocks(OP, d_out.div_ceil(ROWS_OF_ONE))?, n as u32, 1];
    let call = (n * d_out > 0).then(|| Call {
        module: "quantized",
        entry,
        grid,
        block: [WARP as u32, blocks.warps(), 1],
        shared_bytes: 0,
        arguments: vec![
            Argument::Input(0),
            Argument::Input(1),
            Argument::Input(2),
            Argument::Output(0),
            Argument::Size(blocks.rows() / d_out),
            Argument::Size(blocks.row_bytes()),
            Argument::Size(blocks.of_row()),
            Argument::Size(d_out),
            Argument::Size(n / m),
        ],
    });
    let outputs = vec![(x.dtype(), vec![n, d_out])];
    Ok(Plan { op: OP, inputs: vec![&blocks.words, chosen, x], outputs, call })
}

/// The number of rows of `x [m, in]`.
fn expect_rows(x: &Tensor, blocks: &Blocks) -> Result<usize> {
    suffix(OP, x.dtype())?;
    let &[m, _] = x.dims() else {
        return Err(Error::shape(OP, "x", format!("[m, {}]", blocks.d_in), x.dims()));
    };
    expect(OP, "x", x, x.dtype(), &[m, blocks.d_in])?;
    Ok(m)
}

/// Whether `x` can be read 16 bytes at a time: buffers begin so, views in them need not.
fn expect_aligned(x: &Tensor) -> Result<()> {
    let start = x.layout().start_offset().saturating_mul(x.dtype().size_in_bytes());
    if start.is_multiple_of(ALIGNMENT) {
        return Ok(());
    }
    Err(Error::range(OP, "the first byte of x", format!("a multiple of {ALIGNMENT}"), start))
}
