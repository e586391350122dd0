//! Steps of decoding on the device of `crate::machine`, as one launch and launch by launch.

use candle_core::Tensor;
use hooks::{
    Activation, ActivationCache, ActivationSink, Batch, Edit, Edits, HookPoint, ModelInfo, NoSink,
    Plan, Positions, Row, Rule, Selection, Site, Wanted,
};
use runner::{Input, KvCache, Launches, Model, WeightDtype};

use crate::common::{Golden, bits, everything, some};
use crate::machine;
use crate::models::placed;

/// One of each way that a layer is computed: learned positions and biases, a parallel residual,
/// windows and soft caps, two rotary embeddings, norms of queries and keys by head and of all heads,
/// layers without positions, experts.
pub const MODELS: [&str; 9] = [
    "llama-c",
    "gpt2-a",
    "gpt_neox-a",
    "gemma2-a",
    "gemma3-a",
    "qwen3-a",
    "olmo2-a",
    "smollm3-a",
    "mixtral-a",
];

/// Tokens of each row: first a prompt, then one for each step.
pub struct Texts {
    pub prompts: Vec<Vec<u32>>,
    pub steps: usize,
}

impl Texts {
    /// Prompts of these lengths.
    pub fn new(model: &Model, lengths: &[usize], steps: usize) -> Self {
        let token = |row: usize, i: usize| ((row + 3) * 7919 + i * 104_729) % model.info().d_vocab;
        let prompt =
            |(row, &length): (usize, &usize)| (0..length).map(|i| token(row, i) as u32).collect();
        Self { prompts: lengths.iter().enumerate().map(prompt).collect(), steps }
    }

    /// The prompts, then each step.
    pub fn batches(&self, model: &Model) -> Vec<Batch> {
        let step = |step: usize| {
            let row = |(row, prompt): (usize, &Vec<u32>)| Row {
                request: row as u64,
                tokens: vec![((row + 11) * 31 + step * 17) as u32 % model.info().d_vocab as u32],
                offset: prompt.len() + step,
            };
            self.prompts.iter().enumerate().map(row).collect()
        };
        let row = |(row, tokens): (usize, &Vec<u32>)| Row {
            request: row as u64,
            tokens: tokens.clone(),
            offset: 0,
        };
        let first: Vec<Row> = self.prompts.iter().enumerate().map(row).collect();
        let batches = std::iter::once(first).chain((0..self.steps).map(step));
        batches.map(|rows| Batch::new(rows).unwrap()).collect()
    }
}

/// Keeps activations, and what it is told of them.
struct Told {
    kept: ActivationCache,
    calls: Vec<String>,
}

impl ActivationSink for Told {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        self.kept.plan(info)
    }

    fn begin(&mut self, batch: &Batch) -> hooks::Result<()> {
        self.calls.push(format!("begin {}", batch.rows().len()));
        self.kept.begin(batch)
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        let dims = activation.tensor.dims();
        self.calls.push(format!("{point} {dims:?} {:?}", activation.positions));
        self.kept.record(point, activation)
    }

    fn end_layer(&mut self, layer: usize) -> hooks::Result<()> {
        self.calls.push(format!("end {layer}"));
        self.kept.end_layer(layer)
    }

    fn end_batch(&mut self) -> hooks::Result<()> {
        self.calls.push("end".to_owned());
        self.kept.end_batch()
    }
}

/// Runs batches one after the other and tells how each was launched.
pub fn run(
    model: &Model,
    batches: &[Batch],
    cache: &mut KvCache,
    sink: &mut dyn ActivationSink,
) -> Vec<String> {
    let session = model.session(sink).unwrap();
    let layers = 0..model.info().n_layers();
    let forward = |batch: &Batch| {
        let edits = Edits::default();
        session.forward(batch, Input::Tokens, layers.clone(), cache, &edits, sink).unwrap();
        said(cache)
    };
    batches.iter().map(forward).collect()
}

pub fn said(cache: &KvCache) -> String {
    match cache.launches() {
        Some(Launches::OneByOne(reason)) => format!("{reason:?}"),
        launches => format!("{:?}", launches.unwrap()),
    }
}

/// A sink for what is behind the layers.
pub fn logits(model: &Model) -> ActivationCache {
    some(model, &["ln_final.hook_normalized", "logits"], &Wanted::all())
}

/// What the rows' logits are, all positions behind one another.
fn of_rows(sink: &ActivationCache, rows: usize) -> Vec<Tensor> {
    (0..rows).map(|row| sink.get(row as u64, HookPoint::LOGITS).unwrap()).collect()
}

