//! Whether a metric tells two kinds of texts apart, or only their lengths, or only
//! how likely the model finds them.
//!
//! The decision that shapes this module: what a metric tells and what explains it
//! are one value. A [`Verdict`] is made by [`Study::judge`] alone, from texts whose
//! token counts and mean log-probabilities are known; it holds the AUROC only beside
//! the controls, so that nothing can print the one without the other.
//!
//! ```compile_fail,E0451
//! use analysis::verdict::{Finding, Verdict};
//!
//! // No verdict without what it rests on.
//! let verdict = Verdict { finding: Finding::Separates };
//! ```
//!
//! ```compile_fail,E0063
//! use analysis::verdict::Text;
//!
//! // No text without what could explain a difference.
//! let text = Text { positive: true, group: 0 };
//! ```
//!
//! # The rule
//!
//! α = 0.05. A family is the whole grid of metrics × layers that were tested, and
//! every kind of test is corrected over it by Holm's procedure. A test *holds* if its
//! corrected p is below α and the 95 % bootstrap interval of its AUROC leaves out ½,
//! on the side on which the metric's own AUROC lies.
//!
//! 1. The metric's own Mann–Whitney test does not hold: [`Finding::NotSignificant`].
//! 2. For length, then for mean log-probability: the test on what is left after
//!    regression, and the test within bins of like texts, must both hold. If one does
//!    not, the quantity explains the metric if it tells the labels apart by itself
//!    (the interval of its own AUROC leaves out ½) and either regression or the lack of like
//!    texts leaves nothing: [`Finding::Explained`]. Else it is not excluded as an
//!    explanation: [`Finding::NotExcluded`].
//! 3. Everything held: [`Finding::Separates`].
//!
//! To separate, five tests must hold at once. Each keeps the chance that any true
//! null of its kind is rejected in the whole grid at α, so their conjunction does, too.
//!
//! # What the tests assume
//!
//! Texts, or the groups of texts that were named, are independent. Mann–Whitney
//! tests take texts for independent within groups as well, which for pairs of like
//! texts makes their p larger than it need be, and for groups of one label smaller; the
//! intervals resample whole groups and the folds keep them together in either case.

mod control;
pub mod rank;
mod resample;
mod threshold;

use rayon::prelude::*;

use control::Covariates;
use resample::{Groups, Ranked};

pub use control::Shared;
pub use rank::Method;
pub use threshold::{Confusion, Direction, FOLDS, Nested, Threshold};

/// Level of every family of tests.
pub const ALPHA: f64 = 0.05;
/// Bootstrap resamples behind every interval.
pub const RESAMPLES: usize = 1000;
/// Groups of each label without which nothing is judged.
pub const LEAST_GROUPS: usize = 10;
/// Texts of each label that must share bins for a test within bins.
pub const LEAST_SHARED: usize = 10;
/// Most texts of a study: the resamples are held in memory, 2 kB a text.
pub const MOST_TEXTS: usize = 50_000;
/// Seed of the resamples.
pub const BOOTSTRAP_SEED: u64 = 1;
/// Seed of the folds behind regressions and thresholds.
pub const FOLD_SEED: u64 = 2;

/// One text: its label, and what besides a metric could tell labels apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Text {
    /// Whether it has the label that counts as 1.
    pub positive: bool,
    /// Its tokens.
    pub tokens: usize,
    /// Mean of `ln p` of its tokens after the first, in nats.
    pub mean_log_probability: f64,
    /// Texts with the same number belong together.
    pub group: usize,
}

/// What could explain that a metric tells labels apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confounder {
    /// The number of tokens.
    Length,
    /// The mean log-probability of the tokens.
    LogProbability,
}

/// What a verdict comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Labels are told apart, and neither length nor log-probability explains it.
    Separates,
    /// Labels are told apart no better than the confounder explains.
    Explained {
        /// By what.
        by: Confounder,
        /// Whether enough texts of both labels are alike in it. If not, nothing about
        /// these texts could tell the metric from the confounder.
        overlap: bool,
    },
    /// Labels are told apart, but a control neither holds nor explains it.
    NotExcluded {
        /// The control.
        by: Confounder,
    },
    /// Labels are not told apart.
    NotSignificant,
}

/// Why a cell has no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unjudged {
    /// Too few groups of texts with one of the labels have a value.
    TooFew {
        /// Groups with a negative text.
        negatives: usize,
        /// Groups with a positive text.
        positives: usize,
    },
    /// All values are equal.
    Constant,
}

