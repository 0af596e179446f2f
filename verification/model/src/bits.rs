//! Small sets in one byte, so that a state is small and quickly hashed.

use std::{
    fmt,
    ops::{BitAnd, BitOr, BitOrAssign, Sub, SubAssign},
};

/// Set of numbers below eight: of nodes, of incarnations of nodes, of writes or of links.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Bits(u8);

impl Bits {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Returns the set of `numbers`.
    pub const fn of(numbers: &[usize]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < numbers.len() {
            set |= 1 << numbers[at];
            at += 1;
        }
        Self(set)
    }

    /// Returns the set of one number.
    pub const fn one(number: usize) -> Self {
        Self(1 << number)
    }

    /// Returns all that is in either set.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether the set contains `number`.
    pub const fn has(self, number: usize) -> bool {
        self.0 >> number & 1 != 0
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds `number`.
    pub fn insert(&mut self, number: usize) {
        self.0 |= 1 << number;
    }

    /// Takes `number` out.
    pub fn remove(&mut self, number: usize) {
        self.0 &= !(1 << number);
    }

    /// Returns the numbers in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |&number| self.has(number))
    }
}

impl BitOr for Bits {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

impl BitAnd for Bits {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Bits {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOrAssign for Bits {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl SubAssign for Bits {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl FromIterator<usize> for Bits {
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        numbers.into_iter().fold(Self::EMPTY, |set, number| set | Self::one(number))
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
