//! A run: every prompt goes through the model once, and what it leaves is
//! committed before the next begins.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use analysis::spectral::Storage;
use hooks::{Batch, Edits, Fanout, ModelInfo, Row};
use runner::{Fingerprint, KvCache, LoadOptions, Model, Resolved, Source, Tokenizer};
use serde::{Serialize, Serializer};
use serde_json::Value;
use store::{Options, Run, Start, TableSchema};

use crate::job::Job;
use crate::labels::{self, LabelOptions, Labels, ResidualSlot};
use crate::prompts::{Content, Prompt};
use crate::recorders::Recorder;
use crate::recorders::capture::{self, WriterSlot};
use crate::recorders::spectral::{GraphChoice, SpectralOptions};
use crate::tables::prompts;
use crate::tokens::{Inputs, Lengths};
use crate::{Error, Progress, Result, human};

/// What a run did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The run folder; in JSON what is not Unicode in it is replaced.
    #[serde(serialize_with = "as_text")]
    pub run: PathBuf,
    /// The model as it was named.
    pub model: String,
    /// Its family.
    pub family: String,
    /// Prompts of the run.
    pub prompts: u64,
    /// Prompts that an earlier start had finished.
    pub resumed_prompts: u64,
    /// Prompts that were cut to the limit of tokens.
    pub cut_prompts: u64,
    /// Tokens of all prompts.
    pub tokens: u64,
    /// Tokens that went through the model in this start.
    pub tokens_run: u64,
    /// Seconds from the first prompt of this start to the finished tables.
    pub seconds: f64,
    /// Rows of each table.
    pub tables: std::collections::BTreeMap<String, u64>,
    /// Tensors.
    pub tensors: u64,
    /// Bytes of tables and tensors.
    pub bytes: u64,
}

fn as_text<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    path.to_string_lossy().serialize(serializer)
}

/// Carries out a job, or what is left of it.
///
/// Everything that can be wrong with the request, the prompts, the model's files
/// and the run folder is found before anything is written. After that, a prompt
/// is in the run folder whole or not at all; an error or a kill loses the prompt
/// that was going through the model, and the same call goes on from there.
///
/// # Errors
///
/// See [`Error`]; [`Error::fault`] tells whose fault it is.
pub fn run(job: &Job, progress: &mut dyn Progress) -> Result<Outcome> {
    if job.out.exists() && !job.out.is_dir() {
        return Err(Error::OutIsFile { out: job.out.clone() });
    }
    let names = job.labels.as_ref().map(LabelOptions::names).unwrap_or_default();
    let prompts = crate::prompts::read_with(&job.prompts, &names)?;
    let labels = job.labels.as_ref().map(|options| Labels::new(options, &prompts)).transpose()?;
    let prompts: Vec<Prompt> = prompts.into_iter().map(|(prompt, _)| prompt).collect();
    let resolved = crate::models::resolve(&job.model.model, progress)?;
    let source = &resolved.source;
    let info = runner::read_config(source)?.info();
    let tokenizer = load_tokenizer(source, &prompts)?;
    let chat = job.tokenization.chat(source)?;
    let inputs = Inputs::new(prompts, tokenizer, chat, job.tokenization, &info)?;
    let lengths = inputs.lengths()?;
    if labels.is_some() {
        labels::check_lengths(inputs.prompts(), &lengths.tokens)?;
    }
    if lengths.n_cut > 0 {
        let limit = job.tokenization.max_tokens.unwrap_or_default();
        progress.note(&format!(
            "{} of {} prompts are longer than {limit} tokens and are cut",
            lengths.n_cut,
            inputs.prompts().len()
        ));
    }

    let writer: WriterSlot = Rc::new(RefCell::new(None));
    let residual: ResidualSlot = Rc::new(RefCell::new(None));
    let longest = lengths.tokens.iter().copied().max().unwrap_or(0) as usize;
    if let Some(options) = &job.spectral {
        check_prefixes(options, &inputs, &lengths, &info)?;
        announce_graphs(options, &info, longest, progress);
    }
    let mut sinks = Fanout::new(job.recorders(&writer, &residual, &info, longest));
    // A plan that this model cannot follow is refused before its weights are read.
    hooks::ActivationSink::plan(&mut sinks, &info)?;
    announce_size(job, &info, &lengths, progress)?;
    let model = load(source, &job.model.load_options())?;

    let described = labels.as_ref().map(Labels::describe);
    let mut run = open_run(job, &resolved, &inputs, &lengths, described, &mut sinks)?;
    let finished = run.finished();
    let tokens_of = |index: &u64| u64::from(lengths.tokens[*index as usize]);
    let unfinished = run.unfinished();
    let tokens: u64 = lengths.tokens.iter().map(|n| u64::from(*n)).sum();
    let left: u64 = unfinished.iter().map(tokens_of).sum();
    match run.start() {
        Start::Resumed { .. } if finished > 0 => progress.note(&format!(
            "{} holds {finished} of {} prompts; going on",
            job.out.display(),
            run.prompts()
        )),
        Start::Complete(_) => progress
            .note(&format!("{} is finished already; nothing is left to do", job.out.display())),
        _ => {}
    }

    let begun = Instant::now();
    if !unfinished.is_empty() {
        progress.begin(tokens, tokens - left);
    }
    let labels = labels.as_ref().map(|labels| (labels, &residual));
    let slots = Slots { writer: &writer, labels };
    let done = each_prompt(&model, &mut sinks, &inputs, &mut run, &slots, &unfinished, progress);
    progress.end();
    done?;
    let summary = run.finish()?;
    Ok(Outcome {
        run: job.out.clone(),
        model: job.model.model.clone(),
        family: info.family.clone(),
        prompts: summary.prompts,
        resumed_prompts: finished,
        cut_prompts: lengths.n_cut as u64,
        tokens,
        tokens_run: left,
        seconds: begun.elapsed().as_secs_f64(),
        tables: summary.tables,
        tensors: summary.tensors,
        bytes: summary.bytes,
    })
}

