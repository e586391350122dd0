//! Score and pattern matrices of chosen heads.

#![allow(unsafe_code)]

use candle_core::Tensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{AttentionInput, AttentionOptions, Heads, device};
use crate::cuda;
use crate::math::exp;
use crate::panels::{Lanes, Panels, WIDTH};
use crate::product::{Left, Output, fill, pack_rows, packed_len, tile, tile_rows};
use crate::{Error, Result, tensor};

/// Scores of chosen heads, `s_uj = scale · q_u · k_j`, capped where there is a soft cap;
/// exactly `−∞` where query `u` does not see key `j`, and in rows beyond the valid length.
///
/// # Shapes
///
/// `[batch, heads, query_pos, key_pos]`, heads in the order given.
///
/// # Numerics
///
/// The same bits as the scores inside [`attention`](super::attention()).
///
/// # Errors
///
/// As [`attention`](super::attention()); [`Error::Range`] for a head that does not exist.
pub fn attention_scores(
    input: &AttentionInput,
    options: &AttentionOptions,
    heads: &[usize],
) -> Result<Tensor> {
    if let Some(machine) = cuda::machine(input.q) {
        return device::scores(machine, input, options, heads);
    }
    matrices("attention_scores", input, options, heads, Form::Scores)
}

/// Patterns of chosen heads, `a_uj = exp(s_uj − lse_u)`, exactly 0 where query `u`
/// does not see key `j`, and in rows beyond the valid length.
///
/// # Shapes
///
/// `[batch, heads, query_pos, key_pos]`, heads in the order given.
///
/// # Numerics
///
/// Exponentials in `f32`, relative to the row's maximum; their sum in `f64`. Rows sum
/// to 1 within a few units of `f32` rounding.
///
/// # Errors
///
/// As [`attention`](super::attention()); [`Error::Range`] for a head that does not exist.
pub fn attention_pattern(
    input: &AttentionInput,
    options: &AttentionOptions,
    heads: &[usize],
) -> Result<Tensor> {
    if let Some(machine) = cuda::machine(input.q) {
        return device::pattern(machine, input, options, heads);
    }
    matrices("attention_pattern", input, options, heads, Form::Pattern)
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Scores,
    Pattern,
}

/// Queries that one thread takes at a time, about.
const PIECE: usize = 84;

fn matrices(
    op: &'static str,
    input: &AttentionInput,
    options: &AttentionOptions,
    chosen: &[usize],
    form: Form,
) -> Result<Tensor> {
    let heads = Heads::new(input, options)?;
    let Heads { b, t, s, h, d, .. } = heads;
    if let Some(head) = chosen.iter().find(|&&head| head >= h) {
        return Err(Error::range(op, "head", format!("below {h}"), head));
    }
    let dims = [b, chosen.len(), t, s];
    let size = tensor::size(op, "the result", &dims)?;
    let write = |out: Output| {
        for row in 0..b {
            let keys: Vec<Option<Panels>> = (0..heads.h_kv)
                .map(|kv_head| {
                    let used = chosen.iter().any(|head| head / heads.group() == kv_head);
                    let n_keys = heads.n_keys(row);
                    used.then(|| Panels::pack(n_keys, d, |key| heads.key(row, key, kv_head)))
                })
                .collect();
            let pieces = t.div_ceil(PIECE);
            (0..chosen.len() * pieces).into_par_iter().with_max_len(1).for_each(|index| {
                let (slot, piece) = (index / pieces, index % pieces);
                if let Some(keys) = &keys[chosen[slot] / heads.group()] {
                    let queries = piece * PIECE..t.min((piece + 1) * PIECE);
                    let part =
                        Part { heads: &heads, keys, row, head: chosen[slot], queries, form, out };
                    Arch::new()
                        .dispatch(PartAt { part, start: (row * chosen.len() + slot) * t * s });
                }
            });
        }
    };
    // SAFETY: every row of every chosen head is written by one piece.
    let values = unsafe { fill(size, write) };
    tensor::tensor(op, values, &dims)
}

