//! Cut, flipped, missing, overlong and linked files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use store::{Error, Reader, Run, Start};

use crate::common::{
    TABLES, assert_same, complete, copy, fill, ids, job, options, partly, scratch, snapshot,
};

fn reopen(path: &Path, n: usize) -> store::Result<Run> {
    Run::create_or_resume(path, &job(), &TABLES, &ids(n), options(4))
}

/// Which prompts a run has finished.
fn finished(run: &Run) -> BTreeSet<u64> {
    (0..run.prompts()).filter(|i| run.is_finished(*i)).collect()
}

/// A run of 8 prompts, 4 to a shard, of which one shard is closed and 3 prompts are in the next.
struct Example {
    folder: tempfile::TempDir,
    whole: std::collections::BTreeMap<PathBuf, Vec<u8>>,
}

impl Example {
    fn new() -> Example {
        let folder = scratch();
        let whole = folder.path().join("whole");
        complete(&whole, 8, options(4)).unwrap();
        partly(&folder.path().join("partly"), 8, 7, 4);
        Example { whole: snapshot(&whole), folder }
    }

    fn original(&self) -> PathBuf {
        self.folder.path().join("partly")
    }

    /// A fresh copy of the stopped run.
    fn fresh(&self) -> PathBuf {
        let path = self.folder.path().join("copy");
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        copy(&self.original(), &path);
        path
    }

    /// The copy with its open files as they were, which is all that opening it can have changed.
    fn restored(&self) -> PathBuf {
        let path = self.folder.path().join("copy");
        let open = path.join("open");
        if !open.exists() {
            return self.fresh();
        }
        fs::remove_dir_all(&open).unwrap();
        copy(&self.original().join("open"), &open);
        path
    }

    fn open_files(&self) -> Vec<PathBuf> {
        let names = snapshot(&self.original()).into_keys();
        names.filter(|name| name.starts_with("open")).collect()
    }

    /// The prompts of the open shard that are lost when a file keeps its first `length` bytes.
    fn lost(&self, name: &Path, length: u64) -> BTreeSet<u64> {
        let log = self.original().join("open/00000004/commits.jsonl");
        let text = fs::read_to_string(log).unwrap();
        let mut lost = BTreeSet::new();
        let mut at = 0;
        let stem = name.file_name().unwrap().to_str().unwrap();
        for line in text.split_inclusive('\n') {
            at += line.len() as u64;
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let record = &line["record"];
            let index = record["index"].as_u64().unwrap();
            let needs = if stem == "commits.jsonl" {
                at
            } else if let Some(table) = stem.strip_suffix(".arrows") {
                match &record["tables"][table] {
                    serde_json::Value::Null => 0,
                    s => s["offset"].as_u64().unwrap() + s["length"].as_u64().unwrap(),
                }
            } else if stem.starts_with(&format!("{index:08}")) {
                record["tensors"]["bytes"].as_u64().unwrap()
            } else {
                0
            };
            if length < needs {
                lost.insert(index);
            }
        }
        lost
    }

    /// Opens a damaged copy, checks what is left, and brings it to its end.
    fn check(&self, path: &Path, lost: &BTreeSet<u64>, to_the_end: bool, what: &str) {
        let run = reopen(path, 8).unwrap_or_else(|e| panic!("{what}: {e}"));
        let expected: BTreeSet<u64> = (0..7).filter(|i| !lost.contains(i)).collect();
        assert_eq!(finished(&run), expected, "{what}");
        drop(run);
        let reader = Reader::open(path).unwrap();
        reader.verify().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(reader.prompts().len(), expected.len(), "{what}");
        if to_the_end {
            complete(path, 8, options(4)).unwrap();
            assert_same(&snapshot(path), &self.whole, what);
        }
    }
}

/// Positions to try in a file: all of a small one, and of a large one the ends and some between.
fn positions(length: usize) -> impl Iterator<Item = usize> {
    let near = move |i: &usize| *i < 600 || i + 600 >= length || i.is_multiple_of(211);
    (0..length).filter(near)
}

#[test]
fn open_files_cut_anywhere_lose_only_what_was_cut_off() {
    let example = Example::new();
    let mut tried = 0;
    for name in example.open_files() {
        let length = fs::metadata(example.original().join(&name)).unwrap().len();
        for cut in positions(length as usize) {
            let path = example.restored();
            let file = fs::OpenOptions::new().write(true).open(path.join(&name)).unwrap();
            file.set_len(cut as u64).unwrap();
            let lost = example.lost(&name, cut as u64);
            tried += 1;
            let what = format!("{} cut at {cut}", name.display());
            example.check(&path, &lost, tried % 17 == 0, &what);
        }
        let path = example.fresh();
        fs::remove_file(path.join(&name)).unwrap();
        let what = format!("{} missing", name.display());
        example.check(&path, &example.lost(&name, 0), true, &what);
    }
    assert!(tried > 3000, "{tried}");
}

