use std::cell::Cell;

use candle_core::{DType, Device, Tensor};
use kernels::activation::ActivationFunction;
use kernels::cuda::moe::{Tiles, group, moe};
use kernels::cuda::{Machine, Plan};
use kernels::router::Routing;
use kernels::{Error, Result, reference};
use testkit::cases::MOE;
use testkit::{Data, Tolerance, assert_tensor_bits, assert_tensor_close};

use super::{DTYPES, layouts, numbers, rounded};
use crate::machine::{EFFORTS, Effort, run};

const SILU: ActivationFunction = ActivationFunction::Silu;

thread_local! {
    static EFFORT: Cell<Effort> = const { Cell::new(EFFORTS[0]) };
}

/// The machine that runs plans with the effort that this thread has chosen.
const MACHINE: Machine = |plan: &Plan| Ok(run(plan, EFFORT.get()).unwrap());

/// What `operation` gives with each effort that `elements` allow, which must be the same.
fn with_all<R: PartialEq + std::fmt::Debug>(elements: usize, operation: impl Fn() -> R) -> R {
    let mut results = EFFORTS.into_iter().filter(|effort| elements <= effort.elements()).map(|e| {
        EFFORT.set(e);
        let result = operation();
        EFFORT.set(EFFORTS[0]);
        result
    });
    let first = results.next().unwrap();
    results.for_each(|result| assert!(result == first, "another order gives other bits"));
    first
}

/// How routed entries spread over the experts.
#[derive(Clone, Copy, Debug)]
enum Spread {
    Even,
    /// Many to the first experts, none to some.
    Skewed,
    One,
}

struct Mixture {
    x: Tensor,
    routing: Routing,
    gate_up: Tensor,
    down: Tensor,
}

/// Numbers of a size that leaves products near 1.
fn mixture((n, d, m, e, k): (usize, usize, usize, usize, usize), spread: Spread) -> Mixture {
    let mut data = Data::new((n * 7 + d * 5 + m * 3 + e + k) as u64);
    let indices: Vec<u32> = (0..n * k)
        .map(|_| match spread {
            Spread::Even => data.below(e) as u32,
            Spread::Skewed => (data.below(e) * data.below(e) / e) as u32,
            Spread::One => (e / 2) as u32,
        })
        .collect();
    let mut scaled = |dims: &[usize], width: usize| {
        data.tensor(dims).affine((width as f64).powf(-0.5), 0.0).unwrap()
    };
    let gate_up = scaled(&[e, 2 * m, d], d);
    let down = scaled(&[e, d, m], m);
    let weights = scaled(&[n, k], k);
    let x = data.tensor(&[n, d]);
    let indices = Tensor::from_vec(indices, (n, k), &Device::Cpu).unwrap();
    // Nobody reads the probabilities.
    let routing = Routing { probs: weights.clone(), indices, weights };
    Mixture { x, routing, gate_up, down }
}

impl Mixture {
    fn to_dtype(&self, dtype: DType) -> Self {
        let to = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap();
        let routing = self.routing.clone();
        Self { x: to(&self.x), routing, gate_up: to(&self.gate_up), down: to(&self.down) }
    }

    fn run(&self, f: ActivationFunction) -> Result<Tensor> {
        moe(MACHINE, &self.x, &self.routing, &self.gate_up, &self.down, f)
    }

