//! A tokenizer from a GGUF file's metadata.
//!
//! Two kinds are built. Byte-level BPE (`gpt2`): the metadata holds vocabulary and
//! merges, and names the rule by which a text is cut before merging. SentencePiece
//! BPE (`llama`): pieces with scores, and how spaces are treated. Both are put
//! together of the library's own parts, so that they behave as the original
//! tokenizers do.
//!
//! Everything the library would stumble over is checked before it is called.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Sequence};
use tokenizers::{AddedToken, Tokenizer as Library};

use super::kinds::{Bos, Kind, NAMES, Whole};
use super::limits;
use super::pieces::{Pieces, Role};
use super::{Inner, PieceTokenizer, Tokenizer};
use crate::config::fields::bound;
use crate::error::GgufFault;
use crate::gguf::Gguf;
use crate::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// Builds the tokenizer that the metadata describes.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    // A separator behind the text is for models that compare texts.
    if gguf.flag_or("tokenizer.ggml.add_sep_token", false)? {
        let key = "tokenizer.ggml.add_sep_token";
        return Err(unsupported(gguf, key, "true", "false"));
    }
    match gguf.text(MODEL)? {
        "gpt2" => byte_level(gguf),
        "llama" => sentence_pieces(gguf),
        other => {
            let built = "gpt2 (byte-level BPE) and llama (SentencePiece BPE)";
            Err(unsupported(gguf, MODEL, other, built))
        }
    }
}

fn byte_level(gguf: &Gguf) -> Result<Tokenizer> {
    let name = if gguf.has(PRE) { gguf.text(PRE)? } else { "default" };
    let kind = Kind::named(name).ok_or_else(|| unsupported(gguf, PRE, name, NAMES))?;
    let tokens = tokens(gguf)?;
    let vocabulary = vocabulary(gguf, &tokens)?;
    let merges = merges(gguf, &vocabulary)?;
    let roles = if gguf.has(TYPES) { roles(gguf, tokens.len())? } else { Vec::new() };
    let bos = around(gguf, "bos", kind.bos == Bos::Yes, None, tokens.len())?;
    let eos = around(gguf, "eos", false, None, tokens.len())?;
    // Compiling the rule takes longest, and so comes behind what may be refused.
    let failed = |source| Error::Tokenizer { path: gguf.path().to_owned(), source };
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(kind.whole == Whole::Keep)
        .build()
        .map_err(failed)?;
    let mut inner = Library::new(bpe);
    inner.with_normalizer(kind.normalizer()).map_err(failed)?;
    inner.with_pre_tokenizer(Some(kind.pre_tokenizer().map_err(failed)?));
    inner.with_decoder(Some(ByteLevelDecoder::new(false, true, true)));
    inner.add_tokens(added(&tokens, &roles, |_| Match::AsWritten)).map_err(failed)?;
    Ok(Tokenizer { bos, eos, growth: limits::UNICODE, inner: Inner::Library(Box::new(inner)) })
}

