//! Prompts: read from files, from standard input or given outright.
//!
//! Every prompt has an id, unique within a run. Formats that carry no ids number
//! the prompts from 0. Everything is read and checked before a model is loaded,
//! so that a mistake in the last line costs no work.

mod fields;
mod parquet;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use runner::Message;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use crate::{Error, Result};

pub use fields::Field;

/// What a model is run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Text, for the model's tokenizer.
    Text(String),
    /// A conversation, for the model's chat template.
    Messages(Vec<Message>),
    /// Token ids as they enter the model.
    Tokens(Vec<u32>),
}

/// One prompt of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its id, unique within the run.
    pub id: String,
    /// What the model is run on.
    pub content: Content,
    /// What follows it and a model answered: it enters the model too, verbatim behind the
    /// content, which is then the context. [`Content::Tokens`] has none.
    pub response: Option<String>,
}

impl Prompt {
    /// A prompt without a response.
    pub fn new(id: impl Into<String>, content: Content) -> Self {
        Self { id: id.into(), content, response: None }
    }
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptSource {
    /// Prompts given outright.
    Given(Vec<Prompt>),
    /// Texts given outright, numbered from 0.
    Texts(Vec<String>),
    /// A `.txt` file with one prompt per line, a `.jsonl` file with `text` or
    /// `messages` and optional `response` and `id` per line, or a `.parquet` file with
    /// columns `text`, `response` and `id`, of which the last two may be missing.
    File(PathBuf),
    /// Standard input: JSON lines if it starts with `{` and some line is a JSON
    /// object, else one prompt per line.
    Stdin,
    /// A JSON file with a list of token ids, or a list of such lists.
    TokenIds(PathBuf),
}

/// Most prompts that one run takes.
pub const MAX_PROMPTS: usize = 10_000_000;
/// Longest prompt text, in bytes.
pub const MAX_TEXT_BYTES: usize = 4 << 20;
/// Longest line of a `.jsonl` file, in bytes. Read, a line may take many times its size.
const MAX_LINE_BYTES: usize = 32 << 20;
/// Longest prompt id, in bytes.
pub const MAX_ID_BYTES: usize = 256;
/// Largest prompt file that is read as a whole, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// Reads every prompt.
///
/// # Errors
///
/// An unreadable file, a line that is not what its format asks for (named by its
/// number), text that is not UTF-8, an id that stands twice, no prompt at all, an
/// empty prompt.
pub fn read(source: &PromptSource) -> Result<Vec<Prompt>> {
    Ok(read_with(source, &[])?.into_iter().map(|(prompt, _)| prompt).collect())
}

/// A prompt with what its source has beside it under the names that were asked for.
pub(crate) type WithFields = (Prompt, Vec<Field>);

/// Reads every prompt, with the named fields of each in their order. Sources that are
/// nothing but prompts have none.
pub(crate) fn read_with(source: &PromptSource, names: &[&str]) -> Result<Vec<WithFields>> {
    let prompts = match source {
        PromptSource::Given(prompts) => without_fields(prompts.clone(), names),
        PromptSource::Texts(texts) => {
            without_fields(number(texts.iter().cloned().map(Content::Text))?, names)
        }
        PromptSource::File(path) => read_file(path, names)?,
        PromptSource::Stdin => {
            let text = read_text(std::io::stdin().lock(), Path::new("standard input"))?;
            if is_json_lines(&text) {
                read_json_lines(&text, Path::new("standard input"), names)?
            } else {
                without_fields(read_lines(&text)?, names)
            }
        }
        PromptSource::TokenIds(path) => without_fields(read_token_ids(path)?, names),
    };
    check(prompts.iter().map(|(prompt, _)| prompt))?;
    Ok(prompts)
}

fn without_fields(prompts: Vec<Prompt>, names: &[&str]) -> Vec<WithFields> {
    prompts.into_iter().map(|prompt| (prompt, vec![Field::Missing; names.len()])).collect()
}

fn read_file(path: &Path, names: &[&str]) -> Result<Vec<WithFields>> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    match extension.as_str() {
        "txt" => Ok(without_fields(read_lines(&open_text(path)?)?, names)),
        "jsonl" | "ndjson" => read_json_lines(&open_text(path)?, path, names),
        "parquet" => parquet::read(open(path)?, path, names),
        _ => Err(Error::PromptFormat { path: path.to_owned() }),
    }
}

