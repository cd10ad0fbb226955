//! From a template's text to tokens, with Jinja's rules for the whitespace around tags.
//!
//! Not here: grammar; that is `parser.rs`.

use super::characters::is_space;
use super::{Fault, Outcome};

/// The longest template that is read, in bytes; the longest known has 40 kB.
pub(crate) const LONGEST: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Text outside of tags.
    Text(String),
    BlockStart,
    BlockEnd,
    PrintStart,
    PrintEnd,
    Name(String),
    String(String),
    Integer(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) line: usize,
}

/// Longer ones first.
const OPERATORS: [&str; 25] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",",
];

struct Lexer<'a> {
    source: &'a str,
    /// Byte of the source that is read next.
    at: usize,
    line: usize,
    tokens: Vec<Token>,
    /// Whether the last text that was read ended a line.
    at_line_start: bool,
}

/// The tokens of a template, the last of them `End`.
pub(crate) fn tokens(source: &str) -> Outcome<Vec<Token>> {
    if source.len() > LONGEST {
        let limit = LONGEST >> 20;
        return Err(Fault::bound(format!("the template is too long: {} bytes, more than {limit} MiB", source.len())));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, tokens: Vec::new(), at_line_start: true };
    lexer.template()?;
    lexer.push(Kind::End);
    Ok(lexer.tokens)
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        if let Some(last) = passed.chars().last() {
            self.at_line_start = last == '\n';
        }
        self.at += bytes;
    }

    fn fault<T>(&self, message: impl Into<String>) -> Outcome<T> {
        Err(Fault::new(message).at(self.line))
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_space).len());
    }

    fn template(&mut self) -> Outcome<()> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            let tag = rest.match_indices('{').find(|(at, _)| rest[at + 1..].starts_with(['{', '%', '#']));
            let Some((before, _)) = tag else {
                self.text(rest, "", false);
                self.advance(rest.len());
                break;
            };
            let opening = &rest[before..before + 2];
            let sign = rest[before + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let sign = sign.map_or("", |c| if c == '-' { "-" } else { "+" });
            self.text(&rest[..before], sign, opening != "{{");
            self.advance(before + 2 + sign.len());
            match opening {
                "{#" => self.comment()?,
                "{%" if self.raw_tag("raw").is_some() => self.raw()?,
                "{%" => self.tag(Kind::BlockStart, Kind::BlockEnd, "%}")?,
                _ => self.tag(Kind::PrintStart, Kind::PrintEnd, "}}")?,
            }
        }
        Ok(())
    }

    /// Text before a tag, without the part that the tag strips: all whitespace with `-`, else a block's own indentation.
    fn text(&mut self, text: &str, sign: &str, is_block: bool) {
        let kept = match sign {
            "-" => text.trim_end_matches(is_space),
            "" if is_block => {
                let start = text.rfind('\n').map(|at| at + 1);
                let start = start.or(self.at_line_start.then_some(0));
                match start.filter(|&start| text[start..].chars().all(is_space)) {
                    Some(start) => &text[..start],
                    None => text,
                }
            }
            _ => text,
        };
        if !kept.is_empty() {
            self.push(Kind::Text(kept.to_owned()));
        }
    }

    /// Consumes a tag's closing (`%}` or `#}`) and the whitespace that it strips; false if the text does not continue with one.
    fn closing(&mut self, closing: &str, trims_line: bool) -> bool {
        let rest = self.rest();
        if let Some(after) = rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(closing)) {
            self.advance(rest.len() - after.len());
            // As Jinja's pattern does, the whitespace belongs to the tag.
            self.skip_space();
            return true;
        }
        let (sign, after) = match rest.strip_prefix('+') {
            Some(after) if trims_line => ("+", after),
            _ => ("", rest),
        };
        let Some(after) = after.strip_prefix(closing) else { return false };
        let line = usize::from(trims_line && sign.is_empty() && after.starts_with('\n'));
        self.advance(rest.len() - after.len() + line);
        true
    }

    fn comment(&mut self) -> Outcome<()> {
        let Some(end) = self.rest().find("#}") else { return self.fault("a comment `{#` without its `#}`") };
        let sign = self.rest()[..end].ends_with(['-', '+']);
        self.advance(end - usize::from(sign));
        if !self.closing("#}", true) {
            // `{#-#}`: the one sign belongs to the opening.
            self.advance(2);
        }
        Ok(())
    }

    /// Length of the rest of a tag `raw` or `endraw` up to its closing, if the text continues with one.
    fn raw_tag(&self, name: &str) -> Option<usize> {
        let rest = self.rest();
        let after = rest.trim_start_matches(is_space).strip_prefix(name)?.trim_start_matches(is_space);
        ["%}", "-%}", "+%}"].iter().any(|end| after.starts_with(end)).then(|| rest.len() - after.len())
    }

    fn raw(&mut self) -> Outcome<()> {
        let length = self.raw_tag("raw").unwrap_or_default();
        self.advance(length);
        self.closing("%}", false);
        let start = self.at;
        while let Some(found) = self.rest().find("{%") {
            let text = &self.source[start..self.at + found];
            self.advance(found + 2);
            let sign = if self.rest().starts_with('-') {
                "-"
            } else if self.rest().starts_with('+') {
                "+"
            } else {
                ""
            };
            self.advance(sign.len());
            if let Some(length) = self.raw_tag("endraw") {
                self.at_line_start = false;
                self.text(text, sign, true);
                self.advance(length);
                self.closing("%}", true);
                return Ok(());
            }
        }
        self.fault("`{% raw %}` without its `{% endraw %}`")
    }

    fn tag(&mut self, start: Kind, end: Kind, closing: &str) -> Outcome<()> {
        let opened = self.line;
        self.push(start);
        let mut open: Vec<char> = Vec::new();
        loop {
            self.skip_space();
            let line = self.line;
            if open.is_empty() && self.closing(closing, closing == "%}") {
                self.tokens.push(Token { kind: end, line });
                return Ok(());
            }
            let Some(next) = self.rest().chars().next() else {
                return Err(Fault::new("a tag is not closed").at(opened));
            };
            if next == '"' || next == '\'' {
                self.string(next)?;
            } else if next.is_ascii_digit() {
                self.number()?;
            } else if next.is_alphabetic() || next == '_' {
                let rest = self.rest();
                let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
                self.push(Kind::Name(rest[..length].to_owned()));
                self.advance(length);
            } else if let Some(operator) = OPERATORS.into_iter().find(|operator| self.rest().starts_with(operator)) {
                match operator {
                    "(" | "[" | "{" => open.push(next),
                    ")" | "]" | "}" => {
                        let opening = match next {
                            ')' => '(',
                            ']' => '[',
                            _ => '{',
                        };
                        if open.pop() != Some(opening) {
                            return self.fault(format!("unexpected `{next}`"));
                        }
                    }
                    _ => {}
                }
                self.push(Kind::Operator(operator));
                self.advance(operator.len());
            } else {
                return self.fault(format!("unexpected `{next}`"));
            }
        }
    }

    fn number(&mut self) -> Outcome<()> {
        let rest = self.rest();
        let digits = |text: &str| text.find(|c: char| !(c.is_ascii_digit() || c == '_')).unwrap_or(text.len());
        let radix = match rest.get(..2) {
            Some("0x" | "0X") => 16,
            Some("0o" | "0O") => 8,
            Some("0b" | "0B") => 2,
            _ => 10,
        };
        let (mut length, mut is_float) = (digits(rest), false);
        if radix != 10 {
            let end = rest[2..].find(|c: char| !(c.is_digit(radix) || c == '_')).unwrap_or(rest.len() - 2);
            length = 2 + end;
        } else {
            let fraction = rest[length..].strip_prefix('.').map_or(0, digits);
            if fraction > 0 {
                (length, is_float) = (length + 1 + fraction, true);
            }
            if let Some(exponent) = rest[length..].strip_prefix(['e', 'E']) {
                let sign = usize::from(exponent.starts_with(['+', '-']));
                let power = digits(&exponent[sign..]);
                if power > 0 {
                    (length, is_float) = (length + 1 + sign + power, true);
                }
            }
        }
        let text: String = rest[..length].chars().filter(|&c| c != '_').collect();
        let kind = if is_float {
            text.parse().ok().map(Kind::Float)
        } else {
            i128::from_str_radix(if radix == 10 { &text } else { &text[2..] }, radix).ok().map(Kind::Integer)
        };
        let Some(kind) = kind else { return self.fault(format!("`{text}` is not a number that can be used")) };
        self.push(kind);
        self.advance(length);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Outcome<()> {
        let rest = &self.rest()[1..];
        let mut escaped = false;
        let end = rest.char_indices().find(|&(_, c)| {
            let is_end = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        });
        let Some((end, _)) = end else { return self.fault("a string is not closed") };
        let text = unescape(&rest[..end]).map_err(|fault| fault.at(self.line))?;
        self.push(Kind::String(text));
        self.advance(end + 2);
        Ok(())
    }
}

/// Python's escapes in a string.
fn unescape(text: &str) -> Outcome<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(next) = rest.chars().next() else { break };
        rest = &rest[next.len_utf8()..];
        let mut code = |digits: usize| {
            let code = rest.get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
            rest = rest.get(digits..).unwrap_or_default();
            code.ok_or_else(|| Fault::new("a string has an escape that is no character"))
        };
        match next {
            '\n' => {}
            '\\' | '\'' | '"' => plain.push(next),
            'n' => plain.push('\n'),
            't' => plain.push('\t'),
            'r' => plain.push('\r'),
            'a' => plain.push('\x07'),
            'b' => plain.push('\x08'),
            'f' => plain.push('\x0c'),
            'v' => plain.push('\x0b'),
            'x' => plain.push(code(2)?),
            'u' => plain.push(code(4)?),
            'U' => plain.push(code(8)?),
            'N' => return Err(Fault::new("`\\N{...}` in a string is not supported")),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                let digits = format!("{next}{}", &rest[..more]);
                rest = &rest[more..];
                plain.extend(u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32));
            }
            other => plain.extend(['\\', other]),
        }
    }
    Ok(plain + rest)
}
