//! What else could tell the labels apart, and what a metric still tells without it.
//!
//! Two things are held against every metric: a text's length and its mean
//! log-probability. Each in two ways, because each way has a hole. Regression
//! takes out a smooth dependence and leaves what the curve misses; bins of like
//! texts need no curve, but there may be too few such texts.

use super::rank::{mean, two_sided, variance};
use super::{ALPHA, LEAST_SHARED};

/// One confounder of every text, as regressions and bins take it.
#[derive(Clone, Debug)]
pub(super) struct Covariates {
    /// Columns that are regressed out together, beside an intercept.
    pub(super) columns: Vec<Vec<f64>>,
    /// Bins of texts that are alike in it; `None` if no bins would do.
    pub(super) bins: Option<Bins>,
}

/// Bins of texts that are alike.
#[derive(Clone, Debug)]
pub(super) struct Bins {
    /// The bin of each text.
    pub(super) of_text: Vec<u64>,
    /// How wide they are.
    pub(super) width: f64,
}

/// Widths of bins of length, from the widest: how much longer one text may be than
/// another. Of width 0 they hold texts of equal length.
const LENGTH_WIDTHS: [f64; 3] = [0.05, 0.02, 0.];
/// Widths of bins of log-probability, from the widest: shares of all texts.
const LOG_PROBABILITY_WIDTHS: [f64; 4] = [0.1, 0.05, 0.02, 0.01];

impl Covariates {
    /// Length: the columns `n` and `ln n`.
    pub(super) fn length(tokens: &[usize], labels: &[bool]) -> Self {
        let n: Vec<f64> = tokens.iter().map(|n| *n as f64).collect();
        let ln = n.iter().map(|n| n.max(1.).ln()).collect();
        let candidates = LENGTH_WIDTHS.map(|width| Bins {
            of_text: tokens.iter().map(|n| length_bin(*n, width)).collect(),
            width,
        });
        Self { bins: widest(candidates, &n, labels), columns: vec![n, ln] }
    }

    /// Mean log-probability, with length: the columns `n`, `ln n` and the log-probability.
    pub(super) fn log_probability(
        tokens: &[usize],
        mean_log_probability: &[f64],
        labels: &[bool],
    ) -> Self {
        let mut columns = Self::length(tokens, labels).columns;
        columns.push(mean_log_probability.to_vec());
        let mut ascending = mean_log_probability.to_vec();
        ascending.sort_by(f64::total_cmp);
        let n = ascending.len().max(1) as f64;
        // Of equal values all lie where the first of them does.
        let place = |value: &f64| ascending.partition_point(|other| other < value) as f64 / n;
        let candidates = LOG_PROBABILITY_WIDTHS.map(|width| Bins {
            of_text: mean_log_probability.iter().map(|v| (place(v) / width) as u64).collect(),
            width,
        });
        Self { bins: widest(candidates, mean_log_probability, labels), columns }
    }
}

/// The first bins with enough texts of both labels within which the confounder does
/// not tell labels apart. What follows it cannot, either, within them.
fn widest(candidates: impl IntoIterator<Item = Bins>, of: &[f64], labels: &[bool]) -> Option<Bins> {
    let values: Vec<Option<f64>> = of.iter().copied().map(Some).collect();
    candidates.into_iter().find(|bins| {
        let (shared, p) = stratified(&values, labels, &bins.of_text);
        shared.negatives.min(shared.positives) >= LEAST_SHARED && p >= ALPHA
    })
}

fn length_bin(tokens: usize, width: f64) -> u64 {
    // Below this length a step is less than a token.
    let exact = if width > 0. { (1. / width).floor() } else { f64::INFINITY };
    if tokens as f64 <= exact {
        return tokens as u64;
    }
    exact as u64 + ((tokens as f64 / exact).ln() / width.ln_1p()).ceil() as u64
}

/// What is left of the values when the columns are regressed out, each text's by a
/// fit to the other folds' texts. Labels are not looked at.
///
/// # Numerics
///
/// Centred columns are made orthogonal one after the other; one of which less than
/// 1e-12 of its sum of squares is left, as of one that is constant or repeats another,
/// is left out. Without any, the fit is the mean.
pub(super) fn residuals(
    values: &[Option<f64>],
    columns: &[Vec<f64>],
    folds: &[Option<usize>],
    n_folds: usize,
) -> Vec<Option<f64>> {
    let mut left = vec![None; values.len()];
    for fold in 0..n_folds {
        let fitted: Vec<(usize, f64)> = (0..values.len())
            .filter(|text| folds[*text].is_some_and(|f| f != fold))
            .filter_map(|text| Some((text, values[text]?)))
            .collect();
        if fitted.is_empty() {
            continue;
        }
        let fit = Fit::new(&fitted, columns);
        for text in (0..values.len()).filter(|text| folds[*text] == Some(fold)) {
            left[text] = values[text].map(|value| value - fit.predict(text, columns));
        }
    }
    left
}

