//! Functionals of whole spectra, from the quadratures that a run kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;

use analysis::spectral::{Functional, FunctionalValue};
use hooks::Selection;
use rayon::prelude::*;
use serde::Serialize;

use crate::show::known_prompt;
use crate::summary::Tables;
use crate::tables::quadrature::{self, Graph, GraphName, QUADRATURE};
use crate::{Error, Result};

/// The name of a functional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionalKind {
    /// Density of states.
    Density,
    /// Entropy of the eigenvalues' shares.
    EigenvalueEntropy,
    /// Partition function.
    PartitionFunction,
    /// Free energy per node.
    FreeEnergy,
    /// Heat capacity.
    HeatCapacity,
    /// Spectral form factor.
    FormFactor,
}

impl FunctionalKind {
    /// The name used on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Density => "density",
            Self::EigenvalueEntropy => "eigenvalue-entropy",
            Self::PartitionFunction => "partition-function",
            Self::FreeEnergy => "free-energy",
            Self::HeatCapacity => "heat-capacity",
            Self::FormFactor => "form-factor",
        }
    }

    /// What it is, with its unit where it has one.
    fn about(self) -> &'static str {
        match self {
            Self::Density => "density of states, per unit of eigenvalue",
            Self::EigenvalueEntropy => "entropy of the eigenvalues' shares λ/Σλ, in nats",
            Self::PartitionFunction => "partition function Z = Σ e^{−βλ}",
            Self::FreeEnergy => "free energy −ln(Z/n)/β, in units of eigenvalue",
            Self::HeatCapacity => "heat capacity β² Var_β(λ)",
            Self::FormFactor => "form factor |Σ e^{iλτ}|²/n², without bias",
        }
    }
}

/// Evenly spaced points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    from: f64,
    to: f64,
    points: usize,
}

impl Grid {
    const MOST: usize = 1000;

    fn points(self) -> Vec<f64> {
        let step = (self.to - self.from) / (self.points.max(2) - 1) as f64;
        (0..self.points).map(|k| self.from + step * k as f64).collect()
    }
}

impl Default for Grid {
    /// Nine points from 0 to 2, where the normalized Laplacians have their eigenvalues.
    fn default() -> Self {
        Self { from: 0.0, to: 2.0, points: 9 }
    }
}

impl FromStr for Grid {
    type Err = Error;

    /// `FROM:TO:POINTS`.
    fn from_str(text: &str) -> Result<Self> {
        let grid = || {
            let (from, rest) = text.split_once(':')?;
            let (to, points) = rest.split_once(':')?;
            let number = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite());
            let points = points.parse().ok().filter(|points| (1..=Self::MOST).contains(points))?;
            Some(Self { from: number(from)?, to: number(to)?, points })
        };
        grid().ok_or_else(|| Error::Grid { text: text.to_owned(), most: Self::MOST })
    }
}

/// The arguments of a functional, as far as they are given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Arguments {
    /// Inverse temperature of partition function, free energy and heat capacity; 1.
    pub beta: Option<f64>,
    /// Time of the form factor; 1.
    pub tau: Option<f64>,
    /// Standard deviation by which the density is smoothed; 0.1.
    pub width: Option<f64>,
    /// Points of the density.
    pub grid: Option<Grid>,
}

