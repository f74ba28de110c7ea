//! Kinds of steps. What is recorded for a step depends on how many rows it has, and on how much they attend to.

use tenure_graph::{Rows, StepShape};

use crate::attention::Parts;
use crate::lower::Dispatch;

/// Where a step's rows are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<'s> {
    /// The table of each row.
    pub(crate) tables: &'s [u32],
    /// The position of each.
    pub(crate) positions: &'s [u32],
}

/// Which steps a recording is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Many {
    /// More than [`FEW`] rows of the step.
    pub(crate) step: bool,
    /// More than [`FEW`] outputs.
    pub(crate) outs: bool,
    /// A row of few that is divided.
    pub(crate) long: bool,
}

impl Many {
    /// The six kinds of recordings, by their place.
    pub(crate) const ALL: [Many; 6] = [
        Many { step: false, outs: false, long: false },
        Many { step: true, outs: false, long: false },
        Many { step: false, outs: false, long: true },
        Many { step: false, outs: true, long: false },
        Many { step: true, outs: true, long: false },
        Many { step: false, outs: true, long: true },
    ];

    /// The kind for a step of the dispatches.
    pub(crate) fn kind(dispatches: &[Dispatch], placed: Placed<'_>, outs: usize) -> Many {
        let step = placed.positions.len() > FEW;
        let divided = |parts: Parts| placed.positions.iter().any(|&position| parts.count(position) > 1);
        let long = !step && dispatches.iter().filter_map(|dispatch| dispatch.parts).any(divided);
        Many { step, outs: outs > FEW, long }
    }

    /// Its place in [`Many::ALL`].
    pub(crate) const fn place(self) -> usize {
        self.step as usize + 2 * self.long as usize + 3 * self.outs as usize
    }

    /// Whether steps of that shape, made of these dispatches, may be of this kind.
    pub(crate) fn may_be(self, dispatches: &[Dispatch], shape: StepShape) -> bool {
        (!self.step || shape.rows > FEW)
            && (!self.outs || shape.outs > FEW)
            && (!self.long || dispatches.iter().any(|dispatch| dispatch.parts.is_some()))
    }

    /// Whether there may be many of these.
    pub(crate) const fn of(self, rows: Rows) -> bool {
        match rows {
            Rows::Step => self.step,
            Rows::Out => self.outs,
            Rows::Fixed(count) => count as usize > FEW,
        }
    }
}

/// Which recordings a dispatch is in, by the rows of their steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct When {
    /// Few rows, none of which is divided.
    pub(crate) short: bool,
    /// Few rows, one of which is.
    pub(crate) long: bool,
    /// Many rows.
    pub(crate) many: bool,
}

impl When {
    pub(crate) const ALWAYS: When = When { short: true, long: true, many: true };
    pub(crate) const LONG: When = When { short: false, long: true, many: false };
    pub(crate) const MANY: When = When { short: false, long: false, many: true };
}

/// How many rows of a kind there are in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    Few,
    Many,
}

impl Amount {
    pub(crate) const ALL: [Amount; 2] = [Amount::Few, Amount::Many];

    /// How many there are at most, where there is room for so many; none if that is for few only.
    pub(crate) const fn most(self, capacity: usize) -> usize {
        match self {
            Amount::Few if capacity > FEW => FEW,
            Amount::Many if capacity <= FEW => 0,
            Amount::Few | Amount::Many => capacity,
        }
    }
}

/// Up to so many rows, products are computed by the kernel for few.
pub(crate) const FEW: usize = 8;
