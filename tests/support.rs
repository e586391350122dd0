//! Starting the program and looking at what it leaves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program, with paths relative to the repository's root, and without network.
pub fn eigenlens() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eigenlens"));
    command.current_dir(root()).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1");
    command
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of golden model files.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/models").join(name)
}

/// What a finished process printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Fails unless the process ended with this exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, Some(expected), "{self:#?}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// Runs the program with these words.
pub fn run<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>) -> Ran {
    Ran::new(&eigenlens().args(words).output().expect("the program starts"))
}

/// Every file below a folder with its bytes.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&current) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                found.insert(name, std::fs::read(&path).expect("a readable file"));
            }
        }
    }
    found
}

/// A prompt file with `count` derivations that come with the program.
pub fn derivations(folder: &Path, count: usize) -> PathBuf {
    let all = std::fs::read_to_string(root().join("assets/derivations.jsonl")).expect("assets");
    let some: Vec<&str> = all.lines().take(count).collect();
    let path = folder.join("derivations.jsonl");
    std::fs::write(&path, some.join("\n")).expect("a written file");
    path
}
