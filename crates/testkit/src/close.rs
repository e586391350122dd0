//! Comparisons of computed with expected numbers.

// A NaN is not within any tolerance; `>` would let it pass.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

use candle_core::{DType, Tensor};

/// How far a number may be from the expected one, and why that far.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Allowed whatever the expected number.
    pub absolute: f64,
    /// Allowed as a share of the expected number's magnitude.
    pub relative: f64,
    /// Allowed as a share of the largest expected magnitude.
    pub of_max: f64,
    /// Why this is the right size.
    pub reason: &'static str,
}

impl Tolerance {
    /// A share of the largest expected magnitude: for sums whose terms cancel.
    pub const fn of_max(of_max: f64, reason: &'static str) -> Self {
        Self { absolute: 0.0, relative: 0.0, of_max, reason }
    }

    /// A share of each expected magnitude: for results without cancellation.
    pub const fn relative(relative: f64, reason: &'static str) -> Self {
        Self { absolute: 0.0, relative, of_max: 0.0, reason }
    }

    /// The same for every number.
    pub const fn absolute(absolute: f64, reason: &'static str) -> Self {
        Self { absolute, relative: 0.0, of_max: 0.0, reason }
    }
}

/// Panics unless every `got[i]` is within `tolerance` of `expected[i]`. Equal
/// infinities are equal.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], expected: &[f64], tolerance: Tolerance) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    let max = expected.iter().filter(|x| x.is_finite()).fold(0.0f64, |max, x| max.max(x.abs()));
    let mut worst: Option<(usize, f64, f64)> = None;
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let got = f64::from(got);
        if got == expected {
            continue;
        }
        let allowed =
            tolerance.absolute + tolerance.relative * expected.abs() + tolerance.of_max * max;
        let difference = (got - expected).abs();
        if !(difference <= allowed)
            && worst.is_none_or(|(_, d, a)| !(difference / allowed <= d / a))
        {
            worst = Some((i, difference, allowed));
        }
    }
    if let Some((i, difference, allowed)) = worst {
        panic!(
            "{what}: at {i} got {}, expected {}: off by {difference:e}, allowed {allowed:e} ({})",
            got[i], expected[i], tolerance.reason
        );
    }
}

/// [`assert_close`] for a tensor of any floating dtype, in row-major order, and its shape.
#[track_caller]
pub fn assert_tensor_close(
    what: &str,
    got: &Tensor,
    dims: &[usize],
    expected: &[f64],
    tolerance: Tolerance,
) {
    assert_eq!(got.dims(), dims, "{what}: shape");
    assert_close(what, &values(got), expected, tolerance);
}

/// Panics unless both hold the same bits.
#[track_caller]
pub fn assert_bits(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            got.to_bits() == expected.to_bits(),
            "{what}: at {i} got {got:e}, expected exactly {expected:e}"
        );
    }
}

/// Panics unless both tensors have the same shape and hold the same bits.
#[track_caller]
pub fn assert_tensor_bits(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims(), "{what}: shape");
    assert_bits(what, &values(got), &values(expected));
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.flatten_all().unwrap();
    tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIGHT: Tolerance = Tolerance::absolute(1e-6, "test");

    #[test]
    fn equal_infinities_pass() {
        assert_close("x", &[f32::INFINITY, 1.0], &[f64::INFINITY, 1.0], TIGHT);
    }

    #[test]
    #[should_panic(expected = "at 1 got NaN")]
    fn nan_fails() {
        assert_close("x", &[1.0, f32::NAN], &[1.0, 1.0], TIGHT);
    }

    #[test]
    #[should_panic(expected = "at 0 got 1")]
    fn expected_nan_fails() {
        assert_close("x", &[1.0], &[f64::NAN], TIGHT);
    }

    #[test]
    #[should_panic(expected = "expected exactly")]
    fn signs_of_zero_differ() {
        assert_bits("x", &[0.0], &[-0.0]);
    }
}
