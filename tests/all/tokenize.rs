//! Templates and tokens: the text of a pair, the end of its turn, what is cut, and the common prefix.

use haf_dist::config::{TemplateKind, Truncation};
use haf_dist::data::formats::DropReason;
use haf_dist::data::sequence::OwnedPair;
use haf_dist::data::tokenize::{Encoded, Encoder, Rules};
use haf_dist::data::{Message, Pair, Prompt, TemplateInputs, template::Template};
use haf_dist::error::{Error, Kind, Result};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message.content }}\
                      <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const LLAMA2: &str = "{% for m in messages %}
    {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must take turns') }}
    {% endif %}
    {% if m.role == 'user' %}
        {{- bos_token + '[INST] ' + m.content.strip() + ' [/INST]' -}}
    {% else %}
        {{- ' ' ~ m.content.strip() ~ ' ' ~ eos_token -}}
    {% endif %}
{% endfor %}";
const LLAMA3: &str = "{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '<|end|>\\n\\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}";
const SPECIAL: [&str; 8] =
    ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<|unused|>"];
const VOCABULARY: usize = 256 + 2 + SPECIAL.len();

/// A byte-level tokenizer: 256 bytes, " b" and "ab" merged, and special tokens; it adds `<s>` in front.
fn tokenizer() -> Value {
    let bytes: BTreeSet<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    let vocabulary: serde_json::Map<String, Value> =
        bytes.into_iter().chain(["Ġb".into(), "ab".into()]).enumerate().map(|(id, t)| (t, json!(id))).collect();
    let added = |(index, content): (usize, &&str)| {
        json!({"id": 258 + index, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": SPECIAL.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": [["Ġ", "b"], ["a", "b"]]},
    })
}

/// A model's folder with a tokenizer and, maybe, a chat template.
fn folder(template: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true,
                        "chat_template": template});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
    folder
}

fn encoder(template: Option<&str>, kind: TemplateKind, max: usize, max_prompt: usize, cut: Truncation) -> Encoder {
    Encoder::open(folder(template).path(), Rules::new(kind, max, max_prompt, cut), VOCABULARY).unwrap()
}

fn wide(template: &str) -> Encoder {
    encoder(Some(template), TemplateKind::Chat, 4096, 2048, Truncation::Cut)
}

