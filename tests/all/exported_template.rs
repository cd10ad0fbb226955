//! Promise: a program that renders with an exported chat template gets the text and the tokens that were trained on; every
//! rendering except that of a final answer is the original's.

use haf_dist::checkpoint::{self, ChatTemplates, Rendering};
use haf_dist::config::{RewardAt, TemplateKind, Truncation};
use haf_dist::data::template::Template;
use haf_dist::data::tokenize::{Encoder, Rules};
use haf_dist::data::{Message, Prompt, TemplateInputs};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A line break follows the EOS.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                      '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// The same with tags around what the assistant says, as data and with white space control.
const TAGGED: &str = "{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- message.content }}<|im_end|>
        {% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";
/// Another token follows the EOS at the end alone.
const CLOSED: &str = "{% for m in messages %}{{ m.role + ': ' + m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ '<|endoftext|>' }}{% endif %}";
/// Writes no EOS, and trims.
const BARE: &str = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
/// Ends at the EOS as it is.
const ENDED: &str = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

/// Asks for the date in a macro, by formats that stand in texts; a line break follows the EOS or does not.
const DATED: &str = "\n{%- set format = '%d %b %Y' %}
{%- macro system(text) %}
    {{- 'Today: ' + strftime_now(format) + ', it\\'s ' ~ strftime_now(\"%A, %H o'clock\") + '; ' + text + '<|im_end|>' }}
{%- endmacro %}
{%- if strftime_now is defined %}{{ system('100% so') }}{% endif %}
{%- for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' + END }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

/// Bytes and three special tokens.
fn folder(template: Option<&str>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..=255u8 {
        // The byte-level alphabet of GPT-2: bytes that do not print are code points from 256 on.
        let letter = if printable(byte) {
            char::from(byte)
        } else {
            others += 1;
            char::from_u32(255 + others).unwrap()
        };
        vocabulary.insert(letter.to_string(), json!(byte));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>"), special(258, "<|endoftext|>")],
        "pre_tokenizer": bytes, "decoder": bytes, "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<|im_start|>"]}}},
    });
    let mut config = json!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"});
    if let Some(template) = template {
        config["chat_template"] = json!(template);
    }
    put(&folder, "tokenizer.json", &tokenizer.to_string());
    put(&folder, "tokenizer_config.json", &config.to_string());
    folder
}

fn put(folder: &TempDir, name: &str, text: &str) {
    fs::write(folder.path().join(name), text).unwrap();
}

fn encoder(folder: &Path, template: TemplateKind, reward_at: RewardAt) -> Encoder {
    let rules = Rules { reward_at, ..Rules::new(template, 2000, 1000, Truncation::Cut) };
    Encoder::open(folder, rules, 300).unwrap()
}

/// The folder with exported templates, and what is said of them.
fn exported(source: &TempDir, template: TemplateKind, reward_at: RewardAt) -> (TempDir, Rendering) {
    let out = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        if source.path().join(name).is_file() {
            fs::copy(source.path().join(name), out.path().join(name)).unwrap();
        }
    }
    checkpoint::copy_named_templates(source.path(), out.path()).unwrap();
    let encoder = encoder(source.path(), template, reward_at);
    let templates = ChatTemplates::of(source.path(), &encoder).unwrap();
    templates.write(out.path()).unwrap();
    (out, templates.rendering())
}

fn conversations() -> Vec<Vec<Message>> {
    let user = |text: &str| Message::new("user", text);
    let texts = ["No.", "  two\n\n", "", "\n", "na\u{ef}ve \u{1f642}\u{a0}", "'quoted' \\ {{ x }}"];
    let mut all: Vec<_> = texts.map(|text| vec![user("Hi."), Message::answer(text)]).to_vec();
    all.push(vec![Message::new("system", ""), user("Hi."), Message::answer("a"), user("b"), Message::answer("c ")]);
    all
}

/// What other programs render with.
fn chat(folder: &Path) -> Template {
    checkpoint::as_others_read(folder).unwrap()
}

fn rendered(template: &Template, messages: &[Message]) -> String {
    let (last, others) = messages.split_last().unwrap();
    template.render(&Prompt::Messages(others.to_vec()), &TemplateInputs::default(), last).unwrap()
}

fn prompted(template: &Template, messages: &[Message]) -> String {
    template.render_prompt(&Prompt::Messages(messages.to_vec()), &TemplateInputs::default()).unwrap()
}

