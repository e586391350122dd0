//! Quantized weights in panels.
//!
//! The block formats of GGUF files give 32 consecutive weights of a row one scale
//! (and one offset) and each weight 4 or 8 bits. Here the same numbers lie column by
//! column of a panel: unpacking a block is then vertical arithmetic, 32 rows of
//! weights at a time, and gives exactly the `f32` values that the format stands
//! for. A product with quantized weights has the bits of one with those values.

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;

use crate::panels::{Lanes, Right, WIDTH};

/// Weights that share a scale.
const BLOCK: usize = 32;

/// 32 consecutive weights of each of a panel's 32 columns.
pub(crate) trait Block: Copy + Send + Sync {
    /// Bytes of 32 weights of one column in a file.
    const BYTES: usize;

    /// All weights 0.
    const ZERO: Self;

    /// Takes over the weights of one column from a file.
    fn set(&mut self, lane: usize, bytes: &[u8]);

    /// Row `i` of the panel's block is `lanes[i]`.
    fn unpack(&self, lanes: &mut [Lanes; BLOCK]);
}

/// A right operand of blocks: `[panel][k / 32]`.
#[derive(Clone)]
pub(crate) struct Compact<B> {
    blocks: Vec<B>,
    n: usize,
    k: usize,
}

impl<B: Block> Compact<B> {
    /// Packs the transpose of a matrix whose rows lie behind one another in `bytes`;
    /// `None` if they are not `n` rows of `k` weights in whole blocks.
    fn pack(n: usize, k: usize, bytes: &[u8]) -> Option<Self> {
        let depth = k / BLOCK;
        let row_len = depth * B::BYTES;
        if !k.is_multiple_of(BLOCK) || bytes.len() != n.checked_mul(row_len)? {
            return None;
        }
        let mut blocks = vec![B::ZERO; n.div_ceil(WIDTH) * depth];
        blocks.par_chunks_exact_mut(depth.max(1)).enumerate().for_each(|(panel, blocks)| {
            for lane in 0..WIDTH.min(n - panel * WIDTH) {
                let row = &bytes[(panel * WIDTH + lane) * row_len..][..row_len];
                for (block, bytes) in blocks.iter_mut().zip(row.chunks_exact(B::BYTES)) {
                    block.set(lane, bytes);
                }
            }
        });
        Some(Self { blocks, n, k })
    }

    /// As [`Panels::concat`](crate::panels::Panels::concat), where every part but the last
    /// fills its panels.
    fn concat(parts: &[&Self]) -> Option<Self> {
        let (last, rest) = parts.split_last()?;
        let whole = rest.iter().all(|part| part.k == last.k && part.n.is_multiple_of(WIDTH));
        whole.then(|| Self {
            blocks: parts.iter().flat_map(|part| &part.blocks).copied().collect(),
            n: parts.iter().map(|part| part.n).sum(),
            k: last.k,
        })
    }

    fn column(&self, j: usize, out: &mut Vec<f32>) {
        let mut lanes = [Lanes::splat(0.0); BLOCK];
        let depth = self.k / BLOCK;
        for block in &self.blocks[j / WIDTH * depth..][..depth] {
            block.unpack(&mut lanes);
            out.extend(lanes.iter().map(|lanes| lanes.0[j % WIDTH]));
        }
    }
}

impl<B: Block> Right for Compact<B> {
    const UNPACKS: bool = true;

    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    #[inline(always)]
    fn lanes<'a>(
        &'a self,
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

/// Weights in one of the formats.
#[derive(Clone)]
pub(crate) enum Weights {
    Q4_0(Compact<Q4_0>),
    Q4_1(Compact<Q4_1>),
    Q8_0(Compact<Q8_0>),
}

/// Runs `$body` with `$weights` bound to the weights of whichever format.
macro_rules! with {
    ($self:expr, $weights:ident => $body:expr) => {
        match $self {
            Weights::Q4_0($weights) => $body,
            Weights::Q4_1($weights) => $body,
            Weights::Q8_0($weights) => $body,
        }
    };
}
pub(crate) use with;

impl Weights {
    /// The formats there are.
    pub(crate) const FORMATS: &[GgmlDType] = &[GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0];

    /// Takes over `n` rows of `k` weights; `None` for another format or another number of bytes.
    pub(crate) fn pack(format: GgmlDType, n: usize, k: usize, bytes: &[u8]) -> Option<Self> {
        match format {
            GgmlDType::Q4_0 => Compact::pack(n, k, bytes).map(Self::Q4_0),
            GgmlDType::Q4_1 => Compact::pack(n, k, bytes).map(Self::Q4_1),
            GgmlDType::Q8_0 => Compact::pack(n, k, bytes).map(Self::Q8_0),
            _ => None,
        }
    }

    pub(crate) fn format(&self) -> GgmlDType {
        match self {
            Self::Q4_0(_) => GgmlDType::Q4_0,
            Self::Q4_1(_) => GgmlDType::Q4_1,
            Self::Q8_0(_) => GgmlDType::Q8_0,
        }
    }

