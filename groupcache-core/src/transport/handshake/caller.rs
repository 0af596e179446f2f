//! Identity of the other side of a connection, as far as the connection proves it.

use crate::identity::PeerId;

/// Identity of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Identity that nothing proves, because the connection is plain.
    Unknown,
    /// Peer with a certificate that the local node has verified.
    #[cfg_attr(not(any(feature = "tls", test)), expect(dead_code, reason = "certificates need the feature tls"))]
    Verified {
        /// Ids that the peer may use; `None` when its certificate carries no id, so that the peer may use any.
        ids: Option<Vec<String>>,
    },
}

impl Caller {
    /// Returns the reason why the other side may not use this id, or `None` if it may.
    pub(crate) fn rejection_reason(&self, id: &PeerId) -> Option<String> {
        let Self::Verified { ids: Some(ids) } = self else { return None };
        (!ids.iter().any(|allowed| allowed == id.as_str())).then(|| {
            format!("the presented certificate is for {}, and its holder claims the id {id}", ids.join(" or "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_with_id_rejects_other_ids() {
        let (a, b) = (PeerId::new("a").unwrap(), PeerId::new("b").unwrap());
        let named = Caller::Verified { ids: Some(vec!["a".into()]) };
        assert_eq!(named.rejection_reason(&a), None);
        assert!(named.rejection_reason(&b).unwrap().contains("is for a"));
        assert_eq!(Caller::Verified { ids: None }.rejection_reason(&b), None);
        assert_eq!(Caller::Unknown.rejection_reason(&b), None);
    }
}
