//! What can end a command, and whose fault it is.

use std::path::PathBuf;

use crate::human::{brief, first};

pub use runner::Fault;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command could not be carried out, or not to its end.
///
/// Whatever the error, prompts that were finished before it are kept: the same
/// command on the same run folder goes on after them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file of prompts of an unknown kind.
    #[error("{} is not a kind of prompt file that is read; expected .txt, .jsonl or .parquet", path.display())]
    PromptFormat {
        /// The file.
        path: PathBuf,
    },
    /// A file of prompts too large to be read.
    #[error("{} has {bytes} bytes, more than the {limit} that are read; split it", path.display())]
    PromptFileSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The largest size in bytes.
        limit: u64,
    },
    /// Prompts that are not UTF-8.
    #[error("{} is not UTF-8: byte {offset} begins no character; convert it first", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first wrong byte.
        offset: usize,
    },
    /// A line that is not a prompt.
    #[error(
        "{}, line {line}: {}; expected an object such as {{\"text\": \"…\", \"id\": \"…\"}}, the id optional, or one with `messages`",
        path.display(),
        brief(source)
    )]
    PromptLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line longer than any prompt.
    #[error("{}, line {line} has {bytes} bytes, more than the {limit} that are taken", path.display())]
    LineBytes {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Its size in bytes.
        bytes: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// A line with neither or both of what a prompt can be.
    #[error(
        "{}, line {line}: {found}; expected either `text` or `messages`, such as {{\"messages\": [{{\"role\": \"user\", \"content\": \"…\"}}]}}",
        path.display()
    )]
    PromptFields {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the line has.
        found: &'static str,
    },
    /// A message that holds something other than text.
    #[error(
        "{}, line {line}, message {message}: {found} is not taken; expected `role` and `content`, both text",
        path.display()
    )]
    Message {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The message, from 1.
        message: usize,
        /// What it holds.
        found: String,
    },
    /// A conversation, without a template to write it with.
    #[error(
        "prompt `{id}` is a conversation; add --chat to write it as the model's chat template does"
    )]
    Conversation {
        /// Its id.
        id: String,
    },
    /// Token ids cannot go through a chat template.
    #[error("prompt `{id}` is a list of token ids, which no chat template takes; leave out --chat")]
    ChatTokens {
        /// Its id.
        id: String,
    },
    /// A chat template's special tokens would be plain text.
    #[error(
        "--special plain would make plain text of the chat template's own marks; leave out one of the two"
    )]
    PlainChat,
    /// A chat template does not take a conversation.
    #[error("prompt `{id}`: the model's chat template refuses the conversation: {message}")]
    ChatRefused {
        /// The prompt.
        id: String,
        /// The template's own words.
        message: String,
    },
    /// A chat template prints the date, and none is given.
    #[error("{}: the chat template prints the date; say which, such as --date 2026-11-23", path.display())]
    ChatDate {
        /// The file with the template.
        path: PathBuf,
    },
    /// A file of token ids that is not one.
    #[error(
        "{}: {}; expected a JSON list of token ids, or a list of such lists",
        path.display(),
        brief(source)
    )]
    TokenIds {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A Parquet file that cannot be read.
    #[error("{} cannot be read as Parquet: {}", path.display(), brief(source))]
    PromptParquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: parquet::errors::ParquetError,
    },
    /// A Parquet file without prompts.
    #[error(
        "{} needs a column `text` of strings without nulls, and may have columns `response` of strings and `id` of strings or integers; it has {}",
        path.display(),
        first(found)
    )]
    PromptColumn {
        /// The file.
        path: PathBuf,
        /// Its columns.
        found: Vec<String>,
    },
    /// No prompt at all.
    #[error("there are no prompts; give at least one")]
    NoPrompts,
    /// A prefix that is not the beginning of a prompt.
    #[error(
        "prompt `{id}` has {tokens} tokens, and this model's rotary frequencies change above {switch}: its beginning is not that of a prompt of {prefix}; choose prefixes above {switch}, or --max-tokens {switch}"
    )]
    PrefixSwitch {
        /// The prompt's id.
        id: String,
        /// Its tokens.
        tokens: usize,
        /// Tokens of the prefix.
        prefix: usize,
        /// The most tokens with the usual frequencies.
        switch: usize,
    },
    /// More prompts than a run takes.
    #[error("there are more than {limit} prompts; split them over several runs")]
    TooManyPrompts {
        /// The largest number.
        limit: usize,
    },
    /// A prompt without content.
    #[error("prompt `{id}` is empty; remove it or give it a text")]
    EmptyPrompt {
        /// Its id.
        id: String,
    },
    /// An id too long to name rows and tensors by.
    #[error("a prompt's id has {bytes} bytes, more than the {limit} that are taken; shorten it")]
    PromptId {
        /// Its size in bytes.
        bytes: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// An id that stands twice.
    #[error("two prompts have the id `{id}`; ids must differ")]
    DuplicatePrompt {
        /// The id.
        id: String,
    },
    /// A prompt's text is too large.
    #[error("prompt `{id}` has {bytes} bytes of text, more than the {limit} that are taken")]
    PromptBytes {
        /// Its id.
        id: String,
        /// Its size in bytes.
        bytes: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// A prompt longer than the model's context.
    #[error(
        "prompt `{id}` has {tokens} tokens, the model's context is {n_ctx}; shorten it, or cut prompts with --max-tokens {n_ctx}"
    )]
    PromptTokens {
        /// Its id.
        id: String,
        /// Its tokens.
        tokens: usize,
        /// The model's context, in tokens.
        n_ctx: usize,
    },
    /// A token that the model does not have.
    #[error(
        "prompt `{id}`, position {position}: token id {token} is not below the vocabulary size {d_vocab}"
    )]
    TokenId {
        /// The prompt.
        id: String,
        /// Position in the prompt.
        position: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        d_vocab: usize,
    },
    /// Two models that cannot be compared token by token.
    #[error(
        "{model} has a vocabulary of {d_vocab} tokens and {reference} one of {reference_d_vocab}; compare models of one vocabulary"
    )]
    Vocabularies {
        /// The model.
        model: String,
        /// Its vocabulary's size.
        d_vocab: usize,
        /// What it is compared with.
        reference: String,
        /// That one's size.
        reference_d_vocab: usize,
    },
    /// Texts in which no token follows another.
    #[error(
        "no text has two tokens, and a prediction needs one to follow another; give a longer text"
    )]
    ShortText,
    /// A context that the model does not have.
    #[error("--context {context} is not within the model's context of 1 to {n_ctx} tokens")]
    Context {
        /// The context asked for, in tokens.
        context: usize,
        /// The model's, in tokens.
        n_ctx: usize,
    },
    /// A limit of zero tokens.
    #[error("--max-tokens must be at least 1")]
    MaxTokens,
    /// Text, but no tokenizer.
    #[error(
        "the model has no tokenizer; add its tokenizer.json, or give token ids with --token-ids"
    )]
    NoTokenizer,
    /// A captured value is NaN or infinite.
    #[error(
        "prompt `{prompt}`: `{point}` holds {value}; the model's arithmetic overflowed or its weights are damaged"
    )]
    NotFinite {
        /// The prompt.
        prompt: String,
        /// The hook point.
        point: hooks::HookPoint,
        /// The value.
        value: f32,
    },
    /// There is no run folder.
    #[error("there is no run folder {}; give the folder that a run was told to write to", run.display())]
    NoRun {
        /// The path.
        run: PathBuf,
    },
    /// The run folder's path is taken by a file.
    #[error("{} is a file; give a new or empty folder", out.display())]
    OutIsFile {
        /// The path.
        out: PathBuf,
    },
    /// No prompt has any of the positions that are to be captured.
    #[error("no prompt has any of the positions {positions}; the longest has {longest} tokens")]
    NoPositions {
        /// The positions asked for.
        positions: hooks::Positions,
        /// Tokens of the longest prompt.
        longest: u32,
    },
    /// A run folder lacks what was asked of it.
    #[error("{} has no {what} `{name}`; it has {}", run.display(), known.join(", "))]
    NotInRun {
        /// The run folder.
        run: PathBuf,
        /// "table", "tensor" or "prompt".
        what: &'static str,
        /// What was asked for.
        name: String,
        /// Some of what there is.
        known: Vec<String>,
    },
    /// A table of a run folder was written by another program.
    #[error("{}: table `{table}` has no column `{column}` of the expected type", run.display())]
    TableColumn {
        /// The run folder.
        run: PathBuf,
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
    /// A run folder keeps no quadratures.
    #[error(
        "{} keeps no quadratures, from which functionals of the spectra come; make a run with `eigenlens spectral --quadrature`",
        run.display()
    )]
    NoQuadrature {
        /// The run folder.
        run: PathBuf,
    },
    /// Probes of a graph that are not its probes.
    #[error(
        "{}: table `quadrature`, prompt `{prompt}`, layer {layer}: the probes of a graph are not numbered from 0, or disagree on what they share; the table is damaged",
        run.display()
    )]
    Probes {
        /// The run folder.
        run: PathBuf,
        /// The prompt.
        prompt: String,
        /// The layer.
        layer: u32,
    },
    /// Kept coefficients that are those of no graph.
    #[error("{}: table `quadrature`, prompt `{prompt}`, layer {layer}: {source}", run.display())]
    Coefficients {
        /// The run folder.
        run: PathBuf,
        /// The prompt.
        prompt: String,
        /// The layer.
        layer: u32,
        /// What is wrong with them.
        source: Box<analysis::Error>,
    },
    /// A functional without a value for any graph.
    #[error("no graph has a value of {functional}: {reason}")]
    NoFunctional {
        /// The functional.
        functional: &'static str,
        /// Why not, for the first of them.
        reason: String,
    },
    /// A number that no functional takes.
    #[error("--{option} {value} is not taken; expected {expected}")]
    FunctionalNumber {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What would have been taken.
        expected: &'static str,
    },
    /// An option that a functional does not take.
    #[error("--{option} means nothing to {functional}; leave it out")]
    FunctionalOption {
        /// The functional.
        functional: &'static str,
        /// The option.
        option: &'static str,
    },
    /// Points that are no grid.
    #[error(
        "`{text}` is not a grid; expected FROM:TO:POINTS, such as 0:2:9, two finite numbers and 1 to {most} points"
    )]
    Grid {
        /// What was given.
        text: String,
        /// Most points.
        most: usize,
    },
    /// The number of threads could not be set.
    #[error("cannot use {threads} threads: {reason}")]
    Threads {
        /// The number asked for.
        threads: usize,
        /// Why not.
        reason: String,
    },
    /// A prompt without a field that was asked for.
    #[error(
        "prompt `{id}` has no `{field}`; labels and groups are fields of .jsonl lines or columns of .parquet files, one for every prompt"
    )]
    LabelMissing {
        /// The prompt.
        id: String,
        /// The field.
        field: String,
    },
    /// A field that is not one value.
    #[error(
        "prompt `{id}`: `{field}` is a list or an object; expected a text, a number or a truth value"
    )]
    LabelKind {
        /// The prompt.
        id: String,
        /// The field.
        field: String,
    },
    /// Other than two labels.
    #[error(
        "prompt `{id}` has the {field} `{value}`, beside {}; verdicts are about two labels",
        quoted(known)
    )]
    LabelThird {
        /// The first prompt with a third label.
        id: String,
        /// The field.
        field: String,
        /// Its label.
        value: String,
        /// The two labels before it.
        known: Box<[String; 2]>,
    },
    /// One label.
    #[error("every prompt has the {field} `{value}`; verdicts are about two labels")]
    LabelSingle {
        /// The field.
        field: String,
        /// The label.
        value: String,
    },
    /// A label that was to count as positive and is none.
    #[error("no prompt has the {field} `{positive}`; it is one of {}", quoted(known))]
    LabelPositive {
        /// The field.
        field: String,
        /// What was asked for.
        positive: String,
        /// The labels.
        known: [String; 2],
    },
    /// A labelled text in which no token is predicted.
    #[error(
        "prompt `{id}` has one token, and so no log-probability to hold a verdict against; remove it"
    )]
    LabelledShort {
        /// The prompt.
        id: String,
    },
    /// Texts that cannot be judged.
    #[error(transparent)]
    Unfit(analysis::verdict::Unfit),
    /// Verdicts or thresholds that cannot be read.
    #[error("{} holds no verdicts: {}; give a run folder of `spectral --labels`, or its verdicts.json", path.display(), brief(source))]
    VerdictFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Verdicts in a later version's form.
    #[error("{} has form {found}, this version reads form {supported}; judge the run again", path.display())]
    VerdictVersion {
        /// The file.
        path: PathBuf,
        /// Its form.
        found: u64,
        /// The form that is read.
        supported: u64,
    },
    /// Verdicts without a threshold.
    #[error("{} holds no threshold: no metric had a value for every text", path.display())]
    NoThreshold {
        /// The file.
        path: PathBuf,
    },
    /// A threshold of a metric that is measured otherwise here.
    #[error("the threshold was set otherwise than texts are measured here: {}", differences.join("; "))]
    ThresholdDiffers {
        /// Each difference: what, there and here.
        differences: Vec<String>,
    },
    /// A text without the metric that a threshold is about.
    #[error("prompt `{id}` has no {metric}: {reason}")]
    Unscored {
        /// The prompt.
        id: String,
        /// The metric.
        metric: String,
        /// Why, as far as the table says.
        reason: String,
    },
    /// The prompts that come with the program cannot be read.
    #[error("the built-in derivations cannot be read: {0}")]
    BuiltInPrompts(serde_json::Error),
    /// A word that names no device.
    #[error("`{text}` is no device; expected auto, cpu, cuda, cuda:1, or several as cuda:0,cuda:1")]
    DeviceName {
        /// The word.
        text: String,
    },
    /// A GPU that is not there or cannot be used.
    #[error(transparent)]
    Gpu(Box<kernels::Error>),
    /// A GPU that failed while it was used.
    #[error("{0}; what was finished is kept, and the same command goes on after it")]
    GpuLost(Box<kernels::Error>),
    /// The memory of a GPU is too small for a model's weights.
    #[error(
        "{0}; the model's weights take less with --dtype bf16 where they are f32, or from a quantized GGUF file; several gpus share them with --device cuda:0,cuda:1; --device cpu takes none of it; `eigenlens models MODEL` estimates what is needed"
    )]
    GpuWeights(Box<kernels::Error>),
    /// The memory of a GPU filled while a model was run.
    #[error(
        "{0}; what was finished is kept, and the same command goes on after it, also on other or several gpus, as --device cuda:0,cuda:1; less is needed with --max-tokens, fewer --hook or --graph recomputed, which make another run"
    )]
    GpuMemory(Box<kernels::Error>),
    /// Naming, planning or handing over activations failed.
    #[error(transparent)]
    Hooks(hooks::Error),
    /// The model could not be found, read or run.
    #[error(transparent)]
    Runner(Box<runner::Error>),
    /// An analysis failed.
    #[error(transparent)]
    Analysis(Box<analysis::Error>),
    /// The run folder could not be read or written.
    #[error(transparent)]
    Store(Box<store::Error>),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(candle_core::Error),
}

