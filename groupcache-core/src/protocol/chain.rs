//! Load chain: the loads that need the answer to a request, as the request carries them.
//!
//! `flight::nesting` finds cycles by means of the chains.

use std::sync::Arc;

use crate::limits::MAX_CHAIN;

/// Maximum number of hashes that a request carries: the deepest nesting, and as many joiners.
pub(crate) const MAX_HASHES: usize = 2 * MAX_CHAIN;

/// The loads that need the answer to a request, and their nesting depth.
///
/// The chain of a caller's get is empty and a null pointer, because most gets serve no load and each get passes its
/// chain to the fetch and to the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoadChain(Option<Arc<Hashes>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hashes {
    /// Nesting depth of a load that begins for this chain; 0 = a caller's.
    depth: u8,
    len: u8,
    /// The outermost load first. Joiners come last, and are the first to be left out for want of room.
    hashes: [u64; MAX_HASHES],
}

impl Hashes {
    /// Adds a hash if there is room.
    fn add(&mut self, hash: u64) {
        if let Some(place) = self.hashes.get_mut(usize::from(self.len)) {
            *place = hash;
            self.len += 1;
        }
    }
}

impl LoadChain {
    pub(crate) const EMPTY: Self = Self(None);

    /// Makes a chain of the first hashes, up to [`MAX_HASHES`].
    pub(crate) fn of(depth: u32, hashes: impl IntoIterator<Item = u64>) -> Self {
        let mut chain = Hashes { depth: u8::try_from(depth).unwrap_or(u8::MAX), ..Hashes::default() };
        hashes.into_iter().take(MAX_HASHES).for_each(|hash| chain.add(hash));
        if chain == Hashes::default() { Self::EMPTY } else { Self(Some(Arc::new(chain))) }
    }

    fn hashes_mut(&mut self) -> &mut Hashes {
        Arc::make_mut(self.0.get_or_insert_default())
    }

    /// Returns the chain of a load of `hash` that begins for this chain. In a full chain, `hash` replaces the last
    /// joiner, because a load that is missing in its own chain would matter more.
    pub(crate) fn with_load(&self, hash: u64) -> Self {
        let mut chain = self.clone();
        let hashes = chain.hashes_mut();
        hashes.len = hashes.len.min(MAX_HASHES as u8 - 1);
        hashes.add(hash);
        chain
    }

    /// Returns the chain with another depth.
    pub(crate) fn at_depth(mut self, depth: usize) -> Self {
        self.hashes_mut().depth = u8::try_from(depth).unwrap_or(u8::MAX);
        self
    }

    /// Adds a hash if there is room.
    pub(crate) fn add(&mut self, hash: u64) {
        self.hashes_mut().add(hash);
    }

    pub(crate) fn as_slice(&self) -> &[u64] {
        self.0.as_ref().and_then(|chain| chain.hashes.get(..usize::from(chain.len))).unwrap_or_default()
    }

    pub(crate) fn contains(&self, hash: u64) -> bool {
        self.as_slice().contains(&hash)
    }

    pub(crate) fn depth(&self) -> usize {
        self.0.as_ref().map_or(0, |chain| usize::from(chain.depth))
    }
}
