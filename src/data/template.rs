//! How a prompt and an answer become text: the model folder's chat template, or a named plain one.
//!
//! Not here: tokens, the turn's end and truncation; those are `tokenize.rs`.

use crate::config::TemplateKind;
use crate::data::{Message, Prompt, TemplateInputs};
use crate::error::{Error, Result, file_error};
use crate::files;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use std::collections::BTreeMap;
use std::path::Path;

const NAME: &str = "chat_template";
/// The file that keeps the original of a chat template that an export has changed.
pub const ORIGINAL: &str = "chat_template.original.jinja";
/// How a template that an export has changed begins.
pub const MARK: &str =
    "{#- haf-dist: ends at the EOS of a final assistant turn; before: chat_template.original.jinja -#}";
/// An answer that no template knows and that trimming leaves alone.
const SENTINEL: &str = "haf-dist-probe-8d1f";
const OTHER_TEMPLATES: &str = "or use template = \"instruct\", \"hh\" or \"plain\"";

/// Special tokens by role (`bos_token`, `eos_token`, ...), as text.
pub type SpecialTokens = BTreeMap<String, String>;

/// Turns prompts and answers into text.
pub struct Template {
    kind: TemplateKind,
    special_tokens: SpecialTokens,
    chat: Option<Chat>,
}

/// A compiled chat template.
struct Chat {
    environment: Environment<'static>,
    /// As its file has it.
    text: String,
    source: String,
    /// The special tokens by role.
    variables: BTreeMap<String, Value>,
    /// What follows the answer at the end of a conversation.
    tail: String,
}

impl Template {
    /// Reads what `kind` needs from a model's folder: `chat_template.jinja`, else `tokenizer_config.json`'s
    /// `chat_template` (a string, or the one named `default`); the special tokens from `tokenizer_config.json` and
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// A missing or broken chat template, or broken JSON.
    pub fn open(kind: TemplateKind, model_dir: &Path) -> Result<Self> {
        let config = json(&model_dir.join("tokenizer_config.json"))?;
        let mut special_tokens = SpecialTokens::new();
        for file in [&json(&model_dir.join("special_tokens_map.json"))?, &config] {
            let keys = file.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
            let text = |value: &serde_json::Value| Some(value.get("content").unwrap_or(value).as_str()?.to_owned());
            special_tokens.extend(keys.filter_map(|(key, value)| Some((key.clone(), text(value)?))));
        }
        let chat = match kind {
            TemplateKind::Chat => Some(Chat::open(model_dir, &config, &special_tokens)?),
            TemplateKind::Instruct | TemplateKind::Hh | TemplateKind::Plain => None,
        };
        Ok(Self { kind, special_tokens, chat })
    }

    /// The model's special tokens by role.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// Everything that the rendered text depends on besides the pair.
    pub fn source(&self) -> String {
        let chat = self.chat.as_ref().map(|chat| &chat.source);
        format!("{:?} {:?} {:?}", self.kind, self.special_tokens, chat)
    }

    /// The chat template's text.
    pub fn chat_source(&self) -> Option<&str> {
        self.chat.as_ref().map(|chat| &chat.text[..])
    }

    /// The same with another chat template.
    ///
    /// # Errors
    /// A broken chat template.
    pub fn with_source(&self, text: &str) -> Result<Self> {
        let chat = Chat::of_text(text.to_owned(), "the chat template", &self.special_tokens)?;
        Ok(Self { kind: TemplateKind::Chat, special_tokens: self.special_tokens.clone(), chat: Some(chat) })
    }

    /// What follows an answer at the end of a conversation, found with a probe; empty for a plain template.
    pub fn tail(&self) -> &str {
        self.chat.as_ref().map_or("", |chat| &chat.tail)
    }

    /// Whether a chat template has a word in it; plain ones refuse what they cannot write.
    pub fn names(&self, word: &str) -> bool {
        self.chat.as_ref().is_none_or(|chat| chat.source.contains(word))
    }

    /// Whether the template writes the BOS token itself; the tokenizer must then not add another.
    pub fn writes_bos(&self) -> bool {
        self.chat.is_some()
    }

