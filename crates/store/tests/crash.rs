//! A crash, a full disk and a loss of power at every single change of the disk.
//!
//! A process that is killed leaves the disk as it was.  A loss of power can lose
//! whatever was not synced; the monitor keeps a model of what was, and the test
//! puts that in the folder's place before the run goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use store::{Error, Monitor, Operation, Options, Reader, Run, Verdict};

use crate::common::{TABLES, assert_same, complete, fill, ids, job, options, scratch, snapshot};

const PROMPTS: usize = 5;
const SHARD: u64 = 2;

/// What is lost when the machine stops.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// Nothing: only the process ends.
    Nothing,
    /// Everything that was not synced, names as well as content.
    Unsynced,
    /// Content that was not synced; names are as they were last.
    UnsyncedContent,
}

/// How much of a write is done when it fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tear {
    None,
    Half,
    All,
}

#[derive(Default)]
struct Model {
    left: u64,
    stopped: bool,
    next_id: u64,
    live: BTreeMap<PathBuf, u64>,
    live_directories: BTreeSet<PathBuf>,
    durable: BTreeMap<PathBuf, u64>,
    durable_directories: BTreeSet<PathBuf>,
    content: BTreeMap<u64, Vec<u8>>,
}

/// Lets a number of changes happen, then none.
struct Fuse {
    tear: Tear,
    model: Mutex<Model>,
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Fuse {
    /// A fuse for a folder whose content is on the disk.
    fn new(changes: u64, tear: Tear, folder: &Path) -> Arc<Fuse> {
        let mut model = Model { left: changes, ..Model::default() };
        if folder.exists() {
            for (name, bytes) in snapshot(folder) {
                let path = folder.join(name);
                model.add_directories(path.parent().unwrap());
                model.content.insert(model.next_id, bytes);
                model.live.insert(path, model.next_id);
                model.next_id += 1;
            }
            model.durable = model.live.clone();
            model.durable_directories = model.live_directories.clone();
        }
        Arc::new(Fuse { tear, model: Mutex::new(model) })
    }

    fn blown(&self) -> bool {
        self.model.lock().unwrap().stopped
    }

    /// Puts what the disk would hold after a loss of power in the folder's place.
    fn lose(&self, loss: Loss, folder: &Path) {
        if loss == Loss::Nothing || !folder.exists() {
            return;
        }
        let model = self.model.lock().unwrap();
        let (files, directories) = match loss {
            Loss::Unsynced => (&model.durable, &model.durable_directories),
            _ => (&model.live, &model.live_directories),
        };
        fs::remove_dir_all(folder).unwrap();
        let kept = |path: &Path| {
            let inside = path.ancestors().take_while(|a| a.starts_with(folder));
            inside.into_iter().all(|a| directories.contains(a))
        };
        for directory in directories.iter().filter(|d| d.starts_with(folder) && kept(d)) {
            fs::create_dir_all(directory).unwrap();
        }
        for (path, id) in files.iter().filter(|(path, _)| kept(path.parent().unwrap())) {
            let content = model.content.get(id).cloned().unwrap_or_default();
            fs::write(path, content).unwrap();
        }
    }
}

impl Model {
    fn add_directories(&mut self, path: &Path) {
        let all = path.ancestors().map(Path::to_owned);
        self.live_directories.extend(all);
    }

