//! What is wrong with the options.

use std::{error::Error, fmt};

/// An option that cannot be used: what is wrong and what to write instead.
#[derive(Debug)]
pub struct MdnsError(String);

impl MdnsError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for MdnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for MdnsError {}
