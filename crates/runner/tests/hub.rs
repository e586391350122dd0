//! Models by hub id, against a hub on loopback: what is fetched, where it goes,
//! what happens when something breaks, and what each error says.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "hub/server.rs"]
mod server;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runner::{
    Error, Fault, HubEvent, HubFault, HubOptions, LoadOptions, Model, Network, Origin, Patience,
    Proxies, Resolved, Source, Token,
};
use tempfile::TempDir;

use server::{FIRST, Files, Hub, MODEL, Pace, Port, Reply, Running, git_sha1, part, sha256};

const SECOND: &str = "2222222222222222222222222222222222222222";
const SECRET: &str = "hf_topsecret";

/// Files of a golden model, as a repository has them: with much that is not wanted.
fn golden(name: &str) -> Files {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name);
    let mut files: Files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.to_string_lossy().contains("expected"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into(), fs::read(path).unwrap()))
        .collect();
    for unwanted in [
        "README.md",
        ".gitattributes",
        "pytorch_model.bin",
        "model.pth",
        "onnx/model.onnx",
        "model.q4.gguf",
        "model-00009-of-00009.safetensors",
        "image.png",
        "odd\\name",
    ] {
        files.insert(unwanted.to_owned(), b"unwanted".to_vec());
    }
    files
}

/// Bytes that look like nothing else.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..n).map(step).collect()
}

/// A model that is fetched, but not read.
fn small() -> Files {
    Files::from([
        ("config.json".to_owned(), b"{\"model_type\": \"llama\"}".to_vec()),
        ("tokenizer.json".to_owned(), b"{\"version\": \"1.0\"}".to_vec()),
        ("model.safetensors".to_owned(), noise(700_000)),
    ])
}

fn weights() -> Vec<u8> {
    small().remove("model.safetensors").unwrap()
}

struct Setup {
    running: Running,
    cache: TempDir,
    options: HubOptions,
}

impl Setup {
    fn new(files: Files) -> Self {
        let (running, cache) = (server::start(files), tempfile::tempdir().unwrap());
        let mut options = HubOptions::from_variables(|_| None, None);
        options.endpoint = running.hub.url();
        options.cache = Some(cache.path().to_owned());
        options.proxies = Proxies::Direct;
        options.patience = Patience {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(10),
            backoff: Duration::from_millis(2),
            longest_backoff: Duration::from_secs(2),
            attempts: 3,
            lock: Duration::from_secs(20),
        };
        Self { running, cache, options }
    }

    fn hub(&self) -> &Hub {
        &self.running.hub
    }

    /// A path in the model's part of the cache.
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.cache.path().join("models--org--tiny").join(name)
    }

    fn partial(&self) -> PathBuf {
        self.path("blobs").join(format!("{}.incomplete", sha256(&weights())))
    }

    fn resolve(&self, spec: &str) -> Result<Resolved, Error> {
        Source::resolve_with(spec, &self.options, &mut |_| {})
    }

    /// Resolves to a snapshot whose files are these.
    #[track_caller]
    fn fetch(&self, spec: &str, commit: &str, files: &Files) {
        let found = self.resolve(spec).unwrap();
        let origin = Origin { model: MODEL.to_owned(), commit: commit.to_owned() };
        assert_eq!(found.origin, Some(origin));
        assert_eq!(found.source, Source::Folder(self.path("snapshots").join(commit)));
        for (name, content) in files {
            assert!(fs::read(found.source.path().join(name)).unwrap() == *content, "{name}");
        }
    }

    /// Why a model cannot be had, and the whole message.
    #[track_caller]
    fn fault(&self, spec: &str) -> (HubFault, String) {
        let error = self.resolve(spec).unwrap_err();
        assert_eq!(error.fault(), Fault::Model);
        let text = error.to_string();
        assert!(text.starts_with(&format!("{spec}: ")), "{text}");
        assert!(!text.contains(SECRET) && !text.contains("Signature"), "{text}");
        assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
        match error {
            Error::Hub { fault, .. } => (*fault, text),
            other => panic!("{other}"),
        }
    }
}