#[track_caller]
fn check(model: &Model, what: &str, texts: &Texts, capacity: usize, expected: &[&str]) {
    let batches = texts.batches(model);
    let told = || Told { kept: logits(model), calls: Vec::new() };
    let (mut at_once, mut one_by_one) = (told(), told());
    let mut cache = KvCache::with_capacity(capacity);
    let launches = run(model, &batches, &mut cache, &mut at_once);
    assert_eq!(launches, expected, "{what}");
    let mut cache = KvCache::with_capacity(capacity).one_by_one();
    let launches = run(model, &batches, &mut cache, &mut one_by_one);
    assert!(!launches.iter().any(|launches| launches == "AtOnce"), "{what}: {launches:?}");
    let rows = texts.prompts.len();
    assert_eq!(at_once.calls, one_by_one.calls, "{what}");
    let (got, expected) = (of_rows(&at_once.kept, rows), of_rows(&one_by_one.kept, rows));
    for (row, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(got.dims(), expected.dims(), "{what}");
        assert!(bits(got) == bits(expected), "{what}: row {row}");
    }
}

#[test]
fn a_pass_begins_before_the_sink_has_all_of_the_one_before() {
    let golden = Golden::load("llama-c");
    let model = placed(&golden, WeightDtype::F32, 2);
    let batches: Vec<Batch> = [(0, 5), (1, 3), (2, 7)]
        .map(|(request, length)| {
            let tokens = (0..length).map(|i| (i * 7 + 3 + request as u32) % 31).collect();
            Batch::new(vec![Row { request, tokens, offset: 0 }]).unwrap()
        })
        .into();
    let layers = 0..model.info().n_layers();
    let told = || Told { kept: everything(&model), calls: Vec::new() };
    machine::with(|| {
        let (mut expected, mut got) = (told(), told());
        let session = model.session(&mut expected).unwrap();
        let edits = Edits::default();
        for batch in &batches {
            let (mut cache, layers) = (KvCache::off(), layers.clone());
            let sink = &mut expected;
            session.forward(batch, Input::Tokens, layers, &mut cache, &edits, sink).unwrap();
        }
        let ends = |told: &Told| told.calls.iter().filter(|call| *call == "end").count();
        let session = model.session(&mut got).unwrap();
        let mut flow = session.flow();
        for (i, batch) in batches.iter().enumerate() {
            let (mut cache, layers) = (KvCache::off(), layers.clone());
            flow.forward(batch, Input::Tokens, layers, &mut cache, &edits, &mut got).unwrap();
            assert_eq!(ends(&got), i.saturating_sub(1));
            flow.hand_over(1, &mut got).unwrap();
            assert_eq!(ends(&got), i);
        }
        // A pass that is refused, and one that fails, leave what was before them whole.
        let long = Row { request: 9, tokens: vec![1; model.info().n_ctx + 1], offset: 0 };
        let long = Batch::new(vec![long]).unwrap();
        let (mut cache, all) = (KvCache::off(), layers.clone());
        assert!(flow.forward(&long, Input::Tokens, all, &mut cache, &edits, &mut got).is_err());
        let wide = Tensor::zeros(99, candle_core::DType::F32, &machine::device()).unwrap();
        let point = HookPoint::layer(Site::MlpOut, 1);
        let (heads, positions) = (Selection::All, Positions::All);
        let mut wrong = Edits::default();
        wrong.add(Rule { point, heads, positions, edit: Edit::Set(wide) }, model.info()).unwrap();
        let all = layers.clone();
        let failed = flow.forward(&batches[0], Input::Tokens, all, &mut cache, &wrong, &mut got);
        assert!(failed.is_err());
        flow.hand_over(0, &mut got).unwrap();
        assert_eq!(got.calls, expected.calls);
        for (request, point) in expected.kept.keys() {
            let [got, expected] = [&got, &expected].map(|told| told.kept.get(request, point));
            assert!(bits(&got.unwrap()) == bits(&expected.unwrap()), "{request} {point}");
        }
        // With a cache that keeps, nothing is left for later.
        let session = model.session(&mut got).unwrap();
        let (mut flow, mut cache, before) = (session.flow(), KvCache::new(), ends(&got));
        flow.forward(&batches[0], Input::Tokens, layers, &mut cache, &edits, &mut got).unwrap();
        assert_eq!(ends(&got), before + 1);
    });
}

/// How prompts and so many steps are launched.
fn usually(steps: usize) -> Vec<&'static str> {
    let first = ["Tokens", "First"].into_iter();
    first.chain(std::iter::repeat("AtOnce")).take(1 + steps).collect()
}

#[test]
fn steps_at_once_have_the_bits_of_steps_one_by_one() {
    for name in MODELS {
        let model = placed(&Golden::load(name), WeightDtype::F32, 1);
        // Some have few positions.
        let steps = machine::STEPS.min(model.info().n_ctx - 3);
        let texts = Texts::new(&model, &[3], steps);
        machine::with(|| check(&model, name, &texts, 0, &usually(steps)));
    }
}

