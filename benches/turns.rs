//! Does one piece of work per line of standard input and prints its time: what
//! `benches/peers/run` sets beside the same work of other software, turn by turn.
//!
//! A line is `WORK SIZE`; the answer is one line of JSON with wall and CPU seconds, and
//! the most memory that the process has held, in KiB. The number of threads is the
//! first argument, the token ids are read from the file that `EIGENLENS_IDS` names.

#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::cell::LazyCell;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use analysis::spectral::{Exactness, Preset, Run, Source, SpectralOptions, SpectralSink, spectra};
use candle_core::{Device, Tensor};
use hooks::{
    Activation, ActivationSink, Batch, HookPoint, ModelInfo, Plan, Positions, Row, Selection,
    Wanted,
};
use kernels::graph::{PatternView, SymmetricGraph};
use kernels::lanczos::{Ends, LanczosOptions, extremes};
use kernels::laplacian::{Laplacian, LaplacianOperator};
use rayon::prelude::*;
use runner::{LoadOptions, Model, WeightDtype};

/// Graphs whose Fiedler values are found together.
const GRAPHS: usize = 32;
/// Width of a signal.
const D_MODEL: usize = 576;

/// Wants the last position's logits and some points beside, and drops them.
struct Drop(&'static [&'static str]);

impl ActivationSink for Drop {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        let mut plan = Plan::default();
        plan.add(HookPoint::LOGITS, &Wanted::positions(Positions::last()), info)?;
        for name in self.0 {
            plan.add_matching(name, &Selection::All, &Wanted::all(), info)?;
        }
        Ok(plan)
    }

    fn record(&mut self, _: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        black_box(activation.tensor);
        Ok(())
    }
}

fn model() -> Model {
    let folder = std::env::var_os("EIGENLENS_TEST_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-models"),
        PathBuf::from,
    );
    let source = runner::Source::Gguf(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    let options = LoadOptions { dtype: WeightDtype::F32, ..Default::default() };
    Model::load(&source, &options).unwrap()
}

/// The first token ids of the text.
fn batch(n: usize) -> Batch {
    let file = std::env::var_os("EIGENLENS_IDS").unwrap();
    let ids: Vec<u32> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    Batch::new(vec![Row { request: 0, tokens: ids[..n].to_vec(), offset: 0 }]).unwrap()
}

fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A causal pattern: softmax of random scores of a standard deviation of about 1.5.
fn pattern(n: usize, seed: u64) -> Vec<f32> {
    let mut uniform = numbers(seed);
    let mut a = vec![0.0; n * n];
    for i in 0..n {
        let scores: Vec<f64> = (0..=i)
            .map(|j| {
                let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
                (1.5 * normal - 0.01 * (i - j) as f64).exp()
            })
            .collect();
        let sum: f64 = scores.iter().sum();
        for (a, score) in a[i * n..].iter_mut().zip(scores) {
            *a = (score / sum) as f32;
        }
    }
    a
}

fn runs(presets: &[(Preset, Exactness)]) -> Vec<Run> {
    presets
        .iter()
        .map(|(preset, exactness)| Run { exactness: *exactness, ..(*preset).into() })
        .collect()
}

/// Median and largest difference of every column between whole spectra in f32 and in f64.
fn errors(model: &Model, batch: &Batch) -> serde_json::Value {
    let rows = [Exactness::DenseF32, Exactness::DenseF64].map(|exactness| {
        let runs = runs(&Preset::ALL.map(|preset| (preset, exactness)));
        let mut sink = SpectralSink::new(SpectralOptions { runs, ..Default::default() });
        model.run(batch, &mut sink).unwrap();
        sink.take().spectral
    });
    let mut found = serde_json::Map::new();
    for preset in Preset::ALL {
        let mut of = std::collections::BTreeMap::<&str, Vec<f64>>::new();
        for (single, double) in rows[0].iter().zip(&rows[1]) {
            if double.preset != preset {
                continue;
            }
            let pairs = single.measures().into_iter().zip(double.measures());
            for ((name, single), (_, double)) in pairs {
                // Null in f32 alone: not resolved.
                if let (Some(single), Some(double)) = (single, double) {
                    of.entry(name).or_default().push((single - double).abs());
                }
            }
        }
        for (name, mut apart) in of {
            apart.sort_by(f64::total_cmp);
            let summary = [apart[apart.len() / 2], apart[apart.len() - 1]];
            found.insert(
                format!("{preset:?} {name} of {}", apart.len()),
                summary.map(|v| format!("{v:.1e}")).to_vec().into(),
            );
        }
    }
    found.into()
}