fn number(contents: impl Iterator<Item = Content>) -> Result<Vec<Prompt>> {
    bounded(contents.enumerate().map(|(i, content)| Ok(Prompt::new(i.to_string(), content))))
}

/// As many prompts as a run takes, or an error before memory is taken for more.
fn bounded<P>(prompts: impl Iterator<Item = Result<P>>) -> Result<Vec<P>> {
    let mut taken = Vec::new();
    for prompt in prompts {
        if taken.len() == MAX_PROMPTS {
            return Err(Error::TooManyPrompts { limit: MAX_PROMPTS });
        }
        taken.push(prompt?);
    }
    Ok(taken)
}

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let size = file.metadata().map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if size.len() > MAX_FILE_BYTES {
        let (bytes, limit) = (size.len(), MAX_FILE_BYTES);
        return Err(Error::PromptFileSize { path: path.to_owned(), bytes, limit });
    }
    Ok(file)
}

fn open_text(path: &Path) -> Result<String> {
    read_text(BufReader::new(open(path)?), path)
}

fn read_text(mut reader: impl BufRead, path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    reader.by_ref().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let (bytes, limit) = (bytes.len() as u64, MAX_FILE_BYTES);
        return Err(Error::PromptFileSize { path: path.to_owned(), bytes, limit });
    }
    let mut text = String::from_utf8(bytes).map_err(|error| Error::Utf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    // A byte-order mark is an editor's, not the prompt's.
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// One prompt per line; blank lines separate and are skipped.
fn read_lines(text: &str) -> Result<Vec<Prompt>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    number(lines.map(|line| Content::Text(line.to_owned())))
}

/// Whether lines without a file name are JSON. A text may begin with a brace, too;
/// and of JSON with a mistake in its first line, another line tells.
fn is_json_lines(text: &str) -> bool {
    let object = |line| serde_json::from_str::<HashMap<String, IgnoredAny>>(line).is_ok();
    text.trim_start().starts_with('{') && text.lines().any(object)
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    messages: Option<Vec<LineMessage>>,
    response: Option<String>,
    id: Option<Id>,
}

/// A message before it is known to hold text and nothing else.
#[derive(Deserialize)]
struct LineMessage {
    role: String,
    content: Option<Value>,
    #[serde(flatten)]
    rest: HashMap<String, IgnoredAny>,
}

impl LineMessage {
    /// The message, or what it holds that is not taken.
    fn read(self) -> std::result::Result<Message, String> {
        if let Some(field) = self.rest.keys().min() {
            return Err(format!("`{}`", field.chars().take(80).collect::<String>()));
        }
        let found = match self.content {
            Some(Value::String(content)) => return Ok(Message { role: self.role, content }),
            None | Some(Value::Null) => "no content".to_owned(),
            Some(Value::Bool(_)) => "a truth value as content".to_owned(),
            Some(Value::Number(_)) => "a number as content".to_owned(),
            Some(Value::Object(_)) => "an object as content".to_owned(),
            Some(Value::Array(parts)) => {
                let kind = |part: &Value| -> String {
                    part["type"].as_str().unwrap_or("unknown").chars().take(40).collect()
                };
                let kinds: Vec<_> = parts.iter().take(3).map(kind).collect();
                format!("a list of {} parts ({}) as content", parts.len(), kinds.join(", "))
            }
        };
        Err(found)
    }
}

/// An id, a text or an integer. Read without keeping what it might be instead.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrInteger;
        impl Visitor<'_> for TextOrInteger {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an integer as id")
            }

            fn visit_str<E>(self, text: &str) -> Result<Id, E> {
                Ok(Id(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }
        }
        deserializer.deserialize_any(TextOrInteger)
    }
}

