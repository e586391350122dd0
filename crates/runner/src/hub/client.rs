//! Requests to the hub: redirects, statuses, deadlines, and what is tried again.
//!
//! Redirects are followed here and not by the HTTP library, because three things
//! depend on each hop: the token goes to the hub's own address only, `https`
//! never becomes `http`, and what the hub says about a file (commit, entity tag,
//! size) stands in the answer that redirects, not in that of the storage host.

use std::io::Read;
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::id::{HubId, is_commit, is_inside, is_tag};
use super::options::{HubOptions, Proxies};
use super::{HubEvent, HubFault};

const MAX_REDIRECTS: usize = 10;
/// The largest list of a repository's files, in bytes.
const MAX_LIST: u64 = 64 << 20;
/// The largest file of certificates, in bytes.
const MAX_CERTIFICATES: u64 = 16 << 20;
/// Bytes of the hub's own words that a message shows at most.
const MAX_REASON: usize = 200;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// What a request asks for.
#[derive(Clone, Copy)]
enum Method {
    Get,
    Head,
}

/// What a request is about; says what a status means.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Revision,
    File { commit: &'a str, file: &'a str },
}

/// How patiently the hub is asked for the first time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Contact {
    /// Another answer is at hand.
    Once,
    /// What passes is waited for.
    Patient,
}

/// Why an attempt failed, and whether another may succeed.
pub(super) enum Failure {
    Final(HubFault),
    /// Another attempt may succeed, after the wait if the host asks for one.
    Passing {
        fault: HubFault,
        wait: Option<Duration>,
    },
}

impl From<HubFault> for Failure {
    fn from(fault: HubFault) -> Self {
        Self::Final(fault)
    }
}

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct Repository {
    pub commit: String,
    /// In ascending order.
    pub files: Vec<String>,
}

/// What the hub says about a file before it is fetched.
#[derive(Debug)]
pub(super) struct Remote {
    pub file: String,
    /// The name of its content in the cache.
    pub tag: String,
    /// Bytes, if the hub says so.
    pub size: Option<u64>,
}

/// The content of a file, or the rest of it.
pub(super) struct Content {
    pub host: String,
    /// Offset of the first byte that follows.
    pub start: u64,
    /// Bytes that follow, if the host says so.
    pub length: Option<u64>,
    body: Pieces,
}

/// What the answers on the way to the last one say about a file.
#[derive(Default)]
struct Facts {
    commit: Option<String>,
    linked_tag: Option<String>,
    linked_size: Option<u64>,
    /// The plain entity tag of the last answer that also names a commit.
    tag: Option<String>,
}

struct Answer {
    response: Response<Body>,
    uri: Uri,
    facts: Facts,
}

pub(super) struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
    endpoint: Uri,
    /// The endpoint without a slash at its end.
    base: &'a str,
    id: &'a HubId,
}

impl<'a> Client<'a> {
    pub fn new(options: &'a HubOptions, id: &'a HubId) -> Result<Self, HubFault> {
        let base = options.endpoint.trim_end_matches('/');
        let refuse = || HubFault::Endpoint { found: without_secrets(&options.endpoint) };
        let endpoint: Uri = base.parse().map_err(|_| refuse())?;
        if !is_http(&endpoint) || endpoint.query().is_some() {
            return Err(refuse());
        }
        if let Some(token) = &options.token
            && !token.secret().bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(HubFault::TokenForm);
        }
        let patience = &options.patience;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("eigenlens/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_send_request(Some(patience.read))
            .timeout_recv_response(Some(patience.read))
            .timeout_per_read(Some(patience.read));
        if options.proxies == Proxies::Direct {
            config = config.proxy(None);
        }
        if let Some(path) = &options.certificates {
            let roots = read_certificates(path)
                .ok_or_else(|| HubFault::Certificates { path: path.clone() })?;
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self { agent: config.build().new_agent(), options, endpoint, base, id })
    }

