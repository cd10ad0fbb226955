//! A comparison as Markdown and as JSON lines.

use super::{Accuracy, Comparison, Difference, RankedBy, Ranker, Variant};
use crate::config::Objective;
use crate::metrics::{self, number, with_interval};
use crate::statistics::Interval;
use serde_json::{Value, json};

/// A difference is reported as significant if its adjusted p is below this.
const SIGNIFICANT: f64 = 0.05;

/// How the figures were made, for readers without this program's documentation.
const NOTES: &str = "\
Accuracy is how often the chosen answer comes first; a tie counts one half. The reward head ranks by its rewards, the \
policy by its implicit rewards, both combined by the weighted sum fitted on the dev pairs. Intervals and p-values reflect \
the choice of test prompts, for these runs: 95% intervals come from 2,000 bootstrap samples of whole prompts. p is \
two-sided and exact: every prompt's differences are added up, over its pairs and over all seeds, and each sum's sign is \
decided by a fair coin (Fisher and Pitman's randomization test; with one seed and one pair per prompt it is McNemar's exact \
test). Holm's p is adjusted for the number of rows. A difference as large as in the last column would be found, with p below \
0.05 before Holm's adjustment, by four of five sets of test pairs like these.";

/// The notes about seeds: where there are standard deviations, where there is one seed, where there is one run of each.
const SEEDS: [&str; 3] = [
    "The standard deviations show the effect of the seed, which draws other training pairs in another order.",
    "There is only one seed: these figures do not show how much another seed would change.",
    "There is one run of each: these figures do not show how much another seed would change.",
];

impl Ranker {
    /// Its name in the tables.
    fn label(&self) -> String {
        let named_by = |objective: &str| self.variant.split(',').next() == Some(objective);
        match (self.objective, self.ranked_by) {
            (Objective::Hybrid, RankedBy::Reward) => format!("{}, reward head", self.variant),
            (Objective::Hybrid, RankedBy::Policy) => format!("{}, policy", self.variant),
            (Objective::Hybrid, RankedBy::Combined) => format!("{}, combined", self.variant),
            // A variant that is named by its objective; else by its folder.
            (Objective::Reward, _) if named_by("reward") => format!("{} only", self.variant),
            (Objective::Policy, _) if named_by("policy") => format!("{} only", self.variant),
            (Objective::Reward | Objective::Policy, _) => self.variant.clone(),
        }
    }
}

