//! The day that a template prints.

use std::str::FromStr;

use crate::Error;

/// A day of the Gregorian calendar, of the years 1 to 9999; written `2026-11-23`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

fn days_in(year: u16, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        _ => 31,
    }
}

impl FromStr for Date {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let date = || {
            let mut parts = text.splitn(3, '-');
            let mut part = |digits: usize| {
                let part = parts.next()?;
                let number = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
                number.then(|| part.parse::<u16>().ok()).flatten()
            };
            let (year, month, day) = (part(4)?, part(2)? as u8, part(2)? as u8);
            let real = year > 0 && (1..=12).contains(&month);
            (real && (1..=days_in(year, month)).contains(&day)).then_some(Self { year, month, day })
        };
        date().ok_or_else(|| Error::Date { text: text.chars().take(80).collect() })
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Date {
    /// Days since the first of January, from 0.
    fn day_of_year(self) -> u16 {
        let before = (1..self.month).map(|month| u16::from(days_in(self.year, month)));
        before.sum::<u16>() + u16::from(self.day) - 1
    }

    /// Days since Sunday.
    fn day_of_week(self) -> usize {
        let years = usize::from(self.year - 1);
        // The first of January of the year 1 was a Monday.
        (1 + years * 365 + years / 4 - years / 100 + years / 400 + usize::from(self.day_of_year()))
            % 7
    }

    /// The day at midnight as C's `strftime` writes it in English.
    ///
    /// # Errors
    ///
    /// A directive that is not built, in words.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = rest.next();
            // A hyphen: no leading zeros.
            let bare = directive == Some('-');
            if bare {
                directive = rest.next();
            }
            let number = |n: u16, width: usize| {
                if bare { n.to_string() } else { format!("{n:0width$}") }
            };
            let (month, weekday) = (MONTHS[usize::from(self.month - 1)], DAYS[self.day_of_week()]);
            out += &match directive {
                Some('Y') => self.year.to_string(),
                Some('y') => number(self.year % 100, 2),
                Some('m') => number(self.month.into(), 2),
                Some('d') => number(self.day.into(), 2),
                Some('e') if bare => self.day.to_string(),
                Some('e') => format!("{:2}", self.day),
                Some('j') => number(self.day_of_year() + 1, 3),
                Some('B') => month.to_owned(),
                Some('b' | 'h') => month[..3].to_owned(),
                Some('A') => weekday.to_owned(),
                Some('a') => weekday[..3].to_owned(),
                Some('w') => self.day_of_week().to_string(),
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => number(12, 2),
                Some('p') => "AM".to_owned(),
                Some('F') => self.to_string(),
                Some('D') => self.format("%m/%d/%y")?,
                Some('T') => "00:00:00".to_owned(),
                Some('R') => "00:00".to_owned(),
                Some('n') => "\n".to_owned(),
                Some('t') => "\t".to_owned(),
                Some('%') => "%".to_owned(),
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!("strftime_now: `%{other}` is not known"));
                }
            };
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn days_are_written_as_strftime_does() {
        let day = date("2024-02-09");
        let written = |format: &str| day.format(format).unwrap();
        assert_eq!(written("%d %b %Y, %B %-d, %A %a"), "09 Feb 2024, February 9, Friday Fri");
        assert_eq!(written("%Y-%m-%d %H:%M:%S|%e|%j|%y|%%"), "2024-02-09 00:00:00| 9|040|24|%");
        assert_eq!(date("2000-12-31").format("%j %w").unwrap(), "366 0");
        assert_eq!(date("1900-03-01").format("%a").unwrap(), "Thu");
        assert_eq!(date("0001-01-01").format("%A").unwrap(), "Monday");
        assert!(day.format("%Q").is_err() && day.format("%").is_err());
        assert_eq!(day.to_string(), "2024-02-09");
    }

    #[test]
    fn days_that_are_none() {
        for text in [
            "",
            "2024",
            "2023-02-29",
            "2024-13-01",
            "2024-00-10",
            "2024-1-1",
            "0000-01-01",
            "2024-01-01-",
            "2024-+1-01",
        ] {
            assert!(matches!(text.parse::<Date>(), Err(Error::Date { .. })), "{text}");
        }
    }
}
