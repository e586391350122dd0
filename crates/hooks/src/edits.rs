//! Edits: declarative interventions in a forward pass.
//!
//! An edit changes an activation before it is recorded and before anything
//! downstream reads it, so a sink sees what the model went on with.

use candle_core::{DType, Tensor};

use crate::{Batch, Error, HookPoint, ModelInfo, Positions, Result, Selection, Site};

/// What is done to an activation.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Set to 0.
    Zero,
    /// Multiplied by a factor.
    Scale(f64),
    /// A tensor added, broadcast to the activation's shape (a steering vector).
    Add(Tensor),
    /// Replaced by a tensor, broadcast to the activation's shape (a saved
    /// activation, or a mean).
    Set(Tensor),
    /// Attention edges from the rule's positions to these keys are cut before
    /// the softmax. At `hook_attn_scores`.
    KnockOut {
        /// Absolute positions of the keys.
        keys: Positions,
    },
    /// These experts cannot be chosen. At `hook_router_logits`.
    DropExperts(Vec<usize>),
    /// These experts are always among the chosen. At `hook_router_logits`.
    ForceExperts(Vec<usize>),
}

impl Edit {
    /// The edit's name in messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Edit::Zero => "zero",
            Edit::Scale(_) => "scale",
            Edit::Add(_) => "add",
            Edit::Set(_) => "set",
            Edit::KnockOut { .. } => "knock out edges",
            Edit::DropExperts(_) => "drop experts",
            Edit::ForceExperts(_) => "force experts",
        }
    }

    /// Whether it maps the activation's values to new ones.
    const fn is_value_edit(&self) -> bool {
        matches!(self, Edit::Zero | Edit::Scale(_) | Edit::Add(_) | Edit::Set(_))
    }
}

/// One edit at one hook point.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where.
    pub point: HookPoint,
    /// On which entries of the point's own head axis, where it has one: at keys and
    /// values these are key-value heads.
    pub heads: Selection,
    /// At which absolute positions.
    pub positions: Positions,
    /// What.
    pub edit: Edit,
}

/// The edits of one forward pass, made in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    rules: Vec<Rule>,
}

/// Points whose value nothing downstream reads: editing them would change nothing.
const DEAD_ENDS: &[Site] =
    &[Site::AttnScores, Site::Pattern, Site::Lse, Site::Summary, Site::RouterProbs];

