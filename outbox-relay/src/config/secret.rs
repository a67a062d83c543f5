use std::{io, path::PathBuf};

use cli::{MAX_SECRET_BYTES, Problems, read_text};
use secrecy::SecretString;

/// Something that nobody else may know. One that stands in a file is read for every use, so that a
/// file which is replaced counts from the next use on.
#[derive(Clone, Debug)]
pub enum Secret {
    /// As it was given.
    Given(SecretString),
    /// In this file.
    File(PathBuf),
}

impl Secret {
    /// The secret as it is now.
    ///
    /// # Errors
    /// If the file can't be read, with its name.
    pub fn read(&self) -> io::Result<SecretString> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(file) => match read_text(file, MAX_SECRET_BYTES) {
                Ok(text) => Ok(text.trim_end().into()),
                Err(err) => {
                    let reason = format!("{}: {err}", file.display());
                    Err(io::Error::new(err.kind(), reason))
                }
            },
        }
    }

    /// Checks what was given, itself or as the name of a file.
    pub(super) fn check(
        problems: &mut Problems,
        name: &str,
        value: Option<String>,
        file: Option<PathBuf>,
    ) -> Option<Self> {
        let found = problems.secret(name, value, file.clone())?;
        Some(match file {
            Some(file) => Self::File(file),
            None => Self::Given(found),
        })
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self::Given(secret.into())
    }
}

/// Where in `text` the error is, and what it is. The error itself would show the line, and the message
/// can name the value: neither may be seen where it is a secret.
pub(super) fn place(text: &str, err: &toml::de::Error) -> String {
    let start = err.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let message = err.message();
    // The value is left out, for it can be a secret, whatever else is on the line.
    if let Some((_, expected)) = message.split_once(", expected ")
        && message.starts_with("invalid type")
    {
        return format!("line {number}: this has to be {expected}");
    }
    let may_be_secret = line.contains("password") || line.contains("database_url");
    // Of a name that is misspelt or repeated the message tells the name alone.
    let tells_names = message.starts_with("unknown field") || message.starts_with("duplicate key");
    if may_be_secret && !tells_names {
        return format!("line {number}: this has to be a text in quotes");
    }
    format!("line {number}: {message}")
}

#[cfg(test)]
mod tests {
    use super::{super::File, place};

    #[test]
    fn a_secret_in_a_broken_line_is_not_shown() {
        let broken = [
            "[kafka.sasl]\nusername = 'relay'\npassword = 4711",
            "[kafka.sasl]\n\npassword = hunter2",
            "[[source]]\nname = 'a'\ndatabase_url = postgres://u:hunter2@host/db",
        ];
        let told = ["a string", "a text in quotes", "a text in quotes"];
        for (text, what) in broken.into_iter().zip(told) {
            let err = toml::from_str::<File>(text).err().unwrap();
            assert_eq!(place(text, &err), format!("line 3: this has to be {what}"));
        }
        let text = "admin_addr = 'a'\nkafka = 1";
        let err = toml::from_str::<File>(text).err().unwrap();
        let told = place(text, &err);
        assert!(told.starts_with("line 2: this has to be "), "{told}");
    }

    #[test]
    fn a_secret_that_is_no_text_is_not_shown_wherever_it_stands() {
        for text in [
            "kafka = { brokers = 'a:1', sasl = { username = 'u', password = 4711 } }",
            "source = [{ name = 'a', database_url = 4711 }]",
            "source = [\n{ name = 'a',\ndatabase_url =\n4711 }]",
            "[[source]]\nname = 'a'\ndatabase_url = 'postgres://a'\ndatabase_url = 4711",
        ] {
            let err = toml::from_str::<File>(text).err().unwrap();
            let told = place(text, &err);
            assert!(!told.contains("4711"), "{told}");
        }
        let text = "[[source]]\nname = 'a'\ndatabase_url = 'a'\ndatabase_url = 'b'";
        let err = toml::from_str::<File>(text).err().unwrap();
        assert_eq!(place(text, &err), "line 4: duplicate key");
    }

    #[test]
    fn a_misspelt_setting_is_named_without_its_value() {
        for misspelt in ["databse_url", "database_urls", "passwords"] {
            let text = format!("[[source]]\nname = 'a'\n{misspelt} = 'postgres://u:hunter2@h/d'\n");
            let err = toml::from_str::<File>(&text).err().unwrap();
            let told = place(&text, &err);
            let wanted = format!("line 3: unknown field `{misspelt}`");
            assert!(told.starts_with(&wanted), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
