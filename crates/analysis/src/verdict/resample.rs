//! Folds and bootstrap resamples that keep together what belongs together.
//!
//! What is dealt and drawn is a *group* of texts: a pair of a valid text and its
//! corrupted copy, the texts of one author, or, where nothing was said, each text
//! by itself. Groups with texts of both labels, of the one and of the other are
//! dealt and drawn apart, so that every fold and every resample has both.

use kernels::random::SplitMix64;

/// Texts as folds and resamples see them.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    /// The texts of each group, apart by the labels that are among them.
    strata: [Vec<Vec<usize>>; 3],
    n_texts: usize,
}

impl Groups {
    /// Groups texts that have the same number, in order of their first texts.
    pub(super) fn new(labels: &[bool], groups: &[usize]) -> Self {
        let mut members: Vec<(usize, usize)> = groups.iter().copied().zip(0..).collect();
        members.sort_unstable();
        let mut found: Vec<Vec<usize>> = members
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| group.iter().map(|(_, text)| *text).collect())
            .collect();
        found.sort_unstable_by_key(|group| group[0]);
        let mut strata = [vec![], vec![], vec![]];
        for group in found {
            let positives = group.iter().filter(|text| labels[**text]).count();
            let stratum = match positives {
                0 => 0,
                n if n == group.len() => 1,
                _ => 2,
            };
            strata[stratum].push(group);
        }
        Self { strata, n_texts: labels.len() }
    }

    /// Groups with a negative and groups with a positive text.
    pub(super) fn of_each_label(&self) -> [usize; 2] {
        let [negative, positive, both] = self.strata.each_ref().map(Vec::len);
        [negative + both, positive + both]
    }

    /// The fold of each text whose group has one of the `wanted` texts; `None` for others.
    pub(super) fn folds(
        &self,
        n_folds: usize,
        seed: u64,
        wanted: impl Fn(usize) -> bool,
    ) -> Vec<Option<usize>> {
        let mut random = SplitMix64::new(seed);
        let mut folds = vec![None; self.n_texts];
        let mut next = 0;
        for stratum in &self.strata {
            let mut dealt: Vec<&Vec<usize>> =
                stratum.iter().filter(|group| group.iter().any(|text| wanted(*text))).collect();
            for last in (1..dealt.len()).rev() {
                dealt.swap(last, below(&mut random, last + 1));
            }
            for group in dealt {
                group.iter().for_each(|text| folds[*text] = Some(next % n_folds));
                next += 1;
            }
        }
        folds
    }

    /// How often each text is drawn in each of `count` resamples with replacement.
    pub(super) fn bootstrap(&self, count: usize, seed: u64) -> Vec<Vec<u16>> {
        let mut random = SplitMix64::new(seed);
        let mut resample = || {
            let mut weights = vec![0u16; self.n_texts];
            for stratum in &self.strata {
                for _ in 0..stratum.len() {
                    for text in &stratum[below(&mut random, stratum.len())] {
                        weights[*text] = weights[*text].saturating_add(1);
                    }
                }
            }
            weights
        };
        (0..count).map(|_| resample()).collect()
    }
}

/// A uniform number below `n`, uneven by at most `n`/2⁶⁴.
fn below(random: &mut SplitMix64, n: usize) -> usize {
    ((u128::from(random.next_u64()) * n as u128) >> 64) as usize
}

/// Values in the order that AUROCs need, sorted once for all resamples.
///
/// Texts are compared with those of their own bin only.
pub(super) struct Ranked {
    /// Ascending within bins.
    texts: Vec<usize>,
    /// Where runs of equal values end in `texts`, and whether a bin ends there.
    runs: Vec<(usize, bool)>,
}

impl Ranked {
    /// Sorts texts with a value and a bin.
    pub(super) fn new(values: &[Option<f64>], bin: impl Fn(usize) -> Option<u64>) -> Self {
        let mut found: Vec<(u64, f64, usize)> = values
            .iter()
            .enumerate()
            .filter_map(|(text, value)| Some((bin(text)?, (*value)?, text)))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        let mut runs = Vec::new();
        for (i, pair) in found.windows(2).enumerate() {
            let same_bin = pair[0].0 == pair[1].0;
            if !same_bin || pair[0].1 != pair[1].1 {
                runs.push((i + 1, !same_bin));
            }
        }
        if !found.is_empty() {
            runs.push((found.len(), true));
        }
        Self { texts: found.into_iter().map(|(_, _, text)| text).collect(), runs }
    }

    /// Probability that a positive exceeds a negative of its bin, ties counting half,
    /// over all such pairs, text `i` standing `weight(i)` times; `None` without a pair.
    pub(super) fn auroc(&self, labels: &[bool], weight: impl Fn(usize) -> u64) -> Option<f64> {
        // Twice the wins, so that ties stay whole.
        let (mut wins, mut pairs) = (0u64, 0u64);
        let (mut start, mut below, mut positives) = (0, 0u64, 0u64);
        for &(end, last_of_bin) in &self.runs {
            let mut of_run = [0u64; 2];
            for &text in &self.texts[start..end] {
                of_run[usize::from(labels[text])] += weight(text);
            }
            wins += of_run[1] * (2 * below + of_run[0]);
            below += of_run[0];
            positives += of_run[1];
            if last_of_bin {
                pairs += positives * below;
                (below, positives) = (0, 0);
            }
            start = end;
        }
        (pairs > 0).then(|| wins as f64 / (2. * pairs as f64))
    }

