//! Models on devices: the golden models on main memory in place of a GPU's, with and without the
//! CUDA kernels run by emulation.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;
#[path = "placed/emulated.rs"]
mod machine;
#[path = "placed/models.rs"]
mod models;
#[path = "placed/steps.rs"]
mod steps;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use common::gguf::{formats, llama};
use common::{Golden, difference, everything, single};
use hooks::Site;
use kernels::cuda::{Argument, Call, Plan, emulated};
use runner::{KvCache, LoadOptions, Model, Placement, Source, WeightDtype};

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

/// A launch, without the numbers that it reads.
#[derive(Debug, PartialEq)]
struct Launch {
    call: Option<Call>,
    /// Dtype, shape, strides and start of each input.
    inputs: Vec<(DType, Vec<usize>, Vec<usize>, usize)>,
    outputs: Vec<(DType, Vec<usize>)>,
    /// Where lengths and offsets are, and what is written in place.
    places: Vec<usize>,
}

impl Launch {
    fn of(plan: &Plan<'_>) -> Self {
        let input = |x: &&Tensor| {
            let layout = x.layout();
            (x.dtype(), x.dims().to_vec(), layout.stride().to_vec(), layout.start_offset())
        };
        let written = |index: usize| {
            let arguments = plan.call.iter().flat_map(|call| &call.arguments);
            arguments.into_iter().any(|argument| *argument == Argument::InPlace(index))
        };
        let of_rows = ["attention", "cache_append", "rotary"].contains(&plan.op);
        let stays =
            |(i, x): &(usize, &&Tensor)| written(*i) || (of_rows && x.dtype() == DType::U32);
        let places = plan.inputs.iter().enumerate().filter(stays).map(|(_, x)| place(x));
        Self {
            call: plan.call.clone(),
            inputs: plan.inputs.iter().map(input).collect(),
            outputs: plan.outputs.clone(),
            places: places.collect(),
        }
    }
}

/// The address of a tensor's buffer.
fn place(x: &Tensor) -> usize {
    let (storage, _) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => values.as_ptr().addr(),
        Storage::Cpu(CpuStorage::U32(values)) => values.as_ptr().addr(),
        _ => panic!("a tensor of {:?}", x.dtype()),
    }
}