    pub(crate) fn concat(parts: &[&Self]) -> Option<Self> {
        macro_rules! of {
            ($format:ident) => {{
                let parts: Option<Vec<_>> = parts
                    .iter()
                    .map(|part| if let Self::$format(part) = part { Some(part) } else { None })
                    .collect();
                Compact::concat(&parts?).map(Self::$format)
            }};
        }
        match parts.first()? {
            Self::Q4_0(_) => of!(Q4_0),
            Self::Q4_1(_) => of!(Q4_1),
            Self::Q8_0(_) => of!(Q8_0),
        }
    }

    pub(crate) fn n(&self) -> usize {
        with!(self, weights => weights.n)
    }

    pub(crate) fn k(&self) -> usize {
        with!(self, weights => weights.k)
    }

    /// Appends column `j`, in `f32`.
    pub(crate) fn column(&self, j: usize, out: &mut Vec<f32>) {
        with!(self, weights => weights.column(j, out));
    }
}

fn number(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// `scale · (q − 8)`, 4 bits a weight.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q4_0 {
    scale: [f32; WIDTH],
    /// Row `i` in the low halves, row `16 + i` in the high ones.
    quants: [[u8; WIDTH]; BLOCK / 2],
}

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const ZERO: Self = Self { scale: [0.0; WIDTH], quants: [[0; WIDTH]; BLOCK / 2] };

    fn set(&mut self, lane: usize, bytes: &[u8]) {
        self.scale[lane] = number(bytes, 0);
        self.quants.iter_mut().zip(&bytes[2..]).for_each(|(row, &quant)| row[lane] = quant);
    }

    #[inline(always)]
    fn unpack(&self, lanes: &mut [Lanes; BLOCK]) {
        let (low, high) = lanes.split_at_mut(BLOCK / 2);
        for ((low, high), quants) in low.iter_mut().zip(high).zip(&self.quants) {
            for (lane, &quant) in quants.iter().enumerate() {
                let quant = i32::from(quant);
                low.0[lane] = ((quant & 15) - 8) as f32 * self.scale[lane];
                high.0[lane] = ((quant >> 4) - 8) as f32 * self.scale[lane];
            }
        }
    }
}

/// `scale · q + offset`, 4 bits a weight.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q4_1 {
    scale: [f32; WIDTH],
    offset: [f32; WIDTH],
    /// Row `i` in the low halves, row `16 + i` in the high ones.
    quants: [[u8; WIDTH]; BLOCK / 2],
}

impl Block for Q4_1 {
    const BYTES: usize = 20;
    const ZERO: Self =
        Self { scale: [0.0; WIDTH], offset: [0.0; WIDTH], quants: [[0; WIDTH]; BLOCK / 2] };

    fn set(&mut self, lane: usize, bytes: &[u8]) {
        self.scale[lane] = number(bytes, 0);
        self.offset[lane] = number(bytes, 2);
        self.quants.iter_mut().zip(&bytes[4..]).for_each(|(row, &quant)| row[lane] = quant);
    }

    #[inline(always)]
    fn unpack(&self, lanes: &mut [Lanes; BLOCK]) {
        let (low, high) = lanes.split_at_mut(BLOCK / 2);
        for ((low, high), quants) in low.iter_mut().zip(high).zip(&self.quants) {
            for (lane, &quant) in quants.iter().enumerate() {
                let quant = i32::from(quant);
                low.0[lane] = (quant & 15) as f32 * self.scale[lane] + self.offset[lane];
                high.0[lane] = (quant >> 4) as f32 * self.scale[lane] + self.offset[lane];
            }
        }
    }
}

/// `scale · q`, 8 bits a weight.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q8_0 {
    scale: [f32; WIDTH],
    quants: [[i8; WIDTH]; BLOCK],
}

impl Block for Q8_0 {
    const BYTES: usize = 34;
    const ZERO: Self = Self { scale: [0.0; WIDTH], quants: [[0; WIDTH]; BLOCK] };

    fn set(&mut self, lane: usize, bytes: &[u8]) {
        self.scale[lane] = number(bytes, 0);
        self.quants.iter_mut().zip(&bytes[2..]).for_each(|(row, &quant)| {
            row[lane] = i8::from_le_bytes([quant]);
        });
    }

    #[inline(always)]
    fn unpack(&self, lanes: &mut [Lanes; BLOCK]) {
        // Two rows to an iteration: of one alone the compiler unrolls all 32 lanes
        // before it looks for vectors, and then finds them across rows.
        let ((low, high), (q_low, q_high)) =
            (lanes.split_at_mut(BLOCK / 2), self.quants.split_at(BLOCK / 2));
        for ((low, high), (q_low, q_high)) in low.iter_mut().zip(high).zip(q_low.iter().zip(q_high))
        {
            for (lane, scale) in self.scale.iter().enumerate() {
                low.0[lane] = f32::from(q_low[lane]) * scale;
                high.0[lane] = f32::from(q_high[lane]) * scale;
            }
        }
    }
}
