//! Rank statistics of two groups: how far one lies above the other, and how
//! likely that is if the labels mean nothing.

use crate::contrast::auroc;

/// How a p-value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// From the distribution of the statistic over all ways to label the values.
    Exact,
    /// From its normal limit, with the variance that ties leave and a correction of ½
    /// for continuity.
    Normal,
}

/// A two-sided Mann–Whitney test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankTest {
    /// Probability that a positive exceeds a negative, ties counting half.
    pub auroc: f64,
    /// Probability of an AUROC at least so far from ½ if the labels mean nothing.
    pub p: f64,
    /// How it was found.
    pub method: Method,
}

/// The smaller group has at most so many values for the exact distribution, ...
const EXACT_SMALLER: usize = 8;
/// ... and the larger one at most so many.
const EXACT_LARGER: usize = 400;

/// Compares two groups; `None` if one is empty.
///
/// With `U = n₁n₀ · AUROC`: exact where no two values are equal, one group has at
/// most 8 values and the other at most 400. Else
/// `p = 2(1 − Φ((|U − n₁n₀/2| − ½)/σ))`,
/// `σ² = n₁n₀/12 · (N + 1 − Σ(t³ − t)/(N(N − 1)))` over groups of `t` equal values.
///
/// # References
///
/// Mann and Whitney, "On a test of whether one of two random variables is
/// stochastically larger than the other", Ann. Math. Statist. 18 (1947).
///
/// ```
/// use analysis::verdict::rank::{Method, mann_whitney};
///
/// // All three positives above all three negatives: 2 of the 20 labellings are as far out.
/// let test = mann_whitney(&[4., 5., 6.], &[1., 2., 3.]).unwrap();
/// assert_eq!((test.auroc, test.method), (1., Method::Exact));
/// assert!((test.p - 0.1).abs() < 1e-15);
/// ```
pub fn mann_whitney(positives: &[f64], negatives: &[f64]) -> Option<RankTest> {
    let (n1, n0) = (positives.len(), negatives.len());
    if n1 == 0 || n0 == 0 {
        return None;
    }
    let auroc = auroc(positives, negatives);
    let mut all = [positives, negatives].concat();
    all.sort_by(f64::total_cmp);
    let tied = all.windows(2).any(|pair| pair[0] == pair[1]);
    if !tied && n1.min(n0) <= EXACT_SMALLER && n1.max(n0) <= EXACT_LARGER {
        return Some(RankTest { auroc, p: exact(auroc, n1, n0), method: Method::Exact });
    }
    let u = auroc * n1 as f64 * n0 as f64;
    let p = two_sided(u - mean(n1, n0), variance(&all, n1, n0));
    Some(RankTest { auroc, p, method: Method::Normal })
}

/// Mean of `U` if the labels mean nothing.
pub(super) fn mean(n1: usize, n0: usize) -> f64 {
    n1 as f64 * n0 as f64 / 2.
}

/// Variance of `U` if the labels mean nothing, of values in ascending order.
pub(super) fn variance(ascending: &[f64], n1: usize, n0: usize) -> f64 {
    let n = ascending.len() as f64;
    if n < 2. {
        return 0.;
    }
    let ties: f64 = ascending
        .chunk_by(|a, b| a == b)
        .map(|ties| ties.len() as f64)
        .map(|t| t * t * t - t)
        .sum();
    n1 as f64 * n0 as f64 / 12. * (n + 1. - ties / (n * (n - 1.)))
}

/// `2(1 − Φ((|difference| − ½)/σ))`, at most 1; 1 where there is no variance.
pub(super) fn two_sided(difference: f64, variance: f64) -> f64 {
    if variance.is_nan() || variance <= 0. {
        return 1.;
    }
    let z = (difference.abs() - 0.5).max(0.) / variance.sqrt();
    libm::erfc(z / std::f64::consts::SQRT_2).min(1.)
}

/// `2 P(U ≥ max(u, n₁n₀ − u))` from the number of labellings with each `U`: the
/// coefficients of `Π_{i ≤ m} (1 − q^{n+i})/(1 − q^i)`, in integers.
fn exact(auroc: f64, n1: usize, n0: usize) -> f64 {
    let (m, n) = (n1.min(n0), n1.max(n0));
    let last = m * n;
    let mut ways = vec![0i128; last + 1];
    ways[0] = 1;
    for i in 1..=m {
        for u in (n + i..=last).rev() {
            ways[u] -= ways[u - n - i];
        }
        for u in i..=last {
            ways[u] += ways[u - i];
        }
    }
    // Without ties U is whole, so that rounding only undoes the division in the AUROC.
    let u = (auroc * last as f64).round() as usize;
    let tail: i128 = ways[u.max(last - u)..].iter().sum();
    let all: i128 = ways.iter().sum();
    (2. * tail as f64 / all as f64).min(1.)
}

