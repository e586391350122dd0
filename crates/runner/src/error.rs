//! What can go wrong between a model's name and its logits.

use std::fmt::Display;
use std::path::PathBuf;

use crate::hub::HubFault;
use crate::refusal::Refusal;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Text that may repeat a file's content, cut in the middle to what a terminal can show.
fn brief(text: &dyn Display) -> String {
    const HEAD: usize = 300;
    const TAIL: usize = 100;
    let text = text.to_string();
    if text.len() <= HEAD + TAIL {
        return text;
    }
    let (head, tail) = (text.floor_char_boundary(HEAD), text.ceil_char_boundary(text.len() - TAIL));
    format!("{} … {}", &text[..head], &text[tail..])
}

/// Whose fault an [`Error`] is; a program's exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What was asked for: a prompt, a selection, an edit.
    Request,
    /// The model's files: absent, damaged, or not supported.
    Model,
    /// Device or memory.
    Device,
    /// Neither: a tensor operation or an observer failed.
    Internal,
}

/// Why a model could not be found, read or run.
///
/// Messages name the file, the tensor or the field, what was found and what was
/// expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing answers to this name.
    #[error(
        "no model `{spec}`; tried {}; give a model folder, a .gguf file, a built-in name or a hub id as org/name",
        tried.join(", ")
    )]
    NotFound {
        /// The name as given.
        spec: String,
        /// What was looked for, in order.
        tried: Vec<String>,
    },
    /// A model of the hub could not be had.
    #[error("{model}: {fault}")]
    Hub {
        /// Its id as given.
        model: String,
        /// Why not.
        fault: Box<HubFault>,
    },
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file that a model folder needs is not there.
    #[error("{} has no {expected}", folder.display())]
    FileMissing {
        /// The folder.
        folder: PathBuf,
        /// The file, or the files of which one would do.
        expected: &'static str,
    },
    /// A file is larger than anything of its kind.
    #[error("{} has {bytes} bytes, more than the {limit} that such a file may have", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The largest accepted size in bytes.
        limit: u64,
    },
    /// A file is not JSON, or its JSON has another structure.
    #[error("{} is not the JSON that it should be: {}", path.display(), brief(source))]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and how it departs.
        source: serde_json::Error,
    },
    /// The model is of a family that is not built.
    #[error("{}: model_type `{found}` is not known; known are {}", path.display(), known.join(", "))]
    UnknownModelType {
        /// The file that says so.
        path: PathBuf,
        /// The family it names.
        found: String,
        /// The families that are built.
        known: Vec<&'static str>,
    },
    /// A field of a configuration that is required is not there.
    #[error("{}: `{field}` is missing", path.display())]
    FieldMissing {
        /// The file.
        path: PathBuf,
        /// The field's full name.
        field: String,
    },
    /// A field of a configuration has a value that cannot be meant.
    #[error("{}: `{field}` is {found}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's full name.
        field: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A safetensors file whose header or layout is wrong.
    #[error("{}: {fault}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: SafetensorsFault,
    },
    /// A GGUF file whose header or layout is wrong.
    #[error("{}: {fault}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: GgufFault,
    },
    /// The index of a sharded checkpoint points to something that is not there.
    #[error("{}: tensor `{}` should be in `{}`: {problem}", path.display(), brief(tensor), brief(shard))]
    Shard {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard's file name.
        shard: String,
        /// Why it cannot be read from there.
        problem: &'static str,
    },
    /// The model needs a tensor that its files do not hold.
    #[error("{} has no tensor `{tensor}`, which the model needs", path.display())]
    TensorMissing {
        /// File or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has not the shape that the configuration implies.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// File or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape from the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has an element type that weights cannot have.
    #[error("{}: tensor `{tensor}` has dtype {found}, expected {expected}", path.display())]
    TensorDtype {
        /// File or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Accepted types.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor `{tensor}` holds {value} at element {index}; the file is damaged", path.display())]
    NotFinite {
        /// File or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Flat index of the first such element (for block-quantized weights, of the block's first element).
        index: usize,
        /// The value.
        value: f32,
    },
    /// The tokenizer's file cannot be used.
    #[error("{}: the tokenizer cannot be built: {}", path.display(), brief(source))]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer library's answer.
        source: tokenizers::Error,
    },
    /// A text could not be tokenized.
    #[error("the text cannot be tokenized: {}", brief(source))]
    Encode {
        /// The tokenizer library's answer.
        source: tokenizers::Error,
    },
    /// A text that the tokenizer could turn into far more text.
    #[error(
        "normalizing could make {bytes} bytes of the text, more than the {limit} that are taken; shorten it"
    )]
    Normalized {
        /// The most bytes that it could become.
        bytes: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// The model has no chat template that could be taken.
    #[error(
        "{} has no chat template; looked for {looked_for}{}",
        path.display(),
        if named.is_empty() { String::new() } else { format!(", and found {} but none named default", named.join(", ")) }
    )]
    ChatTemplateMissing {
        /// File or folder.
        path: PathBuf,
        /// Where a template could have been.
        looked_for: &'static str,
        /// Names of templates that were found.
        named: Vec<String>,
    },
    /// A chat template that cannot be parsed, fails, or does not come to an end.
    #[error("{}: the chat template fails: {source}", path.display())]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// The template engine's answer.
        source: Box<minijinja::Error>,
    },
    /// A chat template does not take a conversation.
    #[error("{}: the chat template refuses the conversation: {message}", path.display())]
    ChatRefused {
        /// The file.
        path: PathBuf,
        /// The template's own words.
        message: String,
    },
    /// A chat template prints the date, and none is given.
    #[error("{}: the chat template prints the date; say which", path.display())]
    ChatDate {
        /// The file.
        path: PathBuf,
    },
    /// A text that is no day.
    #[error("`{text}` is no date; expected one such as 2026-11-23")]
    Date {
        /// The text.
        text: String,
    },
    /// A text file that is not UTF-8.
    #[error("{} is not UTF-8", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
    },
    /// A file names a method that this build does not have.
    #[error("{}: {what} `{found}` is not supported; supported are {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What kind of method.
        what: &'static str,
        /// The method it names.
        found: String,
        /// The ones that are built.
        supported: &'static str,
    },
    /// A folder that is known to be something else than a model that can be run.
    #[error("{} is {refusal}", path.display())]
    Refused {
        /// The folder, or the file of it that says so.
        path: PathBuf,
        /// What it is.
        refusal: Refusal,
    },
    /// No device to put layers on.
    #[error("a model was to be placed on devices, and the list of them is empty")]
    NoDevice,
    /// A dtype of GPUs where there is none.
    #[error(
        "on the cpu models compute in f32: bf16 and f16 are dtypes for gpus; leave the dtype out"
    )]
    HalfOnCpu,
    /// A token that the vocabulary does not have.
    #[error(
        "row {row}, position {position}: token id {id} is not below the vocabulary size {d_vocab}"
    )]
    TokenId {
        /// Row of the batch.
        row: usize,
        /// Position within the row.
        position: usize,
        /// The token.
        id: u32,
        /// Size of the vocabulary.
        d_vocab: usize,
    },
    /// A row is longer than the model's context.
    #[error("row {row} ends at {length} tokens, the model's context is {n_ctx}; cut the prompt")]
    TooLong {
        /// Row of the batch.
        row: usize,
        /// Tokens including those already in the cache.
        length: usize,
        /// The model's context, in tokens.
        n_ctx: usize,
    },
    /// An input tensor does not fit the batch.
    #[error("the input has shape {found:?}, expected {expected:?}, [batch, pos, d_model]")]
    InputShape {
        /// Shape that the batch and the model imply.
        expected: Vec<usize>,
        /// Shape of the tensor.
        found: Vec<usize>,
    },
    /// Layers that the model does not have, or that this input cannot enter.
    #[error("layers {start}..{end} cannot be run: {problem} (the model has {n_layers} layers)")]
    LayerRange {
        /// First layer.
        start: usize,
        /// One past the last layer.
        end: usize,
        /// Layers of the model.
        n_layers: usize,
        /// What is wrong with the range.
        problem: &'static str,
    },
    /// A wanted hook point or an edit lies outside the layers that would be run.
    #[error("`{point}` lies outside the layers {start}..{end} that this run computes")]
    OutsideRange {
        /// The hook point.
        point: hooks::HookPoint,
        /// First layer of the run.
        start: usize,
        /// One past its last layer.
        end: usize,
    },
    /// A row's length and that of its cached keys lie on different sides of the length
    /// at which the model changes the rotary frequencies of every position.
    #[error(
        "row {row} would have {length} tokens and its cached keys are those of {cached}, and beyond {at} this model rotates every position otherwise: the cached keys do not serve; run the whole sequence at once"
    )]
    FrequencySwitch {
        /// Row of the batch.
        row: usize,
        /// Tokens including those already in the cache.
        length: usize,
        /// Tokens in the cache.
        cached: usize,
        /// The most tokens with the usual frequencies.
        at: usize,
    },
    /// The key-value cache does not continue this batch.
    #[error(
        "row {row} begins at position {offset}, but layer {layer} of the key-value cache holds {cached} positions"
    )]
    CachePosition {
        /// Row of the batch.
        row: usize,
        /// Layer.
        layer: usize,
        /// Where the row says it begins.
        offset: usize,
        /// Positions held.
        cached: usize,
    },
    /// The key-value cache belongs to a batch with another number of rows.
    #[error("the key-value cache was made for {cached} rows, the batch has {rows}")]
    CacheRows {
        /// Rows of the batch.
        rows: usize,
        /// Rows of the cache.
        cached: usize,
    },
    /// A plan, a selection or an observer failed.
    #[error(transparent)]
    Hooks(#[from] hooks::Error),
    /// A numeric operation was refused.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(candle_core::Error),
}