impl Comparison {
    /// Two tables, a sentence for each difference, and notes on how to read them.
    pub fn markdown(&self) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let mut text = format!(
            "{}{} {}; {} test pairs of {} prompts, after the last step.\n\n",
            self.in_common(),
            if seeds.len() == 1 { "seed" } else { "seeds" },
            seeds.join(", "),
            self.pairs,
            self.prompts,
        );
        let named_by_more = |variant: &&Variant| variant.settings.keys().any(|key| key != "loss.objective");
        for variant in self.variants.iter().filter(named_by_more) {
            let settings: Vec<String> =
                variant.settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
            text += &format!("- {}: {}\n", variant.name, settings.join(", "));
        }
        if text.ends_with('\n') && !text.ends_with("\n\n") {
            text.push('\n');
        }
        text += &format!("{}\n\n", self.accuracy_table());
        if !self.differences.is_empty() {
            text += &format!("{}\n\n", self.difference_table());
            text.extend(self.differences.iter().map(|row| format!("- {}\n", in_words(row))));
            text.push('\n');
        }
        let spread = self.accuracies.iter().any(|row| row.deviation.is_some());
        let seeds = match (spread, self.seeds.len()) {
            (true, _) => SEEDS[0],
            (false, 1) => SEEDS[1],
            (false, _) => SEEDS[2],
        };
        text + NOTES + " " + seeds + "\n"
    }

    /// The model and the length of the runs, if all have the same.
    fn in_common(&self) -> String {
        let same = |key: &str| self.variants.iter().all(|variant| !variant.settings.contains_key(key));
        let config = &self.facts.config;
        let model = if same("model.path") { format!("{}: ", config.model.path.display()) } else { String::new() };
        let length = ["train.steps", "train.epochs", "train.pairs_per_step"].iter().all(|key| same(key));
        let length = length.then(|| format!("{} steps of {} pairs, ", self.facts.step, config.train.pairs_per_step));
        model + &length.unwrap_or_default()
    }

    /// A row for each run and one for a variant's mean; a column for each head.
    fn accuracy_table(&self) -> String {
        let combined = self.accuracies.iter().any(|row| row.ranker.ranked_by == RankedBy::Combined);
        let heads = [RankedBy::Reward, RankedBy::Policy, RankedBy::Combined];
        let heads = if combined { &heads[..] } else { &heads[..2] };
        let mut header = vec!["variant", "seed", "reward head (95%)", "policy (95%)"];
        header.extend(combined.then_some("combined (95%)"));
        let mut table = Vec::new();
        for Variant { name, .. } in &self.variants {
            let of = |ranked_by: &RankedBy| {
                self.accuracies.iter().find(|row| row.ranker.variant == *name && row.ranker.ranked_by == *ranked_by)
            };
            let rows: Vec<Option<&Accuracy>> = heads.iter().map(of).collect();
            for seed in &self.seeds {
                let cell = |row: &Option<&Accuracy>| {
                    let of_seed = row.and_then(|row| row.by_seed.get(seed));
                    with_interval(of_seed.map(|seen| seen.0), of_seed.and_then(|seen| seen.1))
                };
                if rows.iter().flatten().any(|row| row.by_seed.contains_key(seed)) {
                    table.push([name.clone(), seed.to_string()].into_iter().chain(rows.iter().map(cell)).collect());
                }
            }
            let mean = |row: &Option<&Accuracy>| {
                let spread = row.and_then(|row| row.deviation).map(|sd| format!(", sd {sd:.4}")).unwrap_or_default();
                with_interval(row.map(|row| row.mean), row.and_then(|row| row.interval)) + &spread
            };
            if rows.iter().flatten().any(|row| row.by_seed.len() > 1) {
                table.push([name.clone(), "mean".into()].into_iter().chain(rows.iter().map(mean)).collect());
            }
        }
        metrics::table(&header, 1, table)
    }

    fn difference_table(&self) -> String {
        let header = ["accuracy of", "over", "difference (95%)", "by seed", "sd", "p", "Holm's p", "could be found"];
        let row = |row: &Difference| {
            let by_seed: Vec<String> = row.by_seed.values().map(|value| format!("{value:+.4}")).collect();
            let by_seed = if by_seed.is_empty() { "none in common".into() } else { by_seed.join(", ") };
            let interval = row.interval.map(|seen| format!(" ({:+.3} to {:+.3})", seen.low, seen.high));
            vec![
                row.of.label(),
                row.over.label(),
                format!("{:+.4}", row.mean) + &interval.unwrap_or_default(),
                by_seed,
                number(row.deviation),
                p_value(row.p),
                p_value(row.p_holm),
                number(row.detectable),
            ]
        };
        metrics::table(&header, 2, self.differences.iter().map(row))
    }

    /// One object for what the runs have in common, then one for each variant, each accuracy and each difference.
    pub fn json_lines(&self) -> Vec<Value> {
        let runs = json!({
            "compare": "runs", "step": self.facts.step, "seeds": self.seeds, "pairs": self.pairs,
            "prompts": self.prompts, "model_key": self.facts.model_key, "config": self.facts.config,
        });
        let variant = |variant: &Variant| {
            let Variant { name, objective, settings, runs } = variant;
            json!({"compare": "variant", "variant": name, "objective": objective, "settings": settings, "runs": runs.len()})
        };
        let accuracies = self.accuracies.iter().flat_map(accuracy_lines);
        let lines = std::iter::once(runs).chain(self.variants.iter().map(variant)).chain(accuracies);
        lines.chain(self.differences.iter().map(difference_line)).collect()
    }
}

/// A sentence: which is better and by how much; or the difference that these pairs could have shown.
fn in_words(row: &Difference) -> String {
    let (of, over) = (row.of.label(), row.over.label());
    let points = |share: f64| format!("{:.1} points", 100.0 * share.abs());
    if row.p_holm < SIGNIFICANT {
        let (better, worse) = if row.mean > 0.0 { (of, over) } else { (over, of) };
        let p = p_value(row.p_holm);
        return format!(
            "On these test pairs {better} is better than {worse}, by {} of accuracy (Holm's p = {p}).",
            points(row.mean)
        );
    }
    if row.alike {
        return format!("{of} and {over} rank every test pair the same.");
    }
    let found = match row.detectable {
        Some(least) => format!("One of {} or more could be found with such test pairs.", points(least)),
        None => "The test pairs are too few to find any.".to_owned(),
    };
    format!("{of} against {over}: no difference is shown. {found}")
}

/// A line for each seed, then one for the mean, whose seed is null.
fn accuracy_lines(row: &Accuracy) -> impl Iterator<Item = Value> {
    let ranker = &row.ranker;
    let line = move |seed: Option<u64>, accuracy: f64, interval: Option<Interval>, deviation: Option<f64>| {
        json!({
            "compare": "accuracy", "variant": ranker.variant, "objective": ranker.objective, "ranked_by": ranker.ranked_by, "seed": seed,
            "accuracy": accuracy, "low": interval.map(|seen| seen.low), "high": interval.map(|seen| seen.high),
            "deviation": deviation,
        })
    };
    let by_seed =
        row.by_seed.iter().map(move |(&seed, &(accuracy, interval))| line(Some(seed), accuracy, interval, None));
    by_seed.chain(std::iter::once(line(None, row.mean, row.interval, row.deviation)))
}

fn difference_line(row: &Difference) -> Value {
    json!({
        "compare": "difference", "of": row.of, "over": row.over, "difference": row.mean,
        "low": row.interval.map(|seen| seen.low), "high": row.interval.map(|seen| seen.high), "by_seed": row.by_seed,
        "deviation": row.deviation, "p": row.p, "p_holm": row.p_holm, "detectable": row.detectable,
    })
}

/// Three decimals, or scientific notation for a smaller p.
fn p_value(p: f64) -> String {
    if p < 0.001 { format!("{p:.1e}") } else { format!("{p:.3}") }
}
