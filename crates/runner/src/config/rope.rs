//! Rotary frequencies, from either dialect of a configuration.
//!
//! Older files have `rope_theta` beside the sizes and a `rope_scaling` object;
//! newer ones one `rope_parameters` object with both. The first of
//! `rope_scaling` and `rope_parameters` that holds anything is read, and
//! `rope_theta` is looked for in it before it is looked for in the file, as
//! transformers does.

use std::f64::consts::PI;
use std::path::Path;

use serde_json::Value;

use super::fields::{Fields, bound};
use crate::{Error, Result};

/// How frequencies are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones kept, those between interpolated
    /// by their wavelength.
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
    /// Low frequencies divided by a factor, high ones kept, those between interpolated
    /// by their index.
    Yarn {
        /// The factor for low frequencies.
        factor: f64,
        /// Turns within the original context from which on a frequency is kept.
        beta_fast: f64,
        /// Turns within the original context up to which the factor applies wholly.
        beta_slow: f64,
        /// Whether the bounds between are moved to whole indices.
        truncate: bool,
        /// The original context, in tokens.
        original_context: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// Each frequency divided by a factor of its own, by others in sequences that
    /// are longer than the original context.
    Long {
        /// Divisors in sequences within the original context.
        short_factor: Vec<f64>,
        /// Divisors in longer ones.
        long_factor: Vec<f64>,
        /// The original context, in tokens.
        original_context: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

/// Rotary position embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// Elements of each head that are rotated, the first ones. Of an odd number, the
    /// frequencies are as for that number, and one element more is rotated, to
    /// complete the last pair.
    pub dims: usize,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// Frequencies in radians per position, as layers use them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies {
    pub(crate) usual: Vec<f64>,
    /// Those of sequences with more than so many tokens.
    pub(crate) long: Option<(usize, Vec<f64>)>,
    /// What cosines and sines are multiplied by.
    pub(crate) attention_factor: f64,
}

/// What a family's configuration class brings to the reading of rotary parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    pub(crate) theta: f64,
    /// The key of the base outside of `rope_parameters`.
    pub(crate) theta_key: &'static str,
    /// Whether a part of each head may be rotated.
    pub(crate) partial: Partial,
    /// Context before any extension, where the class has a default for it.
    pub(crate) original_context: Option<usize>,
    /// How names of older files are read.
    pub(crate) names: RopeNames,
}

/// Whether a part of each head may be rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Partial {
    /// All of a head is.
    Never,
    /// The share under this key, with this default.
    Share { key: &'static str, default: f64 },
}

/// What the names of rotary scalings mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopeNames {
    Usual,
    /// `su` and `yarn` stand for `longrope`.
    Phi3,
}

impl RopeDefaults {
    /// Those of most families: base 10,000, whole heads.
    pub(crate) const USUAL: Self = Self {
        theta: 10_000.0,
        theta_key: "rope_theta",
        partial: Partial::Never,
        original_context: None,
        names: RopeNames::Usual,
    };
}

/// Sizes that rotary parameters refer to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeSizes {
    pub(crate) head_dim: usize,
    /// `max_position_embeddings`.
    pub(crate) n_ctx: usize,
}

const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";
const SUPPORTED: &str = "default, linear, dynamic, llama3, yarn and longrope";

impl Rope {
    /// Reads whichever dialect the file is written in.
    pub(crate) fn read(
        fields: &Fields<'_>,
        defaults: &RopeDefaults,
        sizes: RopeSizes,
    ) -> Result<Self> {
        let scaling = fields.object("rope_scaling", "rope_scaling.")?;
        let parameters = fields.object("rope_parameters", "rope_parameters.")?;
        let filled = |object: &Fields<'_>| !object.is_empty();
        let inner = scaling.filter(filled).or(parameters.filter(filled));
        Self::read_from(fields, inner, defaults, sizes)
    }

