//! Captured launches, which only a GPU has.

use std::sync::atomic::{AtomicU32, Ordering};

use candle_core::{DType, Device, Tensor};
use kernels::Error;
use kernels::cuda::graph::Graph;
use kernels::cuda::{self, gpu};

fn failed(source: candle_core::Error) -> Error {
    Error::Candle { op: "test", source }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// `y = w xᵀ + softmax(x)`, `[4, 4]`: a product, a kernel, a strided sum.
#[derive(Debug)]
struct Work {
    x: Tensor,
    w: Tensor,
    y: Tensor,
}

impl Work {
    fn new(device: &Device) -> Self {
        let zeros = || Tensor::zeros((4, 4), DType::F32, device).unwrap();
        Self { x: zeros(), w: Tensor::randn(0f32, 1.0, (4, 4), device).unwrap(), y: zeros() }
    }

    fn run(&self) -> Result<(), Error> {
        let softmax = cuda::softmax::softmax(cuda::launch, &self.x)?;
        let product = self.w.matmul(&self.x.t().map_err(failed)?).map_err(failed)?;
        let sum = softmax.t().and_then(|softmax| product + softmax).map_err(failed)?;
        self.y.slice_set(&sum, 0, 0).map_err(failed)
    }
}

#[test]
fn captured_launches_read_what_is_there() {
    let device = gpu::open(0).unwrap();
    let mut graph = Graph::capture(&device, Work::new(&device), Work::run).unwrap();
    for _ in 0..3 {
        let x = Tensor::randn(0f32, 1.0, (4, 4), &device).unwrap();
        let expected = Work { x, w: graph.kept().w.clone(), y: graph.kept().y.copy().unwrap() };
        expected.run().unwrap();
        graph.kept().x.slice_set(&expected.x, 0, 0).unwrap();
        graph.launch().unwrap();
        assert_eq!(numbers(&graph.kept().y), numbers(&expected.y));
    }
    // Nothing of it is needed any more while the last launch may still run.
    graph.launch().unwrap();
    drop(graph);
    device.synchronize().unwrap();
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Brings a number from the host that is another one every time.
fn upload(to: &Tensor) -> Result<(), Error> {
    let number = [NUMBER.fetch_add(1, Ordering::Relaxed)];
    let number = Tensor::new(&number, to.device()).map_err(failed)?;
    to.slice_set(&number, 0, 0).map_err(failed)
}

#[test]
fn what_cannot_be_repeated_is_not_captured_and_does_no_harm() {
    let device = gpu::open(0).unwrap();
    let to = Tensor::zeros(1, DType::U32, &device).unwrap();
    let (to, error) = Graph::capture(&device, to, upload).unwrap_err();
    assert!(matches!(error, Error::Candle { .. }), "{error}");
    upload(&to).unwrap();
    assert_eq!(to.to_vec1::<u32>().unwrap(), [NUMBER.load(Ordering::Relaxed) - 1]);
    // The device captures other work.
    let mut graph = Graph::capture(&device, Work::new(&device), Work::run).unwrap();
    graph.launch().unwrap();
    device.synchronize().unwrap();
}
