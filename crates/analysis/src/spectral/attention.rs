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
        // The sort is stable, hence the lower index first.
        order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
        order.truncate(k);
        Self { values: order.iter().map(|&i| values[i]).collect(), indices: order }
    }
}

/// How one head attends, over a whole prompt.
///
/// `a_ui` is the attention of query `u` on key `i`, `T` the number of tokens, and
/// `s_i = Σ_{u ≥ i} a_ui/(T − i)` the sink score: what token `i` receives on average.
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
    /// Attention on the first token, mean over queries.
    pub first_token_mass: f64,
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

/// How the heads of one layer attend together.
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
    /// Sum over heads of `Σ_i ln a_ii / T`, the layer's attention score of LLM-Check.
    pub log_determinant: f64,
}

/// Reduces the attention summary of one layer of one prompt.
///
/// # Shapes
/// `summary` is `[head, pos, statistic]`, its `n`-th entry being head `n`.
///
/// ```
/// use analysis::spectral::{Source, attention_statistics};
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
/// ] {
///     for (pos, value) in values.into_iter().enumerate() {
///         summary[pos * Statistic::COUNT + statistic.index()] = value;
///     }
/// }
/// let summary = Tensor::from_vec(summary, (1, 2, Statistic::COUNT), &Device::Cpu)?;
/// let (heads, layer) = attention_statistics(Source { request: 0, layer: 0 }, &summary, 10)?;
/// // Sink scores 1.25/2 and 0.75/1.
/// assert_eq!((heads[0].sink_max, heads[0].sink_argmax), (0.75, 1));
/// assert_eq!(heads[0].first_token_mass, 0.625);
/// assert_eq!(heads[0].attention_eigenvalues, [1.0, 0.75]);
/// assert!((layer.log_determinant - 0.75f64.ln() / 2.0).abs() < 1e-7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Numerics
/// The summary is `f32`; its statistics are averaged in `f64`.
///
/// # Errors
/// [`Error::Captured`] for a number that is not finite, [`Error::Shape`].
pub fn attention_statistics(
    source: Source,
    summary: &Tensor,
    top_k: usize,
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
        .map(|(head, values)| head_statistics(source, head, n_tokens, values, top_k))
        .collect();
    let log_determinant = rows.iter().map(|row| row.log_determinant).sum();
    Ok((rows, LayerAttentionRow { request, layer, n_heads, n_tokens, log_determinant }))
}

fn head_statistics(
    source: Source,
    head: usize,
    n_tokens: usize,
    values: &[f64],
    top_k: usize,
) -> AttentionRow {
    let column = |statistic: Statistic| -> Vec<f64> {
        values.chunks_exact(Statistic::COUNT).map(|row| row[statistic.index()]).collect()
    };
    let mean = |statistic| column(statistic).iter().sum::<f64>() / n_tokens as f64;
    let sinks: Vec<f64> = column(Statistic::ColumnSum)
        .iter()
        .enumerate()
        .map(|(i, sum)| sum / (n_tokens - i) as f64)
        .collect();
    let diagonal = column(Statistic::Diagonal);
    let without_self: Vec<f64> = sinks.iter().zip(&diagonal).map(|(s, a)| s - a).collect();
    let sink_top = Top::of(&sinks, top_k);
    let largest = Top::of(&sinks, 1);
    AttentionRow {
        request: source.request,
        layer: source.layer,
        head,
        n_tokens,
        sink_max: largest.values[0],
        sink_argmax: largest.indices[0],
        sink_entropy: kernels::signal::spectral_entropy(&sinks).ok(),
        sink_top,
        first_token_mass: mean(Statistic::FirstToken),
        row_entropy: mean(Statistic::Entropy),
        distance: mean(Statistic::Distance),
        max: mean(Statistic::Max),
        laplacian_eigenvalues: Top::of(&without_self, top_k).values,
        attention_eigenvalues: Top::of(&diagonal, top_k).values,
        log_determinant: mean(Statistic::LogDiagonal),
    }
}
