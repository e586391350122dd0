//! Keys and values of positions already seen.

use std::ops::Range;

use candle_core::Tensor;
use hooks::{Batch, Plan};
use kernels::cuda;
use kernels::cuda::cache_append::{Input, cache_append};

use crate::layers::Pass;
use crate::model::Model;
use crate::step::{Launches, Results, Steps};
use crate::{Error, Result};

/// Positions that memory is first taken for.
const FIRST: usize = 64;

/// Keys (after rotary) and values of a batch's rows, layer by layer.
///
/// A row continues where the cache says it is: its offset is the number of its
/// positions held. A smaller offset rewinds, and what was held from there on is
/// overwritten. Memory is taken ahead and doubles when it is full, so that a
/// decode step copies only its own keys.
///
/// On a GPU it also holds what its steps launch, captured as one where that is possible (see
/// [`launches`](Self::launches)), and with it the weights: a model's memory is free when its caches
/// are gone, too.
#[derive(Debug, Default)]
pub struct KvCache {
    /// `None`: nothing is kept, every batch starts at position 0.
    layers: Option<Vec<Option<LayerCache>>>,
    /// Positions that each layer takes memory for at once.
    reserved: usize,
    steps: Steps,
}

#[derive(Debug)]
pub(crate) struct LayerCache {
    /// `[batch, capacity, kv_head, d_head]`.
    pub(crate) k: Tensor,
    /// `[batch, capacity, kv_head, d_value]`.
    pub(crate) v: Tensor,
    /// Positions held, by row.
    pub(crate) lengths: Vec<usize>,
}

impl LayerCache {
    /// Positions that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.k.dims().get(1).copied().unwrap_or(0)
    }
}

impl KvCache {
    /// A cache that keeps nothing: for prompts that are not continued.
    pub fn off() -> Self {
        Self { layers: None, ..Self::default() }
    }

    /// An empty cache.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// An empty cache that takes memory for so many positions when a layer is first used. On a GPU
    /// the last bits of steps of up to 8 tokens depend on how many positions there is memory for.
    pub fn with_capacity(positions: usize) -> Self {
        Self { layers: Some(Vec::new()), reserved: positions, ..Self::default() }
    }

    /// The same, giving a GPU every step launch by launch: slower, for comparisons.
    #[must_use]
    pub fn one_by_one(mut self) -> Self {
        self.steps.one_by_one = true;
        self
    }

    /// How the last pass that used the cache was given to its device; `None` before the first one,
    /// and for a cache that keeps nothing.
    pub fn launches(&self) -> Option<&Launches> {
        self.steps.last()
    }

    /// Whether keys and values are kept.
    pub fn keeps(&self) -> bool {
        self.layers.is_some()
    }

    /// Positions held of each row in a layer; empty if there are none.
    pub fn lengths(&self, layer: usize) -> &[usize] {
        self.layer(layer).map_or(&[], |held| &held.lengths)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        if let Some(layers) = &mut self.layers {
            layers.clear();
        }
        self.steps.clear();
    }

    fn layer(&self, layer: usize) -> Option<&LayerCache> {
        self.layers.as_ref()?.get(layer)?.as_ref()
    }

    /// Whether these rows continue what the layer holds. Keys of sequences of up to
    /// `switch` tokens are rotated by other frequencies than those of longer ones.
    pub(crate) fn check(&self, layer: usize, batch: &Batch, switch: Option<usize>) -> Result<()> {
        let held = self.lengths(layer);
        let rows = batch.rows();
        if !held.is_empty() && held.len() != rows.len() {
            return Err(Error::CacheRows { rows: rows.len(), cached: held.len() });
        }
        for (row, info) in rows.iter().enumerate() {
            let cached = held.get(row).copied().unwrap_or(0);
            if info.offset > cached {
                return Err(Error::CachePosition { row, layer, offset: info.offset, cached });
            }
            let length = info.offset + info.tokens.len();
            if let Some(at) = switch
                && info.offset > 0
                && (cached > at) != (length > at)
            {
                return Err(Error::FrequencySwitch { row, length, cached, at });
            }
        }
        Ok(())
    }

