//! A broker with listeners of every security protocol, and ACLs.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Result, anyhow};
use devstack::{Authority, Kafka, WorkDir, free_port};
use outbox_relay::{
    Identity, TlsFiles,
    config::{ClientCredentials, Extensions, KafkaSecurity, PasswordMechanism, Sasl, TokenSource},
};

use super::authorization_server::{
    AUDIENCE, AuthorizationServer, CLIENT_ID, CLIENT_SECRET, Signer,
};
use crate::acl::{self, Allowed};

/// Has all permissions of a relay; also the name in the client certificate.
pub(crate) const USER: &str = "relay";
/// Has no permissions until a test grants them.
pub(crate) const NEWCOMER: &str = "newcomer";
/// The SCRAM password. SASLprep would change it, but Kafka's clients do not apply SASLprep.
pub(crate) const PASSWORD: &str = "correct-horse-\u{2168}\u{ad}9d1f";
/// The PLAIN password, which the broker stores separately.
pub(crate) const PLAIN_PASSWORD: &str = "battery-staple-77aa";
/// The lifetime of a SASL session on [`Ports::short_session`]. Brokers reject a re-authentication, which librdkafka does,
/// within a second of the last one.
pub(crate) const SHORT_SESSION_MS: u32 = 4_000;

/// A broker and its certificates.
pub(crate) struct SecureBroker {
    pub(crate) work_dir: Arc<WorkDir>,
    pub(crate) kafka: Kafka,
    pub(crate) ports: Ports,
    pub(crate) ca: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) authority: Authority,
    pub(crate) authorization_server: AuthorizationServer,
}

/// The addresses of the listeners, `host:port`.
pub(crate) struct Ports {
    /// TLS with SASL.
    pub(crate) sasl: String,
    /// TLS with SASL, where sessions expire after [`SHORT_SESSION_MS`].
    pub(crate) short_session: String,
    /// TLS with SASL, for tokens that the authorization server has signed.
    pub(crate) token: String,
    /// TLS with a client certificate.
    pub(crate) certificate: String,
    /// TLS with a server certificate for another name.
    pub(crate) misnamed: String,
    /// TLS with an expired server certificate.
    pub(crate) expired: String,
}

impl SecureBroker {
    /// Returns the broker for all tests that do not change its certificates. It runs as long as this process.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<SecureBroker> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (sender, receiver) = std::sync::mpsc::channel();
            // On a separate thread: the runtime of a test ends with the test.
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let Ok(runtime) = runtime else { return };
                runtime.block_on(async {
                    let _ = sender.send(Self::start().await);
                    std::future::pending::<()>().await;
                });
            });
            match receiver.recv().map_err(|err| anyhow!(err)).flatten() {
                Ok(broker) => broker,
                Err(err) => panic!("failed to start the secure broker: {err:#}"),
            }
        })
    }

    pub(crate) async fn start() -> Result<Self> {
        let work_dir = Arc::new(WorkDir::new()?);
        let authority = Authority::new("test CA")?;
        let ca = work_dir.write("ca.crt", &authority.pem)?;
        let address = || anyhow::Ok(format!("localhost:{}", free_port()?));
        let ports = Ports {
            sasl: address()?,
            short_session: address()?,
            token: address()?,
            certificate: address()?,
            misnamed: address()?,
            expired: address()?,
        };
        let truststore = ca.display();
        let mut settings = vec![
            listeners(&ports),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".into(),
            // Clients of the plaintext listener are administrators.
            "super.users=User:ANONYMOUS".into(),
            format!("ssl.truststore.type=PEM\nssl.truststore.location={truststore}"),
        ];
        for (listener, issued) in [
            ("sasl", authority.issue("localhost")?),
            ("short", authority.issue("localhost")?),
            ("token", authority.issue("localhost")?),
            ("certificate", authority.issue("localhost")?),
            ("misnamed", authority.issue("kafka.example")?),
            ("expired", authority.issue_expired("localhost")?),
        ] {
            let keystore = issued.write_combined(&work_dir, listener)?;
            let keystore = keystore.display();
            settings.push(format!(
                "listener.name.{listener}.ssl.keystore.type=PEM\n\
                 listener.name.{listener}.ssl.keystore.location={keystore}"
            ));
        }
        settings.push("listener.name.certificate.ssl.client.auth=required".into());
        settings.extend(["sasl", "short"].map(sasl_settings));
        settings.push(format!(
            "listener.name.short.connections.max.reauth.ms={SHORT_SESSION_MS}"
        ));
        let signer = Signer::new()?;
        let key_set = work_dir.write("key-set.json", &signer.key_set().to_string())?;
        let key_set = format!("file://{}", key_set.display());
        settings.push(token_settings(&key_set));
        let server = authority.issue("localhost")?;
        let authorization_server = AuthorizationServer::start(&server, signer).await?;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let users = [USER, NEWCOMER].map(|user| {
            ["SCRAM-SHA-256", "SCRAM-SHA-512"]
                .map(|mechanism| format!("{mechanism}=[name={user},password={PASSWORD}]"))
        });
        let users: Vec<&str> = users.iter().flatten().map(String::as_str).collect();
        let allow_url = format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={key_set}");
        let kafka = Kafka::start_with_users(&work_dir, &[&allow_url], &settings, &users).await?;
        let identity = authority.issue(USER)?.write(&work_dir, "client")?;
        for principal in [format!("User:{USER}"), format!("User:CN={USER}")] {
            let allowed = [Allowed::topic("*"), Allowed::transactional_id("*")];
            acl::allow(kafka.brokers(), &principal, &allowed).await?;
        }
        Ok(Self {
            work_dir,
            kafka,
            ports,
            ca,
            identity,
            authority,
            authorization_server,
        })
    }

    /// Client settings for TLS and SCRAM.
    pub(crate) fn scram(&self) -> KafkaSecurity {
        self.sasl(PasswordMechanism::ScramSha512, PASSWORD)
    }

    pub(crate) fn sasl(&self, mechanism: PasswordMechanism, password: &str) -> KafkaSecurity {
        self.with_sasl(Sasl::Password {
            mechanism,
            username: USER.into(),
            password: password.into(),
        })
    }

    /// Client settings for TLS and OAUTHBEARER.
    pub(crate) fn tokens(&self, tokens: TokenSource) -> KafkaSecurity {
        self.with_sasl(Sasl::OAuthBearer {
            tokens,
            extensions: Extensions::default(),
        })
    }

    pub(crate) fn with_sasl(&self, sasl: Sasl) -> KafkaSecurity {
        KafkaSecurity {
            tls: self.tls().tls,
            sasl: Some(sasl),
        }
    }

    /// The client credentials that the authorization server accepts.
    pub(crate) fn client_credentials(&self) -> ClientCredentials {
        ClientCredentials {
            client_id: CLIENT_ID.into(),
            client_secret: CLIENT_SECRET.into(),
            scope: None,
            ca: Some(self.ca.clone()),
        }
    }

    /// Client settings for TLS only.
    pub(crate) fn tls(&self) -> KafkaSecurity {
        let files = TlsFiles {
            ca: Some(self.ca.clone()),
            identity: None,
        };
        KafkaSecurity {
            tls: Some(files),
            sasl: None,
        }
    }

    /// Client settings for TLS with a client certificate.
    pub(crate) fn certificate(&self) -> KafkaSecurity {
        let files = TlsFiles {
            ca: Some(self.ca.clone()),
            identity: Some(self.identity.clone()),
        };
        KafkaSecurity {
            tls: Some(files),
            sasl: None,
        }
    }
}

