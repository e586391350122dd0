//! One graph's diagnostics.

use kernels::laplacian::Laplacian;
use kernels::signal::Null;

use super::{Exactness, Kept, Preset};

/// Times `t` of the heat energies: one, two and five times the time in which a
/// mode of eigenvalue 1 falls to `1/e`.
pub const HEAT_TIMES: [f64; 3] = [1.0, 2.0, 5.0];

/// The eigenvalue from which [`SpectralRow::hfer_at_1`] counts energy: the mean
/// of the normalized spectrum of a graph without self-loops.
pub const HFER_CUT: f64 = 1.0;

/// Why a column of a row has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NullReason {
    /// The quantity does not exist for this graph and signal.
    Undefined(Null),
    /// It takes the whole spectrum, which [`Exactness::Iterative`] does not compute.
    NeedsDense,
    /// It takes the whole spectrum to more digits than [`Exactness::DenseF32`] has: some
    /// neighbouring eigenvalues are nearer to each other than its rounding.
    NeedsDouble,
    /// It takes too many products with a graph that is made anew at each.
    TooManyProducts,
}

impl NullReason {
    /// The reason in words, as written into tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undefined(null) => null.name(),
            Self::NeedsDense => "needs the dense solver",
            Self::NeedsDouble => "needs the dense solver in f64",
            Self::TooManyProducts => "too many products with a graph that is not stored",
        }
    }
}

