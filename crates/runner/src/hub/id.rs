//! Hub ids, and what may become part of a path.

use std::fmt;

/// The longest `org` and the longest `name`, in bytes; the hub's own limit.
const MAX_PART: usize = 96;
/// The longest revision or file name, in bytes.
const MAX_NAME: usize = 255;
/// The longest entity tag, in bytes.
const MAX_TAG: usize = 128;

/// A model on the hub: `org/name`, `org/name@revision`, and after a colon a GGUF
/// file of the repository: `org/name:file.gguf`, the first one of a model in several.
///
/// ```
/// use runner::HubId;
///
/// let id = HubId::parse("org/name@refs/pr/1").unwrap();
/// assert_eq!((id.repository(), id.revision()), ("org/name", "refs/pr/1"));
/// assert_eq!(HubId::parse("org/name").unwrap().revision(), "main");
/// assert_eq!(HubId::parse("org/name:q4.gguf").unwrap().file(), Some("q4.gguf"));
/// assert_eq!(HubId::parse("../name"), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    repository: String,
    revision: Option<String>,
    file: Option<String>,
}

impl HubId {
    /// Reads an id by the hub's rules; `None` if it is not one.
    ///
    /// Both parts of `org/name` consist of ASCII letters, digits, `-`, `_` and `.`,
    /// begin and end with a letter, a digit or `_`, and hold neither `--` nor `..`;
    /// the name does not end in `.git`. A revision is what git accepts as a name
    /// of a branch or tag, or a commit. A file ends in `.gguf`.
    pub fn parse(spec: &str) -> Option<Self> {
        let (model, file) = match spec.split_once(':') {
            Some((model, file)) => (model, Some(file)),
            None => (spec, None),
        };
        let (repository, revision) = match model.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (model, None),
        };
        let (org, name) = repository.split_once('/')?;
        let fits = is_part(org)
            && is_part(name)
            && !name.ends_with(".git")
            && revision.is_none_or(is_revision)
            && file
                .is_none_or(|file| is_inside(file) && file.to_ascii_lowercase().ends_with(".gguf"));
        fits.then(|| Self {
            repository: repository.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// `org/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The revision asked for; `main` if none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The GGUF file asked for.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

/// The files of the GGUF model that begins with this one: `x-00001-of-00003.gguf`
/// is followed by `x-00002-of-00003.gguf` and so on; any other name stands alone.
pub(super) fn gguf_files(first: &str) -> Vec<String> {
    let alone = || vec![first.to_owned()];
    let Some((stem, kind)) = first.rsplit_once('.') else {
        return alone();
    };
    let Some((rest, count)) = stem.rsplit_once("-of-") else {
        return alone();
    };
    match (rest.strip_suffix("-00001"), count.parse::<u32>()) {
        (Some(name), Ok(n)) if count.len() == 5 => {
            (1..=n.max(1)).map(|i| format!("{name}-{i:05}-of-{count}.{kind}")).collect()
        }
        _ => alone(),
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

fn is_part(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.len() <= MAX_PART
        && part.starts_with(plain)
        && part.ends_with(plain)
        && part.chars().all(|c| plain(c) || matches!(c, '-' | '.'))
        && !part.contains("--")
        && !part.contains("..")
}

/// What git accepts as a name of a reference; it becomes a path in the cache.
fn is_revision(revision: &str) -> bool {
    let bad = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    revision.len() <= MAX_NAME
        && !revision.contains(bad)
        && !revision.contains("..")
        && !revision.contains("@{")
        && !revision.ends_with('.')
        && revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

/// Whether this is a commit's full name.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a repository's file name is a path below the repository, on any system.
pub(super) fn is_inside(name: &str) -> bool {
    !name.contains(|c: char| c.is_control() || c == '\\' || c == ':')
        && name
            .split('/')
            .all(|part| !part.is_empty() && part.len() <= MAX_NAME && part != "." && part != "..")
}

/// Whether an entity tag can be a file's name.
pub(super) fn is_tag(tag: &str) -> bool {
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !tag.starts_with('.')
        && !tag.ends_with(".incomplete")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_hubs_rules() {
        for good in
            ["org/name", "a/b", "Org_1/na.me-2_", "o/n@v1.0", "o/n@refs/pr/3", "o/n@main:d/x.GGUF"]
        {
            let id = HubId::parse(good).unwrap_or_else(|| panic!("{good}"));
            assert_eq!(id.to_string(), good);
        }
        let long = format!("org/{}", "n".repeat(97));
        for bad in [
            "name",
            "/name",
            "org/",
            "org/name/more",
            "./name",
            "../name",
            "org/..",
            "-org/name",
            "org/name-",
            "org/.name",
            "org/na--me",
            "org/na..me",
            "org/name.git",
            "org/na me",
            "örg/name",
            "org\\name",
            "org/name@",
            "org/name@a..b",
            "org/name@/main",
            "org/name@a//b",
            "org/name@../x",
            "org/name@.x",
            "org/name@x/",
            "org/name@a b",
            "org/name@a\0",
            "org/name:x.bin",
            "org/name:../x.gguf",
            "org/name:/x.gguf",
            "org/name:",
            "~/name",
            &long,
        ] {
            assert_eq!(HubId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn files_of_a_model_in_several_are_counted() {
        let names = |i| format!("d/m-0000{i}-of-00003.gguf");
        assert_eq!(gguf_files(&names(1)), [1, 2, 3].map(names));
        let alone =
            ["m.gguf", "m-00002-of-00003.gguf", "m-00001-of-3.gguf", "m-00001-of-0000x.gguf"];
        for name in alone.into_iter().chain(["m-00001-of-00000.gguf", "m-00001-of-00001.gguf"]) {
            assert_eq!(gguf_files(name).len(), 1, "{name}");
        }
    }

    #[test]
    fn nothing_leads_out_of_the_cache() {
        for good in ["config.json", "a/b.json", "..a", "a..b", "ü.json", "a b"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a/./x",
            "a//b",
            "a/",
            "a\\b",
            "C:x",
            "a\0b",
            "a\nb",
        ] {
            assert!(!is_inside(bad), "{bad:?}");
        }
        assert!(is_tag("d41d8cd98f00b204e9800998ecf8427e-2"));
        for bad in ["", "..", ".x", "a/b", "a\\b", "a b", "a\0", "a.incomplete", &"a".repeat(129)] {
            assert!(!is_tag(bad), "{bad:?}");
        }
    }
}