    /// The 2.5 % and 97.5 % points of the AUROC over resamples; `None` if fewer than
    /// nine tenths of them have a pair.
    pub(super) fn interval(&self, labels: &[bool], resamples: &[Vec<u16>]) -> Option<(f64, f64)> {
        let aurocs = resamples.iter().filter_map(|w| self.auroc(labels, |text| u64::from(w[text])));
        percentiles(aurocs.collect(), resamples.len())
    }
}

/// The 2.5 % and 97.5 % points of a statistic over resamples; `None` if fewer than
/// nine tenths of `all` have it.
pub(super) fn percentiles(mut found: Vec<f64>, all: usize) -> Option<(f64, f64)> {
    if found.is_empty() || found.len() < all - all / 10 {
        return None;
    }
    found.sort_by(f64::total_cmp);
    let tail = found.len() / 40;
    Some((found[tail], found[found.len() - 1 - tail]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contrast::auroc;

    fn ones(_: usize) -> u64 {
        1
    }

    #[test]
    fn groups_stay_together_and_folds_are_even() {
        // 30 pairs, 10 single positives, 11 single negatives.
        let mut labels: Vec<bool> = (0..60).map(|i| i % 2 == 0).collect();
        let mut groups: Vec<usize> = (0..60).map(|i| i / 2).collect();
        labels.extend((0..21).map(|i| i < 10));
        groups.extend(100..121);
        let found = Groups::new(&labels, &groups);
        assert_eq!(found.of_each_label(), [41, 40]);
        let folds = found.folds(5, 3, |_| true);
        for pair in folds[..60].chunks(2) {
            assert_eq!(pair[0], pair[1]);
        }
        for fold in 0..5 {
            let of = |label: bool| {
                let here = folds.iter().zip(&labels);
                here.filter(|(f, l)| **f == Some(fold) && **l == label).count()
            };
            assert!((7..=9).contains(&of(true)) && (7..=9).contains(&of(false)));
        }
        let some = found.folds(5, 3, |text| text < 60);
        assert!(some[..60].iter().all(Option::is_some) && some[60..].iter().all(Option::is_none));
        for weights in found.bootstrap(20, 1) {
            let total = |range: std::ops::Range<usize>| {
                weights[range].iter().map(|w| usize::from(*w)).sum::<usize>()
            };
            assert_eq!((total(0..60), total(60..70), total(70..81)), (60, 10, 11));
            assert!(weights[..60].chunks(2).all(|pair| pair[0] == pair[1]));
        }
        assert_eq!(found.bootstrap(2, 9), found.bootstrap(2, 9));
    }

    #[test]
    fn weighted_aurocs_are_those_of_repeated_texts() {
        let mut random = SplitMix64::new(4);
        let n = 40;
        let values: Vec<Option<f64>> =
            (0..n).map(|_| Some((random.next_u64() % 12) as f64)).collect();
        let labels: Vec<bool> = (0..n).map(|_| random.next_u64() >> 63 == 1).collect();
        let ranked = Ranked::new(&values, |_| Some(0));
        for seed in 0..10 {
            let mut random = SplitMix64::new(seed);
            let weights: Vec<u64> = (0..n).map(|_| random.next_u64() % 4).collect();
            let of = |label: bool| -> Vec<f64> {
                let texts = (0..n).filter(|i| labels[*i] == label);
                texts
                    .flat_map(|i| std::iter::repeat_n(values[i].unwrap(), weights[i] as usize))
                    .collect()
            };
            let expected = auroc(&of(true), &of(false));
            assert_eq!(ranked.auroc(&labels, |i| weights[i]), Some(expected));
        }
    }

    #[test]
    fn bins_compare_within_themselves() {
        let values = [1., 2., 30., 20., 7.].map(Some);
        let labels = [false, true, false, true, true];
        // (1 < 2) is won, (20 < 30) lost, 7 has nobody to be compared with.
        let bins = [0, 0, 1, 1, 2];
        let ranked = Ranked::new(&values, |text| Some(bins[text]));
        assert_eq!(ranked.auroc(&labels, ones), Some(0.5));
        let none = Ranked::new(&values, |text| Some(text as u64));
        assert_eq!(none.auroc(&labels, ones), None);
        assert_eq!(none.interval(&labels, &[vec![1; 5]]), None);
        let empty = Ranked::new(&[None, None], |_| Some(0));
        assert_eq!(empty.auroc(&[true, false], ones), None);
    }

    #[test]
    fn intervals_cover_the_truth() {
        // Normal values one deviation apart: AUROC Φ(1/√2) = 0.7602.
        let mut random = SplitMix64::new(8);
        let mut covered = 0;
        for trial in 0..200 {
            let mut normal = || (0..12).map(|_| random.next_symmetric() / 2.).sum::<f64>();
            let labels: Vec<bool> = (0..80).map(|i| i < 40).collect();
            let values: Vec<Option<f64>> =
                labels.iter().map(|l| Some(normal() + f64::from(u8::from(*l)))).collect();
            let groups = Groups::new(&labels, &(0..80).collect::<Vec<_>>());
            let ranked = Ranked::new(&values, |_| Some(0));
            let (low, high) = ranked.interval(&labels, &groups.bootstrap(400, trial)).unwrap();
            covered += usize::from(low <= 0.7602 && 0.7602 <= high);
        }
        // 190 expected; the percentile interval is a little narrow.
        assert!((178..=198).contains(&covered), "{covered}");
    }
}
