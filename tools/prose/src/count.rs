//! Counts of what breaks a rule, and their ceilings.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    rust::{self, Part},
    words::{BANNED, EXCUSED, NOUNLESS, PAIRS, PRONOUNS, RELATIVES},
};

/// Longest name of a function: a line of a test's outcome still shows all of it.
const MAX_NAME: usize = 60;

/// Breaches of the rules in a unit.
#[derive(Debug, Default)]
pub(crate) struct Count {
    docs: usize,
    words: usize,
    relatives: usize,
    pronouns: Vec<String>,
    nounless: Vec<String>,
    long_names: Vec<String>,
    banned: Vec<String>,
    relative_places: Vec<String>,
}

/// Largest permitted counts of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Ceiling {
    pronouns: usize,
    /// Relatives per 1,000 words.
    relatives: f64,
    long_names: usize,
    banned: usize,
    nounless: usize,
}

impl Ceiling {
    /// Returns the lower of each.
    pub(crate) fn min(&self, other: &Self) -> Self {
        Self {
            pronouns: self.pronouns.min(other.pronouns),
            relatives: self.relatives.min(other.relatives),
            long_names: self.long_names.min(other.long_names),
            banned: self.banned.min(other.banned),
            nounless: self.nounless.min(other.nounless),
        }
    }
}

impl Count {
    pub(crate) fn add_rust(&mut self, path: &str, source: &str) {
        for part in rust::parts(source) {
            match part {
                Part::Doc(line, text) => {
                    self.docs += 1;
                    if begins_with_pronoun(&text) {
                        self.pronouns.push(format!("{path}:{line}: begins with a pronoun: {}", first_line(&text)));
                    }
                    self.add_words(path, line, &without_examples(&text));
                }
                Part::Comment(line, text) => self.add_words(path, line, &text),
                Part::Text(line, text) => self.add_banned(path, line, &text, false),
                Part::Code(line, code) => {
                    for name in rust::functions(&code).filter(|name| name.len() > MAX_NAME) {
                        self.long_names.push(format!("{path}:{line}: {} characters: {name}", name.len()));
                    }
                    self.add_banned(path, line, &code, true);
                }
            }
        }
    }

