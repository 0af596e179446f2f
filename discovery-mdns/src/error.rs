//! Error: the error type of the options.

use std::{error::Error, fmt};

/// An invalid option. The text names the fault and the value to use instead.
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
