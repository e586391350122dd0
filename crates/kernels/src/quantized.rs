//! Quantized weights: the block formats of GGUF files, and products with them.
//!
//! A format gives 16 or 32 consecutive weights of a row one scale (and, some, one
//! offset) and each weight a few bits. [`Encoding`] says how a file's blocks hold
//! them; [`Encoding::ALL`] lists the formats.
//!
//! In memory the same numbers lie column by column of a panel: unpacking a block is
//! then vertical arithmetic, 32 rows of weights at a time, and gives exactly the
//! `f32` values that the format stands for. A product with quantized weights has the
//! bits of one with those values. Scales that files hold as a product of two numbers
//! are multiplied once, when a layer is made: formats that differ in their files only
//! are one in memory.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;

use crate::panels::{Lanes, NonFinite, Right, WIDTH};

/// Consecutive weights that are read and unpacked together.
const BLOCK: usize = 32;
/// Blocks that one thread packs at a time, at least.
const PIECE: usize = 64;

/// 32 consecutive weights of a row, `x_i = scale · q_i + offset`, with one scale and offset
/// for each half. Without offsets these are −0, which changes no number.
struct Group {
    quants: [i8; BLOCK],
    scale: [f32; 2],
    offset: [f32; 2],
}

impl Group {
    fn uniform(quants: [i8; BLOCK], scale: f32, offset: f32) -> Self {
        Self { quants, scale: [scale; 2], offset: [offset; 2] }
    }

    fn write(&self, out: &mut [f32]) {
        let halves = out.chunks_exact_mut(BLOCK / 2).zip(self.quants.chunks_exact(BLOCK / 2));
        for ((out, quants), (scale, offset)) in halves.zip(self.scale.iter().zip(&self.offset)) {
            for (x, &q) in out.iter_mut().zip(quants) {
                *x = f32::from(q) * scale + offset;
            }
        }
    }
}

/// No offset.
const NONE: f32 = -0.0;

/// How a file's blocks stand for weights.
#[derive(Debug)]
pub struct Encoding {
    /// candle's name of the format.
    pub format: GgmlDType,
    /// The name that files use.
    pub name: &'static str,
    /// Weights in a block.
    pub len: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Where a block holds its 16-bit floats.
    floats: &'static [usize],
    /// A block's fields, first byte and end, in the order of their planes in the memory of a GPU:
    /// the ones before a field are so many 16 bytes, or so many of its own alignment.
    pub(crate) planes: &'static [[usize; 2]],
    /// Weights `32 · part ..` of a block.
    group: fn(block: &[u8], part: usize) -> Group,
    layout: Layout,
}