thread_local! {
    static LAUNCHES: RefCell<Vec<Launch>> = const { RefCell::new(Vec::new()) };
    /// Launches whose results are wrong, or that fail.
    static WRONG: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    static FAILS: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The same, noting every launch, of which some go wrong.
fn on_watched_emulation(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    let number = LAUNCHES.with_borrow_mut(|launches| {
        launches.push(Launch::of(plan));
        launches.len() - 1
    });
    if FAILS.get() == Some(number) {
        return Err(kernels::Error::NoCuda);
    }
    let results = machine::one_way(plan)?;
    let (first, end) = WRONG.get();
    let wrong = |y: Tensor| match (first..end).contains(&number) && y.dtype() == DType::F32 {
        true => (y + 1.0).unwrap(),
        false => y,
    };
    Ok(results.into_iter().map(wrong).collect())
}

#[test]
fn launches_of_steps_at_once_hold_no_number_of_a_step() {
    for name in steps::MODELS {
        let model = models::placed(&Golden::load(name), WeightDtype::F32, 1);
        let batches = steps::Texts::new(&model, &[7, 3], 5).batches(&model);
        let (mut cache, mut sink) = (KvCache::new(), steps::logits(&model));
        let mut run = |range: Range<usize>| {
            LAUNCHES.take();
            let run = || steps::run(&model, &batches[range], &mut cache, &mut sink);
            assert_eq!(emulated(on_watched_emulation, run).pop().unwrap(), "AtOnce", "{name}");
            LAUNCHES.take()
        };
        let all = run(0..3);
        let [one, two, three] = [3, 4, 5].map(|step| run(step..step + 1));
        let n_layers = model.info().n_layers();
        let appended = one.iter().filter(|launch| launch.places.len() == 4).count();
        assert_eq!(appended, n_layers, "{name}: lengths, offsets, keys and values of each layer");
        assert!(one == two && two == three, "{name}");
        // Launch by launch, spoiled, and again.
        let n = one.len();
        assert!(all.ends_with(&one), "{name}");
        assert!(all[..all.len() - n - n_layers].ends_with(&one), "{name}");
    }
}

#[test]
fn steps_that_cannot_be_captured_run_launch_by_launch() {
    let model = models::placed(&Golden::load("llama-c"), WeightDtype::F32, 1);
    let n_layers = model.info().n_layers();
    let texts = steps::Texts::new(&model, &[4], 4);
    let batches = texts.batches(&model);
    let run = |numbers: [Option<usize>; 2], wrong: Range<usize>| {
        let (mut cache, mut sink) = (KvCache::new(), steps::logits(&model));
        let mut launches = Vec::new();
        let mut counts = Vec::new();
        for (i, batch) in batches.iter().enumerate() {
            LAUNCHES.take();
            FAILS.set(i.checked_sub(2).and_then(|i| numbers.get(i).copied().flatten()));
            WRONG.set(if i == 2 { (wrong.start, wrong.end) } else { (0, 0) });
            let batch = std::slice::from_ref(batch);
            let run = || steps::run(&model, batch, &mut cache, &mut sink);
            launches.extend(emulated(on_watched_emulation, run));
            counts.push(LAUNCHES.take().len());
        }
        let logits = sink.get(0, hooks::HookPoint::LOGITS).unwrap();
        (launches, counts, common::bits(&logits))
    };
    let (launches, counts, expected) = run([None, None], 0..0);
    assert_eq!(launches, ["Tokens", "First", "AtOnce", "AtOnce", "AtOnce"]);
    let n = counts[3];
    assert_eq!(counts[2], 2 * n + n_layers);

    let failed = "Failed(Kernel(NoCuda))";
    for (numbers, expected_launches) in [
        // While it is captured, when its first run is compared, and later.
        ([Some(n / 2), None], ["Tokens", "First", failed, failed, failed]),
        ([Some(n + n_layers + n / 2), None], ["Tokens", "First", failed, failed, failed]),
        ([None, Some(n / 2)], ["Tokens", "First", "AtOnce", failed, failed]),
    ] {
        let (launches, _, logits) = run(numbers, 0..0);
        assert_eq!(launches, expected_launches);
        assert!(logits == expected, "{numbers:?}");
    }
    let (launches, _, logits) = run([None, None], n + n_layers..2 * n + n_layers);
    assert_eq!(launches, ["Tokens", "First", "Differed", "Differed", "Differed"]);
    assert!(logits == expected);
}

#[test]
fn what_is_spoiled_must_be_written_again() {
    let model = models::placed(&Golden::load("llama-c"), WeightDtype::F32, 1);
    let batches = steps::Texts::new(&model, &[4], 2).batches(&model);
    let (mut cache, mut sink) = (KvCache::new(), steps::logits(&model));
    let run = || steps::run(&model, &batches, &mut cache, &mut sink);
    let launches = emulated(on_forgetful_emulation, run);
    assert_eq!(launches.last().unwrap(), "Differed");
    let logits = common::values(&sink.get(0, hooks::HookPoint::LOGITS).unwrap());
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

thread_local! {
    /// How often keys and values were to be appended.
    static APPENDED: Cell<usize> = const { Cell::new(0) };
}

/// The same, forgetting to append what the first captured launches would: behind a prompt, a step,
/// and one that runs launch by launch and is spoiled, in each of two layers.
fn on_forgetful_emulation(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    if plan.op == "cache_append" && APPENDED.replace(APPENDED.get() + 1) == 8 {
        return Ok(Vec::new());
    }
    machine::one_way(plan)
}
