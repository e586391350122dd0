//! Attention graphs: a row per prompt × preset × layer × head, and statistics of
//! attention that need no eigensolver, a row per prompt × layer × head.

use analysis::spectral::{AttentionRow, LayerAttentionRow, SpectralRow, SpectralRows};
use store::ColumnKind::{Bool, F64, ListF64, ListU32, Text, U32};
use store::{Column, ColumnSpec, PromptWriter, TableSchema};

use super::{f64s, optional_f64s, optional_u32s, u32s};
use crate::Result;

/// A row per prompt × preset × layer × head; the row without a head is that of
/// the mean over heads.
pub const SPECTRAL: TableSchema = TableSchema::new(
    "spectral",
    &[
        ColumnSpec::required("preset", Text, "", "what was done to graph and signal"),
        ColumnSpec::required("laplacian", Text, "", "which Laplacian"),
        ColumnSpec::required(
            "solver",
            Text,
            "",
            "how eigenvalues were found: iterative, both ends alone; dense-f32, all of them in f32 \
             and both ends as iterative; dense-f64, all of them in f64",
        ),
        ColumnSpec::required("layer", U32, "", "layer, from 0"),
        ColumnSpec::optional("head", U32, "", "head, from 0; null for the mean over heads"),
        ColumnSpec::required("n_tokens", U32, "tokens", "tokens of the prompt"),
        ColumnSpec::required("n_nodes", U32, "tokens", "tokens that are nodes of the graph"),
        ColumnSpec::optional("fiedler", F64, "", "second-smallest eigenvalue of the Laplacian"),
        ColumnSpec::optional(
            "fiedler_residual",
            F64,
            "",
            "some eigenvalue lies within this distance of the Fiedler value",
        ),
        ColumnSpec::optional(
            "fiedler_seeds_agree",
            Bool,
            "",
            "whether two random starts gave the same Fiedler value within their residuals",
        ),
        ColumnSpec::optional("lambda_max", F64, "", "largest eigenvalue of the Laplacian"),
        ColumnSpec::optional("lambda_max_residual", F64, "", "as for the Fiedler value"),
        ColumnSpec::optional(
            "connectivity_ratio",
            F64,
            "",
            "Fiedler value over largest eigenvalue",
        ),
        ColumnSpec::optional(
            "dirichlet",
            F64,
            "",
            "Tr(XᵀLX) of the signal X; random-walk: Tr(Xᵀ(D − W)X)",
        ),
        ColumnSpec::optional("energy", F64, "", "Tr(XᵀX); random-walk: Tr(XᵀDX)"),
        ColumnSpec::optional("rayleigh", F64, "", "dirichlet/energy; high is rough"),
        ColumnSpec::optional("smoothness", F64, "", "1 − rayleigh/λ_max; high is smooth"),
        ColumnSpec::optional("spectrum_mean", F64, "", "mean eigenvalue"),
        ColumnSpec::optional("spectrum_variance", F64, "", "variance of the eigenvalues"),
        ColumnSpec::optional(
            "modes_retained",
            U32,
            "",
            "modes that hfer and the spectral entropy take in: all n, but under library-0.3 the \
             25 lowest and 25 highest of more than 50; null without a dense spectrum",
        ),
        ColumnSpec::optional(
            "hfer",
            F64,
            "",
            "high-frequency energy ratio, modes from ⌊n/2⌋ of n, under library-0.3 from ⌊0.9·m⌋ \
             of the m retained; null without a dense spectrum",
        ),
        ColumnSpec::optional(
            "hfer_at_1",
            F64,
            "",
            "energy in modes of eigenvalue 1 or more over all energy; null without a dense spectrum",
        ),
        ColumnSpec::optional("heat_1", F64, "", "heat-kernel energy Tr(Xᵀe^{−tL}X)/‖X‖² at t = 1"),
        ColumnSpec::optional("heat_2", F64, "", "the same at t = 2"),
        ColumnSpec::optional("heat_5", F64, "", "the same at t = 5"),
        ColumnSpec::optional("heat_1_error", F64, "", "standard error of heat_1; 0 where dense"),
        ColumnSpec::optional("heat_2_error", F64, "", "standard error of heat_2; 0 where dense"),
        ColumnSpec::optional("heat_5_error", F64, "", "standard error of heat_5; 0 where dense"),
        ColumnSpec::optional(
            "spectral_entropy",
            F64,
            "nats",
            "entropy of the retained modes' energy shares",
        ),
        ColumnSpec::optional(
            "spectral_entropy_normalized",
            F64,
            "",
            "the same over the logarithm of their number",
        ),
        ColumnSpec::optional("eigenvalue_entropy", F64, "nats", "entropy of λ/Σλ"),
        ColumnSpec::optional("eigenvalue_entropy_deficit", F64, "nats", "ln n minus it"),
        ColumnSpec::optional(
            "spacing_ratio",
            F64,
            "",
            "mean of min/max of neighbouring spacings of eigenvalues; null without a dense \
             spectrum, and where f32 does not resolve it",
        ),
        ColumnSpec::optional(
            "spacing_zero_pairs",
            U32,
            "",
            "pairs of spacings left out of it, both being 0; null where it is not resolved",
        ),
        ColumnSpec::required("isolated_nodes", U32, "tokens", "nodes of degree 0"),
        ColumnSpec::required("zero_rows", U32, "tokens", "rows of the signal excluded as zero"),
        ColumnSpec::optional("steps", U32, "", "steps of the iterative solver"),
        ColumnSpec::required("converged", Bool, "", "whether the residuals reached the tolerance"),
        ColumnSpec::optional("nulls", Text, "", "columns without a value, and why"),
    ],
);

