//! Where a model's files are.
//!
//! A name is resolved once, before anything is read: to a folder, a GGUF file or
//! a model that is part of the program. A built-in name wins over a folder of
//! the same name; `./NAME` means the folder.

use std::path::{Path, PathBuf};

use crate::weights::Bytes;
use crate::{Error, Result};

/// Largest JSON file that is read, in bytes. Read, a file takes many times its size.
fn max_json_bytes(name: &str) -> u64 {
    match name {
        "config.json" => 16 << 20,
        _ => 128 << 20,
    }
}

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
/// assert!(matches!(Source::resolve("org/name"), Err(Error::NotFound { .. })));
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

impl Source {
    /// Finds what a name means: a built-in name, a folder, or a `.gguf` file.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is nothing by this name on this machine (a
    /// hub id such as `org/name` is looked for as a folder only),
    /// [`Error::Unsupported`] for a file of another kind.
    pub fn resolve(spec: &str) -> Result<Self> {
        if let Some(&built_in) = BuiltIn::ALL.iter().find(|model| model.name() == spec) {
            return Ok(Self::BuiltIn(built_in));
        }
        let path = PathBuf::from(spec);
        if path.is_dir() {
            return Ok(Self::Folder(path));
        }
        if path.is_file() {
            let gguf = path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"));
            if gguf {
                return Ok(Self::Gguf(path));
            }
            let found = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Error::Unsupported {
                path,
                what: "model file type",
                found,
                supported: "a folder with config.json and safetensors, or a .gguf file",
            });
        }
        let names: Vec<_> = BuiltIn::ALL.iter().map(|model| model.name()).collect();
        Err(Error::NotFound {
            spec: spec.to_owned(),
            tried: vec![
                format!("the built-in models ({})", names.join(", ")),
                format!("a folder {spec}"),
                format!("a file {spec}"),
            ],
        })
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
            check_size(&self.file_path(name), bytes.len() as u64, max_json_bytes(name))?;
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
    fn a_hub_id_is_not_a_path() {
        let error = Source::resolve("org/no-such-model").unwrap_err();
        assert!(matches!(&error, Error::NotFound { spec, .. } if spec == "org/no-such-model"));
        assert!(error.to_string().contains("a folder org/no-such-model"), "{error}");
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
