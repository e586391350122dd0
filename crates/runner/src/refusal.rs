//! What a folder is when it is not a model that can be run.
//!
//! A folder is recognised by the files that are in it and by what its
//! `config.json` says, before any weight is read, so that the answer is what the
//! folder *is* and not the first tensor that is missing. Only what is known by
//! name is refused here; a folder that is simply incomplete is left to whoever
//! misses the file.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::config::{COMPOSITES, Config};
use crate::source::Source;
use crate::{Error, Result};

/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Names that a message lists.
const MAX_LISTED: usize = 8;
/// Characters of a text from a file that a message shows.
const MAX_TEXT: usize = 80;

/// Why a folder is refused: what it is, how that was recognised, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Weights in a quantized format of Hugging Face folders.
    #[error(
        "a model with weights quantized by {method} ({evidence}), which are not read; take the checkpoint that it was made from, or a GGUF file of the model"
    )]
    Quantized {
        /// The method.
        method: String,
        /// What shows it.
        evidence: String,
    },
    /// An adapter without its base model.
    #[error(
        "an adapter of type {kind} (adapter_config.json), not a model; merge it into its base model {base}, such as with peft's `merge_and_unload()` and `save_pretrained()`, and give the merged folder"
    )]
    Adapter {
        /// `peft_type`.
        kind: String,
        /// `base_model_name_or_path`.
        base: String,
    },
    /// Weights in another file format alone.
    #[error(
        "a model whose weights are {format} ({file}), and only safetensors are read; load it with the program that wrote it and save it as safetensors, or take a version that has them"
    )]
    Format {
        /// What the format is.
        format: WeightFormat,
        /// A file of that format.
        file: String,
    },
    /// Mistral's own layout.
    #[error(
        "a model in Mistral's own layout ({file}), whose names and settings differ; take the same model in the layout of transformers, with config.json and model.safetensors"
    )]
    Mistral {
        /// The file that shows it.
        file: String,
    },
    /// An image pipeline.
    #[error("a diffusers pipeline, {class} (model_index.json), not a language model")]
    Pipeline {
        /// `_class_name`.
        class: String,
    },
    /// A wrapper around an encoder of sentences.
    #[error(
        "a sentence-transformers model (modules.json), which makes one vector of a text; only decoders that predict the next token can be run"
    )]
    SentenceTransformer,
    /// A model of another kind than a decoder.
    #[error(
        "{kind}, `{model_type}` ({evidence}); only decoders that predict the next token can be run: model_type one of {}",
        known.join(", ")
    )]
    Kind {
        /// `model_type`.
        model_type: String,
        /// What it is instead.
        kind: Kind,
        /// What shows it.
        evidence: String,
        /// The families that are built.
        known: Vec<&'static str>,
    },
    /// GGUF files and no other model.
    #[error("a folder of GGUF files; name the file itself: {}", files.join(", "))]
    GgufFolder {
        /// Some of them.
        files: Vec<String>,
    },
    /// Folders with models, and no model of its own.
    #[error("not a model itself, but its sub-folders hold some: name one of {}", folders.join(", "))]
    Nested {
        /// Some of them.
        folders: Vec<String>,
    },
    /// A tokenizer without a model.
    #[error("a tokenizer alone ({file}), without config.json and weights")]
    TokenizerOnly {
        /// The tokenizer's file.
        file: String,
    },
    /// Nothing at all.
    #[error("an empty folder; a model has config.json, weights in safetensors and tokenizer.json")]
    Empty,
}

/// File formats of weights that are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightFormat {
    /// PyTorch's pickled tensors.
    PyTorch,
    /// TensorFlow's.
    TensorFlow,
    /// Flax's.
    Flax,
    /// ONNX graphs.
    Onnx,
    /// Numpy archives, as MLX and others write them.
    Numpy,
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PyTorch => "pickled PyTorch tensors",
            Self::TensorFlow => "TensorFlow's",
            Self::Flax => "Flax's",
            Self::Onnx => "part of an ONNX graph",
            Self::Numpy => "numpy arrays",
        })
    }
}

/// Kinds of models that are no decoders of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Every token sees the whole text.
    Encoder,
    /// A decoder that reads the output of an encoder.
    EncoderDecoder,
    /// Images in, vectors or labels out.
    Vision,
    /// Images and text.
    VisionLanguage,
    /// Sound.
    Speech,
    /// Recurrent: no attention.
    StateSpace,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encoder => "an encoder, which reads a text at once",
            Self::EncoderDecoder => "an encoder and a decoder together",
            Self::Vision => "a model of images",
            Self::VisionLanguage => "a model of images and text",
            Self::Speech => "a model of sound",
            Self::StateSpace => "a recurrent model, without attention in its layers",
        })
    }
}

