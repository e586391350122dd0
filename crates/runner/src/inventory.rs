//! What a model's files hold, from their headers alone.

use std::collections::BTreeMap;

use kernels::quantized::Encoding;
use serde_json::Value;

use crate::Result;
use crate::gguf::Gguf;
use crate::refusal;
use crate::source::Source;
use crate::weights::{Checkpoint, Format};

/// Files of a model folder that are read, beside shards of the weights.
const READ: &[&str] = &[
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

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
    /// Elements of all tensors of the language model.
    pub parameters: u64,
    /// Elements of those that are stored in quantized blocks.
    pub quantized_parameters: u64,
    /// Bytes of them in their files.
    pub bytes: u64,
    /// Bytes of those that are stored in quantized blocks.
    pub quantized_bytes: u64,
    /// Bytes that those take in layers on the CPU.
    pub packed_bytes: u64,
    /// Number of them of each stored type.
    pub stored_as: BTreeMap<String, usize>,
    /// Other tensors of the files, which are not read: those of images, and
    /// constants that need not be stored.
    pub unread_tensors: usize,
    /// Files of a folder that are not read, by name.
    pub unread_files: Vec<String>,
}

impl Inventory {
    /// Types of GGUF tensors that are read.
    pub fn gguf_formats() -> Vec<&'static str> {
        let floats = [Format::F32, Format::F16, Format::Bf16].map(Format::name);
        floats.into_iter().chain(Encoding::ALL.iter().map(|encoding| encoding.name)).collect()
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
                let bytes = gguf.data(info).len();
                let encoding = info.format.encoding();
                inventory.add(info.format.name(), &info.shape, bytes, encoding);
            }
        } else {
            for (name, dtype, shape, data) in Checkpoint::open(source)?.tensors() {
                if is_read(name) {
                    inventory.add(dtype, shape, data.len(), None);
                } else {
                    inventory.unread_tensors += 1;
                }
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

    fn add(
        &mut self,
        dtype: &str,
        shape: &[usize],
        bytes: usize,
        encoding: Option<&'static Encoding>,
    ) {
        // A type of unknown size may claim any shape.
        let elements = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        let parameters = elements.unwrap_or(u64::MAX);
        self.parameters = self.parameters.saturating_add(parameters);
        self.bytes += bytes as u64;
        if let Some(encoding) = encoding {
            self.quantized_parameters = self.quantized_parameters.saturating_add(parameters);
            self.quantized_bytes += bytes as u64;
            self.packed_bytes = self.packed_bytes.saturating_add(encoding.packed_bytes(parameters));
        }
        *self.stored_as.entry(dtype.to_owned()).or_default() += 1;
    }
}

/// Whether a tensor of a checkpoint is one of a language model's weights.
fn is_read(name: &str) -> bool {
    const IMAGES: [&str; 3] = ["vision_tower.", "vision_model.", "multi_modal_projector."];
    const CONSTANTS: [&str; 5] = [
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
        ".rotary_emb.inv_freq",
    ];
    let part = name.strip_prefix("model.").unwrap_or(name);
    !IMAGES.iter().any(|start| part.starts_with(start))
        && !CONSTANTS.iter().any(|end| name.ends_with(end))
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
        let members = refusal::read(source, "config.json").unwrap_or_default();
        let claim = |key: &&str| {
            let text = match members.get(*key)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_what_is_stored_beside_them() {
        for name in ["h.0.attn.c_attn.bias", "model.layers.0.self_attn.q_proj.bias", "wte.weight"] {
            assert!(is_read(name), "{name}");
        }
        for name in [
            "h.0.attn.bias",
            "gpt_neox.layers.3.attention.masked_bias",
            "gpt_neox.layers.3.attention.rotary_emb.inv_freq",
            "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
            "multi_modal_projector.mm_input_projection_weight",
        ] {
            assert!(!is_read(name), "{name}");
        }
    }

    #[test]
    fn what_nobody_wrote_claims_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::Folder(folder.path().to_owned());
        assert_eq!(Claims::of(&source), Claims::default());
        let json = r#"{"model_type": "x\u0007y", "architectures": ["A", "B"], "vocab_size": 3, "dtype": []}"#;
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        let claim = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected =
            [claim("model_type", "xy"), claim("architectures", "A"), claim("vocab_size", "3")];
        assert_eq!(Claims::of(&source).0, expected);
    }
}
