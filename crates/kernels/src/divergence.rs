//! How far two models' predictions of the next token lie apart.
//!
//! Logits `x` and `y` of one position stand for `ln p_i = x_i − lse(x)` and
//! `ln q_i = y_i − lse(y)`, where `lse(x) = max x + ln Σ exp(x_i − max x)`. Then
//! `KL(p‖q) = Σ p_i (ln p_i − ln q_i)`, and the surprisal of token `t` is
//! `−ln p_t`, all in nats.
//!
//! Logarithms of probabilities are differences of logits and never logarithms of
//! exponentials, so that a token with a probability below the smallest number
//! still has its own. Everything is in `f64`: a divergence is a small difference
//! of large terms.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::tensor::Values;
use crate::{Error, Result};

const OP: &str = "divergence";

/// How the predictions `p` and `q` of one position differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// `KL(p‖q)`, in nats.
    pub forward: f64,
    /// `KL(q‖p)`, in nats.
    pub reverse: f64,
    /// Whether both find the same token most likely, ties to the lower index.
    pub same_top: bool,
    /// `max |x_i − y_i|` over the vocabulary.
    pub largest_difference: f64,
}

/// Compares the predictions at each position.
///
/// # Shapes
///
/// `p` and `q`: logits, `[pos, d_vocab]`. One result for each position.
///
/// # Numerics
///
/// Sums in `f64` in the order of the vocabulary. Equal logits give exactly 0;
/// otherwise a divergence of almost equal ones may come out negative by some
/// `1e-15` of the largest `|ln p_i − ln q_i|`.
///
/// # Errors
///
/// [`Error::Shape`] unless both have this shape and at least one token,
/// [`Error::NonFinite`] for a NaN or an infinity, [`Error::DType`],
/// [`Error::Device`], [`Error::NonContiguous`].
///
/// # References
///
/// Kullback and Leibler, "On information and sufficiency", Ann. Math. Statist. 22 (1951), eq. 2.4.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use kernels::divergence::divergence;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // p = (1/2, 1/2) and q = (3/4, 1/4).
/// let p = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let q = Tensor::new(&[[3f32.ln(), 0.0]], &Device::Cpu)?;
/// let found = divergence(&p, &q)?[0];
/// assert!((found.forward - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-7);
/// assert!(found.same_top); // both halves of p tie, and the lower index wins
/// # Ok(())
/// # }
/// ```
pub fn divergence(p: &Tensor, q: &Tensor) -> Result<Vec<Divergence>> {
    let (p, q) = (Values::new(OP, "p", p)?, Values::new(OP, "q", q)?);
    let &[n, width] = p.dims() else {
        return Err(Error::shape(OP, "p", "[pos, d_vocab]", p.dims()));
    };
    if width == 0 {
        return Err(Error::shape(OP, "p", "[pos, d_vocab] with at least one token", p.dims()));
    }
    if q.dims() != p.dims() {
        return Err(Error::shape(OP, "q", format!("that of p, {:?}", p.dims()), q.dims()));
    }
    let (p, q) = (p.rows(), q.rows());
    (0..n)
        .into_par_iter()
        .map(|row| {
            let (x, y) = (p.row(row), q.row(row));
            finite("p", row, x)?;
            finite("q", row, y)?;
            Ok(compare(x, y))
        })
        .collect()
}

/// The surprisal `−ln p_t` of one token at each position, in nats.
///
/// # Shapes
///
/// `logits`: `[pos, d_vocab]`; `tokens`: one for each position.
///
/// # Numerics
///
/// As [`divergence`].
///
/// # Errors
///
/// As [`divergence`], and [`Error::Range`] for another number of tokens, or one
/// that the vocabulary does not have.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use kernels::divergence::surprisal;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let logits = Tensor::new(&[[0f32, 0.0, 0.0, 0.0]], &Device::Cpu)?;
/// assert_eq!(surprisal(&logits, &[2])?, [4f64.ln()]);
/// # Ok(())
/// # }
/// ```
pub fn surprisal(logits: &Tensor, tokens: &[u32]) -> Result<Vec<f64>> {
    let values = Values::new(OP, "logits", logits)?;
    let &[n, width] = values.dims() else {
        return Err(Error::shape(OP, "logits", "[pos, d_vocab]", values.dims()));
    };
    if tokens.len() != n {
        return Err(Error::range(
            OP,
            "the number of tokens",
            format!("{n}, as positions"),
            tokens.len(),
        ));
    }
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= width) {
        return Err(Error::range(OP, "a token", format!("below {width}, the vocabulary"), token));
    }
    let rows = values.rows();
    tokens
        .par_iter()
        .enumerate()
        .map(|(row, &token)| {
            let x = rows.row(row);
            finite("logits", row, x)?;
            Ok(log_sum_exp(x) - f64::from(x[token as usize]))
        })
        .collect()
}

fn finite(what: &'static str, row: usize, x: &[f32]) -> Result<()> {
    match x.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(column) => Err(Error::NonFinite {
            op: OP,
            what,
            index: vec![row, column],
            value: f64::from(x[column]),
        }),
    }
}

fn compare(x: &[f32], y: &[f32]) -> Divergence {
    let (lse_x, lse_y) = (log_sum_exp(x), log_sum_exp(y));
    let mut found = Divergence {
        forward: 0.0,
        reverse: 0.0,
        same_top: top(x) == top(y),
        largest_difference: 0.0,
    };
    for (&x, &y) in x.iter().zip(y) {
        let (x, y) = (f64::from(x), f64::from(y));
        let log_ratio = (x - y) - (lse_x - lse_y);
        found.forward += (x - lse_x).exp() * log_ratio;
        found.reverse -= (y - lse_y).exp() * log_ratio;
        found.largest_difference = found.largest_difference.max((x - y).abs());
    }
    found
}

fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
    let sum: f64 = x.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    max + sum.ln()
}

/// The index of the largest, the first of equal ones.
fn top(x: &[f32]) -> usize {
    let mut top = 0;
    for (index, value) in x.iter().enumerate() {
        if *value > x[top] {
            top = index;
        }
    }
    top
}
