//! The one door through which the store changes the disk.
//!
//! Every change is announced to an optional [`Monitor`] before it is made, and
//! the monitor may refuse it or let a write tear in the middle.  This is how a
//! full disk and a crash at any moment are tested without a full disk or a
//! crash: the code under test is the code that runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Action, Error, Result};

/// A change that the store is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// A directory is made, with its parents.
    CreateDirectory {
        /// The directory.
        path: &'a Path,
    },
    /// A file is made.
    Create {
        /// The file.
        path: &'a Path,
    },
    /// Bytes are written.
    Write {
        /// The file.
        path: &'a Path,
        /// Where, in bytes from its start.
        offset: u64,
        /// How many bytes.
        length: usize,
    },
    /// A file is cut.
    Truncate {
        /// The file.
        path: &'a Path,
        /// Its new length, in bytes.
        length: u64,
    },
    /// A file's content is brought to the disk.
    Sync {
        /// The file.
        path: &'a Path,
    },
    /// A directory's entries are brought to the disk.
    SyncDirectory {
        /// The directory.
        path: &'a Path,
    },
    /// A file gets its final name.
    Rename {
        /// The name it has.
        from: &'a Path,
        /// The name it gets.
        to: &'a Path,
    },
    /// A file or an empty directory is deleted.
    Remove {
        /// The file or directory.
        path: &'a Path,
    },
}

/// What a [`Monitor`] decides.
#[derive(Debug)]
pub enum Verdict {
    /// The change is made.
    Proceed,
    /// The change is not made, and this error is reported for it.
    Fail(io::Error),
    /// The first bytes of a write are written, then this error is reported.
    Torn {
        /// How many bytes are written.
        written: usize,
        /// The error.
        error: io::Error,
    },
}

/// Watches every change that the store makes to the disk.
pub trait Monitor: Send + Sync {
    /// Called before each change, in the order in which they are made.
    fn before(&self, operation: &Operation<'_>) -> Verdict;
}

/// The disk, behind its monitor.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    monitor: Option<Arc<dyn Monitor>>,
}

fn io_error(action: Action, path: &Path, source: io::Error) -> Error {
    Error::Io { action, path: path.to_owned(), source }
}

impl Disk {
    pub(crate) fn new(monitor: Option<Arc<dyn Monitor>>) -> Disk {
        Disk { monitor }
    }

    fn ask(&self, operation: Operation<'_>) -> Verdict {
        match &self.monitor {
            None => Verdict::Proceed,
            Some(monitor) => monitor.before(&operation),
        }
    }

    fn perform(
        &self,
        action: Action,
        path: &Path,
        operation: Operation<'_>,
        change: impl FnOnce() -> io::Result<()>,
    ) -> Result<()> {
        match self.ask(operation) {
            Verdict::Proceed => change(),
            Verdict::Fail(error) | Verdict::Torn { error, .. } => Err(error),
        }
        .map_err(|source| io_error(action, path, source))
    }

