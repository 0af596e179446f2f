//! Everywhere: checks that every test program of the workspace uses this crate.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the files of a directory and of the directories below.
fn sources(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

fn names_it(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
        && fs::read_to_string(path).unwrap().contains("read_along")
}

#[test]
fn every_member_with_integration_tests_uses_read_along() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    let tested: Vec<_> = members.iter().filter(|member| root.join(member).join("tests").is_dir()).collect();
    assert!(tested.len() > 4, "too few of the members {members:?} have tests: {tested:?}");
    for member in tested {
        let sources = sources(&root.join(member).join("tests"));
        assert!(
            sources.iter().any(|path| names_it(path)),
            "the tests of {member} do not use this crate; add `use read_along as _;`"
        );
    }
}
