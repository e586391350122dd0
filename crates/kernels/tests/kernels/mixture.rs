use candle_core::{Device, Tensor};
use kernels::Error;
use kernels::activation::ActivationFunction;
use kernels::linear::Linear;
use kernels::moe::{Experts, moe};
use kernels::reference;
use kernels::router::{Routing, Selection, route};
use testkit::cases::ROUTER;
use testkit::{Data, Tolerance, assert_tensor_bits, assert_tensor_close, guarded};

use crate::on_threads;

const RULES: [Selection; 2] =
    [Selection::SoftmaxTopK { renormalise: false }, Selection::SoftmaxTopK { renormalise: true }];

#[test]
fn route_is_the_reference() {
    for (n, e, k) in ROUTER {
        for rule in RULES {
            let Selection::SoftmaxTopK { renormalise } = rule else { unreachable!() };
            let logits = Data::new(e as u64).tensor(&[n, e]);
            let (mut probs, mut indices, mut weights) = (vec![], vec![], vec![]);
            for row in logits.to_vec2::<f32>().unwrap() {
                let (p, chosen, w) = reference::route_softmax_top_k(&row, k, renormalise);
                probs.extend(p);
                indices.extend(chosen);
                weights.extend(w);
            }
            let routing = route(&guarded(&logits), k, rule).unwrap();
            let tolerance = Tolerance::relative(5e-7, "an f32 exponential of a rounded difference");
            assert_tensor_close("probs", &routing.probs, &[n, e], &probs, tolerance);
            assert_tensor_close("weights", &routing.weights, &[n, k], &weights, tolerance);
            assert_eq!(routing.indices.dims(), [n, k]);
            let got: Vec<u32> = routing.indices.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(got, indices);
        }
    }
}

#[test]
fn ties_go_to_the_lower_index() {
    let logits = Tensor::new(&[[1f32, 3.0, 3.0, 1.0, 3.0]], &Device::Cpu).unwrap();
    let routing = route(&logits, 4, RULES[0]).unwrap();
    assert_eq!(routing.indices.to_vec2::<u32>().unwrap(), [[1, 2, 4, 0]]);
    let logits = Tensor::new(&[[0f32; 6]], &Device::Cpu).unwrap();
    let routing = route(&logits, 3, RULES[1]).unwrap();
    assert_eq!(routing.indices.to_vec2::<u32>().unwrap(), [[0, 1, 2]]);
    assert_eq!(routing.weights.to_vec2::<f32>().unwrap(), [[1.0 / 3.0; 3]]);
}

#[test]
fn nan_logits_do_not_panic() {
    let logits =
        Tensor::new(&[[f32::NAN, 1.0, 2.0], [f32::NEG_INFINITY, 0.0, 0.0]], &Device::Cpu).unwrap();
    let routing = route(&logits, 3, RULES[0]).unwrap();
    assert_eq!(routing.indices.to_vec2::<u32>().unwrap(), [[2, 1, 0], [1, 2, 0]]);
    let probs = routing.probs.to_vec2::<f32>().unwrap();
    assert!(probs[0].iter().all(|p| p.is_nan()));
    assert_eq!(probs[1], [0.0, 0.5, 0.5]);
}

#[test]
fn route_refuses() {
    let logits = Data::new(1).tensor(&[2, 4]);
    for k in [0, 5] {
        assert!(matches!(route(&logits, k, RULES[0]), Err(Error::Range { what: "k", .. })));
    }
    let flat = logits.flatten_all().unwrap();
    assert!(matches!(route(&flat, 1, RULES[0]), Err(Error::Shape { .. })));
}

struct Mixture {
    x: Tensor,
    routing: Routing,
    experts: Experts,
    weights: Vec<[Tensor; 3]>,
}

