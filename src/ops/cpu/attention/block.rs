//! A block of query rows and the keys that it sees: the products, the softmax between them, and packing for both.
//!
//! Not here: which blocks there are, and where results go (`mod.rs`).
//!
//! Legend: E head width; a word is an operand of one multiply-add (`tile/`).

use super::Span;
use super::scores::{exponentials, exponentials_less, score_gradients, soft_cap, soft_cap_and_slopes, times_slopes};
use crate::ops::cpu::Element;
use crate::ops::cpu::tile::{COLUMNS, Left, Packed};
use crate::packing::{AttentionRules, Group, HeadCounts};
use multiversion::multiversion;

/// Query rows that are computed together; whole words of either type.
pub(crate) const BLOCK: usize = 32;

/// A head's rows of one span, packed for the products.
pub(crate) struct Side<W> {
    /// [E / words, columns]: contraction along E.
    pub(crate) across: Vec<W>,
    pub(crate) columns: usize,
    /// [rows / words, E padded]: contraction along rows.
    pub(crate) along: Vec<W>,
}

/// A block of query rows and the columns of scores it sees: prefix columns, in whole words, then the span's own. What a
/// window hides from every row is left out of both, in whole registers.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) rows: usize,
    /// The first prefix row that is used.
    pub(crate) prefix_from: usize,
    /// Number of prefix rows that are used.
    pub(crate) prefix: usize,
    /// The first own column: prefix columns are padded to a whole word.
    pub(crate) own_at: usize,
    /// The first of the span's own rows that is used.
    pub(crate) own_from: usize,
    span: Span,
    /// The span's own rows before the block.
    first: usize,
    window: Option<usize>,
    per_word: usize,
}

impl Block {
    pub(crate) fn new(span: Span, first: usize, window: Option<usize>, per_word: usize) -> Self {
        let rows = BLOCK.min(span.length - first);
        let mut block =
            Self { rows, prefix_from: 0, prefix: span.prefix, own_at: 0, own_from: 0, span, first, window, per_word };
        if let Some(window) = window {
            // What the first row does not see, no row sees.
            let oldest = block.oldest(0, window);
            block.own_from = oldest.saturating_sub(span.prefix) / COLUMNS * COLUMNS;
            block.prefix_from = oldest.min(span.prefix) / COLUMNS * COLUMNS;
            block.prefix = if oldest < span.prefix { span.prefix - block.prefix_from } else { 0 };
        }
        block.own_at = block.prefix.next_multiple_of(per_word);
        block
    }

    /// The first position that `row` sees through a window; positions continue those of the prefix.
    fn oldest(self, row: usize, window: usize) -> usize {
        (self.span.prefix + self.first + row + 1).saturating_sub(window)
    }

    /// Own columns that some row of the block sees.
    pub(crate) fn own(self) -> usize {
        self.first + self.rows - self.own_from
    }

    /// All columns, in whole words.
    pub(crate) fn columns(self) -> usize {
        (self.own_at + self.own()).next_multiple_of(self.per_word)
    }

    /// Sets the scores that `row` does not see to minus infinity.
    fn hide(self, row: usize, scores: &mut [f32]) {
        scores[self.prefix..self.own_at].fill(f32::NEG_INFINITY);
        scores[self.own_at + self.first + row + 1 - self.own_from..].fill(f32::NEG_INFINITY);
        if let Some(window) = self.window {
            let oldest = self.oldest(row, window);
            let prefix = oldest.saturating_sub(self.prefix_from).min(self.prefix);
            scores[..prefix].fill(f32::NEG_INFINITY);
            let own = oldest.saturating_sub(self.span.prefix + self.own_from);
            scores[self.own_at..][..own].fill(f32::NEG_INFINITY);
        }
    }

    /// `result` [rows, E padded] = words [rows, columns] times (prefix rows, then own rows).
    pub(crate) fn combine<E: Packed>(
        self,
        words: Left<E::Word>,
        (prefix, own): (&Side<E::Word>, &Side<E::Word>),
        padded: usize,
        result: &mut [f32],
    ) {
        let (prefix_words, own_words) = (self.own_at / E::PER_WORD, self.own().div_ceil(E::PER_WORD));
        if self.prefix > 0 {
            E::multiply(
                (self.rows, padded, prefix_words),
                words,
                (&prefix.along[self.prefix_from / E::PER_WORD * padded..], padded),
                (&mut *result, padded),
                false,
            );
        }
        let words = Left { words: &words.words[prefix_words..], ..words };
        let along = &own.along[self.own_from / E::PER_WORD * padded..];
        E::multiply((self.rows, padded, own_words), words, (along, padded), (result, padded), self.prefix > 0);
    }

