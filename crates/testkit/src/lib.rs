//! What the crates' tests and benches share: comparisons, seeded data, case tables
//! and guard bands.
//!
//! A test that fails panics, with the place and the size of the difference; so
//! does everything here. Comparisons are written `!(difference <= tolerance)`, so
//! that a NaN fails.

#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used)]

pub mod cases;
mod close;
mod data;
mod guard;
pub mod hostile;

pub use close::{Tolerance, assert_bits, assert_close, assert_tensor_bits, assert_tensor_close};
pub use data::Data;
pub use guard::{guarded, guarded_as};
