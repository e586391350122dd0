//! Damaged and hostile model files, and impossible requests: each is refused by
//! an error that names what is wrong.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use common::gguf::{File, Stored, Value, llama};
use common::{Folder, at, single};
use hooks::{Batch, Edit, Edits, NoSink, Row, Rule, Wanted};
use runner::{
    Error, Fault, GgufFault, Input, KvCache, LoadOptions, Model, Refusal, SafetensorsFault, Source,
    Tokenizer,
};
use serde_json::json;

/// The error of loading a folder whose weights are these bytes.
fn weights_error(bytes: &[u8]) -> Error {
    let folder = Folder::llama();
    folder.write_config();
    std::fs::write(folder.weights(), bytes).unwrap();
    model_fault(folder.load().unwrap_err())
}

fn model_fault(error: Error) -> Error {
    assert_eq!(error.fault(), Fault::Model, "{error}");
    assert!(error.to_string().len() < 600, "{error}");
    error
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn safetensors_fault(bytes: &[u8]) -> SafetensorsFault {
    match weights_error(bytes) {
        Error::Safetensors { path, fault } => {
            assert!(path.ends_with("model.safetensors"));
            fault
        }
        other => panic!("{other}"),
    }
}

#[test]
fn the_models_made_here_are_sound() {
    Folder::llama().write().load().unwrap();
    Folder::mixtral().write().load().unwrap();
}

#[test]
fn truncated_weights() {
    let folder = Folder::llama();
    let whole = std::fs::read(folder.write().weights()).unwrap();
    for length in (0..whole.len()).step_by(whole.len() / 97 + 1).chain([7, 8, 9, whole.len() - 1]) {
        weights_error(&whole[..length]);
    }
    assert_eq!(safetensors_fault(&[]), SafetensorsFault::TooShort { bytes: 0 });
    assert!(matches!(
        safetensors_fault(&whole[..whole.len() - 1]),
        SafetensorsFault::OutOfBounds { .. }
    ));
}

#[test]
fn headers_that_lie_about_their_length() {
    let mut bytes = safetensors("{}", 0);
    bytes[0] = 200;
    assert_eq!(
        safetensors_fault(&bytes),
        SafetensorsFault::HeaderBeyondFile { claimed: 200, available: 2 }
    );
    assert!(matches!(
        safetensors_fault(&[0xff; 64]),
        SafetensorsFault::HeaderTooLong { claimed: u64::MAX, .. }
    ));
}

#[test]
fn headers_that_are_not_what_they_should_be() {
    for header in [
        "",
        "[]",
        "{\"a\": 1}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [-1], \"data_offsets\": [0, 4]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4, 8]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [1.5], \"data_offsets\": [0, 4]}}",
        &format!("{{\"a\": {}1{}}}", "[".repeat(5000), "]".repeat(5000)),
    ] {
        let fault = safetensors_fault(&safetensors(header, 64));
        assert!(matches!(fault, SafetensorsFault::Header { .. }), "{header:.40}: {fault}");
    }
}

#[test]
fn tensors_that_overlap_repeat_or_reach_out() {
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(
            "\"{name}\": {{\"dtype\": \"{dtype}\", \"shape\": {shape}, \"data_offsets\": {offsets}}}"
        )
    };
    let fault = |entries: &[String]| {
        safetensors_fault(&safetensors(&format!("{{{}}}", entries.join(",")), 16))
    };
    assert_eq!(
        fault(&[entry("a", "F32", "[2]", "[0,8]"), entry("b", "F32", "[2]", "[4,12]")]),
        SafetensorsFault::Overlap { first: "a".to_owned(), second: "b".to_owned() }
    );
    assert_eq!(
        fault(&[entry("a", "F32", "[2]", "[0,8]"), entry("a", "F32", "[2]", "[8,16]")]),
        SafetensorsFault::Duplicate { tensor: "a".to_owned() }
    );
    for offsets in ["[12,20]", "[8,4]", "[18446744073709551608,18446744073709551612]"] {
        let fault = fault(&[entry("a", "F32", "[2]", offsets)]);
        assert!(matches!(fault, SafetensorsFault::OutOfBounds { .. }), "{fault}");
    }
    for shape in ["[3]", "[4294967296,4294967296]", "[18446744073709551615]"] {
        let fault = fault(&[entry("a", "F32", shape, "[0,8]")]);
        assert!(matches!(fault, SafetensorsFault::Size { .. }), "{fault}");
    }
}