macro_rules! encodings {
    ($($(#[$doc:meta])* $id:ident $name:literal: $len:literal weights in $bytes:literal bytes, $floats:expr, $planes:expr, $group:ident, $layout:ident;)*) => {
        impl Encoding {
            $($(#[$doc])* pub const $id: &'static Self = &Self {
                format: GgmlDType::$id,
                name: $name,
                len: $len,
                bytes: $bytes,
                floats: &$floats,
                planes: &$planes,
                group: $group,
                layout: Layout::$layout,
            };)*

            /// Every format that products take.
            pub const ALL: &'static [&'static Self] = &[$(Self::$id),*];
        }
    };
}

encodings! {
    /// `d (q − 8)`.
    Q4_0 "Q4_0": 32 weights in 18 bytes, [0], [[2, 18], [0, 2]], q4_0, Four;
    /// `d q + m`.
    Q4_1 "Q4_1": 32 weights in 20 bytes, [0, 2], [[4, 20], [0, 4]], q4_1, FourOffset;
    /// `d (q − 16)`.
    Q5_0 "Q5_0": 32 weights in 22 bytes, [0], [[6, 22], [2, 6], [0, 2]], q5_0, Five;
    /// `d q + m`.
    Q5_1 "Q5_1": 32 weights in 24 bytes, [0, 2], [[8, 24], [0, 8]], q5_1, FiveOffset;
    /// `d q`.
    Q8_0 "Q8_0": 32 weights in 34 bytes, [0], [[2, 34], [0, 2]], q8_0, Eight;
    /// `d s q − m t`, 4-bit `s` and `t` for 16 weights.
    Q2K "Q2_K": 256 weights in 84 bytes, [80, 82], [[0, 80], [80, 84]], q2_k, TwoOffset;
    /// `d s (q − 4)`, 6-bit `s` for 16 weights.
    Q3K "Q3_K": 256 weights in 110 bytes, [108], [[0, 96], [96, 108], [108, 110]], q3_k, Three;
    /// `d s q − m t`, 6-bit `s` and `t` for 32 weights.
    Q4K "Q4_K": 256 weights in 144 bytes, [0, 2], [[0, 144]], q4_k, FourOffset;
    /// `d s q − m t`, 6-bit `s` and `t` for 32 weights.
    Q5K "Q5_K": 256 weights in 176 bytes, [0, 2], [[0, 176]], q5_k, FiveOffset;
    /// `d s (q − 32)`, 8-bit `s` for 16 weights.
    Q6K "Q6_K": 256 weights in 210 bytes, [208], [[0, 208], [208, 210]], q6_k, Six;
}

impl Encoding {
    /// The encoding of a format; `None` for floats and for formats that are not built.
    pub fn of(format: GgmlDType) -> Option<&'static Self> {
        Self::ALL.iter().copied().find(|encoding| encoding.format == format)
    }

    /// Bytes that `n` weights take in a layer, beside what fills its last panel.
    pub fn packed_bytes(&self, n: u64) -> u64 {
        n.div_ceil(BLOCK as u64).saturating_mul(self.layout.bytes() as u64)
    }

    /// Writes the weights of whole blocks, as `f32`.
    ///
    /// # Numerics
    ///
    /// Scale and offset of 16 or 32 weights, then `scale · q + offset`: one rounding each,
    /// in the order of the format's reference implementation.
    pub fn dequantize(&self, bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(self.bytes).zip(out.chunks_exact_mut(self.len)) {
            for (part, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                (self.group)(block, part).write(out);
            }
        }
    }

    /// A scale or offset of a block that is NaN or infinite. Without one every weight is
    /// finite: no product of a 16-bit float with the other factors leaves the range of `f32`.
    pub fn not_finite(&self, block: &[u8]) -> Option<f32> {
        self.floats.iter().map(|&at| number(block, at)).find(|value| !value.is_finite())
    }
}

fn number(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 4-bit numbers: byte `j` holds number `j` (low half) and `16 + j`.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    let mut quants = [0; BLOCK];
    let (low, high) = quants.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = byte & 15;
        *high = byte >> 4;
    }
    quants
}

fn signed(quants: [u8; BLOCK], zero: u8) -> [i8; BLOCK] {
    quants.map(|q| q.wrapping_sub(zero).cast_signed())
}

fn q4_0(b: &[u8], _: usize) -> Group {
    Group::uniform(signed(nibbles(&b[2..]), 8), number(b, 0), NONE)
}

fn q4_1(b: &[u8], _: usize) -> Group {
    Group::uniform(signed(nibbles(&b[4..]), 0), number(b, 0), number(b, 2))
}

/// [`nibbles`] behind 32 fifth bits.
fn fives(b: &[u8]) -> [u8; BLOCK] {
    let high = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let low = nibbles(&b[4..]);
    std::array::from_fn(|i| low[i] | ((high >> i & 1) << 4) as u8)
}

fn q5_0(b: &[u8], _: usize) -> Group {
    Group::uniform(signed(fives(&b[2..]), 16), number(b, 0), NONE)
}

fn q5_1(b: &[u8], _: usize) -> Group {
    Group::uniform(signed(fives(&b[4..]), 0), number(b, 0), number(b, 2))
}

fn q8_0(b: &[u8], _: usize) -> Group {
    Group::uniform(std::array::from_fn(|i| b[2 + i].cast_signed()), number(b, 0), NONE)
}

/// Scales, 2-bit numbers (4 to a byte, 32 apart), `d`, `m`.
fn q2_k(b: &[u8], part: usize) -> Group {
    let (d, m) = (number(b, 80), number(b, 82));
    let bytes = &b[16 + part / 4 * BLOCK..][..BLOCK];
    let scales = [b[2 * part], b[2 * part + 1]];
    Group {
        quants: std::array::from_fn(|i| (bytes[i] >> (part % 4 * 2) & 3).cast_signed()),
        scale: scales.map(|s| d * f32::from(s & 15)),
        offset: scales.map(|s| -(m * f32::from(s >> 4))),
    }
}

