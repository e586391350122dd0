//! The CUDA kernels, each timed alone by the GPU's own clock.
//!
//!     cargo bench -p kernels --features cuda --bench gpu            # every case
//!     cargo bench -p kernels --features cuda --bench gpu -- router  # those with `router` in their names
//!     … -- --list       # what there is, with each case's launches: needs no GPU
//!     … -- --serve      # times the case of each line of standard input, as scripts/gpu-check asks
//!
//! Output is a line of JSON for each case; times are microseconds. A run is what lies between two
//! events on the stream. Before each run a buffer larger than the second-level cache is cleared, so
//! that inputs come from memory, and the launch is queued while the GPU is still at that, so that
//! the host's time for it does not count. `benches/peers/gpu/kernels.py` does the same.
//!
//! A kernel has its lines in [`CASES`] and one in the peers'.

#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::io::BufRead;

use candle_core::{DType, Device, Tensor};
use cudarc::driver::sys::CUevent_flags;
use hooks::SummaryOptions;
use kernels::Result;
use kernels::activation::ActivationFunction::Silu;
use kernels::attention::AttentionOptions;
use kernels::cuda::attention_pattern::{QueriesAndKeys, attention_pattern};
use kernels::cuda::attention_summary::attention_summary;
use kernels::cuda::cache_append::{Input, cache_append};
use kernels::cuda::quantized::{self, Blocks};
use kernels::cuda::{self, Call, Machine, Plan};
use kernels::cuda::{activation, attention, layer_norm, moe, rms_norm, rotary, router, softmax};
use kernels::quantized::Encoding;
use kernels::router::Selection::SoftmaxTopK;
use serde_json::{Value, json};

const BF16: DType = DType::BF16;
const F32: DType = DType::F32;
const U32: DType = DType::U32;

type Inputs = &'static [(DType, &'static [usize])];
type Run = fn(Machine, &[Tensor], &[usize]) -> Result<Vec<Tensor>>;

/// A launch, or several, on inputs of these dtypes and shapes.
struct Case {
    /// The operation; the peer's function has the same name.
    kernel: &'static str,
    /// Normally distributed; the `i`th of `U32` holds the `i`th of `numbers` everywhere.
    inputs: Inputs,
    /// What else the operation takes, the same for the peer.
    numbers: &'static [usize],
    run: Run,
    /// Floating-point operations of a run, where they and not the bytes are what takes time.
    flops: f64,
    /// Bytes of the inputs that no run has to read.
    unread: usize,
    /// Bytes that a run reads beside its inputs.
    beside: usize,
}

const fn case(kernel: &'static str, inputs: Inputs, numbers: &'static [usize], run: Run) -> Case {
    Case { kernel, inputs, numbers, run, flops: 0.0, unread: 0, beside: 0 }
}

impl Case {
    const fn flops(self, flops: f64) -> Self {
        Self { flops, ..self }
    }

    const fn unread(self, unread: usize) -> Self {
        Self { unread, ..self }
    }

    const fn beside(self, beside: usize) -> Self {
        Self { beside, ..self }
    }
}

/// Queries, keys, values, valid queries and keys before them, of Llama-3-8B.
const PREFILL: Inputs = &[
    (BF16, &[8, 1024, 32, 128]),
    (BF16, &[8, 1024, 8, 128]),
    (BF16, &[8, 1024, 8, 128]),
    (U32, &[8]),
    (U32, &[8]),
];
const LONG: Inputs = &[
    (BF16, &[1, 8192, 32, 128]),
    (BF16, &[1, 8192, 8, 128]),
    (BF16, &[1, 8192, 8, 128]),
    (U32, &[1]),
    (U32, &[1]),
];
const DECODE: Inputs = &[
    (BF16, &[8, 1, 32, 128]),
    (BF16, &[8, 8192, 8, 128]),
    (BF16, &[8, 8192, 8, 128]),
    (U32, &[8]),
    (U32, &[8]),
];
/// New keys and values, how many, where they go, and the cache.
const STEP: Inputs = &[
    (BF16, &[8, 1, 8, 128]),
    (BF16, &[8, 1, 8, 128]),
    (U32, &[8]),
    (U32, &[8]),
    (BF16, &[8, 8192, 8, 128]),
    (BF16, &[8, 8192, 8, 128]),
];
/// What of the cache is not written.
const STEP_UNREAD: usize = 2 * 8 * 8191 * 8 * 128 * 2;
/// Queries, keys, valid queries and keys before them, log-sum-exp, and boundaries or heads.
const OBSERVED: Inputs = &[
    (BF16, &[1, 8192, 32, 128]),
    (BF16, &[1, 8192, 8, 128]),
    (U32, &[1]),
    (U32, &[1]),
    (F32, &[1, 32, 8192]),
    (U32, &[1]),
];
/// Queries, keys and log-sum-exp of the heads whose pattern nobody wants.
const OTHER_HEADS: usize = 8192 * ((31 + 7) * 128 * 2 + 31 * 4);
/// Tokens, router logits, and the experts of a layer of Mixtral-8x7B.
const MIXTURE: Inputs = &[
    (BF16, &[8192, 4096]),
    (F32, &[8192, 8]),
    (BF16, &[8, 28672, 4096]),
    (BF16, &[8, 4096, 14336]),
];
const MIXTURE_OF_ONE: Inputs =
    &[(BF16, &[1, 4096]), (F32, &[1, 8]), (BF16, &[8, 28672, 4096]), (BF16, &[8, 4096, 14336])];
