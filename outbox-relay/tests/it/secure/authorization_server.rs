//! An OAuth 2.0 authorization server: the client credentials grant over TLS, with signed tokens that brokers verify.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, anyhow};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::post,
    serve::Listener,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL},
};
use devstack::Issued;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use super::broker::USER;

/// What the tokens are for: `sasl.oauthbearer.expected.audience`.
pub(crate) const AUDIENCE: &str = "kafka";
/// A client id and a secret that are only correct if they are encoded before they are joined with a colon.
pub(crate) const CLIENT_ID: &str = "relay:1";
pub(crate) const CLIENT_SECRET: &str = "ü+%: secret-51c9";
/// The lifetime of tokens with the scope `short`.
pub(crate) const SHORT_LIFETIME_S: i64 = 5;

/// A running server.
pub(crate) struct AuthorizationServer {
    /// The token endpoint.
    pub(crate) url: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    signer: Signer,
    issued: AtomicUsize,
    issued_short: AtomicUsize,
}

impl AuthorizationServer {
    /// Starts a server with this certificate.
    pub(crate) async fn start(issued: &Issued, signer: Signer) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://localhost:{}/token", listener.local_addr()?.port());
        let shared = Arc::new(Shared {
            signer,
            issued: AtomicUsize::new(0),
            issued_short: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/token", post(issue))
            .with_state(Arc::clone(&shared));
        let listener = TlsListener {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        };
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            url,
            shared,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Returns a token that expired this long ago.
    pub(crate) fn expired_token(&self, seconds: i64) -> String {
        self.shared.signer.sign(AUDIENCE, -seconds)
    }

    /// The number of tokens issued so far.
    pub(crate) fn issued_tokens(&self) -> usize {
        self.shared.issued.load(Ordering::Relaxed)
    }

    /// The number of tokens issued so far with the scope `short`.
    pub(crate) fn issued_short_tokens(&self) -> usize {
        self.shared.issued_short.load(Ordering::Relaxed)
    }
}

/// Responds to a request: RFC 6749, sections 4.4.2, 5.1 and 5.2.
async fn issue(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, Json<Value>) {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let login = format!("{}:{}", encode(CLIENT_ID), encode(CLIENT_SECRET));
    let login = format!("Basic {}", BASE64.encode(login));
    let given = headers.get(AUTHORIZATION).and_then(|it| it.to_str().ok());
    if given != Some(&login) {
        let error = json!({"error": "invalid_client", "error_description": "unknown client"});
        return (StatusCode::UNAUTHORIZED, Json(error));
    }
    let form: HashMap<_, _> = form_urlencoded::parse(body.as_bytes()).collect();
    let field = |name: &str| form.get(name).map(AsRef::as_ref);
    if field("grant_type") != Some("client_credentials") {
        let error = json!({"error": "unsupported_grant_type"});
        return (StatusCode::BAD_REQUEST, Json(error));
    }
    let (audience, lifetime_s) = match field("scope") {
        None => (AUDIENCE, 3_600),
        Some("short") => {
            shared.issued_short.fetch_add(1, Ordering::Relaxed);
            (AUDIENCE, SHORT_LIFETIME_S)
        }
        Some("other-audience") => ("another service", 3_600),
        Some(_) => {
            let error = json!({"error": "invalid_scope"});
            return (StatusCode::BAD_REQUEST, Json(error));
        }
    };
    shared.issued.fetch_add(1, Ordering::Relaxed);
    let token = shared.signer.sign(audience, lifetime_s);
    let success = json!({"access_token": token, "token_type": "Bearer", "expires_in": lifetime_s});
    (StatusCode::OK, Json(success))
}

/// Signs tokens (RFC 7515) with ES256.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

const KEY_ID: &str = "test-key";

impl Signer {
    pub(crate) fn new() -> Result<Self> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random)
            .map_err(|_| anyhow!("failed to generate a key"))?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random)
            .map_err(|err| anyhow!("{err}"))?;
        Ok(Self { key, random })
    }

    /// Returns the public key as a JSON Web Key Set (RFC 7517).
    pub(crate) fn key_set(&self) -> Value {
        // An uncompressed point: the byte 4 and two coordinates.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (BASE64_URL.encode(x), BASE64_URL.encode(y));
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID, "x": x, "y": y,
        }]})
    }

    fn sign(&self, audience: &str, lifetime_s: i64) -> String {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": KEY_ID});
        let message = encode_parts(&header, &claims(audience, lifetime_s));
        let signature = self.key.sign(&self.random, message.as_bytes());
        let signature = signature.expect("a key that can sign");
        format!("{message}.{}", BASE64_URL.encode(signature))
    }
}

/// Returns a token without a signature, which only brokers without a key accept.
pub(crate) fn unsigned_token(lifetime_s: i64) -> String {
    let message = encode_parts(&json!({"alg": "none"}), &claims(AUDIENCE, lifetime_s));
    format!("{message}.")
}

fn claims(audience: &str, lifetime_s: i64) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("a clock after 1970").as_secs().cast_signed();
    json!({"sub": USER, "aud": audience, "iat": now, "exp": now + lifetime_s})
}

fn encode_parts(header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| BASE64_URL.encode(part.to_string());
    format!("{}.{}", encode(header), encode(claims))
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, addr) = Listener::accept(&mut self.listener).await;
            // A client that does not trust the certificate fails the handshake.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, addr);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
