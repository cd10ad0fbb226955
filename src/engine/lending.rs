//! The owners of weights and gradient buckets, which lend them to a pass.
//!
//! The engine borrows a segment's weights before it runs the segment, and its bucket before its backward pass, and gives
//! both back. Whole weights and permanent buckets are the simple case; a source may also gather weights when they are
//! borrowed, and a sink may reuse a few buckets.

use crate::error::{Error, Result, libtorch};
use crate::model::segment::{Bucket, Segment, Weights};
use crate::model::weights::Model;

/// Lends the weights of a model's segments, by their numbers. A pass that ends in an error does not give back the weights it
/// holds.
pub trait WeightSource {
    /// The weights of `segment`. Each is lent once at a time.
    ///
    /// # Errors
    /// Weights that cannot be provided.
    fn lend(&mut self, segment: usize) -> Result<Weights>;

    /// Takes weights back: the engine queues no more work that reads them.
    ///
    /// # Errors
    /// As [`WeightSource::lend`].
    fn give_back(&mut self, segment: usize, weights: Weights) -> Result<()>;
}

/// Lends gradient buckets, and takes them back as they become complete, in the same order on every rank. A pass that ends in
/// an error does not give back the buckets it holds, and their sums are lost.
pub trait GradientSink {
    /// The bucket of `segment`, to add this micro-batch's gradients to; none if the segment is not trained.
    ///
    /// # Errors
    /// A bucket that is already lent.
    fn lend(&mut self, segment: usize) -> Result<Option<Bucket>>;

    /// Takes the bucket back: it holds all gradients of this micro-batch.
    ///
    /// # Errors
    /// A bucket that the sink cannot take.
    fn complete(&mut self, segment: usize, bucket: Bucket) -> Result<()>;
}

/// The whole weights of a model in memory.
pub(crate) struct Whole<'a>(pub(crate) &'a [Segment]);

impl WeightSource for Whole<'_> {
    fn lend(&mut self, segment: usize) -> Result<Weights> {
        let segment =
            self.0.get(segment).ok_or_else(|| Error::runtime(format!("the model has no segment {segment}")))?;
        Ok(segment.weights.share())
    }

    fn give_back(&mut self, _segment: usize, _weights: Weights) -> Result<()> {
        Ok(())
    }
}

/// A permanent bucket for every trained segment.
#[derive(Default)]
pub struct Buckets(Vec<Place>);

/// The place of one segment's bucket.
enum Place {
    /// The segment is not trained.
    Frozen,
    /// Lent, or being reduced.
    Out,
    In(Bucket),
}

impl Buckets {
    /// Zeroed buckets for a model's segments.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn of(model: &Model) -> Result<Self> {
        libtorch(|| Ok(Self::from_each(model.segments.iter().map(Segment::bucket))))
    }

    /// These buckets, one a segment; none for a segment that is not trained.
    pub fn from_each(buckets: impl IntoIterator<Item = Option<Bucket>>) -> Self {
        Self(buckets.into_iter().map(|bucket| bucket.map_or(Place::Frozen, Place::In)).collect())
    }

    /// The bucket of a segment; none if the segment is not trained or the bucket is out.
    pub fn get(&self, segment: usize) -> Option<&Bucket> {
        match self.0.get(segment) {
            Some(Place::In(bucket)) => Some(bucket),
            _ => None,
        }
    }

    /// Every bucket that is in, with its segment's number.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Bucket)> {
        (0..self.0.len()).filter_map(|segment| Some((segment, self.get(segment)?)))
    }

    /// Zeroes all sums.
    pub(crate) fn clear(&mut self) {
        for place in &mut self.0 {
            if let Place::In(bucket) = place {
                bucket.clear();
            }
        }
    }
}

impl GradientSink for Buckets {
    fn lend(&mut self, segment: usize) -> Result<Option<Bucket>> {
        let place = self.0.get_mut(segment).ok_or_else(|| Error::runtime(format!("there is no bucket {segment}")))?;
        match std::mem::replace(place, Place::Out) {
            Place::In(bucket) => Ok(Some(bucket)),
            Place::Out => Err(Error::runtime(format!("bucket {segment} is lent, or being reduced"))),
            Place::Frozen => {
                *place = Place::Frozen;
                Ok(None)
            }
        }
    }

    fn complete(&mut self, segment: usize, bucket: Bucket) -> Result<()> {
        match self.0.get_mut(segment) {
            Some(place @ Place::Out) => {
                *place = Place::In(bucket);
                Ok(())
            }
            _ => Err(Error::runtime(format!("bucket {segment} was returned but not lent"))),
        }
    }
}
