//! How a prompt and an answer become text: the model folder's chat template, or a named plain one.
//!
//! Not here: Jinja itself (`jinja/`); tokens, the turn's end and truncation (`tokenize/`).

pub mod jinja;

use crate::config::TemplateKind;
use crate::data::tokenizer_files::MOST_BYTES_BESIDE;
use crate::data::{Message, Prompt, TemplateInputs};
use crate::error::{Error, Result, file_error};
use crate::files;
use jinja::{LONGEST, Program};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The file that keeps the original of a chat template that an export has changed.
pub(crate) const ORIGINAL: &str = "additional_chat_templates/original.jinja";
/// The first line of a template that an export has changed to end at the EOS.
pub(crate) const MARK: &str =
    "{#- haf-dist: ends at the EOS of a final assistant turn; as it was: the template `original` -#}";
/// The first line of a template in which an export has only fixed the date.
pub(crate) const CLOCK_MARK: &str =
    "{#- haf-dist: the date is that of the training; as it was: the template `original` #}";
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
    program: Program,
    /// Its text, as in the file.
    text: String,
    special_tokens: SpecialTokens,
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
        let config = read_json(&model_dir.join("tokenizer_config.json"))?;
        let mut special_tokens = SpecialTokens::new();
        for file in [&read_json(&model_dir.join("special_tokens_map.json"))?, &config] {
            let keys = file.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
            let text = |value: &Value| Some(value.get("content").unwrap_or(value).as_str()?.to_owned());
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

    /// Everything that the rendered text depends on, apart from the pair.
    pub(crate) fn source(&self) -> String {
        let chat = self.chat_source();
        format!("{:?} {:?} {:?}", self.kind, self.special_tokens, chat)
    }

    /// The chat template's text.
    pub(crate) fn chat_source(&self) -> Option<&str> {
        self.chat.as_ref().map(|chat| &chat.text[..])
    }

    /// The same with another chat template.
    ///
    /// # Errors
    /// A broken chat template.
    pub(crate) fn with_source(&self, text: &str) -> Result<Self> {
        let chat = Chat::of_text(text.to_owned(), "the chat template", &self.special_tokens)?;
        Ok(Self { kind: TemplateKind::Chat, special_tokens: self.special_tokens.clone(), chat: Some(chat) })
    }

    /// What the chat template's `strftime_now` returns, by format; see [`Program::times`].
    pub(crate) fn times(&self) -> BTreeMap<String, String> {
        // A template that was read before has no faults.
        self.chat_source().and_then(|source| Program::times(source).ok()).unwrap_or_default()
    }

    /// What follows an answer at the end of a conversation, found with a probe; empty for a plain template.
    pub fn tail(&self) -> &str {
        self.chat.as_ref().map_or("", |chat| &chat.tail)
    }

    /// Whether a chat template contains a word; true for plain templates, which refuse inputs that they cannot write.
    pub(crate) fn names(&self, word: &str) -> bool {
        self.chat.as_ref().is_none_or(|chat| chat.text.contains(word))
    }

    /// Whether the template writes the BOS token itself; the tokenizer must then not add another.
    pub(crate) fn writes_bos(&self) -> bool {
        self.chat.is_some()
    }

    /// The prompt's text, up to where the answer starts.
    ///
    /// For a chat template, a plain text is one user's message, and the text ends with its generation prompt. The space after
    /// `Output:` and `Assistant:` belongs to the answer, as vocabularies have " word" as one token. `plain` joins the contents
    /// of a message list unchanged.
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
                    return Err(Error::input(format!(
                        "a message has the role {role:?}, but the template knows {known}"
                    ))
                    .hint("a chat template or template = \"plain\" may accept it"));
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

    /// The whole conversation's text: the prompt, the answer and the rest of its turn. For a chat template this is its
    /// rendering of the finished conversation, whether or not that starts with [`Template::render_prompt`]'s text.
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
    fn open(model_dir: &Path, config: &Value, special_tokens: &SpecialTokens) -> Result<Self> {
        let SourceFile { path, text } = chat_template(model_dir, config)?;
        Self::of_text(text, &path, special_tokens)
    }

    /// A template's text, from the file `path`.
    fn of_text(text: String, path: &str, special_tokens: &SpecialTokens) -> Result<Self> {
        let program = Program::parse(&text).map_err(|fault| {
            Error::input(format!("{path}: the chat template is broken: {fault}"))
                .hint(format!("mend it, {OTHER_TEMPLATES}"))
        })?;
        let mut chat = Self { program, text, special_tokens: special_tokens.clone(), tail: String::new() };

        let probe = [Message::new("user", "Hi."), Message::answer(SENTINEL)];
        let probe = chat.render(&probe, &TemplateInputs::default(), false).map_err(|error| error.at(path))?;
        let tail = probe.rsplit_once(SENTINEL).map(|(_, tail)| tail.to_owned());
        chat.tail = tail.ok_or_else(|| {
            Error::input(format!("{path}: the chat template does not write the assistant's last message unchanged"))
                .hint(format!("mend it, {OTHER_TEMPLATES}"))
        })?;
        Ok(chat)
    }

    fn render(&self, messages: &[Message], inputs: &TemplateInputs, add_generation_prompt: bool) -> Result<String> {
        let variables = variables(messages, inputs, &self.special_tokens, add_generation_prompt);
        self.program.render(&variables).map_err(|fault| {
            Error::input(format!("the chat template cannot render this conversation: {fault}")).hint(
                match fault.bound {
                    true => "no known template needs that much: look at the template, it may be broken or hostile",
                    false => "are its roles those that the template knows, in the order that it expects?",
                },
            )
        })
    }
}

