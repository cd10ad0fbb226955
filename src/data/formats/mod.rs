//! A source's rows become [`Pair`]s: one function a shape of row, told apart by its keys or named in the config.
//!
//! Not here: files (`rows.rs`), typed keys (`row.rs`), and how a pair becomes text (`template.rs`) and tokens (`tokenize.rs`).
//! A new shape is one arm in `told` and `Row::sides`, and one function in the file whose rows are most like its own.

mod conversations;
mod judged;
mod ranked;
mod transcripts;

use crate::config::{DEFAULT_MAX_ROW_BYTES, Format, Source, TOTAL};
use crate::data::row::{MEND, Row};
use crate::data::rows;
use crate::data::{Message, Pair, Prompt, TemplateInputs};
use crate::error::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What a source held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceRows {
    /// The pairs taken, in the file's order; each has a domain.
    pub pairs: Vec<Pair>,
    /// Pairs read, taken or not: one a row, or all that a ranked list makes. `pairs` and `dropped` add up to it.
    pub read: usize,
    /// Pairs not taken, and why.
    pub dropped: BTreeMap<DropReason, usize>,
}

/// Why a pair is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Both answers are the same text, or the same tokens after truncation.
    IdenticalAnswers,
    /// An answer is white space only.
    EmptyAnswer,
    /// There is nothing before the answer that could predict its first token.
    EmptyPrompt,
    /// The two transcripts or conversations answer different prompts.
    DifferentPrompts,
    /// A transcript ends with the human's turn.
    LastTurnNotAssistant,
    /// Both answers are safe, or neither.
    NotExactlyOneSafe,
    /// The safer answer is the one flagged unsafe.
    ContradictorySafety,
    /// Neither answer is better.
    Tie,
    /// The chosen answer has the lower score.
    ContradictoryScores,
    /// The prompt has several turns, with `single_turn = true`.
    SeveralTurns,
    /// A ranked list of no or one answer.
    FewerThanTwoAnswers,
    /// Beyond the source's `pairs_per_prompt`.
    OverPairsPerPrompt,
    /// Outside the source's `rows`.
    OutsideRows,
    /// Over `max_length` tokens, with `truncation = "drop"`.
    TooLong,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::IdenticalAnswers => "identical answers",
            Self::EmptyAnswer => "empty answer",
            Self::EmptyPrompt => "empty prompt",
            Self::DifferentPrompts => "different prompts",
            Self::LastTurnNotAssistant => "last turn not the assistant's",
            Self::NotExactlyOneSafe => "not exactly one answer safe",
            Self::ContradictorySafety => "safety labels contradict each other",
            Self::Tie => "ties",
            Self::ContradictoryScores => "scores contradict the choice",
            Self::SeveralTurns => "several turns (single_turn)",
            Self::FewerThanTwoAnswers => "fewer than two answers",
            Self::OverPairsPerPrompt => "over pairs_per_prompt",
            Self::OutsideRows => "outside the source's rows",
            Self::TooLong => "too long",
        })
    }
}

type Verdict<T> = std::result::Result<T, DropReason>;

/// What a row says of one pair.
struct Sides {
    prompt: Prompt,
    chosen: String,
    rejected: String,
    /// How much better the chosen answer is, where the shape itself says so.
    margin: Option<f64>,
}

impl Sides {
    fn new(prompt: Prompt, chosen: String, rejected: String) -> Self {
        Self { prompt, chosen, rejected, margin: None }
    }
}

