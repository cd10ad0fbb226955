//! The chat templates exported with a reward model: their renderings end where the reward is read.
//!
//! A program that renders a folder's chat template and scores the result reads the reward at the last token. Many templates
//! write more after the EOS of the last turn (ChatML a line break), where a model trained at the EOS has no trained reward. The
//! exported template ends at that EOS for a conversation that ends with an assistant's turn and asks for no generation prompt,
//! and is otherwise unchanged; its renderings are compared with the original's. A template that asks for the date always gets
//! the date of the training. The original is kept under another name. Not here: the Jinja itself (`chat_template/jinja.rs`).

mod jinja;

use super::{AsTrained, read_json, sync, to_json, write_text};
use crate::config::{RewardAt, TemplateKind};
use crate::data::template::jinja::LONGEST;
use crate::data::template::{ORIGINAL, Template, is_changed, text_of};
use crate::data::tokenize::{Encoder, Rules};
use crate::data::tokenizer_files::MOST_BYTES_BESIDE;
use crate::data::{Message, Prompt, TemplateInputs};
use crate::error::{Error, Result, file_error};
use crate::files;
use jinja::Turn;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tracing::warn;

const FILE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";
/// The folder in which Transformers looks for named templates.
const NAMED: &str = "additional_chat_templates";
/// Most named templates of a model; known ones have two or three.
const MOST_NAMED: usize = 100;
/// Name of a changed template's original in that folder; [`ORIGINAL`] is its file.
const ORIGINAL_NAME: &str = "original";

/// How the exported chat template relates to the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rendering {
    /// The starting model's template, which renders what was trained.
    Unchanged,
    /// The starting model's template, ended at the EOS of a final assistant turn.
    EndsAtEos,
    /// The starting model's template, with the date of the training in place of today's.
    WithTrainingDate,
    /// Written here for a plain template, which the starting model's files do not describe.
    Written,
    /// Other programs do not render what was trained, and no template was found that does.
    NotAsTrained,
}

/// The chat templates of a model that is trained here.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatTemplates {
    /// The default template to export; `None` if the source's templates stay as they are.
    exported: Option<String>,
    /// Further templates by name, such as `tool_use`, and the original of one that was changed.
    named: BTreeMap<String, String>,
    rendering: Rendering,
}

impl ChatTemplates {
    /// The templates for a model trained from the one in `folder`, with `encoder`'s rules. Warns if other programs will not
    /// render what was trained.
    ///
    /// # Errors
    /// A template that cannot be read, or a file that is not JSON.
    pub fn of(folder: &Path, encoder: &Encoder) -> Result<Self> {
        let (own, named) = read(folder)?;
        let mut templates = Self { exported: own.clone(), named: named.clone(), rendering: Rendering::Unchanged };
        match encoder.rules().template {
            TemplateKind::Chat => templates.of_chat(encoder),
            kind => templates.of_plain(kind, encoder)?,
        }
        if (&templates.exported, &templates.named) == (&own, &named) {
            // The source's files already say the same.
            templates.exported = None;
        }
        Ok(templates)
    }

    /// How the exported default template relates to the training.
    pub fn rendering(&self) -> Rendering {
        self.rendering
    }