/// What the loop over prompts shares with its sinks.
struct Slots<'a> {
    writer: &'a WriterSlot,
    labels: Option<(&'a Labels, &'a ResidualSlot)>,
}

/// Sends prompts through the model one by one and commits what each leaves.
fn each_prompt(
    model: &Model,
    sinks: &mut Fanout<Box<dyn Recorder>>,
    inputs: &Inputs,
    run: &mut Run,
    slots: &Slots<'_>,
    indices: &[u64],
    progress: &mut dyn Progress,
) -> Result<()> {
    let session = model.session(sinks)?;
    let (layers, edits) = (0..model.info().n_layers(), Edits::default());
    for &index in indices {
        let input = inputs.get(index as usize)?;
        let tokens = input.tokens.len() as u64;
        let mut prompt = run.prompt(index)?;
        prompts::write(&input, &mut prompt)?;
        *slots.writer.borrow_mut() = Some(prompt);
        let kept = slots.labels.map(|_| input.tokens.clone()).unwrap_or_default();
        let row = Row { request: index, tokens: input.tokens, offset: 0 };
        let batch = Batch::new(vec![row])?.with_boundaries(vec![input.n_context]);
        let forward = session.forward(
            &batch,
            runner::Input::Tokens,
            layers.clone(),
            &mut KvCache::off(),
            &edits,
            sinks,
        );
        // Taken back before the error is looked at: a writer that is dropped
        // leaves nothing behind.
        let prompt = slots.writer.borrow_mut().take();
        forward?;
        if let Some(mut prompt) = prompt {
            for sink in sinks.sinks_mut() {
                sink.end_prompt(&mut prompt)?;
            }
            if let Some((labels, residual)) = slots.labels {
                labels.write(model, residual, &kept, &mut prompt)?;
            }
            run.commit(prompt)?;
        }
        progress.advance(tokens, &input.id);
    }
    Ok(())
}

/// A model with its weights.
pub(crate) fn load(source: &Source, options: &LoadOptions) -> Result<Model> {
    Model::load(source, options).map_err(|error| Error::from(error).of_weights())
}

