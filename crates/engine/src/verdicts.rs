//! Verdicts of a finished run: what its metrics tell about its labels, beside what
//! length and log-probability tell.
//!
//! Verdicts are made from the run's tables and from nothing else, so that a finished
//! run can be judged again at any time, with the same numbers.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use analysis::verdict::{
    self, ALPHA, BOOTSTRAP_SEED, Confounder, Direction, FOLD_SEED, FOLDS, Finding, Judgement,
    LEAST_GROUPS, LEAST_SHARED, Method, RESAMPLES, Study, Text, Unjudged, Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{ColumnKind, Reader};

use crate::labels::{names, number};
use crate::summary::{Columns, Tables};
use crate::tables::spectral::{ATTENTION_LAYERS, METRICS, SPECTRAL};
use crate::tables::{labels, prompts, verdicts};
use crate::{Error, Result};

/// The file in a run folder that holds its verdicts.
pub(crate) const FILE: &str = "verdicts.json";
/// The form of that file.
const FORM: u64 = 1;
/// Largest such file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// What rows without a graph have as preset.
const ATTENTION: &str = "attention";

/// Everything that a run's metrics tell about its labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdicts {
    /// The form of this document.
    pub form: u64,
    /// Version of the engine that judged.
    pub engine_version: String,
    /// What it comes to, by name: that of the cell that tells labels apart best, of those
    /// that separate if any do.
    pub finding: String,
    /// The same in words.
    pub verdict: String,
    /// That cell's place in `cells`; `None` if none was judged.
    pub best: Option<usize>,
    /// The labels.
    pub labels: LabelNames,
    /// The rule, in numbers.
    pub rule: Rule,
    /// Cells that were tested: the size of the family that p-values are corrected over.
    pub tested: usize,
    /// Cells by finding.
    pub findings: BTreeMap<String, usize>,
    /// What token count alone tells.
    pub length: Estimate,
    /// What mean log-probability alone tells.
    pub log_probability: Estimate,
    /// How a threshold on a chosen cell does on texts that had no part in the choice.
    pub nested: Option<NestedNumbers>,
    /// The same with token count as the only cell.
    pub nested_length: Option<NestedNumbers>,
    /// The same with mean log-probability as the only cell.
    pub nested_log_probability: Option<NestedNumbers>,
    /// The threshold that the same choice gives on all texts.
    pub threshold: Option<SavedThreshold>,
    /// Every preset × layer × metric.
    pub cells: Vec<CellVerdict>,
}

/// What the labels are called, and how many texts have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelNames {
    /// The field.
    pub field: String,
    /// The label that counts as 1.
    pub positive: String,
    /// The label that counts as 0.
    pub negative: String,
    /// Texts with the one.
    pub n_positive: usize,
    /// Texts with the other.
    pub n_negative: usize,
    /// The field that groups texts.
    pub groups: Option<String>,
    /// Independent groups of texts.
    pub n_groups: usize,
}

/// The rule that verdicts follow, in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Level of each family of tests.
    pub alpha: f64,
    /// Bootstrap resamples behind each interval.
    pub resamples: usize,
    /// Their seed.
    pub bootstrap_seed: u64,
    /// Folds, outer and inner.
    pub folds: usize,
    /// Their seed.
    pub fold_seed: u64,
    /// Groups of each label without which nothing is judged.
    pub least_groups: usize,
    /// Texts of each label that must have like texts of the other.
    pub least_shared: usize,
}

/// An AUROC and its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Probability that a positive exceeds a negative, ties counting half.
    pub auroc: f64,
    /// 2.5 % point.
    pub low: Option<f64>,
    /// 97.5 % point.
    pub high: Option<f64>,
}

/// An AUROC with its test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestedNumbers {
    /// The AUROC.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Two-sided p.
    pub p: f64,
    /// After Holm's correction over the grid.
    pub holm_p: f64,
}

