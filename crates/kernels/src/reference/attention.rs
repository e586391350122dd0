use hooks::{Statistic, SummaryOptions};

/// A batch, all slices contiguous.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCase<'a> {
    /// `[batch, pos, head, d_head]`.
    pub q: &'a [f32],
    /// `[batch, key_pos, kv_head, d_head]`.
    pub k: &'a [f32],
    /// `[batch, key_pos, kv_head, d_value]`.
    pub v: &'a [f32],
    /// Query positions, keys, heads, key–value heads, widths of keys and of values.
    pub dims: [usize; 6],
    /// Valid queries of each row.
    pub lengths: &'a [usize],
    /// Absolute position of each row's first query.
    pub offsets: &'a [usize],
    /// What multiplies `q · k`.
    pub scale: f64,
    /// Number of keys that a query sees.
    pub window: Option<usize>,
    /// Bound `c` of the scores, `c · tanh(scale · q · k / c)`.
    pub soft_cap: Option<f64>,
    /// A further score of each head's queries, of a key that has no value: `[head]`.
    pub sinks: Option<&'a [f32]>,
    /// The statistics' parameters.
    pub summary: SummaryOptions,
}

/// Everything that attention computes, in `f64`; 0 (scores: `−∞`) where nothing is defined.
#[derive(Clone, Debug)]
pub struct AttentionValues {
    /// `[batch, pos, head, d_value]`.
    pub z: Vec<f64>,
    /// `[batch, head, pos]`.
    pub lse: Vec<f64>,
    /// `[batch, head, pos, key_pos]`.
    pub scores: Vec<f64>,
    /// `[batch, head, pos, key_pos]`.
    pub pattern: Vec<f64>,
    /// `[batch, head, pos, statistic]`.
    pub summary: Vec<f64>,
}

/// Causal attention and its statistics, one query at a time.
pub fn attention(case: &AttentionCase) -> AttentionValues {
    let [t, s, h, h_kv, d, dv] = case.dims;
    let rows = case.lengths.len() * h * t;
    let mut out = AttentionValues {
        z: vec![0.0; rows * dv],
        lse: vec![0.0; rows],
        scores: vec![f64::NEG_INFINITY; rows * s],
        pattern: vec![0.0; rows * s],
        summary: vec![0.0; rows * Statistic::COUNT],
    };
    for (b, (&length, &offset)) in case.lengths.iter().zip(case.offsets).enumerate() {
        for head in 0..h {
            let kv = head / (h / h_kv);
            for query in 0..length {
                let (row, pos) = ((b * h + head) * t + query, offset + query);
                let first = case.window.map_or(0, |window| (pos + 1).saturating_sub(window));
                let scores = &mut out.scores[row * s..][..s];
                for (j, score) in scores.iter_mut().enumerate().take(pos + 1).skip(first) {
                    let q = &case.q[((b * t + query) * h + head) * d..][..d];
                    let k = &case.k[((b * s + j) * h_kv + kv) * d..][..d];
                    let dot: f64 =
                        q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    *score = match case.soft_cap {
                        None => dot * case.scale,
                        Some(cap) => super::soft_cap(dot * case.scale, cap),
                    };
                }
                let sink = case.sinks.map(|sinks| f64::from(sinks[head]));
                let all = || scores.iter().copied().chain(sink);
                let max = all().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = all().map(|score| (score - max).exp()).sum();
                let lse = max + sum.ln();
                out.lse[row] = lse;
                let statistics = row * Statistic::COUNT;
                for j in first..=pos {
                    let ln_a = out.scores[row * s + j] - lse;
                    let a = ln_a.exp();
                    out.pattern[row * s + j] = a;
                    for c in 0..dv {
                        out.z[((b * t + query) * h + head) * dv + c] +=
                            a * f64::from(case.v[((b * s + j) * h_kv + kv) * dv + c]);
                    }
                    let row_statistics = &mut out.summary[statistics..][..Statistic::COUNT];
                    add_key(row_statistics, case.summary, pos, j, ln_a);
                    if j >= offset {
                        let column = (b * h + head) * t + j - offset;
                        out.summary[column * Statistic::COUNT + Statistic::ColumnSum.index()] += a;
                    }
                }
            }
        }
    }
    out
}

/// Adds what key `j` contributes to the statistics of the query at `pos`.
fn add_key(statistics: &mut [f64], options: SummaryOptions, pos: usize, j: usize, ln_a: f64) {
    let a = ln_a.exp();
    for statistic in Statistic::ALL {
        let value = &mut statistics[statistic.index()];
        match statistic {
            Statistic::Entropy if a > 0.0 => *value -= a * ln_a,
            Statistic::Max => *value = value.max(a),
            Statistic::FirstToken if j == 0 => *value = a,
            Statistic::Distance => *value += a * (pos - j) as f64,
            Statistic::WindowMass if pos - j < options.window => *value += a,
            Statistic::Lookback if options.boundary.is_some_and(|boundary| j < boundary) => {
                *value += a;
            }
            Statistic::Diagonal if j == pos => *value = a,
            Statistic::LogDiagonal if j == pos => *value = ln_a,
            _ => {}
        }
    }
}
