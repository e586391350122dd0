//! From prompts to the tokens that enter a model.
//!
//! Prompts are tokenized twice: once all of them, before anything is written, so
//! that a prompt that cannot be run is known at once; and again one by one as
//! they are run, so that memory holds one prompt's tokens and not a corpus's.

use runner::{Chat, Date, Message, Source, Special, Tokenizer, Written};
use sha2::{Digest, Sha256};

use crate::prompts::{Content, Prompt};
use crate::{Error, Result};

/// What is tokenized of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Its text, as it was given.
    #[default]
    AsGiven,
    /// What the model's chat template writes for its messages, a text being one
    /// message of the user, and behind them the beginning of an answer. The
    /// template puts its own special tokens around it, and no others are added.
    Chat {
        /// The day that the template prints, if it prints one.
        date: Option<Date>,
    },
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokenization {
    /// Whether the special tokens that the tokenizer puts around a text are added.
    pub special: Special,
    /// What special tokens written in a text are.
    pub written: Written,
    /// What is tokenized of a prompt.
    pub form: Form,
    /// Longer prompts are cut to their first tokens.
    pub max_tokens: Option<usize>,
}

impl Tokenization {
    /// The chat template of a model, if prompts go through it.
    pub(crate) fn chat(&self, source: &Source) -> Result<Option<Chat>> {
        match self.form {
            Form::AsGiven => Ok(None),
            Form::Chat { .. } => Ok(Some(Chat::load(source)?)),
        }
    }
}

/// One prompt as it enters the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The prompt's id.
    pub id: String,
    /// The text that was tokenized, if there was one.
    pub text: Option<String>,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The tokens' texts in the vocabulary; empty without a tokenizer.
    pub strings: Vec<String>,
    /// Characters `start..end` of the text that each token covers; empty
    /// without a tokenizer.
    pub spans: Vec<Option<(usize, usize)>>,
    /// Tokens cut off at the end.
    pub n_cut: usize,
    /// Tokens before the response; `None` without one.
    pub n_context: Option<usize>,
}

/// The prompts of a run, ready to be tokenized for one model.
pub(crate) struct Inputs {
    prompts: Vec<Prompt>,
    tokenizer: Option<Tokenizer>,
    chat: Option<Chat>,
    options: Tokenization,
    n_ctx: usize,
    d_vocab: usize,
}

/// What tokenizing every prompt showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Tokens of each prompt that enter the model.
    pub(crate) tokens: Vec<u32>,
    /// Prompts that were cut.
    pub(crate) n_cut: usize,
    /// SHA-256 of all token ids and texts, in hexadecimal.
    pub(crate) inputs_sha256: String,
}

impl Inputs {
    pub(crate) fn new(
        prompts: Vec<Prompt>,
        mut tokenizer: Option<Tokenizer>,
        chat: Option<Chat>,
        options: Tokenization,
        info: &hooks::ModelInfo,
    ) -> Result<Self> {
        if options.max_tokens == Some(0) {
            return Err(Error::MaxTokens);
        }
        if chat.is_some() && options.written == Written::Plain {
            return Err(Error::PlainChat);
        }
        if let Some(tokenizer) = &mut tokenizer {
            tokenizer.set_written(options.written);
        }
        Ok(Self { prompts, tokenizer, chat, options, n_ctx: info.n_ctx, d_vocab: info.d_vocab })
    }

    pub(crate) fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// Tokenizes every prompt and keeps the lengths.
    ///
    /// # Errors
    ///
    /// The first prompt that cannot be run.
    pub(crate) fn lengths(&self) -> Result<Lengths> {
        let mut lengths = Lengths::default();
        let mut digest = Sha256::new();
        for index in 0..self.prompts.len() {
            let input = self.get(index)?;
            // Fits: bounded by the model's context.
            lengths.tokens.push(u32::try_from(input.tokens.len()).unwrap_or(u32::MAX));
            lengths.n_cut += usize::from(input.n_cut > 0);
            if let Some(n) = input.n_context {
                // No length: what follows it is a boundary.
                digest.update(u64::MAX.to_le_bytes());
                digest.update((n as u64).to_le_bytes());
            }
            // Lengths before what varies in length, so that no two lists look alike.
            let text = input.text.as_deref().unwrap_or_default();
            for len in [input.tokens.len(), text.len()] {
                digest.update((len as u64).to_le_bytes());
            }
            digest.update(text);
            input.tokens.iter().for_each(|id| digest.update(id.to_le_bytes()));
        }
        lengths.inputs_sha256 = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok(lengths)
    }