    pub(crate) fn add_document(&mut self, path: &str, text: &str) {
        let mut is_code = false;
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            } else if !is_code {
                self.add_words(path, number + 1, line);
            }
        }
    }

    pub(crate) fn add_script(&mut self, path: &str, text: &str) {
        let mark = if path.ends_with(".proto") { "//" } else { "#" };
        for (number, line) in text.lines().enumerate() {
            if let Some((_, comment)) = line.split_once(mark) {
                self.add_words(path, number + 1, comment);
            }
        }
    }

    fn add_words(&mut self, path: &str, line: usize, text: &str) {
        for word in words(text) {
            self.words += 1;
            if RELATIVES.contains(&word.as_str()) {
                self.relatives += 1;
                self.relative_places.push(format!("{path}:{line}: {word}"));
            }
        }
        for begin in text.lines().flat_map(nounless_sentences) {
            self.nounless.push(format!("{path}:{line}: a sentence begins without a noun: {begin}"));
        }
        self.add_banned(path, line, text, false);
    }

    fn add_banned(&mut self, path: &str, line: usize, text: &str, is_code: bool) {
        for banned in BANNED {
            let is_name = banned.contains('_') || banned.chars().any(char::is_uppercase);
            if (is_name || !is_code) && contains_word(text, banned, is_name) {
                self.banned.push(format!("{path}:{line}: {banned:?} is not used"));
            }
        }
    }

    fn rate(&self) -> f64 {
        if self.words == 0 { 0.0 } else { self.relatives as f64 * 1000.0 / self.words as f64 }
    }

    pub(crate) fn as_ceiling(&self) -> Ceiling {
        Ceiling {
            pronouns: self.pronouns.len(),
            relatives: (self.rate() * 10.0).ceil() / 10.0,
            long_names: self.long_names.len(),
            banned: self.banned.len(),
            nounless: self.nounless.len(),
        }
    }

    /// Returns what is above the ceiling, in words.
    pub(crate) fn above(&self, ceiling: &Ceiling) -> Option<String> {
        let mut text = Vec::new();
        if self.pronouns.len() > ceiling.pronouns {
            let (now, most) = (self.pronouns.len(), ceiling.pronouns);
            text.push(format!("{now} doc comments begin with a pronoun, {most} are allowed"));
        }
        if self.rate() > ceiling.relatives {
            let (now, most) = (self.rate(), ceiling.relatives);
            text.push(format!("who, whom, whose: {now:.2} of 1,000 words, {most} are allowed"));
        }
        if self.long_names.len() > ceiling.long_names {
            let (now, most) = (self.long_names.len(), ceiling.long_names);
            text.push(format!("{now} function names of more than {MAX_NAME} characters, {most} are allowed"));
        }
        if self.banned.len() > ceiling.banned {
            let (now, most) = (self.banned.len(), ceiling.banned);
            text.push(format!("{now} words that docs/GLOSSARY.md replaces, {most} are allowed"));
        }
        if self.nounless.len() > ceiling.nounless {
            let (now, most) = (self.nounless.len(), ceiling.nounless);
            text.push(format!("{now} sentences begin without a noun, {most} are allowed"));
        }
        (!text.is_empty()).then(|| text.join("; "))
    }

    pub(crate) fn places(&self) -> Vec<&String> {
        let all = self.pronouns.iter().chain(&self.nounless).chain(&self.long_names).chain(&self.banned);
        all.chain(&self.relative_places).collect()
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "{} of {} doc comments begin with a pronoun; {:.2} relatives of 1,000 words; {} long names; {} banned \
             words; {} sentences without a noun",
            self.pronouns.len(),
            self.docs,
            self.rate(),
            self.long_names.len(),
            self.banned.len(),
            self.nounless.len()
        )
    }
}

pub(crate) fn read_ceilings(text: &str) -> BTreeMap<String, Ceiling> {
    let mut ceilings = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t');
        let Some(unit) = fields.next() else { continue };
        let mut number = || fields.next().and_then(|field| field.trim().parse::<f64>().ok()).unwrap_or(0.0);
        let (pronouns, relatives, long_names) = (number(), number(), number());
        let (banned, nounless) = (number(), number());
        let ceiling = Ceiling {
            pronouns: pronouns as usize,
            relatives,
            long_names: long_names as usize,
            banned: banned as usize,
            nounless: nounless as usize,
        };
        ceilings.insert(unit.to_owned(), ceiling);
    }
    ceilings
}

pub(crate) fn write_ceilings(ceilings: &BTreeMap<String, Ceiling>) -> String {
    let mut text = String::from(
        "# Unit, doc comments that begin with a pronoun, who/whom/whose per 1,000 words, names over 60 characters, words\n\
         # that docs/GLOSSARY.md replaces, sentences that begin without a noun. A unit that is not listed may break\n\
         # nothing. Numbers only go down: cargo run -p prose -- --lower\n",
    );
    for (unit, Ceiling { pronouns, relatives, long_names, banned, nounless }) in ceilings {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{unit}\t{pronouns}\t{relatives}\t{long_names}\t{banned}\t{nounless}");
    }
    text
}

fn first_line(text: &str) -> &str {
    text.trim_start().lines().next().unwrap_or_default()
}

fn begins_with_pronoun(text: &str) -> bool {
    let mut words = words(first_line(text));
    let first = words.next().unwrap_or_default();
    let second = words.next().unwrap_or_default();
    let pair = (first.as_str(), second.as_str());
    (PRONOUNS.contains(&first.as_str()) && !EXCUSED.contains(&pair)) || PAIRS.contains(&pair)
}

