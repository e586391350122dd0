//! One file from the hub into the cache: resumed, checked, and whole or not there.
//!
//! The partial file is named after the content (`TAG.incomplete`) and written at
//! explicit offsets. Two processes that both write it, where locks do not work,
//! write the same bytes to the same places; and the checksum of what lies on the
//! disk is taken before the file gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{Cache, create_parent};
use super::client::{Attempts, Client, Failure, Remote};
use super::id::is_hex;
use super::{HubEvent, HubFault, Patience};

/// An attempt that brings so many bytes is no failure.
const PROGRESS: u64 = 1 << 20;

/// Where a file goes, and how far all of them are.
pub(super) struct Transfer<'a> {
    pub client: &'a Client<'a>,
    pub cache: &'a Cache,
    pub commit: &'a str,
    pub patience: &'a Patience,
}

/// Bytes of all files of a download.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    /// Before the file at hand.
    pub before: u64,
    pub total: u64,
}

impl Transfer<'_> {
    /// Fetches what the cache lacks of a file of at most `limit` bytes, and links
    /// it into the snapshot.
    pub fn fetch(
        &self,
        remote: &Remote,
        limit: u64,
        tally: Tally,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<(), HubFault> {
        let blob = self.cache.blob(&remote.tag);
        check_limit(remote, remote.size, limit)?;
        create_parent(&blob)?;
        let lock = self.cache.lock(&remote.tag, &remote.file, self.patience, events)?;
        if !is_whole(&blob, remote.size) {
            self.download(remote, &blob, limit, tally, events)?;
        }
        drop(lock);
        self.cache.link(&remote.tag, self.commit, &remote.file)
    }

    fn download(
        &self,
        remote: &Remote,
        blob: &Path,
        limit: u64,
        tally: Tally,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<(), HubFault> {
        let path = blob.with_file_name(format!("{}.incomplete", remote.tag));
        let partial = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| HubFault::disk(&path, error))?;
        let mut target = Target { file: partial, path: &path, at: 0, remote, limit, tally };
        target.at = target.len()?;
        let mut attempts = Attempts::new(self.patience);
        // What is fetched again after a restart is no progress.
        let mut furthest = target.at;
        while remote.size.is_none_or(|size| size != target.at) {
            match self.attempt(&mut target, events) {
                Ok(()) => break,
                Err(failure) => {
                    if target.at >= furthest.saturating_add(PROGRESS) {
                        attempts.progressed();
                        furthest = target.at;
                    }
                    if let Failure::Passing {
                        fault: HubFault::Status { status: 416, .. }, ..
                    } = &failure
                    {
                        target.restart()?;
                    }
                    attempts.wait(failure, events).inspect_err(|fault| discard(&path, fault))?;
                }
            }
        }
        target.finish(blob).inspect_err(|fault| discard(&path, fault))
    }

    /// One request for what is missing.
    fn attempt(
        &self,
        target: &mut Target<'_>,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<(), Failure> {
        let remote = target.remote;
        if remote.size.is_some_and(|size| target.at > size) {
            target.restart()?;
        }
        let mut content = self.client.open(self.commit, remote, target.at)?;
        if content.start != target.at {
            // The host does not resume.
            target.restart()?;
        }
        let announced = content.length.map(|length| content.start.saturating_add(length));
        let size = match (remote.size, announced) {
            (Some(expected), Some(found)) if expected != found => {
                return Err(HubFault::Size { file: remote.file.clone(), expected, found }.into());
            }
            (expected, found) => expected.or(found),
        };
        check_limit(remote, size, target.limit)?;
        // Without an end in sight, only files of bounded kinds are fetched.
        if size.is_none() && target.limit > super::MAX_TEXT {
            let problem = format!("it does not say how large `{}` is", remote.file);
            return Err(HubFault::Answer { host: content.host, problem }.into());
        }
        target.seek()?;
        while let Some(piece) = content.next()? {
            let found = target.at.saturating_add(piece.len() as u64);
            match size {
                Some(expected) if found > expected => {
                    let file = remote.file.clone();
                    return Err(HubFault::Size { file, expected, found }.into());
                }
                _ => check_limit(remote, Some(found), target.limit)?,
            }
            target.write(piece)?;
            events(HubEvent::Bytes {
                file: &remote.file,
                done: target.tally.before + target.at,
                total: target.tally.total.max(target.tally.before + target.at),
            });
        }
        match size {
            Some(size) if target.at < size => {
                let source = std::io::ErrorKind::UnexpectedEof.into();
                let fault = HubFault::Connection { host: content.host, source };
                Err(Failure::Passing { fault, wait: None })
            }
            _ => Ok(()),
        }
    }
}

