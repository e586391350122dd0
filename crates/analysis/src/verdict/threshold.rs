//! Thresholds, and how well a chosen one does on texts that had no part in the choice.
//!
//! The best of many cells looks good by having been chosen. So texts are dealt into
//! folds twice: within the texts of all outer folds but one, inner folds choose the
//! cell; the cell's direction and threshold are then fitted to those texts; and the
//! texts left out, once for each outer fold, say how well that does.

use super::resample::{Groups, percentiles};

/// Outer folds, and inner folds within each.
pub const FOLDS: usize = 5;

/// On which side of a threshold positives lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Positives lie above it.
    High,
    /// Positives lie at it or below.
    Low,
}

impl Direction {
    /// The name used in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
        }
    }
}

/// A rule: a text is positive if its value lies on one side of a threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// The side.
    pub direction: Direction,
    /// The threshold, halfway between two values that it was fitted to.
    pub at: f64,
}

impl Threshold {
    /// Whether a text with this value is called positive.
    pub fn is_positive(&self, value: f64) -> bool {
        (value > self.at) == (self.direction == Direction::High)
    }
}

/// Counts of what a rule called texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    /// Positives called positive.
    pub true_positives: u64,
    /// Positives called negative.
    pub false_negatives: u64,
    /// Negatives called negative.
    pub true_negatives: u64,
    /// Negatives called positive.
    pub false_positives: u64,
}

impl Confusion {
    fn add(&mut self, label: bool, called: bool, times: u64) {
        match (label, called) {
            (true, true) => self.true_positives += times,
            (true, false) => self.false_negatives += times,
            (false, false) => self.true_negatives += times,
            (false, true) => self.false_positives += times,
        }
    }

    /// Share of texts called what they are; `None` without texts.
    pub fn accuracy(&self) -> Option<f64> {
        let right = self.true_positives + self.true_negatives;
        let all = right + self.false_positives + self.false_negatives;
        (all > 0).then(|| right as f64 / all as f64)
    }

    /// Mean of that share among positives and among negatives: ½ by chance whatever
    /// the numbers of both; `None` without texts of both.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        let positives = self.true_positives + self.false_negatives;
        let negatives = self.true_negatives + self.false_positives;
        (positives > 0 && negatives > 0).then(|| {
            (self.true_positives as f64 / positives as f64
                + self.true_negatives as f64 / negatives as f64)
                / 2.
        })
    }
}

/// A metric of every text, sorted once.
pub(super) struct Cell {
    pub(super) values: Vec<f64>,
    ascending: Vec<usize>,
}

impl Cell {
    /// `None` if a text has no value.
    pub(super) fn new(values: &[Option<f64>]) -> Option<Self> {
        let values: Vec<f64> = values.iter().copied().collect::<Option<_>>()?;
        let mut ascending: Vec<usize> = (0..values.len()).collect();
        ascending.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
        Some(Self { values, ascending })
    }

    /// The threshold of the greatest balanced accuracy on some texts, the lowest of
    /// several; `None` if their values are all equal or a label is missing.
    pub(super) fn fit(&self, labels: &[bool], among: impl Fn(usize) -> bool) -> Option<Threshold> {
        let texts: Vec<usize> =
            self.ascending.iter().copied().filter(|text| among(*text)).collect();
        let positives = texts.iter().filter(|text| labels[**text]).count() as f64;
        let negatives = texts.len() as f64 - positives;
        if positives == 0. || negatives == 0. {
            return None;
        }
        // Positives and negatives at or below the cut.
        let mut below = [0f64; 2];
        let (mut best, mut found) = (-1., None);
        for pair in texts.windows(2) {
            below[usize::from(labels[pair[0]])] += 1.;
            let (low, high) = (self.values[pair[0]], self.values[pair[1]]);
            if low == high {
                continue;
            }
            let gain = below[0] / negatives - below[1] / positives;
            if gain.abs() > best {
                best = gain.abs();
                let middle = low + (high - low) / 2.;
                let at = if middle < high { middle } else { low };
                let direction = if gain < 0. { Direction::Low } else { Direction::High };
                found = Some(Threshold { direction, at });
            }
        }
        found
    }
}

