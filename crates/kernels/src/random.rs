//! Seeded random numbers that are the same on every machine and in every version.

/// SplitMix64: a 64-bit counter, hashed. Enough for random start vectors and
/// label swaps; not for secrets.
///
/// # References
///
/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number, uniform in [−1, 1).
    pub const fn next_symmetric(&mut self) -> f64 {
        // 53 bits are exact in an f64.
        (self.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.
    }
}

#[cfg(test)]
mod tests {
    use super::SplitMix64;

    #[test]
    fn the_published_sequence() {
        let mut random = SplitMix64::new(1_234_567);
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn symmetric_numbers_fill_their_interval() {
        let mut random = SplitMix64::new(0);
        let numbers: Vec<f64> = (0..10_000).map(|_| random.next_symmetric()).collect();
        assert!(numbers.iter().all(|v| (-1. ..1.).contains(v)));
        assert!(numbers.iter().sum::<f64>().abs() / 10_000. < 0.03);
    }
}