fn plain(max: usize, max_prompt: usize) -> Encoder {
    encoder(None, TemplateKind::Plain, max, max_prompt, Truncation::Cut)
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> Pair {
    let (chosen, rejected) = (Message::answer(chosen), Some(Message::answer(rejected)));
    let (prompt, inputs) = (Prompt::Text(prompt.into()), TemplateInputs::default());
    Pair { prompt, inputs, chosen, rejected, margin: None, tied: false, domain: None, line: 7 }
}

fn turns(turns: &[(&str, &str)]) -> Prompt {
    let message = |(role, content): &(&str, &str)| Message::new(*role, *content);
    Prompt::Messages(turns.iter().map(message).collect())
}

fn kept(encoded: Result<Encoded>) -> OwnedPair {
    match encoded.unwrap() {
        Encoded::Kept(kept) => kept,
        Encoded::Dropped(reason) => panic!("dropped: {reason}"),
    }
}

/// Both sequences as text, `|` where the answer starts.
fn texts(encoder: &Encoder, owned: &OwnedPair) -> [String; 2] {
    let tokens = owned.as_token_pair(0.0, 0);
    [tokens.chosen, tokens.rejected].map(|suffix| {
        let whole = [tokens.prefix, suffix].concat();
        let (prompt, answer) = whole.split_at(owned.spans[0].start);
        format!("{}|{}", encoder.decode(prompt).unwrap(), encoder.decode(answer).unwrap())
    })
}

fn rendered(encoder: &Encoder, pair: &Pair) -> [String; 2] {
    texts(encoder, &kept(encoder.encode(pair)))
}

fn prompt_text(template: &Template, text: &str) -> String {
    template.render_prompt(&Prompt::Text(text.into()), &TemplateInputs::default()).unwrap()
}

fn open_error(folder: &tempfile::TempDir, kind: TemplateKind) -> Error {
    let error = Encoder::open(folder.path(), Rules::new(kind, 64, 32, Truncation::Cut), VOCABULARY).err().unwrap();
    assert_eq!(error.kind, Kind::Input);
    error
}

#[test]
fn chat_templates_write_turns_and_bos_and_the_turns_eos_ends_the_sequence() {
    let chatml = wide(CHATML);
    assert_eq!(
        rendered(&chatml, &pair("hé 漢🦀", "a", " b\n")),
        ["a<|im_end|>", " b\n<|im_end|>"]
            .map(|answer| format!("<|im_start|>user\nhé 漢🦀<|im_end|>\n<|im_start|>assistant\n|{answer}"))
    );
    assert_eq!((chatml.eos(), chatml.bos()), (261, None));
    assert_eq!(
        rendered(&wide(LLAMA2), &pair(" q ", " a ", "b")),
        ["<s>[INST] q [/INST]| a </s>", "<s>[INST] q [/INST]| b </s>"]
    );
    let llama3 = wide(LLAMA3);
    let mut conversation = pair("", "a", "b");
    conversation.prompt = turns(&[("user", " q"), ("assistant", ""), ("user", "r")]);
    let prompt = "<s><|start|>user<|end|>\n\nq<|eot|><|start|>assistant<|end|>\n\n<|eot|>\
                  <|start|>user<|end|>\n\nr<|eot|><|start|>assistant<|end|>\n\n";
    assert_eq!(rendered(&llama3, &conversation), ["a", "b"].map(|answer| format!("{prompt}|{answer}<|eot|>")));
    assert_eq!((llama3.eos(), llama3.bos()), (264, Some(258)));
}

#[test]
fn plain_templates_put_the_space_on_the_answers_side_and_one_bos_in_front() {
    let open = |kind| encoder(None, kind, 512, 256, Truncation::Cut);
    let text = pair("q", "b", "c");
    let mut talk = text.clone();
    talk.prompt = turns(&[("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r")]);
    for (kind, expected, conversation) in [
        (
            TemplateKind::Instruct,
            "<s>Instruct: q\nOutput:| b</s>",
            "<s>s\nInstruct: q\nOutput: a\nInstruct: r\nOutput:| b</s>",
        ),
        (
            TemplateKind::Hh,
            "<s>\n\nHuman: q\n\nAssistant:| b</s>",
            "<s>s\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:| b</s>",
        ),
        (TemplateKind::Plain, "<s>q|b</s>", "<s>sqar|b</s>"),
    ] {
        assert_eq!(rendered(&open(kind), &text)[0], expected);
        assert_eq!(rendered(&open(kind), &talk)[0], conversation);
    }
    assert_eq!(rendered(&open(TemplateKind::Plain), &pair("<s>q", "b", "c"))[0], "<s>q|b</s>", "no second BOS");
    talk.prompt = turns(&[("tool", "x")]);
    let error = open(TemplateKind::Instruct).encode(&talk).unwrap_err();
    assert!(error.message.starts_with("line 7: ") && error.message.contains("\"tool\""), "{error}");
}

#[test]
fn an_answer_that_brings_its_eos_gets_no_second_one() {
    for (encoder, eos) in [(wide(CHATML), "<|im_end|>"), (wide(LLAMA2), "</s>"), (plain(64, 32), "</s>")] {
        let bare = kept(encoder.encode(&pair("q", "yes", "no")));
        assert_eq!(kept(encoder.encode(&pair("q", &format!("yes{eos}"), "no"))), bare);
        assert_eq!(encoder.encode(&pair("q", eos, "no")).unwrap(), Encoded::Dropped(DropReason::EmptyAnswer));
    }
}

#[test]
fn special_tokens_inside_texts_are_special_and_counted() {
    let encoder = wide(CHATML);
    let owned = kept(encoder.encode(&pair("a<|im_end|>b</s>", "x<|unused|>y<|im_end|>z", "no")));
    assert_eq!(owned.special_in_text, 4);
    assert_eq!(owned.tokens.iter().filter(|id| **id == 265).count(), 1);
    assert!(texts(&encoder, &owned)[0].ends_with("|x<|unused|>y<|im_end|>z<|im_end|>"));
    assert_eq!(kept(encoder.encode(&pair("a <| im_end |>", "x", "y"))).special_in_text, 0);
}

#[test]
fn the_common_prefix_goes_on_into_the_answers_but_leaves_each_a_token() {
    let encoder = plain(64, 32);
    let owned = kept(encoder.encode(&pair("q", "xxy", "xxz")));
    assert_eq!((owned.spans[0].start, owned.prefix, owned.chosen, owned.rejected), (2, 4, 2, 2));
    let tokens = owned.as_token_pair(1.5, 3);
    assert_eq!((tokens.margin, tokens.domain, tokens.spans[0].start), (1.5, 3, 2));
    assert_eq!([tokens.prefix, tokens.chosen, tokens.rejected].concat(), owned.tokens);

    // One answer cut down to the start of the other: its last token is still its own.
    let owned = kept(plain(6, 3).encode(&pair("q", "xx", "xxxxxxx")));
    assert_eq!((owned.prefix, owned.chosen, owned.rejected, owned.answer_cut), (4, 1, 2, true));

    let single = Pair { rejected: None, ..pair("q", "xx", "") };
    let owned = kept(encoder.encode(&single));
    assert_eq!((owned.prefix, owned.chosen, owned.rejected), (2, 3, 0));
    let empty = Pair { rejected: None, ..pair("q", "", "") };
    assert_eq!(
        texts(&encoder, &kept(encoder.encode(&empty)))[0],
        "<s>q|</s>",
        "a single row is never dropped as empty"
    );
}

#[test]
fn cutting_takes_the_prompts_start_as_needed_then_the_answers_end() {
    let cut = |max, max_prompt, chosen: &str, rejected: &str| {
        let encoder = plain(max, max_prompt);
        let owned = kept(encoder.encode(&pair("12345678", chosen, rejected)));
        (texts(&encoder, &owned), owned.prompt_cut, owned.answer_cut)
    };
    let expect = |texts: [&str; 2], prompt, answer| (texts.map(String::from), prompt, answer);
    assert_eq!(cut(12, 4, "xy", "z"), expect(["<s>12345678|xy</s>", "<s>12345678|z</s>"], false, false));
    assert_eq!(cut(10, 4, "xy", "z"), expect(["<s>345678|xy</s>", "<s>345678|z</s>"], true, false));
    assert_eq!(cut(7, 4, "xy", "z"), expect(["<s>678|xy</s>", "<s>678|z</s>"], true, false));
    assert_eq!(cut(6, 4, "xy", "z"), expect(["<s>678|xy", "<s>678|z</s>"], true, true));
    assert_eq!(cut(2, 1, "xy", "z"), expect(["<s>|x", "<s>|z"], true, true));
    // A prompt under its limit stays whole, however long the answer.
    assert_eq!(cut(10, 9, "xyz", "z"), expect(["<s>12345678|x", "<s>12345678|z"], false, true));

    assert_eq!(plain(5, 4).encode(&pair("123", "xa", "xb")).unwrap(), Encoded::Dropped(DropReason::IdenticalAnswers));
    let dropping = encoder(None, TemplateKind::Plain, 6, 4, Truncation::Drop);
    assert_eq!(dropping.encode(&pair("123", "xab!", "y")).unwrap(), Encoded::Dropped(DropReason::TooLong));
    kept(dropping.encode(&pair("123", "x", "y")));
    assert_eq!(wide(LLAMA3).encode(&pair("q", "a", "a ")).unwrap(), Encoded::Dropped(DropReason::IdenticalAnswers));
}

#[test]
fn a_prompt_of_no_tokens_is_dropped() {
    let folder = folder(None);
    let mut bare = tokenizer();
    bare["post_processor"] = Value::Null;
    std::fs::write(folder.path().join("tokenizer.json"), bare.to_string()).unwrap();
    let encoder =
        Encoder::open(folder.path(), Rules::new(TemplateKind::Plain, 8, 4, Truncation::Cut), VOCABULARY).unwrap();
    assert_eq!(encoder.bos(), None);
    assert_eq!(encoder.encode(&pair("", "a", "b")).unwrap(), Encoded::Dropped(DropReason::EmptyPrompt));
}

#[test]
fn templates_run_as_transformers_runs_them() {
    for (template, expected) in [
        // Trimmed blocks, Python's string methods, slices, `get`, `in`.
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ messages[0].content.upper().split('-')[-1].lstrip('B') }}", "C"),
        ("{{ messages[0].get('tool_calls', 'none') }}{{ 'content' in messages[0] }}", "noneTrue"),
        ("{{ messages[1:] | length }}{{ messages[0]['content'].startswith('a') }}", "0True"),
        ("{{ {'a': [1, '<&>\\'\\\\u003c']} | tojson }}", "{\"a\": [1, \"<&>'\\\\u003c\"]}"),
        ("{{ tools is none }}{{ documents is defined }}{{ pad_token is defined }}", "TrueTrueFalse"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}", "2"),
        ("{%- generation -%} g {%- endgeneration %}{{ 'generation' }}", "ggeneration"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
    ] {
        let source =
            format!("{{% if not messages[1:] %}}\n{template}{{% else %}}{{{{ messages[1].content }}}}{{% endif %}}");
        let template = Template::open(TemplateKind::Chat, folder(Some(&source)).path()).unwrap();
        assert_eq!(prompt_text(&template, "a-bc"), expected, "{source}");
    }
}

