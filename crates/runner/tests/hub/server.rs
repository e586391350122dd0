//! A hub on loopback: the parts of its HTTP interface that fetching a model uses,
//! with a second port for the storage host that large files are redirected to.
//!
//! A test changes what it does by answering some requests itself ([`Hub::on`]).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The repository that the hub has.
pub const MODEL: &str = "org/tiny";
/// Its first commit.
pub const FIRST: &str = "1111111111111111111111111111111111111111";

pub type Files = BTreeMap<String, Vec<u8>>;

/// Which of the two ports a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Hub,
    Storage,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub port: Port,
    pub method: String,
    /// Path and query.
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// The first byte asked for, if only a part is.
    pub fn range(&self) -> Option<usize> {
        let range = self.headers.get("range")?;
        range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }

    /// A request for content, to either port.
    pub fn gets(&self, port: Port, part: &str) -> bool {
        self.port == port && self.is("GET", part)
    }
}

/// How a body is sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    Whole,
    /// The connection ends after so many bytes.
    Cut(usize),
    /// After so many bytes nothing comes for so long.
    Stall(usize, Duration),
    /// A byte at a time, with a pause before each.
    Trickle(Duration),
    /// Nothing for so long.
    Silent(Duration),
    /// More and more, until the other side has enough.
    Endless,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub pace: Pace,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), pace: Pace::Whole }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        Self::new(status).header("X-Error-Code", code).header("X-Error-Message", message)
    }
}

type Answer = Box<dyn Fn(&Request, &Hub) -> Option<Reply> + Send + Sync>;

struct Repository {
    /// Commits of branches and tags.
    revisions: BTreeMap<String, String>,
    commits: BTreeMap<String, Files>,
    /// The token that may read it.
    token: Option<String>,
}

struct Shared {
    repository: Mutex<Repository>,
    answers: Mutex<Vec<Arc<Answer>>>,
    requests: Mutex<Vec<Request>>,
    stop: AtomicBool,
    ports: [u16; 2],
}

#[derive(Clone)]
pub struct Hub(Arc<Shared>);

/// Stops the hub's threads when it goes.
pub struct Running {
    pub hub: Hub,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.hub.0.stop.store(true, Ordering::SeqCst);
        for port in self.hub.0.ports {
            drop(TcpStream::connect(("127.0.0.1", port)));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Starts a hub whose `main` has these files.
pub fn start(files: Files) -> Running {
    let listeners = [Port::Hub, Port::Storage]
        .map(|port| (port, TcpListener::bind("127.0.0.1:0").expect("a free port")));
    let ports = [0, 1].map(|i| listeners[i].1.local_addr().expect("an address").port());
    let repository = Repository {
        revisions: BTreeMap::from([("main".to_owned(), FIRST.to_owned())]),
        commits: BTreeMap::from([(FIRST.to_owned(), files)]),
        token: None,
    };
    let hub = Hub(Arc::new(Shared {
        repository: Mutex::new(repository),
        answers: Mutex::default(),
        requests: Mutex::default(),
        stop: AtomicBool::new(false),
        ports,
    }));
    let threads = listeners.map(|(port, listener)| {
        let hub = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if hub.0.stop.load(Ordering::SeqCst) {
                    break;
                }
                let hub = hub.clone();
                if let Ok(stream) = stream {
                    std::thread::spawn(move || hub.serve(port, stream));
                }
            }
        })
    });
    Running { hub, threads: threads.into() }
}

