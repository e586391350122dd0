//! What a model was run on: a row per prompt, and a row per token.

use store::ColumnKind::{Text, U32};
use store::{Column, ColumnSpec, PromptWriter, TableSchema};

use super::{optional_u32s, u32s};
use crate::Result;
use crate::tokens::Input;

/// A row per prompt.
pub const PROMPTS: TableSchema = TableSchema::new(
    "prompts",
    &[
        ColumnSpec::optional(
            "text",
            Text,
            "",
            "the text that was tokenized, as given or as the chat template wrote it, with the \
             response; null for token ids",
        ),
        ColumnSpec::required("n_tokens", U32, "tokens", "tokens that entered the model"),
        ColumnSpec::required("n_cut", U32, "tokens", "tokens cut off at the end by a limit"),
        ColumnSpec::optional(
            "n_context",
            U32,
            "tokens",
            "those before the response; null without a response",
        ),
    ],
);

/// A row per token.
pub const TOKENS: TableSchema = TableSchema::new(
    "tokens",
    &[
        ColumnSpec::required("position", U32, "", "position in the sequence, from 0"),
        ColumnSpec::required("token_id", U32, "", "entry of the vocabulary"),
        ColumnSpec::optional("token", Text, "", "the token's text in the vocabulary"),
        ColumnSpec::optional(
            "start",
            U32,
            "characters",
            "first character of the text that the token covers; null for added tokens",
        ),
        ColumnSpec::optional("end", U32, "characters", "one past the last such character"),
    ],
);

/// Adds a prompt's rows.
pub(crate) fn write(input: &Input, writer: &mut PromptWriter) -> Result<()> {
    let one = [input];
    writer.rows(
        PROMPTS.name,
        vec![
            ("text", Column::from(vec![input.text.as_deref()])),
            ("n_tokens", u32s(&one, |input| input.tokens.len())),
            ("n_context", optional_u32s(&one, |input| input.n_context)),
            ("n_cut", u32s(&one, |input| input.n_cut)),
        ],
    )?;
    let positions: Vec<usize> = (0..input.tokens.len()).collect();
    let span = |position: &usize| input.spans.get(*position).copied().flatten();
    let strings: Vec<Option<&str>> =
        positions.iter().map(|p| input.strings.get(*p).map(String::as_str)).collect();
    writer.rows(
        TOKENS.name,
        vec![
            ("position", u32s(&positions, |position| *position)),
            ("token_id", Column::from(input.tokens.clone())),
            ("token", Column::from(strings)),
            ("start", optional_u32s(&positions, |p| span(p).map(|(start, _)| start))),
            ("end", optional_u32s(&positions, |p| span(p).map(|(_, end)| end))),
        ],
    )?;
    Ok(())
}