impl Arguments {
    /// The functional of that name with these arguments, refused where it does not
    /// take one of them, and the arguments that it has.
    fn apply(&self, kind: FunctionalKind) -> Result<(Functional, BTreeMap<&'static str, f64>)> {
        use FunctionalKind as Kind;
        let (thermal, density) = (
            matches!(kind, Kind::PartitionFunction | Kind::FreeEnergy | Kind::HeatCapacity),
            kind == Kind::Density,
        );
        for (option, is_given, is_taken) in [
            ("beta", self.beta.is_some(), thermal),
            ("tau", self.tau.is_some(), kind == Kind::FormFactor),
            ("width", self.width.is_some(), density),
            ("grid", self.grid.is_some(), density),
        ] {
            if is_given && !is_taken {
                return Err(Error::FunctionalOption { functional: kind.name(), option });
            }
        }
        let above = |option, given: Option<f64>, default: f64| match given.unwrap_or(default) {
            value if value > 0.0 && value.is_finite() => Ok(value),
            value => {
                let expected = "a finite number above 0";
                Err(Error::FunctionalNumber { option, value, expected })
            }
        };
        let beta = above("beta", self.beta, 1.0)?;
        let tau = match self.tau.unwrap_or(1.0) {
            tau if tau >= 0.0 && tau.is_finite() => tau,
            value => {
                let expected = "a finite number of at least 0";
                return Err(Error::FunctionalNumber { option: "tau", value, expected });
            }
        };
        let width = above("width", self.width, 0.1)?;
        let (functional, argument) = match kind {
            Kind::Density => {
                let grid = self.grid.unwrap_or_default().points();
                (Functional::Density { width, grid }, Some(("width", width)))
            }
            Kind::EigenvalueEntropy => (Functional::EigenvalueEntropy, None),
            Kind::PartitionFunction => {
                (Functional::PartitionFunction { beta }, Some(("beta", beta)))
            }
            Kind::FreeEnergy => (Functional::FreeEnergy { beta }, Some(("beta", beta))),
            Kind::HeatCapacity => (Functional::HeatCapacity { beta }, Some(("beta", beta))),
            Kind::FormFactor => (Functional::FormFactor { tau }, Some(("tau", tau))),
        };
        Ok((functional, argument.into_iter().collect()))
    }
}

/// A functional of the graphs of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FunctionalValues {
    /// Its name.
    pub functional: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its arguments.
    pub arguments: BTreeMap<&'static str, f64>,
    /// The points at which it has values; empty where it has a single one.
    pub grid: Vec<f64>,
    /// Means over prompts, by preset, layer and head.
    pub means: Vec<FunctionalMean>,
    /// Each graph of each prompt.
    pub graphs: Vec<FunctionalOfGraph>,
}

/// A functional of one graph.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FunctionalOfGraph {
    /// The prompt.
    pub prompt: String,
    /// The preset.
    pub preset: String,
    /// The Laplacian.
    pub laplacian: String,
    /// The layer.
    pub layer: u32,
    /// The head; `None` for the mean over heads.
    pub head: Option<u32>,
    /// The value, or one for each point of the grid.
    pub values: Vec<Measured>,
    /// Why there is none.
    pub null: Option<String>,
}

/// A value with its errors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The value.
    pub value: f64,
    /// Its standard error, from the scatter of the probes.
    pub error: f64,
    /// What a quarter fewer steps change: in practice more than what they leave out.
    pub truncation: f64,
}

/// The mean of a functional over prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FunctionalMean {
    /// The preset.
    pub preset: String,
    /// The Laplacian.
    pub laplacian: String,
    /// The layer.
    pub layer: u32,
    /// The head; `None` for the mean over heads.
    pub head: Option<u32>,
    /// Prompts that have a value.
    pub prompts: usize,
    /// Prompts whose graph has none.
    pub nulls: usize,
    /// The means: the prompts' probes are independent, so that the error is the root of
    /// the sum of their squared errors, over their number. The truncation is the mean of
    /// theirs.
    pub values: Vec<Measured>,
    /// Standard deviation over prompts of each value; empty below two prompts.
    pub spread: Vec<f64>,
}

/// Which of a run's graphs; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Of {
    /// Those of this prompt.
    pub prompt: Option<String>,
    /// Those of these heads, and not of the mean over heads.
    pub heads: Option<Selection>,
}