fn quoted(values: &[String; 2]) -> String {
    let [a, b] = values.each_ref().map(|value| first(std::slice::from_ref(value)));
    format!("`{a}` and `{b}`")
}

impl From<analysis::verdict::Unfit> for Error {
    fn from(error: analysis::verdict::Unfit) -> Self {
        Self::Unfit(error)
    }
}

/// An error of a device: what else a numeric operation refuses reaches this crate as its caller's.
impl From<kernels::Error> for Error {
    fn from(error: kernels::Error) -> Self {
        match error {
            kernels::Error::OutOfMemory { .. } => Self::GpuMemory(Box::new(error)),
            kernels::Error::Lost { .. } => Self::GpuLost(Box::new(error)),
            error => Self::Gpu(Box::new(error)),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        kernels::Error::of_device("a tensor operation", error).map_or_else(Self::Tensor, Self::from)
    }
}

impl From<runner::Error> for Error {
    fn from(error: runner::Error) -> Self {
        match error {
            runner::Error::Kernel(error) if error.is_of_device() => error.into(),
            runner::Error::Hooks(error) => error.into(),
            runner::Error::ChatDate { path } => Self::ChatDate { path },
            error => Self::Runner(Box::new(error)),
        }
    }
}

impl From<analysis::Error> for Error {
    fn from(error: analysis::Error) -> Self {
        use analysis::Error as E;
        match error {
            E::Kernel { source, .. } if source.is_of_device() => source.into(),
            E::Tensor { point, request, source } => {
                match kernels::Error::of_device("reading a captured tensor", source) {
                    Ok(error) => error.into(),
                    Err(source) => Self::Analysis(Box::new(E::Tensor { point, request, source })),
                }
            }
            error => Self::Analysis(Box::new(error)),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(Box::new(error))
    }
}

impl From<hooks::Error> for Error {
    /// A sink's error travels through the forward pass in a box; here it comes
    /// out again as what it was.
    fn from(error: hooks::Error) -> Self {
        let inner = match error {
            hooks::Error::Sink(inner) => inner,
            hooks::Error::Tensor(error) => {
                return match kernels::Error::of_device("handing over activations", error) {
                    Ok(error) => error.into(),
                    Err(error) => Self::Hooks(hooks::Error::Tensor(error)),
                };
            }
            error => return Self::Hooks(error),
        };
        let inner = match inner.downcast::<Error>() {
            Ok(own) => return *own,
            Err(inner) => inner,
        };
        let inner = match inner.downcast::<analysis::Error>() {
            Ok(analysis) => return (*analysis).into(),
            Err(inner) => inner,
        };
        match inner.downcast::<store::Error>() {
            Ok(store) => Self::Store(store),
            Err(inner) => Self::Hooks(hooks::Error::Sink(inner)),
        }
    }
}

impl Error {
    /// The same, where it happened while a model's weights were loaded.
    pub(crate) fn of_weights(self) -> Self {
        match self {
            Self::GpuMemory(error) => Self::GpuWeights(error),
            error => error,
        }
    }