/// How a threshold does on texts that had no part in choosing it.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    /// The cell that each outer fold's texts were called by; `None` where none was found.
    pub chosen: Vec<Option<usize>>,
    /// What the texts were called, over all outer folds.
    pub confusion: Confusion,
    /// Balanced accuracy over all outer folds.
    pub balanced_accuracy: f64,
    /// Its 2.5 % and 97.5 % points over bootstrap resamples of the texts, the calls
    /// being kept.
    pub interval: Option<(f64, f64)>,
}

/// The cell that inner folds choose among some texts: that of the greatest balanced
/// accuracy over the folds' left-out texts, the first of several.
pub(super) fn choose(
    cells: &[Option<Cell>],
    labels: &[bool],
    groups: &Groups,
    seed: u64,
    among: impl Fn(usize) -> bool,
) -> Option<usize> {
    let folds = groups.folds(FOLDS, seed, &among);
    let score = |cell: &Cell| {
        let mut confusion = Confusion::default();
        for fold in 0..FOLDS {
            let rest = |text: usize| folds[text].is_some_and(|f| f != fold);
            let Some(threshold) = cell.fit(labels, rest) else {
                continue;
            };
            for text in (0..labels.len()).filter(|text| folds[*text] == Some(fold)) {
                confusion.add(labels[text], threshold.is_positive(cell.values[text]), 1);
            }
        }
        confusion.balanced_accuracy()
    };
    let mut best: Option<(f64, usize)> = None;
    for (number, cell) in cells.iter().enumerate() {
        let Some(score) = cell.as_ref().and_then(score) else {
            continue;
        };
        if best.is_none_or(|(most, _)| score > most) {
            best = Some((score, number));
        }
    }
    best.map(|(_, number)| number)
}

/// Chooses and fits within all outer folds but one, calls the texts of that one, and
/// counts; `None` if no text could be called.
pub(super) fn nested(
    cells: &[Option<Cell>],
    labels: &[bool],
    groups: &Groups,
    seed: u64,
    resamples: &[Vec<u16>],
) -> Option<Nested> {
    let folds = groups.folds(FOLDS, seed, |_| true);
    let mut calls: Vec<Option<bool>> = vec![None; labels.len()];
    let mut chosen = Vec::with_capacity(FOLDS);
    for fold in 0..FOLDS {
        let rest = |text: usize| folds[text].is_some_and(|f| f != fold);
        // Other inner folds than the outer ones, and others for each outer fold.
        let inner = seed.wrapping_add(1 + fold as u64);
        let cell = choose(cells, labels, groups, inner, rest);
        chosen.push(cell);
        let Some(cell) = cell.and_then(|number| cells[number].as_ref()) else {
            continue;
        };
        let Some(threshold) = cell.fit(labels, rest) else {
            continue;
        };
        for text in (0..labels.len()).filter(|text| folds[*text] == Some(fold)) {
            calls[text] = Some(threshold.is_positive(cell.values[text]));
        }
    }
    let count = |weight: &dyn Fn(usize) -> u64| {
        let mut confusion = Confusion::default();
        for (text, call) in calls.iter().enumerate() {
            if let Some(call) = call {
                confusion.add(labels[text], *call, weight(text));
            }
        }
        confusion
    };
    let confusion = count(&|_| 1);
    let resampled = resamples
        .iter()
        .filter_map(|weights| count(&|text| u64::from(weights[text])).balanced_accuracy());
    Some(Nested {
        chosen,
        balanced_accuracy: confusion.balanced_accuracy()?,
        interval: percentiles(resampled.collect(), resamples.len()),
        confusion,
    })
}

#[cfg(test)]
mod tests {
    use kernels::random::SplitMix64;

    use super::*;

    fn cell(values: &[f64]) -> Cell {
        Cell::new(&values.iter().copied().map(Some).collect::<Vec<_>>()).unwrap()
    }

    /// Every cut between two values, in both directions.
    fn by_search(values: &[f64], labels: &[bool]) -> f64 {
        let mut best = 0f64;
        for at in values {
            for direction in [Direction::High, Direction::Low] {
                let mut confusion = Confusion::default();
                for (value, label) in values.iter().zip(labels) {
                    confusion.add(*label, Threshold { direction, at: *at }.is_positive(*value), 1);
                }
                best = best.max(confusion.balanced_accuracy().unwrap());
            }
        }
        best
    }

