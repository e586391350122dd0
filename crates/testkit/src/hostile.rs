//! Hostile files: seeds changed at random, and what must hold for each of them.
//!
//! An input is made from its number alone, so that a failure is replayed by that
//! number. Whatever a reader is given, it must answer within [`Limits`], with a
//! value or with an error whose message a terminal can show. A test that uses this
//! declares `peak_alloc::PeakAlloc` as its global allocator, and holds [`alone`].
//!
//! Campaigns of millions of inputs set [`USED`]: every input is still given to its
//! reader, but what was accepted is put to use ([`used`]) for one input number in so
//! many only, and everything runs on one thread.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

/// How many inputs a campaign makes, in place of its own number.
pub const INPUTS: &str = "HOSTILE_INPUTS";
/// The number of the first input.
pub const FIRST: &str = "HOSTILE_FIRST";
/// Of how many accepted inputs one is also put to use; each, if it is not set.
pub const USED: &str = "HOSTILE_USED";

/// A reproducible source of choices: splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Another sequence for each number.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of some things.
    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// A number at which readers tend to err: near a power of two, or near `size`.
    pub fn number(&mut self, size: usize) -> u64 {
        let near = match self.below(8) {
            0 => return self.bits(),
            1 => return self.below(300) as u64,
            2 | 3 => size as u64,
            _ => 1u64 << self.below(64),
        };
        near.wrapping_add(self.below(5) as u64).wrapping_sub(2)
    }
}

/// Changes bytes: flipped, overwritten, inserted, deleted, repeated, cut off, or
/// taken from another seed. Most changes fall within the first `hot` bytes.
pub fn change_bytes(random: &mut Random, bytes: &mut Vec<u8>, hot: usize, other: &[u8]) {
    for _ in 0..1 + random.below(4) {
        let within = if random.once_in(8) { bytes.len() } else { hot.min(bytes.len()) };
        let at = random.below(within);
        let left = bytes.len() - at.min(bytes.len());
        if left == 0 {
            bytes.extend_from_slice(&other[..other.len().min(64)]);
            continue;
        }
        let run = (1 + random.below(16)).min(left);
        match random.below(12) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.bits() as u8,
            3 => bytes[at] = *random.of(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'[', b'{', b'\\', b'\n']),
            4..=6 => {
                let number = random.number(bytes.len()).to_le_bytes();
                let width = *random.of(&[1usize, 2, 4, 8]);
                let width = width.min(left);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            7 => drop(bytes.drain(at..at + run)),
            8 => {
                let again = bytes[at..at + run].to_vec();
                bytes.splice(at..at, again);
            }
            9 => {
                let from = random.below(other.len());
                let taken = &other[from..(from + run).min(other.len())];
                bytes.splice(at..(at + run).min(at + left), taken.iter().copied());
            }
            10 => {
                let run = random.below(200);
                let byte = random.bits() as u8;
                bytes.splice(at..at, std::iter::repeat_n(byte, run));
            }
            _ if random.once_in(4) => bytes.truncate(at),
            _ => bytes.swap(at, (at + run).min(at + left - 1)),
        }
    }
}

/// JSON values at which readers tend to err.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "2",
    "3",
    "0.5",
    "1.5",
    "1e999",
    "-1e999",
    "1e-999",
    "1e308",
    "5e-324",
    "1e30",
    "255",
    "256",
    "16384",
    "16385",
    "1048576",
    "16777216",
    "268435456",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "123456789012345678901234567890",
    "\"\"",
    "\"a\"",
    "\" \"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\u{feff}\"",
    "\"▁\"",
    "\"(a+)+$\"",
    "\"(\"",
    "\"a|b|ab\"",
    "\"(?i)\\\\p{L}+\"",
    "\"$A\"",
    "[]",
    "{}",
    "[[]]",
    "[0]",
    "[1,2]",
    "[null]",
    "[\"a\",\"b\"]",
    "[0,1e400]",
    "{\"a\":1}",
    "{\"type\":\"Sequence\"}",
    "01",
    "+1",
    "NaN",
    "Infinity",
    "'a'",
    "nul",
];

