//! Attention of one layer, and what is wanted beside it; the elementwise operations
//! of the same layer. Compare on one thread with `RAYON_NUM_THREADS=1`.

#![allow(clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hooks::SummaryOptions;
use kernels::activation::{ActivationFunction, gated};
use kernels::attention::{
    AttentionInput, AttentionOptions, AttentionWants, attention, attention_pattern,
};
use kernels::norm::{layer_norm, rms_norm};
use kernels::rotary::{RotaryTables, rotary};
use testkit::Data;
use testkit::cases::ATTENTION;

fn attend(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for case in ATTENTION.iter().filter(|case| case.bench) {
        let mut data = Data::new(1);
        let (t, s) = (case.lengths[0], case.lengths[0] + case.offsets[0]);
        let q = data.tensor(&[1, t, case.heads, case.d_head]);
        let k = data.tensor(&[1, s, case.kv_heads, case.d_head]);
        let v = data.tensor(&[1, s, case.kv_heads, case.d_value]);
        let (lengths, offsets) = (case.lengths, case.offsets);
        let input = AttentionInput { q: &q, k: &k, v: &v, lengths, offsets };
        let options = AttentionOptions { scale: 0.125, window: None, soft_cap: case.soft_cap };
        let capped = if case.soft_cap.is_some() { ", capped" } else { "" };
        let name = format!("{t} queries, {s} keys{capped}");
        let summary = Some(SummaryOptions { window: 10, boundary: Some(s / 2) });
        for (what, wants) in [
            ("plain", AttentionWants::default()),
            ("lse", AttentionWants { lse: true, ..AttentionWants::default() }),
            ("summary", AttentionWants { summary, ..AttentionWants::default() }),
        ] {
            group.bench_function(BenchmarkId::new(what, &name), |b| {
                b.iter(|| attention(&input, &options, &wants).unwrap());
            });
        }
        let heads: Vec<usize> = (0..case.heads).collect();
        group.bench_function(BenchmarkId::new("pattern of all heads", &name), |b| {
            b.iter(|| attention_pattern(&input, &options, &heads).unwrap());
        });
    }
}

fn elementwise(c: &mut Criterion) {
    let mut data = Data::new(1);
    let (x, weight) = (data.tensor(&[1, 512, 576]), data.tensor(&[576]));
    c.bench_function("rms_norm/512x576", |b| b.iter(|| rms_norm(&x, &weight, 1e-5).unwrap()));
    c.bench_function("layer_norm/512x576", |b| {
        b.iter(|| layer_norm(&x, &weight, Some(&weight), 1e-5).unwrap());
    });
    let fused = data.tensor(&[1, 512, 3072]);
    let (gate, up) = (fused.narrow(2, 0, 1536).unwrap(), fused.narrow(2, 1536, 1536).unwrap());
    c.bench_function("silu(gate) up/512x1536", |b| {
        b.iter(|| gated(ActivationFunction::Silu, &gate, &up).unwrap());
    });
    let inv_freq: Vec<f64> = (0..32).map(|i| 1e4f64.powf(-f64::from(i) / 32.0)).collect();
    let tables = RotaryTables::new(&inv_freq, 1.0, 512).unwrap();
    let q = data.tensor(&[1, 512, 9, 64]);
    c.bench_function("rotary/512x9x64", |b| b.iter(|| rotary(&q, &tables, &[0]).unwrap()));
}

criterion_group!(benches, attend, elementwise);
criterion_main!(benches);
