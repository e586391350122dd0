//! What a prompt's line or row has beside its text: labels, names of groups.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A field of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field {
    /// There is none, or it is null.
    #[default]
    Missing,
    /// A text, a number or a truth value, as text.
    Value(String),
    /// A list or an object.
    Compound,
}

impl Field {
    /// Bytes of its text.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Value(text) => text.len(),
            Self::Missing | Self::Compound => 0,
        }
    }
}

/// The named fields of a JSON object, in the order of the names. Nothing else of it
/// is kept.
pub(super) fn of_line(line: &str, names: &[&str]) -> serde_json::Result<Vec<Field>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    struct Object<'a>(&'a [&'a str]);
    impl<'de> Visitor<'de> for Object<'_> {
        type Value = Vec<Field>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Field>, A::Error> {
            let mut found = vec![Field::Missing; self.0.len()];
            while let Some(key) = map.next_key::<String>()? {
                if !self.0.contains(&key.as_str()) {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let field: Field = map.next_value()?;
                for (name, found) in self.0.iter().zip(&mut found) {
                    if *name == key {
                        *found = field.clone();
                    }
                }
            }
            Ok(found)
        }
    }
    let mut json = serde_json::Deserializer::from_str(line);
    let found = Deserializer::deserialize_map(&mut json, Object(names))?;
    json.end()?;
    Ok(found)
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Field, E> {
                Ok(Field::Value(text.to_owned()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
                Ok(Field::Value(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
                Ok(Field::Value(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Field, E> {
                Ok(Field::Value(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Field, E> {
                Ok(Field::Value(value.to_string()))
            }

            fn visit_unit<E>(self) -> Result<Field, E> {
                Ok(Field::Missing)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Field, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Field::Compound)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Field::Compound)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_scalars_as_text() {
        let value = |text: &str| Field::Value(text.to_owned());
        for (json, expected) in [
            ("\"a b\"", value("a b")),
            ("true", value("true")),
            ("1", value("1")),
            ("-2", value("-2")),
            ("0.5", value("0.5")),
            ("null", Field::Missing),
            ("[1, {\"b\": 2}]", Field::Compound),
            ("{\"b\": [2]}", Field::Compound),
        ] {
            let line = format!("{{\"text\": \"x\", \"y\": {json}, \"more\": [1]}}");
            let found = of_line(&line, &["none", "y"]).unwrap();
            assert_eq!(found, [Field::Missing, expected], "{json}");
        }
        assert_eq!(of_line("{\"y\": 1}", &["y", "y"]).unwrap(), [value("1"), value("1")]);
        assert!(of_line("not looked at", &[]).unwrap().is_empty());
        for broken in ["[1]", "{\"y\": 1", "{\"y\": 1} 2", "7"] {
            assert!(of_line(broken, &["y"]).is_err(), "{broken}");
        }
    }
}