    /// Reads from one object of parameters, and from the fields beside the sizes
    /// what it leaves out.
    pub(crate) fn read_from(
        fields: &Fields<'_>,
        inner: Option<Fields<'_>>,
        defaults: &RopeDefaults,
        sizes: RopeSizes,
    ) -> Result<Self> {
        let from_inner = |key: &str| match &inner {
            Some(inner) => inner.positive(key),
            None => Ok(None),
        };
        let outer_theta = fields.positive(defaults.theta_key)?;
        let theta = from_inner("rope_theta")?.or(outer_theta).unwrap_or(defaults.theta);
        let share = match defaults.partial {
            Partial::Never => from_inner("partial_rotary_factor")?.unwrap_or(1.0),
            Partial::Share { key, default } => {
                let outer = fields.positive(key)?;
                from_inner("partial_rotary_factor")?.or(outer).unwrap_or(default)
            }
        };
        if share > 1.0 || (share != 1.0 && defaults.partial == Partial::Never) {
            return Err(Error::Unsupported {
                path: fields.path().to_owned(),
                what: "partial_rotary_factor",
                found: share.to_string(),
                supported: match defaults.partial {
                    Partial::Never => "1 for this family",
                    Partial::Share { .. } => "a share of at most 1",
                },
            });
        }
        // A share of a head's width, cut to a whole number.
        let dims = (sizes.head_dim as f64 * share) as usize;
        if dims == 0 || 2 * dims.div_ceil(2) > sizes.head_dim {
            let found = Value::from(share);
            let expected =
                format!("a share of head_dim, {}, that holds rotary pairs", sizes.head_dim);
            return Err(fields.wrong("partial_rotary_factor", &found, expected));
        }
        if dims > bound::ROTATED {
            let expected = format!("at most {} rotated elements", bound::ROTATED);
            return Err(fields.wrong("head_dim", &Value::from(sizes.head_dim), expected));
        }
        let scaling = match &inner {
            Some(inner) => RopeScaling::read(fields, inner, defaults, sizes, dims)?,
            None => RopeScaling::None,
        };
        Self { theta, dims, scaling }.finite(fields.path())
    }

    /// The same, unless a frequency or the attention factor is not a finite number, as
    /// with a base of 1 under YaRN or an original context of 1 under LongRoPE.
    pub(super) fn finite(self, path: &Path) -> Result<Self> {
        let Frequencies { usual, long, attention_factor } = self.frequencies();
        let long = long.into_iter().flat_map(|(_, long)| long);
        let mut numbers = usual.into_iter().chain(long).chain([attention_factor]);
        match numbers.find(|number| !(*number as f32).is_finite()) {
            None => Ok(self),
            Some(found) => Err(Error::Unsupported {
                path: path.to_owned(),
                what: "rotary frequency or attention factor",
                found: found.to_string(),
                supported: "finite numbers",
            }),
        }
    }

