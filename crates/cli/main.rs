//! The command line: words in, one call of the engine, text or JSON out.

#![allow(missing_docs, reason = "a program has no public items")]

mod args;
mod curves;
mod print;
mod progress;
mod verdicts;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use clap::error::ErrorKind;
use engine::{
    Arguments, CaptureOptions, CheckOptions, DeviceChoice, Exactness, Fault, Form, FunctionalKind,
    FunctionalValues, GraphChoice, Graphs, Item, Job, Keep, LabelOptions, Laplacian, ModelChoice,
    Of, Part, Prefixes, Probing, PromptSource, QuadratureOptions, Reason, Special, SpectralOptions,
    StoredType, Tokenization, WeightDtype, Written,
};
use serde::Serialize;

use args::{CheckArgs, Cli, Command, ModelsArgs, RunArgs, Shared, ShowArgs, SpectralArgs};
use print::Print;
use progress::Meter;

/// The number of the signal that a process gets when a file outgrows its limit.
const SIGXFSZ: i32 = 25;

fn main() -> ExitCode {
    engine::keep_freed_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    // Taken as a flag, the signal no longer kills: the write fails and says why.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    match carry_out(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// An error with its causes, each once: some messages tell their cause already.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Whoever read the output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<engine::Error>().map(engine::Error::fault) {
        Some(Fault::Request) => 2,
        Some(Fault::Model) => 3,
        Some(Fault::Device) => 4,
        Some(Fault::Internal) | None => 1,
    }
}

fn carry_out(cli: &Cli) -> anyhow::Result<()> {
    engine::set_threads(cli.shared.threads.map_or(0, NonZeroUsize::get))?;
    let shared = &cli.shared;
    match &cli.command {
        Command::Demo(demo) => {
            emit(shared, &engine::demo(&demo.out, words(), &mut Meter::new(shared.quiet))?)
        }
        Command::Capture(capture) => {
            let options = CaptureOptions {
                hooks: capture.hooks.clone(),
                layers: capture.run.layers.clone(),
                heads: capture.heads.clone(),
                positions: capture.positions.clone(),
                stored: match capture.store {
                    args::Stored::F32 => StoredType::F32,
                    args::Stored::F16 => StoredType::F16,
                    args::Stored::Bf16 => StoredType::BF16,
                },
            };
            run(shared, Job { capture: Some(options), ..job(shared, &capture.run)? })
        }
        Command::Spectral(spectral) => {
            if let Some(from) = &spectral.verdicts.score_only {
                let mut meter = Meter::new(shared.quiet);
                return emit(
                    shared,
                    &engine::score(job(shared, &spectral.run)?, from, &mut meter)?,
                );
            }
            let options = SpectralOptions {
                presets: spectral
                    .preset
                    .iter()
                    .map(|preset| match preset {
                        args::Preset::Controlled => engine::Preset::Controlled,
                        args::Preset::Paper => engine::Preset::Paper,
                        args::Preset::Library03 => engine::Preset::Library03,
                    })
                    .collect(),
                laplacians: spectral
                    .laplacian
                    .iter()
                    .map(|laplacian| match laplacian {
                        args::Laplacian::Combinatorial => Laplacian::Combinatorial,
                        args::Laplacian::SymmetricNormalized => Laplacian::SymmetricNormalized,
                        args::Laplacian::RandomWalk => Laplacian::RandomWalk,
                    })
                    .collect(),
                exactness: match spectral.exact {
                    None => Exactness::Iterative,
                    Some(args::Precision::F32) => Exactness::DenseF32,
                    Some(args::Precision::F64) => Exactness::DenseF64,
                },
                hidden_score: spectral.hidden_score,
                layers: spectral.run.layers.clone(),
                heads: spectral.heads.clone(),
                graph: match spectral.graph {
                    args::Graph::Auto => GraphChoice::Auto,
                    args::Graph::Stored => GraphChoice::Stored,
                    args::Graph::Recomputed => GraphChoice::Recomputed,
                },
                prefixes: match (spectral.prefix_step, spectral.prefixes.as_slice()) {
                    (Some(step), _) => Prefixes::Every(step.get()),
                    (None, []) => Prefixes::None,
                    (None, lengths) => Prefixes::Lengths(lengths.iter().map(|t| t.get()).collect()),
                },
                keep: keep(spectral),
            };
            let labels = spectral.verdicts.labels.as_ref().map(|field| LabelOptions {
                field: field.clone(),
                groups: spectral.verdicts.groups.clone(),
                positive: spectral.verdicts.positive.clone(),
            });
            run(shared, Job { spectral: Some(options), labels, ..job(shared, &spectral.run)? })
        }
        Command::Routing(routing) => run(
            shared,
            Job { routing: Some(routing.run.layers.clone()), ..job(shared, &routing.run)? },
        ),
        Command::Show(show) => {
            if let Some(functional) = show.functional {
                return emit(shared, &functional_of(show, functional)?);
            }
            let item =
                Item { name: show.item.clone(), prompt: show.prompt.clone(), limit: show.rows };
            emit(shared, &engine::show(&show.run, &item)?)
        }
        Command::Models(models) => look_at(shared, models),
        Command::Doctor => emit(shared, &engine::doctor()),
    }
}

