//! Where the hub and its cache are, and how long to wait for them.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest token file that is read, in bytes.
const MAX_TOKEN: u64 = 4096;

/// A secret that proves to the hub who asks; it does not show in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token without surrounding white space; `None` if nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Whether the hub may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Online,
    /// No request is made: only the cache is read.
    Offline,
}

/// Which proxy requests go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxies {
    /// The one that `ALL_PROXY`, `HTTPS_PROXY` or `HTTP_PROXY` names, in either
    /// case, but for the hosts in `NO_PROXY`.
    Environment,
    /// None.
    Direct,
}

/// How long to wait, and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For an answer to begin, and then for each further piece of it. An answer
    /// that brings less than a kibibyte per second over twice this time has
    /// stopped, too.
    pub read: Duration,
    /// Before the second attempt; doubled before each further one.
    pub backoff: Duration,
    /// Before any attempt, whatever the host asks for.
    pub longest_backoff: Duration,
    /// Attempts in a row that bring nothing.
    pub attempts: u32,
    /// For another process that downloads the same file and gets nowhere.
    pub lock: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
            backoff: Duration::from_secs(1),
            longest_backoff: Duration::from_secs(60),
            attempts: 5,
            lock: Duration::from_secs(600),
        }
    }
}

/// Where the hub and its cache are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubOptions {
    /// The hub's address.
    pub endpoint: String,
    /// The cache's folder, `models--org--name` is below it; `None` if there is no
    /// home folder to put it in.
    pub cache: Option<PathBuf>,
    /// Sent to the hub, and to no other host.
    pub token: Option<Token>,
    /// Whether the hub may be asked.
    pub network: Network,
    /// Which proxy requests go through.
    pub proxies: Proxies,
    /// A PEM file of the authorities to trust instead of Mozilla's.
    pub certificates: Option<PathBuf>,
    /// How long to wait.
    pub patience: Patience,
}

impl HubOptions {
    /// What the environment says; the names mean what they mean elsewhere.
    ///
    /// | what | from |
    /// |---|---|
    /// | endpoint | `HF_ENDPOINT`, else `https://huggingface.co` |
    /// | cache | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub` |
    /// | token | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, the file `token` beside `hub`; none if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set |
    /// | network | offline if `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is `1`, `true`, `yes` or `on` |
    /// | certificates | `SSL_CERT_FILE` |
    /// | proxies | `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` |
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name), std::env::home_dir())
    }

    /// What these variables say.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Self {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| value(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| value(name).map(|value| expand(Path::new(&value), home.as_deref()));
        let is_set = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "true", "yes", "on"].iter().any(|on| value.eq_ignore_ascii_case(on))
            })
        };

        let caches =
            || path("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let hf_home = path("HF_HOME").or_else(|| caches().map(|caches| caches.join("huggingface")));
        let token_file =
            path("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|folder| folder.join("token")));
        let token = || {
            ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
                .iter()
                .find_map(|name| Token::new(&text(name)?))
                .or_else(|| read_token(&token_file?))
        };
        Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { token() },
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| hf_home.map(|folder| folder.join("hub"))),
            network: match is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE") {
                true => Network::Offline,
                false => Network::Online,
            },
            proxies: Proxies::Environment,
            certificates: path("SSL_CERT_FILE"),
            patience: Patience::default(),
        }
    }
}

/// Replaces a leading `~`.
fn expand(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// The token that a login left; none if the file is not there or not readable.
fn read_token(path: &Path) -> Option<Token> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_TOKEN).read_to_string(&mut text).ok()?;
    Token::new(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> HubOptions {
        let find = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        };
        HubOptions::from_variables(find, Some("/home/me".into()))
    }

    #[test]
    fn the_cache_is_where_others_have_it() {
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/c"),
            (&[("HF_HOME", "~/h")], "/home/me/h/hub"),
            (&[("HF_HOME", ""), ("HF_HUB_CACHE", "")], "/home/me/.cache/huggingface/hub"),
        ];
        for (variables, expected) in cases {
            assert_eq!(options(variables).cache, Some(expected.into()), "{variables:?}");
        }
        assert_eq!(HubOptions::from_variables(|_| None, None).cache, None);
    }

    #[test]
    fn the_token_is_found_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(folder.path().join("other"), " hf_other ").unwrap();
        let other = folder.path().join("other");
        let token = |variables: &[(&str, &str)]| options(variables).token;
        assert_eq!(token(&[("HF_HOME", home)]), Token::new("hf_file"));
        assert_eq!(
            token(&[("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())]),
            Token::new("hf_other")
        );
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", " hf_env\r\n")]), Token::new("hf_env"));
        assert_eq!(token(&[("HF_TOKEN", "hf_env"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HOME", "/nowhere"), ("HF_TOKEN", " ")]), None);
        let shown = format!("{:?}", options(&[("HF_TOKEN", "hf_secret")]));
        assert!(shown.contains("Token(…)") && !shown.contains("hf_secret"), "{shown}");
    }

    #[test]
    fn offline_is_said_as_elsewhere() {
        for on in ["1", "true", "TRUE", "Yes", "on"] {
            assert_eq!(options(&[("HF_HUB_OFFLINE", on)]).network, Network::Offline, "{on}");
        }
        for off in ["0", "false", "", "no", "2"] {
            assert_eq!(options(&[("HF_HUB_OFFLINE", off)]).network, Network::Online, "{off}");
        }
        assert_eq!(options(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror/");
    }
}
