//! `haf-dist eval --suite`: benchmarks of reward models, each with the number that its authors define.
//!
//! Every answer is scored once, alone with its prompt, and a second time where the suite's length cuts it. Not here: the
//! numbers (`evaluate/suites/`).

use super::alike;
use super::scored::{Opened, Scored, open};
use crate::cli::Scoring;
use crate::comm::CommThread;
use crate::data::prepared::{LabelledPair, PreparedData};
use crate::data::tokenize::{Encoded, Encoder, Rules};
use crate::data::{Message, Pair, Prompt, TemplateInputs};
use crate::engine::head::PairScores;
use crate::error::{Error, Result};
use crate::evaluate::scoring::score_pairs;
use crate::evaluate::suites::report::{Cutting, Line, lines, table};
use crate::evaluate::suites::{Item, Suite};
use crate::loss::{self, AnswerLogProb};
use crate::terminal;
use std::path::PathBuf;
use tracing::{info, warn};

/// A suite on its way.
struct Read {
    suite: Suite,
    items: Vec<Item>,
    /// Place of each answer among the sequences; of one that is cut also that of the whole one.
    places: Vec<Vec<Place>>,
    /// What it is cut to, in tokens.
    limit: usize,
    /// The model's own limit, in tokens.
    model_limit: usize,
    /// Answers that are longer than the model's own limit, and lose tokens in any case.
    beyond: usize,
}

#[derive(Clone, Copy)]
struct Place {
    cut: usize,
    whole: usize,
}

