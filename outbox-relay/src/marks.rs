use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use crate::window::Cursor;

/// Places in the stream of records that a checkpoint can name: so many records sent, this cursor.
#[derive(Clone)]
pub(crate) struct Marks(Arc<Mutex<VecDeque<(u64, Cursor)>>>);

impl Marks {
    pub(crate) fn new(start: Cursor) -> Self {
        Self(Arc::new(Mutex::new([(0, start)].into())))
    }

    pub(crate) fn add(&self, sent: u64, cursor: &Cursor) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An idle source moves on in snapshots without a record.
        if marks.len() > 1 && marks.back().is_some_and(|(count, _)| *count == sent) {
            marks.pop_back();
        }
        marks.push_back((sent, cursor.clone()));
    }

    /// The last place whose records are all acknowledged, and how many these are.
    pub(crate) fn reached(&self, acknowledged: u64) -> (Cursor, u64) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while marks.len() > 1 && marks[1].0 <= acknowledged {
            marks.pop_front();
        }
        let (count, cursor) = &marks[0];
        (cursor.clone(), *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Snapshot;

    fn cursor(max_seq: i64) -> Cursor {
        Cursor::new(Snapshot::beginning(), max_seq, None)
    }

    #[test]
    fn a_mark_is_reached_when_all_before_it_is_acknowledged() {
        let marks = Marks::new(cursor(0));
        marks.add(10, &cursor(10));
        marks.add(20, &cursor(20));
        assert_eq!(marks.reached(9), (cursor(0), 0));
        assert_eq!(marks.reached(19), (cursor(10), 10));
        assert_eq!(marks.reached(20), (cursor(20), 20));
    }

    #[test]
    fn an_idle_source_keeps_a_bounded_number_of_marks() {
        let marks = Marks::new(cursor(0));
        for seq in 0..1_000 {
            marks.add(7, &cursor(seq));
        }
        assert!(marks.0.lock().unwrap().len() <= 2);
        assert_eq!(marks.reached(7), (cursor(999), 7));
    }
}
