//! Weights of a GGUF file under Hugging Face names.
//!
//! For some architectures llama.cpp stores the query and key rows of each head
//! permuted, so that the two elements of a rotary pair are neighbours. Here they
//! are put back: with `d` rows in a head, row `j·d/2 + i` (half `j`, pair `i`) is
//! the file's row `2i + j`. A row consists of whole blocks, so this moves bytes
//! and leaves quantized weights as they are.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};

use super::convert::{Format, NotFinite, convert_into};
use super::matrix::{Matrix, Rows};
use super::{Part, RowOrder, UnitNorms, Weights};
use crate::gguf::{Gguf, TensorInfo};
use crate::model::WeightDtype;
use crate::{Error, Result};

/// The tensor of rotary frequency divisors.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// The order of the query and key rows of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RotaryRows {
    /// The first elements of all rotary pairs, then the second ones.
    Halves,
    /// Pair by pair.
    Pairs,
}

/// How a family's tensors are named and ordered in GGUF files.
#[derive(Debug)]
pub(crate) struct GgufLayout {
    /// Modules of the whole model: Hugging Face name and own name.
    pub(crate) model: &'static [(&'static str, &'static str)],
    /// What stands before the number of a layer in Hugging Face names.
    pub(crate) layers: &'static str,
    /// Modules of a layer: what stands behind the number, and behind `blk.{l}.`.
    pub(crate) layer: &'static [(&'static str, &'static str)],
    /// Matrices of each expert of a layer.
    pub(crate) experts: &'static [ExpertNames],
    pub(crate) rotary_rows: RotaryRows,
}

/// The names of one matrix of every expert.
#[derive(Debug)]
pub(crate) struct ExpertNames {
    /// Before and behind the expert's number in Hugging Face names.
    pub(crate) before: &'static str,
    pub(crate) behind: &'static str,
    /// The tensor of all experts `[expert, rows, columns]`, behind `blk.{l}.`.
    pub(crate) merged: &'static str,
    /// In older files a tensor for each expert: what stands before its number.
    pub(crate) separate: &'static str,
}

/// Where a tensor stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// The tensor's name.
    name: String,
    /// Its slice along the first axis; `None`: all of it.
    slice: Option<usize>,
}

impl GgufLayout {
    /// Where a Hugging Face tensor may stand in a file.
    fn places(&self, name: &str) -> Vec<Place> {
        let whole = |name: String| Place { name, slice: None };
        let Some((module, kind)) = name.rsplit_once('.') else {
            return Vec::new();
        };
        let own = |table: &[(&str, &'static str)], module: &str| {
            table.iter().find(|(theirs, _)| *theirs == module).map(|(_, own)| *own)
        };
        if let Some(own) = own(self.model, module) {
            return vec![whole(format!("{own}.{kind}"))];
        }
        let rest = module.strip_prefix(self.layers).and_then(|rest| rest.split_once('.'));
        let Some((layer, module)) = rest else {
            return Vec::new();
        };
        if let Some(own) = own(self.layer, module) {
            return vec![whole(format!("blk.{layer}.{own}.{kind}"))];
        }
        let expert = self.experts.iter().find_map(|names| {
            let number = module.strip_prefix(names.before)?.strip_suffix(names.behind)?;
            Some((names, number.parse().ok()?))
        });
        let Some((names, expert)) = expert else {
            return Vec::new();
        };
        let (merged, separate) = (names.merged, names.separate);
        let merged = Place { name: format!("blk.{layer}.{merged}.{kind}"), slice: Some(expert) };
        vec![merged, whole(format!("blk.{layer}.{separate}.{expert}.{kind}"))]
    }
}

/// A GGUF file's tensors.
pub(crate) struct GgufWeights<'a> {
    gguf: &'a Gguf,
    layout: &'static GgufLayout,
    dtype: WeightDtype,
    /// Rows in one head of the query and key projections.
    d_head: usize,
}

impl<'a> GgufWeights<'a> {
    pub(crate) fn new(
        gguf: &'a Gguf,
        layout: &'static GgufLayout,
        dtype: WeightDtype,
        d_head: usize,
    ) -> Self {
        Self { gguf, layout, dtype, d_head }
    }