/// An AUROC and its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Probability that a positive exceeds a negative, ties counting half.
    pub auroc: f64,
    /// Its 2.5 % and 97.5 % points over resamples of groups; `None` if more than a tenth
    /// of the resamples has no pair to compare.
    pub interval: Option<(f64, f64)>,
}

impl Estimate {
    /// The side of ½ on which the whole interval lies.
    fn side(&self) -> Option<Direction> {
        match self.interval? {
            (low, _) if low > 0.5 => Some(Direction::High),
            (_, high) if high < 0.5 => Some(Direction::Low),
            _ => None,
        }
    }
}

/// An AUROC with its test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tested {
    /// The AUROC.
    pub estimate: Estimate,
    /// Two-sided p of the Mann–Whitney test, stratified by bins where there are any.
    pub p: f64,
    /// The same after Holm's correction over the grid.
    pub holm_p: f64,
}

impl Tested {
    /// The side of ½ on which the test holds.
    fn holds(&self) -> Option<Direction> {
        self.estimate.side().filter(|_| self.holm_p < ALPHA)
    }
}

/// A metric within bins of texts that are alike in a confounder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matched {
    /// The metric within bins.
    pub tested: Tested,
    /// AUROC of the confounder itself within the same bins: ½ if they match well.
    pub confounder_auroc: f64,
}

/// A metric held against one confounder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Control {
    /// What the confounder alone tells.
    pub alone: Estimate,
    /// Squared correlation of the metric with the confounder, in sample; `None` if the
    /// confounder is constant.
    pub r_squared: Option<f64>,
    /// What is left of the metric when tokens `n` and `ln n`, and for log-probability
    /// that as well, are regressed out, fitted out of fold.
    pub residual: Tested,
    /// Width of the bins: for length how much longer the longest text of a bin may be
    /// than its shortest, as a share, for log-probability a share of all texts. The
    /// widest of a few within which the confounder itself does not tell labels apart
    /// (p of at least 0.05); `None` if there is none with [`LEAST_SHARED`] texts.
    pub bin_width: Option<f64>,
    /// Texts that have texts of the other label in their bin.
    pub shared: Shared,
    /// The metric within bins; `None` if fewer than [`LEAST_SHARED`] texts of a label
    /// share any.
    pub matched: Option<Matched>,
}

enum Outcome {
    Holds,
    Explains { overlap: bool },
    NotExcluded,
}

impl Control {
    fn outcome(&self, side: Direction) -> Outcome {
        let residual = self.residual.holds() == Some(side);
        let matched = self.matched.is_some_and(|matched| matched.tested.holds() == Some(side));
        match (residual, matched, self.matched.is_some()) {
            (true, true, _) => Outcome::Holds,
            _ if self.alone.side().is_none() => Outcome::NotExcluded,
            (_, _, false) => Outcome::Explains { overlap: false },
            (false, _, true) => Outcome::Explains { overlap: true },
            (true, false, true) => Outcome::NotExcluded,
        }
    }
}

/// Everything that could explain a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Controls {
    /// The number of tokens.
    pub length: Control,
    /// The mean log-probability, beside length.
    pub log_probability: Control,
}

/// A metric compared with others of its own group only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Within {
    /// The metric.
    pub metric: Tested,
    /// AUROC of the number of tokens within groups.
    pub length_auroc: f64,
    /// AUROC of the mean log-probability within groups.
    pub log_probability_auroc: f64,
}

/// Whether one metric of one layer tells labels apart, and what explains it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    n_positives: usize,
    n_negatives: usize,
    cohens_d: Option<f64>,
    own: Tested,
    method: Method,
    within: Option<Within>,
    threshold: Threshold,
    controls: Controls,
    finding: Finding,
}

impl Verdict {
    /// Positive texts with a value.
    pub fn n_positives(&self) -> usize {
        self.n_positives
    }

    /// Negative texts with a value.
    pub fn n_negatives(&self) -> usize {
        self.n_negatives
    }

    /// Difference of means over the pooled standard deviation (ddof 1).
    pub fn cohens_d(&self) -> Option<f64> {
        self.cohens_d
    }

    /// The metric's own AUROC and test.
    pub fn own(&self) -> &Tested {
        &self.own
    }

    /// How its p was found.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The metric within groups, where groups have texts of both labels.
    pub fn within(&self) -> Option<&Within> {
        self.within.as_ref()
    }

