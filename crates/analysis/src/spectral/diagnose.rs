//! From a pattern and a signal to rows.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use hooks::{HookPoint, Site};
use kernels::adjacency::Adjacency;
use kernels::attention::{AttentionFactors, RecomputedGraph};
use kernels::eigh::{Eigen, eigh};
use kernels::graph::{PatternView, Patterns, SymmetricGraph};
use kernels::heat::{Estimate, Probes, heat_energy, heat_estimates};
use kernels::lanczos::{Certified, Extremes, LanczosOptions, extremes_and_vector};
use kernels::laplacian::LaplacianOperator;
use kernels::signal::{self, Null, Signal};
use rayon::prelude::*;

use super::measured::Measured;
use super::{
    Exactness, HEAT_TIMES, HFER_CUT, Keep, LIBRARY_ENDS, NullReason, PrefixRow, Preset, Run,
    Source, SpectralRow,
};
use crate::{Error, Result};

/// Diagnoses one layer of one prompt: no model needed.
///
/// Rows come run by run: the heads in order, then the mean over heads.
///
/// # Shapes
/// `pattern` is `[head, query_pos, key_pos]`, its `n`-th entry being head
/// `heads[n]`; `signal` is `[pos, d_model]` with as many positions: what
/// [`Preset::signal`] names, which at the last layer is not the same for every preset.
///
/// ```
/// use analysis::spectral::{Preset, Source, spectra};
/// use candle_core::{Device, Tensor, safetensors};
/// use kernels::lanczos::LanczosOptions;
///
/// // Stand-ins for tensors captured elsewhere: two heads, three tokens.
/// let pattern = Tensor::new(
///     &[
///         [[1f32, 0., 0.], [0.5, 0.5, 0.], [0.5, 0.25, 0.25]],
///         [[1., 0., 0.], [1., 0., 0.], [1., 0., 0.]],
///     ],
///     &Device::Cpu,
/// )?;
/// let signal = Tensor::new(&[[1f32, 0.], [0., 1.], [0., 1.]], &Device::Cpu)?;
/// let file = std::env::temp_dir().join(format!("spectra-{}.safetensors", std::process::id()));
/// safetensors::save(&[("pattern", pattern), ("signal", signal)].into(), &file)?;
///
/// let tensors = safetensors::load(&file, &Device::Cpu)?;
/// let source = Source { request: 0, layer: 0 };
/// let (pattern, signal) = (&tensors["pattern"], &tensors["signal"]);
/// let runs = [Preset::Paper.into()];
/// let rows = spectra(source, pattern, &[0, 1], signal, &runs, &LanczosOptions::default())?;
/// // The mean over heads: weights ⅜ and ⅜ to the first token, ⅟₁₆ between the others.
/// // Only the edges to the first token carry a difference: 2 · ⅜ · (1² + 1²) = 1.5.
/// assert_eq!(rows.len(), 1);
/// assert_eq!(rows[0].head, None);
/// assert!((rows[0].dirichlet.ok_or("energy")? - 1.5).abs() < 1e-12);
/// # std::fs::remove_file(&file)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Numerics
/// `f64`, from the `f32` weights of the graph on, but for whole spectra under
/// [`Exactness::DenseF32`]. The bits do not depend on the number of threads.
///
/// # Errors
/// [`Error::Captured`] for a number that cannot be, [`Error::Shape`],
/// [`Error::Kernel`].
pub fn spectra(
    source: Source,
    pattern: &Tensor,
    heads: &[usize],
    signal: &Tensor,
    runs: &[Run],
    lanczos: &LanczosOptions,
) -> Result<Vec<SpectralRow>> {
    let graphs = build_graphs(source, pattern, heads, heads, runs)?;
    let signal = read_signal(HookPoint::layer(Site::ResidPost, source.layer), source, signal)?;
    finish(source, &graphs, |_| Ok(&signal), lanczos, &Keep::default())
}

/// A graph and what it is of.
pub(super) struct LayerGraph<G = SymmetricGraph> {
    run: Run,
    head: Option<usize>,
    graph: G,
}

