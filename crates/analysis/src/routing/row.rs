//! Rows of routing tables, and their summary over prompts.

use std::collections::BTreeMap;

use super::Accumulator;
use crate::{Error, Result};

/// How a layer routed a number of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoutingStatistics {
    /// Experts `N`.
    pub n_experts: usize,
    /// Experts per token.
    pub k: usize,
    /// Tokens.
    pub n_tokens: u64,
    /// Coefficient of variation of the load: population standard deviation over mean.
    pub load_cv: f64,
    /// Entropy of the load over `ln N`: 1 is even. `None` with one expert.
    pub load_entropy: Option<f64>,
    /// `e^H` of the load's entropy `H`: how many equally loaded experts it amounts to.
    pub effective_experts: f64,
    /// Gini coefficient of the load, `Σ_i (2i − N − 1) q_(i)/N`, `q` ascending, `i` from 1.
    pub load_gini: f64,
    /// Largest load over mean load, minus 1.
    pub max_violation: f64,
    /// Share of experts that no token used.
    pub dead_fraction: f64,
    /// Entropy of a token's router probabilities, mean over tokens, in nats.
    pub token_entropy: f64,
    /// Probability of the last expert chosen minus that of the first one not
    /// chosen, mean over tokens. `None` where all experts are chosen.
    pub margin: Option<f64>,
    /// Switch Transformer's balancing loss `N Σ f_i P_i`, `f_i` the share of
    /// tokens whose first choice is `i`: 1 at balance.
    pub switch_loss: f64,
    /// The same with the share of slots, `N Σ q_i P_i`: 1 at balance.
    pub switch_loss_top_k: f64,
    /// Router z-loss, mean of `(ln Σ_i e^{x_i})²` over tokens, `x` the logits.
    pub z_loss: f64,
}

impl RoutingStatistics {
    /// Every measured column with its name, in the order of tables.
    pub fn measures(&self) -> [(&'static str, Option<f64>); 11] {
        [
            ("load_cv", Some(self.load_cv)),
            ("load_entropy", self.load_entropy),
            ("effective_experts", Some(self.effective_experts)),
            ("load_gini", Some(self.load_gini)),
            ("max_violation", Some(self.max_violation)),
            ("dead_fraction", Some(self.dead_fraction)),
            ("token_entropy", Some(self.token_entropy)),
            ("margin", self.margin),
            ("switch_loss", Some(self.switch_loss)),
            ("switch_loss_top_k", Some(self.switch_loss_top_k)),
            ("z_loss", Some(self.z_loss)),
        ]
    }
}

/// What one expert was given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertLoad {
    /// The expert.
    pub expert: usize,
    /// Slots that it filled.
    pub slots: u64,
    /// Those as a share of all slots.
    pub share: f64,
    /// Tokens whose first choice it was.
    pub first_choices: u64,
    /// Its mean router probability.
    pub mean_probability: f64,
    /// The mean weight on its output where it was chosen; `None` where it never was.
    pub mean_weight: Option<f64>,
}

/// Routing of one prompt in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoutingRow {
    /// The prompt.
    pub request: u64,
    /// The layer.
    pub layer: usize,
    /// The numbers.
    pub statistics: RoutingStatistics,
}

/// One expert's part in one prompt and layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertRow {
    /// The prompt.
    pub request: u64,
    /// The layer.
    pub layer: usize,
    /// The numbers.
    pub load: ExpertLoad,
}

/// Routing of several prompts in one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSummary {
    /// The layer.
    pub layer: usize,
    /// Prompts.
    pub n_requests: usize,
    /// The numbers, of all prompts' tokens together.
    pub statistics: RoutingStatistics,
    /// The experts' loads, in order.
    pub experts: Vec<ExpertLoad>,
}

/// Summarises prompts, layer by layer: counts add up, then statistics are taken.
///
/// The rows may come in any order, and from a table stored earlier; the result
/// depends on neither.
///
/// # Errors
/// [`Error::Rows`] where prompts differ in the number of experts of a layer, or
/// where a prompt's experts are not all there, once each.
pub fn summary(rows: &[RoutingRow], experts: &[ExpertRow]) -> Result<Vec<LayerSummary>> {
    let mut by_prompt: BTreeMap<(usize, u64), Vec<&ExpertLoad>> = BTreeMap::new();
    for row in experts {
        by_prompt.entry((row.layer, row.request)).or_default().push(&row.load);
    }
    let mut rows: Vec<&RoutingRow> = rows.iter().collect();
    rows.sort_by_key(|row| (row.layer, row.request));
    let mut layers: BTreeMap<usize, (usize, Accumulator)> = BTreeMap::new();
    for row in rows {
        let &RoutingRow { request, layer, ref statistics } = row;
        let wrong = |what, expected, got| Error::Rows { layer, request, what, expected, got };
        let mut loads = by_prompt.remove(&(layer, request)).unwrap_or_default();
        loads.sort_by_key(|load| load.expert);
        if loads.len() != statistics.n_experts {
            return Err(wrong("number of expert rows", statistics.n_experts, loads.len()));
        }
        if let Some((expected, load)) =
            loads.iter().enumerate().find(|(expert, load)| load.expert != *expert)
        {
            return Err(wrong("expert", expected, load.expert));
        }
        let part = Accumulator::from_rows(statistics, &loads);
        match layers.get_mut(&layer) {
            None => {
                layers.insert(layer, (1, part));
            }
            Some((n_requests, sum)) => {
                if sum.n_experts() != part.n_experts() {
                    return Err(wrong("number of experts", sum.n_experts(), part.n_experts()));
                }
                if sum.k() != part.k() {
                    return Err(wrong("experts per token", sum.k(), part.k()));
                }
                sum.merge(&part);
                *n_requests += 1;
            }
        }
    }
    let summaries = layers.into_iter().filter_map(|(layer, (n_requests, sum))| {
        let statistics = sum.statistics()?;
        Some(LayerSummary { layer, n_requests, statistics, experts: sum.loads() })
    });
    Ok(summaries.collect())
}
