//! Sums an evaluation up in a sentence: whether better than chance, whether better than length alone, whether overfitted.
//!
//! Not here: the figures (`metrics/`) and their tables.

use crate::metrics::{DevPoint, EvaluationMetrics};
use crate::statistics::Interval;

/// Rises of the dev loss, one after the other, that count as overfitting.
const RISES: usize = 3;

/// The answer of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// In words.
    pub(crate) sentence: String,
    /// Whether the model is shown to be better than chance.
    pub(crate) good: bool,
}

/// How well the reward head ranks an evaluation's pairs, or the policy if no reward head is trained; `None` if neither is, or if
/// a score is not finite.
pub(crate) fn verdict(row: &EvaluationMetrics) -> Option<Verdict> {
    let reward = row.accuracy.zip(Interval::between(row.accuracy_low, row.accuracy_high));
    let policy = row.policy_accuracy.zip(Interval::between(row.policy_accuracy_low, row.policy_accuracy_high));
    let (head, (accuracy, interval)) = match reward {
        Some(reward) => ("The reward head", reward),
        None => ("The policy", policy?),
    };
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let ranked = format!(
        "{head} ranks {} of {} {} pairs correctly (95% interval {} to {})",
        percent(accuracy),
        row.pairs,
        row.eval,
        percent(interval.low),
        percent(interval.high)
    );
    let by_length = row.longer_accuracy.max(1.0 - row.longer_accuracy);
    let guess = format!(
        "always taking the {} answer ({})",
        if row.longer_accuracy >= 0.5 { "longer" } else { "shorter" },
        percent(by_length)
    );
    let below_length = row.over_length.is_some_and(|difference| difference.high < 0.0);
    let sentence = match () {
        () if interval.high < 0.5 => {
            format!(
                "{ranked}: worse than chance. Are chosen and rejected answers swapped in the training or the {} data?",
                row.eval
            )
        }
        () if interval.low <= 0.5 => {
            let better = if below_length { format!("; {guess} is clearly better") } else { String::new() };
            format!("{ranked}: no better than chance, as far as these pairs show{better}.")
        }
        () if row.over_length.is_some_and(|difference| difference.low > 0.0) => {
            format!("{ranked}: better than chance and better than {guess}.")
        }
        () if below_length => format!("{ranked}: better than chance, but worse than {guess}."),
        () => format!("{ranked}: better than chance, but not shown to be better than {guess}."),
    };
    Some(Verdict { sentence, good: interval.low > 0.5 })
}

