//! Names of peers in certificates: DNS names and URIs such as SPIFFE ids, with wildcards for one label or segment.

use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};

/// Name of a peer, or a pattern of names. `*` and `{id}` may stand for the first label of a DNS name and for any
/// segment in the path of a URI, and each matches exactly one. The part that `{id}` matches must be the id of the peer: in a DNS name a label of a host
/// name, and in a URI a segment that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Dns(Vec<Part>),
    Uri {
        /// Scheme and authority in lower case.
        origin: String,
        path: Vec<Part>,
    },
}

/// Pattern of one label or one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Is(String),
    Any,
    Id,
}

/// Result of a match between a pattern and a name: the id in the name, if the pattern contains `{id}`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Matched {
    pub(crate) id: Option<String>,
}

impl Name {
    /// Parses a name or a pattern.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when no certificate can match, or when the pattern is too wide.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::config(format!(
                "{text:?} is not a peer name: {why}; write a DNS name such as *.peers.example.org, or a URI such as \
                 spiffe://example.org/cache/{{id}}"
            ))
        };
        if text.matches("{id}").count() > 1 {
            return Err(bad("a name contains {id} once"));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let (authority, path) = rest.split_once('/').ok_or_else(|| bad("a URI needs a path"))?;
            if scheme.is_empty() || authority.is_empty() || is_wild(authority) {
                return Err(bad("scheme and authority are required and have no wildcard"));
            }
            let origin = format!("{scheme}://{authority}").to_ascii_lowercase();
            let path: Vec<_> = path.split('/').map(part).collect();
            let odd = |part: &Part| matches!(part, Part::Is(text) if is_wild(text) || text.contains(['?', '#']));
            if path.iter().any(odd) || path.contains(&Part::Is(String::new())) {
                return Err(bad("a wildcard is a whole segment, and a segment is neither empty nor contains ? or #"));
            }
            return Ok(Self::Uri { origin, path });
        }
        let labels: Vec<_> = text.to_ascii_lowercase().split('.').map(part).collect();
        let is_label = |part: &Part| matches!(part, Part::Is(l) if !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)));
        match labels.split_first() {
            _ if text.parse::<std::net::IpAddr>().is_ok() => Err(bad("an address does not identify a peer")),
            Some((first, rest)) if is_label(first) && rest.iter().all(is_label) => Ok(Self::Dns(labels)),
            Some((Part::Any | Part::Id, rest)) if !rest.is_empty() && rest.iter().all(is_label) => {
                Ok(Self::Dns(labels))
            }
            _ => Err(bad("labels consist of letters, digits, - and _, and only the first of several may be * or {id}")),
        }
    }

    /// Matches a DNS name of a certificate, which may be a wildcard itself. Returns `None` when the name is not let in.
    pub(crate) fn matches_dns(&self, shown: &str) -> Option<Matched> {
        let Self::Dns(labels) = self else { return None };
        let shown: Vec<_> = shown.split('.').collect();
        if shown.len() != labels.len() {
            return None;
        }
        let mut id = None;
        for (at, (label, shown)) in labels.iter().zip(shown).enumerate() {
            match label {
                // A certificate for *.x is valid for each single label before x (RFC 6125, section 6.4.3).
                Part::Is(label) if label.eq_ignore_ascii_case(shown) || (at == 0 && shown == "*") => {}
                Part::Any => {}
                Part::Id if is_label(shown) => id = Some(shown.to_owned()),
                Part::Is(_) | Part::Id => return None,
            }
        }
        Some(Matched { id })
    }

    /// Matches a URI of a certificate. Returns `None` when the URI is not let in.
    pub(crate) fn matches_uri(&self, shown: &str) -> Option<Matched> {
        let Self::Uri { origin, path } = self else { return None };
        let (scheme, rest) = shown.split_once("://")?;
        let (authority, shown_path) = rest.split_once('/')?;
        let shown_path: Vec<_> = shown_path.split('/').collect();
        if format!("{scheme}://{authority}").to_ascii_lowercase() != *origin || shown_path.len() != path.len() {
            return None;
        }
        let mut id = None;
        for (part, shown) in path.iter().zip(shown_path) {
            match part {
                Part::Is(text) if text == shown => {}
                Part::Any if !shown.is_empty() => {}
                Part::Id if !shown.is_empty() => id = Some(percent_decode_str(shown).decode_utf8().ok()?.into_owned()),
                Part::Is(_) | Part::Any | Part::Id => return None,
            }
        }
        Some(Matched { id })
    }
}

