//! Errors of the configuration file that show no secrets.

/// Describes a TOML error with its line number. The error's own text shows the line, and its message can
/// contain the value: both may be secrets.
pub(super) fn describe_toml_error(text: &str, err: &toml::de::Error) -> String {
    let start = err.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let message = err.message();
    // Omits the value: it can be a secret, whatever else is on the line.
    if let Some((_, expected)) = message.split_once(", expected ")
        && message.starts_with("invalid type")
    {
        return format!("line {number}: must be {expected}");
    }
    let may_be_secret = ["password", "secret", "database_url"]
        .iter()
        .any(|name| line.contains(name));
    // For an unknown or duplicate key the message contains the key alone.
    let contains_only_names =
        message.starts_with("unknown field") || message.starts_with("duplicate key");
    if may_be_secret && !contains_only_names {
        return format!("line {number}: must be a quoted string");
    }
    format!("line {number}: {message}")
}

#[cfg(test)]
mod tests {
    use super::{super::File, describe_toml_error};

    #[test]
    fn a_secret_in_an_invalid_line_is_not_shown() {
        let broken = [
            "[kafka.sasl]\nusername = 'relay'\npassword = 4711",
            "[kafka.sasl]\n\npassword = hunter2",
            "[kafka.sasl]\n\nclient_secret = hunter2",
            "[[source]]\nname = 'a'\ndatabase_url = postgres://u:hunter2@host/db",
        ];
        let expected = [
            "a string",
            "a quoted string",
            "a quoted string",
            "a quoted string",
        ];
        for (text, what) in broken.into_iter().zip(expected) {
            let err = toml::from_str::<File>(text).err().unwrap();
            assert_eq!(
                describe_toml_error(text, &err),
                format!("line 3: must be {what}")
            );
        }
        let text = "admin_addr = 'a'\nkafka = 1";
        let err = toml::from_str::<File>(text).err().unwrap();
        let message = describe_toml_error(text, &err);
        assert!(message.starts_with("line 2: must be "), "{message}");
    }

    #[test]
    fn a_secret_that_is_not_a_string_is_never_shown() {
        for text in [
            "kafka = { brokers = 'a:1', sasl = { username = 'u', password = 4711 } }",
            "source = [{ name = 'a', database_url = 4711 }]",
            "source = [\n{ name = 'a',\ndatabase_url =\n4711 }]",
            "[[source]]\nname = 'a'\ndatabase_url = 'postgres://a'\ndatabase_url = 4711",
        ] {
            let err = toml::from_str::<File>(text).err().unwrap();
            let message = describe_toml_error(text, &err);
            assert!(!message.contains("4711"), "{message}");
        }
        let text = "[[source]]\nname = 'a'\ndatabase_url = 'a'\ndatabase_url = 'b'";
        let err = toml::from_str::<File>(text).err().unwrap();
        assert_eq!(describe_toml_error(text, &err), "line 4: duplicate key");
    }

    #[test]
    fn an_unknown_setting_is_reported_without_its_value() {
        for name in ["databse_url", "database_urls", "passwords"] {
            let text = format!("[[source]]\nname = 'a'\n{name} = 'postgres://u:hunter2@h/d'\n");
            let err = toml::from_str::<File>(&text).err().unwrap();
            let message = describe_toml_error(&text, &err);
            let wanted = format!("line 3: unknown field `{name}`");
            assert!(message.starts_with(&wanted), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
