//! Promise: chat templates render as Transformers renders them. Truth is `templates/truth.json`; see `templates/README.md`.

use haf_dist::config::TemplateKind;
use haf_dist::data::template::jinja::{Fault, Program};
use haf_dist::data::template::{SpecialTokens, Template, variables};
use haf_dist::data::{Message, Prompt, TemplateInputs};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn truth() -> Value {
    serde_json::from_str(&read("truth.json")).unwrap()
}

/// The special tokens of make_truth.py's tokenizer.
fn special_tokens() -> SpecialTokens {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];
    tokens.map(|(name, text)| (name.into(), text.into())).into()
}

/// What a template writes of these messages, with a generation prompt.
fn rendered(template: &str, messages: &[Message]) -> Result<String, Fault> {
    Program::parse(template)?.render(&variables(messages, &TemplateInputs::default(), &special_tokens(), true))
}

/// A model's folder that has this template.
fn opened(template: &str) -> Result<Template, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), json!(special_tokens()).to_string()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    Template::open(TemplateKind::Chat, folder.path()).map_err(|error| error.message)
}

struct Conversation {
    name: String,
    messages: Vec<Message>,
    inputs: TemplateInputs,
}

fn conversations() -> Vec<Conversation> {
    let conversation = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let list = |key: &str| row[key].as_array().cloned();
        let arguments = row["arguments"].as_object().cloned().unwrap_or_default();
        let inputs = TemplateInputs { tools: list("tools"), documents: list("documents"), arguments };
        let messages = serde_json::from_value(row["messages"].clone()).unwrap();
        Conversation { name: row["name"].as_str().unwrap().into(), messages, inputs }
    };
    read("conversations.jsonl").lines().map(conversation).collect()
}

/// A conversation as a row of data is rendered: up to the answer, or with the answer that ends it.
fn rendered_row(template: &Template, Conversation { messages, inputs, .. }: &Conversation) -> Result<String, String> {
    let text = match messages.split_last() {
        Some((answer, before)) if answer.role == "assistant" => {
            template.render(&Prompt::Messages(before.to_vec()), inputs, answer)
        }
        _ => template.render_prompt(&Prompt::Messages(messages.clone()), inputs),
    };
    text.map_err(|error| error.message)
}

/// The messages that make_truth.py gives to expressions.
fn question() -> [Message; 1] {
    [Message::new("user", "a-bc")]
}

/// Whether an outcome is Transformers': the text or its hash, or an error of both.
fn is_held(found: &Result<String, String>, expected: &str) -> bool {
    match found {
        Err(_) => expected == "raises",
        Ok(text) => text == expected || format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes())) == expected,
    }
}

/// Templates that [`Template`] refuses: they write content parts (images and texts) alone, and no text as it is.
const WITHOUT_ANSWER: [&str; 2] = ["parts-only.jinja", "parts-selected.jinja"];

/// What became of a folder's templates with every conversation.
#[derive(Default)]
struct Compared {
    /// Renderings that are Transformers'.
    held: usize,
    /// Those that would not have been with one character more.
    controls: usize,
    differ: Vec<String>,
    /// Templates that were refused.
    refused: Vec<String>,
}

/// Renders every template of a folder that `truth` has.
fn compared(folder: &Path, truth: &Value) -> Compared {
    let conversations = conversations();
    let mut compared = Compared::default();
    for (file, outcomes) in truth["templates"].as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(file)).unwrap();
        let program = Program::parse(&source).unwrap();
        let template = opened(&source);
        if template.is_err() {
            compared.refused.push(file.clone());
        }
        for (row, expected) in conversations.iter().zip(outcomes.as_array().unwrap()) {
            let is_question = row.messages.last().unwrap().role != "assistant";
            let given = variables(&row.messages, &row.inputs, &special_tokens(), is_question);
            let found = program.render(&given).map_err(|fault| fault.to_string());
            let (as_row, expected) =
                (template.as_ref().map(|template| rendered_row(template, row)), expected.as_str().unwrap());
            let more = found.as_ref().map(|text| format!("{text} ")).map_err(String::clone);
            compared.controls += usize::from(more.is_err() || !is_held(&more, expected));
            match is_held(&found, expected) && as_row.map_or(true, |text| is_held(&text, expected)) {
                true => compared.held += 1,
                false => compared.differ.push(format!("{file}, {}: {found:?}, expected {expected}", row.name)),
            }
        }
    }
    let Compared { held, differ, .. } = &compared;
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), differ.len() + held, differ.join("\n"));
    compared
}

#[test]
fn every_rendering_is_transformers() {
    let Compared { held, controls, refused, .. } = compared(&folder().join("chat"), &truth());
    assert_eq!(refused, WITHOUT_ANSWER);
    assert_eq!((held, controls), (24 * 33, held));
}

/// With HAF_TEMPLATES set to a folder that `make_truth.py --others` has seen.
#[test]
fn every_rendering_of_other_templates_is_transformers() {
    let Some(folder) = std::env::var_os("HAF_TEMPLATES").map(PathBuf::from) else { return };
    let truth = std::fs::read_to_string(folder.join("truth.json")).unwrap();
    let Compared { held, controls, refused, .. } = compared(&folder, &serde_json::from_str(&truth).unwrap());
    println!("{held} renderings are Transformers'; refused: {refused:?}");
    assert!(held > 0 && controls == held);
}

#[test]
fn every_expression_is_jinjas() {
    let truth = truth();
    let expressions = truth["expressions"].as_object().unwrap();
    let mut differ = Vec::new();
    for (line, expected) in expressions {
        let found = rendered(&line.replace('␤', "\n"), &question());
        if found.as_ref().ok().map(String::as_str) != expected.as_str() {
            differ.push(format!("{line}\n  gives    {found:?}\n  expected {expected}"));
        }
    }
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), expressions.len(), differ.join("\n"));
    let asked = read("expressions.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert_eq!(expressions.len(), asked, "run make_truth.py again");
}

#[test]
fn honest_templates_are_far_from_the_bounds() {
    let turn = |at: usize| Message::new(if at.is_multiple_of(2) { "user" } else { "assistant" }, "word ".repeat(2000));
    let long: Vec<Message> = (0..2000).map(turn).collect();
    for file in ["thinking", "headers", "declared-types", "literal-arguments", "calls-as-tags"] {
        let text = rendered(&read(&format!("chat/{file}.jinja")), &long).unwrap();
        assert!(text.len() > 19_000_000, "{file}: {}", text.len());
    }
}
