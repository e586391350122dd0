//! What a model's files hold, from their headers alone.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Result;
use crate::gguf::Gguf;
use crate::refusal;
use crate::source::Source;
use crate::weights::{Checkpoint, Format};

/// Files of a model folder that are read, beside shards of the weights.
const READ: &[&str] =
    &["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"];

/// Keys of a `config.json` that tell what a model is.
const TELLING: &[&str] = &[
    "model_type",
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "dtype",
    "torch_dtype",
];

/// Keys of a GGUF file's metadata that tell what a model is.
const TELLING_GGUF: &[&str] = &["general.architecture", "general.name", "general.type"];

/// Parameters, bytes and stored types of a model's weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Elements of all tensors.
    pub parameters: u64,
    /// Elements of those that are stored in quantized blocks.
    pub quantized_parameters: u64,
    /// Bytes of all tensors in their files.
    pub bytes: u64,
    /// Bytes of those that are stored in quantized blocks.
    pub quantized_bytes: u64,
    /// Number of tensors of each stored type.
    pub stored_as: BTreeMap<String, usize>,
    /// Files of a folder that are not read, by name.
    pub unread_files: Vec<String>,
}

impl Inventory {
    /// Types of GGUF tensors that are read.
    pub fn gguf_formats() -> Vec<&'static str> {
        const FORMATS: [Format; 6] =
            [Format::F32, Format::F16, Format::Bf16, Format::Q4_0, Format::Q4_1, Format::Q8_0];
        FORMATS.map(Format::name).to_vec()
    }

    /// Reads the headers of a model's weights.
    ///
    /// # Errors
    ///
    /// As [`Model::load`](crate::Model::load), for files and headers.
    pub fn of(source: &Source) -> Result<Self> {
        let mut inventory = Self::default();
        if let Source::Gguf(path) = source {
            let gguf = Gguf::open(path)?;
            for (_, info) in gguf.tensors() {
                let quantized = info.format.block_len() > 1;
                let bytes = gguf.data(info).len();
                inventory.add(info.format.name(), &info.shape, bytes, quantized);
            }
        } else {
            for (_, dtype, shape, data) in Checkpoint::open(source)?.tensors() {
                inventory.add(dtype, shape, data.len(), false);
            }
        }
        if let Source::Folder(folder) = source {
            inventory.unread_files = refusal::unread(folder, READ)?;
        }
        Ok(inventory)
    }

    /// Refuses a checkpoint whose tensors are those of a quantized format.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`](crate::Error::Refused), and as [`Inventory::of`].
    pub fn check(source: &Source) -> Result<()> {
        if let Source::Gguf(_) = source {
            return Ok(());
        }
        let checkpoint = Checkpoint::open(source)?;
        refusal::check_tensors(source, checkpoint.tensors().map(|(name, ..)| name))
    }

    fn add(&mut self, dtype: &str, shape: &[usize], bytes: usize, quantized: bool) {
        // A type of unknown size may claim any shape.
        let elements = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        let parameters = elements.unwrap_or(u64::MAX);
        self.parameters = self.parameters.saturating_add(parameters);
        self.bytes += bytes as u64;
        if quantized {
            self.quantized_parameters = self.quantized_parameters.saturating_add(parameters);
            self.quantized_bytes += bytes as u64;
        }
        *self.stored_as.entry(dtype.to_owned()).or_default() += 1;
    }
}

/// What a model's files say of themselves, whether or not it can be loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(
    /// Keys of the configuration with their values, in the order of importance.
    pub Vec<(String, String)>,
);

impl Claims {
    /// Reads as far as anything can be read; what cannot is left out.
    pub fn of(source: &Source) -> Self {
        if let Source::Gguf(path) = source {
            let Ok(gguf) = Gguf::open(path) else {
                return Self::default();
            };
            let claim = |key: &&str| Some(((*key).to_owned(), shown(gguf.text(key).ok()?)));
            return Self(TELLING_GGUF.iter().filter_map(claim).collect());
        }
        let json = source.open_json("config.json").ok().flatten();
        let value: Option<Value> = json.and_then(|json| serde_json::from_slice(&json).ok());
        let claim = |key: &&str| {
            let text = match value.as_ref()?.get(key)? {
                Value::String(text) => shown(text),
                Value::Array(items) => shown(items.first()?.as_str()?),
                number @ Value::Number(_) => number.to_string(),
                _ => return None,
            };
            Some(((*key).to_owned(), text))
        };
        Self(TELLING.iter().filter_map(claim).collect())
    }
}

/// A text from a file as far as it is shown.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}
