//! A certificate authority for tests.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tls::Identity;

use crate::WorkDir;

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The CA certificate in PEM.
    pub pem: String,
}

/// A certificate and its key, in PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// Creates an authority with this name.
    ///
    /// # Errors
    /// If no key can be generated.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// Issues a certificate for a server or client with this name.
    ///
    /// # Errors
    /// If no key can be generated.
    pub fn issue(&self, name: &str) -> Result<Issued> {
        self.sign(Self::params(name)?)
    }

    /// Issues an expired certificate.
    ///
    /// # Errors
    /// If no key can be generated.
    pub fn issue_expired(&self, name: &str) -> Result<Issued> {
        let mut params = Self::params(name)?;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(params)
    }

    fn params(name: &str) -> Result<CertificateParams> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Issued> {
        let key = KeyPair::generate()?;
        Ok(Issued {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Issued {
    /// Writes both files into `work_dir`, replacing earlier ones with this name.
    ///
    /// # Errors
    /// If the files can't be written.
    pub fn write(&self, work_dir: &WorkDir, name: &str) -> Result<Identity> {
        let certificate = work_dir.write(&format!("{name}.crt"), &self.certificate)?;
        let key = work_dir.write(&format!("{name}.key"), &self.key)?;
        // Postgres rejects a key that others can read.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        Ok(Identity { certificate, key })
    }

    /// Writes both into one file, as Kafka requires.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write_combined(&self, work_dir: &WorkDir, name: &str) -> Result<PathBuf> {
        let both = format!("{}{}", self.key, self.certificate);
        work_dir.write(&format!("{name}.pem"), &both)
    }
}
