//! A file's bytes: mapped into memory, or part of the program.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

/// Read-only bytes, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Bytes {
    /// A mapped file.
    Mapped(Arc<Mmap>),
    /// Bytes of the program itself, or of an empty file.
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps a file.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.len() == 0 {
            // An empty file cannot be mapped.
            return Ok(Self::Static(&[]));
        }
        // SAFETY: the mapping is private and only ever read through `&[u8]`. What
        // remains outside this program's power is another process that writes or
        // truncates the file meanwhile; a model's files are taken to be at rest.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        Ok(Self::Mapped(Arc::new(map)))
    }

    /// Bytes that are part of the program.
    pub(crate) fn from_static(bytes: &'static [u8]) -> Self {
        Self::Static(bytes)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}
