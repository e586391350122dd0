//! Statistics of attention that need neither the pattern nor an eigensolver.
//!
//! They are read off `hook_summary`, which the forward pass computes without
//! forming a pattern.

use candle_core::{DType, Tensor};
use hooks::{HookPoint, Site, Statistic};

use super::Source;
use crate::{Error, Result};

/// The largest entries of a list, largest first, ties to the lower index.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Top {
    /// The entries.
    pub values: Vec<f64>,
    /// Where they stood.
    pub indices: Vec<usize>,
}

impl Top {
    fn of(values: &[f64], k: usize) -> Self {
        let mut order: Vec<usize> = (0..values.len()).collect();
        let larger_first = |i: &usize, j: &usize| values[*j].total_cmp(&values[*i]).then(i.cmp(j));
        if k < order.len() {
            order.select_nth_unstable_by(k, larger_first);
            order.truncate(k);
        }
        order.sort_unstable_by(larger_first);
        Self { values: order.iter().map(|&i| values[i]).collect(), indices: order }
    }
}

/// What attention statistics depend on beside the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatisticsOptions {
    /// How many of the largest sink scores and eigenvalues are kept.
    pub top_k: usize,
    /// The layer's sliding window `w` in tokens, the token itself included: position `i`
    /// is seen by `min(w, T − i)` queries, without a window by `T − i`.
    pub window: Option<usize>,
    /// Number of tokens `B` of the context, what follows having been generated: the
    /// boundary that the summary was made with.
    pub boundary: Option<usize>,
}

/// How one head attends, over a whole prompt.
///
/// `a_ui` is the attention of query `u` on key `i`, `T` the number of tokens, and
/// `s_i = Σ_{u ≥ i} a_ui/(T − i)` the sink score: what token `i` receives on average.
/// Under a sliding window, too, it is over all later queries, as published; the
/// `visible` score is over those that see the token.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionRow {
    /// The prompt.
    pub request: u64,
    /// The layer.
    pub layer: usize,
    /// The head.
    pub head: usize,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Largest sink score.
    pub sink_max: f64,
    /// The token that has it, the first of several.
    pub sink_argmax: usize,
    /// Entropy of `s/Σs`, in nats; `None` where nothing is attended to at all.
    pub sink_entropy: Option<f64>,
    /// The largest sink scores.
    pub sink_top: Top,
    /// Largest visible sink score `Σ_{u ≥ i} a_ui/min(w, T − i)`; in layers without a
    /// window the sink score.
    pub sink_visible_max: f64,
    /// The token that has it, the first of several.
    pub sink_visible_argmax: usize,
    /// Entropy of the visible scores' shares, in nats; `None` as for the sink scores.
    pub sink_visible_entropy: Option<f64>,
    /// Attention on the first token, mean over queries.
    pub first_token_mass: f64,
    /// Lookback ratio `m_ctx/(m_ctx + m_new)`, mean over the generated queries `u ≥ B`:
    /// `m_ctx = Σ_{j < B} a_uj/B` is the mean attention on a token of the context,
    /// `m_new = Σ_{B ≤ j ≤ u} a_uj/(u − B + 1)` that on a generated one, the query itself
    /// included; keys beyond a window count as attended to by 0. `None` without a
    /// generated token or a context.
    ///
    /// # References
    /// Lookback Lens, arXiv 2407.07071.
    pub lookback_ratio: Option<f64>,
    /// `−Σ_j a ln a` of a row, mean over queries, in nats.
    pub row_entropy: f64,
    /// `Σ_j a |i − j|` of a row, mean over queries, in tokens.
    pub distance: f64,
    /// Largest entry of a row, mean over queries.
    pub max: f64,
    /// Largest eigenvalues of `D − A`, `D` the diagonal matrix of the sink scores:
    /// `s_i − a_ii`, since `A` is causal and so triangular. Descending.
    ///
    /// # References
    /// LapEigvals, arXiv 2502.17598.
    pub laplacian_eigenvalues: Vec<f64>,
    /// Largest eigenvalues of a causal pattern itself, `a_ii`, descending.
    pub attention_eigenvalues: Vec<f64>,
    /// `Σ_i ln a_ii / T`, the log-determinant of a causal pattern per token.
    pub log_determinant: f64,
}

