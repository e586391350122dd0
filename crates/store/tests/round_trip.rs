//! What goes in comes out, in the order of the prompts, as the same bytes.

use std::collections::BTreeSet;

use store::arrow_array::cast::AsArray;
use store::arrow_array::types::{Float64Type, UInt32Type};
use store::arrow_array::{Array, RecordBatch};
use store::{
    Column, ColumnKind, ColumnSpec, ElementType, Error, NameFault, NameOf, Options, Progress,
    Reader, Run, Start, StoredType, TableSchema, TensorView,
};

use crate::common::{
    EMPTY, KINDS, SPECTRAL, TABLES, assert_same, complete, fill, ids, job, kinds, options, partly,
    snapshot,
};

fn texts(batches: &[RecordBatch], column: &str) -> Vec<Option<String>> {
    let mut all = Vec::new();
    for batch in batches {
        let array = batch.column_by_name(column).unwrap().as_string::<i32>();
        all.extend(array.iter().map(|v| v.map(str::to_owned)));
    }
    all
}

fn read(reader: &Reader, table: &str) -> Vec<RecordBatch> {
    reader.read_table(table).unwrap().map(Result::unwrap).collect()
}

/// Compares everything that a reader sees of `n` finished prompts with what was given.
fn check_content(reader: &Reader, n: usize) {
    reader.verify().unwrap();
    let ids = ids(n);
    assert_eq!(reader.prompts(), ids);

    let spectral = read(reader, "spectral");
    let expected: Vec<(String, u32)> = (0..n)
        .flat_map(|i| (0..1 + i as u32 % 3).map(move |layer| (i, layer)))
        .map(|(i, layer)| (ids[i].clone(), layer))
        .collect();
    let mut got = Vec::new();
    for batch in &spectral {
        let prompts = batch["prompt"].as_string::<i32>();
        let layers = batch["layer"].as_primitive::<UInt32Type>();
        let entropy = batch["entropy"].as_primitive::<Float64Type>();
        let spectrum = batch["spectrum"].as_list::<i32>();
        for row in 0..batch.num_rows() {
            let layer = layers.value(row);
            let i = ids.iter().position(|id| id == prompts.value(row)).unwrap();
            assert_eq!(entropy.is_null(row), layer == 1);
            if layer != 1 {
                assert_eq!(entropy.value(row), (i as f64 + f64::from(layer)).sqrt());
            }
            let values = spectrum.value(row);
            assert_eq!(
                values.as_primitive::<Float64Type>().values().to_vec(),
                vec![i as f64; layer as usize]
            );
            got.push((prompts.value(row).to_owned(), layer));
        }
    }
    assert_eq!(got, expected);

    let kinds = read(reader, "kinds");
    let with_kinds: Vec<usize> = (0..n).filter(|i| i % 4 != 3).collect();
    let labels: Vec<Option<String>> =
        with_kinds.iter().flat_map(|i| [Some(format!("zeile\n{i}")), None]).collect();
    assert_eq!(texts(&kinds, "text"), labels);
    assert_eq!(read(reader, "empty").iter().map(RecordBatch::num_rows).sum::<usize>(), 0);

    let mut names = Vec::new();
    for i in (0..n).filter(|i| i % 5 != 4) {
        for name in ["blocks.0.hook_resid_post", "blocks.0.mlp.hook_expert_indices", "logits"] {
            names.push(format!("{}/{name}", ids[i]));
        }
        let logits = reader.tensor(&format!("{}/logits", ids[i])).unwrap();
        let values: Vec<u8> = (0..6).flat_map(|k| ((i * 10 + k) as f32).to_le_bytes()).collect();
        assert_eq!((logits.element, logits.shape), (ElementType::F32, vec![2, 3]));
        assert_eq!(logits.bytes, values);
        let indices =
            reader.tensor(&format!("{}/blocks.0.mlp.hook_expert_indices", ids[i])).unwrap();
        assert_eq!(indices.element, ElementType::U32);
        assert_eq!(indices.bytes, (i as u32).to_le_bytes());
        let resid = reader.tensor(&format!("{}/blocks.0.hook_resid_post", ids[i])).unwrap();
        assert_eq!(resid.element, ElementType::BF16);
        // Whole numbers up to 256 have at most 8 significant bits, so their upper half is exact.
        let upper: Vec<u8> = values.chunks(4).flat_map(|v| [v[2], v[3]]).collect();
        assert_eq!(resid.bytes, upper);
    }
    assert_eq!(reader.tensor_names().unwrap(), names);
    let listed: BTreeSet<String> =
        ids.iter().flat_map(|id| reader.tensors(id).unwrap()).map(|info| info.key).collect();
    assert_eq!(listed, names.into_iter().collect());
}