#[test]
fn open_files_flipped_anywhere_lose_only_prompts_of_their_shard() {
    let example = Example::new();
    for name in example.open_files() {
        let bytes = fs::read(example.original().join(&name)).unwrap();
        for at in positions(bytes.len()).step_by(3) {
            let path = example.restored();
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(path.join(&name), damaged).unwrap();
            let what = format!("{} flipped at {at}", name.display());
            let run = reopen(&path, 8).unwrap_or_else(|e| panic!("{what}: {e}"));
            let left = finished(&run);
            assert!(left.len() < 8 && left.is_superset(&(0..4).collect()), "{what}");
            let lost = 7 - left.len() as u64;
            assert!(lost >= 1, "{what}: not noticed");
            match run.start() {
                Start::Resumed { finished, damaged, .. } => {
                    assert_eq!(*finished, 7 - lost, "{what}");
                    // A newline that is gone makes two lines one, or a line a torn one.
                    assert!(*damaged <= lost && *damaged + 1 >= lost, "{what}");
                }
                other => panic!("{what}: {other:?}"),
            }
            drop(run);
            if at % 17 == 0 {
                complete(&path, 8, options(4)).unwrap();
                assert_same(&snapshot(&path), &example.whole, &what);
            }
        }
    }
}

#[test]
fn foreign_and_left_over_files_do_no_harm() {
    let example = Example::new();
    let path = example.fresh();
    for name in [
        "open/00000004/00000007.1.partial",
        "open/00000004/00000007.safetensors",
        "open/00000004/empty.arrows",
        "open/00000000/commits.jsonl",
        "open/stray",
        "open/00000003/x",
        "open/99999996/x",
        "shards/00000004.spectral.arrows",
        "shards/00000004.spectral.arrows.partial",
        "tensors/00000004.safetensors",
        "tensors/00000004.safetensors.partial",
        "tables/spectral.parquet.partial",
    ] {
        let file = path.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "left over").unwrap();
    }
    fs::write(path.join("open/00000004/spectral.arrows.tail"), "x").unwrap();
    fs::write(path.join("tensors/mine.safetensors"), "mine").unwrap();
    fs::write(path.join("report.html"), "mine").unwrap();
    complete(&path, 8, options(4)).unwrap();
    assert_eq!(fs::read(path.join("tensors/mine.safetensors")).unwrap(), b"mine");
    fs::remove_file(path.join("tensors/mine.safetensors")).unwrap();
    fs::remove_file(path.join("report.html")).unwrap();
    assert_same(&snapshot(&path), &example.whole, "with left-over files");
}

#[test]
fn damage_in_closed_shards_names_the_file() {
    let example = Example::new();
    let rows = "shards/00000000.spectral.arrows";
    let tensors = "tensors/00000000.safetensors";
    let named = |result: store::Result<Run>, name: &str| match result {
        Err(error @ (Error::Missing { .. } | Error::Length { .. } | Error::Checksum { .. })) => {
            assert!(error.to_string().contains(name), "{error}");
            error
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not noticed"),
    };
    for name in [rows, tensors] {
        let path = example.fresh();
        fs::remove_file(path.join(name)).unwrap();
        assert!(matches!(named(reopen(&path, 8), name), Error::Missing { .. }));
        assert!(matches!(Reader::open(&path).unwrap().verify(), Err(Error::Missing { .. })));

        let path = example.fresh();
        let bytes = fs::read(path.join(name)).unwrap();
        fs::write(path.join(name), &bytes[1..]).unwrap();
        assert!(matches!(named(reopen(&path, 8), name), Error::Length { .. }));
        assert!(matches!(Reader::open(&path).unwrap().verify(), Err(Error::Length { .. })));

        for at in positions(bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(path.join(name), damaged).unwrap();
            let reader = Reader::open(&path).unwrap();
            assert!(matches!(reader.verify(), Err(Error::Checksum { .. })), "{name} at {at}");
            if name == rows {
                assert!(matches!(named(reopen(&path, 8), name), Error::Checksum { .. }));
                assert!(matches!(reader.read_table("spectral"), Err(Error::Checksum { .. })));
            } else {
                // Whatever was flipped, some tensor cannot be read and none is read wrongly.
                let key = |i: usize| format!("{}/logits", ids(8)[i]);
                let right =
                    |i: usize| (0..6).flat_map(move |k| ((i * 10 + k) as f32).to_le_bytes());
                for i in 0..4 {
                    if let Ok(data) = reader.tensor(&key(i)) {
                        assert_eq!(data.bytes, right(i).collect::<Vec<u8>>(), "at {at}");
                    }
                }
                let _ = reader.tensor_names();
            }
        }
    }
}

#[test]
fn damage_in_a_finished_run_is_noticed() {
    let folder = scratch();
    let path = folder.path().join("run");
    complete(&path, 8, options(4)).unwrap();
    let table = path.join("tables/kinds.parquet");
    let bytes = fs::read(&table).unwrap();
    for at in (0..bytes.len()).step_by(97) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        fs::write(&table, damaged).unwrap();
        let reader = Reader::open(&path).unwrap();
        assert!(matches!(reader.read_table("kinds"), Err(Error::Checksum { .. })));
        assert!(reader.read_table("spectral").is_ok());
        assert!(matches!(reopen(&path, 8), Err(Error::Checksum { .. })));
    }
    fs::remove_file(&table).unwrap();
    assert!(matches!(reopen(&path, 8), Err(Error::Missing { .. })));
    fs::write(&table, bytes).unwrap();
    fs::remove_file(path.join("tensors/00000005.safetensors")).unwrap();
    assert!(matches!(reopen(&path, 8), Err(Error::Missing { .. })));
}