fn sentence_pieces(gguf: &Gguf) -> Result<Tokenizer> {
    const CHARACTERS: &str = "tokenizer.ggml.precompiled_charsmap";
    if gguf.has(CHARACTERS) {
        return Err(unsupported(gguf, MODEL, "llama with precompiled_charsmap", "llama without"));
    }
    let tokens = tokens(gguf)?;
    // For its check that no text stands twice.
    vocabulary(gguf, &tokens)?;
    let roles = roles(gguf, tokens.len())?;
    let scores = gguf.floats(SCORES)?;
    if scores.len() != tokens.len() {
        return Err(one_each(gguf, SCORES, scores.len(), tokens.len()));
    }
    if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
        return Err(key(gguf, SCORES, format!("{score} somewhere"), "finite numbers"));
    }
    let unknown = if gguf.has("tokenizer.ggml.unknown_token_id") {
        Some(token_id(gguf, "unknown", tokens.len())?)
    } else {
        roles.iter().position(|&role| role == Role::Unknown).map(|id| id as u32)
    };
    let pieces = Pieces::new(&tokens, &scores, &roles, unknown)
        .map_err(|_| key(gguf, TOKENS, "a part of the byte tokens", "all 256, or none"))?;
    let failed = |source| Error::Tokenizer { path: gguf.path().to_owned(), source };
    let prefix = gguf.flag_or("tokenizer.ggml.add_space_prefix", true)?;
    let squeeze = gguf.flag_or("tokenizer.ggml.remove_extra_whitespaces", false)?;
    let mut inner = PieceTokenizer::new(pieces);
    inner.with_normalizer(Some(spaces(prefix, squeeze).map_err(failed)?)).map_err(failed)?;
    inner.with_decoder(Some(decoder(prefix).map_err(failed)?));
    // Phi-3's definition lets its marks take the white space behind them; the
    // metadata has no place to say so.
    let phi3 = gguf.has("general.architecture") && gguf.text("general.architecture")? == "phi3";
    let matched = |token: &str| match token {
        "<unk>" | "<s>" | "<|endoftext|>" => Match::AsWritten,
        _ if phi3 => Match::WithSpaceBehind,
        // Where no space is put before a text, a run of spaces that is a token is
        // found in either spelling, as SentencePiece finds it.
        _ if !prefix && (token.contains(' ') || token.contains(SPACE)) => Match::Spaces,
        _ => Match::AsWritten,
    };
    inner.add_tokens(added(&tokens, &roles, matched)).map_err(failed)?;
    Ok(Tokenizer {
        bos: around(gguf, "bos", true, Some(1), tokens.len())?,
        eos: around(gguf, "eos", false, Some(2), tokens.len())?,
        growth: limits::SPACES,
        inner: Inner::Pieces(Box::new(inner)),
    })
}

/// How SentencePiece writes spaces: `prefix` puts one before each stretch of text
/// between special tokens, `squeeze` leaves single ones, and none at the ends.
fn spaces(prefix: bool, squeeze: bool) -> tokenizers::Result<NormalizerWrapper> {
    let regex = |pattern: &str, by| Replace::new(ReplacePattern::Regex(pattern.to_owned()), by);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if squeeze {
        steps.push(regex(r"\A +", "")?.into());
        steps.push(regex(" {2,}", " ")?.into());
    }
    if prefix {
        steps.push(Prepend::new(SPACE.to_owned()).into());
    }
    steps.push(Replace::new(" ", SPACE)?.into());
    if squeeze {
        steps.push(regex(&format!(r"{SPACE}+\z"), "")?.into());
    }
    Ok(Sequence::new(steps).into())
}

fn decoder(prefix: bool) -> tokenizers::Result<DecoderWrapper> {
    let mut steps: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    Ok(DecoderSequence::new(steps).into())
}

/// The token before (`bos`) or behind (`eos`) a text, if there is to be one.
fn around(
    gguf: &Gguf,
    name: &str,
    default: bool,
    id: Option<u32>,
    n: usize,
) -> Result<Option<u32>> {
    if !gguf.flag_or(&format!("tokenizer.ggml.add_{name}_token"), default)? {
        return Ok(None);
    }
    match id.filter(|&id| (id as usize) < n) {
        Some(id) if !gguf.has(&format!("tokenizer.ggml.{name}_token_id")) => Ok(Some(id)),
        _ => token_id(gguf, name, n).map(Some),
    }
}

/// The id of the token with a part to play.
fn token_id(gguf: &Gguf, name: &str, n: usize) -> Result<u32> {
    let id = gguf.count(&format!("tokenizer.ggml.{name}_token_id"), 0..=n.saturating_sub(1))?;
    // Below the number of tokens, which is bounded.
    Ok(id as u32)
}

