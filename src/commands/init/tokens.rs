//! Tokens of Python that literals need: names, numbers, strings and signs, without comments and line breaks.
//!
//! Not here: calls and literals made of them (`python/`).

use crate::error::{Error, Result};

/// The kind of a token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind<'t> {
    /// A name or a keyword.
    Name(&'t str),
    /// A number as written.
    Number(&'t str),
    /// A string with its escapes resolved; None for an f-string, bytes, or an escape that names a character.
    Text(Option<String>),
    /// One sign; `?` for a sign of two characters that ends with `=`, such as `==`.
    Sign(char),
}

/// A token, its line from 1, and its range of bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token<'t> {
    pub(crate) kind: Kind<'t>,
    pub(crate) line: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Splits a script into tokens, in one pass.
///
/// # Errors
/// A string that is not closed.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>> {
    let mut lexer = Lexer { text, at: 0, line: 1 };
    let mut tokens = Vec::new();
    while let Some(letter) = lexer.peek() {
        let (start, line) = (lexer.at, lexer.line);
        let kind = match letter {
            '#' => {
                lexer.skip_while(|letter| letter != '\n');
                continue;
            }
            '\\' => {
                lexer.bump();
                continue;
            }
            _ if letter.is_whitespace() => {
                lexer.bump();
                continue;
            }
            '"' | '\'' => Kind::Text(lexer.text("", line)?),
            _ if letter.is_ascii_digit() || (letter == '.' && lexer.second_is_digit()) => {
                lexer.number();
                Kind::Number(&text[start..lexer.at])
            }
            _ if letter == '_' || letter.is_alphabetic() => {
                lexer.skip_while(|letter| letter == '_' || letter.is_alphanumeric());
                let name = &text[start..lexer.at];
                match lexer.peek() {
                    Some('"' | '\'') if is_prefix(name) => Kind::Text(lexer.text(name, line)?),
                    _ => Kind::Name(name),
                }
            }
            _ => {
                lexer.bump();
                let compared = "=!<>:+-*/%&|^@".contains(letter) && lexer.peek() == Some('=');
                if compared {
                    lexer.bump();
                }
                Kind::Sign(if compared { '?' } else { letter })
            }
        };
        tokens.push(Token { kind, line, start, end: lexer.at });
    }
    Ok(tokens)
}

/// Whether this is a prefix of a string: one or two of r, b, u, f and t.
fn is_prefix(name: &str) -> bool {
    name.len() <= 2 && name.chars().all(|letter| "rRbBuUfFtT".contains(letter))
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
    line: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += letter.len_utf8();
        self.line += usize::from(letter == '\n');
        Some(letter)
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&wanted) {
            self.bump();
        }
    }

    fn second_is_digit(&self) -> bool {
        self.rest().chars().nth(1).is_some_and(|letter| letter.is_ascii_digit())
    }

    fn number(&mut self) {
        let hexadecimal = self.rest().starts_with("0x") || self.rest().starts_with("0X");
        while let Some(letter) = self.peek() {
            if !(letter == '_' || letter == '.' || letter.is_ascii_alphanumeric()) {
                return;
            }
            self.bump();
            let signed = self.peek().is_some_and(|sign| sign == '-' || sign == '+') && self.second_is_digit();
            if !hexadecimal && matches!(letter, 'e' | 'E') && signed {
                self.bump();
            }
        }
    }

    /// A string, from its opening quote on.
    fn text(&mut self, prefix: &str, line: usize) -> Result<Option<String>> {
        let prefix = prefix.to_ascii_lowercase();
        let unended =
            || Error::input(format!("line {line}: a string that is not closed")).hint("is the script complete?");
        let quote = self.bump().ok_or_else(unended)?;
        let triple = self.rest().starts_with(&[quote, quote].iter().collect::<String>()[..]);
        if triple {
            self.bump();
            self.bump();
        }
        let close: String = std::iter::repeat_n(quote, if triple { 3 } else { 1 }).collect();
        let mut value = Some(String::new());
        loop {
            if self.rest().starts_with(&close[..]) {
                self.at += close.len();
                return Ok(value.filter(|_| !prefix.contains(['f', 'b', 't'])));
            }
            let letter = self.bump().filter(|letter| triple || *letter != '\n').ok_or_else(unended)?;
            let meant = if letter != '\\' {
                Some(letter.to_string())
            } else if prefix.contains('r') {
                Some(format!("\\{}", self.bump().ok_or_else(unended)?))
            } else {
                let escaped = self.bump().ok_or_else(unended)?;
                self.escape(escaped)
            };
            value = value.zip(meant).map(|(value, more)| value + &more);
        }
    }

    /// The meaning of a backslash and a letter; None if it is not known here.
    fn escape(&mut self, letter: char) -> Option<String> {
        let one = |letter: char| Some(letter.to_string());
        match letter {
            '\n' => Some(String::new()),
            '\\' | '\'' | '"' => one(letter),
            'n' => one('\n'),
            't' => one('\t'),
            'r' => one('\r'),
            'a' => one('\u{7}'),
            'b' => one('\u{8}'),
            'f' => one('\u{c}'),
            'v' => one('\u{b}'),
            '0'..='7' => {
                let mut code = letter.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|letter| letter.to_digit(8)) else { break };
                    self.bump();
                    code = 8 * code + digit;
                }
                char::from_u32(code).and_then(one)
            }
            'x' | 'u' | 'U' => {
                let digits = match letter {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let code = self.rest().get(..digits).and_then(|digits| u32::from_str_radix(digits, 16).ok())?;
                self.at += digits;
                char::from_u32(code).and_then(one)
            }
            'N' => None,
            // Python keeps the backslash of an escape that it does not know.
            other => Some(format!("\\{other}")),
        }
    }
}
