//! The log of another process.

use crate::{KEY, TELLER, VALUE, abort, is_secret, secrets::shown_by};

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// There to learn from.
    Tells,
    Says,
    /// Says a secret.
    Shows(&'a str),
}

/// Reads a line that a process wrote which was started with [`RUST_LOG`](crate::RUST_LOG); whether it is one that the
/// test may want to see.
///
/// One that shows a key, a value or a secret above DEBUG ends this process.
pub fn says(line: &str) -> bool {
    match read(line) {
        Line::Tells => false,
        Line::Says => true,
        Line::Shows(secret) => {
            abort(secret, format_args!("and a process wrote: {line}"));
        }
    }
}

fn read(line: &str) -> Line<'_> {
    let level = level(line);
    if level == Some("TRACE") && line.contains(TELLER) {
        [KEY, VALUE].iter().filter_map(|name| field(line, name)).for_each(|text| is_secret(&text));
        return Line::Tells;
    }
    match shown_by(line).filter(|_| !matches!(level, Some("DEBUG" | "TRACE"))) {
        Some(secret) => Line::Shows(secret),
        None => Line::Says,
    }
}

/// The level stands behind the time, and behind the name of a process where somebody collects the lines of several:
/// `n1 | 2026-01-01T00:00:00Z  INFO …`.
fn level(line: &str) -> Option<&str> {
    line.split_whitespace().take(4).find(|word| ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(word))
}

/// A text that stands in quotes behind its name.
fn field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    let mut text = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Some(text),
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Line, read};

    const TOLD: &str = r#"2026-01-01T00:00:00Z TRACE groupcache_core::group::load: to load group="data" key="user-\"7\"" value="{1: a}""#;

    #[test]
    fn a_key_or_a_value_that_was_told_must_not_be_said() {
        let key = "2026-01-01T00:00:00Z  INFO cluster: got user-\"7\"";
        assert_eq!(read(key), Line::Says, "not told yet");
        assert_eq!(read(TOLD), Line::Tells);
        assert_eq!(read(key), Line::Shows("user-\"7\""));
        for said in ["WARN cluster: bad={1: a}", "a line of no log: {1: a}"] {
            assert_eq!(read(said), Line::Shows("{1: a}"), "{said}");
        }
        assert_eq!(read(&format!("n1 | {TOLD}")), Line::Tells, "as a launcher hands it on");
        assert_eq!(read("n1 |  INFO TRACE cluster: got {1: a}"), Line::Shows("{1: a}"), "the first word counts");
        for said in ["2026-01-01T00:00:00Z DEBUG cluster: got {1: a}", "INFO cluster: got another"] {
            assert_eq!(read(said), Line::Says);
        }
    }
}
