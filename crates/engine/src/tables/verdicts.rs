//! What is derived from a run with labels: a row per preset × layer × metric; and from
//! a threshold: a row per prompt.

use store::ColumnKind::{Bool, F64, Text, U32};
use store::{Column, ColumnSpec, TableSchema};

use super::{f64s, optional_f64s, optional_u32s, u32s};
use crate::scores::Score;
use crate::verdicts::{CellVerdict, ControlNumbers, Judged, MatchedNumbers, WithinNumbers};

/// Columns of one confounder, with what their names begin with.
macro_rules! control {
    ($name:literal, $what:literal) => {
        [
            number(concat!($name, "_auroc"), concat!("AUROC of ", $what, " alone")),
            number(concat!($name, "_auroc_low"), "2.5 % point of its bootstrap interval"),
            number(concat!($name, "_auroc_high"), "97.5 % point"),
            number(
                concat!($name, "_r_squared"),
                concat!("squared correlation of the metric with ", $what),
            ),
            number(
                concat!($name, "_residual_auroc"),
                concat!("AUROC after ", $what, " is regressed out, fitted out of fold"),
            ),
            number(concat!($name, "_residual_auroc_low"), "2.5 % point of its bootstrap interval"),
            number(concat!($name, "_residual_auroc_high"), "97.5 % point"),
            number(concat!($name, "_residual_p"), "its Mann–Whitney p"),
            number(
                concat!($name, "_residual_holm_p"),
                "the same after Holm's correction over the grid",
            ),
            number(
                concat!($name, "_bin_width"),
                concat!("width of bins of texts alike in ", $what),
            ),
            number(
                concat!($name, "_matched_auroc"),
                "AUROC within bins; null if too few texts share any",
            ),
            number(concat!($name, "_matched_auroc_low"), "2.5 % point of its bootstrap interval"),
            number(concat!($name, "_matched_auroc_high"), "97.5 % point"),
            number(concat!($name, "_matched_p"), "p of its stratified Mann–Whitney test"),
            number(
                concat!($name, "_matched_holm_p"),
                "the same after Holm's correction over the grid",
            ),
            number(
                concat!($name, "_matched_confounder_auroc"),
                concat!("AUROC of ", $what, " within the same bins"),
            ),
        ]
    };
}

const fn number(name: &'static str, doc: &'static str) -> ColumnSpec {
    ColumnSpec::optional(name, F64, "", doc)
}

const LENGTH: [ColumnSpec; 16] = control!("length", "token count");
const LOG_PROBABILITY: [ColumnSpec; 16] = control!("log_probability", "mean log-probability");

const CELL: [ColumnSpec; 22] = [
    ColumnSpec::required(
        "preset",
        Text,
        "",
        "preset, or `attention` for statistics without a graph",
    ),
    ColumnSpec::optional("laplacian", Text, "", "which Laplacian"),
    ColumnSpec::optional("solver", Text, "", "how eigenvalues were found"),
    ColumnSpec::required("layer", U32, "", "layer, from 0"),
    ColumnSpec::required("metric", Text, "", "the metric"),
    ColumnSpec::required("finding", Text, "", "what it comes to"),
    ColumnSpec::required("verdict", Text, "", "the same in words, or why there is no verdict"),
    ColumnSpec::optional("n_positive", U32, "", "positive texts with a value"),
    ColumnSpec::optional("n_negative", U32, "", "negative texts with a value"),
    number("auroc", "probability that a positive text has the greater value, ties counting half"),
    number("auroc_low", "2.5 % point of its bootstrap interval"),
    number("auroc_high", "97.5 % point"),
    number("p", "its two-sided Mann–Whitney p"),
    number("holm_p", "the same after Holm's correction over the grid"),
    ColumnSpec::optional("p_method", Text, "", "how p was found: exact or normal"),
    number("cohens_d", "difference of means over the pooled standard deviation"),
    ColumnSpec::optional("direction", Text, "", "high: positives lie above the threshold"),
    number("threshold", "threshold of the greatest balanced accuracy on all texts"),
    number("within_auroc", "AUROC within groups; null without groups of both labels"),
    number("within_holm_p", "p of its stratified test after Holm's correction"),
    number("within_length_auroc", "AUROC of token count within groups"),
    number("within_log_probability_auroc", "AUROC of mean log-probability within groups"),
];

const COLUMNS: [ColumnSpec; 54] = {
    let mut columns = [CELL[0]; 54];
    let mut i = 0;
    while i < columns.len() {
        columns[i] = if i < 22 {
            CELL[i]
        } else if i < 38 {
            LENGTH[i - 22]
        } else {
            LOG_PROBABILITY[i - 38]
        };
        i += 1;
    }
    columns
};

/// A row per preset × layer × metric of a run with labels.
pub const VERDICTS: TableSchema = TableSchema::new("verdicts", &COLUMNS);

/// A row per prompt that a threshold was applied to.
pub const SCORES: TableSchema = TableSchema::new(
    "scores",
    &[
        ColumnSpec::required("prompt", Text, "", "id of the prompt"),
        ColumnSpec::required("n_tokens", U32, "tokens", "tokens of the prompt"),
        ColumnSpec::required(
            "usual_length",
            Bool,
            "",
            "whether the threshold was set on texts of such a length",
        ),
        ColumnSpec::required("value", F64, "", "the metric"),
        ColumnSpec::required("margin", F64, "", "distance on the positive side of the threshold"),
        ColumnSpec::required("called", Text, "", "label of the side on which it lies"),
    ],
);

