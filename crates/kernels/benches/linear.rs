//! Linear layers of a 135M-parameter model, beside faer's product on the same
//! numbers. Compare on one thread with `RAYON_NUM_THREADS=1`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use kernels::linear::Linear;
use testkit::Data;
use testkit::cases::LINEAR;

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn linear(c: &mut Criterion) {
    let par = match rayon::current_num_threads() {
        1 => Par::Seq,
        threads => Par::rayon(threads),
    };
    let mut group = c.benchmark_group("linear");
    for case in LINEAR.iter().filter(|case| case.bench) {
        let (m, d_in, d_out) = (case.m, case.d_in, case.d_out);
        let name = format!("{m}x{d_in}->{d_out}");
        // Multiply–adds; two floating-point operations each.
        group.throughput(Throughput::Elements((m * d_in * d_out) as u64));
        let mut data = Data::new(1);
        let (x, weight) = (data.tensor(&[m, d_in]), data.tensor(&[d_out, d_in]));

        let layer = Linear::dense(&weight, None).unwrap();
        group.bench_function(BenchmarkId::new("dense", &name), |b| {
            b.iter(|| layer.forward(&x).unwrap());
        });

        let (xs, ws) = (flat(&x), flat(&weight));
        let mut y = vec![0f32; m * d_out];
        group.bench_function(BenchmarkId::new("faer", &name), |b| {
            b.iter(|| {
                matmul(
                    MatMut::from_row_major_slice_mut(&mut y, m, d_out),
                    Accum::Replace,
                    MatRef::from_row_major_slice(&xs, m, d_in),
                    MatRef::from_row_major_slice(&ws, d_out, d_in).transpose(),
                    1.0,
                    par,
                );
            });
        });

        for format in [GgmlDType::Q4_1, GgmlDType::Q8_0] {
            let weight = Arc::new(QTensor::quantize(&weight, format).unwrap());
            let layer = Linear::quantized(weight, None).unwrap();
            group.bench_function(BenchmarkId::new(format!("{format:?}"), &name), |b| {
                b.iter(|| layer.forward(&x).unwrap());
            });
        }
    }
}

/// Making a layer: what loading a model costs beyond reading it.
fn pack(c: &mut Criterion) {
    let mut group = c.benchmark_group("make a layer");
    let weight = Data::new(1).tensor(&[3072, 576]);
    group.throughput(Throughput::Bytes(3072 * 576 * 4));
    group.bench_function("dense 3072x576", |b| b.iter(|| Linear::dense(&weight, None).unwrap()));
    for format in [GgmlDType::Q4_1, GgmlDType::Q8_0] {
        let weight = Arc::new(QTensor::quantize(&weight, format).unwrap());
        group.throughput(Throughput::Bytes(weight.storage_size_in_bytes() as u64));
        group.bench_function(format!("{format:?} 3072x576"), |b| {
            b.iter(|| Linear::quantized(weight.clone(), None).unwrap());
        });
    }
}

criterion_group!(benches, linear, pack);
criterion_main!(benches);
