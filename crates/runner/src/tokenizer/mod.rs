//! Text to token ids and back.
//!
//! The work is the `tokenizers` library's, from a `tokenizer.json` as it is or
//! from a GGUF file's metadata; both answer through one type. Special tokens
//! around a text (a BOS, usually) are the file's own rule, which a caller can
//! switch off but not change. Special tokens written in a text are another
//! matter: a caller chooses whether they are those tokens or plain text.

mod definition;
mod gguf;
mod kinds;
mod limits;
mod pieces;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use crate::gguf::Gguf;
use crate::source::Source;
use crate::{Error, Result};

/// The most bytes that a text may have when it is normalized. Each takes about 20 bytes
/// of memory, with its place in the text.
const MAX_NORMALIZED: usize = 256 << 20;

/// Whether the tokens that the model expects around a text are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Special {
    /// As the tokenizer's file says: a BOS, an EOS, both or none.
    #[default]
    Add,
    /// The text alone.
    Omit,
}

/// What special tokens written in a text are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Written {
    /// Those tokens: `<|im_end|>` is one token.
    #[default]
    Parse,
    /// Plain text: `<|im_end|>` is ten characters like any others. What
    /// transformers calls `split_special_tokens`.
    Plain,
}

/// A tokenized text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The tokens as the vocabulary spells them (a byte-level vocabulary writes
    /// ` the` as `Ġthe`).
    pub tokens: Vec<String>,
    /// Where each token stands in the text: start and end, counted in Unicode
    /// scalar values. `(0, 0)` for tokens that are not in the text. Several tokens
    /// that share the bytes of one character each span that character.
    pub offsets: Vec<(usize, usize)>,
}

/// The library's pipeline around [`pieces::Pieces`].
type PieceTokenizer = TokenizerImpl<
    pieces::Pieces,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

#[derive(Clone, Debug)]
enum Inner {
    Library(Box<tokenizers::Tokenizer>),
    Pieces(Box<PieceTokenizer>),
}

/// Calls the same method of either kind.
macro_rules! either {
    ($inner:expr, $tokenizer:ident => $call:expr) => {
        match $inner {
            Inner::Library($tokenizer) => $call,
            Inner::Pieces($tokenizer) => $call,
        }
    };
}

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    /// The most bytes that normalizing and cutting make of one byte of text.
    growth: usize,
    /// Added before the text beside what `inner` itself adds.
    bos: Option<u32>,
    /// Added behind the text beside what `inner` itself adds.
    eos: Option<u32>,
}

impl Tokenizer {
    /// Loads a model's tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::FileMissing`] if a folder has no `tokenizer.json`,
    /// [`Error::Tokenizer`] if it cannot be used, [`Error::Gguf`] and
    /// [`Error::Unsupported`] for a GGUF file's metadata.
    pub fn load(source: &Source) -> Result<Self> {
        const FILE: &str = "tokenizer.json";
        if let Source::Gguf(path) = source {
            return gguf::tokenizer(&Gguf::open(path)?);
        }
        let json = source
            .open_json(FILE)?
            .ok_or_else(|| Error::FileMissing { folder: source.path(), expected: FILE })?;
        Self::from_json(source.file_path(FILE), &json)
    }

    fn from_json(path: PathBuf, json: &[u8]) -> Result<Self> {
        // The library panics on some files that are not even JSON.
        limits::check_sizes(json).map_err(|source| Error::Json { path: path.clone(), source })?;
        let growth = limits::check_growth(json)
            .map_err(|source| Error::Tokenizer { path: path.clone(), source })?;
        let inner = guarded(|| {
            definition::check(json)?;
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            // Cutting and padding are the caller's, aloud.
            inner.with_truncation(None)?.with_padding(None);
            Ok(inner)
        })
        .map_err(|source| Error::Tokenizer { path, source })?;
        Ok(Self { inner: Inner::Library(Box::new(inner)), growth, bos: None, eos: None })
    }

    /// Chooses what special tokens written in a text are, for every text from here on.
    pub fn set_written(&mut self, written: Written) {
        let plain = written == Written::Plain;
        either!(&mut self.inner, inner => inner.set_encode_special_tokens(plain));
    }

    /// Tokenizes a text.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] if the vocabulary cannot express the text,
    /// [`Error::Normalized`] if normalizing could make too much of it.
    pub fn encode(&self, text: &str, special: Special) -> Result<Encoding> {
        let bytes = text.len().saturating_mul(self.growth);
        if bytes > MAX_NORMALIZED {
            return Err(Error::Normalized { bytes, limit: MAX_NORMALIZED });
        }
        let add = special == Special::Add;
        let encode = || either!(&self.inner, inner => inner.encode_char_offsets(text, add));
        let encoded = guarded(encode).map_err(|source| Error::Encode { source })?;
        let mut encoding = Encoding::default();
        let mut push = |id: u32, token: String, offsets| {
            encoding.ids.push(id);
            encoding.tokens.push(token);
            encoding.offsets.push(offsets);
        };
        let around = |id: Option<u32>| id.filter(|_| add).map(|id| (id, self.token(id)));
        if let Some((id, token)) = around(self.bos) {
            push(id, token.unwrap_or_default(), (0, 0));
        }
        // Asked for again: the library shows a token that takes white space with it.
        for (&id, &offsets) in encoded.get_ids().iter().zip(encoded.get_offsets()) {
            push(id, self.token(id).unwrap_or_default(), offsets);
        }
        if let Some((id, token)) = around(self.eos) {
            push(id, token.unwrap_or_default(), (0, 0));
        }
        Ok(encoding)
    }

    /// The text of some tokens, special ones included.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] if the tokenizer cannot decode.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| either!(&self.inner, inner => inner.decode(ids, false)))
            .map_err(|source| Error::Encode { source })
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        either!(&self.inner, inner => inner.id_to_token(id))
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        either!(&self.inner, inner => inner.token_to_id(token))
    }

    /// Entries of the vocabulary, added tokens included.
    pub fn vocabulary_size(&self) -> usize {
        either!(&self.inner, inner => inner.get_vocab_size(true))
    }
}

/// Calls the tokenizer library, whose parts panic on some malformed definitions;
/// a panic becomes an error like any other.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let reason = panic.downcast_ref::<String>().map(String::as_str);
        let reason = reason.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("its definition is malformed ({})", reason.unwrap_or("no reason given")).into())
    })
}