/// `model_type`s of well-known models that are no decoders of text.
const KINDS: &[(Kind, &[&str])] = &[
    (
        Kind::Encoder,
        &[
            "albert",
            "bert",
            "big_bird",
            "camembert",
            "canine",
            "deberta",
            "deberta-v2",
            "distilbert",
            "electra",
            "ernie",
            "esm",
            "eurobert",
            "flaubert",
            "longformer",
            "modernbert",
            "mpnet",
            "new",
            "nomic_bert",
            "nystromformer",
            "roberta",
            "roformer",
            "squeezebert",
            "xlm",
            "xlm-roberta",
            "xlm-roberta-xl",
        ],
    ),
    (
        Kind::EncoderDecoder,
        &[
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "encoder-decoder",
            "fsmt",
            "led",
            "longt5",
            "m2m_100",
            "marian",
            "mbart",
            "mt5",
            "mvp",
            "nllb-moe",
            "pegasus",
            "pegasus_x",
            "prophetnet",
            "switch_transformers",
            "t5",
            "t5gemma",
            "umt5",
        ],
    ),
    (
        Kind::Vision,
        &[
            "beit",
            "convnext",
            "convnextv2",
            "deit",
            "detr",
            "dinov2",
            "dinov3_vit",
            "dpt",
            "mobilenet_v2",
            "resnet",
            "sam",
            "sam2",
            "segformer",
            "siglip_vision_model",
            "swin",
            "swinv2",
            "vit",
            "vit_mae",
            "yolos",
        ],
    ),
    (
        Kind::VisionLanguage,
        &[
            "align",
            "blip",
            "blip-2",
            "chinese_clip",
            "clip",
            "florence2",
            "git",
            "idefics",
            "idefics2",
            "idefics3",
            "instructblip",
            "internvl",
            "llava",
            "llava_next",
            "mllama",
            "paligemma",
            "pix2struct",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_vl",
            "siglip",
            "siglip2",
            "smolvlm",
            "vision-encoder-decoder",
        ],
    ),
    (
        Kind::Speech,
        &[
            "bark",
            "clap",
            "encodec",
            "hubert",
            "musicgen",
            "seamless_m4t",
            "speech_to_text",
            "speecht5",
            "unispeech",
            "vits",
            "wav2vec2",
            "wav2vec2-bert",
            "wavlm",
            "whisper",
        ],
    ),
    (Kind::StateSpace, &["mamba", "mamba2", "rwkv", "xlstm"]),
];

/// Names that quantization methods are known by.
const METHODS: &[(&str, &str)] = &[
    ("awq", "AWQ"),
    ("gptq", "GPTQ"),
    ("bitsandbytes", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("fp8", "FP8"),
    ("fbgemm_fp8", "FBGEMM FP8"),
    ("hqq", "HQQ"),
    ("aqlm", "AQLM"),
    ("eetq", "EETQ"),
    ("higgs", "HIGGS"),
    ("mxfp4", "MXFP4"),
    ("quanto", "Quanto"),
    ("quark", "Quark"),
    ("torchao", "torchao"),
    ("vptq", "VPTQ"),
    ("bitnet", "BitNet"),
];

/// Ends of tensor names that only quantized checkpoints have, and whose they are.
const QUANTIZED_TENSORS: &[(&str, &str)] = &[
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".SCB", "bitsandbytes, 8 bit"),
    (".weight.absmax", "bitsandbytes, 4 bit"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".W_q", "HQQ"),
];

/// Refuses a folder that is known not to be a model of safetensors.
pub(crate) fn check_folder(source: &Source) -> Result<()> {
    let Source::Folder(folder) = source else {
        return Ok(());
    };
    match of_folder(source, folder)? {
        None => Ok(()),
        Some(refusal) => Err(Error::Refused { path: folder.clone(), refusal }),
    }
}