/// A metric within bins of like texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatchedNumbers {
    /// The metric.
    #[serde(flatten)]
    pub tested: TestedNumbers,
    /// AUROC of what the texts are alike in, within the same bins.
    pub confounder_auroc: f64,
}

/// A metric held against length or log-probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlNumbers {
    /// What the confounder alone tells.
    pub alone: Estimate,
    /// Squared correlation with the metric.
    pub r_squared: Option<f64>,
    /// The metric after regression, out of fold.
    pub residual: TestedNumbers,
    /// Width of the bins, if there are any.
    pub bin_width: Option<f64>,
    /// Bins with both labels.
    pub shared_bins: usize,
    /// Positives in them.
    pub shared_positive: usize,
    /// Negatives in them.
    pub shared_negative: usize,
    /// The metric within them; `None` if they hold too few texts.
    pub matched: Option<MatchedNumbers>,
}

/// A metric within groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WithinNumbers {
    /// The metric.
    #[serde(flatten)]
    pub tested: TestedNumbers,
    /// AUROC of token count within groups.
    pub length_auroc: f64,
    /// AUROC of mean log-probability within groups.
    pub log_probability_auroc: f64,
}

/// How a threshold does on texts that had no part in its choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NestedNumbers {
    /// Mean of the shares of positives and of negatives called what they are.
    pub balanced_accuracy: f64,
    /// 2.5 % point.
    pub low: Option<f64>,
    /// 97.5 % point.
    pub high: Option<f64>,
    /// Share of texts called what they are.
    pub accuracy: Option<f64>,
    /// Positives called positive.
    pub true_positives: u64,
    /// Positives called negative.
    pub false_negatives: u64,
    /// Negatives called negative.
    pub true_negatives: u64,
    /// Negatives called positive.
    pub false_positives: u64,
    /// The cell that each outer fold chose.
    pub chosen: Vec<Option<usize>>,
}

/// A threshold, with all that it takes to apply it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedThreshold {
    /// The preset, or `attention` for statistics without a graph.
    pub preset: String,
    /// The Laplacian; `None` without a graph.
    pub laplacian: Option<String>,
    /// How eigenvalues were found; `None` without a graph.
    pub solver: Option<String>,
    /// The metric.
    pub metric: String,
    /// The layer.
    pub layer: u32,
    /// `high` if positives lie above the threshold, `low` if at it or below.
    pub direction: String,
    /// The threshold.
    pub at: f64,
    /// What the verdict about this cell was, by name.
    pub finding: String,
    /// The same in words.
    pub verdict: String,
    /// Balanced accuracy of a threshold so chosen on texts that had no part in it.
    pub balanced_accuracy: Option<f64>,
    /// The label on the positive side.
    pub positive: String,
    /// The label on the other.
    pub negative: String,
    /// Positives that it was fitted to.
    pub n_positive: usize,
    /// Negatives that it was fitted to.
    pub n_negative: usize,
    /// Tokens of the shortest of those texts.
    pub least_tokens: u32,
    /// Tokens of the longest.
    pub most_tokens: u32,
    /// What the metric depends on besides: model, special tokens, chat.
    pub measured: BTreeMap<String, Value>,
}

/// One preset × layer × metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellVerdict {
    /// The preset, or `attention` for statistics without a graph.
    pub preset: String,
    /// The Laplacian; `None` without a graph.
    pub laplacian: Option<String>,
    /// How eigenvalues were found; `None` without a graph.
    pub solver: Option<String>,
    /// The layer.
    pub layer: u32,
    /// The metric.
    pub metric: String,
    /// What it comes to, by name.
    pub finding: String,
    /// The same in words, or why there is no verdict.
    pub verdict: String,
    /// The numbers; `None` if the cell could not be judged.
    pub judged: Option<Judged>,
}

