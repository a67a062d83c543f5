//! Counts what is acknowledged without a gap, while acknowledgements come in any order.

/// The records in flight, as one bit each in a ring.
///
/// Records are numbered from 0 in the order in which they were sent. Everything below
/// [`acknowledged`](Self::acknowledged) has been; a checkpoint may never be ahead of it.
#[derive(Debug)]
pub(crate) struct Watermark {
    /// Bit `n % capacity` tells whether record `n` is acknowledged, for those from `base` on.
    bits: Box<[u64]>,
    base: u64,
}

impl Watermark {
    /// A watermark over at most `capacity` records in flight, rounded up to a multiple of 64.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            bits: vec![0; capacity.div_ceil(64).max(1)].into(),
            base: 0,
        }
    }

    /// How many records from the first are acknowledged without a gap.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.base
    }

    /// Notes that record `number` is acknowledged.
    pub(crate) fn acknowledge(&mut self, number: u64) {
        debug_assert!(number >= self.base && number - self.base < self.capacity());
        let (word, bit) = self.place(number);
        self.bits[word] |= bit;
        loop {
            let (word, bit) = self.place(self.base);
            if self.bits[word] & bit == 0 {
                return;
            }
            self.bits[word] &= !bit;
            self.base += 1;
        }
    }

    fn capacity(&self) -> u64 {
        self.bits.len() as u64 * 64
    }

    fn place(&self, number: u64) -> (usize, u64) {
        let slot = number % self.capacity();
        (
            usize::try_from(slot / 64).unwrap_or(usize::MAX),
            1 << (slot % 64),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_holds_the_watermark() {
        let mut watermark = Watermark::new(64);
        watermark.acknowledge(1);
        watermark.acknowledge(2);
        assert_eq!(watermark.acknowledged(), 0);
        watermark.acknowledge(0);
        assert_eq!(watermark.acknowledged(), 3);
    }

    proptest! {
        /// Against the plainest model there is: a set of numbers.
        #[test]
        fn the_watermark_is_the_first_number_that_is_missing(
            picks in prop::collection::vec(0..100_usize, 1..400)
        ) {
            let mut watermark = Watermark::new(100);
            let mut sent = 0;
            let mut in_flight = Vec::new();
            for pick in picks {
                // As a sink does it: never more in flight, from the watermark on, than fits.
                while sent - watermark.acknowledged() < 100 {
                    in_flight.push(sent);
                    sent += 1;
                }
                watermark.acknowledge(in_flight.swap_remove(pick % in_flight.len()));
                let missing = in_flight.iter().copied().min().unwrap_or(sent);
                prop_assert_eq!(watermark.acknowledged(), missing);
            }
        }
    }
}
