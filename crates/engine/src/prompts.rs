//! Prompts: read from files, from standard input or given outright.
//!
//! Every prompt has an id, unique within a run. Formats that carry no ids number
//! the prompts from 0. Everything is read and checked before a model is loaded,
//! so that a mistake in the last line costs no work.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use runner::Message;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::{Error, Result};

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
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptSource {
    /// Prompts given outright.
    Given(Vec<Prompt>),
    /// Texts given outright, numbered from 0.
    Texts(Vec<String>),
    /// A `.txt` file with one prompt per line, a `.jsonl` file with `text` or
    /// `messages` and an optional `id` per line, or a `.parquet` file with columns
    /// `text` and `id`.
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
    let prompts = match source {
        PromptSource::Given(prompts) => prompts.clone(),
        PromptSource::Texts(texts) => number(texts.iter().cloned().map(Content::Text)),
        PromptSource::File(path) => read_file(path)?,
        PromptSource::Stdin => {
            let text = read_text(std::io::stdin().lock(), Path::new("standard input"))?;
            if is_json_lines(&text) {
                read_json_lines(&text, Path::new("standard input"))?
            } else {
                read_lines(&text)
            }
        }
        PromptSource::TokenIds(path) => read_token_ids(path)?,
    };
    check(prompts)
}

fn read_file(path: &Path) -> Result<Vec<Prompt>> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    match extension.as_str() {
        "txt" => Ok(read_lines(&open_text(path)?)),
        "jsonl" | "ndjson" => read_json_lines(&open_text(path)?, path),
        "parquet" => read_parquet(path),
        _ => Err(Error::PromptFormat { path: path.to_owned() }),
    }
}

fn number(contents: impl Iterator<Item = Content>) -> Vec<Prompt> {
    contents.enumerate().map(|(i, content)| Prompt { id: i.to_string(), content }).collect()
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
    let text = String::from_utf8(bytes).map_err(|error| Error::Utf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    // A byte-order mark is an editor's, not the prompt's.
    Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
}

/// One prompt per line; blank lines separate and are skipped.
fn read_lines(text: &str) -> Vec<Prompt> {
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

#[derive(Deserialize)]
#[serde(untagged, expecting = "an id must be a string or an integer")]
enum Id {
    Text(String),
    Number(i64),
    Unsigned(u64),
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        match id {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
            Id::Unsigned(number) => number.to_string(),
        }
    }
}

fn read_json_lines(text: &str, path: &Path) -> Result<Vec<Prompt>> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .enumerate()
        .map(|(index, (number, line))| {
            let (path, number) = (path.to_owned(), number + 1);
            let line: Line = match serde_json::from_str(line) {
                Ok(line) => line,
                Err(source) => return Err(Error::PromptLine { path, line: number, source }),
            };
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
            Ok(Prompt { id: line.id.map_or_else(|| index.to_string(), String::from), content })
        })
        .collect()
}

fn read_token_ids(path: &Path) -> Result<Vec<Prompt>> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "some element is no token id, or lists and ids are mixed")]
    enum Ids {
        One(Vec<u32>),
        Several(Vec<Vec<u32>>),
    }
    let ids = serde_json::from_str(&open_text(path)?)
        .map_err(|source| Error::TokenIds { path: path.to_owned(), source })?;
    let lists = match ids {
        Ids::One(list) => vec![list],
        Ids::Several(lists) => lists,
    };
    Ok(number(lists.into_iter().map(Content::Tokens)))
}

fn read_parquet(path: &Path) -> Result<Vec<Prompt>> {
    let broken = |source| Error::PromptParquet { path: path.to_owned(), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(open(path)?).map_err(broken)?;
    let fields = builder.schema().fields().iter();
    let found: Vec<String> =
        fields.clone().map(|f| format!("{} ({})", f.name(), f.data_type())).collect();
    let names: Vec<String> = fields.map(|field| field.name().clone()).collect();
    let column_missing = || Error::PromptColumn { path: path.to_owned(), found: found.clone() };
    if !names.iter().any(|name| name == "text") {
        return Err(column_missing());
    }
    let wanted = names.iter().enumerate().filter(|(_, n)| *n == "text" || *n == "id");
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.map(|(i, _)| i));
    let reader = builder.with_projection(mask).with_batch_size(1024).build().map_err(broken)?;
    let mut prompts = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|source| broken(source.into()))?;
        let text = batch.column_by_name("text").ok_or_else(column_missing)?;
        let text = strings(text, false).ok_or_else(column_missing)?;
        let ids = batch.column_by_name("id").map(|ids| strings(ids, true));
        for row in 0..batch.num_rows() {
            let id = match &ids {
                Some(ids) => {
                    ids.as_ref().and_then(|ids| at(ids, row)).ok_or_else(column_missing)?
                }
                None => prompts.len().to_string(),
            };
            let text = at(&text, row).ok_or_else(column_missing)?;
            prompts.push(Prompt { id, content: Content::Text(text) });
            if prompts.len() > MAX_PROMPTS {
                return Err(Error::TooManyPrompts { limit: MAX_PROMPTS });
            }
        }
    }
    Ok(prompts)
}

/// A column of strings of any kind, or of integers where they may be ids, as
/// strings; `None` for other columns.
fn strings(column: &ArrayRef, or_integers: bool) -> Option<StringArray> {
    let kind = match column.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        kind => kind,
    };
    let text = matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if !(text || or_integers && kind.is_integer()) {
        return None;
    }
    arrow_cast::cast(column, &DataType::Utf8).ok()?.as_string_opt::<i32>().cloned()
}

fn at(strings: &StringArray, row: usize) -> Option<String> {
    strings.is_valid(row).then(|| strings.value(row).to_owned())
}

fn check(prompts: Vec<Prompt>) -> Result<Vec<Prompt>> {
    if prompts.is_empty() {
        return Err(Error::NoPrompts);
    }
    if prompts.len() > MAX_PROMPTS {
        return Err(Error::TooManyPrompts { limit: MAX_PROMPTS });
    }
    let mut seen = HashSet::new();
    for prompt in &prompts {
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
        if bytes > MAX_TEXT_BYTES {
            let (id, limit) = (prompt.id.clone(), MAX_TEXT_BYTES);
            return Err(Error::PromptBytes { id, bytes, limit });
        }
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use arrow_array::{Int64Array, RecordBatch};
    use parquet::arrow::ArrowWriter;

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
        Prompt { id: id.to_owned(), content: Content::Text(text.to_owned()) }
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
    fn json_lines_hold_conversations() {
        let line = r#"{"id":"c","messages":[{"role":"system","content":"s"},{"content":"u","role":"user"}]}"#;
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let content = Content::Messages(vec![message("system", "s"), message("user", "u")]);
        let expected = [Prompt { id: "c".to_owned(), content }];
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
        let columns: [(&str, ArrayRef); 2] = [
            ("id", Arc::new(Int64Array::from(vec![5, 6]))),
            ("text", Arc::new(StringArray::from(vec!["a", "b"]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let path = file(".parquet", b"");
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let prompts = read(&PromptSource::File(path.to_path_buf())).unwrap();
        assert_eq!(prompts, [text("5", "a"), text("6", "b")]);
    }

    #[test]
    fn token_ids_are_one_list_or_several() {
        let tokens = |id: &str, ids: &[u32]| Prompt {
            id: id.to_owned(),
            content: Content::Tokens(ids.to_vec()),
        };
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