    /// One prompt, tokenized, cut and checked.
    pub(crate) fn get(&self, index: usize) -> Result<Input> {
        let prompt = &self.prompts[index];
        let mut input = match (&prompt.content, self.options.form) {
            (Content::Tokens(ids), Form::AsGiven) => Input {
                id: prompt.id.clone(),
                text: None,
                tokens: ids.clone(),
                strings: self.strings(ids),
                spans: Vec::new(),
                n_cut: 0,
                n_context: None,
            },
            (Content::Text(text), Form::AsGiven) => {
                self.tokenize(prompt, text.clone(), self.options.special)?
            }
            (Content::Messages(_), Form::AsGiven) => {
                return Err(Error::Conversation { id: prompt.id.clone() });
            }
            (Content::Tokens(_), Form::Chat { .. }) => {
                return Err(Error::ChatTokens { id: prompt.id.clone() });
            }
            (Content::Text(text), Form::Chat { date }) => {
                let user = Message { role: "user".to_owned(), content: text.clone() };
                self.converse(prompt, &[user], date)?
            }
            (Content::Messages(messages), Form::Chat { date }) => {
                self.converse(prompt, messages, date)?
            }
        };
        let limit = self.options.max_tokens.unwrap_or(usize::MAX);
        input.n_cut = input.tokens.len().saturating_sub(limit);
        input.tokens.truncate(limit);
        input.strings.truncate(limit);
        input.spans.truncate(limit);
        input.n_context = input.n_context.map(|n| n.min(limit));
        self.check(&input)?;
        Ok(input)
    }

    /// A prompt's text and its response, tokenized as one: a token belongs to the context
    /// if it begins there.
    fn tokenize(&self, prompt: &Prompt, mut text: String, special: Special) -> Result<Input> {
        let context = prompt.response.as_ref().map(|response| {
            let characters = text.chars().count();
            text.push_str(response);
            characters
        });
        let tokenizer = self.tokenizer.as_ref().ok_or(Error::NoTokenizer)?;
        let encoding = tokenizer.encode(&text, special)?;
        // An empty span is that of a token that is not in the text.
        let span = |(start, end)| (start < end).then_some((start, end));
        let spans: Vec<_> = encoding.offsets.into_iter().map(span).collect();
        let before = |end| {
            let in_response = |span: &Option<(usize, usize)>| span.is_some_and(|(at, _)| at >= end);
            spans.iter().position(in_response).unwrap_or(spans.len())
        };
        Ok(Input {
            id: prompt.id.clone(),
            text: Some(text),
            tokens: encoding.ids,
            strings: encoding.tokens,
            n_cut: 0,
            n_context: context.map(before),
            spans,
        })
    }

    /// A conversation as the model's template writes it, tokenized.
    fn converse(&self, prompt: &Prompt, messages: &[Message], date: Option<Date>) -> Result<Input> {
        let id = &prompt.id;
        let chat = self.chat.as_ref().ok_or_else(|| Error::Conversation { id: id.clone() })?;
        let text = chat.render(messages, date).map_err(|error| match error {
            runner::Error::ChatRefused { message, .. } => {
                Error::ChatRefused { id: id.clone(), message }
            }
            error => error.into(),
        })?;
        self.tokenize(prompt, text, Special::Omit)
    }

    /// The vocabulary's spelling of given ids, if there is a tokenizer.
    fn strings(&self, ids: &[u32]) -> Vec<String> {
        let spell = |tokenizer: &Tokenizer| {
            ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default()).collect()
        };
        self.tokenizer.as_ref().map(spell).unwrap_or_default()
    }

    fn check(&self, input: &Input) -> Result<()> {
        if input.tokens.is_empty() {
            return Err(Error::EmptyPrompt { id: input.id.clone() });
        }
        if input.tokens.len() > self.n_ctx {
            let (tokens, n_ctx) = (input.tokens.len(), self.n_ctx);
            return Err(Error::PromptTokens { id: input.id.clone(), tokens, n_ctx });
        }
        let unknown = |id: &u32| *id as usize >= self.d_vocab;
        match input.tokens.iter().position(unknown) {
            None => Ok(()),
            Some(position) => Err(Error::TokenId {
                id: input.id.clone(),
                position,
                token: input.tokens[position],
                d_vocab: self.d_vocab,
            }),
        }
    }
}
