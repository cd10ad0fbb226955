//! Reads the literal arguments of calls in a Python script that set up a training. The script is never run.
//!
//! Arguments that are not literals are listed, not guessed. Not here: tokens (`tokens.rs`), and the meaning of the names
//! (`translate.rs`).

use super::content::{Content, DEEPEST, Item, Unread};
use super::draft::quoted;
use super::tokens::{Kind, Token, tokens};
use super::yaml;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// Calls whose arguments are read.
const CALLS: [&str; 10] = [
    "RewardConfig",
    "DPOConfig",
    "TrainingArguments",
    "LoraConfig",
    "ModelConfig",
    "ScriptArguments",
    "RewardTrainer",
    "DPOTrainer",
    "load_dataset",
    "from_pretrained",
];

/// Calls of TRL that set up another kind of training.
pub(crate) const OTHER_TRAININGS: [&str; 10] = [
    "SFTConfig",
    "SFTTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "PPOConfig",
    "PPOTrainer",
];

const NOT_LITERAL: &str = "not a literal: scripts are not run";

/// Reads a script.
///
/// # Errors
/// A string, or a bracket of such a call, that is not closed; or deep nesting.
pub(crate) fn read(text: &str) -> Result<Content> {
    let tokens = tokens(text)?;
    let mut content = Content::default();
    let mut depth = 0_usize;
    let read_elsewhere: Vec<&str> = (0..tokens.len())
        .filter_map(|at| {
            match tokens[at].kind {
                Kind::Sign('(' | '[' | '{') => depth += 1,
                Kind::Sign(')' | ']' | '}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            // Within a bracket it would be an argument's name.
            assigned(&tokens, at).filter(|_| depth == 0)
        })
        .collect();
    for (at, token) in tokens.iter().enumerate() {
        let Kind::Name(name) = token.kind else { continue };
        if OTHER_TRAININGS.contains(&name) && tokens.get(at + 1).is_some_and(|next| next.kind == Kind::Sign('(')) {
            content.calls.push(name.to_owned());
        }
        if !is_call(&tokens, at) {
            continue;
        }
        let arguments = arguments(&tokens, at + 1)?;
        content.calls.push(name.to_owned());
        Call { text, name, line: token.line, read_elsewhere: &read_elsewhere }.read(&arguments, &mut content);
    }
    Ok(content)
}

/// Whether one of [`CALLS`] begins here; `from_pretrained` only of models, since tokenizers have one too.
fn is_call(tokens: &[Token], at: usize) -> bool {
    let kind = |at: usize| tokens.get(at).map(|token| &token.kind);
    let before = |back: usize| at.checked_sub(back).and_then(kind);
    let Some(Kind::Name(name)) = kind(at) else { return false };
    if !CALLS.contains(name)
        || kind(at + 1) != Some(&Kind::Sign('('))
        || matches!(before(1), Some(Kind::Name("class" | "def")))
    {
        return false;
    }
    *name != "from_pretrained"
        || matches!((before(1), before(2)), (Some(Kind::Sign('.')), Some(Kind::Name(of))) if of.contains("Model"))
}

/// The variable that gets the result of a call that begins here: `config` of `config = RewardConfig(...)`.
fn assigned<'t>(tokens: &[Token<'t>], at: usize) -> Option<&'t str> {
    let before = |back: usize| at.checked_sub(back).and_then(|at| tokens.get(at)).map(|token| &token.kind);
    // A method follows the name of its class.
    let back = if before(1) == Some(&Kind::Sign('.')) { 3 } else { 1 };
    match (is_call(tokens, at), before(back), before(back + 1)) {
        (true, Some(Kind::Sign('=')), Some(Kind::Name(name))) => Some(name),
        _ => None,
    }
}

