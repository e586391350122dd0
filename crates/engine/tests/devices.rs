//! Runs and checks on devices: main memory in place of a GPU's, its kernels run by emulation, and
//! what is left when they fail.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use engine::{
    Against, CaptureOptions, Check, CheckOptions, Content, Error, Fault, Job, ModelChoice, Outcome,
    Placement, Positions, Progress, Prompt, PromptSource, Selection, Silent, StoredType,
    Tokenization, WeightDtype,
};
use kernels::cuda::{Plan, emulated};

#[allow(dead_code)] // the kernels' own tests use all of it
#[path = "../../kernels/tests/machine/emulated.rs"]
mod emulation;

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
    /// From which launch on which error of the driver there is.
    static FAILURE: Cell<Option<(usize, u32)>> = const { Cell::new(None) };
}

fn machine(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    LAUNCHES.set(LAUNCHES.get() + 1);
    match FAILURE.get() {
        Some((at, code)) if LAUNCHES.get() >= at => {
            let error = kernels::Error::of_code(plan.op, code).unwrap();
            Err(error.asking(Some(123_456), &Device::Cpu))
        }
        _ => Ok(emulation::run(plan, emulation::EFFORTS[0]).unwrap()),
    }
}

fn golden(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../tests/golden/models").join(name).to_str().unwrap().to_owned()
}

fn on_device(model: &str, dtype: WeightDtype) -> ModelChoice {
    let device = Placement::Devices(vec![Device::Cpu]).into();
    ModelChoice { model: golden(model), device, dtype }
}

fn prompts(n: usize) -> PromptSource {
    let tokens = |prompt: usize| (0..5 + prompt).map(|i| ((i * i + prompt) % 97) as u32).collect();
    let prompt = |i: usize| Prompt::new(format!("p{i}"), Content::Tokens(tokens(i)));
    PromptSource::Given((0..n).map(prompt).collect())
}

/// Launches until each prompt is committed, when the next one has been launched.
#[derive(Default)]
struct Ends(Vec<usize>);

impl Progress for Ends {
    fn begin(&mut self, _: u64, _: u64) {}
    fn advance(&mut self, _: u64, _: &str) {
        self.0.push(LAUNCHES.get());
    }
    fn note(&mut self, _: &str) {}
    fn end(&mut self) {}
}

fn run(out: &Path, failure: Option<(usize, u32)>, ends: &mut Ends) -> Result<Outcome, Error> {
    let job = Job {
        model: on_device("llama-c", WeightDtype::AsStored),
        prompts: prompts(3),
        tokenization: Tokenization::default(),
        capture: Some(CaptureOptions {
            hooks: vec!["blocks.*.attn.hook_pattern".to_owned(), "logits".to_owned()],
            layers: Selection::All,
            heads: Selection::All,
            positions: Positions::last(),
            stored: StoredType::F32,
        }),
        spectral: None,
        routing: None,
        labels: None,
        out: out.to_owned(),
        command: Vec::new(),
    };
    LAUNCHES.set(0);
    FAILURE.set(failure);
    emulated(machine, || engine::run(&job, ends))
}

