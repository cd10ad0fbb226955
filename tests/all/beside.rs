//! Promise: values next to a pair, or inside its messages, that could change a score are used as their authors mean them, or
//! refused by name; nothing is taken literally that is not meant literally.

use haf_dist::config::{Source, TemplateKind};
use haf_dist::data::formats::{DropReason, SourceRows, read, read_for_scoring};
use haf_dist::data::template::Template;
use haf_dist::data::{Message, Pair, Prompt};
use haf_dist::error::{Kind, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn written<T>(rows: &[Value], look: impl FnOnce(PathBuf) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    look(path)
}

fn all(rows: &[Value]) -> Result<SourceRows> {
    written(rows, |path| read(&Source::new(path)))
}

/// The pair of a row in which nothing is unused.
fn only(row: Value) -> Pair {
    let mut taken = all(std::slice::from_ref(&row)).unwrap();
    assert_eq!((taken.pairs.len(), &taken.unused), (1, &BTreeMap::new()), "{row} {:?}", taken.dropped);
    taken.pairs.remove(0)
}

/// What is said of a row that is refused; scoring says the same.
fn refused(row: Value) -> String {
    let error = all(std::slice::from_ref(&row)).unwrap_err();
    let scored = written(&[row], |path| read_for_scoring(&Source::new(&path))).unwrap_err();
    assert!(error.kind == Kind::Input && error.hint.is_some(), "{error}");
    let without_path = |message: &str| message.split_once("rows.jsonl").unwrap().1.to_owned();
    assert_eq!(without_path(&error.message), without_path(&scored.message));
    error.to_string()
}

fn with(key: &str, value: Value) -> Value {
    let mut row = json!({"prompt": "q", "chosen": "a", "rejected": "b"});
    row[key] = value;
    row
}

fn turns(turns: &[(&str, &str)]) -> Prompt {
    Prompt::Messages(turns.iter().map(|(role, text)| Message::new(*role, *text)).collect())
}

fn talk(texts: &[&str]) -> Value {
    let role = |place: usize| if place.is_multiple_of(2) { "user" } else { "assistant" };
    texts.iter().enumerate().map(|(place, text)| json!({"role": role(place), "content": text})).collect()
}

fn call() -> Value {
    json!([{"type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}])
}

#[test]
fn a_system_prompt_earlier_turns_and_an_input_join_the_prompt_of_every_layout() {
    assert_eq!(only(with("system", json!("s"))).prompt, turns(&[("system", "s"), ("user", "q")]));
    assert_eq!(only(with("system_prompt", json!("s"))).prompt, turns(&[("system", "s"), ("user", "q")]));
    assert_eq!(only(with("input", json!("i"))).prompt, Prompt::Text("q\ni".into()));
    let earlier = turns(&[("user", "h"), ("assistant", "i"), ("user", "q")]);
    let from = json!([{"from": "human", "value": "h"}, {"from": "gpt", "value": "i"}]);
    for history in [json!([["h", "i"]]), talk(&["h", "i"]), from, json!("[[\"h\", \"i\"]]")] {
        assert_eq!(only(with("history", history)).prompt, earlier);
    }
    let mut everything = with("history", json!([["h", "i"]]));
    (everything["system"], everything["input"]) = (json!("s"), json!("x"));
    let expected = turns(&[("system", "s"), ("user", "h"), ("assistant", "i"), ("user", "q\nx")]);
    assert_eq!(only(everything).prompt, expected);
    for (row, last) in [
        (json!({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1, "system": "s"}), "q"),
        (json!({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 1, "system": "s"}), "q"),
        (
            json!({"conversation_a": talk(&["q", "a"]), "conversation_b": talk(&["q", "b"]), "winner": "model_a", "system": "s"}),
            "q",
        ),
        (json!({"question": "q", "chosen": "a", "rejected": "b", "system": "s"}), "q"),
    ] {
        assert_eq!(only(row).prompt, turns(&[("system", "s"), ("user", last)]));
    }
    // The same once more says nothing new; another one is a contradiction.
    let own = json!({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"});
    let mut same = own.clone();
    same["system"] = json!("s");
    assert_eq!(only(same).prompt, turns(&[("system", "s"), ("user", "q")]));
    let mut other = own;
    other["system"] = json!("t");
    assert!(refused(other).contains("`system` differs from the system prompt in the first message"));
}

#[test]
fn empty_values_are_ignored() {
    let plain = only(with("domain", json!("d")));
    for key in
        ["system", "history", "input", "context", "messages", "images", "tools", "documents", "chat_template_kwargs"]
    {
        for nothing in [json!(null), json!([]), json!(""), json!("[]"), json!({})] {
            let mut row = with("domain", json!("d"));
            row[key] = nothing;
            assert_eq!(only(row), plain, "{key}");
        }
    }
}

#[test]
fn values_without_a_clear_meaning_are_refused_by_name() {
    for (row, told) in [
        (with("images", json!(["x.png"])), "`images` is not empty"),
        (with("videos", json!(["x.mp4"])), "`videos` is not empty"),
        (with("audios", json!("x.wav")), "`audios` is not empty"),
        (with("context", json!("once upon a time")), "it is not clear where `context` belongs in the prompt"),
        (with("history", json!("before")), "`history` is a text that is not JSON"),
        (with("history", json!([["h"]])), "entry 1 of `history` is not two texts"),
        (with("system", json!({"s": 1})), "`system` is an object"),
        (with("tools", json!("f(x)")), "`tools` is a text that is not JSON"),
        (with("tools", json!("[{'name': 'f'}]")), "`tools` is a text that is not JSON"),
        (with("chat_template_kwargs", json!({"messages": []})), "`chat_template_kwargs` sets `messages`"),
        (with("messages", talk(&["another", "a"])), "`messages` does not match the prompt"),
        (
            json!({"messages": talk(&["q", "c"]), "chosen": "a", "rejected": "b"}),
            "`messages` ends with an answer that is not the chosen one",
        ),
        (
            json!({"prompt": talk(&["q"]), "input": "i", "chosen": "a", "rejected": "b"}),
            "it is not clear where `input` belongs in the conversation",
        ),
    ] {
        let error = refused(row);
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_conversation_beside_the_answers_is_the_prompt_or_repeats_it() {
    for messages in [talk(&["q"]), talk(&["q", "a"])] {
        let alone = json!({"messages": messages, "chosen": "a", "rejected": "b"});
        assert_eq!(only(alone).prompt, turns(&[("user", "q")]));
        assert_eq!(only(with("messages", messages)).prompt, Prompt::Text("q".into()));
    }
    let whole = json!({"prompt": "q", "chosen": talk(&["h", "i", "q", "a"]), "rejected": talk(&["h", "i", "q", "b"])});
    assert_eq!(only(whole).prompt, turns(&[("user", "h"), ("assistant", "i"), ("user", "q")]));
    let first = json!({"prompt": "h", "chosen": talk(&["h", "i", "q", "a"]), "rejected": talk(&["h", "i", "q", "b"])});
    assert_eq!(only(first).chosen.text(), "a");
    let one = json!({"prompt": "q", "chosen": {"role": "assistant", "content": "a"}, "rejected": {"from": "gpt", "value": "b"}});
    assert_eq!(only(one).rejected.unwrap().text(), "b");
}

#[test]
fn a_conversation_that_ends_with_another_answer_is_reported() {
    for (last, unused) in [("a", 0), ("b", 0), ("c", 1)] {
        let taken = all(&[with("messages", talk(&["q", last]))]).unwrap();
        assert_eq!((taken.pairs.len(), taken.unused.get("messages").copied().unwrap_or(0)), (1, unused), "{last}");
    }
}

#[test]
fn rounds_of_two_texts_are_turns() {
    let rounds = json!([{"input": "h", "output": "i"}, {"input": "q", "output": "a"}]);
    let whole =
        json!({"conversation": rounds, "chosen": talk(&["h", "i", "q", "a"]), "rejected": talk(&["h", "i", "q", "b"])});
    let taken = all(&[whole]).unwrap();
    assert_eq!(taken.pairs[0].prompt, turns(&[("user", "h"), ("assistant", "i"), ("user", "q")]));
    assert!(taken.unused.is_empty(), "{:?}", taken.unused);
    let other = json!({"conversation": rounds, "chosen": talk(&["q", "a"]), "rejected": talk(&["q", "b"])});
    assert!(refused(other).contains("`chosen` has messages before its last one that are not the prompt"));
    let noted = json!({"conversation": [{"input": "q", "output": "a", "by": "x"}], "chosen": "a", "rejected": "b"});
    assert_eq!(all(&[noted]).unwrap().unused, [(String::from("conversation.by"), 1)].into());
    // A message may have such keys besides.
    let message = json!({"role": "user", "content": "q", "input": "x", "output": "y"});
    let taken = all(&[json!({"prompt": [message], "chosen": "a", "rejected": "b"})]).unwrap();
    assert_eq!(taken.pairs[0].prompt, turns(&[("user", "q")]));
    assert_eq!(taken.unused.len(), 2, "both are reported");
}

#[test]
fn values_reach_templates_as_transformers_would_pass_them() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for given in [tools.clone(), json!(tools.to_string()), json!([tools[0].to_string()])] {
        assert_eq!(only(with("tools", given)).inputs.tools.as_deref(), tools.as_array().map(Vec::as_slice));
    }
    let documents = json!([{"title": "t", "text": "d"}]);
    assert_eq!(only(with("documents", documents.clone())).inputs.documents, documents.as_array().cloned());
    let arguments =
        only(with("chat_template_kwargs", json!({"enable_thinking": false, "nothing": null}))).inputs.arguments;
    assert_eq!(json!(arguments), json!({"enable_thinking": false}));

    let prompt = json!([
        {"role": "user", "content": "q", "name": "Ann"},
        {"role": "assistant", "content": null, "tool_calls": call(), "reasoning_content": "hm"},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    ]);
    let pair = only(
        json!({"prompt": prompt, "chosen": [{"role": "assistant", "content": "a", "thinking": "so"}], "rejected": "b"}),
    );
    let Prompt::Messages(turns) = &pair.prompt else { panic!("{pair:?}") };
    assert_eq!((turns[1].content.as_deref(), &turns[1].more["tool_calls"]), (None, &call()), "arguments stay a text");
    assert_eq!((turns[2].role.as_str(), &turns[2].more["tool_call_id"]), ("tool", &json!("c1")));
    assert_eq!(pair.chosen.more, json!({"thinking": "so"}).as_object().cloned().unwrap());
    let names: std::collections::BTreeSet<&str> = pair.for_template().collect();
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["name", "reasoning_content", "thinking", "tool_call_id", "tool_calls"]
    );
    // An answer may be calls alone.
    let calls = json!({"prompt": "q", "chosen": [{"role": "assistant", "tool_calls": call()}], "rejected": "b"});
    assert_eq!(only(calls).chosen.content, None);
}

#[test]
fn plain_templates_refuse_what_they_cannot_write_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let call = json!([{"role": "assistant", "content": "a", "tool_calls": call()}]);
    for (row, name) in [
        (with("tools", json!([{"name": "f"}])), "`tools`"),
        (with("documents", json!([{"text": "d"}])), "`documents`"),
        (with("chat_template_kwargs", json!({"x": 1})), "`chat_template_kwargs`"),
        (with("chosen", call), "`tool_calls`"),
    ] {
        let pair = only(row);
        for kind in [TemplateKind::Instruct, TemplateKind::Hh, TemplateKind::Plain] {
            let template = Template::open(kind, folder.path()).unwrap();
            let error = template.render(&pair.prompt, &pair.inputs, &pair.chosen).unwrap_err();
            assert!(error.message.contains(name) && error.hint.is_some(), "{error}");
            let other = only(with("domain", json!("d")));
            assert!(template.render(&other.prompt, &other.inputs, &other.chosen).is_ok(), "control");
        }
    }
}

#[test]
fn sharegpts_speakers_are_roles_and_its_calls_are_tool_calls() {
    let row = json!({"conversations": [
        {"from": "system", "value": "s"}, {"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}, {"from": "observation", "value": "7"},
    ], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}});
    let Prompt::Messages(turns) = only(row).prompt else { panic!("no turns") };
    let roles: Vec<&str> = turns.iter().map(|turn| turn.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool"]);
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
    assert_eq!((turns[2].content.as_deref(), &turns[2].more["tool_calls"]), (None, &calls));

    // ms-swift writes one call a message.
    let messages = json!([
        {"role": "user", "content": "q"}, {"role": "tool_call", "content": "{\"name\": \"f\", \"arguments\": {}}"},
        {"role": "tool_call", "content": "{\"name\": \"g\", \"arguments\": {}}"}, {"role": "tool_response", "content": "7"},
        {"role": "assistant", "content": "a"},
    ]);
    let mut rejected = messages.clone();
    rejected[4]["content"] = json!("b");
    let Prompt::Messages(turns) = only(json!({"messages": messages, "rejected_messages": rejected})).prompt else {
        panic!()
    };
    assert_eq!((turns.len(), turns[1].more["tool_calls"].as_array().map(Vec::len)), (3, Some(2)));
    // A rejected answer alone follows the user's turn, and the chosen one here does not.
    let taken = all(&[json!({"messages": messages, "rejected_response": "b"})]).unwrap();
    assert_eq!(taken.dropped, [(DropReason::DifferentPrompts, 1)].into());
    let unknown = json!({"conversations": [{"from": "narrator", "value": "q"}], "chosen": "a", "rejected": "b"});
    assert!(refused(unknown).contains("`from` is \"narrator\""));
}

#[test]
fn content_parts_of_text_are_joined_and_others_refused_by_name() {
    let part = |text: &str| json!({"type": "text", "text": text, "image": null});
    let row =
        |parts: Value| json!({"prompt": [{"role": "user", "content": parts}], "chosen": [part("a")], "rejected": "b"});
    let pair = only(row(json!([part("q"), part(" r")])));
    assert_eq!((pair.prompt, pair.chosen.text()), (turns(&[("user", "q r")]), "a"));
    for (parts, told) in [
        (json!([part("q"), {"type": "image_url", "image_url": {"url": "x"}}]), "is `image_url`, but only text is read"),
        (json!([{"type": "text", "text": "q", "image": "x.png"}]), "is `image`, but only text is read"),
        (json!([{"type": "audio"}]), "is `audio`"),
        (json!([{"type": "poem", "text": "q"}]), "content part 1 of message 1 of `prompt` is not a text part"),
        (json!([{"text": "q"}]), "is not a text part"),
    ] {
        let error = refused(row(parts));
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn message_lists_in_json_texts_are_turns_and_those_in_pythons_are_refused() {
    let pair = only(json!({"chosen": talk(&["q", "a"]).to_string(), "rejected": talk(&["q", "b"]).to_string()}));
    assert_eq!((pair.prompt, pair.chosen.text()), (turns(&[("user", "q")]), "a"));
    let noted =
        json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "stamp": 7}]).to_string();
    let taken = all(&[json!({"chosen": noted, "rejected": talk(&["q", "b"])})]).unwrap();
    assert_eq!(taken.unused, [(String::from("chosen.stamp"), 1)].into());
    // Other JSON is an answer like any other.
    for text in ["[1, 2]", "{\"role\": \"admin\", \"content\": \"x\"}", "[{\"role\": \"user\"}]", "[{\"role\""] {
        assert_eq!(only(with("chosen", json!(text))).chosen.text(), text);
    }
    let python = "[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]";
    for row in [
        with("chosen", json!(python)),
        json!({"chosen": python, "rejected": python}),
        with("prompt", json!("[ {'content': 'q'}]")),
    ] {
        let error = refused(row);
        assert!(error.contains("in Python's notation") && error.contains("json.dumps"), "{error}");
    }
    assert_eq!(only(with("chosen", json!("[{'a': 1}]"))).chosen.text(), "[{'a': 1}]", "an answer in Python");
}

#[test]
fn a_transcript_as_the_prompt_is_turns_and_the_space_behind_its_colon_is_the_templates() {
    let expected = turns(&[("user", "q"), ("assistant", "s"), ("user", "r")]);
    let prompt = "\n\nHuman: q\n\nAssistant: s\n\nHuman: r\n\nAssistant:";
    let row = json!({"prompt": prompt, "chosen": " a", "rejected": "  b"});
    let pair = only(row.clone());
    assert_eq!(
        (&pair.prompt, pair.chosen.text(), pair.rejected.as_ref().map(Message::text)),
        (&expected, "a", Some(" b"))
    );
    // Answers that hold the prompt once more are cut to what they add; those of another conversation are left out.
    let whole =
        |prompt: &str| json!({"prompt": prompt, "chosen": format!("{prompt} a"), "rejected": format!("{prompt}  b")});
    let pair = only(whole(prompt));
    assert_eq!((&pair.prompt, pair.chosen.text(), pair.rejected.unwrap().text()), (&expected, "a", " b"));
    let other = json!({"prompt": "\n\nHuman: x\n\nAssistant:", "chosen": format!("{prompt} a"), "rejected": " b"});
    assert_eq!(all(&[row.clone(), other]).unwrap().dropped, [(DropReason::DifferentPrompts, 1)].into());
    let mut spaced = row.clone();
    spaced["prompt"] = json!(format!("{prompt} "));
    assert_eq!(only(spaced).chosen.text(), " a");
    // As a named format its text is taken as it is.
    let literal =
        written(&[row], |path| read(&Source { format: haf_dist::config::Format::Pairs, ..Source::new(path) }));
    assert_eq!(literal.unwrap().pairs[0].prompt, Prompt::Text(prompt.into()));
    // A transcript in which the assistant never speaks is left out.
    let odd = json!({"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"});
    let good = json!({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"});
    assert_eq!(all(&[odd, good]).unwrap().dropped, [(DropReason::LastTurnNotAssistant, 1)].into());
}

#[test]
fn an_answer_alone_has_the_prompt_that_it_has_in_a_pair() {
    let several = "q\n<extra_id_1>Assistant\nx\n<extra_id_1>User\ny";
    for pair in [
        json!({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"}),
        json!({"prompt": several, "response_1": "a", "response_2": "b", "preference_strength": -1}),
        json!({"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"}),
    ] {
        let mut alone = json!({"prompt": pair["prompt"], "response": pair.get("chosen").unwrap_or(&json!("a"))});
        if let Some(system) = pair.get("system") {
            alone["system"] = system.clone();
        }
        let read = written(&[pair, alone], |path| read_for_scoring(&Source::new(path))).unwrap().pairs;
        assert_eq!((&read[0].prompt, &read[0].chosen), (&read[1].prompt, &read[1].chosen));
        assert!(read[0].rejected.is_some() && read[1].rejected.is_none());
    }
}

#[test]
fn keys_that_nothing_reads_are_reported_with_their_rows() {
    let rows =
        [with("note", json!("n")), with("meta", json!({"id": 1, "by": {"name": "x"}})), with("label", json!(false))];
    let taken = all(&rows).unwrap();
    let unused: Vec<_> = taken.unused.iter().map(|(key, rows)| format!("{key} {rows}")).collect();
    assert_eq!(unused, ["label 1", "meta 1", "note 1"]);
    let stamped =
        json!({"prompt": [{"role": "user", "content": "q", "stamp": 1, "id": null}], "chosen": "a", "rejected": "b"});
    assert_eq!(all(&[stamped]).unwrap().unused, [(String::from("prompt.stamp"), 1)].into());
}

#[test]
fn an_input_that_repeats_the_prompt_is_not_added_again() {
    assert_eq!(only(with("input", json!("q "))).prompt, Prompt::Text("q".into()));
    let mut row = with("input", json!("q"));
    row["prompt"] = talk(&["hello", "yes", "q"]);
    assert_eq!(only(row).prompt, turns(&[("user", "hello"), ("assistant", "yes"), ("user", "q")]));
    // Control: another text is the prompt's second line.
    assert_eq!(only(with("input", json!("r"))).prompt, Prompt::Text("q\nr".into()));
}
