//! `strftime_now`, which always returns the same time.
//!
//! A run resumed, cached or scored on another day must see the same tokens. The day is the one that Llama 3's templates
//! use if there is no clock: Friday, 26 July 2024, midnight, without a time zone. It matters for templates that write
//! today's date, such as those of Llama 3.1, 3.2 and 4, gpt-oss, SmolLM3, Command R7B, Granite and Mistral Small. Other
//! programs use the real date, so an exported template contains these times (`checkpoint/chat_template/`).
//!
//! Not here: the template's other functions; those are `globals.rs`.

/// What C's `strftime` writes at that moment, with glibc's flags and widths; an unknown code stays as it is.
pub(crate) fn strftime(format: &str) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let code = &rest[at + 1..];
        let flags = code.len() - code.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let digits = code[flags..].find(|c: char| !c.is_ascii_digit()).unwrap_or(code.len() - flags);
        let (flag, number) = code[..flags + digits].split_at(flags);
        let width = if number.is_empty() { 0 } else { number.parse().unwrap_or(usize::MAX) };
        let after = &code[flags + digits..];
        let modifier = usize::from(after.starts_with(['E', 'O']));
        let letter = after[modifier..].chars().next();
        match letter.and_then(field) {
            Some((plain, pad)) if width <= 64 => {
                text.push_str(&padded(plain, pad, flag, width));
                rest = &after[modifier + 1..];
            }
            _ => {
                text.push('%');
                rest = code;
            }
        }
    }
    text + rest
}

/// A code's text without padding, and the padding: its character and the width.
fn field(letter: char) -> Option<(&'static str, (char, usize))> {
    let word = |text| (text, (' ', 0));
    Some(match letter {
        'a' => word("Fri"),
        'A' => word("Friday"),
        'b' | 'h' => word("Jul"),
        'B' => word("July"),
        'c' => word("Fri Jul 26 00:00:00 2024"),
        'C' => ("20", ('0', 2)),
        'd' => ("26", ('0', 2)),
        'D' | 'x' => word("07/26/24"),
        'e' => ("26", (' ', 2)),
        'f' => ("0", ('0', 6)),
        'F' => word("2024-07-26"),
        'g' | 'y' => ("24", ('0', 2)),
        'G' | 'Y' => ("2024", ('0', 4)),
        'H' | 'M' | 'S' => ("0", ('0', 2)),
        'I' => ("12", ('0', 2)),
        'j' => ("208", ('0', 3)),
        'k' => ("0", (' ', 2)),
        'l' => ("12", (' ', 2)),
        'm' => ("7", ('0', 2)),
        'n' => word("\n"),
        'p' => word("AM"),
        'P' => word("am"),
        'r' => word("12:00:00 AM"),
        'R' => word("00:00"),
        's' => word("1721952000"),
        't' => word("\t"),
        'T' | 'X' => word("00:00:00"),
        'u' | 'w' => word("5"),
        'U' => ("29", ('0', 2)),
        'V' | 'W' => ("30", ('0', 2)),
        'z' | 'Z' => word(""),
        '%' => word("%"),
        _ => return None,
    })
}

fn padded(plain: &str, (fill, width): (char, usize), flags: &str, wanted: usize) -> String {
    let (mut fill, mut width) = (fill, width.max(wanted));
    for flag in flags.chars() {
        match flag {
            '-' => width = wanted,
            '_' => fill = ' ',
            '0' => fill = '0',
            _ => {}
        }
    }
    let plain = if flags.contains(['^', '#']) { plain.to_uppercase() } else { plain.to_owned() };
    let missing = width.saturating_sub(plain.chars().count());
    fill.to_string().repeat(missing) + &plain
}
