//! `/`: one page for people, which shows what `/status` says.

use axum::{
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    response::IntoResponse,
};

/// Style and script are in it; there is nothing to build.
const PAGE: &str = include_str!("page.html");
/// Stands where the page's own style and script say that they are.
const NONCE: &str = "{nonce}";

/// Nothing from elsewhere, nobody else's script, in nobody's frame: what a source's error says can't
/// become a part of the page.
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