    /// The prompt's text, up to where the answer starts.
    ///
    /// A chat template makes one user's message of a plain text, and ends with its generation prompt. The space after
    /// `Output:` and `Assistant:` belongs to the answer: vocabularies hold " word" as one token. `plain` joins the
    /// contents of a message list as they are.
    ///
    /// # Errors
    /// The chat template refuses the conversation, or a plain one does not know a role.
    pub fn render_prompt(&self, prompt: &Prompt, inputs: &TemplateInputs) -> Result<String> {
        if let Some(chat) = &self.chat {
            return chat.render(&messages(prompt), inputs, true);
        }
        let turns = messages(prompt);
        plain_enough(inputs, &turns)?;
        let mut text = String::new();
        for message in turns {
            let Message { role, .. } = &message;
            let (before, after) = match (self.kind, &role[..]) {
                (TemplateKind::Instruct, "user") => ("Instruct: ", "\n"),
                (TemplateKind::Instruct, "assistant") => ("Output: ", "\n"),
                (TemplateKind::Instruct, "system") => ("", "\n"),
                (TemplateKind::Hh, "user") => ("\n\nHuman: ", ""),
                (TemplateKind::Hh, "assistant") => ("\n\nAssistant: ", ""),
                (TemplateKind::Hh, "system") | (TemplateKind::Plain | TemplateKind::Chat, _) => ("", ""),
                (TemplateKind::Instruct | TemplateKind::Hh, _) => {
                    let known = "user, assistant and system";
                    return Err(Error::input(format!("a message has the role {role:?}, the template knows {known}"))
                        .hint("a chat template or template = \"plain\" may take it"));
                }
            };
            text.extend([before, message.text(), after]);
        }
        text.push_str(match self.kind {
            TemplateKind::Instruct => "Output:",
            TemplateKind::Hh => "\n\nAssistant:",
            TemplateKind::Plain | TemplateKind::Chat => "",
        });
        Ok(text)
    }

    /// The whole conversation's text: the prompt, the answer and the rest of its turn. For a chat template that is what
    /// it writes of the finished conversation, whether or not that starts with [`Template::render_prompt`]'s text.
    ///
    /// # Errors
    /// As [`Template::render_prompt`].
    pub fn render(&self, prompt: &Prompt, inputs: &TemplateInputs, answer: &Message) -> Result<String> {
        let Some(chat) = &self.chat else {
            plain_enough(inputs, std::slice::from_ref(answer))?;
            let space = if matches!(self.kind, TemplateKind::Instruct | TemplateKind::Hh) { " " } else { "" };
            return Ok(format!("{}{space}{}", self.render_prompt(prompt, inputs)?, answer.text()));
        };
        let mut messages = messages(prompt);
        messages.push(answer.clone());
        chat.render(&messages, inputs, false)
    }
}

impl Chat {
    fn open(model_dir: &Path, config: &serde_json::Value, special_tokens: &SpecialTokens) -> Result<Self> {
        let (path, text) = chat_template(model_dir, config)?;
        Self::of_text(text, &path, special_tokens)
    }

    /// A template's text, from the file `path`.
    fn of_text(text: String, path: &str, special_tokens: &SpecialTokens) -> Result<Self> {
        let source = without_generation_tags(&text);
        let mut environment = Environment::new();
        // As Transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::runtime(format!("template syntax: {error}")))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, source.clone()).map_err(|error| {
            Error::input(format!("{path}: the chat template is broken: {error}"))
                .hint(format!("mend it, {OTHER_TEMPLATES}"))
        })?;
        let variables: BTreeMap<_, _> =
            special_tokens.iter().map(|(key, text)| (key.clone(), Value::from(text.clone()))).collect();
        let mut chat = Self { environment, text, source, variables, tail: String::new() };

        let probe = [Message::new("user", "Hi."), Message::answer(SENTINEL)];
        let probe = chat.render(&probe, &TemplateInputs::default(), false).map_err(|error| error.at(path))?;
        let tail = probe.rsplit_once(SENTINEL).map(|(_, tail)| tail.to_owned());
        chat.tail = tail.ok_or_else(|| {
            Error::input(format!("{path}: the chat template does not write the assistant's last message as it is"))
                .hint(format!("mend it, {OTHER_TEMPLATES}"))
        })?;
        Ok(chat)
    }

    fn render(&self, messages: &[Message], inputs: &TemplateInputs, add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(|message| Value::from(Serde(message))).collect();
        // Transformers always passes tools and documents; templates ask whether they are none.
        // A row's arguments come before the special tokens of the same name.
        let mut variables = self.variables.clone();
        variables.extend(inputs.arguments.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
        let context = context! {
            messages,
            add_generation_prompt,
            tools => Serde(&inputs.tools),
            documents => Serde(&inputs.documents),
            ..Value::from_pairs(variables)
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| {
            Error::input(format!("the chat template cannot render this conversation: {error}"))
                .hint("are its roles the ones the template knows, in the order it wants?")
        })
    }
}

