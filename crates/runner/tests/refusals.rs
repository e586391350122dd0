//! Folders that are something else than a model are refused for what they are.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use runner::{Error, Fault, Kind, LoadOptions, Model, Refusal, Source, WeightFormat, read_config};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

fn load(folder: &Path) -> Result<Model, Error> {
    Model::load(&Source::Folder(folder.to_owned()), &LoadOptions::default())
}

/// What a folder is refused for; the configuration alone and loading agree.
#[track_caller]
fn refusal(folder: &Path) -> Refusal {
    let error = load(folder).unwrap_err();
    assert_eq!(error.fault(), Fault::Model);
    let config = read_config(&Source::Folder(folder.to_owned())).unwrap_err();
    assert_eq!(config.to_string(), error.to_string());
    match error {
        Error::Refused { refusal, .. } => refusal,
        other => panic!("{other}"),
    }
}

/// What a llama with something in its `config.json` is refused for.
#[track_caller]
fn refusal_with(edit: impl FnOnce(&mut Value)) -> Refusal {
    let json = std::fs::read(golden("llama-a").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&json).unwrap();
    edit(&mut config);
    refusal(folder(&[("config.json", &config.to_string())]).path())
}

#[test]
fn quantized_weights_by_their_configuration() {
    for (value, method) in [
        (json!({"quant_method": "awq", "bits": 4}), "AWQ"),
        (json!({"quant_method": "gptq", "bits": 4}), "GPTQ"),
        (json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "bitsandbytes"),
        (json!({"load_in_4bit": true}), "bitsandbytes"),
        (json!({"quant_method": "compressed-tensors"}), "compressed-tensors"),
        (json!({"quant_method": "fp8"}), "FP8"),
        (json!({"quant_method": "hqq"}), "HQQ"),
        (json!({"quant_method": "of tomorrow"}), "`of tomorrow`"),
        (json!({}), "`an unnamed method`"),
    ] {
        let found = refusal_with(|config| config["quantization_config"] = value);
        assert!(matches!(&found, Refusal::Quantized { method: m, .. } if m == method), "{found}");
        assert!(found.to_string().contains("GGUF"), "{found}");
    }
    for flag in ["load_in_4bit", "load_in_8bit"] {
        match refusal_with(|config| config[flag] = json!(true)) {
            Refusal::Quantized { method, evidence } => {
                assert_eq!(method, "bitsandbytes");
                assert!(evidence.contains(flag), "{evidence}");
            }
            other => panic!("{other}"),
        }
    }
    let mlx = refusal_with(|c| c["quantization"] = json!({"group_size": 64, "bits": 4}));
    assert!(matches!(&mlx, Refusal::Quantized { method, .. } if method == "MLX, 4 bits"), "{mlx}");
}

#[test]
fn null_and_false_are_no_quantization() {
    let copy = folder(&[]);
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama-a").join(name), copy.path().join(name)).unwrap();
    }
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = Value::Null;
    config["load_in_8bit"] = json!(false);
    std::fs::write(&path, config.to_string()).unwrap();
    assert!(load(copy.path()).is_ok());
}

