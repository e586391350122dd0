//! Fast implementations against the plain ones.

#![allow(clippy::unwrap_used)]

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/dense.rs"]
mod dense;
#[path = "kernels/divergence.rs"]
mod divergence;
#[path = "kernels/elementwise.rs"]
mod elementwise;
#[path = "kernels/graphs.rs"]
mod graphs;
#[path = "kernels/linear.rs"]
mod linear;
#[path = "kernels/mixture.rs"]
mod mixture;
#[path = "kernels/quadrature.rs"]
mod quadrature;
#[path = "kernels/recomputed.rs"]
mod recomputed;
#[path = "kernels/spectral.rs"]
mod spectral;

/// Runs `f` where rayon has this many threads.
fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}
