//! The identity of the other end of a connection, as far as the connection itself proves it.

use crate::identity::PeerId;

/// Identity of the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// An unknown caller, because the connection is not encrypted.
    Unknown,
    /// A peer whose certificate was checked.
    #[cfg_attr(not(any(feature = "tls", test)), expect(dead_code, reason = "without TLS nobody has one"))]
    Verified {
        /// Ids that the peer may use; `None` when its certificate carries none.
        ids: Option<Vec<String>>,
    },
}

impl Caller {
    /// Returns why the caller may not use this id, if it may not.
    pub(crate) fn rejection_reason(&self, id: &PeerId) -> Option<String> {
        let Self::Verified { ids: Some(ids) } = self else { return None };
        (!ids.iter().any(|allowed| allowed == id.as_str()))
            .then(|| format!("its certificate is for {}, and it says that it is {id}", ids.join(" or ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_with_an_id_is_valid_for_that_id_only() {
        let (a, b) = (PeerId::new("a").unwrap(), PeerId::new("b").unwrap());
        let named = Caller::Verified { ids: Some(vec!["a".into()]) };
        assert_eq!(named.rejection_reason(&a), None);
        assert!(named.rejection_reason(&b).unwrap().contains("is for a"));
        assert_eq!(Caller::Verified { ids: None }.rejection_reason(&b), None);
        assert_eq!(Caller::Unknown.rejection_reason(&b), None);
    }
}
