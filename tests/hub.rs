//! Models by hub id, through the program: a hub on loopback, an empty cache.

#[allow(dead_code, reason = "the runner's tests use the rest")]
#[path = "../crates/runner/tests/hub/server.rs"]
mod server;

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Ran, eigenlens, golden};
use server::{FIRST, Files, MODEL, Pace, Port, Running};

struct Setup {
    running: Running,
    home: TempDir,
}

impl Setup {
    fn new() -> Self {
        let read = |name: &str| std::fs::read(golden("llama-a").join(name)).unwrap();
        let files = ["config.json", "model.safetensors"];
        let files = Files::from_iter(files.map(|name| (name.to_owned(), read(name))));
        Self { running: server::start(files), home: tempfile::tempdir().unwrap() }
    }

    /// The program, knowing only this hub and this cache.
    fn program<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = eigenlens();
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let proxy = name.to_ascii_uppercase().ends_with("_PROXY");
            if proxy || name.starts_with("HF_") || name.starts_with("HUGGING") {
                command.env_remove(&*name);
            }
        }
        for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SSL_CERT_FILE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", self.running.hub.url()).env("HF_HOME", self.home.path());
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ran {
        ended(self.program(words).spawn().unwrap())
    }

    /// Ranges of the requests to the storage host.
    fn stored(&self) -> Vec<Option<usize>> {
        let requests = self.running.hub.requests();
        let stored = requests.iter().filter(|request| request.port == Port::Storage);
        stored.map(server::Request::range).collect()
    }

    /// Bytes of partial files.
    fn partial(&self) -> u64 {
        let blobs = self.home.path().join("hub/models--org--tiny/blobs");
        let entries = std::fs::read_dir(blobs).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".incomplete"))
            .map(|entry| entry.metadata().map_or(0, |metadata| metadata.len()))
            .sum()
    }
}

fn ended(child: Child) -> Ran {
    Ran::new(&child.wait_with_output().unwrap())
}

#[test]
fn a_hub_id_runs_like_a_folder_and_is_noted_with_its_commit() {
    let setup = Setup::new();
    let ids = setup.home.path().join("ids.json");
    std::fs::write(&ids, "[1, 2, 3]").unwrap();
    let capture = |model: &str, out: &str| {
        let out = setup.home.path().join(out);
        let words = ["capture", "--hook", "logits", "--model", model, "--token-ids"];
        let words =
            words.into_iter().chain([ids.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        let ran = setup.run(words).code(0);
        let manifest = std::fs::read(out.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        (ran.stderr, manifest["job"]["model"].clone())
    };
    let (stderr, from_hub) = capture("org/tiny@main", "hub-run");
    assert!(stderr.contains("downloading model.safetensors: 99.3 kB"), "{stderr}");
    assert_eq!(
        (from_hub["name"].as_str(), from_hub["revision"].as_str()),
        (Some(MODEL), Some(FIRST))
    );
    let (_, local) = capture(golden("llama-a").to_str().unwrap(), "local-run");
    assert_eq!(local["weights_sampled_sha256"], from_hub["weights_sampled_sha256"]);
    assert_eq!(local.get("revision"), None);
    assert_eq!(setup.stored(), [None]);

    let offline = |model: &str| {
        let mut program = setup.program(["models", "--json", model]);
        ended(program.env("HF_HUB_OFFLINE", "1").spawn().unwrap())
    };
    assert_eq!(offline(MODEL).code(0).json()["family"], "llama");
    let missing = offline("org/other").code(3).stderr;
    assert!(missing.contains("error: org/other: HF_HUB_OFFLINE is set"), "{missing}");
    assert_eq!(setup.running.hub.requests().len(), 0);
    let missing = setup.run(["models", "org/other"]).code(3).stderr;
    assert!(missing.contains("has no such model"), "{missing}");
    let wrong = setup.run(["models", "org/tiny/more"]).code(3).stderr;
    assert!(wrong.contains("no model `org/tiny/more`"), "{wrong}");
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    let setup = Setup::new();
    setup.running.hub.on(|request, hub| {
        let reply = hub.answer(request).pace(Pace::Stall(60_000, Duration::from_secs(60)));
        request.gets(Port::Storage, "").then_some(reply)
    });
    let mut child = setup.program(["models", MODEL]).spawn().unwrap();
    let begun = Instant::now();
    while setup.partial() < 60_000 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    setup.running.hub.behave();
    assert_eq!(setup.stored(), [None]);
    setup.run(["models", MODEL]).code(0);
    assert_eq!(setup.stored(), [Some(60_000)]);
    assert_eq!(setup.partial(), 0);
}

#[test]
fn two_processes_download_once() {
    let setup = Setup::new();
    // The first to ask for the content gets it when the second is about to.
    let asked = AtomicUsize::new(0);
    setup.running.hub.on(move |request, hub| {
        if request.is("HEAD", "model.safetensors") {
            asked.fetch_add(1, Ordering::SeqCst);
        }
        request.gets(Port::Storage, "").then(|| {
            let begun = Instant::now();
            while asked.load(Ordering::SeqCst) < 2 && begun.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(5));
            }
            hub.answer(request).pace(Pace::Stall(60_000, Duration::from_secs(1)))
        })
    });
    let children = [0, 1].map(|_| setup.program(["models", MODEL]).spawn().unwrap());
    let errors = children.map(|child| ended(child).code(0).stderr).concat();
    assert_eq!(setup.stored(), [None]);
    assert!(errors.contains("another process downloads model.safetensors"), "{errors}");
}
