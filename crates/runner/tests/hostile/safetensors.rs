//! Safetensors files, alone and in shards with an index.

use runner::Source;
use testkit::hostile::{Limits, Random, Slot, alone, campaign, change_bytes, change_json, scratch};

use super::common::Folder;
use super::{load_and_run, write};

const WORDS: &[&str] = &[
    "F32",
    "F16",
    "BF16",
    "F64",
    "I64",
    "BOOL",
    "F4",
    "F8_E4M3",
    "X",
    "__metadata__",
    "dtype",
    "shape",
    "data_offsets",
    "weight_map",
    "metadata",
    "total_size",
    "model.norm.weight",
    "model-1.safetensors",
    "model-2.safetensors",
    "../config.json",
    "config.json",
    ".",
    "/",
    "language_model.model.norm.weight",
];

fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(data);
    bytes
}

/// Weights of any size, and not numbers at all.
fn damage_weights(random: &mut Random, bytes: &mut [u8]) {
    let at = random.below(bytes.len() - 4);
    let run = (4 * (1 + random.below(40))).min(bytes.len() - at);
    let value: [u8; 4] = *random.of(&[
        [0xff; 4],
        [0, 0, 0xc0, 0x7f],
        [0, 0, 0x80, 0x7f],
        [0xff, 0xff, 0x7f, 0x7f],
        [1, 0, 0, 0],
        [0xff, 0x7b, 0xff, 0x7b],
    ]);
    bytes[at..at + run]
        .chunks_mut(4)
        .for_each(|chunk| chunk.copy_from_slice(&value[..chunk.len()]));
}

fn change(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let header = u64::from_le_bytes(*seed.first_chunk().unwrap()) as usize;
    let (header, data) = seed[8..].split_at(header);
    if random.once_in(4) {
        let mut bytes = seed.to_vec();
        damage_weights(random, &mut bytes[8 + header.len()..]);
        return bytes;
    }
    if random.once_in(2) {
        let mut header = header.to_vec();
        change_json(random, &mut header, WORDS, &other[8..]);
        let mut bytes = with_header(&header, data);
        if random.once_in(4) {
            damage_weights(random, &mut bytes[8..]);
        }
        return bytes;
    }
    let mut bytes = seed.to_vec();
    change_bytes(random, &mut bytes, header.len() + 8, other);
    bytes
}

#[test]
fn safetensors() {
    let _alone = alone();
    let (llama, mixtral) = (Folder::llama(), Folder::mixtral());
    let folders = [&llama, &mixtral];
    let seeds = folders.map(|folder| std::fs::read(folder.write().weights()).unwrap());
    let scratch = scratch();
    let paths = ["llama", "mixtral"].map(|name| scratch.path().join(name));
    for (folder, path) in folders.iter().zip(&paths) {
        std::fs::create_dir(path).unwrap();
        write(&path.join("config.json"), folder.config.to_string().as_bytes());
    }
    let slots = paths.each_ref().map(|path| Slot::new(path.join("model.safetensors")));
    let chosen = std::cell::Cell::new(0);
    campaign(
        "safetensors",
        12_000,
        Limits::default(),
        |random| {
            chosen.set(random.below(2));
            change(random, &seeds[chosen.get()], &seeds[1 - chosen.get()])
        },
        |bytes| {
            slots[chosen.get()].put(bytes);
            load_and_run(&Source::Folder(paths[chosen.get()].clone()))
        },
    );
}

#[test]
fn safetensors_index() {
    let _alone = alone();
    let llama = Folder::llama();
    llama.write();
    let (tensors, scratch) = (llama.tensors.clone(), scratch());
    let path = |name: &str| scratch.path().join(name);
    write(&path("config.json"), llama.config.to_string().as_bytes());
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let name = format!("model-{}.safetensors", part + 1);
        let of_part: std::collections::HashMap<_, _> = tensors
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == part)
            .map(|(_, (name, tensor))| (name.clone(), tensor.clone()))
            .collect();
        map.extend(of_part.keys().map(|tensor| (tensor.clone(), name.clone().into())));
        candle_core::safetensors::save(&of_part, path(&name)).unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    let slot = Slot::new(path("model.safetensors.index.json"));
    slot.put(index.as_bytes());
    load_and_run(&Source::Folder(scratch.path().to_owned())).unwrap();
    campaign(
        "safetensors_index",
        6000,
        Limits::default(),
        |random| {
            let mut text = index.clone().into_bytes();
            change_json(random, &mut text, WORDS, index.as_bytes());
            text
        },
        |bytes| {
            slot.put(bytes);
            load_and_run(&Source::Folder(scratch.path().to_owned()))
        },
    );
}
