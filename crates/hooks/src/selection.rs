//! Selections of layers, heads and positions, as written on a command line.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A set of indices: all, or ranges such as `0,5-9` (both ends included).
///
/// ```
/// use hooks::Selection;
///
/// let layers: Selection = "0,5-7".parse()?;
/// assert_eq!(layers.resolve("layer", 12)?, [0, 5, 6, 7]);
/// assert!(layers.resolve("layer", 6).is_err());
/// # Ok::<(), hooks::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// Every index.
    #[default]
    All,
    /// These ranges, first and last index included.
    Only(Vec<(usize, usize)>),
}

impl Selection {
    /// The indices, ascending and without repeats.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] if one is `count` or more; `what` names it there.
    pub fn resolve(&self, what: &'static str, count: usize) -> Result<Vec<usize>> {
        match self {
            Self::All => Ok((0..count).collect()),
            Self::Only(ranges) => {
                // Checked before expanding: a range may be written larger than memory.
                if let Some(&(_, index)) = ranges.iter().find(|(_, last)| *last >= count) {
                    return Err(Error::OutOfRange { what, index, count });
                }
                let mut indices: Vec<usize> =
                    ranges.iter().flat_map(|&(first, last)| first..=last).collect();
                indices.sort_unstable();
                indices.dedup();
                Ok(indices)
            }
        }
    }

    /// Whether the index is in the set.
    pub fn contains(&self, index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Only(ranges) => {
                ranges.iter().any(|&(first, last)| (first..=last).contains(&index))
            }
        }
    }
}

impl FromStr for Selection {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.split(',')
            .map(|item| parse_range(item.trim()))
            .collect::<Option<_>>()
            .map(|ranges| Self::Only(merge(ranges)))
            .ok_or_else(|| Error::Selection {
                text: text.to_owned(),
                expected: "`all`, or numbers and ranges such as `0,5-9`",
            })
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(ranges) => write_ranges(f, ranges.iter().copied()),
        }
    }
}

/// One item of [`Positions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The last position of the row.
    Last,
    /// Absolute positions, first and last included.
    Range(usize, usize),
}

/// Positions of a sequence: all, or items such as `last,0-16`.
///
/// Ranges count from the start of the sequence, so they mean the same in a
/// prompt's prefill and in later decode steps. A range that reaches beyond a
/// sequence is cut: sequences differ in length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Every position.
    #[default]
    All,
    /// These items.
    Only(Vec<Position>),
}

impl Positions {
    /// The last position alone.
    pub fn last() -> Self {
        Self::Only(vec![Position::Last])
    }

    /// Which of a row's `length` tokens are meant, ascending, counted within the
    /// row, whose first token has the absolute position `offset`.
    pub fn resolve(&self, offset: usize, length: usize) -> Vec<usize> {
        let Self::Only(items) = self else {
            return (0..length).collect();
        };
        let mut wanted: Vec<usize> = Vec::new();
        for item in items {
            match *item {
                Position::Last => wanted.extend(length.checked_sub(1)),
                Position::Range(first, last) => {
                    let start = first.saturating_sub(offset);
                    let end = last.saturating_add(1).saturating_sub(offset).min(length);
                    wanted.extend(start..end);
                }
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// The positions in either.
    pub fn union(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Only(a), Self::Only(b)) => {
                let mut items = a.clone();
                items.extend(b.iter().copied().filter(|item| !a.contains(item)));
                Self::Only(items)
            }
            _ => Self::All,
        }
    }
}

impl FromStr for Positions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.split(',')
            .map(|item| match item.trim() {
                "last" => Some(Position::Last),
                item => parse_range(item).map(|(first, last)| Position::Range(first, last)),
            })
            .collect::<Option<_>>()
            .map(Self::Only)
            .ok_or_else(|| Error::Selection {
                text: text.to_owned(),
                expected: "`all`, or `last`, numbers and ranges such as `last,0-16`",
            })
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Only(items) = self else {
            return f.write_str("all");
        };
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match *item {
                Position::Last => f.write_str("last")?,
                Position::Range(first, last) => write_ranges(f, std::iter::once((first, last)))?,
            }
        }
        Ok(())
    }
}

fn parse_range(item: &str) -> Option<(usize, usize)> {
    let number = |text: &str| {
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<usize>().ok()).flatten()
    };
    match item.split_once('-') {
        None => number(item).map(|n| (n, n)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
    }
}

/// Ascending ranges that neither touch nor overlap: one spelling for each set.
fn merge(mut ranges: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    ranges.sort_unstable();
    let mut merged: Vec<(usize, usize)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn write_ranges(
    f: &mut fmt::Formatter<'_>,
    ranges: impl Iterator<Item = (usize, usize)>,
) -> fmt::Result {
    for (i, (first, last)) in ranges.enumerate() {
        let comma = if i > 0 { "," } else { "" };
        if first == last {
            write!(f, "{comma}{first}")?;
        } else {
            write!(f, "{comma}{first}-{last}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["all", "0", "0,5-9", "3-3,1"] {
            let selection: Selection = text.parse().unwrap();
            assert_eq!(selection.to_string().parse::<Selection>().unwrap(), selection);
        }
        for text in ["all", "last", "last,0-16", "4"] {
            assert_eq!(text.parse::<Positions>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_set_has_one_spelling() {
        for (text, spelling) in [("3,1,1,2", "1-3"), ("0-4,2-9", "0-9"), ("5,0-1", "0-1,5")] {
            assert_eq!(text.parse::<Selection>().unwrap().to_string(), spelling);
        }
    }

    #[test]
    fn bad_text_is_refused() {
        for text in ["", "-", "1-", "-1", "5-2", "a", "1,,2", "1 2", "+1", "99999999999999999999"] {
            assert!(text.parse::<Selection>().is_err(), "{text}");
            assert!(text.parse::<Positions>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_huge_range_is_refused_before_it_is_expanded() {
        let selection: Selection = "0-18446744073709551615".parse().unwrap();
        assert!(matches!(selection.resolve("head", 4), Err(Error::OutOfRange { count: 4, .. })));
    }

    #[test]
    fn positions_are_absolute_and_cut_to_the_row() {
        let positions: Positions = "last,0-2".parse().unwrap();
        assert_eq!(positions.resolve(0, 10), [0, 1, 2, 9]);
        assert_eq!(positions.resolve(0, 2), [0, 1]);
        assert_eq!(positions.resolve(2, 3), [0, 2]);
        assert_eq!(positions.resolve(5, 1), [0]);
        assert_eq!("0-18446744073709551615".parse::<Positions>().unwrap().resolve(1, 3), [0, 1, 2]);
    }

    #[test]
    fn indices_ascend_without_repeats() {
        let selection: Selection = "4,0-2,1".parse().unwrap();
        assert_eq!(selection.resolve("head", 5).unwrap(), [0, 1, 2, 4]);
        assert!(selection.contains(4) && !selection.contains(3));
    }
}