#[test]
fn missing_tensors_are_named() {
    for name in [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
    ] {
        let mut folder = Folder::llama();
        folder.tensors.remove(name).unwrap();
        let error = model_fault(folder.write().load().unwrap_err());
        assert!(matches!(&error, Error::TensorMissing { tensor, .. } if tensor == name), "{error}");
    }
    for name in ["gate.weight", "experts.2.w3.weight"] {
        let mut folder = Folder::mixtral();
        let name = format!("model.layers.1.block_sparse_moe.{name}");
        folder.tensors.remove(&name).unwrap();
        let error = model_fault(folder.write().load().unwrap_err());
        assert!(matches!(&error, Error::TensorMissing { .. }), "{error}");
    }
    // A bias that the configuration promises.
    let mut folder = Folder::llama();
    folder.config["attention_bias"] = json!(true);
    let error = folder.write().load().unwrap_err();
    assert!(error.to_string().contains("model.layers.0.self_attn.q_proj.bias"), "{error}");
}

#[test]
fn wrong_shapes_and_dtypes_are_named() {
    let mut folder = Folder::llama();
    folder.add("model.layers.1.mlp.up_proj.weight", &[8, 12]);
    match model_fault(folder.write().load().unwrap_err()) {
        Error::TensorShape { tensor, expected, found, .. } => {
            assert_eq!(tensor, "model.layers.1.mlp.up_proj.weight");
            assert_eq!((expected, found), (vec![12, 8], vec![8, 12]));
        }
        other => panic!("{other}"),
    }
    let mut folder = Folder::llama();
    let name = "model.norm.weight";
    let integers = folder.tensors[name].to_dtype(DType::I64).unwrap();
    folder.tensors.insert(name.to_owned(), integers);
    match model_fault(folder.write().load().unwrap_err()) {
        Error::TensorDtype { tensor, found, .. } => {
            assert_eq!((tensor.as_str(), found.as_str()), (name, "I64"));
        }
        other => panic!("{other}"),
    }
    // A size that the file does not have is refused before memory is taken for it.
    let mut folder = Folder::llama();
    folder.config["vocab_size"] = json!(1 << 24);
    folder.config["intermediate_size"] = json!(1 << 20);
    let error = model_fault(folder.write().load().unwrap_err());
    assert!(matches!(error, Error::TensorShape { .. }), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (bad, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut folder = Folder::llama();
            let name = "model.layers.0.mlp.down_proj.weight";
            let mut values = common::values(&folder.tensors[name]);
            values[37] = bad;
            let tensor = Tensor::from_vec(values, (8, 12), &Device::Cpu).unwrap();
            folder.tensors.insert(name.to_owned(), tensor.to_dtype(dtype).unwrap());
            let error = model_fault(folder.write().load().unwrap_err());
            let expected = matches!(
                &error,
                Error::NotFinite { tensor, index: 37, .. } if tensor == name
            );
            assert!(expected && error.to_string().contains(text), "{error}");
        }
    }
}

#[test]
fn configurations_that_cannot_be_meant() {
    let cases = [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-8)),
        ("hidden_size", json!(8.5)),
        ("hidden_size", json!("8")),
        ("hidden_size", json!(9)),
        ("hidden_size", json!(u64::MAX)),
        ("vocab_size", json!(0)),
        ("intermediate_size", json!(-1)),
        ("intermediate_size", json!(1u64 << 40)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(0)),
        ("head_dim", json!(3)),
        ("max_position_embeddings", json!(0)),
        ("max_position_embeddings", json!(-5)),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!([1e-5])),
        ("rope_theta", json!(0)),
        ("tie_word_embeddings", json!("yes")),
        ("rope_scaling", json!(4)),
    ];
    for (field, value) in cases {
        let mut folder = Folder::llama();
        folder.config[field] = value.clone();
        let error = model_fault(folder.write().load().unwrap_err());
        match &error {
            Error::Field { field: named, .. } => assert_eq!(named, field, "{error}"),
            other => panic!("{field} = {value}: {other}"),
        }
    }
    for (field, value) in [
        ("num_experts_per_tok", json!(4)),
        ("num_experts_per_tok", json!(0)),
        ("num_local_experts", json!(0)),
        ("num_local_experts", json!(-3)),
        ("sliding_window", json!(0)),
    ] {
        let mut folder = Folder::mixtral();
        folder.config[field] = value.clone();
        let error = model_fault(folder.write().load().unwrap_err());
        assert!(matches!(&error, Error::Field { field: f, .. } if f == field), "{error}");
    }
}