/// A least-squares fit on orthogonal columns.
struct Fit {
    mean: f64,
    /// Of each column that is kept: its number, its mean, its coefficients on the kept
    /// columns before it, and its own coefficient in the fit.
    kept: Vec<(usize, f64, Vec<f64>, f64)>,
}

impl Fit {
    fn new(texts: &[(usize, f64)], columns: &[Vec<f64>]) -> Self {
        let n = texts.len() as f64;
        let mean = texts.iter().map(|(_, value)| value).sum::<f64>() / n;
        let mut kept: Vec<(usize, f64, Vec<f64>, f64)> = Vec::new();
        let mut orthogonal: Vec<(Vec<f64>, f64)> = Vec::new();
        for (number, column) in columns.iter().enumerate() {
            let column_mean = texts.iter().map(|(text, _)| column[*text]).sum::<f64>() / n;
            let mut rest: Vec<f64> =
                texts.iter().map(|(text, _)| column[*text] - column_mean).collect();
            let squares: f64 = rest.iter().map(|v| v * v).sum();
            let mut on_earlier = Vec::with_capacity(orthogonal.len());
            for (other, other_squares) in &orthogonal {
                let share = dot(&rest, other) / other_squares;
                rest.iter_mut().zip(other).for_each(|(r, o)| *r -= share * o);
                on_earlier.push(share);
            }
            let left = dot(&rest, &rest);
            // Rounding of a constant column is of the order of its mean's last digit.
            if left <= 1e-12 * squares || left <= n * (1e-12 * column_mean).powi(2) {
                continue;
            }
            let value: f64 = texts.iter().zip(&rest).map(|((_, v), r)| (v - mean) * r).sum();
            kept.push((number, column_mean, on_earlier, value / left));
            orthogonal.push((rest, left));
        }
        Self { mean, kept }
    }

    fn predict(&self, text: usize, columns: &[Vec<f64>]) -> f64 {
        let mut orthogonal: Vec<f64> = Vec::with_capacity(self.kept.len());
        let mut value = self.mean;
        for (number, mean, on_earlier, coefficient) in &self.kept {
            let mut rest = columns[*number][text] - mean;
            rest -= dot(on_earlier, &orthogonal);
            value += coefficient * rest;
            orthogonal.push(rest);
        }
        value
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Squared correlation of the values with a column; `None` if one of them is constant.
pub(super) fn r_squared(values: &[Option<f64>], column: &[f64]) -> Option<f64> {
    let pairs: Vec<(f64, f64)> =
        values.iter().zip(column).filter_map(|(v, c)| Some(((*v)?, *c))).collect();
    let n = pairs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (a, b) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let sum =
        |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|p| of(p.0 - a, p.1 - b)).sum::<f64>();
    let (xx, yy, xy) = (sum(&|x, _| x * x), sum(&|_, y| y * y), sum(&|x, y| x * y));
    (xx > 0. && yy > 0.).then(|| (xy * xy / (xx * yy)).min(1.))
}

/// Texts that have texts of the other label in their bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Bins with both labels.
    pub bins: usize,
    /// Negatives in them.
    pub negatives: usize,
    /// Positives in them.
    pub positives: usize,
}

/// Which texts share bins, and the p-value of a stratified Mann–Whitney test:
/// `U` summed over bins against the sum of its means and variances in them, ties
/// and correction as in [`mann_whitney`](super::rank::mann_whitney).
pub(super) fn stratified(values: &[Option<f64>], labels: &[bool], bins: &[u64]) -> (Shared, f64) {
    let mut found: Vec<(u64, f64, bool)> = (0..values.len())
        .filter_map(|text| Some((bins[text], values[text]?, labels[text])))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let (mut shared, mut difference, mut squares) = (Shared::default(), 0., 0.);
    for bin in found.chunk_by(|a, b| a.0 == b.0) {
        let of = |label: bool| -> Vec<f64> {
            bin.iter().filter(|text| text.2 == label).map(|text| text.1).collect()
        };
        let (positives, negatives) = (of(true), of(false));
        let (n1, n0) = (positives.len(), negatives.len());
        if n1 == 0 || n0 == 0 {
            continue;
        }
        let all: Vec<f64> = bin.iter().map(|text| text.1).collect();
        let pairs = n1 as f64 * n0 as f64;
        difference += crate::contrast::auroc(&positives, &negatives) * pairs - mean(n1, n0);
        squares += variance(&all, n1, n0);
        shared.bins += 1;
        shared.negatives += n0;
        shared.positives += n1;
    }
    (shared, two_sided(difference, squares))
}