#[test]
fn finished_and_unfinished_runs_read_alike() {
    for shard in [1, 3, 4, 64] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        for done in [0, 1, 7, 10] {
            partly_again(&path, 10, done, shard);
            let reader = Reader::open(&path).unwrap();
            assert_eq!(reader.progress(), Progress::Unfinished { finished: done, prompts: 10 });
            check_content(&reader, done as usize);
        }
        let summary = complete(&path, 10, options(shard)).unwrap();
        let reader = Reader::open(&path).unwrap();
        assert!(matches!(reader.progress(), Progress::Complete { prompts: 10, .. }));
        check_content(&reader, 10);
        let rows: Vec<(String, u64)> =
            reader.tables().into_iter().map(|t| (t.info.name, t.rows)).collect();
        assert_eq!(rows, [("spectral".into(), 19), ("kinds".into(), 16), ("empty".into(), 0)]);
        assert_eq!(summary.tables.values().sum::<u64>(), 35);
        assert_eq!((summary.prompts, summary.tensors), (10, 24));
        let bytes: usize = snapshot(&path)
            .iter()
            .filter(|(name, _)| name.starts_with("tables") || name.starts_with("tensors"))
            .map(|(_, bytes)| bytes.len())
            .sum();
        assert_eq!(summary.bytes, bytes as u64);
    }
}

/// Brings a run up to `done` prompts.
fn partly_again(path: &std::path::Path, n: usize, done: u64, shard: u64) {
    let mut run = Run::create_or_resume(path, &job(), &TABLES, &ids(n), options(shard)).unwrap();
    for index in run.unfinished().into_iter().filter(|i| *i < done) {
        let mut writer = run.prompt(index).unwrap();
        fill(&mut writer).unwrap();
        run.commit(writer).unwrap();
    }
}

#[test]
fn order_and_grouping_of_commits_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let expected = {
        let path = folder.path().join("in-order");
        complete(&path, 11, options(4)).unwrap();
        snapshot(&path)
    };
    for (k, groups) in [
        vec![vec![10], vec![3, 0, 9], vec![1, 2, 8, 7, 4], vec![5], vec![6]],
        vec![(0..11).rev().collect()],
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(k.to_string());
        let mut run = Run::create_or_resume(&path, &job(), &TABLES, &ids(11), options(4)).unwrap();
        for group in groups {
            let mut writers: Vec<_> = group.iter().map(|i| run.prompt(*i).unwrap()).collect();
            writers.iter_mut().for_each(|w| fill(w).unwrap());
            run.commit_all(writers).unwrap();
        }
        run.finish().unwrap();
        let got = snapshot(&path);
        for directory in ["tables", "tensors"] {
            let only = |s: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>| {
                s.iter()
                    .filter(|(name, _)| name.starts_with(directory))
                    .map(|(name, bytes)| (name.clone(), bytes.clone()))
                    .collect()
            };
            assert_same(&only(&got), &only(&expected), directory);
        }
    }
}

#[test]
fn a_finished_folder_holds_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    complete(&path, 5, options(2)).unwrap();
    let names: Vec<String> =
        snapshot(&path).keys().map(|name| name.display().to_string()).collect();
    assert_eq!(
        names,
        [
            ".lock",
            "manifest.json",
            "shards.jsonl",
            "tables/empty.parquet",
            "tables/kinds.parquet",
            "tables/spectral.parquet",
            "tensors/00000000.safetensors",
            "tensors/00000002.safetensors",
        ]
    );
}