/// The graphs that the runs want, none of them stored.
pub(super) fn recomputed_graphs(
    source: Source,
    factors: &Arc<AttentionFactors>,
    wanted: &[usize],
    runs: &[Run],
) -> Result<Vec<LayerGraph<RecomputedGraph>>> {
    let all = 0..factors.n_heads();
    let graphs = runs.iter().flat_map(|run| {
        let heads = wanted.iter().filter(|_| run.graphs.has_heads());
        let heads = heads.map(|&head| (Some(head), head..head + 1));
        heads.chain(run.graphs.has_mean().then(|| (None, all.clone()))).map(move |(head, heads)| {
            let first = run.preset.first_token().min(factors.n_tokens());
            let graph = RecomputedGraph::new(factors.clone(), heads, first..factors.n_tokens());
            Ok(LayerGraph { run: *run, head, graph: graph.map_err(kernel_error(source))? })
        })
    });
    graphs.collect()
}

/// Diagnoses the prefixes of these lengths, one after another: from graphs and signals
/// of the whole prompt. Nothing is kept of their spectra.
pub(super) fn finish_prefixes<'s, G: Measured>(
    source: Source,
    graphs: &[LayerGraph<G>],
    signal: impl Fn(Preset) -> Result<&'s Signal>,
    lengths: &[usize],
    lanczos: &LanczosOptions,
) -> Result<Vec<PrefixRow>> {
    let mut rows = Vec::new();
    for &prefix in lengths {
        let graphs = graphs.iter().map(|LayerGraph { run, head, graph }| {
            let n = prefix - run.preset.first_token().min(prefix);
            let graph = graph.leading(n).map_err(kernel_error(source))?;
            Ok(LayerGraph { run: *run, head: *head, graph })
        });
        let graphs: Vec<LayerGraph<G>> = graphs.collect::<Result<_>>()?;
        let signals = presets(&graphs)
            .map(|preset| Ok((preset, signal(preset)?.clone().leading(prefix))))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let signal = |preset| Ok(&signals[&preset]);
        let found = finish(source, &graphs, signal, lanczos, &Keep::default())?;
        rows.extend(found.into_iter().map(|row| PrefixRow { prefix, row }));
    }
    Ok(rows)
}

/// The presets of these graphs.
fn presets<G>(graphs: &[LayerGraph<G>]) -> impl Iterator<Item = Preset> {
    let wanted = |preset: &Preset| graphs.iter().any(|graph| graph.run.preset == *preset);
    Preset::ALL.into_iter().filter(wanted)
}

/// Builds the graphs that the runs want of a pattern that holds the heads
/// `held`, single ones of those in `wanted`.
pub(super) fn build_graphs(
    source: Source,
    pattern: &Tensor,
    held: &[usize],
    wanted: &[usize],
    runs: &[Run],
) -> Result<Vec<LayerGraph>> {
    let point = HookPoint::layer(Site::Pattern, source.layer);
    if pattern.dims().first() != Some(&held.len()) {
        return Err(Error::Shape {
            point,
            request: source.request,
            expected: format!("[{}, query_pos, key_pos]", held.len()),
            got: pattern.dims().to_vec(),
        });
    }
    let pattern = pattern.to_dtype(DType::F32).map_err(|error| Error::Tensor {
        point,
        request: source.request,
        source: error,
    })?;
    let failed = |error: kernels::Error, heads: &[usize], dropped: usize| match error {
        kernels::Error::Weight { head, query, key, value } => Error::Captured {
            point,
            request: source.request,
            index: vec![heads.get(head).copied().unwrap_or(head), query + dropped, key + dropped],
            value: f64::from(value),
            expected: "a finite number of at least 0",
        },
        error => kernel_error(source)(error),
    };
    let patterns = Patterns::new(&pattern).map_err(kernel_error(source))?;
    let views = patterns.heads().map_err(kernel_error(source))?;
    let graph_of = |run: Run, places: Range<usize>| {
        let views = &views[places.clone()];
        let (views, dropped): (Vec<PatternView<'_>>, usize) = match run.preset {
            Preset::Controlled => (views.iter().map(|view| view.without_first()).collect(), 1),
            Preset::Paper | Preset::Library03 => (views.to_vec(), 0),
        };
        SymmetricGraph::mean(&views).map_err(|error| failed(error, &held[places], dropped))
    };
    let mut graphs = Vec::new();
    for &run in runs {
        let first = graphs.len();
        if run.graphs.has_heads() {
            let heads = held.par_iter().enumerate().filter(|(_, head)| wanted.contains(head));
            let heads: Vec<Result<LayerGraph>> = heads
                .map(|(place, &head)| {
                    let graph = graph_of(run, place..place + 1)?;
                    Ok(LayerGraph { run, head: Some(head), graph })
                })
                .collect();
            graphs.extend(heads.into_iter().collect::<Result<Vec<_>>>()?);
        }
        if run.graphs.has_mean() {
            let heads: Vec<&SymmetricGraph> = graphs[first..].iter().map(|g| &g.graph).collect();
            // The graphs of all heads are half of the patterns to read.
            let mean = match heads.len() == views.len() && !heads.is_empty() {
                true => SymmetricGraph::mean_of(&heads).map_err(kernel_error(source))?,
                false => None,
            };
            let graph = mean.map_or_else(|| graph_of(run, 0..views.len()), Ok)?;
            graphs.push(LayerGraph { run, head: None, graph });
        }
    }
    Ok(graphs)
}