/// What a cell tells, and what explains it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Positive texts with a value.
    pub n_positive: usize,
    /// Negative texts with a value.
    pub n_negative: usize,
    /// The metric's own AUROC and test.
    #[serde(flatten)]
    pub own: TestedNumbers,
    /// How its p was found: `exact` or `normal`.
    pub p_method: String,
    /// Difference of means over the pooled standard deviation.
    pub cohens_d: Option<f64>,
    /// `high` if positives lie above the threshold on all texts.
    pub direction: String,
    /// That threshold.
    pub threshold: f64,
    /// The metric within groups, where groups have both labels.
    pub within: Option<WithinNumbers>,
    /// Held against token count.
    pub length: ControlNumbers,
    /// Held against mean log-probability.
    pub log_probability: ControlNumbers,
}

impl From<verdict::Estimate> for Estimate {
    fn from(estimate: verdict::Estimate) -> Self {
        let (low, high) = estimate.interval.unzip();
        Self { auroc: estimate.auroc, low, high }
    }
}

impl From<verdict::Tested> for TestedNumbers {
    fn from(tested: verdict::Tested) -> Self {
        Self { estimate: tested.estimate.into(), p: tested.p, holm_p: tested.holm_p }
    }
}

impl From<verdict::Control> for ControlNumbers {
    fn from(control: verdict::Control) -> Self {
        Self {
            alone: control.alone.into(),
            r_squared: control.r_squared,
            residual: control.residual.into(),
            bin_width: control.bin_width,
            shared_bins: control.shared.bins,
            shared_positive: control.shared.positives,
            shared_negative: control.shared.negatives,
            matched: control.matched.map(|matched| MatchedNumbers {
                tested: matched.tested.into(),
                confounder_auroc: matched.confounder_auroc,
            }),
        }
    }
}

impl From<&Verdict> for Judged {
    fn from(verdict: &Verdict) -> Self {
        Self {
            n_positive: verdict.n_positives(),
            n_negative: verdict.n_negatives(),
            own: (*verdict.own()).into(),
            p_method: match verdict.method() {
                Method::Exact => "exact",
                Method::Normal => "normal",
            }
            .to_owned(),
            cohens_d: verdict.cohens_d(),
            direction: verdict.threshold().direction.name().to_owned(),
            threshold: verdict.threshold().at,
            within: verdict.within().map(|within| WithinNumbers {
                tested: within.metric.into(),
                length_auroc: within.length_auroc,
                log_probability_auroc: within.log_probability_auroc,
            }),
            length: verdict.controls().length.into(),
            log_probability: verdict.controls().log_probability.into(),
        }
    }
}

impl From<verdict::Nested> for NestedNumbers {
    fn from(nested: verdict::Nested) -> Self {
        let (low, high) = nested.interval.unzip();
        let confusion = nested.confusion;
        Self {
            balanced_accuracy: nested.balanced_accuracy,
            low,
            high,
            accuracy: confusion.accuracy(),
            true_positives: confusion.true_positives,
            false_negatives: confusion.false_negatives,
            true_negatives: confusion.true_negatives,
            false_positives: confusion.false_positives,
            chosen: nested.chosen,
        }
    }
}

/// A finding's name, and its words.
fn named(finding: Finding) -> (&'static str, &'static str) {
    use Confounder::{Length, LogProbability};
    match finding {
        Finding::Separates => ("separates", "separates"),
        Finding::Explained { by: Length, overlap: true } => {
            ("length_explains", "length explains it")
        }
        Finding::Explained { by: Length, overlap: false } => {
            ("length_explains_no_overlap", "length explains it; no like lengths")
        }
        Finding::Explained { by: LogProbability, overlap: true } => {
            ("log_probability_explains", "log-probability explains it")
        }
        Finding::Explained { by: LogProbability, overlap: false } => {
            ("log_probability_explains_no_overlap", "log-probability explains it; no like texts")
        }
        Finding::NotExcluded { by: Length } => ("length_not_excluded", "length is not excluded"),
        Finding::NotExcluded { by: LogProbability } => {
            ("log_probability_not_excluded", "log-probability is not excluded")
        }
        Finding::NotSignificant => ("not_significant", "not told apart"),
    }
}