#[test]
fn another_reader_opens_the_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    partly(&path, 5, 1, 4);
    let open = std::fs::read(path.join("open/00000000/00000000.safetensors")).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&open).unwrap().len(), 3);

    complete(&path, 5, options(4)).unwrap();
    let packed = std::fs::read(path.join("tensors/00000000.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&packed).unwrap();
    assert_eq!(tensors.len(), 12);
    let key = format!("{}/logits", ids(3)[2]);
    let view = tensors.tensor(&key).unwrap();
    assert_eq!(view.shape(), [2, 3]);
    assert_eq!(view.data()[..4], 20_f32.to_le_bytes());
    let start = packed.as_ptr() as usize;
    for (key, view) in tensors.tensors() {
        let at = view.data().as_ptr() as usize - start;
        assert_eq!(at % (view.dtype().bitsize() / 8), 0, "{key} is aligned in its file");
    }
}

#[test]
fn a_header_longer_than_its_room_is_moved() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, tensors: usize, stop: bool| {
        let path = folder.path().join(name);
        for _ in 0..2 {
            let mut run =
                Run::create_or_resume(&path, &job(), &TABLES, &ids(3), options(3)).unwrap();
            for index in run.unfinished() {
                let mut writer = run.prompt(index).unwrap();
                for k in 0..tensors {
                    let view =
                        TensorView { element: ElementType::U8, shape: &[1], bytes: &[k as u8] };
                    let name = format!("{k:0>200}");
                    writer.tensor(&name, view, StoredType::AsIs).unwrap();
                }
                run.commit(writer).unwrap();
                if stop {
                    break;
                }
            }
            if run.unfinished().is_empty() {
                run.finish().unwrap();
            }
        }
        path
    };
    // 3 × 100 entries of more than 600 bytes in a room of 16 KiB.
    let path = run("long", 100, false);
    let reader = Reader::open(&path).unwrap();
    reader.verify().unwrap();
    assert_eq!(reader.tensor_names().unwrap().len(), 300);
    let key = format!("{}/{:0>200}", ids(3)[1], 99);
    assert_eq!(reader.tensor(&key).unwrap().bytes, [99]);

    // A resumed run leaves other room for its headers; what is packed is the same.
    let stopped = run("stopped", 100, true);
    let mut again = Run::create_or_resume(&stopped, &job(), &TABLES, &ids(3), options(3)).unwrap();
    let index = again.unfinished()[0];
    assert_eq!(index, 2);
    let mut writer = again.prompt(index).unwrap();
    for k in 0..100_usize {
        let view = TensorView { element: ElementType::U8, shape: &[1], bytes: &[k as u8] };
        writer.tensor(&format!("{k:0>200}"), view, StoredType::AsIs).unwrap();
    }
    again.commit(writer).unwrap();
    again.finish().unwrap();
    drop(again);
    assert_same(&snapshot(&stopped), &snapshot(&path), "stopped and gone on");
}

#[test]
fn row_groups_depend_on_the_rows_alone() {
    const WIDE: TableSchema =
        TableSchema::new("wide", &[ColumnSpec::required("x", ColumnKind::F64, "", "a number")]);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, shard: u64| {
        let path = folder.path().join(name);
        let mut run =
            Run::create_or_resume(&path, &job(), &[WIDE], &ids(5), options(shard)).unwrap();
        for index in 0..5 {
            let mut writer = run.prompt(index).unwrap();
            let values: Vec<f64> = (0..40_000).map(|k| (k as f64 + index as f64).cos()).collect();
            writer.rows("wide", vec![("x", values.into())]).unwrap();
            run.commit(writer).unwrap();
        }
        assert_eq!(run.finish().unwrap().tables["wide"], 200_000);
        path
    };
    let (one, two) = (write("one", 1), write("two", 64));
    let table = |path: &std::path::Path| std::fs::read(path.join("tables/wide.parquet")).unwrap();
    assert!(table(&one) == table(&two));

    let file = std::fs::File::open(one.join("tables/wide.parquet")).unwrap();
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let groups: Vec<i64> = reader.metadata().row_groups().iter().map(|g| g.num_rows()).collect();
    assert_eq!(groups, [65_536, 65_536, 65_536, 3_392]);
    let mut next = 0_usize;
    for batch in read(&Reader::open(&one).unwrap(), "wide") {
        for x in batch["x"].as_primitive::<Float64Type>().values() {
            let (prompt, k) = (next / 40_000, next % 40_000);
            assert_eq!(*x, (k as f64 + prompt as f64).cos());
            next += 1;
        }
    }
    assert_eq!(next, 200_000);
}

#[test]
fn columns_carry_meaning_and_unit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    complete(&path, 2, Options::default()).unwrap();
    let reader = Reader::open(&path).unwrap();
    let batches = read(&reader, "spectral");
    let schema = batches[0].schema();
    let field = schema.field_with_name("entropy").unwrap();
    assert_eq!(field.metadata().get("unit").map(String::as_str), Some("nats"));
    assert_eq!(field.metadata().get("doc").map(String::as_str), Some("spectral entropy"));
    let table = &reader.tables()[0].info;
    assert_eq!(table.columns[1].unit, "nats");
}