/// Whether a folder's own template renders what `encoder` trains with, in text and tokens.
fn as_trained(folder: &Path, encoder: &Encoder) -> bool {
    let template = chat(folder);
    conversations().iter().all(|messages| {
        let (text, tokens) = encoder.conversation(messages).unwrap();
        let rendered = rendered(&template, messages);
        rendered == text && encoder.ids(&rendered).unwrap() == tokens
    })
}

#[test]
fn an_exported_template_ends_at_the_eos_and_renders_all_else_as_before() {
    for (name, source, ends) in [
        ("chatml", CHATML, Rendering::EndsAtEos),
        ("tagged", TAGGED, Rendering::EndsAtEos),
        ("closed", CLOSED, Rendering::EndsAtEos),
        ("bare", BARE, Rendering::EndsAtEos),
        ("ended", ENDED, Rendering::Unchanged),
    ] {
        let model = folder(Some(source));
        for reward_at in [RewardAt::Eos, RewardAt::Both] {
            let encoder = encoder(model.path(), TemplateKind::Chat, RewardAt::Eos);
            let (out, rendering) = exported(&model, TemplateKind::Chat, reward_at);
            assert_eq!(rendering, ends, "{name}");
            assert!(as_trained(out.path(), &encoder), "{name}");
            // The control: the original template renders something else.
            assert_eq!(as_trained(model.path(), &encoder), ends == Rendering::Unchanged, "{name}");

            let (before, after) = (chat(model.path()), chat(out.path()));
            for mut messages in conversations() {
                assert_eq!(prompted(&after, &messages), prompted(&before, &messages), "{name}");
                messages.push(Message::new("user", "And? "));
                assert_eq!(rendered(&after, &messages), rendered(&before, &messages), "{name}");
                assert_eq!(prompted(&after, &messages), prompted(&before, &messages), "{name}");
            }
        }
    }
}

