//! Promise: README and docs/ are short, say nothing twice, and have no dead links; docs/config.md and docs/command-line.md are what
//! configs/reference.toml and the program say. `UPDATE_DOCS=1` rewrites these two.
//!
//! Not here: whether the commands of the pages work (`launch/test_docs.py`).

use clap::CommandFactory;
use haf_dist::cli::Arguments;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of README.md at most.
const FRONT_PAGE: usize = 150;
/// A paragraph of so many characters may stand in one place only.
const LONG: usize = 80;
/// Folders whose files are named with their path.
const FOLDERS: &[&str] = &["launch/", "configs/", "src/", "tests/", "docs/", "benches/"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Path from the root -> text, for README.md and every page of docs/, and of the root with `all`.
fn pages(all: bool) -> BTreeMap<String, String> {
    let mut names = vec!["README.md".to_string()];
    if all {
        names.extend(["CONTRIBUTING.md", "SECURITY.md"].map(String::from));
    }
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    let read = |name: String| {
        let text = fs::read_to_string(root().join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// A page without its fenced blocks and comments; their lines are left empty.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut kept = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        if !fence && !fenced && !line.starts_with("<!--") {
            kept.push_str(line);
        }
        kept.push('\n');
        fenced ^= fence;
    }
    kept
}

/// A text without what stands in backquotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The targets of a page's links and pictures, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text).lines().enumerate() {
        for rest in without_code(line).split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            found.push((number + 1, target.to_string()));
        }
    }
    found
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for heading in prose(text).lines().filter(|line| line.starts_with('#')) {
        let title = heading.trim_start_matches('#').trim().replace('`', "");
        let kept = title.to_lowercase();
        let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        let anchor: String = kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect();
        let mut numbered = anchor.clone();
        let mut number = 0;
        while !found.insert(numbered.clone()) {
            number += 1;
            numbered = format!("{anchor}-{number}");
        }
    }
    found
}

/// What is wrong with a link of `page`, if anything.
fn dead(page: &str, target: &str) -> Option<&'static str> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let folder = root().join(page).parent().map(Path::to_path_buf).unwrap_or_default();
    let file = if path.is_empty() { root().join(page) } else { folder.join(path) };
    if !file.exists() {
        return Some("there is no such file");
    }
    let known = anchor.is_empty() || fs::read_to_string(file).is_ok_and(|text| anchors(&text).contains(anchor));
    (!known).then_some("the page has no such heading")
}

/// Long paragraphs and tables of a page, white space made alike.
fn paragraphs(text: &str) -> Vec<String> {
    let text = prose(text);
    let blocks = text.split("\n\n").map(|block| block.split_whitespace().collect::<Vec<_>>().join(" "));
    blocks.filter(|block| block.chars().count() > LONG).collect()
}

/// Paths of files that a page names, from the root.
fn named(text: &str) -> BTreeSet<String> {
    let belongs = |letter: char| letter.is_ascii_alphanumeric() || "/._-*".contains(letter);
    let mut found = BTreeSet::new();
    for word in text.split(|letter: char| !belongs(letter)) {
        // Links to other places of the web, and paths with a star or of another folder, are no paths from here.
        let path = word.trim_start_matches("./").trim_end_matches(['.', '-']);
        if FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains('*') {
            found.insert(path.to_string());
        }
    }
    found
}

