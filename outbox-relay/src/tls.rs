//! TLS, towards Kafka and towards Postgres: certificates out of files, and errors that name the
//! way out.

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

/// Files in PEM. They are read for every connection, so that one which is replaced counts from the
/// next connection on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that may vouch for a server. Without it those of the system: as for everything
    /// else on the machine, and kept up to date with it.
    pub ca: Option<PathBuf>,
    /// What this client shows.
    pub identity: Option<Identity>,
}

/// A certificate of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key, unencrypted.
    pub key: PathBuf,
}

/// What has to be right with a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verification {
    /// Nothing: whoever is in between can read along.
    Nothing,
    /// An authority has signed it, for whatever name.
    Authority,
    /// An authority has signed it for the name by which it was reached.
    Name,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub(crate) struct FileError {
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
    /// Reads the files.
    pub(crate) fn load(&self, verification: Verification) -> Result<ClientConfig, FileError> {
        let provider = Arc::new(ring::default_provider());
        let roots = match verification {
            Verification::Nothing => None,
            Verification::Authority | Verification::Name => Some(Arc::new(self.roots()?)),
        };
        let verifier = Verifier::new(roots, verification, &provider)
            .map_err(|err| FileError::new(self.roots_place(), err))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|err| FileError::new(self.roots_place(), err))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let Some(Identity { certificate, key }) = &self.identity else {
            return Ok(config.with_no_client_auth());
        };
        let (chain, secret) = (certificates(certificate)?, private_key(key)?);
        config
            .with_client_auth_cert(chain, secret)
            .map_err(|err| FileError::new(key, format!("does not go with the certificate: {err}")))
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
            // One that can't be read is no reason not to trust the others.
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
            }
        }
        if roots.is_empty() {
            let reason = "there are none; install ca-certificates, or name a file with the CA";
            return Err(FileError::new(self.roots_place(), reason));
        }
        Ok(roots)
    }

    fn roots_place(&self) -> &Path {
        let system = Path::new("the system's root certificates");
        self.ca.as_deref().unwrap_or(system)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(FileError::new(file, "there is no certificate in PEM in it"))
        }
        Ok(certificates) => Ok(certificates),
        Err(pem::Error::Io(err)) => Err(FileError::new(file, err)),
        Err(err) => Err(FileError::new(file, err)),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(file).map_err(|err| match err {
        pem::Error::Io(err) => FileError::new(file, err),
        pem::Error::NoItemsFound => {
            FileError::new(file, "there is no unencrypted private key in PEM in it")
        }
        // What the parser says of it could hold a part of it.
        _ => FileError::new(file, "is no PEM"),
    })
}

/// What the settings are called that an error has to name.
pub(crate) struct Settings {
    pub(crate) ca: &'static str,
    pub(crate) address: &'static str,
    pub(crate) identity: &'static str,
}

/// What to do about an error of a TLS connection, where that can be told.
pub(crate) fn way_out(err: &(dyn Error + 'static), settings: &Settings) -> Option<String> {
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
                "{ca} has to hold the CA that has signed the server's certificate"
            )),
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                Some("renew the server's certificate".into())
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => Some(
                format!("{address} has to be a name that is in the server's certificate"),
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
            "{identity} have to be a valid certificate that the server trusts"
        )),
        rustls::Error::InvalidMessage(_) => Some("does this port speak TLS?".into()),
        _ => None,
    }
}

fn tls_error<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let inner = match err.downcast_ref::<io::Error>() {
        Some(err) => err.get_ref().map(|err| err as &(dyn Error + 'static)),
        None => Some(err),
    };
    inner?.downcast_ref()
}
