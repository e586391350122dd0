//! What a forward pass does and does not do: edits, stitching, early stops,
//! independence of what is captured.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use candle_core::{Device, Tensor};
use common::{Folder, Golden, bits, everything, single, some, values};
use hooks::{
    Activation, ActivationCache, ActivationSink, Batch, Edit, Edits, HookPoint, ModelInfo, NoSink,
    Plan, Positions, Rule, Site, Wanted,
};
use runner::{Error, Input, KvCache, Model};

fn forward(
    model: &Model,
    batch: &Batch,
    input: Input<'_>,
    layers: std::ops::Range<usize>,
    edits: &Edits,
    sink: &mut dyn ActivationSink,
) {
    let session = model.session(sink).unwrap();
    session.forward(batch, input, layers, &mut KvCache::off(), edits, sink).unwrap();
}

#[test]
fn logits_do_not_depend_on_what_is_captured() {
    for golden in [Golden::load("llama-d"), Golden::load("mixtral-b")] {
        let model = golden.model();
        let batch = golden.batch();
        let mut alone = some(&model, &["logits"], &Wanted::all());
        model.run(&batch, &mut alone).unwrap();
        let mut whole = everything(&model);
        model.run(&batch, &mut whole).unwrap();
        let mut last = some(&model, &["logits"], &Wanted::positions(Positions::last()));
        model.run(&batch, &mut last).unwrap();
        for &request in golden.prompts.keys() {
            let of = |cache: &ActivationCache| cache.get(request, HookPoint::LOGITS).unwrap();
            let all = of(&alone);
            assert_eq!(bits(&all), bits(&of(&whole)));
            let end = all.narrow(0, all.dim(0).unwrap() - 1, 1).unwrap();
            assert_eq!(bits(&end), bits(&of(&last)));
        }
    }
}

/// Counts the layers that are run and the records that are made.
struct Counter {
    plan: Plan,
    calls: Vec<String>,
}

impl ActivationSink for Counter {
    fn plan(&mut self, _: &ModelInfo) -> hooks::Result<Plan> {
        Ok(self.plan.clone())
    }
    fn begin(&mut self, batch: &Batch) -> hooks::Result<()> {
        self.calls.push(format!("begin {}", batch.rows().len()));
        Ok(())
    }
    fn record(&mut self, point: HookPoint, _: &Activation<'_>) -> hooks::Result<()> {
        self.calls.push(point.to_string());
        Ok(())
    }
    fn end_layer(&mut self, layer: usize) -> hooks::Result<()> {
        self.calls.push(format!("end {layer}"));
        Ok(())
    }
    fn end_batch(&mut self) -> hooks::Result<()> {
        self.calls.push("end".to_owned());
        Ok(())
    }
}

fn calls(model: &Model, points: &[&str], cache: &mut KvCache) -> Vec<String> {
    let mut plan = Plan::default();
    for point in points {
        plan.add(point.parse().unwrap(), &Wanted::all(), model.info()).unwrap();
    }
    let mut sink = Counter { plan, calls: Vec::new() };
    let session = model.session(&mut sink).unwrap();
    let layers = 0..model.info().n_layers();
    session
        .forward(&single(0, &[1, 2]), Input::Tokens, layers, cache, &Edits::default(), &mut sink)
        .unwrap();
    sink.calls
}

#[test]
fn nothing_planned_nothing_run_and_the_last_wanted_layer_is_the_last() {
    let model = Folder::mixtral().write().load().unwrap();
    assert_eq!(calls(&model, &[], &mut KvCache::off()), ["begin 1", "end"]);
    assert_eq!(
        calls(&model, &["hook_embed"], &mut KvCache::off()),
        ["begin 1", "hook_embed", "end"]
    );
    assert_eq!(
        calls(&model, &["blocks.0.attn.hook_pattern"], &mut KvCache::off()),
        ["begin 1", "blocks.0.attn.hook_pattern", "end 0", "end"]
    );
    assert_eq!(
        calls(&model, &["logits"], &mut KvCache::off()),
        ["begin 1", "end 0", "end 1", "logits", "end"]
    );
    // A cache that will be continued needs every layer.
    let mut cache = KvCache::new();
    assert_eq!(calls(&model, &[], &mut cache), ["begin 1", "end 0", "end 1", "end"]);
    assert_eq!((cache.lengths(0), cache.lengths(1)), (&[2][..], &[2][..]));
}