    /// Asks which commit the revision is, and which files it has.
    pub fn repository(
        &self,
        contact: Contact,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<Repository, HubFault> {
        let url = format!(
            "{}/api/models/{}/revision/{}",
            self.base,
            self.id.repository(),
            encode(self.id.revision(), "")
        );
        let mut attempts = Attempts::new(&self.options.patience);
        let (host, text) = loop {
            match self.list(&url) {
                Ok(answer) => break answer,
                Err(Failure::Passing { fault, .. }) if contact == Contact::Once => {
                    return Err(fault);
                }
                // Who has no network learns so at once.
                Err(Failure::Passing {
                    fault:
                        fault @ (HubFault::Dns { .. }
                        | HubFault::Connection { .. }
                        | HubFault::Timeout { .. }),
                    ..
                }) => return Err(fault),
                Err(failure) => attempts.wait(failure, events)?,
            }
        };
        parse_repository(&host, &text)
    }

    fn list(&self, url: &str) -> Result<(String, Vec<u8>), Failure> {
        let answer = self.follow(Method::Get, url, None, Asked::Revision)?;
        let mut content = self.content(answer, 0, "the list of files")?;
        let too_large =
            |bytes| HubFault::TooLarge { file: "list of files".to_owned(), bytes, limit: MAX_LIST };
        if let Some(bytes) = content.length.filter(|bytes| *bytes > MAX_LIST) {
            return Err(too_large(bytes).into());
        }
        let mut text = Vec::new();
        while let Some(piece) = content.next()? {
            text.extend_from_slice(piece);
            if text.len() as u64 > MAX_LIST {
                return Err(too_large(text.len() as u64).into());
            }
        }
        Ok((content.host, text))
    }

    /// Asks for a file's entity tag and size at this commit.
    pub fn remote(
        &self,
        commit: &str,
        file: &str,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<Remote, HubFault> {
        let mut attempts = Attempts::new(&self.options.patience);
        loop {
            match self.head(commit, file) {
                Ok(remote) => return Ok(remote),
                Err(failure) => attempts.wait(failure, events)?,
            }
        }
    }

    fn head(&self, commit: &str, file: &str) -> Result<Remote, Failure> {
        let answer = self.follow(
            Method::Head,
            &self.file_url(commit, file),
            None,
            Asked::File { commit, file },
        )?;
        let host = host(&answer.uri);
        let Facts { linked_tag, linked_size, tag, .. } = answer.facts;
        let is_file = answer.response.status().is_success();
        let content_length = || {
            header(answer.response.headers(), "content-length")?.parse().ok().filter(|_| is_file)
        };
        let size = linked_size.or_else(content_length);
        let tag = linked_tag.or(tag).ok_or_else(|| HubFault::Answer {
            host,
            problem: format!("`{file}` has no entity tag"),
        })?;
        if !is_tag(&tag) {
            return Err(
                HubFault::EntityTag { file: file.to_owned(), found: printable(&tag) }.into()
            );
        }
        Ok(Remote { file: file.to_owned(), tag, size })
    }

    /// Asks for a file's content from byte `start` on; the answer may begin earlier.
    pub fn open(&self, commit: &str, remote: &Remote, start: u64) -> Result<Content, Failure> {
        let url = self.file_url(commit, &remote.file);
        let range = (start > 0).then_some(start);
        let answer =
            self.follow(Method::Get, &url, range, Asked::File { commit, file: &remote.file })?;
        if let Some(tag) = &answer.facts.linked_tag
            && *tag != remote.tag
        {
            let problem = format!("the entity tag of `{}` changes between requests", remote.file);
            return Err(HubFault::Answer { host: host(&answer.uri), problem }.into());
        }
        self.content(answer, start, &remote.file)
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.base, self.id.repository(), encode(file, "/"))
    }

    /// Where a person can look at the repository.
    fn page(&self) -> String {
        format!("{}/{}", without_secrets(self.base), self.id.repository())
    }

    /// Makes a request, follows redirects, and understands the status.
    fn follow(
        &self,
        method: Method,
        url: &str,
        start: Option<u64>,
        asked: Asked<'_>,
    ) -> Result<Answer, Failure> {
        let mut uri: Uri = url
            .parse()
            .map_err(|_| HubFault::Endpoint { found: without_secrets(&self.options.endpoint) })?;
        let mut facts = Facts::default();
        for _ in 0..=MAX_REDIRECTS {
            let at_hub = same_origin(&uri, &self.endpoint);
            let response = self.send(method, &uri, start, at_hub)?;
            facts.add(response.headers(), &uri)?;
            if let (Asked::File { commit, .. }, Some(found)) = (asked, &facts.commit)
                && found != commit
            {
                let (expected, found) = (commit.to_owned(), printable(found));
                return Err(HubFault::Commit { host: host(&uri), expected, found }.into());
            }
            let status = response.status();
            if !is_redirect(status) {
                self.check_status(&response, &uri, at_hub, asked)?;
                return Ok(Answer { response, uri, facts });
            }
            let next = target(&response, &uri)?;
            // What a HEAD request is for is known: the storage host, which may
            // accept signed GET requests only, is not asked.
            let all = facts.linked_tag.is_some() && facts.linked_size.is_some();
            let enough = facts.linked_tag.is_some() || facts.tag.is_some();
            let leaves = !same_origin(&next, &uri);
            if matches!(method, Method::Head) && (all || enough && leaves) {
                return Ok(Answer { response, uri, facts });
            }
            uri = next;
        }
        Err(HubFault::Redirects { host: host(&uri), limit: MAX_REDIRECTS }.into())
    }

    fn send(
        &self,
        method: Method,
        uri: &Uri,
        start: Option<u64>,
        at_hub: bool,
    ) -> Result<Response<Body>, Failure> {
        let mut request = match method {
            Method::Get => self.agent.get(uri),
            Method::Head => self.agent.head(uri),
        }
        // Sizes and checksums are those of the file, not of a compressed form.
        .header("accept-encoding", "identity");
        if let Some(start) = start {
            request = request.header("range", format!("bytes={start}-"));
        }
        if let Some(token) = self.options.token.as_ref().filter(|_| at_hub) {
            request = request.header("authorization", format!("Bearer {}", token.secret()));
        }
        request.call().map_err(|error| explain(error, uri))
    }

    fn check_status(
        &self,
        response: &Response<Body>,
        uri: &Uri,
        at_hub: bool,
        asked: Asked<'_>,
    ) -> Result<(), Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let (host, endpoint) = (host(uri), without_secrets(self.base));
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let has_token = self.options.token.is_some();
        let status_fault = |host| HubFault::Status { host, status: status.as_u16() };
        let fault = match (code, status.as_u16()) {
            ("GatedRepo", _) => HubFault::Gated { page: self.page() },
            ("RevisionNotFound", _) => HubFault::RevisionMissing {
                revision: self.id.revision().to_owned(),
                page: self.page(),
            },
            ("EntryNotFound", _) => self.entry_missing(asked),
            ("RepoNotFound", _) if has_token => HubFault::RepositoryMissing { endpoint },
            ("RepoNotFound", 404) => HubFault::RepositoryMissing { endpoint },
            (_, 401) if at_hub && has_token => HubFault::TokenRefused { endpoint },
            (_, 401) if at_hub => HubFault::PrivateOrMissing { endpoint },
            (_, 403) if at_hub => HubFault::Forbidden {
                endpoint,
                reason: printable(
                    header(response.headers(), "x-error-message").unwrap_or("status 403"),
                ),
            },
            (_, 404) if at_hub => match asked {
                Asked::Revision => HubFault::RepositoryMissing { endpoint },
                Asked::File { .. } => self.entry_missing(asked),
            },
            // A signed link has run out: the hub gives a new one.
            (_, 401 | 403) => {
                return Err(Failure::Passing { fault: status_fault(host), wait: None });
            }
            (_, 429) => {
                let wait = retry_after(response.headers());
                let shown = wait.unwrap_or(self.options.patience.longest_backoff);
                let fault = HubFault::RateLimited { host, wait: shown };
                return Err(Failure::Passing { fault, wait });
            }
            // The rest that was asked for does not exist: the file here is not the one there.
            (_, 416) => return Err(Failure::Passing { fault: status_fault(host), wait: None }),
            (_, 408 | 500 | 502 | 503 | 504) => {
                let wait = retry_after(response.headers());
                return Err(Failure::Passing { fault: status_fault(host), wait });
            }
            _ => status_fault(host),
        };
        Err(fault.into())
    }