/// The files of a finished run but its manifest and ledger.
fn results(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = ["tables", "tensors"].map(|name| out.join(name));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    files
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.strip_prefix(out).unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn what_was_finished_before_a_gpu_failed_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let mut ends = Ends::default();
    run(&whole, None, &mut ends).unwrap();
    let expected = results(&whole);
    assert!(expected.len() >= 3, "{:?}", expected.keys());
    let [two, three, all] = ends.0[..] else { panic!("{:?}", ends.0) };
    assert!(two < three && three == all, "{:?}", ends.0);
    for (code, at) in [(2, two + 1), (719, (two + three) / 2), (2, three)] {
        let out = folder.path().join(format!("{code}-{at}"));
        let error = run(&out, Some((at, code)), &mut Ends::default()).unwrap_err();
        assert_eq!(error.fault(), Fault::Device, "{error}");
        let text = error.to_string();
        assert!(text.contains("what was finished is kept"), "{text}");
        match (&error, code) {
            (Error::GpuMemory(_), 2) => {
                assert!(text.contains("123456 bytes were asked for"), "{text}");
                assert!(text.contains("--max-tokens") && text.contains("--device"), "{text}");
            }
            (Error::GpuLost(_), 719) => assert!(text.contains("CUDA_ERROR_LAUNCH_FAILED")),
            _ => panic!("{error:?}"),
        }
        // The same command goes on, and what it leaves is what it would have left.
        let mut ends = Ends::default();
        let outcome = run(&out, None, &mut ends).unwrap();
        assert_eq!((outcome.prompts, outcome.resumed_prompts, ends.0.len()), (3, 2, 1));
        assert!(results(&out) == expected, "{code} at launch {at}");
    }
}

#[test]
fn a_run_folder_says_where_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&out, None, &mut Ends::default()).unwrap();
    let manifest = std::fs::read_to_string(out.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["device"]["why"], "named");
    assert_eq!(manifest["device"]["used"], manifest["job"]["device"]);
}

fn check(model: &str, dtype: WeightDtype, machine: kernels::cuda::Machine) -> Check {
    let options = CheckOptions {
        model: on_device(model, dtype),
        reference: None,
        prompts: Some(prompts(2)),
        tokenization: Tokenization::default(),
    };
    FAILURE.set(None);
    emulated(machine, || engine::check(&options, &mut Silent)).unwrap()
}

/// Norms in bfloat16, which are those of the device alone, come out half as large again.
fn wrong(plan: &Plan<'_>) -> kernels::Result<Vec<Tensor>> {
    let mut results = machine(plan)?;
    if plan.op == "rms_norm" && results[0].dtype() == DType::BF16 {
        results[0] = (&results[0] * 1.5).unwrap();
    }
    Ok(results)
}

#[test]
fn a_device_is_checked_against_the_cpu_at_every_hook_point() {
    for model in ["llama-c", "mixtral-a"] {
        for (dtype, name, least) in
            [(WeightDtype::F32, "f32", 0.), (WeightDtype::AsStored, "bf16", 1e-4)]
        {
            let found = check(model, dtype, machine);
            assert_eq!(found.against, Against::Cpu);
            let points = found.points.unwrap();
            assert_eq!((points.dtype, points.tokens), (name, 5));
            let largest = points.largest().unwrap().difference.unwrap();
            assert!(largest >= least && largest <= points.tolerance, "{model} {name}: {largest}");
            assert!(points.agree() && found.verdict.contains("agrees"), "{model} {name}");
            let seen = |name: &str| points.differences.iter().any(|found| found.point == name);
            assert!(seen("blocks.*.attn.hook_pattern") && seen("hook_embed"), "{points:?}");
            assert!(seen("logits") || points.other_experts.is_some(), "{points:?}");
        }
    }
    let found = check("llama-c", WeightDtype::AsStored, wrong);
    assert!(!found.points.as_ref().unwrap().agree(), "{found:?}");
    assert!(found.verdict.contains("--dtype f32"), "{}", found.verdict);
}

#[test]
fn a_model_on_the_cpu_has_no_points_to_compare() {
    let options = CheckOptions {
        model: ModelChoice {
            model: golden("llama-c"),
            device: Placement::Cpu.into(),
            dtype: WeightDtype::AsStored,
        },
        reference: None,
        prompts: Some(prompts(1)),
        tokenization: Tokenization::default(),
    };
    let found = engine::check(&options, &mut Silent).unwrap();
    assert_eq!((found.against, &found.points), (Against::Itself, &None));
    let half = CheckOptions {
        model: ModelChoice { dtype: WeightDtype::Bf16, ..options.model.clone() },
        ..options
    };
    assert_eq!(engine::check(&half, &mut Silent).unwrap_err().fault(), Fault::Request);
}