fn read_json_lines(text: &str, path: &Path, names: &[&str]) -> Result<Vec<WithFields>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines.enumerate().map(|(index, (number, line))| {
        let (path, number) = (path.to_owned(), number + 1);
        if line.len() > MAX_LINE_BYTES {
            let (bytes, limit) = (line.len(), MAX_LINE_BYTES);
            return Err(Error::LineBytes { path, line: number, bytes, limit });
        }
        let wrong = |source| Error::PromptLine { path: path.clone(), line: number, source };
        let named = fields::of_line(line, names).map_err(wrong)?;
        let line: Line = serde_json::from_str(line).map_err(wrong)?;
        let fields = |found| Error::PromptFields { path: path.clone(), line: number, found };
        let content = match (line.text, line.messages) {
            (Some(text), None) => Content::Text(text),
            (None, Some(messages)) => {
                let each = messages.into_iter().enumerate().map(|(index, message)| {
                    let (path, line, message) = (path.clone(), number, message.read());
                    message.map_err(|found| Error::Message {
                        path,
                        line,
                        message: index + 1,
                        found,
                    })
                });
                Content::Messages(each.collect::<Result<_>>()?)
            }
            (None, None) => return Err(fields("there is neither")),
            (Some(_), Some(_)) => return Err(fields("there are both")),
        };
        let id = line.id.map_or_else(|| index.to_string(), |Id(id)| id);
        Ok((Prompt { id, content, response: line.response }, named))
    });
    bounded(prompts)
}

fn read_token_ids(path: &Path) -> Result<Vec<Prompt>> {
    let TokenLists(lists) = serde_json::from_str(&open_text(path)?)
        .map_err(|source| Error::TokenIds { path: path.to_owned(), source })?;
    number(lists.into_iter().map(Content::Tokens))
}

/// One list of token ids, or several.
struct TokenLists(Vec<Vec<u32>>);

impl<'de> Deserialize<'de> for TokenLists {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lists;
        impl<'de> Visitor<'de> for Lists {
            type Value = TokenLists;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<TokenLists, A::Error> {
                let (mut ids, mut lists) = (Vec::new(), Vec::new());
                while let Some(item) = items.next_element()? {
                    match item {
                        IdOrIds::Id(id) => ids.push(id),
                        IdOrIds::Ids(list) => lists.push(list),
                    }
                    if !ids.is_empty() && !lists.is_empty() {
                        return Err(A::Error::custom("lists and ids are mixed"));
                    }
                    if lists.len() > MAX_PROMPTS {
                        return Err(A::Error::custom(format_args!(
                            "there are more than {MAX_PROMPTS} lists"
                        )));
                    }
                }
                // No id and no list at all is one list without ids.
                if lists.is_empty() {
                    lists.push(ids);
                }
                Ok(TokenLists(lists))
            }
        }
        deserializer.deserialize_seq(Lists)
    }
}