#[test]
fn the_ledger_of_shards_is_checked_line_by_line() {
    let example = Example::new();
    let bytes = fs::read(example.original().join("shards.jsonl")).unwrap();
    for at in 0..bytes.len() {
        let path = example.fresh();
        fs::write(path.join("shards.jsonl"), &bytes[..at]).unwrap();
        // A line that was cut short was never there; its prompts are done again.
        let run = reopen(&path, 8).unwrap();
        assert_eq!(finished(&run), (4..7).collect());
        drop(run);
        if at % 101 == 0 {
            complete(&path, 8, options(4)).unwrap();
            // The shards were closed in another order, so their lines stand in another.
            let mut got = snapshot(&path);
            let mut expected = example.whole.clone();
            for s in [&mut got, &mut expected] {
                s.remove(Path::new("shards.jsonl"));
            }
            assert_same(&got, &expected, &format!("shards.jsonl cut at {at}"));
        }

        let path = example.fresh();
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(path.join("shards.jsonl"), damaged).unwrap();
        let last = at + 1 == bytes.len();
        match reopen(&path, 8) {
            Ok(_) if last => {}
            Err(Error::Record { line: 1, .. }) if !last => {}
            Ok(_) => panic!("flip at {at} was not noticed"),
            Err(other) => panic!("flip at {at}: {other}"),
        }
    }
}

#[test]
fn lines_that_contradict_the_manifest_are_refused() {
    let folder = scratch();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    partly(&a, 8, 5, 4);
    partly(&b, 8, 5, 2);
    fs::copy(b.join("shards.jsonl"), a.join("shards.jsonl")).unwrap();
    assert!(matches!(reopen(&a, 8), Err(Error::Record { line: 1, .. })));
    assert!(matches!(Reader::open(&a), Err(Error::Record { line: 1, .. })));

    // A line twice.
    let line = fs::read(b.join("shards.jsonl")).unwrap();
    fs::write(b.join("shards.jsonl"), [line.clone(), line].concat()).unwrap();
    assert!(matches!(Reader::open(&b), Err(Error::Record { line: 3, .. })));
}

