//! Two responses and a judge's labels: which is better, or safer, or by how much.
//!
//! Not here: more than two responses (`ranked.rs`).

use super::transcripts::prompt_of;
use super::{DropReason, Sides, Verdict};
use crate::data::Prompt;
use crate::data::row::{MEND, Row};
use crate::error::Result;

impl Row<'_> {
    /// PKU-SafeRLHF/BeaverTails: two responses, labelled for helpfulness and for safety.
    pub(super) fn safety(&self, safer: bool) -> Result<Verdict<Sides>> {
        let prompt = Prompt::Text(self.text("prompt")?);
        let [zero, one] = [self.text("response_0")?, self.text("response_1")?];
        let chosen = match safer {
            false => self.index("better_response_id")?,
            true => {
                let safe = [self.flag("is_response_0_safe")?, self.flag("is_response_1_safe")?];
                let chosen = self.index("safer_response_id")?;
                if safe[0] == safe[1] {
                    return Ok(Err(DropReason::NotExactlyOneSafe));
                }
                if !safe[chosen] {
                    return Ok(Err(DropReason::ContradictorySafety));
                }
                chosen
            }
        };
        Ok(Ok(if chosen == 0 { Sides::new(prompt, zero, one) } else { Sides::new(prompt, one, zero) }))
    }

    /// Alpaca human preferences: an instruction, perhaps with an input on the line after it, and the better output's
    /// number; 0 and 1.5 are how AlpacaEval writes a tie.
    pub(super) fn alpaca(&self) -> Result<Verdict<Sides>> {
        let mut prompt = self.text("instruction")?;
        let input = self.get("input").map(|value| self.string("input", value, "a string")).transpose()?;
        if let Some(input) = input.filter(|input| !input.is_empty()) {
            prompt = format!("{prompt}\n{input}");
        }
        let [one, two] = [self.text("output_1")?, self.text("output_2")?];
        let preference = self.number("preference", "1 or 2")?;
        let (chosen, rejected) = match preference {
            1.0 => (one, two),
            2.0 => (two, one),
            0.0 | 1.5 => return Ok(Err(DropReason::Tie)),
            other => return Err(self.error(format!("`preference` is {other}, expected 1 or 2")).hint(MEND)),
        };
        Ok(Ok(Sides::new(Prompt::Text(prompt), chosen, rejected)))
    }

    /// HelpSteer2 (`prompt, response_1, response_2, preference_strength`) and HelpSteer3 (`context, response1,
    /// response2, overall_preference`): from -3, the first is much better, to 3, the second is.
    pub(super) fn helpsteer(&self) -> Result<Verdict<Sides>> {
        const EXPECTED: &str = "a whole number from -3 to 3";
        let third = self.get("overall_preference").is_some();
        let (keys, strength) = match third {
            true => (["response1", "response2"], "overall_preference"),
            false => (["response_1", "response_2"], "preference_strength"),
        };
        let prompt = match third {
            true => Prompt::Messages(self.message_list("context")?),
            false => prompt_of(self.text("prompt")?),
        };
        let [one, two] = [self.text(keys[0])?, self.text(keys[1])?];
        let preference = self.number(strength, EXPECTED)?;
        if preference.fract() != 0.0 || preference.abs() > 3.0 {
            return Err(self.error(format!("`{strength}` is {preference}, expected {EXPECTED}")).hint(MEND));
        }
        if matches!(&prompt, Prompt::Messages(messages) if messages.is_empty()) {
            return Ok(Err(DropReason::EmptyPrompt));
        }
        let (chosen, rejected) = match preference {
            0.0 => return Ok(Err(DropReason::Tie)),
            first if first < 0.0 => (one, two),
            _ => (two, one),
        };
        Ok(Ok(Sides { margin: Some(preference.abs()), ..Sides::new(prompt, chosen, rejected) }))
    }

    /// Pairs with a score for each answer: the difference is the margin.
    pub(super) fn scored(&self) -> Result<Verdict<Sides>> {
        let score = |key| self.number(key, "a finite number");
        let margin = score("score_chosen")? - score("score_rejected")?;
        Ok(match self.prompt_and_answers()? {
            Err(reason) => Err(reason),
            Ok(_) if margin == 0.0 => Err(DropReason::Tie),
            Ok(_) if margin < 0.0 => Err(DropReason::ContradictoryScores),
            Ok(sides) => Ok(Sides { margin: Some(margin), ..sides }),
        })
    }
}
