use std::{
    fmt::{self, Display},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use secrecy::SecretString;

/// Of a file that holds a secret.
pub const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Collects the mistakes of a configuration, so that all of them are reported at once.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

/// A configuration that can't be used: one line a mistake. Ends the program with exit code 64.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl Problems {
    /// Notes that the setting `name` can't be used, and why.
    pub fn add(&mut self, name: impl Display, reason: impl Display) {
        self.0.push(format!("{name}: {reason}"));
    }

    /// The value, or a note of why there is none.
    pub fn check<T, E: Display>(&mut self, name: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|reason| self.add(name, reason)).ok()
    }

    /// A secret, given either itself or as the name of a file that holds it.
    pub fn secret(
        &mut self,
        name: &str,
        value: Option<String>,
        file: Option<PathBuf>,
    ) -> Option<SecretString> {
        match (value, file) {
            (Some(value), None) if !value.is_empty() => Some(value.into()),
            (None, Some(file)) => self.check(&format!("{name}_FILE"), read_secret(&file)),
            (Some(_), Some(_)) => {
                self.add(
                    name,
                    format!("is given twice, by {name} and by {name}_FILE"),
                );
                None
            }
            _ => {
                self.add(
                    name,
                    format!("is missing: set {name}, or {name}_FILE to a file with it"),
                );
                None
            }
        }
    }

    /// All mistakes, as an error.
    pub fn into_error(self) -> ConfigError {
        ConfigError(self.0)
    }

    /// Whether there is no mistake.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The secret in a file, without the line break at its end.
///
/// # Errors
/// If the file cannot be read.
pub fn read_secret(file: &Path) -> Result<SecretString, String> {
    match read_text(file, MAX_SECRET_BYTES) {
        Ok(text) => Ok(text.trim_end().into()),
        Err(err) => Err(format!(
            "{}: {err}; name a file that can be read",
            file.display()
        )),
    }
}

/// The text in a file of at most so many bytes: a device has no end.
///
/// # Errors
/// If the file cannot be read, is larger, or is not UTF-8.
pub fn read_text(file: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    let mut reader = fs::File::open(file)?.take(max_bytes + 1);
    reader.read_to_string(&mut text)?;
    if reader.limit() == 0 {
        let reason = format!("the file is larger than {max_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(text)
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_rejected() {
        let rejected = read_secret(Path::new("/dev/zero")).unwrap_err();
        assert!(rejected.contains("larger than 65536 bytes"), "{rejected}");
    }

    #[test]
    fn every_mistake_is_told() {
        let mut problems = Problems::default();
        assert!(problems.secret("DATABASE_URL", None, None).is_none());
        problems.add("KAFKA_BROKERS", "is missing");
        let text = problems.into_error().to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("DATABASE_URL_FILE"), "{text}");
    }
}
