//! Hash ring: the owner of each key, and the successors that own the key after it.
//!
//! Each member has [`POINTS_PER_WEIGHT`] points per unit of weight on a circle of 2³² positions, and a key belongs to
//! the first point at or after its own position. The points of a member depend on its id and its weight alone, so that
//! a join or a leave moves only keys of the joining or leaving member.
//!
//! All nodes must agree on every position, on any platform and after any order of joins. Positions are therefore
//! computed from integers, bytes are hashed little-endian, and equal positions are ordered by id. A file of golden
//! vectors (`tests/golden/ring-v1.txt`) lets another implementation check itself.

use std::{fmt, mem};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The version of the placement of keys, sent in the Hello.
///
/// Raise the version with any change that moves a key: the hash, the points, [`POINTS_PER_WEIGHT`], the order of equal
/// positions.
pub(crate) const ALGORITHM: u32 = 1;

/// Number of points of a member for each unit of weight.
///
/// The share of a member scatters by about 1/√points. 512 points are enough on average, but among 800 clusters of 1,000
/// peers the busiest peer of the worst cluster then owns 1.22 times the mean (640: 1.22, 768: 1.19, 1,024: 1.15).
pub(crate) const POINTS_PER_WEIGHT: u32 = 768;

/// Number of hashes for each unit of weight. A hash gives two points, its upper and its lower half, so that the number
/// of points is even.
const HASHES_PER_WEIGHT: u64 = POINTS_PER_WEIGHT as u64 / 2;

/// Minimum mean number of points in a bucket of the index. The mean is below twice this number.
///
/// The points of a bucket mostly fit one cache line, and the index takes at most a quarter of the memory of the points.
const POINTS_PER_BUCKET: usize = 2;

/// A hasher of the keys of one group, with the group's name hashed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHasher {
    seed: u64,
}

impl KeyHasher {
    /// Creates the hasher of the keys of `group`.
    ///
    /// The hash of the name is the seed of the hash of the key, so that moving bytes from the group to the key makes
    /// another hash.
    pub(crate) fn new(group: &str) -> Self {
        Self { seed: xxh3_64(group.as_bytes()) }
    }

    /// Returns the hash of a key for [`Ring::owner`] and [`Ring::successors`].
    ///
    /// The ring uses the upper 32 bits only. Keys of one owner still differ in the lower bits.
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed)
    }
}

/// Returns the hash of a key of a group. [`KeyHasher`] is faster for many keys of one group.
#[cfg(test)]
pub(crate) fn key_hash(group: &str, key: &[u8]) -> u64 {
    KeyHasher::new(group).hash(key)
}

/// The owners of all keys for one set of members. A ring is immutable.
///
/// A member is named by its slot, which is its index among the members that own keys, sorted by id.
pub(crate) struct Ring {
    /// Id and weight of each member. Sorted by id, without duplicate ids and without weights of 0.
    members: Vec<(Box<str>, u8)>,
    points: Points,
    fingerprint: u64,
}

impl Ring {
    /// Creates the ring of members, which are ids with weights in any order.
    ///
    /// A member of weight 0 owns nothing and is left out. A duplicate id counts once, with its largest weight, because
    /// the order of the members must not matter.
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

    /// Returns whether no member owns keys.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the number of members that own keys. Slots are below this number.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns the id of the member in a slot.
    #[cfg(test)]
    pub(crate) fn member(&self, slot: u32) -> Option<&str> {
        self.members.get(slot as usize).map(|(id, _)| &**id)
    }

    /// Returns the ids of the members that own keys, in the order of their slots and ids.
    #[cfg(test)]
    pub(crate) fn members(&self) -> impl ExactSizeIterator<Item = &str> {
        self.members.iter().map(|(id, _)| &**id)
    }

    /// Returns the number of points.
    pub(crate) fn points(&self) -> usize {
        self.points.sorted.len()
    }

    /// Returns the slot of the owner of the key with this hash. `None` if the ring is empty.
    pub(crate) fn owner(&self, key: u64) -> Option<u32> {
        self.points.at(self.points.first(key)).map(slot_of)
    }

    /// Returns the part of all keys that the member in a slot owns, from 0 to 1. Visits each point.
    pub(crate) fn share(&self, slot: u32) -> f64 {
        // The first point owns the keys after the last one too. Positions are numbers of 32 bits.
        let mut before = self.points.sorted.last().map_or(0, |&point| (point >> 32) as u32);
        let mut owned = 0_u64;
        for &point in &self.points.sorted {
            let here = (point >> 32) as u32;
            if slot_of(point) == slot {
                owned += u64::from(here.wrapping_sub(before));
            }
            before = here;
        }
        owned as f64 / (1_u64 << 32) as f64
    }

