//! Sums over tokens from which routing statistics are taken.

use super::{ExpertLoad, RoutingStatistics};

/// Sums over the tokens that one layer routed.
///
/// ```
/// use analysis::routing::Accumulator;
///
/// // Four experts, two per token; both tokens go to experts 0 and 1.
/// let mut sums = Accumulator::new(4, 2);
/// for _ in 0..2 {
///     sums.add(&[0.0; 4], &[0.25; 4], &[0, 1], &[0.5, 0.5]);
/// }
/// let statistics = sums.statistics().ok_or("tokens")?;
/// assert_eq!(statistics.dead_fraction, 0.5);
/// assert_eq!(statistics.max_violation, 1.0); // half the slots instead of a quarter
/// assert_eq!(statistics.load_cv, 1.0);
/// assert_eq!(statistics.load_gini, 0.5);
/// assert!((statistics.effective_experts - 2.0).abs() < 1e-12);
/// assert_eq!(statistics.switch_loss, 1.0); // an indifferent router is balanced
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Accumulator {
    k: usize,
    n_tokens: u64,
    slots: Vec<u64>,
    first_choices: Vec<u64>,
    probability: Vec<f64>,
    weight: Vec<f64>,
    token_entropy: f64,
    margin: f64,
    z_loss: f64,
}

impl Accumulator {
    /// Sums over no tokens, of a layer with `n_experts` of which each token uses `k`.
    pub fn new(n_experts: usize, k: usize) -> Self {
        Self {
            k,
            n_tokens: 0,
            slots: vec![0; n_experts],
            first_choices: vec![0; n_experts],
            probability: vec![0.0; n_experts],
            weight: vec![0.0; n_experts],
            token_entropy: 0.0,
            margin: 0.0,
            z_loss: 0.0,
        }
    }

    /// Number of experts.
    pub fn n_experts(&self) -> usize {
        self.slots.len()
    }

    /// Experts per token.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Adds one token: its router logits and probabilities over all experts, the
    /// experts chosen (best first) and the weights on their outputs. An index
    /// that is no expert is passed over.
    ///
    /// # Numerics
    /// Sums in `f64`. Probabilities are taken as shares of their sum.
    pub fn add(&mut self, logits: &[f32], probabilities: &[f32], chosen: &[u32], weights: &[f32]) {
        self.n_tokens += 1;
        for (rank, (&expert, &weight)) in chosen.iter().zip(weights).enumerate() {
            let Some(slots) = self.slots.get_mut(expert as usize) else { continue };
            *slots += 1;
            self.weight[expert as usize] += f64::from(weight);
            if rank == 0 {
                self.first_choices[expert as usize] += 1;
            }
        }
        let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        for (sum, &p) in self.probability.iter_mut().zip(probabilities) {
            let share = f64::from(p) / total;
            *sum += share;
            if share > 0.0 {
                self.token_entropy -= share * share.ln();
            }
        }
        if self.k < probabilities.len() {
            let mut sorted = probabilities.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            self.margin += f64::from(sorted[self.k - 1]) - f64::from(sorted[self.k]);
        }
        let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
        let rest: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
        self.z_loss += (largest + rest.ln()).powi(2);
    }

    /// Adds the sums over other tokens of the same layer.
    pub(super) fn merge(&mut self, other: &Self) {
        self.n_tokens += other.n_tokens;
        let add = |into: &mut [u64], from: &[u64]| {
            into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        };
        add(&mut self.slots, &other.slots);
        add(&mut self.first_choices, &other.first_choices);
        let add = |into: &mut [f64], from: &[f64]| {
            into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        };
        add(&mut self.probability, &other.probability);
        add(&mut self.weight, &other.weight);
        self.token_entropy += other.token_entropy;
        self.margin += other.margin;
        self.z_loss += other.z_loss;
    }

    /// The sums that rows of a table stand for; `loads` in the order of the experts.
    pub(super) fn from_rows(statistics: &RoutingStatistics, loads: &[&ExpertLoad]) -> Self {
        let n = statistics.n_tokens as f64;
        Self {
            k: statistics.k,
            n_tokens: statistics.n_tokens,
            slots: loads.iter().map(|load| load.slots).collect(),
            first_choices: loads.iter().map(|load| load.first_choices).collect(),
            probability: loads.iter().map(|load| load.mean_probability * n).collect(),
            weight: loads
                .iter()
                .map(|load| load.mean_weight.unwrap_or(0.0) * load.slots as f64)
                .collect(),
            token_entropy: statistics.token_entropy * n,
            margin: statistics.margin.unwrap_or(0.0) * n,
            z_loss: statistics.z_loss * n,
        }
    }

    /// Each expert's load, in order.
    pub fn loads(&self) -> Vec<ExpertLoad> {
        let shares = self.shares();
        (0..self.n_experts())
            .map(|expert| ExpertLoad {
                expert,
                slots: self.slots[expert],
                share: shares[expert],
                first_choices: self.first_choices[expert],
                mean_probability: self.probability[expert] / self.n_tokens.max(1) as f64,
                mean_weight: (self.slots[expert] > 0)
                    .then(|| self.weight[expert] / self.slots[expert] as f64),
            })
            .collect()
    }

    fn shares(&self) -> Vec<f64> {
        let total: u64 = self.slots.iter().sum();
        self.slots.iter().map(|&slots| slots as f64 / total.max(1) as f64).collect()
    }

    /// The statistics; `None` before the first token.
    pub fn statistics(&self) -> Option<RoutingStatistics> {
        if self.n_tokens == 0 || self.n_experts() == 0 {
            return None;
        }
        let n_experts = self.n_experts();
        let (n, tokens) = (n_experts as f64, self.n_tokens as f64);
        let shares = self.shares();
        let mean = 1.0 / n;
        let variance = shares.iter().map(|q| (q - mean) * (q - mean)).sum::<f64>() / n;
        let entropy: f64 =
            0.0 - shares.iter().filter(|q| **q > 0.0).map(|q| q * q.ln()).sum::<f64>();
        let mut ascending = shares.clone();
        ascending.sort_by(f64::total_cmp);
        let gini = ascending
            .iter()
            .enumerate()
            .map(|(i, q)| (2.0 * (i + 1) as f64 - n - 1.0) * q)
            .sum::<f64>()
            / n;
        let largest = ascending.last().copied().unwrap_or(mean);
        let balance = |shares: &mut dyn Iterator<Item = f64>| {
            n * shares.zip(&self.probability).map(|(f, p)| f * (p / tokens)).sum::<f64>()
        };
        Some(RoutingStatistics {
            n_experts,
            k: self.k,
            n_tokens: self.n_tokens,
            load_cv: variance.sqrt() / mean,
            load_entropy: (n_experts > 1).then(|| entropy / n.ln()),
            effective_experts: entropy.exp(),
            load_gini: gini,
            max_violation: largest / mean - 1.0,
            dead_fraction: self.slots.iter().filter(|slots| **slots == 0).count() as f64 / n,
            token_entropy: self.token_entropy / tokens,
            margin: (self.k < n_experts).then(|| self.margin / tokens),
            switch_loss: balance(
                &mut self.first_choices.iter().map(|count| *count as f64 / tokens),
            ),
            switch_loss_top_k: balance(&mut shares.iter().copied()),
            z_loss: self.z_loss / tokens,
        })
    }
}
