//! Progress on standard error: a bar on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use engine::{Progress, human};
use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows how far a run is in tokens, or a download in bytes, with rate and time left.
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

/// A bar with this template.
fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Progress for Meter {
    fn download(&mut self, file: &str, now: u64, all: u64) {
        match self {
            Self::Quiet => {}
            Self::Bar(current) => {
                if current.is_finished() || current.length() != Some(all) {
                    current.finish_and_clear();
                    *current = bar(
                        all,
                        "{bar:30} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {wide_msg}",
                    );
                    current.set_position(now);
                    current.reset_eta();
                }
                current.set_message(file.to_owned());
                current.set_position(now);
            }
            Self::Lines { begun, last, total, done } => {
                if *total != all {
                    // The rate is that of this start; `done` was there before it.
                    (*begun, *last) = (Instant::now(), Instant::now());
                    (*total, *done) = (all, now);
                    line(format_args!("downloading {file}: {}", human::bytes(all)));
                } else if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let rate = now.saturating_sub(*done) as f64 / begun.elapsed().as_secs_f64();
                    let left = all.saturating_sub(now) as f64 / rate.max(1.);
                    let (now, all) = (human::bytes(now), human::bytes(all));
                    let rate = human::bytes(rate as u64);
                    line(format_args!("{file}: {now} of {all}, {rate}/s, {left:.0} s left"));
                }
            }
        }
    }

    fn begin(&mut self, tokens: u64, finished: u64) {
        match self {
            Self::Quiet => {}
            Self::Bar(current) => {
                *current =
                    bar(tokens, "{bar:30} {pos}/{len} tokens  {per_sec}  {eta} left  {wide_msg}");
                current.set_position(finished);
                current.reset_eta();
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
