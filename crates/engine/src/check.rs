//! Whether a model, as it is held, still predicts what its reference predicts.
//!
//! Both models run over the same tokens. Of each text the residual streams behind
//! the last layer are kept, and logits are made from them some positions at a
//! time: two tensors `[T, d_vocab]` are never held.
//!
//! The reference always runs on the CPU. A model on a device is compared with
//! itself there, at every hook point, too.

mod points;

use analysis::divergence::{Accumulator, Comparison, Place, Spread};
use candle_core::Tensor;
pub use points::{OtherExperts, PointDifference, Points};

use hooks::{ActivationCache, Batch, Edits, HookPoint, Plan, Row, Site, Wanted};
use runner::{
    Input, Inventory, KvCache, LoadOptions, Model, Placement, Source, Tokenizer, WeightDtype,
};
use serde::Serialize;

use crate::job::ModelChoice;
use crate::models::resolve;
use crate::prompts::{Prompt, PromptSource};
use crate::run::{load, load_tokenizer};
use crate::tokens::{Inputs, Tokenization};
use crate::{Error, Progress, Result, human};

/// Logits that are held at a time, of each model: 64 MiB in `f32`.
pub(crate) const MAX_LOGITS: usize = 1 << 24;

/// The text that is run where none is given.
const TEXT: &str = include_str!("../../../assets/check.txt");

/// What is compared, and over which text.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The model.
    pub model: ModelChoice,
    /// Another checkpoint of the same vocabulary; `None`: the model itself, on the
    /// CPU, with its weights in `f32`.
    pub reference: Option<String>,
    /// The texts; `None`: one that is part of the program.
    pub prompts: Option<PromptSource>,
    /// How text becomes tokens.
    pub tokenization: Tokenization,
}

/// What a model is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// The same file, its quantized weights unpacked to `f32` on loading.
    Unpacked,
    /// The same file, whose weights are not quantized.
    Itself,
    /// The same file on the CPU, while the model runs on a device.
    Cpu,
    /// Another checkpoint.
    Reference,
}

/// How a model's predictions differ from its reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The model as it was named.
    pub model: String,
    /// The reference as it was named.
    pub reference: String,
    /// What the reference is.
    pub against: Against,
    /// Texts.
    pub texts: usize,
    /// Tokens of all texts, each a position at which predictions are compared.
    pub tokens: usize,
    /// `KL(reference‖model)`, in nats a token.
    pub kl_reference_model: Divergence,
    /// `KL(model‖reference)`, in nats a token.
    pub kl_model_reference: Divergence,
    /// Share of positions at which both find the same token most likely.
    pub top_agreement: f64,
    /// The largest difference of two logits.
    pub largest_logit_difference: f64,
    /// Tokens that follow another, over which perplexity runs.
    pub predicted: usize,
    /// Perplexity under the model.
    pub perplexity: f64,
    /// Perplexity under the reference.
    pub reference_perplexity: f64,
    /// Every hook point beside the CPU's, where the model runs on a device and is
    /// compared with itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub points: Option<Points>,
    /// What to make of it.
    pub verdict: String,
}

/// A divergence over all positions, in nats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// The largest.
    pub max: f64,
    /// The text in which that is.
    pub max_prompt: String,
    /// The position in it.
    pub max_position: usize,
}

