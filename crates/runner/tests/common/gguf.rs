//! GGUF files written byte by byte, so that each can be wrong in its own way.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::Folder;

/// A metadata value.
#[derive(Clone)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A tensor: dimensions fastest first, type number, bytes.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// `None`: behind the tensor before it.
    pub offset: Option<u64>,
}

/// A file under construction.
#[derive(Clone)]
pub struct File {
    pub magic: [u8; 4],
    pub version: u32,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Stored>,
    pub alignment: usize,
    /// Counts to claim instead of the true ones.
    pub n_tensors: Option<u64>,
    pub n_entries: Option<u64>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            n_tensors: None,
            n_entries: None,
        }
    }
}

impl File {
    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.metadata.retain(|(held, _)| held != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(held, _)| held != key);
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut Stored {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_entries.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            write(&mut out, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write(out: &mut Vec<u8>, value: &Value) {
    let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    match value {
        Value::U32(value) => {
            kind(out, 4);
            out.extend(value.to_le_bytes());
        }
        Value::F32(value) => {
            kind(out, 6);
            out.extend(value.to_le_bytes());
        }
        Value::Bool(value) => {
            kind(out, 7);
            out.push(u8::from(*value));
        }
        Value::Text(value) => {
            kind(out, 8);
            text(out, value);
        }
        Value::Texts(values) => {
            kind(out, 9);
            kind(out, 8);
            out.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| text(out, value));
        }
        Value::I32s(values) => {
            kind(out, 9);
            kind(out, 5);
            out.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        Value::F32s(values) => {
            kind(out, 9);
            kind(out, 6);
            out.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
    }
}

/// A tensor in one of the formats, from `f32` values with the slowest axis first.
pub fn stored(name: &str, tensor: &Tensor, dtype: GgmlDType) -> Stored {
    let kind = match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => panic!("{other:?}"),
    };
    let quantized = QTensor::quantize(tensor, dtype).unwrap();
    Stored {
        name: name.to_owned(),
        dims: tensor.dims().iter().rev().map(|&d| d as u64).collect(),
        kind,
        bytes: quantized.data().unwrap().into_owned(),
        offset: None,
    }
}

/// Rows of query and key projections in the order of llama.cpp: the two rows of
/// a rotary pair beside each other.
pub fn interleave(tensor: &Tensor, n_heads: usize) -> Tensor {
    let dims = tensor.dims().to_vec();
    let d = dims[0] / n_heads;
    let order: Vec<u32> = (0..n_heads)
        .flat_map(|head| (0..d).map(move |i| (head * d + i / 2 + i % 2 * d / 2) as u32))
        .collect();
    tensor.index_select(&Tensor::new(order, &Device::Cpu).unwrap(), 0).unwrap()
}

/// A llama file made from a checkpoint's tensors, as llama.cpp's converter lays
/// it out; matrices in `dtype`, vectors in `F32`.
pub fn llama(
    tensors: &std::collections::BTreeMap<String, Tensor>,
    config: &serde_json::Value,
    dtype: GgmlDType,
) -> File {
    let size = |key: &str| config[key].as_u64().unwrap() as u32;
    let mut file = File::default();
    let heads = (size("num_attention_heads"), size("num_key_value_heads"));
    let theta = config["rope_theta"].as_f64().unwrap_or(10_000.0) as f32;
    let eps = config["rms_norm_eps"].as_f64().unwrap_or(1e-6) as f32;
    file.set("general.architecture", Value::Text("llama".to_owned()))
        .set("llama.block_count", Value::U32(size("num_hidden_layers")))
        .set("llama.context_length", Value::U32(size("max_position_embeddings")))
        .set("llama.embedding_length", Value::U32(size("hidden_size")))
        .set("llama.feed_forward_length", Value::U32(size("intermediate_size")))
        .set("llama.attention.head_count", Value::U32(heads.0))
        .set("llama.attention.head_count_kv", Value::U32(heads.1))
        .set("llama.attention.layer_norm_rms_epsilon", Value::F32(eps))
        .set("llama.rope.freq_base", Value::F32(theta))
        .set("llama.vocab_size", Value::U32(size("vocab_size")));
    if let Some(width) = config["head_dim"].as_u64() {
        file.set("llama.attention.key_length", Value::U32(width as u32));
    }
    for (name, tensor) in tensors {
        let (own, heads) = rename(name, heads);
        let tensor = heads.map_or(tensor.clone(), |heads| interleave(tensor, heads as usize));
        let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
        file.tensors.push(stored(&own, &tensor, dtype));
    }
    file
}

/// llama.cpp's name of a tensor, and its heads where rows are interleaved.
fn rename(name: &str, heads: (u32, u32)) -> (String, Option<u32>) {
    let name = name
        .replace("model.layers.", "blk.")
        .replace("model.embed_tokens", "token_embd")
        .replace("model.norm", "output_norm")
        .replace("lm_head", "output")
        .replace("input_layernorm", "attn_norm")
        .replace("post_attention_layernorm", "ffn_norm")
        .replace("self_attn.o_proj", "attn_output")
        .replace("mlp.gate_proj", "ffn_gate")
        .replace("mlp.up_proj", "ffn_up")
        .replace("mlp.down_proj", "ffn_down");
    let interleaved = match () {
        () if name.contains("q_proj") => Some(heads.0),
        () if name.contains("k_proj") => Some(heads.1),
        () => None,
    };
    let name = ["q", "k", "v"].iter().fold(name, |name, part| {
        name.replace(&format!("self_attn.{part}_proj"), &format!("attn_{part}"))
    });
    (name, interleaved)
}

/// A llama whose widths are whole blocks.
pub fn blocks() -> Folder {
    llama_of(64, 96)
}

/// A llama of one layer and these widths.
fn llama_of(d_model: usize, d_mlp: usize) -> Folder {
    let mut folder = Folder::llama();
    folder.config = serde_json::json!({
        "model_type": "llama", "vocab_size": 19, "hidden_size": d_model,
        "intermediate_size": d_mlp, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 16, "tie_word_embeddings": true,
    });
    folder.tensors.clear();
    folder.add("model.embed_tokens.weight", &[19, d_model]);
    folder.add("model.norm.weight", &[d_model]);
    for name in ["input_layernorm", "post_attention_layernorm"] {
        folder.add(&format!("model.layers.0.{name}.weight"), &[d_model]);
    }
    for (name, rows) in [("q", d_model), ("k", d_model / 2), ("v", d_model / 2), ("o", d_model)] {
        folder.add(&format!("model.layers.0.self_attn.{name}_proj.weight"), &[rows, d_model]);
    }
    for (name, shape) in
        [("gate", [d_mlp, d_model]), ("up", [d_mlp, d_model]), ("down", [d_model, d_mlp])]
    {
        folder.add(&format!("model.layers.0.mlp.{name}_proj.weight"), &shape);
    }
    folder
}

/// Every format, each with a model whose widths are whole blocks of it.
pub fn formats() -> impl Iterator<Item = (GgmlDType, Folder)> {
    use GgmlDType::*;
    let narrow = [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1].map(|dtype| (dtype, blocks()));
    let wide = [Q2K, Q3K, Q4K, Q5K, Q6K].map(|dtype| (dtype, llama_of(256, 512)));
    narrow.into_iter().chain(wide)
}