#[test]
fn the_front_page_is_short() {
    let lines = pages(false)["README.md"].lines().count();
    assert!(lines <= FRONT_PAGE, "README.md has {lines} lines: move some to docs/");
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for (page, text) in pages(true) {
        for (line, target) in links(&text) {
            if let Some(why) = dead(&page, &target) {
                wrong.push(format!("{page}:{line}: {target}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Controls: a link to nothing, and one to no heading of a page that is there.
    assert!(dead("README.md", "docs/nothing.md").is_some());
    assert!(dead("docs/README.md", "install.md#no-such-heading").is_some());
    assert_eq!(links("a [b](c.md#d) and `[no](code)`\n```\n[no](block)\n```"), [(1, "c.md#d".to_string())]);
    assert_eq!(anchors("# A `b`: c, d\n# A b c d\n"), ["a-b-c-d", "a-b-c-d-1"].map(String::from).into());
}

#[test]
fn every_page_is_in_the_index() {
    let pages = pages(false);
    let listed: BTreeSet<String> = links(&pages["docs/README.md"]).into_iter().map(|(_, target)| target).collect();
    for page in pages.keys().filter_map(|page| page.strip_prefix("docs/")).filter(|page| *page != "README.md") {
        assert!(listed.contains(page), "docs/README.md does not name {page}");
    }
}

#[test]
fn nothing_is_said_twice() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (page, text) in pages(false) {
        for paragraph in paragraphs(&text) {
            if let Some(before) = seen.insert(paragraph.clone(), page.clone()) {
                panic!("{before} and {page} both say: {paragraph}");
            }
        }
    }
    // Control: lines broken elsewhere do not make it another paragraph.
    let long = "word ".repeat(LONG);
    assert_eq!(paragraphs(&long), paragraphs(&format!("\n\n{}\n", long.replacen(' ', "\n", 3))));
}

#[test]
fn every_path_that_is_named_is_there() {
    for (page, text) in pages(true) {
        for path in named(&text) {
            assert!(root().join(&path).exists(), "{page} names {path}, which is not there");
        }
    }
    // Control: paths are found in code, in a sentence and behind ./, and not within others.
    let text = "`src/lib.rs`, (launch/setup.sh). ./configs/x.toml https://example.org/src/no my/tests/no";
    assert_eq!(named(text), ["src/lib.rs", "launch/setup.sh", "configs/x.toml"].map(String::from).into());
}

/// The paths that a tree of files names: two spaces a level, maybe several on a line, and behind two spaces what they are.
fn tree(text: &str) -> BTreeSet<String> {
    let (mut found, mut above) = (BTreeSet::new(), Vec::<String>::new());
    for line in text.lines() {
        let names = line.trim_start();
        above.truncate((line.len() - names.len()) / 2);
        for name in names.split("  ").next().unwrap_or_default().split([',', ' ']).filter(|name| !name.is_empty()) {
            let path = above.concat() + name;
            found.insert(path.trim_end_matches('/').to_string());
        }
        above.push(names.split(' ').next().unwrap_or_default().to_string());
    }
    found
}

#[test]
fn the_source_tree_is_what_is_there() {
    let page = &pages(false)["docs/internals.md"];
    let (_, text) = page.split_once("## The source tree").unwrap();
    let named = tree(text.split("```").nth(1).unwrap().trim_start_matches("text\n"));
    let gone: Vec<_> = named.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(gone.is_empty(), "docs/internals.md names {gone:?}, which are not there");
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = Path::new("src").join(entry.unwrap().file_name());
        let is_named = named.iter().any(|named| Path::new(named).starts_with(&path));
        assert!(is_named, "the tree of docs/internals.md does not have {}", path.display());
    }
    // Control: a name is one below what it stands under.
    let found = tree("a/\n  b.rs, c/  two\n  d/  one\n    e.rs\nf/ g.rs\n");
    assert_eq!(found, ["a", "a/b.rs", "a/c", "a/d", "a/d/e.rs", "f", "g.rs"].map(String::from).into());
}

/// A line of reference.toml.
enum Line<'a> {
    /// A table's name, and whether it stands there as a comment.
    Table(&'a str),
    /// `key = value`, as a comment or not.
    Key(&'a str),
    Comment(&'a str),
    Empty,
}

fn parsed(line: &str) -> Line<'_> {
    let bare = line.strip_prefix("# ").unwrap_or(line);
    let is_key = |text: &str| {
        let name = text.split(" = ").next().unwrap_or_default();
        text.contains(" = ")
            && !name.is_empty()
            && name.chars().all(|letter| letter.is_ascii_lowercase() || "_0123456789".contains(letter))
    };
    if bare.starts_with('[') && bare.ends_with(']') {
        Line::Table(bare.trim_matches(['[', ']']))
    } else if is_key(bare) {
        Line::Key(bare)
    } else if let Some(comment) = line.strip_prefix('#') {
        Line::Comment(comment.strip_prefix(' ').unwrap_or(comment))
    } else {
        Line::Empty
    }
}

/// Comments as Markdown: indented lines, which are lists set in columns, become a block.
fn explained(comments: &[&str]) -> String {
    let mut text = String::new();
    let mut listing = false;
    for comment in comments {
        let is_listed = comment.starts_with("  ");
        if is_listed != listing {
            text.push_str(if is_listed { "\n```text\n" } else { "```\n\n" });
            listing = is_listed;
        }
        let _ = writeln!(text, "{}", if listing { &comment[2..] } else { comment });
    }
    if listing {
        text.push_str("```\n");
    }
    text
}

/// Keys that share an explanation, written and emptied.
fn write_keys(page: &mut String, keys: &mut Vec<&str>, comments: &mut Vec<&str>) {
    if !keys.is_empty() {
        let names: Vec<String> = keys.drain(..).map(|key| format!("**`{key}`**")).collect();
        let _ = writeln!(page, "{}\n", names.join(", "));
    }
    if !comments.is_empty() {
        let _ = writeln!(page, "{}", explained(comments));
        comments.clear();
    }
}

/// docs/config.md, from the comments and defaults of configs/reference.toml: a section a table.
fn config_page(reference: &str) -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         This page is made from [configs/reference.toml](../configs/reference.toml), \
         which `haf-dist init --reference` prints.\n\n",
    );
    // The comments that wait for what they are about, and the keys and comments that wait to be written.
    let (mut waiting, mut keys, mut comments) = (Vec::new(), Vec::new(), Vec::new());
    for line in reference.lines() {
        match parsed(line) {
            Line::Comment(comment) => waiting.push(comment),
            Line::Table(name) => {
                write_keys(&mut page, &mut keys, &mut comments);
                let _ = writeln!(page, "## {name}\n");
                write_keys(&mut page, &mut keys, &mut waiting);
            }
            Line::Key(key) => {
                // A key without a comment of its own shares that of the key above it.
                if !waiting.is_empty() {
                    write_keys(&mut page, &mut keys, &mut comments);
                    comments = std::mem::take(&mut waiting);
                }
                keys.push(key);
            }
            // What stands before the first table is about the whole file.
            Line::Empty => {
                write_keys(&mut page, &mut keys, &mut comments);
                write_keys(&mut page, &mut keys, &mut waiting);
            }
        }
    }
    write_keys(&mut page, &mut keys, &mut comments);
    page.trim_end().to_string() + "\n"
}

/// What `haf-dist ARGUMENTS --help` prints where it is not a terminal: 100 columns, no colors.
fn help(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haf-dist"));
    let output =
        command.args(arguments).arg("--help").env_remove("COLUMNS").env_remove("CLICOLOR_FORCE").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end().to_string() + "\n").collect()
}

/// docs/command-line.md, from the help of every command.
fn command_page() -> String {
    let mut page = String::from(
        "# Command line\n\n\
         This page is the program's own help: `haf-dist --help` and `haf-dist COMMAND --help`.\n",
    );
    let arguments = Arguments::command();
    let commands = arguments.get_subcommands().filter(|command| !command.is_hide_set());
    let names = commands.map(|command| command.get_name()).filter(|name| *name != "help");
    for name in [""].into_iter().chain(names) {
        let typed: Vec<&str> = Some(name).filter(|name| !name.is_empty()).into_iter().collect();
        let _ = write!(page, "\n## {}\n\n```text\n{}```\n", ["haf-dist", name].join(" ").trim(), help(&typed));
    }
    page
}

/// Compares a generated page with the file, or writes it.
fn compare(file: &str, made: &str) {
    let path = root().join(file);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, made).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(made.lines()).position(|(found, made)| found != made);
    assert!(
        found == made,
        "{file} is stale from line {differs:?} on: UPDATE_DOCS=1 cargo test --release --test all docs::"
    );
}