#[cfg(test)]
mod tests {
    use kernels::random::SplitMix64;

    use super::super::rank::mann_whitney;
    use super::*;

    #[test]
    fn bins_of_length_are_no_wider_than_a_step() {
        for width in LENGTH_WIDTHS {
            let mut shortest = 1;
            for tokens in 1..3000 {
                if length_bin(tokens, width) != length_bin(shortest, width) {
                    assert!(length_bin(tokens, width) > length_bin(shortest, width));
                    shortest = tokens;
                }
                let ratio = tokens as f64 / shortest as f64;
                assert!(ratio <= 1. + width + 1e-12, "{width}: {shortest} to {tokens}");
            }
        }
    }

    #[test]
    fn bins_narrow_until_the_confounder_is_even_in_them() {
        // Positives are longer by one token: 5 % are too wide, and no two are equal.
        let tokens: Vec<usize> = (0..200).map(|i| 50 + 10 * (i / 2) + i % 2).collect();
        let labels: Vec<bool> = (0..200).map(|i| i % 2 == 1).collect();
        assert!(Covariates::length(&tokens, &labels).bins.is_none());
        // Every length stands once with each label.
        let equal: Vec<usize> = (0..200).map(|i| 50 + i / 2).collect();
        assert_eq!(Covariates::length(&equal, &labels).bins.unwrap().width, 0.05);
        // No length has both labels.
        let apart: Vec<usize> = (0..200).map(|i| 50 + 400 * (i % 2) + i / 2).collect();
        assert!(Covariates::length(&apart, &labels).bins.is_none());
        let alike = vec![-1.5; 200];
        let of = Covariates::log_probability(&equal, &alike, &labels);
        assert_eq!((of.bins.unwrap().of_text, of.columns.len()), (vec![0; 200], 3));
    }

    /// Normal equations solved by elimination: the plain reference.
    fn reference(values: &[f64], columns: &[Vec<f64>], folds: &[Option<usize>]) -> Vec<f64> {
        let width = columns.len() + 1;
        let row = |text: usize| -> Vec<f64> {
            std::iter::once(1.).chain(columns.iter().map(|column| column[text])).collect()
        };
        let fit = |fold| {
            let mut m = vec![vec![0.; width + 1]; width];
            for text in (0..values.len()).filter(|text| folds[*text] != fold) {
                let x = row(text);
                for i in 0..width {
                    (0..width).for_each(|j| m[i][j] += x[i] * x[j]);
                    m[i][width] += x[i] * values[text];
                }
            }
            for i in 0..width {
                let pivot = m[i].clone();
                for other in (0..width).filter(|other| *other != i) {
                    let factor = m[other][i] / pivot[i];
                    (0..=width).for_each(|k| m[other][k] -= factor * pivot[k]);
                }
            }
            (0..width).map(|i| m[i][width] / m[i][i]).collect::<Vec<f64>>()
        };
        (0..values.len()).map(|text| values[text] - dot(&fit(folds[text]), &row(text))).collect()
    }

    fn sample(n: usize, seed: u64) -> (Vec<f64>, Vec<usize>, Vec<f64>, Vec<Option<usize>>) {
        let mut random = SplitMix64::new(seed);
        let tokens: Vec<usize> = (0..n).map(|_| 30 + (random.next_u64() % 200) as usize).collect();
        let log: Vec<f64> = (0..n).map(|_| -2. + random.next_symmetric()).collect();
        let values = (0..n)
            .map(|i| 0.01 * tokens[i] as f64 + 0.3 * log[i] + random.next_symmetric())
            .collect();
        (values, tokens, log, (0..n).map(|i| Some(i % 4)).collect())
    }

    #[test]
    fn residuals_are_those_of_the_normal_equations() {
        let (values, tokens, log, folds) = sample(60, 3);
        let covariates = Covariates::log_probability(&tokens, &log, &[false; 60]);
        let some: Vec<Option<f64>> = values.iter().copied().map(Some).collect();
        let got = residuals(&some, &covariates.columns, &folds, 4);
        for (got, expected) in got.iter().zip(reference(&values, &covariates.columns, &folds)) {
            assert!((got.unwrap() - expected).abs() < 1e-8, "{got:?} {expected}");
        }
    }

