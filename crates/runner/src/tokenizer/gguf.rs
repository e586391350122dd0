//! A tokenizer from a GGUF file's metadata.
//!
//! Byte-level BPE: the metadata holds vocabulary and merges, and names the rule
//! by which a text is split before merging. The rules are written out here with
//! the library's own parts, so that they behave as the original tokenizers do.

use std::collections::BTreeSet;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::Tokenizer;
use crate::config::fields::bound;
use crate::error::GgufFault;
use crate::gguf::Gguf;
use crate::{Error, Result};

/// Letters with one character before them, numbers of up to three digits, runs
/// of other characters, and white space, as the Llama 3 tokenizer splits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Splitting rules that are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PreTokenizer {
    /// GPT-2's regular expression; also what files without a name mean.
    Gpt2,
    /// Every digit by itself, then GPT-2's.
    SmolLm,
    /// Llama 3's regular expression.
    Llama3,
}

impl PreTokenizer {
    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        // Arguments: no space put before the text, offsets trimmed, own regular expression.
        let gpt2 = ByteLevel::new(false, true, true);
        Ok(match self {
            Self::Gpt2 => gpt2.into(),
            Self::SmolLm => Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
            Self::Llama3 => {
                let pattern = SplitPattern::Regex(LLAMA3.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
                Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into()
            }
        })
    }
}

/// Builds the tokenizer that the metadata describes.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    let model = gguf.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(unsupported(gguf, "tokenizer.ggml.model", model, "gpt2, byte-level BPE"));
    }
    let rule = rule(gguf)?;
    let tokens = gguf.texts("tokenizer.ggml.tokens")?;
    let vocabulary = vocabulary(gguf, &tokens)?;
    let merges = merges(gguf)?;
    let failed = |source| Error::Tokenizer { path: gguf.path().to_owned(), source };
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(rule == PreTokenizer::Llama3)
        .build()
        .map_err(failed)?;
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(rule.build().map_err(failed)?));
    inner.with_decoder(Some(ByteLevelDecoder::new(false, true, true)));
    let (special, plain) = added(gguf, &tokens)?;
    inner.add_special_tokens(special).map_err(failed)?;
    inner.add_tokens(plain).map_err(failed)?;
    let around = |name: &str, default| {
        if !gguf.flag_or(&format!("tokenizer.ggml.add_{name}_token"), default)? {
            return Ok(None);
        }
        let id = gguf.count(
            &format!("tokenizer.ggml.{name}_token_id"),
            0..=tokens.len().saturating_sub(1),
        )?;
        // Below the number of tokens, which is bounded.
        Ok::<_, Error>(Some(id as u32))
    };
    Ok(Tokenizer {
        bos: around("bos", rule == PreTokenizer::Llama3)?,
        eos: around("eos", false)?,
        growth: 1,
        inner,
    })
}

fn unsupported(gguf: &Gguf, what: &'static str, found: &str, supported: &'static str) -> Error {
    Error::Unsupported {
        path: gguf.path().to_owned(),
        what,
        found: found.chars().take(80).collect(),
        supported,
    }
}

fn rule(gguf: &Gguf) -> Result<PreTokenizer> {
    const KEY: &str = "tokenizer.ggml.pre";
    if !gguf.has(KEY) {
        return Ok(PreTokenizer::Gpt2);
    }
    match gguf.text(KEY)? {
        "default" | "gpt-2" => Ok(PreTokenizer::Gpt2),
        "smollm" => Ok(PreTokenizer::SmolLm),
        "llama3" | "llama-v3" | "llama-bpe" => Ok(PreTokenizer::Llama3),
        other => Err(unsupported(gguf, KEY, other, "default, gpt-2, smollm and llama-bpe")),
    }
}

fn vocabulary(gguf: &Gguf, tokens: &[&str]) -> Result<Vocab> {
    const KEY: &str = "tokenizer.ggml.tokens";
    let fail = |fault| Error::Gguf { path: gguf.path().to_owned(), fault };
    if tokens.is_empty() || tokens.len() > bound::VOCABULARY {
        return Err(fail(GgufFault::Key {
            key: KEY.to_owned(),
            found: format!("an array of {}", tokens.len()),
            expected: format!("from 1 to {} tokens", bound::VOCABULARY),
        }));
    }
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).to_owned(), id as u32).is_some() {
            return Err(fail(GgufFault::Duplicate { name: (*token).to_owned() }));
        }
    }
    Ok(vocabulary)
}

fn merges(gguf: &Gguf) -> Result<Merges> {
    const KEY: &str = "tokenizer.ggml.merges";
    let split = |merge: &str| {
        // A vocabulary of bytes writes its spaces otherwise, so the first one divides.
        let (left, right) = merge.split_once(' ')?;
        Some((left.to_owned(), right.to_owned()))
    };
    gguf.texts(KEY)?
        .into_iter()
        .map(|merge| {
            split(merge).ok_or_else(|| Error::Gguf {
                path: gguf.path().to_owned(),
                fault: GgufFault::Key {
                    key: KEY.to_owned(),
                    found: format!("`{}`", merge.chars().take(80).collect::<String>()),
                    expected: "two tokens with a space between".to_owned(),
                },
            })
        })
        .collect()
}

/// Tokens that are matched in a text as a whole: special ones, and others.
fn added(gguf: &Gguf, tokens: &[&str]) -> Result<(Vec<AddedToken>, Vec<AddedToken>)> {
    const KEY: &str = "tokenizer.ggml.token_type";
    const UNKNOWN: i64 = 2;
    const CONTROL: i64 = 3;
    const USER_DEFINED: i64 = 4;
    if !gguf.has(KEY) {
        return Ok((Vec::new(), Vec::new()));
    }
    let types = gguf.integers(KEY)?;
    if types.len() != tokens.len() {
        return Err(Error::Gguf {
            path: gguf.path().to_owned(),
            fault: GgufFault::Key {
                key: KEY.to_owned(),
                found: format!("an array of {}", types.len()),
                expected: format!("one type for each of the {} tokens", tokens.len()),
            },
        });
    }
    let of = |kinds: BTreeSet<i64>, special| {
        let chosen = tokens.iter().zip(&types).filter(|(_, kind)| kinds.contains(kind));
        chosen.map(|(token, _)| AddedToken::from(*token, special).normalized(false)).collect()
    };
    Ok((of([UNKNOWN, CONTROL].into(), true), of([USER_DEFINED].into(), false)))
}
