//! What can go wrong in an analysis.

use hooks::HookPoint;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an analysis was refused or could not finish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A captured tensor holds a number that it cannot hold.
    #[error("`{point}` of prompt {request} holds {value} at {index:?}, expected {expected}")]
    Captured {
        /// The hook point, which names the layer.
        point: HookPoint,
        /// The prompt.
        request: u64,
        /// Where: one index per axis, without the batch axis.
        index: Vec<usize>,
        /// What is there.
        value: f64,
        /// What could have been there.
        expected: &'static str,
    },
    /// A captured tensor has another shape than its hook point.
    #[error("`{point}` of prompt {request} has shape {got:?}, expected {expected}")]
    Shape {
        /// The hook point.
        point: HookPoint,
        /// The prompt.
        request: u64,
        /// What would have fitted.
        expected: String,
        /// The shape it had.
        got: Vec<usize>,
    },
    /// A prompt that arrives in pieces, where the whole is needed at once.
    #[error(
        "prompt {request} goes on at position {offset}: spectra need a prompt's tokens in one pass"
    )]
    Continued {
        /// The prompt.
        request: u64,
        /// Absolute position of the piece's first token.
        offset: usize,
    },
    /// A prefix that is not the beginning of a prompt.
    #[error(
        "prompt {request} has {n_tokens} tokens, and rotary frequencies change above {switch}: its beginning is not that of a prompt of {prefix}; choose prefixes above {switch}, or cut the prompt to {switch} tokens"
    )]
    Prefix {
        /// The prompt.
        request: u64,
        /// Its tokens.
        n_tokens: usize,
        /// Tokens of the prefix.
        prefix: usize,
        /// The most tokens with the usual frequencies.
        switch: usize,
    },
    /// A layer ended before everything planned of it was recorded.
    #[error("`{point}` of prompt {request} was planned and not recorded")]
    Missing {
        /// The hook point.
        point: HookPoint,
        /// The prompt.
        request: u64,
    },
    /// Routing was asked of a model, or of layers, without a mixture of experts.
    #[error(
        "none of the selected layers of this {family} model is a mixture of experts: there is no routing to analyse"
    )]
    NoMixture {
        /// The model's family.
        family: String,
    },
    /// Rows that cannot be summarised together.
    #[error("layer {layer}: {what} is {got} for prompt {request}, expected {expected}")]
    Rows {
        /// The layer.
        layer: usize,
        /// The prompt.
        request: u64,
        /// What does not fit.
        what: &'static str,
        /// What was expected.
        expected: usize,
        /// What the row says.
        got: usize,
    },
    /// Eigenvalues are to be kept, and none are computed.
    #[error(
        "eigenvalues are kept of graphs that are solved densely, and none is; ask for exact spectra, or for the preset paper"
    )]
    NoEigenvalues,
    /// Random probes that cannot be sent.
    #[error(transparent)]
    Probing {
        /// What is wrong with their options.
        source: kernels::Error,
    },
    /// Kept coefficients that are those of no graph.
    #[error("the kept coefficients are damaged: {source}")]
    Coefficients {
        /// What is wrong with them.
        source: kernels::Error,
    },
    /// A numeric operation failed.
    #[error("layer {layer} of prompt {request}: {source}")]
    Kernel {
        /// The layer.
        layer: usize,
        /// The prompt.
        request: u64,
        /// The operation's own error.
        source: kernels::Error,
    },
    /// Logits that cannot be compared.
    #[error("logits of text {text}: {source}")]
    Logits {
        /// The text's number.
        text: usize,
        /// The operation's own error.
        source: kernels::Error,
    },
    /// A hook point could not be planned or read.
    #[error(transparent)]
    Hooks(#[from] hooks::Error),
    /// A captured tensor could not be read.
    #[error("`{point}` of prompt {request}: {source}")]
    Tensor {
        /// The hook point.
        point: HookPoint,
        /// The prompt.
        request: u64,
        /// candle's own error.
        source: candle_core::Error,
    },
}

/// A sink hands its errors to the forward pass, and those of the hooks unwrapped.
impl From<Error> for hooks::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Hooks(error) => error,
            error => Self::sink(error),
        }
    }
}