    /// Makes every template end at the EOS, unless the reward is trained where the original ends, and fixes every date to the
    /// training's.
    fn of_chat(&mut self, encoder: &Encoder) {
        // In the folder of an export, too, this is the original.
        let original = encoder.template();
        self.exported = original.chat_source().map(str::to_owned);
        self.named.remove(ORIGINAL_NAME);
        let at_end = encoder.rules().reward_at == RewardAt::End;
        for (name, text) in &mut self.named {
            // Not used in training, but Transformers takes `tool_use` if a conversation has tools.
            let made = original.with_source(text).and_then(|template| {
                let turn = Turn { eos: encoder.eos_text(), tail: template.tail() };
                let cut = |text: &str| if at_end { text.to_owned() } else { up_to_eos(text, turn) };
                changed(&template, turn.eos, &cut)
            });
            match made {
                Ok(None) => {}
                Ok(Some((changed, _))) => *text = changed,
                Err(error) => warn!("the chat template named {name:?} is exported as it is: {}", error.message),
            }
        }
        let cut = |text: &str| if at_end { text.to_owned() } else { encoder.to_eos(text) };
        match changed(original, encoder.eos_text(), &cut) {
            Ok(None) => {}
            Ok(Some((text, rendering))) => {
                self.replace(text);
                self.rendering = rendering;
            }
            Err(error) => {
                warn!(
                    "the chat template cannot be made to end at {:?}, where the reward is trained ({}): it is exported as it \
                     is, and programs that render it read the reward elsewhere; data.reward_at = \"both\" trains a model that \
                     is right at either place",
                    encoder.eos_text(),
                    error.message
                );
                self.rendering = Rendering::NotAsTrained;
                // At least the date can be that of the training.
                if let Ok(Some((text, _))) = changed(original, encoder.eos_text(), &str::to_owned) {
                    self.replace(text);
                }
            }
        }
    }

    /// Exports a template that renders messages as the plain `kind` does.
    fn of_plain(&mut self, kind: TemplateKind, encoder: &Encoder) -> Result<()> {
        let Some(text) = jinja::plain(kind, &encoder.bos_text()?, encoder.eos_text()) else { return Ok(()) };
        let made = encoder.template().with_source(&text)?;
        self.rendering = match probes().iter().try_for_each(|messages| same_as_trained(&made, encoder, messages)) {
            Ok(()) => Rendering::Written,
            Err(error) => {
                let why = error.message;
                warn!(
                    "programs that render messages with the exported chat template read other tokens than trained: {why}"
                );
                Rendering::NotAsTrained
            }
        };
        self.replace(text);
        Ok(())
    }

    /// Exports another template; the original is kept under its name. An export of an export keeps the first original.
    fn replace(&mut self, text: String) {
        if let Some(own) = self.exported.take().filter(|own| *own != text && !is_changed(own)) {
            self.named.insert(ORIGINAL_NAME.to_owned(), own);
        }
        self.exported = Some(text);
    }

    /// Writes what differs from the source into `folder`, which already has copies of the source's tokenizer files.
    ///
    /// # Errors
    /// A failed write, or a tokenizer_config.json that is not JSON.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let Some(exported) = &self.exported else { return Ok(()) };
        write_text(&folder.join(FILE), exported)?;
        self.write_into_config(&folder.join(CONFIG), exported)?;
        let (others, original) = (folder.join(NAMED), folder.join(ORIGINAL));
        if original.is_file() && !self.named.contains_key(ORIGINAL_NAME) {
            fs::remove_file(&original).map_err(|error| file_error(&original, "remove", &error))?;
        }
        if self.named.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&others).map_err(|error| file_error(&others, "create", &error))?;
        for (name, text) in &self.named {
            write_text(&others.join(format!("{name}.jinja")), text)?;
        }
        sync(&others)
    }

    /// Writes the same templates into tokenizer_config.json, if it has any: older programs read only that file.
    fn write_into_config(&self, path: &Path, exported: &str) -> Result<()> {
        if !path.is_file() {
            return Ok(());
        }
        let mut config: Map<String, Value> = read_json(path, MOST_BYTES_BESIDE)?;
        let Some(templates) = config.get_mut("chat_template") else { return Ok(()) };
        let one = |name: &str, text: &str| json!({ "name": name, "template": text });
        *templates = match templates {
            Value::Array(_) => {
                let named = self.named.iter().map(|(name, text)| one(name, text));
                std::iter::once(one("default", exported)).chain(named).collect()
            }
            _ => json!(exported),
        };
        write_text(path, &to_json(&config)?)
    }
}