/// How the heads of one layer attend together, and what room its hidden states fill.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAttentionRow {
    /// The prompt.
    pub request: u64,
    /// The layer.
    pub layer: usize,
    /// Heads of the layer.
    pub n_heads: usize,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// The layer's sliding window in tokens; `None` sees everything before it.
    pub window: Option<usize>,
    /// Sum over heads of `Σ_i ln a_ii / T`, the layer's attention score of LLM-Check.
    pub log_determinant: f64,
    /// Mean of `ln eig(ZZᵀ + 0.001·1)` of the residual stream after the layer, less each
    /// token's mean over features: the layer's hidden score of LLM-Check, in nats.
    /// `None` where it was not asked for, and from [`attention_statistics`].
    pub hidden_score: Option<f64>,
}

/// Reduces the attention summary of one layer of one prompt.
///
/// # Shapes
/// `summary` is `[head, pos, statistic]`, its `n`-th entry being head `n`.
///
/// ```
/// use analysis::spectral::{Source, StatisticsOptions, attention_statistics};
/// use candle_core::{Device, Tensor};
/// use hooks::Statistic;
///
/// // Two tokens; the second attends a quarter to the first.
/// let mut summary = vec![0f32; 2 * Statistic::COUNT];
/// for (statistic, values) in [
///     (Statistic::FirstToken, [1.0, 0.25]),
///     (Statistic::Diagonal, [1.0, 0.75]),
///     (Statistic::LogDiagonal, [0.0, 0.75f32.ln()]),
///     (Statistic::ColumnSum, [1.25, 0.75]),
///     // One token of context.
///     (Statistic::Lookback, [1.0, 0.25]),
/// ] {
///     for (pos, value) in values.into_iter().enumerate() {
///         summary[pos * Statistic::COUNT + statistic.index()] = value;
///     }
/// }
/// let summary = Tensor::from_vec(summary, (1, 2, Statistic::COUNT), &Device::Cpu)?;
/// let options = StatisticsOptions { top_k: 10, window: None, boundary: Some(1) };
/// let source = Source { request: 0, layer: 0 };
/// let (heads, layer) = attention_statistics(source, &summary, &options)?;
/// // Sink scores 1.25/2 and 0.75/1.
/// assert_eq!((heads[0].sink_max, heads[0].sink_argmax), (0.75, 1));
/// assert_eq!(heads[0].first_token_mass, 0.625);
/// assert_eq!(heads[0].lookback_ratio, Some(0.25));
/// assert_eq!(heads[0].attention_eigenvalues, [1.0, 0.75]);
/// assert!((layer.log_determinant - 0.75f64.ln() / 2.0).abs() < 1e-7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Numerics
/// The summary is `f32`; its statistics are averaged in `f64`. Attention on generated
/// tokens is taken as what a row of sum 1 leaves.
///
/// # Errors
/// [`Error::Captured`] for a number that is not finite, [`Error::Shape`].
pub fn attention_statistics(
    source: Source,
    summary: &Tensor,
    options: &StatisticsOptions,
) -> Result<(Vec<AttentionRow>, LayerAttentionRow)> {
    let Source { request, layer } = source;
    let point = HookPoint::layer(Site::Summary, layer);
    let &[n_heads, n_tokens, Statistic::COUNT] = summary.dims() else {
        return Err(Error::Shape {
            point,
            request,
            expected: format!("[head, pos, {}]", Statistic::COUNT),
            got: summary.dims().to_vec(),
        });
    };
    if n_heads == 0 || n_tokens == 0 {
        return Err(Error::Shape {
            point,
            request,
            expected: "a head and a token at least".to_owned(),
            got: summary.dims().to_vec(),
        });
    }
    let values = summary
        .flatten_all()
        .and_then(|t| t.to_dtype(DType::F64))
        .and_then(|t| t.to_vec1::<f64>())
        .map_err(|source| Error::Tensor { point, request, source })?;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let (head, rest) = (at / (n_tokens * Statistic::COUNT), at % (n_tokens * Statistic::COUNT));
        return Err(Error::Captured {
            point,
            request,
            index: vec![head, rest / Statistic::COUNT, rest % Statistic::COUNT],
            value: values[at],
            expected: "a finite number",
        });
    }
    let rows: Vec<AttentionRow> = values
        .chunks_exact(n_tokens * Statistic::COUNT)
        .enumerate()
        .map(|(head, values)| head_statistics(source, head, n_tokens, values, options))
        .collect();
    let log_determinant = rows.iter().map(|row| row.log_determinant).sum();
    let layer = LayerAttentionRow {
        request,
        layer,
        n_heads,
        n_tokens,
        window: options.window,
        log_determinant,
        hidden_score: None,
    };
    Ok((rows, layer))
}

