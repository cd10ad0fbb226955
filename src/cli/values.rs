//! Parsers for typed values, with errors that say what was expected.

use crate::plan::workload::PairTokens;

/// A whole number, 1 or more.
pub(crate) fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err(String::from("expected 1 or more")),
        Ok(number) => Ok(number),
        Err(_) => Err(String::from("expected a whole number, 1 or more")),
    }
}

/// The most ranks that a plan is made for.
const MOST_RANKS: usize = 16_384;

/// A number of ranks to plan for.
pub(crate) fn ranks(text: &str) -> std::result::Result<usize, String> {
    match positive(text)? {
        number if number > MOST_RANKS => Err(format!("expected at most {MOST_RANKS}")),
        number => Ok(number),
    }
}

/// A finite number above 0.
pub(crate) fn above_zero(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err(String::from("expected a number above 0")),
    }
}

/// A share: above 0, at most 1.
pub(crate) fn share(text: &str) -> std::result::Result<f64, String> {
    above_zero(text)
        .ok()
        .filter(|share| *share <= 1.0)
        .ok_or_else(|| String::from("expected a share: above 0, at most 1"))
}

/// `P,A,B`: tokens of the common prefix, the chosen answer and the rejected answer.
pub(crate) fn pair_tokens(text: &str) -> std::result::Result<PairTokens, String> {
    let numbers: Vec<usize> = text.split(',').filter_map(|part| part.trim().parse().ok()).collect();
    match numbers.as_slice() {
        &[prefix, chosen, rejected] if text.split(',').count() == 3 && chosen > 0 && rejected > 0 => {
            Ok(PairTokens { prefix, chosen, rejected, apart: false })
        }
        _ => Err(String::from("expected three whole numbers such as 200,60,60; an answer has 1 token or more")),
    }
}

/// `KEY=PATH`: a key of a format, and the rows' path for it.
pub(crate) fn column(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=').map(|(key, path)| (key.trim(), path.trim())) {
        Some((key, path)) if !key.is_empty() && !path.is_empty() => Ok((key.to_owned(), path.to_owned())),
        _ => Err(String::from("expected KEY=PATH, such as prompt=question")),
    }
}