/// CPU seconds of this process, in steps of 10 ms.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    kernels::keep_freed_memory();
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let Some(threads) = arguments.next() else { return };
    engine::set_threads(threads.parse().unwrap()).unwrap();
    let model = LazyCell::new(model);
    let mut prepared: Option<(usize, Vec<Vec<f32>>)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (work, size) = line.split_once(' ').unwrap();
        let size: usize = size.parse().unwrap();
        let timed = |work: &mut dyn FnMut()| {
            let (cpu_start, start) = (cpu(), Instant::now());
            work();
            (start.elapsed().as_secs_f64(), cpu() - cpu_start)
        };
        let spectral = |presets: &[(Preset, Exactness)]| {
            let batch = batch(size);
            LazyCell::force(&model);
            timed(&mut || {
                let options = SpectralOptions { runs: runs(presets), ..Default::default() };
                let mut sink = SpectralSink::new(options);
                model.run(&batch, &mut sink).unwrap();
                black_box(sink.take());
            })
        };
        let forward = |beside| {
            let batch = batch(size);
            LazyCell::force(&model);
            timed(&mut || model.run(&batch, &mut Drop(beside)).unwrap())
        };
        if work == "f32-errors" {
            println!("{}", errors(&model, &batch(size)));
            continue;
        }
        let mut patterns = |count: usize| {
            if prepared.as_ref().is_none_or(|(n, held)| *n != size || held.len() < count) {
                prepared =
                    Some((size, (0..count as u64).map(|seed| pattern(size, seed)).collect()));
            }
            prepared.as_ref().map_or(Vec::new(), |(_, held)| held[..count].to_vec())
        };
        let (wall, cpu) = match work {
            "forward" => forward(&[]),
            "summary" => forward(&["blocks.*.attn.hook_summary"]),
            "spectral" => spectral(&[(Preset::Controlled, Exactness::Iterative)]),
            "spectral+paper" => spectral(&[
                (Preset::Controlled, Exactness::Iterative),
                (Preset::Paper, Exactness::DenseF64),
            ]),
            "exact" => spectral(&[(Preset::Controlled, Exactness::DenseF32)]),
            "exact-f64" => spectral(&[(Preset::Controlled, Exactness::DenseF64)]),
            "dense" | "dense-f32" => {
                let exactness = match work {
                    "dense" => Exactness::DenseF64,
                    _ => Exactness::DenseF32,
                };
                let pattern = patterns(1).remove(0);
                let pattern = Tensor::from_vec(pattern, (1, size, size), &Device::Cpu).unwrap();
                let mut uniform = numbers(99);
                let signal = (0..size * D_MODEL).map(|_| uniform() as f32 - 0.5).collect();
                let signal = Tensor::from_vec(signal, (size, D_MODEL), &Device::Cpu).unwrap();
                let source = Source { request: 0, layer: 0 };
                let runs = runs(&[(Preset::Paper, exactness)]);
                let lanczos = LanczosOptions::default();
                timed(&mut || {
                    black_box(spectra(source, &pattern, &[0], &signal, &runs, &lanczos).unwrap());
                })
            }
            "fiedler" | "extremes" => {
                let patterns = patterns(GRAPHS);
                let ends = if work == "fiedler" { Ends::Fiedler } else { Ends::Both };
                let options = LanczosOptions { ends, ..LanczosOptions::default() };
                timed(&mut || {
                    patterns.par_iter().for_each(|pattern| {
                        let view = PatternView::new(pattern, size, size).unwrap();
                        let graph = SymmetricGraph::from_pattern(view).unwrap();
                        let kind = Laplacian::SymmetricNormalized;
                        let operator = LaplacianOperator::new(&graph, kind);
                        black_box(extremes(&operator, &options).unwrap());
                    });
                })
            }
            _ => panic!("no such work: {work}"),
        };
        let answer = serde_json::json!({ "wall": wall, "cpu": cpu, "peak_kib": peak() });
        println!("{answer}");
        std::io::stdout().flush().unwrap();
    }
}
