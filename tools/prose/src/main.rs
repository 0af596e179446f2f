//! Prose: counts what breaks the rules of CONTRIBUTING.md and compares the counts with their ceilings.
//!
//! `cargo run -p prose` prints a table and fails when a count is above its ceiling. `-- --lower` writes the counts as
//! the new ceilings where they are lower. `-- --show UNIT` prints each place of one unit.

mod count;
mod rust;
mod words;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use crate::count::{Ceiling, Count};

/// The commit after which subjects are judged: older ones were written before the rules.
const FIRST_JUDGED: &str = "147c413";

/// Length of a commit subject that every tool shows without a cut.
const MAX_SUBJECT: usize = 72;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = match root() {
        Ok(root) => root,
        Err(error) => {
            eprintln!("prose: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match arguments[..] {
        [] => check(&root),
        ["--lower"] => lower(&root),
        ["--show", unit] => show(&root, unit),
        _ => Err(io::Error::other("usage: prose [--lower | --show UNIT]")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("prose: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the root of the checkout that the command runs in, so that one binary serves several checkouts.
fn root() -> io::Result<PathBuf> {
    let shown = Command::new("git").args(["rev-parse", "--show-toplevel"]).output()?;
    match String::from_utf8_lossy(&shown.stdout).trim() {
        "" => Err(io::Error::other("this is no checkout; run it below the root of the repository")),
        root => Ok(PathBuf::from(root)),
    }
}

fn ceilings_path(root: &Path) -> PathBuf {
    root.join("tools/prose/ceilings.tsv")
}

/// Returns whether no count is above its ceiling and every commit subject is well formed.
fn check(root: &Path) -> io::Result<bool> {
    let ceilings = count::read_ceilings(&fs::read_to_string(ceilings_path(root))?);
    let mut is_good = true;
    for (unit, count) in measure(root)? {
        let ceiling = ceilings.get(&unit).copied().unwrap_or_default();
        if let Some(text) = count.above(&ceiling) {
            println!("{unit}: {text}; cargo run -p prose -- --show {unit} lists the places");
            is_good = false;
        }
    }
    for subject in bad_subjects(root) {
        println!("commit subject: {subject:?}: use `type(scope): imperative`, at most {MAX_SUBJECT} characters");
        is_good = false;
    }
    if is_good {
        println!("prose: no count is above its ceiling");
    }
    Ok(is_good)
}

/// Writes each count that is below its ceiling as the new ceiling.
fn lower(root: &Path) -> io::Result<bool> {
    let path = ceilings_path(root);
    let old = fs::read_to_string(&path).map(|text| count::read_ceilings(&text)).ok();
    let mut new = BTreeMap::new();
    for (unit, count) in measure(root)? {
        let now = count.as_ceiling();
        let ceiling = match old.as_ref() {
            Some(old) => old.get(&unit).map_or(Ceiling::default(), |old| old.min(&now)),
            None => now,
        };
        new.insert(unit, ceiling);
    }
    fs::write(path, count::write_ceilings(&new))?;
    Ok(true)
}

fn show(root: &Path, unit: &str) -> io::Result<bool> {
    for (name, count) in measure(root)? {
        if name == unit {
            count.places().iter().for_each(|place| println!("{place}"));
            println!("{}", count.summary());
        }
    }
    Ok(true)
}

/// Returns the counts of each unit: a crate, the documents, or the scripts.
fn measure(root: &Path) -> io::Result<BTreeMap<String, Count>> {
    let listed = Command::new("git").current_dir(root).args(["ls-files", "-co", "--exclude-standard"]).output()?;
    let mut units: BTreeMap<String, Count> = BTreeMap::new();
    for path in String::from_utf8_lossy(&listed.stdout).lines() {
        let Some(kind) = Kind::of(path) else { continue };
        // A file that was deleted and not yet committed is listed, and cannot be read.
        let Ok(text) = fs::read_to_string(root.join(path)) else { continue };
        let unit = match kind {
            Kind::Document => "documents".to_owned(),
            Kind::Script => "scripts".to_owned(),
            Kind::Rust => unit_of(root, path),
        };
        let count = units.entry(unit).or_default();
        match kind {
            Kind::Rust => count.add_rust(path, &text),
            Kind::Document => count.add_document(path, &text),
            Kind::Script => count.add_script(path, &text),
        }
    }
    Ok(units)
}

/// Returns the folder of the crate that a source file belongs to.
fn unit_of(root: &Path, path: &str) -> String {
    let crates = Path::new(path).ancestors().skip(1).find(|folder| root.join(folder).join("Cargo.toml").is_file());
    crates.map_or_else(|| "rust".to_owned(), |folder| folder.display().to_string())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rust,
    Document,
    Script,
}

impl Kind {
    fn of(path: &str) -> Option<Self> {
        // Lists the words that are not used, or what others have written.
        let is_exempt = path == "docs/GLOSSARY.md"
            || path.starts_with("tools/prose/")
            || path.starts_with("LICENSE")
            || path.contains("/results/")
            || path == "CHANGELOG.md";
        let name = path.rsplit('/').next().unwrap_or(path);
        match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
            _ if is_exempt => None,
            "rs" => Some(Self::Rust),
            "md" => Some(Self::Document),
            "yml" | "yaml" | "sh" | "conf" | "toml" | "proto" => Some(Self::Script),
            _ if name == "Makefile" || name == "Dockerfile" || path.starts_with(".ci/") => Some(Self::Script),
            "" if path.starts_with("tools/") || path.starts_with("verification/") => Some(Self::Script),
            _ => None,
        }
    }
}

/// Returns the subjects since the rules that are too long or not of the agreed form; none where the history is cut.
fn bad_subjects(root: &Path) -> Vec<String> {
    let range = format!("{FIRST_JUDGED}..HEAD");
    let log = Command::new("git").current_dir(root).args(["log", "--no-merges", "--format=%s", &range]).output();
    let Ok(log) = log else { return Vec::new() };
    if !log.status.success() {
        return Vec::new();
    }
    let subjects = String::from_utf8_lossy(&log.stdout);
    subjects.lines().filter(|subject| !is_good_subject(subject)).map(ToOwned::to_owned).collect()
}

fn is_good_subject(subject: &str) -> bool {
    const TYPES: [&str; 10] = ["feat", "fix", "refactor", "docs", "test", "perf", "build", "ci", "chore", "style"];
    let Some((kind, text)) = subject.split_once(": ") else { return false };
    let kind = kind.trim_end_matches('!');
    let kind = kind.split_once('(').map_or(kind, |(kind, _)| kind);
    let first = text.split_whitespace().next().unwrap_or_default().to_lowercase();
    let is_imperative = !words::PRONOUNS.contains(&first.as_str()) && !["a", "an", "the"].contains(&first.as_str());
    TYPES.contains(&kind) && is_imperative && subject.chars().count() <= MAX_SUBJECT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_of_a_relative_clause_is_refused() {
        assert!(is_good_subject("fix(handover): pull from draining peers when joining"));
        assert!(!is_good_subject("fix(core): who comes takes over from those who drain"));
        assert!(!is_good_subject("pull from draining peers"));
        assert!(!is_good_subject(&format!("fix: {}", "x".repeat(MAX_SUBJECT))));
    }
}
