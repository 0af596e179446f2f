//! Reading of Rust sources: comments, strings, and names of functions.

/// A part of a source file, with the number of the line on which it begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A doc comment: all `///` or `//!` lines that follow one another.
    Doc(usize, String),
    /// A line of another comment.
    Comment(usize, String),
    /// A string literal.
    Text(usize, String),
    /// Everything else of one line.
    Code(usize, String),
}

/// Splits a source file into its parts. Block comments are read as plain comments.
pub(crate) fn parts(source: &str) -> Vec<Part> {
    let mut reader = Reader { chars: source.chars().collect(), at: 0, line: 1, parts: Vec::new(), code: String::new() };
    reader.read();
    join_docs(reader.parts)
}

/// Returns the names of the functions that a line of code defines.
pub(crate) fn functions(code: &str) -> impl Iterator<Item = &str> {
    code.split("fn ").skip(1).filter_map(|rest| {
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        (!name.is_empty()).then_some(name)
    })
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    line: usize,
    parts: Vec<Part>,
    code: String,
}

impl Reader {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn next(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        if c == '\n' {
            self.flush();
            self.line += 1;
        }
        c
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.next();
        }
    }

    fn flush(&mut self) {
        if !self.code.trim().is_empty() {
            self.parts.push(Part::Code(self.line, std::mem::take(&mut self.code)));
        }
        self.code.clear();
    }

    fn read(&mut self) {
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '/') => self.line_comment(),
                ('/', '*') => self.block_comment(),
                ('"', _) => self.string(),
                ('r', '"' | '#') if !self.code.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                    self.raw_string()
                }
                ('\'', _) => self.quote(),
                _ => {
                    let c = self.next();
                    self.code.push(if c == '\n' { ' ' } else { c });
                }
            }
        }
        self.flush();
    }

    fn line_comment(&mut self) {
        let (line, mut text) = (self.line, String::new());
        while self.at < self.chars.len() && self.peek(0) != '\n' {
            text.push(self.next());
        }
        let is_doc = (text.starts_with("///") && !text.starts_with("////")) || text.starts_with("//!");
        if is_doc {
            self.parts.push(Part::Doc(line, text.split_off(3)));
        } else {
            self.parts.push(Part::Comment(line, text.trim_start_matches('/').to_owned()));
        }
    }

    fn block_comment(&mut self) {
        let (line, mut text) = (self.line, String::new());
        while self.at < self.chars.len() && !(self.peek(0) == '*' && self.peek(1) == '/') {
            text.push(self.next());
        }
        self.at += 2;
        self.parts.push(Part::Comment(line, text));
    }

    fn string(&mut self) {
        let (line, mut text) = (self.line, String::new());
        self.next();
        while self.at < self.chars.len() && self.peek(0) != '"' {
            if self.peek(0) == '\\' {
                self.next();
            }
            text.push(self.next());
        }
        self.next();
        self.parts.push(Part::Text(line, text));
    }

    fn raw_string(&mut self) {
        let hashes = (1..).take_while(|n| self.peek(*n) == '#').count();
        if self.peek(1 + hashes) != '"' {
            let c = self.next();
            return self.code.push(c); // a raw identifier
        }
        let (line, mut text) = (self.line, String::new());
        self.skip(hashes + 2);
        let is_end = |reader: &Self| reader.peek(0) == '"' && (1..=hashes).all(|n| reader.peek(n) == '#');
        while self.at < self.chars.len() && !is_end(self) {
            text.push(self.next());
        }
        self.skip(hashes + 1);
        self.parts.push(Part::Text(line, text));
    }

    /// Reads a character or the beginning of a lifetime.
    fn quote(&mut self) {
        self.next();
        if self.peek(0) == '\\' {
            self.next();
            self.next();
        } else if self.peek(1) == '\'' {
            self.next();
        } else {
            return;
        }
        while self.at < self.chars.len() && self.peek(0) != '\'' {
            self.next();
        }
        self.next();
    }
}

/// Joins the doc lines that follow one another.
fn join_docs(parts: Vec<Part>) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    let mut last = 0;
    for part in parts {
        if let (Part::Doc(line, text), Some(Part::Doc(_, before))) = (&part, joined.last_mut())
            && *line == last + 1
        {
            before.push('\n');
            before.push_str(text);
            last = *line;
            continue;
        }
        if let Part::Doc(line, _) = &part {
            last = *line;
        }
        joined.push(part);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_hide_comments_and_comments_hide_strings() {
        let source = "let a = \"// no comment\"; // a \"comment\"\nlet b = r#\"raw \" one\"#;\nlet c = '\"';\n";
        let parts = parts(source);
        assert!(parts.contains(&Part::Text(1, "// no comment".into())));
        assert!(parts.contains(&Part::Comment(1, " a \"comment\"".into())));
        assert!(parts.contains(&Part::Text(2, "raw \" one".into())));
        assert_eq!(parts.iter().filter(|part| matches!(part, Part::Text(..))).count(), 2);
    }

    #[test]
    fn doc_lines_that_follow_one_another_are_one_comment() {
        let parts = parts("/// A value.\n/// More of it.\nfn f<'a>() {}\n/// Another.\n");
        assert_eq!(parts.iter().filter(|part| matches!(part, Part::Doc(..))).count(), 2);
        assert_eq!(functions(" fn f<'a>() {}").collect::<Vec<_>>(), ["f"]);
    }
}
