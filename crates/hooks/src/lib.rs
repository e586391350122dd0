//! The vocabulary that a forward pass and its observers share.
//!
//! A model *pushes* activations; its caller *chooses* them. The caller hands the
//! forward pass an [`ActivationSink`]. Its [`plan`](ActivationSink::plan) names,
//! once, the hook points, heads and positions it wants; the forward pass then
//! calls [`record`](ActivationSink::record) for those and computes nothing else.
//! What is not planned costs a branch.
//!
//! The one decision that shapes this crate: a hook point is a small `Copy` value
//! from a closed table ([`Site`]), not a string. A name that the table does not
//! hold, or that a model's layer does not have, is an error when the plan is
//! made, never a capture that stays silently empty.
//!
//! Names and shapes are those of TransformerLens; values are those of Hugging
//! Face's modules, that is without folded norms or centred weights.
//!
//! # Example: what `run_with_cache` does elsewhere
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use hooks::*;
//!
//! # fn main() -> Result<()> {
//! let info = ModelInfo::example();
//!
//! // Choose: every pattern, heads 0 and 1 only.
//! let mut chosen = Plan::default();
//! chosen.add_matching("blocks.*.attn.hook_pattern", &Selection::All, &Wanted::heads("0-1".parse()?), &info)?;
//! let mut cache = ActivationCache::new(chosen);
//!
//! // A forward pass does this for every point that the plan wants.
//! let plan = cache.plan(&info)?;
//! let batch = Batch::new(vec![Row { request: 7, tokens: vec![1, 2], offset: 0 }])?;
//! let point: HookPoint = "blocks.0.attn.hook_pattern".parse()?;
//! let heads = plan.wants(point).and_then(|request| request.heads.clone()).unwrap_or_default();
//! let pattern = Tensor::ones((1, heads.len(), 2, 2), candle_core::DType::F32, &Device::Cpu)?;
//! cache.begin(&batch)?;
//! cache.record(point, &Activation::new(&pattern, &batch).with_heads(&heads))?;
//! cache.end_batch()?;
//!
//! assert_eq!(cache.get(7, point)?.dims(), [2, 2, 2]); // [head, query_pos, key_pos]
//! # Ok(())
//! # }
//! ```

mod activation;
mod cache;
mod edits;
mod error;
mod info;
mod plan;
mod point;
mod selection;
mod sink;
mod statistic;

pub use activation::{Activation, Batch, Row};
pub use cache::ActivationCache;
pub use edits::{Edit, Edits, Rule};
pub use error::{Error, Result};
pub use info::{LayerInfo, MlpInfo, ModelInfo};
pub use plan::{Plan, Request, SummaryOptions, Wanted};
pub use point::{Axis, HookPoint, Scope, Site};
pub use selection::{Position, Positions, Selection};
pub use sink::{ActivationSink, Fanout, NoSink};
pub use statistic::Statistic;