    /// Adds pairs^T [columns, rows] times `along` [rows, E padded] to the sums of the prefix's rows and of the own rows.
    pub(crate) fn add_to<E: Packed>(
        self,
        (pairs, stride): (&[E::Word], usize),
        along: &[E::Word],
        padded: usize,
        (sums, index): (&mut [Vec<f32>], usize),
    ) {
        let words = self.rows.div_ceil(E::PER_WORD);
        if self.prefix > 0 {
            let left = Left { words: pairs, row: 1, step: stride };
            E::multiply(
                (self.prefix, padded, words),
                left,
                (along, padded),
                (&mut sums[0][self.prefix_from * padded..], padded),
                true,
            );
        }
        let left = Left { words: &pairs[self.own_at..], row: 1, step: stride };
        E::multiply(
            (self.own(), padded, words),
            left,
            (along, padded),
            (&mut sums[index][self.own_from * padded..], padded),
            true,
        );
    }
}

impl<W: Copy + Default> Side<W> {
    pub(crate) fn new<E: Packed<Word = W>>(span: Span, rows: &[E], stride: usize, heads: HeadCounts) -> Self {
        let columns = span.length.next_multiple_of(COLUMNS);
        let words = heads.width / E::PER_WORD;
        let mut across = vec![W::default(); words * columns];
        transpose::<E>(rows, stride, span, words, &mut across);
        let mut along = Vec::new();
        pack_along::<E>(rows, stride, (span.start, span.length), (heads.width, heads.padded()), &mut along);
        Self { across, columns, along }
    }
}

/// The largest scaled score of each row of a block, and the sum of its exponentials.
pub(crate) struct RowStatistics {
    pub(crate) maxima: [f32; BLOCK],
    pub(crate) sums: [f32; BLOCK],
}

/// The buffers of a task.
pub(crate) struct Work<E: Packed> {
    /// Columns of `scores` and `probabilities`.
    pub(crate) stride: usize,
    pub(crate) scores: Vec<f32>,
    pub(crate) probabilities: Vec<f32>,
    /// Rows of queries, or of the output's gradient.
    pub(crate) left: Vec<E::Word>,
    pub(crate) words: Vec<E::Word>,
    pub(crate) pairs: Vec<E::Word>,
    pub(crate) along: Vec<E::Word>,
    pub(crate) result: Vec<f32>,
    scale: f32,
    soft_cap: Option<f32>,
    /// Derivatives of the cap; empty without one.
    slopes: Vec<f32>,
}

impl<E: Packed> Work<E> {
    pub(crate) fn new(group: &Group, heads: HeadCounts, rules: AttentionRules) -> Self {
        // The longest run of columns, room for a padded prefix, and for whole registers.
        let stride = (group.rows() + 2 * COLUMNS).next_multiple_of(COLUMNS);
        Self {
            stride,
            scores: vec![0.0; BLOCK * stride],
            probabilities: vec![0.0; BLOCK * stride],
            left: Vec::new(),
            words: vec![E::Word::default(); BLOCK * stride / E::PER_WORD],
            pairs: vec![E::Word::default(); BLOCK * stride / E::PER_WORD],
            along: Vec::new(),
            result: vec![0.0; BLOCK * heads.padded()],
            scale: rules.scale as f32,
            soft_cap: rules.soft_cap.map(|cap| cap as f32),
            slopes: vec![0.0; if rules.soft_cap.is_some() { stride } else { 0 } * BLOCK],
        }
    }

    /// `scores` = left times the keys (or values) that the block sees, unscaled and unmasked.
    pub(crate) fn products(
        &mut self,
        block: Block,
        (prefix, own): (&Side<E::Word>, &Side<E::Word>),
        heads: HeadCounts,
    ) {
        let words = heads.width / E::PER_WORD;
        let left = Left { words: &self.left, row: words, step: 1 };
        if block.prefix > 0 {
            let columns = block.prefix.next_multiple_of(COLUMNS);
            E::multiply(
                (block.rows, columns, words),
                left,
                (&prefix.across[block.prefix_from..], prefix.columns),
                (&mut self.scores, self.stride),
                false,
            );
        }
        let columns = block.own().next_multiple_of(COLUMNS);
        let scores = &mut self.scores[block.own_at..];
        let across = &own.across[block.own_from..];
        E::multiply((block.rows, columns, words), left, (across, own.columns), (scores, self.stride), false);
    }

