//! The client's part of SCRAM, of RFC 5802 and RFC 7677, with SHA-256 and with SHA-512. Neither
//! side shows the password to the other, and each proves that it knows it.
//!
//! Only the exchange is our own: `docs/adr/0017-own-code-and-libraries.md`.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{
    EagerHash, Hmac, KeyInit as _, Mac as _,
    digest::{Digest, Output},
};
use pbkdf2::pbkdf2_hmac;
use sha2::{Sha256, Sha512};

use crate::config::Mechanism;

/// No channel binding: Kafka has none.
const GS2_HEADER: &str = "n,,";
/// [`GS2_HEADER`] in Base64.
const CHANNEL_BINDING: &str = "biws";
/// Fewer make a password easy to guess for whoever has listened; the RFC asks for as many.
const MIN_ITERATIONS: u32 = 4_096;
/// More would keep us busy for as long as the other side likes.
const MAX_ITERATIONS: u32 = 1_000_000;

/// A login that has begun.
pub(super) struct Scram {
    mechanism: Mechanism,
    nonce: String,
    first_bare: String,
}

/// What comes next, and what the server has to answer.
pub(super) struct Proof {
    pub(super) message: String,
    server_final: String,
}

impl Scram {
    pub(super) fn begin(mechanism: Mechanism, username: &str) -> Self {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        Self::with_nonce(mechanism, username, nonce)
    }

    fn with_nonce(mechanism: Mechanism, username: &str, nonce: String) -> Self {
        let username = username.replace('=', "=3D").replace(',', "=2C");
        Self {
            mechanism,
            first_bare: format!("n={username},r={nonce}"),
            nonce,
        }
    }

    /// The first message.
    pub(super) fn message(&self) -> String {
        format!("{GS2_HEADER}{}", self.first_bare)
    }

    /// The answer to the server's first message; the error says what is wrong with that.
    pub(super) fn prove(&self, password: &str, server_first: &str) -> Result<Proof, &'static str> {
        let mut parts = server_first.split(',');
        let mut part = |name| parts.next().and_then(|part| part.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) = (part("r="), part("s="), part("i="))
        else {
            return Err("its message is none of SCRAM's");
        };
        if !nonce.starts_with(&self.nonce) {
            return Err("it answers somebody else");
        }
        let salt = BASE64
            .decode(salt)
            .map_err(|_| "its salt isn't in Base64")?;
        let iterations = iterations.parse().unwrap_or(0);
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err("its number of iterations isn't from 4096 to 1000000");
        }
        let without_proof = format!("c={CHANNEL_BINDING},r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        let (proof, server) = match self.mechanism {
            Mechanism::ScramSha512 => sign::<Sha512>(password, &salt, iterations, &signed),
            Mechanism::ScramSha256 | Mechanism::Plain => {
                sign::<Sha256>(password, &salt, iterations, &signed)
            }
        };
        Ok(Proof {
            message: format!("{without_proof},p={proof}"),
            server_final: format!("v={server}"),
        })
    }
}

impl Proof {
    /// Whether the server, by its last message, knows the password too.
    pub(super) fn is_answered_by(&self, server_final: &str) -> bool {
        server_final.split(',').next() == Some(&self.server_final)
    }
}

/// The client's proof and the server's signature, in Base64.
fn sign<D: Digest + EagerHash>(
    password: &str,
    salt: &[u8],
    iterations: u32,
    signed: &str,
) -> (String, String) {
    let mut salted = Output::<D>::default();
    // Not prepared by SASLprep, as the RFC asks: Kafka hashes the password as it is.
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
    // A key may have any length.
    #[expect(clippy::expect_used)]
    let mut mac = Hmac::<D>::new_from_slice(key).expect("any key will do");
    mac.update(text);
    mac.finalize().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn sha_256_is_as_in_the_rfc() {
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        let scram = Scram::with_nonce(Mechanism::ScramSha256, "user", nonce);
        assert_eq!(scram.message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let proof = scram.prove("pencil", server_first).unwrap();
        assert_eq!(
            proof.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(proof.is_answered_by("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!proof.is_answered_by("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }

    /// There is no such example for SHA-512: these values are Python's, of `hashlib` and `hmac`.
    #[test]
    fn sha_512_is_as_others_have_it() {
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        let scram = Scram::with_nonce(Mechanism::ScramSha512, "us=e,r", nonce);
        assert_eq!(scram.message(), "n,,n=us=3De=2Cr,r=rOprNGfwEbeRWgbNEkqO");
        let server_first = "r=rOprNGfwEbeRWgbNEkqOserver,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=8192";
        let proof = scram.prove("pencil", server_first).unwrap();
        assert_eq!(
            proof.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqOserver,\
             p=BwMhiRP9WA5xeqKFs3cISVhIAPTNunTSTd9tFrgDuihew4hiM5FC2GW9iI8t\
             bUU4Md65vV4rv0kl1HfQ2aroOw=="
        );
        assert!(proof.is_answered_by(
            "v=If9t4g53Lcg+15arxeboxadHi7fBWprsFKliD7tHWbeAu590P5F83+Z0SpPt\
             mucPWKxjRk91yrmoVZM1WLKbcA=="
        ));
    }

    #[test]
    fn a_server_that_cheats_gets_no_proof() {
        let scram = Scram::with_nonce(Mechanism::ScramSha256, "user", "abc".to_owned());
        for (server_first, reason) in [
            ("r=xyz,s=AAAA,i=4096", "somebody else"),
            ("r=abcd,s=AAAA,i=1", "iterations"),
            ("r=abcd,s=AAAA,i=4000000000", "iterations"),
            ("r=abcd,s=?,i=4096", "Base64"),
            ("e=other-error", "none of SCRAM's"),
        ] {
            let rejected = scram.prove("pencil", server_first).err();
            assert!(
                rejected.is_some_and(|found| found.contains(reason)),
                "{server_first}"
            );
        }
    }
}
