//! The run folder: where the results of a run are kept, safe against being stopped at any moment.
//!
//! ```text
//! RUN/manifest.json           what the folder is the result of; never changes
//! RUN/shards.jsonl            a line for each closed shard and one for the finished run
//! RUN/open/00000000/          a shard being written: an Arrow stream for each table,
//!                             a safetensors file for each prompt, a line for each finished prompt
//! RUN/shards/*.arrows         the rows of closed shards, until the run is finished
//! RUN/tensors/*.safetensors   the tensors of closed shards, keys `{prompt}/{name}`
//! RUN/tables/*.parquet        the tables of a finished run, rows in the order of the prompts
//! RUN/.lock                   held by the process that writes
//! ```
//!
//! **The decision that shapes this crate** is that a prompt counts as finished
//! when one line saying so has reached the disk, and that this line is written
//! after everything it speaks of has.  Whatever no such line speaks of is cut off
//! when the folder is opened again.  So the moment at which a run is stopped
//! never matters, and no part of it is ever repaired by guessing.
//!
//! A shard is a fixed range of prompt indices, rows are sorted by prompt index,
//! and which tensors share a file follows from the tensors.  The final tables and
//! tensor files are therefore the same bytes however often a run was stopped, and
//! in whatever order its prompts were finished.
//!
//! # Example
//!
//! ```
//! use store::{
//!     Column, ColumnKind, ColumnSpec, ElementType, Job, Options, Reader, Run, StoredType,
//!     TableSchema, TensorView,
//! };
//!
//! const LENGTHS: TableSchema = TableSchema::new(
//!     "lengths",
//!     &[ColumnSpec::required("tokens", ColumnKind::U32, "", "number of tokens")],
//! );
//!
//! # fn main() -> store::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let folder = folder.path().join("run");
//! let job = Job {
//!     engine_version: "1".to_owned(),
//!     description: serde_json::json!({ "model": "tiny" }),
//!     command: vec![],
//!     device: serde_json::Value::Null,
//! };
//! let prompts = vec!["a".to_owned(), "b".to_owned()];
//! let mut run = Run::create_or_resume(&folder, &job, &[LENGTHS], &prompts, Options::default())?;
//! for index in run.unfinished() {
//!     let mut writer = run.prompt(index)?;
//!     writer.rows("lengths", vec![("tokens", Column::from(vec![7_u32]))])?;
//!     let view = TensorView {
//!         element: ElementType::F32,
//!         shape: &[1],
//!         bytes: &0.5_f32.to_le_bytes(),
//!     };
//!     writer.tensor("logits", view, StoredType::AsIs)?;
//!     run.commit(writer)?;
//! }
//! let summary = run.finish()?;
//! assert_eq!(summary.tables["lengths"], 2);
//!
//! let reader = Reader::open(&folder)?;
//! assert_eq!(reader.tensor("b/logits")?.bytes, 0.5_f32.to_le_bytes());
//! # Ok(())
//! # }
//! ```

mod checksum;
mod column;
mod derived;
mod disk;
mod error;
mod layout;
mod ledger;
mod manifest;
mod names;
mod pack;
mod parquet_table;
mod prompt;
mod reader;
mod records;
mod run;
mod schema;
mod shard;
mod stream;
mod tensor;
mod tensors;

pub use arrow_array;
pub use column::Column;
pub use derived::{replace_file, replace_table};
pub use disk::{Monitor, Operation, Verdict};
pub use error::{Action, Difference, Error, HeaderFault, NameFault, NameOf, Result};
pub use manifest::{Job, Manifest, PromptList};
pub use prompt::PromptWriter;
pub use reader::{Progress, Reader, Table, TableRows};
pub use run::{Options, Run, Start, Summary};
pub use schema::{ColumnInfo, ColumnKind, ColumnSpec, TableInfo, TableSchema};
pub use tensor::{ElementType, StoredType, TensorData, TensorInfo, TensorView};

/// The number of the run folder's layout that this crate writes and reads.
pub const SCHEMA_VERSION: u64 = 1;

/// The column that every table starts with: the prompt's id.
pub const PROMPT_COLUMN: &str = "prompt";

/// Longest prompt id, tensor, table or column name, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Most tables of a run.
pub const MAX_TABLES: usize = 256;
/// Most columns of a table besides `prompt`.
pub const MAX_COLUMNS: usize = 1024;
/// Most tensors of one prompt.
pub const MAX_TENSORS_PER_PROMPT: usize = 32_768;
/// Most axes of a tensor.
pub const MAX_RANK: usize = 16;
/// Most prompts in a shard.
pub const MAX_SHARD_PROMPTS: u64 = 4096;
/// Most bytes of one prompt's rows of one table.
pub const MAX_PROMPT_ROW_BYTES: u64 = 1 << 30;
/// Longest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// Longest header of a safetensors file, in bytes; other readers have the same limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Longest line of a `.jsonl` file in the folder, in bytes.
pub const MAX_LINE_BYTES: u64 = 16 << 20;
