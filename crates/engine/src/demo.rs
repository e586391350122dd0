//! The demonstration: the built-in model on the built-in derivations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use analysis::contrast::{Contrast, Pair};
use analysis::spectral::{Exactness, Keep, Preset};
use hooks::{Positions, Selection};
use runner::{BuiltIn, Placement, WeightDtype};
use serde::{Deserialize, Serialize};
use store::StoredType;

use crate::job::{Job, ModelChoice};
use crate::prompts::{Content, Prompt, PromptSource};
use crate::recorders::capture::CaptureOptions;
use crate::recorders::spectral::{GraphChoice, Prefixes, SpectralOptions};
use crate::run::run;
use crate::summary::{Report, Tables};
use crate::tables::{prompts, spectral};
use crate::tokens::Tokenization;
use crate::{Error, Progress, Result};

/// Held-out derivations, valid and with one wrong step of equal token length.
const DERIVATIONS: &str = include_str!("../../../assets/derivations.jsonl");

/// What is compared: metrics of head-mean graphs, each under its preset. The
/// paper's metrics are compared as published, so that its dependence on length
/// is excluded by the pairs' equal lengths alone.
const COMPARED: [(Preset, &str); 5] = [
    (Preset::Controlled, "fiedler"),
    (Preset::Controlled, "smoothness"),
    (Preset::Paper, "fiedler"),
    (Preset::Paper, "smoothness"),
    (Preset::Paper, "hfer"),
];

/// What the demonstration found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Demo {
    /// The run and its summaries.
    #[serde(flatten)]
    pub report: Report,
    /// Pairs of a valid and an invalid derivation.
    pub pairs: usize,
    /// Head-mean graphs of valid against invalid derivations, by layer and metric.
    pub contrasts: Vec<LayerContrast>,
    /// AUROC of the number of tokens alone.
    pub length_auroc: f64,
    /// What it comes to, in words.
    pub verdict: String,
}

/// Valid against invalid derivations by one metric of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerContrast {
    /// The layer.
    pub layer: u32,
    /// The preset.
    pub preset: &'static str,
    /// The metric.
    pub metric: &'static str,
    /// Mean over valid derivations.
    pub valid_mean: f64,
    /// Mean over invalid ones.
    pub invalid_mean: f64,
    /// Difference of means over the pooled standard deviation.
    pub cohens_d: Option<f64>,
    /// Probability that a valid one has the greater value.
    pub auroc: f64,
    /// 2.5 % point of the AUROC under label swaps within pairs.
    pub auroc_low: f64,
    /// 97.5 % point.
    pub auroc_high: f64,
}

