//! The chat template that goes with a reward model: one whose renderings end where the reward is read.
//!
//! Who renders a folder's chat template and scores what comes out reads the reward at the last token. Many templates write
//! more after the EOS of the last turn (ChatML a line break), where a model that is trained at the EOS was never asked. The
//! exported template ends at that EOS for a conversation that ends with an assistant's turn and asks for no generation
//! prompt, and writes everything else as before. The original stays beside it under another name.

use super::{AsTrained, read_json, to_json, write_text};
use crate::config::{RewardAt, TemplateKind};
use crate::data::template::{MARK, ORIGINAL, Template};
use crate::data::tokenize::{Encoder, Rules, TurnEnd};
use crate::data::{Message, Prompt, TemplateInputs};
use crate::error::Result;
use serde_json::{Map, Value, json};
use std::path::Path;

const FILE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";

/// Writes the template into `folder`, where the tokenizer's files of `source` have been copied to.
///
/// # Errors
/// A tokenizer or template in `source` that cannot be read, or a failed write.
pub fn write(folder: &Path, source: &Path, as_trained: &AsTrained) -> Result<()> {
    let &AsTrained { template, reward_at, .. } = as_trained;
    let untouched = template == TemplateKind::Chat && reward_at == RewardAt::End;
    // A folder without a tokenizer, as some adapters are, renders nothing.
    if untouched || !source.join("tokenizer.json").is_file() {
        return Ok(());
    }
    // Lengths and vocabulary do not matter here.
    let rules = Rules { template, max_length: 2, max_prompt_length: 1, ..as_trained.rules() };
    let encoder = Encoder::open(source, rules, usize::MAX)?;
    let end = encoder.turn_end();
    let exported = match template {
        TemplateKind::Chat => {
            let original = Template::open(template, source)?;
            let Some(exported) = cut(&original, &end) else { return Ok(()) };
            if exported.is_none() {
                tracing::warn!(
                    "the exported chat template writes {:?} after the EOS: it marks the assistant's tokens, and no edit was \
                     found that leaves the rest as it is; score texts that end at {:?}",
                    end.after,
                    end.eos
                );
            }
            let Some(exported) = exported else { return Ok(()) };
            write_text(&folder.join(ORIGINAL), original.chat_source().unwrap_or_default())?;
            exported
        }
        plain => of_plain(plain, &encoder.bos_text()?, &end.eos),
    };
    write_text(&folder.join(FILE), &exported)?;
    in_config(&folder.join(CONFIG), &exported)
}

/// tokenizer_config.json names the same template, where it names one: older readers look there first.
fn in_config(path: &Path, exported: &str) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let mut config: Map<String, Value> = read_json(path)?;
    let named = |template: &Value| template["name"] == "default";
    match config.get_mut("chat_template") {
        Some(Value::Array(templates)) => {
            let default = templates.iter_mut().find(|template| named(template));
            default.into_iter().for_each(|template| template["template"] = json!(exported));
        }
        Some(template) => *template = json!(exported),
        None => return Ok(()),
    }
    write_text(path, &to_json(&config)?)
}

/// A template's text whose final assistant's turn ends at the EOS. `None` where it does so already; `Some(None)` where it
/// cannot be had.
#[expect(clippy::option_option, reason = "nothing to do, and nothing that can be done, are two things")]
fn cut(original: &Template, end: &TurnEnd) -> Option<Option<String>> {
    if end.after.is_empty() && end.written {
        return None;
    }
    let source = original.chat_source()?;
    Some(match has_generation_tags(source) {
        true => edited(original, source, end),
        false => Some(wrapped(source, end)),
    })
}

/// The whole template inside a variable, which is printed without what follows the EOS.
fn wrapped(source: &str, end: &TurnEnd) -> String {
    let (after, eos) = (literal(&end.after), if end.written { String::new() } else { literal(&end.eos) });
    let length = end.after.chars().count();
    let cut = match length {
        0 => String::from("haf_dist_text"),
        length => format!("haf_dist_text[:-{length}]"),
    };
    // Jinja takes one line break off a template's end, and one after a block's tag.
    let source = source.strip_suffix('\n').unwrap_or(source);
    let added = if eos.is_empty() { String::new() } else { format!(" ~ {eos}") };
    format!(
        "{MARK}{{% set haf_dist_text %}}{{{{ '' }}}}{source}{{{{ '' }}}}{{% endset %}}\
         {{% if messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt %}}\
         {{% if haf_dist_text.endswith({after}) %}}{{{{ {cut}{added} }}}}\
         {{% else %}}{{{{ haf_dist_text{added} }}}}{{% endif %}}\
         {{% else %}}{{{{ haf_dist_text }}}}{{% endif %}}"
    )
}

/// A text as a Jinja string.
fn literal(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|letter| match letter {
            '\\' => "\\\\".into(),
            '\'' => "\\'".into(),
            '\n' => "\\n".into(),
            '\r' => "\\r".into(),
            '\t' => "\\t".into(),
            other => other.to_string(),
        })
        .collect();
    format!("'{escaped}'")
}

