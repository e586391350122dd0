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
        "{} needs a column `text` of strings without nulls, and may have a column `id` of strings or integers; it has {}",
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
    /// The number of threads could not be set.
    #[error("cannot use {threads} threads: {reason}")]
    Threads {
        /// The number asked for.
        threads: usize,
        /// Why not.
        reason: String,
    },
    /// The prompts that come with the program cannot be read.
    #[error("the built-in derivations cannot be read: {0}")]
    BuiltInPrompts(serde_json::Error),
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
    Tensor(#[from] candle_core::Error),
}

impl From<runner::Error> for Error {
    fn from(error: runner::Error) -> Self {
        match error {
            runner::Error::Hooks(error) => error.into(),
            runner::Error::ChatDate { path } => Self::ChatDate { path },
            error => Self::Runner(Box::new(error)),
        }
    }
}

impl From<analysis::Error> for Error {
    fn from(error: analysis::Error) -> Self {
        Self::Analysis(Box::new(error))
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
        let hooks::Error::Sink(inner) = error else {
            return Self::Hooks(error);
        };
        let inner = match inner.downcast::<Error>() {
            Ok(own) => return *own,
            Err(inner) => inner,
        };
        let inner = match inner.downcast::<analysis::Error>() {
            Ok(analysis) => return Self::Analysis(analysis),
            Err(inner) => inner,
        };
        match inner.downcast::<store::Error>() {
            Ok(store) => Self::Store(store),
            Err(inner) => Self::Hooks(hooks::Error::Sink(inner)),
        }
    }
}

impl Error {
    /// Whose fault it is; the program's exit code follows from it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Runner(error) => error.fault(),
            Self::NotFinite { .. } | Self::NoTokenizer | Self::Read { .. } | Self::NoRun { .. } => {
                Fault::Model
            }
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
        E::NoMixture { .. } => Fault::Request,
        E::Captured { .. } | E::Logits { .. } => Fault::Model,
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
