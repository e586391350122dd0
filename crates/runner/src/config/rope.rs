//! Rotary frequencies, from either dialect of a configuration.
//!
//! Older files have `rope_theta` beside the sizes and a `rope_scaling` object;
//! newer ones one `rope_parameters` object with both. The first of
//! `rope_scaling` and `rope_parameters` that holds anything is read, and
//! `rope_theta` is looked for in it before it is looked for in the file, as
//! transformers does.

use std::f64::consts::PI;

use super::fields::{Fields, bound};
use crate::{Error, Result};

/// How frequencies are changed for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones kept, those between interpolated.
    Llama3 {
        /// The factor for low frequencies.
        factor: f64,
        /// Original context over the wavelength above which the factor applies wholly.
        low_freq_factor: f64,
        /// Original context over the wavelength below which it does not apply.
        high_freq_factor: f64,
        /// The original context, in tokens.
        original_context: usize,
    },
}

/// Rotary position embedding of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// What is done to it.
    pub scaling: RopeScaling,
}

const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";
const SUPPORTED: &str = "default, linear and llama3";

impl Rope {
    /// Reads whichever dialect the file is written in.
    pub(crate) fn read(fields: &Fields<'_>, default_theta: f64, n_ctx: usize) -> Result<Self> {
        let scaling = fields.object("rope_scaling", "rope_scaling.")?;
        let parameters = fields.object("rope_parameters", "rope_parameters.")?;
        let outer_theta = fields.positive("rope_theta")?;
        let filled = |object: &Fields<'_>| !object.is_empty();
        let Some(inner) = scaling.filter(filled).or(parameters.filter(filled)) else {
            let theta = outer_theta.unwrap_or(default_theta);
            return Ok(Self { theta, scaling: RopeScaling::None });
        };
        let theta = inner.positive("rope_theta")?.or(outer_theta).unwrap_or(default_theta);
        let kind = match inner.text("rope_type")? {
            Some(kind) => Some(kind),
            None => inner.text("type")?,
        };
        if let Some(factor) = inner.positive("partial_rotary_factor")?
            && factor != 1.0
        {
            return Err(Error::Unsupported {
                path: fields.path().to_owned(),
                what: "partial_rotary_factor",
                found: factor.to_string(),
                supported: "1 for this family",
            });
        }
        let required = |key: &str| inner.positive(key)?.ok_or_else(|| inner.missing(key));
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: required("factor")? },
            "llama3" => {
                let low_freq_factor = required("low_freq_factor")?;
                let high_freq_factor = required("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    let found = high_freq_factor.into();
                    let expected = format!("more than low_freq_factor, {low_freq_factor}");
                    return Err(inner.wrong("high_freq_factor", &found, expected));
                }
                RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_context: match fields.size(ORIGINAL_CONTEXT, bound::CONTEXT)? {
                        Some(context) => context,
                        None => inner.size(ORIGINAL_CONTEXT, bound::CONTEXT)?.unwrap_or(n_ctx),
                    },
                }
            }
            other => {
                return Err(Error::Unsupported {
                    path: fields.path().to_owned(),
                    what: "rope_type",
                    found: other.to_owned(),
                    supported: SUPPORTED,
                });
            }
        };
        Ok(Self { theta, scaling })
    }

    /// Frequencies in radians per position, `d_head / 2` of them:
    /// `f_i = θ^(−2i/d_head)`, then scaled.
    ///
    /// # References
    ///
    /// Su et al., RoFormer, arXiv 2104.09864, eq. 15; the Llama 3 scaling is that
    /// of the Llama 3.1 release: with wavelength `λ = 2π/f` and
    /// `s = (L/λ − low)/(high − low)`, `f` is divided by the factor for `s < 0`,
    /// kept for `s > 1`, and `(1 − s) f/factor + s f` between.
    pub fn frequencies(&self, d_head: usize) -> Vec<f64> {
        (0..d_head / 2)
            .map(|i| {
                let f = self.theta.powf(-((2 * i) as f64) / d_head as f64);
                match self.scaling {
                    RopeScaling::None => f,
                    RopeScaling::Linear { factor } => f / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor: low,
                        high_freq_factor: high,
                        original_context,
                    } => {
                        let turns = original_context as f64 * f / (2.0 * PI);
                        let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        (1.0 - share) * f / factor + share * f
                    }
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::None };
        let f = rope.frequencies(4);
        assert_eq!(f.len(), 2);
        assert_eq!(f[0], 1.0);
        assert!((f[1] - 0.01).abs() < 1e-15);
        let linear = Rope { scaling: RopeScaling::Linear { factor: 4.0 }, ..rope };
        assert_eq!(linear.frequencies(4)[0], 0.25);
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(128);
        let scaled = Rope { theta: 500_000.0, scaling }.frequencies(128);
        assert_eq!(plain[0], scaled[0]);
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-15);
        let between = scaled.iter().zip(&plain).filter(|&(s, p)| {
            let ratio = s / p;
            ratio > 0.126 && ratio < 0.999
        });
        assert!(between.count() > 0);
    }
}
