//! A comparison as Markdown and as JSON lines.

use super::{Accuracy, Comparison, Difference, RankedBy, Ranker};
use crate::config::Objective;
use crate::metrics::{number, with_interval};
use crate::statistics::Interval;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

/// How the figures were made, for whoever meets them without this program's documentation.
const NOTES: &str = "\
Accuracy is how often the chosen answer comes first; a tie counts one half. The reward head ranks by its rewards, the \
policy by its implicit rewards. Intervals and p-values are about the test prompts, with the runs as they are: 95% \
intervals come from 2,000 bootstrap samples of whole prompts. p is two-sided and exact: every prompt's differences are \
added up, over its pairs and over all seeds, and each sum's sign is decided by a fair coin (Fisher and Pitman's \
randomisation test; with one seed and one pair a prompt it is McNemar's exact test). Holm's p allows for the number of \
rows. What other seeds would change, the standard deviations show: a seed draws other training pairs in another order.";

impl Ranker {
    /// As it stands in the tables.
    fn label(self) -> &'static str {
        match (self.objective, self.ranked_by) {
            (Objective::Hybrid, RankedBy::Reward) => "hybrid, reward head",
            (Objective::Hybrid, RankedBy::Policy) => "hybrid, policy",
            (Objective::Reward, RankedBy::Reward) => "reward only",
            (Objective::Reward, RankedBy::Policy) => "reward only, policy",
            (Objective::Policy, RankedBy::Reward) => "policy only, reward head",
            (Objective::Policy, RankedBy::Policy) => "policy only",
        }
    }
}

impl Comparison {
    /// Two tables and how to read them.
    pub fn markdown(&self) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let config = &self.facts.config;
        format!(
            "{}: {} steps of {} pairs, seeds {}; {} test pairs of {} prompts, after the last step.\n\n{}\n\n{}\n\n{NOTES}\n",
            config.model.path.display(),
            self.facts.step,
            config.train.pairs_per_step,
            seeds.join(", "),
            self.pairs,
            self.prompts,
            self.accuracy_table(),
            self.difference_table(),
        )
    }

    /// A row a run and one for their mean; an objective's two heads side by side.
    fn accuracy_table(&self) -> Table {
        let mut table = markdown(&["objective", "seed", "reward head (95%)", "policy (95%)"]);
        for objective in [Objective::Hybrid, Objective::Reward, Objective::Policy] {
            let of = |ranked_by| self.accuracies.iter().find(|row| row.ranker == Ranker { objective, ranked_by });
            let heads = [of(RankedBy::Reward), of(RankedBy::Policy)];
            let name = format!("{objective:?}").to_lowercase();
            for seed in &self.seeds {
                let cell = |row: Option<&Accuracy>| {
                    let of_seed = row.and_then(|row| row.by_seed.get(seed));
                    with_interval(of_seed.map(|seen| seen.0), ends(of_seed.and_then(|seen| seen.1)))
                };
                if heads.iter().flatten().any(|row| row.by_seed.contains_key(seed)) {
                    table.add_row([name.clone(), seed.to_string(), cell(heads[0]), cell(heads[1])]);
                }
            }
            let mean = |row: Option<&Accuracy>| {
                let spread = row.and_then(|row| row.deviation).map(|sd| format!(", sd {sd:.4}")).unwrap_or_default();
                with_interval(row.map(|row| row.mean), ends(row.and_then(|row| row.interval))) + &spread
            };
            if heads.iter().flatten().any(|row| row.by_seed.len() > 1) {
                table.add_row([name, "mean".into(), mean(heads[0]), mean(heads[1])]);
            }
        }
        table
    }

    fn difference_table(&self) -> Table {
        let mut table = markdown(&["accuracy of", "over", "difference (95%)", "by seed", "sd", "p", "Holm's p"]);
        for row in &self.differences {
            let by_seed: Vec<String> = row.by_seed.values().map(|value| format!("{value:+.4}")).collect();
            let interval = row.interval.map(|seen| format!(" ({:+.3} to {:+.3})", seen.low, seen.high));
            table.add_row([
                row.of.label().to_string(),
                row.over.label().to_string(),
                format!("{:+.4}", row.mean) + &interval.unwrap_or_default(),
                by_seed.join(", "),
                number(row.deviation),
                p_value(row.p),
                p_value(row.p_holm),
            ]);
        }
        table
    }

    /// One object for the runs in common, then one an accuracy and one a difference.
    pub fn json_lines(&self) -> Vec<Value> {
        let runs = json!({
            "compare": "runs", "step": self.facts.step, "seeds": self.seeds, "pairs": self.pairs,
            "prompts": self.prompts, "model_key": self.facts.model_key, "config": self.facts.config,
        });
        let accuracies = self.accuracies.iter().flat_map(accuracy_lines);
        std::iter::once(runs).chain(accuracies).chain(self.differences.iter().map(difference_line)).collect()
    }
}

/// A line a seed, then one for the mean, whose seed is null.
fn accuracy_lines(row: &Accuracy) -> impl Iterator<Item = Value> {
    let ranker = row.ranker;
    let line = move |seed: Option<u64>, accuracy: f64, interval: Option<Interval>, deviation: Option<f64>| {
        json!({
            "compare": "accuracy", "objective": ranker.objective, "ranked_by": ranker.ranked_by, "seed": seed,
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
        "deviation": row.deviation, "p": row.p, "p_holm": row.p_holm,
    })
}

fn markdown(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).force_no_tty();
    table.set_header(header);
    // Names to the left, numbers to the right.
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index).filter(|_| !matches!(*name, "objective" | "accuracy of" | "over"))
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn ends(interval: Option<Interval>) -> Option<(f64, f64)> {
    interval.map(|interval| (interval.low, interval.high))
}

/// Three decimals where that says enough.
fn p_value(p: f64) -> String {
    if p < 0.001 { format!("{p:.1e}") } else { format!("{p:.3}") }
}
