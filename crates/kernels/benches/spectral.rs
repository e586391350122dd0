//! Attention graphs and their spectra, on one thread.
//!
//! With `EIGENLENS_DUMP=FOLDER` the patterns are written there as `.npy` files
//! (`head_mean.npy`, `sharp_head.npy`), so that another program can be timed on
//! the same input; with `EIGENLENS_PATTERNS=FOLDER` the square `f32` patterns in
//! the folder's `.npy` files are timed too.

#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used)]

use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::eigh::{eigenvalues, eigh};
use kernels::graph::{PatternView, SymmetricGraph};
use kernels::heat::{Probes, heat_estimates};
use kernels::lanczos::{LanczosOptions, extremes};
use kernels::laplacian::{Laplacian, LaplacianOperator};
use kernels::quadrature::{Quadrature, QuadratureOptions};
use kernels::signal::{Signal, dirichlet_energy, mode_energies, mode_energies_f32};

#[path = "../tests/kernels/graphs.rs"]
mod graphs;
use graphs::{Random, attention_like, graph_of, head_mean};

const N: usize = 1024;
const N_HEADS: usize = 9;

/// Heads of mixed sharpness.
fn heads() -> Vec<Vec<f32>> {
    let mut random = Random::new(1);
    let sharpness = (1..=N_HEADS).map(|head| 0.5 * head as f64);
    sharpness.map(|sharpness| attention_like(&mut random, N, sharpness, 4.0)).collect()
}

/// The mean pattern over the heads, and one sharp head.
fn patterns(heads: &[Vec<f32>]) -> [(&'static str, Vec<f32>); 2] {
    let mut mean = vec![0.0f64; N * N];
    for pattern in heads {
        for (mean, a) in mean.iter_mut().zip(pattern) {
            *mean += f64::from(*a) / N_HEADS as f64;
        }
    }
    let sharp = attention_like(&mut Random::new(3), N, 6.0, 4.0);
    [("head_mean", mean.into_iter().map(|a| a as f32).collect()), ("sharp_head", sharp)]
}

/// Version 1.0 of numpy's array format.
fn dump(folder: &Path, name: &str, pattern: &[f32]) {
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({N}, {N}), }}").into_bytes();
    header.resize((10 + header.len() + 1).next_multiple_of(64) - 11, b' ');
    header.push(b'\n');
    let mut file = std::fs::File::create(folder.join(format!("{name}.npy"))).unwrap();
    file.write_all(b"\x93NUMPY\x01\x00").unwrap();
    file.write_all(&u16::try_from(header.len()).unwrap().to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let bytes: Vec<u8> = pattern.iter().flat_map(|a| a.to_le_bytes()).collect();
    file.write_all(&bytes).unwrap();
}

/// The patterns of a folder: name, number of tokens, values.
fn load(folder: &Path) -> Vec<(String, usize, Vec<f32>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "npy"));
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let bytes = std::fs::read(file).unwrap();
        let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        let header = String::from_utf8_lossy(&bytes[10..start]).into_owned();
        assert!(header.contains("'<f4'") && header.contains("False"), "{}", file.display());
        let values: Vec<f32> =
            bytes[start..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let n = values.len().isqrt();
        assert!(header.contains(&format!("({n}, {n})")), "{}", file.display());
        (file.file_stem().unwrap().to_string_lossy().into_owned(), n, values)
    };
    files.iter().map(read).collect()
}

