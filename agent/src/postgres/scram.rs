//! SCRAM-SHA-256 verifiers: what Postgres keeps in place of a password, made here so that no password is ever in a statement.

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use sha2::{Digest, Sha256};

/// A new verifier, with its own salt.
pub(crate) fn verifier(password: &[u8]) -> String {
    postgres_protocol::password::scram_sha_256(password)
}

/// Whether a verifier is of this password: it plays the server's part in a login with it, so salt, iterations and the preparation
/// of the password are as every client does them.
pub(crate) fn matches(verifier: &str, password: &[u8]) -> bool {
    login(verifier, password).unwrap_or(false)
}

fn login(verifier: &str, password: &[u8]) -> Option<bool> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (iterations, rest) = verifier.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
    let (salt, keys) = rest.split_once('$')?;
    let server_key = STANDARD.decode(keys.split_once(':')?.1).ok()?;
    let mut client = ScramSha256::new(password, ChannelBinding::unsupported());
    let first = std::str::from_utf8(client.message()).ok()?.strip_prefix("n,,")?.to_owned();
    let nonce = first.split_once("r=")?.1;
    let server_first = format!("r={nonce}server,s={salt},i={iterations}");
    client.update(server_first.as_bytes()).ok()?;
    let last = std::str::from_utf8(client.message()).ok()?;
    let without_proof = last.rsplit_once(",p=")?.0;
    let signature = hmac(&server_key, format!("{first},{server_first},{without_proof}").as_bytes());
    Some(client.finish(format!("v={}", STANDARD.encode(signature)).as_bytes()).is_ok())
}

/// HMAC-SHA-256 with a key of at most one block, as a server key is.
fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        for (slot, key) in block.iter_mut().zip(key) {
            *slot ^= key;
        }
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_is_of_its_password_alone() {
        for password in ["secret", "pass wörd ’\"\\", "\u{2168}", " ", "\u{00ad}x"] {
            let made = verifier(password.as_bytes());
            assert!(made.starts_with("SCRAM-SHA-256$4096:"), "{made}");
            assert!(matches(&made, password.as_bytes()), "{password}");
            assert!(!matches(&made, format!("{password}!").as_bytes()), "{password}");
        }
        let bytes = [0xff, 0xfe, b'x'];
        assert!(matches(&verifier(&bytes), &bytes), "not UTF-8");
    }

    #[test]
    fn what_is_no_verifier_matches_nothing() {
        for text in
            ["", "md5abc", "SCRAM-SHA-256$4096:c2FsdA==", "SCRAM-SHA-256$x:y$z:z", "SCRAM-SHA-256$1:$:"]
        {
            assert!(!matches(text, b"secret"), "{text}");
        }
    }

    #[test]
    fn hmac_is_rfc_4231s() {
        // Test case 2.
        let hex: String = hmac(b"Jefe", b"what do ya want for nothing?").map(|b| format!("{b:02x}")).concat();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
