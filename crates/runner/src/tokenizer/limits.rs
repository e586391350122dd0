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
use serde_json::Value;

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
    #[error(
        "words of up to {found} characters are searched for pieces, expected at most {MAX_WORD}"
    )]
    Word { found: String },
}

/// The parts of a definition that decide what it may cost.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    post_processor: Option<Value>,
    model: Option<Model>,
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

/// Checks what a definition would do, and returns how many bytes its normalizer may
/// make of one byte of text.
pub(super) fn check_growth(json: &[u8]) -> tokenizers::Result<usize> {
    let parts: Parts = serde_json::from_slice(json)?;
    if let Some(Model { max_input_chars_per_word: Some(found) }) = &parts.model
        && found.as_u64().is_none_or(|found| found > MAX_WORD)
    {
        return Err(Fault::Word { found: found.to_string().chars().take(20).collect() }.into());
    }
    parts.post_processor.as_ref().map_or(Ok(()), check_templates)?;
    Ok(parts.normalizer.as_ref().map_or(Ok(1), growth)?)
}

/// Refuses templates that hold the text more than once: in a sequence of them the
/// copies would be copied again.
fn check_templates(part: &Value) -> Result<(), Fault> {
    match part {
        Value::Array(items) => items.iter().try_for_each(check_templates),
        Value::Object(members) => {
            let times = match members.get("single") {
                Some(Value::Array(pieces)) => pieces.iter().filter(|piece| is_text(piece)).count(),
                Some(Value::String(pieces)) => pieces.matches('$').count(),
                _ => 0,
            };
            if times > 1 {
                return Err(Fault::Template { times });
            }
            members.values().try_for_each(check_templates)
        }
        _ => Ok(()),
    }
}

fn is_text(piece: &Value) -> bool {
    match piece {
        Value::String(piece) => piece.starts_with('$'),
        piece => piece.get("Sequence").is_some(),
    }
}

/// What one step of a normalizer does to the length of a text.
enum Step {
    /// Nothing that lengthens it.
    Shortens,
    /// Each character becomes what Unicode says, which further such steps do not lengthen:
    /// at most 33 bytes for 3, of which lower case may take twice as many.
    Unicode,
    /// At most so many bytes for one.
    Times(usize),
}

/// The most bytes that a normalizer makes of one byte.
fn growth(part: &Value) -> Result<usize, Fault> {
    let mut steps = Vec::new();
    add_steps(part, &mut steps)?;
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
        let pattern = members.get("pattern").and_then(|pattern| pattern.get("String"));
        steps.push(Step::Times(match pattern.and_then(Value::as_str).map_or(0, str::len) {
            // An empty pattern and a regular expression match between any two bytes.
            0 => len("content") + 1,
            matched => len("content").div_ceil(matched).max(1),
        }));
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
    }
}
