//! Every hook point of every golden model against transformers, alone, in a
//! batch, and through the key-value cache.
//!
//! With `EIGENLENS_PARITY_TABLE=FILE` the largest relative differences are
//! written there, by hook point and family.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use candle_core::DType;
use common::{Golden, at, bits, compare_indices, difference, everything, per_token, single};
use hooks::{ActivationCache, HookPoint, Positions, Site, Wanted};
use runner::{Error, Input, KvCache, Model};

/// Largest difference over the largest expected magnitude of the tensor.
const TOLERANCE: f64 = 1e-4;
/// The same against a computation in `bf16` (8 bits of precision) throughout. Scores
/// of some tens are off by tenths, and patterns by their exponentials: 0.095 was seen.
const BF16_TOLERANCE: f64 = 1.5e-1;
/// The same against a computation in `f16` (11 bits); 0.0027 was seen.
const F16_TOLERANCE: f64 = 5e-3;

fn run(model: &Model, golden: &Golden, request: u64) -> ActivationCache {
    let mut cache = everything(model);
    model.run(&single(request, &golden.prompts[&request]), &mut cache).unwrap();
    cache
}

#[test]
fn every_hook_point_agrees_with_transformers() {
    let mut table: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for golden in Golden::all() {
        let model = golden.model();
        let family = model.info().family.clone();
        let mut covered = BTreeSet::new();
        for &request in golden.prompts.keys() {
            let cache = run(&model, &golden, request);
            let expected = |point: HookPoint| &golden.expected[&format!("{request}/{point}")];
            for point in model.info().points().into_iter().filter(|p| p.site() != Site::Summary) {
                let what = format!("{} {request}/{point}", golden.name);
                covered.insert(format!("{request}/{point}"));
                let got = cache.get(request, point).unwrap();
                if point.site() == Site::ExpertIndices {
                    let probs = HookPoint::layer(Site::RouterProbs, point.layer_index().unwrap());
                    let compared = compare_indices(&what, &got, expected(point), expected(probs));
                    assert_eq!(compared, got.elem_count(), "{what}: the golden margins are wide");
                    continue;
                }
                let difference = difference(&what, &got, expected(point));
                assert!(difference <= TOLERANCE, "{what}: {difference:.2e}");
                let entry = table
                    .entry(point.site().template().replace("{l}", "*"))
                    .or_default()
                    .entry(family.clone())
                    .or_default();
                *entry = entry.max(difference);
            }
        }
        let keys: BTreeSet<_> = golden.expected.keys().cloned().collect();
        assert_eq!(covered, keys, "{}: points compared and points expected", golden.name);
    }
    if let Ok(path) = std::env::var("EIGENLENS_PARITY_TABLE") {
        std::fs::write(path, render(&table)).unwrap();
    }
}

fn render(table: &BTreeMap<String, BTreeMap<String, f64>>) -> String {
    let families: BTreeSet<_> = table.values().flat_map(BTreeMap::keys).collect();
    let mut text = "| hook point |".to_owned();
    families.iter().for_each(|family| write!(text, " {family} |").unwrap());
    write!(text, "\n|---|{}\n", "---|".repeat(families.len())).unwrap();
    for site in Site::ALL {
        let name = site.template().replace("{l}", "*");
        let Some(row) = table.get(&name) else { continue };
        write!(text, "| `{name}` |").unwrap();
        for family in &families {
            match row.get(*family) {
                Some(value) => write!(text, " {value:.1e} |").unwrap(),
                None => text.push_str(" |"),
            }
        }
        text.push('\n');
    }
    text
}

#[test]
fn batched_equals_single_bit_for_bit() {
    for golden in Golden::all() {
        let model = golden.model();
        let mut batched = everything(&model);
        model.run(&golden.batch(), &mut batched).unwrap();
        for &request in golden.prompts.keys() {
            let alone = run(&model, &golden, request);
            for point in model.info().points() {
                let (one, many) = (alone.get(request, point), batched.get(request, point));
                let what = format!("{} {request}/{point}", golden.name);
                assert_eq!(bits(&one.unwrap()), bits(&many.unwrap()), "{what}");
            }
        }
    }
}

#[test]
fn decoding_through_the_cache_equals_prefill() {
    let mut n_switched = 0;
    for golden in Golden::all() {
        let model = golden.model();
        let layers = 0..model.info().n_layers();
        for (&request, tokens) in &golden.prompts {
            let whole = run(&model, &golden, request);
            for first in [1, tokens.len() / 2, tokens.len() - 1] {
                if first == 0 {
                    continue;
                }
                let mut sink = everything(&model);
                let session = model.session(&mut sink).unwrap();
                let mut cache = KvCache::new();
                let steps = std::iter::once((0, &tokens[..first]))
                    .chain((first..tokens.len()).map(|i| (i, &tokens[i..i + 1])));
                let mut switched = false;
                for (offset, tokens) in steps {
                    let batch = at(request, tokens, offset);
                    let (edits, layers) = (hooks::Edits::default(), layers.clone());
                    let run = session.forward(
                        &batch,
                        Input::Tokens,
                        layers,
                        &mut cache,
                        &edits,
                        &mut sink,
                    );
                    // Where a longer sequence is rotated otherwise, the cache cannot go on.
                    if let Err(Error::FrequencySwitch { at, length, .. }) = run {
                        assert_eq!((offset, length), (at, at + 1), "{}", golden.name);
                        assert_eq!(model.info().family, "phi3");
                        switched = true;
                        break;
                    }
                    run.unwrap();
                }
                if switched {
                    n_switched += 1;
                    continue;
                }
                for point in model.info().points().into_iter().filter(|p| per_token(*p)) {
                    let what = format!("{} {request}/{point} after {first}", golden.name);
                    let (steps, prefill) = (sink.get(request, point), whole.get(request, point));
                    assert_eq!(bits(&steps.unwrap()), bits(&prefill.unwrap()), "{what}");
                }
            }
        }
    }
    assert!(n_switched > 0, "no golden model changes its frequencies");
}

