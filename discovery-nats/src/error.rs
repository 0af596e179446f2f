//! Errors of the options.

use std::{error::Error, fmt};

/// Error of an option that cannot be used. The text names the problem and the value to write instead.
#[derive(Debug)]
pub struct NatsError(String);

impl NatsError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for NatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NatsError {}