#[test]
fn a_generation_prompt_unlike_the_finished_turn_still_gives_answer_and_tail() {
    let thinking = format!("{CHATML}{{% if add_generation_prompt %}}<think>{{% endif %}}");
    let folder = folder(Some(&thinking));
    let template = Template::open(TemplateKind::Chat, folder.path()).unwrap();
    assert_eq!(template.tail(), "<|im_end|>\n");
    // The finished conversation is what Transformers tokenizes; the answer starts where the two part.
    assert!(prompt_text(&template, "q").ends_with("assistant\n<think>"));
    assert!(rendered(&wide(&thinking), &pair("q", "a", "b"))[0].ends_with("assistant\n|a<|im_end|>"));
}

#[test]
fn the_jinja_file_wins_and_a_list_of_templates_has_a_default() {
    let folder = folder(Some("config {{ messages[-1].content }}"));
    let text = || prompt_text(&Template::open(TemplateKind::Chat, folder.path()).unwrap(), "q");
    assert_eq!(text(), "config q");
    let named = json!({"eos_token": "</s>", "chat_template": [{"name": "tool_use", "template": "t"},
                       {"name": "default", "template": "default {{ messages[-1].content }}"}]});
    std::fs::write(folder.path().join("tokenizer_config.json"), named.to_string()).unwrap();
    assert_eq!(text(), "default q");
    std::fs::write(folder.path().join("chat_template.jinja"), "file {{ messages[-1].content }}").unwrap();
    assert_eq!(text(), "file q");
}

