//! Models by hub id: resolved to one commit, fetched once, read from the cache.
//!
//! The cache is that of Python's `huggingface_hub`, file for file: what it has
//! fetched is used here, and the other way round. The decision that shapes this
//! module is to ask which commit a revision is *once*, and to fetch every file at
//! that commit: a push in between cannot mix two versions. The name of a branch is
//! noted in the cache only when all files are there, so that an interrupted update
//! leaves the older, complete snapshot for use without network.
//!
//! Everything that comes from the network is bounded (sizes, redirects, attempts,
//! silence), and becomes a path only after it was checked.

mod cache;
mod client;
mod fault;
mod id;
mod options;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use fault::HubFault;
pub use id::HubId;
pub use options::{HubOptions, Network, Patience, Proxies, Token};

use cache::Cache;
use client::{Client, Contact, Remote, Repository};
use transfer::{Tally, Transfer};

/// The largest file that is not weights, in bytes.
const MAX_TEXT: u64 = crate::source::MAX_JSON_BYTES;
/// The largest file of weights, in bytes.
const MAX_WEIGHTS: u64 = 1 << 40;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Files that a model may do without.
const EXTRAS: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// What happens while a model is fetched.
#[derive(Debug)]
#[non_exhaustive]
pub enum HubEvent<'a> {
    /// More bytes have come.
    Bytes {
        /// The file that they belong to.
        file: &'a str,
        /// Bytes of this and the files before it.
        done: u64,
        /// Bytes of all files that are being fetched.
        total: u64,
    },
    /// Another process fetches this file; its result will be used.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// An attempt failed; another follows.
    Retry {
        /// Why it failed.
        reason: &'a HubFault,
        /// How long until the next.
        wait: Duration,
    },
    /// The hub cannot be asked, or its answer not be kept, but the cache has all that
    /// is needed.
    Cached {
        /// What failed.
        reason: &'a HubFault,
        /// The commit that is used.
        commit: &'a str,
    },
}

/// Where a model came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `org/name`, with a GGUF file after a colon.
    pub model: String,
    /// The commit that its files are of.
    pub commit: String,
}

/// A model in the cache.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The snapshot's folder, or the GGUF file in it.
    pub path: PathBuf,
    pub commit: String,
}

/// Finds a model in the cache, and fetches what is missing.
pub(crate) fn fetch(
    id: &HubId,
    options: &HubOptions,
    events: &mut dyn FnMut(HubEvent<'_>),
) -> Result<Fetched, HubFault> {
    let cache = Cache::new(options.cache.as_deref().ok_or(HubFault::NoCacheFolder)?, id);
    let model = Model { id, cache: &cache };
    let exact = Some(id.revision().to_owned()).filter(|revision| id::is_commit(revision));
    if let Some(commit) = &exact
        && model.missing(commit).is_empty()
        && model.extras_known(commit)
    {
        return Ok(model.fetched(commit));
    }
    let cached = exact.clone().or_else(|| cache.commit_of(id.revision()));
    if options.network == Network::Offline {
        return model.offline(cached);
    }
    let client = Client::new(options, id)?;
    let usable = cached.filter(|commit| model.missing(commit).is_empty());
    let contact = if usable.is_some() { Contact::Once } else { Contact::Patient };
    let repository = match client.repository(contact, events) {
        Ok(repository) => repository,
        Err(fault) => return model.instead(usable, fault, events),
    };
    let commit = &repository.commit;
    if let Some(expected) = exact.filter(|exact| exact != commit) {
        let host = options.endpoint.clone();
        return Err(HubFault::Commit { host, expected, found: commit.clone() });
    }
    // The cache may have what is needed, and lack what a model may do without.
    let usable = Some(commit.clone()).filter(|commit| model.missing(commit).is_empty());
    let patience = &options.patience;
    let transfer = Transfer { client: &client, cache: &cache, commit, patience };
    let completed = model
        .complete(&repository, &transfer, events)
        .and_then(|()| cache.set_commit(id.revision(), commit));
    match completed {
        Ok(()) => Ok(model.fetched(commit)),
        Err(fault) => model.instead(usable, fault, events),
    }
}

/// A model and its place in the cache.
struct Model<'a> {
    id: &'a HubId,
    cache: &'a Cache,
}