    /// Whose fault it is; the program's exit code follows from it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Runner(error) => error.fault(),
            Self::Gpu(_) | Self::GpuLost(_) | Self::GpuWeights(_) | Self::GpuMemory(_) => {
                Fault::Device
            }
            Self::NotFinite { .. }
            | Self::NoTokenizer
            | Self::Read { .. }
            | Self::NoRun { .. }
            | Self::Probes { .. }
            | Self::Coefficients { .. } => Fault::Model,
            Self::Hooks(hooks::Error::Sink(_) | hooks::Error::Tensor(_))
            | Self::Tensor(_)
            | Self::BuiltInPrompts(_) => Fault::Internal,
            Self::Analysis(error) => analysis_fault(error),
            Self::Store(error) => store_fault(error),
            _ => Fault::Request,
        }
    }
}

fn analysis_fault(error: &analysis::Error) -> Fault {
    use analysis::Error as E;
    match error {
        E::NoMixture { .. } | E::NoEigenvalues | E::Probing { .. } => Fault::Request,
        E::Captured { .. } | E::Logits { .. } | E::Coefficients { .. } => Fault::Model,
        _ => Fault::Internal,
    }
}

fn store_fault(error: &store::Error) -> Fault {
    use store::Error as E;
    match error {
        // Another folder, another name or another format would do.
        E::Locked { .. }
        | E::NotARun { .. }
        | E::Link { .. }
        | E::SchemaVersion { .. }
        | E::DifferentJob { .. }
        | E::Name { .. }
        | E::Range { .. }
        | E::Overflow { .. }
        | E::TooManyRows { .. }
        | E::UnknownTable { .. }
        | E::UnknownTensor { .. } => Fault::Request,
        // A file could not be had, or is damaged.
        E::Io { .. }
        | E::Manifest { .. }
        | E::Missing { .. }
        | E::Length { .. }
        | E::Checksum { .. }
        | E::Record { .. }
        | E::Oversized { .. }
        | E::Header { .. }
        | E::Message { .. }
        | E::Parquet { .. }
        | E::Halted { .. } => Fault::Model,
        _ => Fault::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_at_fault_by_whatever_way_its_error_comes() {
        let of = |code| kernels::Error::of_code("matmul", code).unwrap();
        let by_layer = |source| analysis::Error::Kernel { layer: 1, request: 2, source };
        for code in [2, 100, 719, 803] {
            let ways: [Error; 4] = [
                of(code).into(),
                runner::Error::from(of(code)).into(),
                by_layer(of(code)).into(),
                hooks::Error::sink(by_layer(of(code))).into(),
            ];
            for error in ways {
                assert_eq!(error.fault(), Fault::Device, "{error:?}");
                assert_eq!(
                    error.to_string().contains("what was finished is kept"),
                    code != 100 && code != 803
                );
                assert_eq!(error.to_string().contains("--max-tokens"), code == 2, "{error}");
            }
        }
        // Where it happened says what lowers it.
        let full = kernels::Error::OutOfMemory {
            op: "loading weights",
            asked: Some(1 << 30),
            free: Some((5, 80_000_000_000)),
        };
        let error = Error::from(runner::Error::from(full)).of_weights();
        assert_eq!(error.fault(), Fault::Device);
        let text = error.to_string();
        for word in [
            "1073741824 bytes were asked for, 5 of 80000000000 are free",
            "--dtype bf16",
            "GGUF",
            "--device cuda:0,cuda:1",
            "--device cpu",
        ] {
            assert!(text.contains(word), "{text}");
        }
        assert!(!text.contains("--max-tokens") && !text.contains("kept"), "{text}");
        let lost: Error = of(719).into();
        assert!(matches!(lost.of_weights(), Error::GpuLost(_)));
        // candle's own words for a build without CUDA.
        let plain = || candle_core::Error::NotCompiledWithCudaSupport;
        for error in [
            Error::from(plain()),
            runner::Error::from(plain()).into(),
            hooks::Error::Tensor(plain()).into(),
        ] {
            assert!(
                matches!(&error, Error::Gpu(inner) if matches!(**inner, kernels::Error::NoCuda))
            );
        }
        // What was asked of an operation is no device's fault.
        let shape = kernels::Error::Quantization {
            op: "matmul",
            format: candle_core::quantized::GgmlDType::F32,
        };
        assert_eq!(Error::from(by_layer(shape)).fault(), Fault::Internal);
    }
}