    fn indices(&self) -> Vec<u32> {
        self.routing.indices.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn expected(&self, f: ActivationFunction) -> Vec<f64> {
        let (&[e, d, m], k) = (self.down.dims(), self.routing.indices.dims()[1]) else {
            panic!("the weights of experts")
        };
        let (gate_up, down) = (numbers(&self.gate_up), numbers(&self.down));
        let (indices, shares) = (self.indices(), numbers(&self.routing.weights));
        let experts: Vec<[&[f32]; 3]> = (0..e)
            .map(|i| {
                let (gate, up) = gate_up[i * 2 * m * d..][..2 * m * d].split_at(m * d);
                [gate, up, &down[i * d * m..][..d * m]]
            })
            .collect();
        numbers(&self.x)
            .chunks(d)
            .zip(indices.chunks(k).zip(shares.chunks(k)))
            .flat_map(|(x, (indices, shares))| {
                let chosen: Vec<_> = shares
                    .iter()
                    .zip(indices)
                    .map(|(&share, &index)| (share, experts[index as usize]))
                    .collect();
                reference::moe_token(x, &chosen, f)
            })
            .collect()
    }

    /// Tokens `start ..` of the same experts.
    fn part(&self, start: usize, length: usize) -> Self {
        let part = |tensor: &Tensor| tensor.narrow(0, start, length).unwrap();
        let Routing { probs, indices, weights } = &self.routing;
        let routing =
            Routing { probs: part(probs), indices: part(indices), weights: part(weights) };
        let (gate_up, down) = (self.gate_up.clone(), self.down.clone());
        Self { x: part(&self.x), routing, gate_up, down }
    }
}

fn tolerance(dtype: DType) -> Tolerance {
    let (of_max, reason) = match dtype {
        DType::BF16 => (2f64.powi(-8), "the hidden layer's rounding to bf16, and the result's"),
        DType::F16 => (2f64.powi(-11), "the hidden layer's rounding to f16, and the result's"),
        _ => (2e-6, "three products in a row in f32"),
    };
    rounded(dtype, Tolerance::of_max(of_max, reason))
}

/// Whether the mixture is the reference, for both layouts of `x`, with the same bits.
#[track_caller]
fn check(what: &str, mixture: &Mixture, dtype: DType, f: ActivationFunction) {
    let mut own = mixture.to_dtype(dtype);
    let expected = own.expected(f);
    let elements = mixture.x.elem_count() * mixture.routing.indices.dims()[1];
    for x in layouts(&mixture.x, dtype) {
        own.x = x;
        let y = with_all(elements, || {
            let y = own.run(f).unwrap();
            assert_eq!(y.dtype(), dtype);
            assert_eq!(y.dims(), mixture.x.dims());
            Bits(y)
        });
        let what = format!("{what} {dtype:?}");
        assert_tensor_close(&what, &y.0, mixture.x.dims(), &expected, tolerance(dtype));
    }
}

/// A tensor that is equal to one with the same bits.
#[derive(Debug)]
struct Bits(Tensor);

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        let bits = |tensor: &Tensor| numbers(tensor).into_iter().map(f32::to_bits);
        self.0.dims() == other.0.dims() && bits(&self.0).eq(bits(&other.0))
    }
}

#[test]
fn moe_is_the_reference() {
    for case in MOE {
        for dtype in DTYPES {
            for spread in [Spread::Even, Spread::Skewed, Spread::One] {
                let what = format!("{case:?} {spread:?}");
                check(&what, &mixture(case, spread), dtype, SILU);
            }
        }
    }
}

#[test]
fn every_activation_function() {
    use ActivationFunction::{Gelu, GeluTanh, Relu};
    for case in [(3, 24, 40, 4, 2), (20, 24, 40, 4, 2), (100, 24, 40, 2, 2)] {
        for f in [Gelu, GeluTanh, Relu] {
            for dtype in DTYPES {
                check(&format!("{f:?} {case:?}"), &mixture(case, Spread::Even), dtype, f);
            }
        }
    }
}

#[test]
fn a_token_does_not_depend_on_the_others() {
    for dtype in DTYPES {
        // Tall tiles, and flat ones for parts of the same.
        for (n, parts) in [(300, [(0, 9), (17, 30), (100, 200)]), (8, [(0, 1), (3, 4), (7, 1)])] {
            let whole = mixture((n, 40, 72, 3, 2), Spread::Even).to_dtype(dtype);
            let y = whole.run(SILU).unwrap();
            for (start, length) in parts {
                let part = whole.part(start, length).run(SILU).unwrap();
                let what = format!("{length} of {n} tokens in {dtype:?}");
                assert_tensor_bits(&what, &part, &y.narrow(0, start, length).unwrap());
            }
        }
    }
}

#[test]
fn rows_of_x_at_other_strides() {
    for dtype in DTYPES {
        for n in [4, 30] {
            let Mixture { routing, gate_up, down, .. } =
                mixture((n, 40, 24, 3, 2), Spread::Even).to_dtype(dtype);
            let mut data = Data::new(9);
            // 16 bytes can be read at once of the first, of one row for all, not of the last.
            let views = [
                data.tensor(&[n, 64]).to_dtype(dtype).unwrap().narrow(1, 16, 40).unwrap(),
                data.tensor(&[1, 40]).to_dtype(dtype).unwrap().broadcast_as((n, 40)).unwrap(),
                data.tensor(&[n, 43]).to_dtype(dtype).unwrap().narrow(1, 1, 40).unwrap(),
            ];
            for x in views {
                let whole = x.contiguous().unwrap();
                let of = |x: &Tensor| moe(MACHINE, x, &routing, &gate_up, &down, SILU).unwrap();
                assert_tensor_bits(&format!("{n} {dtype:?}"), &of(&x), &of(&whole));
            }
        }
    }
}

