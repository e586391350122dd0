//! Batches of rows, and the activations recorded for them.

use candle_core::Tensor;

use crate::{Error, HookPoint, Request, Result};

/// One row of a batch: the tokens of one request that enter the model together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The caller's number for the request; a request's decode steps share it.
    pub request: u64,
    /// Token ids. Their number is the row's valid length.
    pub tokens: Vec<u32>,
    /// Absolute position of the first of them.
    pub offset: usize,
}

/// Rows that go through the model together, padded on the right to the longest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    rows: Vec<Row>,
    /// One entry per row.
    boundaries: Vec<Option<usize>>,
}

impl Batch {
    /// A batch of these rows.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyBatch`] without rows, or if a row has no token.
    pub fn new(rows: Vec<Row>) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::EmptyBatch { row: 0 });
        }
        match rows.iter().position(|row| row.tokens.is_empty()) {
            Some(row) => Err(Error::EmptyBatch { row }),
            None => Ok(Self { boundaries: vec![None; rows.len()], rows }),
        }
    }

    /// The same rows, each with the absolute position at which its context ends and what
    /// the model generated begins; those for which the list is too short have none.
    #[must_use]
    pub fn with_boundaries(mut self, mut boundaries: Vec<Option<usize>>) -> Self {
        boundaries.resize(self.rows.len(), None);
        self.boundaries = boundaries;
        self
    }

    /// For each row, the position that it was given by [`Batch::with_boundaries`].
    pub fn boundaries(&self) -> &[Option<usize>] {
        &self.boundaries
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Tokens in the longest row: the length of position axes.
    pub fn padded_len(&self) -> usize {
        self.rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0)
    }

    /// Valid tokens of each row.
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.tokens.len()).collect()
    }

    /// Absolute position of each row's first token.
    pub fn offsets(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.offset).collect()
    }
}

/// A tensor handed to a sink, borrowed until `record` returns.
///
/// Its axes are the batch axis and those of its site
/// ([`Site::axes`](crate::Site::axes)). Entries beyond a row's valid length are
/// undefined. The head and position axes may hold fewer entries than the model
/// has; [`select`](Activation::select) takes care of both.
#[derive(Clone, Copy, Debug)]
pub struct Activation<'a> {
    /// The values, `[batch, axes of the site…]`.
    pub tensor: &'a Tensor,
    /// Heads that the head axis holds, in this order; `None`: all of them.
    pub heads: Option<&'a [usize]>,
    /// For each row, positions within the row that the position axis holds, in
    /// this order; `None`: all of them.
    pub positions: Option<&'a [Vec<usize>]>,
    /// The rows.
    pub batch: &'a Batch,
}

impl<'a> Activation<'a> {
    /// An activation that holds every head and position.
    pub fn new(tensor: &'a Tensor, batch: &'a Batch) -> Self {
        Self { tensor, heads: None, positions: None, batch }
    }

    /// The same, holding these heads only.
    pub fn with_heads(self, heads: &'a [usize]) -> Self {
        Self { heads: Some(heads), ..self }
    }

    /// The same, holding these positions of each row only.
    pub fn with_positions(self, positions: &'a [Vec<usize>]) -> Self {
        Self { positions: Some(positions), ..self }
    }

    /// What a request wants of one row, without padding and without the batch axis.
    ///
    /// Key axes run over all keys that the row can see, from absolute position 0.
    /// The result may be a view; a sink that keeps it should copy it.
    ///
    /// # Errors
    ///
    /// [`Error::NotHeld`] if a wanted row, head or position is not there,
    /// [`Error::Rank`] if the tensor's axes are not those of the point.
    pub fn select(&self, point: HookPoint, row: usize, request: &Request) -> Result<Tensor> {
        let site = point.site();
        if self.tensor.rank() != site.axes().len() + 1 {
            return Err(Error::Rank {
                point,
                expected: site.axes().len(),
                got: self.tensor.dims().to_vec(),
            });
        }
        let info = self.batch.rows().get(row).ok_or(Error::NotHeld { what: "row", index: row })?;
        let mut selected = self.tensor.get(row)?;
        if let Some(axis) = site.key_axis() {
            selected = selected.narrow(axis, 0, info.offset + info.tokens.len())?;
        }
        if let Some(axis) = site.position_axis() {
            let wanted = self.row_positions(row, request)?;
            let places =
                places(self.positions.map(|held| held[row].as_slice()), &wanted, "position")?;
            selected = take(&selected, axis, &places)?;
        }
        if let (Some(axis), Some(wanted)) = (site.head_axis(), &request.heads) {
            selected = take(&selected, axis, &places(self.heads, wanted, "head")?)?;
        }
        Ok(selected)
    }