/// The arguments of a call whose bracket opens at `open`, each as its tokens.
fn arguments<'a, 't>(tokens: &'a [Token<'t>], open: usize) -> Result<Vec<&'a [Token<'t>]>> {
    let mut arguments = Vec::new();
    let (mut depth, mut start) = (0, open + 1);
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Sign('(' | '[' | '{') => depth += 1,
            Kind::Sign(')' | ']' | '}') => depth -= 1,
            Kind::Sign(',') if depth == 1 => {
                arguments.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        if depth > DEEPEST {
            return Err(Error::input(format!("line {}: brackets nested deeper than {DEEPEST}", token.line)));
        }
        if depth == 0 {
            arguments.push(&tokens[start..at]);
            arguments.retain(|argument| !argument.is_empty());
            return Ok(arguments);
        }
    }
    let line = tokens.get(open).map_or(0, |token| token.line);
    Err(Error::input(format!("line {line}: this bracket is not closed")).hint("is the script complete?"))
}

/// A call whose arguments are read.
struct Call<'t> {
    text: &'t str,
    name: &'t str,
    line: usize,
    /// Variables that hold the results of calls, which are read on their own.
    read_elsewhere: &'t [&'t str],
}

impl Call<'_> {
    fn read(&self, arguments: &[&[Token]], content: &mut Content) {
        let mut named = Map::new();
        let mut position = 0;
        for argument in arguments {
            let (name, value) = match argument {
                [Token { kind: Kind::Name(name), .. }, Token { kind: Kind::Sign('='), .. }, value @ ..] => {
                    (Some(*name), value)
                }
                value => (None, *value),
            };
            let line = argument.first().map_or(self.line, |token| token.line);
            // A nested call of `CALLS` is read on its own, and so is one whose result has a name.
            let elsewhere =
                matches!(value, [Token { kind: Kind::Name(name), .. }] if self.read_elsewhere.contains(name));
            if elsewhere || (0..value.len()).any(|at| is_call(value, at)) {
                continue;
            }
            let name = name.map(str::to_owned).or_else(|| {
                position += 1;
                self.positional(position).map(str::to_owned)
            });
            match (&name, literal(value)) {
                (Some(name), Some(value)) if self.name == "load_dataset" => {
                    named.insert(name.clone(), value);
                }
                (Some(name), Some(value)) => {
                    content.items.push(Item { name: self.common(name), value, line });
                }
                _ => {
                    let text = format!("{}({})", self.name, quoted(self.source(argument)));
                    let why = if matches!(argument.first(), Some(Token { kind: Kind::Sign('*'), .. })) {
                        "arguments from elsewhere: scripts are not run"
                    } else {
                        NOT_LITERAL
                    };
                    let name = name.map(|name| self.common(&name));
                    content.unread.push(Unread { line, text, why, name });
                }
            }
        }
        if !named.is_empty() {
            let value = Value::Object(named);
            content.items.push(Item { name: "load_dataset".to_owned(), value, line: self.line });
        }
    }

    /// The name of a positional argument, counted from 1.
    fn positional(&self, position: usize) -> Option<&'static str> {
        match (self.name, position) {
            ("from_pretrained", 1) => Some("model_name_or_path"),
            ("load_dataset", 1) => Some("path"),
            ("load_dataset", 2) => Some("name"),
            ("RewardTrainer" | "DPOTrainer", 1) => Some("model"),
            ("RewardConfig" | "DPOConfig" | "TrainingArguments", 1) => Some("output_dir"),
            _ => None,
        }
    }

    /// The name of an argument in TRL's config files.
    fn common(&self, name: &str) -> String {
        match (self.name, name) {
            ("LoraConfig", "r") => "lora_r".to_owned(),
            ("LoraConfig", "target_modules" | "modules_to_save" | "target_parameters" | "task_type") => {
                format!("lora_{name}")
            }
            ("RewardTrainer" | "DPOTrainer", "model") | ("from_pretrained", "pretrained_model_name_or_path") => {
                "model_name_or_path".to_owned()
            }
            ("from_pretrained", "revision") => "model_revision".to_owned(),
            ("from_pretrained", "torch_dtype") => "dtype".to_owned(),
            _ => name.to_owned(),
        }
    }

    fn source(&self, argument: &[Token]) -> &str {
        let range = argument.first().map_or(0, |token| token.start)..argument.last().map_or(0, |token| token.end);
        self.text.get(range).unwrap_or_default()
    }
}

