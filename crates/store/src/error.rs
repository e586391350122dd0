//! What can go wrong with a run folder.
//!
//! Every variant carries the path or name it is about, so that a program can
//! act on the facts and a person can find the file.  The operating system's
//! own error is the `source`, not repeated in the message.

use std::path::PathBuf;

use crate::schema::ColumnKind;
use crate::tensor::ElementType;

/// The result of an operation on a run folder.
pub type Result<T> = std::result::Result<T, Error>;

/// What the operating system was asked to do when it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Make a file or directory.
    Create,
    /// Open or read a file.
    Read,
    /// Write to a file.
    Write,
    /// Shorten a file.
    Truncate,
    /// Bring a file or directory to the disk.
    Sync,
    /// Move a finished file to its place.
    Rename,
    /// Delete a file or directory.
    Remove,
    /// List a directory.
    List,
    /// Take the folder's lock.
    Lock,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Action::Create => "create",
            Action::Read => "read",
            Action::Write => "write",
            Action::Truncate => "truncate",
            Action::Sync => "sync",
            Action::Rename => "rename",
            Action::Remove => "remove",
            Action::List => "list",
            Action::Lock => "lock",
        })
    }
}

/// Why a name cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameFault {
    /// It has no character at all.
    #[error("it is empty")]
    Empty,
    /// It has more bytes than [`crate::MAX_NAME_BYTES`].
    #[error("it has {0} bytes, more than {limit}", limit = crate::MAX_NAME_BYTES)]
    TooLong(usize),
    /// It has a `/`, which separates prompt and hook point in tensor keys.
    #[error("it contains a slash")]
    Slash,
    /// It has a control character.
    #[error("it contains the control character U+{0:04X}")]
    Control(u32),
    /// It is not made of `a-z`, `0-9` and `_` as table and column names are.
    #[error("it may only have the characters a-z, 0-9 and _")]
    NotPlain,
    /// The store uses it itself.
    #[error("it is reserved")]
    Reserved,
    /// It was given before.
    #[error("it is given twice")]
    Duplicate,
}

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameOf {
    /// A prompt's id.
    Prompt,
    /// A tensor of one prompt.
    Tensor,
    /// A table.
    Table,
    /// A column of a table.
    Column,
}

impl std::fmt::Display for NameOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NameOf::Prompt => "prompt id",
            NameOf::Tensor => "tensor name",
            NameOf::Table => "table name",
            NameOf::Column => "column name",
        })
    }
}

/// What is wrong with the header of a safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The file ends before its header does.
    #[error("the file has {file} bytes and its header claims {header}")]
    Beyond {
        /// Length the file starts with, in bytes.
        header: u64,
        /// Length of the file, in bytes.
        file: u64,
    },
    /// The header is longer than [`crate::MAX_HEADER_BYTES`].
    #[error("a header of {0} bytes is more than {limit}", limit = crate::MAX_HEADER_BYTES)]
    TooLong(u64),
    /// The header is not the JSON it should be.
    #[error("it is not a safetensors header")]
    Json(#[source] serde_json::Error),
    /// Offsets, shape and element type of this tensor contradict each other,
    /// or leave a gap or an overlap.
    #[error("tensor {0:?} has offsets that do not fit its shape or its neighbours")]
    Offsets(String),
    /// This tensor's element type is not one that the store writes.
    #[error("tensor {tensor:?} has the unknown element type {element:?}")]
    Element {
        /// The tensor's key.
        tensor: String,
        /// The element type as written.
        element: String,
    },
    /// This tensor has no checksum.
    #[error("tensor {0:?} has no checksum")]
    NoChecksum(String),
    /// The data end before or after the end of the file.
    #[error("the tensors end at byte {tensors} and the file at byte {file}")]
    End {
        /// Where the header says the data end.
        tensors: u64,
        /// Length of the file, in bytes.
        file: u64,
    },
}

/// One field in which the job of a folder differs from the job that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field's path in the manifest, such as `job.model.revision`.
    pub field: String,
    /// Its value in the folder, as JSON; `None` where the folder has no such field.
    pub folder: Option<String>,
    /// Its value in the new job, as JSON; `None` where the job has no such field.
    pub asked: Option<String>,
}

