use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use crate::sink::{InFlight, SinkError};

/// The batches that are begun and not acknowledged, by the number of their first record. Everything
/// before the lowest of these numbers is acknowledged: a batch holds records of one partition, and
/// partitions do not wait for each other, so that numbers of several batches interleave.
#[derive(Clone, Debug)]
pub(super) struct Outstanding {
    firsts: Arc<Mutex<BTreeSet<u64>>>,
    in_flight: InFlight,
}

impl Outstanding {
    pub(super) fn new(in_flight: InFlight) -> Self {
        Self {
            firsts: Arc::default(),
            in_flight,
        }
    }

    /// Takes the number of the next record. `is_first`: it begins a batch.
    pub(super) fn begin(&self, is_first: bool) -> u64 {
        if !is_first {
            return self.in_flight.begin();
        }
        // Both under the lock: who looks for the lowest number must not miss this one.
        let mut firsts = self.firsts.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.in_flight.begin();
        firsts.insert(number);
        number
    }

    /// These batches are acknowledged.
    pub(super) fn acknowledge(&self, batches: &[u64]) {
        let mut firsts = self.firsts.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in batches {
            firsts.remove(batch);
        }
        let lowest = firsts.first().copied();
        let acknowledged = lowest.unwrap_or_else(|| self.in_flight.sent());
        self.in_flight.acknowledge_up_to(acknowledged);
    }

    /// Why nothing more may be sent, if so.
    pub(super) fn check(&self) -> Result<(), SinkError> {
        self.in_flight.check()
    }

    pub(super) fn fail(&self, err: SinkError) {
        self.in_flight.fail(err);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_batch_holds_everything_behind_it() {
        let in_flight = InFlight::new(100);
        let outstanding = Outstanding::new(in_flight.clone());
        // Records 0, 2 to one partition, 1, 3 to another.
        for is_first in [true, true, false, false] {
            outstanding.begin(is_first);
        }
        outstanding.acknowledge(&[1]);
        assert_eq!(in_flight.acknowledged(), 0);
        outstanding.acknowledge(&[0]);
        assert_eq!(in_flight.acknowledged(), 4);
        outstanding.begin(true);
        outstanding.begin(false);
        outstanding.acknowledge(&[]);
        assert_eq!(in_flight.acknowledged(), 4);
        outstanding.acknowledge(&[4]);
        assert_eq!(in_flight.acknowledged(), 6);
    }
}
