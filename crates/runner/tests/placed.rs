//! Models on devices: the golden models on main memory in place of a GPU's, with and without the
//! CUDA kernels run by emulation.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;
#[path = "placed/emulated.rs"]
mod machine;
#[path = "placed/models.rs"]
mod models;

use std::cell::RefCell;
use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use common::gguf::{formats, llama};
use common::{Golden, difference, everything, single};
use hooks::Site;
use kernels::cuda::{Plan, emulated};
use runner::{LoadOptions, Model, Placement, Source, WeightDtype};

/// In bfloat16 against `f32`, both with the same quantized weights; weights in bfloat16 are as far off.
const QUANTIZED_TOLERANCE: f64 = 1e-1;

#[test]
fn layers_on_two_devices_agree_with_transformers() {
    // Experts on devices have kernels alone.
    let others = |golden: &Golden| !golden.name.starts_with("mixtral");
    for golden in Golden::all().into_iter().filter(others) {
        let model = models::placed(&golden, WeightDtype::F32, 2);
        for &request in golden.prompts.keys() {
            models::check(&golden, &model, request, &models::run(&model, &golden, request));
        }
    }
}

thread_local! {
    static ENTRIES: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// The same, noting the entry points for quantized weights.
fn on_noted_emulation(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    if let Some(call) = plan.call.as_ref().filter(|call| call.module == "quantized") {
        ENTRIES.with_borrow_mut(|entries| entries.insert(call.entry.clone()));
    }
    machine::one_way(plan)
}

#[test]
fn quantized_weights_stay_so_on_devices() {
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];
    for (format, folder) in formats().filter(|(format, _)| format.block_size() > 1) {
        let path = folder.path.path().join("model.gguf");
        std::fs::write(&path, llama(&folder.tensors, &folder.config, format).bytes()).unwrap();
        let load = |placement, dtype| {
            Model::load(&Source::Gguf(path.clone()), &LoadOptions { placement, dtype }).unwrap()
        };
        let on_device = |dtype| load(Placement::Devices(vec![Device::Cpu]), dtype);
        let (kept, unpacked) = (on_device(WeightDtype::AsStored), on_device(WeightDtype::Bf16));
        let on_cpu = load(Placement::Cpu, WeightDtype::AsStored);
        let forward = |model: &Model, n: usize| {
            let mut cache = everything(model);
            let run = || model.run(&single(0, &tokens[..n]), &mut cache).unwrap();
            emulated(on_noted_emulation, run);
            (cache, ENTRIES.take())
        };
        let with = |entries: &BTreeSet<String>, start: &str| {
            entries.iter().any(|entry| entry.starts_with(start) && entry.ends_with("_bf16"))
        };

        // So many tokens have the bits of weights that were unpacked when the model was loaded.
        let (expected, entries) = forward(&unpacked, tokens.len());
        assert!(entries.is_empty(), "{format:?}: {entries:?}");
        let (got, entries) = forward(&kept, tokens.len());
        assert!(with(&entries, "quantized_unpack_"), "{format:?}: {entries:?}");
        assert!(!with(&entries, "quantized_product"), "{format:?}: {entries:?}");
        for (request, point) in expected.keys() {
            let (got, expected) = (got.get(request, point), expected.get(request, point));
            assert_eq!(
                common::bits(&got.unwrap()),
                common::bits(&expected.unwrap()),
                "{format:?} {point}"
            );
        }

        for n in [1, 5] {
            let (got, entries) = forward(&kept, n);
            let product = format!("quantized_product{}_", n.next_power_of_two());
            assert!(with(&entries, &product), "{format:?}: {entries:?}");
            let mut expected = everything(&on_cpu);
            on_cpu.run(&single(0, &tokens[..n]), &mut expected).unwrap();
            for point in kept.info().points().into_iter().filter(|p| p.site() != Site::Summary) {
                let what = format!("{format:?} {n} {point}");
                let (got, expected) = (got.get(0, point), expected.get(0, point));
                let difference = difference(&what, &got.unwrap(), &expected.unwrap());
                assert!(difference <= QUANTIZED_TOLERANCE, "{what}: {difference:.2e}");
            }
        }
    }
}
