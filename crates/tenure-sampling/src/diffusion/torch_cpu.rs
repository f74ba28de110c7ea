//! Normal numbers as torch draws them with a generator of the CPU, in 32-bit floats: MT19937 (Matsumoto and
//! Nishimura, <https://doi.org/10.1145/272991.272995>) and the Box-Muller transform in torch's order.

const WORDS: usize = 624;
const AHEAD: usize = 397;

/// What `torch.Generator("cpu").manual_seed(seed)` is.
#[derive(Debug, Clone)]
pub(crate) struct TorchCpu {
    words: [u32; WORDS],
    next: usize,
    /// The second number of the last pair, where fewer than 16 were asked for.
    cached: Option<f64>,
}

impl TorchCpu {
    /// Only the seed's lower 32 bits count, as in torch.
    pub(crate) fn new(seed: u64) -> Self {
        let mut words = [0u32; WORDS];
        let mut before = seed as u32;
        for (i, word) in words.iter_mut().enumerate() {
            if i > 0 {
                before = 1_812_433_253u32.wrapping_mul(before ^ before >> 30).wrapping_add(i as u32);
            }
            *word = before;
        }
        TorchCpu { words, next: WORDS, cached: None }
    }

    /// `torch.randn(out.len(), generator=self)`.
    pub(crate) fn fill(&mut self, out: &mut [f32]) {
        if out.len() < 16 {
            for x in out {
                *x = self.normal() as f32;
            }
            return;
        }
        for x in &mut *out {
            *x = self.uniform();
        }
        let (blocks, rest) = out.as_chunks_mut::<16>();
        for block in blocks {
            transform(block);
        }
        // Torch draws the last 16 anew where the blocks do not come out even.
        if !rest.is_empty()
            && let Some(last) = out.last_chunk_mut::<16>()
        {
            for x in &mut *last {
                *x = self.uniform();
            }
            transform(last);
        }
    }

    fn word(&mut self) -> u32 {
        if self.next >= WORDS {
            self.twist();
        }
        let mut y = self.words.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9D2C_5680;
        y ^= y << 15 & 0xEFC6_0000;
        y ^ y >> 18
    }

    fn twist(&mut self) {
        let w = &mut self.words;
        for i in 0..WORDS {
            let y = w[i] & 0x8000_0000 | w[(i + 1) % WORDS] & 0x7FFF_FFFF;
            let odd = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
            w[i] = w[(i + AHEAD) % WORDS] ^ y >> 1 ^ odd;
        }
        self.next = 0;
    }

    /// In [0, 1) with 24 random bits.
    fn uniform(&mut self) -> f32 {
        (self.word() & 0xFF_FFFF) as f32 / 16_777_216.0
    }

    /// In [0, 1) with 53 random bits, the first word on top.
    fn uniform_double(&mut self) -> f64 {
        let high = u64::from(self.word());
        let bits = (high << 32 | u64::from(self.word())) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        if let Some(second) = self.cached.take() {
            return second;
        }
        let (u1, u2) = (self.uniform_double(), self.uniform_double());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.cached = Some(radius * sin);
        radius * cos
    }
}

/// Pairs are eight apart.
fn transform(block: &mut [f32; 16]) {
    let (first, second) = block.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * f64::from(1.0 - *a).ln()).sqrt();
        let (sin, cos) = f64::from(std::f32::consts::TAU * *b).sin_cos();
        *a = (radius * cos) as f32;
        *b = (radius * sin) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard's known answer: the 10000th word of the default seed.
    #[test]
    fn the_ten_thousandth_word() {
        let mut generator = TorchCpu::new(5489);
        for _ in 0..9999 {
            generator.word();
        }
        assert_eq!(generator.word(), 4_123_659_995);
    }
}