fn mixture(n: usize, d: usize, m: usize, e: usize, k: usize) -> Mixture {
    let mut data = Data::new((n + d + m) as u64);
    let weights: Vec<[Tensor; 3]> = (0..e)
        .map(|_| [data.tensor(&[m, d]), data.tensor(&[m, d]), data.tensor(&[d, m])])
        .collect();
    let dense = |weight: &Tensor| Linear::dense(weight, None).unwrap();
    let gate_up = weights.iter().map(|[gate, up, _]| dense(&Tensor::cat(&[gate, up], 0).unwrap()));
    let down = weights.iter().map(|[_, _, down]| dense(down));
    let experts = Experts::new(gate_up.collect(), down.collect()).unwrap();
    let x = data.tensor(&[n, d]);
    let routing = route(&data.tensor(&[n, e]), k, RULES[1]).unwrap();
    Mixture { x, routing, experts, weights }
}

#[test]
fn moe_is_the_reference() {
    for (n, d, m, e, k) in [(0, 8, 4, 3, 2), (1, 8, 5, 4, 2), (50, 33, 17, 8, 2), (9, 16, 48, 2, 2)]
    {
        let Mixture { x, routing, experts, weights } = mixture(n, d, m, e, k);
        assert_eq!(experts.n_experts(), e);
        let flat: Vec<[Vec<f32>; 3]> = weights
            .iter()
            .map(|w| w.each_ref().map(|w| w.flatten_all().unwrap().to_vec1().unwrap()))
            .collect();
        let indices = routing.indices.to_vec2::<u32>().unwrap();
        let shares = routing.weights.to_vec2::<f32>().unwrap();
        let mut expected = Vec::new();
        for (token, x) in x.to_vec2::<f32>().unwrap().iter().enumerate() {
            let chosen: Vec<(f32, [&[f32]; 3])> = indices[token]
                .iter()
                .zip(&shares[token])
                .map(|(&i, &w)| (w, flat[i as usize].each_ref().map(Vec::as_slice)))
                .collect();
            expected.extend(reference::moe_token(x, &chosen, ActivationFunction::Silu));
        }
        let y = moe(&guarded(&x), &routing, &experts, ActivationFunction::Silu).unwrap();
        let tolerance = Tolerance::of_max(2e-6, "three products in a row in f32");
        assert_tensor_close("moe", &y, &[n, d], &expected, tolerance);
    }
}

#[test]
fn a_token_does_not_depend_on_the_others() {
    let Mixture { x, routing, experts, .. } = mixture(90, 128, 128, 8, 2);
    let run = |x: &Tensor, routing: &Routing| {
        moe(x, routing, &experts, ActivationFunction::Silu).unwrap()
    };
    let whole = on_threads(1, || run(&x, &routing));
    assert_tensor_bits("threads", &on_threads(2, || run(&x, &routing)), &whole);
    for (start, len) in [(0, 1), (17, 1), (89, 1), (5, 2), (30, 60)] {
        let part = |tensor: &Tensor| tensor.narrow(0, start, len).unwrap();
        let routing = Routing {
            probs: part(&routing.probs),
            indices: part(&routing.indices),
            weights: part(&routing.weights),
        };
        assert_tensor_bits("part", &run(&part(&x), &routing), &part(&whole));
    }
}

#[test]
fn moe_refuses() {
    let Mixture { x, routing, experts, .. } = mixture(3, 8, 4, 3, 2);
    let f = ActivationFunction::Silu;
    let narrow = Data::new(1).tensor(&[3, 7]);
    assert!(matches!(moe(&narrow, &routing, &experts, f), Err(Error::Shape { what: "x", .. })));
    let fewer = x.narrow(0, 0, 2).unwrap();
    assert!(matches!(moe(&fewer, &routing, &experts, f), Err(Error::Shape { .. })));
    let mut wrong = routing.clone();
    wrong.indices = Tensor::new(&[[0u32, 1], [2, 3], [0, 1]], &Device::Cpu).unwrap();
    assert!(matches!(moe(&x, &wrong, &experts, f), Err(Error::Range { .. })));
    let layer = |d_out, d_in| Linear::dense(&Data::new(1).tensor(&[d_out, d_in]), None).unwrap();
    assert!(Experts::new(vec![], vec![]).is_err());
    assert!(Experts::new(vec![layer(8, 4)], vec![layer(4, 4), layer(4, 4)]).is_err());
    assert!(Experts::new(vec![layer(7, 4)], vec![layer(4, 4)]).is_err());
    assert!(Experts::new(vec![layer(8, 4)], vec![layer(5, 4)]).is_err());
}