/// Fails unless the fault is of this form and its message holds these words.
macro_rules! assert_fault {
    ($setup:expr, $spec:expr, $pattern:pat $(if $guard:expr)?, $($word:expr),+ $(,)?) => {{
        let (fault, text) = $setup.fault($spec);
        assert!(matches!(&fault, $pattern $(if $guard)?), "{fault:?}");
        $(assert!(text.contains(AsRef::<str>::as_ref(&$word)), "{text}");)+
    }};
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_fetched_once_and_loads() {
    let mut files = golden("llama-a");
    files.insert("tokenizer.json".to_owned(), b"{}".to_vec());
    let setup = Setup::new(files.clone());
    let found = setup.resolve(MODEL).unwrap();
    Model::load(&found.source, &LoadOptions::default()).unwrap();
    assert_eq!(found.origin.unwrap().commit, FIRST);

    // The layout is that of other programs.
    let snapshot = setup.path("snapshots").join(FIRST);
    assert_eq!(names(&snapshot), ["config.json", "model.safetensors", "tokenizer.json"]);
    let config = git_sha1(&files["config.json"]);
    let link = fs::read_link(snapshot.join("config.json")).unwrap();
    assert_eq!(link, Path::new(&format!("../../blobs/{config}")));
    let mut blobs =
        [config, git_sha1(b"{}"), sha256(&files["model.safetensors"])].map(String::from);
    blobs.sort();
    assert_eq!(names(&setup.path("blobs")), blobs);
    assert_eq!(fs::read_to_string(setup.path("refs/main")).unwrap(), FIRST);
    let absent = names(&setup.path(".no_exist").join(FIRST));
    assert!(absent.contains(&"tokenizer_config.json".to_owned()), "{absent:?}");
    assert_eq!(names(&setup.cache.path().join(".locks/models--org--tiny")).len(), 3);

    // Nothing else was asked for.
    for request in setup.hub().requests() {
        let wanted =
            ["revision/main", "config.json", "tokenizer.json", "model.safetensors", "blob/"];
        assert!(wanted.iter().any(|part| request.path.contains(part)), "{request:?}");
    }
    // The second time, only the branch is; a commit needs no question at all.
    setup.fetch(MODEL, FIRST, &Files::new());
    assert_eq!(setup.hub().requests().len(), 1);
    setup.fetch(&format!("{MODEL}@{FIRST}"), FIRST, &Files::new());
    assert_eq!(setup.hub().requests().len(), 0);
}

#[test]
fn exactly_the_shards_of_the_index_are_fetched() {
    let files = golden("llama-b");
    let setup = Setup::new(files);
    let mut seen = (0, 0);
    let found = Source::resolve_with(MODEL, &setup.options, &mut |event| {
        if let HubEvent::Bytes { done, total, file } = event {
            assert!(done <= total, "{file}: {done} of {total}");
            seen = (done, total);
        }
    });
    Model::load(&found.unwrap().source, &LoadOptions::default()).unwrap();
    assert_eq!(seen, (60752 + 44032 + 45912, 60752 + 44032 + 45912));
    let expected = [
        "config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names(&setup.path("snapshots").join(FIRST)), expected);
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let setup = Setup::new(small());
    let mut changed = small();
    changed.insert("config.json".to_owned(), b"{\"changed\": true}".to_vec());
    setup.hub().push("refs/pr/1", SECOND, changed.clone());
    setup.fetch(&format!("{MODEL}@refs/pr/1"), SECOND, &changed);
    assert_eq!(fs::read_to_string(setup.path("refs/refs/pr/1")).unwrap(), SECOND);
    setup.hub().requests();
    setup.fetch(&format!("{MODEL}@{FIRST}"), FIRST, &small());
    assert!(!setup.path("refs").join(FIRST).exists());
    // Weights that both commits share are stored and fetched once.
    let again = setup.hub().requests().iter().filter(|r| r.port == Port::Storage).count();
    assert_eq!((again, names(&setup.path("blobs")).len()), (0, 4));

    assert_fault!(setup, "org/tiny@v9", HubFault::RevisionMissing { revision, .. } if revision == "v9",
        "no revision `v9`", "name a branch, a tag or a commit of", "/org/tiny");
    setup.hub().on(|request, _| {
        let list = format!("{{\"sha\": \"{SECOND}\", \"siblings\": []}}");
        request.path.contains("revision/").then(|| Reply::new(200).body(list))
    });
    let other = "org/tiny@3333333333333333333333333333333333333333";
    assert_fault!(setup, other, HubFault::Commit { found, .. } if found == SECOND, "was asked for");
}

#[test]
fn a_push_meanwhile_mixes_nothing() {
    let setup = Setup::new(small());
    setup.hub().first(1, |request, hub| {
        let reply = hub.answer(request);
        let pushed = [("config.json".to_owned(), b"new".to_vec())].into();
        hub.push("main", SECOND, pushed);
        Some(reply)
    });
    setup.fetch(MODEL, FIRST, &small());

    // A host that answers with another commit is not believed.
    let setup = Setup::new(small());
    setup.hub().on(|request, hub| {
        let reply = hub.answer(request).header("X-Repo-Commit", SECOND);
        request.path.contains("/resolve/").then_some(reply)
    });
    assert_fault!(setup, MODEL, HubFault::Commit { expected, .. } if expected == FIRST,
        FIRST, SECOND, "start again");
}

#[test]
fn an_interrupted_update_leaves_the_older_snapshot() {
    let mut setup = Setup::new(small());
    setup.fetch(MODEL, FIRST, &small());
    let mut changed = small();
    changed.insert("model.safetensors".to_owned(), b"other weights".to_vec());
    setup.hub().push("main", SECOND, changed.clone());
    setup.hub().on(|request, _| request.gets(Port::Storage, "").then(|| Reply::new(404)));
    assert_fault!(setup, MODEL, HubFault::Status { status: 404, .. }, "status 404");
    setup.options.network = Network::Offline;
    setup.fetch(MODEL, FIRST, &small());
    setup.options.network = Network::Online;
    setup.hub().behave();
    setup.fetch(MODEL, SECOND, &changed);
}

#[test]
fn who_may_not_read_a_model_is_told_why() {
    let mut setup = Setup::new(small());
    setup.hub().require(SECRET);
    assert_fault!(
        setup,
        MODEL,
        HubFault::PrivateOrMissing { .. },
        "no such model, or it is private",
        "set HF_TOKEN"
    );
    setup.options.token = Token::new("hf_expired");
    assert_fault!(setup, MODEL, HubFault::TokenRefused { .. }, "wrong or has expired");
    setup.options.token = Token::new("hf_\u{e9}\r\nHost: x");
    assert_fault!(setup, MODEL, HubFault::TokenForm, "printable ASCII");
    setup.options.token = Token::new(SECRET);
    assert_fault!(
        setup,
        "org/absent",
        HubFault::RepositoryMissing { .. },
        setup.hub().url(),
        "has no such model, and no folder of this name is here; check its spelling"
    );
    setup.fetch(MODEL, FIRST, &small());

    let gated = |status: u16| {
        move |request: &server::Request, _: &Hub| {
            let reply = Reply::new(status).header("X-Error-Code", "GatedRepo");
            request.path.contains("/api/models/").then_some(reply)
        }
    };
    let page = format!("accept its terms at {}/org/tiny, then set HF_TOKEN", setup.hub().url());
    for status in [401, 403] {
        setup.hub().on(gated(status));
        assert_fault!(setup, MODEL, HubFault::Gated { .. }, "gated", page);
    }
    setup.hub().on(|_, _| {
        Some(Reply::new(403).header("X-Error-Message", "Access to this resource is disabled."))
    });
    assert_fault!(setup, MODEL, HubFault::Forbidden { .. }, "Access to this resource is disabled.");
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let mut setup = Setup::new(small());
    setup.hub().require(SECRET);
    setup.options.token = Token::new(SECRET);
    // Even where the storage host would like to see it.
    setup.hub().first(1, |request, _| {
        let reply = Reply::new(401).header("WWW-Authenticate", "Bearer");
        request.gets(Port::Storage, "").then_some(reply)
    });
    setup.fetch(MODEL, FIRST, &small());
    let requests = setup.hub().requests();
    assert!(requests.iter().any(|request| request.port == Port::Storage));
    for request in requests {
        let sent = request.headers.get("authorization").map(String::as_str);
        let expected = format!("Bearer {SECRET}");
        assert_eq!(sent, (request.port == Port::Hub).then_some(expected.as_str()), "{request:?}");
        assert!(!request.path.contains(SECRET));
    }
    assert!(!format!("{:?}", setup.options).contains(SECRET));
}

#[test]
fn what_a_repository_lacks_is_named() {
    let mut files = small();
    files.remove("config.json");
    let setup = Setup::new(files);
    assert_fault!(setup, MODEL, HubFault::EntryMissing { file, .. } if file == "config.json",
        "no file `config.json`", "it has tokenizer.json");

    let setup = Setup::new(Files::from([
        ("config.json".to_owned(), b"{}".to_vec()),
        ("pytorch_model.bin".to_owned(), b"pickle".to_vec()),
    ]));
    assert_fault!(
        setup,
        MODEL,
        HubFault::Weights { gguf: None, .. },
        "neither model.safetensors nor model.safetensors.index.json",
        "its weights are pytorch_model.bin; give a model that is stored as safetensors"
    );
    let mut files = small();
    files.remove("model.safetensors");
    files.insert("tiny.Q4_0.gguf".to_owned(), noise(5000));
    let setup = Setup::new(files);
    assert_fault!(
        setup,
        MODEL,
        HubFault::Weights { gguf: Some(_), .. },
        "append its name to the id, as in `:tiny.Q4_0.gguf`"
    );
    assert_eq!(setup.hub().requests().iter().filter(|r| r.path.contains("resolve")).count(), 0);
    // Whoever has GGUF files only, or weights elsewhere, is told so, and not of a configuration.
    let one = |name: &str| Setup::new(Files::from([(name.to_owned(), noise(50))]));
    assert_fault!(one("a.gguf"), MODEL, HubFault::Weights { .. }, "append its name", "`:a.gguf`");
    assert_fault!(
        one("sub/model.safetensors"),
        MODEL,
        HubFault::Weights { gguf: None, .. },
        "its weights are sub/model.safetensors; safetensors files of other names or in subfolders"
    );

    // And so it is fetched.
    let found = setup.resolve("org/tiny@main:tiny.Q4_0.gguf").unwrap();
    let path = setup.path("snapshots").join(FIRST).join("tiny.Q4_0.gguf");
    assert_eq!(found.source, Source::Gguf(path.clone()));
    assert_eq!(found.origin.unwrap().model, "org/tiny:tiny.Q4_0.gguf");
    assert_eq!(fs::read(path).unwrap(), noise(5000));
    assert_eq!(names(&setup.path("blobs")).len(), 1);
    assert_fault!(setup, "org/tiny:other.gguf", HubFault::EntryMissing { known, .. }
        if known == &["tiny.Q4_0.gguf"], "no file `other.gguf`; it has tiny.Q4_0.gguf");

    // Of a model in several files, all are.
    let parts = [1, 2, 3].map(|i| format!("big-0000{i}-of-00003.gguf"));
    let content = |part: &String| part.clone().into_bytes();
    let setup = Setup::new(parts.iter().map(|part| (part.clone(), content(part))).collect());
    let found = setup.resolve(&format!("{MODEL}:{}", parts[0])).unwrap();
    let snapshot = setup.path("snapshots").join(FIRST);
    assert_eq!(found.source, Source::Gguf(snapshot.join(&parts[0])));
    assert_eq!(names(&snapshot), parts);

    // Gone between the list and the request.
    let setup = Setup::new(small());
    setup.hub().on(|request, _| {
        let reply = Reply::new(404).header("X-Error-Code", "EntryNotFound");
        request.path.contains("/tokenizer.json").then_some(reply)
    });
    assert_fault!(setup, MODEL, HubFault::EntryMissing { file, .. } if file == "tokenizer.json",
        "no file `tokenizer.json`");
}

#[test]
fn passing_failures_are_tried_again_and_lasting_ones_reported() {
    let setup = Setup::new(small());
    setup.hub().first(2, |request, _| {
        let reply = Reply::new(503).header("Retry-After", 0);
        request.path.contains("revision").then_some(reply)
    });
    setup.hub().first(2, |request, _| request.is("HEAD", "resolve").then(|| Reply::new(429)));
    setup.hub().first(2, |request, _| request.gets(Port::Storage, "").then(|| Reply::new(500)));
    let mut retries = 0;
    Source::resolve_with(MODEL, &setup.options, &mut |event| {
        if let HubEvent::Retry { reason, wait } = event {
            let status = matches!(reason, HubFault::Status { .. } | HubFault::RateLimited { .. });
            assert!(status && wait <= Duration::from_secs(2), "{reason:?}");
            retries += 1;
        }
    })
    .unwrap();
    assert_eq!(retries, 6);

    let setup = Setup::new(small());
    setup.hub().on(|request, _| request.gets(Port::Storage, "").then(|| Reply::new(502)));
    assert_fault!(
        setup,
        MODEL,
        HubFault::Status { status: 502, .. },
        "status 502; try again later"
    );
    let tries = setup.hub().requests().iter().filter(|r| r.port == Port::Storage).count();
    assert_eq!(tries, 3);
    // Nobody waits an hour in silence.
    setup.hub().on(|_, _| Some(Reply::new(429).header("Retry-After", 3600)));
    assert_fault!(setup, MODEL, HubFault::RateLimited { .. }, "try again in 3600 s");
    assert_eq!(setup.hub().requests().len(), 1);
    setup.hub().on(|_, _| Some(Reply::new(418)));
    assert_fault!(setup, MODEL, HubFault::Status { status: 418, .. }, "status 418");
}

#[test]
fn a_dropped_connection_is_resumed_where_it_broke() {
    let setup = Setup::new(small());
    setup.hub().first(2, |request, hub| {
        let reply = hub.answer(request).pace(Pace::Cut(100_000));
        request.gets(Port::Storage, "").then_some(reply)
    });
    setup.fetch(MODEL, FIRST, &small());
    let ranges: Vec<Option<usize>> = setup
        .hub()
        .requests()
        .iter()
        .filter(|request| request.gets(Port::Storage, ""))
        .map(server::Request::range)
        .collect();
    assert_eq!(ranges.len(), 3);
    assert!(ranges[0].is_none() && ranges[1].unwrap() <= 100_000, "{ranges:?}");
    assert!(ranges[1] < ranges[2] && ranges[2].unwrap() <= 200_000, "{ranges:?}");

    // When it breaks every time, what came is kept for the next start.
    let setup = Setup::new(small());
    setup.hub().on(|request, hub| {
        let reply = hub.answer(request).pace(Pace::Cut(50_000));
        request.gets(Port::Storage, "").then_some(reply)
    });
    assert_fault!(setup, MODEL, HubFault::Connection { .. }, "start again, what is there is kept");
    let kept = fs::metadata(setup.partial()).unwrap().len() as usize;
    assert!(kept > 0 && kept <= 150_000, "{kept}");
    setup.hub().behave();
    setup.hub().requests();
    setup.fetch(MODEL, FIRST, &small());
    assert!(setup.hub().requests().iter().any(|request| request.range() == Some(kept)));
    assert!(!setup.partial().exists());
}

/// A host that takes back what it sent is not asked for ever.
#[test]
fn what_is_fetched_again_is_no_progress() {
    let mut files = small();
    files.insert("model.safetensors".to_owned(), noise(3 << 20));
    let setup = Setup::new(files);
    setup.hub().on(|request, hub| {
        request.gets(Port::Storage, "").then(|| match request.range() {
            Some(_) => Reply::new(416),
            None => hub.answer(request).pace(Pace::Cut(2 << 20)),
        })
    });
    assert_fault!(setup, MODEL, HubFault::Connection { .. }, "no connection");
    let requests = setup.hub().requests();
    assert_eq!(requests.iter().filter(|request| request.gets(Port::Storage, "")).count(), 3);
}

#[test]
fn a_partial_file_of_an_earlier_start_is_used_or_thrown_away() {
    let all = weights();
    let setup = Setup::new(small());
    let begin = |content: &[u8]| {
        let _ = fs::remove_dir_all(setup.path("blobs"));
        fs::create_dir_all(setup.path("blobs")).unwrap();
        fs::write(setup.partial(), content).unwrap();
        setup.hub().requests();
    };
    let asked = || {
        let requests = setup.hub().requests();
        let storage = requests.iter().filter(|request| request.port == Port::Storage);
        storage.map(server::Request::range).collect::<Vec<_>>()
    };

    begin(&all[..300_000]);
    setup.fetch(MODEL, FIRST, &small());
    assert_eq!(asked(), [Some(300_000)]);
    // It lacked only its name.
    begin(&all);
    setup.fetch(MODEL, FIRST, &small());
    assert_eq!(asked(), []);
    begin(&noise(800_000));
    setup.fetch(MODEL, FIRST, &small());
    assert_eq!(asked(), [None]);
    // A host without ranges sends all of it.
    begin(&all[..300_000]);
    setup
        .hub()
        .first(1, |request, _| request.gets(Port::Storage, "").then(|| part(&weights(), None)));
    setup.fetch(MODEL, FIRST, &small());
    assert_eq!(asked(), [Some(300_000)]);
    // One that has no such part is asked for all of it.
    begin(&all[..300_000]);
    setup.hub().first(1, |request, _| request.gets(Port::Storage, "").then(|| Reply::new(416)));
    setup.fetch(MODEL, FIRST, &small());
    assert_eq!(asked(), [Some(300_000), None]);
    // One that sends another part is not believed.
    begin(&all[..300_000]);
    setup.hub().first(1, |request, _| {
        request.gets(Port::Storage, "").then(|| part(&weights(), Some(200_000)))
    });
    assert_fault!(setup, MODEL, HubFault::Answer { .. }, "asked for from byte 300000 on");
    // A damaged one is found by the checksum, and gone at the next start.
    begin(&vec![7; 300_000]);
    assert_fault!(setup, MODEL, HubFault::Checksum { .. }, "deleted, start again");
    assert!(!setup.partial().exists());
    setup.fetch(MODEL, FIRST, &small());
}

#[test]
fn wrong_sizes_and_checksums_are_errors_of_their_own() {
    let changed = |port, part: &'static str, change: fn(&mut Vec<u8>)| {
        let setup = Setup::new(small());
        setup.hub().on(move |request, hub| {
            let mut reply = hub.answer(request);
            request.gets(port, part).then(|| {
                change(&mut reply.body);
                reply
            })
        });
        let result = setup.fault(MODEL);
        let left = names(&setup.path("blobs"));
        assert!(!left.iter().any(|name| name.ends_with(".incomplete")), "{left:?}");
        result
    };
    let (fault, text) = changed(Port::Storage, "blob", |body| body[1000] ^= 1);
    let expected = sha256(&weights());
    assert!(
        matches!(&fault, HubFault::Checksum { expected: e, .. } if *e == expected),
        "{fault:?}"
    );
    assert!(text.contains("`model.safetensors` should have the checksum"), "{text}");
    let (fault, text) = changed(Port::Hub, "/config.json", |body| body[0] = b'[');
    let expected = git_sha1(&small()["config.json"]);
    assert!(
        matches!(&fault, HubFault::Checksum { expected: e, .. } if *e == expected),
        "{fault:?}"
    );
    assert!(text.contains(&expected), "{text}");
    for change in [|body: &mut Vec<u8>| body.push(0), |body: &mut Vec<u8>| body.truncate(10)] {
        let (fault, text) = changed(Port::Storage, "blob", change);
        assert!(matches!(fault, HubFault::Size { expected: 700_000, .. }), "{fault:?}");
        assert!(text.contains("`model.safetensors` should have 700000 bytes"), "{text}");
    }

    // Without lengths, the size shows at the end.
    for (body, long) in [(noise(700_001), true), (noise(600_000), false)] {
        let setup = Setup::new(small());
        let chunked =
            [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        setup.hub().on(move |request, _| {
            let reply =
                Reply::new(200).header("Transfer-Encoding", "chunked").body(chunked.clone());
            request.gets(Port::Storage, "").then_some(reply)
        });
        let (fault, _) = setup.fault(MODEL);
        match long {
            true => assert!(matches!(fault, HubFault::Size { .. }), "{fault:?}"),
            false => assert!(matches!(fault, HubFault::Connection { .. }), "{fault:?}"),
        }
    }
}

#[test]
fn a_mirrors_own_tags_are_taken_as_names() {
    let setup = Setup::new(small());
    setup.hub().on(|request, hub| {
        let reply = hub.answer(request);
        let plain = request.path.contains("/config.json");
        plain.then(|| reply.header("ETag", "W/\"d41d8cd9-2\""))
    });
    setup.fetch(MODEL, FIRST, &small());
    assert!(setup.path("blobs/d41d8cd9-2").is_file());
}

#[test]
fn hostile_answers_are_refused_before_anything_is_written() {
    // Names that lead out of the snapshot.
    for name in ["../../../../evil", "/etc/evil", "a/../../evil", "nul\0"] {
        let mut files = small();
        files.insert(name.to_owned(), b"evil".to_vec());
        let setup = Setup::new(files);
        assert_fault!(setup, MODEL, HubFault::FileName { .. }, "not a path within it");
        assert!(!setup.path("").exists());
    }
    for shard in
        ["../evil.safetensors", "a/b.safetensors", "/evil.safetensors", "..\\\\e.safetensors"]
    {
        let mut files = small();
        files.remove("model.safetensors");
        let index = format!("{{\"weight_map\": {{\"w\": \"{shard}\"}}}}");
        files.insert("model.safetensors.index.json".to_owned(), index.into());
        let setup = Setup::new(files);
        assert_fault!(setup, MODEL, HubFault::FileName { .. }, "not a path within it");
    }
    for (index, words) in [
        ("{\"weight_map\": {\"w\": \"code.bin\"}}", "not a safetensors file"),
        ("{\"weight_map\": {}}", "names no shard"),
        ("[1]", "not an index of shards"),
    ] {
        let mut files = small();
        files.remove("model.safetensors");
        files.insert("model.safetensors.index.json".to_owned(), index.into());
        assert_fault!(Setup::new(files), MODEL, HubFault::Index { .. }, words);
    }
    let mut files = small();
    files.remove("model.safetensors");
    let index = "{\"weight_map\": {\"w\": \"absent.safetensors\"}}";
    files.insert("model.safetensors.index.json".to_owned(), index.into());
    assert_fault!(Setup::new(files), MODEL, HubFault::EntryMissing { .. }, "absent.safetensors");

    // Headers.
    let with_header = |name: &'static str, value: &'static str| {
        let setup = Setup::new(small());
        setup.hub().on(move |request, hub| {
            let reply = hub.answer(request).header(name, value);
            request.path.contains("resolve/").then_some(reply)
        });
        setup
    };
    for tag in ["\"../../evil\"", "\"a/b\"", "\"\"", "\"..\"", "\"x.incomplete\"", "\"a\\b\""] {
        let setup = with_header("X-Linked-ETag", tag);
        assert_fault!(setup, MODEL, HubFault::EntityTag { .. }, "cannot name a file");
    }
    let setup = with_header("X-Linked-Size", "1152921504606846976");
    assert_fault!(setup, MODEL, HubFault::TooLarge { .. }, "1152921504606846976 bytes, more than");
    let setup = with_header("X-Linked-Size", "-1");
    assert_fault!(setup, MODEL, HubFault::Answer { .. }, "the size `-1` is not a number");
    let setup = with_header("Content-Encoding", "gzip");
    assert_fault!(setup, MODEL, HubFault::Answer { .. }, "comes in the encoding `gzip`");
    let setup = Setup::new(small());
    setup.hub().on(|request, _| request.is("HEAD", "").then(|| Reply::new(200)));
    assert_fault!(setup, MODEL, HubFault::Answer { .. }, "has no entity tag", "check HF_ENDPOINT");

    // Tags that change between the question and the answer.
    let setup = Setup::new(small());
    setup.hub().on(|request, hub| {
        let reply = hub.answer(request).header("X-Linked-ETag", format!("\"{}\"", sha256(b"x")));
        request.gets(Port::Hub, "/model.safetensors").then_some(reply)
    });
    assert_fault!(setup, MODEL, HubFault::Answer { .. }, "changes between requests");
}

#[test]
fn answers_have_bounds() {
    let setup = Setup::new(small());
    for list in ["<html>", "{}", "{\"sha\": \"main\", \"siblings\": []}", "{\"sha\": 1}"] {
        setup.hub().on(move |_, _| Some(Reply::new(200).body(list)));
        assert_fault!(setup, MODEL, HubFault::Answer { .. }, "answers not as a hub does");
    }
    setup.hub().on(|_, _| Some(Reply::new(200).header("Content-Length", 1u64 << 40)));
    assert_fault!(setup, MODEL, HubFault::TooLarge { .. }, "`list of files` has 1099511627776");
    setup.hub().on(|_, _| Some(Reply::new(200).pace(Pace::Endless)));
    assert_fault!(setup, MODEL, HubFault::TooLarge { .. }, "`list of files` has");
    setup.hub().on(|_, _| Some(Reply::new(200).header("X-Padding", "x".repeat(1 << 20))));
    assert_fault!(setup, MODEL, HubFault::Answer { .. }, "answers not as a hub does");

    // Weights of no stated size would fill the disk.
    let setup = Setup::new(small());
    setup.hub().on(|request, hub| {
        let mut reply = hub.answer(request);
        reply.headers.retain(|(name, _)| name != "X-Linked-Size");
        request.path.contains("/model.safetensors").then_some(reply)
    });
    setup.hub().on(|request, _| {
        request.gets(Port::Storage, "").then(|| Reply::new(200).pace(Pace::Endless))
    });
    assert_fault!(setup, MODEL, HubFault::Answer { .. }, "does not say how large");
}

#[test]
fn redirects_are_bounded_and_stay_safe() {
    let setup = Setup::new(small());
    let to = |location: &str| {
        let location = location.to_owned();
        setup.hub().on(move |request, _| {
            let reply = Reply::new(302).header("Location", location.clone());
            request.path.contains("/api/").then_some(reply)
        });
    };
    to("/api/models/again");
    assert_fault!(setup, MODEL, HubFault::Redirects { limit: 10, .. }, "more than 10 times");
    assert_eq!(setup.hub().requests().len(), 11);
    for location in ["ftp://host/x", "file:///etc/passwd", "http://user:word@127.0.0.1/", "http://"]
    {
        to(location);
        assert_fault!(setup, MODEL, HubFault::RedirectTarget { .. }, "is not followed");
    }
    setup.hub().on(|_, _| Some(Reply::new(302)));
    assert_fault!(setup, MODEL, HubFault::RedirectTarget { .. }, "it names none");
}

#[test]
fn silence_and_trickles_end() {
    let mut setup = Setup::new(small());
    setup.options.patience.read = Duration::from_secs(1);
    setup.options.patience.attempts = 1;
    let begun = Instant::now();
    setup.hub().on(|_, _| Some(Reply::new(200).pace(Pace::Silent(Duration::from_secs(20)))));
    assert_fault!(setup, MODEL, HubFault::Timeout { .. }, "did not answer in time");
    setup.hub().behave();
    setup.hub().on(|request, hub| {
        let reply = hub.answer(request).pace(Pace::Trickle(Duration::from_millis(20)));
        request.gets(Port::Storage, "").then_some(reply)
    });
    assert_fault!(setup, MODEL, HubFault::Timeout { .. }, "less than a kibibyte per second");
    // 700,000 bytes at that pace are four hours.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn without_network_the_cache_answers() {
    let mut setup = Setup::new(small());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let (working, token) = (setup.options.endpoint.clone(), Token::new(SECRET));
    setup.options.endpoint.clone_from(&closed);
    setup.options.token = token;
    assert_fault!(
        setup,
        MODEL,
        HubFault::Connection { .. },
        "no connection to 127.0.0.1:",
        "check network and proxy"
    );
    setup.options.endpoint = working;
    setup.fetch(MODEL, FIRST, &small());
    // A name that cannot even be asked for: its first part is too long.
    let nameless = format!("http://{}.invalid", "n".repeat(64));
    for endpoint in [closed, nameless] {
        setup.options.endpoint = endpoint;
        let mut told = Vec::new();
        let found = Source::resolve_with(MODEL, &setup.options, &mut |event| {
            if let HubEvent::Cached { commit, reason } = event {
                told.push((commit.to_owned(), reason.to_string()));
            }
        });
        assert_eq!(found.unwrap().origin.unwrap().commit, FIRST);
        assert_eq!((told.len(), told[0].0.as_str()), (1, FIRST), "{told:?}");
    }
    // What is not cached still is an error.
    assert_fault!(
        setup,
        "org/other",
        HubFault::Dns { .. },
        "cannot be resolved",
        "HF_HUB_OFFLINE=1"
    );
}

#[test]
fn offline_nothing_is_asked() {
    let mut setup = Setup::new(small());
    setup.options.network = Network::Offline;
    assert_fault!(
        setup,
        MODEL,
        HubFault::OfflineRevision { .. },
        "HF_HUB_OFFLINE is set",
        "models--org--tiny knows no revision `main`",
        "unset it once"
    );
    let commit = format!("{MODEL}@{FIRST}");
    assert_fault!(setup, &commit, HubFault::Offline { missing, .. } if missing.len() == 2,
        "lacks config.json, model.safetensors; unset it once to download them");
    assert_eq!(setup.hub().requests().len(), 0);

    setup.options.network = Network::Online;
    setup.fetch(MODEL, FIRST, &small());
    setup.hub().requests();
    setup.options.network = Network::Offline;
    setup.fetch(MODEL, FIRST, &small());
    setup.fetch(&commit, FIRST, &small());
    assert_fault!(setup, "org/tiny@dev", HubFault::OfflineRevision { .. }, "no revision `dev`");
    fs::remove_file(setup.path("blobs").join(sha256(&weights()))).unwrap();
    assert_fault!(setup, MODEL, HubFault::Offline { missing, .. } if missing == &["model.safetensors"],
        "lacks model.safetensors;");
    fs::write(setup.path("refs/main"), "../../../etc").unwrap();
    assert_fault!(setup, MODEL, HubFault::OfflineRevision { .. }, "no revision `main`");
    assert_eq!(setup.hub().requests().len(), 0);

    // The link to the blob that is gone is made anew.
    setup.options.network = Network::Online;
    setup.fetch(MODEL, FIRST, &small());
}

#[test]
fn offline_a_sharded_model_needs_all_shards() {
    let mut setup = Setup::new(golden("llama-b"));
    setup.resolve(MODEL).unwrap();
    setup.options.network = Network::Offline;
    let found = setup.resolve(MODEL).unwrap();
    Model::load(&found.source, &LoadOptions::default()).unwrap();
    let shard = "model-00002-of-00003.safetensors";
    fs::remove_file(found.source.path().join(shard)).unwrap();
    assert_fault!(setup, MODEL, HubFault::Offline { missing, .. } if missing == &[shard], shard);
}

/// As `huggingface_hub` leaves it where links cannot be made, and with its own
/// files beside.
#[test]
fn a_cache_with_files_instead_of_links_is_read() {
    let mut setup = Setup::new(small());
    let snapshot = setup.path("snapshots").join(SECOND);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(setup.path("refs")).unwrap();
    fs::write(
        setup.cache.path().join("CACHEDIR.TAG"),
        "Signature: 8a477f597d28d172789f06886806bc55",
    )
    .unwrap();
    fs::write(setup.path("refs/main"), format!("{SECOND}\n")).unwrap();
    for (name, content) in small() {
        fs::write(snapshot.join(name), content).unwrap();
    }
    setup.options.network = Network::Offline;
    setup.fetch(MODEL, SECOND, &small());
    // Online, only what it lacks is fetched.
    setup.options.network = Network::Online;
    let mut more = small();
    more.insert("generation_config.json".to_owned(), b"{}".to_vec());
    setup.hub().push("main", SECOND, more.clone());
    setup.fetch(MODEL, SECOND, &more);
    assert_eq!(names(&setup.path("blobs")), [git_sha1(b"{}")]);
}

#[test]
fn a_model_that_can_be_run_is_run_though_the_rest_cannot_be_had() {
    let setup = Setup::new(small());
    setup.fetch(MODEL, FIRST, &small());
    let mut more = small();
    more.insert("generation_config.json".to_owned(), b"{}".to_vec());
    setup.hub().push("main", FIRST, more);
    let told = |name: &str| {
        let mut told = Vec::new();
        let found = Source::resolve_with(name, &setup.options, &mut |event| match event {
            HubEvent::Cached { reason, .. } => told.push(reason.to_string()),
            other => panic!("{other:?}"),
        });
        assert_eq!(found.unwrap().origin.unwrap().commit, FIRST);
        told.concat()
    };
    fs::rename(setup.cache.path().join(".locks"), setup.cache.path().join("locks")).unwrap();
    fs::write(setup.cache.path().join(".locks"), "in the way").unwrap();
    assert!(told(MODEL).contains("the cache cannot be used"));
    // Nobody waits for a hub that is down when the cache has the answer.
    setup.hub().on(|_, _| Some(Reply::new(503)));
    setup.hub().requests();
    assert!(told(MODEL).contains("status 503"));
    assert_eq!(setup.hub().requests().len(), 1);
}

#[test]
fn two_at_once_fetch_once() {
    let setup = Setup::new(small());
    setup.hub().on(|request, hub| {
        let reply = hub.answer(request).pace(Pace::Stall(1000, Duration::from_millis(500)));
        request.gets(Port::Storage, "").then_some(reply)
    });
    let waited = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let found = Source::resolve_with(MODEL, &setup.options, &mut |event| {
                    if let HubEvent::Waiting { file: "model.safetensors" } = event {
                        waited.fetch_add(1, Ordering::Relaxed);
                    }
                });
                let path = found.unwrap().source.path().join("model.safetensors");
                assert!(fs::read(path).unwrap() == weights());
            });
        }
    });
    assert_eq!(waited.load(Ordering::Relaxed), 3);
    let fetched = setup.hub().requests().iter().filter(|r| r.port == Port::Storage).count();
    assert_eq!(fetched, 1);
}

