//! Two groups of texts compared by one number each, with length beside it.
//!
//! A number that tells two groups apart may only be telling their lengths apart.
//! So a [`Contrast`] is made from values *and* token counts, and holds the AUROC
//! of both: there is none without the other.

use kernels::random::SplitMix64;

use crate::verdict::rank::cohens_d;

/// One pair of texts, a positive and a negative one, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The positive text's value.
    pub positive: f64,
    /// The negative text's value.
    pub negative: f64,
    /// Tokens of the positive text.
    pub positive_tokens: usize,
    /// Tokens of the negative text.
    pub negative_tokens: usize,
}

/// How far one number tells positives from negatives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrast {
    /// Pairs compared.
    pub n_pairs: usize,
    /// Mean over positives.
    pub positive_mean: f64,
    /// Mean over negatives.
    pub negative_mean: f64,
    /// Cohen's d: difference of means over the pooled standard deviation (ddof 1);
    /// `None` if both groups are constant.
    pub cohens_d: Option<f64>,
    /// Probability that a positive's value exceeds a negative's, ties counting half.
    pub auroc: f64,
    /// 2.5 % and 97.5 % points of the AUROC when labels are swapped at random
    /// within pairs: where it lies if the labels mean nothing.
    pub null_interval: (f64, f64),
    /// AUROC of the number of tokens alone.
    pub length_auroc: f64,
}

/// Random label swaps behind the null interval.
const SWAPS: usize = 1000;

impl Contrast {
    /// Compares the pairs; `None` for fewer than two.
    ///
    /// # Numerics
    ///
    /// The same pairs in the same order and the same seed give the same interval.
    ///
    /// ```
    /// use analysis::contrast::{Contrast, Pair};
    ///
    /// let pair = |positive, negative| Pair { positive, negative, positive_tokens: 9, negative_tokens: 9 };
    /// let contrast = Contrast::of(&[pair(2., 1.), pair(4., 1.), pair(3., 0.)], 0).unwrap();
    /// assert_eq!((contrast.auroc, contrast.length_auroc), (1., 0.5));
    /// ```
    pub fn of(pairs: &[Pair], seed: u64) -> Option<Self> {
        if pairs.len() < 2 {
            return None;
        }
        let positives: Vec<f64> = pairs.iter().map(|pair| pair.positive).collect();
        let negatives: Vec<f64> = pairs.iter().map(|pair| pair.negative).collect();
        let tokens = |f: fn(&Pair) -> usize| pairs.iter().map(|p| f(p) as f64).collect::<Vec<_>>();
        let lengths = (tokens(|p| p.positive_tokens), tokens(|p| p.negative_tokens));
        let (a, b) = (mean(&positives), mean(&negatives));
        Some(Self {
            n_pairs: pairs.len(),
            positive_mean: a,
            negative_mean: b,
            cohens_d: cohens_d(&positives, &negatives),
            auroc: auroc(&positives, &negatives),
            null_interval: null_interval(positives, negatives, seed),
            length_auroc: auroc(&lengths.0, &lengths.1),
        })
    }

    /// Whether the AUROC lies outside what swapped labels give.
    pub fn stands_out(&self) -> bool {
        self.auroc < self.null_interval.0 || self.auroc > self.null_interval.1
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Probability that a value of `positives` exceeds one of `negatives`, ties
/// counting half (the Mann–Whitney statistic over the number of pairs).
///
/// Both slices must hold something; values are ordered by [`f64::total_cmp`].
pub fn auroc(positives: &[f64], negatives: &[f64]) -> f64 {
    let mut values: Vec<(f64, bool)> = positives.iter().map(|v| (*v, true)).collect();
    values.extend(negatives.iter().map(|v| (*v, false)));
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Twice the number of negatives below each positive, so that ties stay whole.
    let (mut wins, mut below) = (0u64, 0u64);
    for ties in values.chunk_by(|a, b| a.0 == b.0) {
        let positive = ties.iter().filter(|(_, positive)| *positive).count() as u64;
        let negative = ties.len() as u64 - positive;
        wins += positive * (2 * below + negative);
        below += negative;
    }
    wins as f64 / (2. * positives.len() as f64 * negatives.len() as f64)
}

fn null_interval(mut positives: Vec<f64>, mut negatives: Vec<f64>, seed: u64) -> (f64, f64) {
    let mut random = SplitMix64::new(seed);
    let mut null: Vec<f64> = (0..SWAPS)
        .map(|_| {
            for (positive, negative) in positives.iter_mut().zip(&mut negatives) {
                if random.next_u64() >> 63 == 1 {
                    std::mem::swap(positive, negative);
                }
            }
            auroc(&positives, &negatives)
        })
        .collect();
    null.sort_by(f64::total_cmp);
    let tail = SWAPS / 40;
    (null[tail], null[SWAPS - 1 - tail])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(positive: f64, negative: f64) -> Pair {
        Pair { positive, negative, positive_tokens: 1, negative_tokens: 1 }
    }

    #[test]
    fn auroc_by_hand() {
        assert_eq!(auroc(&[1.], &[0.]), 1.);
        assert_eq!(auroc(&[0.], &[1.]), 0.);
        assert_eq!(auroc(&[1., 1.], &[1., 1.]), 0.5);
        // 2 beats 1 and ties with 2; 3 beats both: (1 + ½ + 1 + 1) / 4.
        assert_eq!(auroc(&[2., 3.], &[1., 2.]), 0.875);
    }

    #[test]
    fn labels_that_mean_nothing_do_not_stand_out() {
        let mut random = SplitMix64::new(7);
        let mut value = || (random.next_u64() >> 11) as f64;
        let pairs: Vec<Pair> = (0..100).map(|_| pair(value(), value())).collect();
        let contrast = Contrast::of(&pairs, 1).unwrap();
        assert!(!contrast.stands_out(), "{contrast:?}");
        assert!(contrast.null_interval.0 < 0.5 && contrast.null_interval.1 > 0.5);
        let shifted: Vec<Pair> =
            pairs.iter().map(|p| pair(p.positive + 1e16, p.negative)).collect();
        assert!(Contrast::of(&shifted, 1).unwrap().stands_out());
    }

    #[test]
    fn length_is_always_beside_it() {
        let pairs = [
            Pair { positive: 3., negative: 1., positive_tokens: 9, negative_tokens: 4 },
            Pair { positive: 4., negative: 2., positive_tokens: 8, negative_tokens: 5 },
        ];
        let contrast = Contrast::of(&pairs, 0).unwrap();
        assert_eq!((contrast.auroc, contrast.length_auroc), (1., 1.));
        assert!(Contrast::of(&pairs[..1], 0).is_none());
    }

    #[test]
    fn constant_groups_have_no_effect_size() {
        let contrast = Contrast::of(&[pair(2., 2.), pair(2., 2.)], 0).unwrap();
        assert_eq!((contrast.cohens_d, contrast.auroc), (None, 0.5));
    }

    #[test]
    fn the_seed_decides() {
        let pairs: Vec<Pair> = (0..30).map(|i| pair(f64::from(i % 7), f64::from(i % 5))).collect();
        assert_eq!(Contrast::of(&pairs, 3), Contrast::of(&pairs, 3));
    }
}