fn unsupported(gguf: &Gguf, what: &'static str, found: &str, supported: &'static str) -> Error {
    Error::Unsupported { path: gguf.path().to_owned(), what, found: shown(found), supported }
}

/// As much of a text as a message needs.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn key(gguf: &Gguf, key: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
    let (found, expected) = (found.into(), expected.into());
    let fault = GgufFault::Key { key: key.to_owned(), found, expected };
    Error::Gguf { path: gguf.path().to_owned(), fault }
}

fn one_each(gguf: &Gguf, name: &str, found: usize, tokens: usize) -> Error {
    let expected = format!("one for each of the {tokens} tokens");
    key(gguf, name, format!("an array of {found}"), expected)
}

fn tokens(gguf: &Gguf) -> Result<Vec<&str>> {
    let tokens = gguf.texts(TOKENS)?;
    if tokens.is_empty() || tokens.len() > bound::VOCABULARY {
        let expected = format!("from 1 to {} tokens", bound::VOCABULARY);
        return Err(key(gguf, TOKENS, format!("an array of {}", tokens.len()), expected));
    }
    Ok(tokens)
}

/// Ids by text; empty texts, which no text holds, are left out.
fn vocabulary(gguf: &Gguf, tokens: &[&str]) -> Result<Vocab> {
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        if vocabulary.insert((*token).to_owned(), id as u32).is_some() {
            let fault = GgufFault::Duplicate { name: shown(token) };
            return Err(Error::Gguf { path: gguf.path().to_owned(), fault });
        }
    }
    Ok(vocabulary)
}

/// Merges of two tokens to a third, which the library takes for granted.
fn merges(gguf: &Gguf, vocabulary: &Vocab) -> Result<Merges> {
    let mut both = String::new();
    let mut split = |merge: &str| {
        // A vocabulary of bytes writes its spaces otherwise, so the first one divides.
        let (left, right) = merge.split_once(' ')?;
        both.clear();
        both.extend([left, right]);
        let known = [left, right, &both].iter().all(|text| vocabulary.contains_key(*text));
        known.then(|| (left.to_owned(), right.to_owned()))
    };
    let merges = gguf.texts(MERGES)?.into_iter();
    merges
        .map(|merge| {
            split(merge).ok_or_else(|| {
                let expected = "two tokens with a space between, and both together a token";
                key(gguf, MERGES, format!("`{}`", shown(merge)), expected)
            })
        })
        .collect()
}

fn roles(gguf: &Gguf, tokens: usize) -> Result<Vec<Role>> {
    let types = gguf.integers(TYPES)?;
    if types.len() != tokens {
        return Err(one_each(gguf, TYPES, types.len(), tokens));
    }
    let role = |number: i64| {
        Role::of(number).ok_or_else(|| key(gguf, TYPES, number.to_string(), "types from 0 to 6"))
    };
    types.into_iter().map(role).collect()
}

/// Where in a text a whole token is found.
enum Match {
    /// Where its text stands.
    AsWritten,
    /// There, and the white space behind is a part of it.
    WithSpaceBehind,
    /// Where its text stands, spaces written in either way.
    Spaces,
}

/// Tokens that are matched in a text as a whole, before anything else: special
/// ones, unless a text's special tokens are plain text, and others.
fn added(tokens: &[&str], roles: &[Role], matched: impl Fn(&str) -> Match) -> Vec<AddedToken> {
    let each = tokens.iter().zip(roles).filter_map(|(&token, role)| {
        let special = match role {
            Role::Unknown | Role::Control => true,
            Role::UserDefined => false,
            Role::Normal | Role::Unused | Role::Byte => return None,
        };
        let added = AddedToken::from(token, special).normalized(false);
        Some(match matched(token) {
            Match::AsWritten => added,
            Match::WithSpaceBehind => added.rstrip(special),
            Match::Spaces => added.normalized(!special),
        })
    });
    each.collect()
}
