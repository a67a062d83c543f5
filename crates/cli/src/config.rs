use std::{
    fmt::{self, Display},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use secrecy::SecretString;

/// The maximum size of a file that contains a secret.
pub const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// The mistakes of a configuration, collected to report all of them at once.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

/// An invalid configuration: one line per mistake. The program exits with 64.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl Problems {
    /// Adds a mistake of the setting `name`.
    pub fn add(&mut self, name: impl Display, reason: impl Display) {
        self.0.push(format!("{name}: {reason}"));
    }

    /// Returns the value, or adds its error as a mistake.
    pub fn check<T, E: Display>(&mut self, name: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|reason| self.add(name, reason)).ok()
    }

    /// Returns a secret that is set either directly or as the name of a file.
    pub fn secret(
        &mut self,
        name: &str,
        value: Option<String>,
        file: Option<PathBuf>,
    ) -> Option<SecretString> {
        // A setting of a file is in lower case, an environment variable in upper case.
        let suffix = if name.ends_with(|c: char| c.is_ascii_lowercase()) {
            "_file"
        } else {
            "_FILE"
        };
        let file_setting = format!("{name}{suffix}");
        match (value, file) {
            (Some(value), None) if !value.is_empty() => Some(value.into()),
            (None, Some(file)) => self.check(&file_setting, read_secret(&file)),
            (Some(_), Some(_)) => {
                self.add(
                    name,
                    format!("set by both {name} and {file_setting}; remove one"),
                );
                None
            }
            _ => {
                self.add(
                    name,
                    format!("missing; set {name}, or {file_setting} to a file that contains it"),
                );
                None
            }
        }
    }

    /// Returns all mistakes as an error.
    pub fn into_error(self) -> ConfigError {
        ConfigError(self.0)
    }

    /// Returns whether there are no mistakes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads a secret from a file, without whitespace at its end.
///
/// # Errors
/// If the file cannot be read.
pub fn read_secret(file: &Path) -> Result<SecretString, String> {
    match read_text(file, MAX_SECRET_BYTES) {
        Ok(text) => Ok(text.trim_end().into()),
        Err(err) => Err(format!(
            "failed to read {}: {err}; check that the file exists and is readable",
            file.display()
        )),
    }
}

/// Reads a text file of at most `max_bytes`. The limit also ends the reading of a device.
///
/// # Errors
/// If the file cannot be read, is larger, or is not UTF-8.
pub fn read_text(file: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    let mut reader = fs::File::open(file)?.take(max_bytes + 1);
    reader.read_to_string(&mut text)?;
    if reader.limit() == 0 {
        let reason = format!("file is larger than {max_bytes} bytes");
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
    fn an_endless_file_is_rejected() {
        let rejected = read_secret(Path::new("/dev/zero")).unwrap_err();
        assert!(rejected.contains("larger than 65536 bytes"), "{rejected}");
    }

    #[test]
    fn every_mistake_is_reported() {
        let mut problems = Problems::default();
        assert!(problems.secret("DATABASE_URL", None, None).is_none());
        problems.add("KAFKA_BROKERS", "missing");
        let text = problems.into_error().to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("DATABASE_URL_FILE"), "{text}");
    }
}