    fn entry_missing(&self, asked: Asked<'_>) -> HubFault {
        match asked {
            Asked::File { file, .. } => {
                HubFault::EntryMissing { file: file.to_owned(), known: Vec::new() }
            }
            Asked::Revision => HubFault::RepositoryMissing { endpoint: without_secrets(self.base) },
        }
    }

    /// The body of an answer, with its place in the file.
    fn content(&self, answer: Answer, asked: u64, file: &str) -> Result<Content, Failure> {
        let host = host(&answer.uri);
        let refuse = |problem: String| HubFault::Answer { host: host.clone(), problem };
        let headers = answer.response.headers();
        if let Some(encoding) = header(headers, "content-encoding")
            && !encoding.eq_ignore_ascii_case("identity")
        {
            return Err(
                refuse(format!("{file} comes in the encoding `{}`", printable(encoding))).into()
            );
        }
        let length = header(headers, "content-length").and_then(|text| text.parse().ok());
        let start = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = header(headers, "content-range").and_then(first_byte);
                if range != Some(asked) {
                    let problem =
                        format!("{file} was asked for from byte {asked} on, another part came");
                    return Err(refuse(problem).into());
                }
                asked
            }
            _ => 0,
        };
        let reader = answer.response.into_body().into_reader();
        let body = Pieces::new(Box::new(reader), answer.uri, self.options.patience.read);
        Ok(Content { host, start, length, body })
    }
}

