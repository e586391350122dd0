//! Plans run on a GPU.

use candle_core::{Device, Tensor};
use kernels::cuda::{self, Plan};

/// One way to run a launch.
#[derive(Clone, Copy, Debug)]
pub enum Effort {
    /// The only one.
    Launch,
    /// Again, for the same bits.
    Again,
}

impl Effort {
    /// How many elements a result may have.
    pub fn elements(self) -> usize {
        usize::MAX
    }
}

/// Twice the same.
pub const EFFORTS: [Effort; 2] = [Effort::Launch, Effort::Again];

thread_local! {
    /// Every test has a thread of its own. Opened once: a device brings its libraries' workspaces.
    static GPU: Device = cuda::gpu::open(0).unwrap_or_else(|error| panic!("{error}"));
}

/// The results of a plan, whose inputs are copied to the GPU with their strides; those that are
/// written in place then hold what was written.
pub fn run(plan: &Plan, _: Effort) -> kernels::Result<Vec<Tensor>> {
    let gpu = GPU.with(Device::clone);
    let inputs: Vec<Tensor> =
        plan.inputs.iter().map(|input| input.to_device(&gpu).unwrap()).collect();
    for (input, copy) in plan.inputs.iter().zip(&inputs) {
        assert_eq!(input.layout(), copy.layout());
    }
    let (outputs, call) = (plan.outputs.clone(), plan.call.clone());
    let copied = Plan { op: plan.op, inputs: inputs.iter().collect(), outputs, call };
    let results = cuda::launch(&copied)?;
    for argument in copied.call.iter().flat_map(|call| &call.arguments) {
        if let cuda::Argument::InPlace(index) = *argument {
            let written = inputs[index].to_device(&Device::Cpu).unwrap();
            plan.inputs[index].slice_set(&written, 0, 0).unwrap();
        }
    }
    Ok(results.into_iter().map(|y| y.to_device(&Device::Cpu).unwrap()).collect())
}