fn of_folder(source: &Source, folder: &Path) -> Result<Option<Refusal>> {
    let has = |name: &str| folder.join(name).is_file();
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return Ok(match has("modules.json") && !is_built(source)? {
            true => Some(Refusal::SentenceTransformer),
            false => None,
        });
    }
    if has("adapter_config.json") {
        return adapter(source).map(Some);
    }
    if has("model_index.json") {
        let class = text(&read(source, "model_index.json")?, "_class_name");
        return Ok(Some(Refusal::Pipeline {
            class: class.unwrap_or_else(|| "of no stated class".to_owned()),
        }));
    }
    let entries = Entries::of(folder)?;
    // Mistral's shards have numbers behind the name.
    let mistral = |name: &&str| name.starts_with("consolidated.") && name.ends_with(".safetensors");
    if let Some(file) = entries.files().find(mistral) {
        return Ok(Some(Refusal::Mistral { file: file.to_owned() }));
    }
    if has("params.json") && !has("config.json") {
        return Ok(Some(Refusal::Mistral { file: "params.json".to_owned() }));
    }
    // A wrapper's weights may be in a sub-folder, under any name.
    if has("modules.json") && !is_built(source)? {
        return Ok(Some(Refusal::SentenceTransformer));
    }
    if let Some(format) = entries.foreign_weights() {
        return Ok(Some(format));
    }
    let gguf: Vec<String> = entries.with_extension("gguf").map(str::to_owned).collect();
    if !gguf.is_empty() {
        return Ok(Some(Refusal::GgufFolder { files: shorten(gguf) }));
    }
    if has("config.json") {
        return Ok(None);
    }
    if entries.is_empty() {
        return Ok(Some(Refusal::Empty));
    }
    const TOKENIZERS: [&str; 4] =
        ["tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"];
    if let Some(file) = TOKENIZERS.into_iter().find(|name| has(name)) {
        return Ok(Some(Refusal::TokenizerOnly { file: file.to_owned() }));
    }
    let holds_model = |name: &&str| folder.join(name).join("config.json").is_file();
    let nested: Vec<String> = entries
        .folders()
        .filter(holds_model)
        .map(|name| folder.join(name).display().to_string())
        .collect();
    Ok((!nested.is_empty()).then(|| Refusal::Nested { folders: shorten(nested) }))
}

/// Whether `config.json` names a family that is built.
fn is_built(source: &Source) -> Result<bool> {
    let model_type = text(&read(source, "config.json")?, "model_type");
    let composite = |name: &str| COMPOSITES.iter().any(|(whole, _)| *whole == name);
    Ok(model_type.is_some_and(|name| Config::KNOWN.contains(&name.as_str()) || composite(&name)))
}

fn adapter(source: &Source) -> Result<Refusal> {
    let config = read(source, "adapter_config.json")?;
    let unstated = || "of no stated name".to_owned();
    Ok(Refusal::Adapter {
        kind: text(&config, "peft_type").unwrap_or_else(unstated),
        base: text(&config, "base_model_name_or_path").unwrap_or_else(unstated),
    })
}

/// Refuses what a `config.json` says: quantized weights, models of another kind.
pub(crate) fn check_config(path: &Path, members: &Map<String, Value>) -> Result<()> {
    match quantization(members).or_else(|| kind(members)) {
        None => Ok(()),
        Some(refusal) => Err(Error::Refused { path: path.to_owned(), refusal }),
    }
}

/// Refuses a checkpoint with tensors of a quantized format that its configuration hides.
pub(crate) fn check_tensors<'a>(
    source: &Source,
    names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let quantized = |name: &str| {
        let method = QUANTIZED_TENSORS.iter().find(|(end, _)| name.ends_with(end))?.1;
        Some(Refusal::Quantized {
            method: method.to_owned(),
            evidence: format!("tensor `{}`", clip(name)),
        })
    };
    match names.into_iter().find_map(quantized) {
        None => Ok(()),
        Some(refusal) => Err(Error::Refused { path: source.path(), refusal }),
    }
}

fn quantization(members: &Map<String, Value>) -> Option<Refusal> {
    let refused = |method: &str, evidence: String| {
        let known = METHODS.iter().find(|(name, _)| method.eq_ignore_ascii_case(name));
        let method =
            known.map_or_else(|| format!("`{}`", clip(method)), |(_, name)| (*name).to_owned());
        Some(Refusal::Quantized { method, evidence })
    };
    const OLD_FLAGS: [&str; 2] = ["load_in_4bit", "load_in_8bit"];
    let flag = |object: &Map<String, Value>| {
        OLD_FLAGS.into_iter().find(|name| object.get(*name) == Some(&Value::Bool(true)))
    };
    for key in ["quantization_config", "compression_config"] {
        let Some(value) = members.get(key).filter(|value| !value.is_null()) else {
            continue;
        };
        let empty = Map::new();
        let object = value.as_object().unwrap_or(&empty);
        if let Some(method) = object.get("quant_method").and_then(Value::as_str) {
            let shown = clip(method);
            return refused(method, format!("config.json: `{key}.quant_method` is `{shown}`"));
        }
        return match flag(object) {
            Some(name) => refused("bitsandbytes", format!("config.json: `{key}.{name}` is true")),
            None => refused("an unnamed method", format!("config.json has `{key}`")),
        };
    }
    if let Some(name) = flag(members) {
        return refused("bitsandbytes", format!("config.json: `{name}` is true"));
    }
    let mlx = members.get("quantization").and_then(Value::as_object)?;
    let bits = mlx.get("bits").filter(|_| mlx.contains_key("group_size"))?;
    let method = format!("MLX, {} bits", clip(&bits.to_string()));
    Some(Refusal::Quantized {
        method,
        evidence: "config.json: `quantization` with `group_size` and `bits`".to_owned(),
    })
}