    /// Scores -> exp(scaled score - the row's largest), as words.
    pub(crate) fn softmax(&mut self, block: Block) -> RowStatistics {
        let (mut maxima, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        for row in 0..block.rows {
            let scores = &mut self.scores[row * self.stride..][..block.columns()];
            let scale = self.soft_cap.map_or(self.scale, |cap| {
                soft_cap(scores, self.scale, cap);
                1.0
            });
            block.hide(row, scores);
            (maxima[row], sums[row]) = exponentials(scores, scale);
        }
        pack_words::<E>(&self.scores, self.stride, block, &mut self.words);
        RowStatistics { maxima, sums }
    }

    /// Scores -> probabilities, in place, given each row's log-sum-exp; 0 for what a row does not see.
    pub(crate) fn probabilities(&mut self, block: Block, log_sums: &[f32]) {
        for (row, log_sum) in log_sums.iter().enumerate() {
            let scores = &mut self.scores[row * self.stride..][..block.columns()];
            let scale = self.soft_cap.map_or(self.scale, |cap| {
                soft_cap_and_slopes(scores, &mut self.slopes[row * self.stride..], self.scale, cap);
                1.0
            });
            block.hide(row, scores);
            exponentials_less(scores, scale, *log_sum);
        }
    }

    /// `scores` -> probability * (score - along) * scale, in place; with a cap times its derivative.
    pub(crate) fn score_gradients(&mut self, block: Block, along: &[f32]) {
        for (row, along) in along.iter().enumerate() {
            let scores = &mut self.scores[row * self.stride..][..block.columns()];
            let probabilities = &self.probabilities[row * self.stride..][..block.columns()];
            score_gradients(scores, probabilities, *along, self.scale);
            if self.soft_cap.is_some() {
                times_slopes(scores, &self.slopes[row * self.stride..]);
            }
        }
    }
}

/// Dot products of the rows [first, first + count) of two matrices.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn dots<E: Element>(
    left: &[E],
    right: &[E],
    stride: usize,
    place: (usize, usize),
    width: usize,
) -> Vec<f32> {
    let (first, count) = place;
    let dot = |row: usize| {
        let mut lanes = [0f32; 8];
        let (left, right) = (&left[row * stride..][..width], &right[row * stride..][..width]);
        for (left, right) in left.chunks(8).zip(right.chunks(8)) {
            for (lane, (left, right)) in lanes.iter_mut().zip(left.iter().zip(right)) {
                *lane += left.wide() * right.wide();
            }
        }
        lanes.iter().sum()
    };
    (first..first + count).map(dot).collect()
}

/// Rows of numbers -> rows of words.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn pack_rows<E: Packed>(
    rows: &[E],
    stride: usize,
    place: (usize, usize),
    width: usize,
    words: &mut Vec<E::Word>,
) {
    let length = width / E::PER_WORD;
    words.resize(place.1 * length, E::Word::default());
    for (row, words) in (place.0..).zip(words.chunks_mut(length)) {
        E::pack(&rows[row * stride..][..width], words);
    }
}

/// Rows of numbers -> words [words of a row, columns], a column for each row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn transpose<E: Packed>(rows: &[E], stride: usize, span: Span, length: usize, across: &mut [E::Word]) {
    let columns = span.length.next_multiple_of(COLUMNS);
    // A register of columns at a time, so that each write is one.
    let mut packed = vec![E::Word::default(); COLUMNS * length];
    for first in (0..span.length).step_by(COLUMNS) {
        let count = COLUMNS.min(span.length - first);
        for (row, packed) in packed.chunks_mut(length).take(count).enumerate() {
            E::pack(&rows[(span.start + first + row) * stride..][..length * E::PER_WORD], packed);
        }
        for word in 0..length {
            let across = &mut across[word * columns + first..][..COLUMNS];
            for (column, across) in across.iter_mut().enumerate() {
                *across = packed[column * length + word];
            }
        }
    }
}

/// Rows of numbers -> words of neighboring rows, [rows / words, padded]; an odd last row is paired with zeros.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn pack_along<E: Packed>(
    rows: &[E],
    stride: usize,
    (first, count): (usize, usize),
    (width, padded): (usize, usize),
    words: &mut Vec<E::Word>,
) {
    words.clear();
    words.resize(count.div_ceil(E::PER_WORD) * padded, E::Word::default());
    for (at, words) in words.chunks_mut(padded).enumerate() {
        let row = first + at * E::PER_WORD;
        let one = &rows[row * stride..][..width];
        if E::PER_WORD == 2 && row + 1 < first + count {
            let other = &rows[(row + 1) * stride..][..width];
            for ((word, one), other) in words.iter_mut().zip(one).zip(other) {
                *word = E::word(one.wide(), other.wide());
            }
        } else {
            words.iter_mut().zip(one).for_each(|(word, one)| *word = E::word(one.wide(), 0.0));
        }
    }
}

/// The block's rows of f32 -> rows of words along the columns.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn pack_words<E: Packed>(values: &[f32], stride: usize, block: Block, words: &mut [E::Word]) {
    for row in 0..block.rows {
        let values = values[row * stride..][..block.columns()].chunks_exact(E::PER_WORD);
        let words = &mut words[row * (stride / E::PER_WORD)..];
        words.iter_mut().zip(values).for_each(|(word, pair)| *word = E::word(pair[0], pair[E::PER_WORD - 1]));
    }
}

/// The block's rows of f32 -> words of neighboring rows, [rows / words, stride].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn pair_rows<E: Packed>(values: &[f32], stride: usize, block: Block, words: &mut [E::Word]) {
    for row in (0..block.rows).step_by(E::PER_WORD) {
        let one = &values[row * stride..][..block.columns()];
        let words = &mut words[row / E::PER_WORD * stride..];
        if E::PER_WORD == 2 && row + 1 < block.rows {
            let other = &values[(row + 1) * stride..][..block.columns()];
            for ((word, one), other) in words.iter_mut().zip(one).zip(other) {
                *word = E::word(*one, *other);
            }
        } else {
            words.iter_mut().zip(one).for_each(|(word, one)| *word = E::word(*one, 0.0));
        }
    }
}
