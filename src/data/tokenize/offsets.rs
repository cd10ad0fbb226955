//! Where an answer's tokens stand in its text, in characters.
//!
//! Not here: the tokens themselves (`mod.rs`).

use super::Encoder;
use super::borders::Start;
use crate::data::sequence::common;
use crate::data::{Message, Pair};
use crate::error::Result;
use std::ops::Range;

impl Encoder {
    /// The characters of `answer`, one of the pair's, that each of its tokens stands for: of its tokens as
    /// [`encode`](Self::encode) has them before anything is cut, from the first to the EOS. A token that begins in the prompt, or
    /// that ends behind the answer as its EOS does, is cut to the answer.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn answer_offsets(&self, pair: &Pair, answer: &Message) -> Result<Vec<Range<usize>>> {
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
        // Where the answer stands in the rendering: at its first place behind what the rendered prompt has too.
        let same = asked.char_indices().zip(text.chars()).take_while(|((_, one), other)| one == other);
        let border = same.last().map_or(0, |((place, letter), _)| place + letter.len_utf8());
        let said = answer.text();
        let (start, skipped) = match (text[border..].find(said), text[border..].find(said.trim())) {
            (Some(place), _) => (border + place, 0),
            // A template may take the white space around it away.
            (None, Some(place)) => (border + place, said.len() - said.trim_start().len()),
            (None, None) => (border, 0),
        };
        let start = text[..start].chars().count();
        let (skipped, length) = (said[..skipped].chars().count(), said.chars().count());
        let within = |place: usize| (place.saturating_sub(start) + skipped).min(length);
        let first = common(&self.ids_after_bos(&asked, &Start::default())?, &tokens);
        Ok(offsets.into_iter().skip(first.max(1)).map(|range| within(range.start)..within(range.end)).collect())
    }
}
