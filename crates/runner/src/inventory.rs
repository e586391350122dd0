//! What a model's weights are, from their headers alone.

use std::collections::BTreeMap;

use crate::Result;
use crate::gguf::Gguf;
use crate::source::Source;
use crate::weights::Checkpoint;

/// Parameters, bytes and stored types of a model's weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors in their files.
    pub bytes: u64,
    /// Number of tensors of each stored type.
    pub stored_as: BTreeMap<String, usize>,
}

impl Inventory {
    /// Reads the headers of a model's weights.
    ///
    /// # Errors
    ///
    /// As [`Model::load`](crate::Model::load), for files and headers.
    pub fn of(source: &Source) -> Result<Self> {
        let mut inventory = Self::default();
        if let Source::Gguf(path) = source {
            let gguf = Gguf::open(path)?;
            for (_, info) in gguf.tensors() {
                inventory.add(info.format.name(), &info.shape, gguf.data(info).len());
            }
        } else {
            for (_, dtype, shape, data) in Checkpoint::open(source)?.tensors() {
                inventory.add(dtype, shape, data.len());
            }
        }
        Ok(inventory)
    }

    fn add(&mut self, dtype: &str, shape: &[usize], bytes: usize) {
        // A type of unknown size may claim any shape.
        let elements = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        self.parameters = self.parameters.saturating_add(elements.unwrap_or(u64::MAX));
        self.bytes += bytes as u64;
        *self.stored_as.entry(dtype.to_owned()).or_default() += 1;
    }
}
