//! Promise: what a user can choose is named where he looks for it: every value of a key in configs/reference.toml, and every
//! family, format, loss, prior and suite on its page.
//!
//! Not here: that every key is shown with its default (`config.rs`), and pages that are made (`docs.rs`).

use clap::ValueEnum;
use haf_dist::config::{Config, Format, PolicyLoss, Prior, known_keys};
use haf_dist::data::formats::LAYOUTS;
use haf_dist::evaluate::suites::Suite;
use haf_dist::model::architecture::FAMILIES;
use std::fs;
use std::path::Path;

fn text(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The values of a key that takes one of a few words; none of another key.
fn words(key: &str) -> Vec<String> {
    const MINIMAL: &str = "model.path = 'm'\ndata.train = [{ path = 'p' }]\noutput.dir = 'r'\n";
    let Err(error) = Config::parse("a.toml", MINIMAL, &[format!("{key}=no-such-word")]) else { return Vec::new() };
    let Some((_, listed)) = error.message.split_once("unknown value `no-such-word`; expected one of ") else {
        return Vec::new();
    };
    listed.split(", ").map(str::to_owned).collect()
}

/// The comment above a key in configs/reference.toml, and its line.
fn shown<'t>(reference: &'t str, table: &str, name: &str) -> Vec<&'t str> {
    let below = reference.lines().skip_while(|line| line.trim_matches(['[', ']', '#', ' ']) != table);
    let key = [format!("{name} = "), format!("# {name} = ")];
    let mut above = Vec::new();
    for line in below {
        let is_key = key.iter().any(|key| line.starts_with(key));
        // A key of another name ends what is said above it.
        if !is_key && !line.starts_with('#') {
            above.clear();
            continue;
        }
        above.push(line);
        if is_key {
            return above;
        }
    }
    panic!("configs/reference.toml does not show {table}.{name}");
}

#[test]
fn the_reference_names_every_word_that_a_key_takes() {
    let reference = text("configs/reference.toml");
    let mut keys = 0;
    for key in known_keys().iter().filter(|key| !key.starts_with("data.dev") && !key.starts_with("data.test")) {
        let path = key.replace(".0.", ".");
        let Some((table, name)) = path.rsplit_once('.') else { continue };
        let words = words(key);
        keys += usize::from(!words.is_empty());
        for word in words {
            let is_named = shown(&reference, table, name).iter().any(|line| line.contains(&format!("\"{word}\"")));
            assert!(is_named, "the comment of {key} in configs/reference.toml does not name \"{word}\"");
        }
    }
    assert!(keys >= 10, "{keys} keys take words");
    // Control: what is said of another key does not count.
    assert_eq!(words("loss.objective"), ["hybrid", "reward", "policy"]);
    assert!(!shown(&reference, "loss", "alpha").iter().any(|line| line.contains("\"hybrid\"")));
}

fn names<T: ValueEnum>() -> Vec<String> {
    let name = |value: &T| value.to_possible_value().unwrap().get_name().to_owned();
    T::value_variants().iter().map(name).collect()
}

/// Those of `names` that a page does not have in backquotes, with or without quotes.
fn missing(page: &str, names: &[String]) -> Vec<String> {
    let is_named =
        |name: &&String| [format!("`{name}`"), format!("`\"{name}\"`")].iter().any(|name| page.contains(name));
    names.iter().filter(|name| !is_named(name)).cloned().collect()
}

#[test]
fn every_family_format_loss_prior_and_suite_is_on_its_page() {
    let mut formats = names::<Format>();
    formats.retain(|format| format != "auto");
    let families = FAMILIES.iter().map(|family| family.model_type.to_owned()).collect();
    for (page, names) in [
        ("docs/models.md", families),
        ("docs/data.md", formats),
        ("docs/losses.md", names::<PolicyLoss>()),
        ("docs/losses.md", names::<Prior>()),
        ("docs/evaluation.md", names::<Suite>()),
    ] {
        let missing = missing(&text(page), &names);
        assert!(missing.is_empty(), "{page} does not name {missing:?}");
    }
    let said = format!("[{} layouts](docs/data.md)", LAYOUTS.len());
    assert!(text("README.md").contains(&said), "README.md does not say {said}");
    // Control: a longer word is another one.
    assert_eq!(missing("`dpo-norm`", &["dpo".into()]), ["dpo"]);
}

#[test]
fn the_help_of_eval_names_every_suite() {
    let help = text("docs/command-line.md");
    let (_, help) = help.split_once("--suite <SUITE> <FILE>...").unwrap();
    let (help, _) = help.split_once("\n\n").unwrap();
    let said: Vec<&str> = help.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').collect();
    for suite in names::<Suite>() {
        assert!(said.contains(&suite.as_str()), "the help of `eval --suite` does not name {suite}: {help}");
    }
}