/// A warning if a run has overfitted: its dev loss rose in each of its last evaluations. It names the step with the lowest loss.
pub(crate) fn overfitted(dev: &[DevPoint]) -> Option<String> {
    let losses: Vec<f64> = dev.iter().rev().take(RISES + 1).rev().map(|point| point.loss).collect::<Option<_>>()?;
    if losses.len() <= RISES || losses.windows(2).any(|pair| pair[1] <= pair[0]) {
        return None;
    }
    let best = dev
        .iter()
        .filter(|point| point.loss.is_some())
        .min_by(|a, b| a.loss.unwrap_or(f64::INFINITY).total_cmp(&b.loss.unwrap_or(f64::INFINITY)))?;
    let listed: Vec<String> = losses.iter().map(|loss| format!("{loss:.4}")).collect();
    Some(format!(
        "The dev loss rose in each of the last {RISES} evaluations ({}), a sign of overfitting. It was lowest at step {}; fewer \
         steps, a lower train.learning_rate or more training pairs may help.",
        listed.join(", "),
        best.step
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(accuracy: f64, low: f64, high: f64, longer_accuracy: f64) -> EvaluationMetrics {
        EvaluationMetrics {
            eval: "test".into(),
            step: 4,
            domain: "all".into(),
            pairs: 400,
            accuracy: Some(accuracy),
            accuracy_low: Some(low),
            accuracy_high: Some(high),
            policy_accuracy: None,
            policy_accuracy_low: None,
            policy_accuracy_high: None,
            margin: None,
            reward_loss: None,
            policy_loss: None,
            longer_accuracy,
            over_length: Some(Interval {
                low: accuracy - longer_accuracy.max(1.0 - longer_accuracy) - 0.06,
                high: 1.0,
            }),
            rewards: None,
            fitted: None,
        }
    }

    /// Promise: a sentence claims no more than the interval shows.
    #[test]
    fn the_sentence_follows_the_interval() {
        let says = |accuracy, low, high, longer| verdict(&row(accuracy, low, high, longer)).unwrap().sentence;
        assert!(
            says(0.7, 0.65, 0.75, 0.6)
                .ends_with("better than chance and better than always taking the longer answer (60.0%).")
        );
        // Both accuracies are of the same pairs and both are uncertain: the interval of their difference decides.
        let close = says(0.7, 0.65, 0.75, 0.645);
        assert!(close.ends_with("but not shown to be better than always taking the longer answer (64.5%)."), "{close}");
        let but = says(0.7, 0.65, 0.75, 0.3);
        assert!(but.ends_with("but not shown to be better than always taking the shorter answer (70.0%)."), "{but}");
        assert!(says(0.53, 0.5, 0.56, 0.5).ends_with("no better than chance, as far as these pairs show."));
        let below = |accuracy, low| EvaluationMetrics {
            over_length: Some(Interval { low: -0.3, high: -0.1 }),
            ..row(accuracy, low, 0.62, 0.8)
        };
        let worse = verdict(&below(0.53, 0.5)).unwrap();
        assert!(
            worse.sentence.ends_with("show; always taking the longer answer (80.0%) is clearly better."),
            "{worse:?}"
        );
        let worse = verdict(&below(0.6, 0.55)).unwrap();
        assert!(worse.sentence.ends_with("but worse than always taking the longer answer (80.0%)."), "{worse:?}");
        let good = |low| verdict(&row(0.6, low, 0.9, 0.5)).unwrap().good;
        assert!(good(0.51) && !good(0.5));
        assert!(says(0.4, 0.35, 0.45, 0.5).contains("swapped"));
        assert!(
            says(0.7, 0.65, 0.75, 0.6)
                .starts_with("The reward head ranks 70.0% of 400 test pairs correctly (95% interval 65.0% to 75.0%)")
        );
        let policy = EvaluationMetrics {
            accuracy: None,
            policy_accuracy: Some(0.8),
            policy_accuracy_low: Some(0.75),
            policy_accuracy_high: Some(0.85),
            ..row(0.0, 0.0, 0.0, 0.5)
        };
        assert!(verdict(&policy).unwrap().sentence.starts_with("The policy ranks 80.0%"));
        assert_eq!(verdict(&EvaluationMetrics { policy_accuracy: None, ..policy }), None, "nothing finite");
    }

    #[test]
    fn overfitting_is_three_rises_in_a_row_at_the_end() {
        let dev = |losses: &[f64]| -> Vec<DevPoint> {
            let point = |(index, &loss): (usize, &f64)| DevPoint {
                step: 10 * index as u64,
                accuracy: Some(0.5),
                loss: Some(loss),
            };
            losses.iter().enumerate().map(point).collect()
        };
        let found = overfitted(&dev(&[0.7, 0.6, 0.61, 0.62, 0.7])).unwrap();
        assert!(found.contains("(0.6000, 0.6100, 0.6200, 0.7000)") && found.contains("lowest at step 10"), "{found}");
        assert_eq!(overfitted(&dev(&[0.7, 0.6, 0.61, 0.62])), None, "two rises");
        assert_eq!(overfitted(&dev(&[0.5, 0.6, 0.7, 0.8, 0.79])), None, "it fell at the end");
        assert_eq!(overfitted(&[]), None);
    }
}