/// Compares a model with its reference.
///
/// # Errors
///
/// [`Error::Vocabularies`] if their vocabularies differ in size,
/// [`Error::NoTokenizer`] for text without a tokenizer, [`Error::ShortText`], and
/// those of prompts and of loading.
pub fn check(options: &CheckOptions, progress: &mut dyn Progress) -> Result<Check> {
    let source = resolve(&options.model.model, progress)?.source;
    let mut info = runner::read_config(&source)?.info();
    let reference = match &options.reference {
        Some(reference) => Some(resolve(reference, progress)?.source),
        None => None,
    };
    let mut tokenization = options.tokenization;
    if let Some(reference) = &reference {
        let other = runner::read_config(reference)?.info();
        if other.d_vocab != info.d_vocab {
            return Err(Error::Vocabularies {
                model: options.model.model.clone(),
                d_vocab: info.d_vocab,
                reference: options.reference.clone().unwrap_or_default(),
                reference_d_vocab: other.d_vocab,
            });
        }
        info.n_ctx = info.n_ctx.min(other.n_ctx);
    }
    let prompts = match &options.prompts {
        Some(prompts) => prompts.clone(),
        None => {
            // The text is the program's, so that it is cut to what the model takes.
            let limit = tokenization.max_tokens.unwrap_or(usize::MAX);
            tokenization.max_tokens = Some(limit.min(info.n_ctx));
            PromptSource::Texts(vec![TEXT.to_owned()])
        }
    };
    let prompts = crate::prompts::read(&prompts)?;
    let n_texts = prompts.len();
    let tokenizer = load_tokenizer(&source, &prompts)?;
    let inputs = Inputs::new(prompts, tokenizer, tokenization.chat(&source)?, tokenization, &info)?;
    let lengths = inputs.lengths()?;
    if lengths.tokens.iter().all(|&tokens| tokens < 2) {
        return Err(Error::ShortText);
    }
    let other_tokenizer = match &reference {
        Some(reference) => other_tokenizer(reference, inputs.prompts(), progress),
        None => None,
    };

    let ModelChoice { device, dtype, .. } = &options.model;
    let on_device = matches!(device.placement, Placement::Devices(_));
    let quantized = Inventory::of(&source)?.quantized_parameters > 0;
    let against = match (&reference, on_device, quantized && *dtype == WeightDtype::AsStored) {
        (Some(_), ..) => Against::Reference,
        (None, true, _) => Against::Cpu,
        (None, false, true) => Against::Unpacked,
        (None, false, false) => Against::Itself,
    };
    let on_cpu =
        |source: &Source, dtype| load(source, &LoadOptions { dtype, ..LoadOptions::default() });
    let model = load(&source, &options.model.load_options())?;
    // Without quantized weights the model is held in one way only.
    let other = match against {
        Against::Reference => {
            Some(on_cpu(reference.as_ref().unwrap_or(&source), WeightDtype::AsStored)?)
        }
        Against::Cpu => Some(on_cpu(&source, WeightDtype::AsStored)?),
        Against::Unpacked => Some(on_cpu(&source, WeightDtype::F32)?),
        Against::Itself => None,
    };
    let other = other.as_ref().unwrap_or(&model);
    let points = match against {
        Against::Cpu => {
            let (device, tokens) = (device.placement.to_string(), inputs.get(0)?.tokens);
            Some(points::compare(other, &model, device, *dtype, &tokens)?)
        }
        _ => None,
    };

    let mut found = Accumulator::default();
    progress.begin(lengths.tokens.iter().map(|&n| u64::from(n)).sum(), 0);
    let mut differing = 0;
    let mut each = || -> Result<()> {
        for index in 0..n_texts {
            let input = inputs.get(index)?;
            if let (Some(tokenizer), Some(text)) = (&other_tokenizer, &input.text) {
                let theirs = tokenizer.encode(text, options.tokenization.special)?.ids;
                let kept = theirs.len().min(input.tokens.len());
                differing += usize::from(theirs[..kept] != input.tokens[..]);
            }
            compare(other, &model, index, &input.tokens, &mut found)?;
            progress.advance(input.tokens.len() as u64, &input.id);
        }
        Ok(())
    };
    let done = each();
    progress.end();
    done?;
    if differing > 0 {
        progress.note(&format!(
            "the reference's own tokenizer makes other tokens of {}; both ran on the model's",
            human::count(differing as u64, "text")
        ));
    }
    let comparison = found.finish().ok_or(Error::ShortText)?;
    let ids: Vec<String> = inputs.prompts().iter().map(|prompt| prompt.id.clone()).collect();
    summary(options, against, points, &ids, &comparison)
}

/// The reference's tokenizer, where it has one that can be used.
fn other_tokenizer(
    reference: &Source,
    prompts: &[Prompt],
    progress: &mut dyn Progress,
) -> Option<Tokenizer> {
    match load_tokenizer(reference, prompts) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            progress.note(&format!("the reference's own tokenizer is not compared: {error}"));
            None
        }
    }
}

/// Adds one text's positions.
fn compare(
    p: &Model,
    q: &Model,
    text: usize,
    tokens: &[u32],
    found: &mut Accumulator,
) -> Result<()> {
    let (p_resid, q_resid) = (last_residual(p, tokens)?, last_residual(q, tokens)?);
    let step = (MAX_LOGITS / p.info().d_vocab.max(1)).max(1);
    for start in (0..tokens.len()).step_by(step) {
        let len = step.min(tokens.len() - start);
        let piece = &tokens[start..start + len];
        let logits = |model: &Model, resid: &Tensor| {
            logits(model, &resid.narrow(0, start, len)?.unsqueeze(0)?, piece)
        };
        let next = &tokens[start + 1..(start + len + 1).min(tokens.len())];
        let place = Place { text, position: start };
        found.add(place, &logits(p, &p_resid)?, &logits(q, &q_resid)?, next)?;
    }
    Ok(())
}

