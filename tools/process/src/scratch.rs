//! Files of one test.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A directory of one test; removed when it is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// One below `CARGO_TARGET_TMPDIR`, which the caller has from `env!`.
    pub fn new(below: impl AsRef<Path>, test: &str) -> Self {
        let path = below.as_ref().join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Itself.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// A name in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
