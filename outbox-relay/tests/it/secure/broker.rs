//! A broker with ports of every kind, which allows nobody what its ACLs don't.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Result, anyhow};
use devstack::{Home, Kafka, free_port};
use outbox_relay::{
    Identity, TlsFiles,
    config::{KafkaSecurity, Mechanism, Sasl},
};

use super::certificates::Authority;
use crate::acl::{self, Allowed};

/// Who may do what a relay needs; also by the certificate of this name.
pub(crate) const USER: &str = "relay";
/// Who may do nothing until a test allows it.
pub(crate) const NEWCOMER: &str = "newcomer";
/// The passwords; that of PLAIN is another one, because a broker keeps it elsewhere. SASLprep would change that of
/// SCRAM; Kafka's own clients hash it as it is.
pub(crate) const PASSWORD: &str = "correct-horse-\u{2168}\u{ad}9d1f";
pub(crate) const PLAIN_PASSWORD: &str = "battery-staple-77aa";
/// How long a login on the port [`Ports::brief`] holds. Brokers reject a second one on a connection, as
/// librdkafka asks for, within a second of the first.
pub(crate) const BRIEF_LOGIN_MS: u32 = 4_000;

/// A broker and what it takes to reach it.
pub(crate) struct SecureBroker {
    pub(crate) home: Arc<Home>,
    pub(crate) kafka: Kafka,
    pub(crate) ports: Ports,
    pub(crate) ca: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) authority: Authority,
}

/// Where it listens beside its plain port, each `host:port`.
pub(crate) struct Ports {
    /// By TLS, with a login.
    pub(crate) login: String,
    /// The same, and a login does not hold for long.
    pub(crate) brief: String,
    /// By TLS, with a client's certificate.
    pub(crate) certificate: String,
    /// By TLS, with a certificate for another name.
    pub(crate) misnamed: String,
    /// By TLS, with a certificate that has run out.
    pub(crate) expired: String,
}

impl SecureBroker {
    /// One for all tests that leave its certificates as they are. It lives as long as this process.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<SecureBroker> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (sender, receiver) = std::sync::mpsc::channel();
            // On a thread of its own, because every test has a runtime that ends with it.
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
                Err(err) => panic!("no broker to test with: {err:#}"),
            }
        })
    }

    /// Starts one.
    pub(crate) async fn start() -> Result<Self> {
        let home = Arc::new(Home::new()?);
        let authority = Authority::new("the authority")?;
        let ca = home.write("ca.crt", &authority.pem)?;
        let address = || anyhow::Ok(format!("localhost:{}", free_port()?));
        let ports = Ports {
            login: address()?,
            brief: address()?,
            certificate: address()?,
            misnamed: address()?,
            expired: address()?,
        };
        let truststore = ca.display();
        let mut settings = vec![
            listeners(&ports),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".into(),
            // Whoever comes by the plain port; here that is the administrator.
            "super.users=User:ANONYMOUS".into(),
            format!("ssl.truststore.type=PEM\nssl.truststore.location={truststore}"),
        ];
        for (listener, issued) in [
            ("login", authority.issue("localhost")?),
            ("brief", authority.issue("localhost")?),
            ("certificate", authority.issue("localhost")?),
            ("misnamed", authority.issue("kafka.example")?),
            ("expired", authority.issue_expired("localhost")?),
        ] {
            let keystore = issued.write_together(&home, listener)?;
            let keystore = keystore.display();
            settings.push(format!(
                "listener.name.{listener}.ssl.keystore.type=PEM\n\
                 listener.name.{listener}.ssl.keystore.location={keystore}"
            ));
        }
        settings.push("listener.name.certificate.ssl.client.auth=required".into());
        settings.extend(["login", "brief"].map(logins));
        settings.push(format!(
            "listener.name.brief.connections.max.reauth.ms={BRIEF_LOGIN_MS}"
        ));
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let users = [USER, NEWCOMER].map(|user| {
            ["SCRAM-SHA-256", "SCRAM-SHA-512"]
                .map(|mechanism| format!("{mechanism}=[name={user},password={PASSWORD}]"))
        });
        let users: Vec<&str> = users.iter().flatten().map(String::as_str).collect();
        let kafka = Kafka::start_with_users(&home, &settings, &users).await?;
        let identity = authority.issue(USER)?.write(&home, "client")?;
        for principal in [format!("User:{USER}"), format!("User:CN={USER}")] {
            let allowed = [Allowed::topic("*"), Allowed::transactional_id("*")];
            acl::allow(kafka.brokers(), &principal, &allowed).await?;
        }
        Ok(Self {
            home,
            kafka,
            ports,
            ca,
            identity,
            authority,
        })
    }

    /// TLS with this broker's authority, and a login by SCRAM.
    pub(crate) fn login(&self) -> KafkaSecurity {
        self.login_by(Mechanism::ScramSha512, PASSWORD)
    }

    pub(crate) fn login_by(&self, mechanism: Mechanism, password: &str) -> KafkaSecurity {
        KafkaSecurity {
            tls: self.tls().tls,
            sasl: Some(Sasl {
                mechanism,
                username: USER.into(),
                password: password.into(),
            }),
        }
    }

    /// TLS with this broker's authority alone.
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

    /// TLS with a certificate of our own.
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
        ("LOGIN", &ports.login, "SASL_SSL"),
        ("BRIEF", &ports.brief, "SASL_SSL"),
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

/// Lets users log in at a listener.
fn logins(listener: &str) -> String {
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
