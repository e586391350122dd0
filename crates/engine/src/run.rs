//! A run: every prompt goes through the model once, and what it leaves is committed before anything of
//! the next one is. On a GPU the next one is being computed meanwhile.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use analysis::spectral::Storage;
use hooks::{Activation, ActivationSink, Batch, Edits, Fanout, HookPoint, ModelInfo, Plan, Row};
use runner::{
    Fingerprint, Flow, KvCache, LoadOptions, Model, Placement, Resolved, Source, Tokenizer,
};
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
use crate::tokens::{Input, Inputs, Lengths};
use crate::{Error, Fault, Progress, Result, human};

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
    sinks.plan(&info)?;
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
    let behind = done?;
    // With labels, predictions are made behind each prompt, by the gpu.
    if matches!(job.model.device.placement, Placement::Devices(_)) && job.labels.is_none() {
        let note = waited(behind, begun.elapsed(), &job.out);
        note.iter().for_each(|note| progress.note(note));
    }
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

/// Sends prompts through the model one by one and commits what each leaves. Returns how long it took
/// to make of activations what is committed.
fn each_prompt(
    model: &Model,
    sinks: &mut Fanout<Box<dyn Recorder>>,
    inputs: &Inputs,
    run: &mut Run,
    slots: &Slots<'_>,
    indices: &[u64],
    progress: &mut dyn Progress,
) -> Result<Duration> {
    let session = model.session(sinks)?;
    let mut flow = session.flow();
    let (entered, spent) = (VecDeque::new(), Duration::ZERO);
    let mut commits = Commits { model, sinks, run, slots, progress, entered, spent };
    let mut all = || {
        for &index in indices {
            commits.enter(&mut flow, index, inputs.get(index as usize)?)?;
            flow.hand_over(1, &mut commits)?;
        }
        Ok(flow.hand_over(0, &mut commits)?)
    };
    let done: Result<()> = all();
    if done.as_ref().is_err_and(|error| error.fault() == Fault::Device) {
        // What came before is whole, unless the device was lost with it.
        let _ = flow.hand_over(0, &mut commits);
    }
    // A writer that is dropped leaves nothing behind.
    slots.writer.borrow_mut().take();
    done.map(|()| commits.spent)
}

/// What to say of a run in which a GPU waited for what is behind it.
fn waited(behind: Duration, all: Duration, out: &Path) -> Option<String> {
    /// A shorter run is nobody's concern.
    const LONG: Duration = Duration::from_secs(5);
    let share = behind.as_secs_f64() / all.as_secs_f64();
    (all >= LONG && share > 0.75).then(|| {
        format!(
            "not the gpu limited this run: {:.0} % of its time went into measuring activations and \
             writing them to {}",
            100.0 * share,
            out.display()
        )
    })
}

/// The sinks of a run, and what is done before and behind each prompt.
struct Commits<'a> {
    model: &'a Model,
    sinks: &'a mut Fanout<Box<dyn Recorder>>,
    run: &'a mut Run,
    slots: &'a Slots<'a>,
    progress: &'a mut dyn Progress,
    /// Prompts that went into the model and are not committed.
    entered: VecDeque<Input>,
    /// Time that went into activations that had come.
    spent: Duration,
}

impl Commits<'_> {
    fn timed<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        let begun = Instant::now();
        let done = work(self);
        self.spent += begun.elapsed();
        done
    }

    /// Sends a prompt into the model.
    fn enter(&mut self, flow: &mut Flow<'_>, index: u64, input: Input) -> Result<()> {
        let row = Row { request: index, tokens: input.tokens.clone(), offset: 0 };
        let batch = Batch::new(vec![row])?.with_boundaries(vec![input.n_context]);
        self.entered.push_back(input);
        let layers = 0..self.model.info().n_layers();
        let (mut cache, edits) = (KvCache::off(), Edits::default());
        Ok(flow.forward(&batch, runner::Input::Tokens, layers, &mut cache, &edits, self)?)
    }

    fn open(&mut self, batch: &Batch) -> Result<()> {
        if let (Some(input), Some(row)) = (self.entered.front(), batch.rows().first()) {
            let mut prompt = self.run.prompt(row.request)?;
            prompts::write(input, &mut prompt)?;
            *self.slots.writer.borrow_mut() = Some(prompt);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let prompt = self.slots.writer.borrow_mut().take();
        if let (Some(input), Some(mut prompt)) = (self.entered.pop_front(), prompt) {
            for sink in self.sinks.sinks_mut() {
                sink.end_prompt(&mut prompt)?;
            }
            if let Some((labels, residual)) = self.slots.labels {
                labels.write(self.model, residual, &input.tokens, &mut prompt)?;
            }
            self.run.commit(prompt)?;
            self.progress.advance(input.tokens.len() as u64, &input.id);
        }
        Ok(())
    }
}

impl ActivationSink for Commits<'_> {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        self.sinks.plan(info)
    }

    fn begin(&mut self, batch: &Batch) -> hooks::Result<()> {
        self.timed(|commits| {
            commits.open(batch).map_err(hooks::Error::sink)?;
            commits.sinks.begin(batch)
        })
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        self.timed(|commits| commits.sinks.record(point, activation))
    }

    fn end_layer(&mut self, layer: usize) -> hooks::Result<()> {
        self.timed(|commits| commits.sinks.end_layer(layer))
    }

    fn end_batch(&mut self) -> hooks::Result<()> {
        self.timed(|commits| {
            commits.sinks.end_batch()?;
            commits.commit().map_err(hooks::Error::sink)
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_waits_is_named() {
        let of = |behind, all| {
            waited(Duration::from_secs(behind), Duration::from_secs(all), Path::new("runs/a"))
        };
        let note = of(93, 100).unwrap();
        assert!(note.contains("93 %") && note.contains("runs/a"), "{note}");
        assert_eq!((of(20, 100), of(4, 4), of(0, 0)), (None, None, None));
    }
}
