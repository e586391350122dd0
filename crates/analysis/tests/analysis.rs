//! Analyses against golden values, by themselves and behind a forward pass.

#![allow(clippy::unwrap_used)]

#[path = "analysis/keep.rs"]
mod keep;
#[path = "analysis/routing.rs"]
mod routing;
#[path = "analysis/spectral.rs"]
mod spectral;

use candle_core::Tensor;
use hooks::{Activation, ActivationSink, Batch, HookPoint, Plan, Row, Scope, Site};
use serde_json::Value;

/// The committed golden values of one script.
fn golden(name: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn close(what: &str, got: f64, expected: f64, tolerance: f64) {
    let difference = (got - expected).abs();
    assert!(difference <= tolerance, "{what}: {got:e}, expected {expected:e} within {tolerance:e}");
}

fn batch(rows: &[(u64, usize)]) -> Batch {
    let row = |&(request, n): &(u64, usize)| Row { request, tokens: vec![0; n], offset: 0 };
    Batch::new(rows.iter().map(row).collect()).unwrap()
}

/// Plays one layer to a sink as a forward pass would: only what is planned, and what
/// belongs to no layer behind it.
fn play(
    sink: &mut dyn ActivationSink,
    plan: &Plan,
    batch: &Batch,
    layer: usize,
    tensors: &[(Site, Tensor)],
) -> hooks::Result<()> {
    sink.begin(batch)?;
    for (site, tensor) in tensors.iter().filter(|(site, _)| site.scope() == Scope::Layer) {
        let point = HookPoint::layer(*site, layer);
        if plan.wants(point).is_some() {
            sink.record(point, &Activation::new(tensor, batch))?;
        }
    }
    sink.end_layer(layer)?;
    for (point, tensor) in
        tensors.iter().filter_map(|(site, tensor)| Some((HookPoint::model(*site)?, tensor)))
    {
        if plan.wants(point).is_some() {
            sink.record(point, &Activation::new(tensor, batch))?;
        }
    }
    sink.end_batch()
}