fn listeners(ports: &Ports) -> String {
    let secure = [
        ("SASL", &ports.sasl, "SASL_SSL"),
        ("SHORT", &ports.short_session, "SASL_SSL"),
        ("TOKEN", &ports.token, "SASL_SSL"),
        ("CERTIFICATE", &ports.certificate, "SSL"),
        ("MISNAMED", &ports.misnamed, "SSL"),
        ("EXPIRED", &ports.expired, "SSL"),
    ];
    let plain = "PLAINTEXT://127.0.0.1:@PORT@";
    let addresses = secure.map(|(name, address, _)| format!("{name}://{address}"));
    let addresses = addresses.join(",");
    let protocols = secure.map(|(name, _, protocol)| format!("{name}:{protocol}"));
    let protocols = protocols.join(",");
    format!(
        "listeners={plain},CONTROLLER://127.0.0.1:@CONTROLLER_PORT@,{addresses}\n\
         advertised.listeners={plain},{addresses}\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,{protocols}"
    )
}

/// Enables SASL on a listener.
fn sasl_settings(listener: &str) -> String {
    let modules = "org.apache.kafka.common.security";
    let scram = format!("{modules}.scram.ScramLoginModule required;");
    format!(
        "listener.name.{listener}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
         listener.name.{listener}.scram-sha-256.sasl.jaas.config={scram}\n\
         listener.name.{listener}.scram-sha-512.sasl.jaas.config={scram}\n\
         listener.name.{listener}.oauthbearer.sasl.jaas.config={modules}.oauthbearer.OAuthBearerLoginModule required;\n\
         listener.name.{listener}.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required \
         user_{USER}=\"{PLAIN_PASSWORD}\";"
    )
}

/// Verifies tokens with the authorization server's key.
fn token_settings(key_set: &str) -> String {
    let package = "org.apache.kafka.common.security.oauthbearer";
    let listener = "listener.name.token.oauthbearer.sasl";
    format!(
        "listener.name.token.sasl.enabled.mechanisms=OAUTHBEARER\n\
         {listener}.jaas.config={package}.OAuthBearerLoginModule required;\n\
         {listener}.server.callback.handler.class={package}.OAuthBearerValidatorCallbackHandler\n\
         sasl.oauthbearer.jwks.endpoint.url={key_set}\n\
         sasl.oauthbearer.expected.audience={AUDIENCE}"
    )
}
