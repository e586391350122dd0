//! What is looked at in a `tokenizer.json` before the library reads it.
//!
//! The library panics on merges that its vocabulary does not have room for, on
//! templates with tokens that they do not define, on cuts of no length, and on
//! steps behind one that puts something before a text without replacing any of it. A
//! caught panic is still written to standard error by the program's panic hook,
//! so what is known to panic is found here.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::utils::SysRegex;

#[derive(Deserialize)]
struct Definition {
    model: Option<Model>,
}

/// The steps before and after the model.
#[derive(Deserialize)]
struct Steps {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
}

/// The parts of a byte-pair encoding; other models have no merges.
#[derive(Deserialize)]
struct Model {
    vocab: Vocabulary,
    merges: Vec<Merge>,
    continuing_subword_prefix: Option<String>,
}

/// The texts of a vocabulary.
struct Vocabulary(HashSet<String>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from texts to ids")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Vocabulary, A::Error> {
                let mut texts = HashSet::new();
                while let Some((text, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    texts.insert(text);
                }
                Ok(Vocabulary(texts))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Two texts, in either of the ways that files write them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Text(text) => text.split_once(' '),
        }
    }
}

/// Checks a definition; whatever else is wrong with it, the library says.
pub(super) fn check(json: &[u8]) -> tokenizers::Result<()> {
    if let Ok(steps) = serde_json::from_slice::<Steps>(json) {
        steps.normalizer.iter().try_for_each(|step| check_insertions(step, &mut None))?;
        steps.pre_tokenizer.iter().try_for_each(check_cuts)?;
        steps.post_processor.iter().try_for_each(check_template)?;
    }
    check_merges(json)
}

/// The steps of a sequence, under whichever name.
fn steps(step: &Value) -> impl Iterator<Item = &Value> {
    let lists =
        ["pretokenizers", "processors"].into_iter().filter_map(|name| step[name].as_array());
    lists.flatten()
}

/// What stands before a text without replacing any of it has no place in the
/// original, and the steps that look for one fall over it. A pattern is tried on
/// texts of one character; one that looks for others there is not found.
fn check_insertions(step: &Value, inserting: &mut Option<String>) -> tokenizers::Result<()> {
    if let Some(inner) = step["normalizers"].as_array() {
        return inner.iter().try_for_each(|step| check_insertions(step, inserting));
    }
    if !matches!(step["type"].as_str(), Some("Replace" | "Prepend" | "Strip"))
        && let Some(pattern) = inserting
    {
        let shown: String = pattern.chars().take(80).collect();
        return Err(format!(
            "a Replace step whose pattern `{shown}` matches nothing before a text can be followed by Replace, Prepend and Strip only"
        )
        .into());
    }
    if step["content"].as_str().is_some_and(|content| !content.is_empty()) {
        let pattern = &step["pattern"];
        if pattern["String"] == "" {
            *inserting = Some(String::new());
        } else if let Some(text) = pattern["Regex"].as_str() {
            let regex = SysRegex::new(text)?;
            let mut first = (' '..='~').chain(['\n', '\t', '\u{e9}', '\u{2581}', '\u{4e00}']);
            if first.any(|c| regex.find_iter(&c.to_string()).next() == Some((0, 0))) {
                *inserting = Some(text.to_owned());
            }
        }
    }
    Ok(())
}

fn check_cuts(step: &Value) -> tokenizers::Result<()> {
    if step["type"] == "FixedLength" && step["length"] == 0 {
        return Err("a FixedLength step needs a length of at least 1".into());
    }
    steps(step).try_for_each(check_cuts)
}

fn check_template(step: &Value) -> tokenizers::Result<()> {
    let pieces = ["single", "pair"].into_iter().filter_map(|name| step[name].as_array()).flatten();
    for name in pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if step["special_tokens"].get(name).is_none() {
            let shown: String = name.chars().take(80).collect();
            return Err(
                format!("the template uses `{shown}`, which is not in its special_tokens").into()
            );
        }
    }
    steps(step).try_for_each(check_template)
}