    /// A tensor that is there and has this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
        let places = self.layout.places(name);
        let found = places.iter().find_map(|place| Some((place, self.gguf.tensor(&place.name)?)));
        match found {
            Some((place, info)) => self.check(place, info, shape),
            None => Err(Error::TensorMissing {
                path: self.gguf.path().to_owned(),
                tensor: places.into_iter().next().map_or(name.to_owned(), |place| place.name),
            }),
        }
    }

    fn check(&self, place: &Place, info: &'a TensorInfo, shape: &[usize]) -> Result<Stored<'a>> {
        let name = place.name.clone();
        let (found, data) = (info.shape.as_slice(), self.gguf.data(info));
        let (own_shape, data) = match (place.slice, found) {
            (None, _) => (found, data),
            (Some(slice), [n, inner @ ..]) if slice < *n => {
                let len = data.len() / n;
                (inner, &data[slice * len..][..len])
            }
            (Some(_), _) => (&[][..], &[][..]),
        };
        if own_shape != shape {
            let slices = place.slice.map(|slice| slice + 1);
            return Err(Error::TensorShape {
                path: self.gguf.path().to_owned(),
                tensor: name,
                expected: slices.into_iter().chain(shape.iter().copied()).collect(),
                found: found.to_vec(),
            });
        }
        let pairs = self.layout.rotary_rows == RotaryRows::Pairs
            && [".attn_q.", ".attn_k."].iter().any(|part| name.contains(part));
        let order = if pairs { RowOrder::Pairs { d_head: self.d_head } } else { RowOrder::Plain };
        let first = place.slice.map_or(0, |slice| slice * own_shape.iter().product::<usize>());
        Ok(Stored { name, format: info.format, shape: own_shape, data, first, order })
    }

    fn not_finite(&self, tensor: &str) -> impl FnOnce(NotFinite) -> Error {
        let (path, tensor) = (self.gguf.path().to_owned(), tensor.to_owned());
        move |bad| Error::NotFinite { path, tensor, index: bad.index, value: bad.value }
    }

    /// The tensor's bytes with its rows in their places.
    fn bytes(&self, stored: &Stored<'a>) -> Cow<'a, [u8]> {
        if stored.order == RowOrder::Plain {
            return Cow::Borrowed(stored.data);
        }
        let rows = stored.shape[0];
        let row_bytes = stored.data.len() / rows;
        let row = |row| {
            let from = stored.order.stored_row(row, rows);
            &stored.data[from * row_bytes..][..row_bytes]
        };
        Cow::Owned((0..rows).flat_map(row).copied().collect())
    }

    fn dense(&self, stored: &[Stored<'a>]) -> Result<Vec<f32>> {
        let len = stored.iter().map(|s| s.shape.iter().product::<usize>()).sum();
        let mut values = vec![0f32; len];
        let mut rest = values.as_mut_slice();
        for tensor in stored {
            let (out, after) = rest.split_at_mut(tensor.shape.iter().product());
            convert_into(tensor.format, &self.bytes(tensor), out)
                .map_err(self.not_finite(&tensor.name))?;
            rest = after;
        }
        Ok(values)
    }

    /// The rows of a matrix.
    fn rows(&self, stored: &Stored<'a>) -> Rows<'a> {
        Rows {
            path: self.gguf.path(),
            tensor: stored.name.clone(),
            format: stored.format,
            data: stored.data,
            first: stored.first,
            rows: stored.shape[0],
            order: stored.order,
        }
    }
}

/// A tensor of the file.
struct Stored<'a> {
    name: String,
    format: Format,
    shape: &'a [usize],
    data: &'a [u8],
    /// Elements of the tensor before the slice.
    first: usize,
    order: RowOrder,
}

impl<'a> Weights for GgufWeights<'a> {
    fn has(&self, name: &str) -> bool {
        self.layout.places(name).iter().any(|place| self.gguf.tensor(&place.name).is_some())
    }

    fn vector(&self, parts: &[(String, usize)]) -> Result<Tensor> {
        let stored =
            parts.iter().map(|(name, len)| self.find(name, &[*len])).collect::<Result<Vec<_>>>()?;
        let values = self.dense(&stored)?;
        let len = values.len();
        Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
    }

    fn matrices(&self, parts: &[Part], columns: usize) -> Result<Vec<Matrix<'_>>> {
        let stored = parts
            .iter()
            .map(|part| self.find(&part.weight(), &[part.rows, columns]))
            .collect::<Result<Vec<_>>>()?;
        let kept = |tensor: &Stored<'_>| match self.dtype {
            WeightDtype::AsStored => tensor.format.encoding(),
            WeightDtype::F32 | WeightDtype::Bf16 | WeightDtype::F16 => None,
        };
        let name = |tensor| kept(tensor).map(|encoding| encoding.name);
        let alike = stored.windows(2).all(|pair| name(&pair[0]) == name(&pair[1]));
        let groups = stored.chunks(if alike { stored.len().max(1) } else { 1 });
        let matrix = |group: &[Stored<'a>]| {
            let rows = group.iter().map(|tensor| self.rows(tensor)).collect();
            Matrix::new(rows, columns, kept(&group[0]))
        };
        Ok(groups.map(matrix).collect())
    }

    fn slices(&self, name: &str, _: usize, _: usize, _: usize) -> Result<Vec<Matrix<'_>>> {
        // Experts are asked for one by one, because `has` knows no fused tensor.
        Err(Error::TensorMissing { path: self.gguf.path().to_owned(), tensor: name.to_owned() })
    }

    fn sizes(&self, dtype: DType) -> Vec<(String, u64)> {
        let bytes = |info: &TensorInfo| match (self.dtype, info.format.encoding()) {
            (WeightDtype::AsStored, Some(_)) => self.gguf.data(info).len(),
            _ => {
                let stored = self.gguf.data(info).len() / info.format.block_bytes();
                stored * info.format.block_len() * dtype.size_in_bytes()
            }
        };
        self.gguf.tensors().map(|(name, info)| (name.to_owned(), bytes(info) as u64)).collect()
    }

    fn unit_norms(&self) -> UnitNorms {
        UnitNorms::Added
    }

    fn frequency_divisors(&self, n_frequencies: usize) -> Result<Option<Tensor>> {
        let Some(info) = self.gguf.tensor(ROPE_DIVISORS) else {
            return Ok(None);
        };
        let stored = self.check(
            &Place { name: ROPE_DIVISORS.to_owned(), slice: None },
            info,
            &[n_frequencies],
        )?;
        let values = self.dense(&[stored])?;
        if let Some(index) = values.iter().position(|value| *value <= 0.0) {
            let bad = NotFinite { index, value: values[index] };
            return Err(self.not_finite(ROPE_DIVISORS)(bad));
        }
        Ok(Some(Tensor::from_vec(values, n_frequencies, &Device::Cpu)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: GgufLayout = GgufLayout {
        model: &[("model.norm", "output_norm")],
        layers: "model.layers.",
        layer: &[("self_attn.q_proj", "attn_q")],
        experts: &[ExpertNames {
            before: "moe.experts.",
            behind: ".w1",
            merged: "ffn_gate_exps",
            separate: "ffn_gate",
        }],
        rotary_rows: RotaryRows::Halves,
    };

    #[test]
    fn names_are_translated() {
        let names = |name| LAYOUT.places(name).into_iter().map(|place| place.name);
        assert!(names("model.norm.weight").eq(["output_norm.weight"]));
        assert!(names("model.layers.12.self_attn.q_proj.bias").eq(["blk.12.attn_q.bias"]));
        assert!(names("model.layers.0.mlp.experts.gate_up_proj").eq([] as [&str; 0]));
        let name = "model.layers.3.moe.experts.7.w1.weight";
        assert!(names(name).eq(["blk.3.ffn_gate_exps.weight", "blk.3.ffn_gate.7.weight"]));
        assert_eq!(LAYOUT.places(name)[0].slice, Some(7));
    }
}
