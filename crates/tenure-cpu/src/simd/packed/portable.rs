//! The kernel for any processor.

use super::layout::{Format, SUPER, Scales};
use super::{Out, ROWS};
use crate::simd::act8::{self, Act8, BLOCK, BLOCK_BYTES};

/// Tokens that a decoded block is used for while their totals stay close by.
const TOKENS: usize = 64;

/// # Safety
/// As for [`super::matmul`].
pub(super) unsafe fn matmul(format: Format, panels: &[u8], acts: Act8<'_>, out: Out) {
    let bytes = panels.len() / out.features.div_ceil(ROWS);
    for (panel, rows) in panels.chunks_exact(bytes).zip((0..).step_by(ROWS)) {
        let (scales, planes) = format.parts(panel, acts.cols());
        for first in (0..acts.rows()).step_by(TOKENS) {
            let tokens = TOKENS.min(acts.rows() - first);
            let mut totals = [[0.0f32; ROWS]; TOKENS];
            for (b, planes) in planes.chunks_exact(format.codes.bytes()).enumerate() {
                let block = Block::new(format, scales, planes, b);
                for (token, totals) in totals[..tokens].iter_mut().enumerate() {
                    let act = &acts.row(first + token)[b * BLOCK_BYTES..][..BLOCK_BYTES];
                    block.add(format.scales, act, totals);
                }
            }
            for (token, totals) in totals[..tokens].iter().enumerate() {
                // SAFETY: a token and a panel of this product.
                unsafe { out.put(first + token, rows, totals) };
            }
        }
    }
}

/// A block of 32 columns of 16 rows, decoded.
struct Block {
    codes: [[i16; BLOCK]; ROWS],
    /// What the integer sums of the halves are multiplied with.
    halves: [[i32; 2]; ROWS],
    /// What the sums of a half's activations are multiplied with.
    half_mins: [[i32; 2]; ROWS],
    scales: [f32; ROWS],
    mins: [f32; ROWS],
}

impl Block {
    fn new(format: Format, scales: &[u8], planes: &[u8], b: usize) -> Block {
        let mut block = Block {
            codes: [[0; BLOCK]; ROWS],
            halves: [[1; 2]; ROWS],
            half_mins: [[0; 2]; ROWS],
            scales: [0.0; ROWS],
            mins: [0.0; ROWS],
        };
        for r in 0..ROWS {
            for (k, code) in block.codes[r].iter_mut().enumerate() {
                *code = i16::from(format.codes.at(planes, r, k)) - format.zero as i16;
            }
            (block.scales[r], block.mins[r]) = match format.scales {
                Scales::Block | Scales::BlockMin | Scales::Exponent | Scales::Super | Scales::SuperMin => {
                    format.scale(scales, r, b, 0)
                }
                Scales::Half | Scales::HalfMin => {
                    let unit = &scales[b / SUPER * format.scales.bytes()..];
                    let float = |slot: usize| {
                        let at = 2 * (slot * ROWS + r);
                        half::f16::from_le_bytes([unit[at], unit[at + 1]]).to_f32()
                    };
                    for half in 0..2 {
                        let byte = |floats: usize| unit[2 * ROWS * floats + ROWS * (2 * (b % SUPER) + half) + r];
                        if format.scales == Scales::HalfMin {
                            block.halves[r][half] = i32::from(byte(2) & 15);
                            block.half_mins[r][half] = i32::from(byte(2) >> 4);
                        } else {
                            block.halves[r][half] = i32::from(byte(1) as i8);
                        }
                    }
                    (float(0), if format.scales == Scales::HalfMin { -float(1) } else { 0.0 })
                }
            };
        }
        block
    }

    fn add(&self, scales: Scales, act: &[u8], totals: &mut [f32; ROWS]) {
        let (d, s) = (act8::float(act, act8::SCALE), act8::float(act, act8::OFFSET));
        let sums = [act8::sum(act, 0) + act8::sum(act, 1), act8::sum(act, 2) + act8::sum(act, 3)];
        let mut q = [0i16; BLOCK];
        for (q, &byte) in q.iter_mut().zip(act) {
            *q = i16::from(byte as i8);
        }
        for (r, total) in totals.iter_mut().enumerate() {
            let dot = |half: usize| -> i32 {
                let range = 16 * half..16 * half + 16;
                let pairs = self.codes[r][range.clone()].iter().zip(&q[range]);
                pairs.map(|(&w, &q)| i32::from(w) * i32::from(q)).sum()
            };
            let [low, high] = self.halves[r];
            *total += (dot(0) * low + dot(1) * high) as f32 * (self.scales[r] * d);
            match scales {
                Scales::BlockMin | Scales::SuperMin => *total += self.mins[r] * s,
                Scales::HalfMin => {
                    let [low, high] = self.half_mins[r];
                    *total += (low * sums[0] + high * sums[1]) as f32 * (self.mins[r] * d);
                }
                Scales::Block | Scales::Exponent | Scales::Super | Scales::Half => {}
            }
        }
    }
}
