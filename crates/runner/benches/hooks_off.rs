//! What hook points cost when nothing is planned at them: a pass through the
//! runner, of which only the last position's logits are wanted, against the same
//! kernels called one after the other with no hook point between them.
//!
//! Both are run in turn, so that a slow moment of the machine falls on both; the
//! medians of each and of the ratios are printed. Shapes are SmolLM2-135M's; the
//! bare pass has random weights, whose values cost no time.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use hooks::{
    Activation, ActivationSink, Batch, HookPoint, ModelInfo, Plan, Positions, Row, Wanted,
};
use kernels::activation::{ActivationFunction, gated};
use kernels::attention::{AttentionInput, AttentionOptions, AttentionWants, attention};
use kernels::linear::Linear;
use kernels::norm::rms_norm;
use kernels::rotary::{RotaryTables, rotary};
use runner::{LoadOptions, Model, Source, WeightDtype};

const TOKENS: usize = 512;
const PAIRS: usize = 21;

/// Wants the last position's logits.
struct LastLogits;

impl ActivationSink for LastLogits {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        let mut plan = Plan::default();
        plan.add(HookPoint::LOGITS, &Wanted::positions(Positions::last()), info)?;
        Ok(plan)
    }

    fn record(&mut self, _: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        std::hint::black_box(activation.tensor);
        Ok(())
    }
}

/// A layer's fused projections: query, key and value; output; gate and up; down.
type Layer = [Linear; 4];

struct Bare {
    layers: Vec<Layer>,
    unembedding: Linear,
    norm: Tensor,
    tables: RotaryTables,
}

impl Bare {
    fn new() -> Self {
        let linear = |d_out: usize, d_in: usize| {
            let weight = Tensor::rand(-0.05f32, 0.05, (d_out, d_in), &Device::Cpu).unwrap();
            Linear::dense(&weight, None).unwrap()
        };
        let layer = |_| [linear(960, 576), linear(576, 576), linear(3072, 576), linear(576, 1536)];
        let inverse: Vec<f64> = (0..32).map(|i| 1e5f64.powf(-f64::from(i) / 32.)).collect();
        Self {
            layers: (0..30).map(layer).collect(),
            unembedding: linear(49_152, 576),
            norm: Tensor::ones(576, DType::F32, &Device::Cpu).unwrap(),
            tables: RotaryTables::new(&inverse, 1., 8192).unwrap(),
        }
    }

    fn run(&self, tokens: &[u32]) -> Tensor {
        let t = tokens.len();
        let mut x = self.unembedding.rows(tokens).unwrap().reshape((1, t, 576)).unwrap();
        for [qkv, out, gate_up, down] in &self.layers {
            let fused = qkv.forward(&rms_norm(&x, &self.norm, 1e-5).unwrap()).unwrap();
            let heads = |start: usize, n: usize| {
                fused.narrow(2, start, n * 64).unwrap().reshape((1, t, n, 64)).unwrap()
            };
            let q = rotary(&heads(0, 9), &self.tables, &[0]).unwrap();
            let k = rotary(&heads(576, 3), &self.tables, &[0]).unwrap();
            let v = heads(768, 3);
            let input = AttentionInput { q: &q, k: &k, v: &v, lengths: &[t], offsets: &[0] };
            let options = AttentionOptions { scale: 0.125, window: None, soft_cap: None };
            let wants = AttentionWants::default();
            let z = attention(&input, &options, &wants).unwrap().z;
            x = (x + out.forward(&z.reshape((1, t, 576)).unwrap()).unwrap()).unwrap();
            let fused = gate_up.forward(&rms_norm(&x, &self.norm, 1e-5).unwrap()).unwrap();
            let half = |start| fused.narrow(2, start, 1536).unwrap();
            let hidden = gated(ActivationFunction::Silu, &half(0), &half(1536)).unwrap();
            x = (x + down.forward(&hidden).unwrap()).unwrap();
        }
        let last = rms_norm(&x.narrow(1, t - 1, 1).unwrap(), &self.norm, 1e-5).unwrap();
        self.unembedding.forward(&last).unwrap()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let folder = std::env::var_os("EIGENLENS_TEST_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models"),
        PathBuf::from,
    );
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "{} is missing: run scripts/fetch-test-models", path.display());
    let options = LoadOptions { dtype: WeightDtype::F32, ..Default::default() };
    let model = Model::load(&Source::Gguf(path), &options).unwrap();
    let bare = Bare::new();
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| (i * 7919 + 13) % 49_152).collect();
    let batch = Batch::new(vec![Row { request: 0, tokens: tokens.clone(), offset: 0 }]).unwrap();
    let seconds = |f: &mut dyn FnMut()| {
        let begun = Instant::now();
        f();
        begun.elapsed().as_secs_f64()
    };
    let mut hooked = || model.run(&batch, &mut LastLogits).unwrap();
    let mut plain = || drop(std::hint::black_box(bare.run(&tokens)));
    hooked();
    plain();
    let pairs: Vec<(f64, f64)> =
        (0..PAIRS).map(|_| (seconds(&mut hooked), seconds(&mut plain))).collect();
    println!(
        "T = {TOKENS}, {PAIRS} pairs, {} threads: with hook points {:.4} s, bare {:.4} s, median ratio {:.4}",
        rayon::current_num_threads(),
        median(pairs.iter().map(|p| p.0).collect()),
        median(pairs.iter().map(|p| p.1).collect()),
        median(pairs.iter().map(|p| p.0 / p.1).collect())
    );
}
