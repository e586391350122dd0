//! What the test targets share: golden models, batches, and files made on the spot.

#![allow(dead_code)] // each target uses a part of it

pub mod gguf;
pub mod real;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use hooks::{ActivationCache, Batch, HookPoint, Plan, Row, Site, Wanted};
use runner::{LoadOptions, Model, Source};

/// A folder of the workspace, which is where it was built unless `EIGENLENS_WORKSPACE` says
/// otherwise: a build may be tested on another machine.
pub fn workspace(path: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("EIGENLENS_WORKSPACE").map_or_else(built, PathBuf::from).join(path)
}

/// A model with what transformers computes in it.
pub struct Golden {
    pub name: String,
    pub folder: PathBuf,
    /// Prompt id to token ids.
    pub prompts: BTreeMap<u64, Vec<u32>>,
    /// `{prompt}/{hook point}` to values without a batch axis.
    pub expected: HashMap<String, Tensor>,
}

impl Golden {
    pub fn load(name: &str) -> Self {
        let folder = workspace("tests/golden/models").join(name);
        let json = std::fs::read(folder.join("expected.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let prompts = json["prompts"].as_object().unwrap().iter().map(|(id, ids)| {
            let ids = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
            (id.parse().unwrap(), ids.collect())
        });
        let expected =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu);
        Self {
            name: name.to_owned(),
            prompts: prompts.collect(),
            expected: expected.unwrap(),
            folder,
        }
    }

    /// Every golden model.
    pub fn all() -> Vec<Self> {
        let folder = std::fs::read_dir(workspace("tests/golden/models")).unwrap();
        let mut names: Vec<String> = folder
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("expected.safetensors").is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert!(names.len() >= 50, "golden models are missing: {names:?}");
        names.iter().map(|name| Self::load(name)).collect()
    }

    /// What transformers computes in the weights' own type, for some models.
    pub fn own_dtype(&self) -> Option<HashMap<String, Tensor>> {
        let path = self.folder.join("expected-own-dtype.safetensors");
        path.is_file().then(|| candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    pub fn model(&self) -> Model {
        let source = Source::resolve(self.folder.to_str().unwrap()).unwrap();
        Model::load(&source, &LoadOptions::default()).unwrap()
    }

    /// All prompts as the rows of one batch.
    pub fn batch(&self) -> Batch {
        let row = |(&request, tokens): (&u64, &Vec<u32>)| Row {
            request,
            tokens: tokens.clone(),
            offset: 0,
        };
        Batch::new(self.prompts.iter().map(row).collect()).unwrap()
    }
}

/// A batch of one row.
pub fn single(request: u64, tokens: &[u32]) -> Batch {
    at(request, tokens, 0)
}

/// A batch of one row that begins at a later position.
pub fn at(request: u64, tokens: &[u32], offset: usize) -> Batch {
    Batch::new(vec![Row { request, tokens: tokens.to_vec(), offset }]).unwrap()
}

/// A sink for everything that the model has.
pub fn everything(model: &Model) -> ActivationCache {
    let mut plan = Plan::default();
    for point in model.info().points() {
        plan.add(point, &Wanted::all(), model.info()).unwrap();
    }
    ActivationCache::new(plan)
}

/// A sink for some points.
pub fn some(model: &Model, points: &[&str], wanted: &Wanted) -> ActivationCache {
    let mut plan = Plan::default();
    for pattern in points {
        let layers = hooks::Selection::All;
        plan.add_matching(pattern, &layers, wanted, model.info()).unwrap();
    }
    ActivationCache::new(plan)
}

/// All points that do not depend on which keys are in the batch.
pub fn per_token(point: HookPoint) -> bool {
    point.site() != Site::Summary && point.site().key_axis().is_none()
}

/// Expert indices are compared where neighbouring probabilities differ by more.
const MARGIN: f32 = 1e-5;

/// `max |Δ| / max |expected|` over finite entries; infinite ones must be equal.
pub fn difference(what: &str, got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (values(got), values(expected));
    let (mut delta, mut scale) = (0f64, 0f64);
    for (g, e) in got.into_iter().zip(expected) {
        if e.is_infinite() || g.is_infinite() {
            assert_eq!(g, e, "{what}");
            continue;
        }
        assert!(!g.is_nan(), "{what} holds NaN");
        delta = delta.max((f64::from(g) - f64::from(e)).abs());
        scale = scale.max(f64::from(e).abs());
    }
    if scale > 0.0 { delta / scale } else { delta }
}

/// Compares chosen experts rank by rank, where the expected probabilities beside
/// the rank are apart; returns how many ranks were compared.
pub fn compare_indices(what: &str, got: &Tensor, expected: &Tensor, probs: &Tensor) -> usize {
    let (got, expected) = (values(got), values(expected));
    let probs = probs.to_vec2::<f32>().unwrap();
    let k = expected.len() / probs.len();
    let mut compared = 0;
    for (token, mut probs) in probs.into_iter().enumerate() {
        probs.sort_by(|a, b| b.total_cmp(a));
        for rank in 0..k {
            let clear = |a: usize, b: usize| b >= probs.len() || probs[a] - probs[b] > MARGIN;
            if (rank == 0 || clear(rank - 1, rank)) && clear(rank, rank + 1) {
                let at = token * k + rank;
                assert_eq!(got[at], expected[at], "{what}, token {token}, rank {rank}");
                compared += 1;
            }
        }
    }
    compared
}

/// A tensor's values as `f32`.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A tensor's bits.
pub fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// Reproducible numbers, roughly uniform in −1..1.
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A checkpoint folder under construction.
pub struct Folder {
    pub path: tempfile::TempDir,
    pub config: serde_json::Value,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Folder {
    /// A llama of two layers.
    pub fn llama() -> Self {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 16,
        });
        let mut folder = Self::new(config);
        for layer in 0..2 {
            for (name, rows) in [("gate_proj", 12), ("up_proj", 12)] {
                folder.add(&format!("model.layers.{layer}.mlp.{name}.weight"), &[rows, 8]);
            }
            folder.add(&format!("model.layers.{layer}.mlp.down_proj.weight"), &[8, 12]);
        }
        folder
    }

    /// A mixtral of two layers, three experts.
    pub fn mixtral() -> Self {
        let config = serde_json::json!({
            "model_type": "mixtral", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 16, "num_local_experts": 3, "num_experts_per_tok": 2,
        });
        let mut folder = Self::new(config);
        for layer in 0..2 {
            let moe = format!("model.layers.{layer}.block_sparse_moe");
            folder.add(&format!("{moe}.gate.weight"), &[3, 8]);
            for expert in 0..3 {
                for (name, shape) in [("w1", [12, 8]), ("w3", [12, 8]), ("w2", [8, 12])] {
                    folder.add(&format!("{moe}.experts.{expert}.{name}.weight"), &shape);
                }
            }
        }
        folder
    }

    fn new(config: serde_json::Value) -> Self {
        let path = tempfile::tempdir().unwrap();
        let mut folder = Self { path, config, tensors: BTreeMap::new() };
        folder.add("model.embed_tokens.weight", &[19, 8]);
        folder.add("lm_head.weight", &[19, 8]);
        folder.add("model.norm.weight", &[8]);
        for layer in 0..2 {
            let block = format!("model.layers.{layer}");
            folder.add(&format!("{block}.input_layernorm.weight"), &[8]);
            folder.add(&format!("{block}.post_attention_layernorm.weight"), &[8]);
            for (name, rows) in [("q", 8), ("k", 4), ("v", 4), ("o", 8)] {
                folder.add(&format!("{block}.self_attn.{name}_proj.weight"), &[rows, 8]);
            }
        }
        folder
    }

    pub fn add(&mut self, name: &str, shape: &[usize]) {
        let n = shape.iter().product();
        let tensor = Tensor::from_vec(noise(name.len() as u64, n), shape, &Device::Cpu).unwrap();
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn write(&self) -> &Self {
        self.write_config();
        let tensors: HashMap<_, _> = self.tensors.clone().into_iter().collect();
        candle_core::safetensors::save(&tensors, self.weights()).unwrap();
        self
    }

    pub fn write_config(&self) {
        let json = serde_json::to_vec(&self.config).unwrap();
        std::fs::write(self.path.path().join("config.json"), json).unwrap();
    }

    pub fn weights(&self) -> PathBuf {
        self.path.path().join("model.safetensors")
    }

    pub fn source(&self) -> Source {
        Source::resolve(self.path.path().to_str().unwrap()).unwrap()
    }

    pub fn load(&self) -> runner::Result<Model> {
        Model::load(&self.source(), &LoadOptions::default())
    }
}
