//! The last tokens of one sequence, in a ring allocated once.

/// A ring of the newest tokens.
#[derive(Debug, Clone)]
pub(crate) struct History {
    ring: Vec<u32>,
    /// Where the next token goes.
    head: usize,
    len: usize,
}

impl History {
    pub(crate) fn new(capacity: usize) -> Self {
        History { ring: vec![0; capacity], head: 0, len: 0 }
    }

    pub(crate) fn push(&mut self, token: u32) {
        if let Some(slot) = self.ring.get_mut(self.head) {
            *slot = token;
            self.head = (self.head + 1) % self.ring.len();
            self.len = (self.len + 1).min(self.ring.len());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The newest token is `recent(0)`.
    pub(crate) fn recent(&self, back: usize) -> Option<u32> {
        if back >= self.len {
            return None;
        }
        let i = (self.head + self.ring.len() - 1 - back) % self.ring.len();
        self.ring.get(i).copied()
    }

    pub(crate) fn clear(&mut self) {
        self.head = 0;
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let mut history = History::new(3);
        assert_eq!(history.recent(0), None);
        for token in 1..=5 {
            history.push(token);
        }
        assert_eq!(history.len(), 3);
        let seen: Vec<_> = (0..4).map(|i| history.recent(i)).collect();
        assert_eq!(seen, [Some(5), Some(4), Some(3), None]);
        history.clear();
        assert_eq!(history.recent(0), None);
        history.push(9);
        assert_eq!(history.recent(0), Some(9));
        assert_eq!(history.recent(1), None);
    }

    #[test]
    fn a_ring_of_nothing_keeps_nothing() {
        let mut history = History::new(0);
        history.push(1);
        assert_eq!(history.len(), 0);
        assert_eq!(history.recent(0), None);
    }
}
