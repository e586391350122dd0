//! The emulation itself: what the language gives, and that planted faults are found.

#![allow(clippy::unwrap_used)]

use emulator::{Argument, Build, Error, Launch, Order, Result};
use half::{bf16, f16};

const BUILDS: [Build; 2] = [Build::Plain, Build::Sanitized];

/// A launch of one block of `threads` whose arguments are all buffers.
fn run(
    kernel: &str,
    threads: u32,
    shared: usize,
    how: (Build, Order),
    buffers: &mut [Vec<u8>],
) -> Result<()> {
    let arguments: Vec<Argument> =
        (0..buffers.len()).map(|index| Argument::Buffer { index, offset: 0 }).collect();
    let launch = Launch {
        kernel,
        grid: [1, 1, 1],
        block: [threads, 1, 1],
        shared_bytes: shared,
        arguments: &arguments,
        build: how.0,
        order: how.1,
        seconds: 20,
    };
    launch.run(buffers)
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32 + 1.0).to_ne_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&bytes| u32::from_ne_bytes(bytes)).collect()
}

fn every() -> impl Iterator<Item = (Build, Order)> {
    BUILDS.into_iter().flat_map(|build| Order::ALL.map(|order| (build, order)))
}

/// In which orders a kernel that reads what other threads wrote turns its input round or swaps
/// neighbours as it should.
fn right_in(kernel: &str, threads: usize, expected: impl Fn(usize) -> usize) -> Vec<Order> {
    let right = |order: &Order| {
        let mut buffers = [floats(threads), vec![0; 4 * threads]];
        run(kernel, threads as u32, 4 * threads, (Build::Plain, *order), &mut buffers).unwrap();
        let (x, y) = (words(&buffers[0]), words(&buffers[1]));
        (0..threads).all(|i| y[i] == x[expected(i)])
    };
    Order::ALL.into_iter().filter(right).collect()
}

#[test]
fn a_missing_barrier_shows() {
    for threads in [2, 33, 64, 256, 1024] {
        assert_eq!(right_in("planted_turn_round", threads, |i| threads - 1 - i), Order::ALL);
        let right = right_in("planted_missing_barrier", threads, |i| threads - 1 - i);
        assert!(right.len() < 3, "{threads} threads, right in {right:?}");
    }
    let right = right_in("planted_missing_warp_barrier", 32, |i| i ^ 1);
    assert!(right.len() < 3, "{right:?}");
}

#[test]
fn copies_come_as_late_and_as_early_as_they_may() {
    let right = |kernel| right_in(kernel, 64, |i| 63 - i);
    assert_eq!(right("planted_copy"), Order::ALL);
    assert_eq!(right("planted_unwaited_copy"), [Order::Forward]);
    assert_eq!(right("planted_early_copy"), [Order::Reverse, Order::Strided]);
}

#[test]
fn instructions_of_shared_memory_want_sixteen_bytes_of_it() {
    for how in every() {
        for (kernel, said) in [
            ("planted_matrices_outside", "a matrix that is not at 16 bytes of shared memory"),
            ("planted_matrices_misaligned", "a matrix that is not at 16 bytes of shared memory"),
            ("planted_copy_outside", "a copy to what is not 16 bytes of shared memory"),
            ("planted_copy_misaligned", "a copy from a misaligned place"),
        ] {
            let done = run(kernel, 32, 256, how, &mut [vec![0; 256]]);
            let Err(Error::Fault { reason }) = done else { panic!("{kernel}: {done:?}") };
            assert!(reason.contains(said), "{kernel}: {reason}");
        }
    }
}

#[test]
fn divergence_is_a_fault() {
    for how in every() {
        for (kernel, said) in [
            ("planted_divergent_barrier", ["a divergent barrier", "faults.cu:"]),
            ("planted_early_end", ["a divergent barrier", "has ended"]),
            ("planted_divergent_shuffle", ["a divergent collective", "waits for lanes"]),
            ("planted_divergent_product", ["a divergent collective", "mma.cuh:"]),
        ] {
            let done = run(kernel, 64, 0, how, &mut [vec![0; 256]]);
            let Err(Error::Fault { reason }) = done else { panic!("{kernel}: {done:?}") };
            assert!(said.iter().all(|said| reason.contains(said)), "{kernel}: {reason}");
        }
    }
}

