//! TLS for connections to Kafka and Postgres: loads certificate files and adds hints to errors.

mod verifier;

use std::{
    error::Error,
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};

use self::verifier::Verifier;

/// PEM files. They are read for every connection, so a replaced file takes effect with the next connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The trusted certificate authorities; by default those of the operating system.
    pub ca: Option<PathBuf>,
    /// The client certificate.
    pub identity: Option<Identity>,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// The private key, unencrypted.
    pub key: PathBuf,
}

/// The checks on a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// No check: open to man-in-the-middle attacks.
    Nothing,
    /// A trusted authority signed it, for any name.
    Authority,
    /// A trusted authority signed it for the host name of the connection.
    Name,
}

/// A file that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct FileError {
    file: PathBuf,
    reason: String,
}

impl FileError {
    fn new(file: &Path, reason: impl Display) -> Self {
        Self {
            file: file.to_owned(),
            reason: reason.to_string(),
        }
    }
}

impl TlsFiles {
    /// Builds a client configuration from the files, which are read now.
    ///
    /// # Errors
    /// If a file can't be read or is not usable.
    pub fn load(&self, verification: Verification) -> Result<ClientConfig, FileError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| FileError::new(self.roots_path(), err))?;
        let config = match verification {
            Verification::Name => builder.with_root_certificates(self.roots()?),
            Verification::Nothing | Verification::Authority => {
                let roots = match verification {
                    Verification::Authority => Some(Arc::new(self.roots()?)),
                    _ => None,
                };
                let verifier = Verifier::new(roots, &provider)
                    .map_err(|err| FileError::new(self.roots_path(), err))?;
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let Some(Identity { certificate, key }) = &self.identity else {
            return Ok(config.with_no_client_auth());
        };
        let (chain, secret) = (certificates(certificate)?, private_key(key)?);
        config.with_client_auth_cert(chain, secret).map_err(|err| {
            FileError::new(key, format!("key does not match the certificate: {err}"))
        })
    }

    fn roots(&self) -> Result<RootCertStore, FileError> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(file) => {
                for certificate in certificates(file)? {
                    let added = roots.add(certificate);
                    added.map_err(|err| FileError::new(file, err))?;
                }
            }
            // An unreadable certificate does not invalidate the others.
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
            }
        }
        if roots.is_empty() {
            let reason = "no certificates found; install ca-certificates, or configure a CA file";
            return Err(FileError::new(self.roots_path(), reason));
        }
        Ok(roots)
    }

    fn roots_path(&self) -> &Path {
        let system = Path::new("the system's root certificates");
        self.ca.as_deref().unwrap_or(system)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(FileError::new(file, "no PEM certificate found"))
        }
        Ok(certificates) => Ok(certificates),
        Err(pem::Error::Io(err)) => Err(FileError::new(file, err)),
        Err(err) => Err(FileError::new(file, err)),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(file).map_err(|err| match err {
        pem::Error::Io(err) => FileError::new(file, err),
        pem::Error::NoItemsFound => FileError::new(file, "no unencrypted PEM private key found"),
        // The parser's message could quote part of the key.
        _ => FileError::new(file, "invalid PEM"),
    })
}

/// The names of the settings, for hints.
#[derive(Debug)]
pub struct Settings {
    /// The setting of the trusted authorities.
    pub ca: &'static str,
    /// The setting of the server's host name.
    pub address: &'static str,
    /// The settings of the client certificate and its key.
    pub identity: &'static str,
}

/// Returns a hint for an error of a TLS connection, if there is one.
pub fn hint_for(err: &(dyn Error + 'static), settings: &Settings) -> Option<String> {
    let Settings {
        ca,
        address,
        identity,
    } = settings;
    use AlertDescription as Alert;
    use CertificateError as Certificate;
    match tls_error(err)? {
        rustls::Error::InvalidCertificate(reason) => match reason {
            Certificate::UnknownIssuer => Some(format!(
                "set {ca} to the CA that signed the server's certificate"
            )),
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                Some("renew the server's certificate".into())
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => Some(
                format!("set {address} to a name in the server's certificate"),
            ),
            _ => None,
        },
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA,
        ) => Some(format!(
            "set {identity} to a valid certificate that the server trusts"
        )),
        rustls::Error::InvalidMessage(_) => Some("check that this port uses TLS".into()),
        _ => None,
    }
}

fn tls_error<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut err = err;
    // Libraries wrap I/O errors in others.
    while let Some(wrapper) = err.downcast_ref::<io::Error>() {
        err = wrapper.get_ref()?;
    }
    err.downcast_ref()
}
