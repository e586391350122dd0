//! Conversations as a model's chat template writes them.
//!
//! Templates are written for the Jinja of Hugging Face transformers; they are run
//! here with the same surroundings: its options of white space, its functions and
//! variables, Python's ways to write values. One thing is different: a template
//! cannot ask what day it is. Where it prints a date, the caller says which, so
//! that the same run has the same prompts tomorrow.
//!
//! A template is part of a model's files and may be anybody's: its size, the
//! steps it takes, how deep it calls and nests, and what it prints are bounded.
//! What one step costs is not: the template engine lets a template double a text
//! that it does not print, and search or filter a list that it says is endless.
//! A template made to do so takes memory or time without bound.

mod date;
mod python;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde::{Deserialize, Serialize};

pub use date::Date;

use crate::gguf::Gguf;
use crate::source::Source;
use crate::{Error, Result};

/// Longest template, in bytes.
const MAX_TEMPLATE: usize = 256 << 10;
/// Longest rendered conversation, in bytes.
const MAX_OUTPUT: usize = 64 << 20;
/// Most instructions of one rendering.
const FUEL: u64 = 1_000_000;
/// Bytes of stack for the engine, which goes through nested expressions and values
/// by recursion. A template has at most one level for two of its bytes, a value one
/// for each instruction, and a level takes less than 1 KiB. Only what is used
/// becomes memory.
const STACK: usize = 1 << 30;
/// Deepest nesting of calls.
const RECURSION: usize = 100;

/// What a folder can keep its template in.
const LOOKED_FOR: &str =
    "chat_template.jinja, `chat_template` in tokenizer_config.json, and chat_template.json";
/// What a GGUF file keeps its template in.
const LOOKED_FOR_GGUF: &str = "metadata `tokenizer.chat_template`";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `user`, `assistant`, `system`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A model's chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// The file that it is from.
    path: PathBuf,
    template: String,
    /// The texts of special tokens, as templates know them: `bos_token` and others.
    tokens: BTreeMap<&'static str, String>,
}

/// Special tokens that templates can name, and their keys in a GGUF file.
const TOKENS: [(&str, &str); 7] = [
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unknown"),
    // So it is spelled.
    ("sep_token", "seperator"),
    ("pad_token", "padding"),
    ("cls_token", "cls"),
    ("mask_token", "mask"),
];

impl Chat {
    /// Finds a model's chat template: the one named `default` if there are several.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplateMissing`] if there is none, [`Error::ChatTemplate`] if
    /// it is too long or cannot be parsed, and those of reading the files.
    pub fn load(source: &Source) -> Result<Self> {
        let chat = match source {
            Source::Gguf(path) => Self::of_gguf(&Gguf::open(path)?)?,
            _ => Self::of_folder(source)?,
        };
        if chat.template.len() > MAX_TEMPLATE {
            let (bytes, limit) = (chat.template.len() as u64, MAX_TEMPLATE as u64);
            return Err(Error::FileTooLarge { path: chat.path, bytes, limit });
        }
        let parse = || chat.environment().template_from_str(&chat.template).map(drop);
        nested(parse).map_err(|error| chat.failed(error))?;
        Ok(chat)
    }

    /// The template's text.
    pub fn template(&self) -> &str {
        &self.template
    }

    /// Writes a conversation, and what begins the assistant's answer behind it.
    /// The text holds its special tokens: it is tokenized without others around it.
    ///
    /// # Errors
    ///
    /// [`Error::ChatRefused`] with the template's own words if it does not take
    /// the conversation, [`Error::ChatDate`] if it prints a date and none is given,
    /// [`Error::ChatTemplate`] if it fails or does not come to an end.
    pub fn render(&self, messages: &[Message], date: Option<Date>) -> Result<String> {
        nested(|| self.write(messages, date)).map_err(|error| self.failed(error))
    }

