//! Seeds made from a seed: numpy's `SeedSequence` with a pool of 24 words (after O'Neill,
//! <https://www.pcg-random.org/posts/developing-a-seed_seq-alternative.html>).

const POOL: usize = 24;

/// The first four words of `SeedSequence(entropy, spawn_key=key, pool_size=24).generate_state(4)`.
pub(crate) fn seed_words(entropy: u64, key: Option<(u64, u64)>) -> [u32; 4] {
    // Two words of entropy at most, and two for each part of the key behind a full pool.
    let mut words = [0u32; POOL + 4];
    let mut count = push(&mut words, 0, entropy);
    if let Some((first, second)) = key {
        count = push(&mut words, POOL, first);
        count = push(&mut words, count, second);
    }
    let mut hash = Hash(0x43B0_D7E5);
    let mut pool = [0u32; POOL];
    for (place, word) in pool.iter_mut().zip(words) {
        *place = hash.mix(word);
    }
    for source in 0..POOL {
        for target in (0..POOL).filter(|&target| target != source) {
            pool[target] = join(pool[target], hash.mix(pool[source]));
        }
    }
    for &word in words.get(POOL..count).unwrap_or_default() {
        for place in &mut pool {
            *place = join(*place, hash.mix(word));
        }
    }
    let mut constant = 0x8B51_F9DDu32;
    let mut out = [0; 4];
    for (place, word) in out.iter_mut().zip(pool) {
        let mut value = word ^ constant;
        constant = constant.wrapping_mul(0x58F3_8DED);
        value = value.wrapping_mul(constant);
        *place = value ^ value >> 16;
    }
    out
}

/// Writes a number as one or two words, the lower first; gives the next place.
fn push(words: &mut [u32], at: usize, number: u64) -> usize {
    let (low, high) = (number as u32, (number >> 32) as u32);
    let used = if high == 0 { 1 } else { 2 };
    for (place, word) in words.iter_mut().skip(at).zip([low, high].into_iter().take(used)) {
        *place = word;
    }
    at + used
}

struct Hash(u32);

impl Hash {
    fn mix(&mut self, word: u32) -> u32 {
        let value = word ^ self.0;
        self.0 = self.0.wrapping_mul(0x931E_8875);
        let value = value.wrapping_mul(self.0);
        value ^ value >> 16
    }
}

fn join(x: u32, y: u32) -> u32 {
    let value = 0xCA01_F9DDu32.wrapping_mul(x).wrapping_sub(0x4973_F715u32.wrapping_mul(y));
    value ^ value >> 16
}
