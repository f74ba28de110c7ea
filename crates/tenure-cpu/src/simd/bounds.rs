//! What this machine can do at most: read bandwidth, 8-bit and 32-bit multiply-adds.

use std::hint::black_box;
use std::time::Instant;

use crate::simd::Isa;

/// Bytes that no cache holds.
const STREAM: usize = 256 << 20;
/// Streams read side by side; more than one keeps more requests under way.
const STREAMS: usize = 4;

/// Bytes per second that `threads` threads read from memory together; the best of `rounds` rounds.
pub fn read_bandwidth(threads: usize, rounds: usize) -> f64 {
    let mut words = Vec::new();
    if words.try_reserve_exact(STREAM / size_of::<u64>()).is_err() {
        return 0.0;
    }
    words.resize(STREAM / size_of::<u64>(), 1u64);
    let words = &words[..];
    best(rounds, || {
        std::thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads.max(1))) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        STREAM as f64
    })
}

/// 8-bit operations (a multiply and an add are two) per second of `threads` threads together. The yardstick for
/// quantised products whatever their precision: the kernels here multiply in 16 bits, and can reach half of it.
pub fn int8_peak(isa: Isa, threads: usize, rounds: usize) -> f64 {
    peak(threads, rounds, || multiply_adds(isa, 2_000_000))
}

/// 32-bit floating-point operations (a multiply and an add are two) per second of `threads` threads together.
pub fn f32_peak(isa: Isa, threads: usize, rounds: usize) -> f64 {
    peak(threads, rounds, || fused_multiply_adds(isa, 2_000_000))
}

/// What `threads` threads that do `work` at the same time have done per second.
fn peak(threads: usize, rounds: usize, work: impl Fn() -> f64 + Sync) -> f64 {
    best(rounds, || {
        let counts: Vec<f64> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(0.0)).collect()
        });
        counts.iter().sum()
    })
}

