//! Where everything in a run folder lies.
//!
//! Files are named by number, never by a prompt's id, which is the user's text.
//! A shard, and a tensor file, is named by the index of its first prompt.

use std::path::{Path, PathBuf};

/// Extension of an Arrow IPC stream.
const STREAM: &str = "arrows";
/// Extension of a safetensors file.
const TENSORS: &str = "safetensors";

/// The paths of one run folder.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Layout {
        Layout { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn manifest(&self) -> PathBuf {
        self.root.join("manifest.json")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join(".lock")
    }

    /// Closed shards, a line each, and at last the finished run.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.root.join("shards.jsonl")
    }

    pub(crate) fn open(&self) -> PathBuf {
        self.root.join("open")
    }

    pub(crate) fn open_shard(&self, first: u64) -> PathBuf {
        self.open().join(number(first))
    }

    /// Finished prompts of an open shard, a line each.
    pub(crate) fn commits(&self, first: u64) -> PathBuf {
        self.open_shard(first).join("commits.jsonl")
    }

    pub(crate) fn stream(&self, first: u64, table: &str) -> PathBuf {
        self.open_shard(first).join(format!("{table}.{STREAM}"))
    }

    pub(crate) fn prompt_tensors(&self, first: u64, index: u64) -> PathBuf {
        self.open_shard(first).join(format!("{}.{TENSORS}", number(index)))
    }

    pub(crate) fn shards(&self) -> PathBuf {
        self.root.join("shards")
    }

    pub(crate) fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    pub(crate) fn tensors(&self) -> PathBuf {
        self.root.join("tensors")
    }

    /// The file of this name relative to the run folder.
    pub(crate) fn file(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }
}

/// The relative name of a closed shard's rows of one table.
pub(crate) fn shard_table(first: u64, table: &str) -> String {
    format!("shards/{}.{table}.{STREAM}", number(first))
}

/// The relative name of a tensor file.
pub(crate) fn tensor_file(first: u64) -> String {
    format!("tensors/{}.{TENSORS}", number(first))
}

/// The relative name of a finished table.
pub(crate) fn table(table: &str) -> String {
    format!("tables/{table}.parquet")
}

/// The number in the name of an open shard's directory.
pub(crate) fn parse_number(name: &str) -> Option<u64> {
    let n = name.parse().ok()?;
    (number(n) == name).then_some(n)
}

/// Whether this is a name that the store gives to files in `tensors/`.
pub(crate) fn is_tensor_file(name: &str) -> bool {
    let name = name.strip_suffix(".partial").unwrap_or(name);
    name.strip_suffix(TENSORS)
        .and_then(|stem| stem.strip_suffix('.'))
        .and_then(parse_number)
        .is_some()
}

fn number(n: u64) -> String {
    format!("{n:08}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_are_recognised() {
        assert_eq!(parse_number("00000064"), Some(64));
        assert_eq!(parse_number("123456789"), Some(123_456_789));
        for other in ["", "64", "000000064", "+0000064", "0000006x"] {
            assert_eq!(parse_number(other), None, "{other}");
        }
        assert!(is_tensor_file("00000000.safetensors"));
        assert!(is_tensor_file("00000000.safetensors.partial"));
        for other in ["model.safetensors", "00000000safetensors", "00000000.parquet"] {
            assert!(!is_tensor_file(other), "{other}");
        }
    }
}