/// A device's failure is [`Error::Kernel`] with its kind, wherever it showed.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        kernels::Error::of_device("the forward pass", error).map_or_else(Self::Tensor, Self::Kernel)
    }
}

impl Error {
    /// Whose fault this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::TokenId { .. }
            | Self::TooLong { .. }
            | Self::InputShape { .. }
            | Self::LayerRange { .. }
            | Self::OutsideRange { .. }
            | Self::CachePosition { .. }
            | Self::FrequencySwitch { .. }
            | Self::CacheRows { .. }
            | Self::HalfOnCpu
            | Self::Normalized { .. }
            | Self::Encode { .. }
            | Self::ChatRefused { .. }
            | Self::ChatDate { .. }
            | Self::Date { .. } => Fault::Request,
            Self::Hooks(hooks::Error::Sink(_) | hooks::Error::Tensor(_)) => Fault::Internal,
            Self::Hooks(_) => Fault::Request,
            Self::NoDevice => Fault::Device,
            Self::Kernel(error) if error.is_of_device() => Fault::Device,
            Self::Kernel(_) | Self::Tensor(_) => Fault::Internal,
            _ => Fault::Model,
        }
    }
}

/// What is wrong with a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsFault {
    /// Too short to hold even the header's length.
    #[error("the file has {bytes} bytes, fewer than the 8 of a safetensors header length")]
    TooShort {
        /// Size of the file in bytes.
        bytes: usize,
    },
    /// The header's length is larger than any real header.
    #[error(
        "the header claims {claimed} bytes, more than the {limit} that are accepted; this is not a safetensors file"
    )]
    HeaderTooLong {
        /// Claimed length in bytes.
        claimed: u64,
        /// Accepted length in bytes.
        limit: u64,
    },
    /// The header reaches beyond the end of the file.
    #[error("the header claims {claimed} bytes but only {available} follow; the file is truncated")]
    HeaderBeyondFile {
        /// Claimed length in bytes.
        claimed: u64,
        /// Bytes after the length field.
        available: usize,
    },
    /// The header is not JSON of the right structure.
    #[error("the header cannot be read: {}", brief(reason))]
    Header {
        /// The parser's answer.
        reason: String,
    },
    /// A name stands twice.
    #[error("tensor `{tensor}` stands twice in the header")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// A name longer than any real one.
    #[error("a tensor's name has {bytes} bytes, more than the {limit} that are accepted")]
    LongName {
        /// Its length in bytes.
        bytes: usize,
        /// Accepted length in bytes.
        limit: usize,
    },
    /// More dimensions than any real tensor has.
    #[error("tensor `{tensor}` has {found} dimensions, more than the {limit} that are accepted")]
    Rank {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        found: usize,
        /// Accepted dimensions.
        limit: usize,
    },
    /// A tensor ends before it begins, or beyond the file.
    #[error(
        "tensor `{tensor}` lies at bytes {start}..{end} of a data section of {available} bytes; the file is truncated or its header is wrong"
    )]
    OutOfBounds {
        /// The tensor.
        tensor: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of the data section.
        available: usize,
    },
    /// A tensor's bytes do not match its shape and type.
    #[error("tensor `{tensor}` of dtype {dtype} and shape {shape:?} cannot have {bytes} bytes")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its bytes in the file.
        bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins within it.
        second: String,
    },
}

