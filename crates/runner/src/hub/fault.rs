//! What can go wrong between a hub id and files in the cache.

use std::path::PathBuf;
use std::time::Duration;

/// Why a model could not be had from the hub or its cache.
///
/// Messages follow the model's id, say what was found, and end with what to do.
/// None of them holds a token or the query of a signed link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubFault {
    /// The hub knows no such repository.
    #[error(
        "{endpoint} has no such model, and no folder of this name is here; check its spelling (if it is private, the token in use may not read it)"
    )]
    RepositoryMissing {
        /// The hub.
        endpoint: String,
    },
    /// The hub does not tell a stranger whether the repository exists.
    #[error(
        "{endpoint} has no such model, or it is private, and no folder of this name is here; check its spelling, or set HF_TOKEN to a token that may read it"
    )]
    PrivateOrMissing {
        /// The hub.
        endpoint: String,
    },
    /// The hub does not accept the token.
    #[error(
        "{endpoint} refuses the token in use: it is wrong or has expired; set HF_TOKEN to a valid one, or log in again"
    )]
    TokenRefused {
        /// The hub.
        endpoint: String,
    },
    /// The token holds characters that no token has.
    #[error(
        "the token in use is not one: it holds characters other than printable ASCII; set HF_TOKEN again"
    )]
    TokenForm,
    /// The model's terms have not been accepted.
    #[error(
        "the model is gated; accept its terms at {page}, then set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// Where its terms are.
        page: String,
    },
    /// The hub refuses access for another reason.
    #[error("{endpoint} forbids access (it says `{reason}`); ask for access, or use another token")]
    Forbidden {
        /// The hub.
        endpoint: String,
        /// What it says.
        reason: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("the model has no revision `{revision}`; name a branch, a tag or a commit of {page}")]
    RevisionMissing {
        /// The revision.
        revision: String,
        /// Where the repository can be looked at.
        page: String,
    },
    /// The repository lacks a file.
    #[error("the repository has no file `{file}`; it has {}", list(known))]
    EntryMissing {
        /// The file.
        file: String,
        /// Some of the files that it has.
        known: Vec<String>,
    },
    /// The repository has no weights of a kind that is read.
    #[error(
        "the repository has neither model.safetensors nor model.safetensors.index.json; its weights are {}; {}",
        list(found),
        weights_advice(found, gguf)
    )]
    Weights {
        /// The weight files that it has instead.
        found: Vec<String>,
        /// A GGUF file among them.
        gguf: Option<String>,
    },
    /// The list of shards cannot be used.
    #[error(
        "the model's `{file}` is not an index of shards: {reason}; tell whoever made the model"
    )]
    Index {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The host's name has no address.
    #[error(
        "the name {host} cannot be resolved; check the network, or set HF_HUB_OFFLINE=1 to use only the cache"
    )]
    Dns {
        /// The host.
        host: String,
    },
    /// The connection could not be made, or was lost.
    #[error(
        "no connection to {host}: {source}; check network and proxy, then start again, what is there is kept"
    )]
    Connection {
        /// The host.
        host: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The host does not answer, or not fast enough.
    #[error(
        "{host} did not answer in time ({waited}); check the network and start again, what is there is kept"
    )]
    Timeout {
        /// The host.
        host: String,
        /// What was waited for.
        waited: &'static str,
    },
    /// No trusted connection could be made.
    #[error(
        "no trusted connection to {host}: {reason}; if a proxy signs with its own certificate, name it in SSL_CERT_FILE"
    )]
    Tls {
        /// The host.
        host: String,
        /// The TLS library's answer.
        reason: String,
    },
    /// The proxy does not let the connection through.
    #[error("the proxy does not connect to {host}: {reason}; check HTTPS_PROXY and NO_PROXY")]
    Proxy {
        /// The host behind it.
        host: String,
        /// What it answered.
        reason: String,
    },
    /// The file of certificates cannot be used.
    #[error("SSL_CERT_FILE names {}, which holds no certificate in PEM form; correct or unset it", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
    },
    /// The host answers with an error of its own.
    #[error("{host} answers with status {status}; try again later")]
    Status {
        /// The host.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// Too many requests.
    #[error("{host} allows no more requests for now; try again in {} s", wait.as_secs())]
    RateLimited {
        /// The host.
        host: String,
        /// How long to wait.
        wait: Duration,
    },
    /// The cache lacks files, and none may be fetched.
    #[error(
        "HF_HUB_OFFLINE is set and {} lacks {}; unset it once to download them",
        folder.display(),
        list(missing)
    )]
    Offline {
        /// The model's folder in the cache.
        folder: PathBuf,
        /// The files that are not there.
        missing: Vec<String>,
    },
    /// The cache does not know the revision, and nothing may be asked.
    #[error(
        "HF_HUB_OFFLINE is set and {} knows no revision `{revision}`, and no folder of this name is here; unset it once to download the model",
        folder.display()
    )]
    OfflineRevision {
        /// The model's folder in the cache.
        folder: PathBuf,
        /// The revision.
        revision: String,
    },
    /// There is no folder for the cache.
    #[error("there is no home folder for the cache; set HF_HOME to a folder")]
    NoCacheFolder,
    /// The cache cannot be read or written.
    #[error("the cache cannot be used: {}: {source}; make it writable, or set HF_HOME to another folder", path.display())]
    Cache {
        /// File or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The disk is full.
    #[error(
        "no space is left for {}: {source}; make room (what is there is kept), or set HF_HOME to a folder on another disk",
        path.display()
    )]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Another process holds a file's lock and does nothing.
    #[error(
        "another process has held {} for {} s while its download stood still; end it, then start again",
        path.display(),
        waited.as_secs()
    )]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long nothing happened.
        waited: Duration,
    },
    /// A file has not the size that was announced.
    #[error(
        "`{file}` should have {expected} bytes, {found} were sent; what was fetched is deleted, start again"
    )]
    Size {
        /// The file.
        file: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes sent, or announced elsewhere.
        found: u64,
    },
    /// A file's content is not what was announced.
    #[error(
        "`{file}` should have the checksum {expected}, it has {found}; what was fetched is deleted, start again"
    )]
    Checksum {
        /// The file.
        file: String,
        /// The digest announced, in hexadecimal.
        expected: String,
        /// The digest of what was sent.
        found: String,
    },
    /// A file is larger than anything of its kind.
    #[error(
        "`{file}` has {bytes} bytes, more than the {limit} that such a file may have; it is not fetched"
    )]
    TooLarge {
        /// The file.
        file: String,
        /// Bytes announced or sent.
        bytes: u64,
        /// The largest accepted size.
        limit: u64,
    },
    /// One redirect after the other.
    #[error("{host} redirects more than {limit} times; check HF_ENDPOINT")]
    Redirects {
        /// The host that redirects last.
        host: String,
        /// The largest accepted number.
        limit: usize,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects to an address that is not followed: {problem}; check HF_ENDPOINT")]
    RedirectTarget {
        /// The host that redirects.
        host: String,
        /// Why it is not followed.
        problem: &'static str,
    },
    /// An answer that the hub does not give.
    #[error("{host} answers not as a hub does: {problem}; check HF_ENDPOINT")]
    Answer {
        /// The host.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// An answer of another commit than the one asked for.
    #[error("commit {expected} was asked for, {host} answers with {found}; start again")]
    Commit {
        /// The host.
        host: String,
        /// The commit asked for.
        expected: String,
        /// The commit of the answer.
        found: String,
    },
    /// A file name that leads out of its folder.
    #[error(
        "the repository names a file {name:?}, which is not a path within it; nothing is fetched"
    )]
    FileName {
        /// The name.
        name: String,
    },
    /// An entity tag that cannot name a file.
    #[error(
        "the hub gives `{file}` the entity tag {found:?}, which cannot name a file; nothing is fetched"
    )]
    EntityTag {
        /// The file.
        file: String,
        /// The tag.
        found: String,
    },
    /// The address of the hub is not one.
    #[error("HF_ENDPOINT is {found:?}, expected an address such as https://huggingface.co")]
    Endpoint {
        /// The address.
        found: String,
    },
}

