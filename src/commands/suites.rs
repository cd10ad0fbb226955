//! `haf-dist eval --suite`: benchmarks of reward models, each with the figures that its authors define.
//!
//! Every answer is scored alone with its prompt, and a second time without cutting if the suite's length cuts it. Not here: the
//! figures (`evaluate/suites/`).

use super::scored::{Opened, Scored, open};
use super::{alike, hub};
use crate::cli::{Evaluating, Scoring};
use crate::comm::CommThread;
use crate::data::prepared::{LabeledPair, PreparedData};
use crate::data::tokenize::{Encoded, Encoder, Rules};
use crate::data::{Message, Pair, Prompt, TemplateInputs};
use crate::error::{Error, Result};
use crate::evaluate::heads::{Head, heads};
use crate::evaluate::scoring::{Progress, ToScore, any_scores, is_finite};
use crate::evaluate::suites::contamination::{Contamination, Wanted, contamination_table};
use crate::evaluate::suites::paired::{Paired, adjust, paired, paired_table};
use crate::evaluate::suites::report::{Cutting, Line, lines, table};
use crate::evaluate::suites::{Item, Suite};
use crate::terminal;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tracing::{info, warn};

/// A suite's items and tokenized sequences.
struct Read {
    suite: Suite,
    files: Vec<PathBuf>,
    items: Vec<Item>,
    /// Each answer's places among the sequences.
    places: Vec<Vec<Place>>,
    /// Hash of each answer's rendered prompt.
    prompts: Vec<u64>,
    /// The length that answers are truncated to, in tokens.
    limit: usize,
    /// The model's own limit, in tokens.
    model_limit: usize,
    /// Number of answers that are longer than the model's own limit, and always lose tokens.
    beyond: usize,
}

/// Places of an answer's sequence, cut to the suite's length and whole; the same if the length cuts nothing.
#[derive(Clone, Copy)]
struct Place {
    cut: usize,
    whole: usize,
}

/// Runs the command on every rank; all files must be on this machine.
///
/// # Errors
/// A folder without a reward model, files that do not belong to the suites, or training data that cannot be read.
pub(crate) fn run(evaluating: &Evaluating, comm: &CommThread) -> Result<()> {
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
    let output = Output { checkpoint: scoring.checkpoint.display().to_string(), json };
    output.figures(&suites, &heads, &found, opened.encoder.doubles_bos()?)?;
    if heads.iter().any(|head| head.name == "combined") {
        let warn =
            |read: &Read| opened.warn_of_dev_prompts(&format!("answers of {}", read.suite.name()), &read.prompts);
        suites.iter().for_each(warn);
    }
    output.contamination(&found)?;
    match evaluating.against.as_ref().zip(against) {
        Some((folder, against)) => output.differences(folder, &differences(&suites, &heads, &against)),
        None => Ok(()),
    }
}

/// How results are printed.
struct Output {
    checkpoint: String,
    json: bool,
}

impl Output {
    /// Every suite's figures by every head. `doubles_bos`: with this tokenizer the authors' code may see one more token.
    fn figures(&self, suites: &[Read], heads: &[Head], found: &[Contamination], doubles_bos: bool) -> Result<()> {
        for read in suites {
            let second_bos = doubles_bos && read.suite.keeps_second_bos();
            let contamination = found.iter().find(|found| found.suite == read.suite);
            for head in heads {
                let lines = read.lines(head);
                if self.json {
                    let files: Vec<String> = read.files.iter().map(|file| file.display().to_string()).collect();
                    let facts = json!({
                        "checkpoint": self.checkpoint, "files": files, "second_bos": second_bos,
                        "contamination": contamination,
                    });
                    json_lines(&lines, &facts)?;
                } else {
                    terminal::out(format_args!("{}\n{}\n", read.title(head.name, second_bos), table(&lines)))?;
                }
            }
        }
        Ok(())
    }

    /// The suites' prompts in the training data; in JSON they are part of the figures.
    fn contamination(&self, found: &[Contamination]) -> Result<()> {
        let Some(first) = found.first().filter(|_| !self.json) else { return Ok(()) };
        terminal::out(format_args!(
            "prompts that occur in the training data ({} rows)\n{}\n",
            first.rows,
            contamination_table(found)
        ))
    }

    /// The comparison with the model in `folder`.
    fn differences(&self, folder: &Path, rows: &[Paired]) -> Result<()> {
        if rows.is_empty() {
            warn!("the two checkpoints have no head in common, so there is nothing to compare");
        }
        if self.json {
            let facts = json!({"checkpoint": self.checkpoint, "against": folder.display().to_string()});
            return json_lines(rows, &facts);
        }
        terminal::out(format_args!(
            "paired differences; p is exact, by prompt. All items have the same weight: if a suite weighs its subsets, as \
             RewardBench 1 and 2 do, these means differ from the suite's total above\n{}\n",
            paired_table(rows)
        ))
    }
}

/// A model's rewards for all answers of all suites.
struct Evaluated {
    suites: Vec<Read>,
    heads: Vec<Head>,
    opened: Opened,
}

