//! Captured activations, written as they are recorded.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use hooks::{
    Activation, ActivationSink, HookPoint, ModelInfo, Plan, Positions, Selection, Site,
    SummaryOptions, Wanted,
};
use rayon::prelude::*;
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
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let here = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    match &*storage {
        Storage::Cpu(CpuStorage::U32(values)) => {
            Ok((ElementType::U32, little_endian(&values[here], |value| value.to_le_bytes())))
        }
        Storage::Cpu(CpuStorage::F32(values)) => {
            let values = &values[here];
            // Masked scores are −∞ by definition; no other activation is infinite.
            let masked = point.site() == Site::AttnScores;
            let wrong = |v: &&f32| !(v.is_finite() || masked && **v == f32::NEG_INFINITY);
            if let Some(&value) = values.par_iter().find_first(wrong) {
                return Err(Error::NotFinite { prompt: prompt.to_owned(), point, value });
            }
            Ok((ElementType::F32, little_endian(values, |value| value.to_le_bytes())))
        }
        _ => {
            // What a caller of the library records itself.
            let plain = tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            bytes_of(&plain, point, prompt)
        }
    }
}

fn little_endian<T: Copy + Sync>(values: &[T], bytes: impl Fn(T) -> [u8; 4] + Sync) -> Vec<u8> {
    /// Elements of a task.
    const CHUNK: usize = 1 << 16;
    let mut all = vec![0; 4 * values.len()];
    all.par_chunks_mut(4 * CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(all, values)| {
        for (to, value) in all.as_chunks_mut().0.iter_mut().zip(values) {
            *to = bytes(*value);
        }
    });
    all
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
        // A view, whose elements are those of its place.
        let all = Tensor::arange(0u32, 12, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
        for dtype in [DType::U32, DType::F32] {
            let view = all.to_dtype(dtype).unwrap().narrow(1, 1, 2).unwrap();
            let (_, bytes) = bytes_of(&view, scores, "p").unwrap();
            let numbers = bytes.as_chunks().0.iter().map(|bytes| match dtype {
                DType::U32 => u32::from_le_bytes(*bytes),
                _ => f32::from_le_bytes(*bytes) as u32,
            });
            assert!(numbers.eq([1, 2, 5, 6, 9, 10]));
        }
        let halves = Tensor::new(&[half::bf16::ONE], &Device::Cpu).unwrap();
        assert_eq!(bytes_of(&halves, scores, "p").unwrap().1, 1f32.to_le_bytes());
        let resid = "blocks.0.hook_resid_post".parse().unwrap();
        let error = bytes_of(&tensor, resid, "p").unwrap_err().to_string();
        assert!(error.contains("prompt `p`") && error.contains("hook_resid_post"), "{error}");
        let nan = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
        assert!(bytes_of(&nan, scores, "p").is_err());
    }
}