impl Content {
    /// The next bytes; `None` at the end.
    pub fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        self.body.next()
    }
}

impl Facts {
    fn add(&mut self, headers: &HeaderMap, uri: &Uri) -> Result<(), HubFault> {
        let tag = |name| header(headers, name).map(|tag| normal_tag(tag).to_owned());
        if let Some(commit) = header(headers, "x-repo-commit") {
            self.commit.get_or_insert_with(|| commit.to_owned());
            self.tag = tag("etag").or(self.tag.take());
        }
        if self.linked_tag.is_none() {
            self.linked_tag = tag("x-linked-etag");
        }
        if self.linked_size.is_none()
            && let Some(size) = header(headers, "x-linked-size")
        {
            let size = size.parse().map_err(|_| HubFault::Answer {
                host: host(uri),
                problem: format!("the size `{}` is not a number", printable(size)),
            })?;
            self.linked_size = Some(size);
        }
        Ok(())
    }
}

/// A body, read in pieces that must keep coming.
struct Pieces {
    reader: Box<dyn Read>,
    uri: Uri,
    buffer: Vec<u8>,
    /// Length of time over which the rate is measured.
    window: Duration,
    begun: Instant,
    /// Bytes since `begun`.
    bytes: usize,
}

impl Pieces {
    /// The least rate in bytes per second that counts as an answer.
    const FLOOR: f64 = 1024.0;

    fn new(reader: Box<dyn Read>, uri: Uri, read: Duration) -> Self {
        let (window, begun) = (read.saturating_mul(2), Instant::now());
        Self { reader, uri, buffer: vec![0; CHUNK], window, begun, bytes: 0 }
    }

    fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        let n = loop {
            match self.reader.read(&mut self.buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(error.into(), &self.uri)),
                Ok(n) => break n,
            }
        };
        self.bytes += n;
        let elapsed = self.begun.elapsed();
        if elapsed >= self.window {
            if (self.bytes as f64) < Self::FLOOR * elapsed.as_secs_f64() && n > 0 {
                let fault = HubFault::Timeout {
                    host: host(&self.uri),
                    waited: "it sends less than a kibibyte per second",
                };
                return Err(Failure::Passing { fault, wait: None });
            }
            (self.begun, self.bytes) = (Instant::now(), 0);
        }
        Ok((n > 0).then(|| &self.buffer[..n]))
    }
}

/// Counts attempts and waits between them.
pub(super) struct Attempts<'a> {
    patience: &'a super::Patience,
    failed: u32,
}

impl<'a> Attempts<'a> {
    pub fn new(patience: &'a super::Patience) -> Self {
        Self { patience, failed: 0 }
    }