#[test]
fn the_sanitizer_finds_accesses_outside() {
    for order in Order::ALL {
        for (kernel, shared, said) in [
            ("planted_read_beyond", 0, "heap-buffer-overflow"),
            ("planted_shared_overrun", 128, "heap-buffer-overflow"),
            ("planted_static_overrun", 0, "out of bounds"),
            ("planted_overflow", 0, "signed integer overflow"),
            ("planted_misaligned", 0, "misaligned address"),
        ] {
            let mut buffers = [floats(32), vec![0; 128]];
            let done = run(kernel, 32, shared, (Build::Sanitized, order), &mut buffers);
            let Err(Error::Sanitizer { report }) = done else { panic!("{kernel}: {done:?}") };
            assert!(report.contains(said), "{kernel}: {report}");
        }
        // One thread less, one element less: nothing to find.
        let mut buffers = [floats(32), vec![0; 128]];
        run("planted_read_beyond", 31, 0, (Build::Sanitized, order), &mut buffers).unwrap();
        run("planted_shared_overrun", 31, 128, (Build::Sanitized, order), &mut buffers).unwrap();
    }
}

#[test]
fn memory_that_is_not_there_ends_the_launch() {
    let (nowhere, somewhere) =
        ([Argument::Value(&[0; 8])], [Argument::Buffer { index: 0, offset: 0 }]);
    for (build, order) in every() {
        for (kernel, arguments) in [("planted_write", &nowhere), ("planted_deep", &somewhere)] {
            let launch = Launch {
                kernel,
                grid: [1, 1, 1],
                block: [1, 1, 1],
                shared_bytes: 0,
                arguments,
                build,
                order,
                seconds: 20,
            };
            let mut buffers = [vec![0; 4]];
            let done = launch.run(&mut buffers);
            match build {
                Build::Plain => assert!(matches!(done, Err(Error::Died { .. })), "{done:?}"),
                Build::Sanitized => {
                    assert!(matches!(done, Err(Error::Sanitizer { .. })), "{done:?}")
                }
            }
            assert_eq!(buffers, [vec![0; 4]]);
        }
    }
}

#[test]
fn a_runaway_ends() {
    let arguments = [Argument::Buffer { index: 0, offset: 0 }];
    for build in BUILDS {
        let launch = Launch {
            kernel: "planted_runaway",
            grid: [1, 1, 1],
            block: [1, 1, 1],
            shared_bytes: 0,
            arguments: &arguments,
            build,
            order: Order::Forward,
            seconds: 1,
        };
        let done = launch.run(&mut [vec![0; 4]]);
        assert!(
            matches!(&done, Err(Error::Fault { reason }) if reason.contains("limit")),
            "{done:?}"
        );
    }
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let how = (Build::Plain, Order::Forward);
    for (kernel, threads, shared, n, said) in [
        ("nothing_f32", 32, 0, 2, "there is no kernel nothing_f32"),
        ("planted_turn_round", 1025, 0, 2, "threads in a block: got 1025, expected 1024"),
        ("planted_turn_round", 0, 0, 2, "threads in a block"),
        ("planted_turn_round", 32, 227 * 1024 + 1, 2, "bytes of dynamic shared memory"),
        ("planted_turn_round", 32, 128, 3, "arguments: got 3, expected 2"),
    ] {
        let done = run(kernel, threads, shared, how, &mut vec![vec![0; 128]; n]);
        assert!(
            matches!(&done, Err(Error::Refused { reason }) if reason.contains(said)),
            "{done:?}"
        );
    }
    let arguments = [Argument::Buffer { index: 0, offset: 0 }, Argument::Value(&[0; 4])];
    let launch = Launch {
        kernel: "planted_turn_round",
        grid: [1, 1, 1],
        block: [1, 1, 1],
        shared_bytes: 0,
        arguments: &arguments,
        build: Build::Plain,
        order: Order::Forward,
        seconds: 1,
    };
    let done = launch.run(&mut [vec![0; 4]]);
    let said = "argument 1 of planted_turn_round, bytes: got 4, expected 8";
    assert!(matches!(&done, Err(Error::Refused { reason }) if reason.contains(said)), "{done:?}");
}

