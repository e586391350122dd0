//! GGUF files made from golden models: the same model must come out.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use common::gguf::{Value, blocks, formats, llama};
use common::{Folder, Golden, bits, single, some, values};
use hooks::{Batch, HookPoint, Row, Wanted};
use runner::{Fingerprint, LoadOptions, Model, Source, Special, Tokenizer, WeightDtype};

fn load(bytes: &[u8], dtype: WeightDtype) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Model::load(&Source::Gguf(path), &LoadOptions { dtype, ..Default::default() }).unwrap()
}

fn logits(model: &Model, tokens: &[u32]) -> Tensor {
    let mut sink = some(model, &["logits"], &Wanted::all());
    model.run(&single(0, tokens), &mut sink).unwrap();
    sink.get(0, HookPoint::LOGITS).unwrap()
}

fn golden_file(name: &str, dtype: GgmlDType) -> (Golden, common::gguf::File) {
    let golden = Golden::load(name);
    let json = std::fs::read(golden.folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&json).unwrap();
    if let Some(theta) = config["rope_parameters"]["rope_theta"].as_f64() {
        config["rope_theta"] = theta.into();
    }
    let mut tensors = BTreeMap::new();
    for entry in std::fs::read_dir(&golden.folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
        }
    }
    let file = llama(&tensors, &config, dtype);
    (golden, file)
}

/// Every file made by the conventions of llama.cpp's converter, and the golden model
/// that it was made from.
fn converted() -> Vec<(Golden, Source)> {
    let folder = common::workspace("tests/golden/gguf");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let first = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".gguf") && (!name.contains("-of-") || name.contains("-00001-of-"))
    };
    let golden = |path: std::path::PathBuf| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let name = stem.split("-00001-of-").next().unwrap();
        (Golden::load(name), Source::resolve(path.to_str().unwrap()).unwrap())
    };
    let converted: Vec<_> = files.into_iter().filter(first).map(golden).collect();
    assert!(converted.len() >= 19, "GGUF files are missing");
    converted
}

#[test]
fn converted_files_agree_with_transformers_at_every_hook_point() {
    let mut architectures = std::collections::BTreeSet::new();
    for (golden, source) in converted() {
        let model = Model::load(&source, &LoadOptions::default()).unwrap();
        architectures.insert(model.info().family.clone());
        for (&request, tokens) in &golden.prompts {
            let mut cache = common::everything(&model);
            model.run(&single(request, tokens), &mut cache).unwrap();
            let mut n_points = 0;
            for (key, expected) in &golden.expected {
                let Some(name) = key.strip_prefix(&format!("{request}/")) else { continue };
                let what = format!("{} {key}", source.path().display());
                let got = values(&cache.get(request, name.parse().unwrap()).unwrap());
                let expected = values(expected);
                let finite = |x: &&f32| x.is_finite();
                let scale = expected.iter().filter(finite).fold(0f32, |m, x| m.max(x.abs()));
                assert_eq!(got.len(), expected.len(), "{what}");
                for (got, expected) in got.into_iter().zip(expected) {
                    let close = (got - expected).abs() <= 1e-4 * scale || got == expected;
                    assert!(close, "{what}: {got} for {expected}");
                }
                n_points += 1;
            }
            assert!(n_points > 20, "{}", golden.name);
        }
    }
    let expected =
        ["gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mixtral", "phi3", "qwen2", "qwen3"];
    assert!(architectures.iter().map(String::as_str).eq(expected), "{architectures:?}");
}

#[test]
fn unquantized_files_give_the_golden_models_bits() {
    // llama-a: another head width, untied. llama-b: biases, tied.
    for name in ["llama-a", "llama-b"] {
        let (golden, file) = golden_file(name, GgmlDType::F32);
        let (model, expected) = (load(&file.bytes(), WeightDtype::AsStored), golden.model());
        for tokens in golden.prompts.values() {
            let (got, expected) = (logits(&model, tokens), logits(&expected, tokens));
            // ε is stored in f32 there, so the last bits may differ.
            for (got, expected) in values(&got).into_iter().zip(values(&expected)) {
                assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{name}");
            }
        }
    }
}

