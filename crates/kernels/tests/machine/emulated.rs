//! Plans run by the emulation.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use emulator::{Argument, Build, Launch, Order};
use half::{bf16, f16};
use kernels::cuda::{self, Plan};

/// One way to run a launch.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    build: Build,
    order: Order,
}

impl Effort {
    /// How many elements a result may have for this to take little time.
    pub fn elements(self) -> usize {
        match self.build {
            Build::Plain => 200_000,
            Build::Sanitized => 70_000,
        }
    }
}

/// Every order, and once under the sanitizers.
pub const EFFORTS: [Effort; 4] = [
    Effort { build: Build::Plain, order: Order::Forward },
    Effort { build: Build::Plain, order: Order::Reverse },
    Effort { build: Build::Plain, order: Order::Strided },
    Effort { build: Build::Sanitized, order: Order::Reverse },
];

/// The results of a plan, over copies of its inputs' whole buffers; inputs that are written in place
/// then hold what was written.
pub fn run(plan: &Plan, effort: Effort) -> emulator::Result<Vec<Tensor>> {
    let mut buffers: Vec<Vec<u8>> = plan.inputs.iter().map(|input| bytes(input)).collect();
    for (dtype, dims) in &plan.outputs {
        // What is not written is NaN.
        buffers.push(vec![0xff; dims.iter().product::<usize>() * dtype.size_in_bytes()]);
    }
    let n_inputs = plan.inputs.len();
    if let Some(call) = &plan.call {
        let values: Vec<Vec<u8>> = call.arguments.iter().map(cuda::Argument::bytes).collect();
        let arguments: Vec<Argument> = call
            .arguments
            .iter()
            .zip(&values)
            .map(|(argument, value)| match *argument {
                cuda::Argument::Input(index) | cuda::Argument::InPlace(index) => {
                    let input = plan.inputs[index];
                    let start = input.layout().start_offset();
                    Argument::Buffer { index, offset: start * input.dtype().size_in_bytes() }
                }
                cuda::Argument::Output(index) => {
                    Argument::Buffer { index: n_inputs + index, offset: 0 }
                }
                _ => Argument::Value(value),
            })
            .collect();
        let launch = Launch {
            kernel: &call.entry,
            grid: call.grid,
            block: call.block,
            shared_bytes: call.shared_bytes as usize,
            arguments: &arguments,
            build: effort.build,
            order: effort.order,
            seconds: 60,
        };
        launch.run(&mut buffers)?;
        for (index, (input, buffer)) in plan.inputs.iter().zip(&buffers).enumerate() {
            if call.arguments.contains(&cuda::Argument::InPlace(index)) {
                // A contiguous tensor that is all of its buffer.
                let written = tensor(buffer, input.dtype(), input.dims());
                input.slice_set(&written, 0, 0).unwrap();
            } else {
                assert!(*buffer == bytes(input), "{}: an input was written", call.entry);
            }
        }
    }
    let outputs = buffers.split_off(n_inputs);
    Ok(plan
        .outputs
        .iter()
        .zip(outputs)
        .map(|((dtype, dims), y)| tensor(&y, *dtype, dims))
        .collect())
}

/// All of the buffer that a tensor is a view of.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { panic!("a tensor in main memory") };
    match storage {
        CpuStorage::F32(values) => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
        CpuStorage::BF16(values) => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
        CpuStorage::F16(values) => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
        CpuStorage::U32(values) => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
        _ => panic!("no kernel takes {:?}", tensor.dtype()),
    }
}

fn tensor(bytes: &[u8], dtype: DType, dims: &[usize]) -> Tensor {
    let (halves, words) = (bytes.as_chunks::<2>().0.iter(), bytes.as_chunks::<4>().0.iter());
    let on = &Device::Cpu;
    match dtype {
        DType::F32 => {
            Tensor::from_vec(words.map(|&word| f32::from_ne_bytes(word)).collect(), dims, on)
        }
        DType::U32 => {
            Tensor::from_vec(words.map(|&word| u32::from_ne_bytes(word)).collect(), dims, on)
        }
        DType::BF16 => {
            Tensor::from_vec(halves.map(|&half| bf16::from_ne_bytes(half)).collect(), dims, on)
        }
        DType::F16 => {
            Tensor::from_vec(halves.map(|&half| f16::from_ne_bytes(half)).collect(), dims, on)
        }
        _ => panic!("no kernel gives {dtype:?}"),
    }
    .unwrap()
}