/// The model's tokenizer; `None` where there is none, or where it cannot be used
/// and all prompts are token ids, which need none.
pub(crate) fn load_tokenizer(source: &Source, prompts: &[Prompt]) -> Result<Option<Tokenizer>> {
    match Tokenizer::load(source) {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(runner::Error::FileMissing { .. }) => Ok(None),
        Err(_) if prompts.iter().all(|p| matches!(p.content, Content::Tokens(_))) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Refuses prefixes that are not the beginning of a longer prompt.
fn check_prefixes(
    options: &SpectralOptions,
    inputs: &Inputs,
    lengths: &Lengths,
    info: &ModelInfo,
) -> Result<()> {
    for (prompt, &tokens) in inputs.prompts().iter().zip(&lengths.tokens) {
        let tokens = tokens as usize;
        let prefix = options.prefixes.beyond(tokens, info.frequency_switch);
        if let (Some(prefix), Some(switch)) = (prefix, info.frequency_switch) {
            return Err(Error::PrefixSwitch { id: prompt.id.clone(), tokens, prefix, switch });
        }
    }
    Ok(())
}

/// Says that graphs are too large to be stored, where that was for the engine to choose.
fn announce_graphs(
    options: &SpectralOptions,
    info: &ModelInfo,
    longest: usize,
    progress: &mut dyn Progress,
) {
    let chosen = options.storage(info, longest) == Storage::Recomputed;
    if chosen && options.graph == GraphChoice::Auto {
        let bytes = human::bytes(options.stored_bytes(info, longest));
        progress.note(&format!(
            "graphs of {longest} tokens would take {bytes} a layer: they are made anew at every \
             product, that of the mean over heads unless --heads names some (see --graph)"
        ));
    }
}

/// Says how many bytes a run will write beside its rows of diagnostics, before it starts.
fn announce_size(
    job: &Job,
    info: &ModelInfo,
    lengths: &Lengths,
    progress: &mut dyn Progress,
) -> Result<()> {
    if let Some(options) = &job.spectral
        && let Some((kept, bytes)) = options.kept(info, &lengths.tokens)?
    {
        progress.note(&format!("keeping {kept}: at most {} of tables", human::bytes(bytes)));
    }
    let Some(options) = &job.capture else {
        return Ok(());
    };
    let plan = capture::plan(options, info)?;
    let has_positions = |n: &&u32| !options.positions.resolve(0, **n as usize).is_empty();
    let having = lengths.tokens.iter().filter(has_positions).count();
    if having == 0 {
        let longest = lengths.tokens.iter().copied().max().unwrap_or(0);
        return Err(Error::NoPositions { positions: options.positions.clone(), longest });
    }
    if having < lengths.tokens.len() {
        progress.note(&format!(
            "{} prompts are too short for the positions {}: their tensors are empty",
            lengths.tokens.len() - having,
            options.positions
        ));
    }
    let bytes = lengths
        .tokens
        .iter()
        .map(|n| capture::estimate(&plan, info, options.stored, *n as usize))
        .fold(0, u64::saturating_add);
    progress.note(&format!(
        "capturing {} of {}: {} of tensors",
        human::count(plan.iter().count() as u64, "hook point"),
        human::count(lengths.tokens.len() as u64, "prompt"),
        human::bytes(bytes)
    ));
    Ok(())
}

fn open_run(
    job: &Job,
    model: &Resolved,
    inputs: &Inputs,
    lengths: &Lengths,
    labels: Option<Value>,
    sinks: &mut Fanout<Box<dyn Recorder>>,
) -> Result<Run> {
    let mut tables: Vec<TableSchema> = vec![prompts::PROMPTS, prompts::TOKENS];
    tables.extend(sinks.sinks_mut().flat_map(|sink| sink.tables()));
    let description = store::Job {
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        description: job.describe(
            &Fingerprint::of(&model.source)?,
            model.origin.as_ref(),
            &lengths.inputs_sha256,
            labels,
        ),
        command: job.command.clone(),
        device: job.model.device.describe(),
    };
    let ids: Vec<String> = inputs.prompts().iter().map(|prompt| prompt.id.clone()).collect();
    Run::create_or_resume(&job.out, &description, &tables, &ids, Options::default())
        .map_err(Error::from)
}