/// Third bits (8 to a byte, 32 apart), 2-bit numbers as in [`q2_k`], scales, `d`.
fn q3_k(b: &[u8], part: usize) -> Group {
    let d = number(b, 108);
    let bytes = &b[32 + part / 4 * BLOCK..][..BLOCK];
    let scale = |j: usize| {
        let low = if j < 8 { b[96 + j] & 15 } else { b[96 + j - 8] >> 4 };
        let high = b[104 + j % 4] >> (j / 4 * 2) & 3;
        d * f32::from((low | high << 4).cast_signed() - 32)
    };
    let quants =
        std::array::from_fn(|i| (bytes[i] >> (part % 4 * 2) & 3) | (b[i] >> part & 1) << 2);
    Group {
        quants: signed(quants, 4),
        scale: [scale(2 * part), scale(2 * part + 1)],
        offset: [NONE; 2],
    }
}

/// The 6-bit scale and offset of 32 weights among 12 bytes.
fn six_bits(b: &[u8], part: usize) -> (f32, f32) {
    let (scale, offset) = if part < 4 {
        (b[part] & 63, b[part + 4] & 63)
    } else {
        (b[part + 4] & 15 | b[part - 4] >> 6 << 4, b[part + 4] >> 4 | b[part] >> 6 << 4)
    };
    (f32::from(scale), f32::from(offset))
}

/// 4-bit numbers: byte `i` of 32 holds a number of two parts, one behind the other.
fn halves(bytes: &[u8], part: usize) -> [u8; BLOCK] {
    let bytes = &bytes[part / 2 * BLOCK..][..BLOCK];
    std::array::from_fn(|i| bytes[i] >> (part % 2 * 4) & 15)
}

fn q4_k(b: &[u8], part: usize) -> Group {
    let (d, m, (scale, offset)) = (number(b, 0), number(b, 2), six_bits(&b[4..], part));
    Group::uniform(signed(halves(&b[16..], part), 0), d * scale, -(m * offset))
}

fn q5_k(b: &[u8], part: usize) -> Group {
    let (d, m, (scale, offset)) = (number(b, 0), number(b, 2), six_bits(&b[4..], part));
    let (high, low) = (&b[16..16 + BLOCK], halves(&b[48..], part));
    let quants = std::array::from_fn(|i| low[i] | (high[i] >> part & 1) << 4);
    Group::uniform(signed(quants, 0), d * scale, -(m * offset))
}

/// Low halves, upper two bits (4 to a byte, 32 apart), scales, `d`.
fn q6_k(b: &[u8], part: usize) -> Group {
    let (d, row) = (number(b, 208), part % 4);
    let low = &b[part / 4 * 64 + row % 2 * BLOCK..][..BLOCK];
    let high = &b[128 + part / 4 * BLOCK..][..BLOCK];
    let quants =
        std::array::from_fn(|i| (low[i] >> (row / 2 * 4) & 15) | (high[i] >> (row * 2) & 3) << 4);
    let scale = |j: usize| d * f32::from(b[192 + j].cast_signed());
    Group {
        quants: signed(quants, 32),
        scale: [scale(2 * part), scale(2 * part + 1)],
        offset: [NONE; 2],
    }
}

/// 32 consecutive weights of each of a panel's 32 columns: `scale · (q − zero)`, `zero` the
/// middle of the range, or `scale · q + offset`.
///
/// The bits of `q` are in one or two planes. A plane of `N` rows gives `N / 4` bits to each
/// weight: row `i` holds weights `i`, `i + N`, … from its low bits up. There are `SCALES`
/// scales and `OFFSETS` offsets (as many, or none) for a column.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Packed<const LOW: usize, const HIGH: usize, const SCALES: usize, const OFFSETS: usize> {
    scale: [[f32; WIDTH]; SCALES],
    offset: [[f32; WIDTH]; OFFSETS],
    low: [[u8; WIDTH]; LOW],
    high: [[u8; WIDTH]; HIGH],
}

