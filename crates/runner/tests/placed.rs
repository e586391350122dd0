//! Models on devices: the golden models on main memory in place of a GPU's, with and without the
//! CUDA kernels run by emulation.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;
#[allow(dead_code)] // the kernels' own tests use all of it
#[path = "../../kernels/tests/machine/emulated.rs"]
mod machine;

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use common::{Golden, at, compare_indices, difference, everything, per_token, single, values};
use hooks::{ActivationCache, ActivationSink, HookPoint, Site};
use kernels::cuda::{Plan, emulated};
use runner::{Error, Input, KvCache, LoadOptions, Model, Placement, Source, WeightDtype};

/// As on the CPU, where the same formulas are summed in another order.
const TOLERANCE: f64 = 1e-4;

/// The model with layers on so many devices.
fn placed(golden: &Golden, dtype: WeightDtype, n_devices: usize) -> Model {
    let source = Source::resolve(golden.folder.to_str().unwrap()).unwrap();
    let placement = Placement::Devices(vec![Device::Cpu; n_devices]);
    Model::load(&source, &LoadOptions { placement, dtype }).unwrap()
}

/// One way of running plans without a GPU.
fn on_emulation(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    Ok(machine::run(plan, machine::EFFORTS[0]).unwrap())
}

fn run(model: &Model, golden: &Golden, request: u64) -> ActivationCache {
    let mut cache = everything(model);
    model.run(&single(request, &golden.prompts[&request]), &mut cache).unwrap();
    cache
}

/// Every point of a prompt against what transformers computes.
#[track_caller]
fn check(golden: &Golden, model: &Model, request: u64, cache: &ActivationCache) {
    let expected = |point: HookPoint| &golden.expected[&format!("{request}/{point}")];
    for point in model.info().points().into_iter().filter(|p| p.site() != Site::Summary) {
        let what = format!("{} {request}/{point}", golden.name);
        let got = cache.get(request, point).unwrap();
        if point.site() == Site::ExpertIndices {
            let probs = HookPoint::layer(Site::RouterProbs, point.layer_index().unwrap());
            compare_indices(&what, &got, expected(point), expected(probs));
            continue;
        }
        let difference = difference(&what, &got, expected(point));
        assert!(difference <= TOLERANCE, "{what}: {difference:.2e}");
    }
}

#[test]
fn layers_on_two_devices_agree_with_transformers() {
    for golden in Golden::all() {
        let model = placed(&golden, WeightDtype::F32, 2);
        for &request in golden.prompts.keys() {
            check(&golden, &model, request, &run(&model, &golden, request));
        }
    }
}

#[test]
fn every_family_runs_on_emulated_kernels() {
    let mut families = BTreeSet::new();
    for golden in Golden::all() {
        let model = placed(&golden, WeightDtype::F32, 1);
        if !families.insert(model.info().family.clone()) {
            continue;
        }
        let (&request, _) = golden.prompts.iter().min_by_key(|(_, tokens)| tokens.len()).unwrap();
        let cache = emulated(on_emulation, || run(&model, &golden, request));
        check(&golden, &model, request, &cache);
    }
}