/// Changes a JSON text: values replaced, moved, repeated or dropped, members
/// doubled, nesting added; now and then plain bytes.
///
/// `words` are texts that mean something to the reader.
pub fn change_json(random: &mut Random, text: &mut Vec<u8>, words: &[&str], other: &[u8]) {
    for _ in 0..1 + random.below(4) / 2 {
        let places = values(text);
        if places.is_empty() || random.once_in(8) {
            let all = text.len();
            change_bytes(random, text, all, other);
            continue;
        }
        let place = random.of(&places).clone();
        let new: Vec<u8> = match random.below(16) {
            // Something of the same kind, so that more is accepted.
            10.. => {
                let kind = text[place.start];
                let from: &[u8] = if random.once_in(2) { text } else { other };
                let same: Vec<_> =
                    values(from).into_iter().filter(|place| from[place.start] == kind).collect();
                match kind {
                    b'"' if !words.is_empty() && random.once_in(2) => {
                        format!("\"{}\"", random.of(words)).into_bytes()
                    }
                    b'0'..=b'9' if random.once_in(2) => {
                        random.number(text.len()).to_string().into_bytes()
                    }
                    b't' => b"false".to_vec(),
                    b'f' => b"true".to_vec(),
                    _ if same.is_empty() => continue,
                    _ => from[random.of(&same).clone()].to_vec(),
                }
            }
            0..=3 => random.of(VALUES).as_bytes().to_vec(),
            4 if !words.is_empty() => format!("\"{}\"", random.of(words)).into_bytes(),
            5 => random.number(text.len()).to_string().into_bytes(),
            6 => text[random.of(&places).clone()].to_vec(),
            7 => {
                let theirs = values(other);
                if theirs.is_empty() {
                    continue;
                } else {
                    other[random.of(&theirs).clone()].to_vec()
                }
            }
            8 => {
                let own = &text[place.clone()];
                let depth = *random.of(&[1usize, 2, 40, 127, 128, 300]);
                let mut nested = vec![b'['; depth];
                nested.extend_from_slice(own);
                nested.resize(nested.len() + depth, b']');
                nested
            }
            _ => {
                // The value twice, so that lists grow and members repeat.
                let own = &text[place.clone()];
                let times = if random.once_in(20) { 500 } else { 2 };
                let mut more = own.to_vec();
                for _ in 1..times {
                    more.push(b',');
                    more.extend_from_slice(own);
                }
                more
            }
        };
        text.splice(place, new);
    }
}

/// Where the values and keys of a JSON text lie: texts, scalars, and what brackets enclose.
fn values(text: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut found, mut open) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < text.len() {
        let start = at;
        at += 1;
        match text[start] {
            b'"' => {
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(text.len());
                found.push(start..at);
            }
            b'{' | b'[' => open.push(start),
            b'}' | b']' => found.extend(open.pop().map(|start| start..at)),
            b',' | b':' | b' ' | b'\n' => {}
            _ => {
                while at < text.len() && !b",:]}\n ".contains(&text[at]) {
                    at += 1;
                }
                found.push(start..at);
            }
        }
    }
    found
}

/// What a reader may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For one input.
    pub time: Duration,
    /// Bytes of memory held at once, beside what was held before.
    pub memory: usize,
    /// Bytes of memory more for each byte of input.
    pub memory_per_byte: usize,
    /// Bytes that may stay held for each input that was accepted.
    pub kept: usize,
    /// Bytes of a message.
    pub message: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(2),
            memory: 64 << 20,
            memory_per_byte: 16,
            kept: 0,
            message: 2000,
        }
    }
}

/// What one campaign found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Inputs that were read.
    pub accepted: u64,
    /// Inputs that were refused.
    pub refused: u64,
}

thread_local! {
    static USE: Cell<bool> = const { Cell::new(true) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

static ALONE: Mutex<()> = Mutex::new(());
static HOOK: Once = Once::new();

/// Waits until no other such test of this process runs: memory is counted for the
/// whole process, so every test that measures holds this from its first line. Panics
/// within inputs are kept for the report rather than printed.
pub fn alone() -> MutexGuard<'static, ()> {
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if INSIDE.get() {
                PANIC.set(info.to_string());
            } else {
                usual(info);
            }
        }));
    });
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this input, once accepted, is to be put to use: a model run, a text
/// tokenized. Told by the input's number alone.
pub fn used() -> bool {
    USE.get()
}

/// A file that takes one input after another. Its pages are kept, which is several
/// times cheaper than a new file for each.
#[derive(Debug)]
pub struct Slot {
    file: File,
    len: Cell<usize>,
}

impl Slot {
    /// An empty file at a path.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { file: File::create(path).expect("a file"), len: Cell::new(0) }
    }

    /// Puts these bytes in place of the file's.
    pub fn put(&self, bytes: &[u8]) {
        self.file.write_all_at(bytes, 0).expect("a written file");
        if self.len.replace(bytes.len()) > bytes.len() {
            self.file.set_len(bytes.len() as u64).expect("a shorter file");
        }
    }
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number of inputs"))
}