impl<const LOW: usize, const HIGH: usize, const SCALES: usize, const OFFSETS: usize>
    Packed<LOW, HIGH, SCALES, OFFSETS>
{
    const LOW_BITS: usize = LOW / 4;
    const LOW_MASK: u8 = u8::MAX >> (8 - Self::LOW_BITS);
    const HIGH_BITS: usize = HIGH / 4;
    const ZERO: i32 = if OFFSETS > 0 { 0 } else { 1 << (Self::LOW_BITS + Self::HIGH_BITS - 1) };

    const EMPTY: Self = Self {
        scale: [[0.0; WIDTH]; SCALES],
        offset: [[0.0; WIDTH]; OFFSETS],
        low: [[0; WIDTH]; LOW],
        high: [[0; WIDTH]; HIGH],
    };

    /// Packs each column's weights; columns without any are 0.
    fn pack(columns: impl Iterator<Item = Group>) -> Self {
        let mut packed = Self::EMPTY;
        // Plane rows are made of these rows.
        let mut quants = [[0u8; WIDTH]; BLOCK];
        for (lane, group) in columns.enumerate() {
            for (scale, value) in packed.scale.iter_mut().zip(group.scale) {
                scale[lane] = value;
            }
            for (offset, value) in packed.offset.iter_mut().zip(group.offset) {
                offset[lane] = value;
            }
            for (row, q) in quants.iter_mut().zip(group.quants) {
                row[lane] = q.cast_unsigned().wrapping_add(Self::ZERO as u8);
            }
        }
        for (i, row) in quants.iter().enumerate() {
            let (low, high) = (&mut packed.low[i % LOW], i / LOW * Self::LOW_BITS);
            for (to, q) in low.iter_mut().zip(row) {
                *to |= (q & Self::LOW_MASK) << high;
            }
            if HIGH > 0 {
                let shift = i / HIGH.max(1) * Self::HIGH_BITS;
                for (to, q) in packed.high[i % HIGH.max(1)].iter_mut().zip(row) {
                    *to |= (q >> Self::LOW_BITS) << shift;
                }
            }
        }
        packed
    }

    /// Row `i` of the panel's block is `lanes[i]`.
    #[inline(always)]
    fn unpack(&self, lanes: &mut [Lanes; BLOCK]) {
        // At least two rows to an iteration: of one alone the compiler unrolls all 32
        // lanes before it looks for vectors, and then finds them across rows.
        let rows = LOW.min(BLOCK / 2);
        for row in 0..rows {
            for part in 0..BLOCK / rows {
                let i = part * rows + row;
                let scale = &self.scale[i * SCALES / BLOCK];
                for lane in 0..WIDTH {
                    let mut q = i32::from(self.low[i % LOW][lane]) >> (i / LOW * Self::LOW_BITS)
                        & i32::from(Self::LOW_MASK);
                    if HIGH > 0 {
                        let high = i32::from(self.high[i % HIGH.max(1)][lane])
                            >> (i / HIGH.max(1) * Self::HIGH_BITS);
                        q |= (high & ((1 << Self::HIGH_BITS) - 1)) << Self::LOW_BITS;
                    }
                    let mut x = (q - Self::ZERO) as f32 * scale[lane];
                    if OFFSETS > 0 {
                        x += self.offset[i * OFFSETS / BLOCK][lane];
                    }
                    lanes[i].0[lane] = x;
                }
            }
        }
    }
}

/// A right operand of blocks: `[panel][k / 32]`.
#[derive(Clone)]
struct Compact<B> {
    blocks: Vec<B>,
    n: usize,
    k: usize,
}

impl<const LOW: usize, const HIGH: usize, const SCALES: usize, const OFFSETS: usize>
    Compact<Packed<LOW, HIGH, SCALES, OFFSETS>>
{
    /// Packs the transpose of a matrix whose row `j`, of `k` weights in whole blocks,
    /// `row(j)` returns.
    fn pack<'a>(
        encoding: &Encoding,
        n: usize,
        k: usize,
        row: &(impl Fn(usize) -> &'a [u8] + Sync),
    ) -> Result<Self, NonFinite> {
        let (depth, parts) = (k / BLOCK, encoding.len / BLOCK);
        let first_bad = AtomicUsize::new(usize::MAX);
        let pack = |index: usize| {
            let (panel, at) = (index / depth, index % depth);
            Packed::pack((panel * WIDTH..n.min((panel + 1) * WIDTH)).map(|j| {
                let block = &row(j)[at / parts * encoding.bytes..][..encoding.bytes];
                if at % parts == 0 && encoding.not_finite(block).is_some() {
                    first_bad.fetch_min(j * k + at * BLOCK, Ordering::Relaxed);
                }
                (encoding.group)(block, at % parts)
            }))
        };
        let count = n.div_ceil(WIDTH) * depth;
        let blocks = (0..count).into_par_iter().with_min_len(PIECE).map(pack).collect();
        match first_bad.into_inner() {
            usize::MAX => Ok(Self { blocks, n, k }),
            bad => {
                let (row_index, column) = (bad / k, bad % k);
                let block = &row(row_index)[column / encoding.len * encoding.bytes..];
                let value = encoding.not_finite(block).unwrap_or(f32::NAN);
                Err(NonFinite { row: row_index, column, value })
            }
        }
    }

    fn column(&self, j: usize, out: &mut Vec<f32>) {
        let mut lanes = [Lanes::splat(0.0); BLOCK];
        let depth = self.k / BLOCK;
        for block in &self.blocks[j / WIDTH * depth..][..depth] {
            block.unpack(&mut lanes);
            out.extend(lanes.iter().map(|lanes| lanes.0[j % WIDTH]));
        }
    }

    #[inline(always)]
    fn lanes<'a>(
        &self,
        panel: usize,
        depth: Range<usize>,
        scratch: &'a mut [Lanes],
    ) -> &'a [Lanes] {
        let first = panel * (self.k / BLOCK);
        let blocks = &self.blocks[first + depth.start / BLOCK..first + depth.end / BLOCK];
        let lanes = &mut scratch[..depth.len()];
        for (block, lanes) in blocks.iter().zip(lanes.as_chunks_mut().0) {
            block.unpack(lanes);
        }
        lanes
    }
}