    fn apply(&mut self, operation: &Operation<'_>) {
        match operation {
            Operation::CreateDirectory { path } => self.add_directories(path),
            Operation::Create { path } => {
                self.live.insert(path.to_path_buf(), self.next_id);
                self.next_id += 1;
            }
            Operation::Sync { path } => {
                let id = self.live[*path];
                self.content.insert(id, fs::read(path).unwrap());
            }
            Operation::Rename { from, to } => {
                let id = self.live.remove(*from).unwrap();
                self.live.insert(to.to_path_buf(), id);
            }
            Operation::Remove { path } => {
                self.live.remove(*path);
                self.live_directories.remove(*path);
            }
            Operation::SyncDirectory { path } => {
                let inside = |p: &Path| p.parent() == Some(path);
                self.durable.retain(|p, _| !inside(p));
                self.durable_directories.retain(|p| !inside(p));
                let files = self.live.iter().filter(|(p, _)| inside(p));
                self.durable.extend(files.map(|(p, id)| (p.clone(), *id)));
                let directories = self.live_directories.iter().filter(|p| inside(p));
                self.durable_directories.extend(directories.cloned());
            }
            _ => {}
        }
    }
}

impl Monitor for Fuse {
    fn before(&self, operation: &Operation<'_>) -> Verdict {
        let mut model = self.model.lock().unwrap();
        if model.left == 0 || model.stopped {
            let first = !model.stopped;
            model.stopped = true;
            return match (operation, self.tear) {
                (Operation::Write { length, .. }, Tear::Half) if first => {
                    Verdict::Torn { written: length / 2, error: full() }
                }
                (Operation::Write { length, .. }, Tear::All) if first => {
                    Verdict::Torn { written: *length, error: full() }
                }
                _ => Verdict::Fail(full()),
            };
        }
        model.left -= 1;
        model.apply(operation);
        Verdict::Proceed
    }
}

fn watched(fuse: &Arc<Fuse>) -> Options {
    Options { shard_prompts: SHARD, monitor: Some(fuse.clone()) }
}

/// Works until the fuse blows; returns how many prompts are finished, as far as the run was told.
fn work(folder: &Path, fuse: &Arc<Fuse>) -> (u64, Result<(), Error>) {
    let done = AtomicU64::new(0);
    let work = || {
        let mut run = Run::create_or_resume(folder, &job(), &TABLES, &ids(PROMPTS), watched(fuse))?;
        done.store(run.finished(), Ordering::Relaxed);
        for index in run.unfinished() {
            let mut writer = run.prompt(index)?;
            fill(&mut writer)?;
            run.commit(writer)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        run.finish()?;
        Ok(())
    };
    let result = work();
    (done.into_inner(), result)
}

/// Opens what a crash left and checks that every finished prompt is there.
fn check(folder: &Path, done: u64, when: &str) {
    if let Ok(reader) = Reader::open(folder) {
        reader.verify().unwrap_or_else(|e| panic!("{when}: {e}"));
    }
    let run = Run::create_or_resume(folder, &job(), &TABLES, &ids(PROMPTS), options(SHARD))
        .unwrap_or_else(|e| panic!("{when}: {e}"));
    // At most the prompt that was being committed may be finished besides.
    assert!((done..=done + 1).contains(&run.finished()), "{when}: {done}, {}", run.finished());
}

fn at_every_change(loss: Loss, tear: Tear) {
    let base = scratch();
    let whole = base.path().join("whole");
    complete(&whole, PROMPTS, options(SHARD)).unwrap();
    let expected = snapshot(&whole);
    for changes in 0.. {
        let folder = base.path().join("run");
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        let fuse = Fuse::new(changes, tear, &folder);
        let (done, result) = work(&folder, &fuse);
        let when = format!("stopped before change {changes}, {loss:?}, {tear:?}");
        if !fuse.blown() {
            result.unwrap();
            assert!(changes > 150, "only {changes} changes");
            assert_same(&snapshot(&folder), &expected, "undisturbed");
            return;
        }
        // A refusal to tidy up comes after the last record and may pass unnoticed.
        if let Err(error) = result {
            assert!(matches!(error, Error::Io { .. }), "{when}: {error}");
        }
        fuse.lose(loss, &folder);
        check(&folder, done, &when);
        complete(&folder, PROMPTS, options(SHARD)).unwrap_or_else(|e| panic!("{when}: {e}"));
        assert_same(&snapshot(&folder), &expected, &when);
    }
}

#[test]
fn killed_before_every_change() {
    at_every_change(Loss::Nothing, Tear::None);
}

#[test]
fn killed_in_the_middle_of_every_write() {
    at_every_change(Loss::Nothing, Tear::Half);
}

#[test]
fn killed_behind_every_write() {
    at_every_change(Loss::Nothing, Tear::All);
}

#[test]
fn power_lost_before_every_change() {
    at_every_change(Loss::Unsynced, Tear::None);
}

#[test]
fn power_lost_with_names_kept() {
    at_every_change(Loss::UnsyncedContent, Tear::None);
}

#[test]
fn stopped_again_and_again() {
    let base = scratch();
    let whole = base.path().join("whole");
    complete(&whole, PROMPTS, options(SHARD)).unwrap();
    let expected = snapshot(&whole);
    for loss in [Loss::Nothing, Loss::Unsynced, Loss::UnsyncedContent] {
        for tear in [Tear::None, Tear::Half, Tear::All] {
            let folder = base.path().join("run");
            if folder.exists() {
                fs::remove_dir_all(&folder).unwrap();
            }
            let mut before = 0;
            // Every start gets one change further than the one before it.
            for changes in 0.. {
                let fuse = Fuse::new(changes, tear, &folder);
                let (done, result) = work(&folder, &fuse);
                let when = format!("start {changes}, {loss:?}, {tear:?}");
                assert!(done == 0 || done >= before, "{when}: {before} then {done}");
                before = before.max(done);
                if !fuse.blown() {
                    result.unwrap();
                    break;
                }
                fuse.lose(loss, &folder);
                if let Ok(reader) = Reader::open(&folder) {
                    reader.verify().unwrap_or_else(|e| panic!("{when}: {e}"));
                }
            }
            assert_same(&snapshot(&folder), &expected, &format!("{loss:?}, {tear:?}"));
        }
    }
}

#[test]
fn a_full_disk_is_told_with_its_path_and_the_run_goes_no_further() {
    let base = scratch();
    let folder = base.path().join("run");
    let fuse = Fuse::new(u64::MAX, Tear::Half, &folder);
    let mut run =
        Run::create_or_resume(&folder, &job(), &TABLES, &ids(PROMPTS), watched(&fuse)).unwrap();
    let mut first = run.prompt(0).unwrap();
    fill(&mut first).unwrap();
    run.commit(first).unwrap();
    let (mut second, mut third) = (run.prompt(1).unwrap(), run.prompt(2).unwrap());
    fill(&mut third).unwrap();
    fuse.model.lock().unwrap().left = 1;
    let error = fill(&mut second).unwrap_err();
    match &error {
        Error::Io { path, source, .. } => {
            assert!(path.starts_with(&folder));
            assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("00000001"), "{error}");
    // A prompt whose tensors did not reach the disk cannot be committed.
    assert!(matches!(run.commit(second), Err(Error::Halted { .. })));
    assert!(matches!(run.commit(third), Err(Error::Io { .. })));
    assert!(matches!(run.prompt(3), Err(Error::Halted { .. })));
    assert!(matches!(run.finish(), Err(Error::Unfinished { .. })));
    drop(run);
    check(&folder, 1, "full disk");
    complete(&folder, PROMPTS, options(SHARD)).unwrap();
}