#[test]
fn stored_frequency_divisors_are_linear_scaling() {
    let (golden, mut file) = golden_file("llama-e", GgmlDType::F32);
    let divisors = Tensor::new(vec![4f32; 7], &Device::Cpu).unwrap();
    let with_divisors = {
        let mut file = file.clone();
        file.tensors.push(common::gguf::stored("rope_freqs.weight", &divisors, GgmlDType::F32));
        load(&file.bytes(), WeightDtype::AsStored)
    };
    let tokens = &golden.prompts[&0];
    // Older files have a factor without a type, under either name.
    for key in ["llama.rope.scale_linear", "llama.rope.scaling.factor"] {
        let mut file = file.clone();
        file.set(key, Value::F32(4.0));
        let bare = load(&file.bytes(), WeightDtype::AsStored);
        assert_eq!(bits(&logits(&with_divisors, tokens)), bits(&logits(&bare, tokens)), "{key}");
    }
    file.set("llama.rope.scaling.type", Value::Text("linear".to_owned()))
        .set("llama.rope.scaling.factor", Value::F32(4.0));
    let with_key = load(&file.bytes(), WeightDtype::AsStored);
    assert_eq!(bits(&logits(&with_divisors, tokens)), bits(&logits(&with_key, tokens)));
    let expected = logits(&golden.model(), tokens);
    for (got, expected) in values(&logits(&with_key, tokens)).into_iter().zip(values(&expected)) {
        assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0));
    }
}

#[test]
fn both_attention_factors_of_yarn_count() {
    let (golden, mut file) = golden_file("llama-a", GgmlDType::F32);
    file.set("llama.rope.scaling.type", Value::Text("yarn".to_owned()))
        .set("llama.rope.scaling.factor", Value::F32(4.0))
        .set("llama.rope.scaling.original_context_length", Value::U32(8));
    let with = |factors: &[(&str, f32)]| {
        let mut file = file.clone();
        for (key, factor) in factors {
            file.set(&format!("llama.rope.scaling.{key}"), Value::F32(*factor));
        }
        bits(&logits(&load(&file.bytes(), WeightDtype::AsStored), &golden.prompts[&0]))
    };
    let (own, general) = (with(&[("yarn_attn_factor", 1.5)]), with(&[("attn_factor", 1.5)]));
    assert_eq!(own, general);
    assert_eq!(with(&[("yarn_attn_factor", 0.75), ("attn_factor", 2.0)]), own);
    assert_ne!(with(&[]), own);
}

#[test]
fn sizes_may_be_given_for_each_layer() {
    let (golden, mut file) = golden_file("llama-a", GgmlDType::F32);
    let tokens = &golden.prompts[&0];
    let model = load(&file.bytes(), WeightDtype::AsStored);
    let info = model.info();
    let hooks::MlpInfo::Dense { d_mlp } = info.layers[0].mlp else { panic!("not dense") };
    for (key, size) in [
        ("attention.head_count", info.layers[0].n_heads),
        ("attention.head_count_kv", info.layers[0].n_kv_heads),
        ("feed_forward_length", d_mlp),
    ] {
        let sizes = vec![size as i32; info.n_layers()];
        file.set(&format!("llama.{key}"), Value::I32s(sizes));
    }
    let listed = load(&file.bytes(), WeightDtype::AsStored);
    assert_eq!(bits(&logits(&listed, tokens)), bits(&logits(&model, tokens)));
}

