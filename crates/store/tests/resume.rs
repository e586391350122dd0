//! Starting again: the same job goes on, another is refused.

use std::fs;

use store::{Error, Options, Progress, Reader, Run, Start, TableSchema};

use crate::common::{
    EMPTY, KINDS, SPECTRAL, TABLES, assert_same, complete, fill, ids, job, options, partly,
    scratch, snapshot,
};

fn refused(result: store::Result<Run>) -> Error {
    match result {
        Ok(_) => panic!("was accepted"),
        Err(error) => error,
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let folder = scratch();
    let whole = folder.path().join("whole");
    complete(&whole, 9, options(4)).unwrap();
    for done in 0..=9 {
        let path = folder.path().join(done.to_string());
        partly(&path, 9, done, 4);
        let run = Run::create_or_resume(&path, &job(), &TABLES, &ids(9), options(4)).unwrap();
        assert!(matches!(
            run.start(),
            Start::Resumed { finished, damaged: 0, .. } if *finished == done
        ));
        assert_eq!(run.unfinished(), (done..9).collect::<Vec<_>>());
        drop(run);
        complete(&path, 9, options(4)).unwrap();
        assert_same(&snapshot(&path), &snapshot(&whole), &format!("after {done} prompts"));
    }
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let folder = scratch();
    let path = folder.path().join("run");
    let first = complete(&path, 5, options(2)).unwrap();
    let before = snapshot(&path);
    let mut run = Run::create_or_resume(&path, &job(), &TABLES, &ids(5), options(2)).unwrap();
    assert_eq!(run.start(), &Start::Complete(first.clone()));
    assert!(run.unfinished().is_empty());
    assert!(matches!(run.prompt(0), Err(Error::AlreadyFinished { .. })));
    assert_eq!(run.finish().unwrap(), first);
    drop(run);
    assert_same(&snapshot(&path), &before, "started again");
}

#[test]
fn one_process_writes_and_others_read() {
    let folder = scratch();
    let path = folder.path().join("run");
    let mut run = Run::create_or_resume(&path, &job(), &TABLES, &ids(3), options(2)).unwrap();
    let again = || Run::create_or_resume(&path, &job(), &TABLES, &ids(3), options(2));
    assert!(matches!(refused(again()), Error::Locked { .. }));
    for index in 0..3 {
        let mut writer = run.prompt(index).unwrap();
        fill(&mut writer).unwrap();
        let finished = |reader: Reader| match reader.progress() {
            Progress::Unfinished { finished, .. } => finished,
            other => panic!("{other:?}"),
        };
        assert_eq!(finished(Reader::open(&path).unwrap()), index);
        run.commit(writer).unwrap();
        let reader = Reader::open(&path).unwrap();
        reader.verify().unwrap();
        assert_eq!(finished(reader), index + 1);
    }
    run.finish().unwrap();
    assert!(matches!(refused(again()), Error::Locked { .. }));
    drop(run);
    assert!(matches!(again().unwrap().start(), Start::Complete(_)));
}

#[test]
fn another_job_is_refused_with_the_difference() {
    let folder = scratch();
    let path = folder.path().join("run");
    partly(&path, 4, 2, 4);
    let before = snapshot(&path);
    let differences = |job: &store::Job, tables: &[TableSchema], ids: &[String]| match refused(
        Run::create_or_resume(&path, job, tables, ids, options(4)),
    ) {
        Error::DifferentJob { differences, .. } => {
            differences.into_iter().map(|d| (d.field, d.folder, d.asked)).collect::<Vec<_>>()
        }
        other => panic!("{other}"),
    };
    let text = |s: &str| Some(s.to_owned());

    let mut other = job();
    other.description["model"]["revision"] = "b2".into();
    other.description["layers"] = serde_json::json!([0]);
    assert_eq!(
        differences(&other, &TABLES, &ids(4)),
        [
            ("job.layers".to_owned(), None, text("[0]")),
            ("job.model.revision".to_owned(), text("\"a1\""), text("\"b2\"")),
        ]
    );
    let message = refused(Run::create_or_resume(&path, &other, &TABLES, &ids(4), options(4)));
    assert!(message.to_string().contains("job.model.revision: \"a1\" in the folder"));

    let mut other = job();
    other.engine_version = "0.2.0".to_owned();
    assert_eq!(
        differences(&other, &TABLES, &ids(4)),
        [("engine_version".to_owned(), text("\"0.1.0\""), text("\"0.2.0\""))]
    );
    let fields = |d: Vec<(String, Option<String>, Option<String>)>| {
        d.into_iter().map(|(field, ..)| field).collect::<Vec<_>>()
    };
    assert_eq!(fields(differences(&job(), &TABLES, &ids(5))), ["prompts.count", "prompts.sha256"]);
    let mut swapped = ids(4);
    swapped.swap(0, 3);
    assert_eq!(fields(differences(&job(), &TABLES, &swapped)), ["prompts.sha256"]);
    assert_eq!(fields(differences(&job(), &[SPECTRAL, EMPTY], &ids(4))), ["tables.kinds"]);
    const RENAMED: TableSchema = TableSchema::new("empty", SPECTRAL.columns.split_at(1).0);
    assert_eq!(
        fields(differences(&job(), &[SPECTRAL, KINDS, RENAMED], &ids(4))),
        ["tables.empty.(order)", "tables.empty.layer", "tables.empty.x"]
    );
    assert_same(&snapshot(&path), &before, "refused");

    // Neither the command line, nor which device was chosen, nor the shard size changes a result.
    let mut again = job();
    again.command.push("--quiet".to_owned());
    again.device = serde_json::json!({ "used": "cuda:1", "why": "auto" });
    let run = Run::create_or_resume(&path, &again, &TABLES, &ids(4), options(1)).unwrap();
    assert_eq!(run.finished(), 2);
    drop(run);
    assert_eq!(Reader::open(&path).unwrap().manifest().shard_prompts, 4);
    assert_eq!(Reader::open(&path).unwrap().manifest().device["used"], "cpu");

    // A folder from before devices were kept.
    let file = path.join("manifest.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(manifest.as_object_mut().unwrap().remove("device").is_some());
    std::fs::write(&file, serde_json::to_string(&manifest).unwrap()).unwrap();
    let run = Run::create_or_resume(&path, &job(), &TABLES, &ids(4), options(1)).unwrap();
    assert_eq!(run.finished(), 2);
}

#[test]
fn numbers_in_a_job_survive_the_manifest() {
    let folder = scratch();
    let mut job = job();
    let values = [0.1, 1.0 / 3.0, 1e-300, 5e-324, f64::MAX, -0.0, 123_456_789.123_456_79];
    job.description["numbers"] = serde_json::json!(values);
    job.description["large"] = u64::MAX.into();
    for _ in 0..2 {
        Run::create_or_resume(folder.path(), &job, &[], &[], Options::default()).unwrap();
    }
}

#[test]
fn other_layouts_are_refused_by_number() {
    let folder = scratch();
    let path = folder.path().join("run");
    complete(&path, 1, options(1)).unwrap();
    let manifest = path.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for (number, found) in [("0", 0), ("2", 2)] {
        // A layout of another number may lack every other field.
        fs::write(&manifest, format!("{{\"schema_version\": {number}}}")).unwrap();
        let reader = Reader::open(&path).err().unwrap();
        let run = refused(Run::create_or_resume(&path, &job(), &TABLES, &ids(1), options(1)));
        for error in [reader, run] {
            assert!(matches!(
                error,
                Error::SchemaVersion { found: f, supported: 1, .. } if f == found
            ));
        }
    }
    for broken in ["", "{}", "[", "{\"schema_version\": -1}", &"[".repeat(100_000)] {
        fs::write(&manifest, broken).unwrap();
        assert!(matches!(Reader::open(&path), Err(Error::Manifest { .. })));
    }
    fs::write(&manifest, text).unwrap();
    Reader::open(&path).unwrap();
}

#[test]
fn a_folder_of_other_things_is_refused() {
    let folder = scratch();
    fs::write(folder.path().join("thesis.tex"), "x").unwrap();
    let start =
        |path: &std::path::Path| Run::create_or_resume(path, &job(), &TABLES, &ids(1), options(1));
    assert!(matches!(refused(start(folder.path())), Error::NotARun { .. }));
    assert_eq!(snapshot(folder.path()).len(), 1);
    assert!(matches!(Reader::open(folder.path()), Err(Error::NotARun { .. })));
    let missing = folder.path().join("missing");
    assert!(matches!(Reader::open(&missing), Err(Error::NotARun { .. })));
    assert!(!missing.exists());
    let file = folder.path().join("thesis.tex");
    assert!(matches!(refused(start(&file)), Error::Io { .. } | Error::NotARun { .. }));

    // What a start that was cut short leaves is no obstacle, and parents are made.
    let path = folder.path().join("a/b/run");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join(".lock"), "").unwrap();
    fs::write(path.join("manifest.json.partial"), "{").unwrap();
    assert_eq!(start(&path).unwrap().start(), &Start::New);
    let deep = folder.path().join("c/d/run");
    assert_eq!(start(&deep).unwrap().start(), &Start::New);
}