fn kind(members: &Map<String, Value>) -> Option<Refusal> {
    let model_type = members.get("model_type").and_then(Value::as_str)?;
    let refused = |kind, evidence: String| {
        let (model_type, known) = (clip(model_type), Config::KNOWN.to_vec());
        Some(Refusal::Kind { model_type, kind, evidence, known })
    };
    if let Some((kind, _)) = KINDS.iter().find(|(_, names)| names.contains(&model_type)) {
        return refused(*kind, "by its model_type in config.json".to_owned());
    }
    if members.get("is_encoder_decoder") == Some(&Value::Bool(true)) {
        let evidence = "config.json: `is_encoder_decoder` is true".to_owned();
        return refused(Kind::EncoderDecoder, evidence);
    }
    // What follows is a guess from a name, and a family that is built needs none.
    if Config::KNOWN.contains(&model_type)
        || COMPOSITES.iter().any(|(whole, _)| *whole == model_type)
    {
        return None;
    }
    let architecture = members.get("architectures")?.as_array()?.first()?.as_str()?;
    let guess = [
        ("ForMaskedLM", Kind::Encoder),
        ("ForImageClassification", Kind::Vision),
        ("ForSpeechSeq2Seq", Kind::Speech),
        ("ForCTC", Kind::Speech),
        ("ForSeq2SeqLM", Kind::EncoderDecoder),
    ];
    let (_, kind) = guess.into_iter().find(|(end, _)| architecture.ends_with(end))?;
    refused(kind, format!("config.json: `architectures` has {}", clip(architecture)))
}

/// The names in a folder, as many as are looked at.
struct Entries(Vec<(String, bool)>);

impl Entries {
    fn of(folder: &Path) -> Result<Self> {
        let read = |source| Error::Read { path: folder.to_owned(), source };
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(read)?.take(MAX_ENTRIES) {
            let entry = entry.map_err(read)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Hidden files are a version control's or an editor's.
            if !name.starts_with('.') {
                entries.push((name, entry.path().is_dir()));
            }
        }
        entries.sort();
        Ok(Self(entries))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn files(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, folder)| !folder).map(|(name, _)| name.as_str())
    }

    fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, folder)| *folder).map(|(name, _)| name.as_str())
    }

    fn with_extension(&self, extension: &str) -> impl Iterator<Item = &str> {
        self.files().filter(move |name| {
            let own = Path::new(name).extension().and_then(|own| own.to_str());
            own.is_some_and(|own| own.eq_ignore_ascii_case(extension))
        })
    }

    /// Weights in a format that is not read.
    fn foreign_weights(&self) -> Option<Refusal> {
        let named = |name: &str| {
            let format = match Path::new(name).extension()?.to_str()? {
                "bin" if name.starts_with("pytorch_model") || name.starts_with("model") => {
                    WeightFormat::PyTorch
                }
                "pt" | "pth" | "ckpt" => WeightFormat::PyTorch,
                "h5" => WeightFormat::TensorFlow,
                "msgpack" => WeightFormat::Flax,
                "onnx" => WeightFormat::Onnx,
                "npz" => WeightFormat::Numpy,
                _ => return None,
            };
            Some(Refusal::Format { format, file: name.to_owned() })
        };
        self.files().find_map(named)
    }
}

/// A small JSON file's members; none if it is absent or holds something else,
/// which is for its proper reader to say.
fn read(source: &Source, name: &str) -> Result<Map<String, Value>> {
    let json = source.open_json(name)?;
    let value = json.and_then(|json| serde_json::from_slice(&json).ok());
    Ok(match value {
        Some(Value::Object(members)) => members,
        _ => Map::new(),
    })
}

fn text(members: &Map<String, Value>, key: &str) -> Option<String> {
    members.get(key).and_then(Value::as_str).map(clip)
}

fn clip(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

/// The first names, and a mark where there are more.
fn shorten(mut names: Vec<String>) -> Vec<String> {
    if names.len() > MAX_LISTED {
        let more = names.len() - MAX_LISTED;
        names.truncate(MAX_LISTED);
        names.push(format!("and {more} more"));
    }
    names
}

/// The files of a folder that nothing here reads, by name, as many as are looked at.
pub(crate) fn unread(folder: &Path, read: &[&str]) -> Result<Vec<String>> {
    let entries = Entries::of(folder)?;
    let shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let unread = entries.files().filter(|name| !read.contains(name) && !shard(name));
    Ok(unread.map(clip).collect())
}
