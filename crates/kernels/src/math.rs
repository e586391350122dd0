//! Elementary functions in `f32`, written so that loops over them vectorise.
//!
//! They are straight lines of arithmetic and selections without calls or
//! branches: inside [`vectorised`] the compiler turns a loop over them into the
//! widest instructions that the processor has. Every step is one IEEE operation
//! (products and sums joined only where `mul_add` says so), hence the bits do
//! not depend on the width.

use pulp::{Arch, Simd, WithSimd};

/// Runs `f` compiled for the best instruction set that the processor has.
///
/// What should profit must be inlined into `f`.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> WithSimd for Op<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Op(f))
}

/// Above this, `e^x` exceeds `f32::MAX`.
const EXP_HIGHEST: f32 = 88.722_84;
/// Below this, `e^x` is less than `f32::MIN_POSITIVE`.
const EXP_LOWEST: f32 = -87.336_54;

/// `e^x`, to 2 units in the last place; 0 where the result would be subnormal.
///
/// `e^x = 2^n e^r` with `n = round(x / ln 2)` and `|r| ≤ ½ ln 2`;
/// `e^r = 1 + r + r² q(r)` with `q` of degree 4 fitted for the least relative error
/// (3e-9). NaN stays NaN, `−∞` gives exactly 0.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: n · LN2_HIGH is exact for every n that occurs.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let q = 0.001_381_446_7_f32;
    let q = q.mul_add(r, 0.008_368_781);
    let q = q.mul_add(r, 0.041_668_393);
    let q = q.mul_add(r, 0.166_665_2);
    let q = q.mul_add(r, 0.499_999_93);
    let p = (r * r).mul_add(q, r) + 1.0;
    // Multiplying by 2^n is adding n to the exponent.
    let y = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    let y = if x < EXP_LOWEST { 0.0 } else { y };
    let y = if x > EXP_HIGHEST { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `tanh x`, to 3 units in the last place.
///
/// Below `|x| = 0.55`, `x + x³ p(x²)` with `p` of degree 4 fitted for the least relative
/// error (5e-9); above, `±(1 − t)/(1 + t)` with `t = e^{−2|x|}`, where the difference
/// cancels less than one bit. NaN stays NaN, the sign of zero too, `±∞` gives exactly ±1.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let t = exp(-2.0 * a);
    let large = (1.0 - t) / (1.0 + t);
    let z = a * a;
    let p = -0.006_366_669_f32;
    let p = p.mul_add(z, 0.021_166_528);
    let p = p.mul_add(z, -0.053_884_335);
    let p = p.mul_add(z, 0.133_329_9);
    let p = p.mul_add(z, -0.333_333_3);
    let small = (a * z).mul_add(p, a);
    (if a < 0.55 { small } else { large }).copysign(x)
}

/// `x σ(x)`, σ the logistic function.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `½ x (1 + tanh(√(2/π)(x + 0.044715 x³)))`, as `x σ(2√(2/π)(…))`.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    const SLOPE: f32 = 1.595_769;
    const CUBIC: f32 = 0.071_354_82;
    let inner = x * (x * x).mul_add(CUBIC, SLOPE);
    x / (1.0 + exp(-inner))
}

