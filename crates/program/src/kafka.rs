//! Settings that say where Kafka is and what is there: what can't be right is told before a client
//! that would try for ever is made.

use crate::config::Problems;

/// Kafka's own limit for the name of a topic, which becomes the name of a folder.
pub const MAX_TOPIC_NAME_CHARS: usize = 249;

impl Problems {
    /// The brokers in `text`, as `host:port`, separated by commas; without blanks around them.
    pub fn brokers(&mut self, name: &str, text: &str) -> Option<String> {
        let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
        if brokers.iter().all(|broker| is_address(broker)) {
            return Some(brokers.join(","));
        }
        self.add(
            name,
            format!("{text:?} isn't host:port, or several with commas between"),
        );
        None
    }

    /// The name of a topic, or of something else for which Kafka has the same rule.
    pub fn kafka_name(&mut self, name: &str, text: String) -> Option<String> {
        if is_topic_name(&text) {
            return Some(text);
        }
        self.add(
            name,
            format!(
                "{text:?} isn't a name of 1 to {MAX_TOPIC_NAME_CHARS} letters, digits, '.', '_', '-'"
            ),
        );
        None
    }
}

/// Kafka's own rule. A broker that is asked about anything else may close the connection.
pub fn is_topic_name(name: &str) -> bool {
    (1..=MAX_TOPIC_NAME_CHARS).contains(&name.len())
        && name.chars().all(is_topic_char)
        && !matches!(name, "." | "..")
}

/// Whether a topic's name may have it.
pub fn is_topic_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let is_host = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        }
    };
    is_host && port.parse().is_ok_and(|port: u16| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_addresses() {
        let mut problems = Problems::default();
        for (text, brokers) in [
            ("localhost:9092", "localhost:9092"),
            (" a.example:1 ,10.0.0.1:65535", "a.example:1,10.0.0.1:65535"),
            ("[::1]:9092", "[::1]:9092"),
        ] {
            let found = problems.brokers("KAFKA_BROKERS", text);
            assert_eq!(found.as_deref(), Some(brokers));
        }
        assert!(problems.is_empty());
        for bad in [
            "",
            ",",
            "localhost",
            ":9092",
            "a:0",
            "a:65536",
            "a:b",
            "a:1,",
            "a:1;b:2",
            "::1:9092",
            "kafka://a:1",
        ] {
            assert_eq!(problems.brokers("KAFKA_BROKERS", bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_those_that_kafka_takes() {
        let mut problems = Problems::default();
        for good in ["a", "users.v1", "A_b-9", "...", &"x".repeat(249)] {
            let found = problems.kafka_name("USERS_TOPIC", good.to_owned());
            assert_eq!(found.as_deref(), Some(good));
        }
        for bad in [
            "",
            " ",
            ".",
            "..",
            "a b",
            "a/b",
            "ä",
            "a\n",
            &"x".repeat(250),
        ] {
            let found = problems.kafka_name("USERS_TOPIC", bad.to_owned());
            assert_eq!(found, None, "{bad}");
        }
    }
}