const EXPERT_BYTES: usize = 3 * 4096 * 14336 * 2;
const ROTARY: Inputs =
    &[(BF16, &[8, 1024, 32, 128]), (F32, &[1024, 64]), (F32, &[1024, 64]), (U32, &[8])];

/// A token, for a matrix of that many rows, as one of the MLP of Llama-3-8B.
const TOKEN: Inputs = &[(BF16, &[1, D_IN])];
const D_IN: usize = 4096;
const D_OUT: usize = 14336;

const fn weight_bytes(encoding: &Encoding) -> usize {
    D_OUT * (D_IN / encoding.len * encoding.bytes)
}

/// Shapes are those of Llama-3-8B and Mixtral-8x7B on 8 × 1024 tokens.
const CASES: &[Case] = &[
    case("rms_norm", &[(BF16, &[8192, 4096]), (F32, &[4096])], &[], |m, x, _| {
        Ok(vec![rms_norm::rms_norm(m, &x[0], &x[1], 1e-5)?])
    }),
    case("layer_norm", &[(BF16, &[8192, 4096]), (F32, &[4096]), (F32, &[4096])], &[], |m, x, _| {
        Ok(vec![layer_norm::layer_norm(m, &x[0], &x[1], Some(&x[2]), 1e-5)?])
    }),
    case("rotary", ROTARY, &[0], |m, x, _| {
        Ok(vec![rotary::rotary(m, &x[0], &x[1], &x[2], &x[3])?])
    }),
    case("gated_silu", &[(BF16, &[8192, 14336]), (BF16, &[8192, 14336])], &[], |m, x, _| {
        Ok(vec![activation::gated(m, Silu, &x[0], &x[1])?])
    }),
    case("softmax", &[(BF16, &[8192, 8192])], &[], |m, x, _| Ok(vec![softmax::softmax(m, &x[0])?])),
    case("softmax", &[(F32, &[8192, 4096])], &[], |m, x, _| Ok(vec![softmax::softmax(m, &x[0])?])),
    case("router", &[(F32, &[8192, 8])], &[2], |m, x, numbers| routed(m, &x[0], numbers)),
    case("router", &[(F32, &[65536, 128])], &[8], |m, x, numbers| routed(m, &x[0], numbers)),
    // Products with keys and with values, half of them masked.
    case("attention", PREFILL, &[1024, 0], attended).flops(2.0 * 8.0 * 1024.0 * 1025.0 * 4096.0),
    case("attention", LONG, &[8192, 0], attended).flops(2.0 * 8192.0 * 8193.0 * 4096.0),
    case("attention", DECODE, &[1, 8191], attended),
    case("cache_append", STEP, &[1, 100], appended).unread(STEP_UNREAD),
    // Products with keys.
    case("attention_summary", OBSERVED, &[8192, 0, 0], summarised).flops(8192.0 * 8193.0 * 4096.0),
    case("attention_pattern", OBSERVED, &[8192, 0, 0], observed).unread(OTHER_HEADS),
    case("moe", MIXTURE, &[2], mixed).flops(8192.0 * 2.0 * EXPERT_BYTES as f64),
    case("moe", MIXTURE_OF_ONE, &[2], mixed).unread(6 * EXPERT_BYTES),
    case("quantized_q4_k", TOKEN, &[D_OUT], |m, x, _| multiplied(m, x, Encoding::Q4K))
        .beside(weight_bytes(Encoding::Q4K)),
    case("quantized_q8_0", TOKEN, &[D_OUT], |m, x, _| multiplied(m, x, Encoding::Q8_0))
        .beside(weight_bytes(Encoding::Q8_0)),
];

