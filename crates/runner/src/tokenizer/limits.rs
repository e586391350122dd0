//! What a `tokenizer.json` may ask of the library that reads it.
//!
//! The library takes a definition at its word: one of a few hundred bytes can make
//! it take gigabytes when it is read, or for each text. So the definition is read
//! here first, and refused if it could; what remains is linear in the definition
//! and in the text, but for the regular expressions, of which each match is bounded
//! in steps.

use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::MAX_NORMALIZED;

/// Deepest accepted nesting. The library reads nested parts again at each level.
const MAX_DEPTH: usize = 12;
/// Longest accepted text, in bytes: a token, a pattern, a replacement.
const MAX_TEXT: usize = 8192;
/// Longest accepted table of characters, in bytes.
const MAX_CHARSMAP: usize = 8 << 20;
/// Most values in everything but vocabulary, merges and added tokens.
const MAX_VALUES: usize = 8192;
/// Values as which a regular expression counts: compiled, one takes megabytes.
const PATTERN: usize = 128;
/// Longest word that is searched for pieces, in characters: time grows with its square.
const MAX_WORD: u64 = 256;

/// The most bytes that a decoder may make of one.
const MAX_DECODED: usize = 64;

/// The most bytes that forms and cases of Unicode make of one byte.
pub(super) const UNICODE: usize = 22;
/// The most bytes that a mark of three bytes for each space, and one in front, make of one.
pub(super) const SPACES: usize = 12;

const CHARSMAP: &str = "precompiled_charsmap";

/// Why a definition is refused.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the character table is damaged: {problem}")]
    Charsmap { problem: &'static str },
    #[error("its template repeats the text {times} times, expected at most once")]
    Template { times: usize },
    #[error("its template adds up to {tokens} tokens to a text, expected at most {MAX_VALUES}")]
    TemplateTokens { tokens: usize },
    #[error(
        "words of up to {found} characters are searched for pieces, expected at most {MAX_WORD}"
    )]
    Word { found: String },
    #[error(
        "its decoder could make {growth} bytes of each byte of a token, expected at most {MAX_DECODED}"
    )]
    Decoder { growth: usize },
    #[error(
        "its normalizer could make {bytes} bytes of its added tokens, expected at most {MAX_NORMALIZED}"
    )]
    Added { bytes: usize },
}

/// The parts of a definition that decide what it may cost.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    added_tokens: Option<Vec<Added>>,
    model: Option<Model>,
}

/// A token that is found in a text as a whole, as it stands or as normalizing leaves it.
#[derive(Deserialize)]
struct Added {
    content: Option<String>,
    normalized: Option<bool>,
}

#[derive(Deserialize)]
struct Model {
    max_input_chars_per_word: Option<Value>,
}

/// Checks the sizes of everything in a definition.
pub(super) fn check_sizes(json: &[u8]) -> serde_json::Result<()> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let values = Cell::new(0);
    Sizes { depth: 0, max_text: MAX_TEXT, values: Some(&values) }.deserialize(&mut reader)?;
    reader.end()
}

/// Checks what a definition would do, and returns how many bytes its normalizer and the
/// cuts after it may make of one byte of text.
pub(super) fn check_growth(json: &[u8]) -> tokenizers::Result<usize> {
    let parts: Parts = serde_json::from_slice(json)?;
    if let Some(Model { max_input_chars_per_word: Some(found) }) = &parts.model
        && found.as_u64().is_none_or(|found| found > MAX_WORD)
    {
        return Err(Fault::Word { found: found.to_string().chars().take(20).collect() }.into());
    }
    parts.post_processor.as_ref().map_or(Ok(()), check_templates)?;
    let decoder = growth(&parts.decoder, add_decoder_steps)?;
    if decoder > MAX_DECODED {
        return Err(Fault::Decoder { growth: decoder }.into());
    }
    let normalizer = growth(&parts.normalizer, add_steps)?;
    let added = parts.added_tokens.iter().flatten();
    let added = added.filter(|token| token.normalized != Some(false));
    let bytes: usize = added.map(|token| token.content.as_ref().map_or(0, String::len)).sum();
    let bytes = bytes.saturating_mul(normalizer);
    if bytes > MAX_NORMALIZED {
        return Err(Fault::Added { bytes }.into());
    }
    Ok(normalizer.saturating_mul(growth(&parts.pre_tokenizer, add_cuts)?))
}

