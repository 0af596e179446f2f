//! Which peer owns a key, and who takes over when that peer leaves.
//!
//! A ring of hashes: each member has [`POINTS_PER_WEIGHT`] points per unit of weight on a circle of 2³²
//! positions, and a key belongs to the first point at or after its own position. A member's points depend
//! on its id and nothing else, so a join or a leave moves only the keys of who came or went.
//!
//! All nodes must agree on every position, whatever they were compiled for and in whatever order they heard
//! of each other: integers only, bytes hashed little-endian, ties settled by id, and a file of golden
//! vectors (`tests/golden/ring-v1.txt`) that another implementation can check itself against.

use std::{fmt, mem};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The number of this placement of keys; it travels in the Hello.
///
/// Raise it with any change that moves a key: the hash, the points, [`POINTS_PER_WEIGHT`], the rule for ties.
pub(crate) const ALGORITHM: u32 = 1;

/// How many points a member has on the circle for each unit of weight.
///
/// A member's share scatters by about 1/√points. 512 would do on average, but among 800 clusters of 1,000
/// peers the busiest peer of the worst then carries 1.22 times the mean (640: 1.22, 768: 1.19, 1,024: 1.15).
pub(crate) const POINTS_PER_WEIGHT: u32 = 768;

/// One hash gives two points, its upper and its lower half, so the number of points is even.
const HASHES_PER_WEIGHT: u64 = POINTS_PER_WEIGHT as u64 / 2;

/// A bucket of the index holds this many points on average, or up to twice as many: mostly one cache line,
/// in an index that takes at most a quarter of what the points take.
const POINTS_PER_BUCKET: usize = 2;

/// Computes where the keys of one group lie on the circle, with the group's part of it done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHasher {
    seed: u64,
}

impl KeyHasher {
    /// For the keys of `group`.
    ///
    /// The name is hashed apart from the key and becomes its seed: no pair of group and key can be mistaken
    /// for another by moving bytes from one to the other.
    pub(crate) fn new(group: &str) -> Self {
        Self { seed: xxh3_64(group.as_bytes()) }
    }

    /// The hash of a key, which [`Ring::owner`] and [`Ring::successors`] take.
    ///
    /// The ring looks at the upper 32 bits only; keys of one owner still differ in the lower ones.
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed)
    }
}

/// The hash of a key of a group; see [`KeyHasher`], which is faster for many keys of one group.
#[cfg(test)]
pub(crate) fn key_hash(group: &str, key: &[u8]) -> u64 {
    KeyHasher::new(group).hash(key)
}

/// The owners of all keys for one set of members; it never changes, a new set is a new ring.
///
/// Members are called by their slot: their index among the members that own keys, sorted by id.
pub(crate) struct Ring {
    /// Id and weight, sorted by id, each id once, no weight of 0.
    members: Vec<(Box<str>, u8)>,
    points: Points,
    fingerprint: u64,
}

impl Ring {
    /// Places members, given as id and weight in any order.
    ///
    /// A member of weight 0 owns nothing and is left out. An id that comes twice counts once, with the
    /// larger weight: the order in which they came must not decide.
    pub(crate) fn new<'a>(members: impl IntoIterator<Item = (&'a str, u8)>) -> Self {
        let mut members: Vec<(&str, u8)> = members.into_iter().filter(|&(_, weight)| weight > 0).collect();
        members.sort_unstable_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)));
        members.dedup_by(|later, first| later.0 == first.0);
        let weights: usize = members.iter().map(|&(_, weight)| usize::from(weight)).sum();
        let mut points = Vec::with_capacity(weights.saturating_mul(POINTS_PER_WEIGHT as usize));
        for (slot, &(id, weight)) in (0..).zip(&members) {
            points.extend(points_of(slot, id, weight));
        }
        Self {
            points: Points::new(points),
            fingerprint: fingerprint(&members),
            members: members.into_iter().map(|(id, weight)| (id.into(), weight)).collect(),
        }
    }

    /// Whether no member owns keys.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many members own keys; slots are below it.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The id of the member in a slot.
    #[cfg(test)]
    pub(crate) fn member(&self, slot: u32) -> Option<&str> {
        self.members.get(slot as usize).map(|(id, _)| &**id)
    }

    /// The ids of the members that own keys, in the order of their slots, which is that of the ids.
    #[cfg(test)]
    pub(crate) fn members(&self) -> impl ExactSizeIterator<Item = &str> {
        self.members.iter().map(|(id, _)| &**id)
    }

    /// The slot of the member that owns the key of this hash; `None` when the ring is empty.
    pub(crate) fn owner(&self, key: u64) -> Option<u32> {
        self.points.at(self.points.first(key)).map(slot_of)
    }

    /// All members, each once, in the order in which they own a key when those before them have left.
    ///
    /// The first is the owner. Taking it alone does not allocate.
    pub(crate) fn successors(&self, key: u64) -> impl Iterator<Item = u32> {
        let mut seen = Seen { first: None, rest: Vec::new(), members: self.len() };
        // `take`: who has met everybody need not walk the rest of the circle.
        self.points.from(self.points.first(key)).map(slot_of).filter(move |&slot| seen.insert(slot)).take(self.len())
    }

    /// A number that two nodes share when they place every key alike.
    ///
    /// It covers [`ALGORITHM`] and the id and weight of each member that owns keys.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl fmt::Debug for Ring {
    // A ring of 1,000 peers has 768,000 points: none of them belongs in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("members", &self.members.len())
            .field("points", &self.points.sorted.len())
            .field("fingerprint", &format_args!("{:016x}", self.fingerprint))
            .finish()
    }
}