/// Makes `inputs` inputs, unless the environment says how many, and gives each to
/// `read`, which answers with a reader's message if it refuses.
///
/// # Panics
///
/// At the first input that breaks the limits; the message says how to replay it.
pub fn campaign(
    name: &str,
    inputs: u64,
    limits: Limits,
    mut make: impl FnMut(&mut Random) -> Vec<u8>,
    mut read: impl FnMut(&[u8]) -> Result<(), String>,
) -> Tally {
    let (first, inputs) = (environment(FIRST).unwrap_or(0), environment(INPUTS).unwrap_or(inputs));
    let one_in = environment(USED);
    // Work this small takes longer to hand to other threads than to do.
    let _thread = one_in.map(|_| {
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().expect("a pool")
    });
    // Where it was, if the process does not survive.
    let folder = folder();
    let place = Slot::new(folder.join(format!("{name}.at")));
    let (started, mut tally) = (Instant::now(), Tally::default());
    let held = PeakAlloc.current_usage();
    for number in first..first + inputs {
        place.put(format!("{number:20}").as_bytes());
        USE.set(number.is_multiple_of(one_in.unwrap_or(1).max(1)));
        let salt = name.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(131) + u64::from(byte));
        let bytes = make(&mut Random::new(number ^ salt << 40));
        let answer = check(&bytes, limits, &mut read).and_then(|accepted| {
            let left = PeakAlloc.current_usage().saturating_sub(held + bytes.capacity());
            if left > limits.memory + limits.kept * tally.accepted as usize {
                return Err(format!("{left} bytes stay held since the campaign began"));
            }
            Ok(accepted)
        });
        match answer {
            Ok(true) => tally.accepted += 1,
            Ok(false) => tally.refused += 1,
            Err(problem) => {
                let path = folder.join(format!("{name}-{number}"));
                std::fs::write(&path, &bytes).expect("a file");
                let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
                panic!(
                    "input {number} of {name} ({} bytes, kept as {}): {problem}\n\
                     replay it with: {FIRST}={number} {INPUTS}=1 cargo test --release -p {package} {name}",
                    bytes.len(),
                    path.display(),
                );
            }
        }
    }
    USE.set(true);
    println!(
        "{name}: inputs {first}..{}, {} accepted, {} refused, {:.1} s",
        first + inputs,
        tally.accepted,
        tally.refused,
        started.elapsed().as_secs_f64()
    );
    tally
}

/// Gives one input to a reader and measures it; whether it was accepted.
pub fn check(
    bytes: &[u8],
    limits: Limits,
    read: &mut impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<bool, String> {
    let first = measure(bytes, limits, read);
    // A busy machine may have been slow once.
    match first {
        Err(Broken::Time(_)) => measure(bytes, limits, read),
        other => other,
    }
    .map_err(|broken| match broken {
        Broken::Time(taken) => format!("it took {:.1} s", taken.as_secs_f64()),
        Broken::Other(problem) => problem,
    })
}

enum Broken {
    Time(Duration),
    Other(String),
}

fn measure(
    bytes: &[u8],
    limits: Limits,
    read: &mut impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<bool, Broken> {
    let held = PeakAlloc.current_usage();
    PeakAlloc.reset_peak_usage();
    let started = Instant::now();
    INSIDE.set(true);
    let answer = catch_unwind(AssertUnwindSafe(|| read(bytes)));
    INSIDE.set(false);
    let taken = started.elapsed();
    let memory = PeakAlloc.peak_usage().saturating_sub(held);
    let broken = |problem| Err(Broken::Other(problem));
    let allowed = limits.memory + limits.memory_per_byte * bytes.len();
    if memory > allowed {
        return broken(format!("it took {memory} bytes of memory, more than {allowed}"));
    }
    if taken > limits.time {
        return Err(Broken::Time(taken));
    }
    match answer {
        Err(_) => broken(format!("it panicked: {}", PANIC.take())),
        Ok(Ok(())) => Ok(true),
        Ok(Err(message)) if message.is_empty() => broken("the message is empty".to_owned()),
        Ok(Err(message)) if message.len() > limits.message => {
            let begins: String = message.chars().take(300).collect();
            broken(format!("the message has {} bytes: {begins}", message.len()))
        }
        Ok(Err(_)) => Ok(false),
    }
}

/// Where inputs are written: memory, where the system has such a folder.
pub fn scratch() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a folder")
}

/// Where inputs that broke the limits are kept.
fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join("eigenlens-hostile");
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}
