//! One function per command: a model, prompts and analyses in, a run folder out.
//!
//! This is where models and analyses meet: neither knows the other, both speak
//! of hook points. The one decision that shapes this crate: a run is a list of
//! *recorders*, sinks whose results go to the run folder prompt by prompt, so
//! that every command that runs a model is the same loop ([`run`]) with other
//! recorders, and each of them can be stopped and started again.

mod check;
mod demo;
mod device;
mod doctor;
mod error;
mod functional;
pub mod human;
mod job;
mod labels;
mod models;
mod progress;
pub mod prompts;
mod recorders;
mod run;
mod scores;
mod show;
mod summary;
mod tables;
mod tokens;
mod verdicts;

pub use analysis::spectral::{
    Exactness, Graphs, Keep, Laplacian, Part, Preset, Probing, QuadratureOptions,
};
pub use check::{
    Against, Check, CheckOptions, Divergence, OtherExperts, PointDifference, Points, check,
};
pub use demo::{Demo, LayerContrast, demo};
pub use device::{DeviceChoice, Opened, Reason};
pub use doctor::{Cuda, Doctor, GpuState, LibraryState, doctor, set_threads};
pub use error::{Error, Fault, Result};
pub use functional::{
    Arguments, FunctionalKind, FunctionalMean, FunctionalOfGraph, FunctionalValues, Grid, Measured,
    Of, functional,
};
pub use hooks::{Positions, Selection};
pub use job::{Job, ModelChoice};
pub use kernels::keep_freed_memory;
pub use labels::LabelOptions;
pub use models::{
    ChatTemplate, Explained, Families, HookShape, Memory, MemoryUse, Sizes, StoredWeights, Windows,
    explain, families,
};
pub use progress::{Progress, Silent};
pub use prompts::{Content, Prompt, PromptSource};
pub use recorders::capture::CaptureOptions;
pub use recorders::spectral::{GraphChoice, MAX_STORED, Prefixes, SpectralOptions};
pub use run::{Outcome, run};
pub use runner::{Date, Message, Placement, Special, WeightDtype, Written};
pub use scores::{Score, Scores, score};
pub use show::{Contents, Item, Rows, Shown, TableSummary, TensorValues, show};
pub use store::StoredType;
pub use summary::{PrefixSummary, Report, RoutingSummary, SpectralSummary};
pub use tokens::{Form, Tokenization};
pub use verdicts::{
    CellVerdict, ControlNumbers, Estimate, Judged, LabelNames, MatchedNumbers, NestedNumbers, Rule,
    SavedThreshold, TestedNumbers, Verdicts, WithinNumbers, judge,
};
