//! Forward passes of SmolLM2, with the logits of the last position and with
//! captures beside them.
//!
//! `scripts/fetch-test-models` brings the model; `RAYON_NUM_THREADS` sets the
//! number of threads.

#![allow(clippy::unwrap_used)] // a bench that cannot run has nothing to measure

use std::cell::LazyCell;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hooks::{
    Activation, ActivationSink, Batch, Edits, HookPoint, ModelInfo, Plan, Positions, Row,
    Selection, Wanted,
};
use runner::{Input, KvCache, LoadOptions, Model, Source, WeightDtype};

fn source() -> Source {
    let folder = std::env::var_os("EIGENLENS_TEST_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models"),
        PathBuf::from,
    );
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "{} is missing: run scripts/fetch-test-models", path.display());
    Source::Gguf(path)
}

/// Wants the last position's logits and some points beside, and drops them.
struct Drop {
    beside: &'static [&'static str],
}

impl ActivationSink for Drop {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        let mut plan = Plan::default();
        plan.add(HookPoint::LOGITS, &Wanted::positions(Positions::last()), info)?;
        for name in self.beside {
            plan.add_matching(name, &Selection::All, &Wanted::all(), info)?;
        }
        Ok(plan)
    }

    fn record(&mut self, _: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        black_box(activation.tensor);
        Ok(())
    }
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7919 + 13) % 49_152).collect()
}

fn batch(tokens: Vec<u32>, offset: usize) -> Batch {
    Batch::new(vec![Row { request: 0, tokens, offset }]).unwrap()
}

const DTYPES: [(&str, WeightDtype); 2] =
    [("f32", WeightDtype::F32), ("as stored", WeightDtype::AsStored)];

/// The model, loaded when the first bench that needs it runs.
fn model(dtype: WeightDtype) -> LazyCell<Model, impl FnOnce() -> Model> {
    let options = LoadOptions { dtype, ..Default::default() };
    LazyCell::new(move || Model::load(&source(), &options).unwrap())
}

fn prefill(c: &mut Criterion) {
    for (name, dtype) in DTYPES {
        let model = model(dtype);
        let mut group = c.benchmark_group(format!("prefill, {name}"));
        group.sample_size(10).warm_up_time(Duration::from_secs(2));
        for n in [128, 512, 2048] {
            let batch = batch(tokens(n), 0);
            group.throughput(Throughput::Elements(n as u64));
            let captures: &[(&str, &'static [&'static str])] = match (n, dtype) {
                (512, WeightDtype::F32) => &[
                    ("last logits", &[]),
                    ("and residuals", &["blocks.*.hook_resid_post"]),
                    ("and summaries", &["blocks.*.attn.hook_summary"]),
                    ("and patterns", &["blocks.*.attn.hook_pattern"]),
                ],
                _ => &[("last logits", &[])],
            };
            for (capture, beside) in captures {
                group.bench_function(BenchmarkId::new(*capture, n), |b| {
                    b.iter(|| model.run(&batch, &mut Drop { beside }).unwrap());
                });
            }
        }
        group.finish();
    }
}

fn decode(c: &mut Criterion) {
    for (name, dtype) in DTYPES {
        let model = model(dtype);
        let mut group = c.benchmark_group(format!("decode, {name}"));
        group.sample_size(10).throughput(Throughput::Elements(1));
        let mut cache = KvCache::new();
        group.bench_function("one token after 512", |b| {
            let (mut sink, edits) = (Drop { beside: &[] }, Edits::default());
            let session = model.session(&mut sink).unwrap();
            let mut step = |batch: &Batch| {
                session
                    .forward(batch, Input::Tokens, 0..30, &mut cache, &edits, &mut sink)
                    .unwrap();
            };
            step(&batch(tokens(512), 0));
            // The same position again and again: the cache rewinds.
            let next = batch(vec![17], 512);
            b.iter(|| step(&next));
        });
        group.finish();
    }
}

fn load(c: &mut Criterion) {
    let mut group = c.benchmark_group("load");
    group.sample_size(10);
    for (name, dtype) in DTYPES {
        let options = LoadOptions { dtype, ..Default::default() };
        let source = source();
        group.bench_function(name, |b| b.iter(|| Model::load(&source, &options).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, prefill, decode, load);
criterion_main!(benches);