/// The rows of [`SCORES`].
pub(crate) fn score_columns(scores: &[Score]) -> Vec<(&'static str, Column)> {
    let usual: Vec<bool> = scores.iter().map(|score| score.usual_length).collect();
    vec![
        ("prompt", texts(scores, |score| &score.prompt)),
        ("n_tokens", u32s(scores, |score| score.n_tokens as usize)),
        ("usual_length", Column::from(usual)),
        ("value", f64s(scores, |score| score.value)),
        ("margin", f64s(scores, |score| score.margin)),
        ("called", texts(scores, |score| &score.called)),
    ]
}

fn texts<R>(rows: &[R], text: impl Fn(&R) -> &String) -> Column {
    Column::from(rows.iter().map(|row| text(row).as_str()).collect::<Vec<&str>>())
}

fn optional_texts<R>(rows: &[R], text: impl Fn(&R) -> Option<&String>) -> Column {
    Column::from(rows.iter().map(|row| text(row).map(String::as_str)).collect::<Vec<_>>())
}

/// The rows of [`VERDICTS`].
pub(crate) fn columns(cells: &[CellVerdict]) -> Vec<(&'static str, Column)> {
    let of = |value: fn(&Judged) -> Option<f64>| {
        optional_f64s(cells, |cell| cell.judged.as_ref().and_then(value))
    };
    let within = |value: fn(&WithinNumbers) -> f64| {
        optional_f64s(cells, |cell| cell.judged.as_ref()?.within.as_ref().map(value))
    };
    let count =
        |value: fn(&Judged) -> usize| optional_u32s(cells, |cell| cell.judged.as_ref().map(value));
    let judged =
        |text: fn(&Judged) -> &String| optional_texts(cells, |cell| cell.judged.as_ref().map(text));
    let mut columns = vec![
        ("preset", texts(cells, |cell| &cell.preset)),
        ("laplacian", optional_texts(cells, |cell| cell.laplacian.as_ref())),
        ("solver", optional_texts(cells, |cell| cell.solver.as_ref())),
        ("layer", u32s(cells, |cell| cell.layer as usize)),
        ("metric", texts(cells, |cell| &cell.metric)),
        ("finding", texts(cells, |cell| &cell.finding)),
        ("verdict", texts(cells, |cell| &cell.verdict)),
        ("n_positive", count(|judged| judged.n_positive)),
        ("n_negative", count(|judged| judged.n_negative)),
        ("auroc", of(|judged| Some(judged.own.estimate.auroc))),
        ("auroc_low", of(|judged| judged.own.estimate.low)),
        ("auroc_high", of(|judged| judged.own.estimate.high)),
        ("p", of(|judged| Some(judged.own.p))),
        ("holm_p", of(|judged| Some(judged.own.holm_p))),
        ("p_method", judged(|judged| &judged.p_method)),
        ("cohens_d", of(|judged| judged.cohens_d)),
        ("direction", judged(|judged| &judged.direction)),
        ("threshold", of(|judged| Some(judged.threshold))),
        ("within_auroc", within(|within| within.tested.estimate.auroc)),
        ("within_holm_p", within(|within| within.tested.holm_p)),
        ("within_length_auroc", within(|within| within.length_auroc)),
        ("within_log_probability_auroc", within(|within| within.log_probability_auroc)),
    ];
    columns.extend(control(cells, &LENGTH, |judged| &judged.length));
    columns.extend(control(cells, &LOG_PROBABILITY, |judged| &judged.log_probability));
    columns
}

fn control(
    cells: &[CellVerdict],
    specs: &[ColumnSpec; 16],
    of: fn(&Judged) -> &ControlNumbers,
) -> impl Iterator<Item = (&'static str, Column)> {
    let matched = |value: fn(&MatchedNumbers) -> Option<f64>| {
        optional_f64s(cells, |cell| value(of(cell.judged.as_ref()?).matched.as_ref()?))
    };
    let own = |value: fn(&ControlNumbers) -> Option<f64>| {
        optional_f64s(cells, |cell| value(of(cell.judged.as_ref()?)))
    };
    let columns = [
        own(|control| Some(control.alone.auroc)),
        own(|control| control.alone.low),
        own(|control| control.alone.high),
        own(|control| control.r_squared),
        own(|control| Some(control.residual.estimate.auroc)),
        own(|control| control.residual.estimate.low),
        own(|control| control.residual.estimate.high),
        own(|control| Some(control.residual.p)),
        own(|control| Some(control.residual.holm_p)),
        own(|control| control.bin_width),
        matched(|matched| Some(matched.tested.estimate.auroc)),
        matched(|matched| matched.tested.estimate.low),
        matched(|matched| matched.tested.estimate.high),
        matched(|matched| Some(matched.tested.p)),
        matched(|matched| Some(matched.tested.holm_p)),
        matched(|matched| Some(matched.confounder_auroc)),
    ];
    let names = specs.map(|spec| spec.name);
    names.into_iter().zip(columns)
}