impl Hub {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.ports[0])
    }

    pub fn storage(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.ports[1])
    }

    /// A new commit with these files, and the branch that points to it.
    pub fn push(&self, revision: &str, commit: &str, files: Files) {
        let mut repository = self.0.repository.lock().unwrap();
        repository.revisions.insert(revision.to_owned(), commit.to_owned());
        repository.commits.insert(commit.to_owned(), files);
    }

    /// Only this token may read the repository.
    pub fn require(&self, token: &str) {
        self.0.repository.lock().unwrap().token = Some(token.to_owned());
    }

    /// Answers some requests in the hub's place; the latest rule comes first.
    pub fn on(&self, answer: impl Fn(&Request, &Hub) -> Option<Reply> + Send + Sync + 'static) {
        self.0.answers.lock().unwrap().insert(0, Arc::new(Box::new(answer)));
    }

    /// As [`on`](Self::on), but only for the first `times` requests that match.
    pub fn first(
        &self,
        times: usize,
        answer: impl Fn(&Request, &Hub) -> Option<Reply> + Send + Sync + 'static,
    ) {
        let left = Mutex::new(times);
        self.on(move |request, hub| {
            let mut left = left.lock().unwrap();
            if *left == 0 {
                return None;
            }
            let reply = answer(request, hub)?;
            *left -= 1;
            Some(reply)
        });
    }

    /// Forgets all rules.
    pub fn behave(&self) {
        self.0.answers.lock().unwrap().clear();
    }

    /// All requests so far; they are forgotten.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.0.requests.lock().unwrap())
    }

    fn serve(&self, port: Port, stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let Some(request) = read_request(port, &stream) else {
            return;
        };
        self.0.requests.lock().unwrap().push(request.clone());
        let answers = self.0.answers.lock().unwrap().clone();
        let reply = answers
            .iter()
            .find_map(|answer| answer(&request, self))
            .unwrap_or_else(|| self.answer(&request));
        // Whoever hangs up has seen enough.
        let _ = send(stream, &request, reply);
    }

    /// What a hub answers.
    pub fn answer(&self, request: &Request) -> Reply {
        let repository = self.0.repository.lock().unwrap();
        let path = request.path.split('?').next().unwrap();
        if request.port == Port::Storage {
            let name = path.trim_start_matches("/blob/");
            let mut all = repository.commits.values().flat_map(Files::values);
            return match all.find(|content| sha256(content) == name) {
                Some(content) => part(content, request.range()),
                None => Reply::new(404),
            };
        }
        let authorization = request.headers.get("authorization").map(String::as_str);
        if let Some(token) = &repository.token {
            match authorization {
                None => return Reply::error(401, "RepoNotFound", "Invalid username or password."),
                Some(given) if given != format!("Bearer {token}") => {
                    return Reply::new(401)
                        .header("X-Error-Message", "Invalid credentials in Authorization header");
                }
                Some(_) => {}
            }
        }
        if let Some(revision) = path.strip_prefix(&format!("/api/models/{MODEL}/revision/")) {
            let revision = revision.replace("%2F", "/");
            let commit = repository.revisions.get(&revision).unwrap_or(&revision);
            let Some(files) = repository.commits.get(commit) else {
                return Reply::error(404, "RevisionNotFound", "Invalid rev id");
            };
            let siblings: Vec<_> =
                files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let list = serde_json::json!({ "id": MODEL, "sha": commit, "siblings": siblings });
            return Reply::new(200).body(list.to_string());
        }
        // Small files lie in a cache of the hub's own, behind a relative redirect.
        let resolved = path.strip_prefix(&format!("/{MODEL}/resolve/"));
        let behind = path.strip_prefix(&format!("/api/resolve-cache/models/{MODEL}/"));
        let Some((commit, name)) = resolved.or(behind).and_then(|rest| rest.split_once('/')) else {
            return Reply::error(404, "RepoNotFound", "Repository not found");
        };
        let Some(content) = repository.commits.get(commit).and_then(|files| files.get(name)) else {
            return Reply::error(404, "EntryNotFound", "Entry not found");
        };
        let large = [".safetensors", ".gguf"].iter().any(|kind| name.ends_with(kind));
        let reply = if large {
            let sha = sha256(content);
            let place = format!("{}/blob/{sha}?Signature=hidden", self.storage());
            Reply::new(302)
                .header("Location", place)
                .header("X-Linked-ETag", format!("\"{sha}\""))
                .header("X-Linked-Size", content.len())
                .header("ETag", "\"of-the-pointer\"")
        } else if resolved.is_some() && name.starts_with("tokenizer") {
            Reply::new(307)
                .header("Location", format!("/api/resolve-cache/models/{MODEL}/{commit}/{name}"))
        } else {
            part(content, request.range()).header("ETag", format!("\"{}\"", git_sha1(content)))
        };
        reply.header("X-Repo-Commit", commit)
    }
}

/// A whole file, or its end.
pub fn part(content: &[u8], start: Option<usize>) -> Reply {
    let total = content.len();
    match start {
        None => Reply::new(200).body(content),
        Some(start) if start >= total => {
            Reply::new(416).header("Content-Range", format!("bytes */{total}"))
        }
        Some(start) => Reply::new(206)
            .header("Content-Range", format!("bytes {start}-{}/{total}", total - 1))
            .body(&content[start..]),
    }
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Git's name for a file's content.
pub fn git_sha1(content: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_request(port: Port, stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(1 << 20)).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Some(Request { port, method, path, headers })
}

fn send(mut stream: TcpStream, request: &Request, reply: Reply) -> std::io::Result<()> {
    if let Pace::Silent(pause) = reply.pace {
        std::thread::sleep(pause);
    }
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    let has = |name: &str| reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !has("content-length") && !has("transfer-encoding") && !matches!(reply.pace, Pace::Endless) {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match reply.pace {
        Pace::Whole | Pace::Silent(_) => stream.write_all(&reply.body),
        Pace::Cut(bytes) => stream.write_all(&reply.body[..bytes.min(reply.body.len())]),
        Pace::Stall(bytes, pause) => {
            let (first, rest) = reply.body.split_at(bytes.min(reply.body.len()));
            stream.write_all(first)?;
            std::thread::sleep(pause);
            stream.write_all(rest)
        }
        Pace::Trickle(pause) => reply.body.iter().try_for_each(|byte| {
            std::thread::sleep(pause);
            stream.write_all(&[*byte])
        }),
        Pace::Endless => loop {
            stream.write_all(&[b' '; 4096])?;
        },
    }
}
