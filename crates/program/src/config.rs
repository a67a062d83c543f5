use std::{
    fmt::{self, Display},
    fs,
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
};

use secrecy::SecretString;

/// Collects the mistakes of a configuration, so that all of them are told at once.
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

    /// The value, or a note that there is none. Empty counts as none: that is how a variable is left
    /// out in a file of settings.
    pub fn required(&mut self, name: &str, value: Option<String>) -> Option<String> {
        let value = value.filter(|value| !value.trim().is_empty());
        if value.is_none() {
            self.add(name, format!("is missing: set {name}"));
        }
        value
    }

    /// The number in `text`, where it is one and lies in `range`.
    pub fn number<T>(&mut self, name: &str, text: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + Display,
    {
        let number = text
            .trim()
            .parse()
            .ok()
            .filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            self.add(
                name,
                format!("{text:?} isn't a number from {low} to {high}"),
            );
        }
        number
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
            (None, Some(file)) => match fs::read_to_string(&file) {
                Ok(text) => Some(text.trim_end().into()),
                Err(err) => {
                    let (file, fix) = (file.display(), "name a file that can be read");
                    self.add(format!("{name}_FILE"), format!("{file}: {err}; {fix}"));
                    None
                }
            },
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

    /// What the settings came to, where there is no mistake.
    ///
    /// # Errors
    /// With every mistake.
    pub fn into_result<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self.into_error()),
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
    fn every_mistake_is_told() {
        let mut problems = Problems::default();
        assert_eq!(problems.number("POOL_SIZE", "16", 1..=100), Some(16));
        assert_eq!(problems.number("POOL_SIZE", "0", 1..=100), None);
        assert!(problems.secret("DATABASE_URL", None, None).is_none());
        assert!(problems.required("LISTEN_ADDR", None).is_none());
        assert!(
            problems
                .required("KAFKA_BROKERS", Some(" ".into()))
                .is_none()
        );
        let text = problems.into_result(Some(())).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(
            text.contains("from 1 to 100") && text.contains("DATABASE_URL_FILE"),
            "{text}"
        );
    }
}
