use analysis::Error;
use analysis::routing::{Accumulator, RoutingRows, RoutingSink, summary};
use candle_core::{Device, Tensor};
use hooks::{ActivationSink, LayerInfo, MlpInfo, ModelInfo, Selection, Site};
use serde_json::Value;

use super::{batch, close, golden, numbers, play};

fn size(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn info(n_experts: usize, k: usize) -> ModelInfo {
    let layer = |mlp| LayerInfo {
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 2,
        window: None,
        scale: 1.0,
        soft_cap: None,
        mlp,
        parallel_residual: false,
        pre_norms: true,
        rotary: true,
    };
    ModelInfo {
        layers: vec![
            layer(MlpInfo::Dense { d_mlp: 4 }),
            layer(MlpInfo::Mixture { n_experts, k }),
            layer(MlpInfo::Mixture { n_experts, k }),
        ],
        ..ModelInfo::example()
    }
}

/// The tokens `from..to` of a golden case, as a batch of one prompt.
fn tensors(case: &Value, from: usize, to: usize) -> Vec<(Site, Tensor)> {
    let (n, k) = (size(&case["n_experts"]), size(&case["k"]));
    let floats = |name: &str, width: usize| {
        let values: Vec<f32> = numbers(&case[name]).iter().map(|v| *v as f32).collect();
        let values = values[from * width..to * width].to_vec();
        Tensor::from_vec(values, (1, to - from, width), &Device::Cpu).unwrap()
    };
    let indices: Vec<u32> = numbers(&case["indices"]).iter().map(|v| *v as u32).collect();
    let indices = indices[from * k..to * k].to_vec();
    vec![
        (Site::RouterLogits, floats("logits", n)),
        (Site::RouterProbs, floats("probabilities", n)),
        (Site::ExpertIndices, Tensor::from_vec(indices, (1, to - from, k), &Device::Cpu).unwrap()),
        (Site::ExpertWeights, floats("weights", k)),
    ]
}

/// Routes pieces of a golden case as prompts of one layer each.
fn routed(case: &Value, pieces: &[(u64, usize, usize)]) -> RoutingRows {
    let mut sink = RoutingSink::new(Selection::All);
    let plan = sink.plan(&info(size(&case["n_experts"]), size(&case["k"]))).unwrap();
    for &(request, from, to) in pieces {
        let batch = batch(&[(request, to - from)]);
        for layer in 1..3 {
            play(&mut sink, &plan, &batch, layer, &tensors(case, from, to)).unwrap();
        }
    }
    sink.take()
}

#[test]
fn rows_are_the_golden_ones() {
    for case in golden("routing") {
        let n = size(&case["n_tokens"]);
        let rows = routed(&case, &[(4, 0, n)]);
        assert_eq!(rows.routing.iter().map(|row| row.layer).collect::<Vec<_>>(), [1, 2]);
        let statistics = rows.routing[0].statistics;
        assert_eq!(statistics.n_tokens, n as u64);
        for (column, got) in statistics.measures() {
            match case["measures"][column].as_f64() {
                None => assert_eq!(got, None, "{column}"),
                // Probabilities come as f32.
                Some(expected) => {
                    close(column, got.unwrap(), expected, 1e-6 * expected.abs().max(1.0));
                }
            }
        }
        let n_experts = size(&case["n_experts"]);
        assert_eq!(rows.experts.len(), 2 * n_experts);
        for (expert, row) in rows.experts[..n_experts].iter().enumerate() {
            assert_eq!((row.layer, row.load.expert), (1, expert));
            assert_eq!(case["slots"][expert], row.load.slots);
            assert_eq!(case["first_choices"][expert], row.load.first_choices);
            let expected = case["mean_probability"][expert].as_f64().unwrap();
            close("mean probability", row.load.mean_probability, expected, 1e-6);
            assert_eq!(row.load.mean_weight.is_none(), row.load.slots == 0);
        }
    }
}

#[test]
fn pieces_of_a_prompt_are_the_prompt_and_prompts_add_up() {
    let case = &golden("routing")[0];
    let n = size(&case["n_tokens"]);
    let whole = routed(case, &[(4, 0, n)]);
    let stepwise = routed(case, &[(4, 0, 11), (4, 11, 12), (4, 12, n)]);
    assert_eq!(stepwise, whole);

    let prompts = routed(case, &[(9, 0, 11), (2, 11, 12), (5, 12, n)]);
    let mut layers = summary(&prompts.routing, &prompts.experts).unwrap();
    assert_eq!(layers.len(), 2);
    let layer = layers.remove(0);
    assert_eq!((layer.layer, layer.n_requests), (1, 3));
    let expected = whole.routing[0].statistics;
    assert_eq!(layer.statistics.n_tokens, expected.n_tokens);
    for ((column, got), (_, expected)) in
        layer.statistics.measures().into_iter().zip(expected.measures())
    {
        close(column, got.unwrap(), expected.unwrap(), 1e-12 * expected.unwrap().abs().max(1.0));
    }
    for (got, expected) in layer.experts.iter().zip(&whole.experts) {
        assert_eq!((got.slots, got.share), (expected.load.slots, expected.load.share));
    }

    // The order of stored rows does not matter.
    let mut shuffled = prompts.clone();
    shuffled.routing.reverse();
    shuffled.experts.reverse();
    let again = summary(&shuffled.routing, &shuffled.experts).unwrap();
    assert_eq!(again, summary(&prompts.routing, &prompts.experts).unwrap());
}

#[test]
fn rows_that_do_not_belong_together_are_refused() {
    let cases = golden("routing");
    let (eight, four) = (routed(&cases[0], &[(0, 0, 5)]), routed(&cases[1], &[(1, 0, 5)]));
    let rows: Vec<_> = eight.routing.iter().chain(&four.routing).copied().collect();
    let experts: Vec<_> = eight.experts.iter().chain(&four.experts).copied().collect();
    assert!(matches!(summary(&rows, &experts), Err(Error::Rows { request: 1, .. })));
    assert!(matches!(
        summary(&eight.routing, &eight.experts[1..]),
        Err(Error::Rows { what: "number of expert rows", .. })
    ));
    let mut twice = eight.experts.clone();
    twice[1] = twice[0];
    assert!(matches!(summary(&eight.routing, &twice), Err(Error::Rows { what: "expert", .. })));
    assert!(summary(&[], &[]).unwrap().is_empty());
}

#[test]
fn a_model_without_mixtures_is_refused() {
    let mut sink = RoutingSink::new("0".parse().unwrap());
    let error = sink.plan(&info(4, 2)).unwrap_err();
    assert!(error.to_string().contains("mixture"), "{error}");
    assert!(RoutingSink::new("1".parse().unwrap()).plan(&info(4, 2)).is_ok());
    assert!(Accumulator::new(4, 2).statistics().is_none());
}

#[test]
fn bad_numbers_are_named() {
    let case = &golden("routing")[0];
    for site in [Site::RouterLogits, Site::RouterProbs, Site::ExpertWeights, Site::ExpertIndices] {
        let mut sink = RoutingSink::new(Selection::All);
        let plan = sink.plan(&info(8, 2)).unwrap();
        let mut tensors = tensors(case, 0, 5);
        for (at, tensor) in &mut tensors {
            if *at != site {
                continue;
            }
            let shape = tensor.dims().to_vec();
            *tensor = if site == Site::ExpertIndices {
                let mut values = tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap();
                values[7] = 8;
                Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
            } else {
                let mut values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let width = shape[2];
                values[3 * width + 1] = f32::NAN;
                Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
            };
        }
        let error = play(&mut sink, &plan, &batch(&[(6, 5)]), 2, &tensors).unwrap_err();
        let hooks::Error::Sink(error) = error else { panic!("{error}") };
        match *error.downcast::<Error>().unwrap() {
            Error::Captured { point, request: 6, index, .. } => {
                assert_eq!((point.site(), point.layer_index()), (site, Some(2)));
                assert_eq!(index, [3, 1]);
            }
            other => panic!("{other}"),
        }
    }
}
