//! A saved threshold applied to new texts.

use std::collections::BTreeSet;
use std::path::Path;

use analysis::spectral::{Exactness, Keep, Laplacian, Preset};
use analysis::verdict::Threshold;
use hooks::Selection;
use runner::Fingerprint;
use serde::Serialize;

use crate::job::Job;
use crate::recorders::spectral::{GraphChoice, Prefixes, SpectralOptions};
use crate::run::{Outcome, run};
use crate::summary::Tables;
use crate::tables::{prompts, verdicts};
use crate::verdicts::{SavedThreshold, column, differences, direction, measured, read};
use crate::{Error, Progress, Result};

/// Every Laplacian.
const LAPLACIANS: [Laplacian; 3] =
    [Laplacian::Combinatorial, Laplacian::SymmetricNormalized, Laplacian::RandomWalk];
/// The metric that is measured only where it is asked for.
const HIDDEN_SCORE: &str = "hidden_score";

/// New texts and what a threshold calls them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// The run that measured them.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The threshold, with the verdict about it.
    pub threshold: SavedThreshold,
    /// Texts whose lengths lie outside those that the threshold was set on.
    pub unusual_lengths: usize,
    /// Texts on the positive side.
    pub called_positive: usize,
    /// Each text, in the order of the run.
    pub scores: Vec<Score>,
}

/// One text against a threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The prompt.
    pub prompt: String,
    /// Its tokens.
    pub n_tokens: u32,
    /// Whether texts of such a length were among those that the threshold was set on.
    pub usual_length: bool,
    /// The metric.
    pub value: f64,
    /// How far it lies on the positive side of the threshold; negative on the other.
    pub margin: f64,
    /// The label of the side on which it lies.
    pub called: String,
}

/// Measures new texts as a saved threshold asks, calls them, and writes the table
/// `scores`. `job` says which model and texts; what is measured follows from the
/// threshold.
///
/// # Errors
///
/// Those of [`run`](crate::run()); [`Error::ThresholdDiffers`] for another model or other
/// tokens, [`Error::NoThreshold`], [`Error::Unscored`], and those of reading verdicts.
pub fn score(job: Job, from: &Path, progress: &mut dyn Progress) -> Result<Scores> {
    let threshold =
        read(from)?.threshold.ok_or_else(|| Error::NoThreshold { path: from.to_owned() })?;
    let job = Job { spectral: Some(options(&threshold)?), labels: None, ..job };
    // Before the weights are read, and before anything is written.
    let resolved = crate::models::resolve(&job.model.model, progress)?;
    let fingerprint = Fingerprint::of(&resolved.source)?;
    let here = measured(&job.describe(&fingerprint, resolved.origin.as_ref(), "", None));
    let differences = differences(&threshold.measured, &here);
    if !differences.is_empty() {
        return Err(Error::ThresholdDiffers { differences });
    }
    let outcome = run(&job, progress)?;
    let scores = read_scores(&job.out, &threshold)?;
    store::replace_table(&job.out, &verdicts::SCORES, verdicts::score_columns(&scores))?;
    Ok(Scores {
        outcome,
        unusual_lengths: scores.iter().filter(|score| !score.usual_length).count(),
        called_positive: scores.iter().filter(|s| s.called == threshold.positive).count(),
        scores,
        threshold,
    })
}

/// What must be measured for a threshold.
fn options(threshold: &SavedThreshold) -> Result<SpectralOptions> {
    let layer = threshold.layer as usize;
    let (mut presets, mut laplacians) = (BTreeSet::new(), BTreeSet::new());
    if let Some(laplacian) = &threshold.laplacian {
        presets.insert(named("preset", &threshold.preset, &Preset::ALL, Preset::name)?);
        laplacians.insert(named("Laplacian", laplacian, &LAPLACIANS, Laplacian::name)?);
    }
    Ok(SpectralOptions {
        presets,
        laplacians,
        exactness: match &threshold.solver {
            None => Exactness::Iterative,
            Some(solver) => named("solver", solver, &Exactness::ALL, Exactness::name)?,
        },
        hidden_score: threshold.metric == HIDDEN_SCORE,
        layers: Selection::Only(vec![(layer, layer)]),
        // The mean over heads is what counts; rows of single heads cannot be none.
        heads: Selection::Only(vec![(0, 0)]),
        graph: GraphChoice::Auto,
        prefixes: Prefixes::None,
        keep: Keep::default(),
    })
}

/// The choice of this name.
fn named<C: Copy>(
    what: &str,
    name: &str,
    known: &[C],
    name_of: fn(C) -> &'static str,
) -> Result<C> {
    known.iter().copied().find(|choice| name_of(*choice) == name).ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|choice| name_of(*choice)).collect();
        Error::ThresholdDiffers {
            differences: vec![format!("{what} was {name}, there are {}", known.join(", "))],
        }
    })
}

fn read_scores(run: &Path, threshold: &SavedThreshold) -> Result<Vec<Score>> {
    let tables = Tables::open(run)?;
    let values = column(&tables, threshold)?;
    let rule = Threshold { direction: direction(&threshold.direction), at: threshold.at };
    let mut scores = Vec::new();
    tables.each(&prompts::PROMPTS, |columns| {
        let tokens = columns.u32s("n_tokens")?;
        for (prompt, n_tokens) in columns.texts("prompt")?.into_iter().zip(tokens) {
            let n_tokens = n_tokens.unwrap_or(0);
            let unscored = |reason: &str| Error::Unscored {
                id: prompt.clone(),
                metric: threshold.metric.clone(),
                reason: reason.to_owned(),
            };
            let value = match values.get(&prompt) {
                Some(Ok(value)) => *value,
                Some(Err(reason)) => return Err(unscored(reason)),
                None => return Err(unscored("it was not measured as the threshold asks")),
            };
            let positive = rule.is_positive(value);
            scores.push(Score {
                usual_length: (threshold.least_tokens..=threshold.most_tokens).contains(&n_tokens),
                margin: if positive { 1. } else { -1. } * (value - threshold.at).abs(),
                called: if positive { &threshold.positive } else { &threshold.negative }.clone(),
                prompt,
                n_tokens,
                value,
            });
        }
        Ok(())
    })?;
    Ok(scores)
}
