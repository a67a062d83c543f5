//! The client side of SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677). Both sides prove that they know the
//! password without sending it.
//!
//! Only the message exchange is implemented here: `docs/adr/0017-own-code-and-libraries.md`.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{
    EagerHash, Hmac, KeyInit as _, Mac as _,
    digest::{Digest, Output},
};
use pbkdf2::pbkdf2_hmac;
use sha2::{Sha256, Sha512};

use crate::PasswordMechanism;

/// No channel binding: Kafka does not support it.
const GS2_HEADER: &str = "n,,";
/// [`GS2_HEADER`] in Base64.
const CHANNEL_BINDING: &str = "biws";
/// The minimum that RFC 7677 recommends. Fewer iterations make offline guessing of the password cheaper.
const MIN_ITERATIONS: u32 = 4_096;
/// Limits the CPU time that a server can make the client spend.
const MAX_ITERATIONS: u32 = 1_000_000;

/// An exchange in progress.
pub(crate) struct Scram {
    mechanism: PasswordMechanism,
    nonce: String,
    first_bare: String,
}

/// The client-final-message, and the expected server-final-message.
pub(crate) struct ClientFinal {
    pub(crate) message: String,
    server_final: String,
}

impl Scram {
    pub(crate) fn new(mechanism: PasswordMechanism, username: &str) -> Self {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        Self::with_nonce(mechanism, username, nonce)
    }

    fn with_nonce(mechanism: PasswordMechanism, username: &str, nonce: String) -> Self {
        let username = username.replace('=', "=3D").replace(',', "=2C");
        Self {
            mechanism,
            first_bare: format!("n={username},r={nonce}"),
            nonce,
        }
    }

    /// Returns the client-first-message.
    pub(crate) fn client_first(&self) -> String {
        format!("{GS2_HEADER}{}", self.first_bare)
    }

    /// Returns the reply to the server-first-message.
    ///
    /// # Errors
    /// If the server's message is invalid.
    pub(crate) fn client_final(
        &self,
        password: &str,
        server_first: &str,
    ) -> Result<ClientFinal, &'static str> {
        let mut parts = server_first.split(',');
        let mut part = |name| parts.next().and_then(|part| part.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) = (part("r="), part("s="), part("i="))
        else {
            return Err("the server's message is not a SCRAM message");
        };
        if !nonce.starts_with(&self.nonce) {
            return Err("the server's nonce does not match");
        }
        let salt = BASE64
            .decode(salt)
            .map_err(|_| "the server's salt is not valid Base64")?;
        let iterations = iterations.parse().unwrap_or(0);
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err("the server's iteration count is not between 4096 and 1000000");
        }
        let without_proof = format!("c={CHANNEL_BINDING},r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        let (proof, server) = match self.mechanism {
            PasswordMechanism::ScramSha512 => sign::<Sha512>(password, &salt, iterations, &signed),
            PasswordMechanism::ScramSha256 | PasswordMechanism::Plain => {
                sign::<Sha256>(password, &salt, iterations, &signed)
            }
        };
        Ok(ClientFinal {
            message: format!("{without_proof},p={proof}"),
            server_final: format!("v={server}"),
        })
    }
}

impl ClientFinal {
    /// Returns whether the server-final-message proves that the server knows the password.
    pub(crate) fn verify(&self, server_final: &str) -> bool {
        server_final.split(',').next() == Some(&self.server_final)
    }
}

/// Returns the ClientProof and the ServerSignature in Base64 (RFC 5802, section 3).
fn sign<D: Digest + EagerHash>(
    password: &str,
    salt: &[u8],
    iterations: u32,
    signed: &str,
) -> (String, String) {
    let mut salted = Output::<D>::default();
    // Deviates from the RFC: Kafka does not normalize passwords with SASLprep.
    pbkdf2_hmac::<D>(password.as_bytes(), salt, iterations, &mut salted);
    let client_key = hmac::<D>(&salted, b"Client Key");
    let stored_key = D::digest(&client_key);
    let mut proof = hmac::<D>(&stored_key, signed.as_bytes());
    for (byte, other) in proof.iter_mut().zip(client_key) {
        *byte ^= other;
    }
    let server_key = hmac::<D>(&salted, b"Server Key");
    let server_signature = hmac::<D>(&server_key, signed.as_bytes());
    (BASE64.encode(proof), BASE64.encode(server_signature))
}

fn hmac<D: EagerHash>(key: &[u8], text: &[u8]) -> Output<Hmac<D>> {
    // HMAC accepts keys of any length.
    #[expect(clippy::expect_used)]
    let mut mac = Hmac::<D>::new_from_slice(key).expect("HMAC accepts any key length");
    mac.update(text);
    mac.finalize().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn scram_sha_256_matches_the_example_of_the_rfc() {
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        let scram = Scram::with_nonce(PasswordMechanism::ScramSha256, "user", nonce);
        assert_eq!(scram.client_first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let client_final = scram.client_final("pencil", server_first).unwrap();
        assert_eq!(
            client_final.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(client_final.verify("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!client_final.verify("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }

    /// The RFCs have no example for SHA-512. The values come from Python's `hashlib` and `hmac`.
    #[test]
    fn scram_sha_512_matches_an_independent_implementation() {
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        let scram = Scram::with_nonce(PasswordMechanism::ScramSha512, "us=e,r", nonce);
        assert_eq!(
            scram.client_first(),
            "n,,n=us=3De=2Cr,r=rOprNGfwEbeRWgbNEkqO"
        );
        let server_first = "r=rOprNGfwEbeRWgbNEkqOserver,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=8192";
        let client_final = scram.client_final("pencil", server_first).unwrap();
        assert_eq!(
            client_final.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqOserver,\
             p=BwMhiRP9WA5xeqKFs3cISVhIAPTNunTSTd9tFrgDuihew4hiM5FC2GW9iI8t\
             bUU4Md65vV4rv0kl1HfQ2aroOw=="
        );
        assert!(client_final.verify(
            "v=If9t4g53Lcg+15arxeboxadHi7fBWprsFKliD7tHWbeAu590P5F83+Z0SpPt\
             mucPWKxjRk91yrmoVZM1WLKbcA=="
        ));
    }

    #[test]
    fn an_invalid_server_message_gets_no_proof() {
        let scram = Scram::with_nonce(PasswordMechanism::ScramSha256, "user", "abc".to_owned());
        for (server_first, reason) in [
            ("r=xyz,s=AAAA,i=4096", "nonce"),
            ("r=abcd,s=AAAA,i=1", "iteration count"),
            ("r=abcd,s=AAAA,i=4000000000", "iteration count"),
            ("r=abcd,s=?,i=4096", "Base64"),
            ("e=other-error", "not a SCRAM message"),
        ] {
            let rejected = scram.client_final("pencil", server_first).err();
            assert!(
                rejected.is_some_and(|found| found.contains(reason)),
                "{server_first}"
            );
        }
    }
}