/// Columns that summaries take the mean of.
pub const METRICS: &[&str] = &[
    "fiedler",
    "lambda_max",
    "connectivity_ratio",
    "rayleigh",
    "smoothness",
    "spectrum_variance",
    "hfer",
    "hfer_at_1",
    "heat_1",
    "heat_2",
    "heat_5",
    "spectral_entropy_normalized",
    "eigenvalue_entropy_deficit",
    "spacing_ratio",
];

/// A row per prompt × layer × head, from the attention summary.
pub const ATTENTION: TableSchema = TableSchema::new(
    "attention",
    &[
        ColumnSpec::required("layer", U32, "", "layer, from 0"),
        ColumnSpec::required("head", U32, "", "head, from 0"),
        ColumnSpec::required("n_tokens", U32, "tokens", "tokens of the prompt"),
        ColumnSpec::required(
            "sink_max",
            F64,
            "",
            "largest sink score: attention that a token receives, mean over the queries after it",
        ),
        ColumnSpec::required("sink_argmax", U32, "", "position of the token that has it"),
        ColumnSpec::optional("sink_entropy", F64, "nats", "entropy of the sink scores' shares"),
        ColumnSpec::required("sink_top", ListF64, "", "largest sink scores, descending"),
        ColumnSpec::required("sink_top_positions", ListU32, "", "where they stand"),
        ColumnSpec::required(
            "sink_visible_max",
            F64,
            "",
            "largest sink score if the mean is over the queries that see the token: another \
             one than sink_max under a sliding window",
        ),
        ColumnSpec::required("sink_visible_argmax", U32, "", "position of the token that has it"),
        ColumnSpec::optional(
            "sink_visible_entropy",
            F64,
            "nats",
            "entropy of these scores' shares",
        ),
        ColumnSpec::optional(
            "lookback_ratio",
            F64,
            "",
            "m_ctx/(m_ctx + m_new), mean over the response's queries, m their mean attention on a \
             token of the context, of the response up to themselves; null without a response",
        ),
        ColumnSpec::required("first_token_mass", F64, "", "mean attention on the first token"),
        ColumnSpec::required("row_entropy", F64, "nats", "mean entropy of a query's attention"),
        ColumnSpec::required("distance", F64, "tokens", "mean distance of attention"),
        ColumnSpec::required("max", F64, "", "mean of a query's largest attention"),
        ColumnSpec::required(
            "lap_eigvals",
            ListF64,
            "",
            "largest sink score − diagonal, descending (LapEigvals)",
        ),
        ColumnSpec::required("attn_eigvals", ListF64, "", "largest diagonal entries, descending"),
        ColumnSpec::required("log_determinant", F64, "nats", "mean ln of the diagonal"),
    ],
);

/// A row per prompt × layer.
pub const ATTENTION_LAYERS: TableSchema = TableSchema::new(
    "attention_layers",
    &[
        ColumnSpec::required("layer", U32, "", "layer, from 0"),
        ColumnSpec::required("n_tokens", U32, "tokens", "tokens of the prompt"),
        ColumnSpec::required("n_heads", U32, "", "heads of the layer"),
        ColumnSpec::optional(
            "window",
            U32,
            "tokens",
            "keys that a query sees, itself included; null if all before it",
        ),
        ColumnSpec::required(
            "log_determinant",
            F64,
            "nats",
            "mean ln of the diagonal, summed over heads",
        ),
        ColumnSpec::optional(
            "hidden_score",
            F64,
            "nats",
            "mean ln of the eigenvalues of ZZᵀ + 0.001, Z the residual stream after the layer \
             less each token's mean over features; null unless asked for",
        ),
    ],
);

/// Adds a prompt's rows.
pub(crate) fn write(rows: &SpectralRows, writer: &mut PromptWriter) -> Result<()> {
    write_spectral(&rows.spectral, writer)?;
    write_attention(&rows.attention, writer)?;
    write_layers(&rows.layers, writer)
}

fn write_spectral(rows: &[SpectralRow], writer: &mut PromptWriter) -> Result<()> {
    if rows.is_empty() { Ok(()) } else { Ok(writer.rows(SPECTRAL.name, columns(rows))?) }
}