    /// Returns all members, each once, in the order in which they own the key after earlier members have left.
    ///
    /// The first is the owner. Reading the owner alone does not allocate.
    pub(crate) fn successors(&self, key: u64) -> impl Iterator<Item = u32> {
        let mut visited = VisitedSlots { first: None, rest: Vec::new(), members: self.len() };
        // `take` ends the walk around the circle after the last member.
        let walk = self.points.from(self.points.first(key));
        #[cfg(test)]
        let walk = walk.inspect(|_| WALKED.set(WALKED.get() + 1));
        walk.map(slot_of).filter(move |&slot| visited.insert(slot)).take(self.len())
    }

    /// Returns the fingerprint, which is equal on two nodes that place every key alike.
    ///
    /// The fingerprint covers [`ALGORITHM`], and the id and weight of each member that owns keys.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl fmt::Debug for Ring {
    // A ring of 1,000 peers has 768,000 points, which do not belong into a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("members", &self.members.len())
            .field("points", &self.points.sorted.len())
            .field("fingerprint", &format_args!("{:016x}", self.fingerprint))
            .finish()
    }
}

/// Returns the points of one member. A larger weight adds points and moves none.
fn points_of(slot: u32, id: &str, weight: u8) -> impl Iterator<Item = u64> {
    let seed = xxh3_64(id.as_bytes());
    (0..u64::from(weight) * HASHES_PER_WEIGHT).flat_map(move |n| {
        let hash = xxh3_64_with_seed(&n.to_le_bytes(), seed);
        [point(hash, slot), point(hash << 32, slot)]
    })
}

/// Returns a point as one number, with the position in the upper half and the slot in the lower half.
///
/// The order of the numbers is the order of the circle. The smaller id comes first at equal positions, because slots
/// are in the order of ids.
fn point(hash: u64, slot: u32) -> u64 {
    position(hash) | u64::from(slot)
}

/// Returns the hash with its lower half set to zero.
fn position(hash: u64) -> u64 {
    hash & !u64::from(u32::MAX)
}

fn slot_of(point: u64) -> u32 {
    point as u32
}

/// Returns the hash of a list of members. Each part has a fixed length or follows its length, so that two lists never
/// have equal bytes.
fn fingerprint(members: &[(&str, u8)]) -> u64 {
    let mut bytes = ALGORITHM.to_le_bytes().to_vec();
    for (id, weight) in members {
        bytes.extend((id.len() as u64).to_le_bytes());
        bytes.extend(id.as_bytes());
        bytes.push(*weight);
    }
    xxh3_64(&bytes)
}

/// The points of all members in the order of the circle, with an index by their upper bits.
///
/// Positions are hashes, so that buckets of equal width hold about the same number of points. A lookup reads one entry
/// of the index and a few neighbouring points. A binary search would miss the CPU cache about 20 times instead.
struct Points {
    sorted: Vec<u64>,
    /// Index of the first point of each bucket, or of the next bucket with a point if the bucket is empty.
    starts: Vec<u32>,
    /// Number of bits by which a hash is shifted right to give its bucket.
    shift: u32,
}

impl Points {
    fn new(mut points: Vec<u64>) -> Self {
        points.sort_unstable();
        // At least two buckets, because the shift of a single bucket would be by all 64 bits.
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

    /// Returns the index of the first point at or after the position of a hash, around the circle.
    fn first(&self, hash: u64) -> usize {
        let start = self.starts.get((hash >> self.shift) as usize).map_or(0, |&start| start as usize);
        let position = position(hash);
        let ahead = self.sorted.get(start..).unwrap_or_default().iter().position(|&point| point >= position);
        ahead.map_or(0, |ahead| start + ahead)
    }

    fn at(&self, index: usize) -> Option<u64> {
        self.sorted.get(index).copied()
    }

    /// Returns all points once around the circle, starting at `index`.
    fn from(&self, index: usize) -> impl Iterator<Item = u64> {
        let (before, after) = self.sorted.split_at_checked(index).unwrap_or_default();
        after.iter().chain(before).copied()
    }
}

/// The slots that a walk around the circle has visited. The first needs no allocation, because most walks end there.
struct VisitedSlots {
    first: Option<u32>,
    /// A bit for each member, from the second slot on.
    rest: Vec<u64>,
    members: usize,
}

impl VisitedSlots {
    /// Adds a slot. Returns whether the slot is new.
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
thread_local! {
    /// Number of points that the walks of this thread have visited.
    pub(crate) static WALKED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
