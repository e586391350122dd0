//! How mixtures of experts route: how evenly the load falls, how sure the router
//! is, and what the balancing losses of training would be.
//!
//! `N` experts of which each token uses `k`; `q_i` is the share of all slots that
//! expert `i` fills, `P_i` its mean router probability.
//!
//! The decision that shapes this module: everything is computed layer by layer,
//! never over layers pooled together, which hides imbalance: two layers that each
//! use one half of their experts look balanced when pooled. Over prompts, counts
//! add up first and statistics are taken of the sums; a prompt's rows carry
//! enough to do that again from a stored table.

mod accumulator;
mod row;
mod sink;

use hooks::Site;

pub use accumulator::Accumulator;
pub use row::{ExpertLoad, ExpertRow, LayerSummary, RoutingRow, RoutingStatistics, summary};
pub use sink::{RoutingRows, RoutingSink};

use crate::Analysis;

/// The entry in [`ANALYSES`](crate::ANALYSES).
pub const ANALYSIS: Analysis = Analysis {
    name: "routing",
    about: "load, balance and certainty of mixture-of-experts routing",
    needs: &[Site::RouterLogits, Site::RouterProbs, Site::ExpertIndices, Site::ExpertWeights],
};