    /// The threshold fitted to all texts.
    pub fn threshold(&self) -> Threshold {
        self.threshold
    }

    /// What could explain it.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }

    /// What it comes to.
    pub fn finding(&self) -> Finding {
        self.finding
    }
}

fn finding(own: &Tested, controls: &Controls) -> Finding {
    let Some(side) = own.holds() else {
        return Finding::NotSignificant;
    };
    let of = [
        (Confounder::Length, &controls.length),
        (Confounder::LogProbability, &controls.log_probability),
    ];
    for (by, control) in of {
        match control.outcome(side) {
            Outcome::Holds => {}
            Outcome::Explains { overlap } => return Finding::Explained { by, overlap },
            Outcome::NotExcluded => return Finding::NotExcluded { by },
        }
    }
    Finding::Separates
}

/// Why texts cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// Too few groups of a label.
    #[error(
        "{negatives} independent texts with one label and {positives} with the other; a verdict needs {least} of each"
    )]
    TooFew {
        /// Groups with a negative text.
        negatives: usize,
        /// Groups with a positive text.
        positives: usize,
        /// How many of each are needed.
        least: usize,
    },
    /// More texts than are judged.
    #[error("{texts} texts are more than the {most} that are judged at once")]
    TooMany {
        /// The texts.
        texts: usize,
        /// The most.
        most: usize,
    },
    /// A log-probability that is none.
    #[error("the mean log-probability of text {text} is {value}")]
    LogProbability {
        /// The text's number.
        text: usize,
        /// The value.
        value: f64,
    },
}

/// Checks that there are enough groups of both labels, and not too many texts, before
/// anything is measured.
///
/// # Errors
///
/// [`Unfit::TooFew`], [`Unfit::TooMany`].
pub fn check(labels: &[bool], groups: &[usize]) -> Result<(), Unfit> {
    if labels.len() > MOST_TEXTS {
        return Err(Unfit::TooMany { texts: labels.len(), most: MOST_TEXTS });
    }
    let [negatives, positives] = Groups::new(labels, groups).of_each_label();
    if negatives.min(positives) < LEAST_GROUPS {
        return Err(Unfit::TooFew { negatives, positives, least: LEAST_GROUPS });
    }
    Ok(())
}

/// Texts whose metrics can be judged.
pub struct Study {
    labels: Vec<bool>,
    group_bins: Vec<u64>,
    groups: Groups,
    resamples: Vec<Vec<u16>>,
    folds: Vec<Option<usize>>,
    tokens: Vec<f64>,
    log_probabilities: Vec<f64>,
    length: Held,
    log_probability: Held,
}

/// A confounder with what does not depend on the metric.
struct Held {
    covariates: Covariates,
    alone: Estimate,
}

/// Everything about a grid of cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// A verdict for each cell.
    pub cells: Vec<Result<Verdict, Unjudged>>,
    /// Cells that were tested: the size of each family.
    pub tested: usize,
    /// What length alone tells.
    pub length: Estimate,
    /// What mean log-probability alone tells.
    pub log_probability: Estimate,
    /// The cell that a threshold on all texts would be chosen from, by inner folds.
    pub chosen: Option<usize>,
    /// How a threshold on a chosen cell does on texts that had no part in the choice.
    pub nested: Option<Nested>,
    /// The same with token count as the only cell.
    pub nested_length: Option<Nested>,
    /// The same with mean log-probability as the only cell.
    pub nested_log_probability: Option<Nested>,
}

impl Judgement {
    /// What it comes to as a whole, and the cell that says so: of the cells that
    /// separate, or else of those that tell labels apart, or else of all, the one whose
    /// AUROC lies farthest from ½; `None` if no cell was judged.
    pub fn overall(&self) -> Option<(usize, Finding)> {
        let rank = |finding| match finding {
            Finding::Separates => 2,
            Finding::NotSignificant => 0,
            _ => 1,
        };
        let judged = self.cells.iter().enumerate();
        let judged = judged.filter_map(|(i, cell)| Some((i, cell.as_ref().ok()?)));
        let far = |v: &Verdict| (v.own.estimate.auroc - 0.5).abs();
        let best = judged.reduce(|best, next| {
            let (a, b) = (rank(best.1.finding), rank(next.1.finding));
            if b > a || b == a && far(next.1) > far(best.1) { next } else { best }
        });
        best.map(|(i, verdict)| (i, verdict.finding))
    }
}