/// Copies a residual stream captured at a point.
pub(super) fn read_signal(point: HookPoint, source: Source, tensor: &Tensor) -> Result<Signal> {
    Signal::from_tensor(tensor).map_err(|error| match error {
        kernels::Error::NonFinite { index, value, .. } => Error::Captured {
            point,
            request: source.request,
            index,
            value,
            expected: "a finite number",
        },
        error => kernel_error(source)(error),
    })
}

/// Diagnoses every graph with its preset's signal of the same layer.
pub(super) fn finish<'s, G: Measured>(
    source: Source,
    graphs: &[LayerGraph<G>],
    signal: impl Fn(Preset) -> Result<&'s Signal>,
    lanczos: &LanczosOptions,
    keep: &Keep,
) -> Result<Vec<SpectralRow>> {
    let prepared: Vec<(Preset, Prepared<'_, G::Shared>)> = presets(graphs)
        .map(|preset| {
            let of_preset = graphs.iter().filter(|graph| graph.run.preset == preset);
            let solvers = of_preset.map(|graph| graph.graph.exactness(&graph.run)).collect();
            let prepared = Prepared::new(preset, signal(preset)?, &solvers, G::share);
            Ok((preset, prepared.map_err(kernel_error(source))?))
        })
        .collect::<Result<_>>()?;
    let rows: Vec<Result<SpectralRow>> = graphs
        .par_iter()
        .filter_map(|graph| {
            let (_, prepared) = prepared.iter().find(|(preset, _)| *preset == graph.run.preset)?;
            Some(diagnose(source, graph, prepared, lanczos, keep))
        })
        .collect();
    rows.into_iter().collect()
}

/// The same probes for every layer and prompt: equal inputs give equal bits.
const PROBE_SEED: u64 = 3;

/// A signal as a preset wants it, and what all graphs of a layer share of it.
struct Prepared<'s, S> {
    n_tokens: usize,
    signal: Cow<'s, Signal>,
    /// `None` where every graph is solved in `f64`: its modes have the energies.
    shared: Option<S>,
    /// `None` where every graph is solved densely.
    probes: Option<Probes>,
    zero_rows: usize,
}

impl<'s, S> Prepared<'s, S> {
    fn new(
        preset: Preset,
        signal: &'s Signal,
        solvers: &BTreeSet<Exactness>,
        share: impl Fn(&Signal) -> kernels::Result<S>,
    ) -> kernels::Result<Self> {
        let n_tokens = signal.n_nodes();
        let (signal, zero_rows) = match preset {
            Preset::Controlled => {
                let precision = f64::from(f32::EPSILON);
                let (signal, zero_rows) =
                    signal.clone().without_first().centred(precision).unit_rows();
                (Cow::Owned(signal), zero_rows)
            }
            Preset::Paper | Preset::Library03 => {
                let zero_rows = signal.n_zero_rows();
                (Cow::Borrowed(signal), zero_rows)
            }
        };
        Ok(Self {
            n_tokens,
            shared: solvers
                .iter()
                .any(|solver| *solver != Exactness::DenseF64)
                .then(|| share(&signal))
                .transpose()?,
            probes: solvers
                .contains(&Exactness::Iterative)
                .then(|| Probes::new(&signal, PROBE_SEED)),
            zero_rows,
            signal,
        })
    }
}