    /// The last attempt brought something: what failed before it no longer counts.
    pub fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits for the next attempt, or gives the fault back if there is none.
    pub fn wait(
        &mut self,
        failure: Failure,
        events: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<(), HubFault> {
        let (fault, asked) = match failure {
            Failure::Final(fault) => return Err(fault),
            Failure::Passing { fault, wait } => (fault, wait),
        };
        self.failed += 1;
        let own = self.patience.backoff.saturating_mul(1 << (self.failed - 1).min(16));
        let wait = asked.unwrap_or(Duration::ZERO).max(own.min(self.patience.longest_backoff));
        // Asked to come back much later, nobody should wait in silence.
        if self.failed >= self.patience.attempts || wait > self.patience.longest_backoff {
            return Err(fault);
        }
        events(HubEvent::Retry { reason: &fault, wait });
        std::thread::sleep(wait);
        Ok(())
    }
}

#[derive(Deserialize)]
struct List {
    sha: Option<String>,
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

fn parse_repository(host: &str, text: &[u8]) -> Result<Repository, HubFault> {
    let refuse = |problem: String| HubFault::Answer { host: host.to_owned(), problem };
    let list: List = serde_json::from_slice(text).map_err(|error| {
        // The library repeats what it does not expect, at whatever length.
        let error = printable(&error.to_string());
        refuse(format!("the list of files is not the JSON that it should be ({error})"))
    })?;
    let commit = list
        .sha
        .filter(|sha| is_commit(sha))
        .ok_or_else(|| refuse("the list of files names no commit".to_owned()))?;
    let siblings =
        list.siblings.ok_or_else(|| refuse("the list of files is missing".to_owned()))?;
    let mut files = Vec::with_capacity(siblings.len());
    for name in siblings.into_iter().map(|sibling| sibling.rfilename) {
        // Git allows these characters, so they are no sign of malice; files with
        // such names are never wanted.
        if name.contains(['\\', ':']) && is_inside(&name.replace(['\\', ':'], "_")) {
            continue;
        }
        if !is_inside(&name) {
            return Err(HubFault::FileName { name: printable(&name) });
        }
        files.push(name);
    }
    files.sort_unstable();
    Ok(Repository { commit, files })
}

/// What an error of the HTTP library means.
fn explain(error: ureq::Error, uri: &Uri) -> Failure {
    use ureq::Error as E;
    let host = host(uri);
    let passing = |fault| Failure::Passing { fault, wait: None };
    match error {
        E::HostNotFound => passing(HubFault::Dns { host }),
        // The standard library has no kind for failed name resolution.
        E::Io(error) if error.to_string().starts_with("failed to lookup address") => {
            passing(HubFault::Dns { host })
        }
        // The TLS library reports what it does not understand or trust this way.
        E::Io(error)
            if error.kind() == std::io::ErrorKind::InvalidData
                && uri.scheme_str() == Some("https") =>
        {
            HubFault::Tls { host, reason: error.to_string() }.into()
        }
        E::Io(source) => passing(HubFault::Connection { host, source }),
        E::ConnectionFailed => {
            let source = std::io::ErrorKind::NotConnected.into();
            passing(HubFault::Connection { host, source })
        }
        E::Timeout(timeout) => {
            let waited = match timeout {
                ureq::Timeout::Resolve => "resolving its name",
                ureq::Timeout::Connect => "connecting",
                _ => "waiting for data",
            };
            passing(HubFault::Timeout { host, waited })
        }
        E::Rustls(error) => HubFault::Tls { host, reason: error.to_string() }.into(),
        E::Tls(reason) => HubFault::Tls { host, reason: reason.to_owned() }.into(),
        E::Pem(_) | E::TlsRequired => {
            HubFault::Tls { host, reason: "the certificates cannot be read".to_owned() }.into()
        }
        E::ConnectProxyFailed(reason) => HubFault::Proxy { host, reason }.into(),
        E::InvalidProxyUrl => {
            HubFault::Proxy { host, reason: "its address is not one".to_owned() }.into()
        }
        other => HubFault::Answer { host, problem: printable(&other.to_string()) }.into(),
    }
}

/// Where a redirect leads.
fn target(response: &Response<Body>, from: &Uri) -> Result<Uri, HubFault> {
    let refuse = |problem| HubFault::RedirectTarget { host: host(from), problem };
    let location = header(response.headers(), "location").ok_or_else(|| refuse("it names none"))?;
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map_or("", |authority| authority.as_str());
    // Behind a path or a question mark, it is no scheme.
    let is_scheme =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let absolute = if location.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = absolute.parse().map_err(|_| refuse("it is not an address"))?;
    if !is_http(&uri) {
        return Err(refuse("it is neither http nor https, or holds a password"));
    }
    if scheme == "https" && uri.scheme_str() == Some("http") {
        return Err(refuse("it leads from https to http"));
    }
    Ok(uri)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// An address of `http` or `https` with a host and no password.
fn is_http(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && uri.host().is_some_and(|host| !host.is_empty())
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            _ => Some(80),
        })
    };
    let same_host = match (a.host(), b.host()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    };
    a.scheme() == b.scheme() && same_host && port(a) == port(b)
}

/// The host for messages; the rest of an address may hold a signature.
fn host(uri: &Uri) -> String {
    match (uri.host(), uri.port_u16()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => "the hub".to_owned(),
    }
}

