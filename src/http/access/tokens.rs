//! The bearer tokens that a listener accepts.
//!
//! Several at a time, so that a token can be replaced without a moment in which neither the old nor the
//! new one works.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

/// Characters of a token at least. Nothing limits how often a client may try, so a token must not be
/// one that can be guessed.
const MIN_LENGTH: usize = 16;

/// The digests of the tokens.
#[derive(Debug)]
pub(super) struct Tokens(Vec<[u8; 32]>);

impl Tokens {
    /// Reads tokens, one a line. Messages name the line, not its content.
    pub(super) fn parse(paths: &[PathBuf], contents: &[Vec<u8>]) -> anyhow::Result<Self> {
        let ([path], [content]) = (paths, contents) else {
            anyhow::bail!("tokens need a file");
        };
        let shown = path.display();
        let text = std::str::from_utf8(content).ok();
        let text = text.with_context(|| format!("{shown} is not a text file"))?;
        let mut digests = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let token = line.trim();
            if token.is_empty() {
                continue;
            }
            ensure!(
                token.bytes().all(|byte| byte.is_ascii_graphic()),
                "line {} of {shown} is not a token: use visible ASCII characters without spaces",
                number + 1
            );
            ensure!(
                token.len() >= MIN_LENGTH,
                "the token in line {} of {shown} has less than {MIN_LENGTH} characters: create one \
                 with `openssl rand -hex 32`",
                number + 1
            );
            digests.push(Sha256::digest(token).into());
        }
        ensure!(!digests.is_empty(), "{shown} contains no token");
        Ok(Self(digests))
    }

    /// Whether a token is one of these. The time depends neither on the token nor on which one it
    /// equals.
    pub(super) fn accept(&self, token: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found = Choice::from(0);
        for known in &self.0 {
            found |= known.ct_eq(&digest);
        }
        found.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "ABCDEFGHIJKLMNOPQRST";

    fn parse(text: &str) -> anyhow::Result<Tokens> {
        Tokens::parse(&["/tokens".into()], &[text.as_bytes().to_vec()])
    }

    #[test]
    fn each_line_is_a_token() {
        let tokens = parse(&format!("{ONE}\r\n\n  {TWO}  \n")).expect("two tokens");
        assert!(tokens.accept(ONE.as_bytes()) && tokens.accept(TWO.as_bytes()));
        for wrong in ["", &ONE[1..], &ONE.to_uppercase(), &format!("{ONE}\n{TWO}")] {
            assert!(!tokens.accept(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn a_file_without_a_usable_token_is_refused_without_its_content() {
        for (text, problem) in [
            ("", "/tokens contains no token"),
            ("\n \n", "/tokens contains no token"),
            (
                &format!("{ONE}\nshort-secret"),
                "line 2 of /tokens has less than 16",
            ),
            ("two words, one secret", "line 1 of /tokens is not a token"),
            ("sécret-sécret-sécret", "line 1 of /tokens is not a token"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(problem), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
