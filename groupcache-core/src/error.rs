//! Error type of the crate: opaque, cheap to clone, and classified by predicates.

use std::{error::Error as StdError, fmt, sync::Arc};

/// A result with this crate's [`Error`] as the default error type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error, as returned by loaders, codecs and sources of peers.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The error of all calls of this crate.
///
/// The text is one sentence with the failure and, where there is one, the remedy. [`source`](StdError::source) has the
/// cause. An error is one pointer wide, and a clone is the same error, because all callers that wait for one load get
/// its error.
///
/// # Predicates
///
/// There is no public list of kinds, because kinds are added over time. Each decision of a caller has a predicate
/// instead:
///
/// | decision | predicates |
/// |---|---|
/// | no value exists: a result, not a failure | [`is_not_found`](Self::is_not_found) |
/// | retry later | [`is_transient`](Self::is_transient) and its causes: [`is_timeout`](Self::is_timeout), [`is_overloaded`](Self::is_overloaded), [`is_unreachable`](Self::is_unreachable) |
/// | look into the loader or the codec | [`is_load_failed`](Self::is_load_failed), [`is_quarantined`](Self::is_quarantined) |
/// | change the call | [`is_bad_key`](Self::is_bad_key), [`is_too_large`](Self::is_too_large) |
/// | stop using the handle | [`is_closed`](Self::is_closed), [`is_unknown_group`](Self::is_unknown_group) |
/// | change the settings | [`is_config`](Self::is_config), [`is_unauthenticated`](Self::is_unauthenticated) |
///
/// # Secrets
///
/// The crate puts neither keys nor values into the text or the `Debug` output. The error of a loader is passed on
/// unchanged: as the source on the node that loaded, and in the text on other nodes.
///
/// # Example
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
    /// Id of the peer that returned the error or had the request.
    peer: Option<Arc<str>>,
}

/// The kinds that the predicates distinguish. Private, so that kinds can be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NotFound,
    LoadFailed { is_transient: bool },
    Timeout,
    Overloaded,
    Quarantined,
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

    /// Returns whether the loader found no value for the key, which is a result rather than a failure.
    pub fn is_not_found(&self) -> bool {
        self.0.kind == Kind::NotFound
    }

    /// Returns whether the load failed: the loader returned an error, panicked, or is paused after repeated failures,
    /// nested loads form a cycle or are too deep, or the value could not be encoded or decoded.
    ///
    /// The cause of a loader's error is in [`source`](StdError::source) on the node that loaded, and in the text on
    /// other nodes.
    pub fn is_load_failed(&self) -> bool {
        matches!(self.0.kind, Kind::LoadFailed { .. })
    }

    /// Returns whether processes ended while they loaded the key, so that it is not loaded for some time: 10 minutes after
    /// the second process, and twice as long after each further one, up to an hour.
    ///
    /// After the end of a single process another node than that of the caller loads the key. The error is returned then
    /// if there is no other node. [`Node::quarantined`](crate::Node::quarantined) lists the keys.
    pub fn is_quarantined(&self) -> bool {
        self.0.kind == Kind::Quarantined
    }

    /// Returns whether a later attempt may succeed: after a timeout, an overload or an unreachable peer, or if the
    /// loader has marked its error as transient or is paused after repeated failures.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.kind,
            Kind::LoadFailed { is_transient: true } | Kind::Timeout | Kind::Overloaded | Kind::Unreachable
        )
    }

    /// Returns whether a deadline passed: the deadline of the call or the deadline of the load.
    pub fn is_timeout(&self) -> bool {
        self.0.kind == Kind::Timeout
    }

    /// Returns whether a limit was reached, at this node or at the owner. Retry after a pause, because immediate
    /// retries add to the load.
    pub fn is_overloaded(&self) -> bool {
        self.0.kind == Kind::Overloaded
    }

    /// Returns whether the encoded value is larger than [`max_value_bytes`](crate::Limits::max_value_bytes) of this
    /// node or of the owner.
    pub fn is_too_large(&self) -> bool {
        self.0.kind == Kind::TooLarge
    }

    /// Returns whether the key is empty or longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES), which is 1,024 bytes.
    pub fn is_bad_key(&self) -> bool {
        self.0.kind == Kind::BadKey
    }

    /// Returns whether the group was removed from its node. The handle stays unusable, so build the group again.
    pub fn is_unknown_group(&self) -> bool {
        self.0.kind == Kind::UnknownGroup
    }

    /// Returns whether the owner and all of its successors were unreachable.
    ///
    /// Writes return such errors. A get loads at the local node instead.
    /// [`Node::unconnected`](crate::Node::unconnected) returns such errors too, for peers without a connection.
    pub fn is_unreachable(&self) -> bool {
        self.0.kind == Kind::Unreachable
    }

    /// Returns whether one of two nodes rejects the other because their certificates, keys or other TLS settings do not
    /// match.
    ///
    /// The text names the settings to compare. [`Node::unconnected`](crate::Node::unconnected) returns such errors.
    pub fn is_unauthenticated(&self) -> bool {
        self.0.kind == Kind::Unauthenticated
    }

    /// Returns whether the node was shut down or dropped, or the group was removed during the call.
    pub fn is_closed(&self) -> bool {
        self.0.kind == Kind::Closed
    }

    /// Returns whether the configuration of the program or of its environment is wrong. The text has the remedy.
    pub fn is_config(&self) -> bool {
        self.0.kind == Kind::Config
    }

    /// Returns the id of the peer that returned the error, or that had the request when its deadline passed. `None` if
    /// no peer was involved.
    pub fn peer(&self) -> Option<&str> {
        self.0.peer.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        match &self.0.peer {
            Some(peer) => write!(f, " (peer {peer})"),
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
    fn cause_is_in_source_and_not_in_text() {
        let e = Error::caused(Kind::LoadFailed { is_transient: true }, "the loader failed", "no route to the database");
        assert_eq!(e.to_string(), "the loader failed");
        assert_eq!(e.source().unwrap().to_string(), "no route to the database");
        assert!(e.is_load_failed() && e.is_transient() && !e.is_not_found());
    }

    #[test]
    fn clone_keeps_text_and_peer_and_is_one_word_wide() {
        let e = Error::at_peer(Kind::Timeout, "no answer in 10 s", "b");
        assert_eq!(e.clone().peer().unwrap(), "b");
        assert_eq!(e.clone().to_string(), "no answer in 10 s (peer b)");
        assert_eq!(std::mem::size_of::<Error>(), std::mem::size_of::<usize>(), "one word wide");
    }
}