#[test]
fn a_templates_refusal_names_the_pairs_line() {
    let mut twice = pair("", "a", "b");
    twice.prompt = turns(&[("user", "q"), ("user", "r")]);
    let error = wide(LLAMA2).encode(&twice).unwrap_err();
    assert!(error.message.starts_with("line 7: ") && error.message.contains("roles must take turns"), "{error}");
    assert_eq!(error.kind, Kind::Input);
}

#[test]
fn a_model_folder_that_does_not_fit_is_refused_with_advice() {
    let chat = TemplateKind::Chat;
    let error = open_error(&folder(None), chat);
    assert!(error.message.contains("no chat template") && error.hint.unwrap().contains("instruct"));
    let error = open_error(&folder(Some("{% if %}")), chat);
    assert!(error.message.contains("tokenizer_config.json: the chat template is broken"), "{error}");
    let error = open_error(&folder(Some("{{ messages[0].content }}")), chat);
    assert!(error.message.contains("does not write the assistant's last message"), "{error}");

    let with = |name: &str, content: &str| {
        let folder = folder(Some(CHATML));
        std::fs::write(folder.path().join(name), content).unwrap();
        open_error(&folder, TemplateKind::Plain)
    };
    assert!(with("tokenizer.json", "{\"version\": ").message.contains("tokenizer.json: broken tokenizer"));
    assert!(with("tokenizer_config.json", "{").message.contains("tokenizer_config.json"));
    assert!(with("tokenizer_config.json", "{}").message.contains("no EOS token"));
    assert!(with("tokenizer_config.json", "{\"eos_token\": \"<other>\"}").message.contains("\"<other>\""));
    let missing = folder(None);
    std::fs::remove_file(missing.path().join("tokenizer.json")).unwrap();
    assert!(open_error(&missing, TemplateKind::Plain).message.contains("tokenizer.json"));

    let folder = folder(None);
    let open = |max, max_prompt, vocabulary| {
        Encoder::open(folder.path(), Rules::new(TemplateKind::Plain, max, max_prompt, Truncation::Cut), vocabulary)
            .map(|_| ())
    };
    let error = open(8, 4, 259).unwrap_err();
    assert!(error.message.contains("\"</s>\" is token 259") && error.message.contains("259 rows"), "{error}");
    // Tokens beyond the embedding are no fault until a text uses one; the EOS is in every sequence.
    assert!(error.hint.is_some() && [260, VOCABULARY + 100].iter().all(|rows| open(8, 4, *rows).is_ok()));
    assert!(open(8, 8, VOCABULARY).unwrap_err().message.contains("max_prompt_length = 8"));
    assert!(open(8, 0, VOCABULARY).is_err());
}

