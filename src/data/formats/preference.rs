//! Which of a row's answers are chosen and rejected, and by how much.
//!
//! Not here: the answers themselves (`interpret.rs`).

use super::layout::{At, Layout, Preference};
use super::{DropReason, Verdict};
use crate::data::row::{Found, MEND, Row, as_number};
use crate::error::{Error, Result};
use serde_json::Value;
use std::cmp::Ordering;

/// Indices of the chosen and the rejected answer among all answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub(super) chosen: usize,
    pub(super) rejected: usize,
    /// `None` if the layout gives none.
    pub(super) margin: Option<f64>,
    /// Neither is better.
    pub(super) tied: bool,
}

impl Choice {
    fn new(chosen: usize, rejected: usize, margin: Option<f64>) -> Self {
        Self { chosen, rejected, margin, tied: false }
    }

    fn tie(one: usize, other: usize) -> Self {
        Self { chosen: one, rejected: other, margin: None, tied: true }
    }
}

fn first_wins(wins: bool, margin: Option<f64>) -> Choice {
    if wins { Choice::new(0, 1, margin) } else { Choice::new(1, 0, margin) }
}

impl Row<'_> {
    /// The pairs of answers, ties included; `sizes` are the numbers of answers at the layout's paths.
    ///
    /// # Errors
    /// A label that is missing or invalid.
    pub(super) fn choices(&self, layout: &Layout, sizes: &[usize]) -> Result<Vec<Verdict<Choice>>> {
        let count: usize = sizes.iter().sum();
        let tie = match self.get(layout.tie) {
            Some(flag) => flag.flag()?,
            None if layout.tie.is_empty() => false,
            None => return Err(self.missing(layout.tie, "0 or 1")),
        };
        let choice = match layout.preference {
            Preference::Alone => Ok(Choice::new(0, 0, None)),
            Preference::Sides => return self.sides(layout, sizes),
            Preference::Winner(at, names) => {
                let found = self.get(at).ok_or_else(|| self.missing(at, &listed(&names)))?;
                let name = scalar(&found, &listed(&names))?;
                match names.iter().position(|names| names.contains(&name.as_str())) {
                    Some(2) => Ok(Choice::tie(0, 1)),
                    Some(winner) => Ok(first_wins(winner == 0, None)),
                    None => {
                        let message = format!("{} is {name:?}, expected {}", found.name, listed(&names));
                        return Err(Error::input(message).hint(MEND));
                    }
                }
            }
            Preference::Strength(at, most) => Ok(self.strength(at, most)?),
            Preference::Safety(at, flags) => {
                let flag = |at| self.get(at).ok_or_else(|| self.missing(at, "true or false"))?.flag();
                let safe = [flag(flags[0])?, flag(flags[1])?];
                let safer = self.get(at).ok_or_else(|| self.missing(at, "0 or 1"))?.flag()?;
                match (safe[0] == safe[1], safe[usize::from(safer)]) {
                    (true, _) => Err(DropReason::NotExactlyOneSafe),
                    (false, false) => Err(DropReason::ContradictorySafety),
                    (false, true) => Ok(first_wins(!safer, None)),
                }
            }
            Preference::Ranks([]) => return Ok(ordered(&(0..count).map(|place| place as f64).collect::<Vec<_>>())),
            Preference::Ranks(places) => return Ok(ordered(&self.numbers(places, count)?)),
            Preference::Scores(places) => {
                let scores: Vec<f64> = self.numbers(places, count)?.into_iter().map(|score| -score).collect();
                let choices = ordered(&scores);
                if !layout.tie.is_empty() && tie != matches!(choices[..], [Ok(Choice { tied: true, .. })]) {
                    let message = format!("`{}` and the other flags contradict each other", layout.tie.join("` or `"));
                    return Err(Error::input(message).hint(MEND));
                }
                return Ok(choices);
            }
        };
        Ok(vec![choice])
    }

    /// Every chosen answer with every rejected one.
    fn sides(&self, layout: &Layout, sizes: &[usize]) -> Result<Vec<Verdict<Choice>>> {
        let margin = match layout.margin.map(|places| self.difference(places)).transpose()? {
            Some(below) if below < 0.0 => return Ok(vec![Err(DropReason::ContradictoryScores)]),
            margin => margin,
        };
        let [chosen, rejected] = [sizes.first(), sizes.get(1)].map(|size| size.copied().unwrap_or(0));
        let pairs = (0..chosen).flat_map(|one| (chosen..chosen + rejected).map(move |other| (one, other)));
        let tied = margin == Some(0.0);
        let choice = |(one, other)| if tied { Choice::tie(one, other) } else { Choice::new(one, other, margin) };
        let pairs: Vec<_> = pairs.map(|pair| Ok(choice(pair))).collect();
        Ok(if pairs.is_empty() { vec![Err(DropReason::FewerThanTwoAnswers)] } else { pairs })
    }

    /// A preference with a sign: below 0 the first answer is better.
    fn strength(&self, at: At, most: f64) -> Result<Choice> {
        let expected = format!("a whole number from -{most} to {most}");
        let found = self.get(at).ok_or_else(|| self.missing(at, &expected))?;
        let strength = found.number(&expected)?;
        if strength.fract() != 0.0 || strength.abs() > most {
            return Err(Error::input(format!("{} is {strength}, expected {expected}", found.name)).hint(MEND));
        }
        Ok(if strength == 0.0 { Choice::tie(0, 1) } else { first_wins(strength < 0.0, Some(strength.abs())) })
    }

    /// The chosen answer's score less the rejected one's.
    fn difference(&self, places: [At; 2]) -> Result<f64> {
        const EXPECTED: &str = "a finite number";
        let score = |at| self.get(at).ok_or_else(|| self.missing(at, EXPECTED))?.number(EXPECTED);
        Ok(score(places[0])? - score(places[1])?)
    }

    /// A number for each answer; the mean, if there are several.
    fn numbers(&self, places: &[At], count: usize) -> Result<Vec<f64>> {
        const EXPECTED: &str = "a finite number";
        let mut numbers = Vec::with_capacity(count);
        for paths in places {
            for found in self.all(paths)?.ok_or_else(|| self.missing(paths, EXPECTED))? {
                if found.values.len() < 2 {
                    numbers.push(found.number(EXPECTED)?);
                    continue;
                }
                // Some ratings may be missing, as "N/A".
                let rated: Vec<f64> = found.values.iter().filter_map(|value| as_number(value)).collect();
                if rated.is_empty() {
                    return Err(Error::input(format!("{} has no number", found.name)).hint(MEND));
                }
                numbers.push(rated.iter().sum::<f64>() / rated.len() as f64);
            }
        }
        match numbers.len() == count {
            true => Ok(numbers),
            false => {
                Err(Error::input(format!("there are {count} answers but {} ranks or scores", numbers.len())).hint(MEND))
            }
        }
    }
}

