//! Settings that say where Kafka is and what is there: what can't be right is told before a client
//! that would try for ever is made.

use clap::Args;

/// Kafka's own limit for the name of a topic, which becomes the name of a folder.
pub const MAX_TOPIC_NAME_CHARS: usize = 249;

/// A value that may be left out. clap would take the `Option` itself for a property of the argument.
pub type Optional<T> = Option<T>;

/// The Kafka to connect to.
#[derive(Args, Clone, Debug)]
pub struct KafkaOptions {
    /// The Kafka brokers to connect to first, as host:port, separated by commas
    #[arg(long, env = "KAFKA_BROKERS", value_parser = brokers)]
    pub kafka_brokers: String,
}

/// Parses brokers, as `host:port`, separated by commas; drops the blanks around them.
fn brokers(text: &str) -> Result<String, String> {
    let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
    if brokers.iter().all(|broker| is_address(broker)) {
        return Ok(brokers.join(","));
    }
    Err(format!(
        "{text:?} isn't host:port, or several with commas between"
    ))
}

/// Parses the name of a topic, or of something else for which Kafka has the same rule.
///
/// # Errors
/// If Kafka would not accept it.
pub fn kafka_name(text: &str) -> Result<String, String> {
    if is_topic_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} isn't a name of 1 to {MAX_TOPIC_NAME_CHARS} dead_letters, digits, '.', '_', '-'"
    ))
}

/// The same, where empty means none.
///
/// # Errors
/// If Kafka would not accept it.
pub fn optional_kafka_name(text: &str) -> Result<Optional<String>, String> {
    match text {
        "" => Ok(None),
        name => kafka_name(name).map(Some),
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
        for (text, found) in [
            ("localhost:9092", "localhost:9092"),
            (" a.example:1 ,10.0.0.1:65535", "a.example:1,10.0.0.1:65535"),
            ("[::1]:9092", "[::1]:9092"),
        ] {
            assert_eq!(brokers(text).as_deref(), Ok(found));
        }
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
            assert!(brokers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_those_that_kafka_takes() {
        for good in ["a", "users.v1", "A_b-9", "...", &"x".repeat(249)] {
            assert_eq!(kafka_name(good).as_deref(), Ok(good));
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
            assert!(kafka_name(bad).is_err(), "{bad}");
        }
    }
}