impl Study {
    /// Takes the texts.
    ///
    /// # Errors
    ///
    /// [`Unfit`].
    pub fn new(texts: &[Text]) -> Result<Self, Unfit> {
        let unknown = |t: &&(usize, f64)| !t.1.is_finite();
        let numbered: Vec<(usize, f64)> =
            texts.iter().map(|t| t.mean_log_probability).enumerate().collect();
        if let Some(&(text, value)) = numbered.iter().find(unknown) {
            return Err(Unfit::LogProbability { text, value });
        }
        let labels: Vec<bool> = texts.iter().map(|text| text.positive).collect();
        let group_of: Vec<usize> = texts.iter().map(|text| text.group).collect();
        check(&labels, &group_of)?;
        let groups = Groups::new(&labels, &group_of);
        let resamples = groups.bootstrap(RESAMPLES, BOOTSTRAP_SEED);
        let tokens: Vec<usize> = texts.iter().map(|text| text.tokens).collect();
        let log_probabilities: Vec<f64> = texts.iter().map(|t| t.mean_log_probability).collect();
        let held = |covariates, values: Vec<f64>| {
            let values: Vec<Option<f64>> = values.into_iter().map(Some).collect();
            let ranked = Ranked::new(&values, |_| Some(0));
            Held { covariates, alone: estimate(&ranked, &labels, &resamples) }
        };
        let counts: Vec<f64> = tokens.iter().map(|n| *n as f64).collect();
        Ok(Self {
            length: held(Covariates::length(&tokens, &labels), counts.clone()),
            log_probability: held(
                Covariates::log_probability(&tokens, &log_probabilities, &labels),
                log_probabilities.clone(),
            ),
            folds: groups.folds(FOLDS, FOLD_SEED, |_| true),
            group_bins: group_of.iter().map(|group| *group as u64).collect(),
            tokens: counts,
            log_probabilities,
            labels,
            groups,
            resamples,
        })
    }

    /// Judges a grid of cells: for each, the metric's value of every text, in the
    /// order of the texts; values that are not finite count as missing.
    ///
    /// # Shapes
    ///
    /// `cells`: `[cell][text]`. A cell's values beyond the texts are not looked at, and
    /// where it has fewer, values are missing.
    ///
    /// # Numerics
    ///
    /// The same texts and cells in the same order give the same bits, on any number of
    /// threads. A text without a value is left out of its cell; a cell with missing
    /// values has a verdict, but no part in choosing a threshold.
    pub fn judge(&self, cells: &[Vec<Option<f64>>]) -> Judgement {
        let n = self.labels.len();
        let values = |cell: &Vec<Option<f64>>| -> Vec<Option<f64>> {
            let finite = |text| cell.get(text).copied().flatten().filter(|v: &f64| v.is_finite());
            (0..n).map(finite).collect()
        };
        let drafts: Vec<Result<Draft, Unjudged>> =
            cells.par_iter().map(|cell| self.draft(&values(cell))).collect();
        let corrected = |p: fn(&Draft) -> Option<f64>| {
            let ps: Vec<Option<f64>> = drafts.iter().map(|d| p(d.as_ref().ok()?)).collect();
            rank::holm(&ps)
        };
        let own = corrected(|draft| Some(draft.own.p));
        let within = corrected(|draft| Some(draft.within?.metric.p));
        let residuals = [
            corrected(|draft| Some(draft.controls.length.residual.p)),
            corrected(|draft| Some(draft.controls.log_probability.residual.p)),
        ];
        let matched = [
            corrected(|draft| Some(draft.controls.length.matched?.tested.p)),
            corrected(|draft| Some(draft.controls.log_probability.matched?.tested.p)),
        ];
        let verdicts: Vec<Result<Verdict, Unjudged>> = drafts
            .into_iter()
            .enumerate()
            .map(|(i, draft)| {
                let mut draft = draft?;
                set(&mut draft.own, own[i]);
                if let Some(of) = &mut draft.within {
                    set(&mut of.metric, within[i]);
                }
                let controls = [&mut draft.controls.length, &mut draft.controls.log_probability];
                for (number, control) in controls.into_iter().enumerate() {
                    set(&mut control.residual, residuals[number][i]);
                    if let Some(of) = &mut control.matched {
                        set(&mut of.tested, matched[number][i]);
                    }
                }
                Ok(draft.verdict())
            })
            .collect();

        let grid: Vec<Option<threshold::Cell>> = cells
            .par_iter()
            .zip(&verdicts)
            .map(|(cell, verdict)| {
                verdict.is_ok().then(|| threshold::Cell::new(&values(cell))).flatten()
            })
            .collect();
        let nested = |cells: &[Option<threshold::Cell>]| {
            threshold::nested(cells, &self.labels, &self.groups, FOLD_SEED, &self.resamples)
        };
        let alone = |values: &[f64]| {
            let values: Vec<Option<f64>> = values.iter().copied().map(Some).collect();
            nested(&[threshold::Cell::new(&values)])
        };
        Judgement {
            tested: verdicts.iter().filter(|verdict| verdict.is_ok()).count(),
            length: self.length.alone,
            log_probability: self.log_probability.alone,
            chosen: threshold::choose(&grid, &self.labels, &self.groups, FOLD_SEED, |_| true),
            nested: nested(&grid),
            nested_length: alone(&self.tokens),
            nested_log_probability: alone(&self.log_probabilities),
            cells: verdicts,
        }
    }

