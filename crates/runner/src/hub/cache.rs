//! The cache on disk, laid out as `huggingface_hub` has it.
//!
//! ```text
//! CACHE/models--org--name/refs/main                        the commit of a branch or tag
//! CACHE/models--org--name/blobs/TAG                        a file's content
//! CACHE/models--org--name/snapshots/COMMIT/config.json     a link to ../../blobs/TAG
//! CACHE/models--org--name/.no_exist/COMMIT/vocab.json      a file that the commit lacks
//! CACHE/.locks/models--org--name/TAG.lock                  held while a blob is written
//! ```
//!
//! Where links cannot be made, snapshots hold the files themselves.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::id::{HubId, is_commit};
use super::{HubEvent, HubFault, Patience};

/// How often a lock that is held is tried.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// One model's part of the cache.
#[derive(Debug)]
pub(super) struct Cache {
    /// `models--org--name`.
    folder: PathBuf,
    /// Where its locks are.
    locks: PathBuf,
}

impl Cache {
    pub fn new(cache: &Path, id: &HubId) -> Self {
        let name = format!("models--{}", id.repository().replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The model's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob(&self, tag: &str) -> PathBuf {
        self.folder.join("blobs").join(tag)
    }

    /// The commit that a branch or tag had when it was last fetched.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let mut text = String::new();
        let file = File::open(self.folder.join("refs").join(revision)).ok()?;
        file.take(64).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes the commit of a branch or tag.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubFault> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_parent(&path)?;
        // Beside the references, where no name of a branch can lead, and under a name
        // that no other process or thread uses.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let beside = self.folder.join(format!(".ref.{process}.{count}"));
        fs::write(&beside, commit).map_err(|error| HubFault::disk(&beside, error))?;
        fs::rename(&beside, &path).map_err(|error| {
            let _ = fs::remove_file(&beside);
            HubFault::disk(&path, error)
        })
    }

    pub fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Whether the commit is known to lack a file.
    pub fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.no_exist(commit, file).is_file()
    }

    /// Notes that the commit lacks a file, which saves the next question. A cache
    /// that cannot be written only loses that.
    pub fn set_absent(&self, commit: &str, file: &str) {
        let path = self.no_exist(commit, file);
        if !path.is_file() && create_parent(&path).is_ok() {
            let _ = File::create(path);
        }
    }

    fn no_exist(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(file)
    }

    /// Makes a blob the content of a snapshot's file.
    pub fn link(&self, tag: &str, commit: &str, file: &str) -> Result<(), HubFault> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.is_file() {
            return Ok(());
        }
        create_parent(&pointer)?;
        // A link to a blob that is gone.
        if pointer.is_symlink() {
            fs::remove_file(&pointer).map_err(|error| HubFault::disk(&pointer, error))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        match symlink(&format!("{up}blobs/{tag}"), &pointer) {
            Ok(()) => Ok(()),
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && pointer.is_file() => Ok(()),
            // A disk without links: the snapshot takes the file itself.
            Err(_) => fs::rename(self.blob(tag), &pointer)
                .map_err(|error| HubFault::disk(&pointer, error)),
        }
    }

    /// Waits until no other process writes this blob.
    ///
    /// What is written stays right without the lock (see `transfer`); it only saves
    /// fetching twice. So a file system without locks does no harm.
    pub fn lock(
        &self,
        tag: &str,
        file: &str,
        patience: &Patience,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<Option<File>, HubFault> {
        let path = self.locks.join(format!("{tag}.lock"));
        create_parent(&path)?;
        let mut stood = (Instant::now(), self.bytes_of(tag));
        let mut told = false;
        loop {
            let lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|error| HubFault::disk(&path, error))?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &path) => return Ok(Some(lock)),
                // Whoever held it removed it: the file of that name is another one now.
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(None);
                }
                Err(TryLockError::Error(error)) => return Err(HubFault::disk(&path, error)),
            }
            if !told {
                events(HubEvent::Waiting { file });
                told = true;
            }
            let bytes = self.bytes_of(tag);
            if bytes != stood.1 {
                stood = (Instant::now(), bytes);
            }
            let waited = stood.0.elapsed();
            if waited >= patience.lock {
                return Err(HubFault::Locked { path, waited });
            }
            std::thread::sleep(LOCK_POLL.min(patience.lock));
        }
    }

    /// Bytes of a blob and of what is on the way to become it, under whatever name.
    fn bytes_of(&self, tag: &str) -> u64 {
        let entries = fs::read_dir(self.folder.join("blobs")).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(tag))
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum()
    }
}

/// Makes the folder that a file goes to.
pub(super) fn create_parent(path: &Path) -> Result<(), HubFault> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(folder).map_err(|error| HubFault::disk(folder, error))
}

#[cfg(unix)]
fn symlink(to: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, link)
}

#[cfg(not(unix))]
fn symlink(_: &str, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether an open file is still the one at this path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}