#[test]
fn rotary_settings_are_checked() {
    let refuse = |key: &str, value: serde_json::Value| {
        let mut folder = Folder::llama();
        folder.config[key] = value;
        model_fault(folder.write().load().unwrap_err())
    };
    for key in ["rope_scaling", "rope_parameters"] {
        let error = refuse(key, json!({"rope_type": "linear"}));
        let field = format!("{key}.factor");
        assert!(matches!(&error, Error::FieldMissing { field: f, .. } if *f == field), "{error}");
        let error = refuse(key, json!({"rope_type": "linear", "factor": -2}));
        assert!(matches!(&error, Error::Field { field: f, .. } if *f == field), "{error}");
        let error = refuse(key, json!({"type": "spiral", "factor": 2}));
        assert!(matches!(&error, Error::Unsupported { found, .. } if found == "spiral"), "{error}");
        let error = refuse(key, json!({"partial_rotary_factor": 0.5}));
        assert!(matches!(&error, Error::Unsupported { found, .. } if found == "0.5"), "{error}");
        // Two frequencies in heads of four.
        let long = json!({"type": "longrope", "short_factor": [1, 2], "long_factor": [1, 2, 3]});
        let error = refuse(key, long);
        let field = format!("{key}.long_factor");
        assert!(matches!(&error, Error::Field { field: f, .. } if *f == field), "{error}");
    }
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
    });
    assert!(refuse("rope_scaling", llama3).to_string().contains("high_freq_factor"));
    // What divides by ln 1.
    let yarn = json!({
        "rope_type": "yarn", "rope_theta": 1, "factor": 4,
        "original_max_position_embeddings": 8192,
    });
    let long = json!({
        "rope_type": "longrope", "factor": 4, "short_factor": [1, 2], "long_factor": [1, 2],
        "original_max_position_embeddings": 1,
    });
    for value in [yarn, long] {
        let error = refuse("rope_parameters", value);
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("rotary")));
    }
}

#[test]
fn families_and_quantizations_that_are_not_built() {
    let mut folder = Folder::llama();
    folder.config["model_type"] = json!("gpt_bigcode");
    match model_fault(folder.write().load().unwrap_err()) {
        Error::UnknownModelType { found, known, .. } => {
            assert_eq!(found, "gpt_bigcode");
            assert!(known.contains(&"llama") && known.contains(&"gpt_neox"), "{known:?}");
        }
        other => panic!("{other}"),
    }
    folder.config.as_object_mut().unwrap().remove("model_type");
    let error = folder.write().load().unwrap_err();
    assert!(matches!(error, Error::FieldMissing { ref field, .. } if field == "model_type"));
    let mut folder = Folder::llama();
    folder.config["quantization_config"] = json!({"quant_method": "awq", "bits": 4});
    let error = model_fault(folder.write().load().unwrap_err());
    assert!(
        matches!(&error, Error::Refused { refusal: Refusal::Quantized { method, .. }, .. } if method == "AWQ"),
        "{error}"
    );
    folder = Folder::llama();
    folder.config["hidden_act"] = json!("xielu");
    let error = model_fault(folder.write().load().unwrap_err());
    assert!(matches!(&error, Error::Unsupported { found, .. } if found == "xielu"), "{error}");
}

#[test]
fn folders_that_lack_files() {
    let empty = tempfile::tempdir().unwrap();
    let source = Source::resolve(empty.path().to_str().unwrap()).unwrap();
    let error = Model::load(&source, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Empty, .. }), "{error}");
    let error = Tokenizer::load(&source).unwrap_err();
    assert!(matches!(error, Error::FileMissing { expected: "tokenizer.json", .. }));
    let folder = Folder::llama();
    folder.write_config();
    let error = model_fault(folder.load().unwrap_err());
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    for json in ["", "[]", "{", "\u{0}", "{\"model_type\": 3}"] {
        std::fs::write(folder.path.path().join("config.json"), json).unwrap();
        model_fault(folder.load().unwrap_err());
        std::fs::write(folder.path.path().join("tokenizer.json"), json).unwrap();
        let error = model_fault(Tokenizer::load(&folder.source()).unwrap_err());
        assert!(matches!(error, Error::Tokenizer { .. } | Error::Json { .. }));
    }
    std::fs::write(folder.path.path().join("config.json"), [0xff, 0xfe, b'{']).unwrap();
    assert!(matches!(folder.load().unwrap_err(), Error::Json { .. }));
}

#[test]
fn shards_that_are_not_there() {
    let folder = Folder::llama();
    folder.write();
    let shard = "model-00001-of-00001.safetensors";
    std::fs::rename(folder.weights(), folder.path.path().join(shard)).unwrap();
    let index = |map: serde_json::Value| {
        let json = serde_json::to_vec(&json!({"weight_map": map})).unwrap();
        std::fs::write(folder.path.path().join("model.safetensors.index.json"), json).unwrap();
        folder.load()
    };
    let all: serde_json::Map<_, _> =
        folder.tensors.keys().map(|name| (name.clone(), json!(shard))).collect();
    index(all.clone().into()).unwrap();
    for bad in ["model-00002-of-00002.safetensors", "../secret.safetensors", "/etc/passwd", ".."] {
        let mut map = all.clone();
        map["lm_head.weight"] = json!(bad);
        match model_fault(index(map.into()).unwrap_err()) {
            Error::Shard { tensor, shard, .. } => {
                assert_eq!((tensor.as_str(), shard.as_str()), ("lm_head.weight", bad));
            }
            other => panic!("{other}"),
        }
    }
    let mut map = all.clone();
    map.insert("phantom".to_owned(), json!(shard));
    let error = index(map.into()).unwrap_err();
    assert!(matches!(error, Error::Shard { ref tensor, .. } if tensor == "phantom"), "{error}");
    assert!(matches!(index(json!([1])).unwrap_err(), Error::Json { .. }));
}

