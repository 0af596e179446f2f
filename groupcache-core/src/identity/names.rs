//! Names: the length and the characters of ids, clusters, zones and hosts.

use std::sync::Arc;

use crate::{
    environment::is_invisible,
    error::{Error, Result},
};

/// Maximum length of an id, a cluster name or a zone in bytes: the maximum of a DNS name, because pods and hosts have
/// DNS names.
pub(crate) const MAX_NAME_BYTES: usize = 253;

/// Maximum length of a label of a DNS name in bytes (RFC 1035, section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Checks the length and the characters of a name. `what` is the kind of name for the error text.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::config(format!("the {what} has {} bytes; choose 1 to {MAX_NAME_BYTES} bytes", name.len())));
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::config(format!(
            "the {what} {name:?} contains white space or control characters; remove them"
        )));
    }
    if let Some(c) = name.chars().find(|c| is_invisible(*c)) {
        return Err(Error::config(format!(
            "the {what} {name:?} contains the invisible character U+{:04X}; write the name by hand, such as users-0",
            u32::from(c)
        )));
    }
    Ok(())
}

/// Returns a name as text after [`check_name`].
pub(super) fn named(what: &str, name: &str) -> Result<Arc<str>> {
    check_name(what, name)?;
    Ok(name.into())
}

/// Returns the reason for which a text cannot be the host of an address. Underscores are allowed, because service names
/// and many private names have them.
pub(super) fn host_error(host: &str) -> Option<&'static str> {
    let is_named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || host.len() > MAX_NAME_BYTES || !host.chars().all(is_named) {
        return Some("the host is neither a name nor an IP address (IPv6 needs brackets)");
    }
    let labels = || host.strip_suffix('.').unwrap_or(host).split('.');
    if labels().any(|label| label.is_empty() || label.len() > MAX_LABEL_BYTES) {
        return Some("a part between two dots of the host is empty or longer than 63 bytes");
    }
    if labels().any(|label| label.starts_with('-') || label.ends_with('-')) {
        return Some("a part of the host begins or ends with a hyphen");
    }
    // No top-level domain is a number (RFC 3696, section 2), so that the text is a misspelt IP address.
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    if labels().count() > 1 && labels().next_back().is_some_and(is_number) {
        return Some("the host is neither a name nor a complete IP address");
    }
    None
}