#[test]
fn ragged_rows_step_together() {
    for (name, dtype) in [("llama-c", WeightDtype::Bf16), ("mixtral-a", WeightDtype::F32)] {
        let model = placed(&Golden::load(name), dtype, 1);
        let texts = Texts::new(&model, &[5, 1, 9], machine::STEPS);
        machine::with(|| check(&model, name, &texts, 0, &usually(machine::STEPS)));
    }
}

#[test]
fn steps_are_captured_anew_where_the_cache_grows() {
    let model = placed(&Golden::load("llama-c"), WeightDtype::F32, 1);
    // Room for 64 positions, then for 128.
    let texts = Texts::new(&model, &[2, 60], 8);
    let mut expected = usually(8);
    expected[5] = "First";
    machine::with(|| check(&model, "growth", &texts, 0, &expected));
}

#[test]
fn what_is_observed_changes_no_bit_of_a_step() {
    for (name, length) in [("llama-c", 90), ("gemma2-a", 50)] {
        let model = placed(&Golden::load(name), WeightDtype::F32, 1);
        let texts = Texts::new(&model, &[length, 40], 3);
        let batches = texts.batches(&model);
        machine::with(|| {
            let (mut alone, mut beside) = (logits(&model), everything(&model));
            // Keys in several tiles, and room for more parts of them than there are.
            let (mut cache, mut other) = (KvCache::with_capacity(200), KvCache::with_capacity(200));
            let launches = run(&model, &batches, &mut cache, &mut alone);
            assert_eq!(launches, usually(3), "{name}");
            let launches = run(&model, &batches, &mut other, &mut beside);
            assert_eq!(launches, ["Tokens", "Points", "Points", "Points"], "{name}");
            for (got, expected) in of_rows(&alone, 2).iter().zip(&of_rows(&beside, 2)) {
                assert!(bits(got) == bits(expected), "{name}");
            }
        });
    }
}

#[test]
fn rows_of_the_same_frequencies_step_together() {
    // Texts of more than 10 tokens are rotated by other frequencies.
    let model = placed(&Golden::load("phi3-c"), WeightDtype::F32, 1);
    assert_eq!(model.info().frequency_switch, Some(10));
    machine::with(|| {
        check(&model, "long", &Texts::new(&model, &[13, 11], 3), 0, &usually(3));
        check(&model, "short", &Texts::new(&model, &[4, 2], 3), 0, &usually(3));
        let apart = ["Tokens", "Frequencies", "Frequencies"];
        check(&model, "both", &Texts::new(&model, &[13, 2], 2), 0, &apart);
    });
}

#[test]
fn what_is_no_step_says_why() {
    let golden = Golden::load("llama-c");
    let model = placed(&golden, WeightDtype::F32, 1);
    let batches = Texts::new(&model, &[4, 2], 3).batches(&model);
    let n_layers = model.info().n_layers();
    machine::with(|| {
        let (mut cache, mut sink) = (KvCache::new(), NoSink);
        let session = model.session(&mut sink).unwrap();
        let mut launches = Vec::new();
        for (batch, layers) in batches.iter().zip([n_layers, n_layers, n_layers - 1]) {
            let edits = Edits::default();
            let layers = 0..layers;
            session.forward(batch, Input::Tokens, layers, &mut cache, &edits, &mut sink).unwrap();
            launches.push(said(&cache));
        }
        // Nothing is wanted at all.
        assert_eq!(launches, ["Tokens", "Points", "Layers"]);

        let (mut cache, mut sink) = (KvCache::new(), logits(&model));
        let mut edits = Edits::default();
        let point = HookPoint::layer(Site::MlpOut, 0);
        let rule =
            Rule { point, heads: Selection::All, positions: Positions::All, edit: Edit::Zero };
        edits.add(rule, model.info()).unwrap();
        let session = model.session(&mut sink).unwrap();
        for batch in &batches[..2] {
            let layers = 0..n_layers;
            session.forward(batch, Input::Tokens, layers, &mut cache, &edits, &mut sink).unwrap();
        }
        assert_eq!(said(&cache), "Points");
        cache.clear();
        assert!(cache.launches().is_none());
    });
    let (mut cache, mut sink) = (KvCache::new(), logits(&golden.model()));
    let launches = run(&golden.model(), &batches[..2], &mut cache, &mut sink);
    assert_eq!(launches, ["Placement", "Placement"]);
    let text = cache.launches().map(ToString::to_string);
    assert_eq!(text.as_deref(), Some("one by one: the layers are not on one gpu"));
}