/// Reads all pairs of a source.
///
/// With [`Format::Auto`] the first row's keys decide for the whole file. `null` counts as an absent key.
///
/// # Errors
/// A missing, empty or damaged file, broken JSON, a row without an answer or with a value of the wrong type: each
/// names the file and the line (or the array's element, or the Parquet file's row).
pub fn read(source: &Source) -> Result<SourceRows> {
    let mut verdicts = Vec::new();
    let mut rows = 0;
    let mut format = source.format;
    rows::for_each(&source.path, source.max_row_bytes, |place, row| {
        let row = Row::new(place, row)?;
        if format == Format::Auto {
            format = told(&row)?;
        }
        for sides in row.sides(format, source.pairs_per_prompt)? {
            if row.get("domain").is_some_and(|domain| domain == TOTAL) {
                return Err(row
                    .error(format!("`domain` is {TOTAL:?}, which is the name of the total over all domains"))
                    .hint("give the row's domain another name"));
            }
            let pair = sides
                .map(|sides| row.pair(sides, source.margin_scale))
                .map_or_else(|reason| Ok(Err(reason)), |pair| pair.map(|pair| usable(pair, source)))?;
            verdicts.push((rows, pair));
        }
        rows += 1;
        Ok(())
    })?;
    let wanted = source.rows.of(rows);
    let domain = source.domain.clone().unwrap_or_else(|| stem(&source.path));
    let mut taken = SourceRows { read: verdicts.len(), ..SourceRows::default() };
    for (row, verdict) in verdicts {
        match if wanted.contains(&row) { verdict } else { Err(DropReason::OutsideRows) } {
            Ok(mut pair) => {
                pair.domain.get_or_insert_with(|| domain.clone());
                taken.pairs.push(pair);
            }
            Err(reason) => *taken.dropped.entry(reason).or_default() += 1,
        }
    }
    Ok(taken)
}

/// Reads all rows of a file that is only scored: pairs of any shape, `prompt` with one `answer` (or `response`, or
/// `completion`), or `messages` that end with the answer. No row is left out, so that scores and rows can be laid side by side.
///
/// # Errors
/// As [`read`]; also a pair whose answers do not belong to one prompt, a tie, and a ranked list of more than two.
pub fn read_for_scoring(path: &Path) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    rows::for_each(path, DEFAULT_MAX_ROW_BYTES, |place, row| {
        let row = Row::new(place, row)?;
        let pair = match SINGLE_ANSWER.into_iter().find(|key| row.get(key).is_some()) {
            Some(key) if row.get("chosen").is_none() && row.get("response_0").is_none() => row.single(key)?,
            None if row.get("messages").is_some() && told(&row).is_err() => row.messages_alone()?,
            _ => {
                let mut sides = row.sides(told(&row)?, 0)?;
                let number = sides.len();
                let (Some(sides), 1) = (sides.pop(), number) else {
                    return Err(row
                        .error(format!("a list of {number} pairs, expected one"))
                        .hint("a row gets one line of scores: give each answer a row with `prompt` and `answer`"));
                };
                let refuse = |reason| row.error(format!("this pair cannot be scored: {reason}")).hint(MEND);
                row.pair(sides.map_err(refuse)?, 1.0)?
            }
        };
        pairs.push(pair);
        Ok(())
    })?;
    Ok(pairs)
}

/// Pairs that teach nothing are left out, and those that the source does not want.
fn usable(pair: Pair, source: &Source) -> Verdict<Pair> {
    if source.single_turn && !is_single_turn(&pair.prompt) {
        return Err(DropReason::SeveralTurns);
    }
    let Some(rejected) = &pair.rejected else { return Ok(pair) };
    if pair.chosen.text().trim().is_empty() || rejected.text().trim().is_empty() {
        return Err(DropReason::EmptyAnswer);
    }
    if pair.chosen == *rejected {
        return Err(DropReason::IdenticalAnswers);
    }
    Ok(pair)
}

/// One user's message, and system messages besides.
fn is_single_turn(prompt: &Prompt) -> bool {
    match prompt {
        Prompt::Text(_) => true,
        Prompt::Messages(messages) => {
            let mut turns = messages.iter().filter(|message| message.role != "system");
            turns.next().is_some_and(|turn| turn.role == "user") && turns.next().is_none()
        }
    }
}

/// A file's name without what says how it is written: `hh.jsonl.gz` is `hh`; whole where that would be the total's name.
fn stem(path: &Path) -> String {
    let whole = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut name = whole.clone();
    for extension in [".gz", ".jsonl", ".json", ".parquet"] {
        if let Some(rest) = name.strip_suffix(extension)
            && !rest.is_empty()
        {
            name.truncate(rest.len());
        }
    }
    if name == TOTAL { whole } else { name }
}

const SINGLE_ANSWER: [&str; 3] = ["answer", "response", "completion"];

