//! The hidden score of LLM-Check: how much room a text's hidden states fill.
//!
//! `z_t = x_t − mean over features`, and of `Z [T, d]`, a row per token, the mean of
//! the logarithms of all `T` eigenvalues of `ZZᵀ + α·1`, `α` = [`RIDGE`].
//!
//! The decision that shapes this file: no eigenvalue is computed, and neither is `ZZᵀ`.
//! The sum of the logarithms is a log-determinant, and that of `ZZᵀ + α·1` is twice
//! that of the triangle `R` of `[Zᵀ; √α·1] = QR`. Residual streams reach norms of 10⁵,
//! whose squares, rounded, bury a ridge of 10⁻³; singular values of the stack are as
//! far from rounding as `√α` is. With more tokens than features the stack is
//! `[Z; √α·1]`, and the `T − d` eigenvalues beyond are `α`.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::qr::no_pivoting::factor::{
    qr_in_place, qr_in_place_scratch, recommended_block_size,
};
use faer::{Mat, Par, Spec};

use crate::signal::Signal;

/// What is added to every eigenvalue, so that none is 0.
pub const RIDGE: f64 = 0.001;

/// The mean of `ln eig(ZZᵀ + α·1)` in nats, `Z` a signal's rows less each row's mean;
/// `None` without rows.
///
/// ```
/// use kernels::hidden_score::{RIDGE, hidden_score};
/// use kernels::signal::Signal;
/// // Rows (1, −1) and (2, −2) of mean 0: eigenvalues 10 and 0, and the ridge.
/// let signal = Signal::new(vec![3.0, 1.0, 2.0, -2.0], 2, 2)?;
/// let expected = ((10.0 + RIDGE).ln() + RIDGE.ln()) / 2.0;
/// let score = hidden_score(&signal).ok_or("no rows")?;
/// assert!((score - expected).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Numerics
/// `f64`, on one thread. By Householder reflections: each singular value of the stack
/// is found within a modest multiple of `ε` times the largest, whatever the ridge; with
/// fewer tokens than features no token's norm disturbs another's.
///
/// # References
/// LLM-Check, NeurIPS 2024.
pub fn hidden_score(signal: &Signal) -> Option<f64> {
    let (n, d) = (signal.n_nodes(), signal.d());
    if n == 0 {
        return None;
    }
    let size = n.min(d);
    let means: Vec<f64> = signal
        .values()
        .chunks_exact(d.max(1))
        .map(|row| row.iter().sum::<f64>() / d as f64)
        .collect();
    let centred = |row: usize, feature: usize| signal.values()[row * d + feature] - means[row];
    let rows = n.max(d);
    let mut stack =
        Mat::<f64>::from_fn(rows + size, size, |i, j| match (i.checked_sub(rows), n <= d) {
            (Some(below), _) => {
                if below == j {
                    RIDGE.sqrt()
                } else {
                    0.0
                }
            }
            (None, true) => centred(j, i),
            (None, false) => centred(i, j),
        });
    let block = recommended_block_size::<f64>(rows + size, size);
    let mut reflections = Mat::<f64>::zeros(block, size);
    let scratch = qr_in_place_scratch::<f64>(rows + size, size, block, Par::Seq, Spec::default());
    if size > 0 {
        qr_in_place(
            stack.as_mut(),
            reflections.as_mut(),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Spec::default(),
        );
    }
    let logs: f64 = (0..size).map(|i| 2.0 * stack[(i, i)].abs().ln()).sum();
    Some((logs + (n - size) as f64 * RIDGE.ln()) / n as f64)
}