    /// The positions, within the row, that a request wants of it.
    ///
    /// # Errors
    ///
    /// [`Error::NotHeld`] if there is no such row.
    pub fn row_positions(&self, row: usize, request: &Request) -> Result<Vec<usize>> {
        let missing = Error::NotHeld { what: "row", index: row };
        let info = self.batch.rows().get(row).ok_or(missing)?;
        Ok(request.positions.resolve(info.offset, info.tokens.len()))
    }
}

/// Where the wanted indices stand among the held ones.
fn places(held: Option<&[usize]>, wanted: &[usize], what: &'static str) -> Result<Vec<usize>> {
    match held {
        None => Ok(wanted.to_vec()),
        Some(held) => wanted
            .iter()
            .map(|&index| {
                held.iter().position(|&h| h == index).ok_or(Error::NotHeld { what, index })
            })
            .collect(),
    }
}

/// The entries at `places` along an axis: a view where they are consecutive.
fn take(tensor: &Tensor, axis: usize, places: &[usize]) -> Result<Tensor> {
    let len = tensor.dim(axis)?;
    if let Some(&index) = places.iter().find(|&&place| place >= len) {
        return Err(Error::NotHeld { what: "entry", index });
    }
    let first = places.first().copied().unwrap_or(0);
    let consecutive = places.iter().enumerate().all(|(i, &place)| place == first + i);
    if consecutive {
        return Ok(tensor.narrow(axis, first, places.len())?);
    }
    // Fits: each place is below the length of an axis in memory.
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let places = Tensor::new(places, tensor.device())?;
    Ok(tensor.contiguous()?.index_select(&places, axis)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::Positions;

    fn batch() -> Batch {
        Batch::new(vec![
            Row { request: 0, tokens: vec![1, 2, 3], offset: 0 },
            Row { request: 1, tokens: vec![4], offset: 2 },
        ])
        .unwrap()
    }

    fn request(heads: Option<Vec<usize>>, positions: &str) -> Request {
        Request { heads, positions: positions.parse().unwrap() }
    }

    #[test]
    fn padding_is_removed_and_positions_are_chosen() {
        let batch = batch();
        let tensor = Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        let activation = Activation::new(&tensor, &batch);
        let point: HookPoint = "blocks.0.hook_resid_pre".parse().unwrap();
        let all = request(None, "all");
        assert_eq!(activation.select(point, 0, &all).unwrap().dims(), [3, 4]);
        assert_eq!(activation.select(point, 1, &all).unwrap().dims(), [1, 4]);
        let ends = activation.select(point, 0, &request(None, "0,last")).unwrap();
        assert_eq!(ends.to_vec2::<f32>().unwrap(), [[0., 1., 2., 3.], [8., 9., 10., 11.]]);
        assert_eq!(activation.select(point, 1, &request(None, "0-1")).unwrap().dims(), [0, 4]);
        assert!(activation.select(point, 2, &all).is_err());
    }

    #[test]
    fn held_heads_and_positions_are_found() {
        let batch = batch();
        let tensor =
            Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((2, 2, 2, 3)).unwrap();
        let (heads, positions) = ([1, 5], [vec![0, 2], vec![0, 0]]);
        let activation =
            Activation::new(&tensor, &batch).with_heads(&heads).with_positions(&positions);
        let point: HookPoint = "blocks.0.attn.hook_pattern".parse().unwrap();
        let last = activation.select(point, 0, &request(Some(vec![5]), "last")).unwrap();
        assert_eq!(last.to_vec3::<f32>().unwrap(), [[[9., 10., 11.]]]);
        let missing_head = activation.select(point, 0, &request(Some(vec![0]), "last"));
        assert!(matches!(missing_head, Err(Error::NotHeld { what: "head", index: 0 })));
        let missing_position = activation.select(point, 0, &request(Some(vec![1]), "1"));
        assert!(matches!(missing_position, Err(Error::NotHeld { what: "position", index: 1 })));
    }

    #[test]
    fn a_wrong_rank_names_the_point() {
        let batch = batch();
        let tensor = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let point: HookPoint = "blocks.0.hook_resid_pre".parse().unwrap();
        let error = Activation::new(&tensor, &batch)
            .select(point, 0, &Request { heads: None, positions: Positions::All })
            .unwrap_err();
        assert!(error.to_string().contains("blocks.0.hook_resid_pre"));
    }

    #[test]
    fn empty_rows_are_refused() {
        assert!(Batch::new(vec![]).is_err());
        let row = |tokens| Row { request: 0, tokens, offset: 0 };
        assert!(matches!(
            Batch::new(vec![row(vec![1]), row(vec![])]),
            Err(Error::EmptyBatch { row: 1 })
        ));
    }
}
