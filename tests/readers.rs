//! Other programs read what this one writes.

use std::path::PathBuf;
use std::process::Command;

use crate::support::{derivations, root, run};

/// The Python that `scripts/python-reader` makes.
fn python() -> PathBuf {
    let python = std::env::var_os("EIGENLENS_PYTHON")
        .map_or_else(|| root().join("target/pyreader/bin/python"), PathBuf::from);
    assert!(python.exists(), "no {}: run scripts/python-reader first", python.display());
    python
}

#[test]
fn pyarrow_reads_every_table_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 5);
    let out = folder.path().join("run");
    let words = [
        "spectral",
        "--quiet",
        "--exact",
        "--preset",
        "controlled,paper",
        "--model",
        "tiny-mixtral",
    ];
    let rest = ["--prompts".into(), prompts, "--out".into(), out.clone()];
    run(words.map(PathBuf::from).into_iter().chain(rest)).code(0);
    let script = "
import sys, pathlib, pyarrow.parquet as pq
run = pathlib.Path(sys.argv[1])
tables = {p.stem: pq.read_table(p) for p in sorted((run / 'tables').glob('*.parquet'))}
assert {'prompts', 'tokens', 'spectral', 'attention'} <= set(tables), tables.keys()
assert tables['prompts'].num_rows == 5
assert sum(tables['prompts'].column('n_tokens').to_pylist()) == tables['tokens'].num_rows
for name, table in tables.items():
    assert table.column_names[0] == 'prompt', name
    assert set(table.column('prompt').to_pylist()) == set(tables['prompts'].column('prompt').to_pylist()), name
means = [r for r in tables['spectral'].to_pylist() if r['head'] is None and r['preset'] == 'controlled']
assert len(means) == 5 * 4
assert all(0 < r['fiedler'] <= r['lambda_max'] <= 2 + 1e-9 for r in means), means[0]
texts = {r['prompt']: r['text'] for r in tables['prompts'].to_pylist()}
for row in tables['tokens'].to_pylist():
    if row['start'] is not None:
        piece = texts[row['prompt']][row['start']:row['end']]
        assert piece, row
print('ok')
";
    let output = Command::new(python()).arg("-c").arg(script).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