/// The diagnostics of one attention graph and the signal on it.
///
/// `n` is the number of nodes, `λ` the eigenvalues ascending from `λ_0 = 0`,
/// `e_k` the energy of the signal in mode `k`.
#[derive(Debug, Clone, PartialEq)]
pub struct SpectralRow {
    /// The prompt.
    pub request: u64,
    /// The layer.
    pub layer: usize,
    /// The head; `None` for the mean over heads.
    pub head: Option<usize>,
    /// How graph and signal were prepared.
    pub preset: Preset,
    /// Which Laplacian.
    pub laplacian: Laplacian,
    /// How eigenvalues were found.
    pub exactness: Exactness,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Nodes of the graph: fewer where the preset drops the first token.
    pub n_nodes: usize,
    /// Nodes of degree 0.
    pub isolated_nodes: usize,
    /// Tokens whose signal is 0 after preparation: they carry no energy.
    pub zero_rows: usize,
    /// Second-smallest eigenvalue `λ_1`, the Fiedler value.
    pub fiedler: Option<f64>,
    /// `‖Lv − λv‖` of its unit vector: some eigenvalue is this close.
    pub fiedler_residual: Option<f64>,
    /// Whether two random starts agreed on the Fiedler value; `None` under
    /// [`Exactness::DenseF64`].
    pub fiedler_seeds_agree: Option<bool>,
    /// Largest eigenvalue.
    pub lambda_max: Option<f64>,
    /// `‖Lv − λv‖` of its unit vector.
    pub lambda_max_residual: Option<f64>,
    /// Steps of the iterative solver; `None` under [`Exactness::DenseF64`].
    pub steps: Option<usize>,
    /// Whether the residuals reached the tolerance. If not, the values are the
    /// best found, still within their residuals of some eigenvalue.
    pub converged: bool,
    /// `λ_1/λ_max`.
    pub connectivity_ratio: Option<f64>,
    /// `Tr(XᵀLX)`; under `RandomWalk`, in its inner product, `Tr(Xᵀ(D − W)X)`, and so
    /// for everything below that speaks of the signal's energy.
    pub dirichlet: Option<f64>,
    /// `‖X‖² = Tr(XᵀX)`; under `RandomWalk` `Tr(XᵀDX)`.
    pub energy: Option<f64>,
    /// `Tr(XᵀLX)/‖X‖²`: high is rough.
    pub rayleigh: Option<f64>,
    /// `1 − Tr(XᵀLX)/(λ_max‖X‖²)`: high is smooth.
    pub smoothness: Option<f64>,
    /// `Tr L/n`.
    pub spectrum_mean: Option<f64>,
    /// `Tr L²/n − (Tr L/n)²`.
    pub spectrum_variance: Option<f64>,
    /// Modes that the high-frequency energy ratio and the spectral entropy take in:
    /// all `n`, but under [`Preset::Library03`] 50 at most; `None` unless dense.
    pub modes_retained: Option<usize>,
    /// High-frequency energy ratio `Σ_{k ≥ ⌊n/2⌋} e_k / Σ e_k`; under
    /// [`Preset::Library03`] `Σ_{k ≥ ⌊0.9·m⌋} e_k / Σ e_k` of the `m` modes retained.
    pub hfer: Option<f64>,
    /// The same from a fixed eigenvalue: `Σ_{λ_k ≥ 1} e_k / Σ e_k`.
    pub hfer_at_1: Option<f64>,
    /// Heat-kernel energy `Tr(Xᵀe^{−tL}X)/‖X‖²` at the times [`HEAT_TIMES`]: exact
    /// if dense, else an unbiased estimate.
    pub heat: [Option<f64>; HEAT_TIMES.len()],
    /// Standard error of each estimate; 0 if dense.
    pub heat_error: [Option<f64>; HEAT_TIMES.len()],
    /// `−Σ p_k ln p_k` in nats, `p_k = e_k/Σe`, over the modes retained.
    pub spectral_entropy: Option<f64>,
    /// The same over the logarithm of their number.
    pub spectral_entropy_normalized: Option<f64>,
    /// `−Σ q ln q` in nats, `q = λ/Σλ`.
    pub eigenvalue_entropy: Option<f64>,
    /// `ln n` minus the eigenvalue entropy, in nats.
    pub eigenvalue_entropy_deficit: Option<f64>,
    /// `⟨min(s_k, s_{k+1})/max(s_k, s_{k+1})⟩`, `s_k = λ_{k+1} − λ_k`.
    pub spacing_ratio: Option<f64>,
    /// Pairs of neighbouring spacings left out of it, both being 0; `None` unless dense, and
    /// where `f32` does not tell them.
    pub spacing_zero_pairs: Option<usize>,
    /// Why columns are null, in the order of [`SpectralRow::measures`].
    pub nulls: Vec<(&'static str, NullReason)>,
    /// What was to be kept of the spectrum itself.
    pub kept: Kept,
}

/// Number of columns in [`SpectralRow::measures`].
pub const N_MEASURES: usize = 24;

impl SpectralRow {
    /// Every measured column with its name, in the order of tables.
    pub fn measures(&self) -> [(&'static str, Option<f64>); N_MEASURES] {
        [
            ("fiedler", self.fiedler),
            ("fiedler_residual", self.fiedler_residual),
            ("lambda_max", self.lambda_max),
            ("lambda_max_residual", self.lambda_max_residual),
            ("connectivity_ratio", self.connectivity_ratio),
            ("dirichlet", self.dirichlet),
            ("energy", self.energy),
            ("rayleigh", self.rayleigh),
            ("smoothness", self.smoothness),
            ("spectrum_mean", self.spectrum_mean),
            ("spectrum_variance", self.spectrum_variance),
            ("hfer", self.hfer),
            ("hfer_at_1", self.hfer_at_1),
            ("heat_1", self.heat[0]),
            ("heat_2", self.heat[1]),
            ("heat_5", self.heat[2]),
            ("heat_1_error", self.heat_error[0]),
            ("heat_2_error", self.heat_error[1]),
            ("heat_5_error", self.heat_error[2]),
            ("spectral_entropy", self.spectral_entropy),
            ("spectral_entropy_normalized", self.spectral_entropy_normalized),
            ("eigenvalue_entropy", self.eigenvalue_entropy),
            ("eigenvalue_entropy_deficit", self.eigenvalue_entropy_deficit),
            ("spacing_ratio", self.spacing_ratio),
        ]
    }

    /// Why a column is null; `None` where it has a value.
    pub fn null_reason(&self, column: &str) -> Option<NullReason> {
        self.nulls.iter().find(|(name, _)| *name == column).map(|(_, reason)| *reason)
    }
}