#[test]
fn a_run_of_no_prompts_finishes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let summary = complete(&path, 0, Options::default()).unwrap();
    assert_eq!((summary.prompts, summary.tensors), (0, 0));
    assert!(read(&Reader::open(&path).unwrap(), "spectral").is_empty());
}

#[test]
fn a_prompt_may_have_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run = Run::create_or_resume(&path, &job(), &[EMPTY], &ids(1), options(1)).unwrap();
    let writer = run.prompt(0).unwrap();
    run.commit(writer).unwrap();
    run.finish().unwrap();
    assert_eq!(Reader::open(&path).unwrap().prompts().len(), 1);
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run =
        Run::create_or_resume(&path, &job(), &[SPECTRAL, KINDS], &ids(1), options(1)).unwrap();
    let mut writer = run.prompt(0).unwrap();
    let good = || -> Vec<(&str, Column)> {
        vec![
            ("layer", vec![0_u32, 1].into()),
            ("label", vec!["a", "b"].into()),
            ("entropy", vec![Some(1.0), None].into()),
            ("spectrum", vec![None::<Vec<f64>>, None].into()),
        ]
    };
    assert!(matches!(
        writer.rows("spectrum", good()),
        Err(Error::UnknownTable { known, .. }) if known == ["spectral", "kinds"]
    ));
    let mut rows = good();
    rows.pop();
    assert!(matches!(writer.rows("spectral", rows), Err(Error::Columns { .. })));
    let mut rows = good();
    rows[1].0 = "layer";
    assert!(matches!(writer.rows("spectral", rows), Err(Error::Columns { .. })));
    let mut rows = good();
    rows[0].1 = vec![0_u64, 1].into();
    assert!(matches!(
        writer.rows("spectral", rows),
        Err(Error::Kind { got: ColumnKind::U64, expected: ColumnKind::U32, .. })
    ));
    let mut rows = good();
    rows[1].1 = vec!["a"].into();
    assert!(matches!(writer.rows("spectral", rows), Err(Error::Rows { expected: 2, got: 1, .. })));
    let mut rows = good();
    rows[1].1 = vec![Some("a"), None].into();
    assert!(matches!(writer.rows("spectral", rows), Err(Error::Null { row: 1, .. })));
    writer.rows("spectral", good()).unwrap();
    writer.rows("kinds", kinds(1)).unwrap();
    run.commit(writer).unwrap();
    assert_eq!(run.finish().unwrap().tables["spectral"], 2);
}

