//! `haf-dist eval --suite`: benchmarks of reward models, each with the number that its authors define.
//!
//! Every answer is scored once, alone with its prompt, and a second time where the suite's length cuts it. Not here: the
//! numbers (`evaluate/suites/`).

use super::scored::{Opened, Scored, open};
use super::{alike, hub};
use crate::cli::{Evaluating, Scoring};
use crate::comm::CommThread;
use crate::data::prepared::{LabelledPair, PreparedData};
use crate::data::tokenize::{Encoded, Encoder, Rules};
use crate::data::{Message, Pair, Prompt, TemplateInputs};
use crate::error::{Error, Result};
use crate::evaluate::heads::{Head, heads};
use crate::evaluate::scoring::score_pairs;
use crate::evaluate::suites::contamination::{Contamination, Wanted, contamination_table};
use crate::evaluate::suites::paired::{Paired, adjust, paired, paired_table};
use crate::evaluate::suites::report::{Cutting, Line, lines, table};
use crate::evaluate::suites::{Item, Suite};
use crate::terminal;
use serde::Serialize;
use std::path::PathBuf;
use tracing::{info, warn};

/// A suite on its way.
struct Read {
    suite: Suite,
    items: Vec<Item>,
    /// Place of each answer among the sequences; of one that is cut also that of the whole one.
    places: Vec<Vec<Place>>,
    /// Hash of each answer's rendered prompt.
    prompts: Vec<u64>,
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

/// Runs the command on every rank; all files are fetched.
///
/// # Errors
/// A folder that is no reward model, files that are not the suites', or training data that cannot be read.
pub fn run(evaluating: &Evaluating, comm: &CommThread) -> Result<()> {
    let (scoring, json) = (&evaluating.scoring, evaluating.json);
    let Evaluated { suites, heads, opened } = evaluated(scoring, &evaluating.suites, comm)?;
    let against = match &evaluating.against {
        Some(folder) => {
            let base = hub::base_of(folder, comm)?;
            let scoring = Scoring { checkpoint: folder.clone(), base, ..scoring.clone() };
            Some(evaluated(&scoring, &evaluating.suites, comm)?)
        }
        None => None,
    };
    let found = comm.agree(if comm.rank() == 0 {
        let _work = comm.at_work("looking for the suites' prompts in the training data");
        contaminated(&suites, &evaluating.train_data, &opened)
    } else {
        Ok(Vec::new())
    })?;
    if comm.rank() != 0 {
        return Ok(());
    }
    for read in &suites {
        for head in &heads {
            print(read, head.name, &read.lines(head), json)?;
        }
    }
    if heads.iter().any(|head| head.name == "combined") {
        let warn =
            |read: &Read| opened.warn_of_dev_prompts(&format!("answers of {}", read.suite.name()), &read.prompts);
        suites.iter().for_each(warn);
    }
    if !found.is_empty() {
        match json {
            true => json_lines(&found)?,
            false => terminal::out(format_args!(
                "prompts that occur in the training data ({} rows)\n{}\n",
                found.first().map_or(0, |found| found.rows),
                contamination_table(&found)
            ))?,
        }
    }
    if let Some(against) = against {
        let rows = differences(&suites, &heads, &against);
        if rows.is_empty() {
            warn!("the two checkpoints have no head in common, so there is nothing to compare");
        }
        match json {
            true => json_lines(&rows)?,
            false => terminal::out(format_args!(
                "paired differences; p is exact, by prompt. Every item counts alike: where a suite weighs its subsets, as \
                 RewardBench 1 and 2 do, these means are not the suite's number above\n{}\n",
                paired_table(&rows)
            ))?,
        }
    }
    info!(
        "no BOS is added to what a template writes itself; the authors' scripts add a second one with some tokenizers"
    );
    Ok(())
}

/// A model's rewards of all answers of all suites.
struct Evaluated {
    suites: Vec<Read>,
    heads: Vec<Head>,
    opened: Opened,
}

/// Reads the suites as the model's tokenizer does, and scores them. All ranks must call it.
fn evaluated(scoring: &Scoring, suites: &[(Suite, Vec<PathBuf>)], comm: &CommThread) -> Result<Evaluated> {
    // The model's own limit; a suite's is put below it.
    let opened = open(&Scoring { max_length: None, max_prompt_length: None, ..scoring.clone() }, comm)?;
    let machine = opened.machine(comm)?;
    let work = comm.at_work("reading the suites");
    let mut sequences = Vec::new();
    let read = |(suite, files): &(Suite, Vec<PathBuf>)| read(*suite, files, scoring, &opened, &mut sequences);
    let suites: Vec<Read> = comm.agree(suites.iter().map(read).collect())?;
    let data = comm.agree(PreparedData::from_pairs(sequences))?;
    alike::data("suites", &data, comm)?;
    drop(work);
    let references = opened.references(&data, &machine, comm)?;
    let heads = {
        let Scored { mut engine, reported } = opened.model(references.is_some(), &machine, comm)?;
        let (all, budget): (Vec<usize>, _) = ((0..data.len()).collect(), scoring.tokens_per_micro_batch);
        let scores = score_pairs(&mut engine, (&data, &all), comm, budget, reported.policy, "eval")?;
        heads(&scores, &references.unwrap_or_default(), reported)
    };
    Ok(Evaluated { suites, heads, opened })
}

/// The heads that both have, on every suite.
fn differences(suites: &[Read], heads: &[Head], against: &Evaluated) -> Vec<Paired> {
    let mut rows = Vec::new();
    for (ours, theirs) in suites.iter().zip(&against.suites) {
        for head in heads {
            if let Some(other) = against.heads.iter().find(|other| other.name == head.name) {
                let scores = [&ours.scores(head, |place| place.cut)[..], &theirs.scores(other, |place| place.cut)];
                rows.push(paired(ours.suite, head.name, &ours.items, scores));
            }
        }
    }
    adjust(&mut rows);
    rows
}

/// What of the suites is in the named files, or in those that the checkpoint's run was trained on; nothing where neither are there.
fn contaminated(suites: &[Read], named: &[PathBuf], opened: &Opened) -> Result<Vec<Contamination>> {
    let of_run: Vec<PathBuf> = opened.train_files();
    let files = if named.is_empty() { &of_run } else { named };
    if named.is_empty() {
        if files.is_empty() {
            info!(
                "the checkpoint does not say what it was trained on: name files with --train-data to look for the prompts"
            );
            return Ok(Vec::new());
        }
        if let Some(missing) = files.iter().find(|file| !file.is_file()) {
            let missing = missing.display();
            warn!("{missing} of the run's training data is not there: whether it has the suites' prompts is not known");
            return Ok(Vec::new());
        }
    }
    let prompts = suites.iter().flat_map(|read| read.items.iter().map(|item| (read.suite, &item.prompt[..])));
    let mut wanted = Wanted::new(prompts);
    for file in files {
        wanted.read(file, opened.config.data.max_row_bytes)?;
    }
    Ok(wanted.found())
}

fn json_lines(rows: &[impl Serialize]) -> Result<()> {
    terminal::lines(rows.iter().filter_map(|row| serde_json::to_string(row).ok()))
}

impl Read {
    fn lines(&self, head: &Head) -> Vec<Line> {
        let uncut = (self.cut() > 0).then(|| self.scores(head, |place| place.whole));
        let cutting = Cutting { limit: self.limit, cut: self.cut(), beyond: self.beyond };
        lines(self.suite, head.name, &self.items, &self.scores(head, |place| place.cut), uncut.as_deref(), cutting)
    }

    /// Of every item's answers.
    fn scores(&self, head: &Head, of: fn(&Place) -> usize) -> Vec<Vec<f64>> {
        let score = |place: &Place| head.rewards[of(place)][0];
        self.places.iter().map(|places| places.iter().map(score).collect()).collect()
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
    let prompts = places.iter().flatten().map(|place: &Place| sequences[place.whole].pair.prompt_hash).collect();
    Ok(Read { suite, items, places, prompts, limit, model_limit, beyond })
}

fn encode(suite: Suite, encoder: &Encoder, item: &Item, answer: &str) -> Result<LabelledPair> {
    let pair = Pair {
        prompt: Prompt::Text(item.prompt.clone()),
        inputs: TemplateInputs::default(),
        chosen: Message::answer(answer),
        rejected: None,
        margin: None,
        tied: false,
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
        Encoded::Kept(pair) => Ok(LabelledPair { pair, margin: 0.0, tied: false, domain: suite.name().to_owned() }),
    }
}
