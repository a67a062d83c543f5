//! Settings of Kafka. They are validated before a client is created, because a client retries an invalid address
//! forever.

use clap::Args;

/// Kafka's limit for the name of a topic.
pub const MAX_TOPIC_NAME_CHARS: usize = 249;

/// An optional value. With `Option` itself clap would make the argument optional and parse the inner type.
pub type Optional<T> = Option<T>;

/// The options of the connection to Kafka.
#[derive(Args, Clone, Debug)]
pub struct KafkaOptions {
    /// Connect to Kafka through these bootstrap brokers: host:port, separated by commas
    #[arg(long, env = "KAFKA_BROKERS", value_parser = parse_brokers)]
    pub kafka_brokers: String,
}

/// Parses brokers, `host:port` separated by commas. Trims each.
fn parse_brokers(text: &str) -> Result<String, String> {
    let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
    if brokers.iter().all(|broker| is_address(broker)) {
        return Ok(brokers.join(","));
    }
    Err(format!(
        "invalid value {text:?}: must be host:port, or several separated by commas"
    ))
}

/// Parses a name by Kafka's rules for topics, which also apply to instance ids.
///
/// # Errors
/// If the name is invalid.
pub fn kafka_name(text: &str) -> Result<String, String> {
    if is_topic_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "invalid name {text:?}: must be 1 to {MAX_TOPIC_NAME_CHARS} letters, digits, '.', '_' or '-'"
    ))
}

/// Like [`kafka_name`], and parses an empty text as `None`.
///
/// # Errors
/// If the name is invalid.
pub fn optional_kafka_name(text: &str) -> Result<Optional<String>, String> {
    match text {
        "" => Ok(None),
        name => kafka_name(name).map(Some),
    }
}

/// Returns whether a name is valid by Kafka's rules. A broker may close the connection on any other.
pub fn is_topic_name(name: &str) -> bool {
    (1..=MAX_TOPIC_NAME_CHARS).contains(&name.len())
        && name.chars().all(is_topic_char)
        && !matches!(name, "." | "..")
}

/// Returns whether a topic's name may contain the character.
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
    fn brokers_must_be_addresses() {
        for (text, found) in [
            ("localhost:9092", "localhost:9092"),
            (" a.example:1 ,10.0.0.1:65535", "a.example:1,10.0.0.1:65535"),
            ("[::1]:9092", "[::1]:9092"),
        ] {
            assert_eq!(parse_brokers(text).as_deref(), Ok(found));
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
            assert!(parse_brokers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_names_that_kafka_accepts_are_valid() {
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
