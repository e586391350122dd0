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

/// Writes a GGUF file of a small random llama without a tokenizer, its matrices in
/// `F32` or in `Q8_0`.
pub fn write_gguf_llama(path: &Path, quantized: bool) {
    const WIDTH: u64 = 32;
    const VOCABULARY: u64 = 40;
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let counts = [
        ("block_count", 1u32),
        ("embedding_length", WIDTH as u32),
        ("feed_forward_length", WIDTH as u32),
        ("attention.head_count", 2),
        ("context_length", 64),
    ];
    let mut metadata = [text("general.architecture"), vec![8, 0, 0, 0], text("llama")].concat();
    for (key, count) in counts {
        metadata.extend(text(&format!("llama.{key}")));
        metadata.extend([4u32.to_le_bytes(), count.to_le_bytes()].concat());
    }
    metadata.extend(text("llama.attention.layer_norm_rms_epsilon"));
    metadata.extend([6u32.to_le_bytes(), 1e-5f32.to_le_bytes()].concat());

    let layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let matrices = layer.map(|name| (format!("blk.0.{name}.weight"), WIDTH));
    let mut tensors: Vec<(String, Vec<u64>)> =
        matrices.into_iter().map(|(name, rows)| (name, vec![WIDTH, rows])).collect();
    for name in ["token_embd", "output"] {
        tensors.push((format!("{name}.weight"), vec![WIDTH, VOCABULARY]));
    }
    for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
        tensors.push((format!("{name}.weight"), vec![WIDTH]));
    }
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    let mut state = 1u64;
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    for (name, dims) in &tensors {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| random()).collect();
        let blocks = quantized && dims.len() == 2;
        infos.extend(text(name));
        infos.extend((dims.len() as u32).to_le_bytes());
        infos.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        infos.extend(if blocks { 8u32 } else { 0 }.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        for block in values.chunks(32) {
            if blocks {
                // A scale of 2⁻⁸ in half precision, and 8-bit multiples of it.
                data.extend(0x1c00u16.to_le_bytes());
                data.extend(
                    block.iter().map(|v| (v * 256.0).round().clamp(-127.0, 127.0) as i8 as u8),
                );
            } else {
                data.extend(block.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((counts.len() as u64 + 2).to_le_bytes());
    file.extend([metadata, infos].concat());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    std::fs::write(path, file).expect("a written file");
}
