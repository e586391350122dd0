//! Who receives activations.

use crate::{Activation, Batch, HookPoint, ModelInfo, Plan, Result};

/// An observer of forward passes: an analysis, a writer, a cache, or several.
///
/// Calls come in this order: `plan` once per model; then for each batch (the
/// prefill, and every decode step) `begin`, for each layer its `record`s and
/// `end_layer`, and `end_batch`. An error from any of them ends the forward pass
/// and reaches its caller unchanged; wrap your own with
/// [`Error::sink`](crate::Error::sink).
pub trait ActivationSink {
    /// Says what is wanted of this model.
    ///
    /// # Errors
    ///
    /// Whatever [`Plan::add`] refuses, and the sink's own.
    fn plan(&mut self, info: &ModelInfo) -> Result<Plan>;

    /// A batch is about to go through the model.
    ///
    /// # Errors
    ///
    /// The sink's own.
    fn begin(&mut self, batch: &Batch) -> Result<()> {
        let _ = batch;
        Ok(())
    }

    /// An activation that the plan wants. The tensor is borrowed until return:
    /// reduce it, copy it, or enqueue work on its stream.
    ///
    /// # Errors
    ///
    /// The sink's own.
    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> Result<()>;

    /// Every wanted activation of this layer has been recorded.
    ///
    /// # Errors
    ///
    /// The sink's own.
    fn end_layer(&mut self, layer: usize) -> Result<()> {
        let _ = layer;
        Ok(())
    }

    /// The batch is through.
    ///
    /// # Errors
    ///
    /// The sink's own.
    fn end_batch(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A sink that wants nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl ActivationSink for NoSink {
    fn plan(&mut self, _: &ModelInfo) -> Result<Plan> {
        Ok(Plan::default())
    }

    fn record(&mut self, _: HookPoint, _: &Activation<'_>) -> Result<()> {
        Ok(())
    }
}

macro_rules! forward_to_inner {
    ($type:ty) => {
        impl<T: ActivationSink + ?Sized> ActivationSink for $type {
            fn plan(&mut self, info: &ModelInfo) -> Result<Plan> {
                (**self).plan(info)
            }

            fn begin(&mut self, batch: &Batch) -> Result<()> {
                (**self).begin(batch)
            }

            fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> Result<()> {
                (**self).record(point, activation)
            }

            fn end_layer(&mut self, layer: usize) -> Result<()> {
                (**self).end_layer(layer)
            }

            fn end_batch(&mut self) -> Result<()> {
                (**self).end_batch()
            }
        }
    };
}

forward_to_inner!(&mut T);
forward_to_inner!(Box<T>);

/// Several sinks at once: the forward pass sees the union of their plans, each
/// sink only the points that it planned itself.
///
/// A sink may find more heads and positions in an activation than it asked for;
/// [`Activation::select`] narrows to its own request. `S` is one type of sink, or
/// `&mut dyn ActivationSink`, or a box.
#[derive(Debug)]
pub struct Fanout<S> {
    sinks: Vec<(S, Plan)>,
}

impl<S: ActivationSink> Fanout<S> {
    /// These sinks, called in this order.
    pub fn new(sinks: impl IntoIterator<Item = S>) -> Self {
        Self { sinks: sinks.into_iter().map(|sink| (sink, Plan::default())).collect() }
    }

    /// The sinks, in order.
    pub fn sinks_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.sinks.iter_mut().map(|(sink, _)| sink)
    }
}

impl<S: ActivationSink> ActivationSink for Fanout<S> {
    fn plan(&mut self, info: &ModelInfo) -> Result<Plan> {
        let mut union = Plan::default();
        for (sink, plan) in &mut self.sinks {
            *plan = sink.plan(info)?;
            union.merge(plan)?;
        }
        Ok(union)
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|(sink, _)| sink.begin(batch))
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> Result<()> {
        self.sinks
            .iter_mut()
            .filter(|(_, plan)| plan.wants(point).is_some())
            .try_for_each(|(sink, _)| sink.record(point, activation))
    }

    fn end_layer(&mut self, layer: usize) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|(sink, _)| sink.end_layer(layer))
    }

    fn end_batch(&mut self) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|(sink, _)| sink.end_batch())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::{ActivationCache, Row, Selection, Wanted};

    #[test]
    fn each_sink_sees_what_it_planned() {
        let info = ModelInfo::example();
        let cache = |name: &str, heads: &str| {
            let mut plan = Plan::default();
            let wanted = Wanted::heads(heads.parse().unwrap());
            plan.add_matching(name, &Selection::All, &wanted, &info).unwrap();
            ActivationCache::new(plan)
        };
        let mut first = cache("blocks.0.attn.hook_lse", "0");
        let mut second = cache("blocks.0.attn.hook_lse", "2");
        let mut third = cache("blocks.1.attn.hook_lse", "all");
        let point: HookPoint = "blocks.0.attn.hook_lse".parse().unwrap();
        {
            let mut all =
                Fanout::new([&mut first as &mut dyn ActivationSink, &mut second, &mut third]);
            let plan = all.plan(&info).unwrap();
            let heads = plan.wants(point).unwrap().heads.clone().unwrap();
            assert_eq!(heads, [0, 2]);
            let batch = Batch::new(vec![Row { request: 3, tokens: vec![1], offset: 0 }]).unwrap();
            let tensor = Tensor::new(&[[[10f32], [12.]]], &Device::Cpu).unwrap();
            all.begin(&batch).unwrap();
            all.record(point, &Activation::new(&tensor, &batch).with_heads(&heads)).unwrap();
            all.end_layer(0).unwrap();
            all.end_batch().unwrap();
        }
        let value = |cache: &ActivationCache| {
            cache.get(3, point).unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(value(&first), [[10.]]);
        assert_eq!(value(&second), [[12.]]);
        assert!(third.get(3, point).is_err());
    }
}
