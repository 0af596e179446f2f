//! Subjects for the messages of one cluster of one application.

use crate::error::NatsError;

/// Subjects of one cluster: `subject.application.cluster` and, below it, one for each kind of message.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    pub(crate) heartbeat: String,
    pub(crate) goodbye: String,
    pub(crate) query: String,
    /// Subject that matches the three above.
    pub(crate) all: String,
    /// Subject for answers to this node's questions. The name is random, so that no other node subscribes to it.
    pub(crate) answers: String,
    /// Beginning of all subjects for answers.
    answers_prefix: String,
    /// Inbox of libraries for answers to requests, within the permission that the nodes have anyway.
    pub(crate) inbox: String,
}

impl Subjects {
    pub(crate) fn new(subject: &str, application: &str, cluster: &str, nonce: &str) -> Self {
        let root = format!("{subject}.{}.{}", token(application), token(cluster));
        Self {
            heartbeat: format!("{root}.hb"),
            goodbye: format!("{root}.bye"),
            query: format!("{root}.q"),
            all: format!("{root}.*"),
            answers: format!("{root}.to.{nonce}"),
            answers_prefix: format!("{root}.to."),
            inbox: format!("{root}.inbox"),
        }
    }

    /// Returns whether `subject` is one for answers in this cluster. Otherwise a message could make this node publish
    /// anywhere.
    pub(crate) fn is_answer(&self, subject: &str) -> bool {
        let name = subject.strip_prefix(&self.answers_prefix);
        name.is_some_and(|name| !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric()))
    }
}

/// Returns the subject that an account must be allowed to use.
pub(crate) fn permission(subject: &str, application: &str) -> String {
    format!("{subject}.{}.>", token(application))
}

/// Returns a name as one token of a subject and of a bucket's key. Letters, digits, `-` and `_` stay as they are, and
/// any other byte becomes `=` and two hexadecimal digits. Therefore `*`, `>`, dots and other letters are safe, and no
/// two names have the same token.
pub(crate) fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("={byte:02x}"));
        }
    }
    token
}

/// Returns the name that a token stands for.
#[cfg(feature = "kv")]
pub(crate) fn untoken(token: &str) -> Option<String> {
    let mut name = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'=' {
            name.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        name.push(digit(bytes.next())? * 16 + digit(bytes.next())?);
    }
    String::from_utf8(name).ok()
}

/// Checks a subject that a user has chosen.
pub(crate) fn check(subject: &str) -> Result<(), NatsError> {
    let is_token = |token: &str| {
        !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'*' | b'>')) && token != "$SYS"
    };
    if subject.len() > 128 || !subject.split('.').all(is_token) {
        return Err(NatsError::new(format!(
            "{subject:?} is not a valid subject; write names separated by dots, without wildcards and white space, such as groupcache-gossip"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_one_token_and_stays_distinct() {
        assert_eq!(token("users-2_b"), "users-2_b");
        assert_eq!(token("a.b*>c ä="), "a=2eb=2a=3ec=20=c3=a4=3d");
        assert_ne!(token("a=2e"), token("a."));
        let subjects = Subjects::new("gossip", "users", "eu.west", "n0");
        assert_eq!(subjects.heartbeat, "gossip.users.eu=2ewest.hb");
        assert_eq!(permission("gossip", "users"), "gossip.users.>");
    }

    #[cfg(feature = "kv")]
    #[test]
    fn token_decodes_to_its_name() {
        for name in ["users-2_b", "a.b*>c ä=", "10.0.0.7:7946"] {
            assert_eq!(untoken(&token(name)).as_deref(), Some(name));
        }
        assert_eq!((untoken("a=2"), untoken("a=zz"), untoken("=ff")), (None, None, None));
    }

    #[test]
    fn answer_outside_the_cluster_subject_is_refused() {
        let subjects = Subjects::new("gossip", "users", "default", "n0");
        assert!(subjects.is_answer(&subjects.answers));
        assert!(subjects.is_answer("gossip.users.default.to.abc123"));
        for elsewhere in
            ["orders.cancel", "gossip.users.default.hb", "gossip.users.default.to.", "gossip.users.default.to.a.b"]
        {
            assert!(!subjects.is_answer(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn invalid_subject_is_refused() {
        assert!(check("groupcache-gossip").is_ok());
        assert!(check("team.caches").is_ok());
        for bad in ["", "a..b", "a.", "a.*", ">", "two words", &"x".repeat(200)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