    fn write(&self, messages: &[Message], date: Option<Date>) -> Result<String, minijinja::Error> {
        let environment = self.environment();
        let template = environment.template_from_str(&self.template)?;
        let now = Value::from_function(move |format: &str| match date {
            Some(date) => date.format(format).map_err(raised),
            None => Err(minijinja::Error::new(ErrorKind::InvalidOperation, "no date")
                .with_source(Raised::Date)),
        });
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        context.extend(self.tokens.iter().map(|(&name, text)| (name, Value::from(text.as_str()))));
        context.insert("messages", Value::from_serialize(messages));
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(true));
        context.insert("strftime_now", now);
        let mut text = Bounded(Vec::new());
        template.render_captured_to(context, &mut text)?;
        // Whole strings were written to it.
        Ok(String::from_utf8_lossy(&text.0).into_owned())
    }

    fn environment(&self) -> Environment<'static> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.add_function("raise_exception", |message: &str| {
            Err::<(), _>(raised(message.to_owned()))
        });
        environment.add_function("dict", |arguments: Kwargs| {
            let pairs = arguments.args().map(|name| Ok((name, arguments.get::<Value>(name)?)));
            pairs.collect::<Result<Value, minijinja::Error>>()
        });
        python::furnish(&mut environment);
        environment
    }

    fn failed(&self, error: minijinja::Error) -> Error {
        let path = self.path.clone();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            match inner.downcast_ref::<Raised>() {
                Some(Raised::Message(message)) => {
                    return Error::ChatRefused { path, message: message.clone() };
                }
                Some(Raised::Date) => return Error::ChatDate { path },
                None => cause = inner.source(),
            }
        }
        Error::ChatTemplate { path, source: Box::new(error) }
    }

    fn of_gguf(gguf: &Gguf) -> Result<Self> {
        const KEY: &str = "tokenizer.chat_template";
        const NAMES: &str = "tokenizer.chat_templates";
        if !gguf.has(KEY) {
            let named = if gguf.has(NAMES) { gguf.texts(NAMES)? } else { Vec::new() };
            let named = named.iter().map(|name| shown(name)).collect();
            let path = gguf.path().to_owned();
            return Err(Error::ChatTemplateMissing { path, looked_for: LOOKED_FOR_GGUF, named });
        }
        let template = generation(gguf.text(KEY)?);
        let texts = gguf.texts("tokenizer.ggml.tokens")?;
        let mut tokens = BTreeMap::new();
        for (name, key) in TOKENS {
            let key = format!("tokenizer.ggml.{key}_token_id");
            if gguf.has(&key) {
                let id = gguf.count(&key, 0..=texts.len().saturating_sub(1))?;
                tokens.extend(texts.get(id).map(|text| (name, (*text).to_owned())));
            }
        }
        Ok(Self { path: gguf.path().to_owned(), template, tokens })
    }

    fn of_folder(source: &Source) -> Result<Self> {
        let config: Option<TokenizerConfig> = read(source, "tokenizer_config.json")?;
        let config = config.unwrap_or_default();
        let older: Option<SpecialTokens> = read(source, "special_tokens_map.json")?;
        let older = older.unwrap_or_default();
        let tokens = TOKENS.iter().filter_map(|&(name, _)| {
            let text = config.tokens.text(name).or_else(|| older.text(name))?;
            Some((name, text.to_owned()))
        });
        let tokens = tokens.collect();
        let chat = |file: &str, template: &str| Self {
            path: source.file_path(file),
            template: generation(template),
            tokens,
        };

        const FILE: &str = "chat_template.jinja";
        if let Some(bytes) = source.open_json(FILE)? {
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Error::Utf8 { path: source.file_path(FILE) })?;
            return Ok(chat(FILE, text));
        }
        let mut named = Vec::new();
        let processor: Option<TokenizerConfig> = read(source, "chat_template.json")?;
        let held = [
            ("tokenizer_config.json", config.chat_template),
            ("chat_template.json", processor.and_then(|file| file.chat_template)),
        ];
        for (file, templates) in held {
            match templates {
                Some(Templates::One(template)) => return Ok(chat(file, &template)),
                Some(Templates::Named(list)) => {
                    if let Some(default) = list.iter().find(|entry| entry.name == "default") {
                        return Ok(chat(file, &default.template));
                    }
                    named.extend(list.iter().map(|entry| shown(&entry.name)));
                }
                None => {}
            }
        }
        Err(Error::ChatTemplateMissing { path: source.path(), looked_for: LOOKED_FOR, named })
    }
}

/// A JSON file of a folder, if it is there.
fn read<T: for<'de> Deserialize<'de>>(source: &Source, name: &str) -> Result<Option<T>> {
    let Some(bytes) = source.open_json(name)? else {
        return Ok(None);
    };
    let json = |error| Error::Json { path: source.file_path(name), source: error };
    serde_json::from_slice(&bytes).map(Some).map_err(json)
}

/// As much of a name as a message needs.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    tokens: SpecialTokens,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`chat_template` must be text, or a list of named texts")]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// The fields that may hold special tokens; other files have others beside them.
#[derive(Default, Deserialize)]
struct SpecialTokens {
    #[serde(flatten)]
    fields: BTreeMap<String, serde_json::Value>,
}

impl SpecialTokens {
    /// A token is written as its text, or as an object that holds it.
    fn text(&self, name: &str) -> Option<&str> {
        let field = self.fields.get(name)?;
        field.as_str().or_else(|| field.get("content")?.as_str())
    }
}

/// Replaces the tags around what an assistant generated, which mean something to
/// training only, by tags that do nothing and treat white space alike.
fn generation(template: &str) -> String {
    let mut rest = template;
    let mut out = String::with_capacity(template.len());
    while let Some(begin) = rest.find("{%") {
        let (before, tag) = rest.split_at(begin + 2);
        out.push_str(before);
        let mark = tag.len() - tag.trim_start_matches(['-', '+']).len();
        let word = tag[mark..].trim_start();
        let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
        let by = match &word[..end] {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => {
                rest = tag;
                continue;
            }
        };
        out.extend([&tag[..mark], " ", by]);
        rest = &word[end..];
    }
    out.push_str(rest);
    out
}

/// Calls the engine where there is stack enough for whatever a template nests.
fn nested<T: Send>(
    call: impl FnOnce() -> Result<T, minijinja::Error> + Send,
) -> Result<T, minijinja::Error> {
    let failed = |what: &'static str| minijinja::Error::new(ErrorKind::InvalidOperation, what);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, call);
        let thread = thread.map_err(|error| {
            failed("there is no room for its stack of 1 GiB of addresses").with_source(error)
        })?;
        thread.join().unwrap_or_else(|_| Err(failed("the template engine does not take it")))
    })
}

/// What a template ended with on purpose, carried through the engine.
#[derive(Debug)]
enum Raised {
    Message(String),
    Date,
}

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Message(message) => f.write_str(message),
            Self::Date => f.write_str("no date is given"),
        }
    }
}

impl std::error::Error for Raised {}

fn raised(message: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, "the template raised an exception")
        .with_source(Raised::Message(message))
}

/// Takes bytes up to a bound.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
