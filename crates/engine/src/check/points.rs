//! Every hook point of a model on a device beside the same model's on the CPU.

use candle_core::{DType, Tensor};
use hooks::{ActivationCache, HookPoint, Plan, Site, Wanted};
use runner::{Model, WeightDtype};
use serde::Serialize;

use super::batch_of;
use crate::Result;

/// Tokens that are compared: what both models hold of them stays below some hundred MB.
const MAX_TOKENS: usize = 32;

/// How the activations of a device differ from the CPU's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Points {
    /// The device.
    pub device: String,
    /// What it computes in.
    pub dtype: &'static str,
    /// Tokens of the first text that were compared.
    pub tokens: usize,
    /// The largest difference that is put down to rounding, of [`PointDifference::difference`].
    pub tolerance: f64,
    /// Each kind of point with its largest difference, in the order of the forward pass.
    pub differences: Vec<PointDifference>,
    /// Where experts were first chosen otherwise: from there on nothing is compared.
    pub other_experts: Option<OtherExperts>,
}

/// The largest difference of one kind of point over all layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointDifference {
    /// The hook point, with `*` for the layer.
    pub point: String,
    /// The layer with the largest difference; `None` for a point of the whole model.
    pub layer: Option<usize>,
    /// `max |Δ| / max |x|` over a layer's finite numbers, `x` the CPU's; `None`: infinite, where only
    /// one of the two is finite.
    pub difference: Option<f64>,
}

/// Experts that a router chose on one device alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OtherExperts {
    /// The layer.
    pub layer: usize,
    /// Tokens of which that is so.
    pub tokens: usize,
    /// The largest difference of two probabilities of the router, beside each other in rank, that
    /// changed places.
    pub margin: f64,
}

impl Points {
    /// The largest difference.
    pub fn largest(&self) -> Option<&PointDifference> {
        let size = |point: &PointDifference| point.difference.unwrap_or(f64::INFINITY);
        self.differences.iter().max_by(|a, b| size(a).total_cmp(&size(b)))
    }

    /// Whether every difference can be put down to rounding, choices between experts among them.
    pub fn agree(&self) -> bool {
        let within = |found: Option<f64>| found.is_some_and(|found| found <= self.tolerance);
        self.differences.iter().all(|point| within(point.difference))
            && self.other_experts.as_ref().is_none_or(|other| other.margin <= self.tolerance)
    }
}

/// What rounding may differ by in a model of some tens of layers. The tests have small models of
/// every family, and bounds of 1e-4, 5e-3 and 1.5e-1.
fn rounding(dtype: WeightDtype) -> (&'static str, f64) {
    match dtype {
        WeightDtype::F32 => ("f32", 1e-3),
        WeightDtype::F16 => ("f16", 2e-2),
        WeightDtype::AsStored | WeightDtype::Bf16 => ("bf16", 1.5e-1),
    }
}

/// Runs the beginning of a text through both models and compares every point but summaries, which
/// follow from patterns.
pub(super) fn compare(
    on_cpu: &Model,
    on_device: &Model,
    device: String,
    dtype: WeightDtype,
    tokens: &[u32],
) -> Result<Points> {
    let tokens = &tokens[..tokens.len().min(MAX_TOKENS)];
    let points: Vec<HookPoint> =
        on_cpu.info().points().into_iter().filter(|point| point.site() != Site::Summary).collect();
    let run = |model: &Model| -> Result<ActivationCache> {
        let mut plan = Plan::default();
        for point in &points {
            plan.add(*point, &Wanted::all(), model.info())?;
        }
        let mut cache = ActivationCache::new(plan);
        model.run(&batch_of(tokens)?, &mut cache)?;
        Ok(cache)
    };
    let (expected, got) = (run(on_cpu)?, run(on_device)?);
    let (dtype, tolerance) = rounding(dtype);
    let mut found = Points {
        device,
        dtype,
        tokens: tokens.len(),
        tolerance,
        differences: Vec::new(),
        other_experts: None,
    };
    for point in points {
        let (x, y) = (expected.get(0, point)?, got.get(0, point)?);
        if let (Site::ExpertIndices, Some(layer)) = (point.site(), point.layer_index()) {
            let probs = expected.get(0, HookPoint::layer(Site::RouterProbs, layer))?;
            if let Some((tokens, margin)) = other_experts(&x, &y, &probs)? {
                found.other_experts = Some(OtherExperts { layer, tokens, margin });
                return Ok(found);
            }
            continue;
        }
        found.add(point, difference(&values(&x)?, &values(&y)?));
    }
    Ok(found)
}