/// A sound GGUF file whose widths are whole blocks.
fn sound() -> File {
    let mut tensors = std::collections::BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let n = shape.iter().product();
        let values = common::noise(name.len() as u64, n);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        tensors.insert(name.to_owned(), tensor);
    };
    add("model.embed_tokens.weight", &[7, 32]);
    add("model.norm.weight", &[32]);
    for name in ["input_layernorm", "post_attention_layernorm"] {
        add(&format!("model.layers.0.{name}.weight"), &[32]);
    }
    for (name, rows) in [("q", 32), ("k", 16), ("v", 16), ("o", 32)] {
        add(&format!("model.layers.0.self_attn.{name}_proj.weight"), &[rows, 32]);
    }
    for (name, shape) in [("gate", [64, 32]), ("up", [64, 32]), ("down", [32, 64])] {
        add(&format!("model.layers.0.mlp.{name}_proj.weight"), &shape);
    }
    let config = json!({
        "vocab_size": 7, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
    });
    llama(&tensors, &config, GgmlDType::Q4_1)
}

fn load_gguf(bytes: &[u8]) -> runner::Result<Model> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Model::load(&Source::Gguf(path), &LoadOptions::default())
}

fn gguf_error(change: impl FnOnce(&mut File)) -> Error {
    let mut file = sound();
    change(&mut file);
    model_fault(load_gguf(&file.bytes()).unwrap_err())
}

