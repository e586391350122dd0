//! Models on devices: the golden models on main memory in place of a GPU's, with and without the
//! CUDA kernels run by emulation.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;
#[allow(dead_code)] // the kernels' own tests use all of it
#[path = "../../kernels/tests/machine/emulated.rs"]
mod machine;

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use common::{Golden, at, compare_indices, difference, everything, per_token, single};
use hooks::{ActivationCache, Edits, HookPoint, Positions, Site, Wanted};
use kernels::cuda::{Plan, emulated};
use runner::{Input, KvCache, LoadOptions, Model, Placement, Source, WeightDtype};

/// As on the CPU, where the same formulas are summed in another order.
const TOLERANCE: f64 = 1e-4;
/// Against transformers in the same dtype, each rounding at places of its own.
const BF16_TOLERANCE: f64 = 1.5e-1;
const F16_TOLERANCE: f64 = 5e-3;

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
    // Experts on devices have kernels alone.
    let others = |golden: &Golden| !golden.name.starts_with("mixtral");
    for golden in Golden::all().into_iter().filter(others) {
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

#[test]
fn half_precision_agrees_with_transformers_in_half_precision() {
    let mut seen = BTreeSet::new();
    for golden in Golden::all() {
        let Some(own) = golden.own_dtype() else { continue };
        let (&request, _) = golden.prompts.iter().min_by_key(|(_, tokens)| tokens.len()).unwrap();
        let dtype = own.values().find(|tensor| tensor.dtype() != DType::F32).unwrap().dtype();
        let (weights, tolerance) = match dtype {
            DType::BF16 => (WeightDtype::AsStored, BF16_TOLERANCE),
            _ => (WeightDtype::F16, F16_TOLERANCE),
        };
        let model = placed(&golden, weights, 1);
        let cache = emulated(on_emulation, || run(&model, &golden, request));
        for point in model.info().points().into_iter().filter(|p| p.site() != Site::Summary) {
            let what = format!("{} {request}/{point}", golden.name);
            let difference = difference(
                &what,
                &cache.get(request, point).unwrap(),
                &own[&format!("{request}/{point}")],
            );
            assert!(difference <= tolerance, "{what}: {difference:.2e}");
        }
        seen.insert(dtype.as_str());
    }
    assert!(seen.into_iter().eq(["bf16", "f16"]));
}

#[test]
fn decoding_and_ragged_batches_agree_with_one_prefill() {
    for name in ["llama-c", "mixtral-a", "gemma2-a", "gpt2-a"] {
        let golden = Golden::load(name);
        let model = placed(&golden, WeightDtype::F32, 2);
        let layers = 0..model.info().n_layers();
        emulated(on_emulation, || {
            let mut batched = everything(&model);
            model.run(&golden.batch(), &mut batched).unwrap();
            for (&request, tokens) in golden.prompts.iter().filter(|(_, tokens)| tokens.len() > 2) {
                let whole = run(&model, &golden, request);
                let mut steps = everything(&model);
                let session = model.session(&mut steps).unwrap();
                let (mut cache, first) = (KvCache::new(), tokens.len() - 2);
                for (offset, tokens) in [
                    (0, &tokens[..first]),
                    (first, &tokens[first..first + 1]),
                    (first + 1, &tokens[first + 1..]),
                ] {
                    let (batch, edits) = (at(request, tokens, offset), Edits::default());
                    session
                        .forward(
                            &batch,
                            Input::Tokens,
                            layers.clone(),
                            &mut cache,
                            &edits,
                            &mut steps,
                        )
                        .unwrap();
                }
                for point in model.info().points().into_iter().filter(|p| per_token(*p)) {
                    let expected = whole.get(request, point).unwrap();
                    for (kind, got) in [("steps", &steps), ("batch", &batched)] {
                        let what = format!("{name} {request}/{point} in {kind}");
                        let difference =
                            difference(&what, &got.get(request, point).unwrap(), &expected);
                        assert!(difference <= TOLERANCE, "{what}: {difference:.2e}");
                    }
                }
            }
        });
    }
}

#[test]
fn chosen_positions_are_those_of_the_whole() {
    let golden = Golden::load("llama-b");
    let model = placed(&golden, WeightDtype::F32, 1);
    let mut whole = everything(&model);
    model.run(&golden.batch(), &mut whole).unwrap();
    for positions in ["last", "2-4", "0,last", "40-50"] {
        let positions: Positions = positions.parse().unwrap();
        let wanted = Wanted::positions(positions);
        let mut plan = hooks::Plan::default();
        for point in model.info().points() {
            plan.add(point, &wanted, model.info()).unwrap();
        }
        let mut chosen = ActivationCache::new(plan.clone());
        model.run(&golden.batch(), &mut chosen).unwrap();
        for (request, point) in whole.keys() {
            let all = whole.get(request, point).unwrap().unsqueeze(0).unwrap();
            let row = single(request, &golden.prompts[&request]);
            let expected = hooks::Activation::new(&all, &row)
                .select(point, 0, plan.wants(point).unwrap())
                .unwrap();
            let got = chosen.get(request, point).unwrap();
            assert_eq!(got.dims(), expected.dims(), "{request}/{point}");
            common::bits(&got).iter().zip(common::bits(&expected)).for_each(|(g, e)| {
                assert_eq!(*g, e, "{request}/{point}");
            });
        }
    }
}