#[test]
fn every_thread_is_somewhere() {
    let arguments = [Argument::Buffer { index: 0, offset: 24 }];
    let (grid, block) = ([3u32, 2, 2], [5u32, 3, 4]);
    let n: u32 = grid.iter().chain(&block).product();
    for (build, order) in every() {
        let launch = Launch {
            kernel: "language_places",
            grid,
            block,
            shared_bytes: 0,
            arguments: &arguments,
            build,
            order,
            seconds: 20,
        };
        let mut buffers = [vec![0xff; 24 * (n as usize + 1)]];
        launch.run(&mut buffers).unwrap();
        let got = words(&buffers[0]);
        // What lies before the argument stays.
        assert_eq!(got[..6], [u32::MAX; 6]);
        for i in 0..n {
            let mut rest = i;
            let mut expected = [0; 6];
            for (axis, count) in [
                (3, block[0]),
                (4, block[1]),
                (5, block[2]),
                (0, grid[0]),
                (1, grid[1]),
                (2, grid[2]),
            ] {
                expected[axis] = rest % count;
                rest /= count;
            }
            assert_eq!(got[6 * (i as usize + 1)..][..6], expected);
        }
    }
}

#[test]
fn collectives_are_those_of_the_language() {
    let rows: [fn(u32) -> u32; 14] = [
        |_| 105,
        |lane| 100 + lane / 8 * 8 + 3,
        |lane| 100 + if lane < 3 { lane } else { lane - 3 },
        |lane| 100 + if lane % 4 == 0 { lane } else { lane - 1 },
        |lane| 100 + if lane < 2 { lane + 30 } else { lane },
        |lane| 100 + if lane % 16 < 14 { lane + 2 } else { lane },
        |lane| 100 + (lane ^ 9),
        |lane| 100 + if lane < 16 { lane } else { lane - 16 },
        |_| (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1 << lane).sum(),
        |_| 1,
        |_| 0,
        |lane| (0..32).filter(|other| other % 5 == lane % 5).map(|other| 1 << other).sum(),
        |lane| 100 + (lane ^ 1),
        |lane| (9 << 8) + if lane < 4 { 0b1011 } else { 0 },
    ];
    for how in every() {
        let mut buffers = [vec![0; 4 * 32 * rows.len()]];
        run("language_collectives", 32, 0, how, &mut buffers).unwrap();
        let got = words(&buffers[0]);
        for (row, expected) in rows.iter().enumerate() {
            let expected: Vec<u32> = (0..32).map(expected).collect();
            assert_eq!(got[32 * row..][..32], expected, "row {row}, {how:?}");
        }
    }
}

#[test]
fn bytes_are_chosen_and_products_rounded() {
    // 1 + 2⁻²³ squared is 1 + 2⁻²² + 2⁻⁴⁶: the last of them is lost between the two operations.
    let near = 1.0 + f32::EPSILON;
    let floats = [near, near, -(1.0 + 2.0 * f32::EPSILON), 7.0];
    for how in every() {
        let start = floats.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let mut buffers = [vec![0; 4 * 5], start];
        run("language_bytes", 1, 0, how, &mut buffers).unwrap();
        let expected = [0x3322_1100, 0x7766_5544, 0x7766_5500, 0x0011_2233, 0x5511_4466];
        assert_eq!(words(&buffers[0]), expected, "{how:?}");
        assert_eq!(f32::from_bits(words(&buffers[1])[3]), 0.0, "{how:?}");
    }
}

#[test]
fn atomics_count() {
    let start: Vec<u8> =
        [0u32, 0, 99, 0, u32::MAX, 0, 0, 200].iter().flat_map(|word| word.to_ne_bytes()).collect();
    for how in every() {
        let mut buffers = [start.clone(), vec![0; 4]];
        run("language_atomics", 100, 0, how, &mut buffers).unwrap();
        assert_eq!(words(&buffers[0]), [100, 99, 0, u32::MAX, 0xffff_0000, 7, 9, 0]);
        assert_eq!(f32::from_bits(words(&buffers[1])[0]), 50.0);
    }
}

