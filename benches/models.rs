//! Does one piece of work with one model per line of standard input, and prints its time: what
//! `scripts/gpu-check` sets beside the same work of transformers, turn by turn.
//!
//!     models FOLDER DEVICE DTYPE        as `--model`, `--device` and `--dtype` of the command line
//!
//! | line | what is timed |
//! |---|---|
//! | `prefill BATCH TOKENS CAPTURE` | a forward pass over so many prompts, to the last logits on the host; on a GPU also the most memory it took at once |
//! | `decode STEPS` | a step of one prompt behind 128 tokens, mean of so many, and how it was launched |
//! | `decode-one-by-one STEPS` | the same, never as a captured graph |
//! | `identical BATCH TOKENS` | nothing: whether the last logits have the same bits whatever is captured |
//!
//! CAPTURE is `none`, `router`, `summary`, or `all`, which is every hook point: computed and handed
//! over, then dropped. The answer is a line of JSON with wall seconds.

#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::io::BufRead;
use std::time::Instant;

use candle_core::{DType, Device};
use engine::DeviceChoice;
use hooks::{
    Activation, ActivationSink, Batch, Edits, HookPoint, ModelInfo, Plan, Positions, Row,
    Selection, Site, Wanted,
};
use runner::{Input, KvCache, LoadOptions, Model, Placement, Session, Source, WeightDtype};
use serde_json::{Value, json};

/// Tokens before the first one that is decoded, and steps before the clock counts.
const PROMPT: usize = 128;
const WARM_UP: usize = 16;

/// Wants the last position's logits, which it keeps, and some points beside, which it drops.
struct Kept {
    beside: Beside,
    logits: Vec<f32>,
}

enum Beside {
    Named(&'static [&'static str]),
    Everything,
}

impl Kept {
    fn new(capture: &str) -> Option<Self> {
        let beside = match capture {
            "none" => Beside::Named(&[]),
            "router" => Beside::Named(&[
                "blocks.*.mlp.hook_router_logits",
                "blocks.*.mlp.hook_router_probs",
                "blocks.*.mlp.hook_expert_indices",
                "blocks.*.mlp.hook_expert_weights",
            ]),
            "summary" => Beside::Named(&["blocks.*.attn.hook_summary"]),
            "all" => Beside::Everything,
            _ => return None,
        };
        Some(Self { beside, logits: Vec::new() })
    }

    /// The time of a pass that gives no numbers is no time.
    fn check(&self) -> Outcome<()> {
        let finite = !self.logits.is_empty() && self.logits.iter().all(|logit| logit.is_finite());
        if finite { Ok(()) } else { Err("the logits are not finite".into()) }
    }
}