/// Refuses templates that hold the text more than once (in a sequence of them the
/// copies would be copied again), and those whose many pieces are each many tokens.
fn check_templates(part: &Value) -> Result<(), Fault> {
    match part {
        Value::Array(items) => items.iter().try_for_each(check_templates),
        Value::Object(members) => {
            let (times, pieces) = match members.get("single") {
                Some(Value::Array(pieces)) => {
                    (pieces.iter().filter(|piece| is_text(piece)).count(), pieces.len())
                }
                Some(Value::String(pieces)) => {
                    (pieces.matches('$').count(), pieces.split_whitespace().count())
                }
                _ => (0, 0),
            };
            if times > 1 {
                return Err(Fault::Template { times });
            }
            let tokens = pieces.saturating_mul(most_ids(members.get("special_tokens")));
            if tokens > MAX_VALUES {
                return Err(Fault::TemplateTokens { tokens });
            }
            members.values().try_for_each(check_templates)
        }
        _ => Ok(()),
    }
}

/// The most ids that one of a template's special tokens stands for.
fn most_ids(special: Option<&Value>) -> usize {
    let ids = |token: &Value| token.get("ids").and_then(Value::as_array).map_or(0, Vec::len);
    match special {
        Some(Value::Object(tokens)) => tokens.values().map(ids).max(),
        Some(Value::Array(tokens)) => tokens.iter().map(ids).max(),
        _ => None,
    }
    .unwrap_or(0)
}

fn is_text(piece: &Value) -> bool {
    match piece {
        Value::String(piece) => piece.starts_with('$'),
        piece => piece.get("Sequence").is_some(),
    }
}

/// What one step does to the length of a text.
enum Step {
    /// Nothing that lengthens it.
    Shortens,
    /// Each character becomes what Unicode says, which further such steps do not lengthen:
    /// at most 33 bytes for 3, of which lower case may take twice as many.
    Unicode,
    /// At most so many bytes for one.
    Times(usize),
}

/// The most bytes that a part makes of one byte, from its steps.
fn growth(
    part: &Option<Value>,
    add_steps: fn(&Value, &mut Vec<Step>) -> Result<(), Fault>,
) -> Result<usize, Fault> {
    let mut steps = Vec::new();
    if let Some(part) = part {
        add_steps(part, &mut steps)?;
    }
    let (mut growth, mut in_unicode) = (1usize, false);
    for step in steps {
        let times = match step {
            Step::Shortens => continue,
            Step::Unicode if in_unicode => continue,
            Step::Unicode => UNICODE,
            Step::Times(times) => times,
        };
        in_unicode = matches!(step, Step::Unicode);
        growth = growth.saturating_mul(times);
    }
    Ok(growth)
}

/// The steps of a normalizer, told by their members, as the library tells them where no
/// type is written.
fn add_steps(part: &Value, steps: &mut Vec<Step>) -> Result<(), Fault> {
    let Value::Object(members) = part else {
        return Ok(());
    };
    let text = |key| members.get(key).and_then(Value::as_str);
    let len = |key| text(key).map_or(0, str::len);
    if let Some(Value::Array(inner)) = members.get("normalizers") {
        return inner.iter().try_for_each(|part| add_steps(part, steps));
    }
    if let Some(table) = text(CHARSMAP) {
        steps.push(Step::Times(longest_replacement(table)?.max(1)));
    } else if members.contains_key("content") {
        steps.push(replacement(members));
    } else if members.contains_key("prepend") {
        // Before each stretch between added tokens.
        steps.push(Step::Times(len("prepend") + 1));
    } else {
        steps.push(match text("type") {
            Some("Strip" | "StripAccents" | "Nmt") => Step::Shortens,
            Some("ByteLevel") => Step::Times(2),
            _ => Step::Unicode,
        });
    }
    Ok(())
}