fn keep(args: &SpectralArgs) -> Keep {
    let part = |part: &args::Kept| match part {
        args::Kept::Eigenvalues => Part::Eigenvalues,
        args::Kept::FiedlerVectors => Part::FiedlerVector,
    };
    let probing = |probed| {
        let default = QuadratureOptions::default();
        Probing {
            graphs: match probed {
                args::Probed::Mean => Graphs::HeadMean,
                args::Probed::Heads => Graphs::HeadsAndMean,
            },
            options: QuadratureOptions {
                n_probes: args.probes.unwrap_or(default.n_probes),
                steps: args.probe_steps.unwrap_or(default.steps),
                ..default
            },
        }
    };
    Keep { parts: args.keep.iter().map(part).collect(), quadrature: args.quadrature.map(probing) }
}

fn functional_of(args: &ShowArgs, name: args::Functional) -> anyhow::Result<FunctionalValues> {
    let kind = match name {
        args::Functional::Density => FunctionalKind::Density,
        args::Functional::EigenvalueEntropy => FunctionalKind::EigenvalueEntropy,
        args::Functional::PartitionFunction => FunctionalKind::PartitionFunction,
        args::Functional::FreeEnergy => FunctionalKind::FreeEnergy,
        args::Functional::HeatCapacity => FunctionalKind::HeatCapacity,
        args::Functional::FormFactor => FunctionalKind::FormFactor,
    };
    let &ShowArgs { beta, tau, width, grid, .. } = args;
    let of = Of { prompt: args.prompt.clone(), heads: args.heads.clone() };
    Ok(engine::functional(&args.run, kind, &Arguments { beta, tau, width, grid }, &of)?)
}

/// Lists families, explains a model or checks it.
fn look_at(shared: &Shared, models: &ModelsArgs) -> anyhow::Result<()> {
    let Some(model) = &models.model else {
        return emit(shared, &engine::families());
    };
    if models.check {
        let options = check_options(shared, model, &models.over)?;
        return emit(shared, &engine::check(&options, &mut Meter::new(shared.quiet))?);
    }
    let explained = engine::explain(model, models.context, &mut Meter::new(shared.quiet))?;
    emit(shared, &explained)?;
    // What was found is shown; that it cannot be loaded is the outcome.
    explained.refusal.map_or(Ok(()), |error| Err(error.into()))
}

