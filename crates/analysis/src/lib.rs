//! Analyses of what a transformer does while it runs: the spectrum of its
//! attention graphs, and how its mixtures of experts route.
//!
//! The one decision that shapes this crate: an analysis is an
//! [`ActivationSink`](hooks::ActivationSink) that reduces a layer to a few
//! numbers and lets it go, so that the patterns of a whole model are never held.
//! The reductions are plain functions on tensors beside it; they need no model.
//!
//! | analysis | sink | of tensors alone | rows |
//! |---|---|---|---|
//! | spectra | [`SpectralSink`](spectral::SpectralSink) | [`spectral::spectra`], [`spectral::attention_statistics`] | [`SpectralRow`](spectral::SpectralRow), [`AttentionRow`](spectral::AttentionRow), [`LayerAttentionRow`](spectral::LayerAttentionRow) |
//! | routing | [`RoutingSink`](routing::RoutingSink) | [`routing::Accumulator`] | [`RoutingRow`](routing::RoutingRow), [`ExpertRow`](routing::ExpertRow) |

pub mod contrast;
pub mod divergence;
pub mod error;
pub mod routing;
pub mod spectral;
pub mod verdict;

use hooks::Site;

pub use error::{Error, Result};

/// What an analysis is called, does and needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Analysis {
    /// The name it goes by on a command line.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// The activations that it reads, of every layer it looks at.
    pub needs: &'static [Site],
}

/// Every analysis. Adding one is a module and a line here.
pub const ANALYSES: &[Analysis] = &[spectral::ANALYSIS, routing::ANALYSIS];

#[cfg(test)]
mod tests {
    use super::ANALYSES;

    #[test]
    fn names_are_unique() {
        for (i, analysis) in ANALYSES.iter().enumerate() {
            assert!(ANALYSES[..i].iter().all(|other| other.name != analysis.name));
            assert!(!analysis.needs.is_empty());
        }
    }
}
