//! The machine's bounds, measured.

use tenure::cpu::{Isa, f32_peak, int8_peak, read_bandwidth};

/// What the machine can do at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes read from memory per second.
    pub read_bytes_per_s: f64,
    /// 8-bit operations per second; a multiply and an add are two.
    pub int8_ops_per_s: f64,
    /// 32-bit floating-point operations per second; a multiply and an add are two.
    pub f32_ops_per_s: f64,
}

impl Bounds {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Bounds) -> Bounds {
        Bounds {
            read_bytes_per_s: self.read_bytes_per_s.max(other.read_bytes_per_s),
            int8_ops_per_s: self.int8_ops_per_s.max(other.int8_ops_per_s),
            f32_ops_per_s: self.f32_ops_per_s.max(other.f32_ops_per_s),
        }
    }
}

/// Measures with `threads` threads.
pub fn measure(threads: usize) -> Bounds {
    let isa = Isa::best();
    Bounds {
        read_bytes_per_s: read_bandwidth(threads, 3),
        int8_ops_per_s: int8_peak(isa, threads, 3),
        f32_ops_per_s: f32_peak(isa, threads, 3),
    }
}
