//! Writes the Jinja of exported chat templates: one that ends at the EOS and has the clock of the training, and one for each
//! plain template.
//!
//! They run in Transformers' sandbox and in the engine here, and use only what both have. Not here: whether a template needs
//! a change, and whether it renders what was trained (`mod.rs`).

use crate::config::TemplateKind;
use crate::data::template::{CLOCK_MARK, MARK};
use std::collections::BTreeMap;

/// Marks assistant tokens inside a rendering that is not printed yet: one before, one after.
const SIGN: &str = "<<haf-dist:generation>>";

/// How an answer's turn ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'a> {
    /// Text of the token at which the reward is read.
    pub(crate) eos: &'a str,
    /// Text that the original template writes after a final answer.
    pub(crate) tail: &'a str,
}

impl Turn<'_> {
    /// The part of the tail after the EOS: all of it if the template writes no EOS.
    pub(crate) fn after_eos(&self) -> &str {
        self.tail.split_once(self.eos).map_or(self.tail, |(_, after)| after)
    }
}

/// Results of `strftime_now` in training, by format.
pub(crate) type Times = BTreeMap<String, String>;

/// A macro that replaces `strftime_now` and returns the times of the training; empty for no times. A format that the template
/// did not use in training is an error rather than today's date.
fn clock(times: &Times) -> String {
    let mut branch = "if";
    let mut text = String::new();
    for (format, time) in times {
        text += &format!("    {{%- {branch} format == {} %}}{{{{- {} }}}}\n", literal(format), literal(time));
        branch = "elif";
    }
    if text.is_empty() {
        return text;
    }
    text += "    {%- else %}{{- raise_exception('haf-dist: no date of the training is known for ' ~ format) }}{%- endif %}\n";
    format!("{{%- macro strftime_now(format) %}}\n{text}{{%- endmacro %}}\n")
}

/// The original template with the clock of the training, otherwise unchanged.
pub(crate) fn with_clock(original: &str, times: &Times) -> String {
    // Jinja drops the line break after the last tag.
    format!("{CLOCK_MARK}\n{}{original}", clock(times))
}

/// Whether a template marks the assistant's tokens, for Transformers' `return_assistant_tokens_mask`.
fn has_generation_tags(source: &str) -> bool {
    renamed_generation_tags(source) != source
}

/// The original template with another end: a conversation whose last turn is the assistant's, rendered without a generation
/// prompt, ends at its EOS. Every other rendering is unchanged.
///
/// The original renders into a variable, which is printed as it is or cut: the known text after the EOS, or white space
/// after an EOS, is removed; a missing EOS is added. Transformers counts `{% generation %}` tokens from where they are
/// printed, so these tags become signs inside the variable, and tags again when it is printed piece by piece.
pub(crate) fn ending_at_eos(original: &str, times: &Times, turn: Turn) -> String {
    // Jinja removes one line break at a template's end.
    let body = original.strip_suffix('\n').map_or(original, |body| body.strip_suffix('\r').unwrap_or(body));
    // And white space between a line's start and a tag, unless the tag has a plus.
    let last_line = body.rsplit('\n').next().unwrap_or_default();
    let keep = if !last_line.is_empty() && last_line.trim().is_empty() { "+" } else { "" };
    let marked = has_generation_tags(original);
    let (eos, tail, sign) = (literal(turn.eos), literal(turn.tail), literal(SIGN));

    let mut text = format!("{MARK}\n{}", clock(times));
    if marked {
        text += "{%- macro haf_dist_generation() %}";
        text += &format!("{{{{ {sign} ~ caller() ~ {sign} }}}}{{% endmacro %}}\n");
    }
    // Jinja drops the line break after a tag.
    text += "{%- set haf_dist_all %}\n";
    text += &if marked { renamed_generation_tags(body) } else { body.to_owned() };
    text += &format!("{{%{keep} endset %}}\n");
    let unmarked = if marked { format!("haf_dist_all.replace({sign}, '')") } else { "haf_dist_all".to_owned() };
    text += &format!("{{%- set haf_dist_text = {unmarked} %}}\n");
    text += "{%- if messages and messages[-1].role == 'assistant' and not add_generation_prompt %}\n";
    let after = turn.after_eos();
    // White space after an EOS is handled below.
    let is_white = turn.tail.contains(turn.eos) && after.trim().is_empty();
    if !after.is_empty() && !is_white {
        text += &format!("    {{%- if haf_dist_text.endswith({tail}) %}}\n");
        text += &format!("        {{%- set haf_dist_text = haf_dist_text[:-{}] %}}\n", after.chars().count());
        text += "    {%- endif %}\n";
    }
    text += &format!("    {{%- if haf_dist_text.rstrip().endswith({eos}) %}}\n");
    text += "        {%- set haf_dist_text = haf_dist_text.rstrip() %}\n    {%- else %}\n";
    text +=
        &format!("        {{%- set haf_dist_text = haf_dist_text ~ {eos} %}}\n    {{%- endif %}}\n{{%- endif %}}\n");
    if marked {
        text += "{%- set haf_dist = namespace(at=0) %}\n";
        text += &format!("{{%- for part in haf_dist_all.split({sign}) %}}\n");
        text += "    {%- set shown = haf_dist_text[haf_dist.at:haf_dist.at + part|length] %}\n";
        text += "    {%- set haf_dist.at = haf_dist.at + part|length %}\n";
        // The parts between two signs.
        text += "    {%- if loop.index0 % 2 == 1 %}\n";
        text += "        {%- generation %}{{- shown }}{% endgeneration %}\n";
        text += "    {%- else %}\n        {{- shown }}\n    {%- endif %}\n{%- endfor %}\n";
        text += "{{- haf_dist_text[haf_dist.at:] }}";
    } else {
        text += "{{- haf_dist_text }}";
    }
    text
}