/// The points of one member. More weight adds points and moves none.
fn points_of(slot: u32, id: &str, weight: u8) -> impl Iterator<Item = u64> {
    let seed = xxh3_64(id.as_bytes());
    (0..u64::from(weight) * HASHES_PER_WEIGHT).flat_map(move |n| {
        let hash = xxh3_64_with_seed(&n.to_le_bytes(), seed);
        [point(hash, slot), point(hash << 32, slot)]
    })
}

/// A point as one number: position in the upper half, slot in the lower.
///
/// The order of the numbers is then that of the circle, and of equal positions the smaller id comes first,
/// since slots are in the order of the ids.
fn point(hash: u64, slot: u32) -> u64 {
    position(hash) | u64::from(slot)
}

/// The upper half of a hash, where it is: all bits below are zero.
fn position(hash: u64) -> u64 {
    hash & !u64::from(u32::MAX)
}

fn slot_of(point: u64) -> u32 {
    point as u32
}

/// Each part has a fixed length or is preceded by it, so no two lists of members have the same bytes.
fn fingerprint(members: &[(&str, u8)]) -> u64 {
    let mut bytes = ALGORITHM.to_le_bytes().to_vec();
    for (id, weight) in members {
        bytes.extend((id.len() as u64).to_le_bytes());
        bytes.extend(id.as_bytes());
        bytes.push(*weight);
    }
    xxh3_64(&bytes)
}

/// The points of all members in the order of the circle, with an index by their uppermost bits.
///
/// Positions are hashes, so buckets of equal width hold about equally many: a look-up reads one entry of the
/// index and a few neighbouring points, where a binary search would miss the cache about twenty times.
struct Points {
    sorted: Vec<u64>,
    /// For each bucket the index of its first point or, if it has none, of the next bucket that has.
    starts: Vec<u32>,
    /// A bucket is what is left of a hash after this shift.
    shift: u32,
}

impl Points {
    fn new(mut points: Vec<u64>) -> Self {
        points.sort_unstable();
        // Two buckets at least: with one, the shift would be by all 64 bits.
        let bits = (points.len() / POINTS_PER_BUCKET).checked_ilog2().unwrap_or(0).max(1);
        let shift = u64::BITS - bits;
        let mut starts = vec![0_u32; 1 << bits];
        for &point in &points {
            if let Some(count) = starts.get_mut((point >> shift) as usize) {
                *count += 1;
            }
        }
        let mut next = 0;
        for start in &mut starts {
            next += mem::replace(start, next);
        }
        Self { sorted: points, starts, shift }
    }

    /// The index of the first point at or after the position of a hash, around the circle.
    fn first(&self, hash: u64) -> usize {
        let start = self.starts.get((hash >> self.shift) as usize).map_or(0, |&start| start as usize);
        let position = position(hash);
        let ahead = self.sorted.get(start..).unwrap_or_default().iter().position(|&point| point >= position);
        ahead.map_or(0, |ahead| start + ahead)
    }

    fn at(&self, index: usize) -> Option<u64> {
        self.sorted.get(index).copied()
    }

    /// All points once around the circle, beginning at one of them.
    fn from(&self, index: usize) -> impl Iterator<Item = u64> {
        let (before, after) = self.sorted.split_at_checked(index).unwrap_or_default();
        after.iter().chain(before).copied()
    }
}

/// The slots that a walk has met; the first costs no allocation, since most walks end there.
struct Seen {
    first: Option<u32>,
    /// A bit per member, once there is a second.
    rest: Vec<u64>,
    members: usize,
}

impl Seen {
    /// Whether the slot is new.
    fn insert(&mut self, slot: u32) -> bool {
        if self.first == Some(slot) {
            return false;
        }
        if self.first.is_none() {
            self.first = Some(slot);
            return true;
        }
        if self.rest.is_empty() {
            self.rest = vec![0; self.members.div_ceil(64)];
        }
        let bit = 1 << (slot % 64);
        let Some(word) = self.rest.get_mut(slot as usize / 64) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