impl ActivationSink for Kept {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        let mut plan = Plan::default();
        plan.add(HookPoint::LOGITS, &Wanted::positions(Positions::last()), info)?;
        match self.beside {
            Beside::Named(names) => {
                for name in names {
                    plan.add_matching(name, &Selection::All, &Wanted::all(), info)?;
                }
            }
            Beside::Everything => {
                for point in info.points().into_iter().filter(|p| p.site() != Site::Logits) {
                    plan.add(point, &Wanted::all(), info)?;
                }
            }
        }
        Ok(plan)
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        if point.site() == Site::Logits {
            // The copy waits for all that the device has been given.
            let logits = activation.tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            self.logits = logits.flatten_all()?.to_vec1()?;
        } else {
            black_box(activation.tensor);
        }
        Ok(())
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn batch(model: &Model, rows: usize, tokens: usize, offset: usize) -> Outcome<Batch> {
    let d_vocab = model.info().d_vocab;
    let row = |request| Row {
        request: request as u64,
        tokens: (0..tokens).map(|i| ((request + i) * 7919 + 13) as u32 % d_vocab as u32).collect(),
        offset,
    };
    Ok(Batch::new((0..rows).map(row).collect())?)
}

fn step(
    session: &Session<'_>,
    model: &Model,
    batch: &Batch,
    cache: &mut KvCache,
    kept: &mut Kept,
) -> Outcome<()> {
    let layers = 0..model.info().n_layers();
    Ok(session.forward(batch, Input::Tokens, layers, cache, &Edits::default(), kept)?)
}

/// Seconds of a pass, and the last logits.
fn prefill(model: &Model, rows: usize, tokens: usize, capture: &str) -> Outcome<(f64, Vec<f32>)> {
    let mut kept = Kept::new(capture).ok_or("no such capture")?;
    let (session, batch) = (model.session(&mut kept)?, batch(model, rows, tokens, 0)?);
    let begun = Instant::now();
    step(&session, model, &batch, &mut KvCache::off(), &mut kept)?;
    let seconds = begun.elapsed().as_secs_f64();
    kept.check()?;
    Ok((seconds, kept.logits))
}

/// Mean seconds of a step, and how the last one was launched. The cache has room for all of them, so
/// that none is captured while the clock counts.
fn decode(model: &Model, steps: usize, one_by_one: bool) -> Outcome<(f64, String)> {
    let mut kept = Kept::new("none").ok_or("no such capture")?;
    let session = model.session(&mut kept)?;
    let cache = KvCache::with_capacity(PROMPT + WARM_UP + steps);
    let mut cache = if one_by_one { cache.one_by_one() } else { cache };
    step(&session, model, &batch(model, 1, PROMPT, 0)?, &mut cache, &mut kept)?;
    let mut begun = Instant::now();
    for i in 0..WARM_UP + steps {
        if i == WARM_UP {
            begun = Instant::now();
        }
        step(&session, model, &batch(model, 1, 1, PROMPT + i)?, &mut cache, &mut kept)?;
    }
    let seconds = begun.elapsed().as_secs_f64() / steps as f64;
    kept.check()?;
    Ok((seconds, cache.launches().map_or_else(String::new, ToString::to_string)))
}

fn answer(model: &Model, device: &Device, line: &str) -> Outcome<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["prefill", rows, tokens, capture] => {
            // Not every GPU tells.
            let taken = || kernels::cuda::taken(device).ok().flatten();
            let before = taken();
            let (seconds, _) = prefill(model, rows.parse()?, tokens.parse()?, capture)?;
            let peak = before.zip(taken()).map(|((now, _), (_, most))| most.saturating_sub(now));
            Ok(json!({"work": line, "seconds": seconds, "peak_bytes": peak}))
        }
        ["decode" | "decode-one-by-one", steps] => {
            let one_by_one = words[0] != "decode";
            let (seconds, launches) = decode(model, steps.parse::<usize>()?.max(1), one_by_one)?;
            Ok(json!({"work": line, "seconds": seconds, "launches": launches}))
        }
        ["identical", rows, tokens] => {
            let (rows, tokens) = (rows.parse()?, tokens.parse()?);
            let [none, all] = ["none", "all"].map(|capture| prefill(model, rows, tokens, capture));
            let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let (none, all) = (bits(none?.1), bits(all?.1));
            Ok(json!({"work": line, "logits": none.len(), "identical": none == all}))
        }
        _ => Err("no such work".into()),
    }
}

fn load(words: &[String]) -> Outcome<(Model, Device)> {
    let [folder, device, dtype] = words else { return Err("FOLDER DEVICE DTYPE".into()) };
    let dtype = match dtype.as_str() {
        "auto" => WeightDtype::AsStored,
        "f32" => WeightDtype::F32,
        "bf16" => WeightDtype::Bf16,
        "f16" => WeightDtype::F16,
        _ => return Err("no such dtype".into()),
    };
    let placement = device.parse::<DeviceChoice>()?.open()?.placement;
    let first = match &placement {
        Placement::Devices(devices) => devices.first().cloned().unwrap_or(Device::Cpu),
        Placement::Cpu => Device::Cpu,
    };
    let model = Model::load(&Source::resolve(folder)?, &LoadOptions { placement, dtype })?;
    Ok((model, first))
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let begun = Instant::now();
    let (model, device) = match load(&words) {
        Ok(loaded) => loaded,
        Err(error) => {
            println!("{}", json!({"error": error.to_string()}));
            std::process::exit(4);
        }
    };
    println!("{}", json!({"work": "load", "seconds": begun.elapsed().as_secs_f64()}));
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let answered = answer(&model, &device, &line);
        println!(
            "{}",
            answered.unwrap_or_else(|error| json!({"work": line, "error": error.to_string()}))
        );
    }
}
