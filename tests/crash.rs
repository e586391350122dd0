//! A run that is killed at any moment and started again ends as if nothing had happened.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{derivations, eigenlens, files, run};

const PROMPTS: usize = 40;
const MOMENTS: u32 = 15;

/// What is killed: one job that leaves tensors, one that leaves tables.
const JOBS: [&[&str]; 2] = [
    &["capture", "--hook", "blocks.*.mlp.hook_router_logits", "--hook", "blocks.3.hook_resid_post"],
    &[
        "spectral",
        "--preset",
        "controlled,paper",
        "--quadrature",
        "--keep",
        "eigenvalues,fiedler-vectors",
    ],
];

fn command(job: &[&str], prompts: &Path, out: &Path) -> std::process::Command {
    let mut command = eigenlens();
    command
        .args(job)
        .args(["--model", "tiny-mixtral", "--quiet", "--threads", "1", "--prompts"])
        .arg(prompts)
        .arg("--out")
        .arg(out);
    command
}

fn results(out: &Path) -> Vec<(String, Vec<u8>)> {
    let is_result = |name: &str| name.starts_with("tables/") || name.starts_with("tensors/");
    files(out).into_iter().filter(|(name, _)| is_result(name)).collect()
}

#[test]
fn killed_at_thirty_moments_and_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = derivations(folder.path(), PROMPTS);
    let (mut killed, mut unfinished) = (0, 0);
    for (number, job) in JOBS.into_iter().enumerate() {
        // The shorter of two runs: other tests may slow one of them down.
        let (duration, expected) = uninterrupted(job, &prompts, folder.path());
        let (again, same) = uninterrupted(job, &prompts, folder.path());
        let duration = duration.min(again);
        assert!(same == expected, "two whole runs differ");
        assert!(expected.iter().any(|(name, _)| name == "tables/prompts.parquet"));
        for moment in 1..=MOMENTS {
            let out = folder.path().join(format!("killed-{number}-{moment}"));
            let after = duration * moment / (MOMENTS + 1);
            killed += u32::from(kill_after(after, command(job, &prompts, &out)));

            // Before its first rename a run folder is not yet one; after it, it opens.
            let finished = if out.join("manifest.json").exists() {
                let shown = run(["show", out.to_str().unwrap(), "--json"]).code(0).json();
                shown["finished_prompts"].as_u64().unwrap()
            } else {
                0
            };
            unfinished += u32::from((1..PROMPTS as u64).contains(&finished));

            let again = command(job, &prompts, &out).arg("--json").output().unwrap();
            assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
            let summary: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
            assert_eq!(summary["resumed_prompts"].as_u64(), Some(finished), "moment {moment}");
            let got = results(&out);
            let names =
                |r: &[(String, Vec<u8>)]| r.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
            assert_eq!(names(&got), names(&expected));
            for ((name, got), (_, expected)) in got.iter().zip(&expected) {
                assert!(got == expected, "{name} differs after the kill at moment {moment}");
            }
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
    // The test is about interrupted runs; beside other tests some kills come too
    // late or too early, but not most of them.
    assert!(killed >= MOMENTS, "only {killed} of {} kills hit a running process", 2 * MOMENTS);
    assert!(unfinished >= 4, "only {unfinished} kills hit a run with some prompts finished");
}

/// A whole run: how long it took, and what it left.
fn uninterrupted(
    job: &[&str],
    prompts: &Path,
    folder: &Path,
) -> (Duration, Vec<(String, Vec<u8>)>) {
    let out = folder.join("whole");
    let begun = Instant::now();
    assert!(command(job, prompts, &out).output().unwrap().status.success());
    let duration = begun.elapsed();
    let left = results(&out);
    std::fs::remove_dir_all(&out).unwrap();
    (duration, left)
}

/// Kills the process (SIGKILL) after a while; whether it was still running.
fn kill_after(after: Duration, mut command: std::process::Command) -> bool {
    let mut child = command.spawn().unwrap();
    std::thread::sleep(after);
    child.kill().unwrap();
    !child.wait().unwrap().success()
}
