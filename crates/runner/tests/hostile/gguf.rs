//! GGUF files: metadata, tensors, models in several files.

use candle_core::quantized::GgmlDType;
use runner::{LoadOptions, Model, Source, WeightDtype};
use testkit::hostile::{Limits, Random, Slot, alone, campaign, change_bytes, scratch, used};

use super::common::Folder;
use super::common::gguf::{File, Value, llama};
use super::load_and_run;

/// A llama of two layers in a format, with blocks where it has any.
pub fn seed(dtype: GgmlDType) -> File {
    let mut folder = Folder::llama();
    let quantized = !matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
    if quantized {
        for (name, tensor) in folder.tensors.clone() {
            let dims: Vec<usize> = tensor.dims().iter().map(|d| d.next_multiple_of(32)).collect();
            let rows_kept = name.contains("embed") || name.contains("lm_head");
            let dims = if rows_kept { vec![tensor.dims()[0], dims[1]] } else { dims };
            folder.add(&name, &dims);
        }
        folder.config["hidden_size"] = 32.into();
        folder.config["intermediate_size"] = 32.into();
        folder.config["num_key_value_heads"] = 2.into();
    }
    llama(&folder.tensors, &folder.config, dtype)
}

fn texts(texts: &[&str]) -> Value {
    Value::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

/// The seeds of every campaign on GGUF files.
pub fn seeds() -> Vec<File> {
    let mut files: Vec<File> =
        [GgmlDType::F32, GgmlDType::F16, GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4_1]
            .map(seed)
            .to_vec();
    files.push(with_tokenizer());
    files
}

/// A file with a byte-level vocabulary.
pub fn with_tokenizer() -> File {
    let mut file = seed(GgmlDType::F16);
    file.set("tokenizer.ggml.model", Value::Text("gpt2".to_owned()))
        .set("tokenizer.ggml.pre", Value::Text("llama-bpe".to_owned()))
        .set("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "Ġ", "<s>", "</s>", "Ġa"]))
        .set("tokenizer.ggml.merges", texts(&["a b", "Ġ a"]))
        .set("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 1, 1, 3, 3, 1]))
        .set("tokenizer.ggml.bos_token_id", Value::U32(4))
        .set("tokenizer.ggml.eos_token_id", Value::U32(5))
        .set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    file
}

/// A file with a vocabulary of pieces with scores, as SentencePiece makes them.
pub fn with_pieces() -> File {
    let mut file = with_tokenizer();
    file.set("tokenizer.ggml.model", Value::Text("llama".to_owned()))
        .remove("tokenizer.ggml.merges")
        .remove("tokenizer.ggml.pre")
        .set("tokenizer.ggml.tokens", texts(&["<unk>", "<s>", "<0x61>", "▁", "a", "▁a", "b"]))
        .set("tokenizer.ggml.token_type", Value::I32s(vec![2, 3, 6, 1, 1, 1, 1]))
        .set("tokenizer.ggml.scores", Value::F32s(vec![0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0]))
        .set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    file
}

const KEYS: &[&str] = &[
    "general.architecture",
    "general.alignment",
    "split.count",
    "split.no",
    "split.tensors.count",
    "llama.block_count",
    "llama.embedding_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.context_length",
    "llama.feed_forward_length",
    "llama.vocab_size",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.freq_base",
    "llama.rope.dimension_count",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.attention.sliding_window",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.ggml.unknown_token_id",
    "",
];

const TEXTS: &[&str] = &[
    "llama",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "phi3",
    "qwen2",
    "qwen3",
    "bert",
    "t5",
    "none",
    "linear",
    "yarn",
    "longrope",
    "default",
    "llama-bpe",
    "smollm",
    "gpt-2",
    "a",
    "",
    " ",
    "a b",
    "▁",
    "<0x00>",
    "<s>",
    "\u{0}",
    "Ġ",
    "Ġ Ġ",
    "ab ab",
    "\u{fffd}",
];

fn value(random: &mut Random) -> Value {
    let text = |random: &mut Random| (*random.of(TEXTS)).to_owned();
    match random.below(8) {
        0..=2 => Value::U32(random.number(300) as u32),
        3 => Value::F32(*random.of(&[
            0.0,
            -1.0,
            1.0,
            1e-38,
            1e38,
            0.5,
            f32::NAN,
            f32::INFINITY,
            f32::from_bits(1),
        ])),
        4 => Value::Bool(random.once_in(2)),
        5 => Value::Text(text(random)),
        6 => Value::Texts((0..random.below(9)).map(|_| text(random)).collect()),
        _ => Value::I32s((0..random.below(9)).map(|_| random.number(9) as i32).collect()),
    }
}

/// Changes what a file says.
pub fn change_file(random: &mut Random, file: &mut File) {
    for _ in 0..1 + random.below(3) {
        let n = file.tensors.len();
        match random.below(16) {
            0..=3 => {
                let key = *random.of(KEYS);
                let value = value(random);
                file.set(key, value);
            }
            4 => {
                let key = *random.of(KEYS);
                file.remove(key);
            }
            5 | 6 if file.metadata.is_empty() => {}
            5 => {
                let at = random.below(file.metadata.len());
                file.metadata[at].1 = value(random);
            }
            6 => {
                // The same key twice, or another one's value.
                let (from, to) =
                    (random.below(file.metadata.len()), random.below(file.metadata.len()));
                let mut entry = file.metadata[from].clone();
                if random.once_in(2) {
                    entry.0 = file.metadata[to].0.clone();
                    file.metadata[to] = entry;
                } else {
                    file.metadata.push(entry);
                }
            }
            7 if random.once_in(4) => file.n_tensors = Some(random.number(n)),
            8 if random.once_in(4) => file.n_entries = Some(random.number(file.metadata.len())),
            9 if random.once_in(4) => file.version = random.number(3) as u32,
            _ if n == 0 => {}
            7..=10 => {
                let tensor = &mut file.tensors[random.below(n)];
                let rank = tensor.dims.len();
                match random.below(4) {
                    0 => tensor.dims.push(random.number(8)),
                    1 => drop(tensor.dims.pop()),
                    _ if rank > 0 => tensor.dims[random.below(rank)] = random.number(32),
                    _ => {}
                }
            }
            11 => file.tensors[random.below(n)].kind = random.number(30) as u32,
            12 => {
                let offset = random.number(4096);
                file.tensors[random.below(n)].offset =
                    Some(offset & !(31 * u64::from(random.once_in(2))));
            }
            13 => {
                let name = file.tensors[random.below(n)].name.clone();
                file.tensors[random.below(n)].name = name;
            }
            14 => drop(file.tensors.remove(random.below(n))),
            _ => {
                // Weights of any size, and not numbers at all.
                let bytes = &mut file.tensors[random.below(n)].bytes;
                let at = random.below(bytes.len());
                let run = (*random.of(&[1usize, 2, 4, 64])).min(bytes.len() - at.min(bytes.len()));
                let byte = *random.of(&[0u8, 0xff, 0x7f, 0x7b, 0xfb, 0x80]);
                bytes[at..at + run].fill(byte);
            }
        }
    }
}

fn bytes(random: &mut Random, files: &[File], written: &[Vec<u8>]) -> Vec<u8> {
    let number = random.below(files.len());
    if random.once_in(2) {
        let mut file = files[number].clone();
        change_file(random, &mut file);
        let mut bytes = file.bytes();
        if random.once_in(4) {
            let hot = bytes.len() / 2;
            change_bytes(random, &mut bytes, hot, &written[0]);
        }
        return bytes;
    }
    let mut bytes = written[number].clone();
    let data: usize = files[number].tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let header = bytes.len().saturating_sub(data);
    let other = random.below(written.len());
    change_bytes(random, &mut bytes, header, &written[other]);
    bytes
}

#[test]
fn gguf() {
    let _alone = alone();
    let files = seeds();
    let written: Vec<_> = files.iter().map(File::bytes).collect();
    let folder = scratch();
    let path = folder.path().join("model.gguf");
    let slot = Slot::new(&path);
    for bytes in &written {
        slot.put(bytes);
        load_and_run(&Source::Gguf(path.clone())).unwrap();
    }
    let tally = campaign(
        "gguf",
        15_000,
        Limits::default(),
        |random| bytes(random, &files, &written),
        |bytes| {
            slot.put(bytes);
            let source = Source::Gguf(path.clone());
            if bytes.len().is_multiple_of(2) {
                return load_and_run(&source);
            }
            let options = LoadOptions { dtype: WeightDtype::F32, ..LoadOptions::default() };
            let model = Model::load(&source, &options).map_err(|error| error.to_string())?;
            if used() { super::run(&model) } else { Ok(()) }
        },
    );
    assert!(tally.refused > tally.accepted / 8);
}

/// One model in three files, of which one is changed.
#[test]
fn gguf_split() {
    let _alone = alone();
    let whole = seed(GgmlDType::F16);
    let mut files = vec![whole.clone(); 3];
    for (number, file) in files.iter_mut().enumerate() {
        if number > 0 {
            file.metadata.clear();
        }
        file.set("split.no", Value::U32(number as u32)).set("split.count", Value::U32(3));
        let n = whole.tensors.len();
        file.tensors = whole.tensors[n * number / 3..n * (number + 1) / 3].to_vec();
    }
    files[0].set("split.tensors.count", Value::U32(whole.tensors.len() as u32));
    let written: Vec<_> = files.iter().map(File::bytes).collect();
    let folder = scratch();
    let path = |number: usize| folder.path().join(format!("m-{:05}-of-00003.gguf", number + 1));
    let slots = [0, 1, 2].map(|number| Slot::new(path(number)));
    written.iter().zip(&slots).for_each(|(bytes, slot)| slot.put(bytes));
    load_and_run(&Source::Gguf(path(0))).unwrap();
    let changed = std::cell::Cell::new(0);
    campaign(
        "gguf_split",
        3000,
        Limits { memory_per_byte: 64, ..Limits::default() },
        |random| {
            changed.set(random.below(3));
            bytes(
                random,
                &files[changed.get()..=changed.get()],
                &written[changed.get()..=changed.get()],
            )
        },
        |bytes| {
            slots[changed.get()].put(bytes);
            let answer = load_and_run(&Source::Gguf(path(0)));
            slots[changed.get()].put(&written[changed.get()]);
            answer
        },
    );
}