/// A step that puts one text in place of others.
fn replacement(members: &Map<String, Value>) -> Step {
    let content = members.get("content").and_then(Value::as_str).map_or(0, str::len);
    let pattern = members.get("pattern").and_then(|pattern| pattern.get("String"));
    Step::Times(match pattern.and_then(Value::as_str).map_or(0, str::len) {
        // An empty pattern and a regular expression match between any two bytes.
        0 => content + 1,
        matched => content.div_ceil(matched).max(1),
    })
}

/// The steps that cut a text. Two kinds also write it otherwise: bytes as characters, and
/// spaces as marks, each with one more in front of every stretch that is already cut.
fn add_cuts(part: &Value, steps: &mut Vec<Step>) -> Result<(), Fault> {
    let Value::Object(members) = part else {
        return Ok(());
    };
    if let Some(Value::Array(inner)) = members.get("pretokenizers") {
        return inner.iter().try_for_each(|part| add_cuts(part, steps));
    }
    let text = |key| members.get(key).and_then(Value::as_str);
    steps.push(match text("type") {
        Some("ByteLevel") if members.get("add_prefix_space") == Some(&Value::Bool(false)) => {
            Step::Times(2)
        }
        Some("ByteLevel") => Step::Times(4),
        Some(
            "BertPreTokenizer" | "CharDelimiterSplit" | "Delimiter" | "Digits" | "FixedLength"
            | "Punctuation" | "Split" | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit",
        ) => Step::Shortens,
        // A mark is one character.
        _ => Step::Times(1 + text("replacement").map_or(4, |mark| mark.len().min(4))),
    });
    Ok(())
}

/// The steps from tokens to a text.
fn add_decoder_steps(part: &Value, steps: &mut Vec<Step>) -> Result<(), Fault> {
    let Value::Object(members) = part else {
        return Ok(());
    };
    if let Some(Value::Array(inner)) = members.get("decoders") {
        return inner.iter().try_for_each(|part| add_decoder_steps(part, steps));
    }
    let text = |key| members.get(key).and_then(Value::as_str);
    let empty = |key| text(key).is_none_or(str::is_empty);
    steps.push(match text("type") {
        Some("ByteFallback" | "Fuse" | "Metaspace" | "Strip") => Step::Shortens,
        Some("Replace") => replacement(members),
        // What stands for a space, if it is nothing, stands between any two characters.
        Some("BPEDecoder") if !empty("suffix") => Step::Shortens,
        Some("CTC") if !empty("word_delimiter_token") => Step::Shortens,
        // A space before each token, and a mark of three bytes for two that are no text.
        Some("ByteLevel" | "WordPiece") => Step::Times(2),
        _ if members.contains_key("content") => replacement(members),
        _ => Step::Times(3),
    });
    Ok(())
}

/// The longest text that a table of characters puts in place of one.
///
/// The table: bytes of a trie, the trie, and texts with a zero behind each.
fn longest_replacement(table: &str) -> Result<usize, Fault> {
    let damaged = |problem| Fault::Charsmap { problem };
    let bytes = base64(table).ok_or_else(|| damaged("it is not in base 64"))?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut off"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
        return Err(damaged("its trie is not of the size that it claims"));
    }
    Ok(rest[size..].split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut n_bits) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    Some(bytes)
}

/// Reads a value and keeps nothing of it.
#[derive(Clone, Copy)]
struct Sizes<'a> {
    depth: usize,
    max_text: usize,
    /// Values read so far, where they are counted.
    values: Option<&'a Cell<usize>>,
}