/// Weights in half precision become `f32` here; transformers, asked to, computes in
/// their type. The two differ by that type's rounding, which each layer adds to.
#[test]
fn half_precision_weights_agree_with_computing_in_half_precision() {
    let mut seen = BTreeSet::new();
    for golden in Golden::all() {
        let Some(own) = golden.own_dtype() else { continue };
        let model = golden.model();
        for &request in golden.prompts.keys() {
            let cache = run(&model, &golden, request);
            for point in model.info().points().into_iter().filter(|p| p.site() != Site::Summary) {
                let expected = &own[&format!("{request}/{point}")];
                let tolerance = match expected.dtype() {
                    DType::BF16 => BF16_TOLERANCE,
                    DType::F16 => F16_TOLERANCE,
                    other => panic!("{}: {other:?}", golden.name),
                };
                seen.insert(format!("{:?}", expected.dtype()));
                let got = cache.get(request, point).unwrap();
                let difference = difference(&point.to_string(), &got, expected);
                let what = format!("{} {request}/{point}", golden.name);
                assert!(difference <= tolerance, "{what}: {difference:.2e}");
            }
        }
    }
    assert!(seen.iter().map(String::as_str).eq(["BF16", "F16"]), "{seen:?}");
}

#[test]
fn ragged_rows_decode_together() {
    for name in ["llama-c", "mixtral-a"] {
        let golden = Golden::load(name);
        let model = golden.model();
        let wanted = Wanted::positions(Positions::last());
        let mut sink = common::some(&model, &["logits"], &wanted);
        let session = model.session(&mut sink).unwrap();
        let mut cache = KvCache::new();
        let layers = 0..model.info().n_layers();
        let edits = hooks::Edits::default();
        // Rows of unequal length, then the same three tokens behind each.
        let mut batch = golden.batch();
        let mut sequences: Vec<_> = batch.rows().iter().map(|row| row.tokens.clone()).collect();
        for step in [None, Some(5), Some(11), Some(3)] {
            if let Some(token) = step {
                let rows = sequences.iter_mut().enumerate().map(|(request, sequence)| {
                    sequence.push(token);
                    hooks::Row {
                        request: request as u64,
                        tokens: vec![token],
                        offset: sequence.len() - 1,
                    }
                });
                batch = hooks::Batch::new(rows.collect()).unwrap();
            }
            sink.clear();
            session
                .forward(&batch, Input::Tokens, layers.clone(), &mut cache, &edits, &mut sink)
                .unwrap();
            for (request, sequence) in sequences.iter().enumerate() {
                let mut alone = common::some(&model, &["logits"], &wanted);
                model.run(&single(0, sequence), &mut alone).unwrap();
                let (got, expected) =
                    (sink.get(request as u64, HookPoint::LOGITS), alone.get(0, HookPoint::LOGITS));
                assert_eq!(bits(&got.unwrap()), bits(&expected.unwrap()), "{name} row {request}");
            }
        }
    }
}

#[test]
fn chosen_heads_and_positions_are_those_of_the_whole() {
    for name in ["llama-b", "mixtral-b"] {
        let golden = Golden::load(name);
        let model = golden.model();
        let mut whole = everything(&model);
        model.run(&golden.batch(), &mut whole).unwrap();
        for (heads, positions) in
            [("1-2", "last"), ("0,3", "2-4"), ("all", "0,last"), ("2", "40-50")]
        {
            let wanted =
                Wanted { heads: heads.parse().unwrap(), positions: positions.parse().unwrap() };
            let mut plan = hooks::Plan::default();
            for point in model.info().points().into_iter().filter(|p| p.site() != Site::Summary) {
                plan.add(point, &wanted, model.info()).unwrap();
            }
            let mut chosen = ActivationCache::new(plan.clone());
            model.run(&golden.batch(), &mut chosen).unwrap();
            for (request, point) in whole.keys().filter(|(_, p)| p.site() != Site::Summary) {
                let all = whole.get(request, point).unwrap();
                let row = hooks::Activation::new(
                    &all.unsqueeze(0).unwrap(),
                    &single(request, &golden.prompts[&request]),
                )
                .select(point, 0, plan.wants(point).unwrap())
                .unwrap();
                let got = chosen.get(request, point).unwrap();
                let what = format!("{name} {request}/{point} {heads} {positions}");
                assert_eq!(got.dims(), row.dims(), "{what}");
                assert_eq!(bits(&got), bits(&row), "{what}");
            }
        }
    }
}