    /// Everything about a cell but what depends on the others.
    fn draft(&self, values: &[Option<f64>]) -> Result<Draft, Unjudged> {
        let having: Vec<usize> = (0..values.len()).filter(|t| values[*t].is_some()).collect();
        let [negatives, positives] = {
            let of = |kept: &Vec<usize>| -> Vec<usize> {
                kept.iter().map(|t| self.group_bins[*t] as usize).collect()
            };
            let labels: Vec<bool> = having.iter().map(|t| self.labels[*t]).collect();
            Groups::new(&labels, &of(&having)).of_each_label()
        };
        if negatives.min(positives) < LEAST_GROUPS {
            return Err(Unjudged::TooFew { negatives, positives });
        }
        let of = |label: bool| -> Vec<f64> {
            having.iter().filter(|t| self.labels[**t] == label).filter_map(|t| values[*t]).collect()
        };
        let (positives, negatives) = (of(true), of(false));
        let threshold = threshold_of(values, &self.labels).ok_or(Unjudged::Constant)?;
        let test = rank::mann_whitney(&positives, &negatives).ok_or(Unjudged::Constant)?;
        let ranked = Ranked::new(values, |_| Some(0));
        let own = Tested {
            estimate: estimate(&ranked, &self.labels, &self.resamples),
            p: test.p,
            holm_p: test.p,
        };
        Ok(Draft {
            n_positives: positives.len(),
            n_negatives: negatives.len(),
            cohens_d: rank::cohens_d(&positives, &negatives),
            own,
            method: test.method,
            within: self.within(values),
            threshold,
            controls: Controls {
                length: self.control(values, &self.length, &self.tokens),
                log_probability: self.control(
                    values,
                    &self.log_probability,
                    &self.log_probabilities,
                ),
            },
        })
    }

    fn control(&self, values: &[Option<f64>], held: &Held, confounder: &[f64]) -> Control {
        let Covariates { columns, bins } = &held.covariates;
        let left = control::residuals(values, columns, &self.folds, FOLDS);
        let of = |label: bool| -> Vec<f64> {
            let texts = (0..left.len()).filter(|text| self.labels[*text] == label);
            texts.filter_map(|text| left[text]).collect()
        };
        let p = rank::mann_whitney(&of(true), &of(false)).map_or(1., |test| test.p);
        let ranked = Ranked::new(&left, |_| Some(0));
        let estimate = estimate(&ranked, &self.labels, &self.resamples);
        let (shared, matched) = match bins {
            Some(bins) => self.binned(values, &bins.of_text, confounder),
            None => (Shared::default(), None),
        };
        let enough = shared.negatives.min(shared.positives) >= LEAST_SHARED;
        Control {
            alone: held.alone,
            r_squared: control::r_squared(values, confounder),
            residual: Tested { estimate, p, holm_p: p },
            bin_width: bins.as_ref().map(|bins| bins.width),
            shared,
            matched: matched.filter(|_| enough),
        }
    }

    /// A metric and a confounder within bins; `None` if no bin has both labels.
    fn binned(
        &self,
        values: &[Option<f64>],
        bins: &[u64],
        confounder: &[f64],
    ) -> (Shared, Option<Matched>) {
        let (shared, p) = control::stratified(values, &self.labels, bins);
        if shared.bins == 0 {
            return (shared, None);
        }
        let within = |values: &[Option<f64>]| Ranked::new(values, |text| Some(bins[text]));
        let estimate = estimate(&within(values), &self.labels, &self.resamples);
        // The confounder of those texts that have a value.
        let confounder: Vec<Option<f64>> =
            values.iter().zip(confounder).map(|(v, c)| v.map(|_| *c)).collect();
        let confounder_auroc = within(&confounder).auroc(&self.labels, |_| 1).unwrap_or(0.5);
        let tested = Tested { estimate, p, holm_p: p };
        (shared, Some(Matched { tested, confounder_auroc }))
    }