#[test]
fn a_lock_that_nothing_happens_under_is_reported() {
    let mut setup = Setup::new(small());
    setup.options.patience.lock = Duration::from_millis(300);
    let locks = setup.cache.path().join(".locks/models--org--tiny");
    fs::create_dir_all(&locks).unwrap();
    let path = locks.join(format!("{}.lock", sha256(&weights())));
    let held = fs::File::create(&path).unwrap();
    held.lock().unwrap();
    assert_fault!(
        setup,
        MODEL,
        HubFault::Locked { .. },
        path.to_str().unwrap(),
        "end it, then start again"
    );

    // As long as the other's file grows, it is waited for.
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = setup.path("blobs").join(format!("{}.12ab.incomplete", sha256(&weights())));
            for n in 1..10 {
                fs::write(&other, noise(n)).unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
            fs::write(setup.path("blobs").join(sha256(&weights())), weights()).unwrap();
            drop(held);
        });
        setup.fetch(MODEL, FIRST, &small());
    });
    assert!(begun.elapsed() >= Duration::from_millis(900));
    assert!(setup.hub().requests().iter().all(|request| request.port == Port::Hub));
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut setup = Setup::new(small());
    let file = setup.cache.path().join("file");
    fs::write(&file, b"").unwrap();
    setup.options.cache = Some(file.join("hub"));
    assert_fault!(
        setup,
        MODEL,
        HubFault::Cache { .. },
        "the cache cannot be used",
        file.to_str().unwrap(),
        "set HF_HOME to another folder"
    );
    setup.options.cache = None;
    assert_fault!(setup, MODEL, HubFault::NoCacheFolder, "set HF_HOME to a folder");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let setup = Setup::new(small());
    fs::create_dir_all(setup.path("blobs")).unwrap();
    std::os::unix::fs::symlink("/dev/full", setup.partial()).unwrap();
    assert_fault!(
        setup,
        MODEL,
        HubFault::DiskFull { .. },
        "no space is left for",
        ".incomplete",
        "make room"
    );
}

#[test]
fn connections_must_be_trusted() {
    // A host that speaks no TLS.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = Setup::new(small());
    setup.options.endpoint = format!("https://{}", listener.local_addr().unwrap());
    let plain = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // Until the other side hangs up.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_fault!(
        setup,
        MODEL,
        HubFault::Tls { .. },
        "no trusted connection to 127.0.0.1:",
        "SSL_CERT_FILE"
    );
    plain.join().unwrap();
    let path = setup.cache.path().join("roots.pem");
    fs::write(&path, "no certificate").unwrap();
    setup.options.certificates = Some(path.clone());
    assert_fault!(setup, MODEL, HubFault::Certificates { .. }, path.to_str().unwrap());
    for endpoint in ["huggingface.co", "ftp://host", "https://me:word@host", "", "http://"] {
        setup.options.endpoint = endpoint.to_owned();
        let (fault, text) = setup.fault(MODEL);
        assert!(matches!(fault, HubFault::Endpoint { .. }), "{endpoint}: {fault:?}");
        assert!(!text.contains("word"), "{text}");
    }
}
