//! The layers that every family shares, and with them the hook points.
//!
//! Each hook point is recorded in one place, by the layer that computes it,
//! through [`Pass::point`]: edits first, then the record, and the edited value
//! goes on. A family cannot forget a point or give it another shape.

mod attention;
mod block;
mod decoder;
mod embedding;
mod mixture;
mod mlp;
mod norm;
mod pass;
mod projections;
mod rotary;

pub(crate) use attention::{Attention, QueryKeyNorm};
pub(crate) use block::{Block, Branch, FeedForward, Residual};
pub(crate) use decoder::{Decoder, Logits};
pub(crate) use embedding::{Embedding, Table};
pub(crate) use mixture::Mixture;
pub(crate) use mlp::{Mlp, MlpForm};
pub(crate) use norm::Norm;
pub(crate) use pass::{Away, Pass, UnderWay};
pub(crate) use projections::{Outputs, Projections};
pub(crate) use rotary::Rotary;