#[test]
fn the_fingerprint_changes_with_all_that_decides_the_tokens_and_with_nothing_else() {
    let base = || encoder(Some(CHATML), TemplateKind::Chat, 64, 32, Truncation::Cut).fingerprint();
    assert_eq!(base(), base());
    let others = [
        encoder(Some(LLAMA3), TemplateKind::Chat, 64, 32, Truncation::Cut),
        encoder(Some(CHATML), TemplateKind::Hh, 64, 32, Truncation::Cut),
        encoder(Some(CHATML), TemplateKind::Chat, 65, 32, Truncation::Cut),
        encoder(Some(CHATML), TemplateKind::Chat, 64, 33, Truncation::Cut),
        encoder(Some(CHATML), TemplateKind::Chat, 64, 32, Truncation::Drop),
    ];
    let distinct: BTreeSet<u128> = others.iter().map(Encoder::fingerprint).chain([base()]).collect();
    assert_eq!(distinct.len(), 6);
}

#[test]
fn threads_share_one_encoder_and_agree() {
    let encoder = wide(CHATML);
    let encode = |number: usize| kept(encoder.encode(&pair(&format!("q{number}"), "yes", "no")));
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|number| scope.spawn(move || encode(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, (0..4).map(encode).collect::<Vec<_>>());
    let hash = |prompt: &str| kept(encoder.encode(&pair(prompt, "yes", "no"))).prompt_hash;
    assert_eq!(hash("q0"), together[0].prompt_hash);
    assert_ne!(hash("q0"), hash("q1"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any texts, any limits: the layout's promises hold.
    #[test]
    fn layout_holds_for_any_text_and_limit(
        prompt in "(\\PC|<s>|</s>|\n){0,12}", chosen in "(\\PC|</s>|x){0,12}", rejected in "(\\PC|</s>|x){0,12}",
        max_prompt in 1..16_usize, more in 1..12_usize,
    ) {
        let encoder = plain(max_prompt + more, max_prompt);
        if let Encoded::Kept(owned) = encoder.encode(&pair(&prompt, &chosen, &rejected)).unwrap() {
            let tokens = owned.as_token_pair(0.0, 0);
            prop_assert_eq!(owned.prefix + owned.chosen + owned.rejected, owned.tokens.len());
            prop_assert!(owned.chosen > 0 && owned.rejected > 0 && owned.spans.iter().all(|span| owned.prefix >= span.start));
            prop_assert!(owned.prefix + owned.chosen.max(owned.rejected) <= max_prompt + more);
            prop_assert_eq!(tokens.prefix[0], 258);
            prop_assert!([tokens.prefix, tokens.chosen].concat() != [tokens.prefix, tokens.rejected].concat());
            if !owned.answer_cut {
                prop_assert_eq!((tokens.chosen.last(), tokens.rejected.last()), (Some(&259), Some(&259)));
            }
        }
    }
}
