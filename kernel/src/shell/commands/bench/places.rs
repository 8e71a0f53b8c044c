//! Where a benchmark reads and writes. What it takes to choose a place is counted with the driver, so it is kept short.

use core::cell::Cell;
use core::fmt;

/// In which order the places of a benchmark come.
#[derive(Clone, Copy)]
pub(in super::super) enum Order {
    /// From the first to the last and again.
    Sequential,
    /// Any of them, the same ones in each run.
    Random,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "sequential",
            Self::Random => "random",
        })
    }
}

/// The places of requests: pieces of a medium of the same length, from its beginning on.
pub(in super::super) struct Places {
    order: Order,
    count: u64,
    /// How long each is, in sectors or bytes.
    len: u64,
    /// The number of the next place, or what the random ones are made of.
    state: Cell<u64>,
}

impl Places {
    /// There are `count`, of this length.
    pub(in super::super) fn new(order: Order, count: u64, len: u64) -> Self {
        Self {
            order,
            count,
            len,
            state: Cell::new(0),
        }
    }

    /// Where the next one begins.
    #[inline]
    pub(in super::super) fn next(&self) -> u64 {
        let state = self.state.get();
        let (number, next) = match self.order {
            Order::Sequential => (
                state,
                if state + 1 == self.count {
                    0
                } else {
                    state + 1
                },
            ),
            Order::Random => {
                // Knuth's linear congruential generator for 64 bits. Its high bits are the good ones, and those choose.
                let next = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let number = (u128::from(next) * u128::from(self.count)) >> 64;
                (number as u64, next)
            }
        };
        self.state.set(next);
        number * self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(order: Order, count: u64) -> Places {
        Places::new(order, count, 8)
    }

    #[test]
    fn sequential_places_follow_each_other_and_begin_again() {
        let places = places(Order::Sequential, 3);
        let sectors = [0; 7].map(|_| places.next());
        assert_eq!(sectors, [0, 8, 16, 0, 8, 16, 0]);
    }

    #[test]
    fn random_places_are_everywhere_and_equally_often() {
        const COUNT: usize = 1000;
        const EACH: usize = 100;
        let places = places(Order::Random, COUNT as u64);
        let mut times = [0; COUNT];
        for _ in 0..EACH * COUNT {
            let sector = places.next();
            assert_eq!(sector % 8, 0);
            times[sector as usize / 8] += 1;
        }
        // Six standard deviations.
        assert!(times.iter().all(|times| (40..=160).contains(times)));
    }

    #[test]
    fn there_is_only_one_place_on_a_disk_of_one_request() {
        let places = places(Order::Random, 1);
        assert_eq!([0; 5].map(|_| places.next()), [0; 5]);
    }
}
