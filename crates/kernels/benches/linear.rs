//! Linear layers of a 135M-parameter model, beside faer's product on the same
//! numbers and the quantized formats (those with blocks of 256 on rows of 768). Compare on one thread with `RAYON_NUM_THREADS=1`.

#![allow(clippy::unwrap_used)]

use candle_core::Tensor;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use kernels::linear::Linear;
use kernels::quantized::Encoding;
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

        for encoding in Encoding::ALL {
            let bytes = blocks(encoding, &mut data, d_out, d_in.next_multiple_of(encoding.len));
            let layer = made_of(encoding, &bytes, d_out, d_in.next_multiple_of(encoding.len));
            let x = x.pad_with_zeros(1, 0, layer.d_in() - d_in).unwrap();
            let throughput = m * layer.d_in() * d_out;
            group.throughput(Throughput::Elements(throughput as u64));
            group.bench_function(BenchmarkId::new(encoding.name, &name), |b| {
                b.iter(|| layer.forward(&x).unwrap());
            });
        }
    }
}

/// Random blocks with small scales.
fn blocks(encoding: &Encoding, data: &mut Data, d_out: usize, d_in: usize) -> Vec<u8> {
    let n = d_out * d_in / encoding.len * encoding.bytes;
    // Bytes below 32 make 16-bit floats below 0.01.
    (0..n).map(|_| data.below(32) as u8).collect()
}

fn made_of(encoding: &'static Encoding, bytes: &[u8], d_out: usize, d_in: usize) -> Linear {
    let row = d_in / encoding.len * encoding.bytes;
    Linear::quantized_from(encoding, [d_out, d_in], None, |j| &bytes[j * row..][..row]).unwrap()
}

/// Making a layer: what loading a model costs beyond reading it.
fn pack(c: &mut Criterion) {
    let mut group = c.benchmark_group("make a layer");
    let weight = Data::new(1).tensor(&[3072, 576]);
    group.throughput(Throughput::Bytes(3072 * 576 * 4));
    group.bench_function("dense 3072x576", |b| b.iter(|| Linear::dense(&weight, None).unwrap()));
    for encoding in Encoding::ALL {
        let bytes = blocks(encoding, &mut Data::new(1), 3072, 768);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{} 3072x768", encoding.name), |b| {
            b.iter(|| made_of(encoding, &bytes, 3072, 768));
        });
    }
}

criterion_group!(benches, linear, pack);
criterion_main!(benches);