/// Returns the beginnings of the sentences of a line that have no noun. Sentences of a table are not read.
fn nounless_sentences(line: &str) -> impl Iterator<Item = &str> {
    let marks = |c: char| c == '#' || c == '-' || c == '*' || c == '>' || c == '.' || c.is_ascii_digit() || c == ' ';
    let begins = line.match_indices(['.', '!', '?']).map(|(at, _)| at + 1);
    // Marks of Markdown may close between the end of a sentence and the space.
    let sentences = begins.filter_map(|at| line.get(at..)?.trim_start_matches(['*', '_', ')']).strip_prefix(' '));
    std::iter::once(line.trim_start_matches(marks)).chain(sentences).filter_map(|sentence| {
        let sentence = sentence.trim_start();
        let first = sentence.split(|c: char| !c.is_alphabetic()).next()?;
        NOUNLESS.contains(&first).then(|| sentence.get(..40).unwrap_or(sentence))
    })
}

/// Returns the words of a text in lower case; what stands in backquotes is code.
fn words(text: &str) -> impl Iterator<Item = String> {
    let prose: String = text.split('`').step_by(2).collect::<Vec<_>>().join(" x ");
    let words: Vec<String> = prose
        .split(|c: char| !c.is_alphabetic() && c != '\'')
        .map(|word| word.trim_matches('\'').to_lowercase())
        .filter(|word| !word.is_empty())
        .collect();
    words.into_iter()
}

/// Leaves out the code blocks of a doc comment.
fn without_examples(text: &str) -> String {
    text.split("```").step_by(2).collect::<Vec<_>>().join("\n")
}

fn contains_word(text: &str, phrase: &str, is_exact: bool) -> bool {
    let (text, phrase) =
        if is_exact { (text.to_owned(), phrase.to_owned()) } else { (text.to_lowercase(), phrase.to_lowercase()) };
    let is_letter = |c: char| c.is_alphanumeric();
    text.match_indices(&phrase).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back()).unwrap_or(' ');
        let after = text.get(at + phrase.len()..).and_then(|text| text.chars().next()).unwrap_or(' ');
        is_exact || (!is_letter(before) && !is_letter(after) && before != '_' && after != '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doc_that_begins_with_a_pronoun_is_counted() {
        let mut count = Count::default();
        count.add_rust(
            "a.rs",
            "/// Who comes is there.\nfn a() {}\n/// Returns the peer.\nfn b() {}\n/// The same again.\n",
        );
        assert_eq!((count.pronouns.len(), count.docs), (2, 3));
    }

    #[test]
    fn sentence_without_a_noun_is_counted_wherever_it_begins() {
        let mut count = Count::default();
        count.add_document(
            "a.md",
            "## What it is\n\n- One task reads.\n1. **A node.** One load.\nA task reads. It writes. Two more write,\nit says.\n",
        );
        count.add_rust("a.rs", "// One check.\nlet a = What::Value;\n/// Sends it. That is all.\n");
        assert_eq!(count.nounless.len(), 6, "{:?}", count.nounless);
    }

    #[test]
    fn relatives_are_counted_in_comments_and_not_in_code() {
        let mut count = Count::default();
        count.add_rust("a.rs", "// a peer whose link is gone\nlet who = \"whose\";\n/// `who`\n");
        assert_eq!(count.relatives, 1);
    }

    #[test]
    fn banned_words_are_found_in_texts_and_names() {
        let mut count = Count::default();
        count.add_rust("a.rs", "let a = \"its former owner\";\nfn hand_over() {}\nlet reformers = 1;\n");
        assert_eq!(count.banned.len(), 3, "{:?}", count.banned);
    }

    #[test]
    fn ceilings_go_down_only() {
        let old = read_ceilings("core\t3\t1.5\t0\t2\t2\n");
        let now = Ceiling { pronouns: 5, relatives: 0.5, long_names: 0, banned: 1, nounless: 3 };
        let new = old["core"].min(&now);
        assert_eq!(new, Ceiling { pronouns: 3, relatives: 0.5, long_names: 0, banned: 1, nounless: 2 });
        let written = write_ceilings(&BTreeMap::from([("core".to_owned(), new)]));
        assert_eq!(read_ceilings(&written)["core"], new);
    }
}
