//! Tensors that notice when somebody reads beside them.

use candle_core::{DType, Device, Tensor};

/// The same numbers as a view into a larger buffer, with NaN before and after every
/// axis: whoever reads beyond the tensor, or mistakes its strides, gets NaN.
pub fn guarded(tensor: &Tensor) -> Tensor {
    guarded_as(tensor, DType::F32)
}

/// [`guarded`], with all numbers rounded to a floating dtype.
pub fn guarded_as(tensor: &Tensor, dtype: DType) -> Tensor {
    const BEFORE: usize = 2;
    const AFTER: usize = 3;
    let dims = tensor.dims();
    let wide: Vec<usize> = dims.iter().map(|dim| dim + BEFORE + AFTER).collect();
    let mut values = vec![f32::NAN; wide.iter().product()];
    let source: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    for (mut index, value) in source.into_iter().enumerate() {
        let (mut place, mut stride) = (0, 1);
        for (dim, wide) in dims.iter().zip(&wide).rev() {
            place += (index % dim + BEFORE) * stride;
            index /= dim;
            stride *= wide;
        }
        values[place] = value;
    }
    let mut view = Tensor::from_vec(values, wide, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    for (axis, &dim) in dims.iter().enumerate() {
        view = view.narrow(axis, BEFORE, dim).unwrap();
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_same_numbers() {
        let tensor = crate::Data::new(1).tensor(&[3, 1, 5]);
        let view = guarded(&tensor);
        assert!(!view.is_contiguous());
        crate::assert_tensor_bits("view", &view, &tensor);
    }
}
