//! The API versions that a broker supports (KIP-35, KIP-511).

use kafka_protocol::{
    messages::{ApiKey, ApiVersionsRequest, api_versions_response::ApiVersion},
    protocol::StrBytes,
};

use crate::{
    Error, Options,
    connection::{Connection, unavailable},
};

const API_VERSIONS_VERSION: i16 = 3;

/// The API versions that a broker supports.
#[derive(Debug, Default)]
pub(crate) struct ApiVersions(Vec<ApiVersion>);

impl ApiVersions {
    /// Returns whether the broker supports this version.
    pub(crate) fn supports(&self, key: ApiKey, version: i16) -> bool {
        self.0.iter().any(|api| {
            api.api_key == key as i16 && (api.min_version..=api.max_version).contains(&version)
        })
    }
}

impl Connection {
    /// Asks for the API versions that the broker supports.
    ///
    /// # Errors
    /// If the broker does not respond, or lacks one of `options.required_versions`.
    pub async fn negotiate_versions(&mut self, options: &Options) -> Result<(), Error> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(options.client_id))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let call = self.call(&request, API_VERSIONS_VERSION, options.timeout);
        self.versions = ApiVersions(call.await?.api_keys);
        for (key, version) in options.required_versions {
            self.require(*key, *version)?;
        }
        Ok(())
    }

    /// Fails if the broker does not support this version.
    pub(crate) fn require(&self, key: ApiKey, version: i16) -> Result<(), Error> {
        if self.versions.supports(key, version) {
            return Ok(());
        }
        let reason = format!(
            "version {version} of API key {} is not supported; {}",
            key as i16,
            self.hints().old_broker
        );
        Err(unavailable(&self.address, reason))
    }
}
