//! Scratch: the files of one test.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A directory for the files of one test, which is removed on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a directory below `below`; callers pass `env!("CARGO_TARGET_TMPDIR")`.
    pub fn new(below: impl AsRef<Path>, test: &str) -> Self {
        let path = below.as_ref().join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Returns the path of the directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
