//! Reading a configuration's fields, each checked where it is read.
//!
//! A size from a file is never trusted: every field is read with the bounds
//! within which it can be meant, and a refusal names the field, what it is and
//! what was expected.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Largest accepted sizes. They only stop nonsense: tensors are checked against
/// them and against their file before memory is taken.
pub(crate) mod bound {
    /// Widths of the residual stream, heads and MLPs.
    pub(crate) const WIDTH: usize = 1 << 20;
    /// Rotated elements of a head. Tables of their angles are made for hundreds of positions
    /// at once, so that they take far more memory than the weights that imply them.
    pub(crate) const ROTATED: usize = 1 << 14;
    /// Layers, heads, experts.
    pub(crate) const COUNT: usize = 1 << 14;
    /// Vocabulary entries.
    pub(crate) const VOCABULARY: usize = 1 << 24;
    /// Tokens of context.
    pub(crate) const CONTEXT: usize = 1 << 28;
}

/// Whether a number is above 0, finite and not subnormal in `f32`.
pub(crate) fn is_positive(number: f64) -> bool {
    number > 0.0 && (number as f32).is_normal()
}

/// The members of one JSON object of a configuration.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// Name of the object within the file, with a dot behind it; empty for the file itself.
    prefix: &'a str,
    members: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, prefix: &'a str, members: &'a Map<String, Value>) -> Self {
        Self { path, prefix, members }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member, unless it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.members.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there with the value null, which some defaults tell from absent.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.members.get(key).is_some_and(Value::is_null)
    }

    /// The members of a nested object, if it is there.
    pub(crate) fn object(&self, key: &'static str, prefix: &'a str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(Fields::new(self.path, prefix, members))),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::FieldMissing { path: self.path.to_owned(), field: self.name(key) }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(crate) fn wrong(&self, key: &str, found: &Value, expected: impl Into<String>) -> Error {
        let found = match found {
            Value::Array(items) => format!("an array of {}", items.len()),
            Value::Object(_) => "an object".to_owned(),
            scalar => scalar.to_string().chars().take(80).collect(),
        };
        Error::Field {
            path: self.path.to_owned(),
            field: self.name(key),
            found,
            expected: expected.into(),
        }
    }

    /// A size from 1 to `max`; `None` if it is absent.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| (1..=max).contains(size))
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, format!("a whole number from 1 to {max}")))
    }

    /// A whole number from 0 to `max`; `None` if it is absent.
    pub(crate) fn whole(&self, key: &str, max: usize) -> Result<Option<usize>> {
        match self.get(key) {
            Some(value) if value.as_u64() == Some(0) => Ok(Some(0)),
            _ => self.size(key, max),
        }
    }

    /// A number above 0 in the range in which layers compute; `None` if it is absent.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .filter(|number| is_positive(*number))
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "a positive number in the range of f32"))
    }

    /// A finite number; `None` if it is absent.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .filter(|number| number.is_finite())
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "a number"))
    }

    /// Required: so many of such numbers.
    pub(crate) fn positives(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let items = value.as_array().filter(|items| items.len() == count);
        items
            .and_then(|items| {
                let positive = |item: &Value| item.as_f64().filter(|number| is_positive(*number));
                items.iter().map(positive).collect()
            })
            .ok_or_else(|| self.wrong(key, value, format!("an array of {count} positive numbers")))
    }

    /// The items of an array, one for each of `count` layers; `None` if it is absent.
    pub(crate) fn per_layer(&self, key: &str, count: usize) -> Result<Option<&'a [Value]>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_array() {
            Some(items) if items.len() >= count => Ok(Some(&items[..count])),
            _ => Err(self.wrong(key, value, format!("an array with one entry a layer, {count}"))),
        }
    }

    /// A flag; `None` if it is absent.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A text; `None` if it is absent.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }
}
