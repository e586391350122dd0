//! Plain implementations: loops and `f64`, the specification of the fast ones.

mod attention;
mod divergence;
mod eigh;
mod elementwise;
mod graph;
mod linear;
mod moe;
mod router;
mod signal;

pub use attention::{AttentionCase, AttentionValues, attention};
pub use divergence::{kl_divergence, surprisal};
pub use eigh::eigh;
pub use elementwise::{activation, cache_append, layer_norm, rms_norm, rotary, soft_cap, softmax};
pub use graph::{laplacian, symmetric_weights};
pub use linear::linear;
pub use moe::moe_token;
pub use router::route_softmax_top_k;
pub use signal::{
    density_of_states, diffuse, dirichlet_energy, energy_share_from, entropy, form_factor,
    free_energy_and_heat_capacity, heat_trace, hidden_score, mode_energies, moments, spacing_ratio,
    weighted_energy,
};