/// The value of a literal, as by Python's `ast.literal_eval`, without bytes and complex numbers.
fn literal(tokens: &[Token]) -> Option<Value> {
    let mut reader = Literal { tokens, at: 0 };
    let value = reader.value()?;
    (reader.at == tokens.len()).then_some(value)
}

struct Literal<'a, 't> {
    tokens: &'a [Token<'t>],
    at: usize,
}

impl<'a, 't> Literal<'a, 't> {
    fn next(&mut self) -> Option<&'a Kind<'t>> {
        let kind = self.tokens.get(self.at).map(|token| &token.kind);
        self.at += 1;
        kind
    }

    fn takes(&mut self, sign: char) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|token| token.kind == Kind::Sign(sign));
        self.at += usize::from(found);
        found
    }

    /// Recursion is bounded by the depth of the call's brackets.
    fn value(&mut self) -> Option<Value> {
        match self.next()? {
            Kind::Name("True") => Some(true.into()),
            Kind::Name("False") => Some(false.into()),
            Kind::Name("None") => Some(Value::Null),
            Kind::Number(text) => number(text),
            Kind::Sign('-') => match self.next()? {
                Kind::Number(text) => number(&format!("-{text}")),
                _ => None,
            },
            Kind::Text(text) => {
                let mut whole = text.clone()?;
                while let Some(Token { kind: Kind::Text(more), .. }) = self.tokens.get(self.at) {
                    whole += more.as_deref()?;
                    self.at += 1;
                }
                Some(whole.into())
            }
            Kind::Sign('[') => self.list(']').map(|(list, _)| Value::Array(list)),
            Kind::Sign('(') => self.list(')').map(|(mut list, commas)| match (list.len(), commas) {
                (1, false) => list.remove(0),
                _ => Value::Array(list),
            }),
            Kind::Sign('{') => self.braces(),
            _ => None,
        }
    }

    /// Values up to a closing sign, and whether there was a comma.
    fn list(&mut self, close: char) -> Option<(Vec<Value>, bool)> {
        let (mut list, mut commas) = (Vec::new(), false);
        while !self.takes(close) {
            list.push(self.value()?);
            if self.takes(close) {
                break;
            }
            commas = self.takes(',');
            if !commas {
                return None;
            }
        }
        Some((list, commas))
    }

    /// A dict, or a set as a list.
    fn braces(&mut self) -> Option<Value> {
        let (mut object, mut list) = (Map::new(), Vec::new());
        while !self.takes('}') {
            let value = self.value()?;
            if self.takes(':') {
                let name = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                object.insert(name, self.value()?);
            } else {
                list.push(value);
            }
            if !self.takes(',') {
                return self.takes('}').then_some(()).and_then(|()| either(object, list));
            }
        }
        either(object, list)
    }
}

fn either(object: Map<String, Value>, list: Vec<Value>) -> Option<Value> {
    match (object.is_empty(), list.is_empty()) {
        (_, true) => Some(Value::Object(object)),
        (true, false) => Some(Value::Array(list)),
        (false, false) => None,
    }
}

/// A number as Python writes it: `0x10`, `1_000`, `5e-5`, `.5`.
fn number(text: &str) -> Option<Value> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let lower = digits.to_ascii_lowercase().replace('_', "");
    for (prefix, base) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = lower.strip_prefix(prefix) {
            return i64::from_str_radix(digits, base).ok().map(|number| Value::from(sign * number));
        }
    }
    yaml::number(text)
}

#[cfg(test)]
mod tests;
