//! Python's classes of characters, and their upper and lower case.
//!
//! Not here: methods that take arguments; those are `strings.rs`.

/// Python's `str.isspace` for one character: Unicode's whitespace and four separators of ASCII.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Whether a character ends a line for `splitlines`.
pub(crate) fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// A text in another case: `upper`, `lower`, `capitalize`, `swapcase` or `title`.
pub(crate) fn cased(text: &str, how: &str) -> String {
    match how {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "capitalize" => {
            let mut characters = text.chars();
            let first = characters.next().map(titled).unwrap_or_default();
            first + &characters.as_str().to_lowercase()
        }
        "swapcase" => {
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swap).collect()
        }
        _ => {
            let mut in_word = false;
            let mut new = String::new();
            for c in text.chars() {
                if in_word {
                    new.extend(c.to_lowercase())
                } else {
                    new.push_str(&titled(c))
                }
                in_word = c.is_lowercase() || c.is_uppercase() || is_title(c);
            }
            new
        }
    }
}

/// The digraphs that have a title case of their own.
fn is_title(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

/// A character at the start of a title's word.
fn titled(c: char) -> String {
    match c {
        '\u{1c4}'..='\u{1c6}' => '\u{1c5}'.into(),
        '\u{1c7}'..='\u{1c9}' => '\u{1c8}'.into(),
        '\u{1ca}'..='\u{1cc}' => '\u{1cb}'.into(),
        '\u{1f1}'..='\u{1f3}' => '\u{1f2}'.into(),
        // Georgian capitals are for whole words.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => c.into(),
        _ => {
            let mut upper = c.to_uppercase();
            let first = upper.next().map(String::from).unwrap_or_default();
            upper.fold(first, |text, c| text + &c.to_lowercase().to_string())
        }
    }
}

/// The result of `isalpha` or a similar method of a text.
pub(crate) fn is(text: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    match name {
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(super::print::is_printable),
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(|c| is_decimal(c) || is_other_digit(c)),
        "isnumeric" => all(char::is_numeric),
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c)),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c)),
        "istitle" => {
            let (mut in_word, mut any) = (false, false);
            for c in text.chars() {
                let starts = c.is_uppercase() || is_title(c);
                if starts && in_word || c.is_lowercase() && !in_word {
                    return false;
                }
                in_word = starts || c.is_lowercase();
                any |= in_word;
            }
            any
        }
        _ => {
            let mut characters = text.chars();
            characters.next().is_some_and(|c| c.is_alphabetic() || c == '_')
                && characters.all(|c| c.is_alphanumeric() || c == '_')
        }
    }
}

/// Unicode's decimal digits, ten in a row from each of these zeros on.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 65] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20,
        0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0,
        0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x1_04a0, 0x1_0d30, 0x1_1066, 0x1_10f0, 0x1_1136, 0x1_11d0,
        0x1_12f0, 0x1_1450, 0x1_14d0, 0x1_1650, 0x1_16c0, 0x1_1730, 0x1_18e0, 0x1_1950, 0x1_1c50, 0x1_1d50, 0x1_1da0,
        0x1_6a60, 0x1_6ac0, 0x1_6b50, 0x1_d7ce, 0x1_d7d8, 0x1_d7e2, 0x1_d7ec, 0x1_d7f6, 0x1_e140, 0x1_e2f0, 0x1_e950,
        0x1_fbf0,
    ];
    let code = u32::from(c);
    c.is_ascii_digit() || !c.is_ascii() && ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}

/// Superscripts, digits in circles and their like, which `isdigit` takes and `isdecimal` does not.
fn is_other_digit(c: char) -> bool {
    matches!(u32::from(c),
        0xb2..=0xb3 | 0xb9 | 0x1369..=0x1371 | 0x19da | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089 | 0x2460..=0x2468 | 0x2474..=0x247c | 0x2488..=0x2490 | 0x24ea | 0x24f5..=0x24fd | 0x24ff | 0x2776..=0x277e | 0x2780..=0x2788 | 0x278a..=0x2792 | 0x1_0a40..=0x1_0a43 | 0x1_0e60..=0x1_0e68 | 0x1_1052..=0x1_105a | 0x1_f100..=0x1_f10a
    )
}