fn check_merges(json: &[u8]) -> tokenizers::Result<()> {
    let Ok(Definition { model: Some(model) }) = serde_json::from_slice(json) else {
        return Ok(());
    };
    let prefix = model.continuing_subword_prefix.unwrap_or_default();
    let mut both = String::new();
    // The first line of a list in the older form may be its version.
    let version =
        |merge: &Merge| matches!(merge, Merge::Text(text) if text.starts_with("#version"));
    for merge in model.merges.iter().filter(|merge| !version(merge)) {
        let known = merge.parts().is_some_and(|(left, right)| {
            let Some(end) = right.get(prefix.len()..) else { return false };
            both.clear();
            both.extend([left, end]);
            [left, right, &both].iter().all(|text| model.vocab.0.contains(*text))
        });
        if !known {
            let (left, right) = merge.parts().unwrap_or_default();
            let shown = |text: &str| text.chars().take(80).collect::<String>();
            return Err(format!(
                "the merge of `{}` and `{}` needs both and their concatenation in the vocabulary",
                shown(left),
                shown(right)
            )
            .into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_need_their_texts() {
        let check = |merges: &str, prefix: &str| {
            let model = format!(
                r###"{{"type":"BPE","vocab":{{"a":0,"b":1,"ab":2,"##b":3}},"merges":[{merges}],"continuing_subword_prefix":{prefix}}}"###
            );
            check(format!(r#"{{"model":{model}}}"#).as_bytes()).is_ok()
        };
        assert!(check(r#"["a","b"]"#, "null"));
        assert!(check(r##""#version: 0.2","a b""##, "null"));
        assert!(check(r###"["a","##b"]"###, r###""##""###));
        for bad in [r#"["ab","ab"]"#, r#"["b","a"]"#, r#"["a","c"]"#, r#""ab""#, r#"["",""]"#] {
            assert!(!check(bad, "null"), "{bad}");
        }
        assert!(!check(r#"["a","b"]"#, r###""##""###));
    }

    #[test]
    fn steps_need_what_they_use() {
        let template = |token: &str| {
            let template = format!(
                r#"{{"type":"TemplateProcessing","single":[{{"SpecialToken":{{"id":"{token}","type_id":0}}}}],"special_tokens":{{"<s>":{{}}}}}}"#
            );
            let nested = format!(r#"{{"type":"Sequence","processors":[{template}]}}"#);
            [template, nested]
                .map(|p| check(format!(r#"{{"post_processor":{p}}}"#).as_bytes()).is_ok())
        };
        assert_eq!(template("<s>"), [true, true]);
        assert_eq!(template("<x>"), [false, false]);
        let cut = |length: usize| {
            let step =
                format!(r#"{{"pretokenizers":[{{"type":"FixedLength","length":{length}}}]}}"#);
            check(format!(r#"{{"pre_tokenizer":{step}}}"#).as_bytes()).is_ok()
        };
        assert!(cut(1) && !cut(0));
    }

    #[test]
    fn nothing_is_put_before_a_text_that_later_steps_change() {
        let check = |pattern: &str, content: &str, next: &str| {
            let replace =
                format!(r#"{{"type":"Replace","pattern":{pattern},"content":"{content}"}}"#);
            let inner = format!(r#"{{"type":"Sequence","normalizers":[{replace}]}}"#);
            let steps = format!(r#"{{"normalizers":[{inner},{{"type":"{next}"}}]}}"#);
            let definition = format!(r#"{{"normalizer":{steps}}}"#);
            check(definition.as_bytes()).is_ok()
        };
        let inserting =
            [r#"{"String":""}"#, r#"{"Regex":"^"}"#, r#"{"Regex":"x*"}"#, r#"{"Regex":"(?=b)"}"#];
        for pattern in inserting {
            for next in ["NFC", "Lowercase", "StripAccents", "ByteLevel", "Precompiled"] {
                assert!(!check(pattern, "b", next), "{pattern} {next}");
            }
            assert!(check(pattern, "", "NFC") && check(pattern, "b", "Prepend"), "{pattern}");
        }
        for pattern in [r#"{"String":" "}"#, r#"{"Regex":"^a"}"#, r#"{"Regex":" {2,}|$"}"#] {
            assert!(check(pattern, "b", "NFC"), "{pattern}");
        }
    }

    #[test]
    fn other_models_are_the_library_s() {
        assert!(check(br#"{"model":{"type":"Unigram","vocab":[["a",-1.0]]}}"#).is_ok());
        assert!(check(b"{}").is_ok());
    }
}
