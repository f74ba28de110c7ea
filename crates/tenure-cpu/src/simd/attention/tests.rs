use half::f16;
use tenure_graph::{KV_BLOCK, KvType};

use super::chunk::{Chunk, Query};
use super::*;
use crate::simd::float::lanes::Kernel;
use crate::simd::float::lanes_portable::Plain;
use crate::simd::float::testing::{Random, assert_close, assert_same_bits};

const TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

/// A sequence's cache for one head, in blocks scattered over a pool; what was not stored is NaN.
struct Cache {
    kv: KvType,
    head_dim: usize,
    pool: Vec<u8>,
    blocks: Vec<u32>,
}

impl Cache {
    fn new(kv: KvType, head_dim: usize, positions: usize) -> Self {
        let count = positions.div_ceil(KV_BLOCK);
        // Every other block of the pool, from the back.
        let blocks = (0..count as u32).rev().map(|block| 2 * block + 1).collect();
        let bytes = block_bytes(kv, head_dim).unwrap();
        Cache { kv, head_dim, pool: vec![0xff; (2 * count + 1) * bytes], blocks }
    }

    fn filled(kv: KvType, head_dim: usize, positions: usize, random: &mut Random) -> Self {
        let mut cache = Cache::new(kv, head_dim, positions);
        for position in 0..positions {
            let (k, v) = (random.floats(head_dim, 1.0), random.floats(head_dim, 1.0));
            cache.store(position, &k, &v);
        }
        cache
    }

    fn bytes(&self) -> usize {
        block_bytes(self.kv, self.head_dim).unwrap()
    }

    fn at(&self, position: usize) -> usize {
        self.blocks[position / KV_BLOCK] as usize * self.bytes()
    }

    fn store(&mut self, position: usize, k: &[f32], v: &[f32]) {
        let (at, bytes) = (self.at(position), self.bytes());
        let block = &mut self.pool[at..at + bytes];
        // SAFETY: the block is as long as it must be, and borrowed alone.
        unsafe { store(self.kv, block.as_mut_ptr(), position % KV_BLOCK, k, v) };
    }

    fn view(&self) -> KvView<'_> {
        KvView { base: self.pool.as_ptr(), stride: self.bytes(), blocks: &self.blocks, kv: self.kv }
    }

    /// Key and value of a position, read by the documented layout.
    fn read(&self, position: usize) -> (Vec<f64>, Vec<f64>) {
        let (n, slot) = (self.head_dim, position % KV_BLOCK);
        let block = &self.pool[self.at(position)..][..self.bytes()];
        let (k, v) = block.split_at(block.len() / 2);
        let two = |half: &[u8], i: usize| f16::from_le_bytes([half[2 * i], half[2 * i + 1]]).to_f64();
        let four = |half: &[u8], i: usize| f64::from(f32::from_le_bytes(half[4 * i..4 * i + 4].try_into().unwrap()));
        let one = |half: &[u8], i: usize, scale: usize| f64::from(half[i] as i8) * two(&half[KV_BLOCK * n..], scale);
        let dims = 0..n;
        match self.kv {
            KvType::F32 => (
                dims.clone().map(|d| four(k, d * KV_BLOCK + slot)).collect(),
                dims.map(|d| four(v, slot * n + d)).collect(),
            ),
            KvType::F16 => (
                dims.clone().map(|d| two(k, d * KV_BLOCK + slot)).collect(),
                dims.map(|d| two(v, slot * n + d)).collect(),
            ),
            KvType::Q8_0 => (
                dims.clone().map(|d| one(k, d * KV_BLOCK + slot, d / 32 * KV_BLOCK + slot)).collect(),
                dims.map(|d| one(v, slot * n + d, slot * (n / 32) + d / 32)).collect(),
            ),
        }
    }

    fn naive(&self, scoring: &Scoring, q: &[f32], position: u32) -> Vec<f64> {
        let (from, to) = attended(scoring, position);
        let cached: Vec<_> = (from..to).map(|position| self.read(position)).collect();
        let scores = cached.iter().map(|(k, _)| {
            let score = q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>() * f64::from(scoring.scale);
            scoring.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        });
        let scores: Vec<f64> = scores.collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (0..self.head_dim).map(|d| cached.iter().zip(&weights).map(|((_, v), w)| w * v[d]).sum::<f64>() / sum).collect()
    }
}

fn scoring(head_dim: usize) -> Scoring {
    Scoring { head_dim, scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, window: None }
}