/// What a cell is measured by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    preset: String,
    laplacian: Option<String>,
    solver: Option<String>,
    layer: u32,
    /// Its place among the metrics of its table.
    place: usize,
    metric: &'static str,
}

/// Judges a finished run that was made with labels, and writes `verdicts.json` and the
/// table `verdicts` into its folder.
///
/// # Errors
///
/// [`Error::NotInRun`] for a run without labels or without spectra,
/// [`Error::LabelPositive`], [`Error::Unfit`], and those of reading and writing.
pub fn judge(run: &Path, positive: Option<&str>) -> Result<Verdicts> {
    let tables = Tables::open(run)?;
    let job = Reader::open(run)?.manifest().job.clone();
    let read = Texts::read(run, &tables, &job, positive)?;
    let (keys, cells) = grid(&tables, &read.of_prompt)?;
    let judgement = Study::new(&read.texts)?.judge(&cells);
    let verdicts = describe(&judgement, &keys, &read, &job);
    store::replace_table(run, &verdicts::VERDICTS, verdicts::columns(&verdicts.cells))?;
    let json = serde_json::to_vec_pretty(&verdicts)
        .map_err(|source| Error::VerdictFile { path: run.join(FILE), source })?;
    store::replace_file(run, FILE, &json)?;
    Ok(verdicts)
}

/// Reads verdicts from a run folder, or from their file.
///
/// # Errors
///
/// [`Error::Read`], [`Error::VerdictFile`], [`Error::VerdictVersion`],
/// [`Error::PromptFileSize`].
pub(crate) fn read(path: &Path) -> Result<Verdicts> {
    #[derive(Deserialize)]
    struct Formed {
        form: u64,
    }
    let path = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
    let failed = |source| Error::Read { path: path.clone(), source };
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let (bytes, limit) = (bytes.len() as u64, MAX_FILE_BYTES);
        return Err(Error::PromptFileSize { path, bytes, limit });
    }
    let broken = |source| Error::VerdictFile { path: path.clone(), source };
    let found = serde_json::from_slice::<Formed>(&bytes).map_err(broken)?.form;
    if found != FORM {
        return Err(Error::VerdictVersion { path, found, supported: FORM });
    }
    serde_json::from_slice(&bytes).map_err(broken)
}

/// A run's texts, in its order.
struct Texts {
    texts: Vec<Text>,
    of_prompt: HashMap<String, usize>,
    labels: LabelNames,
    tokens: Vec<u32>,
}