/// A chat template that renders messages as a plain template does in training, with the BOS that the tokenizer adds in training
/// and the EOS after a final answer. `None` for [`TemplateKind::Chat`].
pub(crate) fn plain(kind: TemplateKind, bos: &str, eos: &str) -> Option<String> {
    // Before and after the turns of user, assistant and system; the prompt for an answer.
    let (user, assistant, system, prompt) = match kind {
        TemplateKind::Instruct => (("Instruct: ", "\n"), ("Output: ", "\n"), ("", "\n"), "Output:"),
        TemplateKind::Hh => (("\n\nHuman: ", ""), ("\n\nAssistant: ", ""), ("", ""), "\n\nAssistant:"),
        TemplateKind::Plain => (("", ""), ("", ""), ("", ""), ""),
        TemplateKind::Chat => return None,
    };
    let written = |(before, after): (&str, &str)| {
        format!("{{{{- {} ~ message.content ~ {} }}}}", literal(before), literal(after))
    };
    let name = format!("{kind:?}").to_lowercase();
    let mut text = format!("{{#- haf-dist: messages as template = \"{name}\" trains them -#}}\n");
    text += &format!("{{{{- {} }}}}\n", literal(bos));
    text += "{%- for message in messages %}\n";
    text += "    {%- if loop.last and message.role == 'assistant' and not add_generation_prompt %}\n";
    text += &format!("        {}\n", written((assistant.0, eos)));
    for (role, around) in [("user", user), ("assistant", assistant), ("system", system)] {
        text += &format!("    {{%- elif message.role == '{role}' %}}\n        {}\n", written(around));
    }
    text += "    {%- else %}\n";
    text += &match kind {
        TemplateKind::Plain => format!("        {}\n", written(("", ""))),
        _ => "        {{- raise_exception('a role is ' ~ message.role ~ ': expected user, assistant or system') }}\n"
            .into(),
    };
    text += "    {%- endif %}\n{%- endfor %}\n";
    text += &format!("{{%- if add_generation_prompt %}}\n    {{{{- {} }}}}\n{{%- endif %}}", literal(prompt));
    Some(text)
}

/// Replaces `{% generation %}` and its end tag by a call of the macro that writes signs; keeps white space control.
fn renamed_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag) = rest[..start + length].split_at(start);
        let tag = match tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => tag.replace("generation", "call haf_dist_generation()"),
            "endgeneration" => tag.replace("endgeneration", "endcall"),
            _ => tag.to_owned(),
        };
        text.extend([before, &tag]);
        rest = &rest[start + length..];
    }
    text + rest
}

/// A string as a literal in Jinja source.
fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_written() {
        let none = Times::new();
        let chatml = ending_at_eos("{{ x }}", &none, Turn { eos: "<e>", tail: "<e>\n" });
        assert!(chatml.starts_with(MARK));
        assert!(!chatml.contains("[:-") && !chatml.contains("strftime_now") && !chatml.contains("generation %}"));
        // Known text after the EOS is cut, counted in characters.
        assert!(ending_at_eos("{{ x }}", &none, Turn { eos: "<e>", tail: "<e>\n<ende\u{df}>" }).contains("[:-8]"));
        assert!(ending_at_eos("{{ x }}", &none, Turn { eos: "<e>", tail: "\n" }).contains("[:-1]"));
    }

    #[test]
    fn generation_tags_become_calls_and_come_back_when_the_text_is_printed() {
        let original = "{%- generation -%}{{ x }}{%+ endgeneration %}";
        let made = ending_at_eos(original, &Times::new(), Turn { eos: "<e>", tail: "<e>\n" });
        assert!(made.contains("{%- call haf_dist_generation() -%}{{ x }}{%+ endcall %}"), "{made}");
        assert!(made.contains("{%- generation %}{{- shown }}{% endgeneration %}"), "{made}");
        assert!(!has_generation_tags("{% if add_generation_prompt %}"));
    }

    #[test]
    fn an_end_that_jinja_would_strip_is_kept() {
        let end = |original| {
            let made = ending_at_eos(original, &Times::new(), Turn { eos: "<e>", tail: "<e>\n" });
            made.split("{{ x }}").nth(1).unwrap().split(" endset").next().unwrap().to_owned()
        };
        assert_eq!(end("{{ x }}\n"), "{%");
        assert_eq!(end("{{ x }}\n\n"), "\n{%");
        assert_eq!(end("{{ x }}\n  "), "\n  {%+");
        assert_eq!(end("{{ x }} "), " {%");
    }

    #[test]
    fn a_literal_says_what_it_was_made_of() {
        assert_eq!(literal("a'b\\c\n"), r"'a\'b\\c\n'");
    }
}
