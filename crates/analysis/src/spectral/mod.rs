//! The attention graph of each head and of the mean over heads: its spectrum,
//! and the residual stream as a signal on it (arXiv 2601.00791).
//!
//! `A` is the attention pattern, `W = ½(A + Aᵀ)`, `L` a Laplacian of `W` and `X`
//! the residual stream after the layer, one row per token.
//!
//! The decision that shapes this module: presets, always named in the rows.
//! In real models the first token draws most of the attention and carries most
//! of the signal's energy, so that the published diagnostics largely measure the
//! prompt's length. [`Preset::Paper`] is the published definition, and
//! [`Preset::Library03`] that of the library that was published with it;
//! [`Preset::Controlled`], the default, takes the first token out of graph and
//! signal, the mean over tokens out of the signal, and scales its rows to unit norm.
//!
//! Heads are joined by their mean. Weighting each by the attention that it gives out
//! is the same, since the rows of a pattern sum to 1 in every model that is run; with
//! a sink among the scores, as in gpt-oss, it would not be.

mod attention;
mod diagnose;
mod functional;
mod keep;
mod measured;
mod prefix;
mod row;
mod sink;

use hooks::{HookPoint, Selection, Site};
use kernels::lanczos::LanczosOptions;
pub use kernels::laplacian::Laplacian;
pub use kernels::quadrature::{Coefficients, QuadratureOptions, Recurrence};

pub use attention::{
    AttentionRow, LayerAttentionRow, StatisticsOptions, Top, attention_statistics,
};
pub use diagnose::spectra;
pub use functional::{Functional, FunctionalValue, NoValue};
pub use keep::{Keep, Kept, KeptQuadrature, Part, Probing};
pub use measured::Storage;
pub use prefix::{PrefixRow, Prefixes};
pub use row::{HEAT_TIMES, HFER_CUT, NullReason, SpectralRow};
pub use sink::{SpectralRows, SpectralSink};

use crate::Analysis;

/// The entry in [`ANALYSES`](crate::ANALYSES).
pub const ANALYSIS: Analysis = Analysis {
    name: "spectral",
    about: "spectra of attention graphs, energies of the residual stream on them, attention sinks",
    needs: &[Site::Pattern, Site::Summary, Site::ResidPost],
};

/// A named combination of Laplacian and preparation of graph and signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Preset {
    /// Symmetric-normalized Laplacian; first token dropped from graph and signal;
    /// then the mean over tokens subtracted; then rows scaled to unit norm, rows
    /// that are zero counted and left at zero.
    Controlled,
    /// Combinatorial Laplacian; first token kept; the residual stream as it is.
    /// Its high-frequency energy ratio and entropies take the whole spectrum, so
    /// it is always dense.
    Paper,
    /// As version 0.3 of the paper's library: symmetric-normalized Laplacian; first
    /// token kept; the residual stream as it is, at the last layer after the final
    /// norm. It truncates: of more than 50 modes it keeps the 25 lowest and the 25
    /// highest, and its high-frequency energy ratio `Σ_{k ≥ ⌊0.9·m⌋} e_k / Σ e_k` and
    /// spectral entropy are taken over the `m` retained, as if there were no others.
    /// What else a row holds is exact.
    ///
    /// It is always dense.
    Library03,
}

/// Modes that [`Preset::Library03`] keeps at either end of the spectrum.
pub const LIBRARY_ENDS: usize = 25;

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::Controlled, Self::Paper, Self::Library03];

    /// The name used on a command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Controlled => "controlled",
            Self::Paper => "paper",
            Self::Library03 => "library-0.3",
        }
    }

    /// The Laplacian that the preset uses unless a [`Run`] names another.
    pub fn laplacian(self) -> Laplacian {
        match self {
            Self::Controlled | Self::Library03 => Laplacian::SymmetricNormalized,
            Self::Paper => Laplacian::Combinatorial,
        }
    }

    /// Where the signal on a layer's graphs is read in a model of so many layers.
    pub fn signal(self, layer: usize, n_layers: usize) -> HookPoint {
        match self {
            Self::Library03 if layer + 1 == n_layers => HookPoint::LN_FINAL,
            _ => HookPoint::layer(Site::ResidPost, layer),
        }
    }

    /// What a reader of its numbers must know; `None` where they take in everything.
    pub fn caveat(self) -> Option<&'static str> {
        match self {
            Self::Controlled | Self::Paper => None,
            Self::Library03 => Some(
                "of more than 50 modes hfer and the spectral entropy take the 25 lowest and the \
                 25 highest alone, hfer the last tenth of these",
            ),
        }
    }

    /// The token that is the first node: 1 where the first is dropped.
    pub fn first_token(self) -> usize {
        usize::from(self == Self::Controlled)
    }
}