/// [`ChatTemplates::of`] and [`ChatTemplates::write`] for a folder that is not being trained: `folder` holds copies of the
/// tokenizer's files in `source`. `None` if there is no tokenizer, as in some adapters' folders.
///
/// # Errors
/// A tokenizer or template in `source` that cannot be read, or a failed write.
pub(crate) fn write(folder: &Path, source: &Path, as_trained: &AsTrained) -> Result<Option<Rendering>> {
    if !source.join("tokenizer.json").is_file() {
        return Ok(None);
    }
    // Lengths and vocabulary do not matter here.
    let rules = Rules { max_length: 2, max_prompt_length: 1, ..as_trained.rules() };
    let templates = ChatTemplates::of(source, &Encoder::open(source, rules, usize::MAX)?)?;
    templates.write(folder)?;
    Ok(Some(templates.rendering()))
}

/// The template that other programs render with: the exported one, or the model's own if that was not changed.
///
/// # Errors
/// A missing or broken chat template.
pub fn as_others_read(folder: &Path) -> Result<Template> {
    let own = Template::open(TemplateKind::Chat, folder)?;
    match read(folder)?.0 {
        Some(text) => own.with_source(&text).map_err(|error| error.at(folder.display())),
        None => Ok(own),
    }
}

/// The default chat template of a folder and its named ones, as Transformers finds them: only template files if there is a
/// default one, else tokenizer_config.json.
fn read(folder: &Path) -> Result<(Option<String>, BTreeMap<String, String>)> {
    let text = |path: &Path| text_of(path).map_err(|error| file_error(path, "read", &error));
    let (file, config) = (folder.join(FILE), folder.join(CONFIG));
    let mut named = BTreeMap::new();
    if file.is_file() {
        for path in named_files(folder)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            named.insert(name, text(&path)?);
        }
        return Ok((Some(text(&file)?), named));
    }
    let config: Value = if config.is_file() { read_json(&config, MOST_BYTES_BESIDE)? } else { Value::Null };
    let templates = match &config["chat_template"] {
        Value::Array(templates) => templates,
        template => return Ok((template.as_str().map(str::to_owned), named)),
    };
    not_too_many(templates.len(), &folder.join(CONFIG))?;
    let mut default = None;
    for template in templates {
        match (template["name"].as_str(), template["template"].as_str()) {
            (Some("default"), Some(text)) => default = Some(text.to_owned()),
            (Some(name), Some(text)) if is_file_name(name) => drop(named.insert(name.to_owned(), text.to_owned())),
            (name, _) => warn!("{}: a chat template named {name:?} is left out", folder.display()),
        }
    }
    Ok((default, named))
}

/// The files of a folder's named templates.
fn named_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let others = folder.join(NAMED);
    if !others.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |error: std::io::Error| file_error(&others, "list", &error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(&others).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|kind| kind == "jinja") {
            paths.push(path);
        }
        not_too_many(paths.len(), &others)?;
    }
    Ok(paths)
}

/// Refuses more named templates than any model has: each is rendered.
fn not_too_many(count: usize, place: &Path) -> Result<()> {
    if count <= MOST_NAMED {
        return Ok(());
    }
    let message = format!("{} has more than {MOST_NAMED} chat templates", place.display());
    Err(Error::input(message).hint("remove those that are not needed"))
}

/// Copies the named chat templates, without the default one, from `source` into `folder`.
///
/// # Errors
/// A source that cannot be read, or is no template; a failed write.
pub fn copy_named_templates(source: &Path, folder: &Path) -> Result<()> {
    let (paths, target) = (named_files(source)?, folder.join(NAMED));
    if paths.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(&target).map_err(|error| file_error(&target, "create", &error))?;
    for path in paths {
        files::copy_within(&path, &target.join(path.file_name().unwrap_or_default()), LONGEST as u64)?;
    }
    sync(&target)
}

/// Whether a template's name can be a file's.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.')
}

