//! SHA-256 in the hexadecimal form in which `sha256sum` prints it.

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::disk;
use crate::error::{Error, Result};

/// Bytes moved at a time when a file is read through.
pub(crate) const CHUNK: usize = 1 << 20;

/// A checksum in the making.
#[derive(Clone, Default)]
pub(crate) struct Checksum(Sha256);

impl Checksum {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn hex(self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(64);
        for byte in self.0.finalize() {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text
    }
}

/// The checksum of some bytes.
pub(crate) fn of(bytes: &[u8]) -> String {
    let mut checksum = Checksum::default();
    checksum.update(bytes);
    checksum.hex()
}

/// Reads a file through and compares its length and checksum.
pub(crate) fn check_file(path: &Path, bytes: u64, sha256: &str) -> Result<()> {
    check_length(path, bytes)?;
    let (mut file, _) = disk::open(path)?;
    let mut buffer = vec![0; CHUNK];
    let mut checksum = Checksum::default();
    loop {
        let n = file.read(&mut buffer).map_err(disk::read_error(path))?;
        if n == 0 {
            break;
        }
        checksum.update(&buffer[..n]);
    }
    compare(path, sha256, checksum.hex())
}

/// Compares a file's length.
pub(crate) fn check_length(path: &Path, bytes: u64) -> Result<()> {
    let (_, length) = disk::open(path)?;
    if length == bytes {
        Ok(())
    } else {
        Err(Error::Length { path: path.to_owned(), expected: bytes, got: length })
    }
}

/// Compares two checksums of content from `path`.
pub(crate) fn compare(path: &Path, expected: &str, got: String) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Checksum { path: path.to_owned(), expected: expected.to_owned(), got })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_digest() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            super::of(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