/// Whether a template marks the assistant's tokens (`{% generation %}`), by their places in the rendering: it cannot be
/// rendered into a variable.
fn has_generation_tags(source: &str) -> bool {
    source.split("{%").skip(1).any(|tag| {
        let tag = tag.split("%}").next().unwrap_or_default();
        tag.trim_matches(|letter: char| letter.is_whitespace() || letter == '-' || letter == '+') == "generation"
    })
}

/// An edit of the source that writes what follows the EOS after the last message only where a generation prompt is asked
/// for: the first that renders every probe as it should.
fn edited(original: &Template, source: &str, end: &TurnEnd) -> Option<String> {
    let last = "loop.last and not add_generation_prompt";
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    for quote in ['\'', '"'] {
        let text = |text: &str| literal(text).replace('\'', &quote.to_string());
        let (after, whole) = (text(&end.after), text(&format!("{}{}", end.eos, end.after)));
        for (at, _) in source.match_indices(&whole) {
            let both = format!("({} ~ ('' if {last} else {}))", text(&end.eos), after);
            edits.push((at, whole.len(), both));
        }
        for (at, _) in source.match_indices(&after) {
            edits.push((at, after.len(), format!("('' if {last} else {after})")));
        }
    }
    edits.into_iter().find_map(|(at, length, text)| {
        let edited = format!("{MARK}{}{text}{}", &source[..at], &source[at + length..]);
        let template = original.with_source(&edited).ok()?;
        probes().iter().all(|probe| renders(original, &template, probe, end)).then_some(edited)
    })
}

/// Conversations that a template must render alike, as prompt and answer.
fn probes() -> Vec<(Prompt, Message)> {
    let turn = Message::new;
    let system = turn("system", "Be brief.");
    let (question, answer) = (turn("user", "How many?"), turn("assistant", "Two.\n"));
    let prompts = [
        vec![question.clone()],
        vec![system, question.clone()],
        vec![question.clone(), answer, turn("user", " And now? ")],
        vec![question, turn("assistant", ""), turn("user", "é漢\n\n")],
    ];
    let answers = ["Three.", " \n spaces \n ", "line\nbreaks\n"];
    let pairs = prompts.into_iter().flat_map(|prompt| answers.map(|answer| (prompt.clone(), answer)));
    pairs.map(|(prompt, answer)| (Prompt::Messages(prompt), Message::answer(answer))).collect()
}

/// Whether `exported` writes a conversation as `original` does, but for what follows the EOS of a final answer.
fn renders(original: &Template, exported: &Template, (prompt, answer): &(Prompt, Message), end: &TurnEnd) -> bool {
    let inputs = TemplateInputs::default();
    let texts = |template: &Template| {
        (template.render_prompt(prompt, &inputs).ok(), template.render(prompt, &inputs, answer).ok())
    };
    let ((before, whole), (found_before, found_whole)) = (texts(original), texts(exported));
    let wanted = whole.map(|whole| match whole.strip_suffix(&end.after[..]) {
        Some(cut) => cut.to_owned(),
        None => whole,
    });
    before == found_before && wanted == found_whole
}

/// A template for conversations as a plain one writes them, behind the BOS that the tokenizer would add.
fn of_plain(kind: TemplateKind, bos: &str, eos: &str) -> String {
    let (user, assistant, generation) = match kind {
        TemplateKind::Instruct => {
            ("'Instruct: ' ~ message['content'] ~ '\\n'", "'Output: ' ~ message['content']", "'Output:'")
        }
        TemplateKind::Hh => {
            ("'\\n\\nHuman: ' ~ message['content']", "'\\n\\nAssistant: ' ~ message['content']", "'\\n\\nAssistant:'")
        }
        TemplateKind::Plain | TemplateKind::Chat => ("message['content']", "message['content']", "''"),
    };
    let (bos, eos) = (literal(bos), literal(eos));
    let between = if kind == TemplateKind::Instruct { "{{ '\\n' }}" } else { "" };
    let system = if kind == TemplateKind::Instruct { "message['content'] ~ '\\n'" } else { "message['content']" };
    format!(
        "{MARK}{{{{ {bos} }}}}{{% for message in messages %}}\
         {{% if message['role'] == 'user' %}}{{{{ {user} }}}}\
         {{% elif message['role'] == 'system' %}}{{{{ {system} }}}}\
         {{% elif message['role'] != 'assistant' %}}{{{{ raise_exception('the template knows user, assistant and system') }}}}\
         {{% elif loop.last and not add_generation_prompt %}}{{{{ {assistant} ~ {eos} }}}}\
         {{% else %}}{{{{ {assistant} }}}}{between}{{% endif %}}{{% endfor %}}\
         {{% if add_generation_prompt %}}{{{{ {generation} }}}}{{% endif %}}"
    )
}