fn spectra(c: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let heads = heads();
    let patterns = patterns(&heads);
    if let Some(folder) = std::env::var_os("EIGENLENS_DUMP") {
        for (name, pattern) in &patterns {
            dump(Path::new(&folder), name, pattern);
        }
    }
    let options = LanczosOptions::default();
    let mut group = c.benchmark_group("spectral");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.bench_function(format!("graph/mean of {N_HEADS}/{N}"), |b| {
        b.iter(|| head_mean(black_box(&heads), N));
    });
    let mut named: Vec<_> =
        patterns.iter().map(|(name, a)| (name.to_string(), N, a.clone())).collect();
    if let Some(folder) = std::env::var_os("EIGENLENS_PATTERNS") {
        named.extend(load(Path::new(&folder)));
    }
    for (name, n, pattern) in &named {
        let n = *n;
        let view = || PatternView::new(pattern, n, n).unwrap();
        group.bench_function(format!("graph/{name}/{n}"), |b| {
            b.iter(|| SymmetricGraph::from_pattern(black_box(view())).unwrap());
        });
        let graph = graph_of(pattern, n);
        for kind in [Laplacian::SymmetricNormalized, Laplacian::Combinatorial] {
            let operator = LaplacianOperator::new(&graph, kind);
            let found = extremes(&operator, &options).unwrap();
            let exact = eigenvalues(&operator.dense().unwrap(), n).unwrap();
            let certified = [found.fiedler.unwrap(), found.lambda_max.unwrap()];
            for (certified, exact) in certified.iter().zip([exact[1], exact[n - 1]]) {
                assert!(certified.residual <= 1e-8 * operator.typical_scale());
                assert!((certified.value - exact).abs() <= certified.residual + 1e-11 * exact);
            }
            eprintln!("{name}, {kind}: {} steps, {certified:?}", found.steps);
            group.bench_function(format!("extremes/{name}/{kind}/{n}"), |b| {
                b.iter(|| {
                    let operator = LaplacianOperator::new(black_box(&graph), kind);
                    extremes(&operator, &options).unwrap()
                });
            });
        }
        group.bench_function(format!("graph+extremes/{name}/{n}"), |b| {
            b.iter(|| {
                let graph = SymmetricGraph::from_pattern(black_box(view())).unwrap();
                let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
                extremes(&operator, &options).unwrap()
            });
        });
    }

    let (_, pattern) = &patterns[0];
    let graph = graph_of(pattern, N);
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let mut random = Random::new(2);
    let d = 576;
    let signal = Signal::new((0..N * d).map(|_| random.normal()).collect(), N, d).unwrap();
    group.bench_function(format!("gram/{N}x{d}"), |b| b.iter(|| signal.gram().unwrap()));
    let gram = signal.gram().unwrap();
    group.bench_function(format!("dirichlet/{N}"), |b| {
        b.iter(|| dirichlet_energy(&operator, &gram).unwrap());
    });
    let (energy, rough) = (signal.energy(), dirichlet_energy(&operator, &gram).unwrap());
    group.bench_function(format!("probes/{N}x{d}"), |b| b.iter(|| Probes::new(&signal, 1)));
    let probes = Probes::new(&signal, 1);
    let times = [1.0, 2.0, 5.0];
    eprintln!("{:?}", heat_estimates(&operator, &probes, energy, rough, times).unwrap());
    group.bench_function(format!("heat/{N}"), |b| {
        b.iter(|| heat_estimates(&operator, &probes, energy, rough, times).unwrap());
    });
    let probes = QuadratureOptions::default();
    group.bench_function(format!("quadrature/{N}"), |b| {
        b.iter(|| Quadrature::run(&operator, &probes).unwrap());
    });
    group.bench_function(format!("moments/{N}"), |b| b.iter(|| operator.spectrum_moments()));

    let n = N / 2;
    let half = PatternView::new(pattern, n, N).unwrap();
    let graph = SymmetricGraph::from_pattern(half).unwrap();
    let operator = LaplacianOperator::new(&graph, Laplacian::SymmetricNormalized);
    let (dense, narrow) = (operator.dense().unwrap(), operator.dense_in::<f32>().unwrap());
    let signal = Signal::new((0..n * d).map(|_| random.normal()).collect(), n, d).unwrap();
    group.bench_function(format!("eigenvalues/{n}"), |b| {
        b.iter(|| eigenvalues(&dense, n).unwrap());
    });
    group.bench_function(format!("eigh/f64/{n}"), |b| {
        b.iter(|| black_box(eigh(&dense, n).unwrap().vectors().nrows()));
    });
    group.bench_function(format!("eigh/f32/{n}"), |b| {
        b.iter(|| black_box(eigh(&narrow, n).unwrap().vectors().nrows()));
    });
    group.bench_function(format!("modes/f64/{n}x{d}"), |b| {
        b.iter(|| mode_energies(&eigh(&dense, n).unwrap(), &signal).unwrap());
    });
    group.bench_function(format!("modes/f32/{n}x{d}"), |b| {
        b.iter(|| mode_energies_f32(&eigh(&narrow, n).unwrap(), &signal).unwrap());
    });
    group.finish();
}

criterion_group!(benches, spectra);
criterion_main!(benches);
