use std::{io, path::PathBuf};

use secrecy::SecretString;

use crate::{MAX_SECRET_BYTES, Problems, read_text};

/// A secret. A file is read again for each use, so a replaced file takes effect without a restart.
#[derive(Clone, Debug)]
pub enum Secret {
    /// A value from the configuration or the environment.
    Given(SecretString),
    /// The file that contains the secret.
    File(PathBuf),
}

impl Secret {
    /// Returns the current value.
    ///
    /// # Errors
    /// If the file can't be read. The error contains its path.
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

    /// Reads a secret that is given as a value or as the path of a file, and adds a mistake if it can't.
    pub fn parse(
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