#[derive(Deserialize)]
struct Derivation {
    id: String,
    text: String,
    label: Label,
    pair: u32,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Label {
    Valid,
    Invalid,
}

/// Runs capture, spectra and routing of the built-in model on the built-in
/// derivations, and compares valid with invalid ones.
///
/// # Errors
///
/// Those of [`run`](crate::run()); nothing else can go wrong but the disk.
pub fn demo(out: &Path, command: Vec<String>, progress: &mut dyn Progress) -> Result<Demo> {
    let derivations: Vec<Derivation> = DERIVATIONS
        .lines()
        .map(|line| serde_json::from_str(line).map_err(Error::BuiltInPrompts))
        .collect::<Result<_>>()?;
    let texts =
        derivations.iter().map(|d| Prompt::new(d.id.clone(), Content::Text(d.text.clone())));
    let job = Job {
        model: ModelChoice {
            model: BuiltIn::TinyMixtral.name().to_owned(),
            device: Placement::Cpu.into(),
            dtype: WeightDtype::AsStored,
        },
        prompts: PromptSource::Given(texts.collect()),
        tokenization: Tokenization::default(),
        capture: Some(CaptureOptions {
            hooks: vec!["blocks.*.mlp.hook_router_logits".into(), "logits".into()],
            layers: Selection::All,
            heads: Selection::All,
            positions: Positions::last(),
            stored: StoredType::F32,
        }),
        spectral: Some(SpectralOptions {
            presets: [Preset::Controlled, Preset::Paper].into(),
            laplacians: BTreeSet::new(),
            exactness: Exactness::Iterative,
            hidden_score: false,
            layers: Selection::All,
            heads: Selection::All,
            graph: GraphChoice::Auto,
            prefixes: Prefixes::None,
            keep: Keep::default(),
        }),
        routing: Some(Selection::All),
        labels: None,
        out: out.to_owned(),
        command,
    };
    let report = Report::of(run(&job, progress)?)?;
    let contrasts = compare(out, &derivations)?;
    let length_auroc = contrasts.first().map_or(0.5, |(_, _, c)| c.length_auroc);
    let verdict = verdict(&contrasts);
    Ok(Demo {
        pairs: derivations.len() / 2,
        length_auroc,
        verdict,
        contrasts: contrasts.into_iter().map(layer_contrast).collect(),
        report,
    })
}

/// A contrast of one layer, preset and metric.
type Found = (u32, (Preset, &'static str), Contrast);

fn layer_contrast((layer, (preset, metric), c): Found) -> LayerContrast {
    LayerContrast {
        layer,
        preset: preset.name(),
        metric,
        valid_mean: c.positive_mean,
        invalid_mean: c.negative_mean,
        cohens_d: c.cohens_d,
        auroc: c.auroc,
        auroc_low: c.null_interval.0,
        auroc_high: c.null_interval.1,
    }
}

/// Reads the head-mean rows back and compares them pair by pair.
fn compare(out: &Path, derivations: &[Derivation]) -> Result<Vec<Found>> {
    let of_prompt: HashMap<&str, &Derivation> =
        derivations.iter().map(|d| (d.id.as_str(), d)).collect();
    let tables = Tables::open(out)?;
    let mut lengths: HashMap<String, usize> = HashMap::new();
    tables.each(&prompts::PROMPTS, |columns| {
        let tokens = columns.u32s("n_tokens")?;
        for (id, n) in columns.texts("prompt")?.into_iter().zip(tokens) {
            lengths.insert(id, n.unwrap_or(0) as usize);
        }
        Ok(())
    })?;
    /// A text's value and its tokens.
    type Measured = Option<(f64, usize)>;
    let mut found: BTreeMap<(u32, usize), BTreeMap<u32, [Measured; 2]>> = BTreeMap::new();
    tables.each(&spectral::SPECTRAL, |columns| {
        let (ids, layers, heads) =
            (columns.texts("prompt")?, columns.u32s("layer")?, columns.u32s("head")?);
        let presets = columns.texts("preset")?;
        for (index, (preset, metric)) in COMPARED.into_iter().enumerate() {
            for (row, value) in columns.f64s(metric)?.into_iter().enumerate() {
                if presets[row] != preset.name() {
                    continue;
                }
                let (None, Some(value)) = (heads[row], value) else {
                    continue;
                };
                let Some(derivation) = of_prompt.get(ids[row].as_str()) else {
                    continue;
                };
                let tokens = lengths.get(&ids[row]).copied().unwrap_or(0);
                let of_metric = found.entry((layers[row].unwrap_or(0), index)).or_default();
                let pair = of_metric.entry(derivation.pair).or_default();
                pair[usize::from(derivation.label == Label::Invalid)] = Some((value, tokens));
            }
        }
        Ok(())
    })?;
    let pair = |measured: &[Measured; 2]| match *measured {
        [Some(valid), Some(invalid)] => Some(Pair {
            positive: valid.0,
            negative: invalid.0,
            positive_tokens: valid.1,
            negative_tokens: invalid.1,
        }),
        _ => None,
    };
    let contrast = |((layer, index), pairs): ((u32, usize), BTreeMap<u32, [Measured; 2]>)| {
        let pairs: Vec<Pair> = pairs.values().filter_map(pair).collect();
        Some((layer, COMPARED[index], Contrast::of(&pairs, 0)?))
    };
    Ok(found.into_iter().filter_map(contrast).collect())
}

/// Says how much stands out, against how much would by chance.
fn verdict(contrasts: &[Found]) -> String {
    let outside: Vec<_> = contrasts.iter().filter(|(_, _, c)| c.stands_out()).collect();
    let by_chance = contrasts.len() as f64 * 0.05;
    let first = format!(
        "{} of {} AUROCs lie outside what swapped labels give; {by_chance:.1} would by chance.",
        outside.len(),
        contrasts.len()
    );
    let distance = |c: &Contrast| (c.auroc - 0.5).abs();
    let farthest = contrasts.iter().max_by(|a, b| distance(&a.2).total_cmp(&distance(&b.2)));
    match farthest {
        Some((layer, (preset, metric), c)) => format!(
            "{first} The farthest from 0.5 is {metric} of layer {layer} under {}, {:.3}.",
            preset.name(),
            c.auroc
        ),
        None => first,
    }
}
