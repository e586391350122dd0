//! What verdicts hold metrics against: a row per labelled prompt.

use store::ColumnKind::{F64, Text};
use store::{Column, ColumnSpec, PromptWriter, TableSchema};

use crate::Result;

/// A row per prompt of a run with labels.
pub const LABELS: TableSchema = TableSchema::new(
    "labels",
    &[
        ColumnSpec::required("label", Text, "", "the prompt's label"),
        ColumnSpec::optional(
            "group",
            Text,
            "",
            "the group that it belongs to, where groups were named",
        ),
        ColumnSpec::required(
            "mean_log_probability",
            F64,
            "nats",
            "mean ln p of its tokens after the first, each given those before it",
        ),
    ],
);

/// Adds a prompt's row.
pub(crate) fn write(
    label: &str,
    group: Option<&str>,
    mean_log_probability: f64,
    writer: &mut PromptWriter,
) -> Result<()> {
    let columns = vec![
        ("label", Column::from(vec![label])),
        ("group", Column::from(vec![group])),
        ("mean_log_probability", Column::from(vec![mean_log_probability])),
    ];
    Ok(writer.rows(LABELS.name, columns)?)
}
