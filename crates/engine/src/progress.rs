//! How a run tells its caller how far it is.

/// Told of a run's progress. Libraries do not print; whoever implements this may.
pub trait Progress {
    /// Files of a model come from the hub: `done` of `total` bytes are there, the
    /// last of them those of `file`. [`end`](Self::end) follows the last call.
    fn download(&mut self, _file: &str, _done: u64, _total: u64) {}
    /// The run begins: `tokens` in all, of which `finished` are done already.
    fn begin(&mut self, tokens: u64, finished: u64);
    /// A prompt of so many tokens is done.
    fn advance(&mut self, tokens: u64, prompt: &str);
    /// Something that the user should know.
    fn note(&mut self, text: &str);
    /// No more prompts or bytes follow.
    fn end(&mut self);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: u64, _: u64) {}
    fn advance(&mut self, _: u64, _: &str) {}
    fn note(&mut self, _: &str) {}
    fn end(&mut self) {}
}