    #[test]
    fn what_is_a_function_of_length_leaves_nothing() {
        let (_, tokens, _, folds) = sample(60, 4);
        let value = |n: &usize| Some(3. - 0.5 * *n as f64 + 7. * (*n as f64).ln());
        let values: Vec<Option<f64>> = tokens.iter().map(value).collect();
        let left =
            residuals(&values, &Covariates::length(&tokens, &[false; 60]).columns, &folds, 4);
        assert!(left.iter().all(|v| v.unwrap().abs() < 1e-9), "{left:?}");
    }

    #[test]
    fn columns_that_say_nothing_are_left_out() {
        // Of equal lengths only the mean of the other folds is taken out.
        let values = [1., 2., 3., 6.].map(Some);
        let folds = [0, 1, 0, 1].map(Some);
        let left =
            residuals(&values, &Covariates::length(&[77; 4], &[false; 4]).columns, &folds, 2);
        assert_eq!(left, [1. - 4., 2. - 2., 3. - 4., 6. - 2.].map(Some));
        let copy = vec![vec![1., 2., 3., 4.], vec![2., 4., 6., 8.]];
        let one = residuals(&values, &copy[..1], &folds, 2);
        for (a, b) in one.iter().zip(residuals(&values, &copy, &folds, 2)) {
            assert!((a.unwrap() - b.unwrap()).abs() < 1e-12);
        }
        assert_eq!(residuals(&[None, Some(1.)], &[], &[Some(0), Some(1)], 2), [None, None]);
    }

    #[test]
    fn labels_play_no_part_in_residuals_of_constant_length() {
        let (values, _, _, folds) = sample(40, 6);
        let some: Vec<Option<f64>> = values.into_iter().map(Some).collect();
        let left =
            residuals(&some, &Covariates::length(&[50; 40], &[false; 40]).columns, &folds, 4);
        for fold in 0..4 {
            // Within a fold one number is subtracted from all.
            let shifts: Vec<f64> = (0..40)
                .filter(|i| folds[*i] == Some(fold))
                .map(|i| some[i].unwrap() - left[i].unwrap())
                .collect();
            assert!(shifts.iter().all(|s| (s - shifts[0]).abs() < 1e-12));
        }
    }

    #[test]
    fn r_squared_by_hand() {
        assert_eq!(r_squared(&[Some(1.), Some(2.), None], &[5., 7., 0.]), Some(1.));
        // Correlation −½ of (1, 2, 3) and (1, 0, 0)·: cov = −1, variances 2 and 2/3.
        let r = r_squared(&[1., 2., 3.].map(Some), &[1., 0., 0.]).unwrap();
        assert!((r - 0.75).abs() < 1e-15);
        assert_eq!(r_squared(&[1., 1.].map(Some), &[1., 2.]), None);
        assert_eq!(r_squared(&[], &[]), None);
    }

    #[test]
    fn one_bin_is_the_plain_test_and_bins_add_up() {
        let (values, _, _, _) = sample(50, 9);
        let labels: Vec<bool> = (0..50).map(|i| i % 3 == 0).collect();
        let some: Vec<Option<f64>> = values.iter().copied().map(Some).collect();
        let of = |label: bool| -> Vec<f64> {
            (0..50).filter(|i| labels[*i] == label).map(|i| values[i]).collect()
        };
        let (shared, p) = stratified(&some, &labels, &[4; 50]);
        assert_eq!(shared, Shared { bins: 1, negatives: 33, positives: 17 });
        assert!((p - mann_whitney(&of(true), &of(false)).unwrap().p).abs() < 1e-14);
        // Pairs of one and one: a sign test, variance ¼ each; 16 of 20 won.
        let values: Vec<Option<f64>> = (0..40)
            .map(|i| {
                Some(
                    if i % 2 == 0 || i >= 32 { 1. } else { 0. }
                        + f64::from(i % 2 * u8::from(i >= 32)),
                )
            })
            .collect();
        let labels: Vec<bool> = (0..40).map(|i| i % 2 == 0).collect();
        let bins: Vec<u64> = (0..40).map(|i| i / 2).collect();
        let (shared, p) = stratified(&values, &labels, &bins);
        assert_eq!(shared, Shared { bins: 20, negatives: 20, positives: 20 });
        assert!((p - two_sided(6., 5.)).abs() < 1e-15);
        let apart = stratified(&values, &labels, &(0..40).collect::<Vec<_>>());
        assert_eq!(apart, (Shared::default(), 1.));
    }
}