fn attended(machine: Machine, x: &[Tensor], _: &[usize]) -> Result<Vec<Tensor>> {
    let [q, k, v, lengths, offsets] = x else { unreachable!() };
    let input = attention::Input { q, k, v, lengths, offsets, sinks: None };
    let output = attention::attention(machine, &input, &options())?;
    Ok(vec![output.z, output.lse])
}

fn appended(machine: Machine, x: &[Tensor], _: &[usize]) -> Result<Vec<Tensor>> {
    let [k, v, lengths, offsets, keys, values] = x else { unreachable!() };
    cache_append(machine, &Input { k, v, lengths, offsets, keys, values })?;
    Ok(Vec::new())
}

fn summarised(machine: Machine, x: &[Tensor], _: &[usize]) -> Result<Vec<Tensor>> {
    let [q, k, lengths, offsets, lse, boundaries] = x else { unreachable!() };
    let input = QueriesAndKeys { q, k, lengths, offsets };
    let window = SummaryOptions::default().window;
    Ok(vec![attention_summary(machine, input, &options(), lse, window, boundaries)?])
}

fn observed(machine: Machine, x: &[Tensor], _: &[usize]) -> Result<Vec<Tensor>> {
    let [q, k, lengths, offsets, lse, heads] = x else { unreachable!() };
    let input = QueriesAndKeys { q, k, lengths, offsets };
    Ok(vec![attention_pattern(machine, input, &options(), heads, lse)?])
}

fn options() -> AttentionOptions {
    AttentionOptions { scale: 128f64.powf(-0.5), window: None, soft_cap: None }
}

/// The router is a part of it.
fn mixed(machine: Machine, x: &[Tensor], numbers: &[usize]) -> Result<Vec<Tensor>> {
    let routing = router::route(machine, &x[1], numbers[0], SoftmaxTopK { renormalise: true })?;
    Ok(vec![moe::moe(machine, &x[0], &routing, &x[2], &x[3], Silu)?])
}

/// By a matrix of any blocks, which is made at the first call.
fn multiplied(machine: Machine, x: &[Tensor], encoding: &'static Encoding) -> Result<Vec<Tensor>> {
    let device = x[0].device();
    let blocks = BLOCKS.with_borrow_mut(|made| {
        let is_it = |blocks: &&Blocks| {
            blocks.encoding().name == encoding.name && blocks.device().same_device(device)
        };
        if let Some(blocks) = made.iter().find(is_it) {
            return Ok(blocks.clone());
        }
        // Scales of any two of these bytes are finite.
        let row = D_IN / encoding.len * encoding.bytes;
        let bytes: Vec<u8> = (0..row + D_OUT).map(|i| ((i * i % 251) as u8 & 15) | 32).collect();
        let blocks = Blocks::new(encoding, [D_OUT, D_IN], |j| &bytes[j..j + row], device)?;
        made.push(blocks.clone());
        Result::Ok(blocks)
    })?;
    Ok(vec![quantized::product(machine, &x[0], &blocks)?])
}

fn routed(machine: Machine, logits: &Tensor, numbers: &[usize]) -> Result<Vec<Tensor>> {
    let routing = router::route(machine, logits, numbers[0], SoftmaxTopK { renormalise: true })?;
    Ok(vec![routing.probs, routing.indices, routing.weights])
}

/// Runs before the clock counts, and runs that it counts.
const WARM_UP: usize = 10;
const RUNS: usize = 100;
/// Larger than any second-level cache there is.
const CACHE_BYTES: usize = 256 << 20;

impl Case {
    /// `router f32 8192×8, 2`: the operation, its first input and its numbers.
    fn name(&self) -> String {
        let (dtype, dims) = self.inputs[0];
        let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
        let numbers: String = self.numbers.iter().map(|number| format!(", {number}")).collect();
        format!("{} {} {}{numbers}", self.kernel, dtype.as_str(), dims.join("×"))
    }

    fn inputs(&self, device: &Device) -> Vec<Tensor> {
        let mut numbers = self.numbers.iter();
        let input = |&(dtype, dims): &(DType, &[usize])| match (dtype, device) {
            (U32, _) => {
                let value = numbers.next().map_or(0, |&number| number as u32);
                Tensor::full(value, dims, device).unwrap()
            }
            (_, Device::Cpu) => Tensor::zeros(dims, dtype, device).unwrap(),
            _ => Tensor::randn(0f32, 1.0, dims, device).unwrap().to_dtype(dtype).unwrap(),
        };
        self.inputs.iter().map(input).collect()
    }

