//! One table of cases and one set of tests: the targets `emulated` and `gpu` are this module with
//! the one `machine` or the other, which runs plans.

mod activation;
mod attention;
mod attention_pattern;
mod attention_summary;
mod cache_append;
mod layer_norm;
mod moe;
mod quantized;
mod queries;
mod rms_norm;
mod rotary;
mod router;
mod softmax;

use candle_core::{DType, Device, Tensor};
use testkit::{Tolerance, assert_tensor_bits, assert_tensor_close, guarded_as};

use crate::machine::{EFFORTS, run};

/// What the kernels store.
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The tolerance of an `f32` result, and one rounding to `dtype` at the end.
fn rounded(dtype: DType, exact: Tolerance) -> Tolerance {
    // Half a unit in the last place; below 2⁻¹⁴ halves are 2⁻²⁴ apart.
    let (relative, absolute) = match dtype {
        DType::BF16 => (2f64.powi(-8), 0.0),
        DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        _ => (0.0, 0.0),
    };
    Tolerance { relative: exact.relative + relative, absolute: exact.absolute + absolute, ..exact }
}

/// The same numbers in `dtype`: contiguous, as 16-byte accesses want them, and as a view between
/// NaNs where only single ones are possible.
fn layouts(tensor: &Tensor, dtype: DType) -> [Tensor; 2] {
    [tensor.to_dtype(dtype).unwrap(), guarded_as(tensor, dtype)]
}

/// All numbers of a tensor of any dtype, in `f32`.
fn numbers(tensor: &Tensor) -> Vec<f32> {
    // candle does not convert an empty view behind the end of its buffer.
    if tensor.elem_count() == 0 {
        return Vec::new();
    }
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Whether what `plan` gives for each of `inputs`' layouts is as expected, with the same bits.
#[track_caller]
fn check(
    what: &str,
    plan: impl Fn(&[Tensor]) -> kernels::cuda::Plan<'_>,
    inputs: [Vec<Tensor>; 2],
    expected: &[f64],
    tolerance: Tolerance,
) {
    for inputs in &inputs {
        let plan = plan(inputs);
        let (dtype, dims) = plan.outputs[0].clone();
        let size = expected.len();
        let mut first: Option<Tensor> = None;
        for effort in EFFORTS.into_iter().filter(|effort| size <= effort.elements()) {
            let y = run(&plan, effort).unwrap().remove(0);
            assert_eq!(y.dtype(), dtype);
            let what = format!("{what} {dtype:?} {effort:?}");
            assert_tensor_close(&what, &y, &dims, expected, tolerance);
            // Threads in any order give the same bits.
            match &first {
                Some(first) => assert_tensor_bits(&what, &y, first),
                None => first = Some(y),
            }
        }
    }
}

#[test]
fn a_plan_for_nothing_is_no_launch() {
    let x = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    let plan = kernels::cuda::softmax::plan(&x).unwrap();
    assert!(plan.call.is_none());
    let y = run(&plan, EFFORTS[0]).unwrap().remove(0);
    assert_eq!(y.dims(), [0, 4]);
}
