//! Another reader: pyarrow opens the tables and the streams of an unfinished run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{complete, options, partly, scratch};

const SCRIPT: &str = r#"
import json, struct, sys
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from pathlib import Path

run = Path(sys.argv[1])
out = {}

def exact(value):
    """A number's bytes, since JSON readers may round."""
    return struct.pack("<d", value).hex() if isinstance(value, float) else value

for path in sorted((run / "tables").glob("*.parquet")):
    file = pq.ParquetFile(path)
    table = pq.read_table(path)
    out[path.stem] = {
        "rows": table.num_rows,
        "types": {f.name: str(f.type) for f in table.schema},
        "nullable": {f.name: f.nullable for f in table.schema},
        "metadata": {
            f.name: {k.decode(): v.decode() for k, v in (f.metadata or {}).items()}
            for f in table.schema
        },
        "data": {c: [exact(v) for v in l] for c, l in table.to_pydict().items()},
        "created_by": file.metadata.created_by,
    }
for path in sorted((run / "open").glob("*/*.arrows")):
    out[path.stem] = {"batches": [b.to_pydict() for b in ipc.open_stream(path.open("rb"))]}
print(json.dumps(out))
"#;

/// The interpreter with pyarrow that `scripts/python-reader` makes.
fn python() -> PathBuf {
    if let Some(path) = std::env::var_os("EIGENLENS_PYTHON") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("target/pyreader/bin/python");
    assert!(
        path.exists(),
        "this test reads the tables with pyarrow; make it ready with scripts/python-reader"
    );
    path
}

fn read(run: &Path) -> serde_json::Value {
    let output = Command::new(python()).arg("-c").arg(SCRIPT).arg(run).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn pyarrow_reads_every_kind_of_column() {
    let folder = scratch();
    let run = folder.path().join("run");
    let summary = complete(&run, 10, options(3)).unwrap();
    let got = read(&run);
    for (table, rows) in &summary.tables {
        assert_eq!(got[table]["rows"], *rows, "{table}");
    }
    let kinds = &got["kinds"];
    assert_eq!(
        kinds["types"],
        serde_json::json!({
            "prompt": "string",
            "u32": "uint32",
            "u64": "uint64",
            "i64": "int64",
            "f32": "float",
            "f64": "double",
            "bool": "bool",
            "text": "string",
            "list_u32": "list<element: uint32 not null>",
            "list_f32": "list<element: float not null>",
            "list_f64": "list<element: double not null>",
        })
    );
    assert_eq!(kinds["nullable"]["prompt"], false);
    assert_eq!(kinds["nullable"]["u32"], true);
    assert_eq!(kinds["metadata"]["f64"], serde_json::json!({ "doc": "column", "unit": "nats" }));
    let data = &kinds["data"];
    // Rows 4 and 5 are those of prompt 2, the second of them without values.
    assert_eq!(data["prompt"][4], "2 “ä\"\\..");
    assert_eq!(data["u64"][4], u64::MAX - 2);
    assert_eq!(data["i64"][4], i64::MIN + 2);
    let hex = |x: f64| -> String { x.to_le_bytes().iter().map(|b| format!("{b:02x}")).collect() };
    assert_eq!(data["f32"][4], hex(2.5));
    assert_eq!(data["f64"][4], hex(2_f64.sin()));
    assert_eq!(data["bool"][4], true);
    assert_eq!(data["text"][4], "zeile\n2");
    assert_eq!(data["list_u32"][4], serde_json::json!([1, 1]));
    assert_eq!(data["list_f32"][4], serde_json::json!([2.0, 2.0]));
    assert_eq!(data["list_f64"][4], serde_json::json!([]));
    for column in ["u32", "u64", "i64", "f32", "f64", "bool", "text", "list_u32", "list_f64"] {
        assert_eq!(data[column][5], serde_json::Value::Null, "{column}");
    }
    assert_eq!(got["spectral"]["data"]["spectrum"][2], serde_json::json!([1.0]));
}

#[test]
fn pyarrow_reads_the_streams_of_an_unfinished_run() {
    let folder = scratch();
    let run = folder.path().join("run");
    partly(&run, 10, 5, 3);
    let got = read(&run);
    let batches = got["spectral"]["batches"].as_array().unwrap();
    assert_eq!(batches.len(), 2);
    assert_eq!(batches[1]["layer"], serde_json::json!([0, 1]));
    assert_eq!(batches[1]["label"], serde_json::json!(["p4", "p4"]));
}
