//! CORS for gRPC-Web. Browsers send a preflight request for the allowed origins, and hide every
//! response header that is not exposed.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header::CONTENT_TYPE};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::metadata::CONSISTENCY_TOKEN;

/// The lifetime of a preflight response in browser caches. No browser accepts more than two hours.
const MAX_AGE: Duration = Duration::from_secs(2 * 3600);

/// The origins of web pages. The alias keeps clap from reading the `Vec` as a repeated argument.
pub(crate) type Origins = Vec<HeaderValue>;

/// Parses a comma-separated list of origins.
pub(crate) fn parse_origins(list: &str) -> Result<Origins, String> {
    let texts = list
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty());
    texts.map(parse_origin).collect()
}

/// Parses a scheme and a host as browsers send them: without a path or a trailing slash.
fn parse_origin(text: &str) -> Result<HeaderValue, String> {
    let bad =
        || format!("invalid origin {text:?}: must look like https://shop.example.com, or be *");
    if text != "*" {
        let uri: http::Uri = text.parse().map_err(|_| bad())?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_web || uri.query().is_some() || text.ends_with('/') || uri.path() != "/" {
            return Err(bad());
        }
    }
    text.parse().map_err(|_| bad())
}

/// Builds the layer that answers preflight requests and exposes response headers.
pub(crate) fn cors_layer(origins: &[HeaderValue]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    let headers = |names: &[&'static str]| -> Vec<HeaderName> {
        names.iter().copied().map(HeaderName::from_static).collect()
    };
    let allowed_headers = [
        "x-grpc-web",
        "x-user-agent",
        "grpc-timeout",
        "traceparent",
        CONSISTENCY_TOKEN,
    ];
    let exposed_headers = [
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "grpc-retry-pushback-ms",
        CONSISTENCY_TOKEN,
    ];
    let allowed_headers = headers(&allowed_headers).into_iter().chain([CONTENT_TYPE]);
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::POST])
        .allow_headers(allowed_headers.collect::<Vec<_>>())
        .expose_headers(headers(&exposed_headers))
        .max_age(MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_origins_are_accepted() {
        assert_eq!(parse_origins("").unwrap().len(), 0);
        assert_eq!(
            parse_origins("http://localhost:8080, https://a.example")
                .unwrap()
                .len(),
            2
        );
        assert_eq!(parse_origins("*").unwrap().len(), 1);
        for bad in [
            "a.example",
            "https://a.example/",
            "https://a.example/x",
            "ftp://a",
            "https://",
        ] {
            assert!(parse_origins(bad).is_err(), "{bad}");
        }
    }
}