/// An element of such a list. Read without keeping what it might be instead.
enum IdOrIds {
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for IdOrIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = IdOrIds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id or a list of token ids")
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<IdOrIds, E> {
                u32::try_from(id)
                    .map(IdOrIds::Id)
                    .map_err(|_| E::custom(format_args!("{id} is no token id")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<IdOrIds, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = items.next_element()? {
                    ids.push(id);
                }
                Ok(IdOrIds::Ids(ids))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn check<'a>(prompts: impl ExactSizeIterator<Item = &'a Prompt>) -> Result<()> {
    if prompts.len() == 0 {
        return Err(Error::NoPrompts);
    }
    if prompts.len() > MAX_PROMPTS {
        return Err(Error::TooManyPrompts { limit: MAX_PROMPTS });
    }
    let mut seen = HashSet::new();
    for prompt in prompts {
        if prompt.id.len() > MAX_ID_BYTES {
            return Err(Error::PromptId { bytes: prompt.id.len(), limit: MAX_ID_BYTES });
        }
        if !seen.insert(prompt.id.as_str()) {
            return Err(Error::DuplicatePrompt { id: prompt.id.clone() });
        }
        let (empty, bytes) = match &prompt.content {
            Content::Text(text) => (text.is_empty(), text.len()),
            Content::Tokens(ids) => (ids.is_empty(), 0),
            Content::Messages(messages) => {
                let bytes = messages.iter().map(|m| m.role.len() + m.content.len());
                (messages.is_empty(), bytes.sum())
            }
        };
        if empty {
            return Err(Error::EmptyPrompt { id: prompt.id.clone() });
        }
        let bytes = bytes.saturating_add(prompt.response.as_ref().map_or(0, String::len));
        if bytes > MAX_TEXT_BYTES {
            let (id, limit) = (prompt.id.clone(), MAX_TEXT_BYTES);
            return Err(Error::PromptBytes { id, bytes, limit });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use ::parquet::arrow::ArrowWriter;
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};

    use super::*;

    fn file(extension: &str, content: &[u8]) -> tempfile::TempPath {
        let mut file = tempfile::Builder::new().suffix(extension).tempfile().unwrap();
        file.write_all(content).unwrap();
        file.into_temp_path()
    }

    fn read_bytes(extension: &str, content: &[u8]) -> Result<Vec<Prompt>> {
        read(&PromptSource::File(file(extension, content).to_path_buf()))
    }

    fn text(id: &str, text: &str) -> Prompt {
        Prompt::new(id, Content::Text(text.to_owned()))
    }

    #[test]
    fn lines_are_prompts() {
        let expected = [text("0", "one"), text("1", " two ")];
        assert_eq!(read_bytes(".txt", b"\xef\xbb\xbfone\n\n two \r\n").unwrap(), expected);
    }

    #[test]
    fn json_lines_carry_ids() {
        let lines = b"{\"text\":\"a\",\"id\":\"x\",\"label\":1}\n\n{\"text\":\"b\\nc\",\"id\":7}\n{\"text\":\"d\"}";
        assert_eq!(
            read_bytes(".jsonl", lines).unwrap(),
            [text("x", "a"), text("7", "b\nc"), text("2", "d")]
        );
    }

    #[test]
    fn responses_stand_beside_texts() {
        let lines = b"{\"text\":\"a\",\"response\":\" b\"}\n{\"text\":\"c\",\"response\":null}";
        let answered = Prompt { response: Some(" b".to_owned()), ..text("0", "a") };
        assert_eq!(read_bytes(".jsonl", lines).unwrap(), [answered, text("1", "c")]);
        let wrong = read_bytes(".jsonl", b"{\"text\":\"a\",\"response\":[\"b\"]}").unwrap_err();
        assert!(matches!(wrong, Error::PromptLine { line: 1, .. }), "{wrong}");
        let long = "b".repeat(MAX_TEXT_BYTES);
        let long = format!("{{\"text\":\"a\",\"response\":\"{long}\"}}");
        let error = read_bytes(".jsonl", long.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::PromptBytes { .. }), "{error}");
    }

    #[test]
    fn json_lines_hold_conversations() {
        let line = r#"{"id":"c","messages":[{"role":"system","content":"s"},{"content":"u","role":"user"}]}"#;
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let content = Content::Messages(vec![message("system", "s"), message("user", "u")]);
        let expected = [Prompt::new("c", content)];
        assert_eq!(read_bytes(".jsonl", line.as_bytes()).unwrap(), expected);

        let found = |messages: &str| {
            let line =
                format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}},{messages}]}}");
            match read_bytes(".jsonl", line.as_bytes()).unwrap_err() {
                Error::Message { line: 1, message: 2, found, .. } => found,
                other => panic!("{other}"),
            }
        };
        assert_eq!(found(r#"{"role":"user"}"#), "no content");
        assert_eq!(found(r#"{"role":"user","content":null}"#), "no content");
        let parts = r#"{"role":"user","content":[{"type":"image"},{"type":"text","text":"t"}]}"#;
        assert_eq!(found(parts), "a list of 2 parts (image, text) as content");
        let calls = r#"{"role":"assistant","content":"","tool_calls":[]}"#;
        assert_eq!(found(calls), "`tool_calls`");
        for (line, what) in [("{}", "neither"), (r#"{"text":"a","messages":[]}"#, "both")] {
            let error = read_bytes(".jsonl", line.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::PromptFields { line: 1, .. }), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
        let empty = read_bytes(".jsonl", b"{\"messages\":[]}").unwrap_err();
        assert!(matches!(empty, Error::EmptyPrompt { .. }), "{empty}");
    }

    #[test]
    fn lines_without_a_name_are_json_if_one_is_an_object() {
        assert!(is_json_lines("{\"text\": \"a\"}\n"));
        assert!(is_json_lines("\n{\"text\": \"a\n{\"text\": \"b\"}"));
        assert!(!is_json_lines("{curly} words\nand more"));
        assert!(!is_json_lines("words\n{\"text\": \"a\"}"));
        assert!(!is_json_lines(""));
    }

    #[test]
    fn parquet_columns_are_prompts() {
        let columns: [(&str, ArrayRef); 3] = [
            ("id", Arc::new(Int64Array::from(vec![5, 6]))),
            ("response", Arc::new(StringArray::from(vec![Some("c"), None]))),
            ("text", Arc::new(StringArray::from(vec!["a", "b"]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let path = file(".parquet", b"");
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let prompts = read(&PromptSource::File(path.to_path_buf())).unwrap();
        let answered = Prompt { response: Some("c".to_owned()), ..text("5", "a") };
        assert_eq!(prompts, [answered, text("6", "b")]);
    }

    #[test]
    fn token_ids_are_one_list_or_several() {
        let tokens = |id: &str, ids: &[u32]| Prompt::new(id, Content::Tokens(ids.to_vec()));
        let read_ids =
            |json: &[u8]| read(&PromptSource::TokenIds(file(".json", json).to_path_buf()));
        assert_eq!(read_ids(b"[1, 2]").unwrap(), [tokens("0", &[1, 2])]);
        assert_eq!(read_ids(b"[[1], [2, 3]]").unwrap(), [tokens("0", &[1]), tokens("1", &[2, 3])]);
        for bad in [&b"[-1]"[..], b"[1.5]", b"{}", b"[[1], 2]", b"[4294967296]", b"", b"[[]]"] {
            assert!(read_ids(bad).is_err());
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert!(matches!(read_bytes(".csv", b"a"), Err(Error::PromptFormat { .. })));
        assert!(matches!(read_bytes(".txt", b"\n \n"), Err(Error::NoPrompts)));
        assert!(matches!(read_bytes(".txt", b"ab\xff"), Err(Error::Utf8 { offset: 2, .. })));
        assert!(matches!(
            read_bytes(".jsonl", b"{\"text\":\"a\"}\n{\"txt\":\"b\"}"),
            Err(Error::PromptFields { line: 2, .. })
        ));
        assert!(matches!(
            read_bytes(".jsonl", b"{\"text\":\"a\"}\n{\"text\":7}"),
            Err(Error::PromptLine { line: 2, .. })
        ));
        assert!(matches!(
            read_bytes(".jsonl", b"{\"text\":\"a\",\"id\":1}\n{\"text\":\"b\",\"id\":\"1\"}"),
            Err(Error::DuplicatePrompt { .. })
        ));
        assert!(matches!(read_bytes(".jsonl", b"{\"text\":\"\"}"), Err(Error::EmptyPrompt { .. })));
        assert!(matches!(read_bytes(".parquet", b"PAR1"), Err(Error::PromptParquet { .. })));
        let missing = PromptSource::File("no-such-file.txt".into());
        assert!(matches!(read(&missing), Err(Error::Read { .. })));
    }
}
