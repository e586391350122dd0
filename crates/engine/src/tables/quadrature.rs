//! Quadratures: the recurrences of random probes, a row per prompt × preset × layer ×
//! head × probe.

use analysis::spectral::{Coefficients, Recurrence, SpectralRow};
use store::ColumnKind::{F64, ListF64, Text, U32, U64};
use store::{Column, ColumnSpec, PromptWriter, TableSchema};

use super::{f64s, optional_u32s, u32s};
use crate::summary::{Columns, Tables};
use crate::{Error, Result};

/// A row per prompt × preset × layer × head × probe. A graph whose null vector is its
/// whole space has one row, without a probe.
pub const QUADRATURE: TableSchema = TableSchema::new(
    "quadrature",
    &[
        ColumnSpec::required("preset", Text, "", "what was done to the graph"),
        ColumnSpec::required("laplacian", Text, "", "which Laplacian"),
        ColumnSpec::required("layer", U32, "", "layer, from 0"),
        ColumnSpec::optional("head", U32, "", "head, from 0; null for the mean over heads"),
        ColumnSpec::optional(
            "probe",
            U32,
            "",
            "probe, from 0; null where the null vector is the whole space",
        ),
        ColumnSpec::required("n_nodes", U32, "tokens", "tokens that are nodes of the graph"),
        ColumnSpec::required(
            "dimension",
            U32,
            "",
            "dimension of the space that probes are of: n_nodes, less 1 where the null vector is left out",
        ),
        ColumnSpec::required("trace", F64, "", "sum of all eigenvalues, exact"),
        ColumnSpec::required("steps", U32, "", "Lanczos steps that were asked for"),
        ColumnSpec::required("seed", U64, "", "seed of the graph's probes"),
        ColumnSpec::required(
            "alpha",
            ListF64,
            "",
            "diagonal of the probe's tridiagonal matrix; fewer than steps where its space is invariant",
        ),
        ColumnSpec::required("beta", ListF64, "", "couplings of neighbours, one fewer"),
    ],
);

/// Adds a prompt's rows.
pub(crate) fn write(rows: &[SpectralRow], writer: &mut PromptWriter) -> Result<()> {
    const NONE: &Recurrence = &Recurrence { alpha: Vec::new(), beta: Vec::new() };
    let probes: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((row, row.kept.quadrature.as_ref()?)))
        .flat_map(|(row, kept)| {
            let recurrences = &kept.coefficients.recurrences;
            let probes = recurrences.iter().enumerate().map(|(k, probe)| (Some(k), probe));
            let none = recurrences.is_empty().then_some((None, NONE));
            probes.chain(none).map(move |(number, probe)| (row, kept, number, probe))
        })
        .collect();
    let text = |value: fn(&SpectralRow) -> &'static str| {
        Column::from(probes.iter().map(|(row, ..)| value(row)).collect::<Vec<&str>>())
    };
    let list = |value: fn(&Recurrence) -> &Vec<f64>| {
        Column::from(probes.iter().map(|(.., probe)| value(probe).clone()).collect::<Vec<_>>())
    };
    let seeds: Vec<u64> = probes.iter().map(|(_, kept, ..)| kept.seed).collect();
    let columns = vec![
        ("preset", text(|row| row.preset.name())),
        ("laplacian", text(|row| row.laplacian.name())),
        ("layer", u32s(&probes, |(row, ..)| row.layer)),
        ("head", optional_u32s(&probes, |(row, ..)| row.head)),
        ("probe", optional_u32s(&probes, |(_, _, number, _)| *number)),
        ("n_nodes", u32s(&probes, |(_, kept, ..)| kept.coefficients.n_nodes)),
        ("dimension", u32s(&probes, |(_, kept, ..)| kept.coefficients.dimension)),
        ("trace", f64s(&probes, |(_, kept, ..)| kept.coefficients.trace)),
        ("steps", u32s(&probes, |(_, kept, ..)| kept.coefficients.steps)),
        ("seed", Column::from(seeds)),
        ("alpha", list(|probe| &probe.alpha)),
        ("beta", list(|probe| &probe.beta)),
    ];
    Ok(writer.rows(QUADRATURE.name, columns)?)
}

/// What names a graph of a run, and orders it: a layer's mean over heads comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GraphName {
    pub(crate) preset: String,
    pub(crate) laplacian: String,
    pub(crate) layer: u32,
    pub(crate) head: Option<u32>,
}

/// The coefficients of one graph of one prompt.
pub(crate) struct Graph {
    pub(crate) prompt: String,
    pub(crate) name: GraphName,
    pub(crate) coefficients: Coefficients,
}

/// Calls `f` with all graphs in their order in the table, some at a time.
///
/// # Errors
///
/// A run folder that cannot be read or that another program wrote,
/// [`Error::Probes`], and those of `f`.
pub(crate) fn each(tables: &Tables<'_>, mut f: impl FnMut(Vec<Graph>) -> Result<()>) -> Result<()> {
    let mut graphs: Vec<Graph> = Vec::new();
    tables.each(&QUADRATURE, |columns| {
        let [prompt, preset, laplacian] =
            columns.all(["prompt", "preset", "laplacian"], Columns::texts)?;
        let [layer, n_nodes, dimension, steps] =
            columns.all(["layer", "n_nodes", "dimension", "steps"], Columns::usizes)?;
        let [head, probe] = columns.all(["head", "probe"], Columns::u32s)?;
        let trace = columns.required_f64s("trace")?;
        let [alpha, beta] = columns.all(["alpha", "beta"], Columns::lists)?;
        for (row, (alpha, beta)) in alpha.into_iter().zip(beta).enumerate() {
            let name = GraphName {
                preset: preset[row].clone(),
                laplacian: laplacian[row].clone(),
                layer: u32::try_from(layer[row]).unwrap_or(u32::MAX),
                head: head[row],
            };
            let coefficients = Coefficients {
                n_nodes: n_nodes[row],
                dimension: dimension[row],
                trace: trace[row],
                steps: steps[row],
                recurrences: Vec::new(),
            };
            let number = probe[row];
            if number.is_none_or(|number| number == 0) {
                let (prompt, name) = (prompt[row].clone(), name.clone());
                graphs.push(Graph { prompt, name, coefficients });
            }
            let Some(number) = number else {
                continue;
            };
            let continued = graphs.last_mut().filter(|graph| {
                let kept = &graph.coefficients;
                kept.recurrences.len() == number as usize
                    && graph.prompt == prompt[row]
                    && graph.name == name
                    && (kept.n_nodes, kept.dimension, kept.steps)
                        == (n_nodes[row], dimension[row], steps[row])
                    && kept.trace.to_bits() == trace[row].to_bits()
            });
            let Some(graph) = continued else {
                let (prompt, layer) = (prompt[row].clone(), name.layer);
                return Err(Error::Probes { run: tables.path().to_owned(), prompt, layer });
            };
            graph.coefficients.recurrences.push(Recurrence { alpha, beta });
        }
        // The last may go on in the next rows.
        let last = graphs.pop();
        f(std::mem::take(&mut graphs))?;
        graphs.extend(last);
        Ok(())
    })?;
    f(graphs)
}