/// `x Φ(x)`, Φ the normal distribution function.
///
/// The tail `Φ(−a) = e^{−a²/2} g(t)`, `t = 1/(1 + a/4)`, with `g` of degree 9 fitted
/// for the least relative error (1.5e-8) over `0 ≤ a ≤ 14`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / a.mul_add(0.25, 1.0);
    let g = 0.033_946_66_f32;
    let g = g.mul_add(t, -0.196_177);
    let g = g.mul_add(t, 0.395_000_73);
    let g = g.mul_add(t, -0.333_468_38);
    let g = g.mul_add(t, 0.304_486_16);
    let g = g.mul_add(t, -0.020_383_7);
    let g = g.mul_add(t, 0.121_567_82);
    let g = g.mul_add(t, 0.094_820_276);
    let g = g.mul_add(t, 0.100_229);
    let g = g.mul_add(t, -2.159_995_3e-5);
    let tail = exp(-0.5 * a * a) * g;
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance from the exact value in units in the last place of `f32`.
    fn ulps(got: f32, exact: f64) -> f64 {
        let unit = f64::from(exact.abs() as f32).max(f64::from(f32::MIN_POSITIVE));
        let unit = 2f64.powi(unit.log2().floor() as i32 - 23);
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn exp_is_within_two_ulps() {
        let mut worst: f64 = 0.0;
        let mut x = EXP_LOWEST;
        while x <= EXP_HIGHEST {
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
            x += 1.7e-4;
        }
        for step in 0..100_000 {
            let x = (step as f32 - 50_000.0) * 1e-6;
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst <= 2.0, "{worst}");
    }

    #[test]
    fn tanh_is_within_three_ulps() {
        let mut worst: f64 = 0.0;
        for step in 0..2_000_000 {
            let x = (step as f32 - 1_000_000.0) * 1e-5;
            worst = worst.max(ulps(tanh(x), f64::from(x).tanh()));
        }
        // Every magnitude down to the subnormal numbers, and around the change of formulas.
        for bits in (0..0.55f32.to_bits()).step_by(1021) {
            let x = f32::from_bits(bits);
            worst = worst.max(ulps(tanh(x), f64::from(x).tanh()));
        }
        for step in 0..2000 {
            let x = f32::from_bits(0.55f32.to_bits() - 1000 + step);
            worst = worst.max(ulps(tanh(x), f64::from(x).tanh()));
        }
        assert!(worst <= 3.0, "{worst}");
    }

    #[test]
    fn tanh_at_the_edges() {
        for (x, y) in [(0.0f32, 0.0f32), (-0.0, -0.0), (f32::INFINITY, 1.0), (-9.1, -1.0)] {
            assert_eq!(tanh(x).to_bits(), y.to_bits(), "{x}");
        }
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(tanh(f32::MAX), 1.0);
        for step in 0..1000 {
            let x = step as f32 * 0.02;
            assert!(tanh(x) <= 1.0 && tanh(-x).to_bits() == (-tanh(x)).to_bits(), "{x}");
        }
        for bits in [0x7fc0_0000, 0x7f80_0001, 0xffff_ffff_u32] {
            assert!(tanh(f32::from_bits(bits)).is_nan());
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(f32::MIN).to_bits(), 0);
        assert_eq!(exp(-87.4).to_bits(), 0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert!(exp(88.722).is_finite());
        for bits in [0x7fc0_0000, 0x7f80_0001, 0xffff_ffff_u32, 0x7fff_ffff] {
            assert!(exp(f32::from_bits(bits)).is_nan());
        }
    }

    #[test]
    fn width_does_not_change_bits() {
        let x: Vec<f32> = (0..4096).map(|i| (i as f32 - 2048.0) * 0.05).collect();
        for f in [exp, tanh, silu, gelu, gelu_tanh] {
            let narrow: Vec<u32> = x.iter().map(|&x| f(x).to_bits()).collect();
            let mut wide = vec![0; x.len()];
            vectorised(|| wide.iter_mut().zip(&x).for_each(|(y, &x)| *y = f(x).to_bits()));
            assert_eq!(narrow, wide);
        }
        // Functions called by name are inlined, and then vectorised.
        for (f, wide) in [
            (exp as fn(f32) -> f32, vectorised(|| x.iter().map(|&x| exp(x).to_bits()).collect())),
            (tanh, vectorised(|| x.iter().map(|&x| tanh(x).to_bits()).collect::<Vec<u32>>())),
        ] {
            assert_eq!(x.iter().map(|&x| f(x).to_bits()).collect::<Vec<_>>(), wide);
        }
    }
}