/// Every two answers in the order of the list, the lower number chosen; equal ones are ties.
fn ordered(numbers: &[f64]) -> Vec<Verdict<Choice>> {
    if numbers.len() < 2 {
        return vec![Err(DropReason::FewerThanTwoAnswers)];
    }
    let mut choices = Vec::new();
    for (one, number) in numbers.iter().enumerate() {
        for (other, next) in numbers.iter().enumerate().skip(one + 1) {
            choices.push(match number.partial_cmp(next) {
                Some(Ordering::Less) => Ok(Choice::new(one, other, None)),
                Some(Ordering::Greater) => Ok(Choice::new(other, one, None)),
                _ => Ok(Choice::tie(one, other)),
            });
        }
    }
    choices
}

/// A text, a number or a boolean, as a text: 1.0 is "1".
fn scalar(found: &Found, expected: &str) -> Result<String> {
    let value = found.value(expected)?;
    match value {
        Value::String(text) => Ok(text.trim().to_owned()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(_) => Ok(found.number(expected)?.to_string()),
        other => Err(found.wrong(other, expected)),
    }
}

/// The names that a winner may have, for messages.
fn listed(names: &[At]) -> String {
    let names: Vec<String> = names.iter().copied().flatten().map(|name| format!("{name:?}")).collect();
    names.join(", ")
}
