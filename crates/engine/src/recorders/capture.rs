//! Captured activations, written as they are recorded.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{DType, Tensor};
use hooks::{
    Activation, ActivationSink, HookPoint, ModelInfo, Plan, Positions, Selection, Site,
    SummaryOptions, Wanted,
};
use store::{ElementType, PromptWriter, StoredType, TableSchema, TensorView};

use super::Recorder;
use crate::{Error, Result};

/// Which activations are written, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Hook points; names may hold `*`.
    pub hooks: Vec<String>,
    /// Layers of names with `*`.
    pub layers: Selection,
    /// Heads.
    pub heads: Selection,
    /// Positions.
    pub positions: Positions,
    /// Type in which floating-point tensors are stored.
    pub stored: StoredType,
}

/// The writer of the prompt that is going through the model. It is shared because
/// the run takes it back between prompts.
pub(crate) type WriterSlot = Rc<RefCell<Option<PromptWriter>>>;

/// Writes each activation that it planned under `{prompt}/{hook point}`.
pub(crate) struct Capture {
    options: CaptureOptions,
    plan: Plan,
    writer: WriterSlot,
}

impl Capture {
    pub(crate) fn new(options: CaptureOptions, writer: WriterSlot) -> Self {
        Self { options, plan: Plan::default(), writer }
    }

    fn write(&self, point: HookPoint, activation: &Activation<'_>) -> Result<()> {
        let Some(request) = self.plan.wants(point) else {
            return Ok(());
        };
        let mut slot = self.writer.borrow_mut();
        let Some(writer) = slot.as_mut() else {
            return Ok(());
        };
        // A run sends one prompt at a time.
        let selected = activation.select(point, 0, request)?;
        let (element, bytes) = bytes_of(&selected, point, writer.id())?;
        let view = TensorView { element, shape: selected.dims(), bytes: &bytes };
        Ok(writer.tensor(&point.to_string(), view, self.options.stored)?)
    }
}

/// The plan of a capture; what it plans is what it writes.
pub(crate) fn plan(options: &CaptureOptions, info: &ModelInfo) -> hooks::Result<Plan> {
    let mut plan = Plan::default();
    plan.set_summary(SummaryOptions::default());
    let wanted = Wanted { heads: options.heads.clone(), positions: options.positions.clone() };
    for name in &options.hooks {
        plan.add_matching(name, &options.layers, &wanted, info)?;
    }
    Ok(plan)
}

impl ActivationSink for Capture {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        self.plan = plan(&self.options, info)?;
        Ok(self.plan.clone())
    }

    fn record(&mut self, point: HookPoint, activation: &Activation<'_>) -> hooks::Result<()> {
        self.write(point, activation).map_err(hooks::Error::sink)
    }
}

impl Recorder for Capture {
    fn tables(&self) -> Vec<TableSchema> {
        Vec::new()
    }

    fn end_prompt(&mut self, _: &mut PromptWriter) -> Result<()> {
        Ok(())
    }
}

/// A tensor's elements, little-endian and row-major.
fn bytes_of(tensor: &Tensor, point: HookPoint, prompt: &str) -> Result<(ElementType, Vec<u8>)> {
    let flat = tensor.flatten_all()?;
    if flat.dtype() == DType::U32 {
        let bytes = flat.to_vec1::<u32>()?.into_iter().flat_map(u32::to_le_bytes).collect();
        return Ok((ElementType::U32, bytes));
    }
    let values = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    // Masked scores are −∞ by definition; no other activation is infinite.
    let masked = point.site() == Site::AttnScores;
    let wrong = |v: &&f32| !(v.is_finite() || masked && **v == f32::NEG_INFINITY);
    if let Some(&value) = values.iter().find(wrong) {
        return Err(Error::NotFinite { prompt: prompt.to_owned(), point, value });
    }
    Ok((ElementType::F32, values.into_iter().flat_map(f32::to_le_bytes).collect()))
}

/// Bytes that a prompt of `length` tokens adds to the tensors of a run.
pub(crate) fn estimate(plan: &Plan, info: &ModelInfo, stored: StoredType, length: usize) -> u64 {
    plan.iter()
        .map(|(point, request)| {
            let elements: u64 = point
                .site()
                .axes()
                .iter()
                .map(|&axis| match axis {
                    hooks::Axis::Pos | hooks::Axis::QueryPos => {
                        request.positions.resolve(0, length).len()
                    }
                    hooks::Axis::KeyPos => length,
                    hooks::Axis::Head | hooks::Axis::KvHead => {
                        request.heads.as_ref().map_or(1, Vec::len)
                    }
                    axis => info.axis_len(point, axis).unwrap_or(1),
                } as u64)
                .fold(1, u64::saturating_mul);
            let given = match point.site() {
                Site::ExpertIndices => ElementType::U32,
                _ => ElementType::F32,
            };
            elements.saturating_mul(stored.of(given).size() as u64)
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn estimates_count_what_is_selected() {
        let info = ModelInfo::example();
        let options = CaptureOptions {
            hooks: vec!["blocks.*.attn.hook_pattern".into(), "blocks.1.mlp.hook_expert_*".into()],
            layers: Selection::All,
            heads: "0,2".parse().unwrap(),
            positions: "last".parse().unwrap(),
            stored: StoredType::F16,
        };
        let plan = plan(&options, &info).unwrap();
        // Two layers × 2 heads × 1 query × 10 keys × 2 bytes, 2 indices × 4, 2 weights × 2.
        assert_eq!(estimate(&plan, &info, options.stored, 10), 2 * 2 * 10 * 2 + 2 * 4 + 2 * 2);
    }

    #[test]
    fn only_masked_scores_may_be_infinite() {
        let tensor = Tensor::new(&[1f32, f32::NEG_INFINITY], &Device::Cpu).unwrap();
        let scores = "blocks.0.attn.hook_attn_scores".parse().unwrap();
        let (element, bytes) = bytes_of(&tensor, scores, "p").unwrap();
        assert_eq!((element, bytes.len()), (ElementType::F32, 8));
        let resid = "blocks.0.hook_resid_post".parse().unwrap();
        let error = bytes_of(&tensor, resid, "p").unwrap_err().to_string();
        assert!(error.contains("prompt `p`") && error.contains("hook_resid_post"), "{error}");
        let nan = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
        assert!(bytes_of(&nan, scores, "p").is_err());
    }
}
