//! Python's ways, which templates are written for: how values are printed, what
//! texts can do, and what JSON looks like. There are no tuples: what is one in
//! Python is printed as a list.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;

/// How deep nested values are printed.
const DEPTH: usize = 100;

/// Gives an environment Python's ways.
pub(super) fn furnish(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        match value.as_str() {
            Some(text) => match text_method(text, method, arguments)? {
                Some(result) => Ok(result),
                None => unknown_method_callback(state, value, method, arguments),
            },
            None => unknown_method_callback(state, value, method, arguments),
        }
    });
    environment.set_formatter(|out, _, value| {
        let mut text = String::new();
        print(value, &mut text)?;
        out.write_str(&text).map_err(Error::from)
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| {
        let mut text = String::new();
        print(value, &mut text).map(|()| text)
    });
    environment.add_filter("trim", |text: &str, characters: Option<&str>| {
        strip(text, characters, Side::Both).to_owned()
    });
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
    Both,
}

/// Characters that Python counts as white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip<'a>(text: &'a str, characters: Option<&str>, side: Side) -> &'a str {
    let goes = |c: char| characters.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if side == Side::Right { text } else { text.trim_start_matches(goes) };
    if side == Side::Left { text } else { text.trim_end_matches(goes) }
}

/// Methods of texts that are missing elsewhere, or differ.
fn text_method(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let stripped = |side| {
        let (characters,): (Option<&str>,) = from_args(arguments)?;
        Ok(Some(Value::from(strip(text, characters, side))))
    };
    match method {
        "strip" => stripped(Side::Both),
        "lstrip" => stripped(Side::Left),
        "rstrip" => stripped(Side::Right),
        "split" if arguments.is_empty() => {
            let words = text.split(is_space).filter(|word| !word.is_empty());
            Ok(Some(words.collect()))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Ok(Some(Value::from(text.strip_prefix(prefix).unwrap_or(text))))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Ok(Some(Value::from(text.strip_suffix(suffix).unwrap_or(text))))
        }
        _ => Ok(None),
    }
}

/// Fails if what is written is longer than a whole conversation may be.
fn bound(out: &str) -> Result<(), Error> {
    if out.len() > super::MAX_OUTPUT {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is too long to be written"));
    }
    Ok(())
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply")
}

/// Writes a value as `str` does.
fn print(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(value.as_str().unwrap_or_default()),
        _ => represent(value, out, DEPTH)?,
    }
    Ok(())
}

/// Writes a value as `repr` does.
fn represent(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    bound(out)?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out)?,
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                represent(&item, out, depth)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                represent(&key, out, depth)?;
                out.push_str(": ");
                represent(&value.get_item(&key)?, out, depth)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn number(value: &Value, out: &mut String) -> Result<(), Error> {
    if value.is_integer() {
        out.push_str(&value.to_string());
    } else {
        out.push_str(&float(f64::try_from(value.clone())?));
    }
    Ok(())
}

/// The shortest digits that give the number back, with an exponent where it is
/// below −4 or above 15.
fn float(number: f64) -> String {
    if !number.is_finite() {
        let infinite = if number > 0.0 { "inf" } else { "-inf" };
        return if number.is_nan() { "nan" } else { infinite }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// `json.dumps` as transformers calls it.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(indent) if !indent.is_none() => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
        _ => None,
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, pair) = match separators.as_deref() {
        Some([item, pair]) => (item.clone(), pair.clone()),
        _ => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let json = Json {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        pair,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    json.write(value, 0, &mut out)?;
    Ok(out)
}

/// How JSON is laid out.
struct Json {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    /// Between items.
    item: String,
    /// Between a key and its value.
    pair: String,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(too_deep());
        }
        bound(out)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value, out)?,
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                self.list(['[', ']'], value.try_iter()?, depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.list(['{', '}'], keys.into_iter(), depth, out, |key, out| {
                    match key.as_str() {
                        Some(key) => self.text(key, out),
                        None => {
                            let mut name = String::new();
                            self.write(key, depth + 1, &mut name)?;
                            self.text(&name, out);
                        }
                    }
                    out.push_str(&self.pair);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            other => {
                let message = format!("a value of kind {other} cannot be written as JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Value>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let mut items = items.peekable();
        let filled = items.peek().is_some();
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| filled) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        for (index, value) in items.enumerate() {
            out.push_str(if index > 0 { &self.item } else { "" });
            line(depth + 1, out);
            write(&value, out)?;
        }
        line(depth, out);
        out.push(close);
        Ok(())
    }

    fn number(&self, value: &Value, out: &mut String) -> Result<(), Error> {
        let mut text = String::new();
        number(value, &mut text)?;
        out.push_str(match text.as_str() {
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            "nan" => "NaN",
            text => text,
        });
        Ok(())
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || self.ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
