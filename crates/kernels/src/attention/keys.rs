//! Keys and values of every key–value head, in the order in which tiles read them.
//!
//! A row with a single query reads each key once: it is not worth packing, and its
//! tiles take keys and values from where they are.

use rayon::prelude::*;

use super::Heads;
use crate::product::{best_tile_rows, pack_rows, packed_len};

/// Keys of a tile of the online softmax. A multiple of every tile height, so that
/// a tile's keys begin a packed block.
pub(super) const TILE: usize = 168;

/// Packed keys and values.
pub(super) struct Keys {
    /// `[row, kv_head, block of height, packed block]`.
    k: Vec<f32>,
    /// `[row, kv_head, tile, block of d_value, key, height]`.
    v: Vec<f32>,
    h_kv: usize,
    /// Floats of a block of keys, of one head's keys, of a tile and of one head's values.
    k_block: usize,
    k_head: usize,
    v_tile: usize,
    v_head: usize,
    /// Rows of a product's tile.
    pub(super) height: usize,
}

impl Keys {
    pub(super) fn pack(heads: &Heads) -> Self {
        let height = best_tile_rows();
        let packs = |row: usize| heads.lengths[row] > 1;
        let rows = (0..heads.b).filter(|&row| packs(row));
        let longest = rows.map(|row| heads.n_keys(row)).max().unwrap_or(0);
        let tiles = longest.div_ceil(TILE);
        let k_block = packed_len(height, heads.d);
        let k_tile = TILE / height * k_block;
        let v_tile = heads.dv.next_multiple_of(height) * TILE;
        let (k_head, v_head) = (tiles * k_tile, tiles * v_tile);
        let count = heads.b * heads.h_kv;
        let mut k = vec![0.0; count * k_head];
        let mut v = vec![0.0; count * v_head];
        let place = |tile: usize| {
            let (head, tile) = (tile / tiles, tile % tiles);
            let row = head / heads.h_kv;
            let end = if packs(row) { heads.n_keys(row).min((tile + 1) * TILE) } else { 0 };
            (row, head % heads.h_kv, (tile * TILE).min(end)..end)
        };
        if k_tile > 0 {
            k.par_chunks_exact_mut(k_tile).enumerate().for_each(|(tile, k)| {
                let (row, head, range) = place(tile);
                for (block, first) in k.chunks_exact_mut(k_block).zip(range.clone().step_by(height))
                {
                    let keys = first..range.end.min(first + height);
                    pack_rows(block, height, keys.map(|key| heads.key(row, key, head)));
                }
            });
        }
        if v_tile > 0 {
            v.par_chunks_exact_mut(v_tile).enumerate().for_each(|(tile, v)| {
                let (row, head, range) = place(tile);
                for (i, key) in range.enumerate() {
                    let value = heads.value(row, key, head);
                    for (block, part) in v.chunks_exact_mut(TILE * height).zip(value.chunks(height))
                    {
                        block[i * height..][..part.len()].copy_from_slice(part);
                    }
                }
            });
        }
        Self { k, v, h_kv: heads.h_kv, k_block, k_head, v_tile, v_head, height }
    }

    /// The packed block of keys that begins with `key`, a multiple of the height; for
    /// rows with more than one query.
    pub(super) fn k(&self, row: usize, head: usize, key: usize) -> &[f32] {
        let start = (row * self.h_kv + head) * self.k_head + key / self.height * self.k_block;
        &self.k[start..start + self.k_block]
    }

    /// The packed values of the tile that begins with `key`, columns from `column` on,
    /// a multiple of the height; for rows with more than one query.
    pub(super) fn v(&self, row: usize, head: usize, key: usize, column: usize) -> &[f32] {
        let start = (row * self.h_kv + head) * self.v_head + key / TILE * self.v_tile;
        &self.v[start + column * TILE..][..self.height * TILE]
    }
}
