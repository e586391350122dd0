//! Hostile prompt files of every format: each is read or refused within bounds of
//! time and memory.
//!
//! `HOSTILE_INPUTS` sets the number of inputs of each campaign; a failure says how
//! to replay it.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{
    ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray, StringViewArray,
};
use engine::PromptSource;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use peak_alloc::PeakAlloc;
use testkit::hostile::{Limits, Slot, alone, campaign, change_bytes, change_json, check, scratch};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Ten numbers and brackets may become a prompt of their own.
const LIMITS: fn() -> Limits = || Limits { memory_per_byte: 128, ..Limits::default() };

fn read(source: &PromptSource) -> Result<(), String> {
    engine::prompts::read(source).map(drop).map_err(|error| error.to_string())
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

const JSON_WORDS: &[&str] =
    &["text", "id", "messages", "role", "content", "label", "\u{0}", "7", "x"];

#[test]
fn prompt_lines() {
    let _alone = alone();
    let folder = scratch();
    let slots = ["txt", "jsonl", "json"].map(|ending| {
        let path = folder.path().join(format!("prompts.{ending}"));
        (ending, Slot::new(&path), path)
    });
    let seeds: [(&str, &[u8]); 5] = [
        ("jsonl", b"{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"}],\"id\":3}\n"),
        ("txt", b"\xef\xbb\xbfone\n\n two \r\nthree \xf0\x9f\x99\x82\n"),
        ("jsonl", b"{\"text\":\"a\",\"id\":\"x\",\"label\":[1,{\"b\":2}]}\n\n{\"text\":\"b\\nc\",\"id\":7}\n{\"text\":\"d\"}"),
        ("json", b"[[1, 2, 3], [4], [5, 4294967295]]"),
        ("json", b"[1, 2, 3, 50256]"),
    ];
    let chosen = std::cell::Cell::new("txt");
    campaign(
        "prompt_lines",
        60_000,
        LIMITS(),
        |random| {
            let (ending, seed) = *random.of(&seeds);
            chosen.set(ending);
            let (mut bytes, other) = (seed.to_vec(), random.of(&seeds).1);
            if ending == "txt" || random.once_in(4) {
                change_bytes(random, &mut bytes, seed.len(), other);
            } else {
                change_json(random, &mut bytes, JSON_WORDS, other);
            }
            bytes
        },
        |bytes| {
            let (ending, slot, path) =
                slots.iter().find(|(ending, ..)| *ending == chosen.get()).unwrap();
            slot.put(bytes);
            read(&match *ending {
                "json" => PromptSource::TokenIds(path.clone()),
                _ => PromptSource::File(path.clone()),
            })
        },
    );
}

/// Small files of every kind that writers make.
fn parquet_seeds() -> Vec<Vec<u8>> {
    let ids = Arc::new(Int64Array::from(vec![5, 6, 7])) as ArrayRef;
    let words = vec!["a first text", "b", "a first text"];
    let plain = Arc::new(StringArray::from(words.clone())) as ArrayRef;
    let views = Arc::new(StringViewArray::from(words.clone())) as ArrayRef;
    let dictionary =
        Arc::new(words.iter().copied().collect::<DictionaryArray<arrow_array::types::Int32Type>>());
    let file = |columns: Vec<(&str, ArrayRef)>, properties: WriterProperties| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    let with = || WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Page);
    vec![
        file(vec![("id", ids.clone()), ("text", plain.clone())], with().build()),
        file(
            vec![("text", views), ("id", Arc::new(StringArray::from(vec!["x", "y", "z"])))],
            with().set_compression(Compression::SNAPPY).set_dictionary_enabled(false).build(),
        ),
        file(
            vec![("text", dictionary), ("label", ids.clone())],
            with()
                .set_compression(Compression::ZSTD(Default::default()))
                .set_writer_version(WriterVersion::PARQUET_2_0)
                .build(),
        ),
        file(
            vec![("id", ids), ("text", plain)],
            with()
                .set_compression(Compression::GZIP(Default::default()))
                .set_column_encoding("id".into(), Encoding::DELTA_BINARY_PACKED)
                .set_column_dictionary_enabled("id".into(), false)
                .build(),
        ),
    ]
}

#[test]
fn prompt_parquet() {
    let _alone = alone();
    let (folder, seeds) = (scratch(), parquet_seeds());
    let path = folder.path().join("prompts.parquet");
    let (slot, source) = (Slot::new(&path), PromptSource::File(path));
    for (number, seed) in seeds.iter().enumerate() {
        slot.put(seed);
        read(&source).unwrap_or_else(|e| panic!("seed {number}: {e}"));
    }
    campaign(
        "prompt_parquet",
        20_000,
        LIMITS(),
        |random| {
            let mut bytes = random.of(&seeds).clone();
            let other = random.of(&seeds).clone();
            let hot = bytes.len();
            change_bytes(random, &mut bytes, hot, &other);
            bytes
        },
        |bytes| {
            slot.put(bytes);
            read(&source)
        },
    );
}