/// Longest value written out in a message, in characters.
const SHOWN_VALUE: usize = 80;
/// Most differences written out in a message.
const SHOWN_DIFFERENCES: usize = 8;

fn clipped(value: Option<&String>) -> String {
    match value {
        None => "(absent)".to_owned(),
        Some(v) if v.chars().count() > SHOWN_VALUE => {
            let head: String = v.chars().take(SHOWN_VALUE).collect();
            format!("{head}…")
        }
        Some(v) => v.clone(),
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} in the folder, {} asked for",
            self.field,
            clipped(self.folder.as_ref()),
            clipped(self.asked.as_ref())
        )
    }
}

fn listed(differences: &[Difference]) -> String {
    let mut lines: Vec<String> =
        differences.iter().take(SHOWN_DIFFERENCES).map(ToString::to_string).collect();
    if differences.len() > SHOWN_DIFFERENCES {
        lines.push(format!("and {} more", differences.len() - SHOWN_DIFFERENCES));
    }
    lines.join("; ")
}

/// Anything that can go wrong with a run folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused; a full disk and a file size limit are here.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was asked of it.
        action: Action,
        /// The file or directory.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// Another process is writing to this folder.
    #[error("{} is being written by another process", path.display())]
    Locked {
        /// The run folder.
        path: PathBuf,
    },
    /// The folder has other things in it and no manifest.
    #[error("{} is not a run folder: it has no manifest.json; give a new or empty folder", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A link stands where the store writes or deletes; it touches nothing outside its folder.
    #[error("{} is a link; the run folder must hold it itself", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// The folder was written in another layout.
    #[error("{} has run folder layout {found}, this program reads layout {supported}", path.display())]
    SchemaVersion {
        /// The manifest.
        path: PathBuf,
        /// The folder's layout number.
        found: u64,
        /// The layout number of this program.
        supported: u64,
    },
    /// The folder holds the results of another job.
    #[error("{} holds another job ({}); give another folder", path.display(), listed(differences))]
    DifferentJob {
        /// The run folder.
        path: PathBuf,
        /// Every field that differs.
        differences: Vec<Difference>,
    },
    /// The manifest cannot be understood.
    #[error("{} is not a manifest", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong in the JSON.
        source: serde_json::Error,
    },
    /// A file that the folder's records name is not there.
    #[error("{} is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file does not have the length it was written with.
    #[error("{} has {got} bytes where {expected} were written", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that were written.
        expected: u64,
        /// Bytes that are there.
        got: u64,
    },
    /// A file does not have the content it was written with.
    #[error("{} is damaged: its checksum is {got} where {expected} was written", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// SHA-256 when written, in hexadecimal.
        expected: String,
        /// SHA-256 now, in hexadecimal.
        got: String,
    },
    /// A line of a `.jsonl` file is damaged or contradicts the manifest.
    #[error("line {line} of {} is damaged", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// Something in the folder is larger than the store ever writes.
    #[error("{} is longer than {limit} bytes", path.display())]
    Oversized {
        /// The file, or the file that has such a line.
        path: PathBuf,
        /// Most bytes that are read.
        limit: u64,
    },
    /// The header of a safetensors file is damaged.
    #[error("{} has a damaged header", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: HeaderFault,
    },
    /// A message of an Arrow stream is damaged.
    #[error("the Arrow message at byte {offset} of {} is damaged", path.display())]
    Message {
        /// The file.
        path: PathBuf,
        /// Where the message starts, in bytes.
        offset: u64,
    },
    /// Rows could not be put into, or read from, the Arrow format.
    #[error("table {table:?} cannot be converted")]
    Arrow {
        /// The table.
        table: String,
        /// What the Arrow library says.
        source: arrow_schema::ArrowError,
    },
    /// A Parquet file could not be written or read.
    #[error("{} cannot be written or read as Parquet", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the Parquet library says.
        source: parquet::errors::ParquetError,
    },
    /// A record could not be written as JSON.
    #[error("a record for {} cannot be written as JSON", path.display())]
    Encode {
        /// The file it was meant for.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },

    /// A prompt id, tensor, table or column name cannot be used.
    #[error("the {of} {name:?} cannot be used: {fault}")]
    Name {
        /// What it names.
        of: NameOf,
        /// The name, at most its first 64 characters.
        name: String,
        /// Why not.
        fault: NameFault,
    },
    /// A count given by the caller lies outside what the store can hold.
    #[error("{what} must be between {least} and {most}, not {got}")]
    Range {
        /// What is counted.
        what: &'static str,
        /// Fewest.
        least: u64,
        /// Most.
        most: u64,
        /// The count given.
        got: u64,
    },
    /// The run has no prompt with this index.
    #[error("prompt {index} of {prompts}: there is no such prompt")]
    NoSuchPrompt {
        /// Index asked for, from 0.
        index: u64,
        /// Number of prompts.
        prompts: u64,
    },
    /// The prompt is in the folder already.
    #[error("prompt {id:?} is finished already")]
    AlreadyFinished {
        /// Its id.
        id: String,
    },
    /// Not every prompt is finished, so the tables cannot be written.
    #[error("{finished} of {prompts} prompts are finished; the tables are written when all are")]
    Unfinished {
        /// Prompts in the folder.
        finished: u64,
        /// Prompts of the run.
        prompts: u64,
    },
    /// An earlier operation on this folder failed; what it left is put right
    /// when the folder is opened again.
    #[error("an earlier write to {} failed; open the folder again to go on", path.display())]
    Halted {
        /// The run folder.
        path: PathBuf,
    },
    /// No table has this name.
    #[error("there is no table {table:?}; there are {}", known.join(", "))]
    UnknownTable {
        /// The name asked for.
        table: String,
        /// The tables that there are.
        known: Vec<String>,
    },
    /// The columns given are not the columns of the table.
    #[error("table {table:?} has the columns {}, not {}", expected.join(", "), got.join(", "))]
    Columns {
        /// The table.
        table: String,
        /// Its columns.
        expected: Vec<String>,
        /// The columns given.
        got: Vec<String>,
    },
    /// A column's values are of another kind.
    #[error("column {column:?} of table {table:?} holds {expected:?}, not {got:?}")]
    Kind {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// The kind declared.
        expected: ColumnKind,
        /// The kind given.
        got: ColumnKind,
    },
    /// The columns given are of unequal length.
    #[error("column {column:?} of table {table:?} has {got} rows where others have {expected}")]
    Rows {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// Rows of the first column.
        expected: usize,
        /// Rows of this column.
        got: usize,
    },
    /// A column that must have a value everywhere has none in some row.
    #[error("row {row} of column {column:?} of table {table:?} has no value")]
    Null {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// The row, from 0.
        row: usize,
    },
    /// One prompt's rows of one table exceed [`crate::MAX_PROMPT_ROW_BYTES`].
    #[error("prompt {id:?} has {bytes} bytes of rows for table {table:?}, more than {limit}", limit = crate::MAX_PROMPT_ROW_BYTES)]
    TooManyRows {
        /// The prompt.
        id: String,
        /// The table.
        table: String,
        /// Bytes of its rows.
        bytes: u64,
    },
    /// A tensor's bytes do not fill its shape.
    #[error("tensor {tensor:?} of shape {shape:?} and type {element} has {got} bytes")]
    TensorBytes {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        element: ElementType,
        /// Bytes given.
        got: usize,
    },
    /// A finite value would become infinite in the type asked for.
    #[error("element {index} of tensor {tensor:?} is {value}, too large for {stored}")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Which element, in row-major order from 0.
        index: usize,
        /// Its value.
        value: f64,
        /// The type it was to be stored in.
        stored: ElementType,
    },
    /// No finished prompt has this tensor.
    #[error("there is no tensor {key:?} in this run")]
    UnknownTensor {
        /// The key, `{prompt}/{name}`.
        key: String,
    },
}
