//! Quotes the words of commands that are printed for copying into a shell.
//!
//! Not here: starting processes (`launcher/`), which needs no shell.

/// The word, in single quotes if a shell would not read it as it is.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    /// Promise: a shell reads the word that was meant.
    #[test]
    fn a_shell_reads_what_was_quoted() {
        for word in ["plain/a-1.toml", "", "my run.toml", "it's", "$HOME", "a;b", "~", "*", "é", "a\nb"] {
            let echoed = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output();
            assert_eq!(String::from_utf8(echoed.unwrap().stdout).unwrap(), word);
        }
    }
}