impl Model<'_> {
    fn fetched(&self, commit: &str) -> Fetched {
        let snapshot = self.cache.snapshot(commit);
        let path = match self.id.file() {
            Some(file) => snapshot.join(file),
            None => snapshot,
        };
        Fetched { path, commit: commit.to_owned() }
    }

    /// What the cache has, where it can stand in for what failed.
    fn instead(
        &self,
        usable: Option<String>,
        fault: HubFault,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<Fetched, HubFault> {
        match usable.filter(|_| fault.spares_the_cache()) {
            Some(commit) => {
                events(HubEvent::Cached { reason: &fault, commit: &commit });
                Ok(self.fetched(&commit))
            }
            None => Err(fault),
        }
    }

    fn offline(&self, cached: Option<String>) -> Result<Fetched, HubFault> {
        let folder = self.cache.folder().to_owned();
        let Some(commit) = cached else {
            let revision = self.id.revision().to_owned();
            return Err(HubFault::OfflineRevision { folder, revision });
        };
        let missing = self.missing(&commit);
        if !missing.is_empty() {
            return Err(HubFault::Offline { folder, missing });
        }
        Ok(self.fetched(&commit))
    }

    /// The files without which the model cannot be run that the cache lacks.
    fn missing(&self, commit: &str) -> Vec<String> {
        let lacks = |file: &String| !self.cache.has(commit, file);
        if let Some(file) = self.id.file() {
            return id::gguf_files(file).into_iter().filter(lacks).collect();
        }
        let mut needed = vec![CONFIG.to_owned()];
        match self.cache.has(commit, INDEX) && !self.cache.has(commit, WEIGHTS) {
            true => match read_index(&self.cache.snapshot(commit).join(INDEX)) {
                Ok(shards) => needed.extend(shards),
                Err(_) => return vec![INDEX.to_owned()],
            },
            false => needed.push(WEIGHTS.to_owned()),
        }
        needed.into_iter().filter(lacks).collect()
    }

    /// Whether each file that a model may do without is there or known not to be.
    fn extras_known(&self, commit: &str) -> bool {
        let known = |file| self.cache.has(commit, file) || self.cache.is_absent(commit, file);
        self.id.file().is_some() || EXTRAS.into_iter().all(known)
    }

    /// Fetches what the cache lacks of a commit.
    fn complete(
        &self,
        repository: &Repository,
        transfer: &Transfer<'_>,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<(), HubFault> {
        let (commit, has) = (&repository.commit, |name: &str| repository.has(name));
        if let Some(file) = self.id.file() {
            let files = id::gguf_files(file);
            files.iter().try_for_each(|file| repository.require(file))?;
            return self.download(&files, MAX_WEIGHTS, transfer, events);
        }
        // First, as a repository of GGUF files has no configuration either.
        let weights = match (has(WEIGHTS), has(INDEX)) {
            (true, _) => WEIGHTS,
            (false, true) => INDEX,
            (false, false) => return Err(repository.other_weights()),
        };
        repository.require(CONFIG)?;
        let mut texts = vec![CONFIG.to_owned()];
        for extra in EXTRAS {
            match has(extra) {
                true => texts.push(extra.to_owned()),
                false => self.cache.set_absent(commit, extra),
            }
        }
        if weights == INDEX {
            texts.push(INDEX.to_owned());
        }
        self.download(&texts, MAX_TEXT, transfer, events)?;
        let files = match weights {
            INDEX => read_index(&self.cache.snapshot(commit).join(INDEX))?,
            _ => vec![WEIGHTS.to_owned()],
        };
        files.iter().try_for_each(|shard| repository.require(shard))?;
        self.download(&files, MAX_WEIGHTS, transfer, events)
    }

    /// Fetches those of these files that the snapshot lacks.
    fn download(
        &self,
        files: &[String],
        limit: u64,
        transfer: &Transfer<'_>,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<(), HubFault> {
        let commit = transfer.commit;
        // All sizes first: whoever waits sees how much there is.
        let remotes: Vec<Remote> = files
            .iter()
            .filter(|file| !self.cache.has(commit, file))
            .map(|file| transfer.client.remote(commit, file, events))
            .collect::<Result<_, _>>()?;
        let size = |remote: &Remote| remote.size.unwrap_or(0);
        let total = remotes.iter().map(size).fold(0, u64::saturating_add);
        let mut tally = Tally { before: 0, total };
        for remote in &remotes {
            transfer.fetch(remote, limit, tally, events)?;
            tally.before = tally.before.saturating_add(size(remote));
        }
        Ok(())
    }
}

impl Repository {
    fn has(&self, name: &str) -> bool {
        self.files.binary_search_by(|file| file.as_str().cmp(name)).is_ok()
    }

    fn require(&self, name: &str) -> Result<(), HubFault> {
        match self.has(name) {
            true => Ok(()),
            false => Err(self.lacks(name)),
        }
    }

    /// A file is not there; shown are the files of its kind, or else all.
    fn lacks(&self, name: &str) -> HubFault {
        let kind = Path::new(name).extension();
        let alike = |file: &&String| Path::new(file.as_str()).extension() == kind;
        let mut known: Vec<String> = self.files.iter().filter(alike).cloned().collect();
        if known.is_empty() {
            known.clone_from(&self.files);
        }
        HubFault::EntryMissing { file: name.to_owned(), known }
    }

    /// No weights are of a kind that is read.
    fn other_weights(&self) -> HubFault {
        const KINDS: [&str; 8] =
            [".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx"];
        let is_weights = |file: &&String| KINDS.iter().any(|kind| file.ends_with(kind));
        let found: Vec<String> = self.files.iter().filter(is_weights).cloned().collect();
        let gguf = found.iter().find(|file| file.ends_with(".gguf")).cloned();
        HubFault::Weights { found, gguf }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names: plain names of safetensors files.
fn read_index(path: &Path) -> Result<Vec<String>, HubFault> {
    let refuse = |reason: String| HubFault::Index { file: INDEX.to_owned(), reason };
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TEXT).read_to_end(&mut text))
        .map_err(|error| HubFault::disk(path, error))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| refuse(client::printable(&error.to_string())))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(refuse("it names no shard".to_owned()));
    }
    for shard in &shards {
        if !id::is_inside(shard) || shard.contains('/') {
            return Err(HubFault::FileName { name: client::printable(shard) });
        }
        if !shard.ends_with(".safetensors") {
            let shown = client::printable(shard);
            return Err(refuse(format!("it names {shown:?}, which is not a safetensors file")));
        }
    }
    Ok(shards.into_iter().collect())
}