    #[test]
    fn fitted_thresholds_are_the_best() {
        let mut random = SplitMix64::new(2);
        for _ in 0..50 {
            let values: Vec<f64> = (0..20).map(|_| (random.next_u64() % 10) as f64).collect();
            let labels: Vec<bool> =
                (0..20).map(|i| i < 2 || i > 3 && random.next_u64() >> 63 == 1).collect();
            let fit = cell(&values).fit(&labels, |_| true).unwrap();
            let mut confusion = Confusion::default();
            for (value, label) in values.iter().zip(&labels) {
                confusion.add(*label, fit.is_positive(*value), 1);
            }
            let got = confusion.balanced_accuracy().unwrap();
            assert!((got - by_search(&values, &labels)).abs() < 1e-12);
        }
    }

    #[test]
    fn thresholds_by_hand() {
        let labels = [false, false, true, true];
        let high = cell(&[1., 2., 4., 9.]).fit(&labels, |_| true).unwrap();
        assert_eq!(high, Threshold { direction: Direction::High, at: 3. });
        let low = cell(&[4., 9., 1., 2.]).fit(&labels, |_| true).unwrap();
        assert_eq!(low, Threshold { direction: Direction::Low, at: 3. });
        assert!(low.is_positive(3.) && !low.is_positive(3.1));
        assert_eq!(cell(&[1.; 4]).fit(&labels, |_| true), None);
        assert_eq!(cell(&[1., 2., 3., 4.]).fit(&labels, |text| text < 2), None);
        // Neighbouring numbers have nothing between them, and are told apart all the same.
        let next = 1f64.next_up();
        let close = cell(&[1., 1., next, next]).fit(&labels, |_| true).unwrap();
        assert!(close.is_positive(next) && !close.is_positive(1.));
        assert!(Cell::new(&[Some(1.), None]).is_none());
    }

    #[test]
    fn the_best_of_many_random_cells_does_no_better_than_chance() {
        let mut random = SplitMix64::new(21);
        let n = 60;
        let labels: Vec<bool> = (0..n).map(|i| i % 2 == 0).collect();
        let groups = Groups::new(&labels, &(0..n).collect::<Vec<_>>());
        let (mut naive, mut honest) = (0., 0.);
        for seed in 0..20 {
            let cells: Vec<Option<Cell>> = (0..100)
                .map(|_| Some(cell(&(0..n).map(|_| random.next_symmetric()).collect::<Vec<_>>())))
                .collect();
            let found = nested(&cells, &labels, &groups, seed, &[]).unwrap();
            honest += found.balanced_accuracy / 20.;
            let best = cells.iter().flatten().map(|cell| {
                let fit = cell.fit(&labels, |_| true).unwrap();
                let right = (0..n).filter(|i| fit.is_positive(cell.values[*i]) == labels[*i]);
                right.count() as f64 / n as f64
            });
            naive += best.fold(0., f64::max) / 20.;
        }
        assert!(naive > 0.7, "{naive}");
        assert!((honest - 0.5).abs() < 0.06, "{honest}");
    }

    #[test]
    fn what_separates_is_found() {
        let n = 60;
        let labels: Vec<bool> = (0..n).map(|i| i % 2 == 0).collect();
        let groups = Groups::new(&labels, &(0..n).collect::<Vec<_>>());
        let mut random = SplitMix64::new(5);
        let noise = cell(&(0..n).map(|_| random.next_symmetric()).collect::<Vec<_>>());
        let good = cell(&labels.iter().map(|l| if *l { -1. } else { 1. }).collect::<Vec<_>>());
        let cells = [Some(noise), None, Some(good)];
        let resamples = groups.bootstrap(50, 1);
        let found = nested(&cells, &labels, &groups, 0, &resamples).unwrap();
        assert_eq!(found.chosen, [Some(2); FOLDS]);
        assert_eq!((found.balanced_accuracy, found.interval), (1., Some((1., 1.))));
        assert_eq!(found.confusion.accuracy(), Some(1.));
        assert_eq!(choose(&cells, &labels, &groups, 0, |_| true), Some(2));
        assert!(nested(&[None], &labels, &groups, 0, &[]).is_none());
    }
}