    /// Makes a directory and brings its name to the disk; one that is there is left alone.
    pub(crate) fn create_directory(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.perform(Action::Create, path, Operation::CreateDirectory { path }, || {
            fs::create_dir_all(path)
        })?;
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => self.sync_directory(Path::new(".")),
            Some(parent) => self.sync_directory(parent),
            None => Ok(()),
        }
    }

    /// Makes a new file; one that is there is deleted first, so that a link in its place is never followed.
    pub(crate) fn create(&self, path: &Path) -> Result<Output> {
        if path.symlink_metadata().is_ok() {
            self.remove_file(path)?;
        }
        let mut file = None;
        self.perform(Action::Create, path, Operation::Create { path }, || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true);
            file = Some(options.open(path)?);
            Ok(())
        })?;
        match file {
            Some(file) => Ok(Output { file, path: path.to_owned(), disk: self.clone(), offset: 0 }),
            None => Err(io_error(Action::Create, path, io::ErrorKind::NotFound.into())),
        }
    }

    /// Opens an existing file for writing from `offset` on.
    pub(crate) fn append(&self, path: &Path, offset: u64) -> Result<Output> {
        refuse_link(path)?;
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(file)
        };
        let file = open().map_err(|source| io_error(Action::Write, path, source))?;
        Ok(Output { file, path: path.to_owned(), disk: self.clone(), offset })
    }

    /// Cuts a file that is longer than `length`, and syncs it.
    pub(crate) fn truncate(&self, path: &Path, length: u64) -> Result<()> {
        refuse_link(path)?;
        self.perform(Action::Truncate, path, Operation::Truncate { path, length }, || {
            OpenOptions::new().write(true).open(path)?.set_len(length)
        })?;
        self.append(path, length)?.sync()
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.perform(Action::Rename, to, Operation::Rename { from, to }, || fs::rename(from, to))
    }

    /// Brings a directory's entries to the disk, where the system can do that.
    pub(crate) fn sync_directory(&self, path: &Path) -> Result<()> {
        self.perform(Action::Sync, path, Operation::SyncDirectory { path }, || {
            if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
        })
    }

    pub(crate) fn remove_file(&self, path: &Path) -> Result<()> {
        self.perform(Action::Remove, path, Operation::Remove { path }, || fs::remove_file(path))
    }

    /// Deletes a directory of files, with the files in it.
    pub(crate) fn remove_directory(&self, path: &Path) -> Result<()> {
        for (_, entry) in list(path)? {
            if is_directory(&entry) {
                self.remove_directory(&entry)?;
            } else {
                self.remove_file(&entry)?;
            }
        }
        self.perform(Action::Remove, path, Operation::Remove { path }, || fs::remove_dir(path))
    }

    /// Puts a small file in its place whole: written beside it, synced, renamed, its directory synced.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let beside = partial(path);
        let mut output = self.create(&beside)?;
        output.append(bytes)?;
        output.sync()?;
        self.rename(&beside, path)?;
        match path.parent() {
            Some(parent) => self.sync_directory(parent),
            None => Ok(()),
        }
    }
}

/// The name a file has until it is whole.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Whether this is a directory, and no link to one.
pub(crate) fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_dir())
}

/// Refuses a link: what it points at may be anybody's.
pub(crate) fn refuse_link(path: &Path) -> Result<()> {
    if path.is_symlink() {
        return Err(Error::Link { path: path.to_owned() });
    }
    Ok(())
}

/// A directory's entries by name, sorted; none if there is no such directory.
pub(crate) fn list(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io_error(Action::List, path, source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| io_error(Action::List, path, source))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Opens a file for reading and tells its length; a file that is not there is [`Error::Missing`].
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let read = || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    read().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.to_owned() },
        _ => io_error(Action::Read, path, source),
    })
}

/// The error of a failed read.
pub(crate) fn read_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| io_error(Action::Read, path, source)
}

/// A file being written.
pub(crate) struct Output {
    file: File,
    path: PathBuf,
    disk: Disk,
    offset: u64,
}

impl Output {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next byte goes.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let operation =
            Operation::Write { path: &self.path, offset: self.offset, length: bytes.len() };
        let outcome = match self.disk.ask(operation) {
            Verdict::Proceed => self.file.write_all(bytes),
            Verdict::Fail(error) => Err(error),
            Verdict::Torn { written, error } => {
                self.file.write_all(&bytes[..written.min(bytes.len())]).and(Err(error))
            }
        };
        outcome.map_err(|source| io_error(Action::Write, &self.path, source))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Goes to `offset`; the next bytes are written there.
    pub(crate) fn seek(&mut self, offset: u64) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|source| io_error(Action::Write, &self.path, source))?;
        self.offset = offset;
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        let file = &self.file;
        self.disk.perform(Action::Sync, &self.path, Operation::Sync { path: &self.path }, || {
            file.sync_all()
        })
    }
}
