//! Progress on standard error: a bar on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use engine::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows how far a run is, in tokens, with rate and time left.
pub enum Meter {
    /// Nothing is shown.
    Quiet,
    /// A bar that is redrawn.
    Bar(ProgressBar),
    /// A line now and then, for log files.
    Lines { begun: Instant, last: Instant, total: u64, done: u64 },
}

impl Meter {
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bar(ProgressBar::hidden()),
            (false, false) => Self::Lines { begun: now, last: now, total: 0, done: 0 },
        }
    }
}

/// A lost standard error is no reason to end a run.
fn line(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

impl Progress for Meter {
    fn begin(&mut self, tokens: u64, finished: u64) {
        match self {
            Self::Quiet => {}
            Self::Bar(bar) => {
                let style = ProgressStyle::with_template(
                    "{bar:30} {pos}/{len} tokens  {per_sec}  {eta} left  {wide_msg}",
                );
                *bar = ProgressBar::new(tokens)
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_position(finished);
                bar.reset_eta();
            }
            Self::Lines { begun, last, total, done } => {
                (*begun, *last) = (Instant::now(), Instant::now());
                (*total, *done) = (tokens - finished.min(tokens), 0);
            }
        }
    }

    fn advance(&mut self, tokens: u64, prompt: &str) {
        match self {
            Self::Quiet => {}
            Self::Bar(bar) => {
                bar.set_message(format!("prompt {prompt}"));
                bar.inc(tokens);
            }
            Self::Lines { begun, last, total, done } => {
                *done += tokens;
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let rate = *done as f64 / begun.elapsed().as_secs_f64();
                    let left = (*total - (*done).min(*total)) as f64 / rate;
                    line(format_args!(
                        "{done}/{total} tokens, {rate:.0} tokens/s, {left:.0} s left"
                    ));
                }
            }
        }
    }

    fn note(&mut self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Bar(bar) if !bar.is_hidden() => bar.println(text),
            _ => line(format_args!("{text}")),
        }
    }

    fn end(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