#[test]
fn indices_that_are_no_experts_make_their_tokens_nan() {
    for dtype in DTYPES {
        for (n, e) in [(5, 3), (60, 3), (400, 3), (60, 512)] {
            let mut whole = mixture((n, 24, 40, e, 2), Spread::Even).to_dtype(dtype);
            let good = numbers(&whole.run(SILU).unwrap());
            let mut indices = whole.indices();
            let bad = [(0, 0, e as u32), (n / 2, 1, u32::MAX), (n - 1, 0, 1 << 31)];
            for (token, rank, index) in bad {
                indices[token * 2 + rank] = index;
            }
            whole.routing.indices = Tensor::from_vec(indices, (n, 2), &Device::Cpu).unwrap();
            let y = with_all(n * 24, || Bits(whole.run(SILU).unwrap())).0;
            for (token, (y, good)) in numbers(&y).chunks(24).zip(good.chunks(24)).enumerate() {
                if bad.iter().any(|bad| bad.0 == token) {
                    assert!(y.iter().all(|y| y.is_nan()), "token {token} of {n}, {dtype:?}");
                } else {
                    testkit::assert_bits(&format!("token {token} of {n}, {dtype:?}"), y, good);
                }
            }
        }
    }
}

#[test]
fn no_number_leaves_its_token_or_its_expert() {
    for dtype in DTYPES {
        for n in [6, 40, 300] {
            let mut whole = mixture((n, 33, 17, 4, 2), Spread::Even).to_dtype(dtype);
            // Nobody goes to expert 2, whose weights are NaN; one token is NaN.
            let indices: Vec<u32> =
                whole.indices().into_iter().map(|i| if i == 2 { 3 } else { i }).collect();
            whole.routing.indices = Tensor::from_vec(indices, (n, 2), &Device::Cpu).unwrap();
            let expected = numbers(&whole.run(SILU).unwrap());
            let spoil = |tensor: &Tensor, axis_0: usize| {
                let size = tensor.elem_count() / tensor.dims()[0];
                let mut values = numbers(tensor);
                values[axis_0 * size..][..size].fill(f32::NAN);
                let spoilt = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap();
                spoilt.to_dtype(dtype).unwrap()
            };
            whole.gate_up = spoil(&whole.gate_up, 2);
            whole.down = spoil(&whole.down, 2);
            whole.x = spoil(&whole.x, 3);
            let y = numbers(&whole.run(SILU).unwrap());
            for (i, (y, expected)) in y.iter().zip(expected).enumerate() {
                if i / 33 == 3 {
                    assert!(y.is_nan(), "{i} of {n} tokens, {dtype:?}");
                } else {
                    assert_eq!(y.to_bits(), expected.to_bits(), "{i} of {n} tokens, {dtype:?}");
                }
            }
        }
    }
}

/// What [`group`] gives, by comparison and `usize`.
fn sorted(indices: &[u32], e: usize, rows: usize) -> [Vec<u32>; 3] {
    let bin = |slot: u32| (indices[slot as usize] as usize).min(e);
    let mut slots: Vec<u32> = (0..indices.len() as u32).collect();
    slots.sort_by_key(|&slot| (bin(slot), slot));
    let mut starts = vec![0];
    let mut tiles = vec![0];
    for expert in 0..e {
        let count = slots.iter().filter(|&&slot| bin(slot) == expert).count();
        starts.push(starts[expert] + count as u32);
        tiles.push(tiles[expert] + count.div_ceil(rows) as u32);
    }
    [slots, starts, tiles]
}

#[test]
fn slots_are_sorted() {
    for (n, k, e) in [
        (1, 1, 1),
        (1, 3, 2),
        (31, 1, 5),
        (16, 16, 512),
        (1024, 2, 8),
        (2047, 1, 3),
        (2049, 1, 64),
        (700, 7, 511),
        (10_000, 8, 128),
        (300_000, 1, 6),
    ] {
        for spread in [Spread::Even, Spread::Skewed, Spread::One] {
            let mut indices = mixture((n, 1, 1, e, k), spread).indices();
            // Some that are no experts.
            indices.iter_mut().skip(5).step_by(97).for_each(|index| *index += e as u32);
            for tiles in [Tiles::Tall, Tiles::Flat] {
                let expected = sorted(&indices, e, tiles.rows());
                let indices = Tensor::from_slice(&indices, (n, k), &Device::Cpu).unwrap();
                // The longest in one order.
                let got = with_all((n * k).min(200_000), || {
                    let groups = group(MACHINE, &indices, e, tiles).unwrap();
                    [groups.slots, groups.starts, groups.tiles]
                        .map(|tensor| tensor.to_vec1::<u32>().unwrap())
                });
                assert!(got == expected, "{n} × {k} of {e}, {spread:?}, {tiles:?}");
            }
        }
    }
}

