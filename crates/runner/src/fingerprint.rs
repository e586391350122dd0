//! What identifies a model's files.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::gguf::Gguf;
use crate::source::Source;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// Bytes of a tensor's beginning and end that enter the fingerprint.
const SAMPLE: usize = 4096;

/// SHA-256 digests, in hexadecimal, of what a run depends on.
///
/// The weights' digest covers every tensor's name, type, shape, and its first and
/// last 4,096 bytes: enough to tell trained models apart without reading
/// gigabytes, though not a change made by hand within a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of `config.json`, or of a GGUF file's whole header.
    pub config: String,
    /// Of `tokenizer.json`, where there is one, or of a GGUF file's whole header.
    pub tokenizer: Option<String>,
    /// Of the weights, sampled.
    pub weights: String,
}

impl Fingerprint {
    /// Reads a model's files as far as their fingerprint needs.
    ///
    /// # Errors
    ///
    /// As [`Model::load`](crate::Model::load), for files and headers.
    pub fn of(source: &Source) -> Result<Self> {
        if let Source::Gguf(path) = source {
            return Self::of_gguf(path);
        }
        let config = source
            .open_json("config.json")?
            .ok_or_else(|| Error::FileMissing { folder: source.path(), expected: "config.json" })?;
        let mut weights = Sha256::new();
        for (name, dtype, shape, data) in Checkpoint::open(source)?.tensors() {
            add_tensor(&mut weights, name, dtype, shape, data);
        }
        Ok(Self {
            config: hex(&Sha256::digest(&*config)),
            tokenizer: source.open_json("tokenizer.json")?.map(|json| hex(&Sha256::digest(&*json))),
            weights: hex(&weights.finalize()),
        })
    }

    fn of_gguf(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let mut header = Sha256::new();
        gguf.headers().for_each(|bytes| header.update(bytes));
        let header = hex(&header.finalize());
        let mut weights = Sha256::new();
        for (name, info) in gguf.tensors() {
            add_tensor(&mut weights, name, info.format.name(), &info.shape, gguf.data(info));
        }
        Ok(Self {
            config: header.clone(),
            tokenizer: gguf.has("tokenizer.ggml.model").then_some(header),
            weights: hex(&weights.finalize()),
        })
    }
}

fn add_tensor(digest: &mut Sha256, name: &str, dtype: &str, shape: &[usize], data: &[u8]) {
    // Lengths before what varies in length, so that no two lists look alike.
    for text in [name, dtype] {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    digest.update((shape.len() as u64).to_le_bytes());
    shape.iter().for_each(|size| digest.update((*size as u64).to_le_bytes()));
    digest.update(&data[..data.len().min(SAMPLE)]);
    digest.update(&data[data.len().saturating_sub(SAMPLE)..]);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