    fn within(&self, values: &[Option<f64>]) -> Option<Within> {
        let (_, length) = self.binned(values, &self.group_bins, &self.tokens);
        let (_, log) = self.binned(values, &self.group_bins, &self.log_probabilities);
        let (length, log) = length.zip(log)?;
        Some(Within {
            metric: length.tested,
            length_auroc: length.confounder_auroc,
            log_probability_auroc: log.confounder_auroc,
        })
    }
}

fn set(tested: &mut Tested, holm_p: Option<f64>) {
    tested.holm_p = holm_p.unwrap_or(tested.p);
}

fn estimate(ranked: &Ranked, labels: &[bool], resamples: &[Vec<u16>]) -> Estimate {
    Estimate {
        auroc: ranked.auroc(labels, |_| 1).unwrap_or(0.5),
        interval: ranked.interval(labels, resamples),
    }
}

/// The threshold on all texts that have a value.
fn threshold_of(values: &[Option<f64>], labels: &[bool]) -> Option<Threshold> {
    let having: Vec<usize> = (0..values.len()).filter(|text| values[*text].is_some()).collect();
    let kept: Vec<Option<f64>> = having.iter().map(|text| values[*text]).collect();
    let labels: Vec<bool> = having.iter().map(|text| labels[*text]).collect();
    threshold::Cell::new(&kept)?.fit(&labels, |_| true)
}

/// A verdict before its p-values are corrected.
struct Draft {
    n_positives: usize,
    n_negatives: usize,
    cohens_d: Option<f64>,
    own: Tested,
    method: Method,
    within: Option<Within>,
    threshold: Threshold,
    controls: Controls,
}

impl Draft {
    fn verdict(self) -> Verdict {
        Verdict {
            finding: finding(&self.own, &self.controls),
            n_positives: self.n_positives,
            n_negatives: self.n_negatives,
            cohens_d: self.cohens_d,
            own: self.own,
            method: self.method,
            within: self.within,
            threshold: self.threshold,
            controls: self.controls,
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::random::SplitMix64;

    use super::*;

    /// Numbers for made-up texts.
    struct Made(SplitMix64);

    impl Made {
        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.0.next_symmetric()).sum::<f64>() / 2.
        }

        /// Texts of which positives are longer by this factor and likelier by this much.
        fn texts(&mut self, n: usize, longer: f64, likelier: f64) -> Vec<Text> {
            let mut text = |i: usize| {
                let positive = i % 2 == 1;
                let shift = f64::from(u8::from(positive));
                let tokens = 120. * (0.25 * self.normal() + longer.ln() * shift).exp();
                let mean_log_probability = -2. + 0.3 * self.normal() + likelier * shift;
                Text { positive, tokens: tokens as usize, mean_log_probability, group: i }
            };
            (0..n).map(&mut text).collect()
        }

        /// A grid of metrics that are a function of a text, and noise.
        fn grid(
            &mut self,
            texts: &[Text],
            n: usize,
            of: impl Fn(&Text) -> f64,
            noise: f64,
        ) -> Vec<Vec<Option<f64>>> {
            let mut cell = || texts.iter().map(|t| Some(of(t) + noise * self.normal())).collect();
            (0..n).map(|_| cell()).collect()
        }
    }

    fn findings(judgement: &Judgement) -> Vec<Finding> {
        judgement.cells.iter().flatten().map(Verdict::finding).collect()
    }

    #[test]
    fn an_effect_of_the_label_separates() {
        let mut made = Made(SplitMix64::new(1));
        let texts = made.texts(200, 1., 0.);
        let grid = made.grid(&texts, 20, |t| 1.2 * f64::from(u8::from(t.positive)), 1.);
        let found = Study::new(&texts).unwrap().judge(&grid);
        assert_eq!(findings(&found), [Finding::Separates; 20]);
        assert_eq!(found.overall().unwrap().1, Finding::Separates);
        let nested = found.nested.unwrap();
        assert!(nested.balanced_accuracy > 0.65, "{nested:?}");
        assert!(found.nested_length.unwrap().balanced_accuracy < 0.6);
    }