    /// The most tokens of a sequence before its frequencies change; `None` if they never do.
    pub(crate) fn switch(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::Long { original_context, .. } => Some(original_context),
            _ => None,
        }
    }

    /// Frequencies in radians per position, `⌈dims / 2⌉` of them:
    /// `f_i = θ^(−2i/dims)`, then scaled.
    ///
    /// # References
    ///
    /// Su et al., RoFormer, arXiv 2104.09864, eq. 15. Llama 3: that of the Llama 3.1
    /// release: with wavelength `λ = 2π/f` and `s = (L/λ − low)/(high − low)`, `f` is
    /// divided by the factor for `s < 0`, kept for `s > 1`, and `(1 − s) f/factor + s f`
    /// between. YaRN: Peng et al., arXiv 2309.00071, section 3.2. LongRoPE: Ding et al.,
    /// arXiv 2402.13753, section 3.
    pub(crate) fn frequencies(&self) -> Frequencies {
        let base: Vec<f64> = (0..self.dims.div_ceil(2))
            .map(|i| self.theta.powf(-((2 * i) as f64) / self.dims as f64))
            .collect();
        let mut frequencies = Frequencies { usual: Vec::new(), long: None, attention_factor: 1.0 };
        frequencies.usual = match &self.scaling {
            RopeScaling::None => base,
            RopeScaling::Linear { factor } => base.iter().map(|f| f / factor).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => {
                let scaled = |f: &f64| {
                    let turns = *original_context as f64 * f / (2.0 * PI);
                    let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - share) * f / factor + share * f
                };
                base.iter().map(scaled).collect()
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_context,
                attention_factor,
            } => {
                frequencies.attention_factor = *attention_factor;
                // The index at which a frequency makes so many turns in the original context.
                let index = |turns: f64| {
                    let context = *original_context as f64;
                    self.dims as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (index(*beta_fast), index(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(self.dims as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scaled = |(i, f): (usize, &f64)| {
                    let share = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    share * f / factor + (1.0 - share) * f
                };
                base.iter().enumerate().map(scaled).collect()
            }
            RopeScaling::Long { short_factor, long_factor, original_context, attention_factor } => {
                let divided = |factors: &[f64]| {
                    base.iter().zip(factors).map(|(f, factor)| f / factor).collect::<Vec<_>>()
                };
                frequencies.attention_factor = *attention_factor;
                frequencies.long = Some((*original_context, divided(long_factor)));
                divided(short_factor)
            }
        };
        frequencies
    }
}

impl RopeScaling {
    fn read(
        fields: &Fields<'_>,
        inner: &Fields<'_>,
        defaults: &RopeDefaults,
        sizes: RopeSizes,
        dims: usize,
    ) -> Result<Self> {
        let kind = match inner.text("rope_type")? {
            Some(kind) => kind,
            None => inner.text("type")?.unwrap_or("default"),
        };
        let required = |key: &str| inner.positive(key)?.ok_or_else(|| inner.missing(key));
        let original_context = || -> Result<usize> {
            let outer = fields.size(ORIGINAL_CONTEXT, bound::CONTEXT)?;
            // A class that has a default for it never looks into the object.
            let inner = match defaults.original_context {
                Some(default) => Some(default),
                None => inner.size(ORIGINAL_CONTEXT, bound::CONTEXT)?,
            };
            Ok(outer.or(inner).unwrap_or(sizes.n_ctx))
        };
        Ok(match (kind, defaults.names) {
            // The dynamic factor only acts on sequences beyond the context, which are refused.
            ("default" | "dynamic", _) => Self::None,
            ("linear", _) => Self::Linear { factor: required("factor")? },
            ("llama3", _) => {
                let low_freq_factor = required("low_freq_factor")?;
                let high_freq_factor = required("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    let found = high_freq_factor.into();
                    let expected = format!("more than low_freq_factor, {low_freq_factor}");
                    return Err(inner.wrong("high_freq_factor", &found, expected));
                }
                Self::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_context: original_context()?,
                }
            }
            ("longrope", _) | ("su" | "yarn", RopeNames::Phi3) => {
                let original_context = original_context()?;
                let factor = match inner.positive("factor")? {
                    Some(factor) => factor,
                    None => sizes.n_ctx as f64 / original_context as f64,
                };
                let attention_factor = match inner.positive("attention_factor")? {
                    Some(given) => given,
                    None => long_attention_factor(factor, original_context),
                };
                Self::Long {
                    short_factor: inner.positives("short_factor", dims.div_ceil(2))?,
                    long_factor: inner.positives("long_factor", dims.div_ceil(2))?,
                    original_context,
                    attention_factor,
                }
            }
            ("yarn", RopeNames::Usual) => {
                let original_context = original_context()?;
                let factor = match inner.positive("factor")? {
                    Some(factor) => factor,
                    None => sizes.n_ctx as f64 / original_context as f64,
                };
                let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let attention_factor = match (
                    inner.positive("attention_factor")?,
                    inner.number("mscale")?.filter(|m| *m != 0.0),
                    inner.number("mscale_all_dim")?.filter(|m| *m != 0.0),
                ) {
                    (Some(given), _, _) => given,
                    (None, Some(m), Some(all)) => scale(m) / scale(all),
                    (None, _, _) => scale(1.0),
                };
                Self::Yarn {
                    factor,
                    beta_fast: inner.positive("beta_fast")?.unwrap_or(32.0),
                    beta_slow: inner.positive("beta_slow")?.unwrap_or(1.0),
                    truncate: inner.flag("truncate")?.unwrap_or(true),
                    original_context,
                    attention_factor,
                }
            }
            (other, _) => {
                return Err(Error::Unsupported {
                    path: fields.path().to_owned(),
                    what: "rope_type",
                    found: other.chars().take(80).collect(),
                    supported: SUPPORTED,
                });
            }
        })
    }
}

/// What LongRoPE multiplies cosines and sines by, where the file does not say:
/// `√(1 + ln factor / ln L)` with the original context `L`.
pub(crate) fn long_attention_factor(factor: f64, original_context: usize) -> f64 {
    if factor <= 1.0 {
        return 1.0;
    }
    (1.0 + factor.ln() / (original_context as f64).ln()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one() {
        let rope = Rope { theta: 10_000.0, dims: 4, scaling: RopeScaling::None };
        let f = rope.frequencies().usual;
        assert_eq!(f.len(), 2);
        assert_eq!(f[0], 1.0);
        assert!((f[1] - 0.01).abs() < 1e-15);
        let linear = Rope { scaling: RopeScaling::Linear { factor: 4.0 }, ..rope };
        assert_eq!(linear.frequencies().usual[0], 0.25);
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let plain = Rope { theta: 500_000.0, dims: 128, scaling: RopeScaling::None };
        let scaled = Rope { scaling, ..plain.clone() }.frequencies().usual;
        let plain = plain.frequencies().usual;
        assert_eq!(plain[0], scaled[0]);
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-15);
        let between = scaled.iter().zip(&plain).filter(|&(s, p)| {
            let ratio = s / p;
            ratio > 0.126 && ratio < 0.999
        });
        assert!(between.count() > 0);
    }
}