fn gguf_fault(change: impl FnOnce(&mut File)) -> GgufFault {
    match gguf_error(change) {
        Error::Gguf { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn gguf_truncated_anywhere() {
    let whole = sound().bytes();
    load_gguf(&whole).unwrap();
    for length in (0..whole.len()).step_by(13) {
        model_fault(load_gguf(&whole[..length]).unwrap_err());
    }
    let last = load_gguf(&whole[..whole.len() - 1]).unwrap_err();
    assert!(matches!(last, Error::Gguf { fault: GgufFault::OutOfBounds { .. }, .. }), "{last}");
}

#[test]
fn gguf_headers_that_lie() {
    assert!(
        matches!(gguf_fault(|f| f.magic = *b"GGML"), GgufFault::Magic { found } if found == *b"GGML")
    );
    assert_eq!(gguf_fault(|f| f.version = 1), GgufFault::Version { found: 1 });
    assert_eq!(gguf_fault(|f| f.version = 1 << 24), GgufFault::Version { found: 1 << 24 });
    for count in [1 << 20, u64::MAX] {
        let fault = gguf_fault(|f| f.n_tensors = Some(count));
        assert!(matches!(fault, GgufFault::Count { claimed, .. } if claimed == count), "{fault}");
        let fault = gguf_fault(|f| f.n_entries = Some(count));
        assert!(matches!(fault, GgufFault::Count { claimed, .. } if claimed == count), "{fault}");
    }
    let key = "general.architecture";
    let fault = gguf_fault(|f| f.metadata.push((key.to_owned(), Value::U32(1))));
    assert_eq!(fault, GgufFault::Duplicate { name: key.to_owned() });
    // A text that claims more bytes than there are.
    let mut bytes = sound().bytes();
    bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = load_gguf(&bytes).unwrap_err();
    assert!(matches!(error, Error::Gguf { fault: GgufFault::Count { .. }, .. }), "{error}");
}

#[test]
fn gguf_alignment() {
    for bad in [0, 1, 12, 33, 1 << 20, u32::MAX] {
        let fault = gguf_fault(|f| {
            f.set("general.alignment", Value::U32(bad));
        });
        assert_eq!(fault, GgufFault::Alignment { found: u64::from(bad) });
    }
    let fault = gguf_fault(|f| f.tensor("output_norm.weight").offset = Some(4));
    assert!(matches!(fault, GgufFault::Unaligned { offset: 4, .. }), "{fault}");
    let mut file = sound();
    file.alignment = 64;
    file.set("general.alignment", Value::U32(64));
    load_gguf(&file.bytes()).unwrap();
}

#[test]
fn gguf_tensors_that_lie() {
    let fault = gguf_fault(|f| f.tensor("blk.0.attn_q.weight").kind = 20);
    let expected = GgufFault::Quantization {
        tensor: "blk.0.attn_q.weight".to_owned(),
        found: "IQ4_NL".to_owned(),
    };
    assert_eq!(fault, expected);
    let fault = gguf_fault(|f| f.tensor("blk.0.attn_q.weight").kind = 4_000_000_000);
    assert!(matches!(fault, GgufFault::Quantization { found, .. } if found.contains("4000000000")));
    let fault = gguf_fault(|f| f.tensor("blk.0.attn_q.weight").dims = vec![33, 32]);
    assert!(matches!(fault, GgufFault::Blocks { row: 33, block: 32, .. }), "{fault}");
    let fault = gguf_fault(|f| f.tensor("blk.0.attn_q.weight").kind = 12);
    assert!(
        matches!(fault, GgufFault::Blocks { row: 32, block: 256, dtype: "Q4_K", .. }),
        "{fault}"
    );
    for dims in [vec![], vec![0, 32], vec![1; 5]] {
        let fault = gguf_fault(|f| f.tensor("output_norm.weight").dims = dims);
        assert!(matches!(fault, GgufFault::Dimensions { .. }), "{fault}");
    }
    for dims in [vec![32, 1 << 40], vec![1 << 63, 1 << 63], vec![u64::MAX - 31, 2]] {
        let fault = gguf_fault(|f| f.tensor("blk.0.ffn_up.weight").dims = dims);
        assert!(
            matches!(fault, GgufFault::OutOfBounds { .. } | GgufFault::Overlap { .. }),
            "{fault}"
        );
    }
    let fault = gguf_fault(|f| f.tensor("blk.0.ffn_up.weight").offset = Some(u64::MAX - 31));
    assert!(matches!(fault, GgufFault::OutOfBounds { .. }), "{fault}");
    let fault = gguf_fault(|f| f.tensor("blk.0.ffn_up.weight").offset = Some(0));
    assert!(matches!(fault, GgufFault::Overlap { .. }), "{fault}");
    let fault = gguf_fault(|f| {
        let twin: Stored = f.tensor("output_norm.weight").clone();
        f.tensors.push(twin);
    });
    assert_eq!(fault, GgufFault::Duplicate { name: "output_norm.weight".to_owned() });
    let error = gguf_error(|f| f.tensors.retain(|t| t.name != "blk.0.attn_v.weight"));
    assert!(
        matches!(&error, Error::TensorMissing { tensor, .. } if tensor == "blk.0.attn_v.weight")
    );
    let error = gguf_error(|f| {
        f.set("llama.feed_forward_length", Value::U32(96));
    });
    assert!(
        matches!(&error, Error::TensorShape { tensor, .. } if tensor == "blk.0.ffn_gate.weight")
    );
    // A scale that is NaN, in a block that stays quantized.
    let error = gguf_error(|f| f.tensor("blk.0.ffn_down.weight").bytes[40..42].fill(0xff));
    assert!(
        matches!(&error, Error::NotFinite { tensor, index: 64, .. } if tensor == "blk.0.ffn_down.weight"),
        "{error}"
    );
}

#[test]
fn gguf_metadata_that_is_missing_or_wrong() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.embedding_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.context_length",
        "llama.feed_forward_length",
    ] {
        let fault = gguf_fault(|f| {
            f.remove(key);
        });
        assert_eq!(fault, GgufFault::KeyMissing { key: key.to_owned() });
        let fault = gguf_fault(|f| {
            f.set(key, Value::Bool(true));
        });
        assert!(matches!(&fault, GgufFault::Key { key: k, .. } if k == key), "{fault}");
    }
    for (key, value) in [
        ("llama.block_count", Value::U32(0)),
        ("llama.block_count", Value::U32(u32::MAX)),
        ("llama.attention.head_count_kv", Value::U32(3)),
        // One layer: the list must hold one size that can be meant.
        ("llama.attention.head_count_kv", Value::I32s(vec![1, 1])),
        ("llama.attention.head_count_kv", Value::I32s(vec![])),
        ("llama.attention.head_count_kv", Value::I32s(vec![-1])),
        ("llama.feed_forward_length", Value::F32s(vec![64.0])),
        ("llama.attention.key_length", Value::U32(3)),
        ("llama.rope.dimension_count", Value::U32(8)),
        ("llama.rope.freq_base", Value::F32(f32::NAN)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(-1.0)),
    ] {
        let fault = gguf_fault(|f| {
            f.set(key, value);
        });
        assert!(matches!(&fault, GgufFault::Key { key: k, .. } if k == key), "{fault}");
    }
    let error = gguf_error(|f| {
        f.set("general.architecture", Value::Text("mamba".to_owned()));
    });
    assert!(matches!(&error, Error::UnknownModelType { found, .. } if found == "mamba"));
    let fault = gguf_fault(|f| {
        f.set("llama.expert_count", Value::U32(8));
    });
    assert_eq!(fault, GgufFault::KeyMissing { key: "llama.expert_used_count".to_owned() });
}

/// A golden model's folder with one field of its configuration changed.
fn golden_with(name: &str, field: &str, value: serde_json::Value) -> Error {
    let from = common::workspace("tests/golden/models").join(name);
    let json = std::fs::read(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&json).unwrap();
    config[field] = value;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = from.join("model.safetensors");
    std::fs::copy(weights, folder.path().join("model.safetensors")).unwrap();
    let source = Source::resolve(folder.path().to_str().unwrap()).unwrap();
    model_fault(Model::load(&source, &LoadOptions::default()).unwrap_err())
}

#[test]
fn families_check_what_is_their_own() {
    for (name, field, value, named) in [
        ("qwen2-c", "layer_types", json!(["full_attention"]), "layer_types"),
        ("qwen2-c", "layer_types", json!(["full_attention", 3, 4]), "layer_types[1]"),
        ("qwen3-a", "layer_types", json!(vec!["chunked_attention"; 9]), "layer_types[0]"),
        ("smollm3-a", "no_rope_layers", json!([1, 2, 1]), "no_rope_layers[1]"),
        ("smollm3-b", "no_rope_layer_interval", json!(0), "no_rope_layer_interval"),
        ("gemma2-a", "attn_logit_softcapping", json!(-1), "attn_logit_softcapping"),
        ("gemma2-a", "attn_logit_softcapping", json!(1e-50), "attn_logit_softcapping"),
        ("gemma2-a", "final_logit_softcapping", json!(1e50), "final_logit_softcapping"),
        ("gemma2-a", "query_pre_attn_scalar", json!(0), "query_pre_attn_scalar"),
        ("gemma3-b", "sliding_window_pattern", json!(0), "sliding_window_pattern"),
        ("granite-a", "logits_scaling", json!(0), "logits_scaling"),
        ("gpt2-a", "n_head", json!(5), "hidden_size"),
        ("gpt_neox-a", "rotary_pct", json!("all"), "rotary_pct"),
        ("mistral-a", "sliding_window", json!(0), "sliding_window"),
    ] {
        let error = golden_with(name, field, value);
        assert!(
            matches!(&error, Error::Field { field: f, .. } if f == named),
            "{name} {field}: {error}"
        );
    }
    for (name, named) in [("gemma2-a", "layer_types[1]"), ("gemma2-b", "sliding_window")] {
        let error = golden_with(name, "sliding_window", json!(null));
        let field = match &error {
            Error::Field { field, .. } | Error::FieldMissing { field, .. } => field.as_str(),
            _ => "",
        };
        assert_eq!(field, named, "{error}");
    }
    let error = golden_with("gemma3-a", "use_bidirectional_attention", json!(true));
    assert!(matches!(&error, Error::Unsupported { found, .. } if found == "true"), "{error}");
    let error = golden_with("gemma3-mm", "text_config", json!(null));
    assert!(matches!(&error, Error::FieldMissing { field, .. } if field == "text_config"));
}

/// The files of one model in several, which a change may spoil.
fn split_files(change: impl FnOnce(&std::path::Path)) -> Error {
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=3 {
        let name = format!("llama-e-0000{number}-of-00003.gguf");
        let from = common::workspace("tests/golden/gguf").join(&name);
        std::fs::copy(from, folder.path().join(&name)).unwrap();
    }
    change(folder.path());
    let mut files: Vec<_> = folder.path().read_dir().unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    model_fault(Model::load(&Source::Gguf(files[0].clone()), &LoadOptions::default()).unwrap_err())
}

#[test]
fn models_in_several_files_must_be_whole() {
    const SECOND: &str = "llama-e-00002-of-00003.gguf";
    const THIRD: &str = "llama-e-00003-of-00003.gguf";
    let error = split_files(|folder| std::fs::remove_file(folder.join(SECOND)).unwrap());
    assert!(matches!(&error, Error::Read { path, .. } if path.ends_with(SECOND)), "{error}");
    let error = split_files(|folder| {
        std::fs::copy(folder.join(THIRD), folder.join(SECOND)).unwrap();
    });
    let fault = |error: &Error| match error {
        Error::Gguf { fault, .. } => fault.clone(),
        other => panic!("{other}"),
    };
    assert_eq!(fault(&error), GgufFault::SplitOther { number: 2, count: 3 });
    let error = split_files(|folder| {
        std::fs::remove_file(folder.join("llama-e-00001-of-00003.gguf")).unwrap();
    });
    assert_eq!(fault(&error), GgufFault::SplitNotFirst { number: 2, count: 3 });
    let error = split_files(|folder| {
        std::fs::rename(folder.join("llama-e-00001-of-00003.gguf"), folder.join("a.gguf")).unwrap();
    });
    let expected = "NAME-00001-of-00003.gguf".to_owned();
    assert_eq!(fault(&error), GgufFault::SplitName { count: 3, expected });
}

fn sound_with_tokenizer() -> File {
    let mut file = sound();
    let texts = |texts: &[&str]| Value::Texts(texts.iter().map(|t| (*t).to_owned()).collect());
    file.set("tokenizer.ggml.model", Value::Text("gpt2".to_owned()))
        .set("tokenizer.ggml.tokens", texts(&["a", "b", "ab"]))
        .set("tokenizer.ggml.merges", texts(&["a b"]))
        .set("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 1]));
    file
}

#[test]
fn gguf_tokenizers_that_are_not_built() {
    let refuse = |change: &dyn Fn(&mut File)| {
        let mut file = sound_with_tokenizer();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        Tokenizer::load(&Source::Gguf(path.clone())).unwrap();
        change(&mut file);
        std::fs::write(&path, file.bytes()).unwrap();
        model_fault(Tokenizer::load(&Source::Gguf(path)).unwrap_err()).to_string()
    };
    let text = |text: &str| Value::Text(text.to_owned());
    let message = refuse(&|f| {
        f.set("tokenizer.ggml.model", text("bert"));
    });
    assert!(message.contains("tokenizer.ggml.model `bert`"), "{message}");
    let message = refuse(&|f| {
        f.set("tokenizer.ggml.pre", text("kimi-k2"));
    });
    assert!(message.contains("tokenizer.ggml.pre `kimi-k2`"), "{message}");
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let message = refuse(&|f| {
            f.remove(key);
        });
        assert!(message.contains(key), "{message}");
    }
    let message = refuse(&|f| {
        f.set("tokenizer.ggml.tokens", Value::Texts(vec!["a".to_owned(), "a".to_owned()]));
    });
    assert!(message.contains("stands twice"), "{message}");
    let message = refuse(&|f| {
        f.set("tokenizer.ggml.merges", Value::Texts(vec!["ab".to_owned()]));
    });
    assert!(message.contains("two tokens"), "{message}");
    // The last is longer than any token, where the library would reach too far.
    for merge in ["a z", "b a", "ab ab"] {
        let message = refuse(&|f| {
            f.set("tokenizer.ggml.merges", Value::Texts(vec![merge.to_owned()]));
        });
        assert!(message.contains("both together a token"), "{message}");
    }
    let message = refuse(&|f| {
        f.set("tokenizer.ggml.token_type", Value::I32s(vec![1]));
    });
    assert!(message.contains("token_type"), "{message}");
    let message = refuse(&|f| {
        f.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    });
    assert!(message.contains("bos_token_id"), "{message}");
    let message = refuse(&|f| {
        f.set("tokenizer.ggml.add_bos_token", Value::Bool(true))
            .set("tokenizer.ggml.bos_token_id", Value::U32(3));
    });
    assert!(message.contains("bos_token_id"), "{message}");
}

fn request_fault(error: Error) -> Error {
    assert_eq!(error.fault(), Fault::Request, "{error}");
    error
}

#[test]
fn prompts_that_the_model_cannot_take() {
    let model = Folder::llama().write().load().unwrap();
    let run = |tokens: &[u32]| model.run(&single(0, tokens), &mut NoSink);
    run(&[0]).unwrap();
    run(&[0, 18]).unwrap();
    run(&[18; 16]).unwrap();
    match request_fault(run(&[1, 2, 19]).unwrap_err()) {
        Error::TokenId { row: 0, position: 2, id: 19, d_vocab: 19 } => {}
        other => panic!("{other}"),
    }
    assert!(matches!(run(&[u32::MAX]).unwrap_err(), Error::TokenId { id: u32::MAX, .. }));
    match request_fault(run(&[1; 17]).unwrap_err()) {
        Error::TooLong { row: 0, length: 17, n_ctx: 16 } => {}
        other => panic!("{other}"),
    }
    let empty = Batch::new(vec![Row { request: 0, tokens: vec![], offset: 0 }]);
    assert!(matches!(empty, Err(hooks::Error::EmptyBatch { row: 0 })));
    // A position that nothing leads up to, and one that would overflow.
    let error = request_fault(
        model
            .run(&at(0, &[1], 3), &mut common::some(&model, &["logits"], &Wanted::all()))
            .unwrap_err(),
    );
    assert!(matches!(error, Error::CachePosition { offset: 3, cached: 0, .. }), "{error}");
    let error = model.run(&at(0, &[1], usize::MAX), &mut NoSink).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
}

#[test]
fn runs_that_the_model_cannot_make() {
    let model = Folder::mixtral().write().load().unwrap();
    let batch = single(0, &[1, 2]);
    let edits = Edits::default();
    let mut sink = common::some(&model, &["blocks.0.hook_resid_post"], &Wanted::all());
    let session = model.session(&mut sink).unwrap();
    let mut run = |input: Input<'_>, layers: std::ops::Range<usize>| {
        let mut cache = KvCache::off();
        session.forward(&batch, input, layers, &mut cache, &edits, &mut sink).map_err(request_fault)
    };
    let fits = Tensor::zeros((1, 2, 8), DType::F32, &Device::Cpu).unwrap();
    let wide = Tensor::zeros((1, 2, 9), DType::F32, &Device::Cpu).unwrap();
    run(Input::Residual(&fits), 0..2).unwrap();
    run(Input::Tokens, 0..1).unwrap();
    assert!(matches!(run(Input::Embeddings(&wide), 0..2), Err(Error::InputShape { .. })));
    assert!(matches!(run(Input::Tokens, 0..3), Err(Error::LayerRange { end: 3, .. })));
    #[expect(clippy::reversed_empty_ranges)]
    let backwards = 2..1;
    assert!(matches!(run(Input::Residual(&fits), backwards), Err(Error::LayerRange { .. })));
    assert!(matches!(run(Input::Tokens, 1..2), Err(Error::LayerRange { start: 1, .. })));
    assert!(matches!(run(Input::Residual(&fits), 1..2), Err(Error::OutsideRange { .. })));
}

