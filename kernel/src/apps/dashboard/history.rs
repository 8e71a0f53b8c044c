//! What went through the devices in each second of the last minute.

use core::array;

/// Seconds that are remembered.
pub(super) const SECONDS: usize = 60;

/// Bytes per second, in two directions.
pub(super) type Rate = [u64; 2];

/// The rates of the last minute, from totals that only grow.
#[derive(Clone, Debug)]
pub(super) struct History {
    rates: [Rate; SECONDS],
    total: Option<[u64; 2]>,
}

impl History {
    /// Nothing happened yet.
    pub(super) const fn new() -> Self {
        Self {
            rates: [[0; 2]; SECONDS],
            total: None,
        }
    }

    /// Takes note of the totals, `micros` after they were looked at last.
    pub(super) fn note(&mut self, total: [u64; 2], micros: u64) {
        if let Some(before) = self.total.replace(total) {
            let rate = array::from_fn(|direction| {
                // A device that was started anew counts from nothing.
                let bytes = total[direction].saturating_sub(before[direction]);
                let rate = u128::from(bytes) * 1_000_000 / u128::from(micros.max(1));
                u64::try_from(rate).unwrap_or(u64::MAX)
            });
            self.rates.rotate_left(1);
            self.rates[SECONDS - 1] = rate;
        }
    }

    /// The rates, the newest last.
    pub(super) fn rates(&self) -> &[Rate; SECONDS] {
        &self.rates
    }

    /// The rate of the last second.
    pub(super) fn newest(&self) -> Rate {
        self.rates[SECONDS - 1]
    }

    /// The highest rate in any direction.
    pub(super) fn peak(&self) -> u64 {
        self.rates.iter().flatten().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_become_rates() {
        let mut history = History::new();
        history.note([1000, 50], 1_000_000);
        assert_eq!(history.peak(), 0, "what was before nobody saw");
        history.note([3000, 50], 2_000_000);
        assert_eq!(history.newest(), [1000, 0]);
        history.note([0, 60], 1_000_000);
        assert_eq!(history.newest(), [0, 10]);
        assert_eq!(history.peak(), 1000);
        for _ in 0..SECONDS {
            history.note([0, 60], 0);
        }
        assert_eq!(history.peak(), 0);
    }
}
