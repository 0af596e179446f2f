//! The words that the rules name.

/// Words that begin no doc comment: the noun is missing.
pub(crate) const PRONOUNS: [&str; 19] = [
    "who", "whom", "whose", "whoever", "what", "whatever", "it", "its", "that", "those", "these", "this", "one",
    "both", "such", "they", "so", "as", "whomever",
];

/// Words that begin no sentence in comments and documents, in the case in which a sentence begins with them.
pub(crate) const NOUNLESS: [&str; 9] = ["Who", "Whom", "Whose", "What", "It", "That", "Those", "One", "Both"];

/// Beginnings of two words that count as pronouns, although the first word alone does not.
pub(crate) const PAIRS: [(&str, &str); 2] = [("the", "same"), ("all", "that")];

/// Beginnings that are nouns or verbs although their first word is on the list.
pub(crate) const EXCUSED: [(&str, &str); 2] = [("as", "a"), ("one", "line")];

/// Words that count once for each time, in comments and documents.
pub(crate) const RELATIVES: [&str; 5] = ["who", "whom", "whose", "whoever", "whomever"];

/// Words and phrases of older code that the glossary replaces. A phrase of letters alone is found as whole words in
/// comments, strings and documents; a phrase with an underscore or a capital is found in code as well.
pub(crate) const BANNED: [&str; 30] = [
    "former",
    "formers",
    "former owner",
    "hand_over",
    "HandOff",
    "hand_off",
    "HandOver",
    "take_over",
    "hot copy",
    "hot copies",
    "borrowed value",
    "borrowed copy",
    "borrowed entries",
    "is_borrowed",
    "lent",
    "Mirror",
    "stranger",
    "strangers",
    "Undelivered",
    "undelivered",
    "older life",
    "older_lives",
    "passed_by_a_write",
    "in vain",
    "passed by a write",
    "first_look",
    "let_go",
    "Formers",
    "whose turn",
    "so many",
];
