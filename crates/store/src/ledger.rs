//! Files of one JSON record a line, each line carrying its own checksum.
//!
//! A line is `{"record":…,"sha256":…}`, the checksum being that of the record's
//! own text.  A line without its newline is one whose writing was cut short; a
//! whole line with a wrong checksum is damage.  The two are told apart because
//! the first is ordinary and the second never is.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checksum;
use crate::disk;
use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<T> {
    record: T,
    sha256: String,
}

/// The lines of a ledger as they were found.
pub(crate) struct Ledger<T> {
    /// The record of each whole line; `None` for a damaged one.
    pub(crate) records: Vec<Option<T>>,
    /// Bytes up to the end of the last whole line.
    pub(crate) length: u64,
    /// Whether a line that was cut short follows.
    pub(crate) torn: bool,
}

/// One record as a line.
pub(crate) fn line<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>> {
    let text = encode(path, record)?;
    let sha256 = checksum::of(text.as_bytes());
    Ok(format!("{{\"record\":{text},\"sha256\":\"{sha256}\"}}\n").into_bytes())
}

fn encode<T: Serialize>(path: &Path, record: &T) -> Result<String> {
    serde_json::to_string(record).map_err(|source| Error::Encode { path: path.to_owned(), source })
}

/// Reads a ledger, no line of which may be longer than `limit` bytes; a file that is not there has no lines.
pub(crate) fn read<T>(path: &Path, limit: u64) -> Result<Ledger<T>>
where
    T: DeserializeOwned + Serialize,
{
    let mut ledger = Ledger { records: Vec::new(), length: 0, torn: false };
    let file = match disk::open(path) {
        Ok((file, _)) => file,
        Err(Error::Missing { .. }) => return Ok(ledger),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let n = (&mut reader)
            .take(limit + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(disk::read_error(path))?;
        if n == 0 {
            return Ok(ledger);
        }
        if bytes.last() != Some(&b'\n') {
            if n as u64 > limit {
                return Err(Error::Oversized { path: path.to_owned(), limit });
            }
            ledger.torn = true;
            return Ok(ledger);
        }
        let record = match serde_json::from_slice::<Line<T>>(&bytes) {
            Ok(line) if checksum::of(encode(path, &line.record)?.as_bytes()) == line.sha256 => {
                Some(line.record)
            }
            _ => None,
        };
        ledger.records.push(record);
        ledger.length += n as u64;
    }
}
