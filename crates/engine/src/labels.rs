//! Labels of prompts, and the mean log-probability that goes with each.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use analysis::divergence::surprisal;
use candle_core::Tensor;
use hooks::{Activation, ActivationSink, HookPoint, ModelInfo, Plan, Site, Wanted};
use runner::Model;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{PromptWriter, TableSchema};

use crate::check::{MAX_LOGITS, logits};
use crate::prompts::{Field, Prompt, WithFields};
use crate::recorders::Recorder;
use crate::tables::labels;
use crate::{Error, Result};

/// Which field of the prompts labels them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelOptions {
    /// A field with one of two values.
    pub field: String,
    /// A field of which prompts with the same value belong together, such as a valid
    /// text and its corrupted copy. `None`: every prompt stands alone.
    pub groups: Option<String>,
    /// The label that counts as 1; `None`: the greater of the two in the order of
    /// their bytes.
    pub positive: Option<String>,
}

impl LabelOptions {
    /// The fields to read of each prompt.
    pub(crate) fn names(&self) -> Vec<&str> {
        std::iter::once(&self.field).chain(&self.groups).map(String::as_str).collect()
    }
}

/// The labels of a run's prompts.
pub(crate) struct Labels {
    field: String,
    groups: Option<String>,
    /// Label and group of each prompt.
    of_prompt: Vec<(String, Option<String>)>,
}

impl Labels {
    /// Reads labels and groups off the fields of every prompt.
    ///
    /// # Errors
    ///
    /// A prompt without label or group, or with one that is no single value; other than
    /// two labels; too few prompts of a label.
    pub(crate) fn new(options: &LabelOptions, prompts: &[WithFields]) -> Result<Self> {
        let mut of_prompt = Vec::with_capacity(prompts.len());
        let mut known: Vec<&String> = Vec::new();
        for (prompt, fields) in prompts {
            let value = |index: usize, field: &String| match fields.get(index) {
                Some(Field::Value(value)) => Ok(value),
                Some(Field::Compound) => {
                    Err(Error::LabelKind { id: prompt.id.clone(), field: field.clone() })
                }
                None | Some(Field::Missing) => {
                    Err(Error::LabelMissing { id: prompt.id.clone(), field: field.clone() })
                }
            };
            let label = value(0, &options.field)?;
            if !known.contains(&label) {
                if let [a, b] = known[..] {
                    return Err(Error::LabelThird {
                        id: prompt.id.clone(),
                        field: options.field.clone(),
                        value: label.chars().take(80).collect(),
                        known: [a.clone(), b.clone()],
                    });
                }
                known.push(label);
            }
            let group = options.groups.as_ref().map(|field| value(1, field)).transpose()?;
            of_prompt.push((label.clone(), group.cloned()));
        }
        let [a, b] = known[..] else {
            let value = known.first().map(|label| label.to_string()).unwrap_or_default();
            return Err(Error::LabelSingle { field: options.field.clone(), value });
        };
        let names = names(&options.field, [a, b], options.positive.as_deref())?;
        let positive: Vec<bool> = of_prompt.iter().map(|(label, _)| *label == names[1]).collect();
        let groups = number(of_prompt.iter().map(|(_, group)| group.as_deref()));
        analysis::verdict::check(&positive, &groups)?;
        Ok(Self { field: options.field.clone(), groups: options.groups.clone(), of_prompt })
    }

    /// What a run folder remembers of them.
    pub(crate) fn describe(&self) -> Value {
        let mut digest = Sha256::new();
        for (label, group) in &self.of_prompt {
            for text in [Some(label), group.as_ref()] {
                // Lengths before what varies in length, so that no two lists look alike.
                digest.update(text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
                digest.update(text.map_or("", String::as_str));
            }
        }
        let sha256: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        json!({ "field": self.field, "groups": self.groups, "sha256": sha256 })
    }

    /// Adds a prompt's label, and how likely the model found its tokens.
    pub(crate) fn write(
        &self,
        model: &Model,
        residual: &ResidualSlot,
        tokens: &[u32],
        writer: &mut PromptWriter,
    ) -> Result<()> {
        let short = || Error::LabelledShort { id: writer.id().to_owned() };
        let resid = residual.borrow_mut().take().ok_or_else(short)?;
        let index = writer.index() as usize;
        let mean = mean_log_probability(model, &resid, index, tokens)?.ok_or_else(short)?;
        let (label, group) = self.of_prompt.get(index).ok_or_else(short)?;
        labels::write(label, group.as_deref(), mean, writer)
    }
}

/// The labels in order, the one that counts as 1 last.
pub(crate) fn names(
    field: &str,
    known: [&String; 2],
    positive: Option<&str>,
) -> Result<[String; 2]> {
    let mut names = known.map(String::clone);
    names.sort();
    match positive {
        None => {}
        Some(positive) if positive == names[1] => {}
        Some(positive) if positive == names[0] => names.reverse(),
        Some(positive) => {
            let (field, positive) = (field.to_owned(), positive.to_owned());
            return Err(Error::LabelPositive { field, positive, known: names });
        }
    }
    Ok(names)
}

/// Numbers groups by name; a prompt without a group has its own.
pub(crate) fn number<'a>(groups: impl Iterator<Item = Option<&'a str>>) -> Vec<usize> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    groups
        .enumerate()
        .map(|(index, group)| group.map_or(index, |group| *known.entry(group).or_insert(index)))
        .collect()
}

/// Refuses texts in which nothing is predicted.
pub(crate) fn check_lengths(prompts: &[Prompt], tokens: &[u32]) -> Result<()> {
    match prompts.iter().zip(tokens).find(|(_, tokens)| **tokens < 2) {
        Some((prompt, _)) => Err(Error::LabelledShort { id: prompt.id.clone() }),
        None => Ok(()),
    }
}