fn best(rounds: usize, mut work: impl FnMut() -> f64) -> f64 {
    (0..rounds.max(1))
        .map(|_| {
            let begun = Instant::now();
            let done = work();
            done / begun.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

fn sum(words: &[u64]) -> u64 {
    let stream = words.len() / STREAMS;
    let (a, rest) = words.split_at(stream);
    let (b, rest) = rest.split_at(stream);
    let (c, d) = rest.split_at(stream);
    const LINE: usize = 8;
    let mut sums = [0u64; LINE];
    let lines = a.chunks_exact(LINE).zip(b.chunks_exact(LINE)).zip(c.chunks_exact(LINE)).zip(d.chunks_exact(LINE));
    for (((a, b), c), d) in lines {
        for i in 0..LINE {
            sums[i] = sums[i].wrapping_add(a[i] ^ b[i]).wrapping_add(c[i] ^ d[i]);
        }
    }
    sums.iter().fold(0, |x, y| x.wrapping_add(*y))
}

/// Runs `turns` turns of independent multiply-adds; returns the operations done.
fn multiply_adds(isa: Isa, turns: usize) -> f64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: just detected.
        Isa::Avx512Vnni if isa.is_available() => unsafe { multiply_adds_vnni(turns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 if isa.is_available() => unsafe { multiply_adds_avx2(turns) },
        Isa::Avx512Vnni | Isa::Avx2 | Isa::Portable => {
            let (a, b) = (black_box([3i8; 64]), black_box([5i8; 64]));
            let mut sums = [0i32; 64];
            for _ in 0..turns / 16 {
                let (a, b) = (black_box(&a), black_box(&b));
                for i in 0..64 {
                    sums[i] = sums[i].wrapping_add(i32::from(a[i]) * i32::from(b[i]));
                }
            }
            black_box(sums);
            (turns / 16 * 64 * 2) as f64
        }
    }
}

/// # Safety
/// The processor has AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn multiply_adds_vnni(turns: usize) -> f64 {
    for _ in 0..turns {
        // SAFETY: registers only, all declared.
        unsafe {
            std::arch::asm!(
                "vpdpbusd zmm0, zmm30, zmm31",
                "vpdpbusd zmm1, zmm30, zmm31",
                "vpdpbusd zmm2, zmm30, zmm31",
                "vpdpbusd zmm3, zmm30, zmm31",
                "vpdpbusd zmm4, zmm30, zmm31",
                "vpdpbusd zmm5, zmm30, zmm31",
                "vpdpbusd zmm6, zmm30, zmm31",
                "vpdpbusd zmm7, zmm30, zmm31",
                "vpdpbusd zmm8, zmm30, zmm31",
                "vpdpbusd zmm9, zmm30, zmm31",
                "vpdpbusd zmm10, zmm30, zmm31",
                "vpdpbusd zmm11, zmm30, zmm31",
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
    (turns * 12 * 64 * 2) as f64
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn multiply_adds_avx2(turns: usize) -> f64 {
    for _ in 0..turns {
        // SAFETY: registers only, all declared.
        unsafe {
            std::arch::asm!(
                "vpmaddubsw ymm4, ymm14, ymm15",
                "vpmaddubsw ymm5, ymm14, ymm15",
                "vpmaddubsw ymm6, ymm14, ymm15",
                "vpmaddubsw ymm7, ymm14, ymm15",
                "vpmaddwd ymm4, ymm4, ymm13",
                "vpmaddwd ymm5, ymm5, ymm13",
                "vpmaddwd ymm6, ymm6, ymm13",
                "vpmaddwd ymm7, ymm7, ymm13",
                "vpaddd ymm0, ymm0, ymm4",
                "vpaddd ymm1, ymm1, ymm5",
                "vpaddd ymm2, ymm2, ymm6",
                "vpaddd ymm3, ymm3, ymm7",
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                out("ymm6") _, out("ymm7") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
    (turns * 4 * 32 * 2) as f64
}

/// Runs `turns` turns of independent fused multiply-adds of floats; returns the operations done.
fn fused_multiply_adds(isa: Isa, turns: usize) -> f64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: just detected; AVX-512 VNNI has AVX-512 F.
        Isa::Avx512Vnni if isa.is_available() => unsafe { fused_multiply_adds_avx512(turns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; AVX2 is only taken together with FMA.
        Isa::Avx2 if isa.is_available() => unsafe { fused_multiply_adds_avx2(turns) },
        Isa::Avx512Vnni | Isa::Avx2 | Isa::Portable => {
            let mut sums = [0f32; 64];
            let (a, b) = (black_box([3f32; 64]), black_box([5f32; 64]));
            for _ in 0..turns / 16 {
                let (a, b) = (black_box(&a), black_box(&b));
                for i in 0..64 {
                    sums[i] += a[i] * b[i];
                }
            }
            black_box(sums);
            (turns / 16 * 64 * 2) as f64
        }
    }
}

/// Turns of fused multiply-adds in registers of a kind (`ymm` or `zmm`), into as many sums as hide how long each takes.
#[cfg(target_arch = "x86_64")]
macro_rules! turn_sums {
    ($turns:expr, $kind:literal: $($sum:literal)*) => {
        std::arch::asm!(
            // Zeros, for denormal numbers may be slow.
            $(concat!("vxorps ymm", $sum, ", ymm", $sum, ", ymm", $sum),)*
            "vxorps ymm14, ymm14, ymm14",
            "vxorps ymm15, ymm15, ymm15",
            "2:",
            $(concat!("vfmadd231ps ", $kind, $sum, ", ", $kind, "14, ", $kind, "15"),)*
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) $turns => _,
            // Those of `zmm` begin with those of `ymm`.
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
            out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm14") _, out("ymm15") _,
            options(nomem, nostack),
        )
    };
}

/// # Safety
/// The processor has AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn fused_multiply_adds_avx512(turns: usize) -> f64 {
    // SAFETY: registers only, all declared.
    unsafe { turn_sums!(turns.max(1), "zmm": 0 1 2 3 4 5 6 7 8 9 10 11) };
    (turns.max(1) * 12 * 16 * 2) as f64
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fused_multiply_adds_avx2(turns: usize) -> f64 {
    // SAFETY: registers only, all declared.
    unsafe { turn_sums!(turns.max(1), "ymm": 0 1 2 3 4 5 6 7 8 9 10 11) };
    (turns.max(1) * 12 * 8 * 2) as f64
}