impl HubFault {
    /// The hub could not be asked, or the cache not be written: nothing is wrong with
    /// what the cache has.
    pub(super) fn spares_the_cache(&self) -> bool {
        matches!(
            self,
            Self::Dns { .. }
                | Self::Connection { .. }
                | Self::Timeout { .. }
                | Self::Tls { .. }
                | Self::Proxy { .. }
                | Self::Status { .. }
                | Self::RateLimited { .. }
                | Self::Cache { .. }
                | Self::DiskFull { .. }
                | Self::Locked { .. }
        )
    }

    /// A failure to read or write `path`.
    pub(super) fn disk(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let path = path.into();
        match source.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Self::DiskFull { path, source },
            _ => Self::Cache { path, source },
        }
    }
}

/// Names that a message shows at most.
const SHOWN: usize = 8;

fn list(names: &[String]) -> String {
    let mut text: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    if text.is_empty() {
        text.push("none");
    }
    if names.len() > SHOWN {
        text.push("…");
    }
    text.join(", ")
}

fn weights_advice(found: &[String], gguf: &Option<String>) -> String {
    let elsewhere = found.iter().any(|file| file.ends_with(".safetensors"));
    match gguf {
        Some(file) => {
            format!("to run a GGUF file of it, append its name to the id, as in `:{file}`")
        }
        None if elsewhere => {
            "safetensors files of other names or in subfolders are parts of something else; give a model whose weights have these names"
                .to_owned()
        }
        None => "give a model that is stored as safetensors".to_owned(),
    }
}