/// Runs the command on every rank; the files of `suites` are fetched.
///
/// # Errors
/// A folder that is no reward model, or files that are not the suites'.
pub fn run(scoring: &Scoring, suites: &[(Suite, Vec<PathBuf>)], json: bool, comm: &CommThread) -> Result<()> {
    // The model's own limit; a suite's is put below it.
    let opened = open(&Scoring { max_length: None, max_prompt_length: None, ..scoring.clone() }, comm)?;
    let machine = opened.machine(comm)?;
    let work = comm.at_work("reading the suites");
    let mut sequences = Vec::new();
    let read = |(suite, files): &(Suite, Vec<PathBuf>)| read(*suite, files, scoring, &opened, &mut sequences);
    let read: Vec<Read> = comm.agree(suites.iter().map(read).collect())?;
    let data = comm.agree(PreparedData::from_pairs(sequences))?;
    alike::data("suites", &data, comm)?;
    drop(work);
    let references = opened.references(&data, &machine, comm)?;
    let Scored { mut engine, reported } = opened.model(references.is_some(), &machine, comm)?;
    let all: Vec<usize> = (0..data.len()).collect();
    let scores =
        score_pairs(&mut engine, (&data, &all), comm, scoring.tokens_per_micro_batch, reported.policy, "eval")?;
    if comm.rank() != 0 {
        return Ok(());
    }
    let references = references.unwrap_or_default();
    let reward = |place: usize| scores[place].rewards[0];
    let implicit = |place: usize| {
        let PairScores { log_probs, tokens, .. } = &scores[place];
        let reference = references.get(place).map_or(0.0, |row| f64::from(row[0]));
        loss::implicit_reward(reported.loss, AnswerLogProb { policy: log_probs[0], reference, tokens: tokens[0] })
    };
    let mut heads: Vec<(&'static str, &dyn Fn(usize) -> f64)> = Vec::new();
    if reported.reward {
        heads.push(("reward", &reward));
    }
    if reported.policy {
        heads.push(("implicit", &implicit));
    }
    for read in &read {
        for &(scored_by, score) in &heads {
            print(read, scored_by, &read.lines(scored_by, score), json)?;
        }
    }
    info!(
        "no BOS is added to what a template writes itself; the authors' scripts add a second one with some tokenizers"
    );
    Ok(())
}

impl Read {
    fn lines(&self, scored_by: &'static str, score: &dyn Fn(usize) -> f64) -> Vec<Line> {
        let scores = |of: fn(&Place) -> usize| -> Vec<Vec<f64>> {
            self.places.iter().map(|places| places.iter().map(|place| score(of(place))).collect()).collect()
        };
        let uncut = (self.cut() > 0).then(|| scores(|place| place.whole));
        let cutting = Cutting { limit: self.limit, cut: self.cut(), beyond: self.beyond };
        lines(self.suite, scored_by, &self.items, &scores(|place| place.cut), uncut.as_deref(), cutting)
    }

    /// Number of answers that lost tokens to the suite's length.
    fn cut(&self) -> usize {
        self.places.iter().flatten().filter(|place| place.cut != place.whole).count()
    }
}

fn print(read: &Read, scored_by: &str, lines: &[Line], json: bool) -> Result<()> {
    if json {
        return terminal::lines(lines.iter().filter_map(|line| serde_json::to_string(line).ok()));
    }
    let answers: usize = read.places.iter().map(Vec::len).sum();
    let mut cut = match read.cut() {
        0 if read.beyond == 0 => "nothing cut".to_owned(),
        0 => String::new(),
        cut => format!("{cut} of {answers} answers cut to {} tokens", read.limit),
    };
    if read.beyond > 0 {
        let separator = if cut.is_empty() { "" } else { "; " };
        cut += &format!("{separator}{} of {answers} cut to the model's own {} tokens", read.beyond, read.model_limit);
    }
    terminal::out(format_args!("{}, by {scored_by}: {cut}\n{}\n", read.suite.name(), table(lines)))
}

/// A suite's items, their sequences behind those of the others.
fn read(
    suite: Suite,
    files: &[PathBuf],
    scoring: &Scoring,
    opened: &Opened,
    sequences: &mut Vec<LabelledPair>,
) -> Result<Read> {
    let items = suite.read(files, opened.config.data.max_row_bytes)?;
    let Rules { max_length: model_limit, max_prompt_length, .. } = *opened.encoder.rules();
    // A run that drops what is too long has no suite's number: here it is cut.
    let whole = &opened.cutting_to(model_limit, Some(max_prompt_length))?;
    let limit = scoring.max_length.or(suite.max_length()).unwrap_or(usize::MAX).min(model_limit);
    if scoring.max_length.is_some_and(|asked| asked > model_limit) {
        warn!("{}: --max-length is beyond the model's own limit of {model_limit} tokens, which holds", suite.name());
    }
    let cutting = if limit < model_limit || scoring.max_prompt_length.is_some() {
        Some(opened.cutting_to(limit, scoring.max_prompt_length)?)
    } else {
        None
    };
    let mut beyond = 0;
    let mut place = |item: &Item, answer: &String| -> Result<Place> {
        let mut push = |encoder: &Encoder| -> Result<bool> {
            let pair = encode(suite, encoder, item, answer)?;
            let was_cut = pair.pair.prompt_cut || pair.pair.answer_cut;
            sequences.push(pair);
            Ok(was_cut)
        };
        // One sequence where the length cuts nothing.
        let was_cut = cutting.as_ref().map_or(Ok(false), &mut push)?;
        if cutting.is_none() || was_cut {
            beyond += usize::from(push(whole)?);
        }
        let last = sequences.len() - 1;
        Ok(Place { cut: last - usize::from(was_cut), whole: last })
    };
    let of_item = |item: &Item| item.answers.iter().map(|answer| place(item, answer)).collect();
    let places = items.iter().map(of_item).collect::<Result<Vec<Vec<Place>>>>()?;
    Ok(Read { suite, items, places, limit, model_limit, beyond })
}

fn encode(suite: Suite, encoder: &Encoder, item: &Item, answer: &str) -> Result<LabelledPair> {
    let pair = Pair {
        prompt: Prompt::Text(item.prompt.clone()),
        inputs: TemplateInputs::default(),
        chosen: Message::answer(answer),
        rejected: None,
        margin: None,
        domain: None,
        line: 0,
    };
    let shown: String = item.prompt.chars().take(60).collect();
    let refuse = |reason: String| {
        Error::input(format!("{}: the item with the prompt {shown:?} cannot be scored: {reason}", suite.name()))
            .hint("without it the number would not be the suite's")
    };
    match encoder.encode(&pair).map_err(|error| error.at(format!("{} {shown:?}", suite.name())))? {
        Encoded::Dropped(reason) => Err(refuse(reason.to_string())),
        Encoded::Kept(pair) => Ok(LabelledPair { pair, margin: 0.0, domain: suite.name().to_owned() }),
    }
}
