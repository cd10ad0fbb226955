//! `haf-dist formats`: prints the known layouts of rows, each with its keys and an example.
//!
//! Not here: the layouts (`data/formats/layouts.rs`).

use crate::config::Format;
use crate::data::formats::layout::{At, Layout, Preference};
use crate::data::formats::{LAYOUTS, keys_beside};
use crate::error::{Error, Result};
use crate::terminal;
use clap::ValueEnum;
use serde_json::{Value, json};

/// Prints all layouts, or one with the meaning of each of its keys.
///
/// # Errors
/// A name that has no layout of its own.
pub(crate) fn run(format: Option<Format>, json: bool) -> Result<()> {
    if json {
        let chosen = LAYOUTS.iter().filter(|layout| format.is_none_or(|format| layout.format == format));
        return terminal::lines(chosen.map(as_json));
    }
    let Some(format) = format else {
        for layout in LAYOUTS {
            let keys: Vec<String> = parts(layout).into_iter().map(|(_, paths)| paths).collect();
            terminal::out(format_args!(
                "{}\n  keys     {}\n  example  {}",
                title(layout),
                keys.join("; "),
                example(layout)
            ))?;
        }
        let beside: Vec<&str> = keys_beside().collect();
        return terminal::out(format_args!(
            "\nBeside any of them: {}.\nA source's `columns`, or --column, say where other rows have these keys.",
            beside.join(", ")
        ));
    };
    let layout = LAYOUTS.iter().find(|layout| layout.format == format).ok_or_else(|| {
        Error::input("auto is not a layout: it takes the first one that the rows' keys match")
            .hint("haf-dist formats lists them")
    })?;
    terminal::out(title(layout))?;
    for (what, paths) in parts(layout) {
        terminal::out(format_args!("  {what:<10}  {paths}"))?;
    }
    terminal::out(format_args!("  {:<10}  {}", "example", example(layout)))
}

fn as_json(layout: &Layout) -> Value {
    let keys = parts(layout).into_iter().map(|(what, paths)| (what.replace(' ', "_"), paths.into()));
    let example: Vec<Value> = layout.example.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    json!({
        "format": name(layout), "about": layout.about, "detected": !layout.signs.is_empty(),
        "keys": Value::Object(keys.collect()), "example": example,
    })
}

fn name(layout: &Layout) -> String {
    layout.format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn title(layout: &Layout) -> String {
    let name = name(layout);
    let must_be_named = if layout.signs.is_empty() { " (must be named)" } else { "" };
    format!("{name}: {}{must_be_named}", layout.about)
}

/// The example's rows, one below the other.
fn example(layout: &Layout) -> String {
    layout.example.lines().collect::<Vec<_>>().join("\n           ")
}

/// A layout's parts with the paths of their keys; "or" separates alternatives, of which the first that exists counts.
fn parts(layout: &Layout) -> Vec<(&'static str, String)> {
    let or = |paths: At| paths.iter().map(|path| path.trim_start_matches("rows[].")).collect::<Vec<_>>().join(" or ");
    let all = |places: &[At]| places.iter().map(|paths| or(paths)).collect::<Vec<_>>().join(", ");
    let decided = match layout.preference {
        Preference::Sides | Preference::Alone | Preference::Ranks([]) => String::new(),
        Preference::Winner(at, _) | Preference::Strength(at, _) => or(at),
        Preference::Safety(at, [one, other]) => all(&[at, one, other]),
        Preference::Ranks(places) | Preference::Scores(places) => all(places),
    };
    let parts = [
        ("prompt", or(layout.prompt)),
        ("answers", all(layout.answers)),
        ("decided by", decided),
        ("margin", layout.margin.map(|[one, other]| format!("{} minus {}", or(one), or(other))).unwrap_or_default()),
        ("tie", or(layout.tie)),
        ("domain", or(layout.domain)),
    ];
    parts.into_iter().filter(|(_, paths)| !paths.is_empty()).collect()
}
