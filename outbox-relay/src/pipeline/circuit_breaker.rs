//! Keeps a fault of the environment from turning all events of a topic into dead letters.

use std::collections::HashMap;

/// The most topics whose rejections are counted.
const MAX_TOPICS: usize = 1_000;

/// Counts the consecutive rejections of each topic. Events that are dead-lettered let later events of their keys pass, so
/// after a number of rejections without a published event in between, the source must halt instead.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    max_rejections: u32,
    streaks: HashMap<String, Streak>,
}

/// What to do with a rejected event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    DeadLetter,
    Halt,
    /// Records of the topic are in flight. If they are accepted, the streak ends.
    WaitForAcknowledgements,
}

/// The rejections of a topic since the last published event of it.
#[derive(Debug, Default)]
struct Streak {
    rejections: u32,
    /// The number of records that the current sink had sent with the last event of the topic.
    last_sent: Option<u64>,
}

impl CircuitBreaker {
    pub(super) fn new(max_rejections: u32) -> Self {
        Self {
            max_rejections,
            streaks: HashMap::new(),
        }
    }

    /// Returns whether rejections of any topic are counted.
    pub(super) fn is_counting(&self) -> bool {
        !self.streaks.is_empty()
    }

    /// Records that an event was sent; `sent` is the number of records that the sink has sent with it.
    pub(super) fn record_sent(&mut self, topic: &str, sent: u64) {
        if let Some(streak) = self.streaks.get_mut(topic) {
            streak.last_sent = Some(sent);
        }
    }

    /// Records a rejection, unless the verdict is to wait. `acknowledged` is the number of records that the sink has published.
    pub(super) fn record_rejection(&mut self, topic: &str, acknowledged: u64) -> Verdict {
        if self.streaks.len() >= MAX_TOPICS && !self.streaks.contains_key(topic) {
            self.streaks.clear();
        }
        let streak = self.streaks.entry(topic.to_owned()).or_default();
        if streak.is_over(acknowledged) {
            *streak = Streak::default();
        }
        if streak.rejections < self.max_rejections {
            streak.rejections += 1;
            Verdict::DeadLetter
        } else if streak.last_sent.is_some() {
            Verdict::WaitForAcknowledgements
        } else {
            Verdict::Halt
        }
    }

    /// Records the end of a sink that has published `acknowledged` records. The next one counts from zero.
    pub(super) fn end_sink(&mut self, acknowledged: u64) {
        self.streaks.retain(|_, streak| {
            let is_over = streak.is_over(acknowledged);
            streak.last_sent = None;
            !is_over
        });
    }
}

impl Streak {
    fn is_over(&self, acknowledged: u64) -> bool {
        self.last_sent.is_some_and(|sent| sent <= acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Verdict::{DeadLetter, Halt, WaitForAcknowledgements};

    #[test]
    fn only_a_published_event_of_the_topic_ends_a_streak() {
        let mut breaker = CircuitBreaker::new(2);
        assert_eq!(breaker.record_rejection("a", 0), DeadLetter);
        assert_eq!(breaker.record_rejection("b", 0), DeadLetter);
        assert_eq!(breaker.record_rejection("a", 0), DeadLetter);
        assert_eq!(breaker.record_rejection("a", 0), Halt);
        assert_eq!(breaker.record_rejection("a", 0), Halt);
        breaker.record_sent("a", 1);
        assert_eq!(breaker.record_rejection("a", 0), WaitForAcknowledgements);
        assert_eq!(breaker.record_rejection("b", 1), DeadLetter);
        assert_eq!(breaker.record_rejection("b", 1), Halt);
        assert_eq!(breaker.record_rejection("a", 1), DeadLetter);
    }

    #[test]
    fn a_streak_continues_with_the_next_sink() {
        let mut breaker = CircuitBreaker::new(1);
        assert_eq!(breaker.record_rejection("a", 0), DeadLetter);
        breaker.record_sent("a", 5);
        breaker.end_sink(4);
        assert_eq!(breaker.record_rejection("a", 9), Halt);
        breaker.record_sent("a", 3);
        breaker.end_sink(3);
        assert!(!breaker.is_counting());
        assert_eq!(breaker.record_rejection("a", 0), DeadLetter);
    }

    #[test]
    fn the_number_of_topics_is_limited() {
        let mut breaker = CircuitBreaker::new(1);
        for topic in 0..10_000 {
            let verdict = breaker.record_rejection(&topic.to_string(), 0);
            assert_eq!(verdict, DeadLetter);
        }
        assert!(breaker.streaks.len() <= MAX_TOPICS);
    }
}