#[test]
fn no_slots_are_no_launch() {
    thread_local! {
        static LAUNCHES: Cell<usize> = const { Cell::new(0) };
    }
    let machine: Machine = |plan| {
        LAUNCHES.set(LAUNCHES.get() + usize::from(plan.call.is_some()));
        MACHINE(plan)
    };
    let Mixture { x, routing, gate_up, down } = mixture((0, 8, 4, 3, 2), Spread::Even);
    let y = moe(machine, &x, &routing, &gate_up, &down, SILU).unwrap();
    assert_eq!((y.dims(), LAUNCHES.get()), (&[0, 8][..], 0));
    let groups = group(machine, &routing.indices, 3, Tiles::Flat).unwrap();
    assert_eq!((groups.slots.dims(), LAUNCHES.get()), (&[0][..], 0));
}

#[test]
fn moe_refuses() {
    let good = mixture((9, 8, 4, 3, 2), Spread::Even);
    assert!(good.run(SILU).is_ok());
    let refused = |change: &dyn Fn(&mut Mixture)| {
        let mut bad = good.to_dtype(DType::F32);
        change(&mut bad);
        bad.run(SILU).unwrap_err()
    };
    let mut data = Data::new(1);
    for (what, dims) in [("x", &[9, 7][..]), ("x", &[9, 8, 1]), ("indices", &[8, 8])] {
        let x = data.tensor(dims);
        let error = refused(&|bad| bad.x = x.clone());
        assert!(matches!(error, Error::Shape { what: got, .. } if got == what), "{error}");
    }
    let across = data.tensor(&[8, 9]).t().unwrap();
    let error = refused(&|bad| bad.x = across.clone());
    assert!(matches!(error, Error::NonContiguous { what: "x", .. }), "{error}");
    let whole = good.x.to_dtype(DType::U8).unwrap();
    let error = refused(&|bad| bad.x = whole.clone());
    assert!(matches!(error, Error::Range { what: "dtype", .. }), "{error}");

    let error = refused(&|bad| bad.routing.indices = bad.routing.weights.clone());
    assert!(matches!(error, Error::DType { what: "indices", .. }), "{error}");
    let error = refused(&|bad| bad.routing.weights = bad.routing.indices.clone());
    assert!(matches!(error, Error::DType { what: "weights", .. }), "{error}");
    let error = refused(&|bad| bad.routing.weights = bad.routing.weights.narrow(1, 0, 1).unwrap());
    assert!(matches!(error, Error::Shape { what: "weights", .. }), "{error}");
    for k in [0, 17] {
        let more = data.tensor(&[9, k]);
        let error = refused(&|bad| {
            bad.routing.indices = more.to_dtype(DType::U32).unwrap();
            bad.routing.weights = more.clone();
        });
        assert!(matches!(error, Error::Range { what: "k", .. }), "{error}");
    }

    let halves = good.to_dtype(DType::F16);
    let error = refused(&|bad| bad.gate_up = halves.gate_up.clone());
    assert!(matches!(error, Error::DType { what: "gate_up", .. }), "{error}");
    let error = refused(&|bad| bad.down = halves.down.clone());
    assert!(matches!(error, Error::DType { what: "down", .. }), "{error}");
    let odd = data.tensor(&[3, 7, 8]);
    let error = refused(&|bad| bad.gate_up = odd.clone());
    assert!(matches!(error, Error::Shape { what: "gate_up", .. }), "{error}");
    let view = data.tensor(&[3, 9, 8]).narrow(1, 0, 8).unwrap();
    let error = refused(&|bad| bad.gate_up = view.clone());
    assert!(matches!(error, Error::NonContiguous { what: "gate_up", .. }), "{error}");
    for dims in [&[3, 8][..], &[3, 8, 0], &[3, 0, 4]] {
        let other = Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let error = refused(&|bad| bad.down = other.clone());
        assert!(matches!(error, Error::Shape { what: "down", .. }), "{error}");
    }
    for e in [0, 513] {
        let other = Tensor::zeros((e, 8, 4), DType::F32, &Device::Cpu).unwrap();
        let error = refused(&|bad| bad.down = other.clone());
        assert!(matches!(error, Error::Range { what: "the number of experts", .. }), "{error}");
    }

    let one = good.routing.indices.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap();
    let many = one.broadcast_as((1 << 28, 8)).unwrap();
    let error = group(MACHINE, &many, 3, Tiles::Flat).unwrap_err();
    assert!(matches!(error, Error::NonContiguous { what: "indices", .. }), "{error}");
    let error = moe(
        MACHINE,
        &good.x.narrow(0, 0, 1).unwrap().broadcast_as((1 << 28, 8)).unwrap(),
        &Routing { probs: many.clone(), indices: many.clone(), weights: many },
        &good.gate_up,
        &good.down,
        SILU,
    );
    let error = error.unwrap_err();
    let limit = "the number of routed entries";
    assert!(matches!(error, Error::Range { what, .. } if what == limit), "{error}");
}