impl Sizes<'_> {
    fn check<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if text.len() > self.max_text {
            let (bytes, limit) = (text.len(), self.max_text);
            return Err(E::custom(format_args!(
                "a text has {bytes} bytes, more than the {limit} that a tokenizer's may have"
            )));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Sizes<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom(format_args!(
                "a tokenizer's parts may be nested {MAX_DEPTH} deep"
            )));
        }
        if let Some(values) = self.values {
            values.set(values.get() + 1);
            if values.get() > MAX_VALUES {
                return Err(D::Error::custom(format_args!(
                    "beside vocabulary and added tokens, a tokenizer may have {MAX_VALUES} values"
                )));
            }
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Sizes<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer's definition")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.check(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = Self { depth: self.depth + 1, ..self };
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key::<String>()? {
            self.check(&key)?;
            let mut inner = Self { depth: self.depth + 1, ..self };
            match key.as_str() {
                CHARSMAP => inner.max_text = MAX_CHARSMAP,
                "model" | "added_tokens" if self.depth == 0 => inner.values = None,
                "Regex" => self.values.into_iter().for_each(|n| n.set(n.get() + PATTERN)),
                _ => {}
            }
            members.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth_of(normalizer: &str) -> tokenizers::Result<usize> {
        check_growth(format!("{{\"normalizer\": {normalizer}}}").as_bytes())
    }

    #[test]
    fn growth_is_bounded_from_above() {
        let replace = |pattern: &str, content: &str| {
            format!(r#"{{"type": "Replace", "pattern": {pattern}, "content": "{content}"}}"#)
        };
        assert_eq!(growth_of("null").unwrap(), 1);
        let kinds = |kinds: &[&str]| {
            let parts: Vec<_> =
                kinds.iter().map(|kind| format!(r#"{{"type": "{kind}"}}"#)).collect();
            growth_of(&format!(r#"{{"normalizers": [{}]}}"#, parts.join(","))).unwrap()
        };
        assert_eq!(kinds(&["StripAccents", "Strip", "Nmt"]), 1);
        assert_eq!(kinds(&["NFKD", "StripAccents", "Lowercase", "NFC"]), 22);
        assert_eq!(kinds(&["ByteLevel", "NFC", "ByteLevel"]), 88);
        assert_eq!(growth_of(&replace(r#"{"String": " "}"#, "▁")).unwrap(), 3);
        assert_eq!(growth_of(&replace(r#"{"String": "abcd"}"#, "x")).unwrap(), 1);
        assert_eq!(growth_of(&replace(r#"{"String": ""}"#, "xyz")).unwrap(), 4);
        assert_eq!(growth_of(&replace(r#"{"Regex": "a*"}"#, "xyz")).unwrap(), 4);
        let ten = replace(r#"{"String": "a"}"#, "aaaaaaaaaa");
        let sequence =
            format!(r#"{{"type": "Sequence", "normalizers": [{}]}}"#, [ten.as_str(); 9].join(","));
        assert_eq!(growth_of(&sequence).unwrap(), 1_000_000_000);
    }

    #[test]
    fn cuts_that_write_a_text_otherwise_count() {
        let growth = |cuts: &[&str]| {
            let cuts = cuts.join(",");
            let normalizer = r#"{"type": "ByteLevel"}"#;
            let json = format!(
                r#"{{"normalizer": {normalizer}, "pre_tokenizer": {{"pretokenizers": [{cuts}]}}}}"#
            );
            check_growth(json.as_bytes()).unwrap()
        };
        let bytes = r#"{"type": "ByteLevel", "add_prefix_space": false}"#;
        assert_eq!(growth(&[]), 2);
        assert_eq!(growth(&[r#"{"type": "Split"}"#, bytes]), 4);
        assert_eq!(growth(&[r#"{"type": "ByteLevel"}"#]), 8);
        assert_eq!(growth(&[r#"{"type": "Metaspace", "replacement": "▁"}"#]), 8);
        assert_eq!(growth(&[r#"{"replacement": "_"}"#]), 4);
        assert_eq!(growth(&[bytes; 500]), usize::MAX);
    }

    #[test]
    fn decoders_that_would_grow_are_refused() {
        let accepted = |steps: &[&str]| {
            let decoder = format!(r#"{{"decoders": [{}]}}"#, steps.join(","));
            check_growth(format!(r#"{{"decoder": {decoder}}}"#).as_bytes()).is_ok()
        };
        let replace = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}"#;
        let space = r#"{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}"#;
        assert!(accepted(&[replace]) && !accepted(&[replace; 2]));
        assert!(accepted(&[space; 100]) && accepted(&[r#"{"type": "Fuse"}"#; 100]));
        for (key, kind) in [("suffix", "BPEDecoder"), ("word_delimiter_token", "CTC")] {
            let with = |text: &str| format!(r#"{{"type": "{kind}", "{key}": "{text}"}}"#);
            assert!(accepted(&[with("x").as_str(); 9]) && !accepted(&[with("").as_str(); 9]));
        }
        assert!(accepted(&[r#"{"type": "WordPiece"}"#]) && accepted(&[r#"{"type": "ByteLevel"}"#]));
    }

    #[test]
    fn added_tokens_that_would_grow_are_refused() {
        let accepted = |normalized: bool, steps: usize| {
            let ten = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}"#;
            let normalizer = format!(r#"{{"normalizers": [{}]}}"#, vec![ten; steps].join(","));
            let added = format!(r#"[{{"content": "aaa", "normalized": {normalized}}}]"#);
            let json = format!(r#"{{"normalizer": {normalizer}, "added_tokens": {added}}}"#);
            check_growth(json.as_bytes()).is_ok()
        };
        assert!(accepted(true, 7) && !accepted(true, 8) && accepted(false, 8));
    }

    #[test]
    fn tables_of_characters_are_checked() {
        let table = |text: &str| growth_of(&format!(r#"{{"{CHARSMAP}": "{text}"}}"#));
        // Four bytes of trie, then `ab`, zero, `c`.
        assert_eq!(table("BAAAAAAAAABhYgBj").unwrap(), 2);
        for damaged in ["", "====", "padding", "/////w==", "BQAAAAAAAABh", "!"] {
            assert!(table(damaged).is_err(), "{damaged}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        let text = |n: usize| format!("{{\"model\": \"{}\"}}", "a".repeat(n));
        assert!(check_sizes(text(MAX_TEXT).as_bytes()).is_ok());
        assert!(check_sizes(text(MAX_TEXT + 1).as_bytes()).is_err());
        let many = |key: &str| format!("{{\"{key}\": [{}0]}}", "0,".repeat(MAX_VALUES));
        assert!(check_sizes(many("model").as_bytes()).is_ok());
        assert!(check_sizes(many("normalizer").as_bytes()).is_err());
        let patterns = |n: usize| {
            let pattern = r#"{"pattern": {"Regex": "a"}}"#;
            format!(r#"{{"pre_tokenizer": [{}]}}"#, vec![pattern; n].join(","))
        };
        assert!(check_sizes(patterns(20).as_bytes()).is_ok());
        assert!(check_sizes(patterns(100).as_bytes()).is_err());
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(check_sizes(deep(MAX_DEPTH).as_bytes()).is_ok());
        assert!(check_sizes(deep(MAX_DEPTH + 2).as_bytes()).is_err());
        assert!(check_sizes(b"{} x").is_err());
    }

    #[test]
    fn texts_stand_once_in_a_template() {
        let check = |template: &str| {
            check_growth(format!(r#"{{"post_processor": {{"single": {template}}}}}"#).as_bytes())
        };
        assert!(check(r#"[{"SpecialToken": {"id": "a"}}, {"Sequence": {"id": "A"}}]"#).is_ok());
        assert!(check(r#"[{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}]"#).is_err());
        assert!(check(r#"["$A", "$0"]"#).is_err());
        assert!(check(r#""$A $A""#).is_err());
        let with_ids = |ids: usize| {
            let ids = vec!["0"; ids].join(",");
            let pieces = r#""$A <s> <s> <s>""#;
            check(&format!(r#"{pieces}, "special_tokens": {{"<s>": {{"ids": [{ids}]}}}}"#)).is_ok()
        };
        assert!(with_ids(1) && with_ids(2000) && !with_ids(3000));
    }
}