#[test]
fn both_places_of_a_template_agree_and_the_original_stays_by_name() {
    let model = folder(None);
    let tools = CHATML.replace("<|im_start|>' + ", "<|im_start|>' + 'tools ' + ");
    let list = json!([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": tools}]);
    let config = json!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": list});
    put(&model, "tokenizer_config.json", &config.to_string());
    let (out, _) = exported(&model, TemplateKind::Chat, RewardAt::Eos);
    let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
    let config: Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
    let of = |name: &str| {
        let templates = config["chat_template"].as_array().unwrap();
        templates.iter().find(|template| template["name"] == name).unwrap()["template"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("default"), read("chat_template.jinja"));
    assert_eq!(of("tool_use"), read("additional_chat_templates/tool_use.jinja"));
    assert_eq!(of("original"), read("additional_chat_templates/original.jinja"));
    assert_eq!(of("original"), CHATML);
    // The one that Transformers takes for conversations with tools ends at the EOS too.
    put(
        &model,
        "tokenizer_config.json",
        &json!({"eos_token": "<|im_end|>", "chat_template": of("tool_use")}).to_string(),
    );
    let ended = rendered(&chat(model.path()), &conversations()[0]);
    assert!(ended.starts_with("<|im_start|>tools user") && ended.ends_with("No.<|im_end|>"), "{ended}");
}

#[test]
fn an_export_of_an_export_is_the_same() {
    for (template, source) in
        [(TemplateKind::Chat, Some(CHATML)), (TemplateKind::Hh, None), (TemplateKind::Hh, Some(CHATML))]
    {
        let (once, first) = exported(&folder(source), template, RewardAt::Eos);
        let (twice, second) = exported(&once, template, RewardAt::Eos);
        assert_eq!(first, second);
        for name in ["chat_template.jinja", "tokenizer_config.json", "additional_chat_templates/original.jinja"] {
            let read = |folder: &TempDir| fs::read_to_string(folder.path().join(name)).ok();
            assert_eq!(read(&once), read(&twice), "{name}");
            assert_eq!(read(&once).is_some(), !name.contains("original") || source.is_some(), "{name}");
        }
        if template == TemplateKind::Chat {
            // Training goes on from an export with the template as it was.
            let rendered = rendered(encoder(once.path(), template, RewardAt::End).template(), &conversations()[0]);
            assert!(rendered.ends_with("No.<|im_end|>\n"), "{rendered}");
        }
    }
}

#[test]
fn trained_at_the_end_a_template_stays_as_it_is() {
    let model = folder(Some(CHATML));
    let (out, rendering) = exported(&model, TemplateKind::Chat, RewardAt::End);
    assert_eq!(rendering, Rendering::Unchanged);
    assert!(!out.path().join("chat_template.jinja").exists());
    let encoder = encoder(model.path(), TemplateKind::Chat, RewardAt::End);
    assert!(as_trained(out.path(), &encoder));
}

#[test]
fn plain_templates_are_written_as_chat_templates_that_render_the_training_s_text() {
    for kind in [TemplateKind::Instruct, TemplateKind::Hh, TemplateKind::Plain] {
        // A base model, and one whose own template was not trained with.
        for source in [None, Some(CHATML)] {
            let model = folder(source);
            let encoder = encoder(model.path(), kind, RewardAt::Eos);
            let (out, rendering) = exported(&model, kind, RewardAt::Eos);
            assert_eq!(rendering, Rendering::Written);
            assert!(as_trained(out.path(), &encoder), "{kind:?}");
            let original = fs::read_to_string(out.path().join("additional_chat_templates/original.jinja")).ok();
            assert_eq!(original.as_deref(), source);
        }
    }
    let (out, _) = exported(&folder(None), TemplateKind::Instruct, RewardAt::Eos);
    let prompt = [Message::new("user", "Hi.")];
    assert_eq!(prompted(&chat(out.path()), &prompt), "<|im_start|>Instruct: Hi.\nOutput:");
    let refused =
        chat(out.path()).render_prompt(&Prompt::Messages(vec![Message::new("tool", "3")]), &TemplateInputs::default());
    assert!(refused.unwrap_err().message.contains("a role is tool"));
}

#[test]
fn a_template_that_cannot_be_ended_is_left_unchanged_and_reported() {
    // Tags that are text must not become marks.
    let source = format!("{{% raw %}}{{% generation %}}{{% endraw %}}{CHATML}");
    let (out, rendering) = exported(&folder(Some(&source)), TemplateKind::Chat, RewardAt::Eos);
    assert_eq!(rendering, Rendering::NotAsTrained);
    assert!(!out.path().join("chat_template.jinja").exists());
    let config: Value = serde_json::from_slice(&fs::read(out.path().join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(config["chat_template"], source.as_str());
}

#[test]
fn an_exported_template_writes_the_date_of_the_training_whatever_day_it_is() {
    for (end, expected) in [("''", Rendering::WithTrainingDate), ("'\\n'", Rendering::EndsAtEos)] {
        let source = DATED.replace("END", end);
        for reward_at in [RewardAt::Eos, RewardAt::End] {
            let model = folder(Some(&source));
            let encoder = encoder(model.path(), TemplateKind::Chat, reward_at);
            let (out, rendering) = exported(&model, TemplateKind::Chat, reward_at);
            let expected = if reward_at == RewardAt::End { Rendering::WithTrainingDate } else { expected };
            assert_eq!(rendering, expected, "{end}");
            assert!(as_trained(out.path(), &encoder), "{end}");
            let original = fs::read_to_string(out.path().join("additional_chat_templates/original.jinja")).unwrap();
            assert_eq!(original, source);
            // Another clock, as other programs have: the original asks it, the exported template does not.
            let text = |folder: &Path, clock: Value| {
                let arguments = json!({"strftime_now": clock}).as_object().cloned().unwrap();
                let inputs = TemplateInputs { arguments, ..TemplateInputs::default() };
                let prompt = Prompt::Messages(vec![Message::new("user", "Hi.")]);
                chat(folder).render(&prompt, &inputs, &Message::answer("No."))
            };
            let made = text(out.path(), json!("broken")).unwrap();
            assert!(
                made.starts_with("Today: 26 Jul 2024, it's Friday, 00 o'clock; 100% so<|im_end|>user: Hi."),
                "{made}"
            );
            assert!(text(model.path(), json!("broken")).is_err(), "control");

            // Once more it is the same, and training goes on from it with the original.
            let (twice, again) = exported(&out, TemplateKind::Chat, reward_at);
            let read = |folder: &TempDir| fs::read_to_string(folder.path().join("chat_template.jinja")).unwrap();
            assert_eq!((again, read(&twice)), (rendering, read(&out)));
        }
    }
}

#[test]
fn a_format_that_stands_nowhere_is_an_error_and_not_today() {
    let source =
        CHATML.to_owned() + "{% if tools %}{{ strftime_now('%' ~ 'Y') }}{{ strftime_now('%Y-%m-%d') }}{% endif %}";
    let (out, rendering) = exported(&folder(Some(&source)), TemplateKind::Chat, RewardAt::Eos);
    assert_eq!(rendering, Rendering::EndsAtEos);
    let inputs = TemplateInputs { tools: Some(vec![json!({"name": "f"})]), ..TemplateInputs::default() };
    let error = chat(out.path()).render_prompt(&Prompt::Text("Hi.".into()), &inputs).unwrap_err();
    assert!(error.message.contains("no date of the training is known for %Y"), "{error}");
}