struct Part<'a> {
    heads: &'a Heads<'a>,
    keys: &'a Panels,
    row: usize,
    head: usize,
    queries: std::ops::Range<usize>,
    form: Form,
    out: Output<'a>,
}

/// A part and where its matrix begins.
struct PartAt<'a> {
    part: Part<'a>,
    start: usize,
}

impl WithSimd for PartAt<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { part: Part { heads, keys, row, head, queries, form, out }, start } = self;
        let (s, length, offset) = (heads.s, heads.lengths[row], heads.offsets[row]);
        let height = tile_rows::<S>();
        let hidden = if form == Form::Scores { f32::NEG_INFINITY } else { 0.0 };
        // SAFETY: this part alone writes these rows, and reads only what it wrote.
        let matrix_row = |query: usize| unsafe { out.slice(start + query * s, s) };
        let mut packed = vec![0.0; packed_len(height, heads.d)];
        let valid = queries.start..length.clamp(queries.start, queries.end);
        for top in valid.clone().step_by(height) {
            let rows = height.min(valid.end - top);
            let block = top..top + rows;
            pack_rows(&mut packed, height, block.map(|query| heads.query(row, query, head)));
            let first = heads.first_key(offset + top) / WIDTH;
            let last = (offset + top + rows - 1) / WIDTH;
            for panel in first..=last {
                let mut products = [Lanes::splat(0.0); 14];
                let lanes = keys.panel(panel);
                // SAFETY: `packed` holds these queries, `lanes` as many elements of the
                // keys, `products` 14 rows.
                unsafe {
                    tile::<S, { Left::CHUNKED }>(
                        simd,
                        rows,
                        Left::chunked(packed.as_ptr(), height),
                        lanes.len(),
                        lanes.as_ptr(),
                        products.as_mut_ptr().cast(),
                        WIDTH,
                        false,
                    );
                }
                let columns = panel * WIDTH..s.min((panel + 1) * WIDTH);
                for (query, products) in (top..).zip(&products).take(rows) {
                    let to = &mut matrix_row(query)[columns.clone()];
                    match heads.soft_cap {
                        None => to
                            .iter_mut()
                            .zip(&products.0)
                            .for_each(|(score, product)| *score = product * heads.scale),
                        Some(cap) => to
                            .iter_mut()
                            .zip(&products.0)
                            .for_each(|(score, &product)| *score = cap.score(product)),
                    }
                }
            }
            for query in top..top + rows {
                let line = matrix_row(query);
                let visible = heads.first_key(offset + query)..offset + query + 1;
                line[..visible.start].fill(hidden);
                line[visible.end..].fill(hidden);
                if form == Form::Pattern {
                    softmax(&mut line[visible]);
                }
            }
        }
        for query in valid.end..queries.end {
            matrix_row(query).fill(hidden);
        }
    }
}

#[inline(always)]
fn softmax(line: &mut [f32]) {
    const SUMS: usize = WIDTH / 2;
    let mut tops = [f32::NEG_INFINITY; WIDTH];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = line.as_chunks::<WIDTH>();
    for chunk in chunks {
        for (top, &score) in tops.iter_mut().zip(chunk) {
            *top = larger(*top, score);
        }
    }
    for (top, &score) in tops.iter_mut().zip(rest) {
        *top = larger(*top, score);
    }
    let mut width = WIDTH;
    while width > 1 {
        width /= 2;
        let (low, high) = tops.split_at_mut(width);
        for (low, &high) in low.iter_mut().zip(&*high) {
            *low = larger(*low, high);
        }
    }
    let top = tops[0];
    let mut sums = [0.0; SUMS];
    let (chunks, rest) = line.as_chunks_mut::<SUMS>();
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - top);
            *sum += f64::from(*score);
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *score = exp(*score - top);
        *sum += f64::from(*score);
    }
    let share = 1.0 / sums.iter().sum::<f64>();
    for p in line {
        *p = (f64::from(*p) * share) as f32;
    }
}