/// Reads the suites, tokenizes them with the model's tokenizer, and scores them. All ranks must call it.
fn evaluated(scoring: &Scoring, suites: &[(Suite, Vec<PathBuf>)], comm: &CommThread) -> Result<Evaluated> {
    // With the model's own limit; a suite's may be lower.
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
        let mut progress = Progress::new("eval", data.len());
        let to_score = ToScore { data: &data, pairs: &all, tokens_per_micro_batch: budget, log_probs: reported.policy };
        let scores = any_scores(&mut engine, to_score, comm, &mut progress)?;
        scores
            .iter()
            .find(|scores| !is_finite(scores))
            .map_or(Ok(()), |scores| Err(not_finite(&suites, scores.index)))?;
        heads(&scores, &references.unwrap_or_default(), reported)
    };
    Ok(Evaluated { suites, heads, opened })
}

fn not_finite(suites: &[Read], sequence: usize) -> Error {
    let of =
        suites.iter().find_map(|read| read.item_of(sequence).map(|item| (read.suite.name(), start_of(&item.prompt))));
    let (suite, prompt) = of.unwrap_or_default();
    Error::runtime(format!("{suite}: an answer to the prompt {prompt:?} has a score that is not a finite number"))
        .hint("are the weight files damaged? try --dtype f32")
}

/// The first words of a prompt.
fn start_of(prompt: &str) -> String {
    prompt.chars().take(60).collect()
}

/// Compares the heads that both models have, on every suite.
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

/// Looks for the suites' prompts in the named files, or else in those that the checkpoint's run was trained on; empty if neither
/// exist.
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
            warn!(
                "{missing}, part of the run's training data, does not exist: whether it has the suites' prompts is not known"
            );
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

/// The rows, each with these facts.
fn json_lines(rows: &[impl Serialize], facts: &Value) -> Result<()> {
    terminal::lines(rows.iter().filter_map(|row| {
        let mut line = serde_json::to_value(row).ok()?;
        line.as_object_mut()?.extend(facts.as_object()?.clone());
        Some(line)
    }))
}

impl Read {
    fn lines(&self, head: &Head) -> Vec<Line> {
        let uncut = (self.cut() > 0).then(|| self.scores(head, |place| place.whole));
        let cutting = Cutting { limit: self.limit, cut: self.cut(), beyond: self.beyond };
        lines(self.suite, head.name, &self.items, &self.scores(head, |place| place.cut), uncut.as_deref(), cutting)
    }

    /// The scores of every item's answers.
    fn scores(&self, head: &Head, of: fn(&Place) -> usize) -> Vec<Vec<f64>> {
        let score = |place: &Place| head.rewards[of(place)][0];
        self.places.iter().map(|places| places.iter().map(score).collect()).collect()
    }

    /// The caption of a table: how many answers were cut, and whether the authors' code would see another first token.
    fn title(&self, scored_by: &str, second_bos: bool) -> String {
        let answers: usize = self.places.iter().map(Vec::len).sum();
        let mut notes = Vec::new();
        if self.cut() > 0 {
            notes.push(format!("{} of {answers} answers truncated to {} tokens", self.cut(), self.limit));
        }
        if self.beyond > 0 {
            notes
                .push(format!("{} of {answers} truncated to the model's own {} tokens", self.beyond, self.model_limit));
        }
        if notes.is_empty() {
            notes.push("nothing truncated".to_owned());
        }
        if second_bos {
            notes.push("one BOS, while the authors' code adds a second one with this tokenizer".to_owned());
        }
        format!("{}, by {scored_by}: {}", self.suite.name(), notes.join("; "))
    }

    /// The item that a sequence belongs to.
    fn item_of(&self, sequence: usize) -> Option<&Item> {
        let is_it = |places: &Vec<Place>| places.iter().any(|place| [place.cut, place.whole].contains(&sequence));
        self.items.iter().zip(&self.places).find(|(_, places)| is_it(places)).map(|(item, _)| item)
    }

    /// Number of answers truncated to the suite's length.
    fn cut(&self) -> usize {
        self.places.iter().flatten().filter(|place| place.cut != place.whole).count()
    }
}

/// Reads a suite's items, and appends their sequences to `sequences`.
fn read(
    suite: Suite,
    files: &[PathBuf],
    scoring: &Scoring,
    opened: &Opened,
    sequences: &mut Vec<LabeledPair>,
) -> Result<Read> {
    let items = suite.read(files, opened.config.data.max_row_bytes)?;
    let Rules { max_length: model_limit, max_prompt_length, .. } = *opened.encoder.rules();
    // Cut even if the run drops long sequences: the suite's figures need all items.
    let whole = &opened.cutting_to(model_limit, Some(max_prompt_length))?;
    let limit = scoring.max_length.or(suite.max_length()).unwrap_or(usize::MAX).min(model_limit);
    if scoring.max_length.is_some_and(|asked| asked > model_limit) {
        warn!(
            "{}: --max-length is beyond the model's own limit of {model_limit} tokens, which is used instead",
            suite.name()
        );
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
        // Only one sequence if the length cuts nothing.
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
    Ok(Read { suite, files: files.to_vec(), items, places, prompts, limit, model_limit, beyond })
}

fn encode(suite: Suite, encoder: &Encoder, item: &Item, answer: &str) -> Result<LabeledPair> {
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
    let shown = start_of(&item.prompt);
    let refuse = |reason: String| {
        Error::input(format!("{}: the item with the prompt {shown:?} cannot be scored: {reason}", suite.name()))
            .hint("without it the figures would not be the suite's")
    };
    match encoder.encode(&pair).map_err(|error| error.at(format!("{} {shown:?}", suite.name())))? {
        Encoded::Dropped(reason) => Err(refuse(reason.to_string())),
        Encoded::Kept(pair) => Ok(LabeledPair { pair, margin: 0.0, tied: false, domain: suite.name().to_owned() }),
    }
}
