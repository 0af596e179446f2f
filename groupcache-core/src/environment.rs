//! Environment variables: one reader and one rule for all of them.

use std::{env, fmt::Display, str::FromStr};

use crate::error::{Error, Kind, Result};

/// Reader of environment variables, with the same rule for each variable of this library.
///
/// - White space, byte order marks and invisible characters around a value are removed.
/// - An empty value counts as unset.
/// - A value that is not UTF-8 is an error.
/// - A switch is `1`, `true`, `yes` or `on`, or `0`, `false`, `no` or `off`, in any case.
/// - The error of a value names the variable and an example.
///
/// ```
/// # use groupcache_core::environment::Variables;
/// let vars = Variables::from_fn(|name| (name == "GROUP_PORT").then(|| "7946\r\n".to_owned()));
/// assert_eq!(vars.parsed::<u16>("GROUP_PORT", "a port", "7946")?, Some(7946));
/// # Ok::<(), groupcache_core::Error>(())
/// ```
#[expect(missing_debug_implementations, reason = "the values may be secrets")]
pub struct Variables<'a>(Box<Source<'a>>);

/// Function that returns the value of a variable as it is set.
type Source<'a> = dyn Fn(&str) -> Result<Option<String>> + 'a;

impl<'a> Variables<'a> {
    /// Reads the environment of this process.
    pub fn of_process() -> Self {
        Self(Box::new(|name| match env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => {
                Err(Error::config(format!("{name} is not UTF-8; set it to plain text, or unset it")))
            }
        }))
    }

    /// Reads variables from any source.
    pub fn from_fn(var: impl Fn(&str) -> Option<String> + 'a) -> Self {
        Self(Box::new(move |name| Ok(var(name))))
    }

    /// Returns the value of a variable, or `None` if it is unset or empty.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) if the value is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        let value = (self.0)(name)?;
        Ok(value.map(|value| trimmed(&value).to_owned()).filter(|value| !value.is_empty()))
    }

    /// Returns the name and the value of the first of these variables that is set.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) if a value is not UTF-8.
    pub fn first<'n>(&self, names: &[&'n str]) -> Result<Option<(&'n str, String)>> {
        for name in names {
            if let Some(value) = self.text(name)? {
                return Ok(Some((name, value)));
            }
        }
        Ok(None)
    }

    /// Returns the value of a switch. Default: false.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) if the value is neither on nor off.
    pub fn switch(&self, name: &str) -> Result<bool> {
        let Some(value) = self.text(name)? else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(invalid(name, &value, "neither on nor off", "1 or 0")),
        }
    }

    /// Returns a value that is read from its text. `what` is what the value must be, such as "a port".
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) if the value cannot be read.
    pub fn parsed<T: FromStr>(&self, name: &str, what: &str, example: &str) -> Result<Option<T>> {
        let Some(value) = self.text(name)? else { return Ok(None) };
        value.parse().map(Some).map_err(|_| invalid(name, &value, &format!("not {what}"), example))
    }

    /// Returns a value that `read` makes of its text. An error of `read` gains the name of the variable.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) if `read` fails.
    pub fn read<T>(&self, name: &str, read: impl FnOnce(&str) -> Result<T>) -> Result<Option<T>> {
        let Some(value) = self.text(name)? else { return Ok(None) };
        read(&value).map(Some).map_err(|e| Error::caused(Kind::Config, format!("{name}: {e}"), e))
    }
}

fn invalid(name: &str, value: &str, why: &str, example: impl Display) -> Error {
    Error::config(format!("{name} is {value:?}, which is {why}; set it to {example}"))
}

/// Returns the text without white space and invisible characters at its ends.
pub fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || is_invisible(c))
}

/// Returns whether a character has no width and no effect that a reader of a log sees: a byte order mark, a zero width
/// space, a mark of direction, a tag. (Variation selectors belong to visible characters and do not count.)
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Variables<'_> {
        Variables::from_fn(move |_| Some(text.to_owned()))
    }

    #[test]
    fn value_is_trimmed_and_empty_value_is_unset() {
        for text in ["7946", " 7946 ", "7946\r", "7946\r\n", "\u{feff}7946", "\u{200b}7946\u{200d} \u{feff}"] {
            assert_eq!(value(text).text("V").unwrap().as_deref(), Some("7946"), "{text:?}");
            assert_eq!(value(text).parsed::<u16>("V", "a port", "1").unwrap(), Some(7946));
        }
        for text in ["", " ", "\r\n", "\u{feff}"] {
            assert_eq!(value(text).text("V").unwrap(), None, "{text:?}");
            assert!(!value(text).switch("V").unwrap());
        }
    }

    #[test]
    fn switch_is_read_in_any_case_or_refused() {
        for on in ["1", "true", "TRUE", "yes", "On", "1\r", " true\n"] {
            assert!(value(on).switch("V").unwrap(), "{on:?}");
        }
        for off in ["0", "false", "No", "OFF"] {
            assert!(!value(off).switch("V").unwrap(), "{off:?}");
        }
        for bad in ["2", "enabled", "y", "1 0"] {
            let error = value(bad).switch("GROUPCACHE_X").unwrap_err();
            assert!(error.is_config() && error.to_string().contains("GROUPCACHE_X"), "{error}");
        }
    }

    #[test]
    fn invalid_value_is_shown_with_variable_and_example() {
        let error = value("tcp://10.0.0.1:1").parsed::<u16>("GROUP_PORT", "a port", "7946").unwrap_err().to_string();
        assert!(["GROUP_PORT", "tcp://10.0.0.1:1", "7946"].iter().all(|part| error.contains(part)), "{error}");
    }
}
