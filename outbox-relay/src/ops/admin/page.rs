//! `/`: a web page that shows `/status`.

use axum::{
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    response::IntoResponse,
};

/// Contains its style and script.
const PAGE: &str = include_str!("page.html");
/// The placeholder of the nonce in [`PAGE`].
const NONCE: &str = "{nonce}";

/// Serves the page with a policy that allows only its own style and script, and no frames. Text of an error cannot inject
/// anything.
pub(super) async fn page() -> impl IntoResponse {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, "no-store".to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, PAGE.replace(NONCE, &nonce))
}