/// The format that a row's keys tell. What they cannot tell (`safer`, `scored`) is only taken when it is named.
fn told(row: &Row) -> Result<Format> {
    let has = |keys: &[&str]| keys.iter().all(|key| row.get(key).is_some());
    if has(&["response_0", "response_1"]) {
        return Ok(Format::Helpful);
    }
    if has(&["chosen"]) || has(&["rejected"]) {
        return Ok(match row.get("chosen") {
            Some(Value::String(text)) if !has(&["prompt"]) && transcripts::is_transcript(text) => Format::Hh,
            _ => Format::Pairs,
        });
    }
    if has(&["conversation_a", "conversation_b"]) {
        return Ok(Format::Arena);
    }
    if has(&["output_1", "output_2"]) {
        return Ok(Format::Alpaca);
    }
    if has(&["preference_strength"]) || has(&["overall_preference"]) {
        return Ok(Format::Helpsteer);
    }
    if has(&["answers"]) || has(&["responses", "ranks"]) {
        return Ok(Format::Ranked);
    }
    let keys: Vec<_> = row.object.keys().map(String::as_str).collect();
    Err(row.error(format!("a row of no known shape: its keys are {keys:?}")).hint(
        "known are `prompt, chosen, rejected`; `chosen, rejected` with message lists or hh-rlhf transcripts; \
         `prompt, response_0, response_1, better_response_id, ...`; `conversation_a, conversation_b, winner`; \
         `instruction, input, output_1, output_2, preference`; `prompt, response_1, response_2, preference_strength`; \
         `context, response1, response2, overall_preference`; `prompt, answers`; and, for scoring, `prompt, answer` or `messages`",
    ))
}

impl Row<'_> {
    /// The pairs that a row of a format makes: one, but for ranked lists.
    fn sides(&self, format: Format, pairs_per_prompt: usize) -> Result<Vec<Verdict<Sides>>> {
        Ok(vec![match format {
            Format::Auto | Format::Pairs => self.prompt_and_answers()?,
            Format::Scored => self.scored()?,
            Format::Hh => self.transcripts()?,
            Format::Helpful => self.safety(false)?,
            Format::Safer => self.safety(true)?,
            Format::Arena => self.arena()?,
            Format::Alpaca => self.alpaca()?,
            Format::Helpsteer => self.helpsteer()?,
            Format::Ranked => return self.ranked(pairs_per_prompt),
        }])
    }

    fn single(&self, key: &str) -> Result<Pair> {
        let prompt = self.prompt()?.ok_or_else(|| self.missing("prompt", "a string or a message list"))?;
        let answer = self.answer_to(&prompt, key, self.answer(key)?)?;
        self.alone(prompt, answer)
    }

    /// A whole conversation in `messages`: the last one is the answer.
    fn messages_alone(&self) -> Result<Pair> {
        let (prompt, answer) = self.conversation("messages")?;
        self.alone(Prompt::Messages(prompt), answer)
    }

    fn alone(&self, prompt: Prompt, answer: String) -> Result<Pair> {
        let sides = Sides::new(prompt, answer, String::new());
        Ok(Pair { rejected: None, ..self.pair(sides, 1.0)? })
    }

    /// Completes a pair with its row's margin (unless its shape gave one), its domain and its place.
    fn pair(&self, sides: Sides, margin_scale: f64) -> Result<Pair> {
        const EXPECTED: &str = "a finite number";
        self.without_tools()?;
        let margin = match (sides.margin, self.get("margin")) {
            (None, Some(_)) => Some(self.number("margin", EXPECTED)?),
            (margin, _) => margin,
        };
        let margin = margin.filter(|_| margin_scale != 0.0).map(|margin| (margin * margin_scale) as f32);
        if let Some(margin) = margin.filter(|margin| !margin.is_finite()) {
            return Err(self.error(format!("the margin is {margin}, expected {EXPECTED}")).hint(MEND));
        }
        let domain = self.get("domain").map(|value| self.string("domain", value, "a string")).transpose()?;
        let Sides { prompt, chosen, rejected, .. } = sides;
        Ok(Pair {
            prompt,
            inputs: TemplateInputs::default(),
            chosen: Message::answer(chosen),
            rejected: Some(Message::answer(rejected)),
            margin,
            domain,
            line: self.place.number,
        })
    }
}