macro_rules! layouts {
    ($($(#[$doc:meta])* $layout:ident: $low:literal $high:literal $scales:literal $offsets:literal;)*) => {
        /// What blocks are in memory.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Layout {
            $($(#[$doc])* $layout,)*
        }

        impl Layout {
            /// Bytes of 32 weights of a row.
            const fn bytes(self) -> usize {
                match self {
                    $(Self::$layout => size_of::<Packed<$low, $high, $scales, $offsets>>() / WIDTH,)*
                }
            }
        }

        #[derive(Clone)]
        enum Blocks {
            $($layout(Compact<Packed<$low, $high, $scales, $offsets>>),)*
        }

        impl Blocks {
            fn pack<'a>(
                encoding: &Encoding,
                n: usize,
                k: usize,
                row: &(impl Fn(usize) -> &'a [u8] + Sync),
            ) -> Result<Self, NonFinite> {
                Ok(match encoding.layout {
                    $(Layout::$layout => Self::$layout(Compact::pack(encoding, n, k, row)?),)*
                })
            }
        }

        /// Runs `$body` with `$blocks` bound to the blocks of whichever layout.
        macro_rules! with {
            ($self:expr, $blocks:ident => $body:expr) => {
                match $self {
                    $(Blocks::$layout($blocks) => $body,)*
                }
            };
        }
    };
}

// Rows of the two planes, scales, offsets.
layouts! {
    /// 4 bits, a scale for 32 weights; 20 bytes for 32 weights.
    Four: 16 0 1 0;
    /// And an offset; 24 bytes.
    FourOffset: 16 0 1 1;
    /// 5 bits; 24 bytes.
    Five: 16 4 1 0;
    /// And an offset; 28 bytes.
    FiveOffset: 16 4 1 1;
    /// 8 bits; 36 bytes.
    Eight: 32 0 1 0;
    /// 2 bits, a scale and an offset for 16 weights; 24 bytes.
    TwoOffset: 8 0 2 2;
    /// 3 bits, a scale for 16 weights; 20 bytes.
    Three: 8 4 2 0;
    /// 6 bits, a scale for 16 weights; 32 bytes.
    Six: 16 8 2 0;
}

/// Weights in one of the formats.
#[derive(Clone)]
pub(crate) struct Weights {
    encoding: &'static Encoding,
    blocks: Blocks,
}

impl Weights {
    /// Packs `n` rows of `k` weights, row `j` the blocks `row(j)`; `k` is a multiple of a
    /// block's length.
    pub(crate) fn pack<'a>(
        encoding: &'static Encoding,
        n: usize,
        k: usize,
        row: &(impl Fn(usize) -> &'a [u8] + Sync),
    ) -> Result<Self, NonFinite> {
        Ok(Self { encoding, blocks: Blocks::pack(encoding, n, k, row)? })
    }

    pub(crate) fn encoding(&self) -> &'static Encoding {
        self.encoding
    }

    /// Appends column `j`, in `f32`.
    pub(crate) fn column(&self, j: usize, out: &mut Vec<f32>) {
        with!(&self.blocks, blocks => blocks.column(j, out));
    }
}

impl Right for Weights {
    const UNPACKS: bool = true;

    fn n(&self) -> usize {
        with!(&self.blocks, blocks => blocks.n)
    }

    fn k(&self) -> usize {
        with!(&self.blocks, blocks => blocks.k)
    }

    #[inline(always)]
    fn lanes<'a>(
        &'a self,
        panel: usize,
        depth: Range<usize>,
        scratch: &'a mut [Lanes],
    ) -> &'a [Lanes] {
        with!(&self.blocks, blocks => blocks.lanes(panel, depth, scratch))
    }
}
