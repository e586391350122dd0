//! Two models' predictions compared over whole texts.
//!
//! What is kept of a position is its divergences, not its logits: texts come in
//! pieces of any size, and memory grows by a few numbers a token.

use candle_core::Tensor;
use kernels::divergence::{self, divergence};

use crate::{Error, Result};

/// A position of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The text's number, as it was added.
    pub text: usize,
    /// The position in it.
    pub position: usize,
}

/// The distribution of a divergence over positions, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of the positions have at most this; of two in the middle, their mean.
    pub median: f64,
    /// The largest.
    pub max: f64,
    /// Where that is, the first of equal ones.
    pub max_at: Place,
}

/// How the predictions of a reference `p` and a model `q` differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Positions compared.
    pub n_positions: usize,
    /// `KL(p‖q)`.
    pub forward: Spread,
    /// `KL(q‖p)`.
    pub reverse: Spread,
    /// Share of positions at which both find the same token most likely.
    pub top_agreement: f64,
    /// The largest `|x_i − y_i|` of logits, over positions and vocabulary.
    pub largest_difference: f64,
    /// Tokens that followed a position and so were predicted.
    pub n_predicted: usize,
    /// `exp` of the mean surprisal of the predicted tokens under `p`; `None` if none was.
    pub reference_perplexity: Option<f64>,
    /// The same under `q`.
    pub perplexity: Option<f64>,
}

/// Collects positions.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    places: Vec<Place>,
    forward: Vec<f64>,
    reverse: Vec<f64>,
    same_top: usize,
    largest_difference: f64,
    predicted: usize,
    /// Sums of surprisal under `p` and under `q`, in nats.
    surprisal: [f64; 2],
}

impl Accumulator {
    /// Adds consecutive positions of a text, the first at `first`.
    ///
    /// # Shapes
    ///
    /// `p` and `q`: logits, `[pos, d_vocab]`. `next`: the token after each of the
    /// positions, in order; the text's last position has none.
    ///
    /// # Errors
    ///
    /// [`Error::Logits`] for logits that are not finite or do not fit one another,
    /// and tokens that are too many or unknown.
    pub fn add(&mut self, first: Place, p: &Tensor, q: &Tensor, next: &[u32]) -> Result<()> {
        let failed = |source| Error::Logits { text: first.text, source };
        let candle = |source| kernels::Error::Candle { op: "divergence", source };
        for (offset, found) in divergence(p, q).map_err(failed)?.into_iter().enumerate() {
            self.places.push(Place { position: first.position + offset, ..first });
            self.forward.push(found.forward);
            self.reverse.push(found.reverse);
            self.same_top += usize::from(found.same_top);
            self.largest_difference = self.largest_difference.max(found.largest_difference);
        }
        for (sum, logits) in self.surprisal.iter_mut().zip([p, q]) {
            let predicting = logits.narrow(0, 0, next.len()).map_err(candle).map_err(failed)?;
            *sum += surprisal(first.text, &predicting, next)?.into_iter().sum::<f64>();
        }
        self.predicted += next.len();
        Ok(())
    }

    /// The comparison; `None` without any position.
    pub fn finish(self) -> Option<Comparison> {
        let n = self.places.len();
        let perplexity =
            |sum: f64| (self.predicted > 0).then(|| (sum / self.predicted as f64).exp());
        Some(Comparison {
            n_positions: n,
            forward: spread(&self.places, &self.forward)?,
            reverse: spread(&self.places, &self.reverse)?,
            top_agreement: self.same_top as f64 / n as f64,
            largest_difference: self.largest_difference,
            n_predicted: self.predicted,
            reference_perplexity: perplexity(self.surprisal[0]),
            perplexity: perplexity(self.surprisal[1]),
        })
    }
}

/// The surprisal `−ln p` of a token behind each position of a text, in nats.
///
/// # Shapes
///
/// `logits`: `[pos, d_vocab]`; `next`: a token for each position.
///
/// # Errors
///
/// [`Error::Logits`], as [`Accumulator::add`].
pub fn surprisal(text: usize, logits: &Tensor, next: &[u32]) -> Result<Vec<f64>> {
    divergence::surprisal(logits, next).map_err(|source| Error::Logits { text, source })
}

fn spread(places: &[Place], values: &[f64]) -> Option<Spread> {
    let (mut max, mut max_at) = (*values.first()?, *places.first()?);
    for (&value, &place) in values.iter().zip(places) {
        if value > max {
            (max, max_at) = (value, place);
        }
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    Some(Spread {
        mean: values.iter().sum::<f64>() / n as f64,
        median: (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
        max,
        max_at,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::{DType, Device};

    use super::*;

    fn logits(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn by_hand() {
        // p is even everywhere; q gives the first token 3/4, 1/2 and 1/4.
        let ln3 = 3f32.ln();
        let p = logits(&[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]);
        let q = logits(&[[ln3, 0.0], [1.0, 1.0], [0.0, ln3]]);
        let mut all = Accumulator::default();
        all.add(Place { text: 0, position: 0 }, &p, &q, &[0, 1]).unwrap();
        let found = all.finish().unwrap();
        let forward = 0.5 * (4.0f64 / 3.0).ln();
        let reverse = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-7, "{a} {b}");
        close(found.forward.mean, 2.0 * forward / 3.0);
        close(found.reverse.max, reverse);
        close(found.forward.median, forward);
        assert_eq!((found.n_positions, found.n_predicted), (3, 2));
        close(found.top_agreement, 2.0 / 3.0);
        close(found.largest_difference, f64::from(ln3));
        close(found.reference_perplexity.unwrap(), 2.0);
        close(found.perplexity.unwrap(), (4.0f64 / 3.0 * 2.0).sqrt());
    }

    #[test]
    fn pieces_are_the_whole() {
        let p = logits(&[[0.0, 1.0], [2.0, -1.0], [0.5, 0.25], [3.0, 0.0]]);
        let q = logits(&[[0.0, 1.5], [2.0, -2.0], [0.5, 0.5], [-3.0, 0.0]]);
        let next = [1, 0, 0];
        let mut whole = Accumulator::default();
        whole.add(Place { text: 7, position: 0 }, &p, &q, &next).unwrap();
        let whole = whole.finish().unwrap();
        assert_eq!(whole.forward.max_at, Place { text: 7, position: 3 });
        let mut pieces = Accumulator::default();
        for (start, len) in [(0, 1), (1, 2), (3, 1)] {
            let part = |x: &Tensor| x.narrow(0, start, len).unwrap();
            let next = &next[start..(start + len).min(3)];
            pieces.add(Place { text: 7, position: start }, &part(&p), &part(&q), next).unwrap();
        }
        let pieces = pieces.finish().unwrap();
        assert_eq!((pieces.forward, pieces.reverse), (whole.forward, whole.reverse));
        assert!((pieces.perplexity.unwrap() - whole.perplexity.unwrap()).abs() < 1e-12);
    }

    #[test]
    fn nothing_and_nonsense() {
        assert_eq!(Accumulator::default().finish(), None);
        let p = logits(&[[0.0, 0.0]]);
        let place = Place { text: 4, position: 0 };
        for (q, next) in [
            (logits(&[[f32::NAN, 0.0]]), &[][..]),
            (Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap(), &[]),
            (p.clone(), &[2]),
            (p.clone(), &[0, 0]),
        ] {
            let error = Accumulator::default().add(place, &p, &q, next).unwrap_err();
            assert!(matches!(error, Error::Logits { text: 4, .. }), "{error}");
        }
    }
}
