//! Which names a prompt, a tensor, a table or a column may have.

use crate::error::{Error, NameFault, NameOf, Result};
use crate::{MAX_NAME_BYTES, PROMPT_COLUMN};

/// Longest part of a refused name that a message repeats, in characters.
const SHOWN: usize = 64;

fn refused(of: NameOf, name: &str, fault: NameFault) -> Error {
    Error::Name { of, name: name.chars().take(SHOWN).collect(), fault }
}

/// Checks text that becomes part of a tensor's key `{prompt}/{name}`.
pub(crate) fn check_text(of: NameOf, name: &str) -> Result<()> {
    let fault = if name.is_empty() {
        NameFault::Empty
    } else if name.len() > MAX_NAME_BYTES {
        NameFault::TooLong(name.len())
    } else if name.contains('/') {
        NameFault::Slash
    } else if let Some(c) = name.chars().find(|c| c.is_control()) {
        NameFault::Control(u32::from(c))
    } else {
        return Ok(());
    };
    Err(refused(of, name, fault))
}

/// Checks a name that becomes part of a file name or a column's title.
pub(crate) fn check_plain(of: NameOf, name: &str) -> Result<()> {
    check_text(of, name)?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let fault = if !name.chars().all(plain) {
        NameFault::NotPlain
    } else if of == NameOf::Column && name == PROMPT_COLUMN {
        NameFault::Reserved
    } else {
        return Ok(());
    };
    Err(refused(of, name, fault))
}

/// Checks that no name comes twice.
pub(crate) fn check_unique<'a>(of: NameOf, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(refused(of, name, NameFault::Duplicate));
        }
    }
    Ok(())
}

pub(crate) fn duplicate(of: NameOf, name: &str) -> Error {
    refused(of, name, NameFault::Duplicate)
}