    #[test]
    fn a_metric_of_length_is_explained_by_length() {
        for (seed, curve) in [
            (2, (|n| 0.01 * n) as fn(f64) -> f64),
            (3, |n| 3. * n.ln()),
            (4, |n| 100. / n),
            (5, |n| -(0.01 * n).powi(2)),
            (6, |n| (n / 40.).sin()),
        ] {
            let mut made = Made(SplitMix64::new(seed));
            let texts = made.texts(300, 1.6, 0.);
            let grid = made.grid(&texts, 40, |t| curve(t.tokens as f64), 0.05);
            let found = Study::new(&texts).unwrap().judge(&grid);
            let explained = Finding::Explained { by: Confounder::Length, overlap: true };
            for cell in found.cells.iter().flatten() {
                assert_ne!(cell.finding(), Finding::Separates, "{seed}: {cell:?}");
            }
            if seed < 5 {
                assert_eq!(found.overall().unwrap().1, explained, "{seed}");
            }
        }
    }

    #[test]
    fn lengths_that_never_meet_cannot_be_told_from_the_label() {
        let mut made = Made(SplitMix64::new(6));
        let texts = made.texts(100, 9., 0.);
        // The label itself: nothing about these texts can show that it is not length.
        let grid = made.grid(&texts, 3, |t| 5. * f64::from(u8::from(t.positive)), 1.);
        let found = Study::new(&texts).unwrap().judge(&grid);
        let expected = Finding::Explained { by: Confounder::Length, overlap: false };
        assert_eq!(findings(&found), [expected; 3]);
        assert!(found.length.auroc > 0.99);
    }

    #[test]
    fn likelihood_explains_what_follows_it() {
        let mut made = Made(SplitMix64::new(7));
        let texts = made.texts(300, 1., 0.4);
        let grid = made.grid(&texts, 10, |t| t.mean_log_probability, 0.05);
        let found = Study::new(&texts).unwrap().judge(&grid);
        let expected = Finding::Explained { by: Confounder::LogProbability, overlap: true };
        assert_eq!(findings(&found), [expected; 10]);
    }

    #[test]
    fn noise_separates_in_no_more_than_a_twentieth_of_grids() {
        let mut made = Made(SplitMix64::new(8));
        let (mut own, mut separates) = (0, 0);
        for _ in 0..40 {
            let texts = made.texts(60, 1.3, 0.1);
            let grid = made.grid(&texts, 12, |_| 0., 1.);
            let found = findings(&Study::new(&texts).unwrap().judge(&grid));
            own += usize::from(found.iter().any(|f| *f != Finding::NotSignificant));
            separates += usize::from(found.contains(&Finding::Separates));
        }
        // Two of 40 expected at most, standard deviation 1.4.
        assert!(own <= 6 && separates <= 1, "{own} {separates}");
    }

    #[test]
    fn the_same_texts_give_the_same_bits() {
        let mut made = Made(SplitMix64::new(9));
        let texts = made.texts(60, 1.2, 0.1);
        let grid = made.grid(&texts, 5, |t| t.tokens as f64, 20.);
        let judge = || Study::new(&texts).unwrap().judge(&grid);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(judge(), one.install(judge));
    }

    #[test]
    fn pairs_are_compared_within_themselves() {
        let mut made = Made(SplitMix64::new(10));
        let mut texts = made.texts(80, 1., 0.);
        for pair in texts.chunks_mut(2) {
            (pair[1].group, pair[1].tokens) = (pair[0].group, pair[0].tokens);
        }
        // Pairs differ much from each other, and little but always within.
        let common: Vec<f64> = (0..40).map(|_| made.normal()).collect();
        let value = |i: usize| common[i / 2] + 0.05 * f64::from(u8::from(texts[i].positive));
        let grid = [(0..80).map(|i| Some(value(i))).collect::<Vec<_>>()];
        let found = Study::new(&texts).unwrap().judge(&grid);
        let verdict = found.cells[0].unwrap();
        let within = verdict.within().unwrap();
        assert_eq!((within.metric.estimate.auroc, within.length_auroc), (1., 0.5));
        assert!(within.metric.p < 1e-8 && verdict.own().p > 0.5);
        assert_eq!(verdict.finding(), Finding::NotSignificant);
    }

