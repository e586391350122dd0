//! Linear maps that read the same input.

use candle_core::{D, Tensor};
use kernels::linear::Linear;

use crate::Result;
use crate::weights::{Part, Weights};

/// Several projections of one input, computed as one product where their weights
/// are stored alike; the outputs are then views of it.
#[derive(Clone, Debug)]
pub(crate) struct Projections {
    /// One for all parts, or one each.
    linears: Vec<Linear>,
    /// Output widths of the parts.
    widths: Vec<usize>,
}

impl Projections {
    /// Loads the parts' weights and, where there are any, biases.
    pub(crate) fn load(
        weights: &dyn Weights,
        parts: &[Part],
        d_in: usize,
        bias: bool,
    ) -> Result<Self> {
        let matrices = weights.matrices(parts, d_in)?;
        let groups = if matrices.len() == 1 { vec![parts] } else { parts.chunks(1).collect() };
        let linears = matrices
            .iter()
            .zip(groups)
            .map(|(matrix, group)| {
                let names: Vec<_> = group.iter().map(|part| (part.bias(), part.rows)).collect();
                let bias = match group {
                    _ if !bias => None,
                    [part] => Some(part.arrange(weights.vector(&names)?)?),
                    _ => Some(weights.vector(&names)?),
                };
                matrix.linear(bias.as_ref())
            })
            .collect::<Result<_>>()?;
        Ok(Self { linears, widths: parts.iter().map(|part| part.rows).collect() })
    }

    /// Loads several projections that the files keep behind one another in one matrix.
    pub(crate) fn load_fused(
        weights: &dyn Weights,
        part: &Part,
        widths: Vec<usize>,
        d_in: usize,
        bias: bool,
    ) -> Result<Self> {
        let fused = Self::load(weights, std::slice::from_ref(part), d_in, bias)?;
        Ok(Self { widths, ..fused })
    }

    /// The first part's linear map, of projections with one part.
    pub(crate) fn single(&self) -> &Linear {
        &self.linears[0]
    }

    /// The output of projections with one part: `[.., d_out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.single().forward(x)?)
    }

    /// The products with all parts.
    pub(crate) fn outputs(&self, x: &Tensor) -> Result<Outputs<'_>> {
        let product = |linear: &Linear| Ok(linear.forward(x)?);
        let tensors = self.linears.iter().map(product).collect::<Result<_>>()?;
        Ok(Outputs { tensors, widths: &self.widths })
    }
}

/// What [`Projections::outputs`] computed, in one tensor or one for each part.
pub(crate) struct Outputs<'a> {
    tensors: Vec<Tensor>,
    widths: &'a [usize],
}

impl Outputs<'_> {
    /// One part: `[batch, pos, width]`, a view.
    pub(crate) fn part(&self, part: usize) -> Result<Tensor> {
        let (tensor, start) = self.place(part);
        Ok(tensor.narrow(D::Minus1, start, self.widths[part])?)
    }

    /// One part by heads: `[batch, pos, head, d_head]`, a view.
    pub(crate) fn heads(&self, part: usize, d_head: usize) -> Result<Tensor> {
        let (tensor, start) = self.place(part);
        let (batch, pos, width) = tensor.dims3()?;
        // Split while the last axis is whole: afterwards that would be a copy.
        let heads = tensor.reshape((batch, pos, width / d_head, d_head))?;
        Ok(heads.narrow(2, start / d_head, self.widths[part] / d_head)?)
    }

    /// The tensor that holds a part, and where the part begins in it.
    fn place(&self, part: usize) -> (&Tensor, usize) {
        match self.tensors.as_slice() {
            [fused] => (fused, self.widths[..part].iter().sum()),
            several => (&several[part], 0),
        }
    }
}