#[test]
fn points_are_recorded_in_the_order_of_the_pass() {
    for model in
        [Folder::llama().write().load().unwrap(), Folder::mixtral().write().load().unwrap()]
    {
        let points = model.info().points();
        let names: Vec<String> = points.iter().map(ToString::to_string).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let recorded = calls(&model, &names, &mut KvCache::off());
        let recorded: Vec<_> =
            recorded.iter().filter(|call| names.contains(&call.as_str())).collect();
        assert_eq!(recorded.len(), names.len());
        let residual = |name: &&&String| name.contains("resid") || name.contains("_out");
        let order: Vec<_> = recorded.iter().filter(residual).map(|name| name.as_str()).collect();
        assert_eq!(
            order[..5],
            [
                "blocks.0.hook_resid_pre",
                "blocks.0.hook_attn_out",
                "blocks.0.hook_resid_mid",
                "blocks.0.hook_mlp_out",
                "blocks.0.hook_resid_post",
            ]
        );
    }
}

#[test]
fn a_pass_can_be_cut_and_continued() {
    for golden in [Golden::load("llama-d"), Golden::load("mixtral-c")] {
        let model = golden.model();
        let n_layers = model.info().n_layers();
        let tokens = &golden.prompts[&0];
        let batch = single(0, tokens);
        let mut whole = everything(&model);
        model.run(&batch, &mut whole).unwrap();
        let expected = bits(&whole.get(0, HookPoint::LOGITS).unwrap());
        let none = Edits::default();
        let embeddings = whole.get(0, HookPoint::EMBED).unwrap().unsqueeze(0).unwrap();
        let mut logits = some(&model, &["logits"], &Wanted::all());
        forward(&model, &batch, Input::Embeddings(&embeddings), 0..n_layers, &none, &mut logits);
        assert_eq!(bits(&logits.get(0, HookPoint::LOGITS).unwrap()), expected);
        for cut in 0..=n_layers {
            let resid = match cut {
                0 => embeddings.clone(),
                _ => {
                    let point = HookPoint::layer(Site::ResidPost, cut - 1);
                    let mut first = some(&model, &[&point.to_string()], &Wanted::all());
                    forward(&model, &batch, Input::Tokens, 0..cut, &none, &mut first);
                    first.get(0, point).unwrap().unsqueeze(0).unwrap()
                }
            };
            logits.clear();
            forward(&model, &batch, Input::Residual(&resid), cut..n_layers, &none, &mut logits);
            assert_eq!(bits(&logits.get(0, HookPoint::LOGITS).unwrap()), expected, "cut at {cut}");
        }
    }
}

fn edit(model: &Model, rules: &[(&str, &str, &str, Edit)]) -> Edits {
    let mut edits = Edits::default();
    for (point, heads, positions, edit) in rules {
        let rule = Rule {
            point: point.parse().unwrap(),
            heads: heads.parse().unwrap(),
            positions: positions.parse().unwrap(),
            edit: edit.clone(),
        };
        edits.add(rule, model.info()).unwrap();
    }
    edits
}

#[test]
fn edits_are_seen_where_they_are_made_and_read_downstream() {
    for golden in [Golden::load("llama-b"), Golden::load("mixtral-a")] {
        let model = golden.model();
        let layers = 0..model.info().n_layers();
        let batch = single(0, &golden.prompts[&0]);
        let mut before = everything(&model);
        model.run(&batch, &mut before).unwrap();
        for point in model.info().points() {
            let name = point.to_string();
            let mut edits = Edits::default();
            let rule = Rule {
                point,
                heads: Default::default(),
                positions: Default::default(),
                edit: Edit::Scale(-3.0),
            };
            if edits.add(rule, model.info()).is_err() {
                continue; // a point that nothing reads, or indices
            }
            let mut after = everything(&model);
            forward(&model, &batch, Input::Tokens, layers.clone(), &edits, &mut after);
            let (old, new) = (before.get(0, point).unwrap(), after.get(0, point).unwrap());
            for (old, new) in values(&old).into_iter().zip(values(&new)) {
                assert_eq!(-3.0 * old, new, "{name}");
            }
            let logits = |cache: &ActivationCache| bits(&cache.get(0, HookPoint::LOGITS).unwrap());
            assert_ne!(logits(&before), logits(&after), "{name} is read by nothing");
        }
    }
}

