//! What a model is, from `config.json` or a GGUF file's metadata.
//!
//! One table, [`families!`], lists the families: a variant of [`Config`], the
//! `model_type` that selects it, and the family's own configuration. Defaults
//! are those of the family's configuration class in transformers, so that a key
//! left out of the file means what it means there.

pub(crate) mod fields;
mod gguf;
mod rope;

use std::path::Path;

use hooks::ModelInfo;
use serde_json::Value;

use crate::families::{
    Details, Family, gemma, gemma2, gemma3, gpt_neox, gpt2, granite, llama, mistral, mixtral,
    olmo2, phi3, qwen2, qwen3, smollm3,
};
use crate::gguf::Gguf;
use crate::layers::Decoder;
use crate::refusal;
use crate::weights::{GgufLayout, Weights};
use crate::{Error, Result};
use fields::Fields;
pub(crate) use gguf::GgufFields;
pub(crate) use rope::{Frequencies, Partial, RopeDefaults, RopeNames, RopeSizes};
pub use rope::{Rope, RopeScaling};

/// Builds [`Config`] and everything that must know every family.
macro_rules! families {
    ($($(#[doc = $doc:literal])+ $variant:ident, $model_type:literal, $config:ty;)*) => {
        /// The configuration of a model, by family.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Config { $($(#[doc = $doc])+ $variant($config),)* }

        impl Config {
            /// The `model_type`s that can be loaded.
            pub const KNOWN: &'static [&'static str] = &[$($model_type,)*];

            /// The architectures of GGUF files that can be loaded.
            pub fn known_gguf() -> Vec<&'static str> {
                let mut known: Vec<_> = [$(<$config>::GGUF,)*].into_iter().flatten().collect();
                known.dedup();
                known
            }

            /// The family's `model_type`.
            pub fn model_type(&self) -> &'static str {
                match self { $(Self::$variant(_) => $model_type,)* }
            }

            /// Sizes and layers, as observers know them.
            pub fn info(&self) -> ModelInfo {
                match self { $(Self::$variant(config) => config.info(),)* }
            }

            /// What beside the sizes tells models apart.
            pub fn details(&self) -> Details {
                match self { $(Self::$variant(config) => config.details(),)* }
            }

            pub(crate) fn decoder(&self, weights: &dyn Weights) -> Result<Decoder> {
                match self { $(Self::$variant(config) => config.decoder(weights),)* }
            }

            /// How the family's GGUF files name and order tensors.
            pub(crate) fn gguf_layout(&self) -> &'static GgufLayout {
                match self { $(Self::$variant(config) => config.gguf_layout(),)* }
            }

            /// The first family that knows the file.
            fn read_gguf(file: &GgufFields<'_>) -> Result<Option<Self>> {
                let named = Some(file.architecture());
                $(if <$config>::GGUF == named && let Some(config) = <$config>::from_gguf(file)? {
                    return Ok(Some(Self::$variant(config)));
                })*
                Ok(None)
            }

            fn read(model_type: &str, fields: &Fields<'_>) -> Result<Option<Self>> {
                match model_type {
                    $($model_type => <$config>::read(fields).map(|config| Some(Self::$variant(config))),)*
                    _ => Ok(None),
                }
            }
        }
    };
}

families! {
    /// Gemma.
    Gemma, "gemma", gemma::Config;
    /// Gemma 2.
    Gemma2, "gemma2", gemma2::Config;
    /// Gemma 3, the language model.
    Gemma3, "gemma3_text", gemma3::Config;
    /// GPT-2.
    Gpt2, "gpt2", gpt2::Config;
    /// GPT-NeoX, Pythia among them.
    GptNeoX, "gpt_neox", gpt_neox::Config;
    /// Granite, the dense models.
    Granite, "granite", granite::Config;
    /// Llama and its relatives of the same architecture.
    Llama, "llama", llama::Config;
    /// Mistral.
    Mistral, "mistral", mistral::Config;
    /// Mixtral: a Llama whose MLPs are mixtures of experts.
    Mixtral, "mixtral", mixtral::Config;
    /// OLMo 2.
    Olmo2, "olmo2", olmo2::Config;
    /// Phi 3.
    Phi3, "phi3", phi3::Config;
    /// Qwen 2.
    Qwen2, "qwen2", qwen2::Config;
    /// Qwen 3, the dense models.
    Qwen3, "qwen3", qwen3::Config;
    /// SmolLM 3.
    SmolLm3, "smollm3", smollm3::Config;
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Json`], [`Error::UnknownModelType`], [`Error::Refused`], and [`Error::Field`] or
    /// [`Error::FieldMissing`] with the field's name.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|source| Error::Json { path: path.to_owned(), source })?;
        let Value::Object(members) = &value else {
            return Err(Error::Field {
                path: path.to_owned(),
                field: "the file".to_owned(),
                found: "not an object".to_owned(),
                expected: "a JSON object".to_owned(),
            });
        };
        let fields = Fields::new(path, "", members);
        let model_type = fields.text("model_type")?.ok_or_else(|| fields.missing("model_type"))?;
        refusal::check_config(path, members)?;
        // A model for text and images holds the configuration of its language model.
        let (model_type, fields) = match COMPOSITES.iter().find(|(whole, _)| *whole == model_type) {
            None => (model_type, fields),
            Some((_, part)) => {
                const KEY: &str = "text_config";
                let inner = fields.object(KEY, "text_config.")?;
                (*part, inner.ok_or_else(|| fields.missing(KEY))?)
            }
        };
        Self::read(model_type, &fields)?.ok_or_else(|| Error::UnknownModelType {
            path: path.to_owned(),
            found: model_type.chars().take(80).collect(),
            known: Self::KNOWN.to_vec(),
        })
    }

    /// Reads a GGUF file's metadata.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        refusal::check_gguf(gguf)?;
        let architecture = gguf.text("general.architecture")?;
        let file = GgufFields::new(gguf, architecture);
        Self::read_gguf(&file)?.ok_or_else(|| Error::UnknownModelType {
            path: gguf.path().to_owned(),
            found: architecture.chars().take(80).collect(),
            known: Self::known_gguf(),
        })
    }
}

/// Models of several parts whose language model can be loaded by itself.
pub(crate) const COMPOSITES: &[(&str, &str)] = &[("gemma3", "gemma3_text")];