/// Evaluates a functional on the quadratures of a run.
///
/// # Errors
///
/// [`Error::NoRun`], [`Error::NoQuadrature`], [`Error::NotInRun`],
/// [`Error::FunctionalOption`] and [`Error::FunctionalNumber`] for arguments that are
/// not taken, [`Error::NoFunctional`] where no graph has a value, and damage in the
/// run folder.
pub fn functional(
    run: &Path,
    kind: FunctionalKind,
    arguments: &Arguments,
    of: &Of,
) -> Result<FunctionalValues> {
    let (functional, arguments) = arguments.apply(kind)?;
    if !run.is_dir() {
        return Err(Error::NoRun { run: run.to_owned() });
    }
    let tables = Tables::open(run)?;
    if !tables.reader().tables().iter().any(|table| table.info.name == QUADRATURE.name) {
        return Err(Error::NoQuadrature { run: run.to_owned() });
    }
    known_prompt(run, tables.reader(), of.prompt.as_deref())?;
    let is_wanted = |graph: &Graph| {
        let head = |heads: &Selection| graph.name.head.is_some_and(|h| heads.contains(h as usize));
        of.prompt.as_ref().is_none_or(|prompt| *prompt == graph.prompt)
            && of.heads.as_ref().is_none_or(head)
    };
    let (mut graphs, mut heads) = (Vec::new(), BTreeSet::new());
    quadrature::each(&tables, |some| {
        heads.extend(some.iter().map(|graph| graph.name.head));
        let wanted = some.into_par_iter().filter(is_wanted);
        let found: Vec<Result<FunctionalOfGraph>> =
            wanted.map(|graph| evaluate(run, &functional, graph)).collect();
        graphs.extend(found.into_iter().collect::<Result<Vec<_>>>()?);
        Ok(())
    })?;
    if let Some(wanted) = &of.heads
        && graphs.is_empty()
    {
        let (what, name) = ("quadrature of heads", wanted.to_string());
        let known = heads.into_iter().map(|head| match head {
            None => "that of the mean over heads".to_owned(),
            Some(head) => head.to_string(),
        });
        let known = known.collect();
        return Err(Error::NotInRun { run: run.to_owned(), what, name, known });
    }
    if let Some(reason) = graphs.first().and_then(|graph| graph.null.clone())
        && graphs.iter().all(|graph| graph.null.is_some())
    {
        return Err(Error::NoFunctional { functional: kind.name(), reason });
    }
    Ok(FunctionalValues {
        functional: kind.name(),
        about: kind.about(),
        arguments,
        grid: if let Functional::Density { grid, .. } = functional { grid } else { Vec::new() },
        means: means(&graphs),
        graphs,
    })
}

fn evaluate(run: &Path, functional: &Functional, graph: Graph) -> Result<FunctionalOfGraph> {
    let Graph { prompt, name, coefficients } = graph;
    let GraphName { preset, laplacian, layer, head } = name;
    let (values, null) = match functional.of(coefficients) {
        Ok(Ok(values)) => (values, None),
        Ok(Err(none)) => (Vec::new(), Some(none.to_string())),
        Err(source) => {
            let (run, source) = (run.to_owned(), Box::new(source));
            return Err(Error::Coefficients { run, prompt, layer, source });
        }
    };
    let measured =
        |FunctionalValue { value, error, truncation }| Measured { value, error, truncation };
    let values = values.into_iter().map(measured).collect();
    Ok(FunctionalOfGraph { prompt, preset, laplacian, layer, head, values, null })
}