fn part(text: &str) -> Part {
    match text {
        "*" => Part::Any,
        "{id}" => Part::Id,
        text => Part::Is(text.to_owned()),
    }
}

/// Returns whether a text is a label of a host name: 1 to 63 letters, digits and hyphens, none of which is a hyphen at an
/// end (RFC 1123, section 2.1).
fn is_label(text: &str) -> bool {
    let is_ldh = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (1..=63).contains(&text.len()) && is_ldh && !text.starts_with('-') && !text.ends_with('-')
}

fn is_wild(text: &str) -> bool {
    text.contains(['*', '{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(pattern: &str, shown: &str) -> Option<Option<String>> {
        Name::parse(pattern).unwrap().matches_dns(shown).map(|matched| matched.id)
    }

    fn uri(pattern: &str, shown: &str) -> Option<Option<String>> {
        Name::parse(pattern).unwrap().matches_uri(shown).map(|matched| matched.id)
    }

    #[test]
    fn wildcard_matches_exactly_one_label() {
        assert_eq!(dns("cache.example.org", "Cache.Example.ORG"), Some(None));
        assert_eq!(dns("*.example.org", "a.example.org"), Some(None));
        for other in ["example.org", "b.a.example.org", "a.example.com", "aexample.org", ".a.example.org", ""] {
            assert_eq!(dns("*.example.org", other), None, "{other:?}");
        }
        assert_eq!(dns("a.example.org", "*.example.org"), Some(None), "a wildcard certificate is valid for each label");
        assert_eq!(dns("a.example.org", "a.*.org"), None, "a wildcard certificate has its wildcard in the first label");
    }

    #[test]
    fn id_placeholder_matches_the_id_of_the_peer() {
        assert_eq!(dns("{id}.peers", "users-0.peers"), Some(Some("users-0".into())));
        assert_eq!(dns("{id}.peers", "*.peers"), None, "a wildcard certificate carries no id");
        assert_eq!(dns("{id}.peers", &format!("{}.peers", "a".repeat(63))), Some(Some("a".repeat(63))));
        for no_label in ["", "-a", "a-", "a_b", "a b", "ä", "a*", &"a".repeat(64)] {
            assert_eq!(dns("{id}.peers", &format!("{no_label}.peers")), None, "{no_label:?}");
        }
        let spiffe = "spiffe://example.org/ns/*/cache/{id}";
        assert_eq!(uri(spiffe, "spiffe://Example.org/ns/prod/cache/users-0"), Some(Some("users-0".into())));
        assert_eq!(
            uri(spiffe, "spiffe://example.org/ns/prod/cache/10.0.0.7%3A7946"),
            Some(Some("10.0.0.7:7946".into()))
        );
        for other in [
            "spiffe://example.org/ns/prod/cache",
            "spiffe://example.org/ns/prod/cache/a/b",
            "spiffe://example.org/ns//cache/a",
            "spiffe://example.org/ns/prod/cache/",
            "spiffe://example.com/ns/prod/cache/a",
            "https://example.org/ns/prod/cache/a",
            "spiffe://example.org/NS/prod/cache/a",
            "spiffe://example.org/ns/prod/cache/%ff",
            "users-0.peers",
        ] {
            assert_eq!(uri(spiffe, other), None, "{other}");
        }
    }

    #[test]
    fn name_that_is_too_wide_or_matches_nothing_is_refused() {
        for bad in [
            "",
            "*",
            "{id}",
            "*.*.org",
            "a.*.org",
            "10.0.0.7",
            "::1",
            "a b",
            "*a.org",
            "a..org",
            "spiffe://example.org",
            "spiffe://x/{id}/{id}",
            "spiffe://*/a",
            "spiffe://example.org/a*",
            "spiffe://example.org//a",
            "://a/b",
            "spiffe://x/y?z",
        ] {
            assert!(Name::parse(bad).unwrap_err().is_config(), "{bad:?}");
        }
    }
}
