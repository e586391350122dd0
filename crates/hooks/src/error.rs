//! What can go wrong when activations are named, planned and handed over.

use crate::HookPoint;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a name, a selection, a plan or a record was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No hook point has this name.
    #[error("unknown hook point `{name}`; nearest: {}", nearest.join(", "))]
    UnknownHook {
        /// The name as given.
        name: String,
        /// Known names, most similar first.
        nearest: Vec<String>,
    },
    /// The point exists, but not in this model's layer.
    #[error("this {family} model has no `{point}`: {reason}")]
    Absent {
        /// The point asked for.
        point: HookPoint,
        /// The model's family.
        family: String,
        /// Why it is not there.
        reason: &'static str,
    },
    /// A pattern with `*` matched no point of this model.
    #[error("`{pattern}` matches no hook point of this {family} model in the selected layers")]
    NoMatch {
        /// The pattern as given.
        pattern: String,
        /// The model's family.
        family: String,
    },
    /// A selection such as `0,5-9` could not be read.
    #[error("cannot read the selection `{text}`: expected {expected}")]
    Selection {
        /// The text as given.
        text: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A selected index does not exist.
    #[error("{what} {index} does not exist: there are {count}, numbered from 0")]
    OutOfRange {
        /// "layer", "head", …
        what: &'static str,
        /// The index asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Two sinks want attention summaries with different parameters.
    #[error(
        "attention summaries with different parameters were asked of one forward pass: {first:?} and {second:?}"
    )]
    SummaryConflict {
        /// Parameters of the first plan.
        first: crate::SummaryOptions,
        /// Parameters of the second plan.
        second: crate::SummaryOptions,
    },
    /// An activation does not hold a row, head or position that was asked of it.
    #[error("`{what}` {index} is not among those that this activation holds")]
    NotHeld {
        /// "row", "head" or "position".
        what: &'static str,
        /// The index asked for.
        index: usize,
    },
    /// A tensor's shape does not fit its hook point.
    #[error("`{point}` has {expected} axes after the batch axis, got a tensor of shape {got:?}")]
    Rank {
        /// The hook point.
        point: HookPoint,
        /// Number of axes that the point has.
        expected: usize,
        /// The tensor's shape.
        got: Vec<usize>,
    },
    /// A batch without rows, or with a row without tokens.
    #[error("a batch needs at least one row and each row at least one token; row {row} has none")]
    EmptyBatch {
        /// The empty row (0 if there are no rows).
        row: usize,
    },
    /// An edit cannot be made at this point.
    #[error("the edit `{edit}` cannot be made at `{point}`: {reason}")]
    Edit {
        /// Name of the edit.
        edit: &'static str,
        /// The point.
        point: HookPoint,
        /// Why not.
        reason: &'static str,
    },
    /// Nothing was recorded under this request and point.
    #[error("nothing was recorded for request {request} at `{point}`")]
    NotRecorded {
        /// The request.
        request: u64,
        /// The point.
        point: HookPoint,
    },
    /// A sink failed while it handled an activation.
    #[error(transparent)]
    Sink(Box<dyn std::error::Error + Send + Sync>),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// Wraps a sink's own error, so that it travels through a forward pass unchanged.
    pub fn sink(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Sink(Box::new(error))
    }
}