/// What is wrong with a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// The first four bytes are not `GGUF`.
    #[error("the file begins with {found:02x?}, not with `GGUF`")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// A version of the format that is not read.
    #[error("version {found} of the format is not supported; supported are 2 and 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// The file ends within its header.
    #[error("the file ends at byte {bytes}, within {what}; it is truncated")]
    Truncated {
        /// What was being read.
        what: String,
        /// Size of the file in bytes.
        bytes: usize,
    },
    /// A count that the file is too small for.
    #[error("{what} claims {claimed} entries, more than the file's {bytes} bytes can hold")]
    Count {
        /// What was being read.
        what: String,
        /// The count.
        claimed: u64,
        /// Size of the file in bytes.
        bytes: usize,
    },
    /// A key or name longer than any real one.
    #[error("{what} has {bytes} bytes, more than the {limit} that are accepted")]
    LongName {
        /// What was being read.
        what: String,
        /// Its length in bytes.
        bytes: usize,
        /// Accepted length in bytes.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    Utf8 {
        /// What was being read.
        what: String,
    },
    /// A name stands twice.
    #[error("`{}` stands twice in the header", brief(name))]
    Duplicate {
        /// Key, tensor or token.
        name: String,
    },
    /// A metadata value of an unknown or nested type.
    #[error("metadata `{key}` has value type {found}, which is not supported")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
    },
    /// A required key is not there.
    #[error("metadata `{key}` is missing")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// A key has a value that cannot be meant.
    #[error("metadata `{key}` is {found}, expected {expected}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// The alignment is not a power of two of at least 8.
    #[error("alignment {found} is not a power of two of at least 8 and at most 65536")]
    Alignment {
        /// The alignment in bytes.
        found: u64,
    },
    /// A tensor does not begin at a multiple of the alignment.
    #[error(
        "tensor `{tensor}` begins at byte {offset} of the data section, not a multiple of {alignment}"
    )]
    Unaligned {
        /// The tensor.
        tensor: String,
        /// Its offset in bytes.
        offset: u64,
        /// The file's alignment in bytes.
        alignment: u64,
    },
    /// A tensor with no, too many, or zero dimensions.
    #[error("tensor `{tensor}` has dimensions {dims:?}, expected one to four, none of them zero")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// The dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// A quantization that is not built.
    #[error(
        "tensor `{tensor}` is stored as {found}, which is not supported; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K"
    )]
    Quantization {
        /// The tensor.
        tensor: String,
        /// The type's name.
        found: String,
    },
    /// Rows that do not consist of whole blocks.
    #[error(
        "tensor `{tensor}` has rows of {row} elements, not a multiple of the {block} of a {dtype} block"
    )]
    Blocks {
        /// The tensor.
        tensor: String,
        /// Elements in a row.
        row: u64,
        /// Elements in a block.
        block: usize,
        /// The type's name.
        dtype: &'static str,
    },
    /// A tensor beyond the end of the file.
    #[error(
        "tensor `{tensor}` needs {needed} bytes at byte {start}, the file has {bytes}; it is truncated"
    )]
    OutOfBounds {
        /// The tensor.
        tensor: String,
        /// Its first byte in the file.
        start: u64,
        /// Its size in bytes.
        needed: u64,
        /// Size of the file in bytes.
        bytes: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins within it.
        second: String,
    },
    /// A later file of a model in several.
    #[error("this is file {number} of {count} of one model; name the first of them")]
    SplitNotFirst {
        /// The file's number, from 1.
        number: usize,
        /// Files of the model.
        count: usize,
    },
    /// The first file of a model in several, under a name that does not lead to the others.
    #[error(
        "this is the first of the {count} files of one model, whose names must end alike: rename it to {expected}"
    )]
    SplitName {
        /// Files of the model.
        count: usize,
        /// How its name must end.
        expected: String,
    },
    /// A file that does not say it is the one that its name says.
    #[error("this should be file {number} of {count} of one model, and does not say so")]
    SplitOther {
        /// The number that its name says, from 1.
        number: usize,
        /// Files of the model.
        count: usize,
    },
    /// The files of a model hold another number of tensors than the first one says.
    #[error("the files of this model hold {found} tensors, the first one says {expected}")]
    SplitTensors {
        /// Tensors that the first file says there are.
        expected: usize,
        /// Tensors in all files.
        found: usize,
    },
}