impl Texts {
    fn read(run: &Path, tables: &Tables<'_>, job: &Value, positive: Option<&str>) -> Result<Self> {
        let described = &job["labels"];
        let Some(field) = described["field"].as_str() else {
            return Err(Error::NotInRun {
                run: run.to_owned(),
                what: "table",
                name: labels::LABELS.name.to_owned(),
                known: Reader::open(run)?.tables().into_iter().map(|t| t.info.name).collect(),
            });
        };
        let (mut of_prompt, mut tokens) = (HashMap::new(), Vec::new());
        tables.each(&prompts::PROMPTS, |columns| {
            let lengths = columns.usizes("n_tokens")?;
            for (id, n) in columns.texts("prompt")?.into_iter().zip(lengths) {
                of_prompt.insert(id, tokens.len());
                tokens.push(u32::try_from(n).unwrap_or(u32::MAX));
            }
            Ok(())
        })?;
        let (mut named, mut groups) = (Vec::new(), Vec::new());
        let mut log_probabilities = Vec::new();
        let grouped = described["groups"].as_str();
        tables.each(&labels::LABELS, |columns| {
            named.extend(columns.texts("label")?);
            groups.extend(columns.texts("group")?);
            log_probabilities.extend(columns.required_f64s("mean_log_probability")?);
            Ok(())
        })?;
        let mut known: Vec<&String> = named.iter().collect();
        known.sort();
        known.dedup();
        let [a, b] = known[..] else {
            let value = known.first().map(|label| label.to_string()).unwrap_or_default();
            return Err(Error::LabelSingle { field: field.to_owned(), value });
        };
        let [negative, positive] = names(field, [a, b], positive)?;
        let group_of = number(groups.iter().map(|group| grouped.map(|_| group.as_str())));
        let texts: Vec<Text> = named
            .iter()
            .zip(&log_probabilities)
            .zip(group_of.iter().zip(&tokens))
            .map(|((label, log_probability), (group, tokens))| Text {
                positive: *label == positive,
                tokens: *tokens as usize,
                mean_log_probability: *log_probability,
                group: *group,
            })
            .collect();
        let mut distinct = group_of;
        distinct.sort_unstable();
        distinct.dedup();
        let n_positive = texts.iter().filter(|text| text.positive).count();
        let labels = LabelNames {
            field: field.to_owned(),
            positive,
            negative,
            n_positive,
            n_negative: texts.len() - n_positive,
            groups: grouped.map(str::to_owned),
            n_groups: distinct.len(),
        };
        Ok(Self { texts, of_prompt, labels, tokens })
    }
}

type Grid = (Vec<Key>, Vec<Vec<Option<f64>>>);

/// The metrics of every text: those of head-mean graphs, and layer scores of attention.
fn grid(tables: &Tables<'_>, of_prompt: &HashMap<String, usize>) -> Result<Grid> {
    let mut cells: BTreeMap<Key, Vec<Option<f64>>> = BTreeMap::new();
    let mut add = |key: Key, prompt: &str, value: Option<f64>| {
        // A cell without any value was not measured.
        if let (Some(text), Some(value)) = (of_prompt.get(prompt), value) {
            let values = cells.entry(key).or_insert_with(|| vec![None; of_prompt.len()]);
            values[*text] = Some(value);
        }
    };
    tables.each(&SPECTRAL, |columns| {
        let (ids, presets) = (columns.texts("prompt")?, columns.texts("preset")?);
        let (laplacians, solvers) = (columns.texts("laplacian")?, columns.texts("solver")?);
        let (layers, heads) = (columns.u32s("layer")?, columns.u32s("head")?);
        for (place, metric) in METRICS.iter().enumerate() {
            for (row, value) in columns.f64s(metric)?.into_iter().enumerate() {
                // Rows without a head are those of the mean over heads.
                if heads[row].is_some() {
                    continue;
                }
                let key = Key {
                    preset: presets[row].clone(),
                    laplacian: Some(laplacians[row].clone()),
                    solver: Some(solvers[row].clone()),
                    layer: layers[row].unwrap_or(0),
                    place,
                    metric,
                };
                add(key, &ids[row], value);
            }
        }
        Ok(())
    })?;
    tables.each(&ATTENTION_LAYERS, |columns| {
        let (ids, layers) = (columns.texts("prompt")?, columns.u32s("layer")?);
        for (place, metric) in layer_scores() {
            for (row, value) in columns.f64s(metric)?.into_iter().enumerate() {
                let key = Key {
                    preset: ATTENTION.to_owned(),
                    laplacian: None,
                    solver: None,
                    layer: layers[row].unwrap_or(0),
                    place,
                    metric,
                };
                add(key, &ids[row], value);
            }
        }
        Ok(())
    })?;
    Ok(cells.into_iter().unzip())
}

/// The columns of layers' attention that are metrics.
pub(crate) fn layer_scores() -> impl Iterator<Item = (usize, &'static str)> {
    let columns = ATTENTION_LAYERS.columns.iter().enumerate();
    columns.filter(|(_, c)| c.kind == ColumnKind::F64).map(|(place, c)| (place, c.name))
}