fn diagnose<G: Measured>(
    source: Source,
    graph: &LayerGraph<G>,
    prepared: &Prepared<'_, G::Shared>,
    lanczos: &LanczosOptions,
    keep: &Keep,
) -> Result<SpectralRow> {
    let LayerGraph { run, head, graph } = graph;
    let laplacian = run.laplacian;
    let exactness = graph.exactness(run);
    let operator = LaplacianOperator::new(graph, laplacian);
    let n_nodes = graph.n_nodes();
    if prepared.signal.n_nodes() != n_nodes {
        return Err(Error::Shape {
            point: HookPoint::layer(Site::ResidPost, source.layer),
            request: source.request,
            expected: "as many positions as the pattern".to_owned(),
            got: vec![prepared.n_tokens, prepared.signal.d()],
        });
    }
    let failed = kernel_error(source);
    let signal: &Signal = &prepared.signal;
    let energies = || match &prepared.shared {
        Some(shared) => G::energies(&operator, signal, shared),
        None => G::energies(&operator, signal, &G::share(signal)?),
    };
    let moments = operator.spectrum_moments();
    let solved = match exactness {
        Exactness::Iterative => energies().and_then(|energies| {
            let probes = prepared
                .probes
                .as_ref()
                .map_or_else(|| Cow::Owned(Probes::new(signal, PROBE_SEED)), Cow::Borrowed);
            let whole = Whole::absent(&operator, &probes, energies)?;
            let ends = Ends::iterative(&operator, lanczos)?;
            Ok(Solved { ends, energies, eigenvalues: None, whole })
        }),
        Exactness::DenseF32 => energies()
            .and_then(|energies| Solved::in_f32(run, &*graph.stored()?, signal, energies, lanczos)),
        Exactness::DenseF64 => {
            graph.stored().and_then(|stored| Solved::in_f64(run, &stored, signal))
        }
    };
    let Solved { ends, energies: (energy, dirichlet), eigenvalues, whole } =
        solved.map_err(failed)?;
    let kept = keep
        .take(*head, &operator, eigenvalues.as_deref(), &ends.fiedler_vector)
        .map_err(failed)?;

    let mut nulls = Vec::new();
    let mut column = |name, value: Column| match value {
        Ok(value) => Some(value),
        Err(reason) => {
            nulls.push((name, reason));
            None
        }
    };
    let present = |value: Option<f64>| value.ok_or(Null::TooFewNodes);
    let fiedler = present(ends.fiedler.map(|end| end.value));
    let largest = present(ends.lambda_max.map(|end| end.value));
    let defined = |value: signal::Value| value.map_err(undefined);
    Ok(SpectralRow {
        request: source.request,
        layer: source.layer,
        head: *head,
        preset: run.preset,
        laplacian,
        exactness,
        n_tokens: prepared.n_tokens,
        n_nodes,
        isolated_nodes: operator.n_isolated(),
        zero_rows: prepared.zero_rows,
        fiedler: column("fiedler", defined(fiedler)),
        fiedler_residual: column(
            "fiedler_residual",
            defined(present(ends.fiedler.map(|end| end.residual))),
        ),
        fiedler_seeds_agree: ends.seeds_agree,
        lambda_max: column("lambda_max", defined(largest)),
        lambda_max_residual: column(
            "lambda_max_residual",
            defined(present(ends.lambda_max.map(|end| end.residual))),
        ),
        steps: ends.steps,
        converged: ends.converged,
        connectivity_ratio: column(
            "connectivity_ratio",
            defined(fiedler.and_then(|f| signal::connectivity_ratio(f, largest?))),
        ),
        dirichlet: Some(dirichlet),
        energy: Some(energy),
        rayleigh: column("rayleigh", defined(signal::rayleigh_quotient(dirichlet, energy))),
        smoothness: column(
            "smoothness",
            defined(largest.and_then(|largest| signal::smoothness(dirichlet, largest, energy))),
        ),
        spectrum_mean: column("spectrum_mean", defined(present(moments.map(|m| m.mean)))),
        spectrum_variance: column(
            "spectrum_variance",
            defined(present(moments.map(|m| m.variance))),
        ),
        modes_retained: whole.modes_retained,
        hfer: column("hfer", whole.hfer),
        hfer_at_1: column("hfer_at_1", whole.hfer_at_1),
        heat: [
            column("heat_1", whole.heat[0].map(|heat| heat.value)),
            column("heat_2", whole.heat[1].map(|heat| heat.value)),
            column("heat_5", whole.heat[2].map(|heat| heat.value)),
        ],
        heat_error: [
            column("heat_1_error", whole.heat[0].map(|heat| heat.error)),
            column("heat_2_error", whole.heat[1].map(|heat| heat.error)),
            column("heat_5_error", whole.heat[2].map(|heat| heat.error)),
        ],
        spectral_entropy: column("spectral_entropy", whole.spectral_entropy),
        spectral_entropy_normalized: column(
            "spectral_entropy_normalized",
            whole.spectral_entropy_normalized,
        ),
        eigenvalue_entropy: column("eigenvalue_entropy", whole.eigenvalue_entropy),
        eigenvalue_entropy_deficit: column(
            "eigenvalue_entropy_deficit",
            whole.eigenvalue_entropy.map(|entropy| (n_nodes as f64).ln() - entropy),
        ),
        spacing_ratio: column("spacing_ratio", whole.spacing_ratio),
        spacing_zero_pairs: whole.spacing_zero_pairs,
        nulls,
        kept,
    })
}

