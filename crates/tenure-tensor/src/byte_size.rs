//! Byte counts.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// A number of bytes. Arithmetic saturates, so that a hostile size can only be too large to fit, never wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// No bytes.
    pub const ZERO: ByteSize = ByteSize(0);

    /// `n` bytes.
    pub const fn new(n: u64) -> Self {
        ByteSize(n)
    }

    /// `n` bytes of host memory.
    pub const fn of(n: usize) -> Self {
        ByteSize(n as u64)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes as a host size, if the host can address it.
    pub fn to_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// The next multiple of `align` (a power of two), saturating.
    pub const fn align_up(self, align: u64) -> Self {
        match self.0.checked_next_multiple_of(align) {
            Some(n) => ByteSize(n),
            None => ByteSize(u64::MAX),
        }
    }

    /// The difference, zero when `other` is larger.
    pub const fn saturating_sub(self, other: ByteSize) -> Self {
        ByteSize(self.0.saturating_sub(other.0))
    }

    /// `self` times `n`, saturating.
    pub const fn times(self, n: u64) -> Self {
        ByteSize(self.0.saturating_mul(n))
    }
}

impl Add for ByteSize {
    type Output = ByteSize;
    fn add(self, other: ByteSize) -> ByteSize {
        ByteSize(self.0.saturating_add(other.0))
    }
}

impl AddAssign for ByteSize {
    fn add_assign(&mut self, other: ByteSize) {
        *self = *self + other;
    }
}

impl Sum for ByteSize {
    fn sum<I: Iterator<Item = ByteSize>>(iter: I) -> ByteSize {
        iter.fold(ByteSize::ZERO, Add::add)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            n if n >= 1 << 30 => (n as f64 / (1u64 << 30) as f64, "GiB"),
            n if n >= 1 << 20 => (n as f64 / (1u64 << 20) as f64, "MiB"),
            n if n >= 1 << 10 => (n as f64 / 1024.0, "KiB"),
            n => return write!(f, "{n} B"),
        };
        write!(f, "{value:.2} {unit}")
    }
}