#[test]
fn edits_that_are_not_built_are_refused_before_anything_runs() {
    let model = Folder::mixtral().write().load().unwrap();
    let rule = |point: &str, edit| Rule {
        point: point.parse().unwrap(),
        heads: Default::default(),
        positions: Default::default(),
        edit,
    };
    for rule in [
        rule("blocks.0.attn.hook_attn_scores", Edit::KnockOut { keys: Default::default() }),
        rule("blocks.0.mlp.hook_router_logits", Edit::DropExperts(vec![0])),
        rule("blocks.0.mlp.hook_router_logits", Edit::ForceExperts(vec![0])),
    ] {
        let mut edits = Edits::default();
        edits.add(rule, model.info()).unwrap();
        let mut sink = common::some(&model, &["logits"], &Wanted::all());
        let session = model.session(&mut sink).unwrap();
        let mut cache = KvCache::off();
        let result =
            session.forward(&single(0, &[1]), Input::Tokens, 0..2, &mut cache, &edits, &mut sink);
        let error = request_fault(result.unwrap_err());
        assert!(matches!(error, Error::Hooks(hooks::Error::Edit { .. })), "{error}");
        assert_eq!(sink.keys().count(), 0);
    }
}

/// Copies of a file with a few bytes changed, most of them in its first part.
fn mutations(bytes: &[u8], header: usize, n: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..n).map(move |seed| {
        let mut copy = bytes.to_vec();
        let random = common::noise(seed, 12);
        let unit = |i: usize| f64::from(random[i]).mul_add(0.5, 0.5).clamp(0.0, 0.999_999);
        for change in 0..1 + seed as usize % 4 {
            let within = if unit(3 * change) < 0.9 { header } else { copy.len() };
            let at = (unit(3 * change + 1) * within as f64) as usize;
            let value = (unit(3 * change + 2) * 256.0) as u8;
            copy[at] = if seed % 3 == 0 { copy[at] ^ (1 << (value % 8)) } else { value };
        }
        copy
    })
}

