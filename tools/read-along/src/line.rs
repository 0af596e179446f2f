//! Line: checks the log of another process.

use crate::{KEY, TELLER, VALUE, abort, is_secret, secrets::shown_by};

/// Kind of a line.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// Line at TRACE with a key or a value to learn.
    Tells,
    /// Line without a secret.
    Says,
    /// Line that shows a secret.
    Shows(&'a str),
}

/// Checks a line of a process that runs with [`RUST_LOG`](crate::RUST_LOG). Returns whether the line is worth keeping
/// for the test, because TRACE lines with keys and values are not.
///
/// A line that shows a key, a value or a secret above DEBUG ends this process.
pub fn says(line: &str) -> bool {
    match read(line) {
        Line::Tells => false,
        Line::Says => true,
        Line::Shows(secret) => {
            abort(secret, format_args!("and was written by a process: {line}"));
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

/// Returns the level of a line. The level follows the time, and the name of the process in output that a launcher
/// collects from several: `n1 | 2026-01-01T00:00:00Z  INFO …`.
fn level(line: &str) -> Option<&str> {
    line.split_whitespace().take(4).find(|word| ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(word))
}

/// Returns the quoted text after the name of a field.
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

    const TAUGHT: &str = r#"2026-01-01T00:00:00Z TRACE groupcache_core::engine::load: to load group="data" key="user-\"7\"" value="{1: a}""#;

    /// Checks that a key and a value are learnt from a TRACE line and found in other lines above DEBUG.
    #[test]
    fn learnt_key_or_value_is_found_above_debug() {
        let key = "2026-01-01T00:00:00Z  INFO cluster: got user-\"7\"";
        assert_eq!(read(key), Line::Says, "the key is not learnt yet");
        assert_eq!(read(TAUGHT), Line::Tells);
        assert_eq!(read(key), Line::Shows("user-\"7\""));
        for said in ["WARN cluster: bad={1: a}", "a line of no log: {1: a}"] {
            assert_eq!(read(said), Line::Shows("{1: a}"), "{said}");
        }
        assert_eq!(read(&format!("n1 | {TAUGHT}")), Line::Tells, "the level is found behind the prefix of a launcher");
        assert_eq!(read("n1 |  INFO TRACE cluster: got {1: a}"), Line::Shows("{1: a}"), "the first level counts");
        for said in ["2026-01-01T00:00:00Z DEBUG cluster: got {1: a}", "INFO cluster: got another"] {
            assert_eq!(read(said), Line::Says);
        }
    }
}
