//! What a run folder is the result of.
//!
//! The manifest is written once and never changed.  Two starts belong to the
//! same run when everything in it agrees but the command line, the choice of the
//! device and the size of the shards: results depend on none of them, and the
//! folder's shard size wins.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checksum;
use crate::disk;
use crate::error::{Difference, Error, Result};
use crate::schema::{self, TableInfo};
use crate::{MAX_MANIFEST_BYTES, MAX_SHARD_PROMPTS, SCHEMA_VERSION};

/// What is to be computed, as the caller describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Version of the program that computes.
    pub engine_version: String,
    /// Everything the results depend on: model, weights, device, selections and so on.
    ///
    /// The store only compares it.  JSON has no infinities and no NaN.
    pub description: Value,
    /// The command line, kept for the reader; it may differ when a run is resumed.
    pub command: Vec<String>,
    /// Which device computes and why, kept for the reader; it may differ when a run is resumed.
    pub device: Value,
}

/// The prompts of a run, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptList {
    /// How many prompts there are.
    pub count: u64,
    /// SHA-256 of the ids, each followed by a newline, in hexadecimal.
    pub sha256: String,
}

impl PromptList {
    pub(crate) fn of(ids: &[String]) -> PromptList {
        let mut sum = checksum::Checksum::default();
        for id in ids {
            sum.update(id.as_bytes());
            sum.update(b"\n");
        }
        PromptList { count: ids.len() as u64, sha256: sum.hex() }
    }
}

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Number of the run folder's layout.
    pub schema_version: u64,
    /// Version of the program that wrote the folder.
    pub engine_version: String,
    /// What was computed, as [`Job::description`].
    pub job: Value,
    /// The command line that started the run.
    pub command: Vec<String>,
    /// The device that the run was started on, as [`Job::device`]; earlier versions left it out.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub device: Value,
    /// The prompts.
    pub prompts: PromptList,
    /// Prompts in a shard.
    pub shard_prompts: u64,
    /// The tables.
    pub tables: Vec<TableInfo>,
}

impl Manifest {
    pub(crate) fn new(
        job: &Job,
        ids: &[String],
        shard_prompts: u64,
        tables: Vec<TableInfo>,
    ) -> Manifest {
        Manifest {
            schema_version: SCHEMA_VERSION,
            engine_version: job.engine_version.clone(),
            job: job.description.clone(),
            command: job.command.clone(),
            device: job.device.clone(),
            prompts: PromptList::of(ids),
            shard_prompts,
            tables,
        }
    }

    /// The text of the file.
    pub(crate) fn encode(&self, path: &Path) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|source| Error::Encode { path: path.to_owned(), source })?;
        text.push(b'\n');
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(oversized(path));
        }
        Ok(text)
    }

    /// Understands the text of a manifest; its layout number is looked at first.
    pub(crate) fn decode(path: &Path, text: &[u8]) -> Result<Manifest> {
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u64,
        }
        let broken = |source| Error::Manifest { path: path.to_owned(), source };
        let version: Versioned = serde_json::from_slice(text).map_err(broken)?;
        if version.schema_version != SCHEMA_VERSION {
            return Err(Error::SchemaVersion {
                path: path.to_owned(),
                found: version.schema_version,
                supported: SCHEMA_VERSION,
            });
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(broken)?;
        schema::check(&manifest.tables)?;
        check_shard_prompts(manifest.shard_prompts)?;
        Ok(manifest)
    }

    /// Reads the manifest of a folder.
    pub(crate) fn read(path: &Path) -> Result<Manifest> {
        let (file, _) = disk::open(path)?;
        let mut text = Vec::new();
        file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut text).map_err(disk::read_error(path))?;
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(oversized(path));
        }
        Manifest::decode(path, &text)
    }

    /// The fields in which the folder's manifest differs from the one asked for.
    pub(crate) fn differences(&self, asked: &Manifest) -> Vec<Difference> {
        let mut found = Vec::new();
        compare(
            "engine_version",
            Some(&Value::from(self.engine_version.as_str())),
            Some(&Value::from(asked.engine_version.as_str())),
            &mut found,
        );
        compare("job", Some(&self.job), Some(&asked.job), &mut found);
        let pair = |m: &Manifest| {
            [
                ("prompts.count", Value::from(m.prompts.count)),
                ("prompts.sha256", Value::from(m.prompts.sha256.as_str())),
            ]
        };
        for ((field, old), (_, new)) in pair(self).iter().zip(&pair(asked)) {
            compare(field, Some(old), Some(new), &mut found);
        }
        let tables = |m: &Manifest| -> Value {
            let of = |t: &TableInfo| {
                let columns = t.columns.iter().map(|c| {
                    let null = if c.nullable { " or null" } else { "" };
                    let text = format!("{:?}{null} [{}] {}", c.kind, c.unit, c.doc);
                    (c.name.clone(), Value::from(text))
                });
                let order: Vec<&str> = t.columns.iter().map(|c| c.name.as_str()).collect();
                let mut fields: serde_json::Map<String, Value> = columns.collect();
                fields.insert("(order)".to_owned(), Value::from(order));
                (t.name.clone(), Value::Object(fields))
            };
            Value::Object(m.tables.iter().map(of).collect())
        };
        compare("tables", Some(&tables(self)), Some(&tables(asked)), &mut found);
        found
    }
}

fn oversized(path: &Path) -> Error {
    Error::Oversized { path: path.to_owned(), limit: MAX_MANIFEST_BYTES }
}

pub(crate) fn check_shard_prompts(got: u64) -> Result<()> {
    if (1..=MAX_SHARD_PROMPTS).contains(&got) {
        return Ok(());
    }
    Err(Error::Range {
        what: "the number of prompts in a shard",
        least: 1,
        most: MAX_SHARD_PROMPTS,
        got,
    })
}

fn compare(
    field: &str,
    folder: Option<&Value>,
    asked: Option<&Value>,
    found: &mut Vec<Difference>,
) {
    match (folder, asked) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                compare(&format!("{field}.{key}"), old.get(key), new.get(key), found);
            }
        }
        (old, new) if old == new => {}
        (old, new) => found.push(Difference {
            field: field.to_owned(),
            folder: old.map(Value::to_string),
            asked: new.map(Value::to_string),
        }),
    }
}