#[test]
fn conversions_round_as_they_should() {
    // Every half and every bfloat16, the middles between neighbours, and beside those; then bits
    // at large steps.
    let mut x: Vec<u32> = Vec::new();
    for bits in 0..=u16::MAX {
        let half = f16::from_bits(bits).to_f32().to_bits();
        let brain = u32::from(bits) << 16;
        x.extend([half, half | 0xfff, half | 0x1000, half | 0x1001]);
        x.extend([brain, brain | 0x7fff, brain | 0x8000, brain | 0x8001]);
    }
    x.extend((0..u32::MAX).step_by(0x4321));
    // Subnormal halves and their middles.
    x.extend((0..4096).map(|i| (i as f32 * 2f32.powi(-26)).to_bits()));
    let n = x.len();
    let bytes = x.iter().flat_map(|bits| bits.to_ne_bytes()).collect();
    let mut buffers = [bytes, vec![0; 2 * n], vec![0; 2 * n], vec![0; 4 * n], vec![0; 4 * n]];
    let count = (n as u64).to_ne_bytes();
    let mut arguments: Vec<Argument> =
        (0..5).map(|index| Argument::Buffer { index, offset: 0 }).collect();
    arguments.push(Argument::Value(&count));
    let launch = Launch {
        kernel: "language_numbers",
        grid: [n.div_ceil(256) as u32, 1, 1],
        block: [256, 1, 1],
        shared_bytes: 0,
        arguments: &arguments,
        build: Build::Plain,
        order: Order::Forward,
        seconds: 60,
    };
    launch.run(&mut buffers).unwrap();
    let shorts = |bytes: &[u8]| -> Vec<u16> {
        bytes.as_chunks().0.iter().map(|&bytes| u16::from_ne_bytes(bytes)).collect()
    };
    let (halves, brains) = (shorts(&buffers[1]), shorts(&buffers[2]));
    let (half_back, brain_back) = (words(&buffers[3]), words(&buffers[4]));
    for i in 0..n {
        let exact = f32::from_bits(x[i]);
        let (half, brain) = (f16::from_bits(halves[i]), bf16::from_bits(brains[i]));
        if exact.is_nan() {
            // The device's own NaN.
            assert_eq!((halves[i], brains[i]), (0x7fff, 0x7fff));
            continue;
        }
        assert_eq!(halves[i], f16::from_f32(exact).to_bits(), "{exact:e}");
        assert_eq!(brains[i], bf16::from_f32(exact).to_bits(), "{exact:e}");
        assert_eq!(half_back[i], half.to_f32().to_bits(), "{exact:e}");
        assert_eq!(brain_back[i], brain.to_f32().to_bits(), "{exact:e}");
    }
}

/// Row and column of the number `i` that a lane holds of each matrix of `mma.m16n8k16`, as the PTX
/// ISA (9.7.14.5.8, "Matrix Fragments for mma.m16n8k16 with floating point type") gives them.
mod fragments {
    /// Of `a0 .. a7`.
    pub fn a(lane: usize, i: usize) -> (usize, usize) {
        let (group_id, thread_in_group) = (lane >> 2, lane % 4);
        let row = if i < 2 || (4..6).contains(&i) { group_id } else { group_id + 8 };
        let col = thread_in_group * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
        (row, col)
    }

    /// Of `b0 .. b3`.
    pub fn b(lane: usize, i: usize) -> (usize, usize) {
        let (group_id, thread_in_group) = (lane >> 2, lane % 4);
        (thread_in_group * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group_id)
    }

    /// Of `c0 .. c3`.
    pub fn c(lane: usize, i: usize) -> (usize, usize) {
        let (group_id, thread_in_group) = (lane >> 2, lane % 4);
        (if i < 2 { group_id } else { group_id + 8 }, thread_in_group * 2 + (i & 1))
    }
}

/// Whole numbers that no two places share, small enough for exact sums of their products.
fn whole(seed: usize, row: usize, col: usize) -> f32 {
    ((row * 37 + col * 11 + seed) % 127) as f32 - 63.0
}

fn registers(halves: impl Iterator<Item = u16>) -> Vec<u8> {
    halves.flat_map(u16::to_ne_bytes).collect()
}

