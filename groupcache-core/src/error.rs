//! The one error of the crate: opaque, cheap to clone, asked by predicates.

use std::{error::Error as StdError, fmt, sync::Arc};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error, as loaders and codecs give it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What went wrong, shared by everyone who waited for the same thing.
///
/// Its text is one sentence that says what failed and what to do; the cause is in
/// [`source`](StdError::source). There is no public list of kinds: new ones appear, and what a caller does
/// depends on the question it asks, so there is one predicate for each question. Neither keys nor values
/// appear in the text or in `Debug`.
///
/// ```
/// # async fn f(users: groupcache_core::Group<String>) -> Result<Option<String>, groupcache_core::Error> {
/// match users.get("12345").await {
///     Ok(user) => Ok(Some(user)),
///     Err(e) if e.is_not_found() => Ok(None),
///     Err(e) => Err(e),
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: Kind,
    text: String,
    source: Option<BoxError>,
    /// Id of the peer that said so.
    peer: Option<Arc<str>>,
}

/// What callers can ask about; private, so that it can grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NotFound,
    LoadFailed { is_transient: bool },
    Timeout,
    Overloaded,
    TooLarge,
    BadKey,
    UnknownGroup,
    Unreachable,
    Unauthenticated,
    Closed,
    Config,
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, text: text.into(), source: None, peer: None }))
    }

    pub(crate) fn config(text: impl Into<String>) -> Self {
        Self::new(Kind::Config, text)
    }

    pub(crate) fn caused(kind: Kind, text: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self(Arc::new(Inner { kind, text: text.into(), source: Some(source.into()), peer: None }))
    }

    pub(crate) fn at_peer(kind: Kind, text: impl Into<String>, peer: &str) -> Self {
        Self(Arc::new(Inner { kind, text: text.into(), source: None, peer: Some(peer.into()) }))
    }

    pub(crate) fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The loader says that there is no such thing; not a failure.
    pub fn is_not_found(&self) -> bool {
        self.0.kind == Kind::NotFound
    }

    /// The loader failed, panicked, or asked for what it was loading itself. The cause is in `source()` on
    /// the node that loaded, and in the text elsewhere.
    pub fn is_load_failed(&self) -> bool {
        matches!(self.0.kind, Kind::LoadFailed { .. })
    }

    /// A later attempt may succeed: a time-out, an overload, an unreachable peer, or a loader that said so.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.kind,
            Kind::LoadFailed { is_transient: true } | Kind::Timeout | Kind::Overloaded | Kind::Unreachable
        )
    }

    /// A deadline passed: the caller's, or that of the load.
    pub fn is_timeout(&self) -> bool {
        self.0.kind == Kind::Timeout
    }

    /// A limit was reached, here or at the owner; asking again at once makes it worse.
    pub fn is_overloaded(&self) -> bool {
        self.0.kind == Kind::Overloaded
    }

    /// The value is larger than the owner takes.
    pub fn is_too_large(&self) -> bool {
        self.0.kind == Kind::TooLarge
    }

    /// The key is empty or longer than 1,024 bytes.
    pub fn is_bad_key(&self) -> bool {
        self.0.kind == Kind::BadKey
    }

    /// The group was removed from its node; the handle is of no use any more.
    pub fn is_unknown_group(&self) -> bool {
        self.0.kind == Kind::UnknownGroup
    }

    /// No peer that had to be reached could be; only writes end so, a get loads here instead.
    pub fn is_unreachable(&self) -> bool {
        self.0.kind == Kind::Unreachable
    }

    /// One of two nodes does not let the other in: certificates, keys and other settings of TLS do not fit together.
    /// The text names the settings to compare; [`Node::unconnected`](crate::Node::unconnected) returns such errors.
    pub fn is_unauthenticated(&self) -> bool {
        self.0.kind == Kind::Unauthenticated
    }

    /// The node was shut down or dropped, or the group was removed while this was under way.
    pub fn is_closed(&self) -> bool {
        self.0.kind == Kind::Closed
    }

    /// The program or its environment is set up wrongly; the text says what to change.
    pub fn is_config(&self) -> bool {
        self.0.kind == Kind::Config
    }

    /// The id of the peer that answered so, where one did.
    pub fn peer(&self) -> Option<&str> {
        self.0.peer.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        match &self.0.peer {
            Some(peer) => write!(f, " (said by {peer})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("text", &self.0.text);
        if let Some(peer) = &self.0.peer {
            out.field("peer", peer);
        }
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_in_source_and_not_in_the_text() {
        let e = Error::caused(Kind::LoadFailed { is_transient: true }, "the loader failed", "no route to the database");
        assert_eq!(e.to_string(), "the loader failed");
        assert_eq!(e.source().unwrap().to_string(), "no route to the database");
        assert!(e.is_load_failed() && e.is_transient() && !e.is_not_found());
    }

    #[test]
    fn a_clone_is_the_same_error() {
        let e = Error::at_peer(Kind::Timeout, "no answer in 10 s", "b");
        assert_eq!(e.clone().peer().unwrap(), "b");
        assert_eq!(e.clone().to_string(), "no answer in 10 s (said by b)");
        assert_eq!(std::mem::size_of::<Error>(), std::mem::size_of::<usize>(), "one word wide");
    }
}