/// One file made for one purpose: within the limits, and accepted or not.
fn case(
    name: &str,
    bytes: &[u8],
    limits: Limits,
    source: impl Fn(PathBuf) -> PromptSource,
) -> Result<(), String> {
    let folder = scratch();
    let path = folder.path().join(name);
    write(&path, bytes);
    let source = source(path);
    let mut answer = Ok(());
    check(bytes, limits, &mut |_| {
        answer = read(&source);
        answer.clone()
    })
    .unwrap_or_else(|problem| panic!("{name}: {problem}"));
    answer
}

#[test]
fn long_lines() {
    let _alone = alone();
    let long = Limits {
        memory_per_byte: 9,
        time: std::time::Duration::from_secs(20),
        ..Limits::default()
    };
    let jsonl = |line: &str, n: usize, end: &str| {
        let mut bytes = line.as_bytes().to_vec();
        bytes.resize(bytes.len() + n, b'a');
        bytes.extend(end.as_bytes());
        case("p.jsonl", &bytes, long, PromptSource::File)
    };
    const N: usize = 20 << 20;
    assert!(jsonl("{\"text\":\"", N, "\"}").unwrap_err().contains("more than the 4194304"));
    assert!(jsonl("{\"text\":\"a\",\"id\":\"", N, "\"}").unwrap_err().contains("id has"));
    assert!(jsonl("{\"text\":\"a\",\"", N, "\":1}").is_ok());
    assert!(jsonl("{\"text\":", N, "}").is_err());
    assert!(jsonl("{\"text\":\"a\",\"id\":\"x\"} ", N, "").is_err());
    assert!(jsonl("{\"text\":\"a\",\"", 5 * N, "\":1}").unwrap_err().contains("line 1 has"));
    // Parts of a message are kept until it is known what they are.
    let parts = format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":[{}0],\"more\":[{}0]}}]}}",
        "0,".repeat(N / 4),
        "0,".repeat(N / 4)
    );
    let kept = Limits { memory_per_byte: 100, ..long };
    case("p.jsonl", parts.as_bytes(), kept, PromptSource::File).unwrap_err();
    let numbers = |start: &str, end: &str| {
        let bytes = format!("{start}{}0{end}", "0,".repeat(N / 2));
        case("p.jsonl", bytes.as_bytes(), long, PromptSource::File)
    };
    assert!(numbers("{\"text\":\"a\",\"other\":[", "]}").is_ok());
    assert!(numbers("{\"text\":\"a\",\"id\":[", "]}").is_err());
    assert!(numbers("{\"text\":[", "]}").is_err());
    let ids = format!("[{}0]", "0,".repeat(N / 2));
    case("ids.json", ids.as_bytes(), long, PromptSource::TokenIds).unwrap();
    let mixed = format!("[{}[0]]", "0,".repeat(N / 2));
    case("ids.json", mixed.as_bytes(), long, PromptSource::TokenIds).unwrap_err();
    let deep = "[".repeat(N);
    case("ids.json", deep.as_bytes(), long, PromptSource::TokenIds).unwrap_err();
    let deep = format!("{{\"text\":\"a\",\"other\":{}1{}}}", "[".repeat(N / 2), "]".repeat(N / 2));
    drop(case("p.jsonl", deep.as_bytes(), long, PromptSource::File));
    case("p.txt", &[0; 1 << 20], long, PromptSource::File).unwrap();
    case("p.txt", &[0xff, 0xfe, b'a', 0], long, PromptSource::File).unwrap_err();
    let blank = " \n".repeat(N / 2);
    case("p.txt", blank.as_bytes(), long, PromptSource::File).unwrap_err();
}

#[test]
fn more_prompts_than_a_run_takes() {
    let _alone = alone();
    let limits = Limits { memory: 3 << 30, time: std::time::Duration::from_secs(60), ..LIMITS() };
    let too_many = "a\n".repeat(engine::prompts::MAX_PROMPTS + 10);
    let error = case("p.txt", too_many.as_bytes(), limits, PromptSource::File).unwrap_err();
    assert!(error.contains("more than 10000000 prompts"), "{error}");
}

/// A file of one page whose texts repeat one long text, through a dictionary and through
/// compression.
#[test]
fn parquet_bombs() {
    let _alone = alone();
    let limits = Limits { memory: 400 << 20, ..LIMITS() };
    let long = "a".repeat(3 << 20);
    let file = |rows: usize, dictionary: bool, compression: Compression| {
        let text = StringArray::from_iter_values(std::iter::repeat_n(&long, rows));
        let batch = RecordBatch::try_from_iter([("text", Arc::new(text) as ArrayRef)]).unwrap();
        let mut bytes = Vec::new();
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(dictionary)
            .set_dictionary_page_size_limit(1 << 30)
            .set_data_page_size_limit(1 << 30)
            .set_compression(compression)
            .build();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        for _ in 0..8 {
            writer.write(&batch).unwrap();
        }
        writer.close().unwrap();
        bytes
    };
    let zstd = Compression::ZSTD(Default::default());
    let error = case("p.parquet", &file(16, false, zstd), limits, PromptSource::File).unwrap_err();
    assert!(error.contains("claims that its"), "{error}");
    let error = case("p.parquet", &file(64, true, zstd), limits, PromptSource::File).unwrap_err();
    assert!(error.contains("claims that its"), "{error}");
}