/// The residual stream behind the last layer: `[pos, d_model]`.
fn last_residual(model: &Model, tokens: &[u32]) -> Result<Tensor> {
    let last = model.info().n_layers().saturating_sub(1);
    let point = HookPoint::layer(Site::ResidPost, last);
    let mut cache = cache_of(model, point)?;
    model.run(&batch_of(tokens)?, &mut cache)?;
    Ok(cache.get(0, point)?)
}

/// Logits of positions with these residual streams `[1, pos, d_model]`:
/// `[pos, d_vocab]`. They depend on nothing else; the tokens are only counted.
pub(crate) fn logits(model: &Model, resid: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    let mut cache = cache_of(model, HookPoint::LOGITS)?;
    let end = model.info().n_layers();
    model.session(&mut cache)?.forward(
        &batch_of(tokens)?,
        Input::Residual(resid),
        end..end,
        &mut KvCache::off(),
        &Edits::default(),
        &mut cache,
    )?;
    Ok(cache.get(0, HookPoint::LOGITS)?)
}

fn cache_of(model: &Model, point: HookPoint) -> Result<ActivationCache> {
    let mut plan = Plan::default();
    plan.add(point, &Wanted::all(), model.info())?;
    Ok(ActivationCache::new(plan))
}

fn batch_of(tokens: &[u32]) -> Result<Batch> {
    Ok(Batch::new(vec![Row { request: 0, tokens: tokens.to_vec(), offset: 0 }])?)
}

fn summary(
    options: &CheckOptions,
    against: Against,
    points: Option<Points>,
    ids: &[String],
    found: &Comparison,
) -> Result<Check> {
    let divergence = |spread: &Spread| Divergence {
        mean: spread.mean,
        median: spread.median,
        max: spread.max,
        max_prompt: ids.get(spread.max_at.text).cloned().unwrap_or_default(),
        max_position: spread.max_at.position,
    };
    let (Some(perplexity), Some(reference_perplexity)) =
        (found.perplexity, found.reference_perplexity)
    else {
        return Err(Error::ShortText);
    };
    Ok(Check {
        model: options.model.model.clone(),
        reference: match (&options.reference, against) {
            (Some(reference), _) => reference.clone(),
            (None, Against::Cpu) => format!("{} on the cpu", options.model.model),
            (None, _) => format!("{} in f32", options.model.model),
        },
        against,
        texts: ids.len(),
        tokens: found.n_positions,
        kl_reference_model: divergence(&found.forward),
        kl_model_reference: divergence(&found.reverse),
        top_agreement: found.top_agreement,
        largest_logit_difference: found.largest_difference,
        predicted: found.n_predicted,
        perplexity,
        reference_perplexity,
        verdict: verdict(against, points.as_ref(), found),
        points,
    })
}

fn verdict(against: Against, points: Option<&Points>, found: &Comparison) -> String {
    match against {
        Against::Reference => format!(
            "a token loses {:.3e} nats on average; the same token comes first at {:.2} % of positions",
            found.forward.mean,
            100.0 * found.top_agreement
        ),
        Against::Cpu if points.is_some_and(Points::agree) => {
            "every hook point agrees with the cpu's within what rounding explains".to_owned()
        }
        Against::Cpu => "hook points differ from the cpu's by more than rounding explains: the model's \
             numbers may be too large for the dtype (try --dtype f32); if they differ there, too, \
             please report this model and gpu"
            .to_owned(),
        Against::Itself => "no weight is quantized, so that the model is held in one way only and \
             there is nothing to compare; --reference compares with another checkpoint"
            .to_owned(),
        Against::Unpacked if found.largest_difference == 0.0 => {
            "equal, bit for bit: products unpack quantized weights to the very f32 values that \
             loading in f32 unpacks them to; what quantizing itself lost shows against the original, \
             with --reference"
                .to_owned()
        }
        Against::Unpacked => "quantized weights and the same ones unpacked should agree bit for \
             bit and do not: please report this model"
            .to_owned(),
    }
}
