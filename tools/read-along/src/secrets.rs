//! What must not be seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{LazyLock, Mutex},
};

/// More would only cost memory.
const MAX_SECRETS: usize = 200_000;

/// Shorter ones are found by accident: a port, a word, a name of a node.
const MIN_CHARS: usize = 6;

/// Longer ones are compared by their beginning.
const MAX_BYTES: usize = 40;

static SECRETS: LazyLock<Mutex<Secrets>> = LazyLock::new(Mutex::default);

/// By their lengths in bytes, so that a text is searched in time that does not depend on how many there are.
#[derive(Default)]
struct Secrets {
    by_length: BTreeMap<usize, BTreeSet<String>>,
    count: usize,
}

impl Secrets {
    fn learn(&mut self, secret: &str) {
        let end = (0..=MAX_BYTES).rev().find(|at| secret.is_char_boundary(*at)).unwrap_or(0);
        let secret = &secret[..end];
        // A word of a sentence, or a number, may stand in a log for another reason.
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

/// A secret: each of its lines. Those that frame a PEM block say nothing.
pub fn is_secret(text: &str) {
    let mut secrets = SECRETS.lock().unwrap();
    text.lines().filter(|line| !line.starts_with("-----")).for_each(|line| secrets.learn(line));
}

/// What of the secrets a text shows.
pub(crate) fn shown_by(text: &str) -> Option<&str> {
    SECRETS.lock().unwrap().first_in(text)
}

#[cfg(test)]
mod tests {
    use super::{Secrets, is_secret, shown_by};

    #[test]
    fn words_and_numbers_alone_are_none() {
        let mut secrets = Secrets::default();
        for text in ["", "k-1", "serving", "1234567", "127.0.0.1:7946", "é", "-----"] {
            secrets.learn(text);
        }
        assert_eq!(secrets.count, 0);
    }

    #[test]
    fn they_are_found_wherever_they_stand_and_however_long_they_are() {
        let long = format!("é{}", "1x".repeat(100));
        is_secret(&format!("-----BEGIN KEY-----\nMC4CAQAw\n-----END KEY-----\nkey of 7\n{long}"));
        for text in ["error=\"MC4CAQAw\"", "get(key of 7)", &format!("value={long}")] {
            assert!(shown_by(text).is_some(), "{text}");
        }
        assert_eq!(shown_by("a key of 8 -----BEGIN KEY----- 1x1x1x"), None);
    }
}
