//! A small run whose content follows from the prompt's index alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use store::{
    Column, ColumnKind, ColumnSpec, ElementType, Job, Options, PromptWriter, Result, Run,
    StoredType, Summary, TableSchema, TensorView,
};

pub const SPECTRAL: TableSchema = TableSchema::new(
    "spectral",
    &[
        ColumnSpec::required("layer", ColumnKind::U32, "", "layer, from 0"),
        ColumnSpec::optional("entropy", ColumnKind::F64, "nats", "spectral entropy"),
        ColumnSpec::required("label", ColumnKind::Text, "", "a name"),
        ColumnSpec::optional("spectrum", ColumnKind::ListF64, "", "eigenvalues, ascending"),
    ],
);

/// Every kind of column.
pub const KINDS: TableSchema = TableSchema::new(
    "kinds",
    &[
        ColumnSpec::optional("u32", ColumnKind::U32, "", "column"),
        ColumnSpec::optional("u64", ColumnKind::U64, "bytes", "column"),
        ColumnSpec::optional("i64", ColumnKind::I64, "", "column"),
        ColumnSpec::optional("f32", ColumnKind::F32, "", "column"),
        ColumnSpec::optional("f64", ColumnKind::F64, "nats", "column"),
        ColumnSpec::optional("bool", ColumnKind::Bool, "", "column"),
        ColumnSpec::optional("text", ColumnKind::Text, "", "column"),
        ColumnSpec::optional("list_u32", ColumnKind::ListU32, "", "column"),
        ColumnSpec::optional("list_f32", ColumnKind::ListF32, "", "column"),
        ColumnSpec::optional("list_f64", ColumnKind::ListF64, "", "column"),
    ],
);

/// A table that stays empty.
pub const EMPTY: TableSchema =
    TableSchema::new("empty", &[ColumnSpec::required("x", ColumnKind::F64, "", "nothing")]);

pub const TABLES: [TableSchema; 3] = [SPECTRAL, KINDS, EMPTY];

pub fn job() -> Job {
    Job {
        engine_version: "0.1.0".to_owned(),
        description: serde_json::json!({
            "model": { "id": "tiny", "revision": "a1" },
            "scale": 0.1,
            "hooks": ["logits"],
        }),
        command: vec!["eigenlens".to_owned(), "capture".to_owned()],
        device: serde_json::json!({ "used": "cpu", "why": "named" }),
    }
}

pub fn ids(n: usize) -> Vec<String> {
    // The last characters show that ids are text, not file names.
    (0..n).map(|i| format!("{i} “ä\"\\..")).collect()
}

pub fn options(shard_prompts: u64) -> Options {
    Options { shard_prompts, ..Options::default() }
}

pub fn kinds(i: u64) -> Vec<(&'static str, Column)> {
    let f = i as f64;
    vec![
        ("u32", vec![Some(i as u32), None].into()),
        ("u64", vec![Some(u64::MAX - i), None].into()),
        ("i64", vec![Some(i64::MIN + i as i64), None].into()),
        ("f32", vec![Some(0.5 + i as f32), None].into()),
        ("f64", vec![Some(f.sin()), None].into()),
        ("bool", vec![Some(i.is_multiple_of(2)), None].into()),
        ("text", vec![Some(format!("zeile\n{i}")), None].into()),
        ("list_u32", vec![Some(vec![1_u32; i as usize]), None].into()),
        ("list_f32", vec![Some(vec![f as f32, 2.0]), None].into()),
        ("list_f64", vec![Some(Vec::<f64>::new()), None].into()),
    ]
}

pub fn fill(writer: &mut PromptWriter) -> Result<()> {
    let i = writer.index();
    let layers = 1 + (i % 3) as usize;
    for layer in 0..layers {
        let entropy = (layer != 1).then(|| (i as f64 + layer as f64).sqrt());
        writer.rows(
            "spectral",
            vec![
                ("layer", vec![layer as u32].into()),
                ("label", vec![format!("p{i}")].into()),
                ("entropy", vec![entropy].into()),
                ("spectrum", vec![vec![i as f64; layer]].into()),
            ],
        )?;
    }
    if i % 4 != 3 {
        writer.rows("kinds", kinds(i))?;
    }
    // One prompt in five has no tensors.
    if i % 5 != 4 {
        let values: Vec<u8> =
            (0..6_u64).flat_map(|k| ((i * 10 + k) as f32).to_le_bytes()).collect();
        let view = TensorView { element: ElementType::F32, shape: &[2, 3], bytes: &values };
        writer.tensor("blocks.0.hook_resid_post", view, StoredType::BF16)?;
        writer.tensor("logits", view, StoredType::AsIs)?;
        let indices =
            TensorView { element: ElementType::U32, shape: &[1], bytes: &(i as u32).to_le_bytes() };
        writer.tensor("blocks.0.mlp.hook_expert_indices", indices, StoredType::F16)?;
    }
    Ok(())
}

/// Starts or goes on with the run and does everything that is left.
pub fn complete(folder: &Path, n: usize, options: Options) -> Result<Summary> {
    let mut run = Run::create_or_resume(folder, &job(), &TABLES, &ids(n), options)?;
    for index in run.unfinished() {
        let mut writer = run.prompt(index)?;
        fill(&mut writer)?;
        run.commit(writer)?;
    }
    run.finish()
}

/// The run with its first `done` prompts finished, in one process that then stopped.
pub fn partly(folder: &Path, n: usize, done: u64, shard_prompts: u64) {
    let options = options(shard_prompts);
    let mut run = Run::create_or_resume(folder, &job(), &TABLES, &ids(n), options).unwrap();
    for index in 0..done {
        let mut writer = run.prompt(index).unwrap();
        fill(&mut writer).unwrap();
        run.commit(writer).unwrap();
    }
}

/// Every file of a folder by its relative name.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn visit(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(root, &path, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(folder, folder, &mut found);
    found
}

/// A folder that is gone after the test, in memory where the system has such a place.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(folder) => folder,
        Err(_) => tempfile::tempdir().unwrap(),
    }
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in snapshot(from) {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Checks that two folders hold the same files with the same bytes.
pub fn assert_same(
    got: &BTreeMap<PathBuf, Vec<u8>>,
    expected: &BTreeMap<PathBuf, Vec<u8>>,
    when: &str,
) {
    let names = |s: &BTreeMap<PathBuf, Vec<u8>>| s.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "{when}");
    for (name, bytes) in expected {
        assert!(got[name] == *bytes, "{} differs: {when}", name.display());
    }
}
