//! What web pages need to call a service by gRPC-Web: browsers ask first which pages may, and hide
//! from them all headers that are not named.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header::CONTENT_TYPE};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::metadata::CONSISTENCY_TOKEN;

/// How long a browser need not ask again; more than two hours no browser believes.
const MAX_AGE: Duration = Duration::from_secs(2 * 3600);

/// The origins of web pages. clap would take the `Vec` itself for a property of the argument.
pub(crate) type Origins = Vec<HeaderValue>;

/// Parses a list of origins.
pub(crate) fn origins(list: &str) -> Result<Origins, String> {
    let texts = list
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty());
    texts.map(origin).collect()
}

/// A scheme and a host, as browsers send them: with no path, and no slash at its end.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let bad = || format!("{text:?} isn't an origin like https://shop.example.com");
    if text != "*" {
        let uri: http::Uri = text.parse().map_err(|_| bad())?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_web || uri.query().is_some() || text.ends_with('/') || uri.path() != "/" {
            return Err(bad());
        }
    }
    text.parse().map_err(|_| bad())
}

/// Tells browsers which pages may call, and what of the answers they may see.
pub(crate) fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    let headers = |names: &[&'static str]| -> Vec<HeaderName> {
        names.iter().copied().map(HeaderName::from_static).collect()
    };
    let sent = [
        "x-grpc-web",
        "x-user-agent",
        "grpc-timeout",
        "traceparent",
        CONSISTENCY_TOKEN,
    ];
    let seen = [
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "grpc-retry-pushback-ms",
        CONSISTENCY_TOKEN,
    ];
    let sent = headers(&sent).into_iter().chain([CONTENT_TYPE]);
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::POST])
        .allow_headers(sent.collect::<Vec<_>>())
        .expose_headers(headers(&seen))
        .max_age(MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_origins_are_taken() {
        assert_eq!(origins("").unwrap().len(), 0);
        assert_eq!(
            origins("http://localhost:8080, https://a.example")
                .unwrap()
                .len(),
            2
        );
        assert_eq!(origins("*").unwrap().len(), 1);
        for bad in [
            "a.example",
            "https://a.example/",
            "https://a.example/x",
            "ftp://a",
            "https://",
        ] {
            assert!(origins(bad).is_err(), "{bad}");
        }
    }
}