#[test]
fn the_configuration_page_is_what_the_reference_says() {
    compare("docs/config.md", &config_page(&fs::read_to_string(root().join("configs/reference.toml")).unwrap()));
    let small = "# About.\n\n[a]\n# First,\n#   \"x\"  one\n# then.\nkey = 1\n# other = 2\n\n# Why.\n# [b]\n";
    let page = config_page(small);
    for part in [
        "About.\n",
        "## a\n\n**`key = 1`**, **`other = 2`**\n\nFirst,\n\n```text\n\"x\"  one\n```\n\nthen.\n",
        "## b\n\nWhy.\n",
    ] {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
}

#[test]
fn the_command_line_page_is_what_the_program_says() {
    compare("docs/command-line.md", &command_page());
}

/// With `--exact` a name that no test has would run nothing, and pass.
#[test]
fn the_tests_that_gpu_check_names_exist() {
    let script = fs::read_to_string(root().join("launch/gpu-check.sh")).unwrap();
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
    let names: BTreeSet<(&str, &str)> =
        script.split(|letter| !is_part(letter)).filter_map(|word| word.split_once("::")).collect();
    assert!(names.len() > 6, "{names:?}");
    for (module, name) in names {
        let file = root().join("tests/all").join(module);
        let text = fs::read_to_string(file.with_extension("rs")).or_else(|_| fs::read_to_string(file.join("mod.rs")));
        // A name may go on with a variable of the script.
        assert!(text.unwrap().contains(&format!("fn {name}")), "launch/gpu-check.sh names {module}::{name}");
    }
}
