//! Measurement: what a node measures of itself, as plain data for exporters.

use std::{fmt, sync::Arc, time::Duration};

/// Measurements of one name, one for each set of labels; made by [`Node::measure`](crate::Node::measure).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Family {
    /// Name in the style of Prometheus, such as `groupcache_load_duration`, without the unit and without `_total`.
    pub name: String,
    /// Meaning of the measurements, as plain sentences.
    pub help: &'static str,
    /// Kind of the measurements.
    pub kind: Kind,
    /// Unit of the values.
    pub unit: Unit,
    /// The measurements, in the order of their labels. Empty in a node without groups, for a family with a label
    /// `group`.
    pub samples: Vec<Sample>,
}

/// Kind of the measurements of a [`Family`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Sum since the start of the node or of the group, which only grows.
    Counter,
    /// State at this moment, which grows and shrinks.
    Gauge,
    /// Durations in fixed buckets, since the start of the group. Each count only grows.
    Histogram,
}

/// Unit of the values of a [`Family`]. Always a base unit: seconds and not milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// A count, a hash or a sign.
    Number,
    /// A part of a whole, from 0 to 1.
    Ratio,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// Returns the last part of a name in the style of Prometheus, such as `seconds`; `None` for a number.
    pub fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Number => None,
            Self::Ratio => Some("ratio"),
            Self::Seconds => Some("seconds"),
            Self::Bytes => Some("bytes"),
        }
    }
}

/// Names and values of the labels of a [`Sample`], at most four.
pub type Labels = Arc<[(&'static str, Arc<str>)]>;

/// A single measurement.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// Labels, which no other measurement of the family has. Values come from users and peers, and may contain any
    /// character.
    pub labels: Labels,
    /// Measured value.
    pub reading: Reading,
}

/// Value of a [`Sample`]. All measurements of a family have the same variant.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reading {
    /// Whole number.
    Whole(u64),
    /// Number with a fraction.
    Real(f64),
    /// Durations in buckets.
    Distribution(Distribution),
}

/// Durations in buckets with fixed ends, equal for all nodes and at all times, so that distributions can be added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Distribution {
    /// Sum of all durations.
    pub sum: Duration,
    /// Number of durations.
    pub count: u64,
    /// End of each bucket, in ascending order, and the number of durations in that bucket alone. The durations in a bucket
    /// are shorter than its end by a microsecond at least. Longer durations than the last end are in `count` alone.
    pub buckets: Vec<(Duration, u64)>,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.suffix().unwrap_or("number"))
    }
}
