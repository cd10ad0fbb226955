//! The character ranges of an answer's tokens in its text.
//!
//! Not here: the tokens themselves (`mod.rs`).

use super::Encoder;
use super::borders::Start;
use crate::data::sequence::common;
use crate::data::{Message, Pair};
use crate::error::Result;
use std::ops::Range;

impl Encoder {
    /// The character range in `answer`, one of the pair's, of each of its tokens. These are the tokens of
    /// [`encode`](Self::encode) before cutting, from the first to the EOS. The range of a token that begins in the prompt, or
    /// ends after the answer as the EOS does, is cut to the answer.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn answer_offsets(&self, pair: &Pair, answer: &Message) -> Result<Vec<Range<usize>>> {
        let answer = self.without_eos(answer);
        let asked = self.template.render_prompt(&pair.prompt, &pair.inputs)?;
        let rendered = self.template.render(&pair.prompt, &pair.inputs, &answer)?;
        let text = self.up_to_eos(&rendered);
        let (mut tokens, mut offsets) = crate::data::tokenizer_files::encode_with_offsets(&self.tokenizer, text)?;
        // As `ids_after_bos` and `sequence` do.
        if self.ids_after_bos(text, &Start::default())?.len() > tokens.len()
            && let Some(bos) = self.bos
        {
            tokens.insert(0, bos);
            offsets.insert(0, 0..0);
        }
        if tokens.last() != Some(&self.eos) {
            let end = text.chars().count();
            tokens.push(self.eos);
            offsets.push(end..end);
        }
        // The answer's place in the rendering: the first one after the part that the rendered prompt has, too.
        let same = asked.char_indices().zip(text.chars()).take_while(|((_, one), other)| one == other);
        let border = same.last().map_or(0, |((place, letter), _)| place + letter.len_utf8());
        let content = answer.text();
        let (start, skipped) = match (text[border..].find(content), text[border..].find(content.trim())) {
            (Some(place), _) => (border + place, 0),
            // A template may strip the white space around it.
            (None, Some(place)) => (border + place, content.len() - content.trim_start().len()),
            (None, None) => (border, 0),
        };
        let start = text[..start].chars().count();
        let (skipped, length) = (content[..skipped].chars().count(), content.chars().count());
        let within = |place: usize| (place.saturating_sub(start) + skipped).min(length);
        let first = common(&self.ids_after_bos(&asked, &Start::default())?, &tokens);
        Ok(offsets.into_iter().skip(first.max(1)).map(|range| within(range.start)..within(range.end)).collect())
    }
}