/// The partial file.
struct Target<'a> {
    file: File,
    path: &'a Path,
    /// Where the next byte goes.
    at: u64,
    remote: &'a Remote,
    limit: u64,
    tally: Tally,
}

impl Target<'_> {
    fn disk(&self, error: std::io::Error) -> HubFault {
        HubFault::disk(self.path, error)
    }

    fn len(&self) -> Result<u64, HubFault> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|error| self.disk(error))
    }

    fn restart(&mut self) -> Result<(), HubFault> {
        self.at = 0;
        self.file.set_len(0).map_err(|error| self.disk(error))
    }

    fn seek(&mut self) -> Result<(), HubFault> {
        self.file.seek(SeekFrom::Start(self.at)).map_err(|error| self.disk(error))?;
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), HubFault> {
        self.file.write_all(piece).map_err(|error| self.disk(error))?;
        self.at += piece.len() as u64;
        Ok(())
    }

    /// Checks what lies on the disk, makes it last, and gives it its name.
    fn finish(mut self, blob: &Path) -> Result<(), HubFault> {
        self.file.seek(SeekFrom::Start(0)).map_err(|error| self.disk(error))?;
        let tag = &self.remote.tag;
        let found = match tag.len() {
            64 if is_hex(tag) => digest(&mut self.file, Sha256::new()),
            40 if is_hex(tag) => {
                // How git names a file's content.
                let mut hash = Sha1::new();
                hash.update(format!("blob {}\0", self.at));
                digest(&mut self.file, hash)
            }
            // A mirror's own tag: only the size can be checked.
            _ => Ok(tag.clone()),
        };
        let found = found.map_err(|error| self.disk(error))?;
        if found != *tag {
            return Err(HubFault::Checksum {
                file: self.remote.file.clone(),
                expected: tag.clone(),
                found,
            });
        }
        self.file.sync_all().map_err(|error| self.disk(error))?;
        match fs::rename(self.path, blob) {
            Ok(()) => Ok(()),
            // Another process, which the lock did not stop, gave it its name.
            Err(_) if is_whole(blob, Some(self.at)) => Ok(()),
            Err(error) => Err(HubFault::disk(blob, error)),
        }
    }
}

/// Deletes a partial file that cannot become right.
fn discard(path: &Path, fault: &HubFault) {
    if matches!(
        fault,
        HubFault::Size { .. } | HubFault::Checksum { .. } | HubFault::TooLarge { .. }
    ) {
        let _ = fs::remove_file(path);
    }
}

fn check_limit(remote: &Remote, size: Option<u64>, limit: u64) -> Result<(), HubFault> {
    match size {
        Some(bytes) if bytes > limit => {
            Err(HubFault::TooLarge { file: remote.file.clone(), bytes, limit })
        }
        _ => Ok(()),
    }
}

/// Whether a blob is there with all its bytes.
fn is_whole(blob: &Path, size: Option<u64>) -> bool {
    fs::metadata(blob).is_ok_and(|m| m.is_file() && size.is_none_or(|size| m.len() == size))
}

/// The digest of all that a reader gives, in hexadecimal.
fn digest<D: Digest>(reader: &mut impl Read, mut hash: D) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