impl Points {
    fn add(&mut self, point: HookPoint, difference: Option<f64>) {
        let layer = point.layer_index();
        let name = match layer {
            Some(layer) => point.to_string().replacen(&format!(".{layer}."), ".*.", 1),
            None => point.to_string(),
        };
        let size = |found: Option<f64>| found.unwrap_or(f64::INFINITY);
        match self.differences.iter_mut().find(|known| known.point == name) {
            Some(known) if size(known.difference) >= size(difference) => {}
            Some(known) => (known.layer, known.difference) = (layer, difference),
            None => self.differences.push(PointDifference { point: name, layer, difference }),
        }
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// `max |Δ| / max |x|` over finite numbers; `None` where only one of two is finite, or other than
/// the same infinity.
fn difference(x: &[f32], y: &[f32]) -> Option<f64> {
    let (mut delta, mut scale) = (0f64, 0f64);
    for (&x, &y) in x.iter().zip(y) {
        if x.is_finite() && y.is_finite() {
            delta = delta.max((f64::from(x) - f64::from(y)).abs());
            scale = scale.max(f64::from(x).abs());
        } else if x != y {
            return None;
        }
    }
    (x.len() == y.len()).then_some(if scale > 0. { delta / scale } else { delta })
}

/// How many tokens have other experts, and by how much the CPU's probabilities of two experts that
/// stand for one another differ at most; `None` where all are the same.
fn other_experts(x: &Tensor, y: &Tensor, probs: &Tensor) -> Result<Option<(usize, f64)>> {
    let rows = |indices: &Tensor| -> Result<Vec<Vec<u32>>> {
        Ok(indices.to_dtype(DType::U32)?.to_vec2()?)
    };
    let probs: Vec<Vec<f32>> = probs.to_dtype(DType::F32)?.to_vec2()?;
    let (mut tokens, mut margin) = (0, 0f64);
    for ((x, y), probs) in rows(x)?.iter().zip(&rows(y)?).zip(&probs) {
        tokens += usize::from(x != y);
        let of = |expert: u32| probs.get(expert as usize).map_or(f64::NAN, |p| f64::from(*p));
        for (&x, &y) in x.iter().zip(y) {
            let apart = (of(x) - of(y)).abs();
            margin = margin.max(if apart.is_nan() { f64::INFINITY } else { apart });
        }
    }
    Ok((tokens > 0).then_some((tokens, margin)))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn differences_are_relative_to_the_largest_number() {
        let inf = f32::INFINITY;
        for (x, y, found) in [
            (vec![4., -8.], vec![4., -7.], Some(0.125)),
            (vec![0., 0.], vec![0., 0.5], Some(0.5)),
            (vec![1., -inf], vec![1., -inf], Some(0.)),
            (vec![1., -inf], vec![1., 0.], None),
            (vec![1., -inf], vec![1., inf], None),
            (vec![1., 2.], vec![f32::NAN, 2.], None),
            (vec![1., 2.], vec![1.], None),
        ] {
            assert_eq!(difference(&x, &y), found, "{x:?} {y:?}");
        }
    }

    fn points(tolerance: f64) -> Points {
        Points {
            device: "cuda:0".to_owned(),
            dtype: "bf16",
            tokens: 3,
            tolerance,
            differences: Vec::new(),
            other_experts: None,
        }
    }

    #[test]
    fn each_kind_of_point_has_its_worst_layer() {
        let mut found = points(0.1);
        let point = |layer| HookPoint::layer(Site::ResidPost, layer);
        for (layer, difference) in [(0, 0.01), (10, 0.05), (11, 0.02)] {
            found.add(point(layer), Some(difference));
        }
        found.add(HookPoint::LOGITS, Some(0.03));
        let [resid, logits] = &found.differences[..] else { panic!("{found:?}") };
        assert_eq!((resid.point.as_str(), resid.layer), ("blocks.*.hook_resid_post", Some(10)));
        assert_eq!((logits.point.as_str(), logits.layer), ("logits", None));
        assert_eq!(found.largest().unwrap().difference, Some(0.05));
        assert!(found.agree());
        let small = Points { tolerance: 0.04, ..found.clone() };
        assert!(!small.agree());
        // NaN is worse than any number.
        found.add(point(3), None);
        assert_eq!(found.largest().unwrap().layer, Some(3));
        assert!(!found.agree());
    }

    #[test]
    fn experts_change_places_only_where_the_router_hardly_tells_them_apart() {
        let tensor = |rows: [[u32; 2]; 2]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let probs = Tensor::new(&[[0.5f32, 0.3, 0.2], [0.4, 0.4, 0.2]], &Device::Cpu).unwrap();
        let here = tensor([[0, 1], [0, 1]]);
        assert_eq!(other_experts(&here, &here, &probs).unwrap(), None);
        let near = other_experts(&here, &tensor([[0, 1], [1, 0]]), &probs).unwrap();
        assert_eq!(near, Some((1, 0.)));
        let (tokens, far) =
            other_experts(&here, &tensor([[0, 2], [2, 0]]), &probs).unwrap().unwrap();
        assert_eq!((tokens, (far * 1e6).round() / 1e6), (2, 0.2));
        let none = other_experts(&here, &tensor([[0, 9], [0, 1]]), &probs).unwrap();
        assert_eq!(none, Some((1, f64::INFINITY)));

        let mut found = points(0.1);
        found.other_experts = Some(OtherExperts { layer: 0, tokens: 1, margin: 0.05 });
        assert!(found.agree());
        found.other_experts = Some(OtherExperts { layer: 0, tokens: 1, margin: 0.2 });
        assert!(!found.agree());
    }
}
