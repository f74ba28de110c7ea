//! Rotary position embedding.

use tenure_graph::RopeStyle;

use crate::simd::Isa;
use crate::simd::float::lanes::{Kernel, Lanes, dispatch};

/// Fills `table` for one position: the cosines of all pairs, then their sines, each times `magnitude`.
///
/// Pair `i` turns by `position * per_position[i]`, in f64: exact enough for any position of a `u32`.
pub fn rope_table(position: u32, per_position: &[f64], magnitude: f32, table: &mut [f32]) {
    assert_eq!(table.len(), 2 * per_position.len());
    let (cosines, sines) = table.split_at_mut(per_position.len());
    for ((&turn, cosine), sine) in per_position.iter().zip(cosines).zip(sines) {
        let (s, c) = (f64::from(position) * turn).sin_cos();
        *cosine = (c * f64::from(magnitude)) as f32;
        *sine = (s * f64::from(magnitude)) as f32;
    }
}

/// Turns the leading `table.len()` elements of one head by a table of [`rope_table`]; the rest stay as they are.
pub fn rope(isa: Isa, style: RopeStyle, head: &mut [f32], table: &[f32]) {
    assert!(table.len() <= head.len() && table.len().is_multiple_of(2));
    dispatch(isa, Rope { style, head: &mut head[..table.len()], table });
}

struct Rope<'a> {
    style: RopeStyle,
    head: &'a mut [f32],
    table: &'a [f32],
}

impl Kernel for Rope<'_> {
    type Result = ();

    // Plain loops: the compiler turns them into vectors of the instruction set this is inlined for.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (cosines, sines) = self.table.split_at(self.table.len() / 2);
        let turns = cosines.iter().zip(sines);
        match self.style {
            RopeStyle::Adjacent => {
                for (pair, (c, s)) in self.head.chunks_exact_mut(2).zip(turns) {
                    let (x, y) = (pair[0], pair[1]);
                    pair[0] = x * c - y * s;
                    pair[1] = x * s + y * c;
                }
            }
            RopeStyle::Halves => {
                let (first, second) = self.head.split_at_mut(cosines.len());
                for ((first, second), (c, s)) in first.iter_mut().zip(second).zip(turns) {
                    let (x, y) = (*first, *second);
                    *first = x * c - y * s;
                    *second = x * s + y * c;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::float::testing::{Random, assert_close};

    fn per_position(dims: usize) -> Vec<f64> {
        (0..dims / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / dims as f64)).collect()
    }

    #[test]
    fn turns_pairs_by_the_position() {
        let mut random = Random::new(3);
        for (size, dims) in [(64, 64), (80, 32), (2, 2), (96, 96), (10, 6), (64, 0)] {
            let turns = per_position(dims);
            let head = random.floats(size, 2.0);
            for position in [0, 1, 4095, 1_000_000] {
                let mut table = vec![f32::NAN; dims];
                rope_table(position, &turns, 1.25, &mut table);
                for style in [RopeStyle::Adjacent, RopeStyle::Halves] {
                    let mut want: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
                    for (i, turn) in turns.iter().enumerate() {
                        let (a, b) = match style {
                            RopeStyle::Adjacent => (2 * i, 2 * i + 1),
                            RopeStyle::Halves => (i, i + dims / 2),
                        };
                        let angle = f64::from(position) * turn;
                        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
                        want[a] = 1.25 * (x * angle.cos() - y * angle.sin());
                        want[b] = 1.25 * (x * angle.sin() + y * angle.cos());
                    }
                    for isa in Isa::available() {
                        let mut got = head.clone();
                        rope(isa, style, &mut got, &table);
                        assert_close(&got, &want, 1e-6, 1e-6, &format!("{isa:?} {style:?} {size} {dims} {position}"));
                        assert_eq!(got[dims..], head[dims..], "elements behind the turning ones stay");
                    }
                }
            }
        }
    }
}