#[test]
fn sizes_are_bounded_before_anything_is_read() {
    let example = Example::new();
    let path = example.fresh();
    let endless = vec![b'x'; (store::MAX_LINE_BYTES + 2) as usize];
    fs::write(path.join("shards.jsonl"), &endless).unwrap();
    assert!(matches!(reopen(&path, 8), Err(Error::Oversized { .. })));
    assert!(matches!(Reader::open(&path), Err(Error::Oversized { .. })));

    let path = example.fresh();
    fs::write(path.join("open/00000004/commits.jsonl"), &endless).unwrap();
    assert!(matches!(reopen(&path, 8), Err(Error::Oversized { .. })));

    let path = example.fresh();
    let file = fs::OpenOptions::new().write(true).open(path.join("manifest.json")).unwrap();
    file.set_len(store::MAX_MANIFEST_BYTES + 1).unwrap();
    assert!(matches!(Reader::open(&path), Err(Error::Oversized { .. })));

    // A header that claims more than the file has, or more than anyone should read.
    let path = example.fresh();
    let tensors = path.join("tensors/00000000.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    for claimed in [u64::MAX, 1 << 62, store::MAX_HEADER_BYTES, bytes.len() as u64, 0, 2] {
        let mut damaged = bytes.clone();
        damaged[..8].copy_from_slice(&claimed.to_le_bytes());
        fs::write(&tensors, damaged).unwrap();
        let reader = Reader::open(&path).unwrap();
        assert!(matches!(reader.tensor_names(), Err(Error::Header { .. })), "{claimed}");
        let key = format!("{}/logits", ids(1)[0]);
        assert!(matches!(reader.tensor(&key), Err(Error::Header { .. })), "{claimed}");
    }
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let example = Example::new();
    let path = example.fresh();
    let tensors = path.join("tensors/00000000.safetensors");
    let length = fs::metadata(&tensors).unwrap().len() as usize;
    let entry = |dtype: &str, shape: &str, begin: i64, end: i64| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
    };
    let sums = "\"__metadata__\":{\"a\":\"0\",\"b\":\"0\"}";
    let cases = [
        String::new(),
        "[".repeat(100_000),
        format!("{{{sums},\"a\":{}}}", entry("F32", "[1]", 0, 8)),
        format!("{{{sums},\"a\":{}}}", entry("F32", "[1]", 4, 8)),
        format!("{{{sums},\"a\":{}}}", entry("F32", "[1]", 8, 4)),
        format!("{{{sums},\"a\":{}}}", entry("F32", "[1]", -4, 0)),
        format!("{{{sums},\"a\":{}}}", entry("F32", "[-1]", 0, 4)),
        format!("{{{sums},\"a\":{}}}", entry("F4", "[1]", 0, 4)),
        format!("{{{sums},\"a\":{}}}", entry("F32", "[4611686018427387904,4]", 0, 0)),
        format!("{{{sums},\"a\":{}}}", entry("F32", "[4611686018427387903]", 0, i64::MAX - 3)),
        format!("{{{sums},\"a\":{0},\"b\":{0}}}", entry("F32", "[1]", 0, 4)),
        format!("{{{sums},\"c\":{}}}", entry("F32", "[1]", 0, 4)),
        format!("{{{sums}}}"),
    ];
    for text in cases {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(length.max(bytes.len()), 0);
        let old = fs::read_to_string(path.join("shards.jsonl")).unwrap();
        fs::write(&tensors, &bytes).unwrap();
        let reader = Reader::open(&path).unwrap();
        let shown: String = text.chars().take(120).collect();
        assert!(matches!(reader.tensor_names(), Err(Error::Header { .. })), "{shown}");
        assert_eq!(old, fs::read_to_string(path.join("shards.jsonl")).unwrap());
    }
}

#[cfg(unix)]
#[test]
fn links_are_never_written_through() {
    use std::os::unix::fs::symlink;
    let example = Example::new();
    let outside = example.folder.path().join("outside");
    let precious = outside.join("precious");
    let check = |path: &Path| {
        let result = reopen(path, 8).map(|_| ());
        assert_eq!(fs::read(&precious).unwrap(), b"precious", "{result:?}");
        result
    };
    fs::create_dir_all(&outside).unwrap();
    fs::write(&precious, "precious").unwrap();

    for directory in ["open", "shards", "tensors", "tables"] {
        let path = example.fresh();
        let _ = fs::remove_dir_all(path.join(directory));
        symlink(&outside, path.join(directory)).unwrap();
        assert!(matches!(check(&path), Err(Error::Link { .. })));
    }
    let path = example.fresh();
    symlink(&outside, path.join("open/00000004/link")).unwrap();
    symlink(&outside, path.join("open/00000000")).unwrap();
    check(&path).unwrap();

    for file in ["shards.jsonl", "open/00000004/commits.jsonl"] {
        let path = example.fresh();
        fs::remove_file(path.join(file)).unwrap();
        symlink(&precious, path.join(file)).unwrap();
        assert!(matches!(check(&path), Err(Error::Link { .. })));
    }
    // A link that waits in the place of a file to come.
    let path = example.fresh();
    fs::create_dir_all(path.join("tables")).unwrap();
    for file in ["tables/spectral.parquet.partial", "shards/00000004.kinds.arrows.partial"] {
        symlink(&precious, path.join(file)).unwrap();
    }
    check(&path).unwrap();
    let mut run = reopen(&path, 8).unwrap();
    symlink(&precious, path.join("tables/spectral.parquet.partial")).unwrap();
    symlink(&precious, path.join("shards/00000004.kinds.arrows.partial")).unwrap();
    let mut writer = run.prompt(7).unwrap();
    fill(&mut writer).unwrap();
    run.commit(writer).unwrap();
    run.finish().unwrap();
    drop(run);
    check(&path).unwrap();
    assert_same(&snapshot(&path), &example.whole, "with links");
}
