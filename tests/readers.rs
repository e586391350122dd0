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
        "--exact=f64",
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

#[test]
fn pyarrow_reads_what_is_kept_of_spectra() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), 3);
    let out = folder.path().join("run");
    let words = [
        "spectral",
        "--quiet",
        "--exact=f64",
        "--quadrature=heads",
        "--keep",
        "eigenvalues,fiedler-vectors",
        "--model",
        "tiny-mixtral",
    ];
    let rest = ["--prompts".into(), prompts, "--out".into(), out.clone()];
    run(words.map(PathBuf::from).into_iter().chain(rest)).code(0);
    let script = "
import sys, pathlib, statistics, pyarrow.parquet as pq
tables = pathlib.Path(sys.argv[1]) / 'tables'
rows = lambda name: pq.read_table(tables / f'{name}.parquet').to_pylist()
key = lambda row: (row['prompt'], row['preset'], row['layer'], row['head'])
spectra = {key(row): row for row in rows('eigenvalues')}
assert len(spectra) == 3 * 4 * 5
tokens = {row['prompt']: row['n_tokens'] for row in rows('prompts')}
for (prompt, *_), row in spectra.items():
    values = row['eigenvalues']
    assert row['first_token'] == 1 and len(values) == tokens[prompt] - 1
    assert values == sorted(values) and abs(values[0]) < 1e-12
vectors = rows('fiedler_vectors')
assert {key(row) for row in vectors} == set(spectra)
for row in vectors:
    vector = row['vector']
    assert abs(sum(v * v for v in vector) - 1) < 1e-12
    assert max(vector) >= -min(vector) * (1 - 1e-6)
    assert abs(row['fiedler'] - spectra[key(row)]['eigenvalues'][1]) < 1e-12
probes = {}
for row in rows('quadrature'):
    probes.setdefault(key(row), []).append(row)
assert set(probes) == set(spectra)
for name, some in probes.items():
    values = spectra[name]['eigenvalues']
    assert [row['probe'] for row in some] == list(range(16))
    assert all(len(row['alpha']) == len(row['beta']) + 1 for row in some)
    assert all(abs(row['trace'] - sum(values)) < 1e-9 * sum(values) for row in some)
    # The first step of a probe has the second moment of the spectrum.
    squares = [row['dimension'] * (row['alpha'][0] ** 2 + row['beta'][0] ** 2) for row in some]
    error = statistics.stdev(squares) / 4
    assert abs(statistics.mean(squares) - sum(v * v for v in values)) < 6 * error, name
";
    let output = Command::new(python()).arg("-c").arg(script).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn prompts_that_pyarrow_writes_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
import sys, pyarrow as pa, pyarrow.parquet as pq
texts = ['one', 'two', 'three']
columns = {
    'plain': (pa.array(texts), pa.array([7, 8, 9], pa.int32()), 'snappy'),
    'large': (pa.array(texts, pa.large_string()), pa.array([7, 8, 9], pa.uint64()), 'gzip'),
    'dictionary': (pa.array(texts).dictionary_encode(), pa.array(['7', '8', '9']), 'zstd'),
    'numbers': (pa.array([1, 2, 3]), pa.array(['7', '8', '9']), 'brotli'),
}
for name, (text, ids, compression) in columns.items():
    table = pa.table({'other': [1.5, 2.5, 3.5], 'text': text, 'id': ids})
    pq.write_table(table, f'{sys.argv[1]}/{name}.parquet', compression=compression)
";
    let output = Command::new(python()).arg("-c").arg(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let capture = |name: &str| {
        let words = [
            "capture",
            "--quiet",
            "--json",
            "--model",
            "tiny-mixtral",
            "--hook",
            "logits",
            "--prompts",
        ];
        let file = folder.path().join(name).with_extension("parquet");
        let out = folder.path().join(name);
        run(words.map(PathBuf::from).into_iter().chain([file, "--out".into(), out]))
    };
    for name in ["plain", "large", "dictionary"] {
        capture(name).code(0);
        let out = folder.path().join(name);
        let shown = run(["show", out.to_str().unwrap(), "prompts", "--json"]).code(0).json();
        let rows: Vec<_> =
            shown["rows"].as_array().unwrap().iter().map(|row| (&row[0], &row[1])).collect();
        assert_eq!(
            rows,
            [
                (&"7".into(), &"one".into()),
                (&"8".into(), &"two".into()),
                (&"9".into(), &"three".into())
            ]
        );
    }
    let refused = capture("numbers").code(2);
    assert!(refused.stderr.contains("text (Int64)"), "{}", refused.stderr);
}