fn check_options(shared: &Shared, model: &str, args: &CheckArgs) -> anyhow::Result<CheckOptions> {
    let prompts = match (&args.prompts, &args.token_ids) {
        (None, None) if args.prompt.is_empty() => None,
        _ => Some(prompt_source(&args.prompt, args.prompts.as_deref(), args.token_ids.as_deref())),
    };
    Ok(CheckOptions {
        model: model_choice(shared, model, &args.device, args.dtype)?,
        reference: args.reference.clone(),
        prompts,
        tokenization: Tokenization {
            special: special(args.no_bos),
            max_tokens: args.max_tokens,
            ..Tokenization::default()
        },
    })
}

fn prompt_source(texts: &[String], file: Option<&Path>, token_ids: Option<&Path>) -> PromptSource {
    match (file, token_ids) {
        (Some(file), _) if file.as_os_str() == "-" => PromptSource::Stdin,
        (Some(file), _) => PromptSource::File(file.to_owned()),
        (None, Some(file)) => PromptSource::TokenIds(file.to_owned()),
        (None, None) => PromptSource::Texts(texts.to_owned()),
    }
}

fn special(no_bos: bool) -> Special {
    if no_bos { Special::Omit } else { Special::Add }
}

/// A run with labels, judged.
#[derive(Serialize)]
struct Judgement {
    #[serde(flatten)]
    outcome: engine::Outcome,
    verdicts: engine::Verdicts,
}

impl Print for Judgement {
    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        self.verdicts.print(out)?;
        writeln!(out)?;
        self.outcome.print(out)
    }
}

fn run(shared: &Shared, job: Job) -> anyhow::Result<()> {
    let outcome = engine::run(&job, &mut Meter::new(shared.quiet))?;
    let Some(labels) = &job.labels else {
        return emit(shared, &engine::Report::of(outcome)?);
    };
    let verdicts = engine::judge(&job.out, labels.positive.as_deref())?;
    emit(shared, &Judgement { outcome, verdicts })
}

/// A model on the device that was asked for. Who left that open is told once if it is the CPU and a
/// GPU could be expected: a driver that fails in so many words also where progress is not shown.
fn model_choice(
    shared: &Shared,
    model: &str,
    device: &DeviceChoice,
    dtype: args::Dtype,
) -> anyhow::Result<ModelChoice> {
    let device = device.open()?;
    if let Some(note) = device.note()
        && !(shared.quiet && matches!(device.reason, Reason::NoCuda { .. }))
    {
        let _ = writeln!(std::io::stderr(), "{note}");
    }
    let dtype = match dtype {
        args::Dtype::Auto => WeightDtype::AsStored,
        args::Dtype::F32 => WeightDtype::F32,
        args::Dtype::Bf16 => WeightDtype::Bf16,
        args::Dtype::F16 => WeightDtype::F16,
    };
    Ok(ModelChoice { model: model.to_owned(), device, dtype })
}

/// A job that measures nothing yet.
fn job(shared: &Shared, args: &RunArgs) -> anyhow::Result<Job> {
    let prompts = &args.prompts;
    let source =
        prompt_source(&prompts.prompt, prompts.prompts.as_deref(), prompts.token_ids.as_deref());
    Ok(Job {
        model: model_choice(shared, &args.model.model, &args.model.device, args.model.dtype)?,
        prompts: source,
        tokenization: Tokenization {
            special: special(args.no_bos),
            written: match args.special {
                args::Special::Parse => Written::Parse,
                args::Special::Plain => Written::Plain,
            },
            form: if args.chat { Form::Chat { date: args.date } } else { Form::AsGiven },
            max_tokens: args.max_tokens,
        },
        capture: None,
        spectral: None,
        routing: None,
        labels: None,
        out: args.out.clone(),
        command: words(),
    })
}

/// The command line; a path in it need not be Unicode.
fn words() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Prints a result as text or as JSON.
fn emit<T: Serialize + Print>(shared: &Shared, result: &T) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if shared.json {
        writeln!(out, "{}", serde_json::to_string_pretty(result)?)?;
    } else {
        result.print(&mut out)?;
    }
    Ok(out.flush()?)
}