impl Edits {
    /// Adds a rule.
    ///
    /// # Errors
    ///
    /// [`Error::Edit`] if this kind of edit cannot be made at the point, and
    /// those of [`ModelInfo::check`] and [`Selection::resolve`].
    pub fn add(&mut self, rule: Rule, info: &ModelInfo) -> Result<()> {
        info.check(rule.point)?;
        let refuse =
            |reason| Err(Error::Edit { edit: rule.edit.name(), point: rule.point, reason });
        let site = rule.point.site();
        match &rule.edit {
            Edit::KnockOut { .. } if site != Site::AttnScores => {
                return refuse("edges are cut at hook_attn_scores");
            }
            Edit::DropExperts(_) | Edit::ForceExperts(_) if site != Site::RouterLogits => {
                return refuse("experts are chosen at hook_router_logits");
            }
            edit if edit.is_value_edit() && DEAD_ENDS.contains(&site) => {
                return refuse("nothing downstream reads this activation");
            }
            edit if edit.is_value_edit() && site == Site::ExpertIndices => {
                return refuse("indices are not values; drop or force experts instead");
            }
            _ => {}
        }
        if let Some(count) = info.head_count(rule.point) {
            rule.heads.resolve("head", count)?;
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether any rule is at this point.
    pub fn touches(&self, point: HookPoint) -> bool {
        self.rules.iter().any(|rule| rule.point == point)
    }

    /// The activation after the value edits (zero, scale, add, set) at this
    /// point; `None` if there are none. Other kinds are the layers' to make.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if a rule's tensor does not broadcast to the activation.
    pub fn apply(
        &self,
        point: HookPoint,
        tensor: &Tensor,
        batch: &Batch,
    ) -> Result<Option<Tensor>> {
        let mut edited: Option<Tensor> = None;
        let here = |rule: &&Rule| rule.point == point && rule.edit.is_value_edit();
        for rule in self.rules.iter().filter(here) {
            let before = edited.as_ref().unwrap_or(tensor);
            let after = match &rule.edit {
                Edit::Scale(factor) => before.affine(*factor, 0.)?,
                Edit::Add(vector) => before
                    .broadcast_add(&vector.to_dtype(before.dtype())?.to_device(before.device())?)?,
                Edit::Set(value) => value
                    .to_dtype(before.dtype())?
                    .to_device(before.device())?
                    .broadcast_as(before.shape())?
                    .contiguous()?,
                _ => before.zeros_like()?,
            };
            let mask = region(rule, before, batch)?.broadcast_as(before.shape())?;
            edited = Some(mask.where_cond(&after, &before.contiguous()?)?);
        }
        Ok(edited)
    }
}

/// 1 where the rule applies and 0 elsewhere, with axes that broadcast to `tensor`.
fn region(rule: &Rule, tensor: &Tensor, batch: &Batch) -> Result<Tensor> {
    let site = rule.point.site();
    let shape_with = |axes: &[(usize, usize)]| {
        let mut shape = vec![1; tensor.rank()];
        axes.iter().for_each(|&(axis, len)| shape[axis] = len);
        shape
    };
    let mut mask = Tensor::ones(shape_with(&[]), DType::U8, tensor.device())?;
    if let (Some(axis), Positions::Only(_)) = (site.position_axis(), &rule.positions) {
        let len = tensor.dim(axis + 1)?;
        let mut held = vec![0u8; batch.rows().len() * len];
        for (row, held) in batch.rows().iter().zip(held.chunks_mut(len.max(1))) {
            for position in rule.positions.resolve(row.offset, row.tokens.len()) {
                held[position] = 1;
            }
        }
        let shape = shape_with(&[(0, batch.rows().len()), (axis + 1, len)]);
        mask = mask.broadcast_mul(&Tensor::from_vec(held, shape, tensor.device())?)?;
    }
    if let (Some(axis), Selection::Only(_)) = (site.head_axis(), &rule.heads) {
        let len = tensor.dim(axis + 1)?;
        let held: Vec<u8> = (0..len).map(|head| u8::from(rule.heads.contains(head))).collect();
        let shape = shape_with(&[(axis + 1, len)]);
        mask = mask.broadcast_mul(&Tensor::from_vec(held, shape, tensor.device())?)?;
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Row;

    fn rule(point: &str, heads: &str, positions: &str, edit: Edit) -> Rule {
        Rule {
            point: point.parse().unwrap(),
            heads: heads.parse().unwrap(),
            positions: positions.parse().unwrap(),
            edit,
        }
    }

    #[test]
    fn value_edits_touch_their_region_only() {
        let info = ModelInfo::example();
        let batch = Batch::new(vec![Row { request: 0, tokens: vec![1, 2], offset: 3 }]).unwrap();
        let tensor = Tensor::ones((1, 2, 4, 2), DType::F32, &Device::Cpu).unwrap();
        let mut edits = Edits::default();
        edits.add(rule("blocks.0.attn.hook_z", "1", "4", Edit::Zero), &info).unwrap();
        let vector = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        edits.add(rule("blocks.0.attn.hook_z", "0", "all", Edit::Add(vector)), &info).unwrap();
        edits.add(rule("blocks.0.attn.hook_z", "3", "last", Edit::Scale(5.)), &info).unwrap();
        let point = "blocks.0.attn.hook_z".parse().unwrap();
        let edited = edits.apply(point, &tensor, &batch).unwrap().unwrap();
        assert_eq!(
            edited.get(0).unwrap().to_vec3::<f32>().unwrap(),
            [[[2., 3.], [1., 1.], [1., 1.], [1., 1.]], [[2., 3.], [0., 0.], [1., 1.], [5., 5.]]]
        );
        let other = "blocks.1.attn.hook_z".parse().unwrap();
        assert!(edits.apply(other, &tensor, &batch).unwrap().is_none());
        assert!(edits.touches(point) && !edits.touches(other));
    }

    #[test]
    fn set_broadcasts_and_wrong_shapes_are_errors() {
        let info = ModelInfo::example();
        let batch = Batch::new(vec![Row { request: 0, tokens: vec![1], offset: 0 }]).unwrap();
        let tensor = Tensor::zeros((1, 1, 2), DType::F32, &Device::Cpu).unwrap();
        let set = |values: &[f32]| {
            let value = Tensor::new(values, &Device::Cpu).unwrap();
            let mut edits = Edits::default();
            edits
                .add(rule("blocks.0.hook_resid_pre", "all", "all", Edit::Set(value)), &info)
                .unwrap();
            edits.apply("blocks.0.hook_resid_pre".parse().unwrap(), &tensor, &batch)
        };
        assert_eq!(set(&[7., 8.]).unwrap().unwrap().to_vec3::<f32>().unwrap(), [[[7., 8.]]]);
        assert!(set(&[1., 2., 3.]).is_err());
    }

    #[test]
    fn impossible_edits_are_refused() {
        let info = ModelInfo::example();
        let mut edits = Edits::default();
        for bad in [
            rule("blocks.0.attn.hook_pattern", "all", "all", Edit::Zero),
            rule("blocks.1.mlp.hook_expert_indices", "all", "all", Edit::Zero),
            rule("blocks.0.hook_resid_pre", "all", "all", Edit::DropExperts(vec![0])),
            rule("blocks.0.hook_resid_pre", "all", "all", Edit::KnockOut { keys: Positions::All }),
            rule("blocks.0.attn.hook_z", "9", "all", Edit::Zero),
            rule("blocks.0.mlp.hook_router_logits", "all", "all", Edit::DropExperts(vec![0])),
        ] {
            assert!(edits.add(bad, &info).is_err());
        }
        assert!(edits.is_empty());
        let good =
            rule("blocks.1.mlp.hook_router_logits", "all", "all", Edit::ForceExperts(vec![1]));
        edits.add(good, &info).unwrap();
        assert_eq!(edits.rules().len(), 1);
    }
}