    /// Runs a pass over all of a model's layers as one launch, where that is possible: see
    /// [`Steps::run`].
    pub(crate) fn step(
        &mut self,
        model: &Model,
        plan: &Plan,
        layers: &Range<usize>,
        resid: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Option<Results>> {
        match &mut self.layers {
            Some(held) => self.steps.run(model, plan, layers, held, resid, pass),
            None => Ok(None),
        }
    }

    /// Adds a batch's keys and values to a layer and returns all of them, from
    /// position 0 to the longest row's last; on a GPU to the last one that there is memory for, on
    /// which the bits of few queries depend: so they are the same in captured steps and in others.
    pub(crate) fn extend(
        &mut self,
        layer: usize,
        k: Tensor,
        v: Tensor,
        lengths: &[usize],
        offsets: &[usize],
    ) -> Result<(Tensor, Tensor)> {
        let Some(layers) = &mut self.layers else {
            return Ok((k, v));
        };
        if layers.len() <= layer {
            layers.resize_with(layer + 1, || None);
        }
        let ends: Vec<usize> = lengths.iter().zip(offsets).map(|(len, at)| len + at).collect();
        let needed = ends.iter().copied().max().unwrap_or(0);
        let capacity = match &layers[layer] {
            Some(held) => held.capacity(),
            None => 0,
        };
        if capacity < needed {
            let capacity = needed.max(2 * capacity).max(self.reserved).next_multiple_of(FIRST);
            let held = layers[layer].take();
            let grow = |new: &Tensor, old: Option<&Tensor>| {
                let (batch, _, heads, width) = new.dims4()?;
                let shape = (batch, capacity, heads, width);
                let bytes = batch * capacity * heads * width * new.dtype().size_in_bytes();
                let grown = Tensor::zeros(shape, new.dtype(), new.device())
                    .map_err(kernels::Error::making("key-value cache", new.device(), bytes))?;
                if let Some(old) = old {
                    grown.slice_set(old, 1, 0)?;
                }
                Ok::<_, Error>(grown)
            };
            layers[layer] = Some(LayerCache {
                k: grow(&k, held.as_ref().map(|held| &held.k))?,
                v: grow(&v, held.as_ref().map(|held| &held.v))?,
                lengths: held.map_or_else(|| vec![0; lengths.len()], |held| held.lengths),
            });
        }
        let Some(held) = &mut layers[layer] else {
            return Ok((k, v));
        };
        if let Some(machine) = cuda::machine(&k) {
            let upload = |what, values| cuda::upload("extending a cache", what, values, k.device());
            let (lengths, offsets) = (upload("length", lengths)?, upload("offset", offsets)?);
            let (keys, values) = (held.k.clone(), held.v.clone());
            let (lengths, offsets) = (&lengths, &offsets);
            let input = Input { k: &k, v: &v, lengths, offsets, keys: &keys, values: &values };
            cache_append(machine, &input)?;
            held.lengths.copy_from_slice(&ends);
            return Ok((keys, values));
        }
        let alike = |values: &[usize]| values.windows(2).all(|pair| pair[0] == pair[1]);
        if lengths.first() == Some(&k.dim(1)?) && alike(lengths) && alike(offsets) {
            // One copy for all rows.
            held.k.slice_set(&k.contiguous()?, 1, offsets[0])?;
            held.v.slice_set(&v.contiguous()?, 1, offsets[0])?;
            held.lengths.copy_from_slice(&ends);
            return Ok((held.k.narrow(1, 0, needed)?, held.v.narrow(1, 0, needed)?));
        }
        for row in 0..lengths.len() {
            for (into, new) in [(&held.k, &k), (&held.v, &v)] {
                let new = new.narrow(0, row, 1)?.narrow(1, 0, lengths[row])?.contiguous()?;
                into.narrow(0, row, 1)?.slice_set(&new, 1, offsets[row])?;
            }
            held.lengths[row] = ends[row];
        }
        Ok((held.k.narrow(1, 0, needed)?, held.v.narrow(1, 0, needed)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rows(values: &[&[f32]]) -> Tensor {
        let len = values.iter().map(|row| row.len()).max().unwrap();
        let padded: Vec<f32> = values
            .iter()
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat(-1.0)).take(len))
            .collect();
        Tensor::from_vec(padded, (values.len(), len, 1, 1), &Device::Cpu).unwrap()
    }

    fn held(tensor: &Tensor) -> Vec<Vec<f32>> {
        tensor.reshape((tensor.dim(0).unwrap(), ())).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn ragged_rows_continue_where_they_ended() {
        let mut cache = KvCache::new();
        let first = rows(&[&[1., 2., 3.], &[7.]]);
        let (k, _) = cache.extend(0, first.clone(), first, &[3, 1], &[0, 0]).unwrap();
        assert_eq!(k.dims(), [2, 3, 1, 1]);
        assert_eq!(cache.lengths(0), [3, 1]);
        let next = rows(&[&[4.], &[8.]]);
        let (k, v) = cache.extend(0, next.clone(), next, &[1, 1], &[3, 1]).unwrap();
        assert_eq!(held(&k)[0], [1., 2., 3., 4.]);
        assert_eq!(held(&v)[1][..2], [7., 8.]);
        // Rewinding overwrites.
        let again = rows(&[&[9.], &[6.]]);
        let (k, _) = cache.extend(0, again.clone(), again, &[1, 1], &[2, 1]).unwrap();
        assert_eq!(held(&k)[0][..3], [1., 2., 9.]);
        assert_eq!(cache.lengths(0), [3, 2]);
    }

    #[test]
    fn rows_alike_are_copied_together() {
        let mut cache = KvCache::with_capacity(100);
        let first = rows(&[&[1., 2.], &[7., 8.]]);
        let (k, _) = cache.extend(0, first.clone(), first, &[2, 2], &[0, 0]).unwrap();
        assert_eq!(held(&k), [[1., 2.], [7., 8.]]);
        // From a view whose rows are apart.
        let next = rows(&[&[3., 0., 0.], &[9., 0., 0.]]).narrow(1, 0, 1).unwrap();
        let (k, v) = cache.extend(0, next.clone(), next, &[1, 1], &[2, 2]).unwrap();
        assert_eq!(held(&k), [[1., 2., 3.], [7., 8., 9.]]);
        assert_eq!(held(&v), held(&k));
        assert_eq!(cache.layer(0).unwrap().k.dim(1).unwrap(), 128);
        // Behind what is held: it is overwritten from there on.
        let again = rows(&[&[5.], &[6.]]);
        let (k, _) = cache.extend(0, again.clone(), again, &[1, 1], &[1, 1]).unwrap();
        assert_eq!(held(&k), [[1., 5.], [7., 6.]]);
        assert_eq!(cache.lengths(0), [2, 2]);
    }

    #[test]
    fn growth_keeps_what_was_held() {
        let mut cache = KvCache::new();
        for position in 0..(3 * FIRST) {
            let new = rows(&[&[position as f32]]);
            let (k, _) = cache.extend(1, new.clone(), new, &[1], &[position]).unwrap();
            let expected: Vec<f32> = (0..=position).map(|p| p as f32).collect();
            assert_eq!(held(&k)[0], expected);
        }
        assert!(cache.lengths(0).is_empty());
        cache.clear();
        assert!(cache.lengths(1).is_empty() && cache.keeps());
    }

    #[test]
    fn gaps_and_other_batches_are_refused() {
        let batch = |offset: usize, n: usize| {
            let row = |request| hooks::Row { request, tokens: vec![1], offset };
            Batch::new((0..n as u64).map(row).collect()).unwrap()
        };
        let mut cache = KvCache::new();
        assert!(cache.check(0, &batch(0, 2), None).is_ok());
        let error = cache.check(0, &batch(1, 2), None).unwrap_err();
        assert!(matches!(error, Error::CachePosition { offset: 1, cached: 0, .. }));
        let new = rows(&[&[1.], &[2.]]);
        cache.extend(0, new.clone(), new, &[1, 1], &[0, 0]).unwrap();
        assert!(cache.check(0, &batch(1, 2), None).is_ok());
        let error = cache.check(0, &batch(1, 3), None).unwrap_err();
        assert!(matches!(error, Error::CacheRows { rows: 3, cached: 2 }));
        assert!(KvCache::off().check(0, &batch(1, 1), None).is_err());
    }

    #[test]
    fn keys_of_other_frequencies_are_refused_either_way() {
        let check = |held: usize, offset: usize, n: usize| {
            let mut cache = KvCache::new();
            let values = vec![1f32; held];
            let new = rows(&[&values]);
            cache.extend(0, new.clone(), new, &[held], &[0]).unwrap();
            let row = hooks::Row { request: 0, tokens: vec![1; n], offset };
            cache.check(0, &Batch::new(vec![row]).unwrap(), Some(4))
        };
        for (held, offset, n) in [(3, 3, 1), (3, 0, 9), (6, 6, 1), (6, 0, 2), (6, 2, 3)] {
            assert!(check(held, offset, n).is_ok(), "{held} {offset} {n}");
        }
        // Growing beyond the switch, and going back behind it.
        for (held, offset, n) in [(4, 4, 1), (3, 1, 4), (6, 3, 1), (5, 1, 3)] {
            let error = check(held, offset, n).unwrap_err();
            let Error::FrequencySwitch { length, cached, at, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((length, cached, at), (offset + n, held, 4));
        }
    }
}
