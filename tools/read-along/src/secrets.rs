//! Secrets: the texts that no log line may show.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{LazyLock, Mutex},
};

/// Maximum number of secrets; further ones would only cost memory.
const MAX_SECRETS: usize = 200_000;

/// Minimum length of a secret. Shorter texts appear by accident, for example as a port, a word or the name of a node.
const MIN_CHARS: usize = 6;

/// Maximum length of a stored secret. Longer secrets are compared by their beginning.
const MAX_BYTES: usize = 40;

static SECRETS: LazyLock<Mutex<Secrets>> = LazyLock::new(Mutex::default);

/// Secrets by length in bytes, so that the time of a search does not depend on their number.
#[derive(Default)]
struct Secrets {
    by_length: BTreeMap<usize, BTreeSet<String>>,
    count: usize,
}

impl Secrets {
    fn learn(&mut self, secret: &str) {
        let end = (0..=MAX_BYTES).rev().find(|at| secret.is_char_boundary(*at)).unwrap_or(0);
        let secret = &secret[..end];
        // Words and numbers alone may stand in a log for another reason.
        let is_telling = secret.contains(char::is_alphabetic) && secret.contains(|c: char| !c.is_alphabetic());
        if secret.chars().count() < MIN_CHARS || !is_telling || self.count == MAX_SECRETS {
            return;
        }
        if self.by_length.entry(secret.len()).or_default().insert(secret.to_owned()) {
            self.count += 1;
        }
    }

    fn first_in<'a>(&self, text: &'a str) -> Option<&'a str> {
        let starts = text.char_indices().map(|(at, _)| at);
        starts.into_iter().find_map(|start| {
            let mut lengths = self.by_length.iter();
            lengths.find_map(|(length, secrets)| text.get(start..start + length).filter(|part| secrets.contains(*part)))
        })
    }
}

/// Adds each line of a text to the secrets, except the framing lines of a PEM block. Lines shorter than 6 characters
/// and plain words or numbers are ignored.
pub fn is_secret(text: &str) {
    let mut secrets = SECRETS.lock().unwrap();
    text.lines().filter(|line| !line.starts_with("-----")).for_each(|line| secrets.learn(line));
}

/// Returns the first secret in a text.
pub(crate) fn shown_by(text: &str) -> Option<&str> {
    SECRETS.lock().unwrap().first_in(text)
}

#[cfg(test)]
mod tests {
    use super::{Secrets, is_secret, shown_by};

    #[test]
    fn words_and_numbers_are_not_secrets() {
        let mut secrets = Secrets::default();
        for text in ["", "k-1", "serving", "1234567", "127.0.0.1:7946", "é", "-----"] {
            secrets.learn(text);
        }
        assert_eq!(secrets.count, 0);
    }

    #[test]
    fn secrets_are_found_at_any_place_and_length() {
        let long = format!("é{}", "1x".repeat(100));
        is_secret(&format!("-----BEGIN KEY-----\nMC4CAQAw\n-----END KEY-----\nkey of 7\n{long}"));
        for text in ["error=\"MC4CAQAw\"", "get(key of 7)", &format!("value={long}")] {
            assert!(shown_by(text).is_some(), "{text}");
        }
        assert_eq!(shown_by("a key of 8 -----BEGIN KEY----- 1x1x1x"), None);
    }
}
