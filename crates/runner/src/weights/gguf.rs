//! Weights of a GGUF file under Hugging Face names.
//!
//! llama.cpp stores the query and key rows of each head permuted, so that the
//! two elements of a rotary pair are neighbours. Here they are put back: with
//! `d` rows in a head, row `j·d/2 + i` (half `j`, pair `i`) is the file's row
//! `2i + j`. A row consists of whole blocks, so this moves bytes and leaves
//! quantized weights as they are.

use std::borrow::Cow;

use candle_core::{Device, Tensor};

use super::convert::{NotFinite, convert_into};
use super::matrix::{Matrix, Order, Rows};
use super::{Part, Weights};
use crate::gguf::{Gguf, TensorInfo};
use crate::model::WeightDtype;
use crate::{Error, Result};

/// The tensor of rotary frequency divisors.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// A llama file's tensors.
pub(crate) struct GgufWeights<'a> {
    gguf: &'a Gguf,
    dtype: WeightDtype,
    /// Rows in one head of the query and key projections.
    d_head: usize,
}

impl<'a> GgufWeights<'a> {
    pub(crate) fn new(gguf: &'a Gguf, dtype: WeightDtype, d_head: usize) -> Self {
        Self { gguf, dtype, d_head }
    }

    /// A tensor that is there and has this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
        let own_name = own_name(name);
        let path = || self.gguf.path().to_owned();
        let info = own_name.as_deref().and_then(|own| self.gguf.tensor(own));
        let (Some(own_name), Some(info)) = (own_name.clone(), info) else {
            let tensor = own_name.unwrap_or_else(|| name.to_owned());
            return Err(Error::TensorMissing { path: path(), tensor });
        };
        self.check(own_name, info, shape)
    }

    fn check(&self, name: String, info: &'a TensorInfo, shape: &[usize]) -> Result<Stored<'a>> {
        if info.shape != shape {
            return Err(Error::TensorShape {
                path: self.gguf.path().to_owned(),
                tensor: name,
                expected: shape.to_vec(),
                found: info.shape.clone(),
            });
        }
        let rows_permuted = [".attn_q.", ".attn_k."].iter().any(|part| name.contains(part));
        Ok(Stored { name, info, data: self.gguf.data(info), rows_permuted })
    }

    fn not_finite(&self, tensor: &str) -> impl FnOnce(NotFinite) -> Error {
        let (path, tensor) = (self.gguf.path().to_owned(), tensor.to_owned());
        move |bad| Error::NotFinite { path, tensor, index: bad.index, value: bad.value }
    }

    /// The tensor's bytes with its rows in their places.
    fn bytes(&self, stored: &Stored<'a>) -> Cow<'a, [u8]> {
        if !stored.rows_permuted {
            return Cow::Borrowed(stored.data);
        }
        let rows = stored.info.shape[0];
        let (order, row_bytes) = (self.rows(stored).order, stored.data.len() / rows);
        let row = |row| &stored.data[order.stored_row(row) * row_bytes..][..row_bytes];
        Cow::Owned((0..rows).flat_map(row).copied().collect())
    }

    fn dense(&self, stored: &[Stored<'a>]) -> Result<Vec<f32>> {
        let len = stored.iter().map(|s| s.info.shape.iter().product::<usize>()).sum();
        let mut values = vec![0f32; len];
        let mut rest = values.as_mut_slice();
        for tensor in stored {
            let (out, after) = rest.split_at_mut(tensor.info.shape.iter().product());
            convert_into(tensor.info.format, &self.bytes(tensor), out)
                .map_err(self.not_finite(&tensor.name))?;
            rest = after;
        }
        Ok(values)
    }

    /// The rows of a matrix.
    fn rows(&self, stored: &Stored<'a>) -> Rows<'a> {
        let pairs = Order::Pairs { d_head: self.d_head };
        Rows {
            path: self.gguf.path(),
            tensor: stored.name.clone(),
            format: stored.info.format,
            data: stored.data,
            first: 0,
            rows: stored.info.shape[0],
            order: if stored.rows_permuted { pairs } else { Order::Plain },
        }
    }
}

/// A tensor of the file.
struct Stored<'a> {
    name: String,
    info: &'a TensorInfo,
    data: &'a [u8],
    rows_permuted: bool,
}

impl<'a> Weights for GgufWeights<'a> {
    fn has(&self, name: &str) -> bool {
        own_name(name).is_some_and(|name| self.gguf.tensor(&name).is_some())
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
            WeightDtype::AsStored => tensor.info.format.encoding(),
            WeightDtype::F32 => None,
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
        // Mixtures in GGUF have no Hugging Face name here, so none can be found.
        Err(Error::TensorMissing { path: self.gguf.path().to_owned(), tensor: name.to_owned() })
    }

    fn frequency_divisors(&self, n_frequencies: usize) -> Result<Option<Tensor>> {
        let Some(info) = self.gguf.tensor(ROPE_DIVISORS) else {
            return Ok(None);
        };
        let stored = self.check(ROPE_DIVISORS.to_owned(), info, &[n_frequencies])?;
        let values = self.dense(&[stored])?;
        if let Some(index) = values.iter().position(|value| *value <= 0.0) {
            let bad = NotFinite { index, value: values[index] };
            return Err(self.not_finite(ROPE_DIVISORS)(bad));
        }
        Ok(Some(Tensor::from_vec(values, n_frequencies, &Device::Cpu)?))
    }
}

/// The file's name for a Hugging Face tensor of a llama model.
fn own_name(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let own = match module {
        "model.embed_tokens" => "token_embd".to_owned(),
        "model.norm" => "output_norm".to_owned(),
        "lm_head" => "output".to_owned(),
        _ => {
            let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
            let module = match module {
                "input_layernorm" => "attn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "post_attention_layernorm" => "ffn_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            format!("blk.{layer}.{module}")
        }
    };
    Some(format!("{own}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        for (name, own) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(own_name(name).unwrap(), own);
        }
        assert_eq!(own_name("model.layers.0.mlp.experts.gate_up_proj"), None);
    }
}
