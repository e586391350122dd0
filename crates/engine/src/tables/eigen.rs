//! Parts of eigendecompositions, a row per prompt × preset × layer × head.
//!
//! They are lists in tables and not tensors, since their length is the prompt's: so
//! they stand beside the other tables' rows, by the same keys, in one file for all
//! prompts.

use analysis::spectral::{Part, SpectralRow};
use store::ColumnKind::{F64, ListF64, Text, U32};
use store::{Column, ColumnSpec, PromptWriter, TableSchema};

use super::{optional_f64s, optional_u32s, u32s};
use crate::Result;

const PRESET: ColumnSpec =
    ColumnSpec::required("preset", Text, "", "what was done to graph and signal");
const LAPLACIAN: ColumnSpec = ColumnSpec::required("laplacian", Text, "", "which Laplacian");
const LAYER: ColumnSpec = ColumnSpec::required("layer", U32, "", "layer, from 0");
const HEAD: ColumnSpec =
    ColumnSpec::optional("head", U32, "", "head, from 0; null for the mean over heads");
const FIRST_TOKEN: ColumnSpec = ColumnSpec::required(
    "first_token",
    U32,
    "",
    "position of the token that is the first node; the others follow",
);

const SOLVER: ColumnSpec = ColumnSpec::required(
    "solver",
    Text,
    "",
    "how the row's spectrum was found: iterative, dense-f32 or dense-f64; the Fiedler value of \
     dense-f32 is the iterative solver's",
);

/// Every eigenvalue of the graphs that were solved densely.
pub const EIGENVALUES: TableSchema = TableSchema::new(
    "eigenvalues",
    &[
        PRESET,
        LAPLACIAN,
        LAYER,
        HEAD,
        FIRST_TOKEN,
        SOLVER,
        ColumnSpec::required("eigenvalues", ListF64, "", "eigenvalues of the Laplacian, ascending"),
    ],
);

/// The vector of each Fiedler value.
pub const FIEDLER_VECTORS: TableSchema = TableSchema::new(
    "fiedler_vectors",
    &[
        PRESET,
        LAPLACIAN,
        LAYER,
        HEAD,
        FIRST_TOKEN,
        SOLVER,
        ColumnSpec::optional("fiedler", F64, "", "second-smallest eigenvalue of the Laplacian"),
        ColumnSpec::optional(
            "fiedler_residual",
            F64,
            "",
            "‖Lv − λv‖ of the unit vector: some eigenvalue lies within this distance",
        ),
        ColumnSpec::required(
            "vector",
            ListF64,
            "",
            "its unit eigenvector, an entry per node, the first of the largest entries positive; \
             random-walk: right eigenvector of unit norm in the inner product xᵀDy",
        ),
    ],
);

/// The table of a part.
pub(crate) fn table(part: Part) -> TableSchema {
    match part {
        Part::Eigenvalues => EIGENVALUES,
        Part::FiedlerVector => FIEDLER_VECTORS,
    }
}

/// Adds a prompt's rows.
pub(crate) fn write(rows: &[SpectralRow], writer: &mut PromptWriter) -> Result<()> {
    let (kept, values) = having(rows, |row| row.kept.eigenvalues.as_ref());
    if !kept.is_empty() {
        let mut columns = names(&kept);
        columns.push(("eigenvalues", values));
        writer.rows(EIGENVALUES.name, columns)?;
    }
    let (kept, vectors) = having(rows, |row| row.kept.fiedler_vector.as_ref());
    if !kept.is_empty() {
        let mut columns = names(&kept);
        columns.extend([
            ("fiedler", optional_f64s(&kept, |row| row.fiedler)),
            ("fiedler_residual", optional_f64s(&kept, |row| row.fiedler_residual)),
            ("vector", vectors),
        ]);
        writer.rows(FIEDLER_VECTORS.name, columns)?;
    }
    Ok(())
}

/// The rows that have a list, and the lists.
fn having(
    rows: &[SpectralRow],
    list: impl Fn(&SpectralRow) -> Option<&Vec<f64>>,
) -> (Vec<&SpectralRow>, Column) {
    let kept: Vec<(&SpectralRow, &Vec<f64>)> =
        rows.iter().filter_map(|row| Some((row, list(row)?))).collect();
    let lists: Vec<Vec<f64>> = kept.iter().map(|(_, list)| (*list).clone()).collect();
    (kept.into_iter().map(|(row, _)| row).collect(), Column::from(lists))
}

fn names(rows: &[&SpectralRow]) -> Vec<(&'static str, Column)> {
    let text = |value: fn(&SpectralRow) -> &'static str| {
        Column::from(rows.iter().map(|row| value(row)).collect::<Vec<&str>>())
    };
    vec![
        ("preset", text(|row| row.preset.name())),
        ("laplacian", text(|row| row.laplacian.name())),
        ("layer", u32s(rows, |row| row.layer)),
        ("head", optional_u32s(rows, |row| row.head)),
        ("first_token", u32s(rows, |row| row.n_tokens - row.n_nodes)),
        ("solver", text(|row| row.exactness.name())),
    ]
}
