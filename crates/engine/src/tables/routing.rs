//! Routing: a row per prompt × mixture layer, and a row per prompt × layer × expert.

use std::collections::HashMap;

use analysis::routing::{ExpertLoad, ExpertRow, RoutingRow, RoutingRows, RoutingStatistics};
use store::ColumnKind::{F64, U32, U64};
use store::{Column, ColumnSpec, PromptWriter, TableSchema};

use super::{f64s, optional_f64s, u32s};
use crate::Result;
use crate::summary::{Columns, Tables};

/// A row per prompt × mixture layer.
pub const ROUTING: TableSchema = TableSchema::new(
    "routing",
    &[
        ColumnSpec::required("layer", U32, "", "layer, from 0"),
        ColumnSpec::required("n_tokens", U64, "tokens", "tokens routed"),
        ColumnSpec::required("n_experts", U32, "experts", "experts of the layer"),
        ColumnSpec::required("k", U32, "experts", "experts that each token uses"),
        ColumnSpec::required("load_cv", F64, "", "coefficient of variation of the load"),
        ColumnSpec::optional("load_entropy", F64, "", "entropy of the load over ln N: 1 is even"),
        ColumnSpec::required("effective_experts", F64, "experts", "e to the load's entropy"),
        ColumnSpec::required("load_gini", F64, "", "Gini coefficient of the load"),
        ColumnSpec::required("max_violation", F64, "", "greatest load over mean load, minus 1"),
        ColumnSpec::required("dead_fraction", F64, "", "share of experts that no token chose"),
        ColumnSpec::required(
            "token_entropy",
            F64,
            "nats",
            "mean entropy of the tokens' routing distributions",
        ),
        ColumnSpec::optional(
            "margin",
            F64,
            "",
            "mean of the k-th minus the (k+1)-th probability; null if every expert is chosen",
        ),
        ColumnSpec::required("switch_loss", F64, "", "N Σ f P over first choices, 1 at balance"),
        ColumnSpec::required(
            "switch_loss_top_k",
            F64,
            "",
            "N Σ q P over all choices, 1 at balance",
        ),
        ColumnSpec::required("z_loss", F64, "nats²", "mean squared log-sum-exp of the logits"),
    ],
);

/// A row per prompt × mixture layer × expert.
pub const EXPERTS: TableSchema = TableSchema::new(
    "experts",
    &[
        ColumnSpec::required("layer", U32, "", "layer, from 0"),
        ColumnSpec::required("expert", U32, "", "expert, from 0"),
        ColumnSpec::required("slots", U64, "tokens", "tokens with the expert among their k"),
        ColumnSpec::required("share", F64, "", "those as a share of the layer's slots"),
        ColumnSpec::required("first_choices", U64, "tokens", "tokens whose first choice it was"),
        ColumnSpec::required("mean_probability", F64, "", "mean router probability"),
        ColumnSpec::optional(
            "mean_weight",
            F64,
            "",
            "mean weight on the expert's output where it was chosen",
        ),
    ],
);

/// Adds a prompt's rows.
pub(crate) fn write(rows: &RoutingRows, writer: &mut PromptWriter) -> Result<()> {
    let RoutingRows { routing, experts } = rows;
    let mut columns = vec![
        ("layer", u32s(routing, |row| row.layer)),
        ("n_tokens", u64s(routing, |row| row.statistics.n_tokens)),
        ("n_experts", u32s(routing, |row| row.statistics.n_experts)),
        ("k", u32s(routing, |row| row.statistics.k)),
    ];
    // Every row has the same measures in the same order.
    if let Some(first) = routing.first() {
        for (index, (name, _)) in first.statistics.measures().into_iter().enumerate() {
            columns.push((name, optional_f64s(routing, |r| r.statistics.measures()[index].1)));
        }
        writer.rows(ROUTING.name, columns)?;
    }
    let columns = vec![
        ("layer", u32s(experts, |row| row.layer)),
        ("expert", u32s(experts, |row| row.load.expert)),
        ("slots", u64s(experts, |row| row.load.slots)),
        ("share", f64s(experts, |row| row.load.share)),
        ("first_choices", u64s(experts, |row| row.load.first_choices)),
        ("mean_probability", f64s(experts, |row| row.load.mean_probability)),
        ("mean_weight", optional_f64s(experts, |row| row.load.mean_weight)),
    ];
    Ok(writer.rows(EXPERTS.name, columns)?)
}

fn u64s<R>(rows: &[R], value: impl Fn(&R) -> u64) -> Column {
    Column::from(rows.iter().map(value).collect::<Vec<u64>>())
}

/// Reads the rows of every prompt back. Prompts are numbered in the order in
/// which they stand in the table.
///
/// # Errors
///
/// A run folder that cannot be read, or that another program wrote.
pub(crate) fn read(tables: &Tables<'_>) -> Result<RoutingRows> {
    let mut rows = RoutingRows::default();
    let mut numbers: HashMap<String, u64> = HashMap::new();
    let mut number = |prompt: String| {
        let next = numbers.len() as u64;
        *numbers.entry(prompt).or_insert(next)
    };
    tables.each(&ROUTING, |columns| {
        let prompts = columns.texts("prompt")?;
        let [layer, n_experts, k] = columns.all(["layer", "n_experts", "k"], Columns::usizes)?;
        let [n_tokens] = columns.all(["n_tokens"], Columns::u64s)?;
        let f64s = |column| columns.required_f64s(column);
        let (load_cv, effective_experts) = (f64s("load_cv")?, f64s("effective_experts")?);
        let (load_gini, max_violation) = (f64s("load_gini")?, f64s("max_violation")?);
        let (dead_fraction, token_entropy) = (f64s("dead_fraction")?, f64s("token_entropy")?);
        let (switch_loss, top_k) = (f64s("switch_loss")?, f64s("switch_loss_top_k")?);
        let (z_loss, margin) = (f64s("z_loss")?, columns.f64s("margin")?);
        let load_entropy = columns.f64s("load_entropy")?;
        for (i, prompt) in prompts.into_iter().enumerate() {
            let statistics = RoutingStatistics {
                n_experts: n_experts[i],
                k: k[i],
                n_tokens: n_tokens[i],
                load_cv: load_cv[i],
                load_entropy: load_entropy[i],
                effective_experts: effective_experts[i],
                load_gini: load_gini[i],
                max_violation: max_violation[i],
                dead_fraction: dead_fraction[i],
                token_entropy: token_entropy[i],
                margin: margin[i],
                switch_loss: switch_loss[i],
                switch_loss_top_k: top_k[i],
                z_loss: z_loss[i],
            };
            rows.routing.push(RoutingRow { request: number(prompt), layer: layer[i], statistics });
        }
        Ok(())
    })?;
    tables.each(&EXPERTS, |columns| {
        let prompts = columns.texts("prompt")?;
        let [layer, expert] = columns.all(["layer", "expert"], Columns::usizes)?;
        let [slots, first] = columns.all(["slots", "first_choices"], Columns::u64s)?;
        let [share, probability] =
            columns.all(["share", "mean_probability"], Columns::required_f64s)?;
        let weight = columns.f64s("mean_weight")?;
        for (i, prompt) in prompts.into_iter().enumerate() {
            let load = ExpertLoad {
                expert: expert[i],
                slots: slots[i],
                share: share[i],
                first_choices: first[i],
                mean_probability: probability[i],
                mean_weight: weight[i],
            };
            rows.experts.push(ExpertRow { request: number(prompt), layer: layer[i], load });
        }
        Ok(())
    })?;
    Ok(rows)
}