/// An address for messages, without a password.
fn without_secrets(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match (endpoint.split_once("://"), endpoint.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        _ => printable(endpoint),
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// An entity tag without its mark of weakness and its quotes.
fn normal_tag(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"')
}

/// Seconds that the host asks to wait; dates are not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header(headers, "retry-after")?.parse().ok().map(Duration::from_secs)
}

/// The first byte of `bytes FIRST-LAST/TOTAL`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// What a host says, short and without control characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

/// Percent-encodes all but unreserved characters and those in `keep`.
fn encode(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || b"-_.~".contains(&byte)
            || keep.as_bytes().contains(&byte)
        {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn read_certificates(path: &std::path::Path) -> Option<RootCerts> {
    let mut pem = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_CERTIFICATES).read_to_end(&mut pem).ok()?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    (!certificates.is_empty()).then(|| RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(from: &str, location: &str) -> Result<String, HubFault> {
        let response = Response::builder()
            .status(302)
            .header("location", location)
            .body(Body::builder().data(""))
            .unwrap();
        target(&response, &from.parse().unwrap()).map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_are_resolved_and_never_leave_https() {
        let from = "https://hub/a/b?q";
        assert_eq!(redirect(from, "https://cdn/x?sig=1").unwrap(), "https://cdn/x?sig=1");
        assert_eq!(redirect(from, "//cdn/x").unwrap(), "https://cdn/x");
        assert_eq!(redirect(from, "/x").unwrap(), "https://hub/x");
        assert_eq!(redirect(from, "x").unwrap(), "https://hub/a/x");
        assert_eq!(redirect(from, "/x?u=http://y").unwrap(), "https://hub/x?u=http://y");
        assert_eq!(redirect(from, "x?u=http://y").unwrap(), "https://hub/a/x?u=http://y");
        assert_eq!(redirect("http://hub/a", "https://cdn/x").unwrap(), "https://cdn/x");
        for bad in [
            "http://hub/x",
            "ftp://hub/x",
            "file:///etc/passwd",
            "https://u:p@hub/",
            "https://",
            "/a b",
        ] {
            let fault = redirect(from, bad).unwrap_err();
            assert!(matches!(fault, HubFault::RedirectTarget { .. }), "{bad}: {fault}");
            assert!(!fault.to_string().contains("u:p"), "{fault}");
        }
    }

    #[test]
    fn only_the_hub_itself_is_the_hub() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://hub/a", "https://HUB:443/b"));
        for other in
            ["http://hub/a", "https://hub:444/a", "https://cdn.hub/a", "https://hub.evil/a"]
        {
            assert!(!same("https://hub/", other), "{other}");
        }
    }

    #[test]
    fn addresses_and_tags_are_written_as_the_hub_has_them() {
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü.json", "/"), "a%20b/%C3%BC.json");
        assert_eq!(normal_tag("W/\"abc\""), "abc");
        assert_eq!(normal_tag("\"abc\""), "abc");
        assert_eq!(first_byte("bytes 10-19/20"), Some(10));
        assert_eq!(first_byte("10-19/20"), None);
        assert_eq!(without_secrets("https://u:p@hub/x/"), "https://hub/x");
    }

    #[test]
    fn the_list_of_files_is_checked() {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        let list = |names: &str| {
            parse_repository("hub", format!(r#"{{"sha":"{sha}","siblings":[{names}]}}"#).as_bytes())
        };
        let good = list(r#"{"rfilename":"a/b.json","size":1},{"rfilename":"x\\y"}"#).unwrap();
        assert_eq!((good.commit.as_str(), good.files), (sha, vec!["a/b.json".to_owned()]));
        for name in ["../x", "/etc/passwd", "a/../../x", "a\\u0000b", "", "..\\\\..\\\\x"] {
            let result = list(&format!(r#"{{"rfilename":"{name}"}}"#));
            match name {
                "..\\\\..\\\\x" => assert!(result.unwrap().files.is_empty()),
                _ => assert!(matches!(result, Err(HubFault::FileName { .. })), "{name}"),
            }
        }
        for text in
            ["", "[]", "{}", r#"{"sha":"main","siblings":[]}"#, r#"{"sha":"../../../x"}"#, "<html>"]
        {
            let fault = parse_repository("hub", text.as_bytes()).unwrap_err();
            assert!(matches!(fault, HubFault::Answer { .. }), "{text}: {fault}");
        }
        let long = format!(r#"{{"sha":"{sha}","siblings":"{}"}}"#, "x".repeat(1 << 20));
        let fault = parse_repository("hub", long.as_bytes()).unwrap_err();
        assert!(fault.to_string().len() < 500, "{} bytes", fault.to_string().len());
    }
}