/// A template that renders on any day as `original` does today, with a final assistant turn cut after its EOS by `cut`;
/// `None` if the original does so itself.
fn changed(original: &Template, eos: &str, cut: &dyn Fn(&str) -> String) -> Result<Option<(String, Rendering)>> {
    let Some(own) = original.chat_source() else { return Ok(None) };
    let (probes, times) = (probes(), original.times());
    let expected = |messages: &[Message]| rendered(original, messages).map(|text| cut(&text)).ok();
    let ends = probes.iter().all(|messages| rendered(original, messages).ok() == expected(messages));
    let (text, rendering) = match ends {
        true if times.is_empty() => return Ok(None),
        true => (jinja::with_clock(own, &times), Rendering::WithTrainingDate),
        false => (jinja::ending_at_eos(own, &times, Turn { eos, tail: original.tail() }), Rendering::EndsAtEos),
    };
    let made = original.with_source(&text)?;
    for messages in &probes {
        let differs = |what: &str| Error::runtime(format!("{what} of {} would not be the same", shown(messages)));
        if rendered(&made, messages).ok() != expected(messages) {
            return Err(differs("the text up to the EOS"));
        }
        // A prompt that ends with an answer, and an answer that is not the last turn, are rendered as before.
        let prompt = Prompt::Messages(messages.clone());
        let prompted = |template: &Template| template.render_prompt(&prompt, &TemplateInputs::default()).ok();
        if prompted(&made) != prompted(original) {
            return Err(differs("the rendering with a generation prompt"));
        }
        let mut followed = messages.clone();
        followed.push(Message::new("user", "And then?"));
        if rendered(&made, &followed).ok() != rendered(original, &followed).ok() {
            return Err(differs("the rendering of a user's turn after the answer"));
        }
    }
    Ok(Some((text, rendering)))
}

/// As [`Encoder::to_eos`], for a template that is not used in training.
fn up_to_eos(rendered: &str, turn: Turn) -> String {
    let kept = match rendered.strip_suffix(turn.tail) {
        Some(_) => &rendered[..rendered.len() - turn.after_eos().len()],
        None => rendered,
    };
    let kept = if kept.trim_end().ends_with(turn.eos) { kept.trim_end() } else { kept };
    if kept.ends_with(turn.eos) { kept.to_owned() } else { format!("{kept}{}", turn.eos) }
}

fn rendered(template: &Template, messages: &[Message]) -> Result<String> {
    let (answer, prompt) = messages.split_last().ok_or_else(|| Error::runtime("no messages"))?;
    template.render(&Prompt::Messages(prompt.to_vec()), &TemplateInputs::default(), answer)
}

/// Checks that a chat template gives the text and the tokens that are trained. A conversation that training refuses counts as
/// equal.
fn same_as_trained(made: &Template, encoder: &Encoder, messages: &[Message]) -> Result<()> {
    let Ok((text, tokens)) = encoder.conversation(messages) else { return Ok(()) };
    let rendered = rendered(made, messages)?;
    if rendered != text {
        return Err(Error::runtime(format!("{} has another text", shown(messages))));
    }
    if encoder.ids(&rendered)? != tokens {
        return Err(Error::runtime(format!("{} has other tokens", shown(messages))));
    }
    Ok(())
}

fn shown(messages: &[Message]) -> String {
    let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
    format!("a conversation ({})", roles.join(", "))
}

/// Conversations that end with the assistant's turn, one for each case that templates treat differently.
fn probes() -> Vec<Vec<Message>> {
    let user = || Message::new("user", "Hi.");
    let answer = |text: &str| Message::answer(text);
    let mut calling = answer("");
    let call = json!([{"type": "function", "id": "call00001", "function": {"name": "add", "arguments": {"a": 1}}}]);
    calling.more.insert("tool_calls".into(), call);
    let mut reasoned = answer("Yes.");
    reasoned.more.insert("reasoning_content".into(), json!("Well."));
    vec![
        vec![user(), answer("Yes.")],
        vec![Message::new("system", "Be brief."), user(), answer("Yes.")],
        vec![user(), answer("Yes."), user(), answer("No.")],
        vec![user(), answer(" \n Yes.\n\n")],
        vec![user(), answer("")],
        vec![user(), answer("na\u{ef}ve \u{1f642}\u{a0}")],
        vec![user(), answer("<think>\nWell.\n</think>\n\nYes.")],
        vec![user(), reasoned],
        vec![user(), calling],
    ]
}