type Column = std::result::Result<f64, NullReason>;

fn undefined(null: Null) -> NullReason {
    NullReason::Undefined(null)
}

fn kernel_error(source: Source) -> impl Fn(kernels::Error) -> Error + Copy {
    move |error| Error::Kernel { layer: source.layer, request: source.request, source: error }
}

/// What is found of a graph and the signal on it.
struct Solved {
    ends: Ends,
    /// `‖X‖²` and `Tr(XᵀLX)`.
    energies: (f64, f64),
    /// All of them, if dense.
    eigenvalues: Option<Vec<f64>>,
    whole: Whole,
}

impl Solved {
    /// The two ends by Lanczos, all else that takes eigenvectors in `f32`.
    fn in_f32(
        run: &Run,
        graph: &SymmetricGraph,
        signal: &Signal,
        energies: (f64, f64),
        lanczos: &LanczosOptions,
    ) -> kernels::Result<Self> {
        let operator = LaplacianOperator::new(graph, run.laplacian);
        let eigen = eigh(&operator.dense_in::<f32>()?, operator.n_nodes())?;
        let modes = signal::mode_energies_f32(&eigen, &*signal.in_coordinates_of(&operator)?)?;
        let mut whole = Whole::new(run.preset, eigen.values(), eigen.rounding(), &modes)?;
        // Levels that coincide are not told from those that are nearer than the rounding.
        if whole.spacing_zero_pairs.is_some_and(|pairs| pairs > 0) {
            whole.spacing_ratio = Err(NullReason::NeedsDouble);
            whole.spacing_zero_pairs = None;
        }
        let ends = Ends::iterative(&operator, lanczos)?;
        Ok(Self { ends, energies, eigenvalues: Some(eigen.values().to_vec()), whole })
    }

    /// All from the modes: `‖X‖² = Σ e_k`, `Tr(XᵀLX) = Σ λ_k e_k`.
    fn in_f64(run: &Run, graph: &SymmetricGraph, signal: &Signal) -> kernels::Result<Self> {
        let operator = LaplacianOperator::new(graph, run.laplacian);
        let eigen = eigh(&operator.dense()?, operator.n_nodes())?;
        let modes = signal::mode_energies(&eigen, &*signal.in_coordinates_of(&operator)?)?;
        let whole = Whole::new(run.preset, eigen.values(), eigen.rounding(), &modes)?;
        let dirichlet = eigen.values().iter().zip(&modes).map(|(value, e)| value * e).sum();
        Ok(Self {
            ends: Ends::dense(&operator, &eigen)?,
            energies: (modes.iter().sum(), dirichlet),
            eigenvalues: Some(eigen.values().to_vec()),
            whole,
        })
    }
}

/// Both ends of a spectrum, however found.
struct Ends {
    fiedler: Option<Certified>,
    /// In the operator's coordinates; empty without a Fiedler value.
    fiedler_vector: Vec<f64>,
    lambda_max: Option<Certified>,
    seeds_agree: Option<bool>,
    steps: Option<usize>,
    converged: bool,
}

impl Ends {
    fn iterative<G: Adjacency>(
        operator: &LaplacianOperator<'_, G>,
        lanczos: &LanczosOptions,
    ) -> kernels::Result<Self> {
        let mut fiedler_vector = Vec::new();
        let (found, converged) = match extremes_and_vector(operator, lanczos, &mut fiedler_vector) {
            Ok(found) => (found, true),
            Err(kernels::Error::NotConverged { found, .. }) => (*found, false),
            Err(error) => return Err(error),
        };
        let Extremes { fiedler, lambda_max, seeds_agree, steps } = found;
        Ok(Self {
            fiedler,
            fiedler_vector,
            lambda_max,
            seeds_agree: Some(seeds_agree),
            steps: Some(steps),
            converged,
        })
    }