#[test]
fn every_format_is_read() {
    let tokens = [3, 1, 4, 1, 5, 9];
    for (dtype, folder) in formats() {
        // The same rounding of the weights, loaded as a checkpoint.
        let mut rounded = Folder::llama();
        rounded.config = folder.config.clone();
        rounded.tensors = folder.tensors.clone();
        for tensor in rounded.tensors.values_mut().filter(|tensor| tensor.rank() == 2) {
            *tensor = QTensor::quantize(tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
        }
        let expected = logits(&rounded.write().load().unwrap(), &tokens);
        let bytes = llama(&folder.tensors, &folder.config, dtype).bytes();
        let exact = logits(&load(&bytes, WeightDtype::F32), &tokens);
        let scale = values(&expected).into_iter().fold(0f32, |m, v| m.max(v.abs()));
        let largest = |got: &Tensor| {
            let pairs = values(got).into_iter().zip(values(&expected));
            pairs.map(|(g, e)| (g - e).abs()).fold(0f32, f32::max) / scale
        };
        assert!(largest(&exact) <= 1e-6, "{dtype:?}: {}", largest(&exact));
        // Quantized weights that stay so are unpacked to the same values.
        let kept = logits(&load(&bytes, WeightDtype::AsStored), &tokens);
        assert_eq!(bits(&kept), bits(&exact), "{dtype:?}");
    }
}

#[test]
fn parts_in_several_formats_are_kept_apart() {
    let folder = blocks();
    let mut file = llama(&folder.tensors, &folder.config, GgmlDType::Q4_0);
    let mut rounded = Folder { tensors: folder.tensors.clone(), ..blocks() };
    for (name, own, dtype) in
        [("self_attn.v_proj", "attn_v", GgmlDType::Q8_0), ("mlp.up_proj", "ffn_up", GgmlDType::F32)]
    {
        let tensor = &folder.tensors[&format!("model.layers.0.{name}.weight")];
        let own = format!("blk.0.{own}.weight");
        *file.tensor(&own) = common::gguf::stored(&own, tensor, dtype);
    }
    for (name, tensor) in rounded.tensors.iter_mut().filter(|(_, tensor)| tensor.rank() == 2) {
        let dtype = match name.as_str() {
            "model.layers.0.self_attn.v_proj.weight" => GgmlDType::Q8_0,
            "model.layers.0.mlp.up_proj.weight" => continue,
            _ => GgmlDType::Q4_0,
        };
        *tensor = QTensor::quantize(tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
    }
    let tokens = [3, 1, 4, 1, 5, 9];
    let expected = logits(&rounded.write().load().unwrap(), &tokens);
    let scale = values(&expected).into_iter().fold(0f32, |m, v| m.max(v.abs()));
    for dtype in [WeightDtype::AsStored, WeightDtype::F32] {
        let got = logits(&load(&file.bytes(), dtype), &tokens);
        for (got, expected) in values(&got).into_iter().zip(values(&expected)) {
            assert!((got - expected).abs() <= 1e-6 * scale, "{dtype:?}");
        }
    }
}

#[test]
fn quantized_rows_do_not_depend_on_their_batch() {
    for (dtype, folder) in formats().filter(|(dtype, _)| dtype.block_size() > 1) {
        let model =
            load(&llama(&folder.tensors, &folder.config, dtype).bytes(), WeightDtype::AsStored);
        let prompts: [&[u32]; 4] = [&[3, 1, 4, 1, 5, 9, 2, 6, 5], &[3], &[5, 8], &[9, 7, 9]];
        let rows = prompts.iter().enumerate().map(|(request, tokens)| Row {
            request: request as u64,
            tokens: tokens.to_vec(),
            offset: 0,
        });
        let mut batched = some(&model, &["logits"], &Wanted::all());
        model.run(&Batch::new(rows.collect()).unwrap(), &mut batched).unwrap();
        for (request, tokens) in prompts.iter().enumerate() {
            let alone = logits(&model, tokens);
            let batched = batched.get(request as u64, HookPoint::LOGITS).unwrap();
            assert_eq!(bits(&alone), bits(&batched), "{dtype:?}, {tokens:?}");
            // The first token alone is the first row of every longer prompt.
            let first = logits(&model, &tokens[..1]);
            assert_eq!(bits(&first), bits(&alone.narrow(0, 0, 1).unwrap()), "{dtype:?}");
        }
    }
}

#[test]
fn half_precision_checkpoints_are_read() {
    for dtype in [DType::F16, DType::BF16] {
        let mut folder = Folder::llama();
        let mut rounded = Folder::llama();
        for (name, tensor) in &mut folder.tensors {
            *tensor = tensor.to_dtype(dtype).unwrap();
            rounded.tensors.insert(name.clone(), tensor.to_dtype(DType::F32).unwrap());
        }
        let tokens = [1, 2, 3];
        let (half, full) = (folder.write().load().unwrap(), rounded.write().load().unwrap());
        assert_eq!(bits(&logits(&half, &tokens)), bits(&logits(&full, &tokens)));
    }
}

#[test]
fn fingerprints_tell_models_apart() {
    let write = |file: &common::gguf::File, path: &std::path::Path| {
        std::fs::write(path, file.bytes()).unwrap();
        Fingerprint::of(&Source::Gguf(path.to_owned())).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let source = blocks();
    let mut file = llama(&source.tensors, &source.config, GgmlDType::Q4_1);
    let first = write(&file, &folder.path().join("a.gguf"));
    assert_eq!(first, write(&file, &folder.path().join("b.gguf")));
    file.tensor("blk.0.attn_q.weight").bytes[0] ^= 1;
    let second = write(&file, &folder.path().join("c.gguf"));
    assert_eq!(first.config, second.config);
    assert_ne!(first.weights, second.weights);
    let built_in = Fingerprint::of(&Source::resolve("tiny-mixtral").unwrap()).unwrap();
    assert_eq!(built_in.config.len(), 64);
    assert!(built_in.tokenizer.is_some());
    let mut other = Folder::llama();
    let before = Fingerprint::of(&other.write().source()).unwrap();
    other.config["rms_norm_eps"] = serde_json::json!(1e-4);
    let after = Fingerprint::of(&other.write().source()).unwrap();
    assert_ne!(before.config, after.config);
    assert_eq!((before.weights, before.tokenizer), (after.weights, None));
}

/// A byte-level vocabulary of single bytes, some merges and special tokens.
fn tokenizer(pre: &str, change: impl FnOnce(&mut common::gguf::File)) -> Tokenizer {
    let mut tokens: Vec<String> = ["<s>", "</s>", "<sep>"].map(str::to_owned).to_vec();
    let mut types = vec![3, 3, 4];
    let printable =
        (33u8..127).map(char::from).chain((0..68).map(|i| char::from_u32(256 + i).unwrap()));
    let latin = (0xa1u32..0x100).filter(|c| *c != 0xad).map(|c| char::from_u32(c).unwrap());
    tokens.extend(printable.chain(latin).map(String::from));
    let merges = ["h e", "l l", "he ll", "Ġ hell", "1 2", "12 3"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    types.resize(tokens.len(), 1);
    let mut file = common::gguf::File::default();
    file.set("tokenizer.ggml.model", Value::Text("gpt2".to_owned()))
        .set("tokenizer.ggml.pre", Value::Text(pre.to_owned()))
        .set("tokenizer.ggml.tokens", Value::Texts(tokens))
        .set("tokenizer.ggml.token_type", Value::I32s(types))
        .set("tokenizer.ggml.merges", Value::Texts(merges.map(str::to_owned).to_vec()))
        .set("tokenizer.ggml.bos_token_id", Value::U32(0))
        .set("tokenizer.ggml.eos_token_id", Value::U32(1));
    change(&mut file);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Tokenizer::load(&Source::Gguf(path)).unwrap()
}

#[test]
fn each_rule_splits_in_its_way() {
    let tokens =
        |pre: &str, text: &str| tokenizer(pre, |_| ()).encode(text, Special::Omit).unwrap().tokens;
    assert_eq!(tokens("gpt-2", "a hell 1234"), ["a", "Ġhell", "Ġ", "123", "4"]);
    assert_eq!(tokens("default", "1234"), ["123", "4"]);
    assert_eq!(tokens("smollm", "hell 123"), ["hell", "Ġ", "1", "2", "3"]);
    assert_eq!(tokens("llama-bpe", "hell 1234"), ["hell", "Ġ", "123", "4"]);
}

#[test]
fn special_tokens_follow_the_files_rule() {
    let text = "hell<sep></s>";
    let encode = |pre, bos: Option<bool>, special| {
        let tokenizer = tokenizer(pre, |file| {
            if let Some(bos) = bos {
                file.set("tokenizer.ggml.add_bos_token", Value::Bool(bos))
                    .set("tokenizer.ggml.add_eos_token", Value::Bool(bos));
            }
        });
        tokenizer.encode(text, special).unwrap().tokens
    };
    let bare = ["hell", "<sep>", "</s>"];
    assert_eq!(encode("smollm", None, Special::Add), bare);
    assert_eq!(
        encode("smollm", Some(true), Special::Add),
        ["<s>", "hell", "<sep>", "</s>", "</s>"]
    );
    assert_eq!(encode("smollm", Some(true), Special::Omit), bare);
    // Llama 3 files without the flag have a BOS.
    assert_eq!(encode("llama-bpe", None, Special::Add), ["<s>", "hell", "<sep>", "</s>"]);
    assert_eq!(encode("llama-bpe", Some(false), Special::Add), bare);
}

#[test]
fn offsets_count_characters_and_text_comes_back() {
    let tokenizer = tokenizer("gpt-2", |file| {
        file.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    });
    let text = "é hell😀!";
    let encoding = tokenizer.encode(text, Special::Add).unwrap();
    assert_eq!(encoding.offsets[0], (0, 0));
    let characters: Vec<char> = text.chars().collect();
    assert_eq!(encoding.offsets[1..3], [(0, 1), (0, 1)], "the two bytes of é");
    let hell = encoding.tokens.iter().position(|token| token == "Ġhell").unwrap();
    let (start, end) = encoding.offsets[hell];
    assert_eq!(characters[start..end].iter().collect::<String>(), " hell");
    assert_eq!(encoding.offsets.last(), Some(&(7, 8)));
    assert_eq!(encoding.ids.len(), encoding.tokens.len());
    assert_eq!(tokenizer.decode(&encoding.ids[1..]).unwrap(), text);
    assert_eq!(tokenizer.id("Ġhell").and_then(|id| tokenizer.token(id)).unwrap(), "Ġhell");
    assert!(tokenizer.encode("", Special::Omit).unwrap().ids.is_empty());
}
