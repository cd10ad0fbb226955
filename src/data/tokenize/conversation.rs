//! One conversation as text and as tokens, as training reads it: for exports and checks.
//!
//! Not here: pairs, and cutting to length (`mod.rs`).

use super::borders::Start;
use super::{Encoder, Rules};
use crate::config::RewardAt;
use crate::data::sequence::Sequence;
use crate::data::template::Template;
use crate::data::{Message, Prompt, TemplateInputs};
use crate::error::{Error, Result};

impl Encoder {
    /// The settings that determine a pair's tokens, together with tokenizer and template.
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The template that makes texts of pairs.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The text of the token that ends an answer's turn.
    pub(crate) fn eos_text(&self) -> &str {
        &self.eos_text
    }

    /// A rendered conversation up to the EOS of its last turn, which is added if the template wrote none.
    pub(crate) fn to_eos(&self, rendered: &str) -> String {
        let text = self.up_to_eos(rendered);
        if text.ends_with(&self.eos_text[..]) { text.to_owned() } else { format!("{text}{}", self.eos_text) }
    }

    /// The text and the tokens of a conversation that ends with an answer, as [`encode`](Self::encode) reads it, up to the
    /// token that is rewarded; it is not cut to length. A BOS that the tokenizer adds is part of the text.
    ///
    /// # Errors
    /// No messages, or a conversation that template or tokenizer cannot take.
    pub fn conversation(&self, messages: &[Message]) -> Result<(String, Vec<u32>)> {
        let Some((answer, prompt)) = messages.split_last() else { return Err(Error::runtime("no messages")) };
        let (prompt, inputs) = (Prompt::Messages(prompt.to_vec()), TemplateInputs::default());
        let answer = self.without_eos(answer);
        let rendered = self.template.render(&prompt, &inputs, &answer)?;
        let Sequence { mut tokens, span } = self.sequence(&rendered, &Start::default())?;
        tokens.truncate(span.reward + 1);
        let text = match (self.template.writes_bos(), self.rules.reward_at) {
            (true, RewardAt::End) => rendered,
            (true, _) => self.to_eos(&rendered),
            (false, _) => self.bos_text()? + &self.to_eos(&rendered),
        };
        Ok((text, tokens))
    }
}