/// Results of all heads of all rows, one behind the other.
fn run(isa: Isa, scoring: &Scoring, cache: &Cache, q: &[f32], group: usize, positions: &[u32]) -> Vec<f32> {
    let head_dim = scoring.head_dim;
    let queries = Queries { q, stride: group * head_dim, group, positions };
    let mut scratch = vec![f32::NAN; scratch_floats(head_dim)];
    let mut out = vec![f32::NAN; q.len()];
    let heads = HeadsOut { base: out.as_mut_ptr(), stride: group * head_dim };
    // SAFETY: the cache holds the positions, and the result has room for all heads.
    unsafe { attention(isa, scoring, &cache.view(), &queries, &mut scratch, heads) };
    out
}

/// The same by chunks, computed last to first.
fn run_in_chunks(isa: Isa, scoring: &Scoring, cache: &Cache, q: &[f32], group: usize, positions: &[u32]) -> Vec<f32> {
    let head_dim = scoring.head_dim;
    let queries = Queries { q, stride: group * head_dim, group, positions };
    let mut scratch = vec![f32::NAN; scratch_floats(head_dim)];
    let count = group * positions.len();
    let one = partial_floats(head_dim);
    let chunks = *positions.iter().max().unwrap() as usize / CHUNK + 1;
    let mut partials = vec![f32::NAN; chunks * count * one];
    for number in (0..chunks).rev() {
        let partials = &mut partials[number * count * one..][..count * one];
        // SAFETY: the cache holds the positions.
        unsafe { attention_chunk(isa, scoring, &cache.view(), &queries, number, &mut scratch, partials) };
    }
    let mut out = vec![f32::NAN; q.len()];
    for (i, out) in out.chunks_mut(head_dim).enumerate() {
        let of_query = super::chunks(scoring, positions[i / group]);
        let partials = &partials[(of_query.start * count + i) * one..];
        merge(isa, head_dim, partials, count * one, of_query.len(), out);
    }
    out
}

fn fits(kv: KvType, head_dim: usize) -> bool {
    block_bytes(kv, head_dim).is_some()
}

