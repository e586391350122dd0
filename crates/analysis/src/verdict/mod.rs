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
#[cfg(test)]
mod tests;
mod threshold;

use rayon::prelude::*;

use control::Covariates;
use resample::{Groups, Ranked, Repeats};

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
            Held { covariates, alone: estimate(&ranked, &labels, &resamples, Repeats::Texts) }
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
            estimate: estimate(&ranked, &self.labels, &self.resamples, Repeats::Texts),
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
        let estimate = estimate(&ranked, &self.labels, &self.resamples, Repeats::Texts);
        let (shared, matched) = match bins {
            Some(bins) => self.binned(values, &bins.of_text, confounder, Repeats::Texts),
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
        repeats: Repeats,
    ) -> (Shared, Option<Matched>) {
        let (shared, p) = control::stratified(values, &self.labels, bins);
        if shared.bins == 0 {
            return (shared, None);
        }
        let within = |values: &[Option<f64>]| Ranked::new(values, |text| Some(bins[text]));
        let estimate = estimate(&within(values), &self.labels, &self.resamples, repeats);
        // The confounder of those texts that have a value.
        let confounder: Vec<Option<f64>> =
            values.iter().zip(confounder).map(|(v, c)| v.map(|_| *c)).collect();
        let confounder_auroc = within(&confounder).auroc(&self.labels, |_| 1).unwrap_or(0.5);
        let tested = Tested { estimate, p, holm_p: p };
        (shared, Some(Matched { tested, confounder_auroc }))
    }

    fn within(&self, values: &[Option<f64>]) -> Option<Within> {
        let (_, length) = self.binned(values, &self.group_bins, &self.tokens, Repeats::Bins);
        let (_, log) =
            self.binned(values, &self.group_bins, &self.log_probabilities, Repeats::Bins);
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

fn estimate(
    ranked: &Ranked,
    labels: &[bool],
    resamples: &[Vec<u16>],
    repeats: Repeats,
) -> Estimate {
    Estimate {
        auroc: ranked.auroc(labels, |_| 1).unwrap_or(0.5),
        interval: ranked.interval(labels, resamples, repeats),
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