#[test]
fn tensors_that_do_not_fit_are_refused_and_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run = Run::create_or_resume(&path, &job(), &[EMPTY], &ids(1), options(1)).unwrap();
    let mut writer = run.prompt(0).unwrap();
    let mut add = |name: &str, shape: &[usize], bytes: &[u8], stored| {
        let view = TensorView { element: ElementType::F32, shape, bytes };
        writer.tensor(name, view, stored)
    };
    let fault = |result: store::Result<()>| match result {
        Err(Error::Name { of: NameOf::Tensor, fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(add("", &[0], &[], StoredType::AsIs)), NameFault::Empty);
    assert_eq!(fault(add("a/b", &[0], &[], StoredType::AsIs)), NameFault::Slash);
    assert_eq!(fault(add("a\n", &[0], &[], StoredType::AsIs)), NameFault::Control(10));
    let long = "é".repeat(129);
    assert_eq!(fault(add(&long, &[0], &[], StoredType::AsIs)), NameFault::TooLong(258));
    for shape in [&[2][..], &[1, 2], &[usize::MAX, usize::MAX], &[1 << 62, 8]] {
        assert!(matches!(
            add("x", shape, &[0; 4], StoredType::AsIs),
            Err(Error::TensorBytes { got: 4, .. })
        ));
    }
    assert!(matches!(
        add("x", &[1; 17], &[0; 4], StoredType::AsIs),
        Err(Error::Range { got: 17, .. })
    ));
    // The value that overflows stands behind a megabyte that is written already.
    let mut values = vec![0_u8; 4 << 20];
    let last = values.len() - 4;
    values[last..].copy_from_slice(&1e6_f32.to_le_bytes());
    assert!(matches!(
        add("x", &[1 << 20], &values, StoredType::F16),
        Err(Error::Overflow { index: 1_048_575, stored: ElementType::F16, .. })
    ));
    add("x", &[1], &2.0_f32.to_le_bytes(), StoredType::F16).unwrap();
    add("empty", &[0, 3], &[], StoredType::F16).unwrap();
    assert_eq!(fault(add("x", &[0], &[], StoredType::AsIs)), NameFault::Duplicate);
    run.commit(writer).unwrap();
    run.finish().unwrap();
    let reader = Reader::open(&path).unwrap();
    reader.verify().unwrap();
    let x = reader.tensor(&format!("{}/x", ids(1)[0])).unwrap();
    assert_eq!(x.bytes, [0x00, 0x40]);
    assert!(reader.tensor(&format!("{}/empty", ids(1)[0])).unwrap().bytes.is_empty());
    for unknown in ["x", "nobody/x", "", "0 “ä\"\\../y"] {
        assert!(matches!(reader.tensor(unknown), Err(Error::UnknownTensor { .. })));
    }
}

#[test]
fn names_are_checked_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let start = |ids: &[&str], tables: &[TableSchema]| {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        match Run::create_or_resume(&path, &job(), tables, &ids, Options::default()) {
            Err(Error::Name { of, fault, .. }) => (of, fault),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted {ids:?}"),
        }
    };
    assert_eq!(start(&["a", ""], &[]), (NameOf::Prompt, NameFault::Empty));
    assert_eq!(start(&["a", "b", "a"], &[]), (NameOf::Prompt, NameFault::Duplicate));
    assert_eq!(start(&["../a"], &[]), (NameOf::Prompt, NameFault::Slash));
    assert_eq!(start(&["a\0"], &[]), (NameOf::Prompt, NameFault::Control(0)));
    let long = "x".repeat(257);
    assert_eq!(start(&[&long], &[]), (NameOf::Prompt, NameFault::TooLong(257)));
    assert_eq!(start(&[], &[EMPTY, EMPTY]), (NameOf::Table, NameFault::Duplicate));
    const DOT: TableSchema = TableSchema::new("..", EMPTY.columns);
    assert_eq!(start(&[], &[DOT]), (NameOf::Table, NameFault::NotPlain));
    const PROMPT: TableSchema =
        TableSchema::new("t", &[ColumnSpec::required("prompt", ColumnKind::Text, "", "taken")]);
    assert_eq!(start(&[], &[PROMPT]), (NameOf::Column, NameFault::Reserved));
    const NONE: TableSchema = TableSchema::new("t", &[]);
    let none = Run::create_or_resume(&path, &job(), &[NONE], &[], Options::default());
    assert!(matches!(none, Err(Error::Range { least: 1, got: 0, .. })));
    for shard in [0, 4097] {
        let range = Run::create_or_resume(&path, &job(), &[], &[], options(shard));
        assert!(matches!(range, Err(Error::Range { .. })));
    }
    assert!(!path.exists());
}

#[test]
fn prompts_are_committed_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run = Run::create_or_resume(&path, &job(), &TABLES, &ids(3), options(2)).unwrap();
    assert_eq!(run.start(), &Start::New);
    let (mut a, mut b) = (run.prompt(0).unwrap(), run.prompt(0).unwrap());
    fill(&mut a).unwrap();
    fill(&mut b).unwrap();
    assert!(matches!(run.finish(), Err(Error::Unfinished { finished: 0, prompts: 3 })));
    run.commit(a).unwrap();
    assert!(matches!(run.commit(b), Err(Error::AlreadyFinished { .. })));
    assert!(matches!(run.prompt(0), Err(Error::AlreadyFinished { .. })));
    assert!(matches!(run.prompt(3), Err(Error::NoSuchPrompt { index: 3, prompts: 3 })));
    // A prompt that is given up can be begun again.
    let mut dropped = run.prompt(1).unwrap();
    fill(&mut dropped).unwrap();
    drop(dropped);
    assert_eq!(run.unfinished(), [1, 2]);
    assert!(run.is_finished(0) && !run.is_finished(1) && !run.is_finished(99));
    let (mut c, mut d) = (run.prompt(1).unwrap(), run.prompt(1).unwrap());
    fill(&mut c).unwrap();
    fill(&mut d).unwrap();
    assert!(matches!(run.commit_all(vec![c, d]), Err(Error::AlreadyFinished { .. })));
    drop(run);
    complete(&path, 3, options(2)).unwrap();

    let other = folder.path().join("other");
    complete(&other, 3, options(2)).unwrap();
    assert_same(&snapshot(&path), &snapshot(&other), "after dropped and doubled prompts");
}
