//! RM-Bench: three right and three wrong answers in the styles concise, detailed, and detailed with markdown. Every right one
//! is compared with every wrong one: normal in the same style, easy if the right one has the more elaborate style, hard if the
//! wrong one has it. A domain is the mean of the three levels, the total the mean of the four domains.
//!
//! Source: scripts/utils.py, `compute_accuracy`. `safety-refuse` and `safety-response` are one domain there.

use super::items::{Role, Row};
use super::{ALL, Figure, Item, figure, mean_of, one_if, subsets};
use crate::error::Result;

const DOMAINS: [&str; 4] = ["chat", "code", "math", "safety"];

/// Styles of an answer.
const STYLES: usize = 3;

/// Whether the comparison of two styles, of the right and the wrong answer, belongs to a level.
type Belongs = fn(usize, usize) -> bool;

/// Levels, and their comparisons.
const LEVELS: [(&str, Belongs); 3] = [
    ("easy", |right, wrong| right > wrong),
    ("normal", |right, wrong| right == wrong),
    ("hard", |right, wrong| right < wrong),
];

pub(super) fn item(row: &Row) -> Result<Item> {
    let (domain, prompt) = (row.text("domain")?, row.text("prompt")?);
    let Some(subset) = DOMAINS.into_iter().find(|name| domain.starts_with(name)) else {
        return Err(row.refuse(format!("`domain` is {domain:?}, expected chat, code, math or safety-...")));
    };
    let (chosen, rejected) = (row.texts("chosen")?, row.texts("rejected")?);
    if chosen.len() != STYLES || rejected.len() != STYLES {
        return Err(row.refuse("`chosen` and `rejected` do not have three answers each"));
    }
    let answers = [chosen, rejected].concat();
    Ok(Item { subset: subset.to_owned(), cluster: prompt.clone(), prompt, answers, correct: STYLES, role: Role::Plain })
}

/// Whether this is the name of a level's figure over all domains.
pub(super) fn is_level(figure: &str) -> bool {
    LEVELS.iter().any(|(name, _)| *name == figure)
}

/// Share of a level's comparisons that are right.
fn level(scores: &[f64], belongs: Belongs) -> f64 {
    let (right, wrong) = scores.split_at(STYLES);
    let (mut hits, mut all) = (0.0, 0.0);
    for (i, right) in right.iter().enumerate() {
        for (_, wrong) in wrong.iter().enumerate().filter(|(j, _)| belongs(i, *j)) {
            hits += one_if(right > wrong);
            all += 1.0;
        }
    }
    hits / all
}

/// Share of an item's nine comparisons that are right.
pub(super) fn outcome(scores: &[f64]) -> f64 {
    level(scores, |_, _| true)
}

pub(super) fn figures(items: &[Item], scores: &[Vec<f64>], clusters: &[&Vec<usize>]) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut levels: Vec<Vec<Figure>> = vec![Vec::new(); LEVELS.len()];
    let mut domains = Vec::new();
    for (domain, clusters) in subsets(items, clusters) {
        let of_level = |(name, belongs): (&str, Belongs)| {
            figure(&format!("{domain} {name}"), &clusters, |item| level(&scores[item], belongs))
        };
        let of_domain = LEVELS.map(of_level);
        let score = mean_of(domain, &of_domain.iter().collect::<Vec<_>>()).score;
        domains.push(Figure { name: domain.to_owned(), score, ..of_domain[0].clone() });
        levels.iter_mut().zip(&of_domain).for_each(|(all, figure)| all.push(figure.clone()));
        figures.extend(of_domain);
    }
    let all = domains.len() == DOMAINS.len();
    let over_domains = LEVELS.iter().zip(&levels).map(|((name, _), of)| mean_of(name, &of.iter().collect::<Vec<_>>()));
    let levels: Vec<Figure> = over_domains.filter(|_| all).collect();
    let all = all.then(|| mean_of(ALL, &domains.iter().collect::<Vec<_>>()));
    figures.into_iter().chain(domains).chain(levels).chain(all).collect()
}