    #[test]
    fn what_cannot_be_judged_says_why() {
        let mut made = Made(SplitMix64::new(11));
        let texts = made.texts(40, 1., 0.);
        let few = Study::new(&texts[..18]).err().unwrap();
        assert_eq!(few, Unfit::TooFew { negatives: 9, positives: 9, least: LEAST_GROUPS });
        let mut together = texts.clone();
        together.iter_mut().for_each(|text| text.group %= 5);
        assert!(matches!(Study::new(&together), Err(Unfit::TooFew { .. })));
        let mut wrong = texts.clone();
        wrong[3].mean_log_probability = f64::NAN;
        assert!(matches!(Study::new(&wrong), Err(Unfit::LogProbability { text: 3, .. })));

        let study = Study::new(&texts).unwrap();
        let noise = made.grid(&texts, 1, |_| 0., 1.).remove(0);
        let mut holes = noise.clone();
        holes.iter_mut().take(22).for_each(|value| *value = None);
        let mut one_hole = noise.clone();
        one_hole[5] = Some(f64::INFINITY);
        let found = study.judge(&[vec![Some(1.); 40], holes, vec![], one_hole, noise]);
        assert_eq!(found.cells[0], Err(Unjudged::Constant));
        assert_eq!(found.cells[1], Err(Unjudged::TooFew { negatives: 9, positives: 9 }));
        assert_eq!(found.cells[2], Err(Unjudged::TooFew { negatives: 0, positives: 0 }));
        assert_eq!(found.cells[3].unwrap().n_positives(), 19);
        assert_eq!((found.tested, found.chosen), (2, Some(4)));
        assert_eq!(study.judge(&[]).overall(), None);
    }

    /// The golden statistics of `tests/golden/verdicts.py`.
    #[test]
    fn statistics_are_those_of_scipy_and_scikit_learn() {
        use serde_json::Value;

        let golden: Value =
            serde_json::from_str(include_str!("../../../../tests/golden/verdicts.json")).unwrap();
        let numbers = |value: &Value| -> Vec<f64> {
            value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let close = |what: &str, got: f64, expected: &Value| {
            let expected = expected.as_f64().unwrap();
            // Both sides round differently, a p-value by some 1e-14 of itself.
            let tolerance = 1e-10 * expected.abs().max(1e-3);
            assert!((got - expected).abs() <= tolerance, "{what}: {got:e} {expected:e}");
        };
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 6);
        for case in cases {
            let values = numbers(&case["values"]);
            let labels: Vec<bool> =
                case["labels"].as_array().unwrap().iter().map(|v| v.as_bool().unwrap()).collect();
            let of = |label: bool| -> Vec<f64> {
                let with = values.iter().zip(&labels).filter(|(_, l)| **l == label);
                with.map(|(v, _)| *v).collect()
            };
            let (a, b) = (of(true), of(false));
            let test = rank::mann_whitney(&a, &b).unwrap();
            close("auroc", test.auroc, &case["auroc"]);
            close("p", test.p, &case["p"]);
            let exact = case["method"] == "exact";
            assert_eq!(test.method, if exact { Method::Exact } else { Method::Normal });
            close("d", rank::cohens_d(&a, &b).unwrap(), &case["cohens_d"]);
            let some: Vec<Option<f64>> = values.iter().copied().map(Some).collect();
            let columns: Vec<Vec<f64>> =
                case["columns"].as_array().unwrap().iter().map(numbers).collect();
            let r = control::r_squared(&some, &columns[0]).unwrap();
            close("R²", r, &case["r_squared"]);
            let folds: Vec<Option<usize>> =
                numbers(&case["folds"]).into_iter().map(|f| Some(f as usize)).collect();
            let left = control::residuals(&some, &columns, &folds, 4);
            for (got, expected) in left.iter().zip(case["residuals"].as_array().unwrap()) {
                let difference = (got.unwrap() - expected.as_f64().unwrap()).abs();
                assert!(difference < 1e-9, "{got:?} {expected}");
            }
            let bins: Vec<u64> = numbers(&case["bins"]).into_iter().map(|b| b as u64).collect();
            let (_, p) = control::stratified(&some, &labels, &bins);
            close("stratified p", p, &case["stratified_p"]);
        }
        let p: Vec<Option<f64>> = numbers(&golden["holm"]["p"]).into_iter().map(Some).collect();
        for (got, expected) in
            rank::holm(&p).iter().zip(golden["holm"]["corrected"].as_array().unwrap())
        {
            close("Holm", got.unwrap(), expected);
        }
    }
}
