//! Activations kept in memory.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{Activation, ActivationSink, Batch, Error, HookPoint, ModelInfo, Plan, Result};

/// A sink that keeps what its plan names, per request and point.
///
/// Batches of one request (a prefill and its decode steps) are joined along the
/// position axis. Scores and patterns, whose key axis grows with each step,
/// cannot be joined and are read one by one through
/// [`segments`](ActivationCache::segments).
#[derive(Debug)]
pub struct ActivationCache {
    plan: Plan,
    held: BTreeMap<(u64, HookPoint), Vec<Tensor>>,
}

impl ActivationCache {
    /// A cache for what the plan names.
    pub fn new(plan: Plan) -> Self {
        Self { plan, held: BTreeMap::new() }
    }

    /// A request's activation, without a batch axis: `[axes of the site…]`.
    ///
    /// # Errors
    ///
    /// [`Error::NotRecorded`] if nothing was recorded, [`Error::Tensor`] if
    /// several steps with key axes of different lengths were.
    pub fn get(&self, request: u64, point: HookPoint) -> Result<Tensor> {
        match (self.segments(request, point), point.site().position_axis()) {
            ([], _) => Err(Error::NotRecorded { request, point }),
            ([one], _) | ([one, ..], None) => Ok(one.clone()),
            (several, Some(axis)) => Ok(Tensor::cat(several, axis)?),
        }
    }

    /// The same in pieces, one per batch that the request took part in.
    pub fn segments(&self, request: u64, point: HookPoint) -> &[Tensor] {
        self.held.get(&(request, point)).map_or(&[], Vec::as_slice)
    }

    /// Every request and point with something recorded.
    pub fn keys(&self) -> impl Iterator<Item = (u64, HookPoint)> + '_ {
        self.held.keys().copied()
    }

    /// Forgets what was recorded; the plan stays.
    pub fn clear(&mut self) {
        self.held.clear();
    }
}

impl ActivationSink for ActivationCache {
    fn plan(&mut self, info: &ModelInfo) -> Result<Plan> {
        // The plan may have been made for another model.
        self.plan.iter().try_for_each(|(point, _)| info.check(point))?;
        Ok(self.plan.clone())
    }

    fn begin(&mut self, _: &Batch) -> Result<()> {
        Ok(())
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> Result<()> {
        let Some(request) = self.plan.wants(point) else {
            return Ok(());
        };
        for (row, info) in activation.batch.rows().iter().enumerate() {
            let selected = activation.select(point, row, request)?;
            // A copy of its own: a view would keep the whole batch in memory.
            self.held.entry((info.request, point)).or_default().push(selected.force_contiguous()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{Row, Wanted};

    #[test]
    fn decode_steps_are_joined_and_patterns_stay_in_pieces() {
        let info = ModelInfo::example();
        let resid: HookPoint = "blocks.0.hook_resid_post".parse().unwrap();
        let pattern: HookPoint = "blocks.0.attn.hook_pattern".parse().unwrap();
        let mut plan = Plan::default();
        plan.add(resid, &Wanted::all(), &info).unwrap();
        plan.add(pattern, &Wanted::all(), &info).unwrap();
        let mut cache = ActivationCache::new(plan);
        cache.plan(&info).unwrap();
        for (offset, tokens) in [(0, vec![1, 2]), (2, vec![3])] {
            let n = tokens.len();
            let batch = Batch::new(vec![Row { request: 0, tokens, offset }]).unwrap();
            let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            let (x, a) = (zeros(&[1, n, 32]), zeros(&[1, 4, n, offset + n]));
            cache.record(resid, &Activation::new(&x, &batch)).unwrap();
            cache.record(pattern, &Activation::new(&a, &batch)).unwrap();
        }
        assert_eq!(cache.get(0, resid).unwrap().dims(), [3, 32]);
        assert_eq!(cache.segments(0, pattern).len(), 2);
        assert!(cache.get(0, pattern).is_err());
        assert!(matches!(cache.get(1, resid), Err(Error::NotRecorded { request: 1, .. })));
        assert_eq!(cache.keys().count(), 2);
        cache.clear();
        assert_eq!(cache.keys().count(), 0);
    }
}
