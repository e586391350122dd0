//! Attention where a machine runs plans.

use candle_core::Tensor;

use super::{AttentionInput, AttentionOptions, AttentionOutput, AttentionWants, OP, check_rows};
use crate::cuda::attention_pattern::QueriesAndKeys;
use crate::cuda::{self, Machine, attention_pattern, attention_summary, upload};
use crate::{Error, Result};

/// [`super::attention`] on a machine.
pub(super) fn attention(
    machine: Machine,
    input: &AttentionInput,
    options: &AttentionOptions,
    wants: &AttentionWants,
) -> Result<AttentionOutput> {
    let rows = Rows::of(OP, input)?;
    let output = cuda::attention::attention(machine, &rows.input(input), options)?;
    let summary = match wants.summary {
        Some(summary) => {
            let batch = input.lengths.len();
            let boundaries: Vec<usize> =
                attention_summary::boundaries(summary, wants.boundaries, batch).collect();
            let boundaries = upload(OP, "boundary", &boundaries, input.q.device())?;
            // Of keys that a cache has room for, those that are there.
            let ends = input.lengths.iter().zip(input.offsets).map(|(length, at)| length + at);
            let k = input.k.narrow(1, 0, ends.max().unwrap_or(0)).map_err(Error::candle(OP))?;
            let input = AttentionInput { k: &k, ..*input };
            let (input, lse) = (rows.queries_and_keys(&input), &output.lse);
            let window = summary.window;
            Some(attention_summary::attention_summary(
                machine,
                input,
                options,
                lse,
                window,
                &boundaries,
            )?)
        }
        None => None,
    };
    Ok(AttentionOutput { z: output.z, lse: wants.lse.then_some(output.lse), summary })
}

/// [`super::attention_scores`] on a machine.
pub(super) fn scores(
    machine: Machine,
    input: &AttentionInput,
    options: &AttentionOptions,
    heads: &[usize],
) -> Result<Tensor> {
    const OP: &str = "attention_scores";
    let (rows, heads) = (Rows::of(OP, input)?, chosen(OP, input, heads)?);
    attention_pattern::attention_scores(machine, rows.queries_and_keys(input), options, &heads)
}

/// [`super::attention_pattern`] on a machine. The log-sum-exp is that of another pass over these
/// queries: beside writing the pattern it costs little.
pub(super) fn pattern(
    machine: Machine,
    input: &AttentionInput,
    options: &AttentionOptions,
    heads: &[usize],
) -> Result<Tensor> {
    const OP: &str = "attention_pattern";
    let (rows, heads) = (Rows::of(OP, input)?, chosen(OP, input, heads)?);
    let lse = cuda::attention::attention(machine, &rows.input(input), options)?.lse;
    let input = rows.queries_and_keys(input);
    attention_pattern::attention_pattern(machine, input, options, &heads, &lse)
}

/// Heads, in the memory of the input's device.
fn chosen(op: &'static str, input: &AttentionInput, heads: &[usize]) -> Result<Tensor> {
    let h = input.q.dims().get(2).copied().unwrap_or(0);
    if let Some(head) = heads.iter().find(|&&head| head >= h) {
        return Err(Error::range(op, "head", format!("below {h}"), head));
    }
    upload(op, "head", heads, input.q.device())
}

/// Lengths and offsets, checked, in the memory of the input's device.
struct Rows {
    lengths: Tensor,
    offsets: Tensor,
}

impl Rows {
    fn of(op: &'static str, input: &AttentionInput) -> Result<Self> {
        let (&[b, t, ..], &[_, s, ..]) = (input.q.dims(), input.k.dims()) else {
            let expected = "[batch, pos, head, d_head], as k";
            return Err(Error::shape(op, "q", expected, input.q.dims()));
        };
        check_rows([b, t, s], input.lengths, input.offsets)?;
        let device = input.q.device();
        Ok(Self {
            lengths: upload(op, "length", input.lengths, device)?,
            offsets: upload(op, "offset", input.offsets, device)?,
        })
    }

    fn input<'a>(&'a self, input: &AttentionInput<'a>) -> cuda::attention::Input<'a> {
        let AttentionInput { q, k, v, .. } = *input;
        let (lengths, offsets) = (&self.lengths, &self.offsets);
        cuda::attention::Input { q, k, v, lengths, offsets, sinks: None }
    }

    fn queries_and_keys<'a>(&'a self, input: &AttentionInput<'a>) -> QueriesAndKeys<'a> {
        let (lengths, offsets) = (&self.lengths, &self.offsets);
        QueriesAndKeys { q: input.q, k: input.k, lengths, offsets }
    }
}