#[test]
fn an_edit_at_one_position_leaves_earlier_ones_alone() {
    let golden = Golden::load("llama-a");
    let model = golden.model();
    let layers = 0..model.info().n_layers();
    let batch = golden.batch();
    let mut before = everything(&model);
    model.run(&batch, &mut before).unwrap();
    let vector = Tensor::new(vec![1f32; model.info().d_model], &Device::Cpu).unwrap();
    let edits = edit(
        &model,
        &[
            ("blocks.0.hook_resid_post", "all", "3-4", Edit::Add(vector)),
            ("blocks.1.attn.hook_z", "2", "5", Edit::Zero),
        ],
    );
    let mut after = everything(&model);
    forward(&model, &batch, Input::Tokens, layers, &edits, &mut after);
    for (&request, tokens) in &golden.prompts {
        let of = |cache: &ActivationCache| {
            let logits = cache.get(request, HookPoint::LOGITS).unwrap();
            logits.to_vec2::<f32>().unwrap()
        };
        let (before, after) = (of(&before), of(&after));
        for position in 0..tokens.len() {
            assert_eq!(before[position] == after[position], position < 3, "{request} {position}");
        }
    }
}

#[test]
fn edits_of_a_last_position_meet_logits_of_the_last_position() {
    let golden = Golden::load("llama-a");
    let model = golden.model();
    let layers = 0..model.info().n_layers();
    let edits = edit(&model, &[("ln_final.hook_normalized", "all", "last", Edit::Zero)]);
    let mut logits = some(&model, &["logits"], &Wanted::positions(Positions::last()));
    forward(&model, &golden.batch(), Input::Tokens, layers, &edits, &mut logits);
    for &request in golden.prompts.keys() {
        let logits = logits.get(request, HookPoint::LOGITS).unwrap();
        assert_eq!(logits.dim(0).unwrap(), 1);
        assert!(values(&logits).into_iter().all(|logit| logit == 0.0));
    }
}

/// Fails when a layer ends.
struct Failing;

#[derive(Debug, thiserror::Error)]
#[error("the disk is full")]
struct DiskFull;

impl ActivationSink for Failing {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        let mut plan = Plan::default();
        plan.add(HookPoint::LOGITS, &Wanted::all(), info)?;
        Ok(plan)
    }
    fn record(&mut self, _: HookPoint, _: &Activation<'_>) -> hooks::Result<()> {
        Ok(())
    }
    fn end_layer(&mut self, _: usize) -> hooks::Result<()> {
        Err(hooks::Error::sink(DiskFull))
    }
}

#[test]
fn a_sinks_error_arrives_unchanged() {
    let model = Folder::llama().write().load().unwrap();
    let error = model.run(&single(0, &[1]), &mut Failing).unwrap_err();
    assert_eq!(error.to_string(), "the disk is full");
    assert!(matches!(error, Error::Hooks(hooks::Error::Sink(_))));
}

#[test]
fn a_plan_for_another_model_is_refused() {
    let llama = Folder::llama().write().load().unwrap();
    let mixtral = Folder::mixtral().write().load().unwrap();
    let mut sink = Counter { plan: Plan::default(), calls: Vec::new() };
    let point = "blocks.0.mlp.hook_router_logits".parse().unwrap();
    sink.plan.add(point, &Wanted::all(), mixtral.info()).unwrap();
    assert!(matches!(llama.session(&mut sink), Err(Error::Hooks(hooks::Error::Absent { .. }))));
}

#[test]
fn one_model_serves_several_threads() {
    let golden = Golden::load("mixtral-a");
    let model = golden.model();
    let run = |_| {
        let mut logits = some(&model, &["logits"], &Wanted::all());
        model.run(&golden.batch(), &mut logits).unwrap();
        model.run(&golden.batch(), &mut NoSink).unwrap();
        bits(&logits.get(0, HookPoint::LOGITS).unwrap())
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|i| scope.spawn(move || run(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}