#[test]
fn quantized_weights_by_their_tensors() {
    for (tensor, expected) in [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.self_attn.q_proj.SCB", "bitsandbytes, 8 bit"),
        ("model.layers.0.self_attn.q_proj.weight.absmax", "bitsandbytes, 4 bit"),
    ] {
        let copy = folder(&[]);
        std::fs::copy(golden("llama-a").join("config.json"), copy.path().join("config.json"))
            .unwrap();
        let header = json!({tensor: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}});
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        std::fs::write(copy.path().join("model.safetensors"), bytes).unwrap();
        match load(copy.path()).unwrap_err() {
            Error::Refused { refusal: Refusal::Quantized { method, evidence }, .. } => {
                assert_eq!(method, expected);
                assert!(evidence.contains(tensor), "{evidence}");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn adapters_name_their_base() {
    let config = r#"{"peft_type": "LORA", "base_model_name_or_path": "org/base"}"#;
    let adapter = folder(&[
        ("adapter_config.json", config),
        ("adapter_model.safetensors", ""),
        ("tokenizer.json", "{}"),
    ]);
    let found = refusal(adapter.path());
    let expected = Refusal::Adapter { kind: "LORA".to_owned(), base: "org/base".to_owned() };
    assert_eq!(found, expected);
    assert!(found.to_string().contains("merge_and_unload"), "{found}");
    // Names that are no texts are not repeated.
    let odd = folder(&[("adapter_config.json", r#"{"peft_type": 3}"#)]);
    assert!(matches!(refusal(odd.path()), Refusal::Adapter { .. }));
}

#[test]
fn weights_in_other_formats() {
    let config = std::fs::read_to_string(golden("llama-a").join("config.json")).unwrap();
    for (file, expected) in [
        ("pytorch_model.bin", WeightFormat::PyTorch),
        ("pytorch_model-00001-of-00002.bin", WeightFormat::PyTorch),
        ("model.pt", WeightFormat::PyTorch),
        ("consolidated.00.pth", WeightFormat::PyTorch),
        ("tf_model.h5", WeightFormat::TensorFlow),
        ("flax_model.msgpack", WeightFormat::Flax),
        ("model.onnx", WeightFormat::Onnx),
        ("weights.npz", WeightFormat::Numpy),
    ] {
        for files in [vec![("config.json", config.as_str()), (file, "")], vec![(file, "")]] {
            let found = refusal(folder(&files).path());
            let named = file.to_owned();
            assert_eq!(found, Refusal::Format { format: expected, file: named });
        }
    }
    // Beside safetensors they are of no interest.
    let both = folder(&[("pytorch_model.bin", "")]);
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama-a").join(name), both.path().join(name)).unwrap();
    }
    assert!(load(both.path()).is_ok());
}

#[test]
fn other_layouts() {
    let mistral = folder(&[("params.json", "{}"), ("consolidated.safetensors", "")]);
    assert!(matches!(
        refusal(mistral.path()),
        Refusal::Mistral { file } if file == "consolidated.safetensors"
    ));
    let pipeline = folder(&[("model_index.json", r#"{"_class_name": "FluxPipeline"}"#)]);
    assert_eq!(refusal(pipeline.path()), Refusal::Pipeline { class: "FluxPipeline".to_owned() });
    let wrapper = folder(&[("modules.json", "[]"), ("0_Transformer/config.json", "{}")]);
    assert_eq!(refusal(wrapper.path()), Refusal::SentenceTransformer);
    let bert = r#"{"model_type": "bert"}"#;
    let wrapper =
        folder(&[("modules.json", "[]"), ("config.json", bert), ("model.safetensors", "")]);
    assert_eq!(refusal(wrapper.path()), Refusal::SentenceTransformer);
    let files = folder(&[("a.Q4_0.gguf", ""), ("b.GGUF", ""), ("README.md", "")]);
    let expected = vec!["a.Q4_0.gguf".to_owned(), "b.GGUF".to_owned()];
    assert_eq!(refusal(files.path()), Refusal::GgufFolder { files: expected });
    let tokenizer = folder(&[("tokenizer.json", "{}")]);
    assert!(matches!(
        refusal(tokenizer.path()),
        Refusal::TokenizerOnly { file } if file == "tokenizer.json"
    ));
    assert_eq!(refusal(folder(&[]).path()), Refusal::Empty);
    let nested =
        folder(&[("small/config.json", "{}"), ("large/config.json", "{}"), ("notes/x", "")]);
    match refusal(nested.path()) {
        Refusal::Nested { folders } => {
            assert_eq!(folders.len(), 2);
            assert!(folders[0].ends_with("large") && folders[1].ends_with("small"), "{folders:?}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_wrapped_decoder_is_a_decoder() {
    let copy = folder(&[("modules.json", "[]")]);
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("qwen3-a").join(name), copy.path().join(name)).unwrap();
    }
    assert!(load(copy.path()).is_ok());
}

#[test]
fn kinds_of_models() {
    for (model_type, expected) in [
        ("bert", Kind::Encoder),
        ("t5", Kind::EncoderDecoder),
        ("vit", Kind::Vision),
        ("clip", Kind::VisionLanguage),
        ("whisper", Kind::Speech),
        ("mamba", Kind::StateSpace),
    ] {
        let found = refusal_with(|config| config["model_type"] = json!(model_type));
        assert!(matches!(&found, Refusal::Kind { kind, .. } if *kind == expected), "{found}");
        assert!(found.to_string().contains("gpt_neox"), "{found}");
    }
    let found = refusal_with(|config| config["is_encoder_decoder"] = json!(true));
    assert!(matches!(&found, Refusal::Kind { kind: Kind::EncoderDecoder, .. }), "{found}");
    let found = refusal_with(|config| {
        config["model_type"] = json!("of-tomorrow");
        config["architectures"] = json!(["OfTomorrowForMaskedLM"]);
    });
    assert!(matches!(&found, Refusal::Kind { kind: Kind::Encoder, .. }), "{found}");
}

#[test]
fn what_is_merely_incomplete_is_said_to_be() {
    let config = std::fs::read_to_string(golden("llama-a").join("config.json")).unwrap();
    let error = load(folder(&[("config.json", &config)]).path()).unwrap_err();
    assert!(matches!(error, Error::FileMissing { .. }), "{error}");
    let error = load(folder(&[("README.md", "")]).path()).unwrap_err();
    assert!(matches!(error, Error::FileMissing { expected: "config.json", .. }), "{error}");
}

#[test]
fn a_folder_of_very_many_files_is_looked_at_in_part() {
    let many = folder(&[]);
    for number in 0..5000 {
        std::fs::write(many.path().join(format!("{number:04}.gguf")), "").unwrap();
    }
    match refusal(many.path()) {
        Refusal::GgufFolder { files } => {
            assert_eq!(files.len(), 9);
            assert_eq!(files[8], format!("and {} more", 4096 - 8));
        }
        other => panic!("{other}"),
    }
}