    fn dense<G: Adjacency>(
        operator: &LaplacianOperator<'_, G>,
        eigen: &Eigen,
    ) -> kernels::Result<Self> {
        let certified = |k: usize| -> kernels::Result<(Certified, Vec<f64>)> {
            let (value, vector) = (eigen.values()[k], eigen.vector(k));
            let product = operator.apply(&vector)?;
            let squares = product.iter().zip(&vector).map(|(p, v)| (p - value * v).powi(2));
            Ok((Certified { value, residual: squares.sum::<f64>().sqrt() }, vector))
        };
        let n = eigen.values().len();
        let (fiedler, fiedler_vector) = (n >= 2).then(|| certified(1)).transpose()?.unzip();
        Ok(Self {
            fiedler,
            fiedler_vector: fiedler_vector.unwrap_or_default(),
            lambda_max: (n >= 1).then(|| certified(n - 1)).transpose()?.map(|(end, _)| end),
            seeds_agree: None,
            steps: None,
            converged: true,
        })
    }
}

/// What takes the whole spectrum, or has an estimate in its place.
struct Whole {
    modes_retained: Option<usize>,
    hfer: Column,
    hfer_at_1: Column,
    heat: [Heat; HEAT_TIMES.len()],
    spectral_entropy: Column,
    spectral_entropy_normalized: Column,
    eigenvalue_entropy: Column,
    spacing_ratio: Column,
    spacing_zero_pairs: Option<usize>,
}

type Heat = std::result::Result<Estimate, NullReason>;

impl Whole {
    fn absent<G: Measured>(
        operator: &LaplacianOperator<'_, G>,
        probes: &Probes,
        (energy, dirichlet): (f64, f64),
    ) -> kernels::Result<Self> {
        let longest = HEAT_TIMES.iter().fold(0.0_f64, |longest, time| longest.max(*time));
        let heat = if energy <= 0.0 {
            [Err(undefined(Null::ZeroSignal)); HEAT_TIMES.len()]
        } else if 0.5 * longest * operator.upper_bound() > G::MAX_HEAT {
            [Err(NullReason::TooManyProducts); HEAT_TIMES.len()]
        } else {
            heat_estimates(operator, probes, energy, dirichlet, HEAT_TIMES)?.map(Ok)
        };
        let absent = Err(NullReason::NeedsDense);
        Ok(Self {
            modes_retained: None,
            hfer: absent,
            hfer_at_1: absent,
            heat,
            spectral_entropy: absent,
            spectral_entropy_normalized: absent,
            eigenvalue_entropy: absent,
            spacing_ratio: absent,
            spacing_zero_pairs: None,
        })
    }

    /// From eigenvalues, what they may be wrong by, and the energies of their modes.
    fn new(
        preset: Preset,
        values: &[f64],
        rounding: f64,
        energies: &[f64],
    ) -> kernels::Result<Self> {
        let (retained, first) = match preset {
            Preset::Controlled | Preset::Paper => (Cow::Borrowed(energies), energies.len() / 2),
            Preset::Library03 => {
                let retained = signal::outer_modes(energies, LIBRARY_ENDS);
                let first = 9 * retained.len() / 10;
                (Cow::Owned(retained), first)
            }
        };
        let entropy = signal::spectral_entropy(&retained);
        let normalized = entropy.and_then(|entropy| signal::over_log_n(entropy, retained.len()));
        let heat = |time| {
            let value = heat_energy(values, energies, time).map_err(undefined)?;
            Ok(Estimate { value, error: 0.0 })
        };
        let spacings = signal::spacing_ratio(values, rounding);
        Ok(Self {
            modes_retained: Some(retained.len()),
            hfer: signal::energy_share_of_modes(&retained, first).map_err(undefined),
            hfer_at_1: signal::energy_share_from(values, energies, HFER_CUT, rounding)
                .map_err(undefined),
            heat: HEAT_TIMES.map(heat),
            spectral_entropy: entropy.map_err(undefined),
            spectral_entropy_normalized: normalized.map_err(undefined),
            eigenvalue_entropy: signal::eigenvalue_entropy(values, rounding)?.map_err(undefined),
            spacing_ratio: spacings.mean.map_err(undefined),
            spacing_zero_pairs: Some(spacings.n_zero_pairs),
        })
    }
}