#[test]
fn products_take_the_fragments_of_the_instruction() {
    type Bits = fn(f32) -> u16;
    let bf16_bits: Bits = |x| bf16::from_f32(x).to_bits();
    let f16_bits: Bits = |x| f16::from_f32(x).to_bits();
    let each = |n: usize| (0..32).flat_map(move |lane| (0..n).map(move |i| (lane, i)));
    for (kernel, bits) in [("language_mma_bf16", bf16_bits), ("language_mma_f16", f16_bits)] {
        for how in every() {
            let a = registers(each(8).map(|(lane, i)| {
                let (row, col) = fragments::a(lane, i);
                bits(whole(1, row, col))
            }));
            let b = registers(each(4).map(|(lane, i)| {
                let (row, col) = fragments::b(lane, i);
                bits(whole(50, row, col))
            }));
            let d = each(4).flat_map(|(lane, i)| {
                let (row, col) = fragments::c(lane, i);
                whole(90, row, col).to_ne_bytes()
            });
            let mut buffers = [a, b, d.collect()];
            run(kernel, 32, 0, how, &mut buffers).unwrap();
            let got = words(&buffers[2]);
            for (lane, i) in each(4) {
                let (row, col) = fragments::c(lane, i);
                let product: f32 = (0..16).map(|k| whole(1, row, k) * whole(50, k, col)).sum();
                let got = f32::from_bits(got[4 * lane + i]);
                assert_eq!(got, whole(90, row, col) + product, "{kernel} {row} {col}");
            }
        }
    }
}

#[test]
fn matrices_are_loaded_as_the_product_takes_them() {
    for (kernel, packs) in
        [("language_matrices_4", 4), ("language_matrices_8", 8), ("language_matrices_16", 16)]
    {
        let width = 8 * packs;
        let at = |row: usize, col: usize| (row * width + col) as u16;
        for how in every() {
            let tile = registers((0..32).flat_map(|row| (0..width).map(move |col| at(row, col))));
            let mut buffers = [tile, vec![0; 4 * 32 * packs], vec![0; 4 * 32 * 12]];
            run(kernel, 32, 64 * width, how, &mut buffers).unwrap();

            let places = words(&buffers[1]);
            let mut all = places.clone();
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..32 * packs as u32), "every place once");
            for first in (0..32).step_by(8) {
                for pack in 0..packs {
                    let mut banks: Vec<u32> =
                        (first..first + 8).map(|row| places[row * packs + pack] % 8).collect();
                    banks.sort_unstable();
                    assert!(banks.into_iter().eq(0..8), "all banks at {first}, {pack}");
                }
            }

            let halves: Vec<u16> =
                buffers[2].as_chunks().0.iter().map(|&half| u16::from_ne_bytes(half)).collect();
            for lane in 0..32 {
                let got = &halves[24 * lane..][..24];
                for i in 0..8 {
                    let (row, col) = fragments::a(lane, i);
                    assert_eq!(got[i], at(16 + row, 16 + col), "a{i} of lane {lane}");
                    let (row, col) = fragments::b(lane, i % 4);
                    let col = col + i / 4 * 8;
                    assert_eq!(got[8 + i], at(16 + col, 16 + row), "b{i} of lane {lane}");
                    assert_eq!(got[16 + i], at(16 + row, 16 + col), "b{i} by rows of lane {lane}");
                }
            }
        }
    }
}

#[test]
fn a_product_is_the_next_ones_factor() {
    let x = |row, col| ((row * 5 + col * 3) % 7) as f32 - 3.0;
    let y = |row: usize, col: usize| if col < 8 { ((row + 2 * col) % 5) as f32 - 2.0 } else { 0.0 };
    let z = |row, col| ((row * 3 + col) % 9) as f32 - 4.0;
    let tile = |of: &dyn Fn(usize, usize) -> f32| {
        registers((0..256).map(|i| bf16::from_f32(of(i / 16, i % 16)).to_bits()))
    };
    for how in every() {
        // The rows of y's tile are its columns; those from 8 on are there, and come as zeros.
        let there = |col, row| if col < 8 { y(row, col) } else { 99.0 };
        let mut buffers = [tile(&x), tile(&there), tile(&z), vec![0; 4 * 256]];
        run("language_chain_bf16", 32, 3 * 512, how, &mut buffers).unwrap();
        let got = words(&buffers[3]);
        for (i, &got) in got.iter().enumerate() {
            let (row, col) = (i / 16, i % 16);
            let first = |k: usize| -> f32 { (0..16).map(|j| x(row, j) * y(j, k)).sum() };
            let expected: f32 = (0..16).map(|k| first(k) * z(k, col)).sum();
            assert_eq!(f32::from_bits(got), expected, "{row} {col}");
        }
    }
}
