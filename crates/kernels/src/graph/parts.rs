//! Graphs made of parts of others: leading blocks, and rows one after another.

use super::{LANES, OP, ROWS, SymmetricGraph, Tile, block_start};
use crate::{Error, Result};

impl SymmetricGraph {
    /// The graph among the first `n` nodes. Of a causal pattern it is the graph of the
    /// first `n` tokens' own pattern, since what they attend to does not depend on
    /// those after them.
    ///
    /// ```
    /// use kernels::graph::{PatternView, SymmetricGraph};
    /// let a = [1.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5];
    /// let whole = SymmetricGraph::from_pattern(PatternView::new(&a, 3, 3)?)?;
    /// let leading = whole.leading(2)?;
    /// assert_eq!(leading.weight(1, 0), 0.25);
    /// assert_eq!(leading.degrees(), [1.25, 0.75]);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Range`] for more nodes than there are.
    pub fn leading(&self, n: usize) -> Result<Self> {
        if n > self.n_nodes {
            let expected = format_args!("at most {}", self.n_nodes);
            return Err(Error::range(OP, "number of nodes", expected, n));
        }
        let blocks = n.div_ceil(LANES);
        let mut tiles = self.tiles[..block_start(blocks)].to_vec();
        let kept = n % LANES;
        if kept > 0 {
            let last = blocks - 1;
            for r in 0..LANES {
                let half = block_start(last) + r / ROWS * (last + 1);
                let rows = tiles[half..=half + last].iter_mut().map(|tile| &mut tile.0[r % ROWS]);
                for (block, weights) in rows.enumerate() {
                    let first = if r >= kept { 0 } else { kept };
                    if r >= kept || block == last {
                        weights[first..].fill(0.0);
                    }
                }
            }
        }
        Ok(Self::with_degrees(n, tiles, self.exact))
    }

    /// A graph whose weights on and below the diagonal arrive row by row, in any
    /// order: `rows(put)` calls `put(i, weights)` with `W_i0 … W_ii`.
    pub(crate) fn from_rows(n: usize, rows: impl FnOnce(&mut dyn FnMut(usize, &[f32]))) -> Self {
        let mut tiles = vec![Tile::ZERO; block_start(n.div_ceil(LANES))];
        let mut put = |i: usize, j: usize, weight: f32| {
            let (block, row) = (i / LANES, i % LANES);
            let half = row / ROWS * (block + 1);
            tiles[block_start(block) + half + j / LANES].0[row % ROWS][j % LANES] = weight;
        };
        rows(&mut |i, weights| {
            for (j, weight) in weights.iter().enumerate().take(i + 1) {
                put(i, j, *weight);
                if j / LANES == i / LANES {
                    put(j, i, *weight);
                }
            }
        });
        Self::with_degrees(n, tiles, false)
    }

    /// Adds the degrees to weights.
    pub(super) fn with_degrees(n_nodes: usize, tiles: Vec<Tile>, exact: bool) -> Self {
        let mut graph = Self { n_nodes, tiles, degrees: Vec::new(), exact };
        let ones = vec![1.0; graph.n_padded()];
        let mut degrees = vec![0.0; graph.n_padded()];
        graph.product(&ones, &mut degrees);
        degrees[n_nodes..].fill(0.0);
        graph.degrees = degrees;
        graph
    }
}