/// Difference of means over the pooled standard deviation (ddof 1); `None` with
/// fewer than three values, an empty group, or two constant groups.
///
/// ```
/// use analysis::verdict::rank::cohens_d;
///
/// assert_eq!(cohens_d(&[2., 4.], &[1., 3.]), Some(1. / 2f64.sqrt()));
/// assert_eq!(cohens_d(&[2., 2.], &[1., 1.]), None);
/// ```
///
/// # References
///
/// Cohen, "Statistical power analysis for the behavioral sciences" (1988), eq. 2.5.1.
pub fn cohens_d(positives: &[f64], negatives: &[f64]) -> Option<f64> {
    let (n1, n0) = (positives.len(), negatives.len());
    if n1 == 0 || n0 == 0 || n1 + n0 < 3 {
        return None;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (a, b) = (mean(positives), mean(negatives));
    let squares =
        |values: &[f64], mean: f64| values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    let pooled = (squares(positives, a) + squares(negatives, b)) / (n1 + n0 - 2) as f64;
    (pooled > 0.).then(|| (a - b) / pooled.sqrt())
}

/// Holm's step-down correction of the p-values of a family, in their order. Where
/// there is none, there is no test, and the family is smaller.
///
/// # References
///
/// Holm, "A simple sequentially rejective multiple test procedure", Scand. J.
/// Statist. 6 (1979).
///
/// ```
/// use analysis::verdict::rank::holm;
///
/// assert_eq!(holm(&[Some(0.25), Some(0.125), None]), [Some(0.25), Some(0.25), None]);
/// ```
pub fn holm(ps: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<(usize, f64)> =
        ps.iter().enumerate().filter_map(|(i, p)| Some((i, (*p)?))).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (n, mut least) = (order.len(), 0f64);
    let mut corrected = vec![None; ps.len()];
    for (rank, (i, p)) in order.into_iter().enumerate() {
        least = least.max(((n - rank) as f64 * p).min(1.));
        corrected[i] = Some(least);
    }
    corrected
}

#[cfg(test)]
mod tests {
    use kernels::random::SplitMix64;

    use super::*;

    /// Every labelling of the values, counted.
    fn by_enumeration(positives: &[f64], negatives: &[f64]) -> f64 {
        let all = [positives, negatives].concat();
        let u = |mask: u32| {
            let mut u = 0.;
            for (i, a) in all.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1) {
                for (j, b) in all.iter().enumerate().filter(|(j, _)| mask >> j & 1 == 0) {
                    u += if a > b { 1. } else { f64::from(u8::from(a == b && i != j)) / 2. };
                }
            }
            u
        };
        let n1 = positives.len();
        let centre = mean(n1, negatives.len());
        let far = (u((1 << n1) - 1) - centre).abs();
        let masks = (0u32..1 << all.len()).filter(|m| m.count_ones() as usize == n1);
        let (mut as_far, mut count) = (0., 0.);
        for mask in masks {
            as_far += f64::from(u8::from((u(mask) - centre).abs() >= far - 1e-9));
            count += 1.;
        }
        as_far / count
    }

    #[test]
    fn exact_p_counts_labellings() {
        let mut random = SplitMix64::new(5);
        for (n1, n0) in [(1, 1), (1, 6), (3, 4), (5, 5), (7, 3), (4, 8)] {
            for _ in 0..5 {
                let mut value = || random.next_symmetric();
                let a: Vec<f64> = (0..n1).map(|_| value() + 0.4).collect();
                let b: Vec<f64> = (0..n0).map(|_| value()).collect();
                let test = mann_whitney(&a, &b).unwrap();
                assert_eq!(test.method, Method::Exact);
                let expected = by_enumeration(&a, &b);
                assert!((test.p - expected).abs() < 1e-12, "{test:?} {expected}");
            }
        }
    }

    #[test]
    fn ties_are_shared_and_narrow_the_variance() {
        let test = mann_whitney(&[1., 2., 2.], &[1., 2., 3.]).unwrap();
        assert_eq!(test.method, Method::Normal);
        // U = (½) + (1 + ½) + (1 + ½) = 3.5 of 9; ties of 2 and 3: 6 and 24.
        assert_eq!(test.auroc, 3.5 / 9.);
        let sigma = (9. / 12. * (7. - 30. / 30f64)).sqrt();
        assert!((test.p - libm::erfc(0.5 / sigma / 2f64.sqrt())).abs() < 1e-15);
        let constant = mann_whitney(&[1.; 20], &[1.; 20]).unwrap();
        assert_eq!((constant.auroc, constant.p), (0.5, 1.));
        assert!(mann_whitney(&[], &[1.]).is_none());
    }

    #[test]
    fn the_normal_limit_is_near_the_exact_p() {
        let a: Vec<f64> = (0..8).map(|i| f64::from(3 * i + 25)).collect();
        let b: Vec<f64> = (0..60).map(|i| f64::from(i) + 0.5).collect();
        let exact = mann_whitney(&a, &b).unwrap();
        let mut all = [a.as_slice(), &b].concat();
        all.sort_by(f64::total_cmp);
        let normal = two_sided(exact.auroc * 480. - 240., variance(&all, 8, 60));
        assert!((exact.p / normal - 1.).abs() < 0.1, "{} {normal}", exact.p);
    }

    #[test]
    fn labels_that_mean_nothing_give_uniform_p() {
        let mut random = SplitMix64::new(11);
        let mut below = 0;
        for _ in 0..2000 {
            let mut values = |n: usize| (0..n).map(|_| random.next_symmetric()).collect::<Vec<_>>();
            let (a, b) = (values(30), values(20));
            below += usize::from(mann_whitney(&a, &b).unwrap().p < 0.05);
        }
        // 100 expected, standard deviation 10.
        assert!((60..=140).contains(&below), "{below}");
    }

    #[test]
    fn holm_by_hand() {
        let corrected = holm(&[Some(0.01), None, Some(0.04), Some(0.03), Some(0.005)]);
        let expected = [Some(0.03), None, Some(0.06), Some(0.06), Some(0.02)];
        for (a, b) in corrected.iter().zip(expected) {
            assert!(a.zip(b).is_none_or(|(a, b)| (a - b).abs() < 1e-15), "{corrected:?}");
            assert_eq!(a.is_none(), b.is_none());
        }
        assert_eq!(holm(&[Some(0.9), Some(0.8)]), [Some(1.), Some(1.)]);
        assert_eq!(holm(&[]), []);
    }
}
