//! Prefixes of a prompt, from the one pass over the whole of it.
//!
//! In a causal model nothing at a token depends on the tokens after it. So the
//! pattern of a prefix is the leading block of the prompt's, and its residual stream
//! the first rows: a prefix is measured as a prompt of its own would be, its signal
//! prepared anew, without another pass.
//!
//! The one exception is a model whose rotary frequencies depend on the length
//! (LongRoPE): a prompt that is longer than its original context does not begin as
//! a shorter one would, and such prefixes are refused.

use super::SpectralRow;

/// Which prefixes are measured beside the whole prompt, in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Prefixes {
    /// None.
    #[default]
    None,
    /// Those of these lengths, as far as a prompt has them.
    Lengths(Vec<usize>),
    /// Those of every multiple of a length.
    Every(usize),
}

impl Prefixes {
    /// Lengths for a prompt of so many tokens, ascending, each once.
    ///
    /// ```
    /// use analysis::spectral::Prefixes;
    /// assert_eq!(Prefixes::Every(16).of(40), [16, 32]);
    /// assert_eq!(Prefixes::Lengths(vec![40, 8, 64]).of(40), [8, 40]);
    /// ```
    pub fn of(&self, n_tokens: usize) -> Vec<usize> {
        match self {
            Self::None => Vec::new(),
            Self::Lengths(lengths) => {
                let mut lengths: Vec<usize> =
                    lengths.iter().copied().filter(|t| (1..=n_tokens).contains(t)).collect();
                lengths.sort_unstable();
                lengths.dedup();
                lengths
            }
            Self::Every(0) => Vec::new(),
            Self::Every(step) => (*step..=n_tokens).step_by(*step).collect(),
        }
    }

    /// The first prefix of a prompt that is none of it, where rotary frequencies change
    /// above `switch` tokens.
    pub fn beyond(&self, n_tokens: usize, switch: Option<usize>) -> Option<usize> {
        let switch = switch.filter(|switch| n_tokens > *switch)?;
        self.of(n_tokens).into_iter().find(|t| *t <= switch)
    }
}

/// The diagnostics of a prefix: those of a prompt of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixRow {
    /// Its tokens.
    pub prefix: usize,
    /// What a run on them alone finds.
    pub row: SpectralRow,
}
