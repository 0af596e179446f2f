//! The error for unusable options.

use std::{error::Error, fmt};

/// The error for an unusable option. The text names the fault and what to write instead.
#[derive(Debug)]
pub struct KubernetesError(String);

impl KubernetesError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for KubernetesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for KubernetesError {}