/// A chat template's variables, under the names of Transformers' `apply_chat_template`.
pub fn variables(
    messages: &[Message],
    inputs: &TemplateInputs,
    special_tokens: &SpecialTokens,
    add_generation_prompt: bool,
) -> Map<String, Value> {
    let TemplateInputs { tools, documents, arguments } = inputs;
    // A row's arguments win over special tokens of the same name; the variables that are always given win over both.
    let mut variables: Map<String, Value> =
        special_tokens.iter().map(|(key, token)| (key.clone(), json!(token))).collect();
    variables.extend(arguments.clone());
    // Transformers always passes tools and documents; templates ask whether they are none.
    let given = [
        ("messages", messages.iter().map(as_passed).collect()),
        ("add_generation_prompt", json!(add_generation_prompt)),
        ("tools", json!(tools)),
        ("documents", json!(documents)),
    ];
    variables.extend(given.map(|(name, value)| (name.to_owned(), value)));
    variables
}

/// A message as Transformers 5.24 passes it to a template: without the keys that are null, and with its reasoning under
/// both names that templates read.
fn as_passed(message: &Message) -> Value {
    let found = |name: &&str| message.more.get(*name).filter(|value| !value.is_null());
    let reasoning = ["reasoning_content", "thinking", "reasoning"].iter().find_map(found);
    let mut passed = Map::new();
    if let Some(reasoning) = reasoning {
        passed.insert("thinking".into(), reasoning.clone());
    }
    passed.insert("role".into(), json!(message.role));
    passed.extend(message.content.as_ref().map(|content| ("content".into(), json!(content))));
    let more = message.more.iter().filter(|(_, value)| !value.is_null());
    passed.extend(more.map(|(key, value)| (key.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        passed.insert("reasoning_content".into(), reasoning.clone());
    }
    Value::Object(passed)
}

/// Refuses inputs that only a chat template can write.
fn plain_enough(inputs: &TemplateInputs, messages: &[Message]) -> Result<()> {
    let named = |name: &str| format!("`{name}`");
    let key = messages.iter().find_map(|message| message.more.keys().next()).map(|key| named(key));
    let lists = [("tools", inputs.tools.is_some()), ("documents", inputs.documents.is_some())];
    let list = lists.into_iter().find_map(|(name, given)| given.then(|| named(name)));
    let argument = inputs.arguments.keys().next().map(|name| format!("`{name}` in its `chat_template_kwargs`"));
    match key.or(list).or(argument) {
        Some(what) => Err(Error::input(format!("the row has {what}, which only a chat template can write"))
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

/// A JSON file's value; null if there is no such file.
fn read_json(path: &Path) -> Result<Value> {
    match files::read_at_most(path, MOST_BYTES_BESIDE) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Error::input(format!("{}: broken JSON: {error}", path.display())).hint("fetch it again")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(file_error(path, "read", &error)),
    }
}

/// Whether a template's text is one that an export has changed.
pub(crate) fn is_changed(source: &str) -> bool {
    source.starts_with(MARK) || source.starts_with(CLOCK_MARK)
}

/// A chat template's text, and the file that contains it.
struct SourceFile {
    path: String,
    text: String,
}

/// The text of a template's file.
///
/// # Errors
/// No regular file, a file that is longer than any template that is read, or bytes that are not UTF-8.
pub(crate) fn text_of(path: &Path) -> io::Result<String> {
    let bytes = files::read_at_most(path, LONGEST as u64)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Finds the chat template in a model's folder.
fn chat_template(model_dir: &Path, config: &Value) -> Result<SourceFile> {
    let path = model_dir.join("chat_template.jinja");
    match text_of(&path) {
        // If an export has changed the template, the original is read: the model was trained with that.
        Ok(text) if is_changed(&text) && model_dir.join(ORIGINAL).is_file() => {
            let path = model_dir.join(ORIGINAL);
            let text = text_of(&path).map_err(|error| file_error(&path, "read", &error))?;
            return Ok(SourceFile { path: path.display().to_string(), text });
        }
        Ok(text) => return Ok(SourceFile { path: path.display().to_string(), text }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error(&path, "read", &error)),
    }
    let path = model_dir.join("tokenizer_config.json").display().to_string();
    let text = match &config["chat_template"] {
        Value::Array(named) => named
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|template| template["template"].as_str()),
        template => template.as_str(),
    };
    match text {
        Some(text) => Ok(SourceFile { path, text: text.to_owned() }),
        None => Err(Error::input(format!(
            "{} has no chat template: neither chat_template.jinja nor a (default) `chat_template` in \
             tokenizer_config.json",
            model_dir.display()
        ))
        .hint("a base model has none: use template = \"instruct\", \"hh\" or \"plain\" instead of \"chat\"")),
    }
}
