//! Reading a GGUF file's metadata, whose keys begin with the architecture's name.

use super::fields::bound;
use super::rope::{Partial, Rope, RopeDefaults, RopeScaling, RopeSizes, long_attention_factor};
use crate::error::GgufFault;
use crate::gguf::Gguf;
use crate::{Error, Result};

/// The metadata of a file's architecture.
#[derive(Clone, Copy)]
pub(crate) struct GgufFields<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl<'a> GgufFields<'a> {
    pub(crate) fn new(gguf: &'a Gguf, architecture: &'a str) -> Self {
        Self { gguf, architecture }
    }

    pub(crate) fn architecture(&self) -> &'a str {
        self.architecture
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.gguf.has(&self.key(key))
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// The refusal of a key's value.
    pub(crate) fn wrong(&self, key: &str, found: usize, expected: String) -> Error {
        Error::Gguf {
            path: self.gguf.path().to_owned(),
            fault: GgufFault::Key { key: self.key(key), found: found.to_string(), expected },
        }
    }

    /// A size from 1 to `max`.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.gguf.count(&self.key(key), 1..=max)
    }

    /// A size from 1 to `max`, with a value for when it is not there.
    pub(crate) fn size_or(&self, key: &str, max: usize, default: usize) -> Result<usize> {
        if self.has(key) { self.size(key, max) } else { Ok(default) }
    }

    /// A size from 1 to `max` of every layer: one number, or one for each layer, all the same.
    pub(crate) fn layer_size(&self, key: &str, max: usize) -> Result<usize> {
        let name = self.key(key);
        if !self.gguf.has_array(&name) {
            return self.size(key, max);
        }
        let n_layers = self.size("block_count", bound::COUNT)?;
        let sizes = self.gguf.integers(&name)?;
        let first = sizes.first().copied().filter(|_| sizes.len() == n_layers);
        let size = first.filter(|first| sizes.iter().all(|size| size == first));
        let size = size.and_then(|size| usize::try_from(size).ok());
        size.filter(|size| (1..=max).contains(size)).ok_or_else(|| {
            let found = match first {
                Some(_) => "an array of sizes that differ or are out of range".to_owned(),
                None => format!("an array of {}", sizes.len()),
            };
            let expected =
                format!("a number from 1 to {max}, or the same for each of {n_layers} layers");
            let fault = GgufFault::Key { key: name, found, expected };
            Error::Gguf { path: self.gguf.path().to_owned(), fault }
        })
    }

    /// A number above 0 in the range of `f32`.
    pub(crate) fn positive(&self, key: &str) -> Result<f64> {
        self.gguf.positive(&self.key(key))
    }

    /// Such a number, with a value for when it is not there.
    pub(crate) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.has(key) { self.positive(key) } else { Ok(default) }
    }

    /// The vocabulary's size: the key, else the rows of the embedding.
    pub(crate) fn vocabulary(&self) -> Result<usize> {
        match self.gguf.tensor("token_embd.weight").map(|tensor| tensor.shape.as_slice()) {
            Some(&[rows, _]) if rows <= bound::VOCABULARY && !self.has("vocab_size") => Ok(rows),
            _ => self.size("vocab_size", bound::VOCABULARY),
        }
    }

    /// The sliding window in tokens; `None` if there is none, which some files write as 0.
    pub(crate) fn window(&self) -> Result<Option<usize>> {
        const KEY: &str = "attention.sliding_window";
        if !self.has(KEY) {
            return Ok(None);
        }
        let window = self.gguf.count(&self.key(KEY), 0..=bound::CONTEXT)?;
        Ok((window > 0).then_some(window))
    }

    /// Experts in a layer and experts that each token uses; `None` without experts.
    pub(crate) fn experts(&self) -> Result<Option<(usize, usize)>> {
        const KEY: &str = "expert_count";
        if !self.has(KEY) || self.gguf.count(&self.key(KEY), 0..=bound::COUNT)? == 0 {
            return Ok(None);
        }
        let n_experts = self.size(KEY, bound::COUNT)?;
        Ok(Some((n_experts, self.size("expert_used_count", n_experts)?)))
    }
}

impl Rope {
    /// Reads the metadata and, where frequencies have factors of their own, their tensors.
    pub(crate) fn from_gguf(
        file: &GgufFields<'_>,
        defaults: &RopeDefaults,
        sizes: RopeSizes,
    ) -> Result<Self> {
        let dims = file.size_or("rope.dimension_count", bound::WIDTH, sizes.head_dim)?;
        let whole = defaults.partial == Partial::Never;
        if dims > sizes.head_dim || !dims.is_multiple_of(2) || (whole && dims != sizes.head_dim) {
            let expected = match whole {
                true => format!("the width of a head, {}", sizes.head_dim),
                false => format!("an even number of at most the head's {}", sizes.head_dim),
            };
            return Err(file.wrong("rope.dimension_count", dims, expected));
        }
        if dims > bound::ROTATED {
            let expected = format!("at most {} elements", bound::ROTATED);
            return Err(file.wrong("rope.dimension_count", dims, expected));
        }
        let theta = file.positive_or("rope.freq_base", defaults.theta)?;
        Self { theta, dims, scaling: scaling(file, sizes, dims)? }.finite(file.gguf.path())
    }
}

fn scaling(file: &GgufFields<'_>, sizes: RopeSizes, dims: usize) -> Result<RopeScaling> {
    const KEY: &str = "rope.scaling.type";
    const FACTOR: &str = "rope.scaling.factor";
    const OLDER_FACTOR: &str = "rope.scale_linear";
    const ORIGINAL: &str = "rope.scaling.original_context_length";
    const ATTENTION: &str = "rope.scaling.attn_factor";
    let (gguf, n_ctx) = (file.gguf, sizes.n_ctx);
    let original_context = file.size_or(ORIGINAL, bound::CONTEXT, n_ctx)?;
    if let Some(short) = gguf.tensor("rope_factors_short.weight") {
        let factor = n_ctx as f64 / original_context as f64;
        let missing = || Error::TensorMissing {
            path: gguf.path().to_owned(),
            tensor: "rope_factors_long.weight".to_owned(),
        };
        let long = gguf.tensor("rope_factors_long.weight").ok_or_else(missing)?;
        return Ok(RopeScaling::Long {
            short_factor: gguf.divisors("rope_factors_short.weight", short, dims / 2)?,
            long_factor: gguf.divisors("rope_factors_long.weight", long, dims / 2)?,
            original_context,
            attention_factor: file
                .positive_or(ATTENTION, long_attention_factor(factor, original_context))?,
        });
    }
    // Files from before there were types have a linear factor alone.
    let kind = match [KEY, FACTOR, OLDER_FACTOR].into_iter().find(|key| file.has(key)) {
        None => return Ok(RopeScaling::None),
        Some(KEY) => gguf.text(&file.key(KEY))?,
        Some(factor) => return Ok(RopeScaling::Linear { factor: file.positive(factor)? }),
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: file.positive(FACTOR)? }),
        "yarn" => {
            let factor = file.positive(FACTOR)?;
            let attention_factor = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: file.positive_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: file.positive_or("rope.scaling.yarn_beta_slow", 1.0)?,
                truncate: true,
                original_context,
                attention_factor: attention_factor
                    * file.positive_or("rope.scaling.yarn_attn_factor", 1.0)?
                    * file.positive_or(ATTENTION, 1.0)?,
            })
        }
        other => Err(Error::Unsupported {
            path: gguf.path().to_owned(),
            what: "rope.scaling.type",
            found: other.chars().take(80).collect(),
            supported: "none, linear, yarn, and stored frequency factors",
        }),
    }
}