/// Reads one cell of a run: each prompt's value, or why there is none.
pub(crate) fn column(
    tables: &Tables<'_>,
    threshold: &SavedThreshold,
) -> Result<HashMap<String, std::result::Result<f64, String>>> {
    let mut found = HashMap::new();
    let unknown = || Error::ThresholdDiffers {
        differences: vec![format!(
            "its metric `{}` is not measured by this version",
            threshold.metric
        )],
    };
    if threshold.preset == ATTENTION {
        let (_, metric) =
            layer_scores().find(|(_, name)| *name == threshold.metric).ok_or_else(unknown)?;
        tables.each(&ATTENTION_LAYERS, |columns| {
            let layers = columns.u32s("layer")?;
            let rows = columns.texts("prompt")?.into_iter().zip(columns.f64s(metric)?);
            for ((id, value), layer) in rows.zip(layers) {
                if layer == Some(threshold.layer) {
                    found.insert(id, value.ok_or_else(String::new));
                }
            }
            Ok(())
        })?;
        return Ok(found);
    }
    let metric = METRICS.iter().find(|name| **name == threshold.metric).ok_or_else(unknown)?;
    tables.each(&SPECTRAL, |columns: &Columns<'_>| {
        let (ids, nulls) = (columns.texts("prompt")?, columns.texts("nulls")?);
        let (presets, solvers) = (columns.texts("preset")?, columns.texts("solver")?);
        let laplacians = columns.texts("laplacian")?;
        let (layers, heads) = (columns.u32s("layer")?, columns.u32s("head")?);
        for (row, value) in columns.f64s(metric)?.into_iter().enumerate() {
            let same = presets[row] == threshold.preset
                && Some(&laplacians[row]) == threshold.laplacian.as_ref()
                && Some(&solvers[row]) == threshold.solver.as_ref();
            if same && heads[row].is_none() && layers[row] == Some(threshold.layer) {
                found.insert(ids[row].clone(), value.ok_or_else(|| nulls[row].clone()));
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// What a metric depends on besides its cell: the model, and how texts become tokens.
pub(crate) fn measured(job: &Value) -> BTreeMap<String, Value> {
    let of_model = ["config_sha256", "tokenizer_sha256", "weights_sampled_sha256", "name"];
    let of_model = of_model.map(|key| (format!("model.{key}"), job["model"][key].clone()));
    let of_job = ["special_tokens", "special_tokens_in_text", "chat"];
    let of_job = of_job.map(|key| (key.to_owned(), job[key].clone()));
    of_model.into_iter().chain(of_job).collect()
}

/// In what two lists of that differ; a model's name may.
pub(crate) fn differences(
    there: &BTreeMap<String, Value>,
    here: &BTreeMap<String, Value>,
) -> Vec<String> {
    let mut keys: Vec<&String> = there.keys().chain(here.keys()).collect();
    keys.sort();
    keys.dedup();
    let names = [there, here].map(|of| of.get("model.name").cloned().unwrap_or_default());
    let mut found: Vec<String> = keys
        .into_iter()
        .filter(|key| *key != "model.name")
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| {
            let text = |of: &BTreeMap<String, Value>| -> String {
                let value = of.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
                value.chars().take(80).collect()
            };
            format!("{key} was {}, is {}", text(there), text(here))
        })
        .collect();
    if found.iter().any(|text| text.starts_with("model.")) {
        found.insert(0, format!("the model was {}, is {}", names[0], names[1]));
    }
    found
}

fn describe(judgement: &Judgement, keys: &[Key], read: &Texts, job: &Value) -> Verdicts {
    let cells: Vec<CellVerdict> =
        keys.iter().zip(&judgement.cells).map(|(key, cell)| cell_verdict(key, cell)).collect();
    let mut findings = BTreeMap::new();
    for cell in &cells {
        *findings.entry(cell.finding.clone()).or_default() += 1;
    }
    let nested = judgement.nested.clone().map(NestedNumbers::from);
    let threshold = judgement.chosen.and_then(|i| {
        let (key, verdict) = (&keys[i], judgement.cells[i].as_ref().ok()?);
        let (finding, words) = named(verdict.finding());
        let at = verdict.threshold();
        Some(SavedThreshold {
            preset: key.preset.clone(),
            laplacian: key.laplacian.clone(),
            solver: key.solver.clone(),
            metric: key.metric.to_owned(),
            layer: key.layer,
            direction: at.direction.name().to_owned(),
            at: at.at,
            finding: finding.to_owned(),
            verdict: words.to_owned(),
            balanced_accuracy: nested.as_ref().map(|nested| nested.balanced_accuracy),
            positive: read.labels.positive.clone(),
            negative: read.labels.negative.clone(),
            n_positive: verdict.n_positives(),
            n_negative: verdict.n_negatives(),
            least_tokens: read.tokens.iter().copied().min().unwrap_or(0),
            most_tokens: read.tokens.iter().copied().max().unwrap_or(0),
            measured: measured(job),
        })
    });
    let overall = judgement.overall();
    let (best, finding) = overall.unzip();
    let verdict = match (best, finding) {
        (Some(best), Some(finding)) => {
            sentence(&keys[best], &judgement.cells[best], finding, &read.labels)
        }
        _ => "no metric could be judged".to_owned(),
    };
    Verdicts {
        form: FORM,
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        finding: finding.map_or("nothing_judged", |finding| named(finding).0).to_owned(),
        verdict,
        best,
        labels: read.labels.clone(),
        rule: Rule {
            alpha: ALPHA,
            resamples: RESAMPLES,
            bootstrap_seed: BOOTSTRAP_SEED,
            folds: FOLDS,
            fold_seed: FOLD_SEED,
            least_groups: LEAST_GROUPS,
            least_shared: LEAST_SHARED,
        },
        tested: judgement.tested,
        findings,
        length: judgement.length.into(),
        log_probability: judgement.log_probability.into(),
        nested,
        nested_length: judgement.nested_length.clone().map(NestedNumbers::from),
        nested_log_probability: judgement.nested_log_probability.clone().map(NestedNumbers::from),
        threshold,
        cells,
    }
}

fn cell_verdict(key: &Key, cell: &std::result::Result<Verdict, Unjudged>) -> CellVerdict {
    let (finding, words) = match cell {
        Ok(verdict) => {
            let (finding, words) = named(verdict.finding());
            (finding, words.to_owned())
        }
        Err(Unjudged::Constant) => ("constant", "all values are equal".to_owned()),
        Err(Unjudged::TooFew { negatives, positives }) => {
            ("too_few", format!("values for {negatives} negatives and {positives} positives only"))
        }
    };
    CellVerdict {
        preset: key.preset.clone(),
        laplacian: key.laplacian.clone(),
        solver: key.solver.clone(),
        layer: key.layer,
        metric: key.metric.to_owned(),
        finding: finding.to_owned(),
        verdict: words,
        judged: cell.as_ref().ok().map(Judged::from),
    }
}

/// What the best cell tells, never without what explains it.
fn sentence(
    key: &Key,
    cell: &std::result::Result<Verdict, Unjudged>,
    finding: Finding,
    labels: &LabelNames,
) -> String {
    let Ok(verdict) = cell else {
        return String::new();
    };
    let auroc = verdict.own().estimate.auroc;
    let high = auroc >= 0.5;
    // Every AUROC from the side on which the metric's own lies above ½.
    let turned = |value: f64| if high { value } else { 1. - value };
    let which = format!("{} of layer {} under {}", key.metric, key.layer, key.preset);
    let told = format!(
        "{which} tells `{}` from `{}` with AUROC {:.3}",
        labels.positive,
        labels.negative,
        turned(auroc)
    );
    let alone = |control: &verdict::Control| {
        let auroc = control.alone.auroc;
        auroc.max(1. - auroc)
    };
    let left = |control: &verdict::Control| {
        let within = control.matched.map_or_else(
            || "no like texts to compare".to_owned(),
            |matched| format!("{:.3} among like texts", turned(matched.tested.estimate.auroc)),
        );
        format!("{:.3} after regression, {within}", turned(control.residual.estimate.auroc))
    };
    let controls = verdict.controls();
    let of = |by: Confounder| match by {
        Confounder::Length => ("token count", &controls.length),
        Confounder::LogProbability => ("mean log-probability", &controls.log_probability),
    };
    match finding {
        Finding::NotSignificant => format!(
            "labels are not told apart: the farthest from ½ is {which}, AUROC {auroc:.3}, Holm p {:.2}; token count alone {:.3}",
            verdict.own().holm_p,
            controls.length.alone.auroc
        ),
        Finding::Separates => format!(
            "{told}, and neither length ({}) nor log-probability ({}) explains it",
            left(&controls.length),
            left(&controls.log_probability)
        ),
        Finding::Explained { by, overlap } => {
            let (name, control) = of(by);
            let words = if by == Confounder::Length { "length" } else { "log-probability" };
            let none = if overlap {
                ""
            } else {
                ", so that nothing about these texts could tell the one from the other"
            };
            format!(
                "{words} explains it: {told}, but {name} alone with {:.3}; {}{none}",
                alone(control),
                left(control)
            )
        }
        Finding::NotExcluded { by } => {
            let (name, control) = of(by);
            format!("{told}, but {name} is not excluded as the reason: {}", left(control))
        }
    }
}

/// The saved direction; anything but `low` is high.
pub(crate) fn direction(name: &str) -> Direction {
    if name == Direction::Low.name() { Direction::Low } else { Direction::High }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_differs() {
        let job = |weights: &str, chat: Value| {
            measured(&serde_json::json!({
                "model": {"name": weights, "config_sha256": "c", "tokenizer_sha256": null,
                          "weights_sampled_sha256": weights},
                "special_tokens": true, "special_tokens_in_text": "parse", "chat": chat,
            }))
        };
        let a = job("a", Value::Null);
        assert!(differences(&a, &a).is_empty());
        let found = differences(&a, &job("b", Value::Null)).join("; ");
        assert!(found.contains("\"a\"") && found.contains("model.weights_sampled"), "{found}");
        let chat = differences(&a, &job("a", serde_json::json!({"date": null})));
        assert_eq!(chat.len(), 1);
        assert!(chat[0].starts_with("chat was null"), "{chat:?}");
    }

    #[test]
    fn every_finding_has_its_name() {
        use Confounder::{Length, LogProbability};
        let mut findings = vec![Finding::Separates, Finding::NotSignificant];
        for by in [Length, LogProbability] {
            findings.push(Finding::NotExcluded { by });
            findings.extend([true, false].map(|overlap| Finding::Explained { by, overlap }));
        }
        let mut names: Vec<&str> = findings.iter().map(|finding| named(*finding).0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), findings.len());
    }

    #[test]
    fn files_that_hold_no_verdicts_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.json");
        assert!(matches!(read(&path), Err(Error::Read { .. })));
        for (text, form) in [("{}", false), ("[", false), ("{\"form\": 2}", true)] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert_eq!(matches!(error, Error::VerdictVersion { found: 2, .. }), form, "{error}");
            assert_eq!(matches!(error, Error::VerdictFile { .. }), !form, "{error}");
        }
        std::fs::write(folder.path().join(FILE), "{\"form\": 1, \"finding\": \"separates\"}")
            .unwrap();
        // A verdict without its controls is none.
        assert!(matches!(read(folder.path()), Err(Error::VerdictFile { .. })));
    }
}