    /// What any implementation has to read and write.
    fn bytes(&self, inputs: &[Tensor], results: &[Tensor]) -> usize {
        let bytes = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        inputs.iter().chain(results).map(bytes).sum::<usize>() + self.beside - self.unread
    }

    /// The case without a GPU: what it would launch.
    fn describe(&self) -> Value {
        let inputs = self.inputs(&Device::Cpu);
        CALLS.take();
        let results = (self.run)(planned, &inputs, self.numbers).unwrap();
        let launches: Vec<Value> = CALLS
            .take()
            .iter()
            .map(|call| json!({"entry": call.entry, "grid": call.grid, "block": call.block}))
            .collect();
        let shapes: Vec<Value> =
            self.inputs.iter().map(|(dtype, dims)| json!([dtype.as_str(), dims])).collect();
        json!({
            "case": self.name(),
            "kernel": self.kernel,
            "inputs": shapes,
            "numbers": self.numbers,
            "bytes": self.bytes(&inputs, &results),
            "flops": self.flops,
            "largest_result": LARGEST.take(),
            "launches": launches,
        })
    }

    fn time(&self, gpu: &Device) -> std::result::Result<Value, Box<dyn std::error::Error>> {
        let inputs = self.inputs(gpu);
        let run = || (self.run)(cuda::launch, &inputs, self.numbers);
        let results = run()?;
        for result in results.iter().filter(|result| result.dtype() != U32) {
            let sum = result.to_dtype(F32)?.sum_all()?.to_scalar::<f32>()?;
            if !sum.is_finite() {
                return Err(format!("the result sums to {sum}").into());
            }
        }
        let stream = gpu.as_cuda_device()?.cuda_stream();
        let mut cache = stream.alloc_zeros::<u8>(CACHE_BYTES)?;
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut events = Vec::with_capacity(RUNS);
        for i in 0..WARM_UP + RUNS {
            stream.memset_zeros(&mut cache)?;
            let begin = event()?;
            run()?;
            let end = event()?;
            if i >= WARM_UP {
                events.push((begin, end));
            }
        }
        let mut times = Vec::with_capacity(RUNS);
        for (begin, end) in &events {
            times.push(f64::from(begin.elapsed_ms(end)?) * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(json!({
            "case": self.name(),
            "median_us": times[RUNS / 2],
            "min_us": times[0],
            "max_us": times[RUNS - 1],
            "runs": RUNS,
            "bytes": self.bytes(&inputs, &results),
            "flops": self.flops,
        }))
    }
}

thread_local! {
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
    /// Bytes of the largest result of any launch.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static BLOCKS: RefCell<Vec<Blocks>> = const { RefCell::new(Vec::new()) };
}

/// Notes what a plan would launch; its results are zeros.
fn planned(plan: &Plan<'_>) -> Result<Vec<Tensor>> {
    CALLS.with_borrow_mut(|calls| calls.extend(plan.call.clone()));
    for (dtype, dims) in &plan.outputs {
        let bytes = dims.iter().product::<usize>() * dtype.size_in_bytes();
        LARGEST.set(LARGEST.get().max(bytes));
    }
    let zeros = |(dtype, dims): &(DType, Vec<usize>)| {
        Tensor::zeros(dims.as_slice(), *dtype, &Device::Cpu).unwrap()
    };
    Ok(plan.outputs.iter().map(zeros).collect())
}

/// Times a case and prints its line; one that fails is a line, too.
fn print(case: &Case, gpu: &Device) {
    let name = case.name();
    let line = case.time(gpu);
    println!("{}", line.unwrap_or_else(|e| json!({"case": name, "error": e.to_string()})));
}

fn main() {
    // Cargo's own word for a bench is not ours.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.iter().any(|word| word == "--list") {
        CASES.iter().for_each(|case| println!("{}", case.describe()));
        return;
    }
    let gpu = match cuda::gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("{}", json!({"error": error.to_string()}));
            std::process::exit(4);
        }
    };
    if words.iter().any(|word| word == "--serve") {
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            match CASES.iter().find(|case| case.name() == line) {
                Some(case) => print(case, &gpu),
                None => println!("{}", json!({"case": line, "error": "there is no such case"})),
            }
        }
        return;
    }
    let wanted = |case: &&Case| words.is_empty() || words.iter().any(|w| case.name().contains(w));
    CASES.iter().filter(wanted).for_each(|case| print(case, &gpu));
}
