//! Where a model's files are.
//!
//! A name is resolved once, before anything is read: to a folder, a GGUF file or
//! a model that is part of the program. A built-in name wins over a folder of
//! the same name; `./NAME` means the folder. What is neither, but has the form
//! `org/name`, is a model on the hub: its files are fetched into the cache, and
//! from then on it is a folder like any other.

use std::path::{Path, PathBuf};

use crate::hub::{self, HubEvent, HubId, HubOptions, Origin};
use crate::weights::Bytes;
use crate::{Error, Result};

/// Largest JSON file that is read, in bytes. Read, a file takes many times its size.
pub(crate) const MAX_JSON_BYTES: u64 = 128 << 20;
/// Largest `config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A model that is part of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltIn {
    /// A Mixtral of 1.9 million parameters, trained on generated derivations.
    TinyMixtral,
}

impl BuiltIn {
    /// Every built-in model.
    pub const ALL: &'static [BuiltIn] = &[BuiltIn::TinyMixtral];

    /// The name that resolves to it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TinyMixtral => "tiny-mixtral",
        }
    }

    /// One of its files.
    fn file(self, name: &str) -> Option<&'static [u8]> {
        macro_rules! asset {
            ($path:literal) => {
                include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/", $path))
            };
        }
        match (self, name) {
            (Self::TinyMixtral, "config.json") => Some(asset!("tiny-mixtral/config.json")),
            (Self::TinyMixtral, "tokenizer.json") => Some(asset!("tiny-mixtral/tokenizer.json")),
            (Self::TinyMixtral, "model.safetensors") => {
                Some(asset!("tiny-mixtral/model.safetensors"))
            }
            _ => None,
        }
    }
}

/// A resolved model.
///
/// ```
/// use runner::{BuiltIn, Error, Source};
///
/// assert_eq!(Source::resolve("tiny-mixtral")?, Source::BuiltIn(BuiltIn::TinyMixtral));
/// assert!(matches!(Source::resolve("no-such-model"), Err(Error::NotFound { .. })));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder with `config.json` and safetensors files.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A model that is part of the program.
    BuiltIn(BuiltIn),
}

/// A resolved model, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its files.
    pub source: Source,
    /// Its id and commit, if it is a model of the hub.
    pub origin: Option<Origin>,
}

impl Source {
    /// Finds what a name means: a built-in name, a folder, a `.gguf` file, or a
    /// model on the hub (`org/name`, `org/name@revision`), whose files are fetched
    /// if the cache lacks them. The environment says where hub and cache are
    /// ([`HubOptions::from_env`]).
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the name can be none of these, [`Error::Unsupported`]
    /// for a file of another kind, [`Error::Hub`] if the hub's model cannot be had.
    pub fn resolve(spec: &str) -> Result<Self> {
        if let Some(local) = Self::local(spec)? {
            return Ok(local);
        }
        Self::resolve_with(spec, &HubOptions::from_env(), &mut |_| {}).map(|found| found.source)
    }

    /// As [`resolve`](Self::resolve), with hub and cache given, telling what happens.
    ///
    /// # Errors
    ///
    /// As [`resolve`](Self::resolve).
    pub fn resolve_with(
        spec: &str,
        options: &HubOptions,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<Resolved> {
        if let Some(source) = Self::local(spec)? {
            return Ok(Resolved { source, origin: None });
        }
        let Some(id) = HubId::parse(spec) else {
            let names: Vec<_> = BuiltIn::ALL.iter().map(|model| model.name()).collect();
            return Err(Error::NotFound {
                spec: spec.to_owned(),
                tried: vec![
                    format!("the built-in models ({})", names.join(", ")),
                    format!("a folder {spec}"),
                    format!("a file {spec}"),
                    "a hub id, which has the form org/name (gpt2 is openai-community/gpt2)"
                        .to_owned(),
                ],
            });
        };
        let found = hub::fetch(&id, options, events)
            .map_err(|fault| Error::Hub { model: id.to_string(), fault: Box::new(fault) })?;
        let model = match id.file() {
            Some(file) => format!("{}:{file}", id.repository()),
            None => id.repository().to_owned(),
        };
        let source = match id.file() {
            Some(_) => Self::Gguf(found.path),
            None => Self::Folder(found.path),
        };
        Ok(Resolved { source, origin: Some(Origin { model, commit: found.commit }) })
    }

    /// What a name means on this machine.
    fn local(spec: &str) -> Result<Option<Self>> {
        if let Some(&built_in) = BuiltIn::ALL.iter().find(|model| model.name() == spec) {
            return Ok(Some(Self::BuiltIn(built_in)));
        }
        let path = PathBuf::from(spec);
        if path.is_dir() {
            return Ok(Some(Self::Folder(path)));
        }
        if path.is_file() {
            let gguf = path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"));
            if gguf {
                return Ok(Some(Self::Gguf(path)));
            }
            let found = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Error::Unsupported {
                path,
                what: "model file type",
                found,
                supported: "a folder with config.json and safetensors, or a .gguf file",
            });
        }
        Ok(None)
    }

    /// The path or name that messages show.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Folder(path) | Self::Gguf(path) => path.clone(),
            Self::BuiltIn(model) => PathBuf::from(model.name()),
        }
    }

    /// The path of one file of this model, for messages.
    pub(crate) fn file_path(&self, name: &str) -> PathBuf {
        match self {
            Self::Gguf(path) => path.clone(),
            _ => self.path().join(name),
        }
    }

    /// One file of a folder or built-in model, mapped into memory; `None` if it is not there.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Bytes>> {
        match self {
            Self::BuiltIn(model) => Ok(model.file(name).map(Bytes::from_static)),
            Self::Folder(folder) => {
                let path = folder.join(name);
                if path.is_file() { Bytes::map(&path).map(Some) } else { Ok(None) }
            }
            Self::Gguf(path) => Bytes::map(path).map(Some),
        }
    }

    /// A JSON file of a folder or built-in model, read and bounded; `None` if it is not there.
    pub(crate) fn open_json(&self, name: &str) -> Result<Option<Bytes>> {
        let bytes = self.open(name)?;
        if let Some(bytes) = &bytes {
            let config = name == "config.json";
            let limit = if config { MAX_CONFIG_BYTES } else { MAX_JSON_BYTES };
            check_size(&self.file_path(name), bytes.len() as u64, limit)?;
        }
        Ok(bytes)
    }
}

fn check_size(path: &Path, bytes: u64, limit: u64) -> Result<()> {
    if bytes > limit {
        return Err(Error::FileTooLarge { path: path.to_owned(), bytes, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_answers_to_is_not_found() {
        for name in ["no-such-model", "org/name/more", "./org/name", "../name", "org/name@a..b"] {
            let error = Source::resolve(name).unwrap_err();
            assert!(matches!(&error, Error::NotFound { spec, .. } if spec == name), "{error}");
            for tried in ["tiny-mixtral", &format!("a folder {name}"), "a hub id"] {
                assert!(error.to_string().contains(tried), "{error}");
            }
        }
    }

    #[test]
    fn folders_and_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let spec = folder.path().to_str().unwrap();
        assert_eq!(Source::resolve(spec).unwrap(), Source::Folder(folder.path().to_owned()));
        let gguf = folder.path().join("model.GGUF");
        std::fs::write(&gguf, b"").unwrap();
        assert_eq!(Source::resolve(gguf.to_str().unwrap()).unwrap(), Source::Gguf(gguf));
        let other = folder.path().join("model.bin");
        std::fs::write(&other, b"").unwrap();
        let error = Source::resolve(other.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { found, .. } if found == "bin"));
    }
}
