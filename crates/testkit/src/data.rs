//! Seeded numbers, the same on every machine.

use candle_core::{Device, Tensor};

/// A stream of pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Data {
    state: u64,
}

impl Data {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One number, uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One index below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// `n` numbers, uniform in `[low, high)`.
    pub fn uniform(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| low + self.unit() as f32 * (high - low)).collect()
    }

    /// `n` numbers of mean 0 and standard deviation 1, bell-shaped within ±6.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32).collect()
    }

    /// As [`normal`](Self::normal), with every 41st number a hundred times larger: as in
    /// the residuals of real models.
    pub fn skewed(&mut self, n: usize) -> Vec<f32> {
        let mut values = self.normal(n);
        values.iter_mut().skip(7).step_by(41).for_each(|value| *value *= 100.0);
        values
    }

    /// A tensor of [`normal`](Self::normal) numbers.
    pub fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let values = self.normal(dims.iter().product());
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }
}