/// Mean of `ln p` of the tokens after the first, from the residual streams
/// `[pos, d_model]` behind the last layer; `None` for a single token. Logits are
/// made some positions at a time.
fn mean_log_probability(
    model: &Model,
    resid: &Tensor,
    text: usize,
    tokens: &[u32],
) -> Result<Option<f64>> {
    let n = tokens.len().saturating_sub(1);
    let step = (MAX_LOGITS / model.info().d_vocab.max(1)).max(1);
    let mut sum = 0.;
    for start in (0..n).step_by(step) {
        let len = step.min(n - start);
        let piece = resid.narrow(0, start, len)?.unsqueeze(0)?;
        let logits = logits(model, &piece, &tokens[start..start + len])?;
        let next = &tokens[start + 1..start + 1 + len];
        sum -= surprisal(text, &logits, next)?.into_iter().sum::<f64>();
    }
    Ok((n > 0).then(|| sum / n as f64))
}

/// The residual stream behind the last layer of the prompt that went through the model.
pub(crate) type ResidualSlot = Rc<RefCell<Option<Tensor>>>;

/// Keeps that residual stream, `[pos, d_model]`.
pub(crate) struct LastResidual {
    plan: Plan,
    slot: ResidualSlot,
}

impl LastResidual {
    pub(crate) fn new(slot: ResidualSlot) -> Self {
        Self { plan: Plan::default(), slot }
    }
}

impl ActivationSink for LastResidual {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        let last = info.n_layers().saturating_sub(1);
        let mut plan = Plan::default();
        plan.add(HookPoint::layer(Site::ResidPost, last), &Wanted::all(), info)?;
        self.plan = plan;
        Ok(self.plan.clone())
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        if let Some(request) = self.plan.wants(point) {
            // A run sends one prompt at a time.
            *self.slot.borrow_mut() = Some(activation.select(point, 0, request)?);
        }
        Ok(())
    }
}

impl Recorder for LastResidual {
    fn tables(&self) -> Vec<TableSchema> {
        vec![labels::LABELS]
    }

    fn end_prompt(&mut self, _: &mut PromptWriter) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::Content;

    fn options(groups: bool, positive: Option<&str>) -> LabelOptions {
        LabelOptions {
            field: "label".to_owned(),
            groups: groups.then(|| "pair".to_owned()),
            positive: positive.map(str::to_owned),
        }
    }

    fn prompts(fields: impl IntoIterator<Item = Vec<Field>>) -> Vec<WithFields> {
        let prompt = |(i, fields): (usize, Vec<Field>)| {
            (Prompt::new(i.to_string(), Content::Text("a b".into())), fields)
        };
        fields.into_iter().enumerate().map(prompt).collect()
    }

    fn value(text: &str) -> Field {
        Field::Value(text.to_owned())
    }

    fn error(options: &LabelOptions, prompts: &[WithFields]) -> Error {
        Labels::new(options, prompts).err().unwrap()
    }

    #[test]
    fn labels_are_two_values_of_every_prompt() {
        let some = |n: usize| prompts((0..n).map(|i| vec![value(["bad", "good"][i % 2])]));
        let labels = Labels::new(&options(false, None), &some(20)).unwrap();
        assert_eq!(labels.of_prompt[1], ("good".to_owned(), None));
        let described = labels.describe();
        assert_eq!(described["field"], "label");
        let other = Labels::new(&options(false, None), &some(22)).unwrap().describe();
        assert_ne!(described["sha256"], other["sha256"]);

        let few = error(&options(false, None), &some(18));
        assert!(matches!(few, Error::Unfit(_)), "{few}");
        let mut third = some(20);
        third[7].1 = vec![value("ugly")];
        let message = error(&options(false, None), &third).to_string();
        assert!(message.contains("`7`") && message.contains("`bad` and `good`"), "{message}");
        for (field, expected) in [(Field::Missing, "no `label`"), (Field::Compound, "a list")] {
            let mut wrong = some(20);
            wrong[3].1 = vec![field];
            let message = error(&options(false, None), &wrong).to_string();
            assert!(message.contains("`3`") && message.contains(expected), "{message}");
        }
        let one = prompts((0..20).map(|_| vec![value("good")]));
        assert!(matches!(error(&options(false, None), &one), Error::LabelSingle { .. }));
        let positive = error(&options(false, Some("best")), &some(20));
        assert!(matches!(positive, Error::LabelPositive { .. }), "{positive}");
        assert!(Labels::new(&options(false, Some("bad")), &some(20)).is_ok());
    }

    #[test]
    fn groups_count_once() {
        let of = |i: usize, pairs: usize| {
            vec![value(["0", "1"][i % 2]), value(&(i / 2 % pairs).to_string())]
        };
        let all = |pairs: usize| prompts((0..40).map(|i| of(i, pairs)));
        assert!(Labels::new(&options(true, None), &all(20)).is_ok());
        // Forty prompts, but nine independent groups.
        assert!(matches!(error(&options(true, None), &all(9)), Error::Unfit(_)));
        assert_eq!(number([Some("a"), None, Some("b"), Some("a")].into_iter()), [0, 1, 2, 0]);
    }

    #[test]
    fn the_positive_label_is_the_greater_or_the_named_one() {
        let (a, b) = ("true".to_owned(), "false".to_owned());
        assert_eq!(names("l", [&a, &b], None).unwrap(), ["false", "true"]);
        assert_eq!(names("l", [&a, &b], Some("false")).unwrap(), ["true", "false"]);
    }
}
