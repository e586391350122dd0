//! A Hugging Face checkpoint: one safetensors file, or shards with an index.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::convert::{Format, convert_into};
use super::matrix::{Matrix, Rows};
use super::safetensors::{Entry, File};
use super::{Part, RowOrder, UnitNorms, Weights};
use crate::source::Source;
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const DTYPES: &str = "F32, F16 or BF16";

/// The opened files of a checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Folder or built-in name, for messages.
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    /// Which file holds which tensor.
    places: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a checkpoint's files and checks their headers.
    pub(crate) fn open(source: &Source) -> Result<Self> {
        let mut checkpoint =
            Self { path: source.path(), files: Vec::new(), places: BTreeMap::new() };
        if let Some(bytes) = source.open(SINGLE)? {
            let file = open_file(&source.file_path(SINGLE), bytes)?;
            checkpoint.places = file.entries.keys().map(|name| (name.clone(), 0)).collect();
            checkpoint.files.push((source.file_path(SINGLE), file));
            return Ok(checkpoint);
        }
        let path = source.file_path(INDEX);
        let bytes = source.open_json(INDEX)?.ok_or_else(|| Error::FileMissing {
            folder: source.path(),
            expected: "model.safetensors or model.safetensors.index.json",
        })?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Json { path: path.clone(), source: error })?;
        checkpoint.open_shards(source, &path, index)?;
        Ok(checkpoint)
    }

    fn open_shards(&mut self, source: &Source, index_path: &Path, index: Index) -> Result<()> {
        let mut opened: BTreeMap<String, usize> = BTreeMap::new();
        for (tensor, shard) in index.weight_map {
            let refuse = |problem| {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                Error::Shard { path: index_path.to_owned(), tensor, shard, problem }
            };
            let file = match opened.get(&shard) {
                Some(&file) => file,
                None => {
                    // A shard is a file of this folder, never a path out of it.
                    let plain = Path::new(&shard).file_name().is_some_and(|n| n == shard.as_str());
                    if !plain {
                        return Err(refuse("this is not a plain file name"));
                    }
                    let bytes = source
                        .open(&shard)?
                        .ok_or_else(|| refuse("the folder has no such file"))?;
                    let path = source.file_path(&shard);
                    let file = open_file(&path, bytes)?;
                    self.files.push((path, file));
                    opened.insert(shard.clone(), self.files.len() - 1);
                    self.files.len() - 1
                }
            };
            if !self.files[file].1.entries.contains_key(&tensor) {
                return Err(refuse("the file has no such tensor"));
            }
            self.places.insert(tensor, file);
        }
        Ok(())
    }

    /// The name under which a tensor is stored: its own, that without the model's
    /// prefix where the decoder was saved without its head, or that within a model
    /// of several parts.
    fn stored_name(&self, name: &str) -> Option<&str> {
        let (prefix, rest) = name.split_once('.')?;
        // The head is not a part of the decoder: without its name nothing is left.
        let bare = if prefix == "lm_head" { name } else { rest };
        let others = [
            bare.to_owned(),
            format!("language_model.{name}"),
            format!("{prefix}.language_model.{rest}"),
        ];
        std::iter::once(name)
            .chain(others.iter().map(String::as_str))
            .find_map(|name| Some(self.places.get_key_value(name)?.0.as_str()))
    }

    fn find(&self, name: &str) -> Result<(&Path, &File, &Entry)> {
        let stored = self.stored_name(name).unwrap_or(name);
        self.places
            .get(stored)
            .map(|&place| &self.files[place])
            .and_then(|(path, file)| Some((path.as_path(), file, file.entries.get(stored)?)))
            .ok_or_else(|| Error::TensorMissing {
                path: self.path.clone(),
                tensor: name.to_owned(),
            })
    }

    /// Reads a tensor of this shape into `out`.
    fn read(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        let (path, file, entry) = self.check(name, shape)?;
        let format = format_of(path, name, &entry.dtype)?;
        convert_into(format, file.data(entry), out).map_err(|bad| Error::NotFinite {
            path: path.to_owned(),
            tensor: name.to_owned(),
            index: bad.index,
            value: bad.value,
        })
    }

    /// A tensor that is there, has this shape and an accepted type.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(&Path, &File, &Entry)> {
        let (path, file, entry) = self.find(name)?;
        format_of(path, name, &entry.dtype)?;
        if entry.shape != shape {
            return Err(Error::TensorShape {
                path: path.to_owned(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        Ok((path, file, entry))
    }

    /// Every tensor's name, type, shape and bytes, by name.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &str, &[usize], &[u8])> {
        self.places.iter().filter_map(|(name, &place)| {
            let (_, file) = &self.files[place];
            let entry = file.entries.get(name)?;
            Some((name.as_str(), entry.dtype.as_str(), entry.shape.as_slice(), file.data(entry)))
        })
    }
}

impl Weights for Checkpoint {
    fn has(&self, name: &str) -> bool {
        self.stored_name(name).is_some()
    }

    fn vector(&self, parts: &[(String, usize)]) -> Result<Tensor> {
        // Shapes are checked before memory is taken: the sizes are then the file's own.
        for (name, len) in parts {
            self.check(name, &[*len])?;
        }
        let mut values = vec![0f32; parts.iter().map(|(_, len)| len).sum()];
        let mut rest = values.as_mut_slice();
        for (name, len) in parts {
            let (out, after) = rest.split_at_mut(*len);
            self.read(name, &[*len], out)?;
            rest = after;
        }
        let len = values.len();
        Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
    }

    fn matrices(&self, parts: &[Part], columns: usize) -> Result<Vec<Matrix<'_>>> {
        let rows = |part: &Part| {
            let (name, order) = (part.weight(), part.order);
            let shape = match order {
                RowOrder::Transposed => [columns, part.rows],
                _ => [part.rows, columns],
            };
            let (path, file, entry) = self.check(&name, &shape)?;
            let (format, data) = (format_of(path, &name, &entry.dtype)?, file.data(entry));
            Ok(Rows { path, tensor: name, format, data, first: 0, rows: part.rows, order })
        };
        let parts = parts.iter().map(rows).collect::<Result<_>>()?;
        Ok(vec![Matrix::new(parts, columns, None)])
    }

    fn slices(&self, name: &str, n: usize, rows: usize, columns: usize) -> Result<Vec<Matrix<'_>>> {
        let (path, file, entry) = self.check(name, &[n, rows, columns])?;
        let (format, data) = (format_of(path, name, &entry.dtype)?, file.data(entry));
        let len = data.len() / n.max(1);
        let slice = |i: usize| Rows {
            path,
            tensor: name.to_owned(),
            format,
            data: &data[i * len..][..len],
            first: i * rows * columns,
            rows,
            order: RowOrder::Plain,
        };
        Ok((0..n).map(|i| Matrix::new(vec![slice(i)], columns, None)).collect())
    }

    fn sizes(&self, dtype: DType) -> Vec<(String, u64)> {
        let bytes = |shape: &[usize]| {
            let each = dtype.size_in_bytes() as u64;
            shape.iter().fold(each, |bytes, length| bytes.saturating_mul(*length as u64))
        };
        self.tensors().map(|(name, _, shape, _)| (name.to_owned(), bytes(shape))).collect()
    }

    fn unit_norms(&self) -> UnitNorms {
        UnitNorms::Bare
    }

    fn frequency_divisors(&self, _: usize) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

fn open_file(path: &Path, bytes: super::Bytes) -> Result<File> {
    File::open(bytes).map_err(|fault| Error::Safetensors { path: path.to_owned(), fault })
}

fn format_of(path: &Path, name: &str, dtype: &str) -> Result<Format> {
    match dtype {
        "F32" => Ok(Format::F32),
        "F16" => Ok(Format::F16),
        "BF16" => Ok(Format::Bf16),
        _ => Err(Error::TensorDtype {
            path: path.to_owned(),
            tensor: name.to_owned(),
            expected: DTYPES,
            found: dtype.to_owned(),
        }),
    }
}