fn head_statistics(
    source: Source,
    head: usize,
    n_tokens: usize,
    values: &[f64],
    options: &StatisticsOptions,
) -> AttentionRow {
    let StatisticsOptions { top_k, window, boundary } = *options;
    let column = |statistic: Statistic| -> Vec<f64> {
        values.chunks_exact(Statistic::COUNT).map(|row| row[statistic.index()]).collect()
    };
    let mean = |statistic| column(statistic).iter().sum::<f64>() / n_tokens as f64;
    let received = column(Statistic::ColumnSum);
    let over = |n_queries: &dyn Fn(usize) -> usize| -> Vec<f64> {
        received.iter().enumerate().map(|(i, sum)| sum / n_queries(i) as f64).collect()
    };
    let sinks = over(&|i| n_tokens - i);
    let visible = over(&|i| (n_tokens - i).min(window.unwrap_or(usize::MAX)));
    let diagonal = column(Statistic::Diagonal);
    let without_self: Vec<f64> = sinks.iter().zip(&diagonal).map(|(s, a)| s - a).collect();
    let sink_top = Top::of(&sinks, top_k);
    let (largest, largest_visible) = (Top::of(&sinks, 1), Top::of(&visible, 1));
    AttentionRow {
        request: source.request,
        layer: source.layer,
        head,
        n_tokens,
        sink_max: largest.values[0],
        sink_argmax: largest.indices[0],
        sink_entropy: kernels::signal::spectral_entropy(&sinks).ok(),
        sink_top,
        sink_visible_max: largest_visible.values[0],
        sink_visible_argmax: largest_visible.indices[0],
        sink_visible_entropy: kernels::signal::spectral_entropy(&visible).ok(),
        lookback_ratio: lookback_ratio(&column(Statistic::Lookback), boundary),
        first_token_mass: mean(Statistic::FirstToken),
        row_entropy: mean(Statistic::Entropy),
        distance: mean(Statistic::Distance),
        max: mean(Statistic::Max),
        laplacian_eigenvalues: Top::of(&without_self, top_k).values,
        attention_eigenvalues: Top::of(&diagonal, top_k).values,
        log_determinant: mean(Statistic::LogDiagonal),
    }
}

/// The mean lookback ratio of the generated queries, of whose attention `on_context` lies
/// on the context.
fn lookback_ratio(on_context: &[f64], boundary: Option<usize>) -> Option<f64> {
    let boundary = boundary.filter(|&boundary| 0 < boundary && boundary < on_context.len())?;
    let generated = &on_context[boundary..];
    let ratio = |(n, &mass): (usize, &f64)| {
        let context = mass / boundary as f64;
        // A share of 1 may be rounded up.
        let new = (1.0 - mass).max(0.0) / (n + 1) as f64;
        context / (context + new)
    };
    Some(generated.iter().enumerate().map(ratio).sum::<f64>() / generated.len() as f64)
}