/// How eigenvalues are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exactness {
    /// Both ends of the spectrum by Lanczos, with certificates, and heat energies by
    /// random probes, with standard errors. What needs the whole spectrum is null.
    Iterative,
    /// The whole spectrum in `f32`, in `O(n³)`; its two ends as [`Exactness::Iterative`]
    /// finds them, in `f64` and with certificates, and the signal's energy and Dirichlet
    /// energy in `f64`.
    DenseF32,
    /// The whole spectrum in `f64`, in `O(n³)`, in about the time of `f32` at some hundred nodes.
    DenseF64,
}

impl Exactness {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Iterative, Self::DenseF32, Self::DenseF64];

    /// The name used in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iterative => "iterative",
            Self::DenseF32 => "dense-f32",
            Self::DenseF64 => "dense-f64",
        }
    }

    /// Whether the whole spectrum is solved.
    pub fn is_dense(self) -> bool {
        self != Self::Iterative
    }
}

/// Which graphs of a layer are analysed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Graphs {
    /// One graph per layer: the mean pattern over all heads.
    HeadMean,
    /// One graph per selected head.
    Heads,
    /// Both.
    HeadsAndMean,
}

impl Graphs {
    /// Whether the mean over heads is among them.
    pub fn has_mean(self) -> bool {
        self != Self::Heads
    }

    /// Whether the single heads are among them.
    pub fn has_heads(self) -> bool {
        self != Self::HeadMean
    }
}

/// One preset, the graphs it is applied to, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The preset.
    pub preset: Preset,
    /// Which Laplacian: as a rule the preset's. Rows name it.
    pub laplacian: Laplacian,
    /// The graphs.
    pub graphs: Graphs,
    /// How eigenvalues are found; for `Iterative` all presets but [`Preset::Controlled`]
    /// take [`Exactness::DenseF64`].
    pub exactness: Exactness,
}

impl Run {
    /// How eigenvalues are found in fact.
    pub fn effective_exactness(&self) -> Exactness {
        match (self.preset, self.exactness) {
            (Preset::Paper | Preset::Library03, Exactness::Iterative) => Exactness::DenseF64,
            (_, exactness) => exactness,
        }
    }
}

impl From<Preset> for Run {
    /// `Controlled` on every head and the mean, iteratively; `Paper` and `Library03` on
    /// the mean, dense in `f64`.
    fn from(preset: Preset) -> Self {
        let graphs = match preset {
            Preset::Controlled => Graphs::HeadsAndMean,
            Preset::Paper | Preset::Library03 => Graphs::HeadMean,
        };
        let exactness = Exactness::Iterative;
        let run = Self { preset, laplacian: preset.laplacian(), graphs, exactness };
        Self { exactness: run.effective_exactness(), ..run }
    }
}

/// What a [`SpectralSink`] computes.
#[derive(Debug, Clone, PartialEq)]
pub struct SpectralOptions {
    /// The presets. Without any, no pattern is ever formed.
    pub runs: Vec<Run>,
    /// Which layers.
    pub layers: Selection,
    /// Which heads have rows of their own. The mean is always over all heads.
    pub heads: Selection,
    /// Whether each layer's hidden score is computed, in `O(min(T, d)²·(T + d))`.
    pub hidden_score: bool,
    /// Steps and tolerance of the iterative solver.
    pub lanczos: LanczosOptions,
    /// How many of the largest sink scores and attention eigenvalues are kept.
    pub top_k: usize,
    /// How graphs are held.
    pub storage: Storage,
    /// Prefixes that are measured beside the whole prompt.
    pub prefixes: Prefixes,
    /// What is kept of each graph's spectrum itself.
    pub keep: Keep,
}

impl Default for SpectralOptions {
    /// The controlled preset on every layer and head, no hidden scores, ten largest
    /// values kept, and nothing of the spectra themselves.
    fn default() -> Self {
        Self {
            runs: vec![Preset::Controlled.into()],
            layers: Selection::All,
            heads: Selection::All,
            hidden_score: false,
            lanczos: LanczosOptions::default(),
            top_k: 10,
            storage: Storage::default(),
            prefixes: Prefixes::default(),
            keep: Keep::default(),
        }
    }
}

/// Where tensors come from: named in rows and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The prompt.
    pub request: u64,
    /// The layer.
    pub layer: usize,
}