#[test]
fn changed_bytes_never_panic() {
    let folder = Folder::llama();
    let bytes = std::fs::read(folder.write().weights()).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize + 8;
    for bytes in mutations(&bytes, header, 1500) {
        std::fs::write(folder.weights(), bytes).unwrap();
        if let Err(error) = folder.load() {
            model_fault(error);
        }
    }
    let gguf = sound_with_tokenizer();
    let bytes = gguf.bytes();
    let header = bytes.len() - gguf.tensors.iter().map(|t| t.bytes.len()).sum::<usize>();
    let path = folder.path.path().join("model.gguf");
    for bytes in mutations(&bytes, header, 1500) {
        std::fs::write(&path, bytes).unwrap();
        let source = Source::Gguf(path.clone());
        if let Err(error) = Model::load(&source, &LoadOptions::default()) {
            model_fault(error);
        }
        match Tokenizer::load(&source) {
            Ok(tokenizer) => drop(tokenizer.encode("ab a b <s>", Default::default())),
            Err(error) => drop(model_fault(error)),
        }
    }
    let json = std::fs::read(common::workspace("assets/tiny-mixtral/tokenizer.json")).unwrap();
    let path = folder.path.path().join("tokenizer.json");
    for bytes in mutations(&json, json.len(), 300) {
        std::fs::write(&path, bytes).unwrap();
        match Tokenizer::load(&folder.source()) {
            Ok(tokenizer) => drop(tokenizer.encode("1 + 2 = 3", Default::default())),
            Err(error) => drop(model_fault(error)),
        }
    }
    let json = serde_json::to_vec(&Folder::mixtral().config).unwrap();
    let folder = Folder::mixtral();
    folder.write();
    for bytes in mutations(&json, json.len(), 500) {
        std::fs::write(folder.path.path().join("config.json"), bytes).unwrap();
        if let Err(error) = folder.load() {
            model_fault(error);
        }
    }
}