/// Refuses what only a chat template can write.
fn plain_enough(inputs: &TemplateInputs, messages: &[Message]) -> Result<()> {
    let key = messages.iter().find_map(|message| message.more.keys().next());
    let beside = [("tools", inputs.tools.is_some()), ("documents", inputs.documents.is_some())];
    let beside = beside.into_iter().find_map(|(name, given)| given.then_some(name));
    let argument = (!inputs.arguments.is_empty()).then_some("chat_template_kwargs");
    match key.map(String::as_str).or(beside).or(argument) {
        Some(what) => Err(Error::input(format!("the row has `{what}`, which only a chat template can write"))
            .hint("use template = \"chat\", or leave the row out")),
        None => Ok(()),
    }
}

/// A prompt as a conversation.
fn messages(prompt: &Prompt) -> Vec<Message> {
    match prompt {
        Prompt::Text(text) => vec![Message::new("user", text.as_str())],
        Prompt::Messages(messages) => messages.clone(),
    }
}

/// A JSON file's value; null where there is no such file.
fn json(path: &Path) -> Result<serde_json::Value> {
    match files::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Error::input(format!("{}: broken JSON: {error}", path.display())).hint("fetch it again")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(serde_json::Value::Null),
        Err(error) => Err(file_error(path, "read", &error)),
    }
}

/// The chat template's text and the file that holds it.
fn chat_template(model_dir: &Path, config: &serde_json::Value) -> Result<(String, String)> {
    let path = model_dir.join("chat_template.jinja");
    match files::read_to_string(&path) {
        // What an export has changed is read as it was: that is what the model was trained with.
        Ok(source) if source.starts_with(MARK) && model_dir.join(ORIGINAL).is_file() => {
            let path = model_dir.join(ORIGINAL);
            let source = files::read_to_string(&path).map_err(|error| file_error(&path, "read", &error))?;
            return Ok((path.display().to_string(), source));
        }
        Ok(source) => return Ok((path.display().to_string(), source)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error(&path, "read", &error)),
    }
    let path = model_dir.join("tokenizer_config.json").display().to_string();
    let source = match &config["chat_template"] {
        serde_json::Value::Array(named) => named
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|template| template["template"].as_str()),
        template => template.as_str(),
    };
    match source {
        Some(source) => Ok((path, source.to_owned())),
        None => Err(Error::input(format!(
            "{} has no chat template: neither chat_template.jinja nor a (default) `chat_template` in \
             tokenizer_config.json",
            model_dir.display()
        ))
        .hint("a base model has none: name the template \"instruct\", \"hh\" or \"plain\" instead of \"chat\"")),
    }
}

/// Transformers' own `{% generation %}` marks the assistant's tokens and writes nothing: to Jinja it is `if true`.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag) = rest[..start + length].split_at(start);
        let tag = match tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        text.extend([before, &tag]);
        rest = &rest[start + length..];
    }
    text + rest
}

/// Python's `json.dumps(value, ensure_ascii=False)`: Jinja's own filter escapes for HTML, which is undone here.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=True) is not supported"));
    }
    let escaped = minijinja::filters::tojson(value, None, options)?.to_string();
    let mut text = String::with_capacity(escaped.len());
    let mut rest = &escaped[..];
    while let Some(start) = rest.find('\\') {
        let html = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some((code, character)) = html.into_iter().find(|(code, _)| rest.starts_with(code)) {
            text.push(character);
            rest = &rest[code.len()..];
        } else {
            // A backslash and the ASCII character it escapes, which may be a backslash.
            text.push_str(&rest[..2]);
            rest = &rest[2..];
        }
    }
    Ok(Value::from_safe_string(text + rest))
}

/// A clock that stands still: a run resumed, cached or scored on another day must see the same tokens. The day is the
/// one Llama 3's templates fall back to where there is no clock: Friday, 26 July 2024, midnight.
fn strftime_now(format: &str) -> std::result::Result<String, minijinja::Error> {
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text.push_str(match characters.next() {
            Some('d') => "26",
            Some('j') => "208",
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('b') => "Jul",
            Some('B') => "July",
            Some('m') => "07",
            Some('y') => "24",
            Some('Y') => "2024",
            Some('H' | 'M' | 'S') => "00",
            Some('I') => "12",
            Some('p') => "AM",
            Some('%') => "%",
            other => {
                let code = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now does not know %{code}");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(text)
}