/// The columns of [`SPECTRAL`].
pub(super) fn columns(rows: &[SpectralRow]) -> Vec<(&'static str, Column)> {
    let text = |value: fn(&SpectralRow) -> &'static str| {
        Column::from(rows.iter().map(value).collect::<Vec<&str>>())
    };
    let agree: Vec<Option<bool>> = rows.iter().map(|row| row.fiedler_seeds_agree).collect();
    let converged: Vec<bool> = rows.iter().map(|row| row.converged).collect();
    let nulls: Vec<Option<String>> = rows.iter().map(nulls).collect();
    let mut columns = vec![
        ("preset", text(|row| row.preset.name())),
        ("laplacian", text(|row| row.laplacian.name())),
        ("solver", text(|row| row.exactness.name())),
        ("layer", u32s(rows, |row| row.layer)),
        ("head", optional_u32s(rows, |row| row.head)),
        ("n_tokens", u32s(rows, |row| row.n_tokens)),
        ("n_nodes", u32s(rows, |row| row.n_nodes)),
        ("fiedler_seeds_agree", Column::from(agree)),
        ("isolated_nodes", u32s(rows, |row| row.isolated_nodes)),
        ("zero_rows", u32s(rows, |row| row.zero_rows)),
        ("modes_retained", optional_u32s(rows, |row| row.modes_retained)),
        ("spacing_zero_pairs", optional_u32s(rows, |row| row.spacing_zero_pairs)),
        ("steps", optional_u32s(rows, |row| row.steps)),
        ("converged", Column::from(converged)),
        ("nulls", Column::from(nulls)),
    ];
    // Every row has the same measures in the same order.
    if let Some(first) = rows.first() {
        for (index, (name, _)) in first.measures().into_iter().enumerate() {
            columns.push((name, optional_f64s(rows, |row| row.measures()[index].1)));
        }
    }
    columns
}

/// `hfer, spectral_entropy: needs the dense solver; …`.
fn nulls(row: &SpectralRow) -> Option<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (column, reason) in &row.nulls {
        match reasons.iter_mut().find(|(known, _)| *known == reason.name()) {
            Some((_, columns)) => columns.push(column),
            None => reasons.push((reason.name(), vec![column])),
        }
    }
    let texts: Vec<String> = reasons
        .iter()
        .map(|(reason, columns)| format!("{}: {reason}", columns.join(", ")))
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn write_attention(rows: &[AttentionRow], writer: &mut PromptWriter) -> Result<()> {
    let list = |value: fn(&AttentionRow) -> &Vec<f64>| {
        Column::from(rows.iter().map(|row| value(row).clone()).collect::<Vec<_>>())
    };
    let positions = |row: &AttentionRow| -> Vec<u32> {
        row.sink_top.indices.iter().map(|i| u32::try_from(*i).unwrap_or(u32::MAX)).collect()
    };
    let columns = vec![
        ("layer", u32s(rows, |row| row.layer)),
        ("head", u32s(rows, |row| row.head)),
        ("n_tokens", u32s(rows, |row| row.n_tokens)),
        ("sink_max", f64s(rows, |row| row.sink_max)),
        ("sink_argmax", u32s(rows, |row| row.sink_argmax)),
        ("sink_entropy", optional_f64s(rows, |row| row.sink_entropy)),
        ("sink_top", list(|row| &row.sink_top.values)),
        ("sink_top_positions", Column::from(rows.iter().map(positions).collect::<Vec<_>>())),
        ("sink_visible_max", f64s(rows, |row| row.sink_visible_max)),
        ("sink_visible_argmax", u32s(rows, |row| row.sink_visible_argmax)),
        ("sink_visible_entropy", optional_f64s(rows, |row| row.sink_visible_entropy)),
        ("lookback_ratio", optional_f64s(rows, |row| row.lookback_ratio)),
        ("first_token_mass", f64s(rows, |row| row.first_token_mass)),
        ("row_entropy", f64s(rows, |row| row.row_entropy)),
        ("distance", f64s(rows, |row| row.distance)),
        ("max", f64s(rows, |row| row.max)),
        ("lap_eigvals", list(|row| &row.laplacian_eigenvalues)),
        ("attn_eigvals", list(|row| &row.attention_eigenvalues)),
        ("log_determinant", f64s(rows, |row| row.log_determinant)),
    ];
    Ok(writer.rows(ATTENTION.name, columns)?)
}

fn write_layers(rows: &[LayerAttentionRow], writer: &mut PromptWriter) -> Result<()> {
    let columns = vec![
        ("layer", u32s(rows, |row| row.layer)),
        ("n_tokens", u32s(rows, |row| row.n_tokens)),
        ("n_heads", u32s(rows, |row| row.n_heads)),
        ("hidden_score", optional_f64s(rows, |row| row.hidden_score)),
        ("window", optional_u32s(rows, |row| row.window)),
        ("log_determinant", f64s(rows, |row| row.log_determinant)),
    ];
    Ok(writer.rows(ATTENTION_LAYERS.name, columns)?)
}
