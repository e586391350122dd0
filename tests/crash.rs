//! A run that is killed at any moment and started again ends as if nothing had happened.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{derivations, eigenlens, files, run};

const PROMPTS: usize = 40;
const MOMENTS: u32 = 30;

fn command(prompts: &Path, out: &Path) -> std::process::Command {
    let mut command = eigenlens();
    command
        .args(["capture", "--model", "tiny-mixtral", "--hook", "blocks.*.mlp.hook_router_logits"])
        .args(["--hook", "blocks.3.hook_resid_post", "--quiet", "--threads", "1"])
        .arg("--prompts")
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
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    assert!(command(&prompts, &whole).output().unwrap().status.success());
    let duration = begun.elapsed();
    let expected = results(&whole);
    assert!(expected.iter().any(|(name, _)| name == "tables/prompts.parquet"));

    let (mut killed, mut unfinished) = (0, 0);
    for moment in 1..=MOMENTS {
        let out = folder.path().join(format!("killed-{moment}"));
        let mut child = command(&prompts, &out).spawn().unwrap();
        std::thread::sleep(duration * moment / (MOMENTS + 1));
        child.kill().unwrap(); // SIGKILL
        killed += u32::from(!child.wait().unwrap().success());

        // Before its first rename a run folder is not yet one; after it, it opens.
        let finished = if out.join("manifest.json").exists() {
            let shown = run(["show", out.to_str().unwrap(), "--json"]).code(0).json();
            shown["finished_prompts"].as_u64().unwrap()
        } else {
            0
        };
        unfinished += u32::from((1..PROMPTS as u64).contains(&finished));

        let again = command(&prompts, &out).arg("--json").output().unwrap();
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        let summary: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
        assert_eq!(summary["resumed_prompts"].as_u64(), Some(finished), "moment {moment}");
        let got = results(&out);
        let names = |r: &[(String, Vec<u8>)]| r.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        assert_eq!(names(&got), names(&expected));
        for ((name, got), (_, expected)) in got.iter().zip(&expected) {
            assert!(got == expected, "{name} differs after the kill at moment {moment}");
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
    // The test is about interrupted runs; on a machine with an unsteady clock some
    // kills come too late, but not most of them.
    assert!(killed >= MOMENTS / 2, "only {killed} of {MOMENTS} kills hit a running process");
    assert!(unfinished >= 3, "only {unfinished} kills hit a run with some prompts finished");
    assert!(duration > Duration::from_millis(30), "too short to be interrupted: {duration:?}");
}