/// Means over prompts, in the order of their names.
fn means(graphs: &[FunctionalOfGraph]) -> Vec<FunctionalMean> {
    let mut groups: BTreeMap<GraphName, Vec<&FunctionalOfGraph>> = BTreeMap::new();
    for graph in graphs {
        let FunctionalOfGraph { preset, laplacian, layer, head, .. } = graph.clone();
        groups.entry(GraphName { preset, laplacian, layer, head }).or_default().push(graph);
    }
    let mean = |(name, group): (GraphName, Vec<&FunctionalOfGraph>)| {
        let having: Vec<_> = group.iter().filter(|graph| graph.null.is_none()).collect();
        let n = having.len() as f64;
        let n_values = having.first().map_or(0, |graph| graph.values.len());
        let over = |f: &dyn Fn(&Measured) -> f64, k: usize| -> f64 {
            having.iter().filter_map(|graph| graph.values.get(k)).map(f).sum()
        };
        let values: Vec<Measured> = (0..n_values)
            .map(|k| Measured {
                value: over(&|m| m.value, k) / n,
                error: over(&|m| m.error * m.error, k).sqrt() / n,
                truncation: over(&|m| m.truncation, k) / n,
            })
            .collect();
        let spread = |(k, mean): (usize, &Measured)| {
            let squares = over(&|m| (m.value - mean.value) * (m.value - mean.value), k);
            (squares / (n - 1.0)).sqrt()
        };
        let has_spread = having.len() > 1;
        let GraphName { preset, laplacian, layer, head } = name;
        FunctionalMean {
            preset,
            laplacian,
            layer,
            head,
            prompts: having.len(),
            nulls: group.len() - having.len(),
            spread: values.iter().enumerate().filter(|_| has_spread).map(spread).collect(),
            values,
        }
    };
    groups.into_iter().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_independent_prompts_shrink_in_their_mean() {
        let graph = |prompt: &str, head, values: &[(f64, f64)]| FunctionalOfGraph {
            prompt: prompt.to_owned(),
            preset: "controlled".to_owned(),
            laplacian: "symmetric-normalized".to_owned(),
            layer: 2,
            head,
            values: values
                .iter()
                .map(|&(value, error)| Measured { value, error, truncation: 0.5 * error })
                .collect(),
            null: values.is_empty().then(|| "too few nodes".to_owned()),
        };
        let graphs = [
            graph("a", Some(1), &[(7.0, 0.0)]),
            graph("a", None, &[(1.0, 3.0)]),
            graph("b", None, &[(5.0, 4.0)]),
            graph("c", None, &[]),
        ];
        let found = means(&graphs);
        assert_eq!(found.len(), 2);
        let (mean, head) = (&found[0], &found[1]);
        assert_eq!((mean.head, mean.prompts, mean.nulls), (None, 2, 1));
        assert_eq!(mean.values, [Measured { value: 3.0, error: 2.5, truncation: 1.75 }]);
        assert_eq!(mean.spread, [8f64.sqrt()]);
        assert_eq!((head.head, head.spread.len()), (Some(1), 0));
    }

    #[test]
    fn grids_are_even() {
        assert_eq!("0:2:5".parse::<Grid>().unwrap().points(), [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!("-1:3:1".parse::<Grid>().unwrap().points(), [-1.0]);
        assert_eq!(Grid::default().points().len(), 9);
        for wrong in ["", "1", "0:2", "0:2:0", "0:2:1001", "0:inf:3", "nan:1:3", "0:1:2:3", "a:b:c"]
        {
            let error = wrong.parse::<Grid>().unwrap_err().to_string();
            assert!(error.contains("FROM:TO:POINTS"), "{wrong}: {error}");
        }
    }

    #[test]
    fn arguments_belong_to_functionals() {
        use FunctionalKind as Kind;
        let beta = Arguments { beta: Some(2.0), ..Arguments::default() };
        let (functional, arguments) = beta.apply(Kind::HeatCapacity).unwrap();
        assert_eq!(functional, Functional::HeatCapacity { beta: 2.0 });
        assert_eq!(arguments, BTreeMap::from([("beta", 2.0)]));
        for kind in [Kind::Density, Kind::EigenvalueEntropy, Kind::FormFactor] {
            let error = beta.apply(kind).unwrap_err().to_string();
            assert!(error.contains(kind.name()) && error.contains("--beta"), "{error}");
        }
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let wrong = Arguments { beta: Some(wrong), ..Arguments::default() };
            assert!(wrong.apply(Kind::FreeEnergy).is_err());
        }
        let tau = |tau| Arguments { tau: Some(tau), ..Arguments::default() };
        assert!(
            tau(0.0).apply(Kind::FormFactor).is_ok() && tau(-1.0).apply(Kind::FormFactor).is_err()
        );
    }
    /// Number, dimension, trace, α and β of a probe.
    type Row = (Option<u32>, u32, f64, Vec<f64>, Vec<f64>);

    /// A run of one prompt with these rows of probes of a graph of ten nodes.
    fn run_of(rows: &[Row]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let job = store::Job {
            engine_version: "1".to_owned(),
            description: serde_json::json!({}),
            command: vec![],
            device: serde_json::Value::Null,
        };
        let prompts = ["p".to_owned()];
        let options = store::Options::default();
        let mut run =
            store::Run::create_or_resume(folder.path(), &job, &[QUADRATURE], &prompts, options)
                .unwrap();
        let mut writer = run.prompt(0).unwrap();
        let n = rows.len();
        let numbers = |value: u32| store::Column::from(vec![value; n]);
        let columns = vec![
            ("preset", store::Column::from(vec!["controlled"; n])),
            ("laplacian", store::Column::from(vec!["symmetric-normalized"; n])),
            ("layer", numbers(3)),
            ("head", store::Column::from(vec![None::<u32>; n])),
            ("probe", store::Column::from(rows.iter().map(|row| row.0).collect::<Vec<_>>())),
            ("n_nodes", numbers(10)),
            ("dimension", store::Column::from(rows.iter().map(|row| row.1).collect::<Vec<_>>())),
            ("trace", store::Column::from(rows.iter().map(|row| row.2).collect::<Vec<_>>())),
            ("steps", numbers(2)),
            ("seed", store::Column::from(vec![1u64; n])),
            ("alpha", store::Column::from(rows.iter().map(|r| r.3.clone()).collect::<Vec<_>>())),
            ("beta", store::Column::from(rows.iter().map(|r| r.4.clone()).collect::<Vec<_>>())),
        ];
        writer.rows(QUADRATURE.name, columns).unwrap();
        run.commit(writer).unwrap();
        run.finish().unwrap();
        folder
    }

    /// Eight probes that see the eigenvalues 0.9 and 1.1 alike.
    fn sound() -> Vec<Row> {
        (0..8).map(|k| (Some(k), 9, 9.0, vec![1.0, 1.0], vec![0.1])).collect()
    }

    #[test]
    fn kept_coefficients_are_evaluated() {
        let run = run_of(&sound());
        let arguments = Arguments { beta: Some(2.0), ..Arguments::default() };
        let found =
            functional(run.path(), FunctionalKind::PartitionFunction, &arguments, &Of::default())
                .unwrap();
        let expected = 1.0 + 4.5 * ((-1.8f64).exp() + (-2.2f64).exp());
        let [graph] = found.graphs.as_slice() else { panic!("{found:?}") };
        let [measured] = graph.values.as_slice() else { panic!("{found:?}") };
        assert!((measured.value - expected).abs() < 1e-12 && measured.error < 1e-12);
        // One step sees the eigenvalue 1 alone.
        let one_step = 1.0 + 9.0 * (-2.0f64).exp();
        assert!((measured.truncation - (expected - one_step)).abs() < 1e-12);
        assert_eq!(found.means.len(), 1);
    }

    #[test]
    fn damaged_coefficients_are_refused() {
        type Damage = fn(&mut Vec<Row>);
        let damages: [(&str, Damage); 13] = [
            ("not numbered from 0", |rows| rows[0].0 = Some(1)),
            ("not numbered from 0", |rows| rows[5].0 = Some(4)),
            ("not numbered from 0", |rows| rows[5].0 = Some(u32::MAX)),
            ("not numbered from 0", |rows| rows[5].1 = 10),
            ("not numbered from 0", |rows| rows[5].2 = 9.5),
            ("not numbered from 0", |rows| rows[5].0 = Some(0)),
            ("number of probes is 5", |rows| rows.truncate(5)),
            ("number of probes is 0", |rows| {
                rows.truncate(1);
                rows[0].0 = None;
            }),
            ("dimension is 3", |rows| rows.iter_mut().for_each(|row| row.1 = 3)),
            ("trace is NaN", |rows| rows.iter_mut().for_each(|row| row.2 = f64::NAN)),
            ("α holds inf", |rows| rows[2].3[1] = f64::INFINITY),
            ("α of a probe has shape [3]", |rows| rows[2].3.push(1.0)),
            ("eigenvalue of the coefficients", |rows| rows[2].3[0] = -3.0),
        ];
        for (what, damage) in damages {
            let mut rows = sound();
            damage(&mut rows);
            let run = run_of(&rows);
            let of = Of::default();
            let found =
                functional(run.path(), FunctionalKind::HeatCapacity, &Arguments::default(), &of);
            let error = found.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(what) && text.contains("layer 3"), "{what}: {text}");
            assert_eq!(error.fault(), crate::Fault::Model, "{text}");
        }
    }
}