#[test]
fn one_row_matches_the_definition() {
    let mut random = Random::new(20);
    for isa in Isa::available() {
        for kv in TYPES {
            for head_dim in [64, 80, 96, 128, 256, 8, 24, 5] {
                if !fits(kv, head_dim) {
                    continue;
                }
                let cache = Cache::filled(kv, head_dim, 1030, &mut random);
                for length in [1, 2, 31, 32, 33, 511, 512, 513, 1030] {
                    for (group, window, softcap) in [(1, None, None), (3, Some(100), None), (2, None, Some(2.0))] {
                        let scoring = Scoring { window, softcap, ..scoring(head_dim) };
                        let q = random.floats(group * head_dim, 4.0);
                        let positions = [length - 1];
                        let got = run(isa, &scoring, &cache, &q, group, &positions);
                        for (q, got) in q.chunks(head_dim).zip(got.chunks(head_dim)) {
                            let what = format!("{isa:?} {kv:?} {head_dim} {length} {window:?} {softcap:?}");
                            assert_close(got, &cache.naive(&scoring, q, length - 1), 1e-6, 2e-6, &what);
                        }
                        let split = run_in_chunks(isa, &scoring, &cache, &q, group, &positions);
                        assert_same_bits(&split, &got, "split over chunks");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_those_computed_with_it() {
    let mut random = Random::new(21);
    for isa in Isa::available() {
        for kv in TYPES {
            for (head_dim, group, length) in [(64, 3, 70), (32, 7, 600), (96, 1, 1100), (40, 2, 530), (64, 60, 40)] {
                if !fits(kv, head_dim) {
                    continue;
                }
                let cache = Cache::filled(kv, head_dim, length, &mut random);
                for window in [None, Some(1), Some(33), Some(500)] {
                    let scoring = Scoring { window, ..scoring(head_dim) };
                    let row = group * head_dim;
                    let q = random.floats(length * row, 4.0);
                    let positions: Vec<u32> = (0..length as u32).collect();
                    let whole = run(isa, &scoring, &cache, &q, group, &positions);
                    let what = format!("{isa:?} {kv:?} {head_dim} {group} {length} {window:?}");
                    let mut parts = Vec::new();
                    let mut first = 0;
                    for rows in [1, 2, 5, 16, 17, 64, 31].into_iter().cycle() {
                        let end = (first + rows).min(length);
                        let q = &q[first * row..end * row];
                        parts.extend(run(isa, &scoring, &cache, q, group, &positions[first..end]));
                        first = end;
                        if first == length {
                            break;
                        }
                    }
                    assert_same_bits(&parts, &whole, &what);
                    for at in [0, length / 2, length - 1] {
                        let (q, want) = (&q[at * row..][..row], &whole[at * row..][..row]);
                        let position = [at as u32];
                        assert_same_bits(&run_in_chunks(isa, &scoring, &cache, q, group, &position), want, &what);
                        for (q, want) in q.chunks(head_dim).zip(want.chunks(head_dim)) {
                            assert_same_bits(&run(isa, &scoring, &cache, q, 1, &position), want, &what);
                        }
                        assert_close(
                            &want[..head_dim],
                            &cache.naive(&scoring, &q[..head_dim], at as u32),
                            1e-6,
                            2e-6,
                            &what,
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn what_later_positions_hold_does_not_leak() {
    let mut random = Random::new(22);
    for isa in Isa::available() {
        for kv in TYPES {
            let head_dim = 64;
            let mut cache = Cache::filled(kv, head_dim, 100, &mut random);
            for window in [None, Some(40)] {
                let scoring = Scoring { window, ..scoring(head_dim) };
                let q = random.floats(100 * 2 * head_dim, 4.0);
                let positions: Vec<u32> = (0..100).collect();
                let want = run(isa, &scoring, &cache, &q, 2, &positions);
                // From 50 on everything is NaN or infinite: the rows before are as they were.
                let before = cache.pool.clone();
                for position in 50..100 {
                    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][position % 3];
                    cache.store(position, &vec![bad; head_dim], &vec![bad; head_dim]);
                }
                let got = run(isa, &scoring, &cache, &q, 2, &positions);
                assert_same_bits(&got[..100 * head_dim], &want[..100 * head_dim], &format!("{isa:?} {kv:?}"));
                assert!(got[100 * head_dim..].chunks(head_dim).all(|head| head.iter().any(|x| x.is_nan())));
                cache.pool = before;
            }
            // Before the window, too.
            let scoring = Scoring { window: Some(40), ..scoring(head_dim) };
            let q = random.floats(30 * 2 * head_dim, 4.0);
            let positions: Vec<u32> = (70..100).collect();
            let want = run(isa, &scoring, &cache, &q, 2, &positions);
            for position in 0..45 {
                cache.store(position, &vec![f32::NAN; head_dim], &vec![f32::INFINITY; head_dim]);
            }
            let got = run(isa, &scoring, &cache, &q, 2, &positions);
            // Position 84 is the first whose window starts at 45.
            assert_same_bits(&got[14 * 2 * head_dim..], &want[14 * 2 * head_dim..], &format!("{isa:?} {kv:?} window"));
            assert!(got[..14 * 2 * head_dim].chunks(head_dim).all(|head| head.iter().any(|x| x.is_nan())));
        }
    }
}

#[test]
fn extreme_scores() {
    let head_dim = 16;
    for isa in Isa::available() {
        for kv in [KvType::F32, KvType::F16] {
            let mut cache = Cache::new(kv, head_dim, 600);
            for position in 0..600 {
                cache.store(position, &[1.0; 16], &[position as f32; 16]);
            }
            let at = |q: f32, position: u32| run(isa, &scoring(head_dim), &cache, &[q; 16], 1, &[position]);
            // Equal scores, tiny or huge, weigh all alike.
            for q in [0.0, 1e-45, -1e-38, 1e20, -1e20] {
                assert_close(&at(q, 599), &[299.5; 16], 1e-6, 0.0, &format!("{isa:?} {kv:?} {q}"));
                assert_close(&at(q, 0), &[0.0; 16], 0.0, 0.0, "one position");
            }
            // Every score is negative infinity: nothing has any weight.
            assert_eq!(at(-f32::MAX, 599), [0.0; 16]);
            assert_eq!(run_in_chunks(isa, &scoring(head_dim), &cache, &[-f32::MAX; 16], 1, &[599]), [0.0; 16]);
            // Infinite scores have no softmax.
            assert!(at(f32::MAX, 599).iter().all(|x| x.is_nan()));
            // One score far above all others takes all the weight, in whichever chunk it is.
            for chosen in [0, 511, 512, 599] {
                let mut cache = Cache::new(kv, head_dim, 600);
                for position in 0..600 {
                    let k = if position == chosen { 100.0 } else { -100.0 };
                    cache.store(position, &[k; 16], &[position as f32; 16]);
                }
                let got = run(isa, &scoring(head_dim), &cache, &[1.0; 16], 1, &[599]);
                assert_eq!(got, [chosen as f32; 16]);
            }
        }
    }
}

#[test]
fn quantised_elements_are_within_half_a_step() {
    let mut random = Random::new(23);
    let mut cache = Cache::new(KvType::Q8_0, 64, 40);
    for (position, magnitude) in [(0, 1.0), (31, 1e-3), (32, 1e4), (39, 0.0)] {
        let (k, v) = (random.floats(64, magnitude), random.floats(64, magnitude));
        cache.store(position, &k, &v);
        let (k_read, v_read) = cache.read(position);
        for (x, read) in k.iter().zip(k_read).chain(v.iter().zip(v_read)) {
            // Half a step, and what rounding the scale itself costs at 127 steps.
            let bound = f64::from(magnitude) * (0.5 / 127.0 + 1.0 / 2048.0 + 1e-4);
            assert!((f64::from(*x) - read).abs() <= bound, "{magnitude}: {x} {read}");
        }
    }
    let (k, v) = ([f32::NAN; 64], [f32::INFINITY; 64]);
    cache.store(5, &k, &v);
    let (k, v) = cache.read(5);
    assert!(k.iter().chain(&v).all(|x| x.is_nan()), "what is not finite is not lost");
}

#[test]
fn a_position_is_stored_without_touching_others() {
    for kv in TYPES {
        let mut cache = Cache::new(kv, 32, 64);
        for position in [3, 35, 34, 0, 63] {
            cache.store(position, &[position as f32; 32], &[-1.0; 32]);
        }
        for position in [3, 35, 34, 0, 63] {
            let (k, v) = cache.read(position);
            assert!(k.iter().all(|k| (k - position as f64).abs() < 0.01 * position as f64 + 1e-9));
            assert!(v.iter().all(|v| (v + 1.0).abs() < 0.01));
        }
        for position in [1, 2, 4, 31, 32, 33, 62] {
            let (k, v) = cache.read(position);
            assert!(k.iter().chain(&v).all(|x| x.is_nan()), "{kv:?} {position}");
        }
    }
}

#[test]
fn heads_that_cannot_be_quantised_are_refused() {
    assert_eq!(block_bytes(KvType::Q8_0, 80), None);
    assert_eq!(block_bytes(KvType::F16, 80), Some(2 * 32 * 80 * 2));
    assert_eq!(block_bytes(KvType::Q8_0, 64), Some(2 * 32 * (64 + 2 * 2)));
    assert_eq!(block_bytes(KvType::F32, 0), None);
}

/// Sixteen lanes in plain Rust take the paths that AVX-512 takes.
#[test]
fn sixteen_lanes_agree_with_eight() {
    let mut random = Random::new(24);
    for kv in TYPES {
        for (head_dim, group) in [(64, 1), (32, 4), (96, 7), (128, 13)] {
            let cache = Cache::filled(kv, head_dim, 500, &mut random);
            let scoring = Scoring { window: Some(450), ..scoring(head_dim) };
            let q = random.floats(group * head_dim, 4.0);
            let want = run(Isa::Portable, &scoring, &cache, &q, group, &[499]);
            let (from, to) = attended(&scoring, 499);
            let queries: Vec<Query> = q.chunks(head_dim).map(|q| Query { q: q.as_ptr(), from, to }).collect();
            let mut scratch = vec![f32::NAN; scratch_floats(head_dim)];
            let mut partials = vec![f32::NAN; group * partial_floats(head_dim)];
            let view = cache.view();
            let chunk = Chunk::new(&scoring, &view, &queries, 0, &mut scratch, &mut partials);
            // SAFETY: plain vectors run everywhere, and the cache holds the positions.
            unsafe { chunk.run::<Plain<16>>() };
            for (partial, want) in partials.chunks(partial_floats(head_dim)).zip(want.chunks(head_dim)) {
                let got: Vec<f32> = partial[..head_dim].iter().map(|x| x / partial[head_dim + 1]).collect();
                let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
                assert_close(&got, &want, 1e-6, 1e-7, &format!("{kv:?} {head_dim} {group}"));
            }
        }
    }
}
