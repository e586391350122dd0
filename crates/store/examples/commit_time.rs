//! Measures what it costs to make a prompt durable, on the disk of the folder given.
//!
//! ```text
//! cargo run --release -p store --example commit_time [FOLDER]
//! ```
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use store::{
    ColumnKind, ColumnSpec, ElementType, Job, Options, Result, Run, StoredType, TableSchema,
    TensorView,
};

const COLUMNS: &[ColumnSpec] = &[
    ColumnSpec::required("layer", ColumnKind::U32, "", "layer, from 0"),
    ColumnSpec::required("value", ColumnKind::F64, "nats", "a number"),
];
const TABLES: [TableSchema; 5] = [
    TableSchema::new("prompts", COLUMNS),
    TableSchema::new("tokens", COLUMNS),
    TableSchema::new("spectral", COLUMNS),
    TableSchema::new("attention", COLUMNS),
    TableSchema::new("routing", COLUMNS),
];
const PROMPTS: usize = 256;
const ROWS: u32 = 300;

/// Runs with `group` prompts to a commit; returns the median time of a commit and of finishing.
fn measure(folder: PathBuf, group: usize, tensor: &[u8]) -> Result<(Duration, Duration)> {
    let job = Job {
        engine_version: "0".to_owned(),
        description: serde_json::Value::Null,
        command: vec![],
        device: serde_json::Value::Null,
    };
    let ids: Vec<String> = (0..PROMPTS).map(|i| i.to_string()).collect();
    let mut run = Run::create_or_resume(folder, &job, &TABLES, &ids, Options::default())?;
    let mut times = Vec::new();
    for indices in run.unfinished().chunks(group) {
        let start = Instant::now();
        let mut writers = Vec::new();
        for index in indices {
            let mut writer = run.prompt(*index)?;
            for table in &TABLES {
                let layers: Vec<u32> = (0..ROWS).collect();
                let values: Vec<f64> = layers.iter().map(|l| f64::from(*l).sin()).collect();
                let rows = vec![("layer", layers.into()), ("value", values.into())];
                writer.rows(table.name, rows)?;
            }
            if !tensor.is_empty() {
                let view = TensorView {
                    element: ElementType::F32,
                    shape: &[tensor.len() / 4],
                    bytes: tensor,
                };
                writer.tensor("logits", view, StoredType::AsIs)?;
            }
            writers.push(writer);
        }
        run.commit_all(writers)?;
        times.push(start.elapsed());
    }
    times.sort();
    let start = Instant::now();
    run.finish()?;
    Ok((times[times.len() / 2], start.elapsed()))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let base = std::env::args_os().nth(1).map(PathBuf::from);
    let base = base.unwrap_or_else(std::env::temp_dir);
    println!("{PROMPTS} prompts, 5 tables of {ROWS} rows each; medians");
    println!("prompts/commit  tensor bytes  per commit  per prompt  finish");
    for bytes in [0, 1 << 20, 16 << 20] {
        let tensor = vec![0x3C; bytes];
        for group in [1, 8] {
            let folder = base.join(format!("commit-time-{}", std::process::id()));
            let measured = measure(folder.clone(), group, &tensor);
            std::fs::remove_dir_all(&folder)?;
            let (commit, finish) = measured?;
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            println!(
                "{group:14}  {bytes:12}  {:7.2} ms  {:7.2} ms  {:6.0} ms",
                ms(commit),
                ms(commit) / group as f64,
                ms(finish)
            );
        }
    }
    Ok(())
}
