//! Finds places where a text can be cut so that the tokens of its parts are the tokens of the whole. A common start of several
//! texts is then tokenized only once.
//!
//! A tokenizer first takes out added tokens, then tokenizes each piece between them. So a text can be cut before an added token if
//! the token is looked for in the text itself (not in a normalized one), takes no space to its left, and cannot start inside
//! another added token. Not here: what the texts are (`mod.rs`).

use super::Encoder;
use crate::error::Result;
use std::collections::HashSet;
use tokenizers::{AddedToken, Tokenizer};

/// Some texts to look for.
#[derive(Debug, Default)]
pub(super) struct Marks {
    texts: Vec<String>,
    /// Their distinct first letters.
    firsts: Vec<char>,
}

impl Marks {
    fn of<'t>(texts: impl Iterator<Item = &'t str>) -> Self {
        let texts: Vec<String> = texts.map(str::to_owned).collect();
        let mut firsts: Vec<char> = texts.iter().filter_map(|text| text.chars().next()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        Self { texts, firsts }
    }

    /// Whether one of them is in `text`.
    pub(crate) fn are_in(&self, text: &str) -> bool {
        text.match_indices(&self.firsts[..]).any(|(at, _)| self.start(&text[at..]))
    }

    /// Start of the last one in `text` that begins within its first `most` bytes; it may end beyond them.
    fn last_in(&self, text: &str, most: usize) -> Option<usize> {
        let starts = text[..most].rmatch_indices(&self.firsts[..]);
        starts.map(|(at, _)| at).find(|at| self.start(&text[*at..]))
    }

    fn start(&self, text: &str) -> bool {
        self.texts.iter().any(|mark| text.starts_with(&mark[..]))
    }
}

/// The added tokens that texts can be cut before.
pub(super) fn borders(tokenizer: &Tokenizer) -> Marks {
    let added = tokenizer.get_added_tokens_decoder();
    let whole = || added.values().filter(|token| !token.normalized);
    let within = |letter: char| whole().any(|token| token.content.chars().skip(1).any(|other| other == letter));
    let cuts = |token: &&AddedToken| {
        let first = token.content.chars().next();
        let first = first.filter(|first| !(first.is_alphanumeric() || *first == '_' || first.is_whitespace()));
        !token.lstrip && !token.single_word && first.is_some_and(|first| !within(first))
    };
    Marks::of(whole().filter(cuts).map(|token| &token.content[..]))
}

/// The texts of the added tokens with these ids; `None` if the tokenizer may find one in a text that does not literally contain it,
/// because it looks in the normalized text.
pub(super) fn written(tokenizer: &Tokenizer, ids: &HashSet<u32>) -> Option<Marks> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = || added.iter().filter(|(id, _)| ids.contains(id)).map(|(_, token)| token);
    special().all(|token| !token.normalized).then(|| Marks::of(special().map(|token| &token.content[..])))
}

/// The common start of texts, up to the last place where they can be cut.
pub(super) fn shared<'t>(marks: &Marks, texts: &[&'t str]) -> &'t str {
    let Some((first, others)) = texts.split_first() else { return "" };
    let common = |other: &&str| first.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    let mut alike = others.iter().map(common).min().unwrap_or(0);
    while !first.is_char_boundary(alike) {
        alike -= 1;
    }
    // The added token itself need not be common: it belongs to the part after the cut.
    let in_all = |at: &usize| texts.iter().all(|text| marks.start(&text[*at..]));
    marks.last_in(first, alike).filter(in_all).map_or("", |at| &first[..at])
}

/// A common start of texts and its tokens.
#[derive(Default)]
pub(super) struct Start<'t> {
    pub(crate) text: &'t str,
    pub(crate) tokens: Vec<u32>,
}

impl Encoder {
    /// The common start of a prompt and its conversations, and its tokens.
    pub(super) fn shared_start<'t>(&self, prompt: &'t str, conversations: &'t [String]) -> Result<Start<'t>> {
        let up_to_eos = conversations.iter().map(|text| self.up_to_eos(text));
        let texts: Vec<&str> = std::iter::once(prompt).chain(up_to_eos).collect();
        match shared(&self.borders, &texts) {
            // Some tokenizers give a token for an empty text.
            "" => Ok(Start::default()),
            text => Ok(Start { text, tokens: self.ids(text)? }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_before_the_last_mark_that_all_have() {
        let marks = Marks::of(["<s>", "<turn>", "[x]"].into_iter());
        let shared = |texts: &[&str]| shared(&marks, texts).to_owned();
        assert_eq!(shared(&["<s>a<turn>b", "<s>a<turn>c"]), "<s>a");
        assert_eq!(shared(&["<s>a[x]b<turn", "<s>a[x]c"]), "<s>a");
        assert_eq!(shared(&["<s>a<turn>b", "<s>a<turn>"]), "<s>a");
        assert_eq!(shared(&["<s>a<s>b", "<s>a<turn>b"]), "<s>a", "each is cut before another token");
        assert_eq!(shared(&["a\u{e9}", "a\u{e8}"]), "", "within a letter");
        assert_eq!(shared(&["a", "b"]), "");
        assert!(marks.are_in("b <turn> c") && !marks.are_in("b <turn c") && !Marks::default().are_in("b"));
    }
}
